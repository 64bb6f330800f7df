//! What clients say and what they are told: requests built with the schema ([`request`]), answers parsed with
//! it ([`answer`]), and what consumers want of a queue ([`wish`]).

pub mod answer;
pub mod request;
pub mod wish;

pub use answer::parse;
pub use request::{Back, Beat, Words};
use ringmq_schema::error::Status;
pub use wish::{Traits, Wish};

/// A queue: topic id and number.
pub type QueueKey = (u32, u32);

/// One queue in a fetch.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Wanted {
    pub queue: QueueKey,
    pub offset: u64,
    pub generation: u32,
    /// `None`: everything.
    pub wish: Option<Wish>,
}

/// One queue in a commit or reset.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Entry {
    pub queue: QueueKey,
    pub offset: u64,
    pub generation: u32,
}

/// What a pop asks for.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct PopOf {
    pub group: u32,
    pub topic: u32,
    pub max_records: u32,
    pub max_bytes: u32,
    pub invisible_ms: u32,
    pub wait_ms: u32,
    pub wish: Option<Wish>,
}

/// A receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ReceiptOf {
    pub queue: QueueKey,
    pub offset: u64,
    pub nonce: u64,
}

/// One message of an answer to a pop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct PoppedOne {
    pub queue: QueueKey,
    pub offset: u64,
    pub nonce: u64,
    pub attempt: u16,
}

/// What a request is for: kept until its answer comes, for the client and the oracle.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Intent {
    /// Messages `first .. first + count` of the journal.
    Produce {
        queue: QueueKey,
        first: u32,
        count: u32,
    },
    /// A delayed message of the journal is to be taken back.
    Recall {
        index: u32,
    },
    /// A run that must be refused.
    Damaged {
        first: u32,
        count: u32,
    },
    Fetch {
        group: u32,
        wanted: Vec<Wanted>,
        max_bytes: u32,
        max_records: u32,
    },
    Commit {
        group: u32,
        member: u128,
        entries: Vec<Entry>,
    },
    Reset {
        group: u32,
        entry: Entry,
    },
    Offsets {
        group: u32,
        queues: Vec<QueueKey>,
    },
    Search {
        at_ms: i64,
        queues: Vec<QueueKey>,
    },
    Beat {
        group: String,
        member: u128,
    },
    Leave {
        member: u128,
    },
    /// A message that a member sends back, under an id of its own.
    Retry {
        group: u32,
        queue: QueueKey,
        generation: u32,
        offset: u64,
        message_id: [u8; 16],
    },
    Create {
        topic: usize,
    },
    Delete {
        topic: usize,
    },
    List,
    /// A group is made, or known.
    Group,
    Pop(PopOf),
    Ack {
        group: u32,
        receipts: Vec<ReceiptOf>,
    },
    Change {
        group: u32,
        receipts: Vec<ReceiptOf>,
        ms: u32,
    },
    /// Up to where a group that pops is done.
    PopsDone {
        group: u32,
        wish: Option<Wish>,
        queues: Vec<QueueKey>,
    },
    /// Anything whose answer is only parsed.
    Idle,
    /// Must not be answered with success.
    Garbage,
}

/// A delayed message that can be taken back.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Timer {
    pub index: u32,
    pub shard: u16,
    pub queue: QueueKey,
    pub message_id: [u8; 16],
    pub due_ms: i64,
    pub position: u64,
}

/// A request on its way.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Request {
    pub shard: u16,
    pub correlation: u64,
    pub one_way: bool,
    pub bytes: Vec<u8>,
    pub intent: Intent,
}

/// A record that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Received {
    pub queue: QueueKey,
    pub offset: u64,
    pub position: u64,
    pub message_id: [u8; 16],
    pub payload_checksum: u32,
    pub payload_bytes: u32,
    pub tag_hash: u32,
    /// Its message group by number.
    pub lane: u8,
    pub born_ms: i64,
    pub deliver_ms: i64,
    pub store_ms: i64,
    pub attempts: u16,
    /// Its payload is not what its header says.
    pub is_broken: bool,
}

/// One queue of a fetch answer.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Fetched {
    pub queue: QueueKey,
    pub next_offset: u64,
    pub high_watermark: u64,
    pub min_offset: u64,
    pub status: Status,
    pub records: Vec<Received>,
}

/// One queue of an offsets answer.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct OffsetsOf {
    pub queue: QueueKey,
    pub committed: i64,
    pub min_offset: u64,
    pub max_offset: u64,
    pub status: Status,
}

/// A topic as an answer names it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TopicSeen {
    pub name: String,
    pub id: u32,
    pub queues: u32,
    pub flush: u8,
    pub is_fifo: bool,
}

/// An answer, parsed.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Reply {
    Refused {
        status: Status,
        message: String,
    },
    Done,
    Produced {
        base: u64,
        records: u32,
        position: u64,
    },
    Fetched(Vec<Fetched>),
    Committed(Vec<(QueueKey, Status)>),
    Offsets(Vec<OffsetsOf>),
    Found(Vec<(QueueKey, u64, Status)>),
    Beat {
        group: u32,
        version: u64,
        queues: Vec<(QueueKey, u32)>,
    },
    Retried {
        dead_lettered: bool,
        deliver_ms: i64,
    },
    Topic(Option<TopicSeen>),
    Topics(Vec<TopicSeen>),
    Group(u32),
    Popped(Vec<(PoppedOne, Received)>),
    Acked(Vec<Status>),
    /// New nonces.
    Changed(Vec<(u64, Status)>),
}
