//! How far groups are behind.

use super::Admin;
use super::groups::{OnBroker, member_name};
use super::types::QueueLag;
use crate::connection::Request;
use crate::error::Result;
use crate::message::{time_of, unix_ms};
use crate::route::Queue;
use futures_util::stream::{self, StreamExt};
use ringmq_schema::admin as wire;
use ringmq_schema::consume as offsets;
use ringmq_schema::limits::QUEUES_PER_REQUEST_MAX;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::{placement, record};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Records looked at together for their age.
const LOOKS: usize = 32;

/// A queue that may count, and what was found out.
struct Found {
    lag: QueueLag,
    topic_id: u32,
    shard: u16,
}

impl Admin {
    /// How far a group is behind, per queue of the topics it consumes (those its members subscribe, and
    /// those for which it committed).
    pub async fn lag(&self, group: &str) -> Result<Vec<QueueLag>> {
        let mut all = Vec::new();
        for on in self.group_on_brokers("query lag", group).await? {
            let found = self.offsets_on(&on).await?;
            let address = &on.broker.address;
            let aged = stream::iter(
                found.into_iter().map(async |found| self.with_age(address, found).await),
            );
            all.extend(aged.buffer_unordered(LOOKS).collect::<Vec<QueueLag>>().await);
        }
        all.sort_by(|a, b| a.queue.cmp(&b.queue));
        Ok(all)
    }

    /// Offsets of every queue of a broker that counts for the group.
    async fn offsets_on(&self, on: &OnBroker) -> Result<Vec<Found>> {
        let operation = "query lag";
        let address: Arc<str> = on.broker.address.as_str().into();
        let request = Request::new(Opcode::ListTopics, operation);
        let answer = self
            .ask(&address, request, |fbb| {
                let prefix = Some(fbb.create_string(""));
                wire::ListTopics::create(fbb, &wire::ListTopicsArgs { prefix })
            })
            .await?;
        let table = answer.read::<wire::ListTopicsAnswer<'_>>(operation)?;
        let subscribed = |topic: &str| {
            on.members.iter().flat_map(|m| &m.subscriptions).any(|(name, _)| name == topic)
        };
        let mut topics: HashMap<u32, (Arc<str>, bool)> = HashMap::new();
        let mut by_shard: HashMap<u16, Vec<(u32, u32)>> = HashMap::new();
        for topic in table.topics().into_iter().flatten() {
            topics.insert(topic.id(), (topic.name().into(), subscribed(topic.name())));
            for queue in 0..topic.read_queues() {
                let shard = placement::shard_of_queue(topic.id(), queue, on.broker.shards);
                by_shard.entry(shard).or_default().push((topic.id(), queue));
            }
        }
        let (asker, broker) = (self.asker(), Arc::<str>::from(on.broker.broker.as_str()));
        let mut found = Vec::new();
        for (shard, queues) in by_shard {
            for part in queues.chunks(QUEUES_PER_REQUEST_MAX) {
                for offsets in asker.query(&address, shard, on.group_id, part).await? {
                    let Some((topic, subscribed)) = topics.get(&offsets.topic()) else { continue };
                    let counts = *subscribed || offsets.committed() >= 0;
                    if offsets.status() == 0 && counts {
                        let queue =
                            Queue::new(Arc::clone(topic), Arc::clone(&broker), offsets.queue());
                        let (topic_id, lag) = (offsets.topic(), read_lag(queue, &offsets));
                        found.push(Found { lag, topic_id, shard });
                    }
                }
            }
        }
        Ok(found)
    }

    /// Adds the age of the first message that is not consumed.
    async fn with_age(&self, address: &str, found: Found) -> QueueLag {
        let Found { mut lag, topic_id, shard } = found;
        if lag.messages == 0 {
            return lag;
        }
        let from = lag.committed.unwrap_or(0).max(lag.min_offset);
        let request = Request::new(Opcode::Fetch, "query lag").shard(shard);
        let looked = self.ask(address, request, |fbb| {
            let queue = offsets::FetchQueue::new(topic_id, lag.queue.id, from, 0, 0, 0);
            let args = offsets::FetchArgs {
                group: 0,
                member: Some(&offsets::MemberId::new(0, 0)),
                wait_ms: 0,
                min_bytes: 1,
                max_bytes: 1,
                max_records: 1,
                queues: Some(fbb.create_vector(&[queue])),
                filters: None,
                checked: true,
            };
            offsets::Fetch::create(fbb, &args)
        });
        // The age is an extra: without it the figures still stand.
        let run = match looked.await {
            Ok(answer) => answer.run(),
            Err(error) => {
                tracing::debug!(%error, "cannot look at a record's age");
                return lag;
            }
        };
        if let Some(Ok(first)) = record::records(&run).next() {
            let age_ms = unix_ms(SystemTime::now()) - first.header.store_ms.get();
            lag.age = Some(Duration::from_millis(u64::try_from(age_ms).unwrap_or(0)));
        }
        lag
    }
}

fn read_lag(queue: Queue, offsets: &offsets::QueueOffsets) -> QueueLag {
    let committed = u64::try_from(offsets.committed()).ok();
    let from = committed.unwrap_or(0).max(offsets.min_offset());
    let owner = (offsets.owner().high(), offsets.owner().low());
    QueueLag {
        queue,
        committed,
        min_offset: offsets.min_offset(),
        max_offset: offsets.max_offset(),
        messages: offsets.max_offset().saturating_sub(from),
        age: None,
        committed_at: (offsets.committed_ms() > 0).then(|| time_of(offsets.committed_ms())),
        owner: (owner != (0, 0)).then(|| member_name(owner)),
    }
}
