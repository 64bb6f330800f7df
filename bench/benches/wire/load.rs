//! Tails under load: most of what the broker can take, while a consumer catches up and the log goes on to a new segment
//! each second; and what a bare server and a bare `sendfile` make of the same.

use crate::bare::{Bare, Store};
use crate::bed::{Bed, runtime};
use crate::cold;
use crate::fill;
use crate::lanes::{Lane, open_loop};
use crate::linux::Place;
use crate::raw::Blocks;
use crate::wire::{Wire, fill_queues, read_all};
use anyhow::Context as _;
use ringmq_bench::goals::{Goal, Outcome, rounds};
use ringmq_bench::record::Latencies;
use ringmq_schema::produce::Flush;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Spikes up to here are nobody's business.
const SPIKE_MS: f64 = 20.0;
/// With so much at p50 the load was not kept up.
const BEHIND_US: f64 = 500_000.0;
const MIB: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Slices of each kind
    #[arg(long, default_value_t = 4)]
    rounds: usize,
    /// Milliseconds of a slice
    #[arg(long, default_value_t = 4000)]
    slice_ms: u64,
    /// Of what it takes at full speed, in percent
    #[arg(long, default_value_t = 70)]
    percent: u64,
    /// MiB that the consumer has to catch up with
    #[arg(long, default_value_t = 2048)]
    mib: u64,
    /// Messages in a batch
    #[arg(long, default_value_t = 100)]
    batch: u32,
    /// Batches in flight at full speed
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Flags for the broker
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    broker: Vec<String>,
}

const KINDS: [&str; 3] = ["load alone", "beside a consumer", "bare server beside bare sendfile"];

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("load");
    let runtime = runtime()?;
    let batch_bytes =
        fill::run_of((1, 0), options.batch, options.body, |_| None).bytes.len() as u64;
    let most = {
        let bed = Bed::start(&options.place, &options.broker)?;
        let address = bed.broker.address("listen")?;
        let topic = bed.wire()?.create_topic("new", 1)?;
        runtime.block_on(full_speed(address, topic, options))?
    };
    let rate = (most * options.percent as f64 / 100.0) as u64;
    let segment = (rate * batch_bytes / MIB).max(1) * MIB;
    let mut flags = options.broker.clone();
    flags.push(format!("--segment-bytes={}MiB", segment / MIB));
    let bed = Bed::start(&options.place, &flags)?;
    let address = bed.broker.address("listen")?;
    let mut wire = bed.wire()?;
    let (old, new) = (wire.create_topic("old", 1)?, wire.create_topic("new", 1)?);
    let run = fill::run_of((old, 0), options.batch, options.body, |_| None);
    let batches = options.mib * MIB / batch_bytes;
    fill_queues(&mut wire, &[(old, 0, run)], batches, 64, Flush::Sync)?;
    let reader = Reader { address, topic: old, records: batches * u64::from(options.batch) };
    let files = cold::files(bed.folder(), ".log")?;
    let store = Store { bytes: 4 << 30, blocks: Blocks::Fresh, durable: true };
    let server = Bare::start(options.place.folder()?, options.rounds, store)?;

    let mut latencies: [Latencies; 3] = Default::default();
    let mut spikes = [const { Vec::new() }; 3];
    for _ in 0..options.rounds {
        for kind in 0..KINDS.len() {
            cold::forget(&files)?;
            let stop = Arc::new(AtomicBool::new(false));
            let beside = match kind {
                0 => None,
                1 => Some(reader.start(files.clone(), &stop)),
                _ => Some(send_files(files.clone(), &stop)),
            };
            let to = if kind == 2 { server.address } else { address };
            let stream = Wire::connect(to)?.stream;
            let message = fill::run_of((new, 0), options.batch, options.body, |_| None);
            let frame = move |number| fill::produce_frame((new, 0), &message, Flush::Sync, number);
            let duration = Duration::from_millis(options.slice_ms);
            let (seen, _) = open_loop(&[stream], rate, duration, frame)?;
            stop.store(true, Ordering::Relaxed);
            if let Some(beside) = beside {
                beside.join().ok().context("the reader panicked")??;
            }
            spikes[kind].push(seen.at_ns(100.0) as f64 / 1e6);
            latencies[kind].merge(&seen);
        }
    }
    server.finish()?;
    let at = |kind: usize, percent| latencies[kind].at_ns(percent) as f64 / 1e3;
    // Who falls behind for good has one latency, how long it was asked for: that says nothing of tails.
    let kept_up = |kind: usize| at(kind, 50.0) < BEHIND_US;
    for (kind, name) in KINDS.into_iter().enumerate() {
        let goal = if kind == 1 && kept_up(kind) { Goal::AtMost(5.0) } else { Goal::Shown };
        let figures = (at(kind, 99.9), at(kind, 50.0));
        outcome.ratio(format!("{name}: p99.9 against p50"), "us", figures, goal);
    }
    let longest = |kind: usize| spikes[kind].iter().copied().fold(0.0, f64::max);
    let allowed = longest(2).max(SPIKE_MS);
    outcome.ratio(
        "longest, beside a consumer: against 20 ms, or the bare one's",
        "ms",
        (longest(1), allowed),
        if kept_up(1) { Goal::AtMost(1.0) } else { Goal::Shown },
    );
    for (kind, name) in KINDS.into_iter().enumerate().filter(|(kind, _)| !kept_up(*kind)) {
        let late = at(kind, 50.0) / 1e6;
        outcome.note(format!("{name}: not kept up, p50 is {late:.1} s; tails are not judged"));
    }
    outcome.figure("load", "messages/s", (rate * u64::from(options.batch)) as f64, Goal::Shown);
    outcome.figure("segments", "MiB", (segment / MIB) as f64, Goal::Shown);
    for (name, spikes) in KINDS.into_iter().zip(&spikes) {
        outcome.note(rounds(&format!("{name}: longest, ms"), spikes));
    }
    Ok(outcome)
}

