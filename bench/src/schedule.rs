//! When requests are due.
//!
//! Open loop: request *i* is due at `t0 + i / rate`, however long the ones before it took. Latency that
//! counts from there includes the time that a request waited because the system was behind, which a
//! closed loop leaves out.
//!
//! Invariants:
//! - due times are exact to the nanosecond for ever: they are computed from *i*, never added up;
//! - a generator that cannot keep its own schedule says so: its figures are not the system's.

/// A request that starts later than this after it was due counts as late.
pub const LATE_AFTER_NS: u64 = 1_000_000;

/// Saturated when more than one request in this many was late (0.1 %).
const LATE_ONE_IN: u64 = 1_000;

/// Due times at a fixed rate.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    start_ns: u64,
    messages_per_second: u64,
    messages_per_request: u64,
}

impl Schedule {
    /// From `start_ns` on, `messages_per_second` in requests of `messages_per_request`; both at least 1.
    pub fn new(start_ns: u64, messages_per_second: u64, messages_per_request: u64) -> Schedule {
        Schedule {
            start_ns,
            messages_per_second: messages_per_second.max(1),
            messages_per_request: messages_per_request.max(1),
        }
    }

    /// When request `index` is due.
    pub fn due_ns(&self, index: u64) -> u64 {
        let scaled = u128::from(index) * u128::from(self.messages_per_request) * 1_000_000_000;
        let after = scaled / u128::from(self.messages_per_second);
        self.start_ns.saturating_add(u64::try_from(after).unwrap_or(u64::MAX))
    }

    /// How many requests are due in the first `duration_ns`: those with `due < start + duration`.
    pub fn requests_in(&self, duration_ns: u64) -> u64 {
        let scaled = u128::from(duration_ns) * u128::from(self.messages_per_second);
        let per_request = u128::from(self.messages_per_request) * 1_000_000_000;
        u64::try_from(scaled.div_ceil(per_request)).unwrap_or(u64::MAX)
    }
}

/// How well the generator kept the schedule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Punctuality {
    /// Requests that were due; those that were never started are among the late ones.
    pub started: u64,
    /// Of them, over [`LATE_AFTER_NS`] late.
    pub late: u64,
    /// Of the late ones, those that would have been on time had the client's window not been full: there
    /// the system fell behind, not the generator.
    pub held_back: u64,
    /// The worst delay.
    pub late_ns_max: u64,
}

impl Punctuality {
    /// Notes that a request due at `due_ns` was started at `started_ns`, and that the requests before it
    /// waited `held_ns` for room in the client's window since one was last on time.
    pub fn note(&mut self, due_ns: u64, started_ns: u64, held_ns: u64) {
        let delay_ns = started_ns.saturating_sub(due_ns);
        let late = delay_ns > LATE_AFTER_NS;
        self.started += 1;
        self.late += u64::from(late);
        self.held_back += u64::from(late && delay_ns.saturating_sub(held_ns) <= LATE_AFTER_NS);
        self.late_ns_max = self.late_ns_max.max(delay_ns);
    }

    /// Notes requests that were due and never started, the first of them due at `due_ns` and given up at
    /// `now_ns`.
    pub fn note_missed(&mut self, requests: u64, due_ns: u64, now_ns: u64, held_ns: u64) {
        let held = now_ns.saturating_sub(due_ns).saturating_sub(held_ns) <= LATE_AFTER_NS;
        self.started += requests;
        self.late += requests;
        self.held_back += if held { requests } else { 0 };
    }

    /// Adds another generator's.
    pub fn merge(&mut self, other: Punctuality) {
        self.started += other.started;
        self.late += other.late;
        self.held_back += other.held_back;
        self.late_ns_max = self.late_ns_max.max(other.late_ns_max);
    }

    /// Whether more than 0.1 % of the requests were late by the generator's own fault: the figures are then
    /// the generator's.
    pub fn is_saturated(&self) -> bool {
        let own = self.late - self.held_back;
        own.saturating_mul(LATE_ONE_IN) > self.started
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_times_do_not_drift() {
        let schedule = Schedule::new(1_000, 3, 1);
        assert_eq!(schedule.due_ns(0), 1_000);
        assert_eq!(schedule.due_ns(1), 1_000 + 333_333_333);
        assert_eq!(schedule.due_ns(3), 1_000 + 1_000_000_000);
        assert_eq!(schedule.due_ns(3_000_000_000), 1_000 + 1_000_000_000_000_000_000);
    }

    #[test]
    fn a_batch_spaces_its_requests() {
        let schedule = Schedule::new(0, 10_000, 100);
        assert_eq!(schedule.due_ns(1), 10_000_000);
        assert_eq!(schedule.requests_in(1_000_000_000), 100);
    }

    #[test]
    fn requests_in_a_duration_are_those_due_before_its_end() {
        for rate in [1, 3, 7, 1_000, 333_333] {
            let schedule = Schedule::new(0, rate, 1);
            let count = schedule.requests_in(2_000_000_000);
            assert!(schedule.due_ns(count - 1) < 2_000_000_000, "rate {rate}");
            assert!(schedule.due_ns(count) >= 2_000_000_000 - 1, "rate {rate}");
        }
        assert_eq!(Schedule::new(0, 5, 1).requests_in(0), 0);
    }

    #[test]
    fn more_than_one_in_a_thousand_late_is_saturated() {
        let mut punctuality = Punctuality::default();
        for _ in 0..999 {
            punctuality.note(0, LATE_AFTER_NS, 0);
        }
        assert_eq!(punctuality.late, 0);
        punctuality.note(0, LATE_AFTER_NS + 1, 0);
        assert!(!punctuality.is_saturated(), "one in a thousand is allowed");
        punctuality.note(0, 5 * LATE_AFTER_NS, 0);
        assert!(punctuality.is_saturated());
        assert_eq!(punctuality.late_ns_max, 5 * LATE_AFTER_NS);
    }

    #[test]
    fn who_waits_for_the_system_is_late_and_not_saturated() {
        let mut punctuality = Punctuality::default();
        punctuality.note(0, 50 * LATE_AFTER_NS, 49 * LATE_AFTER_NS);
        punctuality.note_missed(10, 0, 60 * LATE_AFTER_NS, 60 * LATE_AFTER_NS);
        assert_eq!((punctuality.late, punctuality.held_back), (11, 11));
        assert!(!punctuality.is_saturated());
        punctuality.note(0, 50 * LATE_AFTER_NS, 40 * LATE_AFTER_NS);
        assert!(punctuality.is_saturated(), "it was late beyond what it had to wait");
    }

    #[test]
    fn an_early_start_is_not_late() {
        let mut punctuality = Punctuality::default();
        punctuality.note(10, 5, 0);
        assert_eq!((punctuality.late, punctuality.late_ns_max), (0, 0));
        assert!(!Punctuality::default().is_saturated());
    }
}
