//! What tries to break RingMQ's promises: real processes, and a simulated world around the shard core.

pub mod server;
pub mod wire;
