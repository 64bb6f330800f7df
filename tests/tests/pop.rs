//! semantics.md, "Consuming", row "pop": message-level receive, through the public client and real processes.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq::{
    Client, ConsumeFrom, ErrorKind, Filter, GroupSpec, Message, MessageType, Received,
    SimpleConsumer, TopicSpec,
};
use ringmq_tests::server::PATIENCE;
use ringmq_tests::site::{Site, read_topic, send_all};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// The shortest invisible time.
const SHORT: Duration = Duration::from_secs(10);
/// No wait at all.
const NOW: Duration = Duration::ZERO;
const CLOSING: Duration = Duration::from_secs(5);

async fn consumer(client: &Client, group: &str) -> SimpleConsumer {
    let builder = client.simple_consumer(group).subscribe("orders", Filter::all());
    builder.from(ConsumeFrom::First).invisible_for(SHORT).build().await.unwrap()
}

/// Messages with these numbers as their bodies.
async fn send(client: &Client, numbers: std::ops::Range<u32>) {
    let producer = client.producer("sender").build().await.unwrap();
    let message = |n: u32| Message::new("orders", n.to_string());
    assert_eq!(send_all(&producer, numbers.clone().map(message)).await.len(), numbers.len());
}

async fn topic(client: &Client, queues: u32) {
    client.admin().create_topic(TopicSpec::new("orders").queues(queues)).await.unwrap();
}

fn number(message: &Received) -> u32 {
    std::str::from_utf8(message.body()).unwrap().parse().unwrap()
}

/// Receives until there is something.
async fn receive(consumer: &SimpleConsumer, max: usize) -> Vec<Received> {
    let received = consumer.receive(max, PATIENCE).await.unwrap();
    assert!(!received.is_empty(), "nothing came in {PATIENCE:?}");
    received
}

#[test]
fn several_members_share_one_queue_and_each_message_goes_to_one_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, 1).await;
        send(&client, 0..1000).await;
        let mut members = Vec::new();
        for _ in 0..4 {
            members.push(consumer(&client, "billing").await);
        }
        let working = members.iter().map(|member| async move {
            let mut seen = Vec::new();
            loop {
                let received = member.receive(32, NOW).await.unwrap();
                if received.is_empty() {
                    return seen;
                }
                seen.extend(received.iter().map(number));
                for done in member.ack_batch(received).await {
                    done.unwrap();
                }
            }
        });
        let seen = futures_util::future::join_all(working).await;
        assert!(seen.iter().filter(|of| !of.is_empty()).count() > 1, "one did all the work");
        let mut all: Vec<u32> = seen.into_iter().flatten().collect();
        all.sort_unstable();
        assert_eq!(all, (0..1000).collect::<Vec<u32>>(), "each once");
        let lag = client.admin().lag("billing").await.unwrap();
        assert!(lag.iter().all(|queue| queue.messages == 0), "{lag:?}");
        // It takes no topic of its own.
        assert_eq!(client.admin().topics("").await.unwrap().len(), 1);
    });
    site.end();
}

#[test]
fn what_is_not_acknowledged_comes_back_with_its_attempt_plus_one_and_an_old_handle_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, 1).await;
        send(&client, 0..3).await;
        let (one, other) = (consumer(&client, "billing").await, consumer(&client, "billing").await);
        let begun = Instant::now();
        let mut held = receive(&one, 3).await;
        assert!(held.iter().all(|message| message.delivery_attempt() == 1));
        assert!(other.receive(3, NOW).await.unwrap().is_empty(), "they are in our hands");
        held.remove(1).ack().await.unwrap();
        let again = loop {
            let again = receive(&other, 3).await;
            if again.len() == 2 {
                break again;
            }
        };
        assert!(begun.elapsed() >= SHORT, "it came back after {:?}", begun.elapsed());
        assert_eq!(again.iter().map(number).collect::<Vec<_>>(), [0, 2]);
        assert!(again.iter().all(|message| message.delivery_attempt() == 2));
        for old in held {
            let error = old.ack().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadReceipt, "{error}");
            assert!(!error.is_retryable());
        }
        assert!(other.ack_batch(again).await.iter().all(Result::is_ok));
    });
    site.end();
}

