//! How many delayed messages wait for each queue.
//!
//! Invariants:
//! - each change follows a record of the log, so replay from an absolute slice on comes to the same;
//! - what is damaged on disk is not known to be over, and counts until nothing at all waits.

use crate::peer::QueueId;
use std::collections::BTreeMap;

/// See the module.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Delayed {
    queues: BTreeMap<QueueId, u64>,
}

impl Delayed {
    /// How many wait for a queue.
    pub(crate) fn of(&self, queue: QueueId) -> u64 {
        self.queues.get(&queue).copied().unwrap_or(0)
    }

    /// One more waits.
    pub(crate) fn set(&mut self, queue: QueueId) {
        *self.queues.entry(queue).or_default() += 1;
    }

    /// One was delivered, or taken back.
    pub(crate) fn end(&mut self, queue: QueueId) {
        let Some(count) = self.queues.get_mut(&queue) else { return };
        *count -= 1;
        if *count == 0 {
            self.queues.remove(&queue);
        }
    }

    /// From a queue on, in order.
    pub(crate) fn from(&self, first: QueueId) -> impl Iterator<Item = (QueueId, u64)> + '_ {
        self.queues.range(first..).map(|(queue, count)| (*queue, *count))
    }

    /// A slice of a snapshot begins, which says all there is of these queues.
    pub(crate) fn clear(&mut self, first: QueueId, last: QueueId) {
        self.queues.retain(|queue, _| *queue < first || *queue > last);
    }

    /// It says so of one.
    pub(crate) fn restore(&mut self, queue: QueueId, count: u64) {
        if count > 0 {
            self.queues.insert(queue, count);
        }
    }

    pub(crate) fn forget_topic(&mut self, topic: u32) {
        self.forget_if(|of| of == topic);
    }

    pub(crate) fn forget_if(&mut self, is_gone: impl Fn(u32) -> bool) {
        self.queues.retain(|queue, _| !is_gone(queue.topic));
    }

    /// Nothing waits at all.
    pub(crate) fn forget_all(&mut self) {
        self.queues.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_says_all_of_its_range_and_nothing_goes_below_zero() {
        let queue = |topic, queue| QueueId { topic, queue };
        let mut delayed = Delayed::default();
        for id in [queue(1, 0), queue(1, 0), queue(2, 5), queue(3, 0)] {
            delayed.set(id);
        }
        delayed.end(queue(9, 9));
        delayed.clear(queue(1, 1), queue(2, u32::MAX));
        delayed.restore(queue(2, 7), 4);
        let all: Vec<_> = delayed.from(queue(0, 0)).collect();
        assert_eq!(all, [(queue(1, 0), 2), (queue(2, 7), 4), (queue(3, 0), 1)]);
        delayed.end(queue(3, 0));
        delayed.end(queue(3, 0));
        assert_eq!((delayed.of(queue(3, 0)), delayed.from(queue(3, 0)).count()), (0, 0));
        delayed.forget_topic(1);
        assert_eq!((delayed.of(queue(1, 0)), delayed.of(queue(2, 7))), (0, 4));
    }
}
