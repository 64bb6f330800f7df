//! The verbs.

mod compare;
mod consume;
mod e2e;
mod limits;
mod produce;
mod sweep;
mod workload;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use crate::args::{Arguments, Load, Verb};
use crate::outcome::{Outcome, PAGE_FILE, RUN_FILE};
use crate::progress::Goal;
use crate::record::Latencies;
use crate::report::{Report, grouped, latency_table, rate_table, shares_table};
use crate::reproduce;

/// Runs what the command line asks for and returns the exit code.
pub fn run(arguments: Arguments) -> anyhow::Result<u8> {
    if let Some(directory) = arguments.out() {
        // Now, not after a run of an hour.
        std::fs::create_dir_all(directory)
            .with_context(|| format!("making the directory {}", directory.display()))?;
    }
    match arguments.verb {
        Verb::Produce(args) => block_on(args.target.threads, produce::run(&args)),
        Verb::Consume(args) => block_on(args.target.threads, consume::run(&args)),
        Verb::E2e(args) => block_on(args.target.threads, e2e::run(&args)),
        Verb::Sweep(args) => block_on(args.target.threads, sweep::run(&args)),
        Verb::Workload(args) => block_on(args.threads, workload::run(&args)),
        Verb::Compare(args) => compare::run(&args),
        Verb::Limits(args) => limits::run(&args).map(|()| 0),
        Verb::Reproduce(args) => reproduce::run(&args).map(|()| 0),
    }
}

/// Something that was asked for and makes no sense: exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Runs it, tells an error, and gives the exit code in any case.
pub fn run_to_code(arguments: Arguments) -> u8 {
    run(arguments).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        if error.is::<Usage>() { 2 } else { 1 }
    })
}

/// One thread saves the wake-ups between threads, some 20 µs each; more give more load.
fn block_on<F>(threads: u32, run: F) -> anyhow::Result<u8>
where
    F: Future<Output = anyhow::Result<u8>>,
{
    let mut builder = match threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads as usize);
    }
    let runtime = builder.enable_all().build().context("starting the client's runtime")?;
    runtime.block_on(run)
}

/// When a run ends.
#[derive(Debug, Clone, Copy)]
struct Extent {
    warm_up: Duration,
    duration: Duration,
    messages: u64,
}

/// So long when neither --count nor --duration is given.
const DURATION_DEFAULT: Duration = Duration::from_secs(10);
/// As good as for ever: a --count without a --duration ends by its count.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);

impl Extent {
    fn of(load: &Load) -> Extent {
        let (warm_up, duration) = match load.count {
            None => (Duration::from_secs(1), DURATION_DEFAULT),
            Some(_) => (Duration::ZERO, DURATION_MAX),
        };
        Extent {
            warm_up: load.warmup.unwrap_or(warm_up),
            duration: load.duration.unwrap_or(duration),
            messages: load.count.unwrap_or(u64::MAX),
        }
    }

    fn warm_up_ns(&self) -> u64 {
        self.warm_up.as_nanos() as u64
    }

    fn goal(&self) -> Goal {
        Goal {
            duration: (self.duration < DURATION_MAX).then_some(self.duration),
            messages: (self.messages < u64::MAX).then_some(self.messages),
        }
    }
}

/// Prints an outcome, writes it where it is wanted, and gives the exit code.
fn conclude(outcome: &Outcome, out: Option<&Path>) -> anyhow::Result<u8> {
    // Before anything is printed: who reads stdout may have enough, and the result must be there.
    write(outcome, out)?;
    print!("{}", tables(outcome));
    for line in closing_lines(&outcome.report) {
        println!("{line}");
    }
    Ok(outcome.report.exit_code())
}

fn write(outcome: &Outcome, out: Option<&Path>) -> anyhow::Result<()> {
    let Some(directory) = out else { return Ok(()) };
    outcome.write(directory)?;
    let files = [RUN_FILE, PAGE_FILE].map(|name| directory.join(name).display().to_string());
    eprintln!("wrote {}", files.join(" and "));
    Ok(())
}

/// Rates, latencies and shares.
fn tables(outcome: &Outcome) -> String {
    let report = &outcome.report;
    let mut rates = Vec::new();
    rates.extend(report.produce.as_ref().map(|figures| ("produce", figures)));
    rates.extend(report.receive.as_ref().map(|figures| ("receive", figures)));
    let mut latencies: Vec<(&str, &Latencies)> = Vec::new();
    for track in &outcome.tracks {
        match track.direction {
            "produce" => latencies.push(("produce response", &track.response)),
            _ => latencies.push(("end to end", &track.response)),
        }
        latencies.extend(track.service.as_ref().map(|service| ("produce service", service)));
    }
    let mut text = rate_table(&rates) + "\n";
    if !latencies.is_empty() {
        text.push_str(&latency_table(&latencies));
        text.push('\n');
    }
    text.push_str(&shares_table(report.limits.as_ref(), &report.shares));
    if let Some(raw) = &report.raw {
        text.push_str(&format!("{}\n", raw.line()));
    }
    text.push('\n');
    text
}

/// What is said in words: CPU, correctness, saturation.
fn closing_lines(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(cpu) = &report.cpu {
        let mut line = format!(
            "CPU: generator {:.2} cores, host {:.2} of {}",
            cpu.generator_busy_cores_mean, cpu.host_busy_cores_mean, cpu.host_cores
        );
        if let Some(broker) = cpu.broker_busy_cores_mean {
            let rate = [&report.produce, &report.receive].into_iter().flatten().next();
            let rate = rate.map_or(0.0, |figures| figures.messages_per_second);
            line.push_str(&format!(", broker {broker:.2}"));
            if rate > 0.0 {
                line.push_str(&format!(" ({:.2} µs a message)", broker * 1e6 / rate));
            }
        }
        lines.push(line);
    }
    lines.extend(report.correctness.lines());
    if let Some(generator) = report.generator.as_ref().filter(|generator| generator.saturated) {
        lines.push(format!(
            "generator saturated: {} of {} requests started over 1 ms late, at worst {:.1} ms; \
             these are not the broker's figures. Lower --rate, or use more --producers",
            grouped(generator.late_requests),
            grouped(generator.requests),
            generator.late_us_max / 1e3
        ));
    }
    let held = report.generator.as_ref().map_or(0, |generator| generator.held_back_requests);
    if held > 0 {
        lines.push(format!(
            "{} requests started late because the client's window was full: the system fell behind",
            grouped(held)
        ));
    }
    lines
}
