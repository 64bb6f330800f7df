//! semantics.md, "orderly result": attempts of a message that is tried again in its place are the group's, not a member's.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq::{Client, ConsumeFrom, Filter, GroupSpec, Message, PushConsumer, TopicSpec};
use ringmq_tests::server::eventually;
use ringmq_tests::site::{Site, send_all, wait_for_topic};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const CLOSING: Duration = Duration::from_secs(10);
const GROUP: &str = "billing";
const ATTEMPTS: u16 = 5;

type Seen = Arc<Mutex<Vec<(String, u32)>>>;

/// A member that fails at "never", and shows what it was called with.
async fn member(client: &Client, pause: Duration, seen: &Seen) -> PushConsumer {
    let seen = Arc::clone(seen);
    let consumer = client
        .push_consumer(GROUP)
        .subscribe("orders", Filter::all())
        .from(ConsumeFrom::First)
        .orderly_pause(pause)
        .listen_orderly(move |record| {
            let body = String::from_utf8(record.body().to_vec()).unwrap();
            let failed = body == "never";
            seen.lock().unwrap().push((body, record.delivery_attempt()));
            std::future::ready(if failed { Err("not now") } else { Ok(()) })
        });
    consumer.await.unwrap()
}

/// semantics.md, "orderly result" **better**: a message that always fails is a dead letter after the group's attempts,
/// however often its queue changes hands and its broker dies meanwhile.
#[test]
fn orderly_result_attempts_count_on_with_the_next_owner() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let (seen, long, short) = (Seen::default(), Duration::from_secs(60), Duration::from_millis(10));
    site.run(async |client| {
        client.admin().create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
        let group = GroupSpec::new(GROUP).max_attempts(ATTEMPTS);
        client.admin().create_group(group).await.unwrap();
        let messages = ["a", "never", "b"].map(|body| Message::new("orders", body));
        let producer = client.producer("sender").build().await.unwrap();
        send_all(&producer, messages).await;
        producer.close(CLOSING).await.unwrap();
        for attempt in 1..=2 {
            let consumer = member(&client, long, &seen).await;
            let last = ("never".to_owned(), attempt);
            eventually("one more attempt", || seen.lock().unwrap().last() == Some(&last));
            consumer.close(CLOSING).await.unwrap();
        }
    });
    let site = site.kill_and_restart();
    site.run(async |client| {
        wait_for_topic(&client, "orders").await;
        let consumer = member(&client, short, &seen).await;
        eventually("the one behind", || seen.lock().unwrap().iter().any(|(body, _)| body == "b"));
        consumer.close(CLOSING).await.unwrap();
    });
    let never = |attempt| ("never", attempt);
    let expected = [("a", 1), never(1), never(2), never(3), never(4), never(5), ("b", 1)];
    let seen: Vec<(String, u32)> = seen.lock().unwrap().clone();
    assert_eq!(seen, expected.map(|(body, attempt)| (body.to_owned(), attempt)));
    site.end();
}
