//! The command line of `ringmq-bench`.

mod values;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::slo::Slo;

pub use values::duration;
use values::{as_ms, body_bytes, in_ms, percent, rate, rate_as_text, scale, tolerance};

/// Load generator for RingMQ: rates, latency percentiles, and a check of every message.
#[derive(Debug, Parser)]
#[command(name = "ringmq-bench", version, arg_required_else_help = true)]
pub struct Arguments {
    /// What to run.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to run.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Send, then read back and check what was stored
    Produce(Produce),
    /// Read a topic from its beginning (or --from) to its end
    Consume(Consume),
    /// Send and receive at the same time: latency from due to received
    E2e(EndToEnd),
    /// Find the highest rate at which a latency bound holds
    Sweep(Sweep),
    /// Run a workload file of the OpenMessaging benchmark
    Workload(Workload),
    /// Hold result B against result A; exits 1 when B is worse
    Compare(Compare),
    /// Raw disk and loopback: what the other figures are held against
    Limits(Limits),
    /// Measure what is promised of RingMQ again, in a checkout, and write the page of results anew
    Reproduce(Reproduce),
}

/// The cluster, and where results go.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Target {
    /// Name servers, host:port, `;` between several
    #[arg(long, env = "NAMESRV_ADDR", default_value = "127.0.0.1:9876")]
    pub namesrv: String,
    /// Topic; made with --queues where it does not exist. Without it one is made and removed again
    #[arg(long)]
    pub topic: Option<String>,
    /// Queues per broker of a topic that is made
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub queues: u32,
    /// Directory for run.json, histograms and report.html
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Threads of the client; 1 saves wake-ups between threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// Connections to each broker and shard: so many clients share the load
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub connections: u32,
}

/// What is looked at beside the load.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Watch {
    /// A broker's process on this host, to measure its CPU too [default: the only broker's, where it
    /// listens on the loopback]
    #[arg(long, value_name = "PID")]
    pub broker_pid: Option<u32>,
    /// Directory on the broker's disk: the disk that is named, and measured with --with-limits
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub dir: PathBuf,
}

/// What is sent, and how.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Load {
    /// Messages per second (open loop: sent when due, however slow the answers), or `max`
    #[arg(long, default_value = "max", value_parser = rate)]
    #[serde(serialize_with = "rate_as_text")]
    pub rate: Rate,
    /// Requests in flight over all producers (closed loop, only with --rate max)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub in_flight: u32,
    /// Stop after so many messages
    #[arg(long)]
    pub count: Option<u64>,
    /// Stop after so long, warm-up included [default: 10s, without --count]
    #[arg(long, value_parser = duration)]
    #[serde(rename = "duration_ms", serialize_with = "as_ms")]
    pub duration: Option<Duration>,
    /// Leave what is due in the beginning out of the figures [default: 1s, with --count 0s]
    #[arg(long, value_parser = duration)]
    #[serde(rename = "warmup_ms", serialize_with = "as_ms")]
    pub warmup: Option<Duration>,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024, value_parser = body_bytes)]
    #[serde(rename = "size_bytes")]
    pub size: usize,
    /// Messages in a request: 1 sends singly (the client may still gather), more sends batches
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// Durability asked for: `sync` survives power loss
    #[arg(long, value_enum, default_value_t = FlushMode::Sync)]
    pub flush: FlushMode,
    /// Streams of messages, each in order
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub producers: u32,
}

/// `produce`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Produce {
    /// Where.
    #[command(flatten)]
    #[serde(flatten)]
    pub target: Target,
    /// What.
    #[command(flatten)]
    #[serde(flatten)]
    pub load: Load,
    /// Do not read back what was stored
    #[arg(long)]
    pub no_check: bool,
    /// Measure raw disk and loopback in turns with the load, and print the shares
    #[arg(long)]
    pub with_limits: bool,
    /// What else is looked at.
    #[command(flatten)]
    #[serde(flatten)]
    pub watch: Watch,
}

/// `consume`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Consume {
    /// Where.
    #[command(flatten)]
    #[serde(flatten)]
    pub target: Target,
    /// How it is received
    #[arg(long, value_enum, default_value_t = Receive::Push)]
    pub mode: Receive,
    /// Group; a new one without it
    #[arg(long)]
    pub group: Option<String>,
    /// Listener calls at a time (push)
    #[arg(long, default_value_t = 64)]
    pub concurrency: usize,
    /// Stop after so many messages [default: at the end of the topic]
    #[arg(long)]
    pub count: Option<u64>,
    /// What else is looked at.
    #[command(flatten)]
    #[serde(flatten)]
    pub watch: Watch,
}

/// `e2e`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct EndToEnd {
    /// Where.
    #[command(flatten)]
    #[serde(flatten)]
    pub target: Target,
    /// What.
    #[command(flatten)]
    #[serde(flatten)]
    pub load: Load,
    /// Members of the consuming group
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub consumers: u32,
    /// Listener calls at a time, each consumer
    #[arg(long, default_value_t = 64)]
    pub concurrency: usize,
    /// Measure raw disk and loopback in turns with the load, and print the shares
    #[arg(long)]
    pub with_limits: bool,
    /// What else is looked at.
    #[command(flatten)]
    #[serde(flatten)]
    pub watch: Watch,
}

