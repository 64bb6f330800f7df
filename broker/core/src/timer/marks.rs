//! What was delivered, taken back, or appended again: all of it but a handful of exceptions is one mark.
//!
//! Invariants:
//! - `fired` only grows, with what is delivered; a timer at or below it is over unless it is in `behind`;
//! - `behind` has the timers that were set below the mark: the clock had been set back, or they were due already;
//! - they follow from the log alone; each function says what is, in the order of the log, and so replay from a snapshot's beginning on comes to the
//!   same, whatever part of it the snapshot said already.

use super::Key;
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Marks {
    fired: Key,
    /// With the lengths of their records.
    behind: BTreeMap<Key, u32>,
    recalled: BTreeSet<Key>,
    /// By segment: what was appended again of it.
    moved: BTreeMap<u64, Key>,
}

impl Default for Marks {
    fn default() -> Self {
        Marks {
            fired: Key::MIN,
            behind: BTreeMap::new(),
            recalled: BTreeSet::new(),
            moved: BTreeMap::new(),
        }
    }
}

impl Marks {
    /// Everything up to here is over, but for what is behind.
    pub(crate) fn fired(&self) -> Key {
        self.fired
    }

    /// Everything of a segment up to here is over, but for what is behind.
    pub(crate) fn over(&self, base: u64) -> Key {
        self.moved.get(&base).map_or(self.fired, |moved| self.fired.max(*moved))
    }

    /// Segments of which something was appended again, and how much.
    pub(crate) fn moved(&self) -> impl Iterator<Item = (u64, Key)> + '_ {
        self.moved.iter().map(|(base, key)| (*base, *key))
    }

    /// Timers below the mark that are pending nevertheless, behind a key.
    pub(crate) fn behind(&self, after: Option<Key>) -> impl Iterator<Item = (Key, u32)> + '_ {
        range(after, |bounds| self.behind.range(bounds)).map(|(key, bytes)| (*key, *bytes))
    }

    /// Whether there is one of these that is due at this time.
    pub(crate) fn is_behind_at(&self, due_ms: i64) -> bool {
        let at = |position| Key { due_ms, position };
        self.behind.range(at(0)..=at(u64::MAX)).next().is_some()
    }

    /// How many there are of these.
    pub(crate) fn behind_len(&self) -> usize {
        self.behind.len()
    }

    /// Timers that were taken back and are not over, behind a key.
    pub(crate) fn recalled(&self, after: Option<Key>) -> impl Iterator<Item = Key> + '_ {
        range(after, |bounds| self.recalled.range(bounds)).copied()
    }

    /// How many there are of these.
    pub(crate) fn recalled_len(&self) -> usize {
        self.recalled.len()
    }

    /// Whether a timer was taken back.
    pub(crate) fn is_recalled(&self, key: Key) -> bool {
        self.recalled.contains(&key)
    }

    /// Whether a timer of a segment, which was set, is not over.
    pub(crate) fn is_pending(&self, base: u64, key: Key) -> bool {
        (key > self.over(base) || self.behind.contains_key(&key)) && !self.is_recalled(key)
    }

    /// A timer is set. Returns whether it is behind.
    pub(crate) fn set(&mut self, key: Key, bytes: u32) -> bool {
        let is_behind = key <= self.fired;
        if is_behind {
            self.behind.insert(key, bytes);
        }
        is_behind
    }

    /// A timer was delivered.
    pub(crate) fn fire(&mut self, key: Key) {
        if self.behind.remove(&key).is_none() {
            self.fired = self.fired.max(key);
            self.drop_recalled();
        }
    }

    /// A timer is passed over, which the log does not say: the mark moves with the next that is delivered, and so it
    /// is the same after a restart.
    pub(crate) fn skip(&mut self, key: Key) {
        if self.behind.remove(&key).is_some() {
            self.recalled.remove(&key);
        }
    }

    /// Those below the mark are over.
    fn drop_recalled(&mut self) {
        let Marks { fired, behind, recalled, .. } = self;
        if recalled.first().is_some_and(|first| first <= fired) {
            recalled.retain(|key| key > fired || behind.contains_key(key));
        }
    }

    /// A timer was taken back.
    pub(crate) fn recall(&mut self, key: Key) {
        self.recalled.insert(key);
    }

    /// A timer of a segment was appended again: of those of a segment that are not behind the lowest first.
    pub(crate) fn append_again(&mut self, base: Option<u64>, key: Key) {
        if self.behind.remove(&key).is_none()
            && let Some(base) = base
        {
            let moved = self.moved.entry(base).or_insert(key);
            *moved = (*moved).max(key);
        }
    }

    /// A snapshot says how far delivery was.
    pub(crate) fn restore_fired(&mut self, key: Key) {
        self.fired = self.fired.max(key);
    }

    /// A snapshot says that a timer is behind.
    pub(crate) fn restore_behind(&mut self, key: Key, bytes: u32) {
        self.behind.insert(key, bytes);
    }

    /// A segment is gone.
    pub(crate) fn forget(&mut self, base: u64, end: u64) {
        self.moved.remove(&base);
        let is_in = |key: &Key| (base..end).contains(&key.position);
        self.recalled.retain(|key| !is_in(key));
        self.behind.retain(|key, _| !is_in(key));
    }

    /// Everything was replayed, and the log begins at `start`: what is over or gone need not be known.
    pub(crate) fn settle(&mut self, start: u64) {
        self.moved.retain(|base, _| *base >= start);
        self.behind.retain(|key, _| key.position >= start);
        self.recalled.retain(|key| key.position >= start);
        self.drop_recalled();
    }
}

