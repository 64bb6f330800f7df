//! `group`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

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
    /// Create a group; consumers do so by themselves
    Create(Change),
    /// Change a group's settings; what is not given stays
    Alter(Change),
    /// Show a group's settings
    Settings {
        /// The group
        group: String,
    },
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
    /// Delete a group, its offsets, and what waits for another attempt
    Rm {
        /// The group
        group: String,
    },
}

/// `group create` and `group alter`.
#[derive(Debug, Args)]
pub struct Change {
    /// The group
    pub group: String,
    /// Whether its members get messages [default: on]
    #[arg(long, value_enum)]
    pub consume: Option<Consumption>,
    /// A message that failed so often goes to the dead letters [default: 16]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_attempts: Option<u16>,
    /// Pauses after failed attempts, as in 10s,30s,1m; the last holds for all further ones [default: 10s,30s,1m,...,2h]
    #[arg(long, value_parser = values::duration, value_delimiter = ',', value_name = "PAUSES")]
    pub retry_pauses: Vec<Duration>,
    /// Pause after the first failed attempt; it grows with each
    #[arg(long, value_parser = values::duration, conflicts_with = "retry_pauses", requires = "retry_longest")]
    pub retry_first: Option<Duration>,
    /// By how much that grows: 200 doubles it
    #[arg(long, default_value = "200", value_name = "PERCENT", requires = "retry_first")]
    pub retry_factor: u32,
    /// It grows no longer than this
    #[arg(long, value_parser = values::duration, requires = "retry_first")]
    pub retry_longest: Option<Duration>,
}

/// Whether members of a group get messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Consumption {
    /// They do
    On,
    /// They do not, and can still commit
    Off,
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
