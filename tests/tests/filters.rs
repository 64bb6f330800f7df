//! semantics, Consuming: "tags" and "SQL92", through the public client against real processes, from memory and from
//! disk.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq::{
    Client, ConsumeFrom, ErrorKind, Filter, Message, PullConsumer, Queue, Record, TopicSpec,
};
use ringmq_schema::consume::{Fetch, FetchArgs, FetchQueue, TagFilter, TagFilterArgs};
use ringmq_schema::error::Status;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement::shard_of_queue;
use ringmq_tests::durability::restart;
use ringmq_tests::server::{BrokerOptions, PATIENCE, Process, binary, eventually, namesrv};
use ringmq_tests::wire::Wire;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MESSAGES: u64 = 6_000;
const REGIONS: [&str; 3] = ["eu", "us", "asia"];
/// `plumless` and `buckeroo` have the same CRC-32.
const TAGS: [&str; 4] = ["paid", "plumless", "buckeroo", "refunded"];
const CLOSE: Duration = Duration::from_secs(5);

type Wanted = fn(u64) -> bool;

fn tag(n: u64) -> Option<&'static str> {
    TAGS.get((n % 5) as usize).copied()
}

fn region(n: u64) -> &'static str {
    REGIONS[(n % 3) as usize]
}

/// Message `n`; each seventh has no amount.
fn message(n: u64) -> Message {
    let body = format!("{n:08}{}", ".".repeat(1_000));
    let message = Message::new("orders", body).property("region", region(n));
    let message = message.property("n", n.to_string());
    let message = match n % 7 {
        0 => message,
        _ => message.property("amount", format!("{}.50", n % 100)),
    };
    match tag(n) {
        Some(tag) => message.tag(tag),
        None => message,
    }
}

fn number(record: &Record) -> u64 {
    std::str::from_utf8(&record.body()[..8]).unwrap().parse().unwrap()
}

const BY_TAGS: [(&str, Wanted); 3] = [
    ("plumless", |n| tag(n) == Some("plumless")),
    ("paid || buckeroo", |n| matches!(tag(n), Some("paid" | "buckeroo"))),
    ("nobody", |_| false),
];

const BY_SQL: [(&str, Wanted); 8] = [
    ("region = 'eu' AND amount > 50", |n| n % 3 == 0 && n % 7 != 0 && n % 100 >= 50),
    ("amount NOT BETWEEN 10 AND 89.5", |n| n % 7 != 0 && (n % 100 < 10 || n % 100 >= 90)),
    ("amount IS NULL OR n = 1", |n| n % 7 == 0 || n == 1),
    ("TAGS = 'plumless'", |n| tag(n) == Some("plumless")),
    ("TAGS IN ('paid', 'buckeroo') AND NOT region STARTSWITH 'a'", |n| {
        matches!(tag(n), Some("paid" | "buckeroo")) && n % 3 != 2
    }),
    ("TAGS IS NULL AND region ENDSWITH 'u'", |n| tag(n).is_none() && n % 3 == 0),
    ("n CONTAINS '99'", |n| n.to_string().contains("99")),
    ("colour = 'red' AND colour <> 'red'", |_| false),
];

async fn fill(client: &Client) {
    client.admin().create_topic(TopicSpec::new("orders").queues(4)).await.unwrap();
    let producer = client.producer("filters").build().await.unwrap();
    for first in (0..MESSAGES).step_by(500) {
        let mut deliveries = Vec::new();
        for n in first..first + 500 {
            deliveries.push(producer.enqueue(message(n)).await.unwrap());
        }
        for delivery in deliveries {
            let _receipt = delivery.await.unwrap();
        }
    }
}

async fn reader(client: &Client, filter: &Filter) -> PullConsumer {
    let mut builder = client.pull_consumer("filters").from(ConsumeFrom::First);
    for stat in client.admin().topic_stats("orders").await.unwrap() {
        builder = builder.assign(stat.queue, filter.clone());
    }
    builder.build().await.unwrap()
}

