//! promise: at-least-once, one-owner, fifo. Members come and go every second, and a broker dies.
//!
//! 3 brokers, two groups of 8 members each, one of them orderly and one concurrent, every member a process. For
//! two minutes (`RINGMQ_CHAOS_SECONDS`) each second a member of each group leaves, every third of them by kill -9, and
//! another joins; in between a broker is killed and comes back on its data. Then every acknowledged message was given to
//! each group; no two members were ever at work on one queue; and what was given twice was given to two members, at
//! a hand-over.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq::{Client, Message, TopicSpec};
use ringmq_tests::hand_over::{History, Order, Outage, judge};
use ringmq_tests::member::{Member, Place};
use ringmq_tests::server::{BrokerOptions, Process, eventually, eventually_ok, namesrv};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const BROKERS: [&str; 3] = ["broker-a", "broker-b", "broker-c"];
const QUEUES: u32 = 8;
const MEMBERS: usize = 8;
/// A listener takes so long, so that members are at work most of the time.
const PAUSE_US: &str = "3000";
/// Messages a second: less than the queues of a group take, one at a time each.
const RATE: u64 = 800;

struct Group {
    name: &'static str,
    order: &'static str,
    /// Those that left are kept for what they have seen.
    members: Vec<Member>,
    present: Vec<usize>,
    killed: BTreeSet<usize>,
}

impl Group {
    fn new(name: &'static str, order: &'static str) -> Group {
        let (members, present, killed) = Default::default();
        Group { name, order, members, present, killed }
    }

    fn join(&mut self, namesrv: &str) {
        let binary = env!("CARGO_BIN_EXE_ringmq-test-consumer");
        let args = [namesrv, self.name, "orders", self.order, PAUSE_US];
        self.present.push(self.members.len());
        self.members.push(Member::start(binary, &args));
    }

    /// The oldest one, as each has had its time by then.
    fn leave(&mut self, by_kill: bool) {
        let first = self.present.remove(0);
        if by_kill {
            self.members[first].kill();
            self.killed.insert(first);
        } else {
            self.members[first].ask_to_leave();
        }
    }

    fn received(&self) -> BTreeSet<Place> {
        let all = self.members.iter().flat_map(Member::seen);
        all.map(|delivery| delivery.place).collect()
    }
}

/// What was acknowledged, and the bytes.
type Acknowledged = Arc<Mutex<BTreeMap<Place, String>>>;

async fn produce(client: Client, sent: Acknowledged, stop: Arc<AtomicBool>) {
    let producer = client.producer("chaos").timeout(Duration::from_secs(30)).build().await.unwrap();
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let mut flying = Vec::new();
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        for _ in 0..RATE / 20 {
            let body = format!("message {number}");
            number += 1;
            if let Ok(delivery) = producer.enqueue(Message::new("orders", body.clone())).await {
                let sent = Arc::clone(&sent);
                flying.push(tokio::spawn(async move {
                    // An error is an unknown outcome: it may be there, and need not.
                    let Ok(receipt) = delivery.await else { return };
                    let place =
                        (receipt.queue.broker.to_string(), receipt.queue.id, receipt.offset);
                    let hex = body.bytes().map(|byte| format!("{byte:02x}")).collect();
                    let before = sent.lock().unwrap().insert(place, hex);
                    assert_eq!(before, None, "an offset was given twice");
                }));
            }
        }
    }
    for one in flying {
        one.await.unwrap();
    }
    producer.close(Duration::from_secs(30)).await.unwrap();
}

