//! Messages looked up by key, unique id or stored id.

use super::{Admin, BrokerStatus};
use crate::connection::{Answer, Request};
use crate::consumer::{Pulled, SeekTo};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Filter;
use crate::identity::{MessageRef, StoredMessageId};
use crate::message::unix_ms;
use crate::record::Record;
use crate::route::{BrokerRoute, Queue};
use bytes::Bytes;
use ringmq_schema::consume as wire;
use ringmq_schema::error::Status;
use ringmq_schema::limits::FIND_RECORDS_MAX;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement::shard_of_queue;
use ringmq_schema::record;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

/// Records found when the query does not say how many.
const MOST: usize = 32;

/// Which messages are looked for: those with a key, and more narrowly.
///
/// A message is found by its first four keys.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct KeyQuery {
    key: String,
    from: Option<SystemTime>,
    until: Option<SystemTime>,
    most: usize,
}

impl KeyQuery {
    /// The newest 32 messages with this key.
    pub fn new(key: impl Into<String>) -> KeyQuery {
        KeyQuery { key: key.into(), from: None, until: None, most: MOST }
    }

    /// Only those stored at or after this time.
    pub fn from(mut self, time: SystemTime) -> KeyQuery {
        self.from = Some(time);
        self
    }

    /// Only those stored before this time.
    pub fn until(mut self, time: SystemTime) -> KeyQuery {
        self.until = Some(time);
        self
    }

    /// So many at most, the newest.
    pub fn most(mut self, records: usize) -> KeyQuery {
        self.most = records.max(1);
        self
    }
}

impl From<&str> for KeyQuery {
    fn from(key: &str) -> KeyQuery {
        KeyQuery::new(key)
    }
}

/// What was found by a key.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FoundMessages {
    /// The newest first, by store time.
    pub records: Vec<Record>,
    /// Parts of logs and messages that could not be read: if there are any, some that have the key may be missing.
    pub unreadable: u64,
}

/// A shard that is asked.
struct Shard {
    broker: Arc<str>,
    address: Arc<str>,
    shard: u16,
    /// 0: any topic.
    topic_id: u32,
}

impl Shard {
    fn of(broker: &BrokerStatus) -> impl Iterator<Item = Shard> {
        let (name, address): (Arc<str>, Arc<str>) =
            (broker.broker.as_str().into(), broker.address.as_str().into());
        (0..broker.shards).map(move |shard| {
            let (broker, address) = (Arc::clone(&name), Arc::clone(&address));
            Shard { broker, address, shard, topic_id: 0 }
        })
    }

    /// Those that have queues of a topic.
    fn with(route: &BrokerRoute) -> impl Iterator<Item = Shard> {
        let queues = 0..route.read_queues.max(route.write_queues);
        let shards: BTreeSet<u16> =
            queues.map(|queue| shard_of_queue(route.topic_id, queue, route.shards)).collect();
        let (broker, address) = (Arc::clone(&route.broker), Arc::clone(&route.address));
        let topic_id = route.topic_id;
        shards.into_iter().map(move |shard| {
            let (broker, address) = (Arc::clone(&broker), Arc::clone(&address));
            Shard { broker, address, shard, topic_id }
        })
    }

    fn at(&self, error: Error) -> Error {
        error.on(format!("{}/{}", self.broker, self.shard))
    }

    /// The records of an answer; and how many of them are damaged.
    fn records(&self, topic: &str, answer: &Answer) -> Result<(Vec<Record>, u64)> {
        let run = answer.run();
        let (mut records, mut damaged) = (Vec::new(), 0);
        for found in record::records(&run) {
            let found = found.map_err(|error| self.at(Error::protocol(FIND, error)))?;
            let bytes = Bytes::copy_from_slice(found.bytes);
            let queue = Queue::new(topic, Arc::clone(&self.broker), found.header.queue.get());
            match Record::verify(&Arc::new(queue), self.shard, bytes) {
                Ok(record) => records.push(record),
                Err(_) => damaged += 1,
            }
        }
        Ok((records, damaged))
    }
}

const FIND: &str = "find messages";
const GET: &str = "get message";

impl Admin {
    /// The messages of a topic that have a key, on all brokers, the newest first.
    ///
    /// ```no_run
    /// # use ringmq::{Client, KeyQuery};
    /// # async fn example(client: Client) -> ringmq::Result<()> {
    /// let found = client.admin().find_messages("orders", KeyQuery::new("42").most(5)).await?;
    /// for record in found.records {
    ///     println!("{} {}", record.message_id(), record.stored_id());
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn find_messages(
        &self,
        topic: &str,
        query: impl Into<KeyQuery>,
    ) -> Result<FoundMessages> {
        let query = query.into();
        let route = self.route(topic).await.map_err(|error| error.during(FIND))?;
        let mut found = FoundMessages { records: Vec::new(), unreadable: 0 };
        for shard in route.masters().flat_map(Shard::with) {
            let asked = self.find_on(&shard, topic, &query, &mut found).await;
            asked.map_err(|error| shard.at(error))?;
        }
        let order = |record: &Record| (record.stored_at(), record.stored_id());
        found.records.sort_by_cached_key(|record| std::cmp::Reverse(order(record)));
        found.records.truncate(query.most);
        Ok(found)
    }

