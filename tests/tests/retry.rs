//! semantics.md, "Consuming": concurrent result, orderly result, slow listener; and what becomes of messages that
//! fail for good.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq::{
    Client, ConsumeFrom, Filter, GroupSpec, Message, MessageId, Permission, PushConsumer, Queue,
    Record, TopicSpec,
};
use ringmq_schema::build::{MessageSpec, RecordBuilder};
use ringmq_schema::placement::shard_of_queue;
use ringmq_schema::produce::Flush;
use ringmq_schema::record::RecordHeader;
use ringmq_schema::zerocopy::FromBytes;
use ringmq_tests::server::{PATIENCE, eventually};
use ringmq_tests::site::{Site, read_topic, send_all};
use ringmq_tests::wire::Wire;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

const CLOSING: Duration = Duration::from_secs(10);
const GROUP: &str = "billing";
const RETRY: &str = "%RETRY%billing";
const DEAD: &str = "%DLQ%billing";

/// What a listener got, with when that was.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(Record, Instant)>>>);

impl Seen {
    fn add(&self, record: &Record) {
        self.0.lock().unwrap().push((record.clone(), Instant::now()));
    }

    fn all(&self) -> Vec<(Record, Instant)> {
        self.0.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Body and attempt of each.
    fn bodies(&self) -> Vec<(String, u32)> {
        let of = |record: &Record| String::from_utf8(record.body().to_vec()).unwrap();
        self.all().iter().map(|(record, _)| (of(record), record.delivery_attempt())).collect()
    }
}

/// A group whose messages come again after these pauses.
async fn group(client: &Client, attempts: u16, pauses_ms: &[u64]) {
    let pauses = pauses_ms.iter().copied().map(Duration::from_millis);
    let spec = GroupSpec::new(GROUP).max_attempts(attempts).retry_pauses(pauses);
    client.admin().create_group(spec).await.unwrap();
}

async fn topic(client: &Client, queues: u32) {
    client.admin().create_topic(TopicSpec::new("orders").queues(queues)).await.unwrap();
}

async fn send(client: &Client, messages: impl IntoIterator<Item = Message>) -> Vec<MessageId> {
    let producer = client.producer("sender").build().await.unwrap();
    let receipts = send_all(&producer, messages).await;
    producer.close(CLOSING).await.unwrap();
    receipts.into_iter().map(|receipt| receipt.message_id).collect()
}

/// A concurrent consumer from the first message on.
async fn listen<F>(client: &Client, listener: F) -> PushConsumer
where
    F: Fn(Record) -> Result<(), String> + Send + Sync + 'static,
{
    let consumer = client.push_consumer(GROUP).subscribe("orders", Filter::all());
    let consumer = consumer.from(ConsumeFrom::First).commit_interval(Duration::from_millis(20));
    consumer.listen(move |record| std::future::ready(listener(record))).await.unwrap()
}

/// The dead letters, once there are so many.
async fn dead_letters(client: &Client, count: usize) -> Vec<Record> {
    let begun = Instant::now();
    loop {
        let stats = client.admin().topic_stats(DEAD).await.unwrap_or_default();
        let there: u64 = stats.iter().map(|stat| stat.max_offset).sum();
        if there >= count as u64 {
            let all = read_topic(client, DEAD).await.into_values().flatten().collect::<Vec<_>>();
            assert_eq!(all.len(), count);
            return all;
        }
        assert!(begun.elapsed() < PATIENCE, "{there} dead letters");
        tokio::task::yield_now().await;
    }
}

/// Waits until the group has committed everything of its topics.
async fn until_consumed(client: &Client) {
    let begun = Instant::now();
    loop {
        let lag = client.admin().lag(GROUP).await.unwrap();
        if !lag.is_empty() && lag.iter().all(|queue| queue.messages == 0) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{lag:?}");
        tokio::task::yield_now().await;
    }
}

/// semantics.md, "concurrent result".
#[test]
fn concurrent_result_a_failed_message_comes_again_after_the_groups_pauses_and_then_is_a_dead_letter()
 {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, 4).await;
        group(&client, 3, &[100, 300]).await;
        let message = Message::new("orders", "pay 42")
            .tag("paid")
            .keys(["42", "43"])
            .property("region", "eu")
            .group("user-7")
            .flag(5);
        let sent_at = SystemTime::now();
        let id = send(&client, [message, Message::new("orders", "good")]).await[0];
        let seen = Seen::default();
        let listener = seen.clone();
        let consumer = listen(&client, move |record| {
            listener.add(&record);
            match record.body() {
                b"good" => Ok(()),
                _ => Err(format!("no bank, attempt {}", record.delivery_attempt())),
            }
        });
        let consumer = consumer.await;
        let dead = dead_letters(&client, 1).await;
        until_consumed(&client).await;
        consumer.close(CLOSING).await.unwrap();

