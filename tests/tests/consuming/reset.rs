//! Offsets are set while the group is alive.

use super::{CLOSING, Seen, committed, member, numbered, poll_all, polling, send, topic, until};
use ringmq::{ErrorKind, Queue, SeekTo};
use ringmq_tests::site::{Site, bounds};
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
