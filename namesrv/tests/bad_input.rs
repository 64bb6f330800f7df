//! Whatever comes from the network gets a clear refusal, and the server goes on (promise: no-trust).

#![allow(clippy::unwrap_used)] // A test says what went wrong by panicking.

mod peer;

use peer::{Peer, at, config, start, topic};
use ringmq_namesrv::{NameServer, NamesrvConfig};
use ringmq_schema::connection::{Hello, HelloArgs, Ping, PingAnswer, PingArgs};
use ringmq_schema::error::Status;
use ringmq_schema::frame::{self, FrameHeader, HEADER_BYTES};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::zerocopy::IntoBytes;
use std::io::Write;
use std::time::Duration;

fn raw(code: u16, table: &[u8], run: &[u8]) -> Vec<u8> {
    let header =
        FrameHeader::new(code, 0, frame::ANY_SHARD, Status::Ok, 77, table.len(), run.len());
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(table);
    bytes.resize(HEADER_BYTES + frame::padded(table.len()), 0);
    bytes.extend_from_slice(run);
    bytes
}

#[test]
fn bytes_that_are_no_frames_close_the_connection_with_a_reason() {
    let server = start(config());
    let long = FrameHeader::new(64, 0, 0, Status::Ok, 1, 64, 1 << 30);
    let mut version = raw(1, &[], &[]);
    version[8] = 9;
    let checksum = crc(&version[..28]).to_le_bytes();
    version[28..].copy_from_slice(&checksum);
    let mut flipped = raw(1, &[], &[]);
    flipped[12] ^= 1;
    let cases: [(Vec<u8>, Status, &str); 5] = [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), Status::BadFrame, "no RingMQ frame"),
        (vec![0xff; 4096], Status::BadFrame, "no RingMQ frame"),
        (long.as_bytes().to_vec(), Status::FrameTooLarge, "longer than"),
        (version, Status::VersionMismatch, "version 9"),
        (flipped, Status::BadFrame, "checksum"),
    ];
    for (bytes, status, text) in cases {
        for greeted in [false, true] {
            let mut peer = if greeted { Peer::new(&server) } else { Peer::silent(&server) };
            peer.stream.write_all(&bytes).unwrap();
            let refused = peer.read();
            assert_eq!(refused.status, status);
            assert!(refused.refusal().contains(text), "{}", refused.refusal());
            peer.closed();
        }
    }
    Peer::new(&server).query(&["t"], false);
    server.stop().unwrap();
}

fn crc(bytes: &[u8]) -> u32 {
    // The header's own checksum field is what `FrameHeader::new` computes; here bit by bit.
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

#[test]
fn requests_that_cannot_be_served_are_refused_and_the_connection_goes_on() {
    let server = start(config());
    let mut peer = Peer::silent(&server);
    let refused = peer.query(&["t"], false);
    assert_eq!(refused.status, Status::HelloRequired);
    let old = peer.call(Opcode::Hello, |fbb| Hello::create(fbb, &HelloArgs::default()));
    assert_eq!(old.status, Status::VersionMismatch);

    let mut peer = Peer::new(&server);
    let garbage: Vec<u8> = (0..100).map(|i| (i * 37 + 11) as u8).collect();
    let cases: [(Vec<u8>, Status, &str); 6] = [
        (raw(999, &[], &[]), Status::UnknownOpcode, "999"),
        (raw(Opcode::Produce.code(), &[], &[]), Status::Unsupported, "Produce"),
        (raw(Opcode::Controller.code(), &[], &[]), Status::Unsupported, "Controller"),
        (raw(Opcode::QueryRoute.code(), &garbage, &[]), Status::BadRequest, "QueryRoute"),
        (raw(Opcode::RegisterBroker.code(), &[], &[]), Status::BadRequest, "RegisterBroker"),
        (raw(Opcode::Ping.code(), &[], &[0; 16]), Status::BadRequest, "16 bytes"),
    ];
    for (bytes, status, text) in cases {
        peer.stream.write_all(&bytes).unwrap();
        let refused = peer.read();
        assert_eq!((refused.status, refused.correlation), (status, 77));
        assert!(refused.refusal().contains(text), "{}", refused.refusal());
    }
    let refused = peer.query(&["a b"], false);
    assert_eq!(refused.status, Status::BadName);
    let refused = peer.register("has space", 1, &[]);
    assert_eq!(refused.status, Status::BadRequest);
    let refused = peer.register("a", 1, &[topic("bad/name", 1)]);
    assert_eq!(refused.status, Status::BadRequest);
    assert!(refused.refusal().contains("bad/name"), "{}", refused.refusal());
    let pong = peer.call(Opcode::Ping, |fbb| Ping::create(fbb, &PingArgs { sent_ms: 5 }));
    assert_eq!(frame::read_table::<PingAnswer>(&pong.table).unwrap().sent_ms(), 5);
    server.stop().unwrap();
}

#[test]
fn half_a_frame_or_no_hello_ends_in_time() {
    let short = Duration::from_millis(100);
    let server = start(NamesrvConfig { handshake_timeout: short, ..config() });
    let mut silent = Peer::silent(&server);
    let refused = silent.read();
    assert!(refused.refusal().contains("no Hello within 100ms"), "{}", refused.refusal());
    silent.closed();
    server.stop().unwrap();
    let server = start(NamesrvConfig { frame_timeout: short, ..config() });
    let frame = raw(Opcode::QueryRoute.code(), &[0; 64], &[]);
    for end in [1, 10, HEADER_BYTES, HEADER_BYTES + 10] {
        let mut peer = Peer::new(&server);
        peer.stream.write_all(&frame[..end]).unwrap();
        let refused = peer.read();
        assert!(refused.refusal().contains("rest of a frame"), "{}", refused.refusal());
        peer.closed();
    }
    server.stop().unwrap();
}

#[test]
fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let server = start(NamesrvConfig { idle_timeout: Duration::from_secs(1), ..config() });
    let (mut idle, mut busy) = (Peer::new(&server), Peer::new(&server));
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_millis(1_200) {
        busy.query(&["t"], false);
    }
    idle.closed();
    busy.query(&["t"], false);
    server.stop().unwrap();
}

