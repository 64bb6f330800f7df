//! The RingMQ broker: one glommio executor a core, each with its shards, their logs and connections.
//!
//! The shards themselves are `ringmq-core`, which knows no I/O; this crate is the runtime around them:
//! sockets, O_DIRECT files, timers, the channels between cores, and the control plane on a thread of
//! its own. [`Broker::start`] runs one inside another program, the binary `ringmq-broker` by itself.

#![deny(unsafe_code)]

/// As the binaries have it.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: ringmq_blocks::BlockAllocator = ringmq_blocks::BlockAllocator;

mod broker;
pub mod config;
pub mod control;
mod data_dir;
mod disk;
mod net;
mod preflight;
mod shard;
mod sys;

pub use broker::{Broker, BrokerHandle};
pub use config::BrokerConfig;
pub use ringmq_core::FlushMode;
#[doc(hidden)]
pub use shard::alone;
pub use sys::Signals;
