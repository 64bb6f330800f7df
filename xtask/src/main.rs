//! Tasks of RingMQ's own development: `cargo xtask <task>`.
//!
//! Each runs the commands that a person would, prints them first, and ends with their exit code.

mod codegen;
mod faults;

use anyhow::{Context, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const USAGE: &str = "\
Usage: cargo xtask <task>

  check            formatting, clippy, documentation, tests: what .ci/run asks for first
  sim [SEED...]    the simulated world; with seeds, each is replayed with its trace
  codegen          makes schema/src/generated from schema/fbs again (needs flatc 25.x)
  dev [ARG...]     name server and broker that stay up, data in ./ringmq-data
  faults           the suite that needs root and Debian packages; names what is missing
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let task = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let result = match task.as_str() {
        "check" => none(&rest).and_then(|()| check()),
        "sim" => sim(&rest),
        "codegen" => none(&rest).and_then(|()| codegen::run()),
        "dev" => dev(&rest),
        "faults" => faults::run(&rest),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            Ok(())
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {task}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn none(args: &[String]) -> anyhow::Result<()> {
    ensure!(args.is_empty(), "no arguments are taken, not {}", args.join(" "));
    Ok(())
}

fn check() -> anyhow::Result<()> {
    run(cargo(&["fmt", "--all", "--", "--check"]))?;
    run(cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let mut doc = cargo(&["doc", "--workspace", "--no-deps"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    run(doc)?;
    run(cargo(&["test", "--workspace"]))
}

fn sim(seeds: &[String]) -> anyhow::Result<()> {
    let simulation = || {
        cargo(&[
            "test",
            "--release",
            "-p",
            "ringmq-tests",
            "--test",
            "simulation",
            "--",
            "--nocapture",
        ])
    };
    for seed in seeds {
        let _: u64 = seed.parse().with_context(|| format!("{seed:?} is no seed: give a number"))?;
    }
    for seed in seeds {
        println!("RINGMQ_SIM_SEED={seed}");
        let mut command = simulation();
        command.env("RINGMQ_SIM_SEED", seed);
        run(command)?;
    }
    if seeds.is_empty() { run(simulation()) } else { Ok(()) }
}

fn dev(args: &[String]) -> anyhow::Result<()> {
    let mut command = cargo(&["run", "--release", "--bin", "ringmq", "--", "dev"]);
    command.args(args);
    run(command)
}

/// The workspace's directory.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// The cargo that runs this, in the workspace.
fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

fn run(mut command: Command) -> anyhow::Result<()> {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let line = words.join(" ");
    println!("$ {line}");
    let status = command.status().with_context(|| format!("starting {line}"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}
