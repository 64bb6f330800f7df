//! semantics: "a unique id and a stored id; both can be looked up", by key, by time; also after kill -9.
//!
//! 2 brokers with 2 shards each and small segments, so that most of what is looked up lies in sealed ones.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq::{
    Client, ConsumeFrom, ErrorKind, Filter, KeyQuery, Message, MessageId, PullConsumer, Queue,
    Record, SeekTo, TopicSpec,
};
use ringmq_tests::durability::restart;
use ringmq_tests::server::{BrokerOptions, Process, namesrv};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

const MESSAGES: u64 = 8_000;
/// Messages that share a key.
const SHARED: u64 = 400;

struct World {
    client: Client,
    /// All messages, as a consumer got them.
    records: Vec<Record>,
}

fn number(record: &Record) -> u64 {
    let text = std::str::from_utf8(&record.body()[..8]).unwrap();
    text.parse().unwrap()
}

async fn consumer(client: &Client, queues: &[Queue]) -> PullConsumer {
    let mut builder = client.pull_consumer("lookups").from(ConsumeFrom::First);
    for queue in queues {
        builder = builder.assign(queue.clone(), Filter::all());
    }
    builder.build().await.unwrap()
}

impl World {
    async fn fill(client: Client) -> World {
        client.admin().create_topic(TopicSpec::new("orders").queues(4)).await.unwrap();
        client.admin().create_topic(TopicSpec::new("other").queues(4)).await.unwrap();
        let producer = client.producer("lookups").build().await.unwrap();
        for first in (0..MESSAGES).step_by(500) {
            let mut deliveries = Vec::new();
            for n in first..first + 500 {
                let body = format!("{n:08}{}", ".".repeat(2_000));
                let topic = if n % 10 == 9 { "other" } else { "orders" };
                let message = Message::new(topic, body).key(format!("n-{n}"));
                let message = message.key(format!("shared-{}", n % SHARED));
                deliveries.push(producer.enqueue(message).await.unwrap());
            }
            for delivery in deliveries {
                let _receipt = delivery.await.unwrap();
            }
        }
        let queues = World::queues(&client).await;
        let mut consumer = consumer(&client, &queues).await;
        let mut records: Vec<Record> = Vec::new();
        let begun = Instant::now();
        while records.len() < MESSAGES as usize {
            records.extend(consumer.poll(Duration::from_millis(200)).await.unwrap());
            assert!(begun.elapsed() < Duration::from_secs(60), "{} came", records.len());
        }
        consumer.close(Duration::from_secs(5)).await.unwrap();
        World { client, records }
    }

    async fn queues(client: &Client) -> Vec<Queue> {
        let mut queues = Vec::new();
        for topic in ["orders", "other"] {
            let stats = client.admin().topic_stats(topic).await.unwrap();
            queues.extend(stats.into_iter().map(|stat| stat.queue));
        }
        queues
    }

    /// Numbers of the messages that have a key, by falling store time as far as that tells.
    async fn check_key(&self, topic: &str, key: &str, query: KeyQuery, most: usize) {
        let found = self.client.admin().find_messages(topic, query).await.unwrap();
        assert_eq!(found.unreadable, 0);
        let times: Vec<SystemTime> = found.records.iter().map(Record::stored_at).collect();
        assert!(times.is_sorted_by(|a, b| a >= b), "the newest first");
        let mut numbers: Vec<u64> = found.records.iter().map(number).collect();
        numbers.sort_unstable();
        let has = |r: &&Record| r.topic() == topic && r.keys().contains(&key);
        let mut expected: Vec<&Record> = self.records.iter().filter(has).collect();
        assert!(!expected.is_empty() || key == "nothing");
        if expected.len() > most {
            assert_eq!(numbers.len(), most);
            expected.sort_unstable_by_key(|record| std::cmp::Reverse(record.stored_at()));
            let last = expected[most - 1].stored_at();
            assert!(times.iter().all(|time| *time >= last), "the newest of all shards");
        } else {
            let mut expected: Vec<u64> = expected.into_iter().map(number).collect();
            expected.sort_unstable();
            assert_eq!(numbers, expected, "{topic} {key}");
        }
    }

