//! Producing against servers in memory: pipelining, batches, windows, retries, order.

#![allow(clippy::unwrap_used, unused_must_use)]

mod fake;

use fake::{Fake, eventually};
use ringmq::{Error, ErrorKind, Message, Producer, Queue, SendStatus, Status};
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

async fn producer(fake: &Fake) -> Producer {
    fake.client().await.producer("p").build().await.unwrap()
}

#[tokio::test]
async fn messages_arrive_and_receipts_say_where() {
    let fake = Fake::start(&["a", "b"]).await;
    fake.topic("t", 2);
    let producer = producer(&fake).await;
    let mut offsets: HashMap<Queue, u64> = HashMap::new();
    for n in 0..20 {
        let receipt = producer.send(Message::new("t", format!("{n}")).key("k")).await.unwrap();
        let next = offsets.entry((*receipt.queue).clone()).or_default();
        assert_eq!(receipt.offset, *next);
        assert_eq!(receipt.status, SendStatus::SendOk);
        *next += 1;
    }
    assert_eq!(offsets.len(), 4, "batches go round all queues");
    assert!(offsets.values().all(|count| *count == 5), "{offsets:?}");
}

#[tokio::test]
async fn what_waits_goes_together_and_in_order() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 1);
    let producer = producer(&fake).await;
    let mut deliveries = Vec::new();
    for n in 0..10_000u32 {
        let message = Message::new("t", n.to_le_bytes().to_vec());
        deliveries.push(producer.enqueue(message).await.unwrap());
    }
    let mut ids = Vec::new();
    for (n, delivery) in deliveries.into_iter().enumerate() {
        let receipt = delivery.await.unwrap();
        assert_eq!(receipt.offset, n as u64);
        ids.push(receipt.message_id);
    }
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "ids sort as they were made");
    let frames = fake.with(0, |broker| broker.produced.len());
    assert!(frames < 1000, "{frames} requests for 10 000 messages");
    assert_eq!(producer.in_flight(), (0, 0));
}

#[tokio::test]
async fn a_full_window_waits_or_fails_fast() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 1);
    let client = fake.client().await;
    let waiting = client.producer("w").max_in_flight(2).build().await.unwrap();
    let failing = client.producer("f").max_in_flight(2).fail_fast(true).build().await.unwrap();
    fake.with(0, |broker| broker.hold = true);
    for producer in [&waiting, &failing] {
        for _ in 0..2 {
            drop(producer.enqueue(Message::new("t", "x")).await.unwrap());
        }
    }
    let refused = failing.send(Message::new("t", "x")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WindowFull);
    assert!(refused.is_retryable());
    let mut third = std::pin::pin!(waiting.enqueue(Message::new("t", "x")));
    let polled = poll_fn(|context| Poll::Ready(third.as_mut().poll(context).is_pending())).await;
    assert!(polled, "there is no room yet");
    assert_eq!(waiting.in_flight().0, 2);
    fake.with(0, |broker| broker.hold = false);
    third.await.unwrap().await.unwrap();
    waiting.flush().await;
    assert_eq!(waiting.in_flight(), (0, 0));
}

#[tokio::test]
async fn retryable_refusals_go_to_another_broker() {
    let fake = Fake::start(&["a", "b"]).await;
    fake.topic("t", 1);
    let producer = producer(&fake).await;
    fake.with(0, |broker| broker.refuse.extend([Status::DiskFull; 8]));
    for _ in 0..4 {
        let receipt = producer.send(Message::new("t", "x")).await.unwrap();
        assert_eq!(receipt.broker(), "b");
    }
    let tried = fake.with(0, |broker| broker.produced.len());
    assert_eq!(tried, 1, "the broker that failed is left alone for a while");
}

#[tokio::test]
async fn refusals_for_good_are_told_at_once() {
    let fake = Fake::start(&["a", "b"]).await;
    fake.topic("t", 1);
    let producer = producer(&fake).await;
    for broker in 0..2 {
        fake.with(broker, |broker| broker.refuse.push_back(Status::WrongMessageType));
    }
    let error = producer.send(Message::new("t", "x")).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.status()),
        (ErrorKind::Invalid, Some(Status::WrongMessageType))
    );
    assert!(error.to_string().contains("as the test wants"), "{error}");
    let error = producer.send(Message::new("nowhere", "x")).await.unwrap_err();
    assert_eq!((error.kind(), error.target()), (ErrorKind::NotFound, "nowhere"));
    let error = producer.send(Message::new("t", vec![0; (4 << 20) + 1])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(producer.in_flight(), (0, 0), "what was refused holds no room");
}

