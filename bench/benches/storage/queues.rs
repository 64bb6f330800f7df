//! Append and fetch over many queues against one queue of the same broker, in turns.

use crate::fill::{self, Run};
use crate::linux::Place;
use crate::outcome::{Goal, Outcome, median, rounds};
use crate::server;
use crate::wire::{Wire, fill_queues, read_all};
use ringmq_schema::produce::Flush;
use std::time::Instant;

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
        // Who begins changes from round to round.
        for side in [round % 2, 1 - round % 2] {
            let topic = wire.create_topic(&format!("bench-{side}-{round}"), sides[side])?;
            let (appended, fetched) = measure(&mut wire, options, topic, sides[side])?;
            append[side].push(appended);
            fetch[side].push(fetched);
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

/// Messages a second: appended, and fetched afterwards.
fn measure(
    wire: &mut Wire,
    options: &Options,
    topic: u32,
    queues: u32,
) -> anyhow::Result<(f64, f64)> {
    let run = fill::run_of((topic, 0), options.batch, options.body, |_| None);
    let batches = ((options.mib << 20) / run.bytes.len() as u64).max(1);
    // As many buffers on both sides, so that both find them in the same caches.
    let buffers = u64::from(options.queues).min(batches) as u32;
    let readdressed = |number| {
        let queue = number % queues;
        let mut bytes = run.bytes.clone();
        ringmq_schema::build::readdress(&mut bytes, topic, queue);
        (topic, queue, Run { bytes, records: run.records })
    };
    let runs: Vec<_> = (0..buffers).map(readdressed).collect();
    let begun = Instant::now();
    fill_queues(wire, &runs, batches, options.in_flight, Flush::Default)?;
    let records = batches * u64::from(options.batch);
    let appended = records as f64 / begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    read_all(wire, topic, queues, records, options.fetch_kib << 10)?;
    let fetched = records as f64 / begun.elapsed().as_secs_f64();
    Ok((appended, fetched))
}
