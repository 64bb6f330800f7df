//! What a run came to: the table on stdout and `run.json`.
//!
//! `run.json` is a contract: `"schema": 1`, raw numbers, units in the keys.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use crate::check::Faults;
use crate::cpu::Cpu;
use crate::environment::Environment;
use crate::limits::kept;
use crate::plot::duration;
use crate::record::{Latencies, LatencyFigures, PERCENTILES, Recorder, SecondFigures};
use crate::run::Run;
use crate::schedule::Punctuality;
use crate::shares::Share;
use crate::sweep::Sweep;

/// Version of the files' shape.
pub const SCHEMA: u32 = 1;

/// Everything about a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the keys of run.json and say it")]
pub struct Report {
    pub schema: u32,
    pub verb: String,
    pub parameters: serde_json::Value,
    pub environment: Environment,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub produce: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive: Option<Figures>,
    pub correctness: Correctness,
    /// When the warm-up ended, on the clock of the seconds.
    pub measured_from_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generator: Option<Generator>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<Raw>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// What disk and loopback do by themselves; `null` when that was not measured.
    pub limits: Option<kept::Used>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub shares: Vec<Share>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sweep: Option<Sweep>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog: Option<Backlog>,
}

/// A backlog that was built while consumers stood still, and drained.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the keys of run.json and say it")]
pub struct Backlog {
    pub wanted_bytes: u64,
    pub reached_bytes: u64,
    pub build_ms: f64,
    pub drain_ms: f64,
    pub drain_messages_per_second: f64,
}

/// Rates and latencies of one direction.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the keys of run.json and say it")]
pub struct Figures {
    pub messages: u64,
    pub bytes: u64,
    pub measured_ms: f64,
    pub messages_per_second: f64,
    pub bytes_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<LatencyFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<LatencyFigures>,
    pub seconds: Vec<SecondFigures>,
}

impl Figures {
    /// The figures of `recorder` over `measured_ns` of load.
    pub fn of(recorder: &mut Recorder, measured_ns: u64) -> Figures {
        let seconds = measured_ns.max(1) as f64 / 1e9;
        Figures {
            messages: recorder.messages(),
            bytes: recorder.bytes(),
            measured_ms: measured_ns as f64 / 1e6,
            messages_per_second: recorder.messages() as f64 / seconds,
            bytes_per_second: recorder.bytes() as f64 / seconds,
            response: Some(recorder.response.figures()),
            service: Some(recorder.service.figures()),
            seconds: recorder.seconds().to_vec(),
        }
    }
}

impl Figures {
    /// Leaves out latencies that mean nothing: they count from another process's due times.
    pub fn without_latency(&mut self) {
        (self.response, self.service) = (None, None);
        for second in &mut self.seconds {
            (second.p50_us, second.p99_us, second.max_us) = (0.0, 0.0, 0.0);
        }
    }
}

/// Whether everything arrived.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the keys of run.json and say it")]
pub struct Correctness {
    pub checked: bool,
    pub sent: u64,
    pub acknowledged: u64,
    pub received: u64,
    pub failed: u64,
    pub foreign: u64,
    pub first_failure: Option<String>,
    #[serde(flatten)]
    pub faults: Faults,
}

impl Correctness {
    /// Judges `run`. Without a receiver nothing can be said about what is stored.
    pub fn of(run: &Run, checked: bool) -> Correctness {
        let progress = run.progress();
        let (mut acknowledged, mut received, mut foreign) = (0, 0, 0);
        let mut faults = Faults::default();
        let (checkers, per_topic) = run.checkers();
        for (at, mut shared) in checkers.enumerate() {
            let empty = crate::check::Checker::of_any_run(None);
            let checker = std::mem::replace(&mut *shared, empty);
            // All subscriptions of a topic know the same messages as acknowledged.
            acknowledged += if at % per_topic == 0 { checker.acknowledged() } else { 0 };
            received += checker.received();
            foreign += checker.foreign();
            if checked {
                faults.merge(checker.finish());
            }
        }
        Correctness {
            checked,
            sent: progress.sent,
            acknowledged,
            received,
            failed: progress.failed,
            foreign,
            first_failure: run.first_failure().map(|error| error_chain(&error)),
            faults,
        }
    }

