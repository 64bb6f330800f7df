//! `dlq`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ringmq::MessageId;

/// `dlq`.
#[derive(Debug, Subcommand)]
pub enum DlqVerb {
    /// List the groups that have dead letters, and how many
    Ls,
    /// Show a group's dead letters: where each was, how often it was tried, and why it failed
    Show(Show),
    /// Send dead letters once more to the topic they were sent to; they stay where they are
    Resend(Resend),
    /// Write a group's dead letters as lines of JSON
    Export(Export),
}

/// `dlq show`.
#[derive(Debug, Args)]
pub struct Show {
    /// The group
    pub group: String,
    /// So many at most, the newest
    #[arg(long, default_value = "32", value_name = "N")]
    pub max: usize,
}

/// `dlq resend`.
#[derive(Debug, Args)]
pub struct Resend {
    /// The group
    pub group: String,
    /// Unique ids of the messages
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    pub ids: Vec<MessageId>,
    /// All that are there now
    #[arg(long)]
    pub all: bool,
}

/// `dlq export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The group
    pub group: String,
    /// Where to; stdout when left out
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
}
