//! semantics.md, "Message": parts, sizes, ids and times, at their limits and beyond.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq::{ErrorKind, Message, MessageId, TopicSpec};
use ringmq_schema::build::{MessageSpec, RecordBuilder};
use ringmq_schema::error::{Retry, Status};
use ringmq_schema::flatbuffers::FlatBufferBuilder;
use ringmq_schema::limits::{BODY_BYTES_MAX, PROPERTIES_BYTES_MAX, PROPERTIES_MAX};
use ringmq_schema::message;
use ringmq_schema::placement::shard_of_queue;
use ringmq_schema::produce::Flush;
use ringmq_schema::record::{Kind, RecordHeader, record_bytes};
use ringmq_schema::zerocopy::IntoBytes;
use ringmq_tests::server::eventually;
use ringmq_tests::site::{Site, read_topic, send_all};
use ringmq_tests::wire::{Answer, Wire};
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

/// A client of the bare wire with a topic of one queue.
struct Raw {
    wire: Wire,
    target: (u32, u32, u16),
}

impl Raw {
    fn new(site: &Site) -> Raw {
        let mut wire = Wire::connect(site.broker().address(), 0).unwrap();
        let topic = wire.create_topic("raw", 1).unwrap();
        let target = (topic, 0, shard_of_queue(topic, 0, wire.shards));
        Raw { wire, target }
    }

    fn send(&mut self, record: &[u8]) -> Answer {
        self.wire.produce(self.target, record, 1, Flush::Sync).unwrap();
        self.wire.receive().unwrap()
    }

    /// A record as the client's own builder would never make it.
    fn record(&self, payload: &[u8], change: impl FnOnce(&mut RecordHeader)) -> Vec<u8> {
        let mut header = RecordHeader::new(Kind::Message, payload.len());
        header.topic = self.target.0.into();
        header.payload_checksum = crc32fast::hash(payload).into();
        change(&mut header);
        let mut record = header.as_bytes().to_vec();
        record.extend_from_slice(payload);
        record.resize(record_bytes(payload.len()), 0);
        record
    }

    fn with_body(&self, bytes: usize) -> Vec<u8> {
        let mut fbb = FlatBufferBuilder::new();
        let body = Some(fbb.create_vector(&vec![7u8; bytes]));
        let args = message::MessageArgs { body, ..message::MessageArgs::default() };
        let root = message::Message::create(&mut fbb, &args);
        fbb.finish_minimal(root);
        self.record(fbb.finished_data(), |_| {})
    }
}

fn refused(answer: &Answer, limit: usize) {
    let text = answer.refusal();
    assert_eq!(answer.status, Status::MessageTooLarge, "{text}");
    assert_eq!(answer.status.retry(), Retry::Never, "it will never be taken");
    assert!(text.contains(&limit.to_string()), "{text:?} does not say {limit}");
}

#[test]
fn a_body_of_four_mebibytes_is_taken_and_one_more_byte_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["--segment-bytes=32 MiB", "--unit-bytes=1 MiB"];
    let mut site = Site::new(folder.path(), &[]);
    site.options.more = more.map(str::to_owned).to_vec();
    let site = site.stop_and_restart();
    site.run(async |client| {
        client.admin().create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
        let producer = client.producer("sender").build().await.unwrap();
        for bytes in [0, 1, BODY_BYTES_MAX] {
            let message = Message::new("orders", vec![bytes as u8; bytes]);
            let _stored = producer.send(message).await.unwrap();
        }
        let large = || Message::new("orders", vec![0; BODY_BYTES_MAX + 1]);
        let refused = |error: ringmq::Error| {
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            assert!(!error.is_retryable() && error.to_string().contains("4194304"), "{error}");
        };
        refused(producer.send(large()).await.unwrap_err());
        refused(producer.send_batch([Message::new("orders", "x"), large()]).await.unwrap_err());
        let records = &read_topic(&client, "orders").await[&0];
        let lengths: Vec<usize> = records.iter().map(|record| record.body().len()).collect();
        assert_eq!(lengths, [0, 1, BODY_BYTES_MAX]);
    });
    let mut raw = Raw::new(&site);
    let fits = raw.with_body(BODY_BYTES_MAX);
    assert_eq!(raw.send(&fits).status, Status::Ok);
    let large = raw.with_body(BODY_BYTES_MAX + 1);
    refused(&raw.send(&large), BODY_BYTES_MAX);
    site.end();
}

#[test]
fn properties_are_taken_up_to_their_number_and_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let many = |count: usize| {
        (0..count).fold(Message::new("orders", "many"), |message, n| {
            message.property(format!("key-{n}"), n.to_string())
        })
    };
    let long =
        |bytes: usize| Message::new("orders", "long").property("key", "ä".repeat((bytes - 3) / 2));
    site.run(async |client| {
        client.admin().create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
        let producer = client.producer("sender").build().await.unwrap();
        let fit = [many(PROPERTIES_MAX), long(PROPERTIES_BYTES_MAX)];
        let _stored = send_all(&producer, fit).await;
        for message in [many(PROPERTIES_MAX + 1), long(PROPERTIES_BYTES_MAX + 2)] {
            let error = producer.send(message).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            let text = error.to_string();
            assert!(text.contains("128") && text.contains("32767"), "{text}");
        }
        let records = &read_topic(&client, "orders").await[&0];
        assert_eq!(records[0].properties().len(), PROPERTIES_MAX);
        assert_eq!(records[0].property("key-77"), Some("77"));
        assert_eq!(records[1].property("key").unwrap().len() + 3, PROPERTIES_BYTES_MAX);
    });
    let mut raw = Raw::new(&site);
    let mut payload = Vec::new();
    RecordBuilder::new().append(&mut payload, 0, 0, &MessageSpec::default()).unwrap();
    let payload = payload[ringmq_schema::record::HEADER_BYTES..].to_vec();
    let mut send = |count: usize, bytes: usize| {
        let record = raw.record(&payload, |header| {
            header.property_count = (count as u16).into();
            header.property_bytes = (bytes as u16).into();
        });
        raw.send(&record)
    };
    assert_eq!(send(PROPERTIES_MAX, PROPERTIES_BYTES_MAX).status, Status::Ok);
    refused(&send(PROPERTIES_MAX + 1, 0), PROPERTIES_MAX);
    refused(&send(1, PROPERTIES_BYTES_MAX + 1), PROPERTIES_BYTES_MAX);
    site.end();
}

