//! Administration: topics, groups, offsets, cluster.

mod types;

pub use types::{
    BrokerStatus, GroupDescription, GroupMember, MessageType, OwnedQueue, Permission, QueueLag,
    QueueStats, ResetTo, ShardStatus, TopicDescription, TopicSpec,
};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::route::{Queue, TopicRoute};

/// Administers a cluster.
#[derive(Clone)]
pub struct Admin {
    client: Client,
}

impl Admin {
    pub(crate) fn new(client: Client) -> Admin {
        Admin { client }
    }

    /// Creates a topic on the brokers it names (all by default) and waits until its route is visible.
    /// A topic that is there with the same settings is fine.
    pub async fn create_topic(&self, spec: TopicSpec) -> Result<()> {
        let _ = (&self.client, spec);
        Err(Error::closed("create topic"))
    }

    /// Changes a topic on every broker that has it (of those named): every setting is taken over.
    pub async fn alter_topic(&self, spec: TopicSpec) -> Result<()> {
        let _ = spec;
        Err(Error::closed("alter topic"))
    }

    /// Deletes a topic and its messages on every broker.
    pub async fn delete_topic(&self, topic: &str) -> Result<()> {
        Err(Error::closed("delete topic").on(topic))
    }

    /// Names of topics that start with `prefix`, sorted.
    pub async fn topics(&self, prefix: &str) -> Result<Vec<String>> {
        Err(Error::closed("list topics").on(prefix))
    }

    /// A topic's settings on each broker that has it.
    pub async fn describe_topic(&self, topic: &str) -> Result<Vec<TopicDescription>> {
        Err(Error::closed("describe topic").on(topic))
    }

    /// Where a topic's queues are, asked now.
    pub async fn route(&self, topic: &str) -> Result<TopicRoute> {
        Err(Error::closed("query route").on(topic))
    }

    /// Figures of each queue of a topic.
    pub async fn topic_stats(&self, topic: &str) -> Result<Vec<QueueStats>> {
        Err(Error::closed("query queues").on(topic))
    }

    /// Names of groups that start with `prefix`, sorted.
    pub async fn groups(&self, prefix: &str) -> Result<Vec<String>> {
        Err(Error::closed("list groups").on(prefix))
    }

    /// A group and its members.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription> {
        Err(Error::closed("describe group").on(group))
    }

    /// Creates a group on every broker; consumers do so by themselves.
    pub async fn create_group(&self, group: &str) -> Result<()> {
        Err(Error::closed("create group").on(group))
    }

    /// Deletes a group and its offsets on every broker.
    pub async fn delete_group(&self, group: &str) -> Result<()> {
        Err(Error::closed("delete group").on(group))
    }

    /// How far a group is behind, per queue of the topics it consumed (those its members subscribe, and
    /// those for which it committed).
    pub async fn lag(&self, group: &str) -> Result<Vec<QueueLag>> {
        Err(Error::closed("query lag").on(group))
    }

    /// Moves a group's committed offsets on a topic, also backwards; its members start there anew.
    /// Returns where each queue stands then.
    pub async fn reset_offsets(
        &self,
        group: &str,
        topic: &str,
        to: ResetTo,
    ) -> Result<Vec<(Queue, u64)>> {
        let _ = (topic, to);
        Err(Error::closed("reset offsets").on(group))
    }

    /// The brokers that the name servers know.
    pub async fn brokers(&self) -> Result<Vec<BrokerStatus>> {
        Err(Error::closed("query cluster"))
    }

    /// Figures of each shard of a broker.
    pub async fn shards(&self, broker: &str) -> Result<Vec<ShardStatus>> {
        Err(Error::closed("query shards").on(broker))
    }
}
