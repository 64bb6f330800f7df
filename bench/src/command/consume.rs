//! `consume`: read what a topic holds, as fast as it comes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use ringmq::{ConsumeFrom, Filter, Queue, QueueStats};
use tokio::task::JoinSet;

use super::conclude;
use crate::args::{Consume, Receive};
use crate::check::Checker;
use crate::cpu::CpuWatch;
use crate::measured::{Frame, Measured, Receiving};
use crate::progress::{self, Goal};
use crate::receive::{PushSettings, push, read_to};
use crate::run::Run;
use crate::session::Session;

const WAITING_PER_QUEUE: usize = 20_000;
const RECORDS_PER_POLL: usize = 8_192;
/// Requests for messages under way; more do not make it faster.
const POPS_MAX: usize = 16;
const RECORDS_PER_POP: usize = 32;
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const SILENCE_MAX: Duration = Duration::from_secs(15);

pub(super) async fn run(args: &Consume) -> anyhow::Result<u8> {
    if args.target.topic.is_none() {
        bail!("say which topic: --topic T, filled before by `ringmq-bench produce --topic T`");
    }
    let session = Session::open(&args.target, false).await?;
    let queues = session.queues().await?;
    let there: u64 = queues.iter().map(|q| q.max_offset - q.min_offset).sum();
    let wanted = args.count.unwrap_or(there).min(there);
    if wanted == 0 {
        bail!("the topic {} is empty", session.topic());
    }
    let run = Arc::new(Run::start(0, |_| Checker::of_any_run(None)));
    for queue in &queues {
        run.checker().starts_at(&queue.queue.broker, queue.queue.id, queue.min_offset);
    }
    let group = args.group.clone().unwrap_or_else(|| format!("bench-{:x}", run.id));
    let shown = progress::show(&run, Goal { duration: None, messages: Some(wanted) }, "");
    let cpu = CpuWatch::start(&run, session.broker_pid(&args.watch).await?)?;
    let start_ns = run.clock.now_ns();
    match args.mode {
        Receive::Push => by_push(args, &session, &run, &group, wanted).await?,
        Receive::Pull => by_pull(&session, &run, &group, &queues).await?,
        Receive::Pop => by_pop(args, &session, &run, &group, wanted).await?,
    }
    let end_ns = run.progress().last_arrival_ns;
    let cpu = cpu.map(|watch| watch.finish(start_ns, end_ns));
    if args.group.is_none() {
        let admin = session.client(0).admin();
        admin.delete_group(&group).await.context("removing the run's group")?;
    }
    drop(shown);
    session.close().await?;

    let measured = Measured {
        run,
        sent_ns: None,
        punctuality: None,
        // Their due times are another process's.
        receiving: Receiving::Rate(end_ns.saturating_sub(start_ns)),
        checked: true,
        raw: None,
        cpu,
    };
    let out = args.target.out.as_deref();
    let frame = Frame { verb: "consume", disk: &args.watch.dir, flush: None, queued: false, out };
    let mut outcome = measured.outcome(&frame, args)?;
    if args.count.is_none() {
        // Nothing was sent here; what the topic held when the run began is what had to come.
        let correctness = &mut outcome.report.correctness;
        correctness.acknowledged = there - correctness.foreign.min(there);
    }
    conclude(&outcome, out)
}

async fn by_push(
    args: &Consume,
    session: &Session,
    run: &Arc<Run>,
    group: &str,
    wanted: u64,
) -> anyhow::Result<()> {
    let settings = PushSettings {
        group: group.to_owned(),
        topic: session.topic().to_owned(),
        from: ConsumeFrom::First,
        concurrency: args.concurrency,
        waiting: WAITING_PER_QUEUE,
    };
    let consumer = push(session.client(0), run, &settings, 0).await?;
    let arrived = || run.progress().received + run.checker().foreign();
    let mut last = (0, std::time::Instant::now());
    while arrived() < wanted {
        if arrived() != last.0 {
            last = (arrived(), std::time::Instant::now());
        } else if last.1.elapsed() > SILENCE_MAX {
            bail!("{} of {wanted} messages came, then none for {SILENCE_MAX:?}", last.0);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    consumer.close(CLOSE_LIMIT).await.context("closing the consumer")
}

async fn by_pop(
    args: &Consume,
    session: &Session,
    run: &Arc<Run>,
    group: &str,
    wanted: u64,
) -> anyhow::Result<()> {
    let consumer = session
        .client(0)
        .simple_consumer(group)
        .subscribe(session.topic(), Filter::all())
        .from(ConsumeFrom::First)
        .build()
        .await
        .context("starting the consumer")?;
    let mut workers = JoinSet::new();
    for _ in 0..args.concurrency.min(POPS_MAX) {
        let (consumer, run) = (consumer.clone(), Arc::clone(run));
        workers.spawn(async move {
            let mut last = std::time::Instant::now();
            while run.progress().received + run.checker().foreign() < wanted {
                let received = consumer.receive(RECORDS_PER_POP, LOOK_EVERY).await?;
                if !received.is_empty() {
                    last = std::time::Instant::now();
                } else if last.elapsed() > SILENCE_MAX {
                    break;
                }
                for message in &received {
                    run.note_received(message.record());
                }
                for acknowledged in consumer.ack_batch(received).await {
                    acknowledged?;
                }
            }
            Ok::<(), ringmq::Error>(())
        });
    }
    while let Some(ended) = workers.join_next().await {
        ended.context("a worker panicked")?.context("receiving")?;
    }
    consumer.close(CLOSE_LIMIT).await.context("closing the consumer")
}

async fn by_pull(
    session: &Session,
    run: &Run,
    group: &str,
    queues: &[QueueStats],
) -> anyhow::Result<()> {
    let mut builder = session.client(0).pull_consumer(group);
    for queue in queues {
        builder = builder.assign(queue.queue.clone(), Filter::all());
    }
    let mut consumer = builder
        .from(ConsumeFrom::First)
        .max_records(RECORDS_PER_POLL)
        .max_waiting(WAITING_PER_QUEUE)
        .build()
        .await
        .context("starting the consumer")?;
    let ends: HashMap<Queue, u64> = queues
        .iter()
        .filter(|q| q.max_offset > q.min_offset)
        .map(|q| (q.queue.clone(), q.max_offset))
        .collect();
    read_to(&mut consumer, run, ends).await?;
    consumer.close(CLOSE_LIMIT).await.context("closing the consumer")
}
