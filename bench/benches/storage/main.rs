//! What storage must hold, each limit beside what it is held against, in one run.
//!
//! `cargo bench -p ringmq-bench --bench storage -- NAME [--options]`. Defaults run in seconds; the sizes of
//! the limits are options. Both sides are measured in turns, because a machine drifts by more than what is
//! asked; the figure is the median of the rounds. Data lies in a temporary folder below `--dir`, which is to be
//! on the disk that is meant, and is gone afterwards.
#![allow(missing_docs, unreachable_pub, reason = "nobody uses a benchmark as a library")]

#[cfg(target_os = "linux")]
mod beside;
#[cfg(target_os = "linux")]
mod catch_up;
#[cfg(target_os = "linux")]
mod cold;
#[cfg(target_os = "linux")]
mod fill;
#[cfg(target_os = "linux")]
mod filter;
#[cfg(target_os = "linux")]
mod lookup;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod padding;
#[cfg(target_os = "linux")]
mod place;
#[cfg(target_os = "linux")]
mod queues;
#[cfg(target_os = "linux")]
mod raw;
#[cfg(target_os = "linux")]
mod restart;
#[cfg(target_os = "linux")]
mod server;
#[cfg(target_os = "linux")]
mod timers;
#[cfg(target_os = "linux")]
mod wire;
#[cfg(target_os = "linux")]
mod write;

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("the broker runs on Linux only");
}

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    pub use super::place::Place;
    use super::{
        beside, catch_up, filter, lookup, memory, padding, queues, restart, timers, write,
    };
    use clap::{Parser, Subcommand};
    use ringmq_bench::report::write_json;

    /// Limits of storage, each beside what it is held against.
    #[derive(Debug, Parser)]
    struct Arguments {
        #[command(subcommand)]
        subject: Subject,
        /// Given by `cargo bench`
        #[arg(long, hide = true, global = true)]
        bench: bool,
    }

    #[derive(Debug, Subcommand)]
    enum Subject {
        /// The log alone against raw O_DIRECT sequential writing
        Write(write::Options),
        /// Padding with single messages in flight
        Padding(padding::Options),
        /// One consumer reads everything, against bare sendfile of the same files
        CatchUp(catch_up::Options),
        /// Append latency beside a consumer that catches up
        Beside(beside::Options),
        /// Memory of a shard with many messages
        Memory(memory::Options),
        /// Many queues against one
        Queues(queues::Options),
        /// From start to ready
        Restart(restart::Options),
        /// Messages by key, from disk
        Lookup(lookup::Options),
        /// Messages that one core looks at for a filter
        Filter(filter::Options),
        /// Delayed messages: how late they come, and what they take of memory
        Timers(timers::Options),
    }

    pub(super) fn main() -> anyhow::Result<()> {
        let (outcome, place) = match Arguments::parse().subject {
            Subject::Write(options) => (write::run(&options)?, options.place),
            Subject::Padding(options) => (padding::run(&options)?, options.place),
            Subject::CatchUp(options) => (catch_up::run(&options)?, options.place),
            Subject::Beside(options) => (beside::run(&options)?, options.place),
            Subject::Memory(options) => (memory::run(&options)?, options.place),
            Subject::Queues(options) => (queues::run(&options)?, options.place),
            Subject::Restart(options) => (restart::run(&options)?, options.place),
            Subject::Lookup(options) => (lookup::run(&options)?, options.place),
            Subject::Filter(options) => (filter::run(&options)?, options.place),
            Subject::Timers(options) => (timers::run(&options)?, options.place),
        };
        print!("{}", outcome.table());
        if let Some(out) = place.out {
            write_json(&out, &format!("storage-{}.json", outcome.subject), &outcome)?;
        }
        Ok(())
    }
}
