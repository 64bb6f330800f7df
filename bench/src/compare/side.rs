//! One side of a comparison: a result, or several repeats of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::bootstrap::{Drawn, Samples};
use crate::cells::Cells;
use crate::outcome::{Outcome, RUN_FILE, Track};
use crate::record::Latencies;
use crate::report::{Figures, Report};

/// Parameters that may differ: where things are and what they are called, not what was done.
const FREE: [&str; 8] =
    ["namesrv", "topic", "out", "dir", "broker_pid", "group", "file", "no_check"];

/// A result or repeats of it.
#[derive(Debug, Clone)]
pub struct Side {
    runs: Vec<(String, Outcome)>,
}

impl Side {
    /// Reads `A`, `A1,A2` or a directory of results.
    pub fn read(text: &str) -> anyhow::Result<Side> {
        let mut runs = Vec::new();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            for path in results(Path::new(name))? {
                let outcome = Outcome::read(&path)?;
                runs.push((path.display().to_string(), outcome));
            }
        }
        if runs.is_empty() {
            bail!("\"{text}\" names no result: say a directory with a {RUN_FILE}");
        }
        Ok(Side { runs })
    }

    /// Of outcomes that are there already.
    pub fn of(runs: Vec<(String, Outcome)>) -> Side {
        Side { runs }
    }

    /// Where the runs are from.
    pub fn names(&self) -> Vec<String> {
        self.runs.iter().map(|(name, _)| name.clone()).collect()
    }

    /// The first run's report.
    pub fn first(&self) -> &Report {
        &self.runs[0].1.report
    }

    /// Parameters in which any run differs from this side's first, `key: value, there value`.
    pub fn differences(&self, other: &Side) -> Vec<String> {
        let expected = parameters(self.first());
        let mut differences = BTreeMap::new();
        for (_, outcome) in self.runs.iter().chain(&other.runs) {
            let found = parameters(&outcome.report);
            for key in expected.keys().chain(found.keys()) {
                let (ours, theirs) = (shown(expected.get(key)), shown(found.get(key)));
                if ours != theirs {
                    differences.insert(key.clone(), format!("{key}: {ours} and {theirs}"));
                }
            }
        }
        differences.into_values().collect()
    }

    /// Runs that lost messages or whose generator was saturated: their figures are not the system's.
    pub fn unfit(&self) -> Vec<String> {
        let unfit = |(name, outcome): &(String, Outcome)| match outcome.report.exit_code() {
            // A sweep ends with a step that is what it is; what counts is whether it has an answer.
            _ if outcome
                .report
                .sweep
                .as_ref()
                .is_some_and(|sweep| sweep.messages_per_second.is_some()) =>
            {
                None
            }
            _ if outcome.report.sweep.is_some() => {
                Some(format!("{name}: the search found no rate"))
            }
            0 => None,
            3 => Some(format!("{name}: the generator was saturated")),
            _ => Some(format!("{name}: messages were at fault or sends failed")),
        };
        self.runs.iter().filter_map(unfit).collect()
    }

    /// What is different about the hosts.
    pub fn remarks(&self, other: &Side) -> Vec<String> {
        let (a, b) = (&self.first().environment, &other.first().environment);
        let cores = |cores: usize| cores.to_string();
        let pairs = [
            ("kernel", a.kernel.clone(), b.kernel.clone()),
            ("cpu", a.cpu.clone(), b.cpu.clone()),
            ("cores", cores(a.cores), cores(b.cores)),
            ("file system", a.disk_filesystem.clone(), b.disk_filesystem.clone()),
            ("disk", a.disk_device.clone(), b.disk_device.clone()),
            ("optimised build", a.optimised.to_string(), b.optimised.to_string()),
        ];
        let mut remarks: Vec<String> = pairs
            .into_iter()
            .filter(|(_, a, b)| a != b)
            .map(|(what, a, b)| format!("the hosts differ in {what}: {a} and {b}"))
            .collect();
        if !a.optimised && !b.optimised {
            remarks.push("the client is a debug build on both sides".to_owned());
        }
        remarks
    }

    /// Messages per second of all runs together.
    pub fn rate(&self, direction: &str) -> f64 {
        let figures = || self.runs.iter().filter_map(|(_, run)| figures(&run.report, direction));
        let messages: u64 = figures().map(|figures| figures.messages).sum();
        let ms: f64 = figures().map(|figures| figures.measured_ms).sum();
        messages as f64 / (ms / 1e3).max(f64::MIN_POSITIVE)
    }

    /// Response times of all runs together; `None` where there are none.
    pub fn merged(&self, direction: &str) -> Option<Cells> {
        self.latencies(direction).map(|latencies| latencies.cells())
    }

    /// The same as a histogram.
    pub fn latencies(&self, direction: &str) -> Option<Latencies> {
        let mut merged = Latencies::default();
        for (_, outcome) in &self.runs {
            merged.merge(&track(outcome, direction)?.response);
        }
        Some(merged)
    }

    /// What is resampled; `None` where a run has not this direction.
    pub fn samples(&self, direction: &str) -> Option<Samples> {
        let run = |(_, outcome): &(String, Outcome)| {
            let figures = figures(&outcome.report, direction)?;
            Some(match track(outcome, direction) {
                // Between the slices of a run in turns with raw measurements nothing was sent.
                Some(track) => seconds_of(track, outcome.report.raw.is_none()),
                None => seconds_without_latency(figures),
            })
        };
        let runs: Option<Vec<Vec<Drawn>>> = self.runs.iter().map(run).collect();
        Some(Samples { runs: runs? })
    }

    /// What sweeps found, on average, and how exactly; `None` where a run is no sweep or found nothing.
    pub fn sweep_rate(&self) -> Option<(f64, f64)> {
        let found = |(_, run): &(String, Outcome)| {
            let rate = run.report.sweep.as_ref()?.messages_per_second?;
            Some((rate as f64, run.report.parameters["resolution_ratio"].as_f64()?))
        };
        let all: Option<Vec<(f64, f64)>> = self.runs.iter().map(found).collect();
        let all = all?;
        let mean = all.iter().map(|(rate, _)| rate).sum::<f64>() / all.len() as f64;
        Some((mean, all.iter().map(|(_, resolution)| *resolution).fold(0.0, f64::max)))
    }
}

