//! Append and fetch over many queues against one queue of the same broker, in turns.

use crate::fill::{self, Run};
use crate::linux::Place;
use crate::server;
use crate::wire::{Wire, fill_queues, read_all};
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use ringmq_schema::produce::Flush;
use std::time::{Duration, Instant};

/// Each side appends in so many turns of a round.
const TURNS: u64 = 16;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Queues on the one side; the other has one
    #[arg(long, default_value_t = 10_000)]
    queues: u32,
    /// MiB of records in each round
    #[arg(long, default_value_t = 512)]
    mib: u64,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Messages in a batch
    #[arg(long, default_value_t = 100)]
    batch: u32,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Batches in flight
    #[arg(long, default_value_t = 64)]
    in_flight: u64,
    /// Most bytes of an answer, KiB
    #[arg(long, default_value_t = 4096)]
    fetch_kib: u32,
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("queues");
    let sides = [1, options.queues];
    let mut append = [const { Vec::new() }; 2];
    let mut fetch = [const { Vec::new() }; 2];
    let folder = options.place.folder()?;
    let broker = server::Options::new(&folder.path().join("data")).start()?;
    let mut wire = Wire::connect(broker.address("listen")?)?;
    for round in 0..options.rounds {
        let mut topics = Vec::new();
        for (side, queues) in sides.into_iter().enumerate() {
            let topic = wire.create_topic(&format!("bench-{side}-{round}"), queues)?;
            topics.push((topic, queues, runs_of(options, topic, queues)));
        }
        // In short turns: the disk's speed changes from second to second.
        let mut appending = [Duration::ZERO; 2];
        let batches = (batches_of(options) / TURNS).max(1);
        for turn in 0..TURNS as usize {
            for side in [(round + turn) % 2, (round + turn + 1) % 2] {
                let runs = &mut topics[side].2;
                let begun = Instant::now();
                fill_queues(&mut wire, runs, batches, options.in_flight, Flush::Default)?;
                appending[side] += begun.elapsed();
                let next = batches as usize % runs.len();
                runs.rotate_left(next);
            }
        }
        let records = batches * TURNS * u64::from(options.batch);
        for side in [round % 2, 1 - round % 2] {
            append[side].push(records as f64 / appending[side].as_secs_f64());
            let (topic, queues, _) = topics[side];
            let begun = Instant::now();
            read_all(&mut wire, topic, queues, records, options.fetch_kib << 10)?;
            fetch[side].push(records as f64 / begun.elapsed().as_secs_f64());
        }
    }
    for (what, figures) in [("append", &append), ("fetch", &fetch)] {
        let [one, many] = figures;
        let what = format!("{what}, {} queues against one", options.queues);
        outcome.ratio(&what, "messages/s", (median(many), median(one)), Goal::AtLeast(0.9));
        outcome.note(rounds(&format!("{what}: one queue"), one));
        outcome.note(rounds(&format!("{what}: many"), many));
    }
    broker.stop()?;
    Ok(outcome)
}

fn batches_of(options: &Options) -> u64 {
    let batch = fill::run_of((1, 0), options.batch, options.body, |_| None);
    ((options.mib << 20) / batch.bytes.len() as u64).max(1)
}

/// Batches for the queues in turn; as many buffers on both sides, so that both find them in the same caches.
fn runs_of(options: &Options, topic: u32, queues: u32) -> Vec<(u32, u32, Run)> {
    let run = fill::run_of((topic, 0), options.batch, options.body, |_| None);
    let buffers = u64::from(options.queues).min(batches_of(options)) as u32;
    let readdressed = |number| {
        let queue = number % queues;
        let mut bytes = run.bytes.clone();
        ringmq_schema::build::readdress(&mut bytes, topic, queue);
        (topic, queue, Run { bytes, records: run.records })
    };
    (0..buffers).map(readdressed).collect()
}
