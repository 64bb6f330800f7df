//! What tries to break RingMQ's promises: real processes, and a simulated world around the shard core.
//!
//! The simulated world uses nothing of the broker beyond the seam of its core and the schema: a fault of
//! the broker cannot hide behind the same fault in its judge.

pub mod durability;
pub mod server;
pub mod sim;
pub mod wire;
