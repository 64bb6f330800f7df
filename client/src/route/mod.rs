//! Where queues are.

mod cache;

pub(crate) use cache::{Routes, unknown_topic};

use ringmq_schema::placement;
use ringmq_schema::route as wire;
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
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

impl TopicRoute {
    pub(crate) fn read(route: &wire::TopicRoute<'_>) -> TopicRoute {
        let brokers = route.brokers().into_iter().flatten().map(|b| BrokerRoute::read(&b));
        TopicRoute {
            topic: route.topic().into(),
            version: route.version(),
            // A broker without shards would have no place for any queue: nothing can be asked of it.
            brokers: brokers.filter(|broker| broker.shards > 0).collect(),
        }
    }

    /// The masters, which take writes and lead the groups.
    pub(crate) fn masters(&self) -> impl Iterator<Item = &BrokerRoute> {
        self.brokers.iter().filter(|broker| broker.broker_id == 0)
    }

    /// The master of this name.
    pub(crate) fn master(&self, broker: &str) -> Option<&BrokerRoute> {
        self.masters().find(|master| &*master.broker == broker)
    }
}

impl BrokerRoute {
    fn read(broker: &wire::BrokerRoute<'_>) -> BrokerRoute {
        BrokerRoute {
            cluster: broker.cluster().unwrap_or_default().to_owned(),
            broker: broker.broker().into(),
            broker_id: broker.broker_id(),
            address: broker.address().into(),
            instance: broker.instance(),
            shards: broker.shards(),
            topic_id: broker.topic(),
            read_queues: broker.read_queues(),
            write_queues: broker.write_queues(),
            permission: broker.permission(),
            message_type: broker.message_type(),
        }
    }

    /// Whether it takes messages.
    pub fn is_writable(&self) -> bool {
        self.permission & 2 != 0 && self.write_queues > 0
    }

    /// Whether its messages can be read.
    pub fn is_readable(&self) -> bool {
        self.permission & 4 != 0 && self.read_queues > 0
    }

    /// Shard of a queue of this topic.
    pub fn shard_of(&self, queue: u32) -> u16 {
        placement::shard_of_queue(self.topic_id, queue, self.shards)
    }
}