fn range<T>(
    after: Option<Key>,
    range: impl FnOnce((std::ops::Bound<Key>, std::ops::Bound<Key>)) -> T,
) -> T {
    use std::ops::Bound::{Excluded, Unbounded};
    range((after.map_or(Unbounded, Excluded), Unbounded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(due_ms: i64, position: u64) -> Key {
        Key { due_ms, position }
    }

    #[test]
    fn one_mark_says_what_is_over() {
        let mut marks = Marks::default();
        assert!(!marks.set(key(50, 8), 200) && !marks.set(key(40, 16), 200));
        marks.fire(key(40, 16));
        assert!(marks.is_pending(0, key(50, 8)) && !marks.is_pending(0, key(40, 16)));
        assert!(marks.is_pending(0, key(40, 24)), "the same time, but later in the log");
        marks.recall(key(50, 8));
        assert!(!marks.is_pending(0, key(50, 8)));
        marks.skip(key(50, 8));
        assert_eq!((marks.fired(), marks.recalled_len()), (key(40, 16), 1));
        marks.fire(key(60, 48));
        assert_eq!((marks.fired(), marks.recalled_len()), (key(60, 48), 0));
    }

    #[test]
    fn a_timer_set_below_the_mark_is_pending_until_it_ends_itself() {
        let mut marks = Marks::default();
        marks.fire(key(100, 8));
        assert!(marks.set(key(60, 16), 200) && marks.set(key(50, 24), 200));
        marks.fire(key(50, 24));
        assert_eq!(marks.fired(), key(100, 8));
        assert!(marks.set(key(55, 32), 200));
        marks.recall(key(55, 32));
        marks.fire(key(110, 40));
        assert!(!marks.is_pending(0, key(55, 32)), "still known to be taken back");
        marks.skip(key(55, 32));
        assert_eq!((marks.recalled_len(), marks.behind_len()), (0, 1));
        assert!(marks.is_pending(0, key(60, 16)) && !marks.is_pending(0, key(50, 24)));
        marks.append_again(Some(0), key(60, 16));
        assert!(!marks.is_pending(0, key(60, 16)) && marks.moved().next().is_none());
    }

    #[test]
    fn what_was_appended_again_is_over_in_its_segment_only() {
        let mut marks = Marks::default();
        marks.append_again(Some(0), key(70, 8));
        marks.append_again(Some(0), key(80, 16));
        assert!(!marks.is_pending(0, key(75, 24)) && marks.is_pending(0, key(90, 32)));
        assert!(marks.is_pending(4096, key(75, 4104)));
        marks.recall(key(90, 32));
        marks.recall(key(90, 5000));
        marks.settle(4096);
        assert_eq!(marks.moved().count(), 0);
        assert_eq!(marks.recalled(None).collect::<Vec<_>>(), [key(90, 5000)]);
        marks.forget(4096, 8192);
        assert_eq!(marks.recalled_len(), 0);
    }
}
