//! What a message is called: by its producer, or after where it is stored.

use crate::error::{Error, Result};
use crate::message::MessageId;
use ringmq_schema::stored_id::StoredId;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Where a message is stored. As text `broker-a/0003-00000000000a1b2c`: broker, shard, position in the shard's
/// log (RocketMQ's `offsetMsgId`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct StoredMessageId {
    /// Name of the broker.
    pub broker: Arc<str>,
    /// Shard of the broker.
    pub shard: u16,
    /// Position in the shard's log.
    pub position: u64,
}

impl StoredMessageId {
    /// Names a place.
    pub fn new(broker: impl Into<Arc<str>>, shard: u16, position: u64) -> StoredMessageId {
        StoredMessageId { broker: broker.into(), shard, position }
    }
}

impl fmt::Display for StoredMessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StoredMessageId { broker, shard, position } = self;
        write!(f, "{broker}/{}", StoredId { shard: *shard, position: *position })
    }
}

impl FromStr for StoredMessageId {
    type Err = Error;

    fn from_str(text: &str) -> Result<StoredMessageId> {
        let operation = "read a stored id";
        let (broker, id) = text.rsplit_once('/').unwrap_or(("", text));
        let id: StoredId = id.parse().map_err(|error| Error::invalid(operation, error))?;
        if broker.is_empty() {
            let text = format!("the broker's name belongs in front of it: BROKER/{id}");
            return Err(Error::invalid(operation, text));
        }
        Ok(StoredMessageId::new(broker, id.shard, id.position))
    }
}

impl FromStr for MessageId {
    type Err = Error;

    /// A UUID, with or without hyphens.
    fn from_str(text: &str) -> Result<MessageId> {
        let read = uuid::Uuid::try_parse(text);
        let id = read.map_err(|error| Error::invalid("read a message id", error).on(text))?;
        Ok(MessageId(id.into_bytes()))
    }
}

/// What one message is looked up by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageRef {
    /// The id that its producer gave it.
    Unique(MessageId),
    /// Where it is stored.
    Stored(StoredMessageId),
}

impl From<MessageId> for MessageRef {
    fn from(id: MessageId) -> MessageRef {
        MessageRef::Unique(id)
    }
}

impl From<StoredMessageId> for MessageRef {
    fn from(id: StoredMessageId) -> MessageRef {
        MessageRef::Stored(id)
    }
}

impl fmt::Display for MessageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MessageRef::Unique(id) => id.fmt(f),
            MessageRef::Stored(id) => id.fmt(f),
        }
    }
}

impl FromStr for MessageRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<MessageRef> {
        match text.contains('/') || text.parse::<StoredId>().is_ok() {
            true => text.parse().map(MessageRef::Stored),
            false => text.parse().map(MessageRef::Unique),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_ids_are_read() {
        let stored = StoredMessageId::new("broker-a", 3, 0xa1b2c);
        assert_eq!(stored.to_string(), "broker-a/0003-00000000000a1b2c");
        assert_eq!(stored.to_string().parse::<MessageRef>().unwrap(), stored.into());
        let text = "01934f00-0000-7000-8000-000000000001";
        let unique: MessageRef = text.parse().unwrap();
        assert_eq!(unique.to_string(), text);
        assert_eq!(text.replace('-', "").parse::<MessageRef>().unwrap(), unique);
        let bare = "0003-00000000000a1b2c".parse::<MessageRef>().unwrap_err();
        assert!(bare.to_string().contains("BROKER/0003-00000000000a1b2c"), "{bare}");
        for text in ["", "/", "broker-a/", "broker-a/3-5", "hello"] {
            assert!(text.parse::<MessageRef>().is_err(), "{text}");
        }
    }
}
