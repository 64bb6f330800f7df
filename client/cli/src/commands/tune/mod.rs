//! `tune check`: what on this host spoils latency, and what to do about it.
//!
//! Invariants:
//! - it only reads; every remedy is left to who runs the host;
//! - what cannot be read is `unknown`, never good.

mod cpu;
mod disk;
mod host;
mod memory;

use std::path::Path;

use serde::Serialize;

use crate::args::{Global, TuneCheck, TuneVerb};
use crate::failure::Failure;
use crate::output::{self, Form};
use host::Host;

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Good,
    /// Latency would be better otherwise.
    Warn,
    /// A broker would not work, or not keep what it promises.
    Bad,
    /// This host does not say.
    Unknown,
}

/// What was found of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    state: State,
    found: String,
    why: &'static str,
    remedy: Option<String>,
}

impl Finding {
    fn new(check: &'static str, why: &'static str) -> Finding {
        Finding { check, state: State::Unknown, found: String::new(), why, remedy: None }
    }

    fn good(self, found: impl Into<String>) -> Finding {
        Finding { state: State::Good, found: found.into(), ..self }
    }

    fn warn(self, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { state: State::Warn, found: found.into(), remedy: Some(remedy.into()), ..self }
    }

    fn bad(self, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { state: State::Bad, found: found.into(), remedy: Some(remedy.into()), ..self }
    }

    fn unknown(self, found: impl Into<String>) -> Finding {
        Finding { found: found.into(), ..self }
    }
}

#[derive(Serialize)]
struct Document<'a> {
    directory: String,
    findings: &'a [Finding],
}

pub(super) fn run(verb: &TuneVerb, global: &Global) -> Result<(), Failure> {
    let TuneVerb::Check(args) = verb;
    let findings = check(args)?;
    match global.output {
        Form::Json => {
            let directory = args.dir.display().to_string();
            output::json("tune", &Document { directory, findings: &findings })?;
        }
        form => output::print(&text(&findings, form == Form::Wide))?,
    }
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    match count(State::Bad) {
        0 => Ok(()),
        bad => Err(Failure::new(
            format!("{bad} of {} findings keep a broker from working well here", findings.len()),
            "the remedy below each of them",
        )),
    }
}

fn check(args: &TuneCheck) -> Result<Vec<Finding>, Failure> {
    let host = Host::at(&args.root);
    let directory = match args.root.as_path() == Path::new("/") {
        true => nearest(&args.dir)?,
        false => args.dir.clone(),
    };
    let mount = host.mount_of(&directory);
    let mut findings = vec![memory::kernel(&host), memory::io_uring(&host)];
    findings.extend(disk::checks(&host, mount.as_ref(), &directory));
    findings.extend(cpu::checks(&host, args.cpus.as_ref()));
    findings.extend(memory::checks(&host));
    Ok(findings)
}

/// The directory itself, or the nearest one above that exists: where it would be made.
fn nearest(directory: &Path) -> Result<std::path::PathBuf, Failure> {
    let absolute = std::path::absolute(directory)?;
    let there = absolute.ancestors().find_map(|path| path.canonicalize().ok());
    there.ok_or_else(|| {
        Failure::usage(format!("{} is nowhere", directory.display()), "name a directory")
    })
}

/// A line for each finding; below what is not good, why it matters and what to do.
fn text(findings: &[Finding], wide: bool) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let state = match finding.state {
            State::Good => "good",
            State::Warn => "WARN",
            State::Bad => "BAD",
            State::Unknown => "-",
        };
        let (check, found) = (finding.check, &finding.found);
        text.push_str(&format!("{state:<5} {check:<width$}  {found}\n"));
        let explained = wide || matches!(finding.state, State::Warn | State::Bad);
        if explained {
            text.push_str(&format!("{:width$}        why     {}\n", "", finding.why));
        }
        if let Some(remedy) = &finding.remedy {
            text.push_str(&format!("{:width$}        remedy  {remedy}\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests;
