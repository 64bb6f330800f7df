//! Bisection for the highest rate that holds. Pure: it says what to try next and is told what came of it.
//!
//! Rates are halved on a logarithmic scale, since they span decades and the resolution is a ratio. The
//! lowest rate is tried first, and no rate far above what holds is tried before it must be: an open loop
//! above capacity leaves a backlog that takes long to drain.
//!
//! Invariants:
//! - `holds < fails` at all times, and everything between them is untried;
//! - the answer was confirmed by a run of its own;
//! - so many steps at most: the logarithm of the number of resolutions between the rates, and a few.

use serde::{Deserialize, Serialize};

/// Confirmations that may fail, each at a rate that is one resolution lower.
const CONFIRMATIONS_MAX: u32 = 5;

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Correct, on schedule, and the bounds hold.
    Holds,
    /// A bound does not hold, or sends failed.
    Misses,
    /// The generator fell behind its schedule.
    Saturated,
    /// Messages were lost, doubled, disordered or damaged.
    Faulty,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Try this rate.
    Try(u64),
    /// Try this rate for longer: it is to be the answer.
    Confirm(u64),
    /// It is over.
    Done(Answer),
}

/// What the search came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The highest rate that holds, and what is above it.
    Rate(u64, Above),
    /// Not even the lowest rate holds.
    Nothing,
    /// Rates hold in a short step, and none for longer.
    Unsteady,
    /// The generator cannot even make the lowest rate.
    Saturated,
    /// The system loses or damages messages: no rate is an answer.
    Faulty,
}

/// Why the answer is not higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Above {
    /// The bounds do not hold there.
    Slo,
    /// The generator cannot make more: the system might.
    Generator,
    /// The highest rate that was allowed.
    MaxRate,
}

/// State of a search.
#[derive(Debug, Clone)]
pub struct Search {
    min: u64,
    max: u64,
    resolution: f64,
    holds: Option<u64>,
    fails: Option<(u64, Verdict)>,
    confirmations: u32,
    done: Option<Answer>,
}

impl Search {
    /// From `min` to `max` (`1 <= min <= max`), to a `resolution` above 0 (0.05: 5 %).
    pub fn new(min: u64, max: u64, resolution: f64) -> Search {
        let (min, max) = (min.max(1), max.max(min.max(1)));
        let (holds, fails, done) = (None, None, None);
        let resolution = resolution.max(1e-6);
        Search { min, max, resolution, holds, fails, confirmations: 0, done }
    }

    /// What to do next.
    pub fn next(&self) -> Next {
        if let Some(answer) = self.done {
            return Next::Done(answer);
        }
        let Some(holds) = self.holds else { return Next::Try(self.min) };
        let above = self.fails.map_or(self.max, |(rate, _)| rate);
        let close = above as f64 <= holds as f64 * (1.0 + self.resolution) || above <= holds + 1;
        match close {
            true if self.fails.is_none() && holds < self.max => Next::Try(self.max),
            true => Next::Confirm(holds),
            false => {
                let middle = (holds as f64 * above as f64).sqrt() as u64;
                Next::Try(middle.clamp(holds + 1, above - 1))
            }
        }
    }

    /// Takes what came of [`Search::next`]'s rate.
    pub fn note(&mut self, verdict: Verdict) {
        let next = self.next();
        match (next, verdict) {
            (Next::Done(_), _) => {}
            (_, Verdict::Faulty) => self.done = Some(Answer::Faulty),
            (Next::Try(rate), Verdict::Holds) => self.holds = Some(rate),
            (Next::Confirm(rate), Verdict::Holds) => {
                self.done = Some(Answer::Rate(rate, self.above()));
            }
            (Next::Try(rate), _) => self.fails_at(rate, verdict),
            (Next::Confirm(rate), _) => {
                self.confirmations += 1;
                let lower = (rate as f64 / (1.0 + self.resolution)).ceil() as u64;
                self.holds = Some(lower.min(rate - 1));
                self.fails_at(rate, verdict);
                if self.done.is_none() && self.confirmations >= CONFIRMATIONS_MAX {
                    self.done = Some(Answer::Unsteady);
                }
            }
        }
    }

    fn fails_at(&mut self, rate: u64, verdict: Verdict) {
        self.fails = Some((rate, verdict));
        if self.holds.is_none_or(|holds| holds < self.min) {
            self.done = Some(match verdict {
                Verdict::Saturated => Answer::Saturated,
                _ => Answer::Nothing,
            });
        }
    }

