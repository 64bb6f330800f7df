//! A name server, a broker with small segments, and clients: what most rules of semantics.md are tried on.
#![allow(clippy::missing_panics_doc)] // Panicking is how a test says that a promise is broken.

use crate::durability::restart;
use crate::server::{BrokerOptions, PATIENCE, Process, namesrv};
use ringmq::{Client, ConsumeFrom, Filter, Message, Producer, Queue, Record, SendReceipt};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a client may take to end.
const CLOSING: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub struct Site {
    /// How the broker is started.
    pub options: BrokerOptions,
    namesrv: Process,
    broker: Process,
    runtime: tokio::runtime::Runtime,
}

impl Site {
    /// A broker with its data in `folder`, and these flags beside the usual ones.
    pub fn new(folder: &Path, more: &[&str]) -> Site {
        let namesrv = namesrv("names");
        let mut options = BrokerOptions::new("broker-a", &folder.join("data"));
        options.namesrv = vec![namesrv.address()];
        options.more = ["--segment-bytes=1 MiB", "--unit-bytes=256 KiB"]
            .iter()
            .chain(more)
            .map(|flag| (*flag).to_owned())
            .collect();
        let broker = options.start();
        let runtime = tokio::runtime::Runtime::new().expect("threads can be made");
        Site { options, namesrv, broker, runtime }
    }

    /// The broker.
    pub fn broker(&self) -> &Process {
        &self.broker
    }

    /// Where the name server is.
    pub fn namesrv(&self) -> String {
        self.namesrv.address().to_string()
    }

    /// Does some work with a client of its own; the broker is registered then.
    pub fn run<T>(&self, work: impl AsyncFnOnce(Client) -> T) -> T {
        self.runtime.block_on(async {
            let client = Client::connect(self.namesrv()).await.expect("the name server is there");
            wait_for_brokers(&client, 1).await;
            let done = work(client.clone()).await;
            client.shutdown(CLOSING).await.expect("everything is closed");
            done
        })
    }

    /// kill -9, and starts it again.
    pub fn kill_and_restart(self) -> Site {
        self.kill_with_damage(|| {})
    }

    /// kill -9, something happens to its files, and it is started again.
    pub fn kill_with_damage(self, damage: impl FnOnce()) -> Site {
        let Site { options, namesrv, broker, runtime } = self;
        broker.kill();
        damage();
        let broker = restart(&options);
        Site { options, namesrv, broker, runtime }
    }

    /// Stops it in peace, and starts it again.
    pub fn stop_and_restart(self) -> Site {
        let Site { options, namesrv, broker, runtime } = self;
        assert_eq!(broker.terminate(), Some(0));
        let broker = restart(&options);
        Site { options, namesrv, broker, runtime }
    }

    /// Ends it; everything must end well.
    pub fn end(self) {
        assert_eq!(self.broker.terminate(), Some(0));
    }
}

/// Waits until so many brokers are registered.
pub async fn wait_for_brokers(client: &Client, count: usize) {
    let begun = Instant::now();
    while client.admin().brokers().await.map_or(0, |brokers| brokers.len()) < count {
        assert!(begun.elapsed() < PATIENCE, "{count} brokers do not register");
        tokio::task::yield_now().await;
    }
}

/// Waits until the name server knows a topic: a broker that has just started says so when it is ready itself.
pub async fn wait_for_topic(client: &Client, topic: &str) {
    let begun = Instant::now();
    let is_known = async || {
        let topics = client.admin().topics(topic).await;
        topics.is_ok_and(|topics| topics.iter().any(|known| known == topic))
    };
    while !is_known().await {
        assert!(begun.elapsed() < PATIENCE, "{topic} does not become known");
        tokio::task::yield_now().await;
    }
}

/// Sends these, each acknowledged.
pub async fn send_all(
    producer: &Producer,
    messages: impl IntoIterator<Item = Message>,
) -> Vec<SendReceipt> {
    let (mut deliveries, mut receipts) = (Vec::new(), Vec::new());
    for message in messages {
        deliveries.push(producer.enqueue(message).await.expect("it may be sent"));
        if deliveries.len() == 500 {
            for delivery in deliveries.drain(..) {
                receipts.push(delivery.await.expect("it is stored"));
            }
        }
    }
    for delivery in deliveries {
        receipts.push(delivery.await.expect("it is stored"));
    }
    receipts
}

/// Offsets of a queue: the first that is there, and the next to be given.
pub async fn bounds(client: &Client, topic: &str) -> BTreeMap<Queue, (u64, u64)> {
    let stats = client.admin().topic_stats(topic).await.expect("the topic is there");
    stats.into_iter().map(|stat| (stat.queue, (stat.min_offset, stat.max_offset))).collect()
}

/// Everything that a topic holds, queue by queue in the order in which a consumer gets it.
pub async fn read_topic(client: &Client, topic: &str) -> BTreeMap<u32, Vec<Record>> {
    let bounds = bounds(client, topic).await;
    read_queues(client, bounds.into_iter().map(|(queue, (_, end))| (queue, end))).await
}

/// What these queues hold up to these offsets.
pub async fn read_queues(
    client: &Client,
    queues: impl IntoIterator<Item = (Queue, u64)>,
) -> BTreeMap<u32, Vec<Record>> {
    static READS: AtomicU64 = AtomicU64::new(0);
    // A group of its own, so that it begins at the first offset.
    let group = format!("reads-{}", READS.fetch_add(1, Ordering::Relaxed));
    let queues: Vec<(Queue, u64)> = queues.into_iter().collect();
    let mut consumer = client.pull_consumer(group).from(ConsumeFrom::First);
    for (queue, _) in &queues {
        consumer = consumer.assign(queue.clone(), Filter::all());
    }
    let mut consumer = consumer.build().await.expect("the queues can be read");
    let mut read: BTreeMap<u32, Vec<Record>> = BTreeMap::new();
    let begun = Instant::now();
    loop {
        for record in consumer.poll(Duration::from_millis(50)).await.expect("it goes on") {
            read.entry(record.queue().id).or_default().push(record);
        }
        let at: BTreeMap<Queue, u64> = consumer.positions().into_iter().collect();
        if queues.iter().all(|(queue, end)| at.get(queue).is_some_and(|at| at >= end)) {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "it stands at {at:?}, {queues:?} are there");
    }
    consumer.close(CLOSING).await.expect("it ends");
    read
}
