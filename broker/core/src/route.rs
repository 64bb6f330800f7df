//! Routes, as shard and name servers exchange them.

use crate::peer::TopicSettings;

/// A change of a topic of this broker, for the name servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicChange {
    /// Its id.
    pub id: u32,
    /// Registry version of the change.
    pub version: u64,
    /// Settings; of a deleted topic the last ones.
    pub settings: TopicSettings,
    /// Whether it is gone.
    pub deleted: bool,
}

/// One broker that has a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerRoute {
    /// Its name.
    pub broker: String,
    /// 0: master.
    pub broker_id: u32,
    /// The topic's id there.
    pub topic: u32,
    /// Its number of shards.
    pub shards: u16,
    /// Queues that can be read.
    pub read_queues: u32,
}

/// Every broker that has a topic, this one included once it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicRoutes {
    /// The topic's name.
    pub topic: String,
    /// Sorted by broker name; empty: nobody knows the topic.
    pub brokers: Vec<BrokerRoute>,
}
