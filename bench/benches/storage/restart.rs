//! From start to ready with a full log: after kill -9, and after a clean stop.

use crate::fill;
use crate::linux::Place;
use crate::server::{self, Server};
use crate::wire::{Wire, fill_queues};
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use ringmq_schema::produce::Flush;
use std::time::Instant;

const IN_FLIGHT: u64 = 32;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// MiB in the log
    #[arg(long, default_value_t = 2048)]
    mib: u64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Queues of the topic
    #[arg(long, default_value_t = 8)]
    queues: u32,
    /// Messages in a batch
    #[arg(long, default_value_t = 100)]
    batch: u32,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("restart");
    let folder = options.place.folder()?;
    let data = folder.path().join("data");
    let start = || server::Options::new(&data).start();
    let mut broker = start()?;
    let mut wire = Wire::connect(broker.address("listen")?)?;
    let topic = wire.create_topic("bench", options.queues)?;
    let runs: Vec<_> = (0..options.queues)
        .map(|queue| {
            let run = fill::run_of((topic, queue), options.batch, options.body, |_| None);
            (topic, queue, run)
        })
        .collect();
    let run_bytes = runs[0].2.bytes.len() as u64;
    let begun = Instant::now();
    fill_queues(&mut wire, &runs, (options.mib << 20) / run_bytes, IN_FLIGHT, Flush::Default)?;
    let rate = (options.mib << 20) as f64 / begun.elapsed().as_secs_f64();
    outcome.figure("filled over the wire", "MB/s", rate / 1e6, Goal::Shown);

    let (mut killed, mut stopped) = (Vec::new(), Vec::new());
    let (mut replayed, mut stopping) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        // As much as a snapshot may leave behind it, so that each round recovers like the first.
        if round > 0 {
            let mut wire = Wire::connect(broker.address("listen")?)?;
            fill_queues(&mut wire, &runs, (768 << 20) / run_bytes, IN_FLIGHT, Flush::Default)?;
        }
        broker.kill()?;
        crate::cold::make(&data)?;
        broker = start()?;
        killed.push(broker.started_in.as_secs_f64() * 1e3);
        replayed.push(broker.settled_metric("ringmq_replayed_records_total")?);
        check(&broker, topic, options)?;
        stopping.push(broker.stop()?.as_secs_f64() * 1e3);
        crate::cold::make(&data)?;
        broker = start()?;
        stopped.push(broker.started_in.as_secs_f64() * 1e3);
        check(&broker, topic, options)?;
    }
    broker.stop()?;
    let gib = options.mib as f64 / 1024.0;
    let what = format!("after kill -9, {gib:.1} GiB, cold");
    outcome.figure(&what, "ms to ready", median(&killed), Goal::AtMost(2000.0));
    outcome.note(rounds(&what, &killed));
    let what = format!("after a clean stop, {gib:.1} GiB, cold");
    outcome.figure(&what, "ms to ready", median(&stopped), Goal::AtMost(200.0));
    outcome.note(rounds(&what, &stopped));
    outcome.note(rounds("records replayed after kill -9", &replayed));
    outcome.note(rounds("ms to stop", &stopping));
    Ok(outcome)
}

/// The first messages are there.
fn check(broker: &Server, topic: u32, options: &Options) -> anyhow::Result<()> {
    let mut wire = Wire::connect(broker.address("listen")?)?;
    crate::wire::read_all(&mut wire, topic, options.queues, u64::from(options.batch), 64 << 10)?;
    Ok(())
}