#[test]
fn limits_are_refused_with_the_number() {
    let small = NamesrvConfig {
        connections_max: 2,
        subscriptions_max: 2,
        topics_per_query_max: 3,
        topics_per_broker_max: 1,
        ..config()
    };
    let server = start(small);
    let (mut first, mut second) = (Peer::new(&server), Peer::new(&server));
    let mut third = Peer::silent(&server);
    let refused = third.read();
    assert_eq!(refused.status, Status::TooManyConnections);
    assert!(refused.refusal().contains("its 2 connections"), "{}", refused.refusal());
    third.closed();
    let refused = first.query(&["a", "b", "c", "d"], false);
    assert_eq!(refused.status, Status::TooMany);
    let refused = first.query(&["a", "b", "c"], true);
    assert!(refused.refusal().contains("at most 2"), "{}", refused.refusal());
    first.query(&["a", "b"], true).routes();
    let refused = second.register("a", 1, &[topic("a", 1), topic("b", 2)]);
    assert_eq!(refused.status, Status::TooMany);
    second.register("a", 1, &[topic("a", 1)]);
    assert_eq!(first.pushed(), [at("a", &[("a", 1)])]);
    server.stop().unwrap();
}

#[test]
fn a_subscriber_that_does_not_drain_is_closed_and_others_go_on() {
    let short = Duration::from_millis(200);
    let server = start(NamesrvConfig { write_timeout: short, ..config() });
    let (mut deaf, mut broker) = (Peer::new(&server), Peer::new(&server));
    let names: Vec<String> = (0..4_000).map(|n| format!("{n:0>120}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    deaf.query(&names, true);
    // Ask for answers and never read one: megabytes that fit no socket buffer.
    for _ in 0..40 {
        let mut out = Vec::new();
        for name in names.chunks(1_000) {
            ringmq_schema::build::FrameBuilder::new().request(
                &mut out,
                Opcode::QueryRoute,
                frame::ANY_SHARD,
                9,
                &[],
                |fbb| {
                    let names: Vec<_> = name.iter().map(|name| fbb.create_string(name)).collect();
                    let topics = Some(fbb.create_vector(&names));
                    let args = ringmq_schema::route::QueryRouteArgs { topics, subscribe: false };
                    ringmq_schema::route::QueryRoute::create(fbb, &args)
                },
            );
        }
        deaf.stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        if deaf.stream.write_all(&out).is_err() {
            break;
        }
        broker.query(&["t"], false);
    }
    let error = deaf.stream.write_all(&vec![0; 1 << 20]).expect_err("closed by the server");
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
    broker.register("a", 1, &[topic("t", 1)]);
    assert_eq!(broker.query(&["t"], false).routes(), [at("t", &[("a", 1)])]);
    server.stop().unwrap();
}

#[test]
fn a_taken_port_and_an_open_network_are_refused_at_start() {
    let server = start(config());
    let taken = NamesrvConfig { listen: server.address(), ..config() };
    let error = format!("{:#}", NameServer::start(taken).unwrap_err());
    assert!(error.contains(&server.address().to_string()), "{error}");
    let open = NamesrvConfig { listen: "0.0.0.0:0".parse().unwrap(), ..config() };
    let error = format!("{:#}", NameServer::start(open).unwrap_err());
    assert!(error.contains("--insecure"), "{error}");
    server.stop().unwrap();
}
