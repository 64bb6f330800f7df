//! promise: at-least-once, ack-is-durable, fifo. A cluster of processes, of which one of each kind dies.
//!
//! 2 name servers, 2 brokers with 2 shards each, 3 producers, 4 push consumers in one group and 2 in another. A
//! consumer, a name server and a broker are killed; the broker comes back on its data. Every acknowledged
//! message reaches every group, at its offset, in order per queue, and nothing of another topic does.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq::{Client, Message, TopicSpec};
use ringmq_tests::member::{Delivery, Member, Place};
use ringmq_tests::server::{BrokerOptions, Process, eventually, eventually_ok, namesrv};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn consumer(namesrv: &str, group: &str) -> Member {
    let binary = env!("CARGO_BIN_EXE_ringmq-test-consumer");
    Member::start(binary, &[namesrv, group, "orders", "orderly", "0"])
}

#[derive(Default)]
struct Sent {
    acknowledged: Mutex<BTreeMap<Place, String>>,
    count: AtomicU64,
    stop: AtomicBool,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn produce(client: Client, name: u32, sent: Arc<Sent>) {
    let producer = client
        .producer(format!("producer-{name}"))
        .timeout(Duration::from_secs(30))
        .build()
        .await
        .unwrap();
    let mut number = 0u64;
    while !sent.stop.load(Ordering::Relaxed) {
        let mut deliveries = Vec::new();
        for _ in 0..20 {
            let body = format!("orders {name} {number}");
            number += 1;
            if let Ok(delivery) = producer.enqueue(Message::new("orders", body.clone())).await {
                deliveries.push((body, delivery));
            }
        }
        for (body, delivery) in deliveries {
            // An error is an unknown outcome: it may be there, and need not.
            let Ok(receipt) = delivery.await else { continue };
            let place = (receipt.queue.broker.to_string(), receipt.queue.id, receipt.offset);
            let before = sent.acknowledged.lock().unwrap().insert(place, hex(body.as_bytes()));
            assert_eq!(before, None, "an offset was given twice");
            sent.count.fetch_add(1, Ordering::Relaxed);
        }
        let stray = Message::new("foreign", format!("foreign {name} {number}"));
        let _ = producer.send(stray).await;
    }
    producer.close(Duration::from_secs(30)).await.unwrap();
}

fn more(sent: &Sent, messages: u64) {
    let goal = sent.count.load(Ordering::Relaxed) + messages;
    eventually("producers go on", || sent.count.load(Ordering::Relaxed) >= goal);
}

/// Everything that a group got, by place; the same place always holds the same bytes.
fn received(group: &[Member]) -> BTreeMap<Place, String> {
    let mut all = BTreeMap::new();
    for consumer in group {
        for Delivery { place, body, .. } in consumer.seen() {
            let before = all.insert(place.clone(), body.clone());
            assert!(before.is_none_or(|b| b == body), "{place:?} holds two messages");
        }
    }
    all
}

fn check_order(group: &[Member]) {
    let all = received(group);
    for consumer in group {
        let mut last: BTreeMap<(String, u32), u64> = BTreeMap::new();
        for Delivery { place: (broker, queue, offset), .. } in consumer.seen() {
            let before = last.insert((broker.clone(), queue), offset);
            // Going back is delivering again; what a step forward leaves out, another member had.
            for skipped in before.map_or(offset, |b| b + 1)..offset {
                let place = (broker.clone(), queue, skipped);
                assert!(all.contains_key(&place), "{place:?} was left out");
            }
        }
    }
}

struct Cluster {
    namesrvs: Vec<Process>,
    brokers: Vec<Option<Process>>,
    options: Vec<BrokerOptions>,
    addresses: String,
    _folder: tempfile::TempDir,
}

fn cluster() -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    let namesrvs = vec![namesrv("namesrv-1"), namesrv("namesrv-2")];
    let mut options: Vec<BrokerOptions> = ["broker-a", "broker-b"]
        .iter()
        .map(|name| {
            let mut options = BrokerOptions::new(name, &folder.path().join(name));
            options.namesrv = namesrvs.iter().map(Process::address).collect();
            options
        })
        .collect();
    let brokers: Vec<_> = options.iter().map(|options| Some(options.start())).collect();
    for (options, broker) in options.iter_mut().zip(&brokers) {
        // It comes back where clients know it.
        options.port = broker.as_ref().unwrap().address().port();
    }
    let addresses: Vec<String> = namesrvs.iter().map(|n| n.address().to_string()).collect();
    Cluster { namesrvs, brokers, options, addresses: addresses.join(";"), _folder: folder }
}

