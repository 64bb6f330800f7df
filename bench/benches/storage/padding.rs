//! How much of the log is padding with single durable messages in flight, over the wire.

use crate::fill;
use crate::linux::Place;
use crate::server;
use crate::wire::{Wire, fill_queues};
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use ringmq_schema::produce::Flush;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Messages of each round
    #[arg(long, default_value_t = 50_000)]
    messages: u64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Messages in flight, on one connection
    #[arg(long, default_value_t = 64)]
    in_flight: u64,
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("padding");
    let folder = options.place.folder()?;
    let broker = server::Options::new(&folder.path().join("data")).start()?;
    let mut wire = Wire::connect(broker.address("listen")?)?;
    let topic = wire.create_topic("bench", 1)?;
    let run = fill::run_of((topic, 0), 1, options.body, |_| None);
    let runs = [(topic, 0, run)];
    let names = ["ringmq_padding_bytes_total", "ringmq_unit_bytes_total"];
    let (mut shares, mut rates) = (Vec::new(), Vec::new());
    fill_queues(&mut wire, &runs, 1000, options.in_flight, Flush::Sync)?;
    for _ in 0..options.rounds {
        let before = [broker.settled_metric(names[0])?, broker.metric(names[1])?];
        let begun = Instant::now();
        fill_queues(&mut wire, &runs, options.messages, options.in_flight, Flush::Sync)?;
        rates.push(options.messages as f64 / begun.elapsed().as_secs_f64());
        let after = [broker.settled_metric(names[0])?, broker.metric(names[1])?];
        shares.push((after[0] - before[0]) / (after[1] - before[1]));
    }
    let what = format!("padding, {} single messages in flight", options.in_flight);
    outcome.figure(what, "of the log", median(&shares), Goal::AtMost(0.25));
    outcome.figure("acknowledged", "messages/s", median(&rates), Goal::Shown);
    outcome.note(rounds("padding", &shares));
    broker.stop()?;
    Ok(outcome)
}
