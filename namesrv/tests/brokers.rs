//! Brokers come, change, fall silent and go; subscribers hear of it.

#![allow(clippy::unwrap_used)] // A test says what went wrong by panicking.

mod peer;

use peer::{Peer, at, config, hash, start, topic};
use ringmq_namesrv::NamesrvConfig;
use ringmq_schema::error::Status;
use ringmq_schema::frame;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::route::*;
use std::time::{Duration, Instant};

#[test]
fn registration_changes_and_heartbeats() {
    let server = start(config());
    let (mut broker, mut client) = (Peer::new(&server), Peer::new(&server));
    assert!(broker.heartbeat(1, 0).need_full(), "not registered yet");
    let mut topics = vec![topic("orders", 3), topic("bills", 4)];
    assert!(!broker.register("a", 1, &topics).need_full());
    assert!(!broker.heartbeat(1, hash(&topics)).need_full());
    let routes = client.query(&["orders", "nothing"], false).routes();
    assert_eq!(routes, [at("orders", &[("a", 3)]), at("nothing", &[])]);

    topics.push(topic("more", 5));
    assert!(!broker.changes(1, (2, hash(&topics)), &topics[2..]).need_full());
    assert_eq!(client.query(&["more"], false).routes(), [at("more", &[("a", 5)])]);
    assert!(broker.heartbeat(2, hash(&topics[..2])).need_full());
    assert!(broker.changes(7, (8, hash(&topics)), &[]).need_full());
    let gone = peer::Topic { deleted: true, ..topics.remove(0) };
    assert!(!broker.changes(2, (3, hash(&topics)), &[gone]).need_full());
    assert_eq!(client.query(&["orders"], false).routes(), [at("orders", &[])]);

    let mut second = Peer::new(&server);
    assert!(!second.register("0-first", 1, &topics).need_full());
    let routes = client.query(&["bills"], false).routes();
    assert_eq!(routes, [at("bills", &[("0-first", 4), ("a", 4)])], "sorted by broker");

    let answer =
        client.call(Opcode::QueryCluster, |fbb| QueryCluster::create(fbb, &QueryClusterArgs {}));
    let cluster = frame::read_table::<QueryClusterAnswer>(&answer.table).unwrap();
    let brokers: Vec<_> =
        cluster.brokers().unwrap().iter().map(|b| (b.broker(), b.topics(), b.version())).collect();
    assert_eq!(brokers, [("0-first", 2, 1), ("a", 2, 3)]);

    let answer = client.call(Opcode::QueryTopics, |fbb| {
        let prefix = Some(fbb.create_string("b"));
        QueryTopics::create(fbb, &QueryTopicsArgs { prefix })
    });
    let names = frame::read_table::<QueryTopicsAnswer>(&answer.table).unwrap();
    assert!(names.topics().unwrap().iter().eq(["bills"]));
    server.stop().unwrap();
}

#[test]
fn a_silent_broker_expires_and_may_come_back_on_the_same_connection() {
    let server = start(NamesrvConfig { expiry: Duration::from_secs(1), ..config() });
    let (mut broker, mut client) = (Peer::new(&server), Peer::new(&server));
    let topics = [topic("t", 1)];
    assert_eq!(client.query(&["t"], true).routes(), [at("t", &[])]);
    broker.register("a", 1, &topics);
    assert_eq!(client.pushed(), [at("t", &[("a", 1)])]);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1_200) {
        assert!(!broker.heartbeat(1, hash(&topics)).need_full(), "heard, so it stays");
    }
    assert_eq!(client.pushed(), [at("t", &[])], "silent, so it goes");
    assert!(broker.heartbeat(1, hash(&topics)).need_full());
    broker.register("a", 1, &topics);
    assert_eq!(client.pushed(), [at("t", &[("a", 1)])]);
    server.stop().unwrap();
}

#[test]
fn a_closed_connection_takes_its_broker_with_it_but_not_a_newer_one() {
    let server = start(config());
    let mut client = Peer::new(&server);
    let topics = [topic("t", 1)];
    client.query(&["t"], true);
    let (mut old, mut new) = (Peer::new(&server), Peer::new(&server));
    old.register("a", 1, &topics);
    assert_eq!(client.pushed(), [at("t", &[("a", 1)])]);
    new.register("a", 2, &[topic("t", 2)]);
    assert_eq!(client.pushed(), [at("t", &[("a", 2)])]);
    let refused = old.heartbeat(1, hash(&topics));
    assert_eq!(refused.status, Status::Denied);
    assert!(refused.refusal().contains("another connection"), "{}", refused.refusal());
    drop(old);
    // The server has seen the close once a further connection is served after it.
    Peer::new(&server).query(&["t"], false);
    assert_eq!(client.query(&["t"], false).routes(), [at("t", &[("a", 2)])]);
    let begun = Instant::now();
    drop(new);
    assert_eq!(client.pushed(), [at("t", &[])]);
    assert!(begun.elapsed() < Duration::from_secs(5), "at once, not by expiry");
    server.stop().unwrap();
}

