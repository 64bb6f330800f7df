//! The line that says how a run goes, on a terminal only.

use std::io::{IsTerminal as _, stderr};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::plot::duration;
use crate::record::SecondFigures;
use crate::report::grouped;
use crate::run::{Progress, Run};

/// What tells how much of a run is left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Goal {
    /// It ends after so long.
    pub duration: Option<Duration>,
    /// It ends after so many messages, sent or (where none is sent) received.
    pub messages: Option<u64>,
}

/// Shown until dropped.
#[derive(Debug)]
pub struct Display {
    task: tokio::task::JoinHandle<()>,
    bar: ProgressBar,
}

impl Drop for Display {
    fn drop(&mut self) {
        self.task.abort();
        self.bar.finish_and_clear();
    }
}

/// Says each second how far the run is. Nothing where stderr is no terminal.
pub fn show(run: &Arc<Run>, goal: Goal, title: &str) -> Option<Display> {
    if !stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{spinner} {prefix}{wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.set_prefix(if title.is_empty() { String::new() } else { format!("{title}  ") });
    let (run, shown) = (Arc::clone(run), bar.clone());
    let task = tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_secs(1));
        let mut before = look(&run);
        loop {
            every.tick().await;
            let now = look(&run);
            shown.set_message(line(&before, &now, goal));
            shown.tick();
            before = now;
        }
    });
    Some(Display { task, bar })
}

#[derive(Debug, Clone)]
struct Look {
    at_ns: u64,
    progress: Progress,
    produced: Option<SecondFigures>,
    received: Option<SecondFigures>,
}

fn look(run: &Run) -> Look {
    Look {
        at_ns: run.clock.now_ns(),
        progress: run.progress(),
        produced: run.produced().last_second().cloned(),
        received: run.received().last_second().cloned(),
    }
}

fn line(before: &Look, now: &Look, goal: Goal) -> String {
    let elapsed = (now.at_ns.saturating_sub(before.at_ns) as f64 / 1e9).max(1e-3);
    let rate = |of: fn(&Progress) -> u64| {
        let more = of(&now.progress).saturating_sub(of(&before.progress));
        (more as f64 / elapsed).round() as u64
    };
    let (sent, received) = (rate(|p| p.acknowledged), rate(|p| p.received));
    let mut parts = vec![format!("in {}/s  out {}/s", grouped(sent), grouped(received))];
    if let Some(second) = now.produced.as_ref().or(now.received.as_ref()) {
        let shown = |us: f64| duration((us * 1e3) as u64);
        parts.push(format!("p50 {}  p99 {}", shown(second.p50_us), shown(second.p99_us)));
    }
    parts.push(match now.progress.failed {
        0 => "no errors".to_owned(),
        failed => format!("{} failed", grouped(failed)),
    });
    parts.extend(left(now, goal, sent.max(received)).map(|left| format!("{left} s left")));
    parts.join("  ")
}

/// Seconds left, by whichever goal comes first.
fn left(now: &Look, goal: Goal, rate: u64) -> Option<u64> {
    let by_time = goal.duration.map(|all| {
        let elapsed = Duration::from_nanos(now.at_ns);
        all.saturating_sub(elapsed).as_secs_f64().ceil() as u64
    });
    let by_count = goal.messages.filter(|_| rate > 0).map(|all| {
        let done = now.progress.sent.max(now.progress.received);
        all.saturating_sub(done).div_ceil(rate)
    });
    match (by_time, by_count) {
        (Some(time), Some(count)) => Some(time.min(count)),
        (time, count) => time.or(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(second: u64, messages: u64, failed: u64) -> Look {
        let progress = Progress {
            sent: messages,
            acknowledged: messages,
            failed,
            received: messages / 2,
            last_arrival_ns: 0,
        };
        let figures = SecondFigures {
            second,
            messages,
            bytes: 0,
            failed,
            p50_us: 210.0,
            p99_us: 1_500.0,
            max_us: 2_000.0,
        };
        let at_ns = second * 1_000_000_000;
        Look { at_ns, progress, produced: Some(figures), received: None }
    }

    #[test]
    fn rates_latencies_errors_and_the_time_left_are_told() {
        let goal = Goal { duration: Some(Duration::from_secs(10)), messages: None };
        let text = line(&look(2, 20_000, 0), &look(3, 32_000, 0), goal);
        let expected = "in 12 000/s  out 6 000/s  p50 210 µs  p99 1.50 ms  no errors  7 s left";
        assert_eq!(text, expected);
        let goal = Goal { duration: None, messages: Some(56_000) };
        let text = line(&look(2, 20_000, 0), &look(3, 32_000, 1_234), goal);
        assert!(text.ends_with("1 234 failed  2 s left"), "{text}");
    }

    #[test]
    fn without_a_goal_or_a_rate_nothing_is_promised() {
        let text = line(&look(2, 0, 0), &look(3, 0, 0), Goal::default());
        assert!(text.ends_with("no errors"), "{text}");
        let goal = Goal { duration: None, messages: Some(5) };
        assert!(!line(&look(2, 0, 0), &look(3, 0, 0), goal).contains("left"));
    }
}
