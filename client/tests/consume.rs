//! Consuming from servers in memory: assignment, commits, redelivery, fences, filters, positions.

#![allow(clippy::unwrap_used, unused_must_use)]

mod fake;

use fake::{Fake, eventually};
use ringmq::Status;
use ringmq::{Client, ConsumeFrom, Filter, Message, Queue, Record, SeekTo};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(5);

/// What a listener got: queue, offset, attempt.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(Queue, u64, u32)>>>);

impl Seen {
    fn add(&self, record: &Record) {
        let seen = (record.queue().clone(), record.offset(), record.delivery_attempt());
        self.0.lock().unwrap().push(seen);
    }

    fn all(&self) -> Vec<(Queue, u64, u32)> {
        self.0.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

async fn send(client: &Client, topic: &str, count: usize) {
    let producer = client.producer("p").build().await.unwrap();
    let mut deliveries = Vec::new();
    for n in 0..count {
        deliveries.push(producer.enqueue(Message::new(topic, n.to_string())).await.unwrap());
    }
    for delivery in deliveries {
        delivery.await.unwrap();
    }
}

#[tokio::test]
async fn a_group_gets_every_message_once_in_order_per_queue() {
    let fake = Fake::start(&["a", "b"]).await;
    fake.topic("t", 4);
    let client = fake.client().await;
    send(&client, "t", 5000).await;
    let seen = Seen::default();
    let listener = seen.clone();
    let consumer = client
        .push_consumer("g")
        .subscribe("t", Filter::all())
        .from(ConsumeFrom::First)
        .listen_orderly(move |record| {
            listener.add(&record);
            async { Ok::<(), String>(()) }
        })
        .await
        .unwrap();
    eventually("5000 messages", || seen.count() == 5000).await;
    send(&client, "t", 500).await;
    eventually("500 more", || seen.count() == 5500).await;
    let mut next: HashMap<Queue, u64> = HashMap::new();
    for (queue, offset, attempt) in seen.all() {
        let at = next.entry(queue).or_default();
        assert_eq!((offset, attempt), (*at, 1));
        *at += 1;
    }
    assert_eq!(consumer.queues().len(), 8);
    consumer.close(SOON).await.unwrap();
    for broker in 0..2 {
        fake.with(broker, |broker| {
            assert_eq!(broker.leaves, 1);
            let group = &broker.groups["g"];
            let committed: u64 = group.committed.values().sum();
            let stored: usize = broker.queues.values().map(Vec::len).sum();
            assert_eq!(committed, stored as u64);
            assert!(group.members.is_empty());
        });
    }
}

#[tokio::test]
async fn offsets_are_resumed_and_a_new_group_starts_at_the_tail() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 1);
    let client = fake.client().await;
    send(&client, "t", 10).await;
    for round in 0..2u64 {
        let seen = Seen::default();
        let listener = seen.clone();
        let consumer = client
            .push_consumer("g")
            .subscribe("t", Filter::all())
            .listen(move |record| {
                listener.add(&record);
                async { Ok::<(), String>(()) }
            })
            .await
            .unwrap();
        eventually("a queue", || consumer.queues().len() == 1).await;
        // The start is committed before anything was consumed.
        assert_eq!(fake.with(0, |b| b.groups["g"].committed.clone())[&(1, 0)], 10 + round * 3);
        send(&client, "t", 3).await;
        eventually("3 messages", || seen.count() == 3).await;
        let offsets: Vec<u64> = seen.all().iter().map(|(_, offset, _)| *offset).collect();
        assert_eq!(offsets.iter().min(), Some(&(10 + round * 3)));
        consumer.close(SOON).await.unwrap();
    }
}

#[tokio::test]
async fn a_failed_message_goes_to_the_retry_topic_and_is_committed_past_only_then() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 1);
    fake.with(0, |b| b.refuse_retries.extend([Status::NotReady; 3]));
    let client = fake.client().await;
    send(&client, "t", 10).await;
    let (seen, cured) = (Seen::default(), Arc::new(AtomicBool::new(false)));
    let (listener, cure) = (seen.clone(), Arc::clone(&cured));
    let consumer = client
        .push_consumer("g")
        .subscribe("t", Filter::all())
        .from(ConsumeFrom::First)
        .commit_interval(Duration::from_millis(5))
        .listen(move |record| {
            listener.add(&record);
            let failed = record.offset() == 3 && !cure.load(Ordering::SeqCst);
            async move { if failed { Err("not yet") } else { Ok(()) } }
        })
        .await
        .unwrap();
    let committed = || fake.with(0, |b| b.groups["g"].committed.get(&(1, 0)).copied());
    // The brokers' retry topic is not there yet: nothing can be sent back.
    eventually("all others", || seen.count() == 10).await;
    eventually("a commit up to it", || committed() == Some(3)).await;
    assert_eq!(consumer.positions()[0].1, 3);
    cured.store(true, Ordering::SeqCst);
    fake.topic("%RETRY%g", 1);
    eventually("a commit past it", || committed() == Some(10)).await;
    eventually("it comes again", || seen.count() == 11).await;
    let all = seen.all();
    let (queue, offset, attempt) = &all[10];
    assert_eq!((&*queue.topic, *offset, *attempt), ("%RETRY%g", 0, 2));
    assert_eq!(all.iter().filter(|s| s.1 == 3).count(), 1, "the others came once");
    client.shutdown(SOON).await.unwrap();
}