#[test]
fn two_brokers_under_one_name_do_not_take_it_from_each_other() {
    let server = start(config());
    let (mut first, mut second) = (Peer::new(&server), Peer::new(&server));
    let topics = [topic("t", 1)];
    first.register("a", 1, &topics);
    second.address = "127.0.0.1:20911".to_owned();
    let refused = second.register("a", 2, &topics);
    assert_eq!(refused.status, Status::Denied);
    assert!(refused.refusal().contains("127.0.0.1:10911 already"), "{}", refused.refusal());
    assert!(!first.heartbeat(1, hash(&topics)).need_full());
    assert!(!second.register("b", 2, &topics).need_full());
    // The first one's connection broke, and it comes again before the server has noticed.
    let mut again = Peer::new(&server);
    again.address = "127.0.0.1:30911".to_owned();
    assert!(!again.register("a", 1, &topics).need_full());
    assert_eq!(first.heartbeat(1, hash(&topics)).status, Status::Denied);
    // When it is gone its name is free.
    drop((first, again));
    let deadline = Instant::now() + peer::PATIENCE;
    while second.query(&["t"], false).routes() != [at("t", &[("b", 1)])] {
        assert!(Instant::now() < deadline, "the broker should be gone");
    }
    let mut third = Peer::new(&server);
    assert!(!third.register("a", 9, &topics).need_full());
    server.stop().unwrap();
}

#[test]
fn leaving_takes_effect_at_once() {
    let server = start(config());
    let (mut broker, mut client) = (Peer::new(&server), Peer::new(&server));
    broker.register("a", 1, &[topic("t", 1)]);
    assert_eq!(client.query(&["t"], true).routes(), [at("t", &[("a", 1)])]);
    let answer = broker.call(Opcode::UnregisterBroker, |fbb| {
        UnregisterBroker::create(fbb, &UnregisterBrokerArgs {})
    });
    assert_eq!((answer.status, answer.table.len()), (Status::Ok, 0));
    assert_eq!(client.pushed(), [at("t", &[])]);
    server.stop().unwrap();
}

#[test]
fn twenty_thousand_topics_in_frames_of_their_own() {
    const TOPICS: u32 = 20_000;
    const CHUNK: usize = 5_000;
    let server = start(config());
    let (mut broker, mut client) = (Peer::new(&server), Peer::new(&server));
    let topics: Vec<_> = (1..=TOPICS).map(|id| topic(&format!("topic-{id:06}"), id)).collect();
    let names: Vec<&str> = topics.iter().map(|topic| topic.name.as_str()).collect();
    for chunk in names.chunks(CHUNK) {
        assert_eq!(client.query(chunk, true).routes().len(), CHUNK);
    }
    let state = (1, hash(&topics));
    let mut chunks = topics.chunks(CHUNK);
    assert!(!broker.register_part("a", 1, state, chunks.next().unwrap()).need_full());
    for chunk in chunks {
        assert!(!broker.changes(1, state, chunk).need_full());
    }
    assert!(!broker.heartbeat(1, hash(&topics)).need_full());
    let mut heard = 0;
    while heard < TOPICS as usize {
        let routes = client.pushed();
        assert!(routes.iter().all(|(_, brokers)| brokers.len() == 1), "never in parts");
        heard += routes.len();
    }
    assert_eq!(heard, TOPICS as usize);
    let answer = client.call(Opcode::QueryTopics, |fbb| {
        QueryTopics::create(fbb, &QueryTopicsArgs { prefix: None })
    });
    let all = frame::read_large_table::<QueryTopicsAnswer>(&answer.table).unwrap();
    assert!(all.topics().unwrap().iter().eq(names));
    server.stop().unwrap();
}

#[tokio::test]
async fn it_starts_and_stops_inside_another_runtime() {
    let server = start(config());
    assert!(server.is_running());
    server.stop().unwrap();
}