#[test]
fn members_come_and_go_and_a_broker_dies_and_nothing_is_lost_or_owned_twice() {
    let seconds = std::env::var("RINGMQ_CHAOS_SECONDS").ok();
    let seconds: u64 = seconds.map_or(120, |text| text.parse().expect("a number of seconds"));
    let folder = tempfile::tempdir().unwrap();
    let names = namesrv("namesrv");
    let address = names.address().to_string();
    let mut options = BROKERS.map(|name| {
        let mut options = BrokerOptions::new(name, &folder.path().join(name));
        options.namesrv = vec![names.address()];
        options
    });
    let mut brokers = options.each_ref().map(|options| Some(options.start()));
    for (options, broker) in options.iter_mut().zip(&brokers) {
        // It comes back where clients know it.
        options.port = broker.as_ref().unwrap().address().port();
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(client(&address));
    let (sent, stop) = (Acknowledged::default(), Arc::<AtomicBool>::default());
    let producing = runtime.spawn(produce(client.clone(), Arc::clone(&sent), Arc::clone(&stop)));

    let mut groups = [Group::new("billing", "orderly"), Group::new("audit", "concurrent")];
    for group in &mut groups {
        (0..MEMBERS).for_each(|_| group.join(&address));
    }
    let outage =
        stir(&mut groups, &address, seconds, &mut |broker| restart(broker, &options, &mut brokers));
    stop.store(true, Ordering::Relaxed);
    runtime.block_on(producing).unwrap();
    let sent = sent.lock().unwrap().clone();
    for group in &mut groups {
        eventually_ok("every acknowledged message reaches every group", || {
            let received = group.received();
            let missing: Vec<&Place> =
                sent.keys().filter(|place| !received.contains(place)).collect();
            let some = &missing[..missing.len().min(5)];
            match missing.len() {
                0 => Ok(()),
                count => Err(format!("{}: {count} missing: {some:?}", group.name)),
            }
        });
        group.members.iter_mut().filter(|member| member.is_alive()).for_each(Member::close);
        let order = if group.order == "orderly" { Order::OneByOne } else { Order::Any };
        let histories: Vec<History> = group
            .members
            .iter()
            .enumerate()
            .map(|(member, it)| History {
                seen: it.seen(),
                was_killed: group.killed.contains(&member),
            })
            .collect();
        let judged = judge(&histories, order, &outage).unwrap();
        let wrong = histories
            .iter()
            .flat_map(|history| &history.seen)
            .find(|delivery| sent.get(&delivery.place).is_some_and(|body| *body != delivery.body));
        assert_eq!(wrong, None, "not what was acknowledged at its offset");
        ringmq_tests::say(format_args!(
            "chaos: {}: {} messages, {} members, {} of them killed; given again: {judged:?}",
            group.name,
            sent.len(),
            group.members.len(),
            group.killed.len(),
        ));
    }
    runtime.block_on(client.shutdown(Duration::from_secs(10))).unwrap();
    for broker in brokers.into_iter().flatten() {
        assert_eq!(broker.terminate(), Some(0));
    }
    assert_eq!(names.terminate(), Some(0));
}

/// A client, once all brokers are registered and have the topic.
async fn client(address: &str) -> Client {
    let client = Client::connect(address).await.unwrap();
    let deadline = tokio::time::Instant::now() + ringmq_tests::server::PATIENCE;
    while client.admin().brokers().await.map_or(0, |brokers| brokers.len()) < BROKERS.len() {
        assert!(tokio::time::Instant::now() < deadline, "the brokers do not register");
        tokio::task::yield_now().await;
    }
    client.admin().create_topic(TopicSpec::new("orders").queues(QUEUES)).await.unwrap();
    client
}

/// Two minutes of it. The broker goes in the middle and is back 3 seconds later.
fn stir(
    groups: &mut [Group],
    address: &str,
    seconds: u64,
    restart: &mut dyn FnMut(Broker),
) -> Outage {
    let begun = Instant::now();
    let mut outage = Outage { broker: BROKERS[1].to_owned(), begun_ns: u64::MAX };
    for second in 1..=seconds {
        // The clock is what is tested here: once a second.
        let due = begun + Duration::from_secs(second);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        for group in &mut *groups {
            group.leave(second % 3 == 0);
            group.join(address);
        }
        if second == seconds / 2 {
            outage.begun_ns = ringmq_tests::member::now_ns();
            restart(Broker::Kill);
        }
        if second == seconds / 2 + 3 {
            restart(Broker::Start);
        }
    }
    outage
}

enum Broker {
    Kill,
    Start,
}

fn restart(what: Broker, options: &[BrokerOptions; 3], brokers: &mut [Option<Process>; 3]) {
    match what {
        Broker::Kill => brokers[1].take().unwrap().kill(),
        Broker::Start => {
            let args = options[1].args();
            eventually("the broker starts again", || {
                brokers[1] = Process::try_start(BROKERS[1], "ringmq-broker", &args).ok();
                brokers[1].is_some()
            });
        }
    }
}
