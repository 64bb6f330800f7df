//! Latencies and rates of a run.
//!
//! Invariants:
//! - one histogram for a whole run, merged from samples, never from percentiles;
//! - a message of a batch weighs as much as a message alone;
//! - what was due during the warm-up is in no figure.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::cells::Cells;

/// Longest latency told apart: 2 min. Longer ones count as this.
const LATENCY_NS_MAX: u64 = 120_000_000_000;
/// Digits kept: an error of 0.1 %.
const DIGITS: u8 = 3;

/// The percentiles of every table, and their names.
pub const PERCENTILES: [(f64, &str); 6] = [
    (50.0, "p50"),
    (90.0, "p90"),
    (99.0, "p99"),
    (99.9, "p99.9"),
    (99.99, "p99.99"),
    (100.0, "max"),
];

/// A histogram of latencies in nanoseconds.
#[derive(Debug, Clone)]
pub struct Latencies {
    histogram: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS)
            .expect("constant bounds that HdrHistogram takes");
        Latencies { histogram }
    }
}

impl Latencies {
    /// Adds `count` samples of one value.
    pub fn add(&mut self, latency_ns: u64, count: u64) {
        self.histogram.saturating_record_n(latency_ns.max(1), count);
    }

    /// Adds all samples of another histogram.
    pub fn merge(&mut self, other: &Latencies) {
        self.histogram.add(&other.histogram).expect("equal bounds always add");
    }

    /// Adds the samples of cells.
    pub fn add_cells(&mut self, cells: &Cells) {
        for (value, count) in cells.pairs() {
            self.add(*value, *count);
        }
    }

    /// The non-empty cells.
    pub fn cells(&self) -> Cells {
        let cell = |at: hdrhistogram::iterators::IterationValue<u64>| {
            (at.value_iterated_to(), at.count_at_value())
        };
        Cells::new(self.histogram.iter_recorded().map(cell).collect())
    }

    /// The histogram itself, for what writes it.
    pub fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }

    /// Adds all samples of a histogram that was read.
    pub fn add_histogram(&mut self, read: &Histogram<u64>) {
        for cell in read.iter_recorded() {
            self.add(cell.value_iterated_to(), cell.count_at_value());
        }
    }

    /// Forgets every sample.
    pub fn clear(&mut self) {
        self.histogram.reset();
    }

    /// Number of samples.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The value below or at which `percentile` % of the samples are, in ns; 0 without samples.
    pub fn at_ns(&self, percentile: f64) -> u64 {
        if percentile >= 100.0 {
            return self.histogram.max();
        }
        self.histogram.value_at_percentile(percentile)
    }

    /// The figures for `run.json`.
    pub fn figures(&self) -> LatencyFigures {
        let us = |percentile: f64| self.at_ns(percentile) as f64 / 1_000.0;
        LatencyFigures {
            samples: self.count(),
            // A mean has many digits that say nothing, and that a reader of JSON may round differently.
            mean_us: self.histogram.mean().round() / 1_000.0,
            p50_us: us(50.0),
            p90_us: us(90.0),
            p99_us: us(99.0),
            p99_9_us: us(99.9),
            p99_99_us: us(99.99),
            max_us: us(100.0),
        }
    }
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the keys of run.json and say it")]
pub struct LatencyFigures {
    pub samples: u64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p99_9_us: f64,
    pub p99_99_us: f64,
    pub max_us: f64,
}

/// One second of a run, warm-up included (its `second` is then below the warm-up's).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the keys of run.json and say it")]
pub struct SecondFigures {
    pub second: u64,
    pub messages: u64,
    pub bytes: u64,
    pub failed: u64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

/// The measured samples of one second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interval {
    /// On the run's clock.
    pub second: u64,
    /// Response times, without what was due in the warm-up.
    pub response: Cells,
}

/// One finished request.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// When it was to start.
    pub due_ns: u64,
    /// When it did.
    pub sent_ns: u64,
    /// When it ended.
    pub done_ns: u64,
    /// Messages in it.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

