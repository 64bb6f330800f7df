//! The push consumer: calls a listener.

use super::ConsumeFrom;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::record::Record;
use crate::route::Queue;
use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// Settings of a [`PushConsumer`].
#[derive(Clone)]
#[must_use]
pub struct PushConsumerBuilder {
    client: Client,
    group: String,
    subscriptions: Vec<(String, Filter)>,
    from: ConsumeFrom,
    concurrency: usize,
    max_waiting: usize,
    max_waiting_bytes: usize,
    backoff: (Duration, Duration),
    listener_timeout: Duration,
    commit_interval: Duration,
    session_timeout: Duration,
}

/// A running push consumer. Clones share it; dropping the last stops it and gives back what it held.
#[derive(Clone)]
pub struct PushConsumer {
    inner: Arc<()>,
}

impl PushConsumerBuilder {
    pub(crate) fn new(client: Client, group: String) -> PushConsumerBuilder {
        PushConsumerBuilder {
            client,
            group,
            subscriptions: Vec::new(),
            from: ConsumeFrom::default(),
            concurrency: 20,
            max_waiting: 1000,
            max_waiting_bytes: 100 << 20,
            backoff: (Duration::from_millis(100), Duration::from_secs(30)),
            listener_timeout: Duration::from_secs(15 * 60),
            commit_interval: Duration::from_secs(5),
            session_timeout: Duration::from_secs(10),
        }
    }

    /// Adds a topic. Members of a group must subscribe alike.
    pub fn subscribe(mut self, topic: impl Into<String>, filter: Filter) -> PushConsumerBuilder {
        self.subscriptions.push((topic.into(), filter));
        self
    }

    /// Where the group starts on queues that are new to it. Default: behind the last message.
    pub fn from(mut self, from: ConsumeFrom) -> PushConsumerBuilder {
        self.from = from;
        self
    }

    /// Most listener calls at a time. Default 20.
    pub fn concurrency(mut self, calls: usize) -> PushConsumerBuilder {
        self.concurrency = calls.max(1);
        self
    }

    /// Messages of one queue that may wait in the client; beyond it asks for no more. Default 1000.
    pub fn max_waiting(mut self, messages: usize) -> PushConsumerBuilder {
        self.max_waiting = messages.max(1);
        self
    }

    /// Bytes of one queue that may wait in the client. Default 100 MiB.
    pub fn max_waiting_bytes(mut self, bytes: usize) -> PushConsumerBuilder {
        self.max_waiting_bytes = bytes.max(1);
        self
    }

    /// Pause before a message whose listener failed is delivered again: `first`, doubled with each attempt
    /// up to `longest`. Default 100 ms, 30 s.
    pub fn redelivery(mut self, first: Duration, longest: Duration) -> PushConsumerBuilder {
        self.backoff = (first, longest.max(first));
        self
    }

    /// A listener call that takes longer is dropped, and its message delivered again. Default 15 min.
    pub fn listener_timeout(mut self, limit: Duration) -> PushConsumerBuilder {
        self.listener_timeout = limit;
        self
    }

    /// How often offsets are committed. Default 5 s.
    pub fn commit_interval(mut self, interval: Duration) -> PushConsumerBuilder {
        self.commit_interval = interval;
        self
    }

    /// Without a sign of life for so long, the group gives this member's queues to others. Default 10 s.
    pub fn session_timeout(mut self, limit: Duration) -> PushConsumerBuilder {
        self.session_timeout = limit;
        self
    }

    /// Starts; messages are handled in parallel. `Ok` means consumed; after an `Err` the message is
    /// delivered again after a pause, and the queue's committed offset does not pass it before.
    pub async fn listen<L, F, E>(self, listener: L) -> Result<PushConsumer>
    where
        L: Fn(Record) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        self.start(listener, false).await
    }

    /// Like [`PushConsumerBuilder::listen`], but one message at a time per queue, in the queue's order: a
    /// message that fails holds the queue until it succeeds.
    pub async fn listen_orderly<L, F, E>(self, listener: L) -> Result<PushConsumer>
    where
        L: Fn(Record) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        self.start(listener, true).await
    }

    async fn start<L, F, E>(self, _listener: L, _orderly: bool) -> Result<PushConsumer>
    where
        L: Fn(Record) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let _ = (self.client, self.group, self.max_waiting_bytes);
        Err(Error::closed("consume"))
    }
}

impl PushConsumer {
    /// The queues it owns now.
    pub fn queues(&self) -> Vec<Queue> {
        let _ = &self.inner;
        Vec::new()
    }

    /// Commits now instead of at the next interval.
    pub async fn commit(&self) -> Result<()> {
        Err(Error::closed("commit"))
    }

    /// Stops asking, lets running listener calls end (at most `limit`), commits and leaves the group.
    pub async fn close(&self, limit: Duration) -> Result<()> {
        let _ = limit;
        Err(Error::closed("close"))
    }
}
