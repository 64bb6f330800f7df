//! The pull consumer: is asked for records.

use super::explicit::Pulled;
use super::feed::{Feed, Holding, Room};
use super::held::Ticket;
use super::push::check;
use super::reader::{DROP_LIMIT, Reader, ReaderSettings};
use super::{ConsumeFrom, SeekTo};
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Filter;
use crate::record::Record;
use crate::route::Queue;
use std::collections::HashMap;
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
    auto_commit: Option<Duration>,
}

/// A pull consumer: it owns its positions. Dropping it gives back what it held, without a commit of what the last poll
/// returned.
pub struct PullConsumer {
    reader: Arc<Reader>,
    filters: HashMap<Arc<str>, Arc<Filter>>,
    max_records: usize,
    /// Positions are committed now and then: what a poll returned counts when the next is asked for.
    auto: bool,
    returned: Vec<(Queue, Ticket)>,
    committing: JoinSet<Result<()>>,
    _client: Client,
}

impl Drop for PullConsumer {
    fn drop(&mut self) {
        for (_, ticket) in self.returned.drain(..) {
            self.reader.feed.abandon(ticket);
        }
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
            auto_commit: None,
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

    /// Commits by itself, this often and on close: what a poll returned counts as consumed once the next is asked for,
    /// so that nothing is lost of what was under way when the process dies. Default: only `commit` commits.
    pub fn auto_commit(mut self, interval: Duration) -> PullConsumerBuilder {
        self.auto_commit = Some(interval);
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
            commit_interval: self.auto_commit,
            commit_on_close: self.auto_commit.is_some(),
            session_timeout: Duration::from_secs(10),
            retry_topic: None,
            local: None,
        };
        let room = Room { records: self.max_waiting, bytes: self.max_waiting_bytes };
        let reader = Reader::new(&self.client, settings, Feed::new(room, false));
        let span = tracing::info_span!("consumer", group = reader.settings.group);
        tokio::spawn(Arc::clone(&reader).supervise(JoinSet::new()).instrument(span));
        let assigned = self
            .assigned
            .iter()
            .map(|(queue, filter)| (Arc::clone(&queue.topic), Arc::new(filter.clone())));
        let subscribed = reader.settings.subscriptions.iter().map(|subscription| {
            (Arc::clone(&subscription.topic), Arc::clone(&subscription.filter))
        });
        let consumer = PullConsumer {
            filters: assigned.chain(subscribed).collect(),
            reader,
            max_records: self.max_records,
            auto: self.auto_commit.is_some(),
            returned: Vec::new(),
            committing: JoinSet::new(),
            _client: self.client,
        };
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
            let (place, topic_id) = reader.asker.place_of(&reader.routes, queue).await?;
            let group = reader.settings.group.as_str();
            let holding = Holding {
                queue: Arc::new(queue.clone()),
                topic_id,
                group_id: reader.asker.group_id(&place.address, group).await?,
                place,
                generation: 0,
                filter: Arc::new(filter.clone()),
            };
            reader.take_over(holding).await?;
        }
        Ok(())
    }

    /// The next records, in order per queue; waits for at least one until `timeout`, then returns none.
    /// Dropping the future loses nothing. The error of an earlier `commit_async` is returned here too.
    pub async fn poll(&mut self, timeout: Duration) -> Result<Vec<Record>> {
        self.finish_returned();
        self.earlier_error()?;
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

    fn take(&mut self) -> Vec<Record> {
        let feed = &self.reader.feed;
        let mut records = Vec::new();
        while records.len() < self.max_records
            && let Some(taken) = feed.take()
        {
            match taken.record {
                Ok(record) if taken.wanted => {
                    let queue = self.auto.then(|| record.queue().clone());
                    records.push(record);
                    if let Some(queue) = queue {
                        self.returned.push((queue, taken.ticket));
                        continue;
                    }
                }
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

    /// What the last poll returned counts as consumed.
    fn finish_returned(&mut self) {
        for (_, ticket) in self.returned.drain(..) {
            self.reader.feed.finish(ticket);
        }
    }

    fn earlier_error(&mut self) -> Result<()> {
        let mut earlier = Ok(());
        while let Some(ended) = self.committing.try_join_next() {
            earlier = earlier.and(ended.unwrap_or_else(|_| Err(Error::closed("commit"))));
        }
        earlier
    }

    /// At most `max` records of a queue from `offset` on, as they are now: it does not wait for any, and neither needs
    /// to hold the queue nor moves the consumer's position. The topic's filter counts, where it has one here.
    ///
    /// ```no_run
    /// # async fn example(consumer: ringmq::PullConsumer, queue: ringmq::Queue) -> ringmq::Result<()> {
    /// let mut offset = 0;
    /// loop {
    ///     let pulled = consumer.pull(&queue, offset, 32).await?;
    ///     pulled.records.iter().for_each(|record| println!("{}", record.offset()));
    ///     if pulled.next_offset == offset {
    ///         break Ok(());
    ///     }
    ///     offset = pulled.next_offset;
    /// }
    /// # }
    /// ```
    pub async fn pull(&self, queue: &Queue, offset: u64, max: usize) -> Result<Pulled> {
        let all = Filter::all();
        let filter = self.filters.get(&queue.topic).map_or(&all, |filter| filter);
        self.reader.asker.pull(&self.reader.routes, queue, filter, offset, max).await
    }

    /// Goes somewhere else in a queue; what waits of it is dropped. A commit behind a step back changes nothing where
    /// the group is further already: an explicit reset does ([`crate::Admin::reset_offsets`]).
    pub async fn seek(&mut self, queue: &Queue, to: SeekTo) -> Result<()> {
        self.finish_returned();
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
        self.finish_returned();
        self.earlier_error()?;
        self.reader.commit(None).await
    }

    /// Like `commit`, but returns at once; how it ended is said by the next call of this, `poll`, `commit` or `close`.
    pub fn commit_async(&mut self) -> Result<()> {
        self.finish_returned();
        let earlier = self.earlier_error();
        let (reader, commits) = (Arc::clone(&self.reader), self.reader.feed.to_commit(None));
        self.committing.spawn(async move { reader.commit_these(commits).await });
        earlier
    }

    /// The next offset that `poll` will return of each queue that it reads now.
    pub fn positions(&self) -> Vec<(Queue, u64)> {
        let mut positions = self.reader.feed.positions();
        // What was returned holds the queue's own position until the next poll.
        for (queue, ticket) in &self.returned {
            if let Ok(at) = positions.binary_search_by(|(held, _)| held.cmp(queue)) {
                positions[at].1 = positions[at].1.max(ticket.offset + 1);
            }
        }
        positions
    }

    /// Stops returning records of a queue until it is resumed.
    pub fn pause(&mut self, queue: &Queue) {
        self.reader.feed.pause(queue, true);
    }

    /// Goes on with a paused queue.
    pub fn resume(&mut self, queue: &Queue) {
        self.reader.feed.pause(queue, false);
    }

    /// Gives back what it holds and leaves the group. Commits only if it does so by itself.
    pub async fn close(mut self, limit: Duration) -> Result<()> {
        self.finish_returned();
        let mut earlier = self.earlier_error();
        let deadline = tokio::time::Instant::now() + limit;
        while let Ok(Some(ended)) =
            tokio::time::timeout_at(deadline, self.committing.join_next()).await
        {
            earlier = earlier.and(ended.unwrap_or_else(|_| Err(Error::closed("commit"))));
        }
        let closed = self.reader.close(limit).await;
        earlier.and(closed)
    }
}
