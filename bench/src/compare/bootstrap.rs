//! How much a ratio would differ had the runs been others: the bootstrap.
//!
//! The units that are drawn, with replacement, are whole runs where each side has at least
//! [`REPEATS_MIN`] repeats, because runs differ more than seconds of a run do. Otherwise they are blocks of
//! consecutive seconds: single seconds up to [`BLOCKS_MAX`] of them, longer blocks in longer runs. That
//! says nothing about how runs differ among each other, and the result says which it was.
//!
//! The draw is seeded with a constant, so the same files always give the same interval.

use crate::cells::{Cells, at_ns};

/// Repeats of each side from which on whole runs are drawn.
pub const REPEATS_MIN: usize = 3;
/// Blocks of seconds of one side at most.
pub const BLOCKS_MAX: usize = 120;
/// Units of a side without which nothing is said.
const UNITS_MIN: usize = 3;
const RESAMPLES: usize = 1_000;
const SEED: u64 = 0x52_69_6e_67_4d_51;
/// Of the resampled ratios this share lies below the interval, and above it.
const OUTSIDE: f64 = 0.025;

/// What is estimated beside the rate.
pub const PERCENTILES: [(f64, &str); 4] =
    [(50.0, "p50"), (99.0, "p99"), (99.9, "p99.9"), (100.0, "max")];

/// One second or one run: what is drawn.
#[derive(Debug, Clone, Default)]
pub struct Drawn {
    /// Response times.
    pub cells: Cells,
    /// Messages.
    pub messages: u64,
    /// How long it was.
    pub seconds: f64,
}

/// The samples of one direction of a side.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    /// Each run's whole seconds.
    pub runs: Vec<Vec<Drawn>>,
}

/// One resample's figures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimates {
    /// Messages per second.
    pub rate: f64,
    /// At each of [`PERCENTILES`].
    pub at_ns: [u64; PERCENTILES.len()],
}

/// Pairs of resamples.
#[derive(Debug, Clone)]
pub struct Resampled {
    /// What was drawn, in words.
    pub unit: String,
    pairs: Vec<(Estimates, Estimates)>,
}

impl Resampled {
    /// Between what 95 % of the ratios of a figure lie.
    pub fn interval(&self, figure: &dyn Fn(&Estimates) -> f64) -> Option<(f64, f64)> {
        let ratio = |(a, b): &(Estimates, Estimates)| figure(b) / figure(a);
        let mut ratios: Vec<f64> =
            self.pairs.iter().map(ratio).filter(|ratio| ratio.is_finite()).collect();
        if ratios.len() < self.pairs.len() || ratios.is_empty() {
            return None;
        }
        ratios.sort_by(f64::total_cmp);
        let last = (ratios.len() - 1) as f64;
        let at = |share: f64| ratios[(share * last).round() as usize];
        Some((at(OUTSIDE), at(1.0 - OUTSIDE)))
    }
}

/// Draws both sides again and again.
pub fn resample(before: &Samples, after: &Samples) -> Resampled {
    let by_run = before.runs.len() >= REPEATS_MIN && after.runs.len() >= REPEATS_MIN;
    let (a, b, unit) = match by_run {
        true => (before.by_run(), after.by_run(), "whole runs".to_owned()),
        false => {
            let length = before.block().max(after.block());
            let unit = match length {
                1 => "seconds of the runs".to_owned(),
                _ => format!("blocks of {length} seconds of the runs"),
            };
            (before.blocks(length), after.blocks(length), unit)
        }
    };
    if a.len() < UNITS_MIN || b.len() < UNITS_MIN {
        return Resampled { unit: "nothing: the runs are too short".to_owned(), pairs: Vec::new() };
    }
    let (a, b) = (Urn::new(&a), Urn::new(&b));
    let mut random = Random(SEED);
    let pairs = (0..RESAMPLES).map(|_| (a.draw(&mut random), b.draw(&mut random))).collect();
    Resampled { unit, pairs }
}

impl Samples {
    fn by_run(&self) -> Vec<Drawn> {
        self.runs.iter().map(|seconds| joined(seconds)).collect()
    }

    /// How many seconds a block has so that there are not too many.
    fn block(&self) -> usize {
        let seconds: usize = self.runs.iter().map(Vec::len).sum();
        seconds.div_ceil(BLOCKS_MAX).max(1)
    }

    fn blocks(&self, length: usize) -> Vec<Drawn> {
        self.runs.iter().flat_map(|seconds| seconds.chunks(length)).map(joined).collect()
    }
}

fn joined(parts: &[Drawn]) -> Drawn {
    let mut pairs: Vec<(u64, u64)> =
        parts.iter().flat_map(|part| part.cells.pairs().iter().copied()).collect();
    pairs.sort_unstable();
    pairs.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        kept.1 += if same { next.1 } else { 0 };
        same
    });
    Drawn {
        cells: Cells::new(pairs),
        messages: parts.iter().map(|part| part.messages).sum(),
        seconds: parts.iter().map(|part| part.seconds).sum(),
    }
}

/// Units with their cells numbered, so that adding them up is adding arrays.
struct Urn {
    values: Vec<u64>,
    units: Vec<Numbered>,
}

