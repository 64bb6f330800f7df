//! What a delayed message is taken back by.

use crate::error::{Error, Result};
use crate::message::{MessageId, time_of};
use crate::route::Queue;
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

/// Names a delayed message that waits for its time, see [`crate::SendReceipt::recall_handle`]. Its text can be kept
/// and read again.
///
/// A message that waits for longer than its topic is kept is stored again under another handle;
/// [`crate::Admin::pending_messages`] has the new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecallHandle {
    pub(crate) queue: Queue,
    pub(crate) position: u64,
    pub(crate) due_ms: i64,
    pub(crate) message_id: MessageId,
}

impl RecallHandle {
    /// The queue that it is for.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// When it is due.
    pub fn deliver_at(&self) -> SystemTime {
        time_of(self.due_ms)
    }

    /// Its identity.
    pub fn message_id(&self) -> MessageId {
        self.message_id
    }
}

impl fmt::Display for RecallHandle {
    /// Broker, topic, queue, position, due time and id with slashes between.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RecallHandle { queue, position, due_ms, message_id } = self;
        let Queue { broker, topic, id, .. } = queue;
        write!(f, "{broker}/{topic}/{id}/{position:x}/{due_ms}/{message_id}")
    }
}

impl FromStr for RecallHandle {
    type Err = Error;

    fn from_str(text: &str) -> Result<RecallHandle> {
        let parts = || {
            // No other part than the broker's name may hold a slash.
            let mut parts = text.rsplitn(6, '/');
            let message_id = parts.next()?.parse().ok()?;
            let due_ms = parts.next()?.parse().ok()?;
            let position = u64::from_str_radix(parts.next()?, 16).ok()?;
            let queue = parts.next()?.parse().ok()?;
            let (topic, broker) = (parts.next()?, parts.next()?);
            let queue = Queue::new(topic, broker, queue);
            Some(RecallHandle { queue, position, due_ms, message_id })
        };
        parts().ok_or_else(|| {
            let text = "a handle is broker/topic/queue/position/time/id, as a receipt or `ringmq timer ls` has it";
            Error::invalid("read a recall handle", text)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_read_as_they_are_written() {
        let handle = RecallHandle {
            queue: Queue::new("%RETRY%g", "broker/a", 3),
            position: 0xa1b2c,
            due_ms: 1_700_000_000_000,
            message_id: MessageId([7; 16]),
        };
        assert_eq!(handle.to_string().parse::<RecallHandle>().unwrap(), handle);
        for text in ["", "/////", "a/b/c/d/e/f", "a/b/1/2/3"] {
            assert!(text.parse::<RecallHandle>().is_err(), "{text}");
        }
    }
}
