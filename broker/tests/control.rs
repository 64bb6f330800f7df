//! The control plane against real name servers and over real HTTP.

#![allow(clippy::unwrap_used)] // A test says what went wrong by panicking.

use ringmq_broker::control::{Control, ControlConfig, METRICS, Shared};
use ringmq_core::peer::TopicSettings;
use ringmq_core::route::{TopicChange, TopicRoutes};
use ringmq_namesrv::{NameServer, NameServerHandle, NamesrvConfig};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

fn name_server(listen: &str) -> NameServerHandle {
    let listen = listen.parse().unwrap();
    NameServer::start(NamesrvConfig { listen, ..NamesrvConfig::default() }).unwrap()
}

fn config(broker: &str, name_servers: &[SocketAddr]) -> ControlConfig {
    ControlConfig {
        cluster: "test".to_owned(),
        broker: broker.to_owned(),
        broker_id: 0,
        advertise: "127.0.0.1:10911".to_owned(),
        instance: 7,
        shards: 2,
        namesrv: name_servers.iter().map(ToString::to_string).collect(),
        http_listen: None,
    }
}

fn ready() -> Arc<Shared> {
    let shared = Arc::new(Shared::new(2));
    shared.set_ready(true);
    shared
}

fn change(name: &str, id: u32, version: u64, deleted: bool) -> TopicChange {
    let settings = TopicSettings {
        name: name.to_owned(),
        read_queues: 8,
        write_queues: 8,
        permission: 6,
        message_type: 0,
        retention_ms: 0,
        retention_bytes: 0,
        flush: 0,
    };
    TopicChange { id, version, settings, deleted }
}

/// Takes routes until they are as wanted.
fn wait_for(shared: &Shared, shard: u16, what: &str, wanted: impl Fn(&TopicRoutes) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut last = None;
    while Instant::now() < deadline {
        for routes in shared.take_routes(shard) {
            if wanted(&routes) {
                return;
            }
            last = Some(routes);
        }
        std::thread::yield_now();
    }
    panic!("{what} did not come; last: {last:?}");
}

fn names(routes: &TopicRoutes) -> Vec<&str> {
    routes.brokers.iter().map(|route| route.broker.as_str()).collect()
}

fn http(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text)
}

#[test]
fn brokers_hear_of_each_other_come_and_go() {
    let server = name_server("127.0.0.1:0");
    let (a, b) = (ready(), ready());
    let control_a = Control::start(config("a", &[server.address()]), a.clone()).unwrap();
    let control_b = Control::start(config("b", &[server.address()]), b.clone()).unwrap();
    a.watch("orders".to_owned(), 1);
    a.topic(change("orders", 3, 1, false));
    wait_for(&a, 1, "a's own route", |routes| names(routes) == ["a"]);
    b.topic(change("orders", 9, 1, false));
    wait_for(&a, 1, "both routes", |routes| {
        names(routes) == ["a", "b"] && routes.brokers[1].topic == 9 && routes.brokers[1].shards == 2
    });
    // Another shard that asks later is told what is known.
    a.watch("orders".to_owned(), 0);
    wait_for(&a, 0, "the known route", |routes| names(routes) == ["a", "b"]);
    b.topic(change("orders", 9, 2, true));
    wait_for(&a, 1, "the deletion", |routes| names(routes) == ["a"]);
    b.topic(change("orders", 10, 3, false));
    wait_for(&a, 1, "the topic made again", |routes| names(routes) == ["a", "b"]);
    // Draining leaves at once; stopping too.
    b.set_ready(false);
    wait_for(&a, 1, "b draining", |routes| names(routes) == ["a"]);
    b.set_ready(true);
    wait_for(&a, 1, "b back", |routes| names(routes) == ["a", "b"]);
    let begun = Instant::now();
    control_b.stop().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
    wait_for(&a, 1, "b gone", |routes| names(routes) == ["a"]);
    control_a.stop().unwrap();
    server.stop().unwrap();
}

