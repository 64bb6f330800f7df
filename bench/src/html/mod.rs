//! `report.html`: one file that needs no network and no script.
//!
//! Invariants:
//! - everything is in the page: style, plots as SVG, tables;
//! - text from outside (parameters, names, errors) is escaped, by the template or by [`svg::escaped`];
//! - it says what is not the system's: a saturated generator, a debug build, old limits.

pub mod charts;
mod lists;
pub mod svg;

use anyhow::Context as _;
use askama::Template;

use crate::compare::{Comparison, Judgement, Side};
use crate::environment::utc;
use crate::outcome::{DIRECTIONS, Outcome};
use crate::report::{Figures, Report, grouped};
use charts::{Curve, Rates, us};

#[derive(Template)]
#[template(path = "report.html")]
struct Page {
    title: String,
    subtitle: String,
    badges: Vec<Badge>,
    cards: Vec<Vec<Card>>,
    sections: Vec<Section>,
    lists: Vec<List>,
}

struct Badge {
    kind: &'static str,
    text: String,
}

struct Card {
    name: String,
    value: String,
    note: String,
}

#[derive(Default)]
struct Section {
    title: &'static str,
    note: String,
    plots: Vec<String>,
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    /// All columns but the first are numbers.
    numbers: bool,
    /// The last column is text all the same.
    words_last: bool,
}

struct List {
    title: String,
    rows: Vec<(String, String)>,
}

fn badge(kind: &'static str, text: impl Into<String>) -> Badge {
    Badge { kind, text: text.into() }
}

/// The page of a run.
pub fn run_page(outcome: &Outcome) -> anyhow::Result<String> {
    let report = &outcome.report;
    let environment = &report.environment;
    let mut sections = Vec::new();
    sections.extend(sweep(report));
    sections.extend(curves(outcome));
    sections.extend(heat(outcome));
    sections.extend(rates(report));
    sections.extend(cpu(report));
    sections.push(limits(report));
    let page = Page {
        title: title(report),
        subtitle: format!("{}, {}", utc(environment.started_at_ms), environment.summary()),
        badges: badges(report),
        cards: cards(report),
        sections,
        lists: vec![
            List { title: "Parameters".to_owned(), rows: lists::parameters(&report.parameters) },
            List { title: "Environment".to_owned(), rows: lists::environment(environment) },
            List { title: "Correctness and schedule".to_owned(), rows: lists::correctness(report) },
        ],
    };
    page.render().context("making the page")
}

/// The page of a comparison.
pub fn compare_page(
    comparison: &Comparison,
    before: &Side,
    after: &Side,
) -> anyhow::Result<String> {
    let verdict = match comparison.regression {
        true => badge("bad", "B is a regression"),
        false => badge("good", "no regression"),
    };
    let mut badges = vec![verdict];
    badges.extend(comparison.differences.iter().map(|text| badge("warn", text)));
    badges.extend(comparison.remarks.iter().map(|text| badge("warn", text)));
    let mut sections = vec![Section {
        title: "Ratios",
        note: format!(
            "B / A with 95 % bootstrap intervals; drawn again: {}. Of latencies, left of 1 is better; of \
             rates, right of it. Worse by up to {:.1} % is no regression. A percentile with fewer than 10 \
             samples beyond it is not judged.",
            comparison.resampled,
            comparison.tolerance_ratio * 100.0
        ),
        plots: charts::ratios(&comparison.rows).into_iter().collect(),
        head: vec!["figure", "A", "B", "B / A", "95 % interval", "verdict"],
        rows: comparison.rows.iter().map(|row| row.words().to_vec()).collect(),
        numbers: true,
        words_last: true,
    }];
    for direction in DIRECTIONS {
        let Some((a, b)) = before.merged(direction).zip(after.merged(direction)) else { continue };
        let curves = [
            Curve { name: "A", class: "l1", dashed: true, cells: a },
            Curve { name: "B", class: "l2", dashed: false, cells: b },
        ];
        sections.push(Section {
            title: if direction == "produce" { "Produce response" } else { "End to end" },
            note: "Repeats merged through their histograms.".to_owned(),
            plots: charts::percentile_curves(&curves).into_iter().collect(),
            ..Section::default()
        });
    }
    let side = |name: &str, side: &Side| List {
        title: format!("{name}: {}", side.names().join(", ")),
        rows: lists::environment(&side.first().environment),
    };
    let page = Page {
        title: format!("{}: B against A", before.first().verb),
        subtitle: format!(
            "A {} and B {}",
            utc(before.first().environment.started_at_ms),
            utc(after.first().environment.started_at_ms)
        ),
        badges,
        cards: vec![comparison.rows.iter().take(4).map(compared).collect()],
        sections,
        lists: vec![
            List {
                title: "Parameters of A".to_owned(),
                rows: lists::parameters(&before.first().parameters),
            },
            side("A", before),
            side("B", after),
        ],
    };
    page.render().context("making the page")
}