    /// Whether nothing was lost, doubled, disordered, damaged, and no send failed.
    pub fn is_clean(&self) -> bool {
        self.faults.is_clean() && self.failed == 0
    }

    /// One line, and one for each kind of fault.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![if self.checked {
            format!(
                "{} acknowledged, {} received: {}",
                grouped(self.acknowledged),
                grouped(self.received),
                if self.faults.is_clean() {
                    "nothing lost, doubled, out of order or damaged".to_owned()
                } else {
                    self.faults.to_string()
                }
            )
        } else {
            format!("{} acknowledged; what is stored was not read back", grouped(self.acknowledged))
        }];
        lines.extend(self.faults.examples.iter().map(|example| format!("  {example}")));
        if self.failed > 0 {
            let first = self.first_failure.as_deref().unwrap_or("no reason given");
            lines.push(format!("{} sends failed, the first: {first}", grouped(self.failed)));
        }
        lines
    }
}

/// How well the open loop kept its schedule.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the keys of run.json and say it")]
pub struct Generator {
    pub requests: u64,
    pub late_requests: u64,
    /// Of the late ones, those that waited because the client's window was full.
    pub held_back_requests: u64,
    pub late_us_max: f64,
    pub saturated: bool,
}

impl From<Punctuality> for Generator {
    fn from(punctuality: Punctuality) -> Generator {
        Generator {
            requests: punctuality.started,
            late_requests: punctuality.late,
            held_back_requests: punctuality.held_back,
            late_us_max: punctuality.late_ns_max as f64 / 1e3,
            saturated: punctuality.is_saturated(),
        }
    }
}

/// Raw disk and loopback of the same minutes, and what the run's figure is to their sum.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the keys of run.json and say it")]
pub struct Raw {
    pub durable_write_4kib: LatencyFigures,
    pub loopback_round_trip_256b_two_cpus: LatencyFigures,
    pub loopback_round_trip_256b_one_cpu: LatencyFigures,
    pub service_p50_to_durable_write_and_round_trip_two_cpus_ratio: f64,
    pub service_p50_to_durable_write_and_round_trip_one_cpu_ratio: f64,
}

impl Raw {
    /// Holds a run's median against the sums of medians: write and round trip.
    pub fn of(
        durable_write: &Latencies,
        on_two_cpus: &Latencies,
        on_one_cpu: &Latencies,
        service: &Latencies,
    ) -> Raw {
        let p50_us = |latencies: &Latencies| latencies.at_ns(50.0) as f64 / 1e3;
        let ratio = |round_trip: &Latencies| {
            let sum = p50_us(durable_write) + p50_us(round_trip);
            p50_us(service) / sum.max(f64::MIN_POSITIVE)
        };
        Raw {
            durable_write_4kib: durable_write.figures(),
            loopback_round_trip_256b_two_cpus: on_two_cpus.figures(),
            loopback_round_trip_256b_one_cpu: on_one_cpu.figures(),
            service_p50_to_durable_write_and_round_trip_two_cpus_ratio: ratio(on_two_cpus),
            service_p50_to_durable_write_and_round_trip_one_cpu_ratio: ratio(on_one_cpu),
        }
    }

    /// The ratios, for people.
    pub fn line(&self) -> String {
        format!(
            "service p50 is {:.2} x (raw durable write + loopback round trip between two CPUs), \
             {:.2} x with the round trip on one CPU",
            self.service_p50_to_durable_write_and_round_trip_two_cpus_ratio,
            self.service_p50_to_durable_write_and_round_trip_one_cpu_ratio
        )
    }
}

impl Report {
    /// 0: clean; 1: faults or failures; 3: clean, but the generator could not keep its schedule.
    pub fn exit_code(&self) -> u8 {
        match &self.generator {
            _ if !self.correctness.is_clean() => 1,
            Some(generator) if generator.saturated => 3,
            _ => 0,
        }
    }
}

/// Writes a file of JSON for people to read.
pub fn write_json(directory: &Path, name: &str, value: &impl Serialize) -> anyhow::Result<()> {
    let path = directory.join(name);
    let text = serde_json::to_string_pretty(value).context("writing JSON")?;
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(&path, text + "\n"))
        .with_context(|| format!("writing {}", path.display()))
}

