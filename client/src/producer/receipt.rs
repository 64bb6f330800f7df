//! What a send comes to.
//!
//! The messages of a batch share one outcome: its answer resolves all their deliveries, without a channel
//! per message.

use crate::error::{Error, Result};
use crate::message::MessageId;
use crate::route::Queue;
use crate::timer::RecallHandle;
use ringmq_schema::record::NO_OFFSET;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

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
    /// Its number there. A delayed message gets its number when it is delivered: `u64::MAX` until then, see
    /// [`SendReceipt::offset`].
    pub offset: u64,
    /// How well.
    pub status: SendStatus,
    /// When it is due, ms, and where it waits.
    pub(super) waits: Option<(i64, u64)>,
}

impl SendReceipt {
    /// Name of the broker that stores it.
    pub fn broker(&self) -> &str {
        &self.queue.broker
    }

    /// Its number in the queue; `None` while a delayed message waits for its time.
    pub fn offset(&self) -> Option<u64> {
        (self.offset != NO_OFFSET).then_some(self.offset)
    }

    /// What a delayed message can be taken back by, see [`crate::Producer::recall`]. `None`: it was not delayed, or
    /// was due already.
    pub fn recall_handle(&self) -> Option<RecallHandle> {
        let (due_ms, position) = self.waits?;
        Some(RecallHandle {
            queue: (*self.queue).clone(),
            position,
            due_ms,
            message_id: self.message_id,
        })
    }
}

/// Where a batch is stored.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) queue: Arc<Queue>,
    pub(super) base_offset: u64,
    /// Where the first record lies.
    pub(super) position: u64,
    pub(super) status: SendStatus,
}

/// What becomes of a batch.
#[derive(Default)]
pub(super) struct Outcome {
    state: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    result: Option<Result<Stored>>,
    wakers: Vec<Option<Waker>>,
}

impl Outcome {
    /// Says what became of the batch and wakes everybody who waits for it.
    pub(super) fn resolve(&self, result: Result<Stored>) {
        let wakers = {
            let mut state = self.state.lock().expect("nothing panics with it locked");
            state.result = Some(result);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

/// Becomes ready with the acknowledgement of an enqueued message.
#[must_use = "await it: the message is safe only when it was acknowledged"]
pub struct Delivery {
    pub(super) message_id: MessageId,
    pub(super) outcome: Arc<Outcome>,
    /// Which of the batch's messages it is.
    pub(super) index: u32,
    /// Where its record begins in the batch.
    pub(super) at: u64,
    /// When it is to be delivered; 0: at once.
    pub(super) due_ms: i64,
    pub(super) accept_weaker: bool,
}

impl Delivery {
    /// The identity under which the message is sent.
    pub fn message_id(&self) -> MessageId {
        self.message_id
    }

    fn receipt(&self, stored: &Stored) -> Result<SendReceipt> {
        let waits = stored.base_offset == NO_OFFSET;
        let receipt = SendReceipt {
            message_id: self.message_id,
            queue: Arc::clone(&stored.queue),
            offset: if waits { NO_OFFSET } else { stored.base_offset + u64::from(self.index) },
            status: stored.status,
            waits: waits.then_some((self.due_ms, stored.position + self.at)),
        };
        if receipt.status == SendStatus::SendOk || self.accept_weaker {
            return Ok(receipt);
        }
        let text = format!("the message is stored, but weaker than asked: {:?}", receipt.status);
        let kind = crate::error::ErrorKind::StoredWeaker;
        Err(Error::new(kind, "send", text).on(receipt.queue.to_string()).with_receipt(receipt))
    }
}

impl Future for Delivery {
    type Output = Result<SendReceipt>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.outcome.state.lock().expect("nothing panics with it locked");
        match &state.result {
            Some(Ok(stored)) => Poll::Ready(self.receipt(stored)),
            Some(Err(error)) => Poll::Ready(Err(error.clone())),
            None => {
                let index = self.index as usize;
                if state.wakers.len() <= index {
                    state.wakers.resize(index + 1, None);
                }
                match &mut state.wakers[index] {
                    Some(waker) => waker.clone_from(context.waker()),
                    empty => *empty = Some(context.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}
