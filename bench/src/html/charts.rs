//! The plots of a report.

use super::svg::{
    Plot, Scale, Tick, WIDTH, escaped, even_ticks, log_ticks, round_step, short_duration,
};
use crate::cells::Cells;
use crate::compare::{Judgement, Row};
use crate::cpu::{Cpu, CpuSecond};
use crate::plot::duration;
use crate::record::{Interval, SecondFigures};
use crate::report::grouped;
use crate::search::Verdict;
use crate::shares::{Share, Unit};
use crate::sweep::Step;

/// Latency of a curve at 1 - 10^-x, for so many x of each unit.
const POINTS_PER_DECADE: usize = 40;
const DECADES_MAX: f64 = 6.0;
/// Columns and rows of a heat map at most.
const HEAT_COLUMNS: usize = 240;
const HEAT_ROWS: usize = 36;
const HEAT_LEVELS: usize = 10;

/// A percentile curve.
pub struct Curve<'a> {
    /// Shown in the legend.
    pub name: &'a str,
    /// Colour.
    pub class: &'a str,
    /// Drawn with dashes.
    pub dashed: bool,
    /// Its samples.
    pub cells: Cells,
}

/// Latency over percentile: each unit to the right is ten times rarer.
pub fn percentile_curves(curves: &[Curve<'_>]) -> Option<String> {
    let most = curves.iter().map(|curve| curve.cells.count()).max().filter(|most| *most > 0)?;
    let decades = (most as f64).log10().clamp(1.0, DECADES_MAX);
    let points: Vec<Vec<(f64, f64)>> =
        curves.iter().map(|curve| points_of(&curve.cells, decades)).collect();
    let latencies = || points.iter().flatten().map(|(_, ns)| *ns);
    let (lowest, highest) = (latencies().fold(f64::MAX, f64::min), latencies().fold(0.0, f64::max));
    let y = Scale::log((lowest / 1.3).max(1.0), (highest * 1.3).max(lowest * 3.0));
    let mut plot = Plot::new("latency over percentile", 340.0, Scale::linear(0.0, decades), y);
    let names = ["0", "90", "99", "99.9", "99.99", "99.999", "99.9999"];
    let mut across: Vec<Tick> = (0..=decades as usize)
        .map(|at| Tick { at: at as f64, label: format!("{} %", names[at]) })
        .collect();
    across.insert(1, Tick { at: 2f64.log10(), label: "50 %".to_owned() });
    plot.axes(
        &across,
        &log_ticks(y, short_duration),
        "percentile (each step to the right: ten times rarer)",
    );
    for (curve, points) in curves.iter().zip(points) {
        let class =
            if curve.dashed { format!("{} dash", curve.class) } else { curve.class.to_owned() };
        plot.line(&class, points);
        plot.legend(curve.class, curve.dashed, curve.name);
    }
    Some(plot.finish())
}

fn points_of(cells: &Cells, decades: f64) -> Vec<(f64, f64)> {
    let count = cells.count();
    // Beyond one sample in all there is nothing but the maximum.
    let end = (count.max(1) as f64).log10().min(decades);
    let steps = (end * POINTS_PER_DECADE as f64).ceil().max(1.0) as usize;
    let at = |step: usize| (step as f64 / POINTS_PER_DECADE as f64).min(end);
    let mut points: Vec<(f64, f64)> = (0..steps)
        .map(|step| (at(step), cells.at_ns(100.0 - 100.0 / 10f64.powf(at(step))) as f64))
        .collect();
    points.push((end, cells.at_ns(100.0) as f64));
    points
}

/// Latency over time: the stronger the colour, the more of that second's messages took so long.
pub fn heat_map(name: &str, intervals: &[Interval]) -> Option<String> {
    let all = || intervals.iter().flat_map(|interval| interval.response.pairs());
    let lowest = all().map(|(ns, _)| *ns).min()? as f64;
    let highest = all().map(|(ns, _)| *ns).max()? as f64;
    let (first, last) = (intervals.first()?.second, intervals.last()?.second + 1);
    let (x, y) = (Scale::linear(first as f64, last as f64), heat_scale(lowest, highest));
    let width = ((last - first) as usize).div_ceil(HEAT_COLUMNS).max(1);
    let columns = ((last - first) as usize).div_ceil(width);
    let mut grid = vec![[0u64; HEAT_ROWS]; columns];
    for interval in intervals {
        let column = (interval.second - first) as usize / width;
        for (ns, count) in interval.response.pairs() {
            let row = (y.share(*ns as f64) * HEAT_ROWS as f64) as usize;
            grid[column][row.min(HEAT_ROWS - 1)] += count;
        }
    }
    let mut levels = vec![Vec::new(); HEAT_LEVELS + 1];
    for (column, rows) in grid.iter().enumerate() {
        let total: u64 = rows.iter().sum();
        for (row, count) in rows.iter().enumerate().filter(|(_, count)| **count > 0) {
            let start = (first + (column * width) as u64) as f64;
            let end = (start + width as f64).min(last as f64);
            let (low, high) = (row as f64 / HEAT_ROWS as f64, (row + 1) as f64 / HEAT_ROWS as f64);
            let level = heat_level(*count as f64 / total as f64);
            levels[level].push((start, end, y.at(low), y.at(high)));
        }
    }
    let label = format!("{name}: latency over time as a heat map");
    let mut plot = Plot::new(&label, 300.0, x, y);
    let across = even_ticks(x, 12, |at| format!("{at} s"));
    plot.axes(&across, &log_ticks(y, short_duration), "time since the run began");
    for (level, boxes) in levels.iter().enumerate().filter(|(_, boxes)| !boxes.is_empty()) {
        plot.area("heat", level as f64 / HEAT_LEVELS as f64, boxes);
    }
    // Across seconds in which nothing came there is no line.
    for stretch in intervals.chunk_by(|a, b| a.second + 1 == b.second) {
        plot.line("l2", p99(stretch));
    }
    plot.legend("l2", false, "p99");
    plot.note(&format!(
        "{name}: the stronger the colour, the more of that second's messages took so long"
    ));
    Some(plot.finish())
}

fn heat_scale(lowest: f64, highest: f64) -> Scale {
    Scale::log((lowest / 1.1).max(1.0), (highest * 1.1).max(lowest * 2.0))
}

/// On a logarithmic scale: one in a hundred thousand can still be seen.
fn heat_level(share: f64) -> usize {
    const FAINTEST: f64 = 1e-5;
    let depth = 1.0 - share.max(FAINTEST).ln() / FAINTEST.ln();
    // Squared, so that what is usual stands out from what is merely not rare.
    (1.0 + depth * depth * (HEAT_LEVELS - 1) as f64).round() as usize
}

/// At the middle of each second; one that stands alone is a short line.
fn p99(stretch: &[Interval]) -> Vec<(f64, f64)> {
    let at = |interval: &Interval, shift: f64| {
        (interval.second as f64 + 0.5 + shift, interval.response.at_ns(99.0) as f64)
    };
    match stretch {
        [alone] => vec![at(alone, -0.3), at(alone, 0.3)],
        _ => stretch.iter().map(|interval| at(interval, 0.0)).collect(),
    }
}

/// A direction's rate.
pub struct Rates<'a> {
    /// Shown in the legend.
    pub name: &'a str,
    /// Colour.
    pub class: &'a str,
    /// What is drawn.
    pub seconds: &'a [SecondFigures],
    /// When it ended: the second in which it did is none, and is not drawn.
    pub ended_s: f64,
}

