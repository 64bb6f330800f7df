//! `tune` and `bench`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::values;

/// `tune`.
#[derive(Debug, Subcommand)]
pub enum TuneVerb {
    /// Name what on this host spoils latency, why, and what to do; exits 1 where a broker would not
    /// work or not keep what it promises
    Check(TuneCheck),
}

/// `tune check`.
#[derive(Debug, Args)]
pub struct TuneCheck {
    /// The broker's data directory, or where it is to be
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub dir: PathBuf,
    /// CPUs of the broker's cores, as in 0-3,8 [default: all]
    #[arg(long, value_name = "CPUS", value_parser = values::cpus)]
    pub cpus: Option<values::Cpus>,
    /// Where /proc and /sys are found, when not in the root
    #[arg(long, default_value = "/", value_name = "DIR", hide = true)]
    pub root: PathBuf,
}

/// `bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// Verb and options of ringmq-bench: `ringmq bench --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "VERB")]
    pub arguments: Vec<OsString>,
}