#[test]
fn an_invisible_time_can_be_extended_and_a_message_be_wanted_again_soon() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, 1).await;
        send(&client, 0..2).await;
        let consumer = consumer(&client, "billing").await;
        let mut held = receive(&consumer, 2).await;
        let begun = Instant::now();
        let (mut kept, wanted) = (held.remove(0), held.remove(0));
        kept.extend(Duration::from_secs(60)).await.unwrap();
        assert!(kept.time_left() > SHORT);
        wanted.retry_after(Duration::from_millis(300)).await.unwrap();
        let again = receive(&consumer, 2).await.remove(0);
        assert!(begun.elapsed() >= Duration::from_millis(300) && begun.elapsed() < SHORT);
        assert_eq!((number(&again), again.delivery_attempt()), (1, 2));
        again.ack().await.unwrap();
        assert!(consumer.receive(2, SHORT + SHORT / 10).await.unwrap().is_empty());
        kept.ack().await.unwrap();
        let error = consumer_time(&client, Duration::from_secs(9)).await;
        assert_eq!(error, Some(ErrorKind::Invalid), "shorter than may be");
        assert_eq!(consumer_time(&client, Duration::from_secs(12 * 3600)).await, None);
    });
    site.end();
}

async fn consumer_time(client: &Client, time: Duration) -> Option<ErrorKind> {
    let builder = client.simple_consumer("times").subscribe("orders", Filter::all());
    builder.invisible_for(time).build().await.err().map(|error| error.kind())
}

#[test]
fn who_has_what_survives_kill_nine() {
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, 4).await;
        send(&client, 0..200).await;
    });
    let (mut done, mut attempts) = (BTreeSet::new(), BTreeMap::new());
    for round in 0..4u32 {
        let (old, until) = site.run(async |client| {
            let consumer = consumer(&client, "billing").await;
            let mut held = Vec::new();
            while held.len() < 40 {
                held.extend(receive(&consumer, 32).await);
            }
            for message in &held {
                let attempt = message.delivery_attempt();
                let before = attempts.insert(number(message), attempt).unwrap_or(0);
                assert_eq!(attempt, before + 1, "round {round}: {}", number(message));
                assert!(!done.contains(&number(message)), "round {round}: it was acknowledged");
            }
            let rest = held.split_off(20);
            let left = rest.iter().map(|message| message.time_left()).min().unwrap_or_default();
            done.extend(held.iter().map(number));
            assert!(consumer.ack_batch(held).await.iter().all(Result::is_ok));
            (rest.iter().map(number).collect::<Vec<u32>>(), Instant::now() + left)
        });
        site = site.kill_and_restart();
        site.run(async |client| {
            let consumer = consumer(&client, "billing").await;
            // What was received and not acknowledged is still in those hands.
            let begun = Instant::now();
            let mut other = Vec::new();
            while begun.elapsed() < Duration::from_secs(1) {
                let Some(message) = consumer.receive(1, NOW).await.unwrap().pop() else { break };
                // Looked at afterwards: the machine may be slow.
                let is_held = old.contains(&number(&message)) && Instant::now() < until;
                assert!(!is_held, "round {round}: it is in two hands");
                attempts.insert(number(&message), message.delivery_attempt());
                other.push(message);
                if other.len() == 5 {
                    break;
                }
            }
            done.extend(other.iter().map(number));
            assert!(consumer.ack_batch(other).await.iter().all(Result::is_ok));
        });
    }
    site.run(async |client| {
        let consumer = consumer(&client, "billing").await;
        while done.len() < 200 {
            let received = receive(&consumer, 32).await;
            let fresh = received.iter().filter(|message| done.insert(number(message))).count();
            assert_eq!(fresh, received.len(), "one that was acknowledged came back");
            assert!(consumer.ack_batch(received).await.iter().all(Result::is_ok));
        }
    });
    site.end();
}

