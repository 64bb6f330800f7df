//! `timer`.

use clap::{Args, Subcommand};
use ringmq::RecallHandle;

use crate::values;

/// `timer`.
#[derive(Debug, Subcommand)]
pub enum TimerVerb {
    /// Show the delayed messages that wait, the next to be delivered first
    Ls(Pending),
    /// Take delayed messages back before they are delivered
    Recall(Recall),
}

/// `timer ls`.
#[derive(Debug, Args)]
pub struct Pending {
    /// Only those of this topic
    #[arg(long)]
    pub topic: Option<String>,
    /// So many at most, those that are due next
    #[arg(long, default_value = "100", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max: u32,
}

/// `timer recall`.
#[derive(Debug, Args)]
pub struct Recall {
    /// As `timer ls` or a receipt has it
    #[arg(required = true, value_name = "HANDLE", value_parser = values::recall_handle)]
    pub handles: Vec<RecallHandle>,
}
