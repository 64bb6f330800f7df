//! Consumers.

mod pull;
mod push;

pub use pull::{PullConsumer, PullConsumerBuilder};
pub use push::{PushConsumer, PushConsumerBuilder};

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
