//! Deadlines of device operations.
//!
//! Invariants:
//! - each operation is reported once: when it ends, or when its deadline passes; then its end is ignored;
//! - what the device has not given back stays its own: memory and file are held until the late end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// An operation, as the shard numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Write(u64),
    Sync(u64),
    /// Making the segment at this position.
    Segment(u64),
    Read(u64),
    IndexRead(u64),
}

/// The operations of one shard that are under way.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    next: Cell<u64>,
    /// In the order in which they began.
    under_way: RefCell<BTreeMap<u64, (Instant, Operation)>>,
}

impl Deadlines {
    /// An operation begins; what to end it with.
    pub(crate) fn begin(&self, now: Instant, operation: Operation) -> u64 {
        let ticket = self.next.get();
        self.next.set(ticket + 1);
        self.under_way.borrow_mut().insert(ticket, (now, operation));
        ticket
    }

    /// It ended; whether that is still to be reported.
    pub(crate) fn end(&self, ticket: u64) -> bool {
        self.under_way.borrow_mut().remove(&ticket).is_some()
    }

    /// Takes out one that began longer ago than `limit`.
    pub(crate) fn overdue(&self, now: Instant, limit: Duration) -> Option<Operation> {
        let mut under_way = self.under_way.borrow_mut();
        let first = under_way.first_entry()?;
        let is_overdue = now.saturating_duration_since(first.get().0) > limit;
        is_overdue.then(|| first.remove().1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_overdue_is_reported_once_and_its_end_ignored() {
        let (deadlines, begun) = (Deadlines::default(), Instant::now());
        let at = |ms| begun + Duration::from_millis(ms);
        let limit = Duration::from_millis(100);
        let slow = deadlines.begin(at(0), Operation::Write(7));
        let fast = deadlines.begin(at(10), Operation::Sync(1));
        let later = deadlines.begin(at(200), Operation::Read(2));
        assert!(deadlines.end(fast));
        assert_eq!(deadlines.overdue(at(100), limit), None);
        assert_eq!(deadlines.overdue(at(201), limit), Some(Operation::Write(7)));
        assert_eq!(deadlines.overdue(at(201), limit), None);
        assert!(!deadlines.end(slow) && deadlines.end(later) && !deadlines.end(later));
    }
}
