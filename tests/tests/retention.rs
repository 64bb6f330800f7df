//! semantics.md, "retention": per topic by time and by bytes, in whole segments; what is stored stays readable, and
//! who stands below the earliest offset is told so, goes on at the earliest, and is counted.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq::{Client, ConsumeFrom, Filter, Message, Producer, Queue, SeekTo, TopicSpec};
use ringmq_schema::error::Status;
use ringmq_schema::placement::shard_of_queue;
use ringmq_tests::server::{PATIENCE, eventually};
use ringmq_tests::site::{Site, bounds, read_queues, read_topic, send_all};
use ringmq_tests::wire::Wire;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Length of a body here.
const BODY: usize = 4000;
/// Messages of one MiB of records, and a few more.
const A_MIB: usize = 270;

/// Sends about so many MiB to a topic.
async fn fill(producer: &Producer, topic: &str, mib: usize) {
    let message = |n: usize| Message::new(topic, vec![n as u8; BODY]);
    send_all(producer, (0..mib * A_MIB).map(message)).await;
}

/// The first offsets of a topic's queues, summed up: how many have expired.
async fn expired(client: &Client, topic: &str) -> u64 {
    bounds(client, topic).await.values().map(|(min, _)| min).sum()
}

async fn wait_for_expiry(client: &Client, topic: &str, more_than: u64) -> u64 {
    let begun = Instant::now();
    loop {
        let gone = expired(client, topic).await;
        if gone > more_than {
            return gone;
        }
        assert!(begun.elapsed() < PATIENCE, "{topic}: only {gone} messages expire");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What is there of a topic is there: each message from the earliest offset on, in order and whole.
async fn is_whole(client: &Client, topic: &str) -> u64 {
    let bounds = bounds(client, topic).await;
    let ends = bounds.iter().map(|(queue, (_, end))| (queue.clone(), *end));
    let mut read = read_queues(client, ends).await;
    let mut count = 0;
    for (queue, (_, end)) in &bounds {
        let records = read.remove(&queue.id).unwrap_or_default();
        let offsets: Vec<u64> = records.iter().map(ringmq::Record::offset).collect();
        // The earliest may have moved on since.
        let first = offsets.first().copied().unwrap_or(*end);
        assert_eq!(offsets, (first..*end).collect::<Vec<_>>(), "{queue}");
        assert!(records.iter().all(|record| record.body().len() == BODY));
        count += offsets.len() as u64;
    }
    count
}

#[test]
fn each_topic_has_its_own_time() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let sent = 2 * A_MIB as u64;
    let gone = site.run(async |client| {
        let admin = client.admin();
        let short = TopicSpec::new("short").queues(4).retention(Duration::from_secs(1));
        admin.create_topic(short).await.unwrap();
        admin.create_topic(TopicSpec::new("long").queues(4)).await.unwrap();
        let producer = client.producer("filler").build().await.unwrap();
        // Side by side in the same segments, and more of them than the two newest snapshots keep.
        for _ in 0..2 {
            fill(&producer, "short", 3).await;
            fill(&producer, "long", 1).await;
        }
        let gone = wait_for_expiry(&client, "short", 0).await;
        assert_eq!(expired(&client, "long").await, 0, "each topic for itself");
        // promise: what was stored stays readable.
        assert_eq!(is_whole(&client, "long").await, sent);
        is_whole(&client, "short").await;
        gone
    });
    eventually("it is counted", || site.broker().metric("ringmq_expired_messages_total") > 0.0);
    // What has expired does not come back, and the rest is there, also after a kill.
    let site = site.kill_and_restart();
    site.run(async |client| {
        wait_for_expiry(&client, "short", gone - 1).await;
        assert_eq!(is_whole(&client, "long").await, sent);
        is_whole(&client, "short").await;
    });
    site.end();
}

#[test]
fn bytes_beyond_a_topics_own_go_and_so_many_stay() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        let admin = client.admin();
        let keep = 4 * MIB;
        admin.create_topic(TopicSpec::new("much").queues(4).retention_bytes(keep)).await.unwrap();
        admin.create_topic(TopicSpec::new("other").queues(4)).await.unwrap();
        let producer = client.producer("filler").build().await.unwrap();
        fill(&producer, "other", 1).await;
        fill(&producer, "much", 3).await;
        assert_eq!(expired(&client, "much").await, 0, "less than may be kept is kept");
        let mut gone = 0;
        for _ in 0..3 {
            fill(&producer, "much", 4).await;
            gone = wait_for_expiry(&client, "much", gone).await;
            let left = is_whole(&client, "much").await;
            assert!(left * BODY as u64 >= keep, "{left} messages are left");
        }
        assert_eq!(is_whole(&client, "other").await, A_MIB as u64);
    });
    site.end();
}