#[tokio::test]
async fn orderly_listeners_wait_for_a_failed_message() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 1);
    let client = fake.client().await;
    send(&client, "t", 6).await;
    let seen = Seen::default();
    let listener = seen.clone();
    let consumer = client
        .push_consumer("g")
        .subscribe("t", Filter::all())
        .from(ConsumeFrom::First)
        .orderly_pause(Duration::from_millis(2))
        .listen_orderly(move |record| {
            listener.add(&record);
            assert!(record.offset() != 2 || record.delivery_attempt() > 1, "a panic is a failure");
            let failed = record.offset() == 4 && record.delivery_attempt() < 3;
            async move { if failed { Err("not yet") } else { Ok(()) } }
        })
        .await
        .unwrap();
    eventually("all", || seen.all().iter().any(|s| s.1 == 5)).await;
    let order: Vec<(u64, u32)> = seen.all().iter().map(|s| (s.1, s.2)).collect();
    assert_eq!(order, [(0, 1), (1, 1), (2, 1), (2, 2), (3, 1), (4, 1), (4, 2), (4, 3), (5, 1)]);
    consumer.close(SOON).await.unwrap();
}

#[tokio::test]
async fn queues_move_to_a_member_that_joins_and_back_when_it_leaves() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 4);
    let client = fake.client().await;
    let (first_seen, second_seen) = (Seen::default(), Seen::default());
    let start = |seen: Seen| {
        let consumer = client.push_consumer("g").subscribe("t", Filter::all());
        consumer.from(ConsumeFrom::First).listen(move |record| {
            seen.add(&record);
            async { Ok::<(), String>(()) }
        })
    };
    let first = start(first_seen.clone()).await.unwrap();
    eventually("all queues", || first.queues().len() == 4).await;
    send(&client, "t", 400).await;
    eventually("400", || first_seen.count() == 400).await;
    let second = start(second_seen.clone()).await.unwrap();
    eventually("half", || first.queues().len() == 2 && second.queues().len() == 2).await;
    send(&client, "t", 400).await;
    eventually("800", || first_seen.count() + second_seen.count() == 800).await;
    second.close(SOON).await.unwrap();
    eventually("all again", || first.queues().len() == 4).await;
    send(&client, "t", 400).await;
    eventually("1200", || first_seen.count() + second_seen.count() == 1200).await;
    let mut all: Vec<_> = first_seen.all();
    all.extend(second_seen.all());
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 1200, "nothing twice over clean moves");
    // Dropping stops, too.
    drop(first);
    eventually("left", || fake.with(0, |b| b.groups["g"].members.is_empty())).await;
}

#[tokio::test]
async fn a_fenced_queue_is_dropped_and_nothing_of_it_committed() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 1);
    let client = fake.client().await;
    send(&client, "t", 5).await;
    let (seen, gate) = (Seen::default(), Arc::new(tokio::sync::Semaphore::new(0)));
    let (listener, wait) = (seen.clone(), Arc::clone(&gate));
    let consumer = client
        .push_consumer("g")
        .subscribe("t", Filter::all())
        .from(ConsumeFrom::First)
        .commit_interval(Duration::from_millis(5))
        .listen_orderly(move |record| {
            listener.add(&record);
            let wait = Arc::clone(&wait);
            async move { wait.acquire().await.map(drop) }
        })
        .await
        .unwrap();
    eventually("the first message", || seen.count() == 1).await;
    // The queue goes to a stranger, who commits.
    fake.with(0, |broker| {
        let group = broker.groups.get_mut("g").unwrap();
        group.owners.insert((1, 0), ((9, 9), 77));
        group
            .members
            .insert((0, 0), fake::Joined { topics: vec!["t".into()], ..Default::default() });
        group.members.insert((9, 9), fake::Joined::default());
        group.committed.insert((1, 0), 2);
    });
    gate.add_permits(100);
    eventually("the queue dropped", || consumer.queues().is_empty()).await;
    assert_eq!(fake.with(0, |b| b.groups["g"].committed[&(1, 0)]), 2);
    consumer.close(SOON).await.unwrap();
    assert_eq!(fake.with(0, |b| b.groups["g"].committed[&(1, 0)]), 2);
}

