//! Pull consumers: seek, pause, commit, room, polls that are dropped.

use super::{CLOSING, a_moment, committed, numbered, poll_all, polling, send, topic, until};
use ringmq::{ConsumeFrom, Filter, Queue, Record, SeekTo};
use ringmq_tests::server::PATIENCE;
use ringmq_tests::site::{Site, bounds};
use std::collections::BTreeMap;
use std::future::pending;
use std::time::{Duration, Instant};

#[test]
fn pull_seeks_pauses_and_commits() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 1).await;
        send(&client, "orders", numbered(0..100)).await;
        a_moment(Duration::from_millis(5)).await;
        let later = std::time::SystemTime::now();
        send(&client, "orders", numbered(100..120)).await;
        let queue = bounds(&client, "orders").await.into_keys().next().unwrap();

        let mut consumer = polling(&client, "audit", "orders").await;
        assert_eq!(poll_all(&mut consumer, 120).await.len(), 120);
        for (to, first) in [
            (SeekTo::Offset(17), Some(17)),
            (SeekTo::First, Some(0)),
            (SeekTo::Time(later), Some(100)),
            (SeekTo::Last, None),
        ] {
            consumer.seek(&queue, to).await.unwrap();
            let records = match first {
                Some(first) => poll_all(&mut consumer, 120 - first).await,
                None => consumer.poll(Duration::from_millis(50)).await.unwrap(),
            };
            assert_eq!(records.first().map(|record| record.offset()), first.map(|f| f as u64));
        }
        // Paused: nothing comes, whatever is there.
        consumer.seek(&queue, SeekTo::First).await.unwrap();
        consumer.pause(&queue);
        assert!(consumer.poll(Duration::from_millis(100)).await.unwrap().is_empty());
        consumer.resume(&queue);
        assert_eq!(poll_all(&mut consumer, 120).await.len(), 120);

        // Sync, and async: the error of one is said by the next call.
        consumer.seek(&queue, SeekTo::Offset(30)).await.unwrap();
        consumer.commit().await.unwrap();
        assert_eq!(committed(&client, "audit").await, 30);
        consumer.seek(&queue, SeekTo::Offset(40)).await.unwrap();
        consumer.commit_async().unwrap();
        until("it is committed", async || committed(&client, "audit").await == 40).await;
        consumer.seek(&queue, SeekTo::Offset(u64::MAX)).await.unwrap();
        consumer.commit_async().unwrap();
        until("the error is said", async || consumer.poll(Duration::from_millis(1)).await.is_err())
            .await;
        consumer.close(CLOSING).await.unwrap();

        // Explicitly: nothing is held, nothing waits.
        let consumer = client.pull_consumer("audit").assign(queue.clone(), Filter::all());
        let consumer = consumer.build().await.unwrap();
        let pulled = consumer.pull(&queue, 110, 4).await.unwrap();
        let offsets: Vec<u64> = pulled.records.iter().map(Record::offset).collect();
        assert_eq!((offsets, pulled.next_offset), (vec![110, 111, 112, 113], 114));
        assert_eq!((pulled.min_offset, pulled.max_offset), (0, 120));
        let end = consumer.pull(&queue, 120, 4).await.unwrap();
        assert_eq!((end.records.len(), end.next_offset), (0, 120));
        let beyond = consumer.pull(&queue, 500, 4).await.unwrap();
        assert_eq!((beyond.records.len(), beyond.next_offset), (0, 120));
        consumer.close(CLOSING).await.unwrap();
    });
    site.end();
}

#[test]
fn pull_commits_by_itself_what_was_polled_before() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 1).await;
        send(&client, "orders", numbered(0..20)).await;
        let build = async || {
            let builder = client.pull_consumer("audit").subscribe("orders", Filter::all());
            let builder = builder.from(ConsumeFrom::First).max_records(10);
            builder.auto_commit(Duration::from_millis(20)).build().await.unwrap()
        };
        let mut consumer = build().await;
        assert_eq!(poll_all(&mut consumer, 10).await.len(), 10);
        assert_eq!(consumer.positions()[0].1, 10);
        // What is under way is not committed; dropping the consumer keeps it so.
        a_moment(Duration::from_millis(100)).await;
        assert_eq!(committed(&client, "audit").await, 0);
        drop(consumer);
        let mut consumer = build().await;
        assert_eq!(poll_all(&mut consumer, 10).await[0].offset(), 0);
        assert_eq!(poll_all(&mut consumer, 10).await[0].offset(), 10);
        until("the first ten are", async || committed(&client, "audit").await == 10).await;
        consumer.close(CLOSING).await.unwrap();
        assert_eq!(committed(&client, "audit").await, 20);
    });
    site.end();
}

#[test]
fn pull_keeps_to_its_room_and_a_dropped_poll_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 3).await;
        let builder = client.pull_consumer("audit").subscribe("orders", Filter::all());
        let builder = builder.from(ConsumeFrom::First).max_records(7);
        let mut consumer = builder.max_waiting(20).max_waiting_bytes(4096).build().await.unwrap();
        let sending = {
            let client = client.clone();
            tokio::spawn(async move {
                for part in 0..20 {
                    send(&client, "orders", numbered(part * 100..part * 100 + 100)).await;
                }
            })
        };
        let (mut got, mut dropped) = (Vec::new(), 0u32);
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let begun = Instant::now();
        while got.len() < 2000 {
            assert!(begun.elapsed() < PATIENCE, "{} came", got.len());
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let pause = Duration::from_micros(random >> 54);
            let polled = tokio::select! {
                biased;
                () = after(pause, random) => None,
                polled = consumer.poll(Duration::from_secs(1)) => Some(polled.unwrap()),
            };
            dropped += u32::from(polled.is_none());
            got.extend(polled.into_iter().flatten());
        }
        sending.await.unwrap();
        let mut next: BTreeMap<Queue, u64> = BTreeMap::new();
        for record in &got {
            let next = next.entry(record.queue().clone()).or_default();
            assert_eq!(record.offset(), *next, "nothing is lost, nothing comes twice");
            *next += 1;
        }
        ringmq_tests::say(format_args!("pull: 2000 records, {dropped} polls dropped"));
        assert!(dropped > 0);
        consumer.close(CLOSING).await.unwrap();
    });
    site.end();
}

/// A moment: so many turns of the executor, or some time, or never.
async fn after(pause: Duration, random: u64) {
    match random >> 40 & 3 {
        0 => a_moment(pause).await,
        1 => {
            for _ in 0..random >> 50 & 7 {
                tokio::task::yield_now().await;
            }
        }
        2 => a_moment(pause / 8).await,
        _ => pending().await,
    }
}
