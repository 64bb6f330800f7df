//! The verbs.

mod consume;
mod e2e;
mod limits;
mod produce;

use std::io::{IsTerminal as _, stderr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use crate::args::{Arguments, Load, Target, Verb};
use crate::environment::Environment;
use crate::report::{Report, SCHEMA, grouped};
use crate::run::Run;

/// Runs what the command line asks for and returns the exit code.
pub fn run(arguments: Arguments) -> anyhow::Result<u8> {
    match arguments.verb {
        Verb::Produce(args) => block_on(&args.target, produce::run(&args)),
        Verb::Consume(args) => block_on(&args.target, consume::run(&args)),
        Verb::E2e(args) => block_on(&args.target, e2e::run(&args)),
        Verb::Limits(args) => limits::run(&args).map(|()| 0),
    }
}

/// One thread saves the wake-ups between threads, some 20 µs each; more give more load.
fn block_on<F>(target: &Target, run: F) -> anyhow::Result<u8>
where
    F: Future<Output = anyhow::Result<u8>>,
{
    let mut builder = match target.threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if target.threads > 1 {
        builder.worker_threads(target.threads as usize);
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
}

/// Says each second how far the run is, on a terminal only. Ends when dropped.
fn show_progress(run: &Arc<Run>) -> Option<ProgressLine> {
    if !stderr().is_terminal() {
        return None;
    }
    let run = Arc::clone(run);
    Some(ProgressLine(tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_secs(1));
        loop {
            every.tick().await;
            let progress = run.progress();
            eprint!(
                "\r{:>4} s  {} acknowledged  {} received  {} failed ",
                run.clock.now_ns() / 1_000_000_000,
                grouped(progress.acknowledged),
                grouped(progress.received),
                grouped(progress.failed)
            );
        }
    })))
}

/// The progress line; dropping it clears it.
struct ProgressLine(tokio::task::JoinHandle<()>);

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.0.abort();
        eprint!("\r\x1b[K");
    }
}

/// Writes run.json where it is wanted and says what became of the run.
fn conclude(report: &Report, target: &Target) -> anyhow::Result<u8> {
    for line in report.correctness.lines() {
        println!("{line}");
    }
    if let Some(generator) = report.generator.as_ref().filter(|generator| generator.saturated) {
        println!(
            "generator saturated: {} of {} requests started over 1 ms late, at worst {:.1} ms; \
             these are not the broker's figures. Lower --rate, or use more --producers",
            grouped(generator.late_requests),
            grouped(generator.requests),
            generator.late_us_max / 1e3
        );
    }
    if let Some(directory) = &target.out {
        report.write(directory)?;
        eprintln!("wrote {}", directory.join("run.json").display());
    }
    Ok(report.exit_code())
}

fn blank_report(
    verb: &'static str,
    parameters: &impl serde::Serialize,
    directory: &std::path::Path,
    correctness: crate::report::Correctness,
) -> anyhow::Result<Report> {
    Ok(Report {
        schema: SCHEMA,
        verb,
        parameters: serde_json::to_value(parameters).context("writing the parameters")?,
        environment: Environment::read(directory),
        produce: None,
        receive: None,
        correctness,
        generator: None,
        raw: None,
    })
}
