//! What administration takes and returns.

use super::GroupSettings;
use crate::consumer::SeekTo;
use crate::message::Flush;
use crate::route::Queue;
use std::fmt;
use std::time::{Duration, SystemTime};

/// Where to reset offsets to.
pub type ResetTo = SeekTo;

/// What messages a topic takes. One that does not fit is refused by the broker: [`ErrorKind::Invalid`](crate::ErrorKind).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MessageType {
    /// Any.
    Unspecified,
    /// Ordinary ones: without a delivery time. A message group chooses their queue.
    #[default]
    Normal,
    /// With a message group, and without a delivery time.
    Fifo,
    /// With a delivery time: [`Message::deliver_after`](crate::Message::deliver_after).
    Delay,
    /// Of transactions: without a delivery time.
    Transaction,
}

impl MessageType {
    pub(crate) fn from_code(code: u8) -> MessageType {
        match code {
            1 => MessageType::Normal,
            2 => MessageType::Fifo,
            3 => MessageType::Delay,
            4 => MessageType::Transaction,
            _ => MessageType::Unspecified,
        }
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            MessageType::Unspecified => 0,
            MessageType::Normal => 1,
            MessageType::Fifo => 2,
            MessageType::Delay => 3,
            MessageType::Transaction => 4,
        }
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MessageType::Unspecified => "unspecified",
            MessageType::Normal => "normal",
            MessageType::Fifo => "fifo",
            MessageType::Delay => "delay",
            MessageType::Transaction => "transaction",
        })
    }
}

/// What may be done with a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Permission {
    /// Nothing.
    None,
    /// Write only.
    Write,
    /// Read only.
    Read,
    /// Both.
    #[default]
    ReadWrite,
}

impl Permission {
    pub(crate) fn from_code(code: u8) -> Permission {
        match (code & 4 != 0, code & 2 != 0) {
            (true, true) => Permission::ReadWrite,
            (true, false) => Permission::Read,
            (false, true) => Permission::Write,
            (false, false) => Permission::None,
        }
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Permission::None => 0,
            Permission::Write => 2,
            Permission::Read => 4,
            Permission::ReadWrite => 6,
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Permission::None => "-",
            Permission::Write => "W",
            Permission::Read => "R",
            Permission::ReadWrite => "RW",
        })
    }
}

/// Settings of a topic.
#[derive(Debug, Clone)]
#[must_use]
pub struct TopicSpec {
    pub(crate) name: String,
    pub(crate) read_queues: u32,
    pub(crate) write_queues: u32,
    pub(crate) permission: Permission,
    pub(crate) message_type: MessageType,
    pub(crate) retention: Option<Duration>,
    pub(crate) retention_bytes: u64,
    pub(crate) flush: Flush,
    pub(crate) brokers: Vec<String>,
}

impl TopicSpec {
    /// A topic with 8 queues on every broker.
    pub fn new(name: impl Into<String>) -> TopicSpec {
        TopicSpec {
            name: name.into(),
            read_queues: ringmq_schema::limits::QUEUES_DEFAULT,
            write_queues: ringmq_schema::limits::QUEUES_DEFAULT,
            permission: Permission::default(),
            message_type: MessageType::default(),
            retention: None,
            retention_bytes: 0,
            flush: Flush::Default,
            brokers: Vec::new(),
        }
    }

    /// Queues on each broker, to read and to write.
    pub fn queues(mut self, queues: u32) -> TopicSpec {
        self.read_queues = queues;
        self.write_queues = queues;
        self
    }

    /// Queues on each broker that can be read.
    pub fn read_queues(mut self, queues: u32) -> TopicSpec {
        self.read_queues = queues;
        self
    }

    /// Queues on each broker that take messages.
    pub fn write_queues(mut self, queues: u32) -> TopicSpec {
        self.write_queues = queues;
        self
    }

    /// What may be done with it.
    pub fn permission(mut self, permission: Permission) -> TopicSpec {
        self.permission = permission;
        self
    }

    /// What messages it takes.
    pub fn message_type(mut self, message_type: MessageType) -> TopicSpec {
        self.message_type = message_type;
        self
    }