#[tokio::test]
async fn tag_filters_are_exact() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 1);
    let client = fake.client().await;
    let producer = client.producer("p").build().await.unwrap();
    for tag in ["paid", "open", "refunded", "paid"] {
        producer.send(Message::new("t", tag).tag(tag)).await.map(drop).unwrap();
    }
    producer.send(Message::new("t", "none")).await.map(drop).unwrap();
    // "plumless" and "buckeroo" have the same CRC-32: the broker cannot tell them apart.
    for tag in ["plumless", "buckeroo"] {
        producer.send(Message::new("t", tag).tag(tag)).await.map(drop).unwrap();
    }
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&bodies);
    let consumer = client
        .push_consumer("g")
        .subscribe("t", Filter::tags("paid || plumless"))
        .from(ConsumeFrom::First)
        .concurrency(1)
        .listen(move |record| {
            assert_eq!(record.tag().map(str::as_bytes), Some(record.body()));
            listener.lock().unwrap().push(String::from_utf8(record.body().to_vec()).unwrap());
            async { Ok::<(), String>(()) }
        })
        .await
        .unwrap();
    eventually("past all", || consumer.positions().first().is_some_and(|p| p.1 == 7)).await;
    assert_eq!(*bodies.lock().unwrap(), ["paid", "paid", "plumless"]);
    consumer.close(SOON).await.unwrap();
}

#[tokio::test]
async fn concurrent_listeners_run_in_parallel_up_to_the_limit() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 1);
    let client = fake.client().await;
    send(&client, "t", 64).await;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let shared = (Arc::clone(&running), Arc::clone(&most), Arc::clone(&gate));
    let consumer = client
        .push_consumer("g")
        .subscribe("t", Filter::all())
        .from(ConsumeFrom::First)
        .concurrency(8)
        .listen(move |_| {
            let (running, most, gate) = shared.clone();
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let entered = gate.acquire().await.map(drop);
                running.fetch_sub(1, Ordering::SeqCst);
                entered
            }
        })
        .await
        .unwrap();
    eventually("eight at a time", || running.load(Ordering::SeqCst) == 8).await;
    gate.add_permits(1000);
    eventually("all", || consumer.positions()[0].1 == 64).await;
    assert_eq!(most.load(Ordering::SeqCst), 8);
    consumer.close(SOON).await.unwrap();
}

#[tokio::test]
async fn a_consumer_survives_broken_connections() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 2);
    let client = fake.client().await;
    let seen = Seen::default();
    let listener = seen.clone();
    let consumer = client
        .push_consumer("g")
        .subscribe("t", Filter::all())
        .from(ConsumeFrom::First)
        .listen(move |record| {
            listener.add(&record);
            async { Ok::<(), String>(()) }
        })
        .await
        .unwrap();
    for round in 1..=3 {
        send(&client, "t", 100).await;
        eventually("a round", || seen.count() == 100 * round).await;
        fake.cut_connections();
    }
    consumer.close(SOON).await.unwrap();
}

#[tokio::test]
async fn polls_seek_commit_and_pause() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 1);
    let client = fake.client().await;
    send(&client, "t", 20).await;
    let queue = Queue::new("t", "a", 0);
    let builder = client.pull_consumer("audit").from(ConsumeFrom::First).max_records(8);
    let mut pull = builder.clone().assign(queue.clone(), Filter::all()).build().await.unwrap();
    let first = pull.poll(SOON).await.unwrap();
    assert_eq!(first.iter().map(Record::offset).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
    assert_eq!(pull.positions(), [(queue.clone(), 8)]);
    pull.commit().await.unwrap();
    pull.seek(&queue, SeekTo::Offset(15)).await.unwrap();
    assert_eq!(pull.poll(SOON).await.unwrap()[0].offset(), 15);
    pull.seek(&queue, SeekTo::First).await.unwrap();
    assert_eq!(pull.poll(SOON).await.unwrap()[0].offset(), 0);
    pull.seek(&queue, SeekTo::Last).await.unwrap();
    assert!(pull.poll(Duration::from_millis(20)).await.unwrap().is_empty());
    pull.pause(&queue);
    send(&client, "t", 1).await;
    assert!(pull.poll(Duration::from_millis(20)).await.unwrap().is_empty());
    pull.resume(&queue);
    assert_eq!(pull.poll(SOON).await.unwrap()[0].offset(), 20);
    let nowhere = Queue::new("t", "a", 7);
    assert!(pull.seek(&nowhere, SeekTo::First).await.is_err());
    pull.close(SOON).await.unwrap();
    // The commit is where the next one begins; closing committed nothing.
    let mut again = builder.subscribe("t", Filter::all()).build().await.unwrap();
    assert_eq!(again.poll(SOON).await.unwrap()[0].offset(), 8);
}

#[tokio::test]
async fn a_poll_that_is_dropped_loses_nothing() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 1);
    let client = fake.client().await;
    let pull = client.pull_consumer("audit").from(ConsumeFrom::First);
    let mut pull = pull.subscribe("t", Filter::all()).build().await.unwrap();
    let mut offsets = Vec::new();
    for n in 0..50 {
        send(&client, "t", 4).await;
        while offsets.len() < (n + 1) * 2 {
            let limit = Duration::from_micros(50 * (n as u64 % 7));
            let polled = tokio::time::timeout(limit, pull.poll(SOON)).await;
            offsets.extend(polled.into_iter().flatten().flatten().map(|r| r.offset()));
        }
    }
    while offsets.len() < 200 {
        offsets.extend(pull.poll(SOON).await.unwrap().iter().map(Record::offset));
    }
    assert_eq!(offsets, (0..200).collect::<Vec<_>>());
}
