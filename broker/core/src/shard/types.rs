//! What messages a topic takes, by its type.
//!
//! A message is what RocketMQ 5 takes it for (`TopicMessageType.parseFromMessageProperty`): a transaction, or else delayed,
//! or else FIFO, or else normal; its proxy (`DefaultTopicMessageTypeValidator`) takes of each topic's own type only, and
//! everything for MIXED, which is unspecified here. One rule is wider here: a message group is welcome in a normal topic.
//!
//! | type | takes |
//! |---|---|
//! | unspecified | every message |
//! | normal | those without a delivery time; a message group only chooses their queue |
//! | fifo | those with a message group and without a delivery time |
//! | delay | those with a delivery time, also one that has passed |
//! | transaction | those without a delivery time, until transactions are served |
//!
//! What the broker itself sends to a group's own topics is not asked.

use super::timers::Delays;
use super::{Handled, Shard, refuse};
use crate::seam::Memory;
use ringmq_schema::admin::MessageType;
use ringmq_schema::error::Status;
use ringmq_schema::record;

impl<M: Memory> Shard<M> {
    /// Whether a run, which is in order otherwise, fits the type of its topic.
    pub(super) fn check_type(&self, topic: u32, delays: &Delays, run: &[u8]) -> Handled {
        let Some(settings) = self.registry.topic(topic).map(|topic| &topic.settings) else {
            return Ok(());
        };
        let kind = match MessageType(settings.message_type) {
            MessageType::Unspecified => return Ok(()),
            MessageType::Delay if delays.plain() > 0 => {
                let text = format!(
                    "topic {} is of type delay: its messages need a delivery time",
                    settings.name
                );
                return Err(refuse(Status::WrongMessageType, text));
            }
            MessageType::Delay => return Ok(()),
            MessageType::Normal => "normal",
            MessageType::Fifo => "fifo",
            _ => "transaction",
        };
        if delays.delayed() > 0 {
            let text = format!(
                "topic {} is of type {kind}: its messages have no delivery time. Topics of type delay and \
                 unspecified take such",
                settings.name
            );
            return Err(refuse(Status::WrongMessageType, text));
        }
        let is_fifo = MessageType(settings.message_type) == MessageType::Fifo;
        if is_fifo && let Some(number) = first_without_group(run) {
            let text = format!(
                "topic {} is of type fifo: its messages need a message group, and record {number} of the batch \
                 has none",
                settings.name
            );
            return Err(refuse(Status::WrongMessageType, text));
        }
        Ok(())
    }
}

/// Number of the first message that names no group, or cannot say.
fn first_without_group(run: &[u8]) -> Option<usize> {
    record::records(run).flatten().position(|found| {
        let message = found.message().ok();
        message.and_then(|message| message.group()).is_none_or(str::is_empty)
    })
}
