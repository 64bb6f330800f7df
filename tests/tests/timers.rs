//! semantics: "delay": 18 levels, any time up to 40 days, precise, never early, can be taken back before delivery;
//! over kill -9 and restarts.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq::{
    Client, ConsumeFrom, ErrorKind, Filter, Message, MessageType, Producer, PullConsumer,
    RecallHandle, Record, SendReceipt, TopicSpec,
};
use ringmq_tests::durability::restart;
use ringmq_tests::server::{BrokerOptions, Process, eventually, namesrv};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// A machine with other things to do may be late; never early.
const LATE: Duration = Duration::from_secs(20);

struct Cluster {
    names: Process,
    options: BrokerOptions,
    broker: Process,
}

impl Cluster {
    fn start(folder: &Path) -> Cluster {
        let names = namesrv("names");
        let mut options = BrokerOptions::new("broker-a", folder);
        options.namesrv = vec![names.address()];
        let options = options.with("--segment-bytes=1 MiB", "--unit-bytes=256 KiB");
        let broker = options.start();
        // The clients find it again where it was.
        let options = BrokerOptions { port: broker.address().port(), ..options };
        Cluster { names, options, broker }
    }

    async fn client(&self) -> Client {
        let client = Client::connect(&self.names.address().to_string()).await.unwrap();
        let spec = || TopicSpec::new("orders").queues(4).message_type(MessageType::Unspecified);
        let begun = Instant::now();
        while let Err(error) = client.admin().create_topic(spec()).await {
            assert!(begun.elapsed() < Duration::from_secs(30), "{error}");
            tokio::task::yield_now().await;
        }
        client
    }

    /// Ends it, by SIGTERM or by kill -9, and starts it again.
    fn again(self, clean: bool) -> Cluster {
        let Cluster { names, options, broker } = self;
        match clean {
            true => assert_eq!(broker.terminate(), Some(0)),
            false => broker.kill(),
        }
        let broker = restart(&options);
        Cluster { names, options, broker }
    }
}

async fn consumer(client: &Client) -> PullConsumer {
    let mut builder = client.pull_consumer("audit").from(ConsumeFrom::First);
    for stat in client.admin().topic_stats("orders").await.unwrap() {
        builder = builder.assign(stat.queue, Filter::all());
    }
    builder.build().await.unwrap()
}

async fn send(producer: &Producer, body: &str, delay: Duration) -> SendReceipt {
    let message = Message::new("orders", body.to_owned()).deliver_after(delay);
    let receipt = producer.send(message).await.unwrap();
    assert_eq!(receipt.offset(), None);
    receipt
}

/// What arrives until there are as many, with what the clock said then.
async fn take(client: &Client, count: usize) -> BTreeMap<String, Record> {
    let mut consumer = consumer(client).await;
    let (mut found, begun) = (BTreeMap::new(), Instant::now());
    while found.len() < count {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?} came", found.keys());
        for record in consumer.poll(Duration::from_millis(100)).await.unwrap() {
            check_time(&record);
            let body = String::from_utf8(record.body().to_vec()).unwrap();
            assert!(found.insert(body, record).is_none(), "one came twice");
        }
    }
    consumer.close(Duration::from_secs(5)).await.unwrap();
    found
}