#[tokio::test]
async fn groups_keep_their_queue_and_order_over_retries() {
    let fake = Fake::start(&["a", "b"]).await;
    fake.topic("t", 4);
    let producer = producer(&fake).await;
    let mut deliveries = Vec::new();
    for n in 0..300u32 {
        for broker in 0..2 {
            fake.with(broker, |broker| {
                if n % 50 == 0 {
                    broker.refuse.push_back(Status::Busy);
                }
            });
        }
        let message = Message::new("t", n.to_string()).group("user-7");
        deliveries.push(producer.enqueue(message).await.unwrap());
    }
    let mut last = None;
    for delivery in deliveries {
        let receipt = delivery.await.unwrap();
        if let Some((queue, offset)) = last {
            assert_eq!((&queue, offset + 1), (&receipt.queue, receipt.offset));
        }
        last = Some((receipt.queue, receipt.offset));
    }
    assert_eq!(fake.stored("t"), 300);
}

#[tokio::test]
async fn a_broken_connection_is_survived() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 2);
    let producer = producer(&fake).await;
    for n in 0..20 {
        if n % 5 == 0 {
            fake.cut_connections();
        }
        let sent = producer.send(Message::new("t", "x")).await;
        assert!(sent.is_ok(), "{sent:?}");
    }
}

#[tokio::test]
async fn the_deadline_covers_a_broker_that_never_answers() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 1);
    let client = fake.client().await;
    let limit = Duration::from_millis(150);
    let producer = client.producer("p").timeout(limit).build().await.unwrap();
    fake.with(0, |broker| broker.hold = true);
    let error = producer.send(Message::new("t", "x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unknown, "it may be stored: {error}");
    assert_eq!(producer.in_flight(), (0, 0));
}

#[tokio::test]
async fn explicit_batches_stay_together() {
    let fake = Fake::start(&["a", "b"]).await;
    fake.topic("t", 2);
    let producer = producer(&fake).await;
    let messages = (0..100).map(|n| Message::new("t", n.to_string()));
    let receipts = producer.send_batch(messages).await.unwrap();
    assert_eq!(receipts.len(), 100);
    assert!(receipts.iter().all(|receipt| receipt.queue == receipts[0].queue));
    assert!(receipts.windows(2).all(|pair| pair[0].offset + 1 == pair[1].offset));
    let mixed = [Message::new("t", "x"), Message::new("u", "x")];
    assert_eq!(producer.send_batch(mixed).await.unwrap_err().kind(), ErrorKind::Invalid);
    let large = (0..5).map(|_| Message::new("t", vec![0; 1 << 20]));
    assert_eq!(producer.send_batch(large).await.unwrap_err().kind(), ErrorKind::Invalid);
    assert!(producer.send_batch([]).await.unwrap().is_empty());
}

#[tokio::test]
async fn one_way_messages_and_chosen_queues_arrive() {
    let fake = Fake::start(&["a", "b"]).await;
    fake.topic("t", 2);
    let producer = producer(&fake).await;
    for _ in 0..10 {
        producer.send_oneway(Message::new("t", "x")).unwrap();
    }
    eventually("one-way messages", || fake.stored("t") == 10).await;
    for queue in producer.queues("t").await.unwrap() {
        let receipt = producer.send(Message::new("t", "x").queue(queue.clone())).await.unwrap();
        assert_eq!(*receipt.queue, queue);
    }
    let nowhere = Message::new("t", "x").queue(Queue::new("t", "a", 9));
    assert_eq!(producer.send(nowhere).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn shutdown_drains_and_then_refuses() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 4);
    let client = fake.client().await;
    let linger = Duration::from_secs(60);
    let producer = client.producer("p").linger(linger).build().await.unwrap();
    let mut deliveries = Vec::new();
    for _ in 0..50 {
        deliveries.push(producer.enqueue(Message::new("t", "x")).await.unwrap());
    }
    client.shutdown(Duration::from_secs(5)).await.unwrap();
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    assert_eq!(fake.stored("t"), 50);
    let late: Error = producer.send(Message::new("t", "x")).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn known_routes_outlive_the_name_servers() {
    let fake = Fake::start(&["a"]).await;
    fake.topic("t", 1);
    let producer = producer(&fake).await;
    producer.send(Message::new("t", "x")).await.map(drop).unwrap();
    fake.stop_name_server();
    fake.cut_connections();
    producer.send(Message::new("t", "y")).await.map(drop).unwrap();
}

#[tokio::test]
async fn no_name_server_is_a_clear_error() {
    let error = ringmq::Client::connect("127.0.0.1:1").await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    let error = ringmq::Client::connect("nonsense").await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