/// Messages per second over time, and failed ones.
pub fn rates(series: &[Rates<'_>], warm_up_s: f64) -> Option<String> {
    let all = || series.iter().flat_map(|rates| rates.seconds.iter());
    let last = all().map(|second| second.second + 1).max()?;
    let most = all().map(|second| second.messages.max(second.failed)).max()? as f64;
    let (x, y) = (Scale::linear(0.0, last as f64), rising(most));
    let mut plot = Plot::new("messages per second over time", 260.0, x, y);
    plot.shade_until(warm_up_s, "warm-up");
    let up = even_ticks(y, 5, |at| grouped(at as u64));
    plot.axes(&even_ticks(x, 12, |at| format!("{at} s")), &up, "time since the run began");
    for (at, rates) in series.iter().enumerate() {
        // Where the second lies on the first, both are to be seen.
        let class = if at > 0 { format!("{} dash", rates.class) } else { rates.class.to_owned() };
        plot.line(&class, rate_points(rates));
        plot.legend(rates.class, at > 0, rates.name);
        let failed: Vec<(f64, f64, f64, f64)> = rates
            .seconds
            .iter()
            .filter(|second| second.failed > 0)
            .map(|s| (s.second as f64 + 0.2, s.second as f64 + 0.8, 0.0, s.failed as f64))
            .collect();
        if !failed.is_empty() {
            plot.area("fbad", 0.85, &failed);
            plot.legend("lbad", false, "failed");
        }
    }
    Some(plot.finish())
}

/// Every whole second, those in which nothing came too.
fn rate_points(rates: &Rates<'_>) -> Vec<(f64, f64)> {
    let Some(first) = rates.seconds.first().map(|second| second.second) else { return Vec::new() };
    let last = rates.seconds.last().map_or(first, |second| second.second);
    let mut points: Vec<(f64, f64)> =
        (first..=last).map(|second| (second as f64 + 0.5, 0.0)).collect();
    for second in rates.seconds {
        points[(second.second - first) as usize].1 = second.messages as f64;
    }
    let whole = |point: &(f64, f64)| point.0 + 0.5 <= rates.ended_s + 0.01;
    match points.iter().filter(|point| whole(point)).count() {
        0 | 1 => points,
        _ => points.into_iter().filter(whole).collect(),
    }
}

/// Cores that were busy, over time.
pub fn cpu(cpu: &Cpu, warm_up_s: f64) -> Option<String> {
    let last = cpu.seconds.last()?.second + 1.0;
    let host = cpu.host_cores as f64;
    let (x, y) = (Scale::linear(0.0, last), Scale::linear(0.0, host * 1.02));
    let mut plot = Plot::new("busy cores over time", 220.0, x, y);
    plot.shade_until(warm_up_s, "warm-up");
    let step = round_step(host / 4.0);
    let up =
        even_ticks(y, 4, |at| if step < 1.0 { format!("{at:.1}") } else { format!("{at:.0}") });
    plot.axes(&even_ticks(x, 12, |at| format!("{at} s")), &up, "time since the run began");
    type Of = fn(&CpuSecond) -> Option<f64>;
    let series: [(&str, &str, Of); 3] = [
        ("l4", "host, everything", |s| Some(s.host_busy_cores)),
        ("l1", "generator", |s| Some(s.generator_busy_cores)),
        ("l2", "broker", |s| s.broker_busy_cores),
    ];
    for (class, name, of) in series {
        let points: Vec<(f64, f64)> =
            cpu.seconds.iter().filter_map(|s| Some((s.second + 0.5, of(s)?))).collect();
        if !points.is_empty() {
            let dashed = name == "broker";
            let drawn = if dashed { format!("{class} dash") } else { class.to_owned() };
            plot.line(&drawn, points);
            plot.legend(class, dashed, name);
        }
    }
    Some(plot.finish())
}

fn rising(most: f64) -> Scale {
    let step = round_step(most.max(1.0) / 5.0);
    Scale::linear(0.0, (most.max(1.0) * 1.05 / step).ceil() * step)
}

/// A bar for each share of a rate: how much of the bare figure was reached.
pub fn share_bars(shares: &[Share]) -> Option<String> {
    const ROW: f64 = 44.0;
    let rates: Vec<&Share> =
        shares.iter().filter(|share| share.unit == Unit::BytesPerSecond).collect();
    if rates.is_empty() {
        return None;
    }
    let height = ROW * rates.len() as f64;
    let mut text = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"shares of the limits\">"
    );
    for (at, share) in rates.iter().enumerate() {
        let y = at as f64 * ROW;
        let [ours, bare, ratio] = share.words();
        let full = WIDTH - 100.0;
        let width = full * share.ratio.clamp(0.0, 1.0);
        let (name, limit) = (escaped(&share.figure), escaped(&share.limit));
        text.push_str(&format!(
            "<text class=\"ink\" x=\"0\" y=\"{:.1}\">{name} {ours} of {bare}, {limit}</text>\
             <rect class=\"track\" x=\"0\" y=\"{:.1}\" width=\"{full}\" height=\"14\" rx=\"3\"/>\
             <rect class=\"f1\" x=\"0\" y=\"{:.1}\" width=\"{width:.1}\" height=\"14\" rx=\"3\"/>\
             <text class=\"ink\" x=\"{WIDTH}\" y=\"{:.1}\" text-anchor=\"end\">{ratio}</text>",
            y + 14.0,
            y + 20.0,
            y + 20.0,
            y + 31.5,
        ));
    }
    Some(text + "</svg>")
}

