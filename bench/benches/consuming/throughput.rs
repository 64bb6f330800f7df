//! How fast one client consumes what is stored: pop against push, on the same data.

use crate::bed::Bed;
use crate::linux::Place;
use crate::pop::Popping;
use anyhow::ensure;
use ringmq::ConsumeFrom;
use ringmq_bench::args::{FlushMode, Load, Rate};
use ringmq_bench::check::Checker;
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use ringmq_bench::receive::{PushSettings, drain, push};
use ringmq_bench::run::Run;
use ringmq_bench::sending::Sending;
use ringmq_bench::session::Session;
use std::sync::Arc;
use std::time::{Duration, Instant};

const CLOSE_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Thousands of messages
    #[arg(long, default_value_t = 1000)]
    thousands: u64,
    /// Measurements of each side
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Queues of the topic
    #[arg(long, default_value_t = 8)]
    queues: u32,
    /// Receiving loops of the simple consumer
    #[arg(long, default_value_t = 64)]
    loops: usize,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
}

pub async fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("throughput");
    let bed = Bed::start(&options.place, &[])?;
    let load = Load {
        rate: Rate::Max,
        in_flight: 16,
        count: None,
        duration: None,
        warmup: None,
        size: options.body,
        batch: 100,
        flush: FlushMode::Async,
        producers: 1,
    };
    let (mut pushed, mut popped, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let session = Session::open(&bed.target(options.queues)?, true).await?;
        let producers = session.producers(&load).await?;
        let before = session.queues().await?;
        let count = options.thousands * 1000;
        let run = Arc::new(Run::start(0, |id| Checker::new(id, None)));
        let mut sending =
            Sending::new(&run, &producers, session.topic(), &load, count, Duration::ZERO);
        sending.slice(Duration::from_secs(3600)).await?;
        session.queues_after(&before, count).await?;
        for is_pop in [false, true] {
            // The same messages again, for a group of its own.
            let again = Arc::new(Run::start(0, |_| {
                let mut checker = Checker::new(run.id, None);
                (0..count).for_each(|sequence| checker.acknowledge(0, sequence));
                checker
            }));
            let rate = count as f64 / consume(&session, &again, is_pop, options).await?;
            if is_pop { popped.push(rate) } else { pushed.push(rate) }
        }
        ratios.push(popped[popped.len() - 1] / pushed[pushed.len() - 1]);
        drop(producers);
        session.close().await?;
    }
    let figures = (median(&popped), median(&pushed));
    outcome.ratio("pop against push", "msg/s", figures, Goal::AtLeast(0.8));
    outcome.note(rounds("ratio", &ratios));
    Ok(outcome)
}

/// Seconds from the first message to the last.
async fn consume(
    session: &Session,
    run: &Arc<Run>,
    is_pop: bool,
    options: &Options,
) -> anyhow::Result<f64> {
    let (group, from) = (format!("throughput-{:x}", run.id), ConsumeFrom::First);
    let (mut pushing, mut popping) = (None, None);
    let begun = Instant::now();
    if is_pop {
        let (client, topic) = (session.client(0), session.topic());
        popping = Some(Popping::start(client, run, &group, topic, from, options.loops).await?);
    } else {
        let settings = PushSettings {
            group,
            topic: session.topic().to_owned(),
            from,
            concurrency: 64,
            waiting: 10_000,
        };
        pushing = Some(push(session.client(0), run, &settings, 0).await?);
    }
    drain(run).await;
    let took = begun.elapsed();
    if let Some(consumer) = pushing {
        consumer.close(CLOSE_LIMIT).await?;
    }
    if let Some(popping) = popping {
        popping.stop().await?;
    }
    let lost = run.checker().outstanding();
    ensure!(lost == 0, "{lost} messages did not come");
    Ok(took.as_secs_f64())
}
