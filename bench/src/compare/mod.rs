//! Result B held against result A.
//!
//! Invariants:
//! - repeats of a side are merged through their histograms; no percentile is ever averaged;
//! - every ratio has an interval from resampling ([`bootstrap`]), the same at every call;
//! - worse is only what is worse beyond the interval and beyond the tolerance.

pub mod bootstrap;
mod side;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

pub use side::Side;

use crate::cells;
use crate::outcome::DIRECTIONS;
use crate::plot::duration;
use crate::report::grouped;
use bootstrap::{Estimates, PERCENTILES, Resampled};

/// Samples that must lie beyond a percentile before it is judged: fewer say nothing.
const BEYOND_MIN: f64 = 10.0;

/// What came out.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of compare.json and say it")]
pub struct Comparison {
    pub schema: u32,
    pub before: Vec<String>,
    pub after: Vec<String>,
    pub tolerance_ratio: f64,
    pub resampled: String,
    /// What differs though nothing should; only with --force.
    pub differences: Vec<String>,
    /// What differs about the hosts.
    pub remarks: Vec<String>,
    pub rows: Vec<Row>,
    pub regression: bool,
}

/// One figure of both sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of compare.json and say it")]
pub struct Row {
    pub figure: String,
    pub unit: Unit,
    pub before: f64,
    pub after: f64,
    /// After / before.
    pub ratio: f64,
    /// 95 % of the resampled ratios lie between these; none with too little to resample.
    pub interval: Option<(f64, f64)>,
    pub judgement: Judgement,
}

/// Of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are the values in compare.json and say it")]
pub enum Unit {
    MessagesPerSecond,
    Nanoseconds,
}

/// What a ratio means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Judgement {
    /// Worse beyond interval and tolerance.
    Regression,
    /// Better beyond interval and tolerance.
    Improvement,
    /// Neither.
    Same,
    /// Too few samples to say, or a figure that one sample decides.
    NotJudged,
}