/// Latency over rate, a dot for each step.
pub fn sweep_steps(steps: &[Step]) -> Option<String> {
    let shown: Vec<(&Step, [f64; 3])> = steps
        .iter()
        .filter_map(|step| {
            let figures = step.response.as_ref().filter(|figures| figures.samples > 0)?;
            let ns = [figures.p50_us, figures.p99_us, figures.p99_9_us].map(|us| us * 1e3);
            Some((step, ns))
        })
        .collect();
    let rates = || shown.iter().map(|(step, _)| step.messages_per_second as f64);
    let latencies = || shown.iter().flat_map(|(_, ns)| *ns);
    let (slowest, fastest) = (rates().fold(f64::MAX, f64::min), rates().fold(0.0, f64::max));
    if shown.is_empty() {
        return None;
    }
    let x = Scale::log(slowest / 1.2, fastest * 1.2);
    let (low, high) = (latencies().fold(f64::MAX, f64::min), latencies().fold(0.0, f64::max));
    let y = Scale::log((low / 1.5).max(1.0), high * 1.5);
    let mut plot = Plot::new("latency over rate", 300.0, x, y);
    let across = log_ticks(x, |at| grouped(at as u64));
    plot.axes(&across, &log_ticks(y, short_duration), "messages per second");
    // Of a rate that was tried again, the line takes the last.
    let mut ordered = shown.clone();
    ordered.reverse();
    ordered.sort_by_key(|(step, _)| step.messages_per_second);
    ordered.dedup_by_key(|(step, _)| step.messages_per_second);
    for (at, (class, name)) in
        [("l3", "p50"), ("l1", "p99"), ("l2", "p99.9")].into_iter().enumerate()
    {
        let points = ordered.iter().map(|(step, ns)| (step.messages_per_second as f64, ns[at]));
        plot.line(class, points);
        plot.legend(class, false, name);
    }
    for (step, ns) in &shown {
        let class = match step.verdict {
            Verdict::Holds => "fgood",
            Verdict::Saturated => "fwarn",
            _ => "fbad",
        };
        let said = format!("{} messages/s: {}", grouped(step.messages_per_second), step.words());
        for ns in ns {
            plot.dot(class, step.messages_per_second as f64, *ns, &said);
        }
    }
    plot.note("dots: green holds, red misses, yellow: the generator was saturated");
    Some(plot.finish())
}

