//! What the wire must hold, each figure beside what it is held against, in one run.
//!
//! `cargo bench -p ringmq-bench --bench wire -- NAME [--options]`. The broker is a process of its own whose one executor stays on
//! the first CPU; the client stays on the second. Sides are measured in turns; the figure is the median of the
//! rounds. Two clients are measured where it matters: a bare one, which sends requests made before and looks at no
//! record, and the client of this workspace.
#![allow(missing_docs, unreachable_pub, reason = "nobody uses a benchmark as a library")]

#[cfg(target_os = "linux")]
mod bare;
#[cfg(target_os = "linux")]
mod bed;
#[cfg(target_os = "linux")]
#[path = "../storage/cold.rs"]
#[allow(dead_code, reason = "the benchmarks of storage use the rest")]
mod cold;
#[cfg(target_os = "linux")]
mod connections;
#[cfg(target_os = "linux")]
mod cpu;
#[cfg(target_os = "linux")]
mod echo;
#[cfg(target_os = "linux")]
#[path = "../storage/fill.rs"]
#[allow(dead_code, reason = "the benchmarks of storage use the rest")]
mod fill;
#[cfg(target_os = "linux")]
mod idle;
#[cfg(target_os = "linux")]
mod lanes;
#[cfg(target_os = "linux")]
mod load;
#[cfg(target_os = "linux")]
mod one;
#[cfg(target_os = "linux")]
#[path = "../storage/place.rs"]
mod place;
#[cfg(target_os = "linux")]
mod produce;
#[cfg(target_os = "linux")]
#[path = "../storage/raw.rs"]
#[allow(dead_code, reason = "the benchmarks of storage use the rest")]
mod raw;
#[cfg(target_os = "linux")]
mod routes;
#[cfg(target_os = "linux")]
#[path = "../storage/server.rs"]
#[allow(dead_code, reason = "the benchmarks of storage use the rest")]
mod server;
#[cfg(target_os = "linux")]
mod singles;
#[cfg(target_os = "linux")]
mod small;
#[cfg(target_os = "linux")]
mod tail;
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
    use super::{connections, cpu, idle, load, one, produce, routes, singles, small, tail};
    use clap::{Parser, Subcommand};
    use ringmq_bench::report::write_json;

    /// Limits of the wire, each beside what it is held against.
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
        /// One durable message in flight, against a raw durable write and a round trip
        One(one::Options),
        /// Batches at full speed, against one stream over the loopback
        Produce(produce::Options),
        /// Single durable messages on many connections, against an echo of the same frames
        Singles(singles::Options),
        /// One consumer of what is in memory, against one stream over the loopback
        Tail(tail::Options),
        /// A thousand connections against one
        Connections(connections::Options),
        /// Messages of 64 bytes, in and out
        Small(small::Options),
        /// CPU of the broker for each message
        Cpu(cpu::Options),
        /// Tails at most of the full load, beside a consumer that catches up
        Load(load::Options),
        /// What a broker takes that has nothing to do, and how soon it is ready
        Idle(idle::Options),
        /// A name server of 100 000 topics
        Routes(routes::Options),
    }

    pub(super) fn main() -> anyhow::Result<()> {
        let (outcome, place) = match Arguments::parse().subject {
            Subject::One(options) => (one::run(&options)?, options.place),
            Subject::Produce(options) => (produce::run(&options)?, options.place),
            Subject::Singles(options) => (singles::run(&options)?, options.place),
            Subject::Tail(options) => (tail::run(&options)?, options.place),
            Subject::Connections(options) => (connections::run(&options)?, options.place),
            Subject::Small(options) => (small::run(&options)?, options.place),
            Subject::Cpu(options) => (cpu::run(&options)?, options.place),
            Subject::Load(options) => (load::run(&options)?, options.place),
            Subject::Idle(options) => (idle::run(&options)?, options.place),
            Subject::Routes(options) => (routes::run(&options)?, options.place),
        };
        print!("{}", outcome.table());
        if let Some(out) = place.out {
            write_json(&out, &format!("wire-{}.json", outcome.subject), &outcome)?;
        }
        Ok(())
    }
}