    /// How long messages are kept. Default: the broker's.
    pub fn retention(mut self, retention: Duration) -> TopicSpec {
        self.retention = Some(retention);
        self
    }

    /// How many bytes are kept. Default: the broker's.
    pub fn retention_bytes(mut self, bytes: u64) -> TopicSpec {
        self.retention_bytes = bytes;
        self
    }

    /// Durability of messages that do not say their own. Default: the broker's.
    pub fn flush(mut self, flush: Flush) -> TopicSpec {
        self.flush = flush;
        self
    }

    /// Only on this broker (and others so named).
    pub fn on_broker(mut self, broker: impl Into<String>) -> TopicSpec {
        self.brokers.push(broker.into());
        self
    }
}

/// A topic's settings on one broker.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicDescription {
    /// The topic.
    pub name: String,
    /// The broker.
    pub broker: String,
    /// The topic's number there.
    pub id: u32,
    /// Grows with each change.
    pub version: u64,
    /// Queues that can be read.
    pub read_queues: u32,
    /// Queues that take messages.
    pub write_queues: u32,
    /// What may be done with it.
    pub permission: Permission,
    /// What messages it takes.
    pub message_type: MessageType,
    /// How long messages are kept; `None`: the broker's default.
    pub retention: Option<Duration>,
    /// How many bytes are kept; 0: the broker's default.
    pub retention_bytes: u64,
    /// Durability of messages that do not say their own.
    pub flush: Flush,
}

/// Figures of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueStats {
    /// The queue.
    pub queue: Queue,
    /// Shard of the broker that has it.
    pub shard: u16,
    /// First offset that is still there.
    pub min_offset: u64,
    /// Offset of the next message.
    pub max_offset: u64,
    /// When the last message was stored.
    pub last_stored_at: Option<SystemTime>,
    /// Bytes that are still there.
    pub bytes: u64,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupDescription {
    /// Its name.
    pub name: String,
    /// How it consumes, as the first broker that has it says.
    pub settings: GroupSettings,
    /// Its members over all brokers.
    pub members: Vec<GroupMember>,
}

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupMember {
    /// Its identity.
    pub id: String,
    /// Host and process, for people.
    pub client: String,
    /// Topics and filter expressions.
    pub subscriptions: Vec<(String, String)>,
    /// What it owns.
    pub queues: Vec<OwnedQueue>,
    /// Since the last sign of life, at the broker that heard of it last.
    pub idle: Duration,
}

/// A queue and the generation under which a member owns it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OwnedQueue {
    /// The queue.
    pub queue: Queue,
    /// The generation.
    pub generation: u32,
}

/// How far a group is behind on a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueLag {
    /// The queue.
    pub queue: Queue,
    /// Next offset the group consumes; `None`: it never committed here.
    pub committed: Option<u64>,
    /// First offset that is still there.
    pub min_offset: u64,
    /// Offset of the next message.
    pub max_offset: u64,
    /// Messages that the group has not consumed and that its filter selects, `ready` and `in_flight` together: those
    /// from `committed` (or from the first that is there) up to `max_offset`; of a group that pops those that are not
    /// acknowledged. Exact as of the moment at which `max_offset` was read, but see `at_least`.
    pub messages: u64,
    /// Those among them that nobody has: no member was given them, or they were popped and have come back because
    /// they were not acknowledged in time, or they wait for another of their message group to be acknowledged.
    pub ready: u64,
    /// Those among them that somebody has: the owner of the queue was given them and has not committed past them, or
    /// they were popped and are invisible.
    pub in_flight: u64,
    /// Delayed messages that wait for their time and are then messages of this queue. They count nowhere else, and
    /// before any filter. In the group's retry topic: messages that wait for their next attempt.
    pub delayed: u64,
    /// Offsets in between that are damaged or cannot be read: they are not among `messages`.
    pub unreadable: u64,
    /// There may be more `messages`: counting behind an expression came to its bounds ([`LagBounds`]), or what was
    /// asked could not say.
    pub at_least: bool,
    /// The group's filter on the topic, unless it takes everything. A group that commits takes what its members
    /// subscribed to, and everything while it has none; one that pops what it popped by last since the broker started.
    pub filter: Option<String>,
    /// How long the first of `messages` has been there; `None` when there is none.
    pub age: Option<Duration>,
    /// When the last commit came.
    pub committed_at: Option<SystemTime>,
    /// The member that owns the queue.
    pub owner: Option<String>,
}