/// `sweep`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Sweep {
    /// Where.
    #[command(flatten)]
    #[serde(flatten)]
    pub target: Target,
    /// Bounds that must all hold, as in 'p99.9<10ms,p50<1ms'; latency counts from when a message was due
    #[arg(long, value_name = "BOUNDS")]
    pub slo: Slo,
    /// Latency that is bounded
    #[arg(long, value_enum, default_value_t = Of::Produce)]
    pub of: Of,
    /// Messages per second to begin with
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub min_rate: u64,
    /// Messages per second never to go beyond
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_rate: u64,
    /// How exactly the rate is found
    #[arg(long, default_value = "5%", value_parser = percent)]
    #[serde(rename = "resolution_ratio")]
    pub resolution: f64,
    /// How long each rate is tried, warm-up included
    #[arg(long, default_value = "10s", value_parser = duration)]
    #[serde(rename = "step_duration_ms", serialize_with = "in_ms")]
    pub step_duration: Duration,
    /// How long the answer is confirmed [default: twice a step]
    #[arg(long, value_parser = duration)]
    #[serde(rename = "confirm_duration_ms", serialize_with = "as_ms")]
    pub confirm_duration: Option<Duration>,
    /// Leave what is due in the beginning of each step out of the figures
    #[arg(long, default_value = "1s", value_parser = duration)]
    #[serde(rename = "warmup_ms", serialize_with = "in_ms")]
    pub warmup: Duration,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024, value_parser = body_bytes)]
    #[serde(rename = "size_bytes")]
    pub size: usize,
    /// Messages in a request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// Durability asked for: `sync` survives power loss
    #[arg(long, value_enum, default_value_t = FlushMode::Sync)]
    pub flush: FlushMode,
    /// Streams of messages, each in order
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub producers: u32,
    /// Members of the consuming group (--of e2e)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub consumers: u32,
    /// What else is looked at.
    #[command(flatten)]
    #[serde(flatten)]
    pub watch: Watch,
}

impl Sweep {
    /// The load of one step.
    pub fn load(&self, rate: u64, duration: Duration) -> Load {
        Load {
            rate: Rate::PerSecond(rate),
            in_flight: 1,
            count: None,
            duration: Some(duration),
            warmup: Some(self.warmup),
            size: self.size,
            batch: self.batch,
            flush: self.flush,
            producers: self.producers,
        }
    }
}

/// Whose latency a sweep bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Of {
    /// From due to acknowledged
    Produce,
    /// From due to received
    E2e,
}

/// `workload`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Workload {
    /// The file; its own keys say topics, rates, sizes and durations
    pub file: PathBuf,
    /// Name servers, host:port, `;` between several
    #[arg(long, env = "NAMESRV_ADDR", default_value = "127.0.0.1:9876")]
    pub namesrv: String,
    /// Directory for run.json, histograms and report.html
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Durations and the backlog of the file times this: 0.01 makes 9 s of 15 min
    #[arg(long, default_value_t = 1.0, value_parser = scale)]
    pub duration_scale: f64,
    /// Durability asked for: `sync` survives power loss
    #[arg(long, value_enum, default_value_t = FlushMode::Sync)]
    pub flush: FlushMode,
    /// Messages in a request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// Requests in flight over all producers where the file asks for the highest rate
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub in_flight: u32,
    /// Threads of the client; 1 saves wake-ups between threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// Connections to each broker and shard: so many clients share the load
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub connections: u32,
    /// What else is looked at.
    #[command(flatten)]
    #[serde(flatten)]
    pub watch: Watch,
}

