//! The wire of RingMQ: frames, records, opcodes, errors, limits, and where things live.
//!
//! Everything that two processes, or a process and its disk, must agree on is here, and nothing else:
//! no I/O, no runtime, no clock. `PROTOCOL.md` beside this crate describes the same byte by byte.
//!
//! - [`frame`]: the length-prefixed frame and its only parser;
//! - [`record`]: the header of a stored message, and control records;
//! - [`opcode`]: requests, what each needs and where it is served;
//! - [`error`]: status codes and what a client may do about them;
//! - [`limits`]: every number a peer must respect;
//! - [`placement`]: which shard serves which queue and which group;
//! - [`names`]: what topics and groups may be called;
//! - [`stored_id`]: what a message is called after where it is stored;
//! - [`build`]: reusable builders of frames and records.

pub mod build;
pub mod checksum;
pub mod error;
pub mod frame;
pub mod limits;
pub mod names;
pub mod opcode;
pub mod placement;
pub mod record;
pub mod stored_id;

/// Compiler output for `fbs/*.fbs`; `cargo xtask codegen` makes it again.
#[allow(
    missing_docs,
    unsafe_code,
    unused_imports,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    mismatched_lifetime_syntaxes,
    rustdoc::all
)]
#[rustfmt::skip]
mod generated {
    pub mod admin_generated;
    pub mod connection_generated;
    pub mod consume_generated;
    pub mod message_generated;
    pub mod pop_generated;
    pub mod produce_generated;
    pub mod retry_generated;
    pub mod route_generated;
    pub mod timer_generated;
}

pub use generated::admin_generated::admin;
pub use generated::connection_generated::connection;
pub use generated::consume_generated::consume;
pub use generated::message_generated::message;
pub use generated::pop_generated::pop;
pub use generated::produce_generated::produce;
pub use generated::retry_generated::retry;
pub use generated::route_generated::route;
pub use generated::timer_generated::timer;

pub use flatbuffers;
pub use zerocopy;
