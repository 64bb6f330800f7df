//! Plots as SVG text: frames, scales, ticks. Colours are classes of the page's style sheet, so a plot is
//! right in light and in dark.

use std::fmt::Write as _;

use crate::plot::duration;

/// Width of every plot, in its own units; the page scales it.
pub const WIDTH: f64 = 1_000.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 40.0;

/// From values to a stretch of the plot.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    from: f64,
    to: f64,
    log: bool,
}

impl Scale {
    /// Even steps.
    pub fn linear(from: f64, to: f64) -> Scale {
        Scale { from, to: if to > from { to } else { from + 1.0 }, log: false }
    }

    /// Equal ratios; both ends above 0.
    pub fn log(from: f64, to: f64) -> Scale {
        let from = from.max(f64::MIN_POSITIVE);
        Scale { from, to: if to > from { to } else { from * 10.0 }, log: true }
    }

    /// The lower end.
    pub fn start(&self) -> f64 {
        self.from
    }

    /// The upper end.
    pub fn end(&self) -> f64 {
        self.to
    }

    /// 0 at the lower end, 1 at the upper.
    pub fn share(&self, value: f64) -> f64 {
        let share = match self.log {
            true => (value.max(f64::MIN_POSITIVE) / self.from).ln() / (self.to / self.from).ln(),
            false => (value - self.from) / (self.to - self.from),
        };
        share.clamp(0.0, 1.0)
    }

    /// The value at a share.
    pub fn at(&self, share: f64) -> f64 {
        match self.log {
            true => self.from * (self.to / self.from).powf(share),
            false => self.from + share * (self.to - self.from),
        }
    }
}

/// A mark on an axis.
#[derive(Debug, Clone)]
pub struct Tick {
    /// Where.
    pub at: f64,
    /// Its label.
    pub label: String,
}

/// A plot under way.
#[derive(Debug)]
pub struct Plot {
    text: String,
    height: f64,
    x: Scale,
    y: Scale,
    legend_x: f64,
}

impl Plot {
    /// An empty plot; `label` says what it is to those who cannot see it.
    pub fn new(label: &str, height: f64, x: Scale, y: Scale) -> Plot {
        let text = format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">",
            escaped(label)
        );
        Plot { text, height, x, y, legend_x: LEFT }
    }

    /// Where a value lies across.
    pub fn x(&self, value: f64) -> f64 {
        LEFT + self.x.share(value) * (WIDTH - LEFT - RIGHT)
    }

    /// Where a value lies up and down.
    pub fn y(&self, value: f64) -> f64 {
        self.height - BOTTOM - self.y.share(value) * (self.height - TOP - BOTTOM)
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        self.text.write_fmt(text).expect("a string takes all");
    }

    /// A grey stretch from the left edge to `to`, with a word on it.
    pub fn shade_until(&mut self, to: f64, word: &str) {
        let (left, right) = (self.x(self.x.from), self.x(to));
        if right - left < 2.0 {
            return;
        }
        let (top, height) = (TOP, self.height - TOP - BOTTOM);
        let width = right - left;
        self.write(format_args!(
            "<rect class=\"shade\" x=\"{left:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{height}\"/>"
        ));
        if width > 60.0 {
            let x = left + 6.0;
            let y = self.height - BOTTOM - 7.0;
            self.write(format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\">{word}</text>"));
        }
    }

    /// Both axes with their lines and labels, and what stands on the axis across.
    pub fn axes(&mut self, across: &[Tick], up: &[Tick], title: &str) {
        let (bottom, right) = (self.height - BOTTOM, WIDTH - RIGHT);
        for tick in up {
            let y = self.y(tick.at);
            self.write(format_args!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                escaped(&tick.label)
            ));
        }
        for tick in across {
            let x = self.x(tick.at);
            self.write(format_args!(
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 17.0,
                escaped(&tick.label)
            ));
        }
        self.write(format_args!(
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            (LEFT + right) / 2.0,
            self.height - 5.0,
            escaped(title)
        ));
    }

    /// A line through points.
    pub fn line(&mut self, class: &str, points: impl IntoIterator<Item = (f64, f64)>) {
        let mut path = String::new();
        for (x, y) in points {
            let (x, y) = (self.x(x), self.y(y));
            let letter = if path.is_empty() { 'M' } else { 'L' };
            write!(path, "{letter}{x:.1} {y:.1}").expect("a string takes all");
        }
        self.write(format_args!("<path class=\"line {class}\" d=\"{path}\"/>"));
    }

    /// A dot, with what is said of it.
    pub fn dot(&mut self, class: &str, x: f64, y: f64, said: &str) {
        let (x, y) = (self.x(x), self.y(y));
        self.write(format_args!(
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{}</title></circle>",
            escaped(said)
        ));
    }

    /// A filled box between values.
    pub fn area(&mut self, class: &str, opacity: f64, boxes: &[(f64, f64, f64, f64)]) {
        let mut path = String::new();
        for (x0, x1, y0, y1) in boxes {
            let (x0, x1, y0, y1) = (self.x(*x0), self.x(*x1), self.y(*y0), self.y(*y1));
            // A hair wider than its share, or white lines show between neighbours.
            write!(path, "M{x0:.1} {y0:.1}H{:.1}V{y1:.1}H{x0:.1}Z", x1 + 0.15)
                .expect("a string takes all");
        }
        self.write(format_args!(
            "<path class=\"{class}\" fill-opacity=\"{opacity:.2}\" d=\"{path}\"/>"
        ));
    }

    /// One more entry of the legend, above the plot.
    pub fn legend(&mut self, class: &str, dashed: bool, name: &str) {
        let (x, dash) = (self.legend_x, if dashed { " dash" } else { "" });
        self.write(format_args!(
            "<line class=\"line {class}{dash}\" x1=\"{x:.1}\" x2=\"{:.1}\" y1=\"14\" y2=\"14\"/>\
             <text class=\"ink\" x=\"{:.1}\" y=\"18\">{}</text>",
            x + 22.0,
            x + 29.0,
            escaped(name)
        ));
        self.legend_x += 29.0 + 7.2 * name.chars().count() as f64 + 24.0;
    }

    /// Text that ends left of a point, or begins right of the left edge where there is no room.
    pub fn label(&mut self, x: f64, y: f64, text: &str) {
        let (x, y) = (self.x(x) - 12.0, self.y(y) + 4.0);
        let room = 7.2 * text.chars().count() as f64;
        let (x, anchor) = if x - room < LEFT { (4.0, "start") } else { (x, "end") };
        self.write(format_args!(
            "<text class=\"ink\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
            escaped(text)
        ));
    }

    /// Text at the top.
    pub fn note(&mut self, text: &str) {
        let x = self.legend_x;
        self.write(format_args!("<text x=\"{x:.1}\" y=\"18\">{}</text>", escaped(text)));
    }

    /// The whole plot.
    pub fn finish(mut self) -> String {
        self.text.push_str("</svg>");
        self.text
    }
}

