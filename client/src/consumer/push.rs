//! The push consumer: calls a listener.

use super::ConsumeFrom;
use super::feed::{Feed, Room};
use super::held::{Taken, Ticket, Unreadable, Waiting};
use super::local::{self, LocalOffsets};
use super::reader::{DROP_LIMIT, Reader, ReaderSettings, Subscription};
use super::retry::Returned;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::record::Record;
use crate::route::Queue;
use futures_util::FutureExt;
use ringmq_schema::names;
use std::fmt::Display;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tracing::Instrument;

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
    pause: Duration,
    listener_timeout: Duration,
    commit_interval: Duration,
    session_timeout: Duration,
    broadcasting: bool,
    instance: String,
    offsets_file: Option<PathBuf>,
}

/// A running push consumer. Clones share it; dropping the last stops it and gives back what it held.
#[derive(Clone)]
pub struct PushConsumer {
    inner: Arc<Handle>,
}

struct Handle {
    reader: Arc<Reader>,
    /// Keeps the client's connections for as long as the consumer lives.
    _client: Client,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.reader.stop(DROP_LIMIT);
    }
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
            pause: Duration::from_secs(1),
            listener_timeout: Duration::from_secs(15 * 60),
            commit_interval: Duration::from_secs(5),
            session_timeout: Duration::from_secs(10),
            broadcasting: false,
            instance: "default".to_owned(),
            offsets_file: None,
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

    /// Pause before an orderly listener gets a message again that failed. Default 1 s. How long a concurrent listener
    /// waits for it is a setting of the group.
    pub fn orderly_pause(mut self, pause: Duration) -> PushConsumerBuilder {
        self.pause = pause;
        self
    }

    /// A listener call that takes longer is dropped, and its message has failed. Default 15 min.
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

    /// Every member gets every message. Offsets are kept in a local file, at commit intervals and on close: a restart
    /// goes on where it was, and a new member starts as [`PushConsumerBuilder::from`] says. A message that fails is
    /// delivered again to this member, after the pause of an orderly one, and left out after the group's most attempts.
    pub fn broadcasting(mut self) -> PushConsumerBuilder {
        self.broadcasting = true;
        self
    }

    /// Name of this member among those of the group that broadcast on this host, each of which keeps its own offsets.
    /// Default `default`.
    pub fn instance(mut self, name: impl Into<String>) -> PushConsumerBuilder {
        self.instance = name.into();
        self
    }

    /// Where a broadcasting consumer keeps its offsets. Default: `ringmq/broadcasting/GROUP@INSTANCE.offsets` in the
    /// user's state directory (`XDG_STATE_HOME`, or `~/.local/state`).
    pub fn offsets_file(mut self, path: impl Into<PathBuf>) -> PushConsumerBuilder {
        self.offsets_file = Some(path.into());
        self
    }

    /// Starts; messages are handled in parallel. `Ok` means consumed. After an `Err`, or a panic, the message goes to
    /// the group's retry topic: it is delivered again after a pause, to whichever member, and after the group's most
    /// attempts it goes to its dead-letter topic `%DLQ%group`.
    pub async fn listen<L, F, E>(self, listener: L) -> Result<PushConsumer>
    where
        L: Fn(Record) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        self.start(listener, false).await
    }

    /// Like [`PushConsumerBuilder::listen`], but one message at a time per queue, in the queue's order; of messages
    /// with a group one at a time per group, while others of the queue go on. A message that fails is delivered again
    /// after a pause, and those behind it wait; after the group's most attempts it goes to the dead-letter topic. Attempts
    /// at the message that a queue stands at are committed with its offset: another member counts on from there.
    pub async fn listen_orderly<L, F, E>(self, listener: L) -> Result<PushConsumer>
    where
        L: Fn(Record) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        self.start(listener, true).await
    }

    async fn start<L, F, E>(self, listener: L, orderly: bool) -> Result<PushConsumer>
    where
        L: Fn(Record) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let mut subscriptions = check(&self.group, &self.subscriptions)?;
        let local = self.local_offsets().await?;
        let retry_topic: Arc<str> = names::retry_topic(&self.group).into();
        if local.is_none()
            && !subscriptions.iter().any(|subscription| subscription.topic == retry_topic)
        {
            let (topic, filter) = (Arc::clone(&retry_topic), Arc::new(Filter::all()));
            subscriptions.push(Subscription { topic, filter });
        }
        let settings = ReaderSettings {
            group: self.group,
            subscriptions,
            from: self.from,
            commit_interval: Some(self.commit_interval),
            commit_on_close: true,
            session_timeout: self.session_timeout,
            retry_topic: local.is_none().then_some(retry_topic),
            local,
        };
        let room = Room { records: self.max_waiting, bytes: self.max_waiting_bytes };
        let reader = Reader::new(&self.client, settings, Feed::new(room, orderly));
        let work = Arc::new(Work {
            reader: Arc::clone(&reader),
            listener,
            orderly,
            pause: self.pause,
            limit: self.listener_timeout,
        });
        let mut workers = JoinSet::new();
        for _ in 0..self.concurrency {
            workers.spawn(Arc::clone(&work).run());
        }
        workers.spawn(redeliver(Arc::clone(&reader)));
        let span = tracing::info_span!("consumer", group = reader.settings.group);
        tokio::spawn(Arc::clone(&reader).supervise(workers).instrument(span));
        let inner = Arc::new(Handle { reader, _client: self.client });
        let consumer = PushConsumer { inner };
        if let Err(error) = consumer.inner.reader.join().await {
            // What failed to start says why; how it ends is of no interest.
            let _ = consumer.close(Duration::from_secs(1)).await;
            return Err(error);
        }
        Ok(consumer)
    }

    async fn local_offsets(&self) -> Result<Option<Arc<LocalOffsets>>> {
        if !self.broadcasting {
            return Ok(None);
        }
        let path = match &self.offsets_file {
            Some(path) => path.clone(),
            None => local::default_path(&self.group, &self.instance)?,
        };
        LocalOffsets::open(path, &self.group).await.map(Some)
    }
}

