//! What shards of one broker say to each other. Plain data: it crosses cores.

use ringmq_schema::consume::MemberId;
use std::sync::Arc;

/// A member of a group, 128 random bits chosen by the client.
pub type Member = u128;

/// The member id of a request.
pub fn member_of(id: Option<&MemberId>) -> Member {
    id.map_or(0, |id| (u128::from(id.high()) << 64) | u128::from(id.low()))
}

/// A member id for an answer.
pub fn member_id(member: Member) -> MemberId {
    MemberId::new((member >> 64) as u64, member as u64)
}

/// A queue of this broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId {
    /// Topic id on this broker.
    pub topic: u32,
    /// Number in the topic.
    pub queue: u32,
}

/// Who may consume a queue for a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// Group id.
    pub group: u32,
    /// The queue.
    pub queue: QueueId,
    /// Owner; 0: nobody.
    pub member: Member,
    /// Grows with every change of owner; the fence.
    pub generation: u32,
}

/// A topic as the registry keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSettings {
    /// Its name.
    pub name: String,
    /// Queues that can be read.
    pub read_queues: u32,
    /// Queues that can be written.
    pub write_queues: u32,
    /// 4 read, 2 write.
    pub permission: u8,
    /// `admin::MessageType`.
    pub message_type: u8,
    /// 0: the broker's default.
    pub retention_ms: u64,
    /// 0: no bound.
    pub retention_bytes: u64,
    /// `produce::Flush`.
    pub flush: u8,
}

/// A group as the registry keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupSettings {
    /// Off: its members get no messages.
    pub consume_enabled: bool,
    /// A message that failed so often goes to the dead letters; at least 1.
    pub max_attempts: u16,
    /// Pauses before a failed message is delivered again.
    pub retry: RetryPauses,
}

/// Pauses between the attempts of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetryPauses {
    /// As `limits::RETRY_DELAYS_MS` says.
    Default,
    /// One after another, ms; the last holds for all further attempts. Not empty.
    List(Vec<u64>),
    /// Each longer than the one before.
    Growing {
        /// After the first attempt, ms.
        first_ms: u64,
        /// Of the next to the one before.
        factor_percent: u32,
        /// It grows no longer than this.
        longest_ms: u64,
    },
}

/// What a registry change does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A topic is made or has new settings.
    Topic {
        /// Its id.
        id: u32,
        /// All of its settings.
        settings: TopicSettings,
    },
    /// A topic is gone.
    TopicDeleted {
        /// Its id.
        id: u32,
    },
    /// A group is made or has new settings.
    Group {
        /// Its id.
        id: u32,
        /// Its name.
        name: String,
        /// All of its settings.
        settings: GroupSettings,
    },
    /// A group is gone.
    GroupDeleted {
        /// Its id.
        id: u32,
    },
}

/// One change of the registry of topics and groups. Versions count up from 1 without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryChange {
    /// Its number.
    pub version: u64,
    /// What it does.
    pub change: Change,
}

/// All topics and groups that there are, as the home shard has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeRegistry {
    /// Of the last change.
    pub version: u64,
    /// The last topic id that was given.
    pub last_topic: u32,
    /// The last group id that was given.
    pub last_group: u32,
    /// Each topic and group with the version of its own last change.
    pub changes: Vec<RegistryChange>,
}

/// What one shard tells another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerMessage {
    /// Home to all: make this change durable, then say so.
    Registry(RegistryChange),
    /// To home: changes up to this version are durable here. From home to itself also at start.
    RegistryDone {
        /// Last version.
        version: u64,
    },
    /// To home at start: what is here, durably.
    RegistryHeld {
        /// Last version.
        version: u64,
        /// Of all topics and groups: damage to a log can take some whose version is below.
        digest: u64,
    },
    /// Home to a shard that holds something else: make what is new of this durable, then say so.
    RegistryWhole(Arc<WholeRegistry>),
    /// To home: make this group if it is not there.
    EnsureGroup {
        /// Its name.
        name: String,
    },
    /// To home: make the group's retry topic, or its dead-letter topic, if it is not there.
    EnsureGroupTopic {
        /// Id of the group.
        group: u32,
        /// Which of the two.
        dead_letters: bool,
    },
    /// Group's shard to queue's shard: make this ownership durable, then say so.
    Assign(Ownership),
    /// Queue's shard to group's shard: durable. `accepted` is false when the queue knows a newer
    /// generation, which is then given.
    Assigned {
        /// As it is now at the queue's shard.
        ownership: Ownership,
        /// Whether it is what was asked for.
        accepted: bool,
    },
    /// Queue's shard to group's shard at start: who owned what before.
    Owned(Ownership),
}