        let tries: Vec<_> =
            seen.all().into_iter().filter(|(record, _)| record.body() == b"pay 42").collect();
        assert_eq!(seen.count(), tries.len() + 1, "the other message came once");
        let attempts: Vec<u32> =
            tries.iter().map(|(record, _)| record.delivery_attempt()).collect();
        assert_eq!(attempts, [1, 2, 3]);
        assert!(tries[1].1 - tries[0].1 >= Duration::from_millis(100), "never early");
        assert!(tries[2].1 - tries[1].1 >= Duration::from_millis(300), "never early");
        assert_eq!(&*tries[2].0.queue().topic, RETRY);
        let first = tries[0].0.queue().clone();
        for record in tries.iter().map(|(record, _)| record).chain([&dead[0]]) {
            assert_eq!((record.message_id(), record.tag()), (id, Some("paid")));
            assert_eq!((record.body(), record.keys()), (&b"pay 42"[..], vec!["42", "43"]));
            assert_eq!((record.property("region"), record.group()), (Some("eu"), Some("user-7")));
            assert_eq!((record.flag(), record.born_at()), (5, tries[0].0.born_at()));
            let late = record.born_at().duration_since(sent_at).unwrap_or_default();
            assert!(late < PATIENCE);
        }
        assert!(tries.iter().all(|(record, _)| record.topic() == "orders"));
        let [dead] = &dead[..] else { panic!("one dead letter, not {dead:?}") };
        let origin = dead.origin().unwrap();
        assert_eq!((origin.queue, origin.offset), (first, tries[0].0.offset()));
        assert_eq!(dead.last_error(), Some("no bank, attempt 3"));
        assert_eq!((dead.topic(), dead.delivery_attempt()), (DEAD, 4), "three before");
        assert_eq!(tries[2].0.last_error(), Some("no bank, attempt 2"));
    });
    site.end();
}

#[test]
fn a_panic_is_a_failure_and_a_message_that_succeeds_at_last_is_no_dead_letter() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, 1).await;
        group(&client, 16, &[10]).await;
        send(&client, (0..20).map(|n| Message::new("orders", n.to_string()))).await;
        let seen = Seen::default();
        let listener = seen.clone();
        let consumer = listen(&client, move |record| {
            listener.add(&record);
            assert!(record.delivery_attempt() > 2, "this one panics");
            Ok(())
        });
        let consumer = consumer.await;
        eventually("three times each", || seen.count() == 60);
        until_consumed(&client).await;
        consumer.close(CLOSING).await.unwrap();
        let each: BTreeSet<(String, u32)> = seen.bodies().into_iter().collect();
        assert_eq!((each.len(), seen.count()), (60, 60));
        assert!(client.admin().topic_stats(DEAD).await.is_err(), "there is no such topic");
    });
    site.end();
}