/// How far a group is behind, all in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct GroupLag {
    /// Messages that it has not consumed, but for those of its retry topic; see [`QueueLag::messages`].
    pub messages: u64,
    /// Those among them that nobody has; see [`QueueLag::ready`].
    pub ready: u64,
    /// Those among them that somebody has; see [`QueueLag::in_flight`].
    pub in_flight: u64,
    /// Delayed messages of its topics that wait for their time; see [`QueueLag::delayed`].
    pub delayed: u64,
    /// Messages that failed and have not been consumed since: in its retry topic, or waiting there for the next
    /// attempt. Those that it pops are not among them: they stay where they are.
    pub retrying: u64,
    /// Some of it was not counted to the end.
    pub at_least: bool,
    /// Of the oldest message that it has not consumed.
    pub age: Option<Duration>,
}

impl GroupLag {
    /// The sum of what [`Admin::lag`](super::Admin::lag) told.
    pub fn of(group: &str, queues: &[QueueLag]) -> GroupLag {
        let retry_topic = ringmq_schema::names::retry_topic(group);
        let mut all = GroupLag::default();
        for lag in queues {
            if *lag.queue.topic == *retry_topic {
                all.retrying += lag.messages + lag.delayed;
            } else {
                all.messages += lag.messages;
                all.ready += lag.ready;
                all.in_flight += lag.in_flight;
                all.delayed += lag.delayed;
            }
            all.at_least |= lag.at_least;
            all.age = all.age.max(lag.age);
        }
        all
    }
}

/// How long counting behind an SQL expression goes on in each queue: such messages are read. By tag, and without a
/// filter, every message is counted, however many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct LagBounds {
    pub(crate) time: Duration,
    pub(crate) messages: u64,
}

impl Default for LagBounds {
    fn default() -> LagBounds {
        LagBounds { time: Duration::from_secs(60), messages: 10_000_000 }
    }
}

impl LagBounds {
    /// For so long. Default: a minute. What cannot be read is tried again for as long.
    pub fn time(mut self, time: Duration) -> LagBounds {
        self.time = time;
        self
    }

    /// So many messages, whether they are wanted or not. Default: ten million.
    pub fn messages(mut self, messages: u64) -> LagBounds {
        self.messages = messages;
        self
    }
}

/// A broker as the name servers know it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerStatus {
    /// Its cluster.
    pub cluster: String,
    /// Its name.
    pub broker: String,
    /// 0: master, above: slave.
    pub broker_id: u32,
    /// `host:port`.
    pub address: String,
    /// Changes at every start.
    pub instance: u64,
    /// Its shards.
    pub shards: u16,
    /// Topics it has.
    pub topics: u32,
    /// Version of its topic table.
    pub version: u64,
    /// Since its last heartbeat.
    pub idle: Duration,
}

/// Figures of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardStatus {
    /// Its broker.
    pub broker: String,
    /// Its number.
    pub shard: u16,
    /// Its epoch.
    pub epoch: u32,
    /// End of what was appended, a log position.
    pub appended: u64,
    /// End of what the device took.
    pub written: u64,
    /// End of what survives power loss.
    pub flushed: u64,
    /// Messages stored since the start.
    pub messages_in: u64,
    /// Messages sent to consumers since the start.
    pub messages_out: u64,
    /// Bytes stored since the start.
    pub bytes_in: u64,
    /// Bytes sent to consumers since the start.
    pub bytes_out: u64,
    /// Queues it has.
    pub queues: u32,
    /// Connections it serves.
    pub connections: u32,
    /// Since the start.
    pub uptime: Duration,
    /// Why it stopped writing, when it did.
    pub failed: Option<String>,
}