fn compared(row: &crate::compare::Row) -> Card {
    let [figure, _, _, ratio, interval, _] = row.words();
    let value = match row.judgement {
        Judgement::Regression => format!("{ratio} worse"),
        Judgement::Improvement => format!("{ratio} better"),
        _ => ratio,
    };
    Card { name: figure, value, note: interval }
}

fn title(report: &Report) -> String {
    if let Some(sweep) = &report.sweep {
        return match sweep.messages_per_second {
            Some(rate) => format!("sweep: {} messages/s at {}", grouped(rate), sweep.slo),
            None => format!("sweep: no rate holds {}", sweep.slo),
        };
    }
    let name = report.parameters["workload"]["name"].as_str();
    let what = name.map_or_else(|| report.verb.clone(), |name| format!("{}: {name}", report.verb));
    let figures = report.receive.as_ref().or(report.produce.as_ref());
    match figures {
        Some(f) => format!("{what}, {} messages/s", grouped(f.messages_per_second.round() as u64)),
        None => what,
    }
}

fn badges(report: &Report) -> Vec<Badge> {
    let correctness = &report.correctness;
    let mut badges = vec![match (correctness.checked, correctness.is_clean()) {
        (_, false) => badge("bad", "messages at fault"),
        (true, true) => badge("good", "nothing lost, doubled, out of order or damaged"),
        (false, true) => badge("warn", "not read back"),
    }];
    if let Some(generator) = &report.generator {
        badges.push(match generator.saturated {
            true => badge("bad", "generator saturated: not the system's figures"),
            false => badge("good", "schedule kept"),
        });
    }
    if !report.environment.optimised {
        badges.push(badge("warn", "debug build of the client"));
    }
    badges
}

/// A row for each direction.
fn cards(report: &Report) -> Vec<Vec<Card>> {
    let row = |(name, figures): (&str, &Option<Figures>)| {
        let figures = figures.as_ref()?;
        let rate = format!("{}/s", grouped(figures.messages_per_second.round() as u64));
        let note = format!("{:.1} MB/s", figures.bytes_per_second / 1e6);
        let mut cards = vec![Card { name: name.to_owned(), value: rate, note }];
        let of = if name == "produce" { "produce response" } else { "end to end" };
        for (percentile, value) in figures.response.iter().flat_map(|response| {
            [
                ("p50", response.p50_us),
                ("p99", response.p99_us),
                ("p99.9", response.p99_9_us),
                ("max", response.max_us),
            ]
        }) {
            let (name, note) = (percentile.to_owned(), of.to_owned());
            cards.push(Card { name, value: us(value), note });
        }
        Some(cards)
    };
    [("produce", &report.produce), ("receive", &report.receive)]
        .into_iter()
        .filter_map(row)
        .collect()
}

