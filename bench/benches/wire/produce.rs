//! Batches at full speed: how much of a stream over the loopback are bodies, and what durability costs.

use crate::bare::{Bare, Store};
use crate::bed::{Bed, Side, closed_loop, runtime, stream};
use crate::fill::{self, Run};
use crate::linux::Place;
use crate::raw::Blocks;
use crate::wire::Wire;
use anyhow::ensure;
use ringmq_bench::args::FlushMode;
use ringmq_bench::check::Checker;
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use ringmq_bench::run::Run as Measured;
use ringmq_bench::sending::Sending;
use ringmq_bench::session::Session;
use ringmq_schema::produce::Flush;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Measurements of each side
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds of each
    #[arg(long, default_value_t = 1500)]
    slice_ms: u64,
    /// Messages in a batch
    #[arg(long, default_value_t = 100)]
    batch: u32,
    /// Batches in flight
    #[arg(long, default_value_t = 64)]
    in_flight: u32,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Queues of the topic
    #[arg(long, default_value_t = 8)]
    queues: u32,
    /// Flags for the broker
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    broker: Vec<String>,
}

/// As much as the broker keeps.
const FLOOR_BYTES: u64 = 4 << 30;

const MODES: [(&str, Flush, FlushMode); 2] =
    [("ASYNC", Flush::Async, FlushMode::Async), ("SYNC", Flush::Sync, FlushMode::Sync)];

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("produce");
    let bed = Bed::start(&options.place, &options.broker)?;
    let runtime = runtime()?;
    let slice = Duration::from_millis(options.slice_ms);
    let mut wire = bed.wire()?;
    let topic = wire.create_topic("bare", options.queues)?;
    let runs: Vec<(u32, u32, Run)> = (0..options.queues)
        .map(|queue| {
            (topic, queue, fill::run_of((topic, queue), options.batch, options.body, |_| None))
        })
        .collect();
    // As the broker's log: new blocks at first, then its own again.
    let servers = [false, true].map(|durable| {
        let store = Store { bytes: FLOOR_BYTES, blocks: Blocks::Fresh, durable };
        Bare::start(options.place.folder()?, 1, store)
    });
    let [one, other] = servers;
    let servers = [one?, other?];
    let mut wires = [Wire::connect(servers[0].address)?, Wire::connect(servers[1].address)?];
    let mut streams = Vec::new();
    let (mut bare, mut client, mut floor) =
        ([const { Vec::new() }; 2], [const { Vec::new() }; 2], [const { Vec::new() }; 2]);
    for _ in 0..options.rounds {
        streams.push(stream(Side::Client, slice)? / 1e9);
        for (mode, (_, flush, mode_of_client)) in MODES.into_iter().enumerate() {
            floor[mode].push(sent_bare(&mut wires[mode], &runs, options, flush)? / 1e9);
            bare[mode].push(sent_bare(&mut wire, &runs, options, flush)? / 1e9);
            let sent = runtime.block_on(sent_by_client(&bed, options, mode_of_client))?;
            client[mode].push(sent / 1e9);
        }
    }
    drop(wires);
    for server in servers {
        server.finish()?;
    }
    for (mode, (name, ..)) in MODES.into_iter().enumerate() {
        let what = format!("{name}, bare client: against a bare server");
        let figures = (median(&bare[mode]), median(&floor[mode]));
        outcome.ratio(&what, "GB/s", figures, Goal::Shown);
        outcome.note(rounds(&format!("{name}, bare server, GB/s"), &floor[mode]));
    }
    for (who, figures, goal) in
        [("bare client", &bare, Goal::AtLeast(0.6)), ("client crate", &client, Goal::Shown)]
    {
        for (mode, (name, ..)) in MODES.into_iter().enumerate() {
            let what = format!("{name}, {who}: bodies against one stream");
            let goal = if mode == 0 { goal } else { Goal::Shown };
            outcome.ratio(&what, "GB/s", (median(&figures[mode]), median(&streams)), goal);
            outcome.note(rounds(&what, &figures[mode]));
        }
        let what = format!("SYNC against ASYNC, {who}");
        let figures = (median(&figures[1]), median(&figures[0]));
        outcome.ratio(what, "GB/s", figures, Goal::AtLeast(0.9));
    }
    outcome.note(rounds("one stream, GB/s", &streams));
    Ok(outcome)
}

/// Bytes of bodies a second.
fn sent_bare(
    wire: &mut Wire,
    runs: &[(u32, u32, Run)],
    options: &Options,
    flush: Flush,
) -> anyhow::Result<f64> {
    let (mut batches, mut answered) = (0u64, 0u64);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(options.slice_ms) {
        if batches - answered >= u64::from(options.in_flight) {
            wire.answers(1)?;
            answered += 1;
        }
        let (topic, queue, run) = &runs[(batches % runs.len() as u64) as usize];
        wire.produce((*topic, *queue), run, flush)?;
        batches += 1;
    }
    wire.answers((batches - answered) as usize)?;
    let bytes = batches * u64::from(options.batch) * options.body as u64;
    Ok(bytes as f64 / begun.elapsed().as_secs_f64())
}

async fn sent_by_client(bed: &Bed, options: &Options, flush: FlushMode) -> anyhow::Result<f64> {
    let load = closed_loop(options.in_flight, options.batch, options.body, flush);
    let session = Session::open(&bed.target(options.queues)?, true).await?;
    let producers = session.producers(&load).await?;
    let run = Arc::new(Measured::start(0, |id| Checker::new(id, None)));
    let mut sending =
        Sending::new(&run, &producers, session.topic(), &load, u64::MAX, Duration::ZERO);
    sending.slice(Duration::from_millis(options.slice_ms)).await?;
    let progress = run.progress();
    ensure!(progress.failed == 0, "{} messages failed", progress.failed);
    let bytes = progress.acknowledged * options.body as u64;
    drop(producers);
    session.close().await?;
    Ok(bytes as f64 * 1e9 / sending.measured_ns() as f64)
}