/// `compare`.
#[derive(Debug, Clone, Args)]
pub struct Compare {
    /// Before: a result's directory or run.json; several repeats with commas, or a directory of them
    #[arg(value_name = "A")]
    pub before: String,
    /// After, likewise
    #[arg(value_name = "B")]
    pub after: String,
    /// A change for the worse up to this is no regression
    #[arg(long, default_value = "5%", value_parser = tolerance)]
    pub tolerance: f64,
    /// Compare runs of different parameters, and runs that failed
    #[arg(long)]
    pub force: bool,
    /// Directory for compare.json and report.html
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// `limits`.
#[derive(Debug, Clone, Args)]
pub struct Limits {
    /// Directory on the disk to measure
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub dir: PathBuf,
    /// How long to measure each figure
    #[arg(long, default_value = "3s", value_parser = duration)]
    pub duration: Duration,
    /// Directory for limits.json
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// `reproduce`.
#[derive(Debug, Clone, Args)]
pub struct Reproduce {
    /// What to measure, as `--list` names it; of the rest the page keeps what was measured before [default: all]
    pub subjects: Vec<String>,
    /// Say what there is to measure, and measure nothing
    #[arg(long)]
    pub list: bool,
    /// Checkout of RingMQ: its benchmarks are built and run there
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub checkout: PathBuf,
    /// Directory on the disk to measure
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Rate of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// As fast as answers come.
    Max,
    /// So many messages per second.
    PerSecond(u64),
}

/// Durability asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlushMode {
    /// Acknowledged when it survives power loss
    Sync,
    /// Acknowledged when the device has taken it
    Async,
}

impl From<FlushMode> for ringmq::Flush {
    fn from(mode: FlushMode) -> ringmq::Flush {
        match mode {
            FlushMode::Sync => ringmq::Flush::Sync,
            FlushMode::Async => ringmq::Flush::Async,
        }
    }
}

/// Bytes of bodies that a batch may have (semantics.md: 4 MiB).
const BATCH_BYTES_MAX: usize = 4 << 20;

impl Arguments {
    /// Parses `words`, of which the first is the name of the program; ends the process where they make no
    /// sense. `namesrv` is used where no other is named.
    pub fn parse_as(words: Vec<OsString>, namesrv: Option<&str>) -> Arguments {
        let name = words.first().map(|name| name.to_string_lossy().into_owned());
        let mut command = match name {
            Some(name) => Arguments::command().bin_name(name),
            None => Arguments::command(),
        };
        let matches = command.clone().get_matches_from(words);
        let mut arguments =
            Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        if let (Some(namesrv), Some((_, verb))) = (namesrv, matches.subcommand())
            && let Ok(Some(ValueSource::DefaultValue)) =
                verb.try_contains_id("namesrv").map(|_| verb.value_source("namesrv"))
        {
            arguments.verb.set_namesrv(namesrv);
        }
        if let Err(text) = arguments.check() {
            command.error(ErrorKind::ValueValidation, text).exit();
        }
        arguments
    }

    /// Where results go.
    pub fn out(&self) -> Option<&Path> {
        match &self.verb {
            Verb::Produce(args) => args.target.out.as_deref(),
            Verb::Consume(args) => args.target.out.as_deref(),
            Verb::E2e(args) => args.target.out.as_deref(),
            Verb::Sweep(args) => args.target.out.as_deref(),
            Verb::Workload(args) => args.out.as_deref(),
            Verb::Compare(args) => args.out.as_deref(),
            Verb::Limits(args) => args.out.as_deref(),
            Verb::Reproduce(_) => None,
        }
    }

    /// What no single option can see: `Err` says which contradict each other.
    pub fn check(&self) -> Result<(), String> {
        match &self.verb {
            Verb::Produce(args) => args.load.check(),
            Verb::E2e(args) => args.load.check(),
            Verb::Sweep(args) => args.check(),
            Verb::Consume(_)
            | Verb::Limits(_)
            | Verb::Workload(_)
            | Verb::Compare(_)
            | Verb::Reproduce(_) => Ok(()),
        }
    }
}

impl Verb {
    fn set_namesrv(&mut self, namesrv: &str) {
        let set = match self {
            Verb::Produce(args) => &mut args.target.namesrv,
            Verb::Consume(args) => &mut args.target.namesrv,
            Verb::E2e(args) => &mut args.target.namesrv,
            Verb::Sweep(args) => &mut args.target.namesrv,
            Verb::Workload(args) => &mut args.namesrv,
            Verb::Compare(_) | Verb::Limits(_) | Verb::Reproduce(_) => return,
        };
        *set = namesrv.to_owned();
    }
}

impl Sweep {
    fn check(&self) -> Result<(), String> {
        if self.min_rate > self.max_rate {
            return Err(format!(
                "--min-rate {} is above --max-rate {}",
                self.min_rate, self.max_rate
            ));
        }
        if self.warmup >= self.step_duration {
            return Err("--step-duration includes --warmup: nothing is left to measure".to_owned());
        }
        self.load(self.min_rate, self.step_duration).check()
    }
}

impl Load {
    /// Whether many requests are in flight as fast as they go.
    pub fn is_queued(&self) -> bool {
        self.rate == Rate::Max && self.in_flight > 1
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        let (batch, size) = (self.batch as usize, self.size);
        if batch > 1 && batch.saturating_mul(size) > BATCH_BYTES_MAX {
            let most = BATCH_BYTES_MAX / size;
            return Err(format!("a batch has at most 4 MiB: {most} messages of {size} bytes"));
        }
        Ok(())
    }
}

/// Kind of consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Receive {
    /// A listener is called
    Push,
    /// The consumer polls
    Pull,
    /// Messages are received one by one, each acknowledged
    Pop,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_name_server_is_taken_over_where_none_is_named() {
        let parsed = |words: &[&str]| {
            let words = words.iter().map(OsString::from).collect();
            match Arguments::parse_as(words, Some("there:1")).verb {
                Verb::Produce(args) => args.target.namesrv,
                Verb::Limits(_) => "none".to_owned(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(parsed(&["ringmq bench", "produce", "--namesrv", "here:2"]), "here:2");
        assert_eq!(parsed(&["ringmq bench", "limits"]), "none");
        if std::env::var_os("NAMESRV_ADDR").is_none() {
            assert_eq!(parsed(&["ringmq bench", "produce"]), "there:1");
        }
    }
}
