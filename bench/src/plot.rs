//! The percentile curve, drawn in characters.
//!
//! Across: percentiles, each column group ten times rarer (50, 90, 99, 99.9, ...). Up: latency, on a
//! logarithmic scale. Nothing but letters and dots, so it survives a log file.

use std::fmt::Write as _;

use crate::record::Latencies;

/// Where the labels below the curve stand.
const LABELS: [(f64, &str); 6] =
    [(0.0, "0"), (90.0, "90"), (99.0, "99"), (99.9, "99.9"), (99.99, "99.99"), (99.999, "99.999")];
const COLUMNS_PER_DECADE: usize = 12;
const COLUMNS: usize = COLUMNS_PER_DECADE * 5 + 1;
const ROWS: usize = 10;

/// One curve and its name.
#[derive(Debug, Clone, Copy)]
pub struct Curve<'a> {
    /// Shown in the legend.
    pub name: &'a str,
    /// What it is drawn with.
    pub mark: char,
    /// Its samples.
    pub latencies: &'a Latencies,
}

/// Draws the curves; empty where there are no samples.
pub fn percentile_curves(curves: &[Curve<'_>]) -> String {
    let curves: Vec<&Curve<'_>> = curves.iter().filter(|c| c.latencies.count() > 0).collect();
    let columns: Vec<Vec<f64>> = curves.iter().map(|curve| heights(curve.latencies)).collect();
    let all = || columns.iter().flatten().copied();
    let lowest = all().fold(f64::INFINITY, f64::min);
    let highest = all().fold(f64::NEG_INFINITY, f64::max);
    if !lowest.is_finite() {
        return String::new();
    }
    // At least a factor of two from bottom to top, so that a flat line is not noise blown up.
    let span = (highest - lowest).max(2f64.ln());
    let mut grid = vec![[' '; COLUMNS]; ROWS];
    for (curve, heights) in curves.iter().zip(&columns) {
        for (column, height) in heights.iter().enumerate() {
            let row = ((height - lowest) / span * (ROWS - 1) as f64).round() as usize;
            grid[ROWS - 1 - row.min(ROWS - 1)][column] = curve.mark;
        }
    }
    render(&grid, lowest, span, &curves)
}

/// ln(latency) at each column's percentile.
fn heights(latencies: &Latencies) -> Vec<f64> {
    (0..COLUMNS).map(|column| (latencies.at_ns(percentile_of(column)).max(1) as f64).ln()).collect()
}

/// Column 0 is the minimum; each decade further is ten times rarer.
fn percentile_of(column: usize) -> f64 {
    100.0 - 100.0 / 10f64.powf(column as f64 / COLUMNS_PER_DECADE as f64)
}

fn render(grid: &[[char; COLUMNS]], lowest: f64, span: f64, curves: &[&Curve<'_>]) -> String {
    let mut text = String::new();
    for (row, cells) in grid.iter().enumerate() {
        let label = if row % 3 == 0 {
            let height = lowest + span * (ROWS - 1 - row) as f64 / (ROWS - 1) as f64;
            duration(height.exp() as u64)
        } else {
            String::new()
        };
        let line: String = cells.iter().collect();
        writeln!(text, "{label:>10} |{}", line.trim_end()).expect("a string takes all");
    }
    writeln!(text, "{:>10} +{}", "", "-".repeat(COLUMNS)).expect("a string takes all");
    let mut labels = String::new();
    for (decade, (_, label)) in LABELS.iter().enumerate() {
        let at = decade * COLUMNS_PER_DECADE;
        write!(labels, "{:width$}{label}", "", width = at - labels.len().min(at))
            .expect("a string takes all");
    }
    writeln!(text, "{:>10}  {labels}  percentile", "").expect("a string takes all");
    let legend: Vec<String> =
        curves.iter().map(|curve| format!("{} {}", curve.mark, curve.name)).collect();
    writeln!(text, "{:>10}  {}", "", legend.join("   ")).expect("a string takes all");
    text
}

/// A duration with three digits and a fitting unit.
pub fn duration(ns: u64) -> String {
    let value = ns as f64;
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (value / 1e3, "µs"),
        1_000_000..1_000_000_000 => (value / 1e6, "ms"),
        _ => (value / 1e9, "s"),
    };
    match value {
        ..10.0 => format!("{value:.2} {unit}"),
        10.0..100.0 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_rises_to_the_right() {
        let mut latencies = Latencies::default();
        for value in 1..100_000u64 {
            latencies.add(value * 100, 1);
        }
        let text = percentile_curves(&[Curve { name: "all", mark: 'o', latencies: &latencies }]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), ROWS + 3, "{text}");
        let first_mark = |line: &str| line.find('o').expect("a mark in this row");
        assert!(first_mark(lines[0]) > first_mark(lines[ROWS - 1]), "{text}");
        assert!(lines[ROWS + 1].contains("99.9"), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= 100), "{text}");
    }

    #[test]
    fn nothing_is_drawn_without_samples() {
        let none = Latencies::default();
        assert_eq!(percentile_curves(&[Curve { name: "none", mark: 'o', latencies: &none }]), "");
    }

    #[test]
    fn a_flat_line_stays_flat() {
        let mut latencies = Latencies::default();
        latencies.add(5_000, 10);
        let text = percentile_curves(&[Curve { name: "flat", mark: '#', latencies: &latencies }]);
        let rows = text.lines().take(ROWS).filter(|line| line.contains('#')).count();
        assert_eq!(rows, 1, "{text}");
    }

    #[test]
    fn durations_have_three_digits() {
        let cases = [
            (999, "999 ns"),
            (1_234, "1.23 µs"),
            (56_780, "56.8 µs"),
            (250_400, "250 µs"),
            (12_345_678, "12.3 ms"),
            (3_000_000_000, "3.00 s"),
        ];
        for (ns, expected) in cases {
            assert_eq!(duration(ns), expected);
        }
    }
}
