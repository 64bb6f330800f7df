//! Producers.

mod builder;
mod receipt;

pub use builder::ProducerBuilder;
pub use receipt::{Delivery, SendReceipt, SendStatus};

use crate::error::{Error, Result};
use crate::message::Message;
use crate::route::Queue;
use std::sync::Arc;
use std::time::Duration;

/// Sends messages. Clones share one window; dropping the last lets what is on its way go on.
#[derive(Clone)]
pub struct Producer {
    inner: Arc<ProducerInner>,
}

pub(crate) struct ProducerInner {}

impl Producer {
    /// Sends and waits for the acknowledgement. Retries are inside, within one deadline and under one
    /// message id.
    pub async fn send(&self, message: Message) -> Result<SendReceipt> {
        self.enqueue(message).await?.await
    }

    /// Waits for room in the window (or fails at once, as built), takes the message and returns what
    /// becomes ready with its acknowledgement. Dropping that does not take the message back. Messages that
    /// one task enqueues for one queue are stored in that order.
    pub async fn enqueue(&self, message: Message) -> Result<Delivery> {
        let _ = (message, &self.inner);
        Err(Error::closed("send"))
    }

    /// Sends without an acknowledgement. Fails when the window is full; what fails later is not told.
    pub fn send_oneway(&self, message: Message) -> Result<()> {
        let _ = message;
        Err(Error::closed("send"))
    }

    /// Sends messages of one topic together to one queue: all are stored, next to each other, or none.
    /// Together they may have 4 MiB.
    pub async fn send_batch(
        &self,
        messages: impl IntoIterator<Item = Message>,
    ) -> Result<Vec<SendReceipt>> {
        let _ = messages.into_iter().count();
        Err(Error::closed("send"))
    }

    /// The queues of a topic that take messages now, for [`Message::queue`].
    pub async fn queues(&self, topic: &str) -> Result<Vec<Queue>> {
        Err(Error::closed("query route").on(topic))
    }

    /// Messages and bytes taken and not yet acknowledged.
    pub fn in_flight(&self) -> (usize, usize) {
        (0, 0)
    }

    /// Waits until everything taken so far is acknowledged or has failed.
    pub async fn flush(&self) {}

    /// Takes nothing more and waits for what is on its way, at most `limit`.
    pub async fn close(&self, limit: Duration) -> Result<()> {
        let _ = limit;
        Err(Error::closed("close"))
    }
}