/// What a filter selects is what it should, each once and in the order of its queue.
async fn check(client: &Client, filter: Filter, wanted: Wanted) {
    let expected: BTreeSet<u64> = (0..MESSAGES).filter(|n| wanted(*n)).collect();
    let mut consumer = reader(client, &filter).await;
    let (mut seen, mut last) = (BTreeSet::new(), BTreeMap::<Queue, u64>::new());
    let mut take = |records: Vec<Record>| {
        for record in records {
            let n = number(&record);
            assert!(expected.contains(&n), "{filter}: {n} is not wanted");
            assert!(seen.insert(n), "{filter}: {n} came twice");
            let before = last.insert(record.queue().clone(), record.offset());
            assert!(before.is_none_or(|before| before < record.offset()), "{filter}: fifo");
        }
        seen.len()
    };
    let begun = Instant::now();
    while take(consumer.poll(Duration::from_millis(50)).await.unwrap()) < expected.len() {
        assert!(begun.elapsed() < PATIENCE, "{filter}: not all came");
    }
    // Nothing more comes.
    take(consumer.poll(Duration::from_millis(50)).await.unwrap());
    consumer.close(CLOSE).await.unwrap();
    assert_eq!(seen, expected, "{filter}");
}

/// A broker that was filled and has everything in memory; then the same after a restart, with nothing in memory.
fn with_memory_and_disk(filters: &[(Filter, Wanted)], push: usize, after: impl Fn(&Process)) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let names = namesrv("filters-names");
    let address = names.address().to_string();
    let mut options = BrokerOptions::new("filters", folder.path());
    options.namesrv = vec![names.address()];
    let options = options.with("--segment-bytes", "1 MiB").with("--unit-bytes", "256 KiB");
    for from_disk in [false, true] {
        let broker = restart(&options);
        runtime.block_on(async {
            let client = Client::connect(&address).await.unwrap();
            let begun = Instant::now();
            while client.admin().brokers().await.unwrap().is_empty() {
                assert!(begun.elapsed() < PATIENCE, "the broker registers");
                tokio::task::yield_now().await;
            }
            if !from_disk {
                fill(&client).await;
            }
            for (filter, wanted) in filters {
                check(&client, filter.clone(), *wanted).await;
            }
            for (at, (filter, wanted)) in filters.iter().take(push).enumerate() {
                let group = format!("push-{from_disk}-{at}");
                check_push(&client, &group, filter.clone(), *wanted).await;
            }
            client.shutdown(CLOSE).await.unwrap();
        });
        // Figures are published once a second.
        after(&broker);
        if from_disk {
            eventually("it was read", || broker.metric("ringmq_read_bytes_total") > 0.0);
        } else {
            assert!(broker.metric("ringmq_read_bytes_total") == 0.0, "all was in memory");
        }
        assert_eq!(broker.terminate(), Some(0));
    }
}

/// The same by a group: everything that is wanted comes to its listener, and nothing else.
async fn check_push(client: &Client, group: &str, filter: Filter, wanted: Wanted) {
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let came = Arc::new(tokio::sync::Notify::new());
    let expected: BTreeSet<u64> = (0..MESSAGES).filter(|n| wanted(*n)).collect();
    let (sink, wake) = (Arc::clone(&seen), Arc::clone(&came));
    let builder = client.push_consumer(group).from(ConsumeFrom::First).subscribe("orders", filter);
    let consumer = builder
        .listen(move |record| {
            sink.lock().unwrap().insert(number(&record));
            wake.notify_one();
            async { Ok::<_, String>(()) }
        })
        .await
        .unwrap();
    while seen.lock().unwrap().len() < expected.len() {
        tokio::time::timeout(PATIENCE, came.notified()).await.expect("all come");
    }
    consumer.close(CLOSE).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), expected, "{group}");
}

/// semantics: tags
#[test]
fn tags_are_exact() {
    assert_eq!(
        ringmq_schema::record::tag_hash("plumless"),
        ringmq_schema::record::tag_hash("buckeroo"),
        "the broker cannot tell them apart"
    );
    let filters: Vec<(Filter, Wanted)> =
        BY_TAGS.into_iter().map(|(tags, wanted)| (Filter::tags(tags), wanted)).collect();
    with_memory_and_disk(&filters, 1, |_| {});
}

/// semantics: SQL92
#[test]
fn sql_selects_exactly() {
    let filters: Vec<(Filter, Wanted)> =
        BY_SQL.into_iter().map(|(sql, wanted)| (Filter::sql(sql), wanted)).collect();
    with_memory_and_disk(&filters, 2, |broker| {
        let counted = || broker.metric("ringmq_sql_left_out_records_total");
        eventually("they are counted", || counted() > MESSAGES as f64);
    });
}