fn curves(outcome: &Outcome) -> Option<Section> {
    let mut curves = Vec::new();
    for track in &outcome.tracks {
        let (name, class) = match track.direction {
            "produce" => ("produce response", "l1"),
            _ => ("end to end", "l2"),
        };
        curves.push(Curve { name, class, dashed: false, cells: track.response.cells() });
        if let Some(service) = &track.service {
            let cells = service.cells();
            curves.push(Curve { name: "produce service", class: "l3", dashed: true, cells });
        }
    }
    let plot = charts::percentile_curves(&curves)?;
    Some(Section {
        title: "Latency by percentile",
        note: "Response counts from when a request was due, service from when it was sent; where \
               they part, requests waited for others. Warm-up excluded."
            .to_owned(),
        plots: vec![plot],
        head: vec!["", "samples", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max"],
        rows: lists::percentiles(outcome),
        numbers: true,
        ..Section::default()
    })
}

fn heat(outcome: &Outcome) -> Option<Section> {
    let plots: Vec<String> = outcome
        .tracks
        .iter()
        .filter_map(|track| {
            let name = if track.direction == "produce" { "produce" } else { "end to end" };
            charts::heat_map(name, &track.intervals)
        })
        .collect();
    (!plots.is_empty()).then(|| Section {
        title: "Latency over time",
        note: "Response times, second by second, without the warm-up.".to_owned(),
        plots,
        ..Section::default()
    })
}

fn rates(report: &Report) -> Option<Section> {
    let mut series = Vec::new();
    let mut add = |name, class, figures: &Option<Figures>| {
        // In turns with raw measurements, load ends later than it lasts.
        let ended_s = |figures: &Figures| match report.raw {
            Some(_) => f64::INFINITY,
            None => (report.measured_from_ms + figures.measured_ms) / 1e3,
        };
        let rates = figures.as_ref().map(|f| (f.seconds.clone(), ended_s(f)));
        series.extend(rates.map(|(seconds, ended_s)| (name, class, seconds, ended_s)));
    };
    add("produce", "l1", &report.produce);
    add("receive", "l2", &report.receive);
    let failed: u64 = series.iter().flat_map(|(_, _, s, _)| s.iter()).map(|s| s.failed).sum();
    let series: Vec<Rates<'_>> = series
        .iter()
        .map(|(name, class, seconds, ended_s)| Rates { name, class, seconds, ended_s: *ended_s })
        .collect();
    let plot = charts::rates(&series, report.measured_from_ms / 1e3)?;
    Some(Section {
        title: "Rate and errors over time",
        note: match failed {
            0 => "Messages a second; no send failed.".to_owned(),
            failed => format!("Messages a second; {} failed.", grouped(failed)),
        },
        plots: vec![plot],
        ..Section::default()
    })
}

fn cpu(report: &Report) -> Option<Section> {
    let cpu = report.cpu.as_ref()?;
    let plot = charts::cpu(cpu, report.measured_from_ms / 1e3)?;
    let broker = cpu.broker_busy_cores_mean;
    Some(Section {
        title: "CPU",
        note: format!(
            "On average: generator {:.2} cores, {}host {:.2} of {}.{}",
            cpu.generator_busy_cores_mean,
            broker.map_or_else(String::new, |cores| format!("broker {cores:.2}, ")),
            cpu.host_busy_cores_mean,
            cpu.host_cores,
            if broker.is_none() { " The broker's own: --broker-pid PID." } else { "" }
        ),
        plots: vec![plot],
        ..Section::default()
    })
}

fn limits(report: &Report) -> Section {
    let title = "Shares of what disk and loopback do by themselves";
    let Some(limits) = &report.limits else {
        let note =
            "Not measured: `ringmq-bench limits` measures them, --with-limits in turns with a run.";
        return Section { title, note: note.to_owned(), ..Section::default() };
    };
    let row = |share: &crate::shares::Share| {
        let [ours, bare, ratio] = share.words();
        vec![share.figure.clone(), ours, bare, ratio, share.limit.clone()]
    };
    Section {
        title,
        note: format!("Bare figures {}.", limits.words()),
        plots: charts::share_bars(&report.shares).into_iter().collect(),
        head: vec!["figure", "RingMQ", "bare", "ratio", "bare is"],
        rows: report.shares.iter().map(row).collect(),
        numbers: true,
        words_last: true,
    }
}

fn sweep(report: &Report) -> Option<Section> {
    let sweep = report.sweep.as_ref()?;
    Some(Section {
        title: "Steps of the search",
        note: format!(
            "It ended so: {}. {}What follows is of the last step.",
            sweep.ended,
            sweep.remark.as_ref().map_or_else(String::new, |remark| format!("{remark}. "))
        ),
        plots: charts::sweep_steps(&sweep.steps).into_iter().collect(),
        head: vec!["rate", "achieved", "p50", "p99", "p99.9", "max", "late", "verdict"],
        rows: lists::steps(sweep),
        numbers: true,
        words_last: true,
    })
}
