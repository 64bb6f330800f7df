//! Single durable messages on many connections, against an echo of the same frames by the same runtime.

use crate::bare::{Bare, Store};
use crate::bed::{Bed, runtime};
use crate::echo::Echo;
use crate::fill;
use crate::lanes::Lane;
use crate::linux::Place;
use crate::raw::Blocks;
use futures_util::future::try_join_all;
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use ringmq_schema::produce::Flush;
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
    /// Connections
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Messages in flight on each
    #[arg(long, default_value_t = 256)]
    in_flight: usize,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Flags for the broker
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    broker: Vec<String>,
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("singles");
    let bed = Bed::start(&options.place, &options.broker)?;
    let topic = bed.wire()?.create_topic("bare", options.connections as u32)?;
    let echo = Echo::start(options.connections)?;
    let runtime = runtime()?;
    let _inside = runtime.enter();
    let store = Store { bytes: 4 << 30, blocks: Blocks::Fresh, durable: true };
    let server = Bare::start(options.place.folder()?, options.connections, store)?;
    let (mut lanes, mut echoes, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    for queue in 0..options.connections {
        let target = (topic, queue as u32);
        let message = fill::run_of(target, 1, options.body, |_| None);
        let frame = |number| fill::produce_frame(target, &message, Flush::Sync, number);
        let frame_bytes = frame(0).len();
        let frames: Vec<u8> = (0..options.in_flight as u64).flat_map(frame).collect();
        lanes.push((Lane::greet(bed.broker.address("listen")?)?, frames.clone(), frame_bytes));
        floors.push((Lane::greet(server.address)?, frames.clone(), frame_bytes));
        echoes.push((Lane::bare(echo.address)?, frames, frame_bytes));
    }
    let (mut stored, mut echoed, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        echoed.push(runtime.block_on(rate(&mut echoes, options))?);
        floor.push(runtime.block_on(rate(&mut floors, options))?);
        stored.push(runtime.block_on(rate(&mut lanes, options))?);
    }
    drop((echoes, floors));
    echo.finish()?;
    server.finish()?;
    let what = format!("{} connections x {} in flight", options.connections, options.in_flight);
    let figures = (median(&stored), median(&echoed));
    outcome.ratio(&what, "messages/s", figures, Goal::AtLeast(0.5));
    let figures = (median(&stored), median(&floor));
    outcome.ratio(format!("{what}: against a bare server"), "messages/s", figures, Goal::Shown);
    outcome.note(rounds("bare server", &floor));
    outcome.note(rounds("stored", &stored));
    outcome.note(rounds("echoed", &echoed));
    Ok(outcome)
}

/// Frames answered a second.
async fn rate(lanes: &mut [(Lane, Vec<u8>, usize)], options: &Options) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let until = begun + Duration::from_millis(options.slice_ms);
    let loops =
        lanes.iter_mut().map(|(lane, frames, bytes)| lane.closed_loop(frames, *bytes, until));
    let answered: u64 = try_join_all(loops).await?.into_iter().sum();
    Ok(answered as f64 / begun.elapsed().as_secs_f64())
}
