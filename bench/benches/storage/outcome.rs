//! What a benchmark found: figures, what they are held against, and whether that holds.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// What is asked of a figure, or of its ratio when it is held against another.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// Nothing; said for comparison.
    Shown,
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub what: String,
    pub figure: f64,
    pub against: Option<f64>,
    pub unit: &'static str,
    pub goal: Goal,
}

impl Row {
    /// The ratio, or the figure itself when it is held against nothing.
    fn judged(&self) -> f64 {
        self.against.map_or(self.figure, |against| self.figure / against)
    }

    fn holds(&self) -> Option<bool> {
        match self.goal {
            Goal::AtLeast(goal) => Some(self.judged() >= goal),
            Goal::AtMost(goal) => Some(self.judged() <= goal),
            Goal::Shown => None,
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Outcome {
    pub subject: &'static str,
    pub rows: Vec<Row>,
    /// What else there is to say, a line each.
    pub notes: Vec<String>,
}

impl Outcome {
    pub fn new(subject: &'static str) -> Outcome {
        Outcome { subject, rows: Vec::new(), notes: Vec::new() }
    }

    /// A figure held against another.
    pub fn ratio(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        (figure, against): (f64, f64),
        goal: Goal,
    ) {
        self.rows.push(Row { what: what.into(), figure, against: Some(against), unit, goal });
    }

    /// A figure by itself.
    pub fn figure(&mut self, what: impl Into<String>, unit: &'static str, figure: f64, goal: Goal) {
        self.rows.push(Row { what: what.into(), figure, against: None, unit, goal });
    }

    pub fn note(&mut self, line: impl Into<String>) {
        self.notes.push(line.into());
    }

    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header([self.subject, "RingMQ", "against", "unit", "ratio", "goal", ""]);
        for row in &self.rows {
            let against = row.against.map_or_else(String::new, shown);
            let ratio = row.against.map_or_else(String::new, |_| format!("{:.2}", row.judged()));
            let goal = match row.goal {
                Goal::AtLeast(goal) => format!(">= {goal}"),
                Goal::AtMost(goal) => format!("<= {goal}"),
                Goal::Shown => String::new(),
            };
            let verdict = match row.holds() {
                Some(true) => "holds",
                Some(false) => "MISSED",
                None => "",
            };
            let figure = shown(row.figure);
            let unit = row.unit.to_owned();
            table.add_row([row.what.clone(), figure, against, unit, ratio, goal, verdict.into()]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let lines = table.to_string();
        let rows = lines.lines().map(|line| format!("{}\n", line.trim_end()));
        rows.chain(self.notes.iter().map(|note| format!("{note}\n"))).collect()
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
