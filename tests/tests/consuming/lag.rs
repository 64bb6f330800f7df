//! How far a group is behind.

use super::{CLOSING, a_moment, poll_all, topic, until};
use ringmq::{
    Client, ConsumeFrom, Filter, GroupLag, GroupSpec, LagBounds, Message, MessageType, TopicSpec,
};
use ringmq_tests::server::PATIENCE;
use ringmq_tests::site::{Site, send_all};
use std::time::{Duration, Instant};

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
    });
    site.end();
}

/// How many messages the topic of the test below holds: many sealed segments, and some in memory.
const MESSAGES: u32 = 100_000;

fn numbered_message(n: u32) -> Message {
    let tag = if n.is_multiple_of(10) { "paid" } else { "open" };
    Message::new("orders", vec![b'x'; 100]).tag(tag).property("n", n.to_string())
}

/// A group that stands at the first message of both queues, and whose member is gone.
async fn began(client: &Client, group: &str, filter: Filter) {
    let builder = client.pull_consumer(group).subscribe("orders", filter);
    let mut consumer = builder.from(ConsumeFrom::First).build().await.unwrap();
    until("it owns both", async || consumer.positions().len() == 2).await;
    consumer.commit().await.unwrap();
    consumer.close(CLOSING).await.unwrap();
}

/// What a group's lag comes to: messages, ready, in flight, delayed, retrying.
async fn total(client: &Client, group: &str) -> [u64; 5] {
    let lag = client.admin().lag(group).await.unwrap();
    let all = GroupLag::of(group, &lag);
    assert!(!all.at_least && lag.iter().all(|lag| lag.unreadable == 0), "{lag:?}");
    assert_eq!(all.messages, all.ready + all.in_flight);
    [all.messages, all.ready, all.in_flight, all.delayed, all.retrying]
}

pub(super) async fn until_total(client: &Client, group: &str, expected: [u64; 5]) {
    let begun = Instant::now();
    loop {
        let found = total(client, group).await;
        if found == expected {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{group}: {found:?}, not {expected:?}");
        a_moment(Duration::from_millis(10)).await;
    }
}

/// Whatever the size: by tag, by expression, popped, delayed, retrying; and the same after kill -9 and a clean stop.
#[test]
fn lag_is_counted_to_the_last_message() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let day = Duration::from_secs(86_400);
    let popped: u64 = site.run(async |client| {
        let spec = TopicSpec::new("orders").queues(2).message_type(MessageType::Unspecified);
        client.admin().create_topic(spec).await.unwrap();
        let producer = client.producer("tests").build().await.unwrap();
        send_all(&producer, (0..MESSAGES).map(numbered_message)).await;
        let later = |n| Message::new("orders", "later").property("n", n).deliver_after(day);
        send_all(&producer, (0..7).map(|n: u32| later(n.to_string()))).await;
        // 300 messages fail; the first attempt is followed by a day's pause.
        let group = GroupSpec::new("failing").retry_pauses([day]);
        client.admin().create_group(group).await.unwrap();
        let consumer = client.push_consumer("failing").subscribe("orders", Filter::sql("n < 300"));
        let consumer = consumer.from(ConsumeFrom::First).listen(async |_| Err::<(), _>("no"));
        let consumer = consumer.await.unwrap();
        until_total(&client, "failing", [0, 0, 0, 7, 300]).await;
        consumer.close(CLOSING).await.unwrap();
        // As many as are received are in flight; who receives them says what it wants.
        let consumer = client.simple_consumer("popping").subscribe("orders", Filter::tags("paid"));
        let consumer = consumer.from(ConsumeFrom::First).invisible_for(day / 4);
        let consumer = consumer.build().await.unwrap();
        let mut popped = 0;
        while popped < 100 {
            let received = consumer.receive(32, PATIENCE).await.unwrap();
            popped += received.len() as u64;
        }
        let done = consumer.receive(1, PATIENCE).await.unwrap();
        for message in done {
            message.ack().await.unwrap();
        }
        until_total(&client, "popping", [9_999, 9_999 - popped, popped, 7, 0]).await;
        consumer.close(CLOSING).await.unwrap();
        began(&client, "by-tag", Filter::tags("paid")).await;
        began(&client, "by-sql", Filter::sql("n BETWEEN 20000 AND 59999")).await;
        popped
    });
    let look = async |client: Client| {
        for (group, filter, expected) in [
            ("by-tag", Filter::tags("paid"), 10_000),
            ("by-sql", Filter::sql("n BETWEEN 20000 AND 59999"), 40_000),
        ] {
            // It polls nothing: what it was given ahead is in flight all the same.
            let builder = client.pull_consumer(group).subscribe("orders", filter);
            let consumer = builder.build().await.unwrap();
            until("it owns both", async || consumer.positions().len() == 2).await;
            until("it was given some", async || total(&client, group).await[2] > 0).await;
            let [messages, _, _, delayed, retrying] = total(&client, group).await;
            assert_eq!([messages, delayed, retrying], [expected, 7, 0], "{group}");
            let lag = client.admin().lag(group).await.unwrap();
            assert!(lag.iter().all(|lag| lag.owner.is_some() && lag.age.is_some()), "{lag:?}");
            consumer.close(CLOSING).await.unwrap();
        }
        // Its filter is not known when nobody is there: everything counts, but what failed stays what it is.
        let [messages, _, _, delayed, retrying] = total(&client, "failing").await;
        assert!(messages < u64::from(MESSAGES));
        assert_eq!([delayed, retrying], [7, 300]);
        // What pops want is known when somebody does again.
        let consumer = client.simple_consumer("popping").subscribe("orders", Filter::tags("paid"));
        let consumer = consumer.build().await.unwrap();
        until_total(&client, "popping", [9_999, 9_999 - popped, popped, 7, 0]).await;
        consumer.close(CLOSING).await.unwrap();
        let bounds = LagBounds::default().messages(1_000);
        let lag = client.admin().lag_within("by-tag", bounds).await.unwrap();
        assert!(lag.iter().all(|lag| !lag.at_least), "by tag to the end: {lag:?}");
    };
    site.run(look);
    let site = site.kill_and_restart();
    site.run(look);
    let site = site.stop_and_restart();
    site.run(look);
    // In metrics, before filters, once the shards have looked.
    ringmq_tests::server::eventually_ok("the metrics say it", || {
        let (_, text) = site.broker().http("/metrics");
        let of = |name: &str, group: &str| {
            let labels = format!("consumer_group=\"{group}\",topic=\"orders\"");
            let mut lines = text.lines().filter(|line| line.starts_with(name));
            let line = lines.find(|line| line.contains(&labels));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        };
        let lag = of("rocketmq_consumer_lag_messages", "by-tag");
        let in_flight = of("rocketmq_consumer_inflight_messages", "popping");
        let both = [of("rocketmq_consumer_ready_messages", "popping"), in_flight];
        let seconds = of("ringmq_consumer_lag_seconds", "by-tag");
        match (lag, both, seconds) {
            // What its filter left out is committed past when the member goes.
            (Some(lag), [Some(ready), Some(popping)], Some(seconds))
                if lag > 90_000.0 && ready > 0.0 && popping == popped as f64 && seconds > 0.0 =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    });
    site.end();
}
