//! Answers: each must verify, say what its request asked for, and bring whole records.

use super::{Fetched, Intent, OffsetsOf, PoppedOne, QueueKey, Received, Reply, TopicSeen};
use crate::sim::{Verdict, violation};
use ringmq_schema::error::Status;
use ringmq_schema::frame::{self, Frame};
use ringmq_schema::{admin, consume, pop, produce, record};
use std::collections::BTreeMap;

macro_rules! table {
    ($kind:ty, $frame:expr) => {
        match frame::read_large_table::<$kind>($frame.table) {
            Ok(table) => table,
            Err(error) => return violation(format!("an answer does not verify: {error}")),
        }
    };
}

/// Parses an answer to a request with `intent`.
pub fn parse(frame: &Frame<'_>, intent: &Intent) -> Verdict<Reply> {
    let status = frame.header.status();
    if status != Status::Ok {
        let refusal = table!(ringmq_schema::connection::Refusal, frame);
        let message = refusal.message().unwrap_or_default().to_owned();
        if message.is_empty() {
            return violation(format!("a refusal {status} without a message"));
        }
        return Ok(Reply::Refused { status, message });
    }
    if !matches!(intent, Intent::Fetch { .. } | Intent::Pop(_)) && !frame.run.is_empty() {
        return violation("an answer with a run that has none");
    }
    Ok(match intent {
        Intent::Produce { .. } | Intent::Damaged { .. } => {
            let answer = table!(produce::ProduceAnswer, frame);
            let (base, records) = (answer.base_offset(), answer.records());
            Reply::Produced { base, records, position: answer.position() }
        }
        Intent::Fetch { .. } => fetched(frame)?,
        Intent::Commit { .. } | Intent::Reset { .. } => {
            let answer = table!(consume::CommitOffsetsAnswer, frame);
            let entries = answer.entries().into_iter().flatten();
            let one =
                |e: &consume::CommitResult| ((e.topic(), e.queue()), Status::from_code(e.status()));
            Reply::Committed(entries.map(one).collect())
        }
        Intent::Offsets { .. } | Intent::PopsDone { .. } => {
            let answer = table!(consume::QueryOffsetsAnswer, frame);
            Reply::Offsets(answer.queues().into_iter().flatten().map(offsets_of).collect())
        }
        Intent::Search { .. } => {
            let answer = table!(consume::SearchOffsetsAnswer, frame);
            let queues = answer.queues().into_iter().flatten();
            let one = |q: &consume::FoundOffset| {
                ((q.topic(), q.queue()), q.offset(), Status::from_code(q.status()))
            };
            Reply::Found(queues.map(one).collect())
        }
        Intent::Beat { .. } => {
            let answer = table!(consume::GroupHeartbeatAnswer, frame);
            let queues = answer.queues().into_iter().flatten();
            let queues = queues.map(|q| ((q.topic(), q.queue()), q.generation())).collect();
            Reply::Beat { group: answer.group(), version: answer.version(), queues }
        }
        Intent::Retry { .. } => {
            let answer = table!(ringmq_schema::retry::RetryLaterAnswer, frame);
            let (dead_lettered, deliver_ms) = (answer.dead_lettered(), answer.deliver_ms());
            Reply::Retried { dead_lettered, deliver_ms }
        }
        Intent::Create { .. } => {
            let answer = table!(admin::TopicAnswer, frame);
            Reply::Topic(answer.topic().map(topic_seen))
        }
        Intent::Group => {
            let answer = table!(admin::GroupAnswer, frame);
            Reply::Group(answer.group().map_or(0, |group| group.id()))
        }
        Intent::Pop(of) => popped(frame, of.topic)?,
        Intent::Ack { .. } => {
            let answer = table!(pop::AckAnswer, frame);
            let statuses = answer.statuses().into_iter().flatten();
            Reply::Acked(statuses.map(Status::from_code).collect())
        }
        Intent::Change { .. } => {
            let answer = table!(pop::ChangeInvisibleAnswer, frame);
            let receipts = answer.receipts().into_iter().flatten();
            let one = |c: &pop::Changed| (c.nonce(), Status::from_code(c.status()));
            Reply::Changed(receipts.map(one).collect())
        }
        Intent::List => {
            let answer = table!(admin::ListTopicsAnswer, frame);
            Reply::Topics(answer.topics().into_iter().flatten().map(topic_seen).collect())
        }
        Intent::Recall { .. }
        | Intent::Leave { .. }
        | Intent::Delete { .. }
        | Intent::Idle
        | Intent::Garbage => Reply::Done,
    })
}

