//! `sweep`: the highest open-loop rate at which the bounds hold.

use std::time::Duration;

use super::e2e::Members;
use super::{closing_lines, e2e, produce, tables, write};
use crate::args::{Of, Sweep as Args};
use crate::measured::Frame;
use crate::outcome::{Outcome, Track};
use crate::report::grouped;
use crate::search::{Answer, Next, Search, Verdict};
use crate::session::Session;
use crate::sweep::{Step, Sweep};

/// Listener calls at a time, each consumer.
const CONCURRENCY: usize = 64;

pub(super) async fn run(args: &Args) -> anyhow::Result<u8> {
    let session = Session::open(&args.target, true).await?;
    let mut search = Search::new(args.min_rate, args.max_rate, args.resolution);
    let (mut steps, mut last) = (Vec::new(), None);
    let answer = loop {
        let (rate, confirmation) = match search.next() {
            Next::Done(answer) => break answer,
            Next::Try(rate) => (rate, false),
            Next::Confirm(rate) => (rate, true),
        };
        let duration = match confirmation {
            true => args.confirm_duration.unwrap_or(args.step_duration * 2),
            false => args.step_duration,
        };
        let title = format!("step {} at {}/s", steps.len() + 1, grouped(rate));
        let outcome = one_step(args, &session, rate, duration, &title).await?;
        let step = judge(args, rate, confirmation, &outcome);
        eprintln!("{title}: {}", step.words());
        search.note(step.verdict);
        steps.push(step);
        last = Some(outcome);
    };
    session.close().await?;
    let mut outcome = last.expect("a search makes at least one step");
    let mut sweep = Sweep::new(args.slo.to_string(), answer, steps);
    if let Answer::Rate(rate, _) = answer {
        let measured = (args.step_duration - args.warmup).as_secs_f64();
        sweep.remark = args.slo.thin((rate as f64 * measured) as u64);
    }
    outcome.report.sweep = Some(sweep.clone());
    write(&outcome, args.target.out.as_deref())?;
    println!("{}", sweep.table());
    // What the last step came to: the confirmation, or where it ended.
    print!("{}", tables(&outcome));
    for line in closing_lines(&outcome.report) {
        println!("{line}");
    }
    println!("{}", sweep.ended);
    if let Some(remark) = &sweep.remark {
        println!("note: {remark}");
    }
    Ok(exit_code(answer))
}

fn exit_code(answer: Answer) -> u8 {
    match answer {
        Answer::Rate(..) => 0,
        Answer::Nothing | Answer::Unsteady | Answer::Faulty => 1,
        Answer::Saturated => 3,
    }
}

async fn one_step(
    args: &Args,
    session: &Session,
    rate: u64,
    duration: Duration,
    title: &str,
) -> anyhow::Result<Outcome> {
    let load = args.load(rate, duration);
    let measured = match args.of {
        Of::Produce => produce::measure(session, &load, &args.watch, None, true, title).await?,
        Of::E2e => {
            let members = Members { consumers: args.consumers, concurrency: CONCURRENCY };
            e2e::measure(session, &load, members, &args.watch, None, title).await?
        }
    };
    let frame = Frame {
        verb: "sweep",
        disk: &args.watch.dir,
        flush: Some(args.flush),
        queued: false,
        out: args.target.out.as_deref(),
    };
    measured.outcome(&frame, args)
}

fn judge(args: &Args, rate: u64, confirmation: bool, outcome: &Outcome) -> Step {
    let report = &outcome.report;
    let direction = match args.of {
        Of::Produce => "produce",
        Of::E2e => "receive",
    };
    let track = outcome.tracks.iter().find(|track| track.direction == direction);
    let saturated = report.generator.as_ref().is_some_and(|generator| generator.saturated);
    let mut reasons = Vec::new();
    let verdict = if !report.correctness.faults.is_clean() {
        reasons.push(report.correctness.faults.to_string());
        Verdict::Faulty
    } else if report.correctness.failed > 0 {
        reasons.push(format!("{} sends failed", grouped(report.correctness.failed)));
        Verdict::Misses
    } else if saturated {
        Verdict::Saturated
    } else {
        reasons.extend(track.map(|track| args.slo.misses(&track.response)).unwrap_or_default());
        if reasons.is_empty() { Verdict::Holds } else { Verdict::Misses }
    };
    let figures = match args.of {
        Of::Produce => report.produce.as_ref(),
        Of::E2e => report.receive.as_ref(),
    };
    Step {
        messages_per_second: rate,
        confirmation,
        verdict,
        reasons,
        achieved_messages_per_second: figures.map_or(0.0, |figures| figures.messages_per_second),
        late_requests: report.generator.as_ref().map_or(0, |generator| generator.late_requests),
        response: track.map(|track: &Track| track.response.figures()),
    }
}