/// Checks group and subscriptions before anything leaves the process.
pub(super) fn check(group: &str, subscribed: &[(String, Filter)]) -> Result<Vec<Subscription>> {
    names::check_group(group).map_err(|error| Error::invalid("subscribe", error).on(group))?;
    let mut subscriptions: Vec<Subscription> = Vec::with_capacity(subscribed.len());
    for (topic, filter) in subscribed {
        let topic = topic.as_str();
        names::check_topic(topic).map_err(|error| Error::invalid("subscribe", error).on(topic))?;
        filter.check().map_err(|error| error.on(topic))?;
        if subscriptions.iter().any(|other| &*other.topic == topic) {
            return Err(Error::invalid("subscribe", "the topic is subscribed twice").on(topic));
        }
        let (topic, filter) = (topic.into(), Arc::new(filter.clone()));
        subscriptions.push(Subscription { topic, filter });
    }
    if subscriptions.is_empty() {
        return Err(Error::invalid("subscribe", "no topic is subscribed").on(group));
    }
    Ok(subscriptions)
}

/// Calls the listener.
struct Work<L> {
    reader: Arc<Reader>,
    listener: L,
    orderly: bool,
    pause: Duration,
    limit: Duration,
}

impl<L, F, E> Work<L>
where
    L: Fn(Record) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Display + Send + 'static,
{
    async fn run(self: Arc<Self>) {
        loop {
            match self.reader.feed.take() {
                Some(taken) => self.process(taken).await,
                None if self.reader.is_running() => self.reader.feed.ready.notified().await,
                None => return,
            }
            // A listener that never waits must let the connections have their turn.
            tokio::task::coop::consume_budget().await;
        }
    }

    async fn process(&self, taken: Taken) {
        let Taken { ticket, record, wanted } = taken;
        let feed = &self.reader.feed;
        let record = match record {
            Ok(record) => record,
            Err(Unreadable { why, raw }) => {
                let offset = ticket.offset;
                tracing::error!(offset, error = why, "a message cannot be read: a dead letter");
                let (waiting, error) = (Waiting::Raw(raw), format!("it cannot be read: {why}"));
                if self.reader.settings.local.is_some() {
                    return feed.finish(ticket);
                }
                let returned = Returned { ticket, waiting, dead_letter: true, error };
                return self.reader.send_back(returned);
            }
        };
        if !wanted {
            return feed.finish(ticket);
        }
        let offset = ticket.offset;
        let span = tracing::debug_span!("process", queue = %record.queue(), offset);
        match self.call(record.clone()).instrument(span).await {
            Ok(()) => feed.finish(ticket),
            Err(error) => self.failed(ticket, record, error),
        }
    }

    /// A listener failed: the message goes back, or in an orderly queue comes again until no attempt is left.
    fn failed(&self, ticket: Ticket, record: Record, error: String) {
        let attempt = record.delivery_attempt();
        tracing::warn!(queue = %record.queue(), offset = ticket.offset, attempt, error, "failed");
        let is_local = self.reader.settings.local.is_some();
        let waiting = Waiting::Again(record);
        if (self.orderly || is_local) && attempt < self.reader.max_attempts() {
            return self.reader.feed.again(ticket, waiting.once_more(), self.pause);
        }
        if is_local {
            // Nobody else is to have it again: the others have it already.
            tracing::error!(offset = ticket.offset, attempt, "a message is left out");
            return self.reader.feed.finish(ticket);
        }
        let dead_letter = self.orderly;
        self.reader.send_back(Returned { ticket, waiting, dead_letter, error });
    }

    async fn call(&self, record: Record) -> Result<(), String> {
        // The listener may panic before it returns its future, too.
        let calling = AssertUnwindSafe(async { (self.listener)(record).await }).catch_unwind();
        match tokio::time::timeout(self.limit, calling).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(_panic)) => Err("the listener panicked".to_owned()),
            Err(_) => Err(format!("the listener did not end within {:?}", self.limit)),
        }
    }
}

/// Brings failed records back when their pause is over.
async fn redeliver(reader: Arc<Reader>) {
    loop {
        match reader.feed.redeliver() {
            Some(next) => tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = reader.feed.delayed.notified() => {}
            },
            None => reader.feed.delayed.notified().await,
        }
    }
}

impl PushConsumer {
    /// The queues of its topics that it owns now.
    pub fn queues(&self) -> Vec<Queue> {
        self.positions().into_iter().map(|(queue, _)| queue).collect()
    }

    /// The next offset that is not consumed, of each queue of its topics that it owns now: what a commit would say.
    pub fn positions(&self) -> Vec<(Queue, u64)> {
        let reader = &self.inner.reader;
        let mut positions = reader.feed.positions();
        positions.retain(|(queue, _)| !reader.is_retry_topic(&queue.topic));
        positions
    }

    /// Commits now instead of at the next interval.
    pub async fn commit(&self) -> Result<()> {
        self.inner.reader.commit(None).await
    }

    /// Stops asking, lets running listener calls end (at most `limit`), commits and leaves the group.
    pub async fn close(&self, limit: Duration) -> Result<()> {
        self.inner.reader.close(limit).await
    }
}
