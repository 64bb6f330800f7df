//! A shard's log, read from outside: for tools that look at the files of a broker, running or not.
//!
//! [`Walk`] goes over segments and tells what lies there as [`Event`]s; [`Survey`] counts the events,
//! follows every queue's offsets, and says in the end what is damaged and what that costs.
//!
//! Invariants:
//! - nothing is written, and no bytes whatever make it panic or run without end: every step goes
//!   forward by a block or by a unit whose header's checksum holds;
//! - it judges as recovery does: W is the highest `flushed` that any unit header of this log bears,
//!   the first damage at or above W is a torn tail, damage below W is in the interior;
//! - unlike recovery it goes on behind damage, at the next unit of this log and this position.

mod survey;
mod walk;

pub use survey::{Loss, Report, SegmentCount, Survey, Verdict};
pub use walk::{Check, Damage, Event, Log, Read, Walk};
