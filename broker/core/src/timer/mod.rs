//! Delayed messages: which are pending, and in what order they are due. No log, no reads: those are the shard's.
//!
//! A pending timer is known by its [`Key`], when it is due and where its record lies. Timers of a shard are delivered
//! strictly in the order of their keys, so what was delivered is one mark ([`Marks`]), and nothing is written when a
//! timer is delivered but the message itself.
//!
//! Where the pending ones are is known by [`Sources`]: of segments without an index every row is in memory, of
//! sealed ones the index has them sorted by key, and a page of it around the next one is in memory.

mod delayed;
mod marks;
mod run;
mod sources;

pub(crate) use delayed::Delayed;
pub(crate) use marks::Marks;
pub(crate) use sources::{Head, Pulled, Sources};

/// What a pending timer is known by. The order is that of delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// When it is due, ms since epoch.
    pub(crate) due_ms: i64,
    /// Where its record lies in the log.
    pub(crate) position: u64,
}

impl Key {
    /// Below every other.
    pub(crate) const MIN: Key = Key { due_ms: i64::MIN, position: 0 };
}
