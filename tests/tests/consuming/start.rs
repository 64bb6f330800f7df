//! Where a new group starts, and that its members subscribe alike.

use super::{CLOSING, Seen, a_moment, member, numbered, send, topic, until};
use ringmq::{ConsumeFrom, ErrorKind, Filter};
use ringmq_tests::site::Site;
use std::convert::Infallible;
use std::time::Duration;

#[test]
fn a_new_group_starts_at_the_first_the_last_or_a_time_and_stays_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 2).await;
        send(&client, "orders", numbered(0..20)).await;
        a_moment(Duration::from_millis(5)).await;
        let later = std::time::SystemTime::now();
        send(&client, "orders", numbered(20..30)).await;
        let starts = [ConsumeFrom::First, ConsumeFrom::Time(later), ConsumeFrom::Last];
        let (mut consumers, mut seen) = (Vec::new(), Vec::new());
        for (number, start) in starts.into_iter().enumerate() {
            let got = Seen::default();
            let into = got.clone();
            let builder = client.push_consumer(format!("group-{number}"));
            let consumer = builder.subscribe("orders", Filter::all()).from(start);
            let consumer = consumer.listen(move |record| {
                into.add(&record);
                async { Ok::<(), Infallible>(()) }
            });
            consumers.push(consumer.await.unwrap());
            seen.push(got);
        }
        for consumer in &consumers {
            until("it has both queues", async || consumer.queues().len() == 2).await;
        }
        send(&client, "orders", numbered(30..35)).await;
        for (number, first) in [0, 20, 30].into_iter().enumerate() {
            let expected: Vec<String> = numbered(first..35).collect();
            until("all of them came", async || seen[number].all().len() >= expected.len()).await;
            assert_eq!(seen[number].bodies(), expected);
        }
        for consumer in consumers {
            consumer.close(CLOSING).await.unwrap();
        }
        // What was committed counts, whatever is asked for the second time.
        let again = Seen::default();
        let consumer = member(&client, "group-2", "orders", &again).await;
        until("it has both queues", async || consumer.queues().len() == 2).await;
        send(&client, "orders", numbered(35..36)).await;
        until("it goes on", async || !again.all().is_empty()).await;
        assert_eq!(again.bodies(), ["00035"]);
        consumer.close(CLOSING).await.unwrap();
    });
    site.end();
}

#[test]
fn members_that_subscribe_differently_are_told_of_both() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 2).await;
        topic(&client, "refunds", 2).await;
        let first = member(&client, "billing", "orders", &Seen::default()).await;
        for (subscribed, filter) in [("orders", Filter::tags("paid")), ("refunds", Filter::all())] {
            let builder = client.push_consumer("billing").subscribe(subscribed, filter);
            let refused = builder.listen(|_| async { Ok::<(), Infallible>(()) }).await;
            let error = refused.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::SubscriptionMismatch);
            let text = error.to_string();
            let both = ["orders (*)", if subscribed == "orders" { "paid" } else { "refunds (*)" }];
            assert!(both.iter().all(|part| text.contains(part)), "{text}");
        }
        first.close(CLOSING).await.unwrap();
    });
    site.end();
}
