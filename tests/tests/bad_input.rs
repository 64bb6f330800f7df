//! promise: no-trust. Whatever comes in, the broker says what was wrong and goes on.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq_schema::admin::{CreateTopic, CreateTopicArgs, Topic, TopicArgs};
use ringmq_schema::build::{FrameBuilder, MessageSpec, RecordBuilder};
use ringmq_schema::connection::{Ping, PingArgs};
use ringmq_schema::consume::{
    CommitEntry, CommitOffsets, CommitOffsetsArgs, Fetch, FetchAnswer, FetchArgs, FetchQueue,
    GroupHeartbeat, GroupHeartbeatArgs, MemberId,
};
use ringmq_schema::error::Status;
use ringmq_schema::frame::{self, ANY_SHARD, FrameHeader};
use ringmq_schema::limits;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement::shard_of_queue;
use ringmq_schema::produce::Flush;
use ringmq_schema::zerocopy::IntoBytes;
use ringmq_tests::server::{BrokerOptions, Process};
use ringmq_tests::wire::{Answer, Wire, run};
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

struct Broker {
    process: Process,
    _folder: tempfile::TempDir,
}

fn broker(more: &[(&str, &str)]) -> Broker {
    let folder = tempfile::tempdir().unwrap();
    let mut options = BrokerOptions::new("broker-a", folder.path());
    for (flag, value) in more {
        options = options.with(flag, value);
    }
    Broker { process: options.start(), _folder: folder }
}

impl Broker {
    fn wire(&self) -> Wire {
        Wire::connect(self.process.address(), ANY_SHARD).unwrap()
    }

    /// The broker still does its work.
    fn goes_on(&self) {
        let mut wire = self.wire();
        let topic = wire.create_topic("goes-on", 2).unwrap();
        let place = (topic, 1, shard_of_queue(topic, 1, wire.shards));
        let records = run(topic, 1, &[b"still here".to_vec()]);
        let id = wire.produce(place, &records, 1, Flush::Sync).unwrap();
        let answer = wire.receive().unwrap();
        assert_eq!((answer.correlation, answer.status), (id, Status::Ok), "{}", answer.refusal());
    }
}

/// What the broker answers to raw bytes before it closes the connection.
fn raw(broker: &Broker, greeted: bool, bytes: &[u8]) -> Answer {
    let mut wire =
        if greeted { broker.wire() } else { Wire::silent(broker.process.address()).unwrap() };
    wire.stream.write_all(bytes).unwrap();
    let answer = wire.receive().expect("an answer before the connection closes");
    assert!(closed(&mut wire), "nothing more can be understood on this connection");
    answer
}