/// promise: fifo
#[test]
fn a_fifo_topic_hands_out_the_next_message_of_a_group_only_after_the_acknowledgement() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        let spec = TopicSpec::new("orders").queues(2).message_type(MessageType::Fifo);
        client.admin().create_topic(spec).await.unwrap();
        let producer = client.producer("sender").build().await.unwrap();
        let message = |n: u32| Message::new("orders", n.to_string()).group(format!("{}", n % 7));
        send_all(&producer, (0..210).map(message)).await;
        let members = [consumer(&client, "billing").await, consumer(&client, "billing").await];
        let mut order: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        let mut turn = 0;
        while order.values().map(Vec::len).sum::<usize>() < 210 {
            turn += 1;
            let received = receive(&members[turn % 2], 32).await;
            let groups: BTreeSet<u32> = received.iter().map(|m| number(m) % 7).collect();
            assert_eq!(groups.len(), received.len(), "two of one message group at a time");
            for message in received {
                if turn % 5 == 0 {
                    message.retry_after(NOW).await.unwrap();
                } else {
                    order.entry(number(&message) % 7).or_default().push(number(&message));
                    message.ack().await.unwrap();
                }
            }
        }
        for (group, seen) in order {
            assert_eq!(seen, (0..210).filter(|n| n % 7 == group).collect::<Vec<u32>>());
        }
    });
    site.end();
}

#[test]
fn a_stream_gets_what_is_sent_while_it_waits_and_only_what_its_filter_wants() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, 4).await;
        send(&client, 0..10).await;
        // Nothing from before it was built.
        let consumer = client
            .simple_consumer("billing")
            .subscribe("orders", Filter::tags("paid"))
            .build()
            .await
            .unwrap();
        let mut messages = consumer.messages();
        let producer = client.producer("sender").build().await.unwrap();
        let sending = async {
            let message = |n: u32| {
                let tag = if n.is_multiple_of(2) { "paid" } else { "refunded" };
                Message::new("orders", n.to_string()).tag(tag)
            };
            send_all(&producer, (100..300).map(message)).await;
        };
        let receiving = async {
            let mut seen = BTreeSet::new();
            while seen.len() < 100 {
                let message = messages.try_next().await.unwrap().unwrap();
                assert!(seen.insert(number(&message)));
                message.ack().await.unwrap();
            }
            seen
        };
        let ((), seen) = futures_util::future::join(sending, receiving).await;
        assert_eq!(seen, (100..300).filter(|n| n % 2 == 0).collect());
        consumer.close(CLOSING).await.unwrap();
        assert!(messages.try_next().await.unwrap().is_none(), "it ends with its consumer");
    });
    site.end();
}

#[test]
fn a_message_whose_attempts_are_used_up_goes_to_the_dead_letters() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, 1).await;
        client.admin().create_group(GroupSpec::new("billing").max_attempts(2)).await.unwrap();
        send(&client, 0..2).await;
        let consumer = consumer(&client, "billing").await;
        for attempt in 1..=2 {
            let message = receive(&consumer, 1).await.remove(0);
            assert_eq!((number(&message), message.delivery_attempt()), (0, attempt));
            message.retry_after(NOW).await.unwrap();
        }
        let next = receive(&consumer, 1).await.remove(0);
        assert_eq!(number(&next), 1, "it is in nobody's way");
        next.ack().await.unwrap();
        let begun = Instant::now();
        let letters = loop {
            let wait = Duration::from_millis(100);
            assert!(consumer.receive(1, wait).await.unwrap().is_empty(), "it is dead");
            let stats = client.admin().topic_stats("%DLQ%billing").await.unwrap_or_default();
            if stats.iter().any(|queue| queue.max_offset > 0) {
                break read_topic(&client, "%DLQ%billing").await;
            }
            assert!(begun.elapsed() < PATIENCE, "it is not in the dead letters: {stats:?}");
        };
        let letters: Vec<_> = letters.into_values().flatten().collect();
        assert_eq!(letters.len(), 1);
        let origin = letters[0].origin().unwrap();
        assert_eq!((&*origin.queue.topic, origin.queue.id, origin.offset), ("orders", 0, 0));
        assert_eq!(letters[0].body(), b"0");
        assert!(letters[0].last_error().unwrap().contains("2 times"));
        let lag = client.admin().lag("billing").await.unwrap();
        assert!(lag.iter().all(|queue| queue.messages == 0), "{lag:?}");
    });
    site.end();
}