/// Collects the samples of one kind of a run.
#[derive(Debug)]
pub struct Recorder {
    warm_until_ns: u64,
    /// From when a request was due.
    pub response: Latencies,
    /// From when it was sent.
    pub service: Latencies,
    seconds: Vec<SecondFigures>,
    intervals: Vec<Interval>,
    current: Latencies,
    current_warm_up: Latencies,
    current_second: u64,
    current_bytes: u64,
    current_failed: u64,
    messages: u64,
    bytes: u64,
    last_done_ns: u64,
}

impl Recorder {
    /// Counts from `warm_until_ns` on.
    pub fn new(warm_until_ns: u64) -> Recorder {
        Recorder {
            warm_until_ns,
            response: Latencies::default(),
            service: Latencies::default(),
            seconds: Vec::new(),
            intervals: Vec::new(),
            current: Latencies::default(),
            current_warm_up: Latencies::default(),
            current_second: 0,
            current_bytes: 0,
            current_failed: 0,
            messages: 0,
            bytes: 0,
            last_done_ns: 0,
        }
    }

    /// Counts from `warm_until_ns` on; before the first sample only.
    pub fn warm_until(&mut self, warm_until_ns: u64) {
        debug_assert_eq!(self.messages, 0, "what was counted stays counted");
        self.warm_until_ns = warm_until_ns;
    }

    /// Notes a finished request.
    pub fn note(&mut self, sample: Sample) {
        let response_ns = sample.done_ns.saturating_sub(sample.due_ns);
        self.turn_to(sample.done_ns / 1_000_000_000);
        self.current_bytes += sample.bytes;
        if sample.due_ns < self.warm_until_ns {
            self.current_warm_up.add(response_ns, sample.messages);
            return;
        }
        self.current.add(response_ns, sample.messages);
        self.response.add(response_ns, sample.messages);
        self.service.add(sample.done_ns.saturating_sub(sample.sent_ns), sample.messages);
        self.messages += sample.messages;
        self.bytes += sample.bytes;
        self.last_done_ns = self.last_done_ns.max(sample.done_ns);
    }

    /// Notes messages that failed.
    pub fn note_failed(&mut self, at_ns: u64, messages: u64) {
        self.turn_to(at_ns / 1_000_000_000);
        self.current_failed += messages;
    }

    /// Messages counted, without the warm-up.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Bytes of bodies counted, without the warm-up.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// From the end of the warm-up to the last request's end.
    pub fn measured_ns(&self) -> u64 {
        self.last_done_ns.saturating_sub(self.warm_until_ns)
    }

    /// The series of seconds so far, the last one included.
    pub fn seconds(&mut self) -> &[SecondFigures] {
        self.close_second();
        &self.seconds
    }

    /// The measured samples second by second: all of them are [`Recorder::response`].
    pub fn intervals(&mut self) -> &[Interval] {
        self.close_second();
        &self.intervals
    }

    /// The last second that is over, for a progress display.
    pub fn last_second(&self) -> Option<&SecondFigures> {
        self.seconds.last()
    }

    /// Samples of several threads come nearly in order; one that is late by a second's turn counts in the
    /// second that is open.
    fn turn_to(&mut self, second: u64) {
        if second > self.current_second {
            self.close_second();
            self.current_second = second;
        }
    }

