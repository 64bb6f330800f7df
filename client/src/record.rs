//! What a consumer receives: one stored message, still in the bytes that came from the socket.
//!
//! Invariants:
//! - header checksum, payload checksum and flatbuffer were verified before a `Record` exists;
//! - body and tag are ranges of `bytes`; nothing is copied until the user asks for it.

use crate::identity::StoredMessageId;
use crate::message::{Flush, MessageId, time_of};
use crate::route::Queue;
use bytes::Bytes;
use ringmq_schema::build::MessageSpec;
use ringmq_schema::message;
use ringmq_schema::names::RETRY_PREFIX;
use ringmq_schema::record::{self, RecordHeader, RecordRef};
use ringmq_schema::zerocopy::FromBytes;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

/// A message as it lies in a queue. Cloning is cheap and shares the bytes; while any record of a fetch is
/// kept, so are the bytes of that whole fetch (about 1 MiB).
#[derive(Clone)]
pub struct Record {
    queue: Arc<Queue>,
    shard: u16,
    bytes: Bytes,
    body: Range<u32>,
    tag: Range<u32>,
    origin_topic: Range<u32>,
    attempt: u32,
}

/// Where a message was before it was sent back for the first time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Origin {
    /// The queue.
    pub queue: Queue,
    /// Its number in that queue.
    pub offset: u64,
}

impl Record {
    /// Verifies the record that lies in `bytes`, all of them.
    pub(crate) fn verify(queue: &Arc<Queue>, shard: u16, bytes: Bytes) -> Result<Record, String> {
        let (_, found) = record::read_one(&bytes, 0).map_err(|error| error.to_string())?;
        let Some(found) = found else { return Err("a control record".to_owned()) };
        found.check_header().map_err(|error| error.to_string())?;
        found.check_payload().map_err(|error| error.to_string())?;
        let message = found.message().map_err(|error| error.to_string())?;
        let body = message.body().map_or(0..0, |body| range_in(&found, body.bytes()));
        let tag = message.tag().map_or(0..0, |tag| range_in(&found, tag.as_bytes()));
        let origin = message.origin_topic();
        let origin_topic = origin.map_or(0..0, |topic| range_in(&found, topic.as_bytes()));
        let attempt = u32::from(found.header.attempts.get()) + 1;
        Ok(Record { queue: Arc::clone(queue), shard, bytes, body, tag, origin_topic, attempt })
    }

    /// Handed out so often, as the broker counts.
    pub(crate) fn on_attempt(mut self, attempt: u32) -> Record {
        self.attempt = attempt;
        self
    }

    pub(crate) fn again(mut self) -> Record {
        self.attempt += 1;
        self
    }

    fn header(&self) -> &RecordHeader {
        let (header, _) =
            RecordHeader::ref_from_prefix(&self.bytes).expect("verified when it was made");
        header
    }

