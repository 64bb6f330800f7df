//! Producers.

mod builder;
mod driver;
mod engine;
mod lane;
mod receipt;
mod select;
mod settle;
mod state;
mod window;

pub use builder::ProducerBuilder;
pub use receipt::{Delivery, SendReceipt, SendStatus};

use crate::client::{Client, Closing};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::route::Queue;
use crate::timer::RecallHandle;
use engine::{Engine, estimate};
use ringmq_schema::limits;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::Instrument;
use window::Taken;

/// Sends messages. Clones share one window; dropping the last lets what is on its way go on.
#[derive(Clone)]
pub struct Producer {
    inner: Arc<Handle>,
}

struct Handle {
    engine: Arc<Engine>,
    /// Keeps the client's connections for as long as something may be sent.
    client: Client,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.engine.stop_taking();
    }
}

impl Closing for Engine {
    fn close_within(
        self: Arc<Self>,
        limit: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> {
        Box::pin(async move { self.close(limit).await })
    }
}

impl Producer {
    fn new(client: Client, settings: builder::Settings) -> Producer {
        let (pool, routes) = (client.inner.pool(), client.inner.routes());
        let engine = Arc::new(Engine::new(pool, routes, settings));
        client.inner.register(&engine);
        let span = tracing::info_span!("producer", name = engine.settings.name);
        tokio::spawn(Arc::clone(&engine).drive().instrument(span));
        Producer { inner: Arc::new(Handle { engine, client }) }
    }

    /// Sends and waits for the acknowledgement. Retries are inside, within one deadline (that includes
    /// waiting for window room) and under one message id.
    pub async fn send(&self, message: Message) -> Result<SendReceipt> {
        let span = tracing::debug_span!("send", topic = %message.topic);
        async {
            let deadline = Instant::now() + self.inner.engine.settings.timeout;
            self.take(message, Some(deadline)).await?.await
        }
        .instrument(span)
        .await
    }

    /// Waits for room in the window (or fails at once, as built), takes the message and returns what
    /// becomes ready with its acknowledgement. Dropping that does not take the message back. Messages that
    /// one task enqueues for one queue are stored in that order, if none of them must be sent again; those
    /// of a message group always are.
    pub async fn enqueue(&self, message: Message) -> Result<Delivery> {
        self.take(message, None).await
    }

    async fn take(&self, message: Message, deadline: Option<Instant>) -> Result<Delivery> {
        // A loop that only enqueues must let the connections have their turn.
        tokio::task::coop::consume_budget().await;
        let engine = &self.inner.engine;
        let mut taken = Some(self.room(1, estimate(&message), deadline, message.topic()).await?);
        let deadline = deadline.unwrap_or_else(|| Instant::now() + engine.settings.timeout);
        loop {
            if let Some(delivery) = engine.accept(&message, &mut taken, false, deadline)? {
                return Ok(delivery);
            }
            engine.routes.get(&message.topic).await.map_err(|error| error.during("send"))?;
        }
    }

    async fn room(
        &self,
        messages: usize,
        bytes: usize,
        deadline: Option<Instant>,
        topic: &str,
    ) -> Result<Taken<'_>> {
        let engine = &self.inner.engine;
        let full = match engine.window.try_take(messages, bytes) {
            Ok(taken) => return Ok(taken),
            Err(full) => full.on(topic),
        };
        if engine.settings.fail_fast {
            return Err(full);
        }
        let Some(deadline) = deadline else { return Ok(engine.window.take(messages, bytes).await) };
        let taking = engine.window.take(messages, bytes);
        match tokio::time::timeout_at(deadline.into(), taking).await {
            Ok(taken) => Ok(taken),
            Err(_) => {
                let text = "no room in the window before the deadline";
                Err(Error::new(ErrorKind::Timeout, "send", text).on(topic).because(full))
            }
        }
    }

