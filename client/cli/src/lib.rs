//! The `ringmq` command line: nouns and verbs over the client crate.
//!
//! Invariants:
//! - stdout is data, stderr is talk: progress, questions, errors;
//! - JSON is a contract: `"schema": 1`, raw numbers, units in the keys;
//! - exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 denied, 5 unreachable or timed out;
//! - every error ends with what to try.
//!
//! It uses nothing that a user's own program could not, but for two things on Linux, where the broker
//! runs: `dev` and `quickstart` start servers in this process, and `log` reads a broker's files.

#![forbid(unsafe_code)]

pub mod args;
pub mod commands;
pub mod confirm;
pub mod failure;
pub mod output;
pub mod record_format;
#[cfg(target_os = "linux")]
pub mod servers;
pub mod values;
