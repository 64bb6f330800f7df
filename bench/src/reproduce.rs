//! `reproduce`: measures what is promised again, and writes `bench/RESULTS.md` anew.
//!
//! Each subject is a benchmark of this workspace, run by cargo. Its result is kept in `bench/results` with where, when and of
//! which commit it was taken; the page is written from all that are kept, so that one subject can be measured alone.

use crate::args::Reproduce;
use crate::command::Usage;
use crate::environment::{Environment, since_epoch_ms, utc};
use crate::goals::Outcome;
use crate::goals_plot::picture;
use crate::report::write_json;
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// A benchmark, what it measures, and what it is called with.
struct Subject {
    bench: &'static str,
    /// As the benchmark calls it.
    command: &'static str,
    /// As it is called here: another one where a benchmark runs with other options too.
    name: &'static str,
    what: &'static str,
    options: &'static [&'static str],
}

const fn subject(bench: &'static str, name: &'static str, what: &'static str) -> Subject {
    Subject { bench, command: name, name, what, options: &[] }
}

/// All of them, in the order of the page.
const SUBJECTS: [Subject; 23] = [
    subject("storage", "write", "The log alone against raw O_DIRECT sequential writing"),
    subject(
        "storage",
        "padding",
        "How much of the log is padding with 64 single messages in flight",
    ),
    subject(
        "storage",
        "catch-up",
        "One consumer behind by more than the page cache, against sendfile",
    ),
    subject("storage", "beside", "Appending beside a consumer that catches up"),
    subject("storage", "queues", "10 000 queues against one"),
    subject("storage", "restart", "From start to ready with 10 GiB in the log"),
    Subject {
        options: &["--mib", "10240", "--lookups", "1000"],
        ..subject("storage", "lookup", "Messages by key in 10 GiB with a cold cache")
    },
    subject("storage", "memory", "Memory of a shard with 100 million messages"),
    subject("storage", "filter", "Messages that one core looks at for a filter"),
    subject("storage", "timers", "A million delayed messages: how late, and in what memory"),
    Subject {
        options: &["--loops", "16"],
        ..subject("consuming", "latency", "From due to received, push and pop, beside producing")
    },
    subject("consuming", "throughput", "Pop against push on the same messages"),
    subject(
        "wire",
        "one",
        "One durable message in flight, against a durable write and a round trip",
    ),
    subject(
        "wire",
        "produce",
        "Batches of 100 at full speed, against one stream over the loopback",
    ),
    Subject {
        command: "produce",
        options: &["--batch", "900", "--in-flight", "8"],
        ..subject("wire", "large", "Batches of 1 MiB at full speed")
    },
    subject("wire", "singles", "Single durable messages, 16 connections x 256, against an echo"),
    subject("wire", "tail", "One consumer of what is in memory, against one stream"),
    subject("wire", "connections", "A thousand connections against one"),
    subject("wire", "small", "Messages of 64 bytes in batches of 1000"),
    subject("wire", "cpu", "CPU of the broker for each message"),
    subject("wire", "load", "Tails at 70 % of full speed, beside a consumer that catches up"),
    subject("wire", "idle", "A broker that has nothing to do"),
    subject("wire", "routes", "A name server of 100 000 topics on 10 brokers"),
];

/// A result as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    command: String,
    commit: String,
    measured_at_ms: u64,
    environment: Environment,
    outcome: Outcome,
}

impl Subject {
    /// Where its result is kept.
    fn file(&self) -> String {
        format!("{}-{}.json", self.bench, self.name)
    }

    fn arguments(&self) -> Vec<&'static str> {
        let head = ["bench", "-p", "ringmq-bench", "--bench", self.bench, "--", self.command];
        head.into_iter().chain(self.options.iter().copied()).collect()
    }

    /// Runs the benchmark in a checkout.
    fn measure(&self, args: &Reproduce) -> anyhow::Result<Kept> {
        let out = tempfile::tempdir().context("making a directory for the result")?;
        let command = format!("cargo {}", self.arguments().join(" "));
        eprintln!("{command}");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut run = Command::new(cargo);
        run.current_dir(&args.checkout).args(self.arguments()).arg("--out").arg(out.path());
        if let Some(directory) = &args.dir {
            run.arg("--dir").arg(directory);
        }
        let status = run.status().context("starting cargo")?;
        if !status.success() {
            bail!("{command} ended with {status}");
        }
        Ok(Kept {
            command,
            commit: commit_of(&args.checkout),
            measured_at_ms: since_epoch_ms(),
            environment: Environment::read(args.dir.as_deref().unwrap_or(&args.checkout)),
            outcome: read(&out.path().join(format!("{}-{}.json", self.bench, self.command)))?,
        })
    }
}

