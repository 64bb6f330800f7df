//! Load generator for RingMQ: how fast, how late, and whether everything arrived.
//!
//! What it owns: the schedule of an open loop, the histograms, the checker that rides along with every
//! run, the report, and the raw figures of disk and loopback that a result is held against. It uses
//! the client crate like any program; nothing here knows the broker from inside.
//!
//! Invariants:
//! - latency in an open loop counts from when a request was due, not from when it was sent;
//! - percentiles come from one merged histogram; the warm-up is in none of them;
//! - a run that lost, doubled, disordered or damaged a message fails, however fast it was.

#![forbid(unsafe_code)]

pub mod args;
pub mod cells;
pub mod check;
pub mod command;
pub mod compare;
pub mod cpu;
pub mod environment;
pub mod faults;
pub mod goals;
pub mod goals_plot;
pub mod hlog;
pub mod html;
pub mod limits;
pub mod load;
pub mod measured;
pub mod outcome;
pub mod payload;
pub mod plot;
pub mod progress;
pub mod receive;
pub mod record;
pub mod report;
pub mod reproduce;
pub mod run;
pub mod schedule;
pub mod search;
pub mod sending;
pub mod session;
pub mod shares;
pub mod slo;
pub mod sweep;
pub mod workload;
