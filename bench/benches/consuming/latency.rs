//! How long after it was due a message is with its consumer, at a steady rate.

use crate::bed::Bed;
use crate::linux::Place;
use crate::pop::Popping;
use anyhow::ensure;
use ringmq::ConsumeFrom;
use ringmq_bench::args::{FlushMode, Load, Rate};
use ringmq_bench::check::Checker;
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use ringmq_bench::limits::{Ends, RoundTrips};
use ringmq_bench::receive::{PushSettings, drain, push};
use ringmq_bench::run::Run;
use ringmq_bench::sending::Sending;
use ringmq_bench::session::Session;
use std::sync::Arc;
use std::time::Duration;

/// End to end, p50 is at most the producer's and so many round trips.
const ROUND_TRIPS: f64 = 1.2;
const WARM_UP: Duration = Duration::from_secs(1);
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Messages a second
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Measurements of each side
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Queues of the topic
    #[arg(long, default_value_t = 8)]
    queues: u32,
    /// Receiving loops of the simple consumer
    #[arg(long, default_value_t = 4)]
    loops: usize,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Push,
    Pop,
}

/// Percentiles in µs.
struct Measured {
    produce: [f64; 3],
    end_to_end: [f64; 3],
}

const PERCENTILES: [f64; 3] = [50.0, 99.0, 99.9];

pub async fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("latency");
    let mut trips = RoundTrips::start(Ends::OnTwoCpus)?;
    let bed = Bed::start(&options.place, &[])?;
    let mut found: [Vec<Measured>; 2] = Default::default();
    for _ in 0..options.rounds {
        trips.measure(Duration::from_millis(500))?;
        for (kind, into) in [Kind::Push, Kind::Pop].into_iter().zip(&mut found) {
            into.push(measure(&bed, options, kind).await?);
        }
    }
    let trip = trips.finish()?.at_ns(50.0) as f64 / 1000.0;
    outcome.figure("loopback round trip, two CPUs, p50", "us", trip, Goal::Shown);
    for (kind, rows) in [Kind::Push, Kind::Pop].into_iter().zip(&found) {
        let of =
            |figures: &dyn Fn(&Measured) -> f64| rows.iter().map(figures).collect::<Vec<f64>>();
        for (at, percentile) in PERCENTILES.iter().enumerate() {
            let produce = median(&of(&|m| m.produce[at]));
            let end_to_end = of(&|m| m.end_to_end[at]);
            let what = format!("{kind:?} beside produce, p{percentile}");
            outcome.ratio(&what, "us", (median(&end_to_end), produce), Goal::Shown);
            outcome.note(rounds(&what, &end_to_end));
        }
        let over = of(&|m| m.end_to_end[0] - m.produce[0]);
        let what = format!("{kind:?}: p50 over produce p50, in round trips");
        outcome.figure(what, "", median(&over) / trip, Goal::AtMost(ROUND_TRIPS));
    }
    Ok(outcome)
}

async fn measure(bed: &Bed, options: &Options, kind: Kind) -> anyhow::Result<Measured> {
    let load = Load {
        rate: Rate::PerSecond(options.rate),
        in_flight: 1,
        count: None,
        duration: None,
        warmup: None,
        size: options.body,
        batch: 1,
        flush: FlushMode::Sync,
        producers: 1,
    };
    let session = Session::open(&bed.target(options.queues)?, true).await?;
    let producers = session.producers(&load).await?;
    let warm_up_ns = WARM_UP.as_nanos() as u64;
    let run = Arc::new(Run::start(warm_up_ns, |id| Checker::new(id, None)));
    let queues = session.queues().await?;
    for queue in &queues {
        run.checker().starts_at(&queue.queue.broker, queue.queue.id, queue.max_offset);
    }
    let group = format!("latency-{:x}", run.id);
    let (mut pushing, mut popping) = (None, None);
    match kind {
        Kind::Push => {
            let settings = PushSettings {
                group,
                topic: session.topic().to_owned(),
                from: ConsumeFrom::Last,
                concurrency: 64,
                waiting: 10_000,
            };
            pushing = Some(push(session.client(0), &run, &settings, queues.len()).await?);
        }
        Kind::Pop => {
            let (client, topic) = (session.client(0), session.topic());
            let started =
                Popping::start(client, &run, &group, topic, ConsumeFrom::Last, options.loops);
            popping = Some(started.await?);
        }
    }
    let messages = u64::MAX;
    let mut sending = Sending::new(&run, &producers, session.topic(), &load, messages, WARM_UP);
    sending.slice(WARM_UP + Duration::from_secs(options.seconds)).await?;
    drain(&run).await;
    if let Some(consumer) = pushing {
        consumer.close(CLOSE_LIMIT).await?;
    }
    if let Some(popping) = popping {
        popping.stop().await?;
    }
    let lost = run.checker().outstanding();
    ensure!(lost == 0, "{lost} messages did not come");
    let us = |ns: u64| ns as f64 / 1000.0;
    let measured = Measured {
        produce: PERCENTILES.map(|p| us(run.produced().response.at_ns(p))),
        end_to_end: PERCENTILES.map(|p| us(run.received().response.at_ns(p))),
    };
    drop(producers);
    session.close().await?;
    Ok(measured)
}
