//! Messages of 64 bytes in batches of 1000: how many come in, and how many go out of memory.

use crate::bare::{Bare, Store};
use crate::bed::Bed;
use crate::fill;
use crate::linux::Place;
use crate::raw::Blocks;
use crate::wire::{Wire, fill_queues, read_all};
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use ringmq_schema::produce::Flush;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Measurements of each side
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// MiB that go in and out in each: less than the broker's memory for its tail
    #[arg(long, default_value_t = 48)]
    mib: u64,
    /// Times that this is done in each
    #[arg(long, default_value_t = 10)]
    times: u32,
    /// Messages in a batch
    #[arg(long, default_value_t = 1000)]
    batch: u32,
    /// Bytes of a body
    #[arg(long, default_value_t = 64)]
    body: usize,
    /// Flags for the broker
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    broker: Vec<String>,
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("small");
    let bed = Bed::start(&options.place, &options.broker)?;
    let mut wire = bed.wire()?;
    let store = Store { bytes: 4 << 30, blocks: Blocks::Fresh, durable: false };
    let server = Bare::start(options.place.folder()?, 1, store)?;
    let mut floor_wire = Wire::connect(server.address)?;
    let (mut went_in, mut came_out, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds {
        let (mut filling, mut reading, mut least, mut total) = (0.0, 0.0, 0.0, 0);
        for time in 0..options.times {
            let topic = wire.create_topic(&format!("small-{round}-{time}"), 1)?;
            let run = fill::run_of((topic, 0), options.batch, options.body, |_| None);
            let batches = (options.mib << 20) / run.bytes.len() as u64;
            let records = batches * u64::from(options.batch);
            let runs = [(topic, 0, run)];
            let begun = Instant::now();
            fill_queues(&mut floor_wire, &runs, batches, 64, Flush::Async)?;
            least += begun.elapsed().as_secs_f64();
            let begun = Instant::now();
            fill_queues(&mut wire, &runs, batches, 64, Flush::Async)?;
            filling += begun.elapsed().as_secs_f64();
            let begun = Instant::now();
            read_all(&mut wire, topic, 1, records, 4 << 20)?;
            reading += begun.elapsed().as_secs_f64();
            total += records;
        }
        went_in.push(total as f64 / filling / 1e6);
        floor.push(total as f64 / least / 1e6);
        came_out.push(total as f64 / reading / 1e6);
    }
    outcome.figure("in, ASYNC", "M messages/s", median(&went_in), Goal::AtLeast(6.0));
    outcome.figure("out", "M messages/s", median(&came_out), Goal::AtLeast(8.0));
    let figures = (median(&went_in), median(&floor));
    outcome.ratio("in: against a bare server", "M messages/s", figures, Goal::Shown);
    drop(floor_wire);
    server.finish()?;
    outcome.note(rounds("in, bare server", &floor));
    outcome.note(rounds("in", &went_in));
    outcome.note(rounds("out", &came_out));
    Ok(outcome)
}
