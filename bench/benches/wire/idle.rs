//! What a broker takes that has nothing to do, and how soon it is ready.

use crate::linux::Place;
use crate::server::{self, Server};
use anyhow::Context as _;
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use std::time::Duration;

/// Until what belongs to the start is over.
const SETTLE: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Starts
    #[arg(long, default_value_t = 7)]
    starts: usize,
    /// Seconds that the last one is looked at
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Flags for the broker
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    broker: Vec<String>,
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("idle");
    let folder = options.place.folder()?;
    let namesrv = server::namesrv()?;
    let (mut fresh, mut again) = (Vec::new(), Vec::new());
    let mut last = None;
    for number in 0..options.starts {
        let mut start = server::Options::new(&folder.path().join(number.to_string()));
        start.namesrv = Some(namesrv.address("listen")?);
        start.flags.clone_from(&options.broker);
        start.flags.push(format!("--broker=idle-{number}"));
        let broker = start.start()?;
        fresh.push(broker.started_in.as_secs_f64() * 1e3);
        broker.stop()?;
        let broker = start.start()?;
        again.push(broker.started_in.as_secs_f64() * 1e3);
        last = Some(broker);
    }
    let broker = last.context("a start")?;
    std::thread::sleep(SETTLE);
    let before = broker.cpu_seconds()?;
    std::thread::sleep(Duration::from_secs(options.seconds));
    let used = (broker.cpu_seconds()? - before) / options.seconds as f64 * 100.0;
    outcome.figure("CPU", "% of a core", used, Goal::AtMost(0.5));
    outcome.figure("resident", "MiB", resident_mib(&broker)?, Goal::AtMost(64.0));
    outcome.figure("ready, new directory", "ms", median(&fresh), Goal::AtMost(100.0));
    outcome.figure("ready, again", "ms", median(&again), Goal::AtMost(100.0));
    outcome.note(rounds("ready, new directory, ms", &fresh));
    outcome.note(rounds("ready, again, ms", &again));
    Ok(outcome)
}

/// What a process has in memory.
pub fn resident_mib(server: &Server) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS in kB")?;
    Ok(kib / 1024.0)
}
