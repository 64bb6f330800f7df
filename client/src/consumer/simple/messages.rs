//! The messages of a simple consumer as a stream.

use super::{Received, SimpleConsumer};
use crate::error::{ErrorKind, Result};
use futures_util::stream::{FuturesUnordered, Stream, StreamExt};
use ringmq_schema::limits::POP_RECORDS_MAX;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// Most requests under way while messages keep coming.
const AHEAD_MAX: usize = 4;
/// How long one waits for messages.
const WAIT: Duration = Duration::from_secs(15);
/// Pause when no broker answers.
const PAUSE: Duration = Duration::from_millis(200);

type Receiving = Pin<Box<dyn Future<Output = Result<Vec<Received>>> + Send>>;

/// Messages one after the other; ends when the consumer is closed. While brokers cannot be reached it waits for them.
#[must_use = "it does nothing unless it is asked"]
pub struct Messages {
    consumer: SimpleConsumer,
    ready: VecDeque<Received>,
    receiving: FuturesUnordered<Receiving>,
    /// How many requests are to be under way.
    ahead: usize,
}

impl Messages {
    pub(super) fn new(consumer: SimpleConsumer) -> Messages {
        let (ready, receiving) = (VecDeque::new(), FuturesUnordered::new());
        Messages { consumer, ready, receiving, ahead: 1 }
    }

    /// The next message; `None` when the consumer was closed. Dropping the future loses nothing.
    pub async fn try_next(&mut self) -> Result<Option<Received>> {
        self.next().await.transpose()
    }

    fn begin(&mut self) {
        while self.receiving.len() < self.ahead {
            let consumer = self.consumer.clone();
            self.receiving.push(Box::pin(async move {
                let received = consumer.receive(POP_RECORDS_MAX, WAIT).await;
                if let Err(error) = &received
                    && error.is_retryable()
                {
                    tracing::warn!(%error, "no messages can be received; trying again");
                    tokio::time::sleep(error.retry_after().unwrap_or(PAUSE)).await;
                }
                received
            }));
        }
    }
}

impl Stream for Messages {
    type Item = Result<Received>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(message)));
            }
            self.begin();
            match self.receiving.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(received))) => {
                    // Many come: ask for more before they are used up. None: one question is enough.
                    self.ahead = match received.len() {
                        0 => 1,
                        POP_RECORDS_MAX.. => (self.ahead + 1).min(AHEAD_MAX),
                        _ => self.ahead,
                    };
                    self.ready.extend(received);
                }
                Poll::Ready(Some(Err(error))) if error.kind() == ErrorKind::Closed => {
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(error))) if error.is_retryable() => self.ahead = 1,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