    /// Sends without an acknowledgement. Fails when the window is full; what fails later is not told.
    pub fn send_oneway(&self, message: Message) -> Result<()> {
        let engine = &self.inner.engine;
        let bytes = estimate(&message);
        let mut taken = Some(engine.window.try_take(1, bytes)?);
        let deadline = Instant::now() + engine.settings.timeout;
        if engine.accept(&message, &mut taken, true, deadline)?.is_some() {
            return Ok(());
        }
        // The first message of a topic: its route must be asked for.
        let engine = Arc::clone(engine);
        self.inner.client.inner.spawn(async move {
            let sent = async {
                engine.routes.get(&message.topic).await?;
                let mut taken = Some(engine.window.try_take(1, bytes)?);
                engine.accept(&message, &mut taken, true, deadline)
            };
            if let Err(error) = sent.await {
                tracing::debug!(%error, "a one-way message was dropped");
            }
        });
        Ok(())
    }

    /// Sends messages of one topic together to one queue: all are stored, next to each other, or none.
    /// Together they may have 4 MiB.
    pub async fn send_batch(
        &self,
        messages: impl IntoIterator<Item = Message>,
    ) -> Result<Vec<SendReceipt>> {
        let messages: Vec<Message> = messages.into_iter().collect();
        let bytes = check_batch(&messages)?;
        let Some(first) = messages.first() else { return Ok(Vec::new()) };
        let engine = &self.inner.engine;
        let deadline = Instant::now() + engine.settings.timeout;
        let room = self.room(messages.len(), bytes, Some(deadline), first.topic());
        let mut taken = Some(room.await?);
        let deliveries = loop {
            if let Some(deliveries) = engine.accept_batch(&messages, &mut taken, deadline)? {
                break deliveries;
            }
            engine.routes.get(&first.topic).await.map_err(|error| error.during("send"))?;
        };
        let mut receipts = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            receipts.push(delivery.await?);
        }
        Ok(receipts)
    }

    /// Takes a delayed message back: when this is `Ok` it will never be delivered. An error of kind
    /// [`ErrorKind::NotFound`]: it was delivered, or taken back before.
    ///
    /// ```no_run
    /// # use ringmq::{Message, Producer};
    /// # use std::time::Duration;
    /// # async fn example(producer: Producer) -> ringmq::Result<()> {
    /// let reminder = Message::new("reminders", "pay").deliver_after(Duration::from_secs(3600));
    /// let receipt = producer.send(reminder).await?;
    /// if let Some(handle) = receipt.recall_handle() {
    ///     producer.recall(&handle).await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn recall(&self, handle: &RecallHandle) -> Result<()> {
        self.inner.client.admin().recall(handle).await
    }

    /// The queues of a topic that take messages now, for [`Message::queue`].
    pub async fn queues(&self, topic: &str) -> Result<Vec<Queue>> {
        let route = self.inner.engine.routes.get(topic).await?;
        Ok(select::targets(&route).into_iter().map(|target| (*target.queue).clone()).collect())
    }

    /// Messages and bytes taken and not yet acknowledged.
    pub fn in_flight(&self) -> (usize, usize) {
        self.inner.engine.window.in_use()
    }

    /// Waits until everything taken so far is acknowledged or has failed.
    pub async fn flush(&self) {
        self.inner.engine.window.drained().await;
    }

    /// Takes nothing more and waits for what is on its way, at most `limit`.
    pub async fn close(&self, limit: Duration) -> Result<()> {
        self.inner.engine.close(limit).await
    }
}

/// Whether the messages can go together; their bytes, about.
fn check_batch(messages: &[Message]) -> Result<usize> {
    let Some(first) = messages.first() else { return Ok(0) };
    let alike = |message: &Message| {
        message.topic == first.topic
            && message.group == first.group
            && message.queue == first.queue
            && message.flush == first.flush
            && (message.deliver_ms != 0) == (first.deliver_ms != 0)
    };
    if !messages.iter().all(alike) {
        let text = "a batch has one topic, and one message group, queue and flush if any, and all its messages \
                    are delayed or none";
        return Err(Error::invalid("send", text).on(first.topic()));
    }
    let max = limits::BATCH_RECORDS_MAX;
    if messages.len() > max {
        let text = format!("the batch has {} messages, at most {max} are allowed", messages.len());
        return Err(Error::invalid("send", text).on(first.topic()));
    }
    Ok(messages.iter().map(estimate).sum())
}
