//! What a sweep came to, for `run.json` and for people.

use comfy_table::{CellAlignment, Table, presets};
use serde::{Deserialize, Serialize};

use crate::plot::duration;
use crate::record::LatencyFigures;
use crate::report::grouped;
use crate::search::{Above, Answer, Verdict};

/// A search for the highest rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the keys of run.json and say it")]
pub struct Sweep {
    pub slo: String,
    /// `null`: no rate holds.
    pub messages_per_second: Option<u64>,
    pub limited_by: Option<Above>,
    pub ended: String,
    /// The bounds that rest on too few messages.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remark: Option<String>,
    pub steps: Vec<Step>,
}

/// One rate that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the keys of run.json and say it")]
pub struct Step {
    pub messages_per_second: u64,
    pub confirmation: bool,
    pub verdict: Verdict,
    pub reasons: Vec<String>,
    pub achieved_messages_per_second: f64,
    pub late_requests: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<LatencyFigures>,
}

impl Sweep {
    /// Of what the search found.
    pub fn new(slo: String, answer: Answer, steps: Vec<Step>) -> Sweep {
        let (rate, limited_by) = match answer {
            Answer::Rate(rate, above) => (Some(rate), Some(above)),
            _ => (None, None),
        };
        Sweep {
            slo,
            messages_per_second: rate,
            limited_by,
            ended: ended(answer),
            remark: None,
            steps,
        }
    }

    /// A line for each step.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        table.set_header(["rate", "achieved", "p50", "p99", "p99.9", "max", "late", "verdict"]);
        for step in &self.steps {
            let shown = |of: fn(&LatencyFigures) -> f64| {
                let us = step.response.as_ref().map(of);
                us.map_or_else(|| "-".to_owned(), |us| duration((us * 1e3) as u64))
            };
            table.add_row([
                grouped(step.messages_per_second),
                grouped(step.achieved_messages_per_second.round() as u64),
                shown(|f| f.p50_us),
                shown(|f| f.p99_us),
                shown(|f| f.p99_9_us),
                shown(|f| f.max_us),
                grouped(step.late_requests),
                step.words(),
            ]);
        }
        for column in table.column_iter_mut().take(7) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table.to_string().lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

impl Step {
    /// Verdict and reasons.
    pub fn words(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Holds if self.confirmation => "holds, confirmed",
            Verdict::Holds => "holds",
            Verdict::Misses => "misses",
            Verdict::Saturated => "generator saturated",
            Verdict::Faulty => "faulty",
        };
        match self.reasons.is_empty() {
            true => verdict.to_owned(),
            false => format!("{verdict}: {}", self.reasons.join(", ")),
        }
    }
}

fn ended(answer: Answer) -> String {
    match answer {
        Answer::Rate(rate, above) => {
            let why = match above {
                Above::Slo => "above it the bounds do not hold",
                Above::Generator => {
                    "above it this generator cannot keep its schedule; the system might do more"
                }
                Above::MaxRate => "the highest rate that was to be tried (--max-rate)",
            };
            format!("{} messages/s hold: {why}", grouped(rate))
        }
        Answer::Nothing => "no rate holds, not even the lowest (--min-rate)".to_owned(),
        Answer::Unsteady => "rates hold for a step and none for longer; use longer steps \
            (--step-duration)"
            .to_owned(),
        Answer::Saturated => "the generator cannot keep its schedule even at the lowest rate \
            (--min-rate); use more --producers, larger --batch, or a host of its own"
            .to_owned(),
        Answer::Faulty => {
            "messages were lost, doubled, disordered or damaged: no rate is an answer".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_its_line() {
        let step = |rate, verdict, reasons: &[&str]| Step {
            messages_per_second: rate,
            confirmation: verdict == Verdict::Holds,
            verdict,
            reasons: reasons.iter().map(|reason| (*reason).to_owned()).collect(),
            achieved_messages_per_second: rate as f64,
            late_requests: 3,
            response: None,
        };
        let steps = vec![
            step(20_000, Verdict::Misses, &["p99 is 20.0 ms"]),
            step(10_000, Verdict::Holds, &[]),
        ];
        let sweep = Sweep::new("p99<10ms".into(), Answer::Rate(10_000, Above::Slo), steps);
        let table = sweep.table();
        assert!(table.contains("misses: p99 is 20.0 ms"), "{table}");
        assert!(table.contains("10 000") && table.contains("holds, confirmed"), "{table}");
        assert_eq!(sweep.messages_per_second, Some(10_000));
        let back: Sweep = serde_json::from_str(&serde_json::to_string(&sweep).unwrap()).unwrap();
        assert_eq!(back, sweep);
    }
}