    /// The newest messages of one shard that have the key.
    async fn find_on(
        &self,
        shard: &Shard,
        topic: &str,
        query: &KeyQuery,
        found: &mut FoundMessages,
    ) -> Result<()> {
        let (mut left, mut before) = (query.most, 0);
        loop {
            let request = Request::new(Opcode::FindMessages, FIND).shard(shard.shard);
            let answer = self.ask(&shard.address, request, |fbb| {
                let key = Some(fbb.create_string(&query.key));
                let args = wire::FindMessagesArgs {
                    topic: shard.topic_id,
                    key,
                    begin_ms: query.from.map_or(0, unix_ms),
                    end_ms: query.until.map_or(i64::MAX, unix_ms),
                    max_records: left.min(FIND_RECORDS_MAX) as u32,
                    before,
                };
                wire::FindMessages::create(fbb, &args)
            });
            let answer = answer.await?;
            let table = answer.read::<wire::FindMessagesAnswer<'_>>(FIND)?;
            let (records, damaged) = shard.records(topic, &answer)?;
            found.unreadable += u64::from(table.unreadable()) + damaged;
            left = left.saturating_sub(records.len());
            found.records.extend(records);
            let next = table.next();
            if left == 0 || next == 0 {
                return Ok(());
            }
            before = below(before, next)?;
        }
    }

    /// One message by its unique or stored id; with `topic` only if it is of that topic, and only brokers that
    /// have it are asked. Of several messages with the same id one is answered.
    ///
    /// An error of kind [`ErrorKind::NotFound`] means that no broker has it; when some part of a log could not be
    /// read, the error is another.
    pub async fn message(
        &self,
        topic: Option<&str>,
        message: impl Into<MessageRef>,
    ) -> Result<Record> {
        let message = message.into();
        let mut failed = None;
        for shard in self.shards_with(topic, &message).await? {
            match self.get_on(&shard, &message).await {
                Ok(Some(record)) => return Ok(record),
                Ok(None) => {}
                // It may be elsewhere.
                Err(error) => drop(failed.get_or_insert(shard.at(error))),
            }
        }
        Err(failed.unwrap_or_else(|| {
            let text = "no broker has such a message";
            Error::new(ErrorKind::NotFound, GET, text).on(message.to_string())
        }))
    }

    /// Shards that may have a message.
    async fn shards_with(&self, topic: Option<&str>, message: &MessageRef) -> Result<Vec<Shard>> {
        let mut shards: Vec<Shard> = match topic {
            Some(topic) => {
                let route = self.route(topic).await.map_err(|error| error.during(GET))?;
                route.masters().flat_map(Shard::with).collect()
            }
            None => self.masters().await?.iter().flat_map(Shard::of).collect(),
        };
        if let MessageRef::Stored(StoredMessageId { broker, shard, .. }) = message {
            shards.retain(|known| known.broker == *broker && known.shard == *shard);
        }
        Ok(shards)
    }

    async fn get_on(&self, shard: &Shard, message: &MessageRef) -> Result<Option<Record>> {
        let (mut before, mut unreadable) = (0, 0);
        let (id, position) = match message {
            MessageRef::Stored(stored) => (None, stored.position),
            MessageRef::Unique(id) => {
                let id = u128::from_be_bytes(id.0);
                (Some(wire::MessageId::new((id >> 64) as u64, id as u64)), 0)
            }
        };
        loop {
            let request = Request::new(Opcode::GetMessage, GET).shard(shard.shard);
            let topic = shard.topic_id;
            let answer = self.ask(&shard.address, request, |fbb| {
                let args = wire::GetMessageArgs { id: id.as_ref(), position, topic, before };
                wire::GetMessage::create(fbb, &args)
            });
            let answer = match answer.await {
                Err(error) if error.status() == Some(Status::NotFound) && unreadable == 0 => {
                    return Ok(None);
                }
                Err(error) if error.status() == Some(Status::NotFound) => {
                    let text = format!("{unreadable} parts of the log could not be read");
                    return Err(Error::new(ErrorKind::Server, GET, text));
                }
                answer => answer?,
            };
            let table = answer.read::<wire::GetMessageAnswer<'_>>(GET)?;
            unreadable += u64::from(table.unreadable());
            let (records, damaged) = shard.records(table.topic().unwrap_or_default(), &answer)?;
            if let Some(record) = records.into_iter().next() {
                return Ok(Some(record));
            }
            if damaged > 0 {
                let text = "the message is there, but damaged";
                return Err(Error::new(ErrorKind::Corrupt, GET, text));
            }
            before = below(before, table.next())?;
        }
    }
}

impl Admin {
    /// At most `max` messages of a queue from `offset` on, as they lie there: no group is touched, and none is waited for.
    pub async fn pull(&self, queue: &Queue, offset: u64, max: usize) -> Result<Pulled> {
        self.asker().pull(&self.routes(), queue, &Filter::all(), offset, max).await
    }

    /// The offset of a place in a queue.
    pub async fn find_offset(&self, queue: &Queue, to: SeekTo) -> Result<u64> {
        let (asker, routes) = (self.asker(), self.routes());
        let (place, topic) = asker.place_of(&routes, queue).await?;
        match to.known() {
            Ok(offset) => Ok(offset),
            Err(at_ms) => asker.search_one(&place, topic, queue.id, at_ms).await,
        }
    }
}

/// Where to go on: always further down, or a broker could keep us for ever.
fn below(before: u64, next: u64) -> Result<u64> {
    if next > 0 && (before == 0 || next < before) {
        return Ok(next);
    }
    Err(Error::protocol(FIND, format!("the broker went on at {next} after {before}")))
}
