//! Where queues are.

use std::fmt;
use std::sync::Arc;

/// A queue of the cluster: broker, topic and number together name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Queue {
    /// Its topic.
    pub topic: Arc<str>,
    /// Name of the broker that has it.
    pub broker: Arc<str>,
    /// Its number on that broker.
    pub id: u32,
}

impl Queue {
    /// Names a queue.
    pub fn new(topic: impl Into<Arc<str>>, broker: impl Into<Arc<str>>, id: u32) -> Queue {
        Queue { topic: topic.into(), broker: broker.into(), id }
    }
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.broker, self.id)
    }
}

/// Where a topic's queues are.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TopicRoute {
    /// The topic.
    pub topic: Arc<str>,
    /// Grows with each change at the name server that was asked.
    pub version: u64,
    /// Brokers that have it, by name.
    pub brokers: Vec<BrokerRoute>,
}

/// A topic on one broker.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BrokerRoute {
    /// The broker's cluster.
    pub cluster: String,
    /// The broker's name.
    pub broker: Arc<str>,
    /// 0: master, above: slave.
    pub broker_id: u32,
    /// `host:port`.
    pub address: Arc<str>,
    /// Changes at every start of the broker.
    pub instance: u64,
    /// Shards of the broker.
    pub shards: u16,
    /// The topic's number there.
    pub topic_id: u32,
    /// Queues that can be read.
    pub read_queues: u32,
    /// Queues that can be written.
    pub write_queues: u32,
    /// 4: read, 2: write.
    pub permission: u8,
    /// A `MessageType` code.
    pub message_type: u8,
}