    fn above(&self) -> Above {
        match self.fails {
            None => Above::MaxRate,
            Some((_, Verdict::Saturated)) => Above::Generator,
            Some(_) => Above::Slo,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server with one queue: latency is service time over what is idle.
    struct System {
        capacity: f64,
        service_ms: f64,
        generator_max: u64,
    }

    impl System {
        fn of(capacity: u64) -> System {
            System { capacity: capacity as f64, service_ms: 1.0, generator_max: u64::MAX }
        }

        fn verdict(&self, rate: u64, limit_ms: f64) -> Verdict {
            let idle = 1.0 - rate as f64 / self.capacity;
            if rate > self.generator_max {
                return Verdict::Saturated;
            }
            match idle > 0.0 && self.service_ms / idle < limit_ms {
                true => Verdict::Holds,
                false => Verdict::Misses,
            }
        }

        /// The answer, and the rates that were tried.
        fn search(&self, mut search: Search, limit_ms: f64) -> (Answer, Vec<u64>) {
            let mut tried = Vec::new();
            loop {
                let rate = match search.next() {
                    Next::Done(answer) => return (answer, tried),
                    Next::Try(rate) | Next::Confirm(rate) => rate,
                };
                tried.push(rate);
                assert!(tried.len() < 100, "it ends: {tried:?}");
                search.note(self.verdict(rate, limit_ms));
            }
        }
    }

    #[test]
    fn the_highest_rate_that_holds_is_found_to_the_resolution() {
        for capacity in [2_000, 17_777, 250_000, 999_999, 5_000_000] {
            for resolution in [0.2, 0.05, 0.01] {
                let search = Search::new(500, 10_000_000, resolution);
                // Latency of 10 ms is reached at 90 % of the capacity.
                let (answer, tried) = System::of(capacity).search(search, 10.0);
                let best = 0.9 * capacity as f64;
                let Answer::Rate(rate, Above::Slo) = answer else { panic!("{answer:?}") };
                assert!(rate as f64 <= best, "{rate} of {best}: {tried:?}");
                assert!(rate as f64 * (1.0 + resolution) >= best - 1.0, "{rate} of {best}");
                assert_eq!(tried.last(), Some(&rate), "the last run confirms: {tried:?}");
                // ln(20000) resolutions halved, and the first, the confirmation and roundings.
                let steps = ((20_000f64.ln() / resolution.ln_1p()).log2()).ceil() as usize + 4;
                assert!(tried.len() <= steps, "{} of {steps} steps: {tried:?}", tried.len());
            }
        }
    }

    #[test]
    fn what_holds_everywhere_ends_at_the_highest_rate() {
        let (answer, _) = System::of(100_000_000).search(Search::new(1_000, 50_000, 0.05), 10.0);
        assert_eq!(answer, Answer::Rate(50_000, Above::MaxRate));
        let (answer, tried) = System::of(100_000_000).search(Search::new(700, 700, 0.05), 10.0);
        assert_eq!((answer, tried.len()), (Answer::Rate(700, Above::MaxRate), 2));
    }

    #[test]
    fn what_holds_nowhere_ends_at_once() {
        let (answer, tried) = System::of(500).search(Search::new(1_000, 50_000, 0.05), 10.0);
        assert_eq!((answer, tried), (Answer::Nothing, vec![1_000]));
    }

    #[test]
    fn a_saturated_generator_is_an_answer_only_where_a_lower_rate_holds() {
        let system = System { generator_max: 20_000, ..System::of(1_000_000) };
        let (answer, _) = system.search(Search::new(1_000, 500_000, 0.05), 10.0);
        let Answer::Rate(rate, Above::Generator) = answer else { panic!("{answer:?}") };
        assert!((19_000..=20_000).contains(&rate), "{rate}");
        let (answer, tried) = system.search(Search::new(30_000, 500_000, 0.05), 10.0);
        assert_eq!((answer, tried), (Answer::Saturated, vec![30_000]));
    }

    #[test]
    fn a_fault_ends_it() {
        let mut search = Search::new(1_000, 500_000, 0.05);
        search.note(Verdict::Holds);
        search.note(Verdict::Faulty);
        assert_eq!(search.next(), Next::Done(Answer::Faulty));
    }

    #[test]
    fn an_answer_that_is_not_confirmed_is_lowered() {
        let mut search = Search::new(1_000, 1_040, 0.05);
        search.note(Verdict::Holds);
        assert_eq!(search.next(), Next::Try(1_040));
        search.note(Verdict::Misses);
        assert_eq!(search.next(), Next::Confirm(1_000));
        search.note(Verdict::Misses);
        assert_eq!(search.next(), Next::Done(Answer::Nothing), "nothing is below the lowest");

        let mut search = Search::new(1_000, 100_000, 0.05);
        while let Next::Try(rate) = search.next() {
            search.note(if rate < 10_000 { Verdict::Holds } else { Verdict::Misses });
        }
        let mut rates = Vec::new();
        while let Next::Confirm(rate) = search.next() {
            rates.push(rate);
            search.note(if rates.len() < 3 { Verdict::Misses } else { Verdict::Holds });
        }
        assert_eq!(rates.len(), 3);
        assert!(rates.is_sorted_by(|a, b| *a as f64 >= 1.04 * *b as f64), "{rates:?}");
        assert_eq!(search.next(), Next::Done(Answer::Rate(rates[2], Above::Slo)));
    }

    #[test]
    fn what_never_holds_for_longer_is_unsteady() {
        let mut search = Search::new(1, 1_000_000, 0.05);
        loop {
            match search.next() {
                Next::Try(rate) => {
                    search.note(if rate < 10_000 { Verdict::Holds } else { Verdict::Misses });
                }
                Next::Confirm(_) => search.note(Verdict::Misses),
                Next::Done(answer) => return assert_eq!(answer, Answer::Unsteady),
            }
        }
    }
}