    fn close_second(&mut self) {
        let measured = self.current.count();
        let messages = measured + self.current_warm_up.count();
        if messages + self.current_failed == 0 {
            return;
        }
        if measured > 0 {
            let response = self.current.cells();
            self.intervals.push(Interval { second: self.current_second, response });
        }
        if messages > measured {
            self.current.merge(&self.current_warm_up);
            self.current_warm_up.clear();
        }
        let us = |percentile| self.current.at_ns(percentile) as f64 / 1_000.0;
        self.seconds.push(SecondFigures {
            second: self.current_second,
            messages,
            bytes: self.current_bytes,
            failed: self.current_failed,
            p50_us: us(50.0),
            p99_us: us(99.0),
            max_us: us(100.0),
        });
        self.current.clear();
        (self.current_bytes, self.current_failed) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const S: u64 = 1_000 * MS;

    fn sample(due_ns: u64, sent_ns: u64, done_ns: u64) -> Sample {
        Sample { due_ns, sent_ns, done_ns, messages: 1, bytes: 10 }
    }

    fn near(measured: f64, expected: f64) -> bool {
        (measured - expected).abs() <= expected * 0.002
    }

    #[test]
    fn percentiles_of_a_known_distribution() {
        let mut latencies = Latencies::default();
        for value in 1..=10_000u64 {
            latencies.add(value * 1_000, 1);
        }
        let figures = latencies.figures();
        assert_eq!(figures.samples, 10_000);
        assert!(near(figures.p50_us, 5_000.0), "{figures:?}");
        assert!(near(figures.p99_us, 9_900.0), "{figures:?}");
        assert!(near(figures.p99_9_us, 9_990.0), "{figures:?}");
        assert!(near(figures.p99_99_us, 9_999.0), "{figures:?}");
        assert!(near(figures.max_us, 10_000.0), "{figures:?}");
    }

    #[test]
    fn merging_equals_recording_in_one() {
        let (mut one, mut a, mut b) = Default::default();
        for value in 1..1_000u64 {
            let half: &mut Latencies = if value % 3 == 0 { &mut a } else { &mut b };
            half.add(value * value, 1);
            Latencies::add(&mut one, value * value, 1);
        }
        a.merge(&b);
        assert_eq!(a.figures(), one.figures());
    }

    #[test]
    fn response_counts_from_due_and_service_from_sent() {
        let mut recorder = Recorder::new(0);
        recorder.note(sample(MS, 3 * MS, 4 * MS));
        assert!(near(recorder.response.figures().max_us, 3_000.0));
        assert!(near(recorder.service.figures().max_us, 1_000.0));
    }

    #[test]
    fn the_warm_up_is_in_the_series_and_in_no_other_figure() {
        let mut recorder = Recorder::new(S);
        recorder.note(sample(S - MS, S - MS, S + 500 * MS));
        recorder.note(sample(S, S, S + 501 * MS));
        recorder.note(sample(2 * S, 2 * S, 2 * S + MS));
        assert_eq!((recorder.messages(), recorder.bytes()), (2, 20));
        assert_eq!(recorder.measured_ns(), S + MS);
        let series: Vec<_> =
            recorder.seconds().iter().map(|s| (s.second, s.messages, s.bytes)).collect();
        assert_eq!(series, [(1, 2, 20), (2, 1, 10)]);
        assert_eq!(recorder.response.count(), 2);
        let measured: Vec<_> =
            recorder.intervals().iter().map(|i| (i.second, i.response.count())).collect();
        assert_eq!(measured, [(1, 1), (2, 1)]);
    }

    #[test]
    fn the_seconds_together_are_the_whole() {
        let mut recorder = Recorder::new(S);
        for at in 0..5_000 {
            recorder.note(sample(at * MS, at * MS, at * MS + 1_000 + at * at));
        }
        recorder.note_failed(7 * S, 3);
        let whole: Latencies = recorder.intervals().iter().map(|i| i.response.clone()).collect();
        assert_eq!(whole.cells(), recorder.response.cells());
        let last = recorder.seconds().last().expect("a second with failures only").clone();
        assert_eq!((last.second, last.messages, last.failed), (7, 0, 3));
    }

    #[test]
    fn a_batch_weighs_its_messages() {
        let mut recorder = Recorder::new(0);
        recorder.note(Sample { messages: 99, ..sample(0, 0, MS) });
        recorder.note(sample(0, 0, 100 * MS));
        let figures = recorder.response.figures();
        assert_eq!(figures.samples, 100);
        assert!(near(figures.p99_us, 1_000.0), "{figures:?}");
        assert!(near(figures.max_us, 100_000.0), "{figures:?}");
    }

    #[test]
    fn a_latency_beyond_the_range_counts_as_the_longest() {
        let mut latencies = Latencies::default();
        latencies.add(10 * LATENCY_NS_MAX, 1);
        assert_eq!(latencies.count(), 1);
        assert!(latencies.at_ns(100.0) >= LATENCY_NS_MAX);
    }
}
