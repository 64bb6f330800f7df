//! What a user sends.
//!
//! A [`Message`] is checked against the protocol's limits when it is sent, by the same function that the
//! schema's record builder uses.

use crate::record::Record;
use crate::route::Queue;
use bytes::Bytes;
use ringmq_schema::build::MessageSpec;
use ringmq_schema::limits::DELAY_LEVELS_MS;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Identity of a message, made by its producer: a UUID v7, so ids sort by time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub [u8; 16]);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Durability asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flush {
    /// The topic's, and when that says nothing, the broker's.
    #[default]
    Default,
    /// Acknowledged when the bytes survive power loss.
    Sync,
    /// Acknowledged when the device has taken the bytes.
    Async,
}

impl Flush {
    pub(crate) fn code(self) -> u8 {
        match self {
            Flush::Default => 0,
            Flush::Sync => 1,
            Flush::Async => 2,
        }
    }

    pub(crate) fn from_code(code: u8) -> Flush {
        match code {
            1 => Flush::Sync,
            2 => Flush::Async,
            _ => Flush::Default,
        }
    }
}

/// A message to send.
///
/// ```
/// # use ringmq::Message;
/// let message = Message::new("orders", "hello").tag("paid").key("42").property("region", "eu");
/// assert_eq!(message.topic(), "orders");
/// ```
#[derive(Clone)]
#[must_use]
pub struct Message {
    pub(crate) topic: Arc<str>,
    pub(crate) body: Bytes,
    pub(crate) tag: Option<String>,
    pub(crate) keys: Vec<String>,
    pub(crate) properties: Vec<(String, String)>,
    pub(crate) group: Option<String>,
    pub(crate) flag: i32,
    pub(crate) deliver_ms: i64,
    pub(crate) flush: Flush,
    pub(crate) queue: Option<Queue>,
    /// Of a message that is sent once more: its id, and when it was born.
    pub(crate) identity: Option<(MessageId, i64)>,
}

impl Message {
    /// A message for a topic. Pass an `Arc<str>` and `Bytes` where the copies matter.
    pub fn new(topic: impl Into<Arc<str>>, body: impl Into<Bytes>) -> Message {
        Message {
            topic: topic.into(),
            body: body.into(),
            tag: None,
            keys: Vec::new(),
            properties: Vec::new(),
            group: None,
            flag: 0,
            deliver_ms: 0,
            flush: Flush::Default,
            queue: None,
            identity: None,
        }
    }

    /// The message of a record, to be sent once more: to the topic that it was sent to first, under the same
    /// message id, and not delayed.
    pub fn again(record: &Record) -> Message {
        let origin = record.origin();
        let topic = origin.as_ref().map_or(record.topic(), |origin| &*origin.queue.topic);
        let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        Message {
            tag: record.tag().map(str::to_owned),
            keys: record.keys().into_iter().map(str::to_owned).collect(),
            properties: record.properties().into_iter().map(owned).collect(),
            group: record.group().map(str::to_owned),
            flag: record.flag(),
            identity: Some((record.message_id(), unix_ms(record.born_at()))),
            ..Message::new(topic, record.body_bytes())
        }
    }

    /// The tag, by which consumers filter.
    pub fn tag(mut self, tag: impl Into<String>) -> Message {
        self.tag = Some(tag.into()).filter(|tag| !tag.is_empty());
        self
    }

    /// Adds a key for look-up.
    pub fn key(mut self, key: impl Into<String>) -> Message {
        self.keys.push(key.into());
        self
    }

    /// Adds several keys.
    pub fn keys<K: Into<String>>(mut self, keys: impl IntoIterator<Item = K>) -> Message {
        self.keys.extend(keys.into_iter().map(Into::into));
        self
    }

    /// Adds a property.
    pub fn property(mut self, key: impl Into<String>, value: impl Into<String>) -> Message {
        self.properties.push((key.into(), value.into()));
        self
    }

    /// The message group: messages of one group stay in order, on one queue.
    pub fn group(mut self, group: impl Into<String>) -> Message {
        self.group = Some(group.into());
        self
    }

    /// An opaque number for the application.
    pub fn flag(mut self, flag: i32) -> Message {
        self.flag = flag;
        self
    }

    /// Not to be delivered before this time, at most 40 days ahead unless the broker is set otherwise. The message is
    /// stored at once, gets its place in the queue when its time has come, and can be taken back until then
    /// ([`crate::Producer::recall`]). For topics of type [`Delay`](crate::MessageType::Delay) and
    /// [`Unspecified`](crate::MessageType::Unspecified).
    pub fn deliver_at(mut self, at: SystemTime) -> Message {
        self.deliver_ms = unix_ms(at).max(1);
        self
    }

    /// Not to be delivered before so much time has passed.
    pub fn deliver_after(self, delay: Duration) -> Message {
        let at = SystemTime::now().checked_add(delay);
        // A time that cannot be said is beyond what any broker allows.
        self.deliver_at(at.unwrap_or(UNIX_EPOCH + Duration::from_millis(i64::MAX as u64)))
    }

    /// Not to be delivered before the delay of one of RocketMQ's levels has passed: 1 to 18 stand for 1 s, 5 s, 10 s,
    /// 30 s, 1 to 10 min, 20 min, 30 min, 1 h and 2 h. 0 is no delay; a level above 18 is 18, as there.
    pub fn delay_level(self, level: u8) -> Message {
        match usize::from(level).min(DELAY_LEVELS_MS.len()).checked_sub(1) {
            Some(at) => self.deliver_after(Duration::from_millis(DELAY_LEVELS_MS[at])),
            None => Message { deliver_ms: 0, ..self },
        }
    }

    /// Durability of this message, over its producer's and its topic's.
    pub fn flush(mut self, flush: Flush) -> Message {
        self.flush = flush;
        self
    }

    /// Sends it to exactly this queue (one of [`crate::Producer::queues`]), whatever happens.
    pub fn queue(mut self, queue: Queue) -> Message {
        self.queue = Some(queue);
        self
    }

    /// The topic it is for.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Gives `use_spec` this message as the record builder wants it.
    pub(crate) fn with_spec<R>(
        &self,
        message_id: [u8; 16],
        born_ms: i64,
        flush: Flush,
        use_spec: impl FnOnce(&MessageSpec<'_>) -> R,
    ) -> R {
        // Nothing is allocated for messages without keys and properties.
        let keys: Vec<&str> = self.keys.iter().map(String::as_str).collect();
        let properties: Vec<(&str, &str)> =
            self.properties.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        use_spec(&MessageSpec {
            body: &self.body,
            tag: self.tag.as_deref(),
            keys: &keys,
            properties: &properties,
            group: self.group.as_deref(),
            flag: self.flag,
            born_host: None,
            born_ms,
            deliver_ms: self.deliver_ms,
            message_id,
            flush: flush.code(),
            ..MessageSpec::default()
        })
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("topic", &self.topic)
            .field("body_bytes", &self.body.len())
            .field("tag", &self.tag)
            .field("keys", &self.keys)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

pub(crate) fn unix_ms(at: SystemTime) -> i64 {
    match at.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(_) => 0,
    }
}

pub(crate) fn time_of(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}
