//! What consuming must hold, each figure beside what it is held against, in one run.
//!
//! `cargo bench -p ringmq-bench --bench consuming -- NAME [--options]`. Both sides are measured in turns, because a machine
//! drifts by more than what is asked; the figure is the median of the rounds. Broker and name server are processes of
//! their own; the broker's executor stays on the first CPU, the client's one thread on the second.
#![allow(missing_docs, unreachable_pub, reason = "nobody uses a benchmark as a library")]

#[cfg(target_os = "linux")]
#[path = "../wire/bed.rs"]
#[allow(dead_code, reason = "the benchmarks of the wire use the rest")]
mod bed;
#[cfg(target_os = "linux")]
#[path = "../storage/cold.rs"]
#[allow(dead_code, reason = "the benchmarks of storage use the rest")]
mod cold;
#[cfg(target_os = "linux")]
#[path = "../storage/fill.rs"]
#[allow(dead_code, reason = "the benchmarks of storage use the rest")]
mod fill;
#[cfg(target_os = "linux")]
mod latency;
#[cfg(target_os = "linux")]
#[path = "../storage/place.rs"]
mod place;
#[cfg(target_os = "linux")]
mod pop;
#[cfg(target_os = "linux")]
#[path = "../storage/server.rs"]
#[allow(dead_code, reason = "the benchmarks of storage use the rest")]
mod server;
#[cfg(target_os = "linux")]
mod throughput;
#[cfg(target_os = "linux")]
#[path = "../storage/wire.rs"]
#[allow(dead_code, reason = "the benchmarks of storage use the rest")]
mod wire;

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
    use super::{latency, throughput};
    use clap::{Parser, Subcommand};
    use ringmq_bench::report::write_json;

    /// Limits of consuming, each beside what it is held against.
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
        /// From due to received, push and pop, against producing and a round trip
        Latency(latency::Options),
        /// Messages a second from disk and memory, pop against push
        Throughput(throughput::Options),
    }

    pub(super) fn main() -> anyhow::Result<()> {
        // One thread saves the wake-ups between threads.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (outcome, place) = match Arguments::parse().subject {
            Subject::Latency(options) => (runtime.block_on(latency::run(&options))?, options.place),
            Subject::Throughput(options) => {
                (runtime.block_on(throughput::run(&options))?, options.place)
            }
        };
        print!("{}", outcome.table());
        if let Some(out) = place.out {
            write_json(&out, &format!("consuming-{}.json", outcome.subject), &outcome)?;
        }
        Ok(())
    }
}