    fn message(&self) -> message::Message<'_> {
        let (_, found) = record::read_one(&self.bytes, 0).expect("verified when it was made");
        let found = found.expect("no control record, seen when it was made");
        // Verified again, since reading without is unsafe; only rarely used parts come this way.
        found.message().expect("verified when it was made")
    }

    /// The queue it was read from.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Its topic. Of a message that is delivered again from a group's retry topic the one that it was sent to.
    pub fn topic(&self) -> &str {
        match self.text(&self.origin_topic) {
            Some(origin) if self.queue.topic.starts_with(RETRY_PREFIX) => origin,
            _ => &self.queue.topic,
        }
    }

    /// Where it was first, when it comes from a retry topic or a dead-letter topic.
    pub fn origin(&self) -> Option<Origin> {
        let topic = self.text(&self.origin_topic)?;
        let message = self.message();
        let queue = Queue::new(topic, Arc::clone(&self.queue.broker), message.origin_queue());
        Some(Origin { queue, offset: message.origin_offset() })
    }

    /// Why it was sent back the last time.
    pub fn last_error(&self) -> Option<&str> {
        self.message().last_error()
    }

    /// Name of the broker that stores it.
    pub fn broker(&self) -> &str {
        &self.queue.broker
    }

    /// Its number in the queue.
    pub fn offset(&self) -> u64 {
        self.header().offset.get()
    }

    /// Where it lies in its shard's log.
    pub fn position(&self) -> u64 {
        self.header().position.get()
    }

    /// What it is called after where it is stored; [`crate::Admin::message`] finds it by that.
    pub fn stored_id(&self) -> StoredMessageId {
        StoredMessageId::new(Arc::clone(&self.queue.broker), self.shard, self.position())
    }

    /// Its identity, given by the producer.
    pub fn message_id(&self) -> MessageId {
        MessageId(self.header().message_id)
    }

    /// How often it was delivered to a listener, this time included.
    pub fn delivery_attempt(&self) -> u32 {
        self.attempt
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.bytes[self.body.start as usize..self.body.end as usize]
    }

    /// The body, to keep: shares the received bytes.
    pub fn body_bytes(&self) -> Bytes {
        self.bytes.slice(self.body.start as usize..self.body.end as usize)
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.text(&self.tag)
    }

    /// A text in the record; `None` when it is empty.
    fn text(&self, range: &Range<u32>) -> Option<&str> {
        let bytes = &self.bytes[range.start as usize..range.end as usize];
        (!bytes.is_empty())
            .then(|| std::str::from_utf8(bytes).expect("strings were verified with the message"))
    }

    /// Its keys.
    pub fn keys(&self) -> Vec<&str> {
        self.message().keys().map(|keys| keys.iter().collect()).unwrap_or_default()
    }

    /// The value of a property.
    pub fn property(&self, key: &str) -> Option<&str> {
        self.properties().into_iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// Its properties, in the producer's order.
    pub fn properties(&self) -> Vec<(&str, &str)> {
        let properties = self.message().properties();
        properties.map(|all| all.iter().map(|p| (p.key(), p.value())).collect()).unwrap_or_default()
    }

    /// Its message group.
    pub fn group(&self) -> Option<&str> {
        self.message().group()
    }

    /// The application's number.
    pub fn flag(&self) -> i32 {
        self.message().flag()
    }

    /// When the producer made it, by the producer's clock.
    pub fn born_at(&self) -> SystemTime {
        time_of(self.header().born_ms.get())
    }

    /// The host that made it.
    pub fn born_host(&self) -> Option<&str> {
        self.message().born_host()
    }

    /// When the broker stored it, by the broker's clock.
    pub fn stored_at(&self) -> SystemTime {
        time_of(self.header().store_ms.get())
    }

    /// When it was to be delivered at the earliest, if it was delayed.
    pub fn deliver_at(&self) -> Option<SystemTime> {
        let due_ms = self.header().deliver_ms.get();
        (due_ms != 0).then(|| time_of(due_ms))
    }

    /// The durability that was asked for.
    pub fn flush(&self) -> Flush {
        Flush::from_code((self.header().flags.get() & record::FLAG_FLUSH_MASK) as u8)
    }

    /// Gives `use_spec` its message as the record builder wants it, to be stored once more: with its identity and
    /// its birth, and without a delivery time.
    pub(crate) fn with_spec<R>(&self, use_spec: impl FnOnce(MessageSpec<'_>) -> R) -> R {
        let message = self.message();
        let (keys, properties) = (self.keys(), self.properties());
        use_spec(MessageSpec {
            body: self.body(),
            tag: self.tag(),
            keys: &keys,
            properties: &properties,
            group: message.group(),
            flag: message.flag(),
            born_host: message.born_host(),
            born_ms: self.header().born_ms.get(),
            message_id: self.header().message_id,
            ..MessageSpec::default()
        })
    }

    /// Length in the log, header and padding included.
    pub fn stored_bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// Where `part` lies in the record, by addresses: both are slices of the same bytes.
fn range_in(record: &RecordRef<'_>, part: &[u8]) -> Range<u32> {
    let start = part.as_ptr() as usize - record.bytes.as_ptr() as usize;
    start as u32..(start + part.len()) as u32
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("queue", &self.queue)
            .field("offset", &self.offset())
            .field("message_id", &self.message_id())
            .field("tag", &self.tag())
            .field("body_bytes", &self.body().len())
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}