/// Ratios with their intervals, on a logarithmic axis around 1.
pub fn ratios(rows: &[Row]) -> Option<String> {
    const ROW: f64 = 30.0;
    let ends = |row: &Row| row.interval.unwrap_or((row.ratio, row.ratio));
    let finite = |value: &f64| value.is_finite() && *value > 0.0;
    let all = || {
        rows.iter()
            .flat_map(|row| [ends(row).0, ends(row).1, row.ratio])
            .filter(finite)
            .map(|value| value.max(1.0 / value))
    };
    let widest = all().fold(1.1, f64::max).min(100.0) * 1.05;
    if rows.is_empty() {
        return None;
    }
    let height = 70.0 + ROW * rows.len() as f64;
    let y = Scale::linear(0.0, rows.len() as f64);
    let x = Scale::log(1.0 / widest, widest);
    let mut plot = Plot::new("ratios with intervals", height, x, y);
    let steps = [
        0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.5, 2.0, 5.0,
        10.0, 20.0, 50.0, 100.0,
    ];
    let near = |at: &f64| {
        let share = x.share(*at);
        let crowded =
            widest > 1.6 && ![0.01, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0].contains(at);
        share > 0.0 && share < 1.0 && !crowded
    };
    let across: Vec<Tick> =
        steps.into_iter().filter(near).map(|at| Tick { at, label: format!("{at}") }).collect();
    plot.axes(&across, &[], "B / A");
    plot.line("l4 dash", [(1.0, 0.0), (1.0, rows.len() as f64)]);
    for (at, row) in rows.iter().enumerate() {
        let middle = rows.len() as f64 - at as f64 - 0.5;
        let class = match row.judgement {
            Judgement::Regression => "bad",
            Judgement::Improvement => "good",
            Judgement::Same => "1",
            Judgement::NotJudged => "4",
        };
        let (low, high) = ends(row);
        let said = format!("{}: {}", row.figure, row.words()[3..].join(", "));
        plot.area(&format!("f{class}"), 0.35, &[(low, high, middle - 0.16, middle + 0.16)]);
        plot.dot(&format!("f{class}"), row.ratio, middle, &said);
        plot.label(low.min(row.ratio), middle, &row.figure);
    }
    Some(plot.finish())
}

