//! How far groups are behind.

use super::Admin;
use super::groups::{OnBroker, member_name};
use super::types::QueueLag;
use crate::connection::Request;
use crate::error::Result;
use crate::filter::Filter;
use crate::message::time_of;
use crate::route::Queue;
use futures_util::stream::{self, StreamExt};
use ringmq_schema::admin as wire;
use ringmq_schema::consume as offsets;
use ringmq_schema::limits::QUEUES_PER_REQUEST_MAX;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

/// Queues looked at together.
const LOOKS: usize = 8;
/// Behind a filter so many messages of a queue are counted, and a few more.
const COUNT_RECORDS: usize = 10_000;
/// So many requests of 1 MiB each at most.
const COUNT_PULLS: u32 = 16;

/// A queue that may count, and what was found out.
struct Found {
    lag: QueueLag,
    filter: Filter,
}

impl Admin {
    /// How far a group is behind, per queue of the topics it consumes (those its members subscribe, and
    /// those for which it committed). Behind a filter, messages are counted up to a bound: [`QueueLag::at_least`] says
    /// when it was hit.
    pub async fn lag(&self, group: &str) -> Result<Vec<QueueLag>> {
        let mut all = Vec::new();
        for on in self.group_on_brokers("query lag", group).await? {
            let found = self.offsets_on(&on).await?;
            let looks = stream::iter(found.into_iter().map(async |found| self.look(found).await));
            all.extend(looks.buffer_unordered(LOOKS).collect::<Vec<QueueLag>>().await);
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
        // Members subscribe alike.
        let subscribed = |topic: &str| {
            let mut all = on.members.iter().flat_map(|member| &member.subscriptions);
            all.find(|(name, _)| name == topic).map(|(_, filter)| filter.clone())
        };
        let mut topics: HashMap<u32, (Arc<str>, Option<Filter>)> = HashMap::new();
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
                    let counts = subscribed.is_some() || offsets.committed() >= 0;
                    if offsets.status() == 0 && counts {
                        let queue =
                            Queue::new(Arc::clone(topic), Arc::clone(&broker), offsets.queue());
                        let filter = subscribed.clone().unwrap_or_else(Filter::all);
                        found.push(Found { lag: read_lag(queue, &offsets), filter });
                    }
                }
            }
        }
        Ok(found)
    }

    /// Adds the age of the first message that is not consumed, and counts behind a filter.
    async fn look(&self, found: Found) -> QueueLag {
        let Found { mut lag, filter } = found;
        if lag.messages == 0 {
            return lag;
        }
        let is_all = filter.is_all();
        let max_records = if is_all { 1 } else { COUNT_RECORDS };
        let mut offset = lag.committed.unwrap_or(0).max(lag.min_offset);
        let (mut count, mut first) = (0, None);
        let (asker, routes) = (self.asker(), self.routes());
        for pull in 0.. {
            let looked = asker.pull(&routes, &lag.queue, &filter, offset, max_records).await;
            let pulled = match looked {
                Ok(pulled) => pulled,
                // Without it the figures still stand, of what could be looked at.
                Err(error) => {
                    tracing::debug!(%error, queue = %lag.queue, "cannot look at a lag");
                    lag.at_least = !is_all;
                    break;
                }
            };
            let inside = pulled.records.iter().filter(|record| record.offset() < lag.max_offset);
            count += inside.count() as u64;
            first = first.or_else(|| pulled.records.first().map(|record| record.stored_at()));
            let stands = pulled.next_offset <= offset;
            offset = pulled.next_offset;
            if is_all || stands || offset >= lag.max_offset {
                break;
            }
            if pull >= COUNT_PULLS || count >= COUNT_RECORDS as u64 {
                lag.at_least = true;
                break;
            }
        }
        lag.age = first.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        if !is_all {
            lag.messages = count;
            lag.filter = Some(filter.expression());
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
        at_least: false,
        filter: None,
        age: None,
        committed_at: (offsets.committed_ms() > 0).then(|| time_of(offsets.committed_ms())),
        owner: (owner != (0, 0)).then(|| member_name(owner)),
    }
}
