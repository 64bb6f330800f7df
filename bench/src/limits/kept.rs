//! Limits that were measured before: the newest `limits.json` beside a result, or the one that this host
//! keeps in its cache.
//!
//! Invariants:
//! - figures of another kernel, processor or number of cores are never held against a result;
//! - whoever shows them says when they were measured.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Limits;
use crate::environment::{Environment, since_epoch_ms, utc};
use crate::report::{SCHEMA, write_json};

/// Name of the file, beside results and in the cache.
pub const FILE: &str = "limits.json";

/// A `limits.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Document {
    /// Version of the file's shape.
    pub schema: u32,
    /// Where and when.
    pub environment: Environment,
    /// The figures.
    #[serde(flatten)]
    pub limits: Limits,
}

/// Limits that a report is held against, and where they are from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Used {
    /// `interleaved` with the run, or the file.
    pub source: String,
    /// When they were measured.
    pub measured_at_ms: u64,
    /// The figures.
    #[serde(flatten)]
    pub limits: Limits,
}

/// Where this host keeps its limits; `None` without a home.
pub fn cache_directory() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(cache.join("ringmq-bench"))
}

/// Keeps figures in each of `directories`.
pub fn keep(document: &Document, directories: &[&Path]) -> anyhow::Result<()> {
    directories.iter().try_for_each(|directory| write_json(directory, FILE, document))
}

impl Document {
    /// Figures of now.
    pub fn new(environment: Environment, limits: Limits) -> Document {
        Document { schema: SCHEMA, environment, limits }
    }
}

impl Used {
    /// Of figures that were measured in turns with a run.
    pub fn interleaved(limits: Limits) -> Used {
        Used { source: INTERLEAVED.to_owned(), measured_at_ms: since_epoch_ms(), limits }
    }

    /// Where the figures are from and how old they are.
    pub fn words(&self) -> String {
        if self.source == INTERLEAVED {
            return "measured in turns with the run".to_owned();
        }
        let minutes = since_epoch_ms().saturating_sub(self.measured_at_ms) / 60_000;
        let age = match minutes {
            0..120 => format!("{minutes} min"),
            120..2_880 => format!("{} h", minutes / 60),
            _ => format!("{} days", minutes / 1_440),
        };
        format!("measured {age} ago, {} ({})", utc(self.measured_at_ms), self.source)
    }
}

const INTERLEAVED: &str = "interleaved";

/// The newest figures of this kind of host in `directories`; what cannot be read is not there.
pub fn find(here: &Environment, directories: &[&Path]) -> Option<Used> {
    let found = directories.iter().filter_map(|directory| {
        let path = directory.join(FILE);
        let document: Document = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        let there = &document.environment;
        let same = |host: &Environment| (host.cpu.clone(), host.cores, host.kernel.clone());
        (document.schema == SCHEMA && same(there) == same(here)).then(|| Used {
            source: path.display().to_string(),
            measured_at_ms: there.started_at_ms,
            limits: document.limits,
        })
    });
    found.max_by_key(|used| used.measured_at_ms)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::record::Latencies;

    /// Some figures: 120 µs, 50 µs, 8 µs, 2 GB/s, 4 GB/s, 1 GB/s.
    pub(crate) fn figures() -> Limits {
        let at = |ns| {
            let mut latencies = Latencies::default();
            latencies.add(ns, 1);
            latencies.figures()
        };
        Limits {
            durable_write_4kib: at(120_000),
            sequential_write_1mib_qd4_bytes_per_second: 2e9,
            loopback_round_trip_256b_two_cpus: at(50_000),
            loopback_round_trip_256b_one_cpu: at(8_000),
            loopback_one_stream_bytes_per_second: 4e9,
            sendfile_cold_bytes_per_second: Some(1e9),
        }
    }

    #[test]
    fn the_newest_of_this_host_is_found() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let here = Environment::read(Path::new("."));
        let mut at = Document::new(here.clone(), figures());
        assert!(find(&here, &[old.path()]).is_none());
        for (directory, when) in [(&old, 5), (&new, 9)] {
            at.environment.started_at_ms = when;
            keep(&at, &[directory.path()]).unwrap();
        }
        let used = find(&here, &[new.path(), old.path()]).unwrap();
        assert_eq!((used.measured_at_ms, used.limits.clone()), (9, figures()));
        assert!(used.source.contains(&new.path().display().to_string()));
        at.environment.kernel = "another".to_owned();
        keep(&at, &[new.path()]).unwrap();
        assert_eq!(find(&here, &[new.path(), old.path()]).unwrap().measured_at_ms, 5);
    }
}