/// semantics.md, "orderly result": the same message again after a moment, and those behind it wait.
#[test]
fn orderly_result_the_queue_waits_for_a_message_and_after_the_limit_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, 1).await;
        group(&client, 3, &[10]).await;
        send(&client, ["a", "b", "never", "c"].map(|body| Message::new("orders", body))).await;
        let seen = Seen::default();
        let listener = seen.clone();
        let consumer = client
            .push_consumer(GROUP)
            .subscribe("orders", Filter::all())
            .from(ConsumeFrom::First)
            .orderly_pause(Duration::from_millis(30))
            .listen_orderly(move |record| {
                listener.add(&record);
                let again = record.body() == b"b" && record.delivery_attempt() == 1;
                let failed = again || record.body() == b"never";
                std::future::ready(if failed { Err("not now") } else { Ok(()) })
            });
        let consumer = consumer.await.unwrap();
        eventually("the last", || seen.bodies().iter().any(|(body, _)| body == "c"));
        consumer.close(CLOSING).await.unwrap();
        let expected =
            [("a", 1), ("b", 1), ("b", 2), ("never", 1), ("never", 2), ("never", 3), ("c", 1)];
        assert_eq!(seen.bodies(), expected.map(|(body, attempt)| (body.to_owned(), attempt)));
        let times: Vec<Instant> = seen.all().iter().map(|(_, at)| *at).collect();
        assert!(times[2] - times[1] >= Duration::from_millis(30), "suspended a moment");
        let dead = dead_letters(&client, 1).await;
        assert_eq!((dead[0].body(), dead[0].last_error()), (&b"never"[..], Some("not now")));
        assert_eq!(dead[0].delivery_attempt(), 4);
        until_consumed(&client).await;
    });
    site.end();
}

/// semantics.md, "orderly result" **better**: a message group waits, others of its queue do not.
#[test]
fn orderly_result_only_the_message_group_waits() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, 1).await;
        group(&client, 16, &[10]).await;
        let of = |n: usize| ["red", "green", "blue"][n % 3];
        let messages = (0..30).map(|n| Message::new("orders", n.to_string()).group(of(n)));
        send(&client, messages).await;
        let (seen, cured) = (Seen::default(), Arc::new(AtomicBool::new(false)));
        let (listener, cure) = (seen.clone(), Arc::clone(&cured));
        let running: Arc<Mutex<BTreeMap<String, u32>>> = Arc::default();
        let calls = Arc::clone(&running);
        let consumer = client
            .push_consumer(GROUP)
            .subscribe("orders", Filter::all())
            .from(ConsumeFrom::First)
            .commit_interval(Duration::from_millis(10))
            .orderly_pause(Duration::from_millis(5))
            .listen_orderly(move |record| {
                listener.add(&record);
                let group = record.group().unwrap().to_owned();
                *calls.lock().unwrap().entry(group.clone()).or_default() += 1;
                let (calls, cure) = (Arc::clone(&calls), Arc::clone(&cure));
                async move {
                    tokio::task::yield_now().await;
                    let mut calls = calls.lock().unwrap();
                    let count = calls.get_mut(&group).unwrap();
                    assert_eq!(std::mem::take(count), 1, "one at a time per group");
                    let failed = group == "red" && !cure.load(Ordering::SeqCst);
                    if failed { Err("red waits") } else { Ok(()) }
                }
            });
        let consumer = consumer.await.unwrap();
        let good = |seen: &Seen| {
            let all = seen.all();
            all.iter().filter(|(record, _)| record.group() != Some("red")).count()
        };
        eventually("all of the others", || good(&seen) == 20);
        eventually("red is tried again", || seen.bodies().iter().any(|(b, n)| b == "0" && *n > 2));
        assert!(!seen.bodies().iter().any(|(body, _)| body == "3"), "the next red one waits");
        assert_eq!(consumer.positions()[0].1, 0, "nothing is committed past the first");
        cured.store(true, Ordering::SeqCst);
        until_consumed(&client).await;
        consumer.close(CLOSING).await.unwrap();
        let mut order: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (record, _) in seen.all() {
            let offsets = order.entry(record.group().unwrap().to_owned()).or_default();
            offsets.push(record.offset());
        }
        for (group, offsets) in order {
            let sorted = offsets.is_sorted();
            assert!(sorted, "{group} in order: {offsets:?}");
        }
    });
    site.end();
}