/// A table of percentiles, a line for each of `rows` that has samples.
pub fn latency_table(rows: &[(&str, &Latencies)]) -> String {
    let figures: Vec<(&str, LatencyFigures)> = rows
        .iter()
        .filter(|(_, latencies)| latencies.count() > 0)
        .map(|(name, latencies)| (*name, latencies.figures()))
        .collect();
    let rows: Vec<(&str, &LatencyFigures)> = figures.iter().map(|(name, f)| (*name, f)).collect();
    figures_table(&rows)
}

/// The same of figures.
pub fn figures_table(rows: &[(&str, &LatencyFigures)]) -> String {
    let mut table = plain_table();
    let mut header = vec!["latency"];
    header.extend(PERCENTILES.iter().map(|(_, name)| *name));
    table.set_header(header);
    for (name, f) in rows {
        let percentiles = [f.p50_us, f.p90_us, f.p99_us, f.p99_9_us, f.p99_99_us, f.max_us];
        let mut row = vec![(*name).to_owned()];
        row.extend(percentiles.iter().map(|us| duration((us * 1e3) as u64)));
        table.add_row(row);
    }
    right_aligned(table)
}

/// A table of rates, a line for each of `rows`.
pub fn rate_table(rows: &[(&str, &Figures)]) -> String {
    let mut table = plain_table();
    table.set_header(["rate", "messages", "seconds", "messages/s", "MB/s"]);
    for (name, figures) in rows {
        table.add_row([
            (*name).to_owned(),
            grouped(figures.messages),
            format!("{:.2}", figures.measured_ms / 1e3),
            grouped(figures.messages_per_second as u64),
            format!("{:.1}", figures.bytes_per_second / 1e6),
        ]);
    }
    right_aligned(table)
}

/// RingMQ's figures as shares of what disk and loopback do by themselves.
pub fn shares_table(limits: Option<&kept::Used>, shares: &[Share]) -> String {
    let Some(limits) = limits else {
        return "shares of the limits: not measured (`ringmq-bench limits`, or --with-limits)\n"
            .to_owned();
    };
    let mut table = plain_table();
    table.set_header(["share of the limits", "RingMQ", "bare", "ratio", "bare is"]);
    for share in shares {
        let [ours, bare, ratio] = share.words();
        table.add_row([share.figure.clone(), ours, bare, ratio, share.limit.clone()]);
    }
    let text = aligned(table, 1..4);
    format!("{text}limits: {}\n", limits.words())
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
}

fn right_aligned(mut table: Table) -> String {
    let columns = table.column_count();
    aligned(table, 1..columns)
}

fn aligned(mut table: Table, right: std::ops::Range<usize>) -> String {
    for at in right {
        if let Some(column) = table.column_mut(at) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string().lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// `1 234 567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// An error and its causes in one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Sample;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1 234 567");
    }

    #[test]
    fn tables_show_every_percentile() {
        let mut recorder = Recorder::new(0);
        for at in 1..=1_000u64 {
            let sample =
                Sample { due_ns: 0, sent_ns: 0, done_ns: at * 1_000, messages: 1, bytes: 1024 };
            recorder.note(sample);
        }
        let table = latency_table(&[("produce", &recorder.response)]);
        assert!(table.contains("p99.99") && table.contains("500 µs"), "{table}");
        let figures = Figures::of(&mut recorder, 2_000_000_000);
        assert_eq!(figures.messages_per_second, 500.0);
        assert!(rate_table(&[("produce", &figures)]).contains("500"), "one line of rates");
    }

    #[test]
    fn the_ratio_is_to_the_sum_of_medians() {
        let at = |ns| {
            let mut latencies = Latencies::default();
            latencies.add(ns, 1);
            latencies
        };
        let raw = Raw::of(&at(120_000), &at(50_000), &at(8_000), &at(255_000));
        let near = |ratio: f64, expected: f64| (ratio - expected).abs() < 0.01;
        assert!(near(raw.service_p50_to_durable_write_and_round_trip_two_cpus_ratio, 1.5));
        assert!(near(raw.service_p50_to_durable_write_and_round_trip_one_cpu_ratio, 1.99));
    }
}