fn offsets_of(q: &consume::QueueOffsets) -> OffsetsOf {
    OffsetsOf {
        queue: (q.topic(), q.queue()),
        committed: q.committed(),
        min_offset: q.min_offset(),
        max_offset: q.max_offset(),
        status: Status::from_code(q.status()),
    }
}

fn topic_seen(topic: admin::Topic<'_>) -> TopicSeen {
    TopicSeen {
        name: topic.name().to_owned(),
        id: topic.id(),
        queues: topic.read_queues(),
        flush: topic.flush(),
        is_fifo: topic.message_type() == admin::MessageType::Fifo,
    }
}

fn fetched(frame: &Frame<'_>) -> Verdict<Reply> {
    let answer = table!(consume::FetchAnswer, frame);
    let mut all: BTreeMap<QueueKey, Vec<Received>> = BTreeMap::new();
    for record in record::records(frame.run) {
        let record = received(record)?;
        all.entry(record.queue).or_default().push(record);
    }
    let mut queues = Vec::new();
    for queue in answer.queues().into_iter().flatten() {
        let key = (queue.topic(), queue.queue());
        let records = all.remove(&key).unwrap_or_default();
        if records.len() as u32 != queue.records() {
            let (told, came) = (queue.records(), records.len());
            return violation(format!("queue {key:?}: {told} records are told, {came} came"));
        }
        queues.push(Fetched {
            queue: key,
            next_offset: queue.next_offset(),
            high_watermark: queue.high_watermark(),
            min_offset: queue.min_offset(),
            status: Status::from_code(queue.status()),
            records,
        });
    }
    match all.keys().next() {
        None => Ok(Reply::Fetched(queues)),
        Some(key) => violation(format!("records of {key:?}, which the answer does not name")),
    }
}

fn popped(frame: &Frame<'_>, topic: u32) -> Verdict<Reply> {
    let answer = table!(pop::PopAnswer, frame);
    let mut records = record::records(frame.run);
    let mut popped = Vec::new();
    for one in answer.records().into_iter().flatten() {
        let Some(next) = records.next() else {
            return violation(format!("{one:?} came without its record"));
        };
        let record = received(next)?;
        let queue = (topic, one.queue());
        if (record.queue, record.offset) != (queue, one.offset()) {
            return violation(format!("{one:?} came with {record:?}"));
        }
        let (offset, nonce, attempt) = (one.offset(), one.nonce(), one.attempt());
        popped.push((PoppedOne { queue, offset, nonce, attempt }, record));
    }
    match records.next() {
        None => Ok(Reply::Popped(popped)),
        Some(more) => violation(format!("more records than receipts: {more:?}")),
    }
}

fn received(next: Result<record::RecordRef<'_>, record::RecordError>) -> Verdict<Received> {
    let record = match next {
        Ok(record) => record,
        Err(error) => return violation(format!("a consumer got a broken run: {error}")),
    };
    if let Err(error) = record.check_header() {
        return violation(format!("a consumer got a broken record: {error}"));
    }
    let is_broken = record.check_payload().is_err();
    let lane = match record.message() {
        _ if is_broken => 0,
        Ok(message) => super::wish::lane_of(message.group()),
        Err(error) => {
            return violation(format!("a consumer got a message that does not verify: {error}"));
        }
    };
    let header = record.header;
    if header.prefix.kind != record::Kind::Message as u8 {
        return violation(format!("a consumer got a record of kind {}", header.prefix.kind));
    }
    Ok(Received {
        queue: (header.topic.get(), header.queue.get()),
        offset: header.offset.get(),
        position: header.position.get(),
        message_id: header.message_id,
        payload_checksum: crc32fast::hash(record.payload),
        payload_bytes: record.payload.len() as u32,
        tag_hash: header.tag_hash.get(),
        lane,
        born_ms: header.born_ms.get(),
        deliver_ms: header.deliver_ms.get(),
        store_ms: header.store_ms.get(),
        attempts: header.attempts.get(),
        is_broken,
    })
}
