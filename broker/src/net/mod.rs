//! Connections: accepting them, reading frames, sending answers.
//!
//! Invariants:
//! - whatever a client sends, it can only lose its own connection;
//! - what a connection may hold is bounded: unfinished frame, requests in flight, bytes to be sent.

pub(crate) mod connection;
pub(crate) mod dispatch;
pub(crate) mod listen;
pub(crate) mod loans;
pub(crate) mod output;
pub(crate) mod partial;
pub(crate) mod serve;
pub(crate) mod transfer;
