//! The pull consumer: is asked for records.

use super::feed::{Feed, Holding, Place, Room};
use super::push::check;
use super::reader::{DROP_LIMIT, Reader, ReaderSettings};
use super::{ConsumeFrom, SeekTo};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Filter;
use crate::record::Record;
use crate::route::Queue;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tracing::Instrument;

/// Settings of a [`PullConsumer`].
#[derive(Clone)]
#[must_use]
pub struct PullConsumerBuilder {
    client: Client,
    group: String,
    subscriptions: Vec<(String, Filter)>,
    assigned: Vec<(Queue, Filter)>,
    from: ConsumeFrom,
    max_records: usize,
    max_waiting: usize,
    max_waiting_bytes: usize,
}

/// A pull consumer: it owns its positions. Dropping it gives back what it held, without a commit.
pub struct PullConsumer {
    reader: Arc<Reader>,
    max_records: usize,
    _client: Client,
}

impl Drop for PullConsumer {
    fn drop(&mut self) {
        self.reader.stop(DROP_LIMIT);
    }
}

impl PullConsumerBuilder {
    pub(crate) fn new(client: Client, group: String) -> PullConsumerBuilder {
        PullConsumerBuilder {
            client,
            group,
            subscriptions: Vec::new(),
            assigned: Vec::new(),
            from: ConsumeFrom::default(),
            max_records: 1024,
            max_waiting: 4096,
            max_waiting_bytes: 64 << 20,
        }
    }

    /// Adds a topic whose queues the group's members share. Not together with `assign`.
    pub fn subscribe(mut self, topic: impl Into<String>, filter: Filter) -> PullConsumerBuilder {
        self.subscriptions.push((topic.into(), filter));
        self
    }

    /// Adds a queue, whoever else reads it. Not together with `subscribe`.
    pub fn assign(mut self, queue: Queue, filter: Filter) -> PullConsumerBuilder {
        self.assigned.push((queue, filter));
        self
    }

    /// Where to start on queues for which the group never committed. Default: behind the last message.
    pub fn from(mut self, from: ConsumeFrom) -> PullConsumerBuilder {
        self.from = from;
        self
    }

    /// Most records of one poll. Default 1024.
    pub fn max_records(mut self, records: usize) -> PullConsumerBuilder {
        self.max_records = records.max(1);
        self
    }

    /// Messages of one queue that are fetched ahead of polls. Default 4096.
    pub fn max_waiting(mut self, messages: usize) -> PullConsumerBuilder {
        self.max_waiting = messages.max(1);
        self
    }

    /// Bytes of one queue that are fetched ahead of polls. Default 64 MiB.
    pub fn max_waiting_bytes(mut self, bytes: usize) -> PullConsumerBuilder {
        self.max_waiting_bytes = bytes.max(1);
        self
    }

    /// Starts.
    pub async fn build(self) -> Result<PullConsumer> {
        let by_hand = !self.assigned.is_empty();
        if by_hand && !self.subscriptions.is_empty() {
            let text = "either subscribe topics or assign queues, not both";
            return Err(Error::invalid("subscribe", text).on(self.group));
        }
        let subscriptions = match by_hand {
            true => Vec::new(),
            false => check(&self.group, &self.subscriptions)?,
        };
        let settings = ReaderSettings {
            group: self.group,
            subscriptions,
            from: self.from,
            commit_interval: None,
            commit_on_close: false,
            session_timeout: Duration::from_secs(10),
            retry_topic: None,
        };
        let room = Room { records: self.max_waiting, bytes: self.max_waiting_bytes };
        let reader = Reader::new(&self.client, settings, Feed::new(room, false));
        let span = tracing::info_span!("consumer", group = reader.settings.group);
        tokio::spawn(Arc::clone(&reader).supervise(JoinSet::new()).instrument(span));
        let max_records = self.max_records;
        let consumer = PullConsumer { reader, max_records, _client: self.client };
        if by_hand {
            consumer.assign(&self.assigned).await?;
        } else {
            consumer.reader.join().await?;
        }
        Ok(consumer)
    }
}

