//! The receivers of a run.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ringmq::{
    Client, ConsumeFrom, Filter, PullConsumer, PushConsumer, Queue, QueueStats, Record, SeekTo,
};

use crate::run::Run;

/// How often conditions are looked at while waiting for one.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A topic that gives nothing for so long has nothing more.
const SILENCE_MAX: Duration = Duration::from_secs(15);
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(500);
const RECORDS_PER_POLL: usize = 4096;

/// What a push consumer of a run is made with.
#[derive(Debug, Clone)]
pub struct PushSettings {
    /// Its group.
    pub group: String,
    /// Its topic.
    pub topic: String,
    /// Where it starts.
    pub from: ConsumeFrom,
    /// Listener calls at a time.
    pub concurrency: usize,
    /// Messages of a queue that may wait in the client.
    pub waiting: usize,
}

/// Which checker a receiver shows its messages to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Number of the topic.
    pub topic: usize,
    /// Number of the subscription of the topic.
    pub subscription: usize,
}

/// Starts a push consumer that shows everything to the run, and waits until it owns `queues` queues.
pub async fn push(
    client: &Client,
    run: &Arc<Run>,
    settings: &PushSettings,
    queues: usize,
) -> anyhow::Result<PushConsumer> {
    push_at(client, run, settings, queues, Place::default()).await
}

/// The same, for one subscription of several.
pub async fn push_at(
    client: &Client,
    run: &Arc<Run>,
    settings: &PushSettings,
    queues: usize,
    place: Place,
) -> anyhow::Result<PushConsumer> {
    let shown_to = Arc::clone(run);
    let consumer = client
        .push_consumer(settings.group.as_str())
        .subscribe(settings.topic.as_str(), Filter::all())
        .from(settings.from)
        .concurrency(settings.concurrency)
        .max_waiting(settings.waiting)
        .listen(move |record: Record| {
            shown_to.note_received_by(place.topic, place.subscription, &record);
            ready(Ok::<(), Infallible>(()))
        })
        .await
        .with_context(|| format!("starting the consumer group {}", settings.group))?;
    let start = Instant::now();
    while consumer.queues().len() < queues {
        if start.elapsed() > SILENCE_MAX {
            bail!(
                "the group {} got {} of {queues} queues in {SILENCE_MAX:?}",
                settings.group,
                consumer.queues().len()
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(consumer)
}

/// Waits until everything that was acknowledged has come, or nothing comes any more.
pub async fn drain(run: &Run) {
    let mut last = (run.progress(), Instant::now());
    while run.outstanding() > 0 {
        let now = run.progress();
        if now.received != last.0.received {
            last = (now, Instant::now());
        } else if last.1.elapsed() > SILENCE_MAX {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Reads what lies between two looks at a topic's queues, whoever else reads there, and shows it to `run`.
pub async fn read_between(
    client: &Client,
    run: &Run,
    from: &[QueueStats],
    to: &[QueueStats],
) -> anyhow::Result<()> {
    read_between_of(client, run, 0, from, to).await
}

/// The same for one topic of several, by its number.
pub async fn read_between_of(
    client: &Client,
    run: &Run,
    topic: usize,
    from: &[QueueStats],
    to: &[QueueStats],
) -> anyhow::Result<()> {
    let starts: HashMap<&Queue, u64> = from.iter().map(|q| (&q.queue, q.max_offset)).collect();
    let start_of = |queue: &Queue| starts.get(queue).copied().unwrap_or(0);
    let ranges: Vec<(&Queue, u64, u64)> = to
        .iter()
        .map(|q| (&q.queue, start_of(&q.queue), q.max_offset))
        .filter(|(_, start, end)| start < end)
        .collect();
    if ranges.is_empty() {
        return Ok(());
    }
    let group = format!("bench-check-{:x}-{topic}", run.id);
    let mut builder = client.pull_consumer(group.as_str());
    for (queue, start, _) in &ranges {
        builder = builder.assign((*queue).clone(), Filter::all());
        run.checker_of(topic, 0).starts_at(&queue.broker, queue.id, *start);
    }
    let mut consumer = builder
        .from(ConsumeFrom::First)
        .max_records(RECORDS_PER_POLL)
        .build()
        .await
        .context("starting the consumer that checks what was stored")?;
    for (queue, start, _) in &ranges {
        consumer.seek(queue, SeekTo::Offset(*start)).await.context("going to the run's start")?;
    }
    let ends = ranges.iter().map(|(queue, _, end)| ((*queue).clone(), *end)).collect();
    let read = read_topic_to(&mut consumer, run, topic, ends).await;
    consumer.close(CLOSE_LIMIT).await.context("closing the checking consumer")?;
    client.admin().delete_group(&group).await.context("removing the checking consumer's group")?;
    read
}

/// Shows records to `run` until every queue has reached its end.
pub async fn read_to(
    consumer: &mut PullConsumer,
    run: &Run,
    missing: HashMap<Queue, u64>,
) -> anyhow::Result<()> {
    read_topic_to(consumer, run, 0, missing).await
}

async fn read_topic_to(
    consumer: &mut PullConsumer,
    run: &Run,
    topic: usize,
    mut missing: HashMap<Queue, u64>,
) -> anyhow::Result<()> {
    let mut last = Instant::now();
    missing.retain(|_, end| *end > 0);
    while !missing.is_empty() {
        let records = consumer.poll(POLL).await.context("reading what was stored")?;
        if records.is_empty() {
            if last.elapsed() > SILENCE_MAX {
                // The checker tells what is lost.
                return Ok(());
            }
            continue;
        }
        last = Instant::now();
        for record in &records {
            run.note_received_by(topic, 0, record);
        }
        // Only the last record of a queue can reach its end: but that is every queue's own, so look at all.
        for record in &records {
            if missing.get(record.queue()).is_some_and(|end| record.offset() + 1 >= *end) {
                missing.remove(record.queue());
            }
        }
    }
    Ok(())
}
