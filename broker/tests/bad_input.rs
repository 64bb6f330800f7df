//! Whatever a client sends, it loses its own connection at most; the broker tells it why and goes on.

mod wire;

use ringmq_schema::connection::{Ping, PingArgs};
use ringmq_schema::error::Status;
use ringmq_schema::frame::{ANY_SHARD, FrameHeader};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::route::{QueryCluster, QueryClusterArgs};
use ringmq_schema::zerocopy::IntoBytes;
use std::io::Write;
use std::time::{Duration, Instant};
use wire::{Process, Wire, data};

fn header(opcode: u16, flags: u8, run_bytes: usize) -> FrameHeader {
    FrameHeader::new(opcode, flags, ANY_SHARD, Status::Ok, 7, 0, run_bytes)
}

fn ping(wire: &mut Wire) -> Status {
    let answer = wire
        .request(Opcode::Ping, ANY_SHARD, &[], |fbb| Ping::create(fbb, &PingArgs { sent_ms: 1 }));
    answer.status()
}

#[test]
fn bytes_that_are_no_frame_are_refused_and_the_connection_closes() {
    let folder = Process::folder();
    let broker = Process::start(&data(&folder), &["--shards", "1"]);
    let mut good = Wire::connect(&broker.address, 0);
    let mut flipped = header(2, 0, 0).as_bytes().to_vec();
    flipped[9] ^= 0x40;
    let large = header(Opcode::Produce.code(), 0, 64 << 20);
    let answer = header(2, 1, 0);
    let cases: [(&[u8], Status, u64); 4] = [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", Status::BadFrame, 0),
        (&flipped, Status::BadFrame, 0),
        (large.as_bytes(), Status::FrameTooLarge, 7),
        (answer.as_bytes(), Status::BadRequest, 7),
    ];
    for greets in [false, true] {
        for (bytes, status, correlation) in cases {
            let mut wire = Wire::silent(&broker.address);
            if greets {
                wire.hello(0).ok();
            }
            wire.stream.write_all(bytes).unwrap();
            // What it still sends is thrown away, so that it can read why it was refused.
            let _ = wire.stream.write_all(&vec![0; 1 << 20]);
            let answer = wire.receive().expect("a refusal");
            assert_eq!(answer.status(), status, "{}", answer.refusal());
            assert_eq!(answer.frame().header.correlation.get(), correlation);
            assert!(wire.is_closed());
        }
    }
    assert_eq!(ping(&mut good), Status::Ok);
}

#[test]
fn requests_that_cannot_be_served_are_refused_and_the_connection_goes_on() {
    let folder = Process::folder();
    let broker = Process::start(&data(&folder), &["--shards", "2", "--max-frame-bytes", "128 KiB"]);
    let mut wire = Wire::silent(&broker.address);
    assert_eq!(ping(&mut wire), Status::HelloRequired);
    assert!(wire.is_closed());
    let mut wire = Wire::silent(&broker.address);
    assert_eq!(wire.hello(9).status(), Status::BadRequest);
    let mut wire = Wire::connect(&broker.address, 1);
    wire.stream.write_all(header(999, 0, 0).as_bytes()).unwrap();
    assert_eq!(wire.receive().unwrap().status(), Status::UnknownOpcode);
    let query = wire.request(Opcode::QueryCluster, ANY_SHARD, &[], |fbb| {
        QueryCluster::create(fbb, &QueryClusterArgs {})
    });
    assert!(query.refusal().contains("name server"), "{}", query.refusal());
    for opcode in
        [Opcode::Pop, Opcode::Authenticate, Opcode::Ping, Opcode::Fetch, Opcode::CreateTopic]
    {
        wire.stream.write_all(header(opcode.code(), 0, 64).as_bytes()).unwrap();
        wire.stream.write_all(&[0xff; 64]).unwrap();
        let answer = wire.receive().unwrap();
        assert!(matches!(answer.status(), Status::Unsupported | Status::BadRequest), "{opcode:?}");
    }
    let topic = wire.create_topic("orders", 2);
    let error = wire.produce(topic, 0, 7, &[b"x"]).unwrap_err();
    assert!(error.contains("no shard 7"), "{error}");
    let error = wire.produce(topic + 1, 0, ANY_SHARD, &[b"x"]).unwrap_err();
    assert!(error.starts_with("UnknownTopic") || error.starts_with("WrongShard"), "{error}");
    assert_eq!(ping(&mut wire), Status::Ok);
}

#[test]
fn frames_may_come_in_drops_and_larger_than_the_receive_buffer() {
    let folder = Process::folder();
    let broker = Process::start(&data(&folder), &["--shards", "1"]);
    let mut wire = Wire::connect(&broker.address, 0);
    let topic = wire.create_topic("orders", 1);
    let large = vec![7; 3 << 20];
    for bodies in [vec![&large[..]], vec![&b"small"[..]; 3], vec![&large[..20_000]; 40]] {
        wire.produce(topic, 0, 0, &bodies).unwrap();
    }
    let found = wire.fetch(topic, 0, 0, 0);
    assert!(found[0] == large);
    let ping = header(Opcode::Ping.code(), 0, 0);
    for byte in ping.as_bytes() {
        wire.stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(wire.receive().unwrap().status(), Status::BadRequest, "a ping without its table");
}

#[test]
fn silence_ends_by_deadlines() {
    let folder = Process::folder();
    let more = ["--shards", "1", "--handshake-timeout", "1s", "--frame-timeout", "1s"];
    let broker = Process::start(&data(&folder), &more);
    let begun = Instant::now();
    let mut silent = Wire::silent(&broker.address);
    let mut half = Wire::connect(&broker.address, 0);
    half.stream.write_all(&header(Opcode::Produce.code(), 0, 4096).as_bytes()[..20]).unwrap();
    let mut quiet = Wire::connect(&broker.address, 0);
    assert!(silent.is_closed());
    assert!(half.is_closed());
    assert!(begun.elapsed() < Duration::from_secs(10), "long before the client's own patience");
    assert_eq!(ping(&mut quiet), Status::Ok);
}

#[test]
fn one_connection_too_many_is_told_so() {
    let folder = Process::folder();
    let broker = Process::start(&data(&folder), &["--shards", "1", "--max-connections", "3"]);
    let mut wires: Vec<_> = (0..3).map(|_| Wire::connect(&broker.address, 0)).collect();
    let mut surplus = Wire::silent(&broker.address);
    let answer = surplus.hello(0);
    assert_eq!(answer.status(), Status::TooManyConnections, "{}", answer.refusal());
    assert!(surplus.is_closed());
    assert_eq!(ping(&mut wires[2]), Status::Ok);
}