/// promise: never-early
fn check_time(record: &Record) {
    let Some(due) = record.deliver_at() else { return };
    assert!(record.stored_at() >= due, "{record:?} was stored before its time");
    assert!(SystemTime::now() >= due, "{record:?} came before its time");
    assert!(record.stored_at().duration_since(due).unwrap() < LATE, "{record:?} was late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_message_arrives_not_before_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path());
    let client = cluster.client().await;
    let producer = client.producer("shop").build().await.unwrap();
    for n in 0..40_u64 {
        let _ = send(&producer, &format!("delayed {n}"), Duration::from_millis(100 + n * 50)).await;
    }
    let plain = producer.send(Message::new("orders", "plain")).await.unwrap();
    assert!(plain.offset().is_some() && plain.recall_handle().is_none());
    let due = Message::new("orders", "due").deliver_at(SystemTime::now());
    assert!(producer.send(due).await.unwrap().offset().is_some(), "it was due already");
    let level = Message::new("orders", "level 1").delay_level(1);
    assert!(producer.send(level).await.unwrap().offset().is_none());
    // Enqueued together, they leave apart.
    let mixed = [0, 300].map(|ms| {
        let message = Message::new("orders", format!("mixed {ms}"));
        if ms == 0 { message } else { message.deliver_after(Duration::from_millis(ms)) }
    });
    let mut deliveries = Vec::new();
    for message in mixed.clone() {
        deliveries.push(producer.enqueue(message).await.unwrap());
    }
    for delivery in deliveries {
        let _receipt = delivery.await.unwrap();
    }
    let error = producer.send_batch(mixed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);

    let found = take(&client, 45).await;
    assert!(found["plain"].deliver_at().is_none());
    for n in 0..40 {
        assert!(found.contains_key(&format!("delayed {n}")));
    }
    // Figures are published each second.
    eventually("42 were delivered, and counted", || {
        cluster.broker.metric("ringmq_timers_fired_total") == 42.0
    });
    assert_eq!(cluster.broker.metric("ringmq_timer_lateness_seconds_count"), 42.0);
    client.shutdown(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_delayed_for_at_most_40_days() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path());
    let client = cluster.client().await;
    let producer = client.producer("shop").build().await.unwrap();
    let days = |days: u64| Duration::from_secs(days * 86_400);
    let far = Message::new("orders", "far").deliver_after(days(41));
    let error = producer.send(far).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("40 days"), "{error}");
    let beyond = Message::new("orders", "beyond").deliver_after(Duration::MAX);
    assert_eq!(producer.send(beyond).await.unwrap_err().kind(), ErrorKind::Invalid);
    let receipt = send(&producer, "near", days(39)).await;
    let pending = client.admin().pending_messages(Some("orders"), 10).await.unwrap();
    assert_eq!((pending.messages.len(), pending.total), (1, 1));
    assert_eq!(Some(&pending.messages[0].handle), receipt.recall_handle().as_ref());
    client.shutdown(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_message_can_be_taken_back_before_its_delivery() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(folder.path());
    let mut handles = Vec::new();
    {
        let client = cluster.client().await;
        let producer = client.producer("shop").build().await.unwrap();
        // Together in batches, and so at several places of a batch.
        let messages = (0..20_u64)
            .map(|n| Message::new("orders", n.to_string()).deliver_after(Duration::from_secs(4)));
        for receipt in producer.send_batch(messages).await.unwrap() {
            handles.push(receipt.recall_handle().unwrap());
        }
        for handle in handles.iter().step_by(4) {
            producer.recall(handle).await.unwrap();
            let again = producer.recall(handle).await.unwrap_err();
            assert_eq!(again.kind(), ErrorKind::NotFound);
        }
        client.shutdown(Duration::from_secs(5)).await.unwrap();
    }
    cluster = cluster.again(false);
    let client = cluster.client().await;
    let admin = client.admin();
    // By its text, and after the broker was killed.
    for handle in handles.iter().skip(1).step_by(4) {
        let text = handle.to_string();
        admin.recall(&text.parse::<RecallHandle>().unwrap()).await.unwrap();
    }
    let found = take(&client, 10).await;
    for (n, handle) in handles.iter().enumerate() {
        assert_eq!(found.contains_key(&n.to_string()), n % 4 > 1, "{n}");
        let late = admin.recall(handle).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::NotFound);
    }
    // Nothing more comes: what was taken back is gone.
    assert_eq!(admin.pending_messages(None, 10).await.unwrap().total, 0);
    client.shutdown(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delayed_messages_survive_kill_nine_and_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(folder.path());
    let mut sent = 0_u64;
    for round in 0..4_u64 {
        let client = cluster.client().await;
        let producer = client.producer("shop").build().await.unwrap();
        let mut deliveries = Vec::new();
        // Over several segments; some are due while nobody is there to deliver them.
        for n in 0..200 {
            let delay = Duration::from_millis((8_u64.saturating_sub(round * 2)) * 1000 + n * 10);
            let body = format!("{sent:08}{}", ".".repeat(3_000));
            let message = Message::new("orders", body).deliver_after(delay);
            deliveries.push(producer.enqueue(message).await.unwrap());
            sent += 1;
        }
        for delivery in deliveries {
            let _receipt = delivery.await.unwrap();
        }
        client.shutdown(Duration::from_secs(5)).await.unwrap();
        cluster = cluster.again(round % 2 == 1);
    }
    let client = cluster.client().await;
    let found = take(&client, sent as usize).await;
    assert_eq!(found.len(), sent as usize);
    assert_eq!(client.admin().pending_messages(None, 10).await.unwrap().total, 0);
    client.shutdown(Duration::from_secs(5)).await.unwrap();
}