/// semantics.md, "slow listener": here after 100 ms instead of 15 min.
#[test]
fn a_slow_listener_is_given_up_and_its_message_comes_again() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, 1).await;
        group(&client, 16, &[10]).await;
        send(&client, [Message::new("orders", "slow")]).await;
        let seen = Seen::default();
        let listener = seen.clone();
        let consumer = client
            .push_consumer(GROUP)
            .subscribe("orders", Filter::all())
            .from(ConsumeFrom::First)
            .commit_interval(Duration::from_millis(20))
            .listener_timeout(Duration::from_millis(100))
            .listen(move |record| {
                listener.add(&record);
                async move {
                    if record.delivery_attempt() == 1 {
                        std::future::pending::<()>().await;
                    }
                    Ok::<(), String>(())
                }
            });
        let consumer = consumer.await.unwrap();
        eventually("it comes again", || seen.count() == 2);
        until_consumed(&client).await;
        let (again, at) = &seen.all()[1];
        assert_eq!((again.delivery_attempt(), again.topic()), (2, "orders"));
        assert!(*at - seen.all()[0].1 >= Duration::from_millis(100));
        let why = again.last_error().unwrap();
        assert!(why.contains("did not end within 100ms"), "{why}");
        consumer.close(CLOSING).await.unwrap();
    });
    site.end();
}

/// semantics.md, "slow listener": one blocked message never blocks another queue.
#[test]
fn a_stuck_message_holds_no_other_queue() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, 4).await;
        let queues = client.producer("which").build().await.unwrap();
        let queues: Vec<Queue> = queues.queues("orders").await.unwrap();
        for orderly in [false, true] {
            let name = format!("{GROUP}-{orderly}");
            let stuck = Message::new("orders", "stuck").queue(queues[0].clone());
            let good = (0..400).map(|n| {
                Message::new("orders", "good").queue(queues[1 + n % (queues.len() - 1)].clone())
            });
            send(&client, std::iter::once(stuck).chain(good)).await;
            let (seen, gate) = (Seen::default(), Arc::new(tokio::sync::Semaphore::new(0)));
            let (listener, wait) = (seen.clone(), Arc::clone(&gate));
            let listener = move |record: Record| {
                listener.add(&record);
                let wait = Arc::clone(&wait);
                async move {
                    if record.body() == b"stuck" {
                        wait.acquire().await.map(|permit| permit.forget()).unwrap();
                    }
                    Ok::<(), String>(())
                }
            };
            let consumer = client.push_consumer(name).subscribe("orders", Filter::all());
            let consumer = consumer.from(ConsumeFrom::First).concurrency(4);
            let consumer = match orderly {
                false => consumer.listen(listener).await,
                true => consumer.listen_orderly(listener).await,
            };
            let consumer = consumer.unwrap();
            let round = 1 + usize::from(orderly);
            let is_good = |(record, _): &&(Record, Instant)| record.body() == b"good";
            eventually("the others", || seen.all().iter().filter(is_good).count() == 400 * round);
            let at = consumer.positions().into_iter().find(|(queue, _)| *queue == queues[0]);
            assert_eq!(at.map(|(_, at)| at), Some(0), "it holds its own queue's position");
            gate.add_permits(100);
            consumer.close(CLOSING).await.unwrap();
        }
    });
    site.end();
}

/// promise: at-least-once
#[test]
fn what_was_sent_back_survives_kill_nine() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let (seen, failed) = (Seen::default(), Seen::default());
    let first = failed.clone();
    let ids = site.run(async |client| {
        topic(&client, 4).await;
        group(&client, 16, &[1_500]).await;
        let ids = send(&client, (0..50).map(|n| Message::new("orders", n.to_string()))).await;
        let consumer = listen(&client, move |record| {
            first.add(&record);
            Err("not now".to_owned())
        });
        let consumer = consumer.await;
        eventually("all failed", || failed.count() >= 50);
        // Everything was sent back: nothing of it is in the first queues any more.
        let begun = Instant::now();
        loop {
            let lag = client.admin().lag(GROUP).await.unwrap();
            let own = lag.iter().filter(|queue| &*queue.queue.topic == "orders");
            if own.map(|queue| queue.messages).sum::<u64>() == 0 {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{lag:?}");
        }
        consumer.close(CLOSING).await.unwrap();
        ids
    });
    let site = site.kill_and_restart();
    let again = seen.clone();
    site.run(async |client| {
        let consumer = listen(&client, move |record| {
            again.add(&record);
            Ok(())
        });
        let consumer = consumer.await;
        let have =
            || seen.all().iter().map(|(record, _)| record.message_id()).collect::<BTreeSet<_>>();
        eventually("each comes again", || ids.iter().all(|id| have().contains(id)));
        until_consumed(&client).await;
        consumer.close(CLOSING).await.unwrap();
        assert!(seen.all().iter().all(|(record, _)| record.delivery_attempt() >= 2));
        assert!(seen.all().iter().all(|(record, _)| record.topic() == "orders"));
    });
    site.end();
}

