//! How far a group is behind.

use super::{CLOSING, poll_all, topic, until};
use ringmq::{ConsumeFrom, Filter, Message};
use ringmq_tests::site::{Site, send_all};

#[test]
fn lag_is_exact_behind_filters_and_says_who_and_since_when() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 2).await;
        let producer = client.producer("tests").build().await.unwrap();
        let tagged = |n: u32| {
            let tag = if n.is_multiple_of(5) { "paid" } else { "open" };
            Message::new("orders", vec![b'x'; 300]).tag(tag).property("n", n.to_string())
        };
        send_all(&producer, (0..5000).map(tagged)).await;
        for (group, filter, expected) in [
            ("by-tag", Filter::tags("paid"), 1000),
            ("by-sql", Filter::sql("n < 100"), 100),
            ("all", Filter::all(), 5000),
        ] {
            let builder = client.pull_consumer(group).subscribe("orders", filter);
            let mut consumer = builder.from(ConsumeFrom::First).build().await.unwrap();
            until("it owns both", async || consumer.positions().len() == 2).await;
            let lag = client.admin().lag(group).await.unwrap();
            assert_eq!(lag.iter().map(|lag| lag.messages).sum::<u64>(), expected, "{group}");
            assert!(lag.iter().all(|lag| !lag.at_least && lag.owner.is_some()), "{lag:?}");
            assert!(lag.iter().filter(|lag| lag.messages > 0).all(|lag| lag.age.is_some()));
            poll_all(&mut consumer, expected as usize).await;
            consumer.commit().await.unwrap();
            let lag = client.admin().lag(group).await.unwrap();
            assert_eq!(lag.iter().map(|lag| lag.messages).sum::<u64>(), 0, "{lag:?}");
            assert!(lag.iter().all(|lag| lag.age.is_none() && lag.committed_at.is_some()));
            consumer.close(CLOSING).await.unwrap();
        }
        // Beyond the bound it says so.
        send_all(&producer, (0..25_000).map(|_| Message::new("orders", "y").tag("paid"))).await;
        let builder = client.pull_consumer("by-tag").subscribe("orders", Filter::tags("paid"));
        let consumer = builder.build().await.unwrap();
        until("it owns both", async || consumer.positions().len() == 2).await;
        let lag = client.admin().lag("by-tag").await.unwrap();
        for lag in &lag {
            let exact = lag.max_offset - lag.committed.unwrap();
            let bounded = lag.at_least && (10_000..exact).contains(&lag.messages);
            assert!(lag.messages == exact || bounded, "{lag:?}");
        }
        consumer.close(CLOSING).await.unwrap();
    });
    // In metrics, before filters, once the shards have looked.
    ringmq_tests::server::eventually_ok("the metric says it", || {
        let (_, text) = site.broker().http("/metrics");
        let of = |name: &str| {
            let mut lines = text.lines().filter(|line| line.starts_with(name));
            let line = lines.find(|line| line.contains("consumer_group=\"all\",topic=\"orders\""));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        };
        let found = (of("rocketmq_consumer_lag_messages"), of("ringmq_consumer_lag_seconds"));
        match found {
            (Some(25_000.0), Some(seconds)) if seconds > 0.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    site.end();
}