#[test]
fn time_and_bytes_together_expire_by_what_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        let admin = client.admin();
        let both = |name: &str, time, bytes| {
            TopicSpec::new(name).queues(2).retention(time).retention_bytes(bytes)
        };
        let hour = Duration::from_secs(3600);
        admin.create_topic(both("by-bytes", hour, 2 * MIB)).await.unwrap();
        admin.create_topic(both("by-time", Duration::from_secs(1), 1 << 40)).await.unwrap();
        admin.create_topic(both("neither", hour, 1 << 40)).await.unwrap();
        let producer = client.producer("filler").build().await.unwrap();
        for topic in ["neither", "by-bytes", "by-time"] {
            fill(&producer, topic, 6).await;
        }
        for topic in ["by-bytes", "by-time"] {
            wait_for_expiry(&client, topic, 0).await;
            is_whole(&client, topic).await;
        }
        assert_eq!(expired(&client, "neither").await, 0);
        // A longer time holds from now on; what has gone is gone.
        let gone = expired(&client, "by-time").await;
        admin.alter_topic(both("by-time", hour, 1 << 40)).await.unwrap();
        assert!(expired(&client, "by-time").await >= gone);
        let described = admin.describe_topic("by-time").await.unwrap();
        assert_eq!((described[0].retention, described[0].retention_bytes), (Some(hour), 1 << 40));
    });
    site.end();
}

#[test]
fn a_topic_that_does_not_say_has_the_brokers_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &["--retention=1s", "--retention-bytes=0"]);
    site.run(async |client| {
        let admin = client.admin();
        let hour = Duration::from_secs(3600);
        admin.create_topic(TopicSpec::new("own").queues(2).retention(hour)).await.unwrap();
        admin.create_topic(TopicSpec::new("default").queues(2)).await.unwrap();
        let producer = client.producer("filler").build().await.unwrap();
        fill(&producer, "own", 1).await;
        fill(&producer, "default", 4).await;
        wait_for_expiry(&client, "default", 0).await;
        assert_eq!(is_whole(&client, "own").await, A_MIB as u64);
    });
    site.end();
}

#[test]
fn a_consumer_below_the_earliest_is_told_and_goes_on_at_the_earliest() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let (first, second) = site.run(async |client| {
        let admin = client.admin();
        let keep = TopicSpec::new("orders").queues(1).retention_bytes(2 * MIB);
        admin.create_topic(keep).await.unwrap();
        let producer = client.producer("filler").build().await.unwrap();
        fill(&producer, "orders", 1).await;
        // A group that stands at the beginning, and goes away.
        let late = || client.pull_consumer("late").from(ConsumeFrom::First).max_records(10);
        let mut consumer = late().subscribe("orders", Filter::all()).build().await.unwrap();
        let read = consumer.poll(Duration::from_secs(30)).await.unwrap();
        assert_eq!(read[0].offset(), 0);
        consumer.commit().await.unwrap();
        consumer.close(Duration::from_secs(10)).await.unwrap();
        fill(&producer, "orders", 6).await;
        wait_for_expiry(&client, "orders", 20).await;
        let mut consumer = late().subscribe("orders", Filter::all()).build().await.unwrap();
        let read = consumer.poll(Duration::from_secs(30)).await.unwrap();
        let queue = Queue::new("orders", "broker-a", 0);
        let (earliest, end) = bounds(&client, "orders").await[&queue];
        // Nothing that is still there is passed over.
        let first = read[0].offset();
        assert!(first > 20 && first <= earliest, "{first} comes, {earliest}..{end} are there");
        consumer.seek(&queue, SeekTo::Offset(1)).await.unwrap();
        let begun = Instant::now();
        let second = loop {
            let read = consumer.poll(Duration::from_secs(30)).await.unwrap();
            // What was on its way before may come first.
            if let Some(record) = read.iter().find(|record| record.offset() <= earliest) {
                break record.offset();
            }
            assert!(begun.elapsed() < PATIENCE, "it does not go back");
        };
        consumer.close(Duration::from_secs(10)).await.unwrap();
        (first, second)
    });
    assert!(second >= first);
    eventually("both are counted", || site.broker().metric("ringmq_out_of_range_total") >= 2.0);
    // On the wire: refused with the bounds.
    let mut wire = Wire::connect(site.broker().address(), 0).unwrap();
    let topic = wire.create_topic("orders", 1).err().map(|error| error.to_string());
    assert!(topic.is_some_and(|error| error.contains("TopicExists")));
    let id = site.run(async |client| client.admin().describe_topic("orders").await.unwrap()[0].id);
    let shard = shard_of_queue(id, 0, wire.shards);
    let told = wire.fetch_queues(id, shard, &[(0, 1)], 0).unwrap().remove(&0).unwrap();
    assert_eq!((told.status, told.bodies.len()), (Status::OffsetOutOfRange, 0));
    assert!(told.min >= first && told.high > told.min);
    site.end();
}

#[test]
fn what_is_stored_stays_readable_with_the_default_of_72_hours() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let sent = 6 * A_MIB as u64;
    site.run(async |client| {
        client.admin().create_topic(TopicSpec::new("orders").queues(3)).await.unwrap();
        let producer = client.producer("filler").build().await.unwrap();
        fill(&producer, "orders", 6).await;
        let described = client.admin().describe_topic("orders").await.unwrap();
        assert_eq!((described[0].retention, described[0].retention_bytes), (None, 0));
    });
    let indexed = || site.broker().metric("ringmq_segments_indexed_total") >= 4.0;
    eventually("most of it is sealed", indexed);
    let site = site.stop_and_restart();
    site.run(async |client| {
        let read = read_topic(&client, "orders").await;
        assert_eq!(read.values().map(Vec::len).sum::<usize>() as u64, sent);
        assert_eq!(is_whole(&client, "orders").await, sent);
    });
    site.end();
}