#[test]
fn a_message_that_cannot_be_read_is_a_dead_letter_and_the_next_one_comes() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let id = [9; 16];
    let payload = [0xFFu8; 40];
    site.run(async |client| {
        group(&client, 3, &[10]).await;
        let mut wire = Wire::connect(site.broker().address(), 0).unwrap();
        let number = wire.create_topic("orders", 1).unwrap();
        let target = (number, 0, shard_of_queue(number, 0, wire.shards));
        let mut record = Vec::new();
        let spec = MessageSpec { body: &[7; 100], message_id: id, ..MessageSpec::default() };
        RecordBuilder::new().append(&mut record, number, 0, &spec).unwrap();
        let (header, rest) = RecordHeader::mut_from_prefix(&mut record).unwrap();
        let bytes = header.payload_bytes.get() as usize;
        rest[..payload.len()].copy_from_slice(&payload);
        header.payload_checksum = crc32fast::hash(&rest[..bytes]).into();
        let stored = rest[..bytes].to_vec();
        wire.produce(target, &record, 1, Flush::Sync).unwrap();
        let answer = wire.receive().unwrap();
        assert_eq!(answer.status, ringmq::Status::Ok);
        send(&client, [Message::new("orders", "next")]).await;
        let seen = Seen::default();
        let listener = seen.clone();
        let consumer = listen(&client, move |record| {
            listener.add(&record);
            Ok(())
        });
        let consumer = consumer.await;
        let dead = dead_letters(&client, 1).await;
        until_consumed(&client).await;
        consumer.close(CLOSING).await.unwrap();
        assert_eq!(seen.bodies(), [("next".to_owned(), 1)]);
        assert_eq!((dead[0].message_id().0, dead[0].body()), (id, &stored[..]));
        assert_eq!(dead[0].origin().map(|origin| origin.offset), Some(0));
        let why = dead[0].last_error().unwrap();
        assert!(why.starts_with("it cannot be read"), "{why}");
    });
    site.end();
}

#[test]
fn consumption_of_a_group_is_switched_off_and_on() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, 2).await;
        let admin = client.admin();
        admin.create_group(GroupSpec::new(GROUP).consume_enabled(false)).await.unwrap();
        assert!(!admin.describe_group(GROUP).await.unwrap().settings.consume_enabled);
        let seen = Seen::default();
        let listener = seen.clone();
        let consumer = listen(&client, move |record| {
            listener.add(&record);
            Ok(())
        });
        let consumer = consumer.await;
        eventually("it owns the queues", || consumer.queues().len() == 2);
        send(&client, (0..10).map(|n| Message::new("orders", n.to_string()))).await;
        let lag: u64 = admin.lag(GROUP).await.unwrap().iter().map(|queue| queue.messages).sum();
        assert_eq!((lag, seen.count()), (10, 0));
        admin.alter_group(GroupSpec::new(GROUP).consume_enabled(true)).await.unwrap();
        eventually("all come", || seen.count() == 10);
        consumer.close(CLOSING).await.unwrap();
    });
    site.end();
}

#[test]
fn a_groups_own_topics_are_the_brokers_and_go_with_it_but_for_the_dead_letters() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, 2).await;
        group(&client, 2, &[10]).await;
        send(&client, [Message::new("orders", "bad")]).await;
        let consumer = listen(&client, |_| Err("no".to_owned())).await;
        dead_letters(&client, 1).await;
        consumer.close(CLOSING).await.unwrap();
        let admin = client.admin();
        for name in [RETRY, DEAD] {
            let topics = admin.describe_topic(name).await.unwrap();
            assert_eq!(topics[0].permission, Permission::Read, "only the broker writes to it");
            assert_eq!(topics[0].read_queues, 2, "one for each shard");
            assert!(admin.create_topic(TopicSpec::new(name)).await.is_err());
        }
        admin.delete_group(GROUP).await.unwrap();
        assert!(admin.describe_topic(RETRY).await.is_err());
        assert_eq!(dead_letters(&client, 1).await[0].body(), b"bad");
    });
    site.end();
}
