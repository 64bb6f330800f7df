//! `PROTOCOL.md` says what the code does: numbers, names, layouts and worked values are compared.

#![allow(clippy::unwrap_used)] // A test says what went wrong by panicking.

use ringmq_schema::build::{FrameBuilder, MessageSpec, RecordBuilder};
use ringmq_schema::connection::{Ping, PingArgs};
use ringmq_schema::error::{Retry, Status};
use ringmq_schema::frame;
use ringmq_schema::limits;
use ringmq_schema::opcode::{Opcode, Permission, Place};
use ringmq_schema::placement::{fnv1a, mix, route_hash, shard_of_group, shard_of_queue};
use ringmq_schema::record::{self, Kind};
use std::fmt::Write;

const PAGE: &str = include_str!("../PROTOCOL.md");

#[track_caller]
fn says(text: &str) {
    assert!(PAGE.contains(text), "PROTOCOL.md does not say:\n{text}");
}

#[test]
fn every_opcode_stands_in_the_page() {
    for opcode in Opcode::ALL {
        let permission = match opcode.permission() {
            Permission::Open => "open",
            Permission::Publish => "publish",
            Permission::Subscribe => "subscribe",
            Permission::Create => "create",
            Permission::Update => "update",
            Permission::Delete => "delete",
            Permission::Get => "get",
            Permission::List => "list",
            Permission::Peer => "peer",
        };
        let place = match opcode.place() {
            Place::Connection => "connection",
            Place::Shard => "shard",
            Place::Home => "home",
            Place::NameServer => "name server",
        };
        let (code, name) = (opcode.code(), opcode.name());
        // What is not served yet has its number and place, and says so.
        let later = if opcode.is_served() { "" } else { " *later*" };
        says(&format!("\n| {code} | `{name}`{later} | {permission} | {place} |"));
    }
}

#[test]
fn every_status_stands_in_the_page() {
    for status in Status::ALL {
        let retry = match status.retry() {
            Retry::Never => "never",
            Retry::Here => "here",
            Retry::Elsewhere => "elsewhere",
            Retry::AfterRefresh => "after refresh",
        };
        says(&format!("\n| {} | `{}` | {retry} |", status.code(), status.name()));
    }
}

#[test]
fn every_record_kind_stands_in_the_page() {
    for code in 0..=u8::MAX {
        if let Some(kind) = Kind::from_code(code) {
            says(&format!("\n| {code} | `{kind:?}` |"));
        }
    }
}

#[test]
fn worked_values_of_hashes() {
    for text in ["", "a", "billing"] {
        says(&format!("fnv1a({text:?}) = {:#018x}", fnv1a(text.as_bytes())));
    }
    for value in [0, 1, u64::MAX] {
        says(&format!("mix({value:#x}) = {:#018x}", mix(value)));
    }
    for (topic, queue, shards) in [(1, 0, 4), (1, 1, 4), (1, 3, 4), (7, 5, 3), (1000, 0, 2)] {
        let shard = shard_of_queue(topic, queue, shards);
        says(&format!("shard_of_queue({topic}, {queue}, {shards}) = {shard}"));
    }
    for (group, shards) in [("billing", 4), ("billing", 3), ("audit", 4)] {
        says(&format!("shard_of_group({group:?}, {shards}) = {}", shard_of_group(group, shards)));
    }
    let hash = route_hash("orders", 3, 17, 8, 8, 6, 0);
    says(&format!("route_hash(\"orders\", 3, 17, 8, 8, 6, 0) = {hash:#018x}"));
    for tag in ["paid", "refunded"] {
        says(&format!("tag_hash({tag:?}) = {:#010x}", record::tag_hash(tag)));
        assert_eq!(record::tag_hash(tag), record::key_hash(tag));
    }
}

#[test]
fn worked_frames() {
    let mut bytes = Vec::new();
    FrameBuilder::new().request(&mut bytes, Opcode::Ping, frame::ANY_SHARD, 7, &[], |fbb| {
        Ping::create(fbb, &PingArgs { sent_ms: 42 })
    });
    says(&dump(&bytes));
    let mut bytes = Vec::new();
    FrameBuilder::new().done(&mut bytes, Opcode::GroupLeave.code(), 9);
    says(&dump(&bytes));
}

#[test]
fn a_worked_record() {
    let spec = MessageSpec {
        body: b"hello",
        tag: Some("paid"),
        keys: &["42"],
        message_id: *b"\x01\x93\x4f\x00\x00\x00\x70\x00\x80\x00\x00\x00\x00\x00\x00\x01",
        born_ms: 1_700_000_000_000,
        ..MessageSpec::default()
    };
    let mut run = Vec::new();
    RecordBuilder::new().append(&mut run, 3, 5, &spec).unwrap();
    says(&dump(&run));
}

fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (at, line) in bytes.chunks(16).enumerate() {
        let hex: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{:04x}  {}", at * 16, hex.join(" ")).unwrap();
    }
    text
}

#[test]
fn limits_stand_in_the_page() {
    for (name, value) in [
        ("TOPIC_NAME_BYTES_MAX", limits::TOPIC_NAME_BYTES_MAX),
        ("GROUP_NAME_BYTES_MAX", limits::GROUP_NAME_BYTES_MAX),
        ("BODY_BYTES_MAX", limits::BODY_BYTES_MAX),
        ("PROPERTIES_BYTES_MAX", limits::PROPERTIES_BYTES_MAX),
        ("PROPERTIES_MAX", limits::PROPERTIES_MAX),
        ("KEYS_MAX", limits::KEYS_MAX),
        ("RECORD_OVERHEAD_BYTES_MAX", limits::RECORD_OVERHEAD_BYTES_MAX),
        ("RECORD_BYTES_MAX", limits::RECORD_BYTES_MAX),
        ("BATCH_BYTES_MAX", limits::BATCH_BYTES_MAX),
        ("BATCH_RECORDS_MAX", limits::BATCH_RECORDS_MAX),
        ("TABLE_BYTES_MAX", limits::TABLE_BYTES_MAX),
        ("FRAME_BYTES_MAX", limits::FRAME_BYTES_MAX),
        ("FETCH_BYTES_MAX", limits::FETCH_BYTES_MAX),
        ("QUEUES_PER_REQUEST_MAX", limits::QUEUES_PER_REQUEST_MAX),
        ("FIND_RECORDS_MAX", limits::FIND_RECORDS_MAX),
        ("POP_RECORDS_MAX", limits::POP_RECORDS_MAX),
        ("RECEIPTS_MAX", limits::RECEIPTS_MAX),
        ("INVISIBLE_MS_MIN", limits::INVISIBLE_MS_MIN as usize),
        ("INVISIBLE_MS_MAX", limits::INVISIBLE_MS_MAX as usize),
        ("LONG_POLL_MS_MAX", limits::LONG_POLL_MS_MAX as usize),
        ("QUEUES_PER_TOPIC_MAX", limits::QUEUES_PER_TOPIC_MAX as usize),
        ("VERIFIER_DEPTH_MAX", limits::VERIFIER_DEPTH_MAX),
        ("VERIFIER_TABLES_MAX", limits::VERIFIER_TABLES_MAX),
        ("VERIFIER_TABLES_MAX_ANSWER", limits::VERIFIER_TABLES_MAX_ANSWER),
        ("QUEUES_DEFAULT", limits::QUEUES_DEFAULT as usize),
    ] {
        says(&format!("\n| `{name}` | {value} |"));
    }
}
