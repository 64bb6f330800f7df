//! What a benchmark found: figures, what they are held against, and whether that holds.
//!
//! A goal is a ratio wherever one can be had: both sides are measured in turns in one run, because a machine drifts by
//! more than what is asked.

use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

/// What is asked of a figure, or of its ratio when it is held against another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// At least so much.
    AtLeast(f64),
    /// At most so much.
    AtMost(f64),
    /// Nothing; said for comparison.
    Shown,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// RingMQ's figure, in `unit`.
    pub figure: f64,
    /// What it is held against, in the same unit.
    pub against: Option<f64>,
    /// As it is printed.
    pub unit: String,
    /// What is asked of the ratio, or of the figure when it is held against nothing.
    pub goal: Goal,
}

impl Row {
    /// The ratio, or the figure itself when it is held against nothing.
    pub(crate) fn judged(&self) -> f64 {
        self.against.map_or(self.figure, |against| self.figure / against)
    }

    /// As they are shown: what, figure, against, unit, ratio, goal, verdict.
    pub(crate) fn cells(&self) -> [String; 7] {
        let goal = match self.goal {
            Goal::AtLeast(goal) => format!(">= {goal}"),
            Goal::AtMost(goal) => format!("<= {goal}"),
            Goal::Shown => String::new(),
        };
        let verdict = match self.holds() {
            Some(true) => "holds",
            Some(false) => "MISSED",
            None => "",
        };
        [
            self.what.clone(),
            shown(self.figure),
            self.against.map_or_else(String::new, shown),
            self.unit.clone(),
            self.against.map_or_else(String::new, |_| format!("{:.2}", self.judged())),
            goal,
            verdict.to_owned(),
        ]
    }

    /// Whether the goal is met; `None` without one.
    pub fn holds(&self) -> Option<bool> {
        match self.goal {
            Goal::AtLeast(goal) => Some(self.judged() >= goal),
            Goal::AtMost(goal) => Some(self.judged() <= goal),
            Goal::Shown => None,
        }
    }
}

/// Everything that one benchmark found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Name of the benchmark.
    pub subject: String,
    /// In the order in which they were measured.
    pub rows: Vec<Row>,
    /// What else there is to say, a line each.
    pub notes: Vec<String>,
}

impl Outcome {
    /// Nothing yet.
    pub fn new(subject: &str) -> Outcome {
        Outcome { subject: subject.to_owned(), rows: Vec::new(), notes: Vec::new() }
    }

    /// A figure held against another.
    pub fn ratio(
        &mut self,
        what: impl Into<String>,
        unit: &str,
        (figure, against): (f64, f64),
        goal: Goal,
    ) {
        let unit = unit.to_owned();
        self.rows.push(Row { what: what.into(), figure, against: Some(against), unit, goal });
    }

    /// A figure by itself.
    pub fn figure(&mut self, what: impl Into<String>, unit: &str, figure: f64, goal: Goal) {
        let unit = unit.to_owned();
        self.rows.push(Row { what: what.into(), figure, against: None, unit, goal });
    }

    /// Something else to say.
    pub fn note(&mut self, line: impl Into<String>) {
        self.notes.push(line.into());
    }

    /// For a terminal.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header([self.subject.as_str(), "RingMQ", "against", "unit", "ratio", "goal", ""]);
        for row in &self.rows {
            table.add_row(row.cells());
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let lines = table.to_string();
        let rows = lines.lines().map(|line| format!("{}\n", line.trim_end()));
        rows.chain(self.notes.iter().map(|note| format!("{note}\n"))).collect()
    }

    /// For a page.
    pub fn markdown(&self) -> String {
        let mut text = "| | RingMQ | against | unit | ratio | goal | |\n".to_owned();
        text.push_str("|---|---:|---:|---|---:|---|---|\n");
        let rows = self.rows.iter().map(|row| format!("| {} |\n", row.cells().join(" | ")));
        text.extend(rows);
        if !self.notes.is_empty() {
            text.push('\n');
        }
        text.extend(self.notes.iter().map(|note| format!("- {note}\n")));
        text
    }
}

fn shown(figure: f64) -> String {
    match figure.abs() {
        large if large >= 100.0 => format!("{figure:.0}"),
        small if small >= 1.0 => format!("{figure:.2}"),
        _ => format!("{figure:.3}"),
    }
}

/// The middle one; the mean of the two in the middle.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => (sorted[even / 2 - 1] + sorted[even / 2]) / 2.0,
    }
}

/// All rounds in a line.
pub fn rounds(what: &str, figures: &[f64]) -> String {
    let all: Vec<String> = figures.iter().map(|figure| shown(*figure)).collect();
    format!("{what}, round by round: {}", all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_judged_and_shown_on_a_page() {
        let mut outcome = Outcome::new("write");
        outcome.ratio("append", "GB/s", (1.5, 2.0), Goal::AtLeast(0.9));
        outcome.figure("memory", "MiB", 249.4, Goal::AtMost(256.0));
        outcome.note(rounds("append", &[1.0, 2.0]));
        assert_eq!(
            outcome.rows.iter().map(Row::holds).collect::<Vec<_>>(),
            [Some(false), Some(true)]
        );
        let page = outcome.markdown();
        assert!(
            page.contains("| append | 1.50 | 2.00 | GB/s | 0.75 | >= 0.9 | MISSED |\n"),
            "{page}"
        );
        assert!(page.contains("| memory | 249 |  | MiB |  | <= 256 | holds |\n"), "{page}");
        let read: Outcome =
            serde_json::from_str(&serde_json::to_string(&outcome).unwrap()).unwrap();
        assert_eq!(read, outcome);
    }
}