impl Comparison {
    /// Compares two sides whose runs are known to be comparable (or forced to be).
    pub fn of(before: &Side, after: &Side, tolerance: f64) -> Comparison {
        let (mut rows, mut resampled) = (Vec::new(), String::new());
        if let Some(row) = sweep_row(before, after, tolerance) {
            resampled = "nothing: a sweep is as exact as its resolution".to_owned();
            rows.push(row);
        } else {
            for direction in DIRECTIONS {
                let Some((a, b)) = before.samples(direction).zip(after.samples(direction)) else {
                    continue;
                };
                let drawn = bootstrap::resample(&a, &b);
                resampled.clone_from(&drawn.unit);
                rows.extend(rows_of(direction, before, after, &drawn, tolerance));
            }
        }
        let regression = rows.iter().any(|row| row.judgement == Judgement::Regression);
        Comparison {
            schema: crate::report::SCHEMA,
            before: before.names(),
            after: after.names(),
            tolerance_ratio: tolerance,
            resampled,
            differences: before.differences(after),
            remarks: remarks(before, after),
            rows,
            regression,
        }
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(["figure", "A", "B", "B / A", "95 % interval", "verdict"]);
        for row in &self.rows {
            table.add_row(row.words());
        }
        for column in table.column_iter_mut().skip(1).take(4) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string().lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

impl Row {
    fn new(
        figure: String,
        unit: Unit,
        (before, after): (f64, f64),
        interval: Option<(f64, f64)>,
        judged: bool,
        tolerance: f64,
    ) -> Row {
        let ratio = after / before.max(f64::MIN_POSITIVE);
        let judgement = match interval.filter(|_| judged) {
            Some(interval) => judge(unit, ratio, interval, tolerance),
            None => Judgement::NotJudged,
        };
        Row { figure, unit, before, after, ratio, interval, judgement }
    }

    /// A cell for each column.
    pub fn words(&self) -> [String; 6] {
        let shown = |value: f64| match self.unit {
            Unit::MessagesPerSecond => format!("{}/s", grouped(value.round() as u64)),
            Unit::Nanoseconds => duration(value as u64),
        };
        let verdict = match self.judgement {
            Judgement::Regression => "REGRESSION",
            Judgement::Improvement => "better",
            Judgement::Same => "same",
            Judgement::NotJudged => "not judged",
        };
        [
            self.figure.clone(),
            shown(self.before),
            shown(self.after),
            format!("{:.3}", self.ratio),
            self.interval
                .map_or_else(|| "-".to_owned(), |(low, high)| format!("{low:.3} - {high:.3}")),
            verdict.to_owned(),
        ]
    }
}

fn remarks(before: &Side, after: &Side) -> Vec<String> {
    let mut remarks = before.remarks(after);
    if before.names().len().min(after.names().len()) < bootstrap::REPEATS_MIN {
        remarks.push(format!(
            "fewer than {} repeats a side: the intervals do not know how runs differ among each other",
            bootstrap::REPEATS_MIN
        ));
    }
    remarks
}

/// Of latencies less is better, of rates more.
fn judge(unit: Unit, ratio: f64, (low, high): (f64, f64), tolerance: f64) -> Judgement {
    let (greater, smaller) =
        (low > 1.0 && ratio > 1.0 + tolerance, high < 1.0 && ratio < 1.0 - tolerance);
    match (unit, greater, smaller) {
        (_, false, false) => Judgement::Same,
        (Unit::Nanoseconds, true, _) | (Unit::MessagesPerSecond, _, true) => Judgement::Regression,
        _ => Judgement::Improvement,
    }
}

fn rows_of(
    direction: &str,
    before: &Side,
    after: &Side,
    drawn: &Resampled,
    tolerance: f64,
) -> Vec<Row> {
    let interval = |of: &dyn Fn(&Estimates) -> f64| drawn.interval(of);
    let rates = (before.rate(direction), after.rate(direction));
    let rate = interval(&|estimates| estimates.rate);
    let mut rows = vec![Row::new(
        format!("{direction} rate"),
        Unit::MessagesPerSecond,
        rates,
        rate,
        true,
        tolerance,
    )];
    let Some((a, b)) = before.merged(direction).zip(after.merged(direction)) else { return rows };
    for (at, (percentile, name)) in PERCENTILES.iter().enumerate() {
        let of = |cells: &cells::Cells| cells.at_ns(*percentile) as f64;
        let beyond = a.count().min(b.count()) as f64 * (1.0 - percentile / 100.0);
        rows.push(Row::new(
            format!("{direction} {name}"),
            Unit::Nanoseconds,
            (of(&a), of(&b)),
            interval(&|estimates| estimates.at_ns[at] as f64),
            beyond >= BEYOND_MIN,
            tolerance,
        ));
    }
    rows
}

/// Sweeps are compared by what they found; latencies at different rates are not comparable.
fn sweep_row(before: &Side, after: &Side, tolerance: f64) -> Option<Row> {
    let ((a, coarse), (b, also)) = (before.sweep_rate()?, after.sweep_rate()?);
    let (ratio, slack) = (b / a.max(f64::MIN_POSITIVE), 1.0 + coarse.max(also));
    let interval = Some((ratio / slack, ratio * slack));
    let figure = "highest rate".to_owned();
    Some(Row::new(figure, Unit::MessagesPerSecond, (a, b), interval, true, tolerance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worse_is_beyond_interval_and_tolerance() {
        let latency = |ratio, interval| judge(Unit::Nanoseconds, ratio, interval, 0.05);
        assert_eq!(latency(1.20, (1.1, 1.3)), Judgement::Regression);
        assert_eq!(latency(1.20, (0.9, 1.5)), Judgement::Same, "within the interval");
        assert_eq!(latency(1.04, (1.03, 1.05)), Judgement::Same, "within the tolerance");
        assert_eq!(latency(0.80, (0.7, 0.9)), Judgement::Improvement);
        let rate = |ratio, interval| judge(Unit::MessagesPerSecond, ratio, interval, 0.05);
        assert_eq!(rate(0.80, (0.7, 0.9)), Judgement::Regression);
        assert_eq!(rate(1.20, (1.1, 1.3)), Judgement::Improvement);
        assert_eq!(rate(0.97, (0.96, 0.98)), Judgement::Same);
    }

    #[test]
    fn what_is_not_judged_is_no_regression() {
        let row =
            Row::new("p99.9".into(), Unit::Nanoseconds, (1.0, 9.0), Some((8.0, 9.5)), false, 0.0);
        assert_eq!((row.ratio, row.judgement), (9.0, Judgement::NotJudged));
        let row = Row::new("p50".into(), Unit::Nanoseconds, (1.0, 9.0), None, true, 0.0);
        assert_eq!(row.judgement, Judgement::NotJudged);
        assert_eq!(row.words()[4], "-");
    }
}