/// semantics: SQL92, "a bad expression is refused at subscribe time with the position of the fault"; "same
/// subscription".
#[test]
fn a_bad_expression_is_refused_with_its_position() {
    let folder = tempfile::tempdir().unwrap();
    let names = namesrv("filters-names");
    let address = names.address().to_string();
    let mut options = BrokerOptions::new("filters", folder.path());
    options.namesrv = vec![names.address()];
    let broker = options.start();
    let mut wire = Wire::connect(broker.address(), 0).unwrap();
    let topic = wire.create_topic("orders", 1).unwrap();
    let (bad, caret) = ("region = 'eu' AND amount > 'x'", format!("\n{}^", " ".repeat(27)));

    // By the client, before anything leaves it.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = Client::connect(&address).await.unwrap();
        let begun = Instant::now();
        while client.admin().topic_stats("orders").await.map_or(0, |stats| stats.len()) == 0 {
            assert!(begun.elapsed() < PATIENCE, "the topic is known");
            tokio::task::yield_now().await;
        }
        let queue = client.admin().topic_stats("orders").await.unwrap()[0].queue.clone();
        let push = client.push_consumer("g").subscribe("orders", Filter::sql(bad));
        let push = push.listen(|_| async { Ok::<_, String>(()) }).await.err().unwrap();
        let pull = client.pull_consumer("g");
        let subscribed = pull.clone().subscribe("orders", Filter::sql(bad)).build().await;
        let assigned = pull.assign(queue, Filter::sql(bad)).build().await;
        for error in [push, subscribed.err().unwrap(), assigned.err().unwrap()] {
            assert_eq!(error.kind(), ErrorKind::BadFilter);
            assert!(!error.is_retryable());
            let text = error.to_string();
            assert!(text.contains("byte 27") && text.ends_with(&format!("{bad}{caret}")), "{text}");
        }
        // Members subscribe alike, however they spell it.
        let member = |sql: &str| client.pull_consumer("g").subscribe("orders", Filter::sql(sql));
        let first = member("region='eu' and 5 < amount").build().await.unwrap();
        let second = member("(region = 'eu') AND amount > 5.0").build().await.unwrap();
        let error = member("region = 'us' AND amount > 5").build().await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::SubscriptionMismatch);
        for text in ["region = 'eu' AND amount > 5", "region = 'us' AND amount > 5"] {
            assert!(error.to_string().contains(text), "{error}");
        }
        first.close(CLOSE).await.unwrap();
        second.close(CLOSE).await.unwrap();
        client.shutdown(CLOSE).await.unwrap();
    });

    // By the broker, whoever asks.
    let shard = shard_of_queue(topic, 0, wire.shards);
    let answer = wire.call(Opcode::Fetch, shard, &[], |fbb| {
        let sql = Some(fbb.create_string(bad));
        let filter = TagFilter::create(fbb, &TagFilterArgs { hashes: None, sql });
        let filters = Some(fbb.create_vector(&[filter]));
        let queues = Some(fbb.create_vector(&[FetchQueue::new(topic, 0, 0, 0, 1, 0)]));
        Fetch::create(fbb, &FetchArgs { queues, filters, ..FetchArgs::default() })
    });
    let answer = answer.unwrap();
    assert_eq!(answer.status, Status::BadFilter);
    assert!(answer.refusal().ends_with(&format!("{bad}{caret}")), "{}", answer.refusal());

    // By the command line.
    let args = ["--namesrv", &address, "topic", "consume", "orders", "--sql", bad];
    let output = std::process::Command::new(binary("ringmq")).args(args).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains(&caret), "{errors}");
}

/// What `topic consume --sql` prints is what is wanted, also behind many messages that are not.
#[test]
fn the_command_line_filters_by_sql() {
    let folder = tempfile::tempdir().unwrap();
    let names = namesrv("filters-names");
    let address = names.address().to_string();
    let mut options = BrokerOptions::new("filters", folder.path());
    options.namesrv = vec![names.address()];
    let broker = options.start();
    let ringmq = |args: &[&str]| {
        let all = ["--namesrv", &address, "topic"].into_iter().chain(args.iter().copied());
        std::process::Command::new(binary("ringmq")).args(all).output().unwrap()
    };
    let mut wire = Wire::connect(broker.address(), 0).unwrap();
    wire.create_topic("orders", 1).unwrap();
    let route = || ringmq(&["produce", "orders", "--count", "20000", "-p", "kind=plain"]);
    eventually("the topic is known", || route().status.success());
    assert!(ringmq(&["produce", "orders", "--count", "3", "-p", "kind=rare"]).status.success());
    let output = ringmq(&["consume", "orders", "--sql", "kind = 'rare'", "-f", "%o\\n"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 3);
}