/// Batches a second that it keeps up: those of the worst of ten seconds, because a disk may take more for a while than it does
/// for long.
async fn full_speed(address: SocketAddr, topic: u32, options: &Options) -> anyhow::Result<f64> {
    let run = fill::run_of((topic, 0), options.batch, options.body, |_| None);
    let frame = fill::produce_frame((topic, 0), &run, Flush::Sync, 1);
    let window = frame.repeat(options.in_flight);
    let mut lane = Lane::greet(address)?;
    let mut worst = f64::INFINITY;
    for _ in 0..10 {
        let begun = Instant::now();
        let until = begun + Duration::from_millis(1000);
        let answered = lane.closed_loop(&window, frame.len(), until).await?;
        worst = worst.min(answered as f64 / begun.elapsed().as_secs_f64());
    }
    Ok(worst)
}

type Beside = std::thread::JoinHandle<anyhow::Result<()>>;

/// A consumer that reads everything again and again.
#[derive(Debug, Clone, Copy)]
struct Reader {
    address: SocketAddr,
    topic: u32,
    records: u64,
}

impl Reader {
    fn start(self, files: Vec<PathBuf>, stop: &Arc<AtomicBool>) -> Beside {
        let stop = Arc::clone(stop);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let mut wire = Wire::connect(self.address)?;
                wire.until = Some(Instant::now() + Duration::from_millis(500));
                read_all(&mut wire, self.topic, 1, self.records, 4 << 20)?;
                cold::forget(&files)?;
            }
            Ok(())
        })
    }
}

fn send_files(files: Vec<PathBuf>, stop: &Arc<AtomicBool>) -> Beside {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        for file in files.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
            cold::send_files(std::slice::from_ref(file), u64::MAX)?;
            cold::forget(std::slice::from_ref(file))?;
        }
        Ok(())
    })
}