/// Round marks of a linear scale, about `wanted` of them.
pub fn even_ticks(scale: Scale, wanted: usize, label: impl Fn(f64) -> String) -> Vec<Tick> {
    let step = round_step((scale.to - scale.from) / wanted.max(1) as f64);
    let first = (scale.from / step).ceil() as i64;
    let last = (scale.to / step + 1e-9).floor() as i64;
    (first..=last).map(|at| at as f64 * step).map(|at| Tick { at, label: label(at) }).collect()
}

/// 1, 2 or 5 times a power of ten, at least `step`.
pub fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.max(f64::MIN_POSITIVE).log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= step * 0.999);
    factor.unwrap_or(10.0) * power
}

/// Marks of a logarithmic scale: powers of ten, with 2 and 5 between where there is room.
pub fn log_ticks(scale: Scale, label: impl Fn(f64) -> String) -> Vec<Tick> {
    let decades = (scale.to / scale.from).log10();
    let factors: &[f64] = if decades <= 3.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let (first, last) = (scale.from.log10().floor() as i32, scale.to.log10().ceil() as i32);
    let all = (first..=last).flat_map(|power| factors.iter().map(move |f| f * 10f64.powi(power)));
    all.filter(|at| *at >= scale.from * 0.999 && *at <= scale.to * 1.001)
        .map(|at| Tick { at, label: label(at) })
        .collect()
}

/// `10 ms`, without digits that say nothing.
pub fn short_duration(ns: f64) -> String {
    let text = duration(ns.round() as u64);
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

/// Text for an element or an attribute.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn ticks_are_round() {
        let ticks = even_ticks(Scale::linear(0.0, 47.0), 5, |at| format!("{at}"));
        assert_eq!(labels(&ticks), ["0", "10", "20", "30", "40"]);
        let ticks = log_ticks(Scale::log(90_000.0, 12_000_000.0), short_duration);
        let expected = ["100 µs", "200 µs", "500 µs", "1 ms", "2 ms", "5 ms", "10 ms"];
        assert_eq!(labels(&ticks), expected);
        let ticks = log_ticks(Scale::log(1.0, 1e9), short_duration);
        assert_eq!(ticks.len(), 10);
    }

    #[test]
    fn scales_end_where_the_plot_ends() {
        for scale in [Scale::linear(5.0, 10.0), Scale::log(5.0, 500.0), Scale::linear(3.0, 3.0)] {
            assert_eq!((scale.share(scale.start()), scale.share(scale.end())), (0.0, 1.0));
            assert!((scale.at(0.3) - scale.start()) > 0.0);
            assert!((scale.share(scale.at(0.3)) - 0.3).abs() < 1e-9);
        }
    }

    #[test]
    fn nothing_breaks_out_of_an_attribute() {
        let plot =
            Plot::new("a \"b\" <c>", 100.0, Scale::linear(0.0, 1.0), Scale::linear(0.0, 1.0));
        assert!(plot.finish().contains("aria-label=\"a &quot;b&quot; &lt;c&gt;\""));
    }
}
