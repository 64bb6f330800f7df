//! The tables of a report.

use serde_json::Value;

use super::charts::us;
use crate::environment::Environment;
use crate::outcome::Outcome;
use crate::record::{Latencies, PERCENTILES};
use crate::report::{Report, grouped};
use crate::sweep::Sweep;

/// Names and values, those of inner objects behind their name.
pub(super) fn parameters(value: &Value) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    flatten(value, "", &mut rows);
    rows
}

fn flatten(value: &Value, prefix: &str, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::Object(map) => {
            for (key, value) in map {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(value, &name, rows);
            }
        }
        Value::String(text) => rows.push((prefix.to_owned(), text.clone())),
        other => rows.push((prefix.to_owned(), other.to_string())),
    }
}

pub(super) fn environment(of: &Environment) -> Vec<(String, String)> {
    let gib = of.memory_bytes as f64 / f64::from(1 << 30);
    [
        ("kernel", of.kernel.clone()),
        ("CPU", format!("{} cores of {}", of.cores, of.cpu)),
        ("memory", format!("{gib:.1} GiB")),
        ("disk", format!("{} on {}, holding {}", of.disk_filesystem, of.disk_device, of.directory)),
        (
            "client",
            format!("{}, {}", of.client_version, if of.optimised { "release" } else { "debug" }),
        ),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

pub(super) fn correctness(report: &Report) -> Vec<(String, String)> {
    let of = &report.correctness;
    let mut rows = vec![("sent".to_owned(), grouped(of.sent))];
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    row("acknowledged", grouped(of.acknowledged));
    if of.checked {
        row("received", grouped(of.received));
        row("faults", of.faults.to_string());
    }
    row("failed", grouped(of.failed));
    if let Some(reason) = &of.first_failure {
        row("first failure", reason.clone());
    }
    for example in &of.faults.examples {
        row("example", example.clone());
    }
    if let Some(generator) = &report.generator {
        let (late, all) = (grouped(generator.late_requests), grouped(generator.requests));
        row(
            "over 1 ms late",
            format!("{late} of {all} requests, at worst {}", us(generator.late_us_max)),
        );
    }
    if let Some(held) = report.generator.as_ref().map(|g| g.held_back_requests).filter(|n| *n > 0) {
        row("held back by a full window", grouped(held));
    }
    if let Some(backlog) = &report.backlog {
        row("backlog", backlog.line());
    }
    rows
}

pub(super) fn percentiles(outcome: &Outcome) -> Vec<Vec<String>> {
    let row = |name: &str, latencies: &Latencies| {
        let figures = latencies.figures();
        let mut cells = vec![name.to_owned(), grouped(figures.samples), us(figures.mean_us)];
        cells.extend(PERCENTILES.map(|(at, _)| us(latencies.at_ns(at) as f64 / 1e3)));
        cells
    };
    let mut rows = Vec::new();
    for track in &outcome.tracks {
        let name = if track.direction == "produce" { "produce response" } else { "end to end" };
        rows.push(row(name, &track.response));
        rows.extend(track.service.as_ref().map(|service| row("produce service", service)));
    }
    rows
}

pub(super) fn steps(sweep: &Sweep) -> Vec<Vec<String>> {
    let row = |step: &crate::sweep::Step| {
        let achieved = grouped(step.achieved_messages_per_second.round() as u64);
        let mut cells = vec![grouped(step.messages_per_second), achieved];
        let figures = step.response.as_ref();
        let all = figures.map(|f| [f.p50_us, f.p99_us, f.p99_9_us, f.max_us]);
        cells.extend(all.map_or_else(|| vec!["-".to_owned(); 4], |all| all.map(us).to_vec()));
        cells.extend([grouped(step.late_requests), step.words()]);
        cells
    };
    sweep.steps.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_flat_and_nothing_is_left_out_but_none() {
        let value = serde_json::json!({"a": 1, "b": null, "c": {"d": "x<y", "e": [1, 2]}});
        let rows = parameters(&value);
        let expected = [("a", "1"), ("c.d", "x<y"), ("c.e", "[1,2]")];
        assert_eq!(rows, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }
}
