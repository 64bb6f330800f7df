//! The simple consumer: messages one by one, each with an acknowledgement of its own.
//!
//! The members of a group share the queues of a topic without any assignment: every shard hands each message to one of
//! them, for an invisible time. What is not acknowledged by then goes to whoever asks next.

mod engine;
mod messages;
mod places;
mod receipts;
mod received;

pub use messages::Messages;
pub use received::Received;

use super::ConsumeFrom;
use super::push::check;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::filter::Filter;
use engine::Engine;
use ringmq_schema::limits::{INVISIBLE_MS_MAX, INVISIBLE_MS_MIN, POP_RECORDS_MAX};
use std::sync::Arc;
use std::time::Duration;

/// Settings of a [`SimpleConsumer`].
#[derive(Clone)]
#[must_use]
pub struct SimpleConsumerBuilder {
    client: Client,
    group: String,
    subscriptions: Vec<(String, Filter)>,
    from: ConsumeFrom,
    invisible: Duration,
}

/// A consumer that hands out messages one by one. Clones share everything; when the last is dropped it stops.
#[derive(Clone)]
pub struct SimpleConsumer {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Arc<Engine>,
    _client: Client,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

/// What a consumer was built with.
struct Settings {
    group: String,
    subscriptions: Vec<super::reader::Subscription>,
    from: ConsumeFrom,
    invisible: Duration,
}

impl SimpleConsumerBuilder {
    pub(crate) fn new(client: Client, group: String) -> SimpleConsumerBuilder {
        let (from, invisible) = (ConsumeFrom::default(), Duration::from_secs(30));
        SimpleConsumerBuilder { client, group, subscriptions: Vec::new(), from, invisible }
    }

    /// Adds a topic.
    pub fn subscribe(mut self, topic: impl Into<String>, filter: Filter) -> SimpleConsumerBuilder {
        self.subscriptions.push((topic.into(), filter));
        self
    }

    /// How long a message that was received is kept from the other members. 10 s to 12 h; default 30 s.
    pub fn invisible_for(mut self, time: Duration) -> SimpleConsumerBuilder {
        self.invisible = time;
        self
    }

    /// Where the group begins on queues of which it has consumed nothing yet. Default: behind the last message that is
    /// there when the consumer is built.
    pub fn from(mut self, from: ConsumeFrom) -> SimpleConsumerBuilder {
        self.from = from;
        self
    }

    /// Starts: the group has begun on every shard that can be reached.
    pub async fn build(self) -> Result<SimpleConsumer> {
        let subscriptions = check(&self.group, &self.subscriptions)?;
        check_time("subscribe", self.invisible, INVISIBLE_MS_MIN)?;
        let SimpleConsumerBuilder { client, group, from, invisible, .. } = self;
        let settings = Settings { group, subscriptions, from, invisible };
        let engine = Engine::new(&client, settings);
        let consumer = SimpleConsumer { shared: Arc::new(Shared { engine, _client: client }) };
        consumer.shared.engine.begin_all().await?;
        Ok(consumer)
    }
}

impl SimpleConsumer {
    /// The next messages, at most `max` (and at most 32); waits for at least one until `wait`, then returns none.
    /// Dropping the future loses nothing.
    pub async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Received>> {
        self.shared.engine.receive(max.clamp(1, POP_RECORDS_MAX), wait).await
    }

    /// The messages as a stream, which goes on until the consumer is closed. It asks ahead: as long as messages are
    /// taken from it, some more are on their way.
    pub fn messages(&self) -> Messages {
        Messages::new(self.clone())
    }

    /// Acknowledges several messages; returns how that went, in their order.
    #[must_use = "a message that was not acknowledged comes back"]
    pub async fn ack_batch(&self, messages: impl IntoIterator<Item = Received>) -> Vec<Result<()>> {
        let messages: Vec<Received> = messages.into_iter().collect();
        // Messages of one answer lie side by side.
        let runs = messages.chunk_by(|a, b| Arc::ptr_eq(&a.place, &b.place));
        let acknowledging: Vec<_> = runs.map(|run| self.ack_run(run)).collect();
        futures_util::future::join_all(acknowledging).await.into_iter().flatten().collect()
    }

    async fn ack_run(&self, run: &[Received]) -> Vec<Result<()>> {
        let Some(Received { place, group_id, .. }) = run.first() else { return Vec::new() };
        let receipts = run.iter().map(|message| message.receipt).collect();
        let done = self.shared.engine.receipts.ack(place, *group_id, receipts).await;
        let named = done.into_iter().zip(run);
        named.map(|(done, message)| done.map_err(|e| e.on(message.name()))).collect()
    }

    /// Stops receiving, and gives back at once what was received ahead and not handed on. Messages that were handed on
    /// can still be acknowledged.
    pub async fn close(self, limit: Duration) -> Result<()> {
        self.shared.engine.close(limit).await
    }
}

/// Checks an invisible time.
fn check_time(operation: &'static str, time: Duration, least_ms: u32) -> Result<u32> {
    let (least, most) = (
        Duration::from_millis(u64::from(least_ms)),
        Duration::from_millis(u64::from(INVISIBLE_MS_MAX)),
    );
    if !(least..=most).contains(&time) {
        let text = format!("the invisible time is {time:?}, {least:?} to {most:?} are allowed");
        return Err(Error::invalid(operation, text));
    }
    Ok(time.as_millis() as u32)
}
