//! Offsets are set while the group is alive.

use super::lag::until_total;
use super::{CLOSING, Seen, committed, member, numbered, poll_all, polling, send, topic, until};
use ringmq::{ConsumeFrom, ErrorKind, Filter, GroupSpec, Queue, Record, SeekTo};
use ringmq_tests::site::{Site, bounds};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How soon members are to notice a reset.
const NOTICE: Duration = Duration::from_secs(1);

#[test]
fn a_live_group_is_reset_and_nothing_committed_before_counts() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 2).await;
        send(&client, "orders", numbered(0..200)).await;
        let seen = Seen::default();
        let consumer = member(&client, "billing", "orders", &seen).await;
        until("all is consumed", async || seen.all().len() == 200).await;
        consumer.commit().await.unwrap();
        assert_eq!(committed(&client, "billing").await, 200);

        let admin = client.admin();
        let end = bounds(&client, "orders").await;
        let middle = std::time::SystemTime::now();
        send(&client, "orders", numbered(200..210)).await;
        until("these too", async || seen.all().len() == 210).await;

        let ends = bounds(&client, "orders").await;
        let behind_95 = ends.values().map(|(_, end)| end.saturating_sub(95) as usize).sum();
        // First, a number, a time, last: each is noticed while the consumer goes on.
        for (to, expected) in [
            (SeekTo::First, 210),
            (SeekTo::Offset(u64::MAX), 0),
            (SeekTo::Offset(95), behind_95),
            (SeekTo::Time(middle), 10),
        ] {
            seen.clear();
            let begun = Instant::now();
            let moved = admin.reset_offsets("billing", "orders", to).await.unwrap();
            assert_eq!(moved.len(), 2);
            until("the group goes on where it was set", async || seen.all().len() >= expected)
                .await;
            let noticed = begun.elapsed();
            ringmq_tests::say(format_args!("reset to {to:?}: noticed after {noticed:?}"));
            assert!(noticed < NOTICE * 10, "far beyond what a busy machine explains: {noticed:?}");
            until("it holds its queues again", async || consumer.positions().len() == 2).await;
            until("positions are at the end", async || {
                consumer.positions().iter().map(|(_, position)| position).sum::<u64>() == 210
            })
            .await;
            assert_eq!(seen.all().len(), expected, "{to:?}");
        }
        // One queue alone.
        seen.clear();
        let queue = end.keys().next().unwrap().clone();
        let one = admin
            .reset_queues("billing", std::slice::from_ref(&queue), SeekTo::First)
            .await
            .unwrap();
        assert_eq!(one, [(queue.clone(), 0)]);
        let in_it = bounds(&client, "orders").await[&queue].1 as usize;
        until("that queue comes again", async || seen.all().len() >= in_it).await;
        assert!(seen.all().iter().all(|(of, _, _)| *of == queue));
        let missing = Queue::new("orders", "broker-a", 7);
        let error = admin.reset_queues("billing", &[missing], SeekTo::First).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        consumer.close(CLOSING).await.unwrap();
    });
    site.end();
}

#[test]
fn what_a_member_had_before_a_reset_is_not_committed_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 1).await;
        send(&client, "orders", numbered(0..50)).await;
        // It polled everything, and commits only after the reset.
        let mut consumer = polling(&client, "billing", "orders").await;
        let got = poll_all(&mut consumer, 50).await;
        assert_eq!(got.len(), 50);
        let begun = Instant::now();
        client.admin().reset_offsets("billing", "orders", SeekTo::Offset(7)).await.unwrap();
        // Fenced, or nothing is left to commit: either way it does not count.
        let _ = consumer.commit().await;
        assert_eq!(committed(&client, "billing").await, 7);
        let again = poll_all(&mut consumer, 43).await;
        ringmq_tests::say(format_args!("reset: polled again after {:?}", begun.elapsed()));
        assert_eq!(again.first().unwrap().offset(), 7);
        consumer.commit().await.unwrap();
        assert_eq!(committed(&client, "billing").await, 50);
        consumer.close(CLOSING).await.unwrap();
    });
    // It is durable with its fence.
    let site = site.kill_and_restart();
    site.run(async |client| {
        client.admin().reset_offsets("billing", "orders", SeekTo::Offset(3)).await.unwrap();
    });
    let site = site.kill_and_restart();
    site.run(async |client| assert_eq!(committed(&client, "billing").await, 3));
    site.end();
}