#[test]
fn one_of_two_name_servers_is_enough_and_one_that_returns_learns_all() {
    let (first, second) = (name_server("127.0.0.1:0"), name_server("127.0.0.1:0"));
    let addresses = [first.address(), second.address()];
    let (a, b) = (ready(), ready());
    a.topic(change("t", 1, 1, false));
    let control_a = Control::start(config("a", &addresses), a.clone()).unwrap();
    let control_b = Control::start(config("b", &addresses), b.clone()).unwrap();
    b.watch("t".to_owned(), 0);
    wait_for(&b, 0, "a", |routes| names(routes) == ["a"]);
    first.stop().unwrap();
    b.topic(change("t", 1, 1, false));
    wait_for(&b, 0, "both by the second", |routes| names(routes) == ["a", "b"]);
    // Both gone: what was known stays, nothing is told.
    second.stop().unwrap();
    let returned = name_server(&addresses[0].to_string());
    a.topic(change("t", 1, 2, true));
    wait_for(&b, 0, "the change by the one that returned", |routes| names(routes) == ["b"]);
    control_a.stop().unwrap();
    control_b.stop().unwrap();
    returned.stop().unwrap();
}

#[test]
fn a_registration_of_many_frames_arrives_whole() {
    const TOPICS: u32 = 20_000;
    let server = name_server("127.0.0.1:0");
    let (a, b) = (ready(), ready());
    for id in 1..=TOPICS {
        a.topic(change(&format!("topic-with-a-long-name-{id:08}"), id, u64::from(id), false));
    }
    let last = format!("topic-with-a-long-name-{TOPICS:08}");
    b.watch(last.clone(), 1);
    let control_b = Control::start(config("b", &[server.address()]), b.clone()).unwrap();
    let control_a = Control::start(config("a", &[server.address()]), a.clone()).unwrap();
    wait_for(&b, 1, "the last topic", |routes| routes.topic == last && names(routes) == ["a"]);
    control_a.stop().unwrap();
    wait_for(&b, 1, "a's leaving", |routes| names(routes).is_empty());
    control_b.stop().unwrap();
    server.stop().unwrap();
}

#[test]
fn no_name_server_there_is_no_reason_to_hang() {
    // Bound but never accepted from: connecting works, nothing is ever answered.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead_address = dead.local_addr().unwrap();
    drop(dead);
    let shared = ready();
    shared.watch("t".to_owned(), 0);
    let addresses = [silent.local_addr().unwrap(), dead_address];
    let control = Control::start(config("a", &addresses), shared.clone()).unwrap();
    let (mut greeted, _) = silent.accept().unwrap();
    let mut magic = [0; 4];
    greeted.read_exact(&mut magic).unwrap();
    assert_eq!(&magic, b"RMQ1");
    let begun = Instant::now();
    control.stop().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(shared.take_routes(0).is_empty());
}

#[test]
fn health_readiness_and_metrics_over_http() {
    let shared = Arc::new(Shared::new(2));
    let http_listen = Some("127.0.0.1:0".parse().unwrap());
    let alone = ControlConfig { http_listen, ..config("a", &[]) };
    let control = Control::start(alone.clone(), shared.clone()).unwrap();
    let address = control.http_address().unwrap();
    assert_eq!(http(address, "/healthz").0, 200);
    let (status, text) = http(address, "/readyz");
    assert_eq!(status, 503);
    assert!(text.contains("starting"), "{text}");
    shared.set_ready(true);
    assert_eq!(http(address, "/readyz").0, 200);
    shared.fail(1, "the disk said EIO".to_owned());
    let (status, text) = http(address, "/readyz");
    assert_eq!(status, 503);
    assert!(text.contains("shard 1") && text.contains("EIO"), "{text}");
    let (status, text) = http(address, "/metrics");
    assert_eq!(status, 200);
    for metric in METRICS {
        assert!(text.contains(metric.name), "{} is not in\n{text}", metric.name);
    }
    assert_eq!(http(address, "/nothing").0, 404);
    let taken = ControlConfig { http_listen: Some(address), ..alone };
    let error = Control::start(taken, shared).unwrap_err();
    assert!(format!("{error:#}").contains(&address.to_string()), "{error:#}");
    control.stop().unwrap();
}
