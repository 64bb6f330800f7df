//! The pull consumer: is asked for records.

use super::{ConsumeFrom, SeekTo};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::record::Record;
use crate::route::Queue;
use std::time::Duration;

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
    group: String,
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
        let _ = (self.client, self.assigned, self.max_records);
        Err(Error::closed("consume").on(self.group))
    }
}

impl PullConsumer {
    /// The next records, in order per queue; waits for at least one until `timeout`, then returns none.
    /// Dropping the future loses nothing.
    pub async fn poll(&mut self, timeout: Duration) -> Result<Vec<Record>> {
        let _ = timeout;
        Err(Error::closed("poll").on(self.group.as_str()))
    }

    /// Goes somewhere else in a queue; what waits of it is dropped.
    pub async fn seek(&mut self, queue: &Queue, to: SeekTo) -> Result<()> {
        let _ = (queue, to);
        Err(Error::closed("seek"))
    }

    /// Commits the position behind what `poll` returned, for every queue.
    pub async fn commit(&mut self) -> Result<()> {
        Err(Error::closed("commit"))
    }

    /// The next offset that `poll` will return of each queue that it reads now.
    pub fn positions(&self) -> Vec<(Queue, u64)> {
        Vec::new()
    }

    /// Stops returning records of a queue until it is resumed.
    pub fn pause(&mut self, queue: &Queue) {
        let _ = queue;
    }

    /// Goes on with a paused queue.
    pub fn resume(&mut self, queue: &Queue) {
        let _ = queue;
    }

    /// Gives back what it holds and leaves the group. Does not commit.
    pub async fn close(self, limit: Duration) -> Result<()> {
        let _ = limit;
        Err(Error::closed("close"))
    }
}