    async fn check(&self) {
        for n in (0..MESSAGES).step_by(411) {
            let topic = if n % 10 == 9 { "other" } else { "orders" };
            let key = format!("n-{n}");
            self.check_key(topic, &key, KeyQuery::new(&key), 32).await;
            let key = format!("shared-{}", n % SHARED);
            self.check_key(topic, &key, KeyQuery::new(&key), 32).await;
            self.check_key(topic, &key, KeyQuery::new(&key).most(3), 3).await;
        }
        self.check_key("orders", "nothing", KeyQuery::new("nothing"), 32).await;
        let admin = self.client.admin();
        for record in self.records.iter().step_by(173) {
            for topic in [None, Some(record.topic())] {
                let by_id = admin.message(topic, record.message_id()).await.unwrap();
                let by_place = admin.message(topic, record.stored_id()).await.unwrap();
                for found in [by_id, by_place] {
                    assert_eq!(found.body(), record.body());
                    assert_eq!(found.queue(), record.queue());
                    assert_eq!(found.stored_id(), record.stored_id());
                }
            }
            let other = if record.topic() == "orders" { "other" } else { "orders" };
            let missing = admin.message(Some(other), record.message_id()).await.unwrap_err();
            assert_eq!(missing.kind(), ErrorKind::NotFound);
        }
        let missing = admin.message(None, MessageId([7; 16])).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        self.check_times().await;
    }

    async fn check_times(&self) {
        let queues = World::queues(&self.client).await;
        let mut consumer = consumer(&self.client, &queues).await;
        for record in self.records.iter().step_by(997) {
            let time = record.stored_at();
            for queue in &queues {
                consumer.seek(queue, SeekTo::Time(time)).await.unwrap();
            }
            let positions: BTreeMap<Queue, u64> = consumer.positions().into_iter().collect();
            for queue in &queues {
                let of_queue = self.records.iter().filter(|r| r.queue() == queue);
                let first = of_queue.clone().filter(|r| r.stored_at() >= time);
                let end = of_queue.map(|r| r.offset() + 1).max().unwrap_or(0);
                let expected = first.map(Record::offset).min().unwrap_or(end);
                assert_eq!(positions[queue], expected, "{queue} {time:?}");
            }
        }
        consumer.close(Duration::from_secs(5)).await.unwrap();
    }
}

fn indexes(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "index") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn messages_are_found_by_key_id_and_time_also_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let name_server = namesrv("namesrv-a");
    let brokers = ["broker-a", "broker-b"].map(|name| {
        let mut options = BrokerOptions::new(name, &folder.path().join(name));
        options.namesrv = vec![name_server.address()];
        options.more = ["--segment-bytes=1 MiB", "--unit-bytes=256 KiB"]
            .into_iter()
            .chain(["--tail-cache-bytes=1 MiB"])
            .map(str::to_owned)
            .collect();
        options
    });
    let mut running: Vec<Process> = brokers.iter().map(BrokerOptions::start).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let address = name_server.address().to_string();
    let connect = || async {
        let client = Client::connect(address.as_str()).await.unwrap();
        let begun = Instant::now();
        while client.admin().brokers().await.unwrap().len() < 2 {
            assert!(begun.elapsed() < Duration::from_secs(60), "both brokers register");
            tokio::task::yield_now().await;
        }
        client
    };
    let mut world = runtime.block_on(async { World::fill(connect().await).await });
    let sealed = indexes(folder.path());
    assert!(sealed.len() >= 8, "most lies in sealed segments: {sealed:?}");
    runtime.block_on(world.check());
    // Derived files may go.
    running.into_iter().for_each(Process::kill);
    std::fs::remove_file(&sealed[0]).unwrap();
    running = brokers.iter().map(restart).collect();
    world.client = runtime.block_on(connect());
    runtime.block_on(world.check());
    assert!(indexes(folder.path()).contains(&sealed[0]), "it was made again");
    // A clean stop leaves the same behind.
    assert!(running.into_iter().all(|broker| broker.terminate() == Some(0)));
    running = brokers.iter().map(BrokerOptions::start).collect();
    world.client = runtime.block_on(connect());
    runtime.block_on(world.check());
    assert!(running.into_iter().all(|broker| broker.terminate() == Some(0)));
}