impl PullConsumer {
    async fn assign(&self, assigned: &[(Queue, Filter)]) -> Result<()> {
        let reader = &self.reader;
        for (queue, filter) in assigned {
            filter.check().map_err(|error| error.on(queue.to_string()))?;
            let route = reader.routes.get(&queue.topic).await?;
            let broker = route.master(&queue.broker).filter(|b| queue.id < b.read_queues);
            let Some(broker) = broker else {
                let text = "the topic's route has no such queue";
                return Err(Error::new(ErrorKind::NotFound, "assign", text).on(queue.to_string()));
            };
            let group = reader.settings.group.as_str();
            let holding = Holding {
                queue: Arc::new(queue.clone()),
                place: Place {
                    broker: Arc::clone(&broker.broker),
                    address: Arc::clone(&broker.address),
                    shard: broker.shard_of(queue.id),
                },
                topic_id: broker.topic_id,
                group_id: reader.asker.group_id(&broker.address, group).await?,
                generation: 0,
                filter: Arc::new(filter.clone()),
            };
            reader.take_over(holding).await?;
        }
        Ok(())
    }

    /// The next records, in order per queue; waits for at least one until `timeout`, then returns none.
    /// Dropping the future loses nothing.
    pub async fn poll(&mut self, timeout: Duration) -> Result<Vec<Record>> {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            // Nothing is awaited between taking and returning.
            let records = self.take();
            if !records.is_empty() {
                return Ok(records);
            }
            if !self.reader.is_running() {
                return Err(Error::closed("poll").on(self.reader.settings.group.as_str()));
            }
            let ready = self.reader.feed.ready.notified();
            if tokio::time::timeout_at(deadline, ready).await.is_err() {
                return Ok(self.take());
            }
        }
    }

    fn take(&self) -> Vec<Record> {
        let feed = &self.reader.feed;
        let mut records = Vec::new();
        while records.len() < self.max_records
            && let Some(taken) = feed.take()
        {
            match taken.record {
                Ok(record) if taken.wanted => records.push(record),
                Ok(_) => {}
                Err(unreadable) => {
                    let (offset, error) = (taken.ticket.offset, unreadable.why);
                    tracing::error!(offset, error, "a record cannot be read and is left out");
                }
            }
            feed.finish(taken.ticket);
        }
        records
    }

    /// Goes somewhere else in a queue; what waits of it is dropped.
    pub async fn seek(&mut self, queue: &Queue, to: SeekTo) -> Result<()> {
        let Some((id, holding)) = self.reader.feed.find(queue) else {
            let text = "the consumer does not hold this queue now";
            return Err(Error::new(ErrorKind::NotFound, "seek", text).on(queue.to_string()));
        };
        let offset = match to.known() {
            Ok(offset) => offset,
            Err(at_ms) => {
                let Holding { place, topic_id, .. } = &holding;
                self.reader.asker.search_one(place, *topic_id, queue.id, at_ms).await?
            }
        };
        self.reader.feed.seek(id, offset);
        Ok(())
    }

    /// Commits the position behind what `poll` returned, for every queue.
    pub async fn commit(&mut self) -> Result<()> {
        self.reader.commit(None).await
    }

    /// The next offset that `poll` will return of each queue that it reads now.
    pub fn positions(&self) -> Vec<(Queue, u64)> {
        self.reader.feed.positions()
    }

    /// Stops returning records of a queue until it is resumed.
    pub fn pause(&mut self, queue: &Queue) {
        self.reader.feed.pause(queue, true);
    }

    /// Goes on with a paused queue.
    pub fn resume(&mut self, queue: &Queue) {
        self.reader.feed.pause(queue, false);
    }

    /// Gives back what it holds and leaves the group. Does not commit.
    pub async fn close(self, limit: Duration) -> Result<()> {
        self.reader.close(limit).await
    }
}
