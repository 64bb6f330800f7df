//! How far groups are behind.

use super::Admin;
use super::count::{By, Counted, Counting};
use super::groups::{OnBroker, member_name};
use super::types::{LagBounds, QueueLag};
use crate::connection::Request;
use crate::error::Result;
use crate::filter::Filter;
use crate::message::time_of;
use crate::route::Queue;
use futures_util::stream::{self, StreamExt};
use ringmq_schema::admin as wire;
use ringmq_schema::consume as offsets;
use ringmq_schema::error::Status;
use ringmq_schema::limits::QUEUES_PER_REQUEST_MAX;
use ringmq_schema::names;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

/// Queues looked at together.
const LOOKS: usize = 8;

/// A queue that may count, and what was found out.
struct Found {
    queue: Queue,
    told: offsets::QueueLag,
    filter: Filter,
    address: Arc<str>,
    shard: u16,
    group_id: u32,
}

impl Admin {
    /// How far a group is behind, per queue of the topics it consumes: those its members subscribe, those for which
    /// it committed or popped, and its retry topic. The shards count, and send no message for it.
    /// [`GroupLag::of`](super::GroupLag::of) adds it up.
    pub async fn lag(&self, group: &str) -> Result<Vec<QueueLag>> {
        self.lag_within(group, LagBounds::default()).await
    }

    /// Like [`Admin::lag`], counting behind SQL expressions only so far.
    pub async fn lag_within(&self, group: &str, bounds: LagBounds) -> Result<Vec<QueueLag>> {
        let mut all = Vec::new();
        let retry_topic = names::retry_topic(group);
        for on in self.group_on_brokers("query lag", group).await? {
            let found = self.offsets_on(&on, &retry_topic).await?;
            let looks =
                stream::iter(found.into_iter().map(async |found| self.look(found, bounds).await));
            all.extend(looks.buffer_unordered(LOOKS).collect::<Vec<QueueLag>>().await);
        }
        all.sort_by(|a, b| a.queue.cmp(&b.queue));
        Ok(all)
    }

    /// The topics that a group consumes.
    pub(super) async fn consumed_topics(&self, group: &str) -> Result<BTreeSet<Arc<str>>> {
        let retry_topic = names::retry_topic(group);
        let mut topics = BTreeSet::new();
        for on in self.group_on_brokers("reset offsets", group).await? {
            let found = self.offsets_on(&on, &retry_topic).await?;
            topics.extend(found.into_iter().map(|found| Arc::clone(&found.queue.topic)));
        }
        Ok(topics)
    }

    /// Every queue of a broker that counts for the group.
    async fn offsets_on(&self, on: &OnBroker, retry_topic: &str) -> Result<Vec<Found>> {
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
            let found = all.find(|(name, _)| name == topic).map(|(_, filter)| filter.clone());
            found.or_else(|| (topic == retry_topic).then(Filter::all))
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
        let broker = Arc::<str>::from(on.broker.broker.as_str());
        let mut found = Vec::new();
        for (shard, mut queues) in by_shard {
            while !queues.is_empty() {
                let count = queues.len().min(QUEUES_PER_REQUEST_MAX);
                let part: Vec<_> = queues.drain(..count).collect();
                for told in self.asker().lag(&address, shard, on.group_id, &part).await? {
                    // More than one request looks at; some of the others it did.
                    if told.status() == Status::Busy.code() {
                        queues.push((told.topic(), told.queue()));
                        continue;
                    }
                    let Some((topic, subscribed)) = topics.get(&told.topic()) else { continue };
                    let counts = subscribed.is_some() || told.committed() >= 0;
                    if told.status() == 0 && counts {
                        let queue =
                            Queue::new(Arc::clone(topic), Arc::clone(&broker), told.queue());
                        let filter = subscribed.clone().unwrap_or_else(Filter::all);
                        let (address, group_id) = (Arc::clone(&address), on.group_id);
                        found.push(Found { queue, told, filter, address, shard, group_id });
                    }
                }
            }
        }
        Ok(found)
    }

    /// Has the messages counted that the group has not consumed.
    async fn look(&self, found: Found, bounds: LagBounds) -> QueueLag {
        let Found { told, .. } = &found;
        let has_popped = told.popped() >= 0;
        let counting = Counting {
            address: &found.address,
            shard: found.shard,
            topic: told.topic(),
            queue: told.queue(),
            by: match has_popped {
                true => By::PoppedBy(found.group_id),
                false => By::Filter(&found.filter),
            },
        };
        let of = |offset: i64| u64::try_from(offset).unwrap_or(0);
        let (min, max) = (told.min_offset(), told.max_offset());
        let begin = of(told.committed()).clamp(min, max.max(min));
        // What lies behind was handed out to nobody.
        let handed_out = if has_popped { told.popped() } else { told.fetched() };
        let behind = of(handed_out).clamp(begin, max.max(begin));
        let fresh = self.count(&counting, behind..max, bounds).await;
        let mut lag = read_lag(found.queue.clone(), told);
        let given = match has_popped {
            true => {
                let messages = u64::from(told.in_flight()) + u64::from(told.back());
                let all = Filter::all();
                let first = Counting { by: By::Filter(&all), ..counting };
                // The first that is not done is in flight, or back.
                let end = if messages > 0 { begin + 1 } else { begin };
                Counted { messages, ..self.count(&first, begin..end, bounds).await }
            }
            false => self.count(&counting, begin..behind, bounds).await,
        };
        lag.in_flight = if has_popped { told.in_flight().into() } else { given.messages };
        lag.messages = fresh.messages + given.messages;
        lag.ready = lag.messages - lag.in_flight;
        lag.unreadable = fresh.unreadable + given.unreadable;
        lag.at_least = fresh.at_least || given.at_least;
        lag.filter = match has_popped {
            true => fresh.filter,
            false => (!found.filter.is_all()).then(|| found.filter.expression()),
        };
        let firsts = [given.first_ms, fresh.first_ms];
        let first = firsts.into_iter().find(|ms| *ms > 0).map(time_of);
        lag.age = first.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        lag
    }
}

fn read_lag(queue: Queue, told: &offsets::QueueLag) -> QueueLag {
    let owner = (told.owner().high(), told.owner().low());
    QueueLag {
        queue,
        committed: u64::try_from(told.committed()).ok(),
        min_offset: told.min_offset(),
        max_offset: told.max_offset(),
        messages: 0,
        ready: 0,
        in_flight: 0,
        delayed: told.delayed(),
        unreadable: 0,
        at_least: false,
        filter: None,
        age: None,
        committed_at: (told.committed_ms() > 0).then(|| time_of(told.committed_ms())),
        owner: (owner != (0, 0)).then(|| member_name(owner)),
    }
}
