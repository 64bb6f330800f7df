//! `group`.

use std::time::Duration;

use clap::{Args, Subcommand};

use crate::values::{self, Place};

/// `group`.
#[derive(Debug, Subcommand)]
pub enum GroupVerb {
    /// List groups
    Ls {
        /// Only names that start so
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Make a group; consumers do so by themselves
    Create(Create),
    /// Change how a group consumes; what is not named stays
    Alter(Create),
    /// Show how far a group is behind on each queue, in messages and in time
    Describe {
        /// The group
        group: String,
    },
    /// Show who is in a group, and what each owns
    Members {
        /// The group
        group: String,
    },
    /// Move a group's offsets on a topic
    Reset(Reset),
    /// Delete a group and its offsets
    Rm {
        /// The group
        group: String,
    },
}

/// `group create`, `group alter`.
#[derive(Debug, Args)]
pub struct Create {
    /// The group
    pub group: String,
    /// A message that was delivered so often and failed goes to the dead letters [default: 16]
    #[arg(long, value_name = "N")]
    pub max_attempts: Option<u16>,
    /// Pauses after each failed attempt, as in 1s,5s,1m; the last holds for all further ones
    #[arg(long, value_parser = values::duration, value_delimiter = ',', value_name = "PAUSES")]
    pub retry_pauses: Vec<Duration>,
    /// Whether its members get messages [default: true]
    #[arg(long, value_name = "BOOL")]
    pub consume: Option<bool>,
}

/// `group reset`.
#[derive(Debug, Args)]
pub struct Reset {
    /// The group
    pub group: String,
    /// The topic
    #[arg(long)]
    pub topic: String,
    /// first, last, -10m, 2026-01-31T12:00:00Z or an offset
    #[arg(long, value_parser = values::place, allow_hyphen_values = true)]
    pub to: Place,
    /// Only this queue; may be given several times
    #[arg(long = "queue", value_name = "N")]
    pub queues: Vec<u32>,
    /// Only on this broker
    #[arg(long, value_name = "NAME")]
    pub broker: Option<String>,
}
