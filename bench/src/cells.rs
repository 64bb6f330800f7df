//! A histogram as the list of its non-empty cells: what a run keeps of each second.
//!
//! A whole histogram takes 220 KB whatever it holds; the cells of a second take a few. Nothing is lost:
//! cells are the histogram's own, so adding them back gives the same counts at the same values.

use crate::record::Latencies;

/// Value (the highest that a cell stands for, in ns) and count, values ascending, counts above 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cells(Vec<(u64, u64)>);

impl Cells {
    /// Of pairs that ascend.
    pub fn new(pairs: Vec<(u64, u64)>) -> Cells {
        debug_assert!(pairs.is_sorted_by(|a, b| a.0 < b.0), "cells ascend");
        Cells(pairs)
    }

    /// The pairs.
    pub fn pairs(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// Number of samples.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value at `percentile`, in ns; 0 without samples.
    pub fn at_ns(&self, percentile: f64) -> u64 {
        at_ns(self.0.iter().copied(), self.count(), percentile)
    }
}

/// The value at `percentile` of ascending `pairs` that hold `total` samples; 0 without samples. It is the
/// one that HdrHistogram gives.
pub fn at_ns(pairs: impl Iterator<Item = (u64, u64)>, total: u64, percentile: f64) -> u64 {
    let quantile = (percentile / 100.0).min(1.0);
    let wanted = ((quantile * total as f64).ceil() as u64).max(1);
    let (mut seen, mut last) = (0, 0);
    for (value, count) in pairs {
        seen += count;
        last = value;
        if seen >= wanted {
            break;
        }
    }
    last
}

impl FromIterator<Cells> for Latencies {
    fn from_iter<I: IntoIterator<Item = Cells>>(all: I) -> Latencies {
        let mut merged = Latencies::default();
        all.into_iter().for_each(|cells| merged.add_cells(&cells));
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(seed: u64, samples: u64) -> Latencies {
        let mut latencies = Latencies::default();
        let mut state = seed;
        for _ in 0..samples {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            latencies.add(1_000 + (state >> 33) % 50_000_000, 1);
        }
        latencies
    }

    #[test]
    fn cells_lose_nothing() {
        let latencies = spread(7, 20_000);
        let cells = latencies.cells();
        assert_eq!(cells.count(), 20_000);
        let back: Latencies = [cells.clone()].into_iter().collect();
        assert_eq!(back.cells(), cells);
        assert_eq!(back.figures(), latencies.figures());
    }

    #[test]
    fn percentiles_of_cells_are_those_of_the_histogram() {
        for samples in [1, 2, 10, 999, 1_000, 12_345] {
            let latencies = spread(samples, samples);
            let cells = latencies.cells();
            for percentile in [10.0, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0] {
                assert_eq!(
                    cells.at_ns(percentile),
                    latencies.at_ns(percentile),
                    "{percentile} of {samples}"
                );
            }
        }
        assert_eq!(Cells::default().at_ns(50.0), 0);
    }
}