/// A reset leaves the group's retry topic as it is, as RocketMQ does; it is reset under its own name.
#[test]
fn what_failed_comes_again_after_a_reset_unless_the_retry_topic_is_reset_too() {
    const RETRY: &str = "%RETRY%billing";
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        let admin = client.admin();
        topic(&client, "orders", 2).await;
        topic(&client, "others", 1).await;
        let pause = Duration::from_secs(5);
        admin.create_group(GroupSpec::new("billing").retry_pauses([pause])).await.unwrap();
        send(&client, "orders", numbered(0..20)).await;
        send(&client, "others", numbered(20..25)).await;
        // Body and attempt of each, and whether it is to fail.
        let seen: Arc<Mutex<Vec<(String, u32)>>> = Arc::default();
        let listening = async |fails: bool| {
            let into = Arc::clone(&seen);
            let consumer = client.push_consumer("billing").from(ConsumeFrom::First);
            let consumer = consumer.commit_interval(Duration::from_millis(20));
            let consumer = consumer.subscribe("orders", Filter::all());
            let consumer = consumer.subscribe("others", Filter::all());
            let listener = move |record: Record| {
                let body = String::from_utf8(record.body().to_vec()).unwrap();
                into.lock().unwrap().push((body, record.delivery_attempt()));
                std::future::ready(if fails { Err("no") } else { Ok(()) })
            };
            consumer.listen(listener).await.unwrap()
        };
        let consumer = listening(true).await;
        until_total(&client, "billing", [0, 0, 0, 0, 25]).await;
        consumer.close(CLOSING).await.unwrap();
        until("they are in the retry topic", async || {
            let lag = admin.lag("billing").await.unwrap();
            lag.iter().all(|lag| lag.delayed == 0)
        })
        .await;

        // All that it consumes, on every topic but that one.
        let moved = admin.reset_group("billing", SeekTo::First).await.unwrap();
        let names: Vec<&str> = moved.iter().map(|(queue, _)| &*queue.topic).collect();
        assert_eq!(names, ["orders", "orders", "others"]);
        until_total(&client, "billing", [25, 25, 0, 0, 25]).await;
        seen.lock().unwrap().clear();
        let consumer = listening(false).await;
        until_total(&client, "billing", [0, 0, 0, 0, 0]).await;
        // For the first time, or again.
        let count = |again: bool| {
            let seen = seen.lock().unwrap();
            seen.iter().filter(|(_, attempt)| (*attempt > 1) == again).count()
        };
        assert_eq!((count(false), count(true)), (25, 25), "once more, and what failed again");

        // Under its own name, while the group is alive. Some may have failed twice before.
        let failed = bounds(&client, RETRY).await.values().map(|(_, end)| *end).sum::<u64>();
        seen.lock().unwrap().clear();
        let moved = admin.reset_offsets("billing", RETRY, SeekTo::First).await.unwrap();
        assert!(moved.iter().all(|(queue, offset)| &*queue.topic == RETRY && *offset == 0));
        until("they come again", async || count(true) as u64 == failed).await;
        assert_eq!(count(false), 0);
        consumer.close(CLOSING).await.unwrap();
        admin.reset_offsets("billing", RETRY, SeekTo::First).await.unwrap();
        until_total(&client, "billing", [0, 0, 0, 0, failed]).await;
        admin.reset_offsets("billing", RETRY, SeekTo::Last).await.unwrap();
        until_total(&client, "billing", [0, 0, 0, 0, 0]).await;
    });
    site.end();
}
