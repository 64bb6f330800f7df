//! Consumers.
//!
//! A consumer holds queues (given by the brokers to a member of a group, or named by the user), keeps a
//! long poll at every shard that has one of them, and hands records to a listener or to polls. A simple consumer
//! holds none: it asks for messages one by one.

mod assignment;
mod explicit;
mod feed;
#[cfg(test)]
mod feed_tests;
mod fetch;
mod held;
mod lanes;
mod local;
mod offsets;
mod pull;
mod push;
mod reader;
mod retry;
mod simple;

pub use explicit::Pulled;
pub(crate) use offsets::Asker;
use offsets::{AT_FIRST, AT_LAST};
pub use pull::{PullConsumer, PullConsumerBuilder};
pub use push::{PushConsumer, PushConsumerBuilder};
pub use simple::{Messages, Received, SimpleConsumer, SimpleConsumerBuilder};

use crate::message::unix_ms;
use std::time::SystemTime;

/// Where a group starts on a queue for which it never committed an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConsumeFrom {
    /// At the first message that is still there.
    First,
    /// Behind the last message.
    #[default]
    Last,
    /// At the first message stored at or after this time.
    Time(SystemTime),
}

/// Where to go in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekTo {
    /// To the first message that is still there.
    First,
    /// Behind the last message.
    Last,
    /// To the first message stored at or after this time.
    Time(SystemTime),
    /// To this offset.
    Offset(u64),
}

impl SeekTo {
    /// The offset itself, or the `at_ms` to search it by.
    pub(crate) fn known(self) -> Result<u64, i64> {
        match self {
            SeekTo::Offset(offset) => Ok(offset),
            SeekTo::First => Err(AT_FIRST),
            SeekTo::Last => Err(AT_LAST),
            SeekTo::Time(at) => Err(unix_ms(at)),
        }
    }
}
