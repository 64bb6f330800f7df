//! CPU of the broker for each message, in and out once.

use crate::bare::{Bare, Store};
use crate::bed::Bed;
use crate::fill;
use crate::linux::Place;
use crate::raw::Blocks;
use crate::wire::{Wire, fill_queues, read_all};
use ringmq_bench::goals::{Goal, Outcome};
use ringmq_schema::produce::Flush;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// MiB that go in and out at a time: less than the broker's memory for its tail
    #[arg(long, default_value_t = 48)]
    mib: u64,
    /// Times that this is done
    #[arg(long, default_value_t = 100)]
    times: u32,
    /// Messages in a batch
    #[arg(long, default_value_t = 100)]
    batch: u32,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Flags for the broker
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    broker: Vec<String>,
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("cpu");
    let bed = Bed::start(&options.place, &options.broker)?;
    let mut wire = bed.wire()?;
    for (name, flush) in [("SYNC", Flush::Sync), ("ASYNC", Flush::Async)] {
        let durable = flush == Flush::Sync;
        let store = Store { bytes: 4 << 30, blocks: Blocks::Fresh, durable };
        let server = Bare::start(options.place.folder()?, 1, store)?;
        let mut floor_wire = Wire::connect(server.address)?;
        let (mut into, mut out, mut floor, mut total) = (0.0, 0.0, 0.0, 0);
        for time in 0..options.times {
            let topic = wire.create_topic(&format!("cpu-{name}-{time}"), 1)?;
            let run = fill::run_of((topic, 0), options.batch, options.body, |_| None);
            let batches = (options.mib << 20) / run.bytes.len() as u64;
            let records = batches * u64::from(options.batch);
            let runs = [(topic, 0, run)];
            let before = server.cpu_seconds()?;
            fill_queues(&mut floor_wire, &runs, batches, 64, flush)?;
            floor += server.cpu_seconds()? - before;
            let before = bed.broker.cpu_seconds()?;
            fill_queues(&mut wire, &runs, batches, 64, flush)?;
            let between = bed.broker.cpu_seconds()?;
            read_all(&mut wire, topic, 1, records, 4 << 20)?;
            out += bed.broker.cpu_seconds()? - between;
            into += between - before;
            total += records;
        }
        let us = |seconds: f64| seconds * 1e6 / total as f64;
        let what = format!("{name}, in and out once");
        outcome.figure(what, "us/message", us(into + out), Goal::AtMost(1.0));
        let figures = (us(into), us(floor));
        outcome.ratio(
            format!("{name}, in: against a bare server"),
            "us/message",
            figures,
            Goal::Shown,
        );
        drop(floor_wire);
        server.finish()?;
        outcome.figure(format!("{name}, out"), "us/message", us(out), Goal::Shown);
    }
    Ok(outcome)
}