/// Measures, and writes the page.
pub(crate) fn run(args: &Reproduce) -> anyhow::Result<()> {
    if args.list {
        for subject in &SUBJECTS {
            println!("{:<12}{}", subject.name, subject.what);
        }
        return Ok(());
    }
    if let Some(unknown) = args.subjects.iter().find(|n| SUBJECTS.iter().all(|s| s.name != **n)) {
        let known: Vec<&str> = SUBJECTS.iter().map(|subject| subject.name).collect();
        let text = format!("there is no {unknown} to measure: there are {}", known.join(", "));
        return Err(Usage(text).into());
    }
    let bench = args.checkout.join("bench");
    if !bench.join("benches").is_dir() {
        let text = format!(
            "{} is no checkout of RingMQ: name one with --checkout",
            args.checkout.display()
        );
        return Err(Usage(text).into());
    }
    let results = bench.join("results");
    let is_wanted = |subject: &&Subject| {
        args.subjects.is_empty() || args.subjects.iter().any(|name| name == subject.name)
    };
    for subject in SUBJECTS.iter().filter(is_wanted) {
        let kept = subject.measure(args)?;
        write_json(&results, &subject.file(), &kept)?;
    }
    let kept = all_kept(&results)?;
    let rows = kept.iter().flat_map(|(subject, kept)| {
        kept.iter().flat_map(|kept| kept.outcome.rows.iter().map(|row| (subject.name, row)))
    });
    let pages = [("RESULTS.md", page(&kept)?), ("results/goals.svg", picture(rows)?)];
    for (name, text) in pages {
        let path = bench.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

/// Every subject, with its result where one is kept.
fn all_kept(results: &Path) -> anyhow::Result<Vec<(&'static Subject, Option<Kept>)>> {
    let kept = |subject: &'static Subject| {
        let path = results.join(subject.file());
        let kept = path.exists().then(|| read(&path)).transpose()?;
        Ok((subject, kept))
    };
    SUBJECTS.iter().map(kept).collect()
}

/// The page of all results that are kept.
fn page(all: &[(&Subject, Option<Kept>)]) -> anyhow::Result<String> {
    let mut text = "# What RingMQ reaches\n\n\
        Written by `ringmq-bench reproduce`; `ringmq-bench reproduce NAME` measures one part again. Both sides of a ratio are \
        measured in turns in one run.\n\n\
        ![How near each figure is to its goal](results/goals.svg)\n"
        .to_owned();
    for (subject, kept) in all {
        writeln!(text, "\n## {}: {}\n", subject.name, subject.what)?;
        let Some(kept) = kept else {
            writeln!(text, "Not measured yet.")?;
            continue;
        };
        writeln!(text, "`{}`, {}, commit {}", kept.command, utc(kept.measured_at_ms), kept.commit)?;
        writeln!(text, "\n{}\n", kept.environment.summary())?;
        text.push_str(&kept.outcome.markdown());
    }
    Ok(text)
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
}

/// Short, with a `+` when something was changed since.
fn commit_of(checkout: &Path) -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(checkout).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ".",
        ":!bench/results",
        ":!bench/RESULTS.md",
    ]);
    let mark = if changed.is_some_and(|changed| !changed.is_empty()) { "+" } else { "" };
    git(&["rev-parse", "--short", "HEAD"]).map_or_else(|| "unknown".to_owned(), |id| id + mark)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goals::Goal;

    #[test]
    fn the_page_says_what_was_measured_and_what_was_not() {
        let results = tempfile::tempdir().unwrap();
        let mut outcome = Outcome::new("write");
        outcome.ratio("fresh blocks", "GB/s", (1.9, 2.0), Goal::AtLeast(0.9));
        let kept = Kept {
            command: "cargo bench".to_owned(),
            commit: "abc".to_owned(),
            measured_at_ms: 0,
            environment: Environment::read(results.path()),
            outcome,
        };
        write_json(results.path(), &SUBJECTS[0].file(), &kept).unwrap();
        let page = page(&all_kept(results.path()).unwrap()).unwrap();
        assert!(page.contains("`cargo bench`, 1970-01-01 00:00:00Z, commit abc"), "{page}");
        assert!(page.contains("| fresh blocks | 1.90 | 2.00 | GB/s | 0.95 | >= 0.9 | holds |"));
        assert_eq!(page.matches("Not measured yet.").count(), SUBJECTS.len() - 1);
    }
}
