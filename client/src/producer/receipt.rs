//! What a send comes to.

use crate::error::{Error, Result};
use crate::message::MessageId;
use crate::route::Queue;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// How well a message is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SendStatus {
    /// As asked.
    SendOk,
    /// Stored, but not known to be durable in time.
    FlushDiskTimeout,
    /// Stored, but not known to be on a slave in time.
    FlushSlaveTimeout,
    /// Stored, but there is no slave to have it.
    SlaveNotAvailable,
}

/// Where a message is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "the receipt says where and how well the message is stored"]
#[non_exhaustive]
pub struct SendReceipt {
    /// The message's identity.
    pub message_id: MessageId,
    /// The queue that took it.
    pub queue: Arc<Queue>,
    /// Its number there.
    pub offset: u64,
    /// How well.
    pub status: SendStatus,
}

impl SendReceipt {
    /// Name of the broker that stores it.
    pub fn broker(&self) -> &str {
        &self.queue.broker
    }
}

/// Becomes ready with the acknowledgement of an enqueued message.
#[must_use = "await it: the message is safe only when it was acknowledged"]
pub struct Delivery {
    message_id: MessageId,
}

impl Delivery {
    /// The identity under which the message is sent.
    pub fn message_id(&self) -> MessageId {
        self.message_id
    }
}

impl Future for Delivery {
    type Output = Result<SendReceipt>;

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Err(Error::closed("send")))
    }
}
