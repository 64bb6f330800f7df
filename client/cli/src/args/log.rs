//! `log`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `log`.
#[derive(Debug, Subcommand)]
pub enum LogVerb {
    /// Show what each segment holds
    Inspect {
        /// A broker's data directory, or one shard's folder in it
        dir: PathBuf,
    },
    /// Read every byte and check it; exits 1 when something durable is damaged
    Verify {
        /// A broker's data directory, or one shard's folder in it
        dir: PathBuf,
    },
    /// List the records of a segment; `-o wide` lists padding and unit headers too
    Dump(Dump),
}

/// `log dump`.
#[derive(Debug, Args)]
pub struct Dump {
    /// The segment: a file DIR/shard-NNNN/NUMBER.log
    pub segment: PathBuf,
    /// Begin at this position of the log
    #[arg(long, value_name = "POSITION", default_value_t = 0, hide_default_value = true)]
    pub from: u64,
    /// End after so many lines
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
}
