//! `group`.

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
}