fn closed(wire: &mut Wire) -> bool {
    match wire.stream.read(&mut [0; 1024]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn refused(answer: &Answer, status: Status, words: &[&str]) {
    let text = answer.refusal();
    assert_eq!(answer.status, status, "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
fn frames_that_are_none() {
    let broker = broker(&[]);
    refused(&raw(&broker, false, b"GET / HTTP/1.1\r\n\r\n"), Status::BadFrame, &["RMQ1"]);
    refused(&raw(&broker, true, &[0xff; 64]), Status::BadFrame, &["no RingMQ frame"]);
    let good = FrameHeader::new(Opcode::Ping.code(), 0, ANY_SHARD, Status::Ok, 1, 0, 0);
    let mut damaged = good;
    damaged.correlation = 2.into();
    refused(&raw(&broker, true, damaged.as_bytes()), Status::BadFrame, &["checksum"]);
    let mut other = good.as_bytes().to_vec();
    other[8] = 9;
    let sum = crc32fast::hash(&other[..28]);
    other[28..32].copy_from_slice(&sum.to_le_bytes());
    refused(&raw(&broker, true, &other), Status::VersionMismatch, &["version 9"]);
    broker.goes_on();
}

#[test]
fn a_frame_beyond_the_limit_is_refused_before_a_byte_of_it() {
    let broker = broker(&[("--max-frame-bytes", "1 MiB")]);
    // The header alone: the broker must not wait for the rest.
    let header = FrameHeader::new(Opcode::Produce.code(), 0, ANY_SHARD, Status::Ok, 7, 8, 3 << 20);
    let answer = raw(&broker, true, header.as_bytes());
    refused(&answer, Status::FrameTooLarge, &["1048576"]);
    broker.goes_on();
}

#[test]
fn half_a_frame_and_silence() {
    let broker = broker(&[
        ("--handshake-timeout", "300ms"),
        ("--frame-timeout", "300ms"),
        ("--idle-timeout", "600ms"),
    ]);
    let mut silent = Wire::silent(broker.process.address()).unwrap();
    let mut half = broker.wire();
    half.stream
        .write_all(&FrameHeader::new(10, 0, 0, Status::Ok, 1, 8, 80).as_bytes()[..20])
        .unwrap();
    let mut body = broker.wire();
    body.stream.write_all(FrameHeader::new(10, 0, 0, Status::Ok, 1, 8, 80).as_bytes()).unwrap();
    let mut idle = broker.wire();
    for wire in [&mut silent, &mut half, &mut body, &mut idle] {
        // An answer may say why; the end must come.
        while wire.receive().is_ok() {}
    }
    broker.goes_on();
}

#[test]
fn a_request_before_hello_or_of_no_known_kind() {
    let broker = broker(&[]);
    let mut wire = Wire::silent(broker.process.address()).unwrap();
    let answer = wire
        .call(Opcode::Ping, ANY_SHARD, &[], |fbb| Ping::create(fbb, &PingArgs::default()))
        .unwrap();
    refused(&answer, Status::HelloRequired, &["Hello"]);
    let mut wire = broker.wire();
    let header = FrameHeader::new(999, 0, ANY_SHARD, Status::Ok, 5, 0, 0);
    wire.stream.write_all(header.as_bytes()).unwrap();
    refused(&wire.receive().unwrap(), Status::UnknownOpcode, &["999"]);
    for opcode in Opcode::ALL.iter().filter(|o| !o.is_served()) {
        let header = FrameHeader::new(opcode.code(), 0, ANY_SHARD, Status::Ok, 5, 0, 0);
        wire.stream.write_all(header.as_bytes()).unwrap();
        refused(&wire.receive().unwrap(), Status::Unsupported, &[opcode.name()]);
    }
    broker.goes_on();
}

#[test]
fn tables_of_garbage() {
    let broker = broker(&[]);
    let mut wire = broker.wire();
    let mut seed = 1u64;
    for opcode in Opcode::ALL.iter().filter(|o| o.is_served() && **o != Opcode::Hello) {
        for length in [0usize, 4, 8, 60, 404, 4000] {
            let mut table = vec![0u8; length];
            for byte in &mut table {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (seed >> 33) as u8;
            }
            let header = FrameHeader::new(opcode.code(), 0, ANY_SHARD, Status::Ok, 6, length, 0);
            wire.stream.write_all(header.as_bytes()).unwrap();
            table.resize(frame::padded(length), 0);
            wire.stream.write_all(&table).unwrap();
            let answer = wire.receive().unwrap();
            // Requests that have nothing to say do not look at their table.
            let free = matches!(opcode, Opcode::QueryShard | Opcode::Ping);
            assert!(free || answer.status != Status::Ok, "{} took garbage", opcode.name());
        }
    }
    broker.goes_on();
}

#[test]
fn unknown_topics_queues_and_groups() {
    let broker = broker(&[]);
    let mut wire = broker.wire();
    let topic = wire.create_topic("orders", 2).unwrap();
    let shards = wire.shards;
    let mut produce = |topic: u32, queue: u32| {
        let shard = shard_of_queue(topic, queue, shards);
        let records = run(topic, queue, &[vec![1]]);
        wire.produce((topic, queue, shard), &records, 1, Flush::Sync).unwrap();
        wire.receive().unwrap()
    };
    refused(&produce(topic + 50, 0), Status::UnknownTopic, &["name server"]);
    refused(&produce(topic, 2), Status::UnknownQueue, &["2 write queues", "no queue 2"]);
    let shard = shard_of_queue(topic, 0, shards);
    let wrong = 1 - shard;
    let records = run(topic, 0, &[vec![1]]);
    wire.produce((topic, 0, wrong), &records, 1, Flush::Sync).unwrap();
    refused(&wire.receive().unwrap(), Status::WrongShard, &["lives on shard"]);

    let answer = wire
        .call(Opcode::CommitOffsets, shard, &[], |fbb| {
            let entries = Some(fbb.create_vector(&[CommitEntry::new(topic, 0, 0, 0, 0, 0)]));
            let args = CommitOffsetsArgs { group: 77, entries, ..CommitOffsetsArgs::default() };
            CommitOffsets::create(fbb, &args)
        })
        .unwrap();
    refused(&answer, Status::UnknownGroup, &["77"]);

    let mut out_of_range = |offset: u64, queue: u32| {
        let shard = shard_of_queue(topic, queue, shards);
        let answer = wire.call(Opcode::Fetch, shard, &[], |fbb| {
            let queues = Some(fbb.create_vector(&[FetchQueue::new(topic, queue, offset, 0, 0, 0)]));
            Fetch::create(fbb, &FetchArgs { queues, ..FetchArgs::default() })
        });
        let answer = answer.unwrap();
        assert_eq!(answer.status, Status::Ok, "{}", answer.refusal());
        let table = frame::read_table::<FetchAnswer<'_>>(&answer.table).unwrap();
        Status::from_code(table.queues().unwrap().get(0).status())
    };
    assert_eq!(out_of_range(1, 0), Status::OffsetOutOfRange);
    assert_eq!(out_of_range(u64::MAX, 1), Status::OffsetOutOfRange);
    assert_eq!(out_of_range(0, 9), Status::UnknownQueue);
    broker.goes_on();
}

#[test]
fn names_and_messages_outside_the_rules() {
    let broker = broker(&[]);
    let mut wire = broker.wire();
    for (name, word) in [("a b", "' '"), ("", "empty"), ("%DLQ%x", "reserved"), ("a/../b", "'/'")] {
        let error = wire.create_topic(name, 1).unwrap_err().to_string();
        assert!(error.contains("BadName") && error.contains(word), "{error}");
    }
    let long = "x".repeat(limits::TOPIC_NAME_BYTES_MAX + 1);
    assert!(wire.create_topic(&long, 1).unwrap_err().to_string().contains("127"));
    assert!(wire.create_topic("none", 0).unwrap_err().to_string().contains("BadRequest"));
    let answer = wire
        .call(Opcode::CreateTopic, ANY_SHARD, &[], |fbb| {
            let name = Some(fbb.create_string("perm"));
            let (read_queues, write_queues, permission) = (1, 1, 77);
            let args =
                TopicArgs { name, read_queues, write_queues, permission, ..TopicArgs::default() };
            let topic = Some(Topic::create(fbb, &args));
            CreateTopic::create(fbb, &CreateTopicArgs { topic })
        })
        .unwrap();
    refused(&answer, Status::BadRequest, &["permission"]);
    let answer = wire
        .call(Opcode::GroupHeartbeat, ANY_SHARD, &[], |fbb| {
            let group = Some(fbb.create_string("no such/name"));
            let member = MemberId::new(1, 2);
            let args = GroupHeartbeatArgs {
                group,
                member: Some(&member),
                ..GroupHeartbeatArgs::default()
            };
            GroupHeartbeat::create(fbb, &args)
        })
        .unwrap();
    refused(&answer, Status::BadName, &["' '"]);

    let topic = wire.create_topic("orders", 1).unwrap();
    let shard = shard_of_queue(topic, 0, wire.shards);
    let mut send = |records: &[u8], count: u32| {
        wire.produce((topic, 0, shard), records, count, Flush::Sync).unwrap();
        wire.receive().unwrap()
    };
    let good = run(topic, 0, &[vec![7; 100]]);
    let mut damaged = good.clone();
    damaged[200] ^= 1;
    refused(&send(&damaged, 1), Status::BadChecksum, &["checksum"]);
    refused(&send(&good, 2), Status::BadRecord, &["1 records where the request says 2"]);
    refused(&send(&[], 0), Status::BadRecord, &["0 records"]);
    refused(&send(&good[..good.len() - 8], 1), Status::BadRecord, &["ends inside"]);
    refused(&send(&run(topic, 5, &[vec![1]]), 1), Status::BadRecord, &["another topic or queue"]);
    let mut delayed = Vec::new();
    let spec = MessageSpec { body: b"x", deliver_ms: i64::MAX, ..MessageSpec::default() };
    RecordBuilder::new().append(&mut delayed, topic, 0, &spec).unwrap();
    refused(&send(&delayed, 1), Status::BadRecord, &["40 days"]);
    let mixed = [&good[..], &delayed[..]].concat();
    refused(&send(&mixed, 2), Status::BadRecord, &["delayed messages or others"]);
    broker.goes_on();
}

#[test]
fn a_body_above_four_mebibytes() {
    let broker = broker(&[]);
    let mut wire = broker.wire();
    let topic = wire.create_topic("orders", 1).unwrap();
    let shard = shard_of_queue(topic, 0, wire.shards);
    // The builder refuses it; a record made by hand is refused by the broker.
    let largest = vec![1; limits::BODY_BYTES_MAX];
    let records = run(topic, 0, std::slice::from_ref(&largest));
    wire.produce((topic, 0, shard), &records, 1, Flush::Sync).unwrap();
    let answer = wire.receive().unwrap();
    assert_eq!(answer.status, Status::Ok, "{}", answer.refusal());
    let fetched = wire.fetch((topic, 0, shard), 0, 1000).unwrap();
    assert_eq!(fetched.bodies[0].1, largest);
    let body = vec![1u8; limits::BODY_BYTES_MAX + 100_000];
    let mut frame = Vec::new();
    let payload = {
        use ringmq_schema::message::{Message, MessageArgs};
        let mut fbb = ringmq_schema::flatbuffers::FlatBufferBuilder::new();
        let body = Some(fbb.create_vector(&body));
        let root = Message::create(&mut fbb, &MessageArgs { body, ..MessageArgs::default() });
        fbb.finish_minimal(root);
        fbb.finished_data().to_vec()
    };
    let mut header = ringmq_schema::record::RecordHeader::new(
        ringmq_schema::record::Kind::Message,
        payload.len(),
    );
    header.topic = topic.into();
    header.payload_checksum = crc32fast::hash(&payload).into();
    let mut record = header.as_bytes().to_vec();
    record.extend_from_slice(&payload);
    record.resize(ringmq_schema::record::record_bytes(payload.len()), 0);
    FrameBuilder::new().request(&mut frame, Opcode::Produce, shard, 9, &record, |fbb| {
        use ringmq_schema::produce::{Produce, ProduceArgs};
        Produce::create(fbb, &ProduceArgs { topic, records: 1, ..ProduceArgs::default() })
    });
    wire.stream.write_all(&frame).unwrap();
    let answer = wire.receive().unwrap();
    refused(&answer, Status::MessageTooLarge, &["at most"]);
    broker.goes_on();
}

#[test]
fn a_connection_too_many() {
    let broker = broker(&[("--max-connections", "3")]);
    let mut held = Vec::new();
    let refusal = loop {
        match Wire::connect(broker.process.address(), ANY_SHARD) {
            Ok(wire) => held.push(wire),
            Err(error) => break error.to_string(),
        }
        assert!(held.len() <= 3);
    };
    assert!(refusal.contains("TooManyConnections"), "{refusal}");
    held.clear();
    ringmq_tests::server::eventually("a place is free again", || {
        Wire::connect(broker.process.address(), ANY_SHARD).is_ok()
    });
}

#[test]
fn a_second_broker_a_taken_port_a_directory_that_cannot_be() {
    let first = broker(&[]);
    let options = BrokerOptions::new("broker-b", first._folder.path());
    let error = Process::try_start("second", "ringmq-broker", &options.args()).unwrap_err();
    assert!(error.contains("another broker"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let mut options = BrokerOptions::new("broker-b", folder.path());
    options.port = first.process.address().port();
    let error = Process::try_start("taken", "ringmq-broker", &options.args()).unwrap_err();
    assert!(error.contains("in use"), "{error}");
    let options = BrokerOptions::new("broker-b", std::path::Path::new("/proc/nowhere"));
    let error = Process::try_start("nowhere", "ringmq-broker", &options.args()).unwrap_err();
    assert!(error.contains("/proc/nowhere"), "{error}");
    let options = BrokerOptions::new("b", folder.path()).with("--segmnt-bytes", "1 MiB");
    let error = Process::try_start("typo", "ringmq-broker", &options.args()).unwrap_err();
    assert!(error.contains("segment-bytes"), "{error}");
    let options = BrokerOptions::new("b", folder.path()).with("--listen", "0.0.0.0");
    let error = Process::try_start("open", "ringmq-broker", &options.args()).unwrap_err();
    assert!(error.contains("insecure"), "{error}");
    first.goes_on();
}

#[test]
fn random_bytes_on_many_connections() {
    let broker = broker(&[("--frame-timeout", "500ms"), ("--handshake-timeout", "500ms")]);
    let mut seed = 7u64;
    for round in 0..100usize {
        let mut wire = if round % 2 == 0 {
            Wire::silent(broker.process.address()).unwrap()
        } else {
            broker.wire()
        };
        let bytes: Vec<u8> = (0..round * 37)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(3);
                (seed >> 40) as u8
            })
            .collect();
        wire.stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        // The broker may have closed meanwhile: that is its answer.
        let _ = wire.stream.write_all(&bytes);
    }
    broker.goes_on();
}

/// promise: bounded.
#[test]
fn topics_queues_members_and_fetches_beyond_their_limits() {
    let broker = broker(&[
        ("--max-topics", "3"),
        ("--max-queues", "10"),
        ("--max-members", "1"),
        ("--max-waiting-fetches", "2"),
    ]);
    let mut wire = broker.wire();
    let topic = wire.create_topic("one", 4).unwrap();
    wire.create_topic("two", 4).unwrap();
    let error = wire.create_topic("wide", 4).unwrap_err().to_string();
    assert!(error.contains("TooMany") && error.contains("at most 10"), "{error}");
    wire.create_topic("three", 1).unwrap();
    let error = wire.create_topic("four", 1).unwrap_err().to_string();
    assert!(error.contains("TooMany") && error.contains("3 topics"), "{error}");

    let group_shard = ringmq_schema::placement::shard_of_group("g", wire.shards);
    let mut join = |member: u64| {
        let answer = wire.call(Opcode::GroupHeartbeat, group_shard, &[], |fbb| {
            let group = Some(fbb.create_string("g"));
            let member = MemberId::new(1, member);
            let args = GroupHeartbeatArgs {
                group,
                member: Some(&member),
                ..GroupHeartbeatArgs::default()
            };
            GroupHeartbeat::create(fbb, &args)
        });
        answer.unwrap()
    };
    assert_eq!(join(1).status, Status::Ok);
    refused(&join(2), Status::TooMany, &["1 members"]);

    let shard = shard_of_queue(topic, 0, wire.shards);
    let mut wait = || {
        wire.send(Opcode::Fetch, shard, &[], |fbb| {
            let queues = Some(fbb.create_vector(&[FetchQueue::new(topic, 0, 0, 0, 0, 0)]));
            Fetch::create(fbb, &FetchArgs { queues, wait_ms: 60_000, ..FetchArgs::default() })
        })
        .unwrap()
    };
    let (_first, _second, third) = (wait(), wait(), wait());
    let answer = wire.receive().unwrap();
    assert_eq!(answer.correlation, third);
    refused(&answer, Status::Busy, &["2 fetches wait"]);
}
