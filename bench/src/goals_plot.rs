//! One picture of all results: how near each figure is to its goal.

use crate::goals::{Goal, Row};
use askama::Template;

const LEFT: f64 = 440.0;
const RIGHT: f64 = 940.0;
const TOP: u32 = 40;
const ROW: u32 = 22;
/// Both ends of the scale, which is logarithmic; what lies beyond ends there.
const NEAREST: f64 = 8.0;

#[derive(Template)]
#[template(path = "goals.svg")]
struct Picture {
    height: u32,
    ticks: Vec<Tick>,
    bars: Vec<Bar>,
}

struct Tick {
    x: f64,
    label: String,
    is_goal: bool,
}

struct Bar {
    name: String,
    title: String,
    label: String,
    holds: bool,
    y: u32,
    x: f64,
    width: f64,
    label_x: f64,
}

/// How much better than its goal a row is: 1 just meets it. `None` without a goal.
fn nearness(row: &Row) -> Option<f64> {
    match row.goal {
        Goal::AtLeast(goal) => Some(row.judged() / goal),
        Goal::AtMost(goal) => Some(goal / row.judged()),
        Goal::Shown => None,
    }
}

fn across(nearness: f64) -> f64 {
    let share = (nearness.max(1e-9).ln() / NEAREST.ln()).clamp(-1.0, 1.0);
    ((LEFT + RIGHT) / 2.0 + share * (RIGHT - LEFT) / 2.0).round()
}

/// The picture of all rows that have a goal, with the names of their benchmarks.
///
/// # Errors
/// Where the template cannot be filled in.
pub fn picture<'a>(rows: impl Iterator<Item = (&'a str, &'a Row)>) -> askama::Result<String> {
    let goal_x = across(1.0);
    let with_goal = rows.filter_map(|(subject, row)| Some((subject, row, nearness(row)?)));
    let bars: Vec<Bar> = (0..)
        .zip(with_goal)
        .map(|(at, (subject, row, near))| {
            let end = across(near);
            let (x, width) = (end.min(goal_x), (end - goal_x).abs().max(2.0));
            let [what, figure, against, unit, ratio, goal, verdict] = row.cells();
            let title = [&*figure, &against, &unit, &ratio, &goal, &verdict].join(" ");
            Bar {
                name: shortened(&format!("{subject}: {what}")),
                title,
                label: format!("{near:.2}"),
                holds: row.holds() == Some(true),
                y: TOP + at * ROW,
                x,
                width,
                label_x: end.max(goal_x) + 5.0,
            }
        })
        .collect();
    let ticks = [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0].map(|at| Tick {
        x: across(at),
        label: format!("{at}"),
        is_goal: at == 1.0,
    });
    let height = TOP + bars.len() as u32 * ROW + 40;
    Picture { height, ticks: ticks.into(), bars }.render()
}

/// Names have so much room.
fn shortened(name: &str) -> String {
    const MOST: usize = 68;
    match name.char_indices().nth(MOST) {
        None => name.to_owned(),
        Some((end, _)) => format!("{}…", &name[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goals::Outcome;

    #[test]
    fn what_is_met_is_right_of_the_goal_and_what_is_missed_left_of_it() {
        let mut outcome = Outcome::new("one");
        outcome.ratio("p50 < p99", "us", (100.0, 100.0), Goal::AtMost(2.0));
        outcome.ratio("rate", "GB/s", (1.0, 4.0), Goal::AtLeast(0.5));
        outcome.figure("no goal", "us", 5.0, Goal::Shown);
        let text = picture(outcome.rows.iter().map(|row| ("one", row))).unwrap();
        assert_eq!(text.matches("<title>").count(), 2, "{text}");
        assert!(text.contains("p50 &#60; p99") || text.contains("p50 &lt; p99"), "{text}");
        let middle = across(1.0);
        assert!(text.contains(&format!("class=\"holds\" x=\"{middle}\"")), "{text}");
        assert!(across(nearness(&outcome.rows[1]).unwrap()) < middle);
        assert!(text.contains(">0.50<"), "half of its goal: {text}");
    }
}
