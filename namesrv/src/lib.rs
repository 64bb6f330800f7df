//! The RingMQ name server: brokers register here, clients and brokers ask here which broker has a topic.
//!
//! All state is in memory, fed by every broker's registration and heartbeats; name servers do not talk to
//! each other, and running clients and brokers go on without them (design.md, part 8).
//!
//! - [`route`]: the table of brokers and topics; [`liveness`]: who fell silent; [`subscribe`]: who wants to
//!   hear of what. Plain data without I/O;
//! - [`service`]: requests in, answers out, over these three;
//! - [`server`]: the tokio thread around it; [`settings`]: where its [`config`] comes from.

#![forbid(unsafe_code)]

pub mod config;
mod connection;
mod http;
pub mod liveness;
pub mod route;
pub mod server;
pub mod service;
pub mod settings;
pub mod subscribe;
pub mod wire;

pub use config::NamesrvConfig;
pub use server::{NameServer, NameServerHandle};