#[test]
fn a_cluster_survives_the_death_of_one_of_each_kind() {
    let mut cluster = cluster();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let client = runtime.block_on(async {
        let client = Client::connect(cluster.addresses.as_str()).await.unwrap();
        eventually_async(&client).await;
        for topic in ["orders", "foreign"] {
            client.admin().create_topic(TopicSpec::new(topic).queues(8)).await.unwrap();
        }
        client
    });
    let mut billing: Vec<Member> =
        (0..4).map(|_| consumer(&cluster.addresses, "billing")).collect();
    let mut audit: Vec<Member> = (0..2).map(|_| consumer(&cluster.addresses, "audit")).collect();
    let sent = Arc::new(Sent::default());
    let producers: Vec<_> = (0..3)
        .map(|name| runtime.spawn(produce(client.clone(), name, Arc::clone(&sent))))
        .collect();

    more(&sent, 2000);
    eventually("every consumer of billing has queues", || billing.iter().all(Member::has_seen));
    billing[0].kill();
    more(&sent, 2000);
    cluster.namesrvs.remove(0).kill();
    more(&sent, 2000);
    cluster.brokers[1].take().unwrap().kill();
    more(&sent, 1000);
    cluster.brokers[1] = Some(restart(&cluster.options[1]));
    let on_b = || {
        let acknowledged = sent.acknowledged.lock().unwrap();
        acknowledged.keys().filter(|(broker, ..)| broker == "broker-b").count()
    };
    let before = on_b();
    eventually("the broker that came back is used again", || on_b() > before + 100);
    sent.stop.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        for producer in producers {
            producer.await.unwrap();
        }
    });

    let acknowledged = sent.acknowledged.lock().unwrap().clone();
    for group in [&billing, &audit] {
        let missing = || -> BTreeMap<(String, u32), (u64, u64, u64)> {
            let got = received(group);
            let mut missing = BTreeMap::new();
            for (broker, queue, offset) in acknowledged.keys().filter(|p| !got.contains_key(*p)) {
                let (first, last, count) =
                    missing.entry((broker.clone(), *queue)).or_insert((*offset, *offset, 0));
                *first = (*first).min(*offset);
                *last = (*last).max(*offset);
                *count += 1;
            }
            missing
        };
        eventually_ok("every acknowledged message reaches every group", || {
            let missing = missing();
            let had: Vec<usize> = group.iter().map(|c| c.seen().len()).collect();
            let say = || format!("first, last, count by queue {missing:?}; members had {had:?}");
            if missing.is_empty() { Ok(()) } else { Err(say()) }
        });
    }
    for group in [&mut billing, &mut audit] {
        let survivors = group.iter_mut().filter(|consumer| consumer.is_alive());
        survivors.for_each(Member::close);
        let got = received(group);
        for (place, body) in &acknowledged {
            assert_eq!(got.get(place), Some(body), "{place:?}");
        }
        let foreign = hex(b"foreign");
        assert!(got.values().all(|body| !body.starts_with(&foreign)), "a foreign topic's message");
        check_order(group);
    }
    let queues: BTreeSet<(&str, u32)> =
        acknowledged.keys().map(|(broker, queue, _)| (broker.as_str(), *queue)).collect();
    ringmq_tests::say(format_args!(
        "cluster: {} messages acknowledged in {} queues, all received by both groups",
        acknowledged.len(),
        queues.len()
    ));
    runtime.block_on(client.shutdown(Duration::from_secs(10))).unwrap();
    for broker in cluster.brokers.into_iter().flatten() {
        assert_eq!(broker.terminate(), Some(0));
    }
    for server in cluster.namesrvs {
        assert_eq!(server.terminate(), Some(0));
    }
}

/// Both brokers are registered.
async fn eventually_async(client: &Client) {
    let deadline = tokio::time::Instant::now() + ringmq_tests::server::PATIENCE;
    while client.admin().brokers().await.map_or(0, |brokers| brokers.len()) < 2 {
        assert!(tokio::time::Instant::now() < deadline, "the brokers do not register");
        tokio::task::yield_now().await;
    }
}

fn restart(options: &BrokerOptions) -> Process {
    let mut started = None;
    eventually("the broker starts again", || {
        started = Process::try_start(&options.name, "ringmq-broker", &options.args()).ok();
        started.is_some()
    });
    started.unwrap()
}
