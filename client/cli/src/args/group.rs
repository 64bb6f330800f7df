//! `group`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::record_format::RecordFormat;
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
        /// Behind an SQL expression look at so many messages of each queue at most [default: 10 million]
        #[arg(long, value_name = "N")]
        at_most: Option<u64>,
    },
    /// Receive messages one by one, as one more consumer of the group would
    Pop(Pop),
    /// Show who is in a group, and what each owns
    Members {
        /// The group
        group: String,
    },
    /// Move a group's offsets, on one topic or on all that it consumes
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

/// `group pop`.
#[derive(Debug, Args)]
pub struct Pop {
    /// The group; it is made when nobody knows it
    pub group: String,
    /// The topic
    #[arg(long)]
    pub topic: String,
    /// Stop after so many messages
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub count: u64,
    /// Nobody else of the group gets them for so long, and then they come back; 10s to 12h
    #[arg(long, value_name = "TIME", value_parser = values::duration, default_value = "30s")]
    pub invisible: Duration,
    /// Wait so long for the first message
    #[arg(long, value_name = "TIME", value_parser = values::duration, default_value = "1s")]
    pub wait: Duration,
    /// Acknowledge what was printed: it is done for the group
    #[arg(long)]
    pub ack: bool,
    /// Where a group begins that has consumed nothing yet: first, last, -10m or 2026-01-31T12:00:00Z
    #[arg(long, value_parser = values::place, allow_hyphen_values = true, default_value = "first")]
    pub from: Place,
    /// Only messages with these tags, as in "paid || refunded": the others are done for the group
    #[arg(long, default_value = "*")]
    pub tags: String,
    /// Only messages with such properties, as in "region = 'eu' AND amount > 100"
    #[arg(long, value_name = "EXPRESSION", conflicts_with = "tags")]
    pub sql: Option<String>,
    /// How a message is printed: %t topic, %q queue, %o offset, %a attempt, %v body, ...
    #[arg(
        short,
        long,
        default_value = "%v\\n",
        value_parser = RecordFormat::parse,
        long_help = format!("How a message is printed: {}", crate::record_format::PLACEHOLDERS)
    )]
    pub format: RecordFormat,
}

/// `group reset`.
#[derive(Debug, Args)]
pub struct Reset {
    /// The group
    pub group: String,
    /// The topic [default: all that the group consumes, but for its retry topic: what failed comes again]
    #[arg(long)]
    pub topic: Option<String>,
    /// first, last, -10m, 2026-01-31T12:00:00Z or an offset
    #[arg(long, value_parser = values::place, allow_hyphen_values = true)]
    pub to: Place,
    /// Only this queue; may be given several times
    #[arg(long = "queue", value_name = "N", requires = "topic")]
    pub queues: Vec<u32>,
    /// Only on this broker
    #[arg(long, value_name = "NAME", requires = "topic")]
    pub broker: Option<String>,
}
