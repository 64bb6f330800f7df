//! Messages that could not be processed go back to their broker: for a later attempt, or to the dead letters.
//!
//! Invariants:
//! - a message counts as consumed where it was only when the broker has said that what was sent back is durable; until
//!   then it holds the queue's position, and when that does not succeed it is delivered again here (promise:
//!   at-least-once);
//! - where it was first is kept from the first time on.

use super::feed::{Holding, Place};
use super::held::{Ticket, Waiting};
use super::reader::Reader;
use crate::connection::Request;
use crate::error::{Error, ErrorKind, Result};
use crate::pool::{Key, Purpose};
use bytes::Bytes;
use ringmq_schema::build::{MessageError, MessageSpec, Origin, RecordBuilder};
use ringmq_schema::limits::{BODY_BYTES_MAX, LAST_ERROR_BYTES_MAX};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::record as wire;
use ringmq_schema::retry::{RetryLater, RetryLaterAnswer, RetryLaterArgs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pause before a message is delivered again here that could not be sent back (RocketMQ
/// `submitConsumeRequestLater`).
const LOCAL_PAUSE: Duration = Duration::from_secs(5);
/// Pause before it is sent again, where the broker does not say.
const SEND_PAUSE: Duration = Duration::from_millis(100);

/// A message that is to be sent back.
pub(super) struct Returned {
    pub(super) ticket: Ticket,
    /// As it was given out.
    pub(super) waiting: Waiting,
    /// To the dead letters, however often it was delivered.
    pub(super) dead_letter: bool,
    pub(super) error: String,
}

impl Returned {
    /// Deliveries so far.
    fn attempts(&self) -> u32 {
        match &self.waiting {
            Waiting::Again(record) => record.delivery_attempt(),
            Waiting::Raw(_) => 1,
        }
    }
}

impl Waiting {
    /// The same, delivered once more.
    pub(super) fn once_more(self) -> Waiting {
        match self {
            Waiting::Again(record) => Waiting::Again(record.again()),
            raw @ Waiting::Raw(_) => raw,
        }
    }
}

impl Reader {
    /// Sends a message back while others go on.
    pub(super) fn send_back(self: &Arc<Self>, returned: Returned) {
        let reader = Arc::clone(self);
        self.spawn(async move { reader.return_message(returned).await });
    }

    async fn return_message(&self, returned: Returned) {
        let ticket = returned.ticket;
        // Dropped meanwhile: another member gets the message.
        let Some(holding) = self.feed.holding(ticket.id) else { return };
        let queue = &holding.queue;
        let error = match self.try_return(&holding, &returned).await {
            Ok(dead_lettered) => {
                if dead_lettered {
                    let (offset, error) = (ticket.offset, &returned.error);
                    tracing::warn!(%queue, offset, error, "a message went to the dead letters");
                }
                return self.feed.finish(ticket);
            }
            Err(error) if error.kind() == ErrorKind::Fenced => {
                return self.fenced(ticket.id, &holding.place);
            }
            Err(error) => error,
        };
        let offset = ticket.offset;
        tracing::warn!(%queue, offset, %error, "cannot send a message back; it comes again here");
        self.feed.again(ticket, returned.waiting.once_more(), LOCAL_PAUSE);
    }

    /// Sends it until it is taken, or for as long as a request may take. Returns whether it is a dead letter now.
    async fn try_return(&self, holding: &Holding, returned: &Returned) -> Result<bool> {
        let run = build_run(holding, returned)
            .map_err(|error| Error::invalid("send back", error).on(holding.queue.to_string()))?;
        let deadline = Instant::now() + self.asker.limit;
        loop {
            let error = match self.return_once(holding, returned, &run).await {
                Err(error) if error.is_retryable() && error.kind() != ErrorKind::Fenced => error,
                result => return result,
            };
            let pause = error.retry_after().unwrap_or(SEND_PAUSE);
            if Instant::now() + pause > deadline {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn return_once(
        &self,
        holding: &Holding,
        returned: &Returned,
        run: &Bytes,
    ) -> Result<bool> {
        let Place { broker, shard, .. } = &holding.place;
        let address = self.address_of(broker)?;
        let key = Key { address, shard: *shard, purpose: Purpose::Produce };
        let connection = self.asker.pool.get(&key).await?;
        let request = Request::new(Opcode::RetryLater, "send back").shard(*shard);
        let args = RetryLaterArgs {
            group: holding.group_id,
            member_high: self.member.high(),
            member_low: self.member.low(),
            generation: holding.generation,
            topic: holding.topic_id,
            queue: holding.queue.id,
            offset: returned.ticket.offset,
            attempts: u16::try_from(returned.attempts()).unwrap_or(u16::MAX),
            delay_ms: 0,
            dead_letter: returned.dead_letter,
        };
        let limit = self.asker.limit;
        let answer = connection
            .call_with_run(request, limit, run, |fbb| RetryLater::create(fbb, &args))
            .await?;
        Ok(answer.read::<RetryLaterAnswer<'_>>("send back")?.dead_lettered())
    }
}

/// The record that is sent back.
fn build_run(holding: &Holding, returned: &Returned) -> Result<Bytes, MessageError> {
    let mut run = Vec::new();
    let last_error = Some(cut(&returned.error));
    let mut append = |spec: &MessageSpec<'_>| {
        RecordBuilder::new().append(&mut run, holding.topic_id, holding.queue.id, spec)
    };
    let here = Origin {
        topic: &holding.queue.topic,
        queue: holding.queue.id,
        offset: returned.ticket.offset,
    };
    match &returned.waiting {
        Waiting::Again(record) => {
            let kept = record.origin();
            let origin = kept.as_ref().map_or(here, |kept| Origin {
                topic: &kept.queue.topic,
                queue: kept.queue.id,
                offset: kept.offset,
            });
            record.with_spec(|spec| {
                append(&MessageSpec { origin: Some(origin), last_error, ..spec })
            })?;
        }
        // Its message says nothing: the bytes go on as the body of one that says where they were.
        Waiting::Raw(raw) => {
            let found = wire::read_one(raw, 0).ok().and_then(|(_, found)| found);
            let found = found.expect("walked when it came");
            append(&MessageSpec {
                body: &found.payload[..found.payload.len().min(BODY_BYTES_MAX)],
                born_ms: found.header.born_ms.get(),
                message_id: found.header.message_id,
                origin: Some(here),
                last_error,
                ..MessageSpec::default()
            })?;
        }
    }
    Ok(run.into())
}

/// As much of a text as may be kept.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LAST_ERROR_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_errors_are_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = format!("{}ä", "e".repeat(LAST_ERROR_BYTES_MAX - 1));
        assert_eq!(cut(&long).len(), LAST_ERROR_BYTES_MAX - 1);
    }
}