/// A unit whose values are numbers of an [`Urn`]'s.
struct Numbered {
    cells: Vec<(u32, u64)>,
    messages: u64,
    seconds: f64,
}

impl Urn {
    fn new(units: &[Drawn]) -> Urn {
        let mut values: Vec<u64> = units
            .iter()
            .flat_map(|unit| unit.cells.pairs().iter().map(|(value, _)| *value))
            .collect();
        values.sort_unstable();
        values.dedup();
        let number =
            |value: &u64| values.binary_search(value).expect("every value is in it") as u32;
        let numbered = |unit: &Drawn| {
            let cells = unit.cells.pairs().iter().map(|(value, n)| (number(value), *n)).collect();
            Numbered { cells, messages: unit.messages, seconds: unit.seconds }
        };
        let units = units.iter().map(numbered).collect();
        Urn { values, units }
    }

    fn draw(&self, random: &mut Random) -> Estimates {
        let mut counts = vec![0u64; self.values.len()];
        let (mut total, mut messages, mut seconds) = (0, 0, 0.0);
        for _ in 0..self.units.len() {
            let unit = &self.units[random.below(self.units.len())];
            for (number, count) in &unit.cells {
                counts[*number as usize] += count;
                total += count;
            }
            messages += unit.messages;
            seconds += unit.seconds;
        }
        let pairs = || {
            let all = self.values.iter().copied().zip(counts.iter().copied());
            all.filter(|(_, count)| *count > 0)
        };
        Estimates {
            rate: messages as f64 / seconds.max(f64::MIN_POSITIVE),
            at_ns: PERCENTILES.map(|(percentile, _)| at_ns(pairs(), total, percentile)),
        }
    }
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // The bias of a product over 2^64 is far below what a resample can show.
        ((u128::from(mixed) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Latencies;

    /// A second of `messages` around `ns`, some of them 20 times as long.
    fn second(ns: u64, messages: u64, seed: u64) -> Drawn {
        let (mut latencies, mut random) = (Latencies::default(), Random(seed));
        for _ in 0..messages {
            let slow = if random.below(500) == 0 { 20 } else { 1 };
            latencies.add(slow * (ns + random.below(ns as usize / 2) as u64), 1);
        }
        Drawn { cells: latencies.cells(), messages, seconds: 1.0 }
    }

    fn run(ns: u64, seconds: u64, seed: u64) -> Vec<Drawn> {
        let mut random = Random(seed);
        (0..seconds)
            .map(|at| second(ns, 900 + random.below(200) as u64, seed * 1_000 + at))
            .collect()
    }

    fn samples(ns: u64, runs: u64, seed: u64) -> Samples {
        Samples { runs: (0..runs).map(|at| run(ns, 20, seed + at)).collect() }
    }

    #[test]
    fn the_interval_holds_one_for_equal_sides_and_not_for_others() {
        let drawn = resample(&samples(100_000, 1, 1), &samples(100_000, 1, 50));
        let (low, high) = drawn.interval(&|estimates| estimates.at_ns[0] as f64).unwrap();
        assert!(low < 1.0 && 1.0 < high && high - low < 0.05, "{low} - {high}");
        let (low, high) = drawn.interval(&|estimates| estimates.rate).unwrap();
        assert!(low < 1.0 && 1.0 < high && high - low < 0.2, "{low} - {high}");
        let drawn = resample(&samples(100_000, 1, 1), &samples(110_000, 1, 50));
        let (low, high) = drawn.interval(&|estimates| estimates.at_ns[0] as f64).unwrap();
        assert!(1.05 < low && low < 1.10 && 1.10 < high && high < 1.15, "{low} - {high}");
    }

    #[test]
    fn the_draw_is_the_same_at_every_call() {
        let (a, b) = (samples(100_000, 2, 1), samples(105_000, 2, 9));
        let interval = || resample(&a, &b).interval(&|estimates| estimates.at_ns[2] as f64);
        assert_eq!(interval(), interval());
    }

    #[test]
    fn repeats_are_drawn_whole_and_long_runs_in_blocks() {
        assert_eq!(resample(&samples(1_000, 3, 1), &samples(1_000, 4, 9)).unit, "whole runs");
        assert_eq!(
            resample(&samples(1_000, 3, 1), &samples(1_000, 2, 9)).unit,
            "seconds of the runs"
        );
        let long = Samples { runs: vec![run(1_000, 300, 5)] };
        let drawn = resample(&long, &samples(1_000, 1, 9));
        assert_eq!(drawn.unit, "blocks of 3 seconds of the runs");
        let short = Samples { runs: vec![run(1_000, 2, 5)] };
        assert_eq!(resample(&short, &long).interval(&|estimates| estimates.rate), None);
    }

    #[test]
    fn joining_adds_cells_up() {
        let (a, b) = (second(1_000, 500, 1), second(1_200, 400, 2));
        let both = joined(&[a.clone(), b.clone()]);
        let merged: Latencies = [a.cells, b.cells].into_iter().collect();
        assert_eq!(both.cells, merged.cells());
        assert_eq!((both.messages, both.seconds), (900, 2.0));
    }
}
