//! What is judged of delayed messages.
//!
//! - promise never-early: none is seen before the wall clock has reached its time;
//! - one that was acknowledged comes in the end, once, unless it was taken back;
//! - one that was taken back does not come.
//!
//! Where the medium was spoiled the record of a delivery may be gone, and a message come again, or never.

use super::messages::{Fate, Message, Messages};
use crate::sim::disk::CrashKind;
use crate::sim::talk::{Received, Timer};
use crate::sim::{Verdict, violation};

impl Message {
    fn waits(&self) -> bool {
        self.sent.deliver_ms != 0 && self.fate == Fate::Acknowledged && self.offset.is_none()
    }
}

impl Messages {
    /// The latest time to which one was delayed.
    pub fn last_due_ms(&self) -> i64 {
        self.messages.iter().map(|message| message.sent.deliver_ms).max().unwrap_or(0)
    }

    /// The broker's clock has come to this.
    pub fn wall_reached(&mut self, wall_ms: i64) {
        self.wall_ms = self.wall_ms.max(wall_ms);
    }

    /// Whether a shard may deliver delayed messages by itself.
    pub fn has_delayed(&self, shard: u16) -> bool {
        self.messages.iter().any(|m| m.sent.deliver_ms != 0 && m.sent.shard == shard)
    }

    /// One of the delayed messages that were acknowledged.
    pub fn recallable(&self, nth: u64) -> Option<Timer> {
        let all = || {
            let messages = self.messages.iter().zip(0..);
            messages.filter(|(message, _)| message.waits() && message.timer.is_some())
        };
        let count = all().count() as u64;
        let (message, index) = all().nth((nth % count.max(1)) as usize)?;
        Some(Timer {
            index,
            shard: message.sent.shard,
            queue: message.sent.queue,
            message_id: self.id(index),
            due_ms: message.sent.deliver_ms,
            position: message.timer?,
        })
    }

    /// One is asked to be taken back.
    pub fn recalling(&mut self, index: u32) {
        self.messages[index as usize].recalling = true;
    }

    /// One was taken back, so it was said.
    pub fn recalled(&mut self, index: u32) -> Verdict {
        let message = &mut self.messages[index as usize];
        message.recalled = true;
        if message.offset.is_some() && !message.doubtful {
            return violation(format!("message {index} was delivered and taken back: {message:?}"));
        }
        Ok(())
    }

    /// A delayed message was seen.
    pub(super) fn check_time(&self, index: u32, record: &Received) -> Verdict {
        let message = &self.messages[index as usize];
        let due_ms = message.sent.deliver_ms;
        if record.deliver_ms != due_ms {
            return violation(format!("message {index} has another time: {record:?}, {message:?}"));
        }
        // promise: never-early
        if due_ms != 0 && (self.wall_ms < due_ms || record.store_ms < due_ms) {
            let wall_ms = self.wall_ms;
            return violation(format!(
                "message {index} came early, the clock never was above {wall_ms}: {record:?}, {message:?}"
            ));
        }
        if message.recalled && !message.doubtful {
            return violation(format!("message {index} was taken back, and came: {message:?}"));
        }
        Ok(())
    }

    /// A life ended: what was not durable, and what lies on a spoiled medium, may never come, or again.
    pub(super) fn delayed_crashed(&mut self, kind: CrashKind) {
        for message in self.messages.iter_mut().filter(|m| m.sent.deliver_ms != 0) {
            message.doubtful |= message.offset.is_none() && !message.must_survive(kind);
        }
    }

    /// A write unit of a shard's log was spoiled.
    pub(super) fn doubt_delayed(&mut self, shard: u16) {
        let delayed =
            |message: &&mut Message| message.sent.deliver_ms != 0 && message.sent.shard == shard;
        self.messages.iter_mut().filter(delayed).for_each(|message| message.doubtful = true);
    }

    /// Whatever was acknowledged, and belongs to a topic that `serves`, must have been seen.
    pub(super) fn all_delivered(&self, serves: impl Fn(u32) -> bool) -> Verdict {
        let lost = self.messages.iter().zip(0_u32..).find(|(message, _)| {
            message.waits()
                && !message.doubtful
                && !message.recalling
                && serves(message.sent.queue.0)
        });
        match lost {
            None => Ok(()),
            Some((message, index)) => violation(format!("message {index} never came: {message:?}")),
        }
    }
}