/// A latency in a table.
pub fn us(us: f64) -> String {
    duration((us * 1e3).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Latencies;

    #[test]
    fn the_rare_can_be_seen_and_the_usual_is_darkest() {
        assert_eq!((heat_level(1.0), heat_level(1e-5), heat_level(1e-9)), (HEAT_LEVELS, 1, 1));
        assert!(heat_level(0.1) > heat_level(0.01) && heat_level(0.01) > heat_level(0.001));
    }

    #[test]
    fn a_rate_has_every_whole_second() {
        let second = |second, messages| SecondFigures {
            second,
            messages,
            bytes: 0,
            failed: 0,
            p50_us: 0.0,
            p99_us: 0.0,
            max_us: 0.0,
        };
        let seconds = [second(2, 10), second(4, 12), second(5, 1)];
        let rates = |ended_s| Rates { name: "", class: "", seconds: &seconds, ended_s };
        assert_eq!(rate_points(&rates(5.1)), [(2.5, 10.0), (3.5, 0.0), (4.5, 12.0)]);
        assert_eq!(rate_points(&rates(6.0)).len(), 4);
        assert_eq!(rate_points(&rates(0.0)).len(), 4, "a run of parts of seconds is shown anyway");
    }

    #[test]
    fn a_curve_ends_where_samples_end() {
        let mut latencies = Latencies::default();
        for at in 1..=1_000u64 {
            latencies.add(at * 1_000, 1);
        }
        let points = points_of(&latencies.cells(), 6.0);
        let (last, highest) = *points.last().unwrap();
        assert!((last - 3.0).abs() < 1e-9, "{last}");
        assert_eq!(highest, latencies.at_ns(100.0) as f64, "the last point is the maximum");
        assert!(points.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1));
        assert!(percentile_curves(&[]).is_none());
    }
}
