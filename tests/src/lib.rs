//! What tries to break RingMQ's promises: a simulated world around the shard core, driven by seeds.
//!
//! Nothing of the broker is used here beyond the seam of its core and the schema: a fault of the broker
//! cannot hide behind the same fault in its judge.

pub mod sim;
