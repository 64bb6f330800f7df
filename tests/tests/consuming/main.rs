//! The rows of semantics.md under "Consuming" that are about how a group gets along: where it starts, where it is set
//! to, who has which queue, how far it is, and what pull and broadcasting consumers add.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

mod assignment;
mod broadcasting;
mod lag;
mod pull;
mod reset;
mod start;

use ringmq::{
    Client, ConsumeFrom, Filter, Message, PullConsumer, PushConsumer, Queue, Record, TopicSpec,
};
use ringmq_tests::server::PATIENCE;
use ringmq_tests::site::send_all;
use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CLOSING: Duration = Duration::from_secs(10);

/// What a consumer was given, in its order.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(Queue, u64, String)>>>);

impl Seen {
    fn add(&self, record: &Record) {
        let body = String::from_utf8(record.body().to_vec()).unwrap();
        self.0.lock().unwrap().push((record.queue().clone(), record.offset(), body));
    }

    fn all(&self) -> Vec<(Queue, u64, String)> {
        self.0.lock().unwrap().clone()
    }

    fn bodies(&self) -> Vec<String> {
        let mut bodies: Vec<String> = self.all().into_iter().map(|(_, _, body)| body).collect();
        bodies.sort_unstable();
        bodies
    }

    fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        a_moment(Duration::from_millis(2)).await;
    }
}

/// Time in which nothing that is waited for happens.
async fn a_moment(time: Duration) {
    let _ = tokio::time::timeout(time, pending::<()>()).await;
}

async fn topic(client: &Client, name: &str, queues: u32) {
    client.admin().create_topic(TopicSpec::new(name).queues(queues)).await.unwrap();
}

async fn send(client: &Client, topic: &str, bodies: impl IntoIterator<Item = String>) {
    let producer = client.producer("tests").build().await.unwrap();
    send_all(&producer, bodies.into_iter().map(|body| Message::new(topic, body))).await;
    producer.close(CLOSING).await.unwrap();
}

fn numbered(range: std::ops::Range<u32>) -> impl Iterator<Item = String> {
    range.map(|n| format!("{n:05}"))
}

/// A member that takes everything in.
async fn member(client: &Client, group: &str, topic: &str, seen: &Seen) -> PushConsumer {
    let into = seen.clone();
    let consumer = client.push_consumer(group).subscribe(topic, Filter::all());
    let consumer = consumer.from(ConsumeFrom::First).listen(move |record| {
        into.add(&record);
        async { Ok::<(), Infallible>(()) }
    });
    consumer.await.unwrap()
}

async fn committed(client: &Client, group: &str) -> u64 {
    let lag = client.admin().lag(group).await.unwrap();
    let counted = lag.iter().filter(|lag| !lag.queue.topic.starts_with('%'));
    counted.filter_map(|lag| lag.committed).sum()
}

async fn polling(client: &Client, group: &str, topic: &str) -> PullConsumer {
    let builder = client.pull_consumer(group).subscribe(topic, Filter::all());
    builder.from(ConsumeFrom::First).build().await.unwrap()
}

/// Polls until so many came.
async fn poll_all(consumer: &mut PullConsumer, count: usize) -> Vec<Record> {
    let (mut all, begun) = (Vec::new(), Instant::now());
    while all.len() < count {
        all.extend(consumer.poll(Duration::from_millis(100)).await.unwrap());
        assert!(begun.elapsed() < PATIENCE, "{} of {count} came", all.len());
    }
    all
}
