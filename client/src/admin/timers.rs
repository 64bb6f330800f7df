//! Delayed messages that wait for their time: listed, taken back.

use super::Admin;
use crate::connection::Request;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{MessageId, time_of};
use crate::route::Queue;
use crate::timer::RecallHandle;
use ringmq_schema::admin::{ListTopics, ListTopicsAnswer, ListTopicsArgs};
use ringmq_schema::limits::LIST_TIMERS_MAX;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement::shard_of_queue;
use ringmq_schema::timer as wire;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

const LIST: &str = "list delayed messages";
const RECALL: &str = "recall";

/// A delayed message that waits for its time.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PendingMessage {
    /// What it can be taken back by; says also its queue, its time and its id.
    pub handle: RecallHandle,
    /// When it was stored, or stored again because its segment of the log went.
    pub stored_at: SystemTime,
    /// Length in the log.
    pub stored_bytes: usize,
}

/// Delayed messages that wait for their time.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PendingMessages {
    /// The next to be delivered first.
    pub messages: Vec<PendingMessage>,
    /// How many wait on the brokers that were asked, of whatever topic.
    pub total: u64,
    /// Some of them could not be read.
    pub unreadable: u64,
}

/// A shard that is asked.
struct Shard {
    broker: Arc<str>,
    address: String,
    shard: u16,
    /// 0: any topic.
    topic_id: u32,
    /// By id.
    names: Arc<BTreeMap<u32, String>>,
}

impl Admin {
    /// Takes a delayed message back, see [`crate::Producer::recall`].
    pub async fn recall(&self, handle: &RecallHandle) -> Result<()> {
        let Queue { topic, broker, id: queue, .. } = &handle.queue;
        let route = self.route(topic).await.map_err(|error| error.during(RECALL))?;
        let master = route.master(broker).ok_or_else(|| {
            let text = format!("broker {broker} has no topic {topic}, or is not to be reached");
            Error::new(ErrorKind::NotFound, RECALL, text)
        })?;
        let shard = shard_of_queue(master.topic_id, *queue, master.shards);
        let id = u128::from_be_bytes(handle.message_id.0);
        let args = wire::RecallArgs {
            topic: master.topic_id,
            queue: *queue,
            position: handle.position,
            due_ms: handle.due_ms,
            id_high: (id >> 64) as u64,
            id_low: id as u64,
        };
        let request = Request::new(Opcode::Recall, RECALL).shard(shard);
        let asked =
            self.ask(&master.address, request, |fbb| wire::Recall::create(fbb, &args)).await;
        asked.map(drop).map_err(|error| error.on(handle.message_id.to_string()))
    }

    /// The delayed messages that are due next, of one topic or of all, at most so many.
    pub async fn pending_messages(
        &self,
        topic: Option<&str>,
        most: usize,
    ) -> Result<PendingMessages> {
        let mut found = PendingMessages::default();
        for shard in self.timer_shards(topic).await? {
            let asked = self.pending_on(&shard, most, &mut found).await;
            asked.map_err(|error| error.on(format!("{}/{}", shard.broker, shard.shard)))?;
        }
        let order = |message: &PendingMessage| {
            let handle = &message.handle;
            (handle.due_ms, Arc::clone(&handle.queue.broker), handle.position)
        };
        found.messages.sort_by_cached_key(order);
        found.messages.truncate(most);
        Ok(found)
    }

    async fn timer_shards(&self, topic: Option<&str>) -> Result<Vec<Shard>> {
        let mut shards = Vec::new();
        if let Some(topic) = topic {
            let route = self.route(topic).await.map_err(|error| error.during(LIST))?;
            for master in route.masters() {
                let names = Arc::new(BTreeMap::from([(master.topic_id, topic.to_owned())]));
                shards.extend((0..master.shards).map(|shard| Shard {
                    broker: Arc::clone(&master.broker),
                    address: master.address.to_string(),
                    shard,
                    topic_id: master.topic_id,
                    names: Arc::clone(&names),
                }));
            }
            return Ok(shards);
        }
        for broker in self.masters().await? {
            let request = Request::new(Opcode::ListTopics, LIST);
            let answer = self.ask(&broker.address, request, |fbb| {
                ListTopics::create(fbb, &ListTopicsArgs::default())
            });
            let answer = answer.await?;
            let table = answer.read::<ListTopicsAnswer<'_>>(LIST)?;
            let topics = table.topics().into_iter().flatten();
            let names: BTreeMap<u32, String> =
                topics.map(|topic| (topic.id(), topic.name().to_owned())).collect();
            let names = Arc::new(names);
            shards.extend((0..broker.shards).map(|shard| Shard {
                broker: broker.broker.as_str().into(),
                address: broker.address.clone(),
                shard,
                topic_id: 0,
                names: Arc::clone(&names),
            }));
        }
        Ok(shards)
    }

    /// Those of one shard.
    async fn pending_on(
        &self,
        shard: &Shard,
        most: usize,
        found: &mut PendingMessages,
    ) -> Result<()> {
        let (mut left, mut after) = (most, (i64::MIN, 0));
        loop {
            let request = Request::new(Opcode::ListTimers, LIST).shard(shard.shard);
            let args = wire::ListTimersArgs {
                after_due_ms: after.0,
                after_position: after.1,
                topic: shard.topic_id,
                max: left.clamp(1, LIST_TIMERS_MAX) as u32,
            };
            let asked =
                self.ask(&shard.address, request, |fbb| wire::ListTimers::create(fbb, &args));
            let answer = asked.await?;
            let table = answer.read::<wire::ListTimersAnswer<'_>>(LIST)?;
            let timers = table.timers().into_iter().flatten();
            let before = found.messages.len();
            found.messages.extend(timers.map(|timer| shard.pending(timer)));
            found.unreadable += u64::from(table.unreadable());
            left = left.saturating_sub(found.messages.len() - before);
            let next = (table.next_due_ms(), table.next_position());
            if left == 0 || !table.more() {
                found.total += table.pending();
                return Ok(());
            }
            if next <= after {
                let text = format!("the broker went on at {next:?} after {after:?}");
                return Err(Error::protocol(LIST, text));
            }
            after = next;
        }
    }
}

impl Shard {
    fn pending(&self, timer: &wire::PendingTimer) -> PendingMessage {
        let name = self.names.get(&timer.topic()).cloned();
        // One that was made since the topics were listed.
        let topic = name.unwrap_or_else(|| format!("#{}", timer.topic()));
        let id = u128::from(timer.id_high()) << 64 | u128::from(timer.id_low());
        let handle = RecallHandle {
            queue: Queue::new(topic, Arc::clone(&self.broker), timer.queue()),
            position: timer.position(),
            due_ms: timer.due_ms(),
            message_id: MessageId(id.to_be_bytes()),
        };
        let stored_at = time_of(timer.stored_ms());
        PendingMessage { handle, stored_at, stored_bytes: timer.bytes() as usize }
    }
}