#[test]
fn a_message_keeps_its_parts_and_times() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let begun = SystemTime::now() - Duration::from_millis(1);
    let (receipt, ended) = site.run(async |client| {
        client.admin().create_topic(TopicSpec::new("orders").queues(1)).await.unwrap();
        let producer = client.producer("sender").build().await.unwrap();
        let message = Message::new("orders", "body").tag("paid").keys(["42", "43"]);
        let message = message.property("region", "eu").property("", "ü").flag(-7).group("user-7");
        let receipt = producer.send(message).await.unwrap();
        let _plain = producer.send(Message::new("orders", "")).await.unwrap();
        (receipt, SystemTime::now())
    });
    let site = site.kill_and_restart();
    site.run(async |client| {
        let records = &read_topic(&client, "orders").await[&0];
        let full = &records[0];
        assert_eq!((full.topic(), full.body()), ("orders", &b"body"[..]));
        assert_eq!((full.tag(), full.keys()), (Some("paid"), vec!["42", "43"]));
        assert_eq!(full.properties(), [("region", "eu"), ("", "ü")]);
        assert_eq!((full.flag(), full.group()), (-7, Some("user-7")));
        assert_eq!((full.message_id(), full.offset()), (receipt.message_id, receipt.offset));
        let times = [begun, full.born_at(), full.stored_at(), ended];
        assert!(times.is_sorted(), "{times:?}");
        let plain = &records[1];
        assert_eq!((plain.tag(), plain.keys().len(), plain.properties().len()), (None, 0, 0));
        assert_eq!((plain.flag(), plain.group(), plain.body()), (0, None, &b""[..]));
    });
    site.end();
}

#[test]
fn message_ids_are_unique_and_sort_by_time() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        client.admin().create_topic(TopicSpec::new("orders").queues(4)).await.unwrap();
        let mut ids: Vec<MessageId> = Vec::new();
        for name in ["one", "two", "three"] {
            let producer = client.producer(name).build().await.unwrap();
            let messages = (0..2000).map(|n| Message::new("orders", format!("{name} {n}")));
            let receipts = send_all(&producer, messages).await;
            let of_producer: Vec<MessageId> = receipts.iter().map(|r| r.message_id).collect();
            assert!(of_producer.is_sorted(), "in the order in which they were made");
            ids.extend(of_producer);
            // Those of the next are made in a later millisecond.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(ids.is_sorted(), "ids of different producers sort by time");
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
        assert!(ids.iter().all(|id| id.to_string().parse::<MessageId>().unwrap() == *id));
    });
    site.end();
}

/// Both ids, of a message in a sealed segment and of one in the last, before and after a restart of either kind.
#[test]
fn unique_and_stored_ids_are_looked_up_in_sealed_segments_and_after_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &["--tail-cache-bytes=64 KiB"]);
    let ids = site.run(async |client| {
        client.admin().create_topic(TopicSpec::new("orders").queues(2)).await.unwrap();
        let producer = client.producer("sender").build().await.unwrap();
        let messages = (0..3000u32).map(|n| Message::new("orders", format!("{n:04000}")));
        let receipts = send_all(&producer, messages).await;
        let records = read_topic(&client, "orders").await;
        let ids = [0, 1, 500, 1500, 2998, 2999].map(|n: usize| {
            let receipt = &receipts[n];
            let record = &records[&receipt.queue.id][receipt.offset as usize];
            assert_eq!(record.message_id(), receipt.message_id);
            (n, receipt.message_id, record.stored_id())
        });
        assert_eq!(&*ids[0].2.broker, "broker-a");
        ids
    });
    eventually("indexes are there", || {
        site.broker().metric("ringmq_segments_indexed_total") >= 6.0
    });
    let check = async |client: ringmq::Client| {
        for (n, message_id, stored_id) in &ids {
            let body = format!("{n:04000}");
            let found = client.admin().message(Some("orders"), *message_id).await.unwrap();
            assert_eq!((found.body(), found.stored_id()), (body.as_bytes(), stored_id.clone()));
            let found = client.admin().message(None, stored_id.clone()).await.unwrap();
            assert_eq!((found.body(), found.message_id()), (body.as_bytes(), *message_id));
            // As people write them.
            let again: ringmq::StoredMessageId = stored_id.to_string().parse().unwrap();
            assert_eq!(again, *stored_id);
        }
    };
    site.run(check);
    let site = site.kill_and_restart();
    site.run(check);
    let site = site.stop_and_restart();
    site.run(check);
    site.end();
}
