//! One shard of a broker as a state machine: plain data in, plain data out.
//!
//! **Invariant: no I/O.** No file, socket, clock, thread, random number or iteration order of a hash map
//! is known here (`clippy.toml` beside this crate refuses them), so that the same code runs under glommio
//! in production and under a simulated disk and clock in tests, where a seed replays everything.
//!
//! [`seam`] is the whole interface: a [`Shard`] takes an [`Input`] and leaves [`Action`]s in an [`Outbox`].

#![forbid(unsafe_code)]

pub mod config;
mod consume;
pub mod hole;
pub mod index;
mod log;
pub mod offline;
pub mod peer;
mod pop;
mod queue;
mod registry;
pub mod route;
pub mod seam;
mod shard;
mod snapshot;
mod state;
mod table;
mod timer;

pub use config::{Figures, FlushMode, LATENESS_BOUNDS_MS, ShardConfig};
pub use log::recovery::Fenced;
pub use seam::{
    Action, BLOCK_BYTES, Block, ConnectionId, DiskError, Input, LogFiles, Memory, Now, Outbox,
    SegmentFile, Slice,
};
pub use shard::{GroupLag, OpenError, Shard, check_segment};
