//! The command line: nouns, verbs, and what all of them take.

mod dlq;
mod group;
#[cfg(target_os = "linux")]
mod log;
mod message;
mod server;
mod timer;
mod topic;
#[cfg(target_os = "linux")]
mod tune;

use std::time::Duration;

use clap::{Args, Parser, Subcommand};

pub use dlq::{DlqVerb, Export, Resend, Show};
pub use group::{Change, Consumption, GroupVerb, Pop, Reset};
#[cfg(target_os = "linux")]
pub use log::{Dump, LogVerb};
pub use message::{Find, Get, MessageVerb, Print};
pub use server::{Dev, Flush, Quickstart};
pub use timer::{Pending, Recall, TimerVerb};
pub use topic::{Consume, Create, Kind, Produce, Rights, Settings, TopicVerb};
#[cfg(target_os = "linux")]
pub use tune::{Bench, TuneCheck, TuneVerb};

use crate::output::Form;
use crate::values;

/// RingMQ's command line: run a cluster here, look at one, send and receive.
#[derive(Debug, Parser)]
#[command(
    name = "ringmq",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 denied, 5 unreachable or timed out.\n\
                  stdout is data, stderr is talk.",
    max_term_width = 100
)]
pub struct Arguments {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// The noun.
    #[command(subcommand)]
    pub noun: Noun,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Name servers, host:port, `;` between several
    #[arg(
        long,
        global = true,
        env = "NAMESRV_ADDR",
        hide_env_values = true,
        default_value = "127.0.0.1:9876",
        value_name = "A;B"
    )]
    pub namesrv: String,
    /// Form of what is printed
    #[arg(short, long, global = true, value_enum, default_value_t = Form::Table, value_name = "FORM")]
    pub output: Form,
    /// Print no progress and no advice
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Log what happens; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Do not ask before something is destroyed
    #[arg(long, global = true)]
    pub yes: bool,
    /// Limit for each request
    #[arg(long, global = true, default_value = "5s", value_parser = values::duration)]
    pub timeout: Duration,
}

/// What a command is about.
#[derive(Debug, Subcommand)]
pub enum Noun {
    /// Run a name server and a broker here, with data in ./ringmq-data
    #[cfg(target_os = "linux")]
    Dev(Dev),
    /// Watch a million durable messages go through a cluster started for it, then clean up
    #[cfg(target_os = "linux")]
    Quickstart(Quickstart),
    /// The brokers and how they are
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Topics: make, show, change, send to, read from
    #[command(subcommand)]
    Topic(TopicVerb),
    /// Consumer groups: who, how far, from where
    #[command(subcommand)]
    Group(GroupVerb),
    /// Messages looked up by id and by key
    #[command(subcommand)]
    Message(MessageVerb),
    /// Dead letters: messages that failed for good
    #[command(subcommand)]
    Dlq(DlqVerb),
    /// Delayed messages that wait for their time
    #[command(subcommand)]
    Timer(TimerVerb),
    /// A broker's files, read only, without the broker
    #[cfg(target_os = "linux")]
    #[command(subcommand)]
    Log(LogVerb),
    /// Load and latency: everything that ringmq-bench does, with its exit codes
    #[cfg(target_os = "linux")]
    #[command(disable_help_flag = true)]
    Bench(Bench),
    /// This host: what spoils latency
    #[cfg(target_os = "linux")]
    #[command(subcommand)]
    Tune(TuneVerb),
    /// Files for other tools
    #[command(subcommand)]
    Generate(GenerateVerb),
}

/// `cluster`.
#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// Every broker with its figures, asked now
    Status,
    /// The brokers that the name servers know
    Brokers,
}

/// `generate`.
#[derive(Debug, Subcommand)]
pub enum GenerateVerb {
    /// Completions for a shell, as in `source <(ringmq generate completions bash)`
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