fn figures<'a>(report: &'a Report, direction: &str) -> Option<&'a Figures> {
    match direction {
        "produce" => report.produce.as_ref(),
        _ => report.receive.as_ref(),
    }
}

fn track<'a>(outcome: &'a Outcome, direction: &str) -> Option<&'a Track> {
    outcome.tracks.iter().find(|track| track.direction == direction)
}

/// Whole seconds: the first and the last are parts of one, unless there are no others. One in which
/// nothing came counts with nothing, if `with_empty`.
fn seconds_of(track: &Track, with_empty: bool) -> Vec<Drawn> {
    let mut seconds = Vec::new();
    let Some(first) = track.intervals.first() else { return seconds };
    let mut next = first.second;
    for interval in &track.intervals {
        while with_empty && next < interval.second {
            seconds.push(Drawn { seconds: 1.0, ..Drawn::default() });
            next += 1;
        }
        let messages = interval.response.count();
        seconds.push(Drawn { cells: interval.response.clone(), messages, seconds: 1.0 });
        next = interval.second + 1;
    }
    without_edges(seconds)
}

fn seconds_without_latency(figures: &Figures) -> Vec<Drawn> {
    let second = |messages| Drawn { messages, seconds: 1.0, ..Drawn::default() };
    without_edges(figures.seconds.iter().map(|at| second(at.messages)).collect())
}

fn without_edges(mut seconds: Vec<Drawn>) -> Vec<Drawn> {
    if seconds.len() > 2 {
        seconds.pop();
        seconds.remove(0);
    }
    seconds
}

/// A directory's own result, or those of the directories in it.
fn results(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() || path.join(RUN_FILE).is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("reading {}", path.display()))?;
    let mut inner: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join(RUN_FILE).is_file())
        .collect();
    inner.sort();
    if inner.is_empty() {
        bail!("{} has no {RUN_FILE}, nor has a directory in it", path.display());
    }
    Ok(inner)
}

/// What was done, flat: `workload.topics` beside `size_bytes`.
fn parameters(report: &Report) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::from([("verb".to_owned(), Value::from(report.verb.as_str()))]);
    flatten(&report.parameters, "", &mut flat);
    flat.retain(|key, _| !FREE.contains(&key.as_str()));
    flat
}

fn flatten(value: &Value, prefix: &str, to: &mut BTreeMap<String, Value>) {
    let Value::Object(map) = value else {
        to.insert(prefix.to_owned(), value.clone());
        return;
    };
    for (key, value) in map {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        flatten(value, &name, to);
    }
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "none".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Interval;

    #[test]
    fn parameters_are_flat_and_places_are_none_of_them() {
        let mut flat = BTreeMap::new();
        flatten(&serde_json::json!({"a": 1, "workload": {"topics": 2}, "out": "x"}), "", &mut flat);
        let names: Vec<&str> = flat.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "out", "workload.topics"]);
        assert!(FREE.contains(&"out") && !FREE.contains(&"workload.topics"));
    }

    #[test]
    fn a_stall_counts_and_parts_of_seconds_do_not() {
        let mut one = Latencies::default();
        one.add(1_000, 5);
        let interval = |second| Interval { second, response: one.cells() };
        let intervals = [2, 3, 5, 6].map(interval).to_vec();
        let track = Track { direction: "produce", response: one.clone(), service: None, intervals };
        let messages = |with_empty| -> Vec<u64> {
            seconds_of(&track, with_empty).iter().map(|second| second.messages).collect()
        };
        assert_eq!(messages(true), [5, 0, 5]);
        assert_eq!(messages(false), [5, 5]);
    }
}
