//! Where the pending timers of each segment come from, and which is the next of all.
//!
//! Invariants:
//! - what is handed out by [`Sources::pull`] comes in the order of the keys, but for what is set meanwhile;
//! - a source whose next timer is not known yet holds back those of the others that may be behind it;
//! - of a segment with an index one page, or two, are in memory (promise: bounded).

use super::Key;
use super::run::{Next, Run};
use crate::index::Pages;
use std::collections::{BTreeMap, BTreeSet};

/// Rows in memory that are let go of in one step.
const ROWS_A_STEP: usize = 1000;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    segments: BTreeMap<u64, Source>,
    /// Of each source that has something left: its next key, or what that is behind.
    heads: BTreeSet<(Key, u64)>,
    /// Runs that may want a page.
    hungry: BTreeSet<u64>,
    /// Rows that an index took the place of.
    stale: Vec<BTreeMap<Key, u32>>,
}

/// The pending timers of one segment.
#[derive(Debug, Default)]
struct Source {
    /// All of them, or nothing: the index has them.
    memory: Option<BTreeMap<Key, u32>>,
    run: Option<Run>,
    head: Option<Key>,
    /// End of the last record of the log that says that one of them is over.
    ended_at: u64,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    /// This one.
    Is(Key),
    /// Not known before a page is there, but behind this.
    Behind(Key),
}

impl Head {
    /// Nothing that is left is below.
    pub(crate) fn key(self) -> Key {
        match self {
            Head::Is(key) | Head::Behind(key) => key,
        }
    }
}

/// A timer that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pulled {
    pub(crate) key: Key,
    pub(crate) bytes: u32,
    /// Its segment.
    pub(crate) base: u64,
}

impl Source {
    fn next(&self) -> Next {
        if let Some(memory) = &self.memory {
            return memory
                .first_key_value()
                .map_or(Next::End, |(key, bytes)| Next::Is(*key, *bytes));
        }
        self.run.as_ref().map_or(Next::End, Run::next)
    }

    fn left(&self) -> usize {
        match (&self.memory, &self.run) {
            (Some(memory), _) => memory.len(),
            (None, Some(run)) => run.left() as usize,
            (None, None) => 0,
        }
    }
}

impl Sources {
    /// A timer of a segment without an index.
    pub(crate) fn insert(&mut self, base: u64, key: Key, bytes: u32) {
        let source = self.segments.entry(base).or_default();
        source.memory.get_or_insert_default().insert(key, bytes);
        if source.head.is_none_or(|head| key < head) {
            self.refresh(base);
        }
    }

    /// The index of a segment is there; everything up to `over` is over. Until the place in it is found what is in
    /// memory goes on.
    pub(crate) fn index(&mut self, base: u64, pages: Pages, over: Key) {
        let has_more = pages.timer_rows > 0 && pages.newest_due_ms >= over.due_ms;
        let source = self.segments.entry(base).or_default();
        source.run = has_more.then(|| Run::new(base, pages, over));
        if !has_more {
            self.stale.extend(source.memory.take());
        }
        self.hungry.insert(base);
        self.refresh(base);
    }

    /// The index of a segment is not to be read any more, until there is another.
    pub(crate) fn lose(&mut self, base: u64) {
        if let Some(run) = self.segments.get_mut(&base).and_then(|source| source.run.as_mut()) {
            run.lose();
            self.refresh(base);
        }
    }

    /// A segment is gone.
    pub(crate) fn forget(&mut self, base: u64) {
        if let Some(source) = self.segments.remove(&base) {
            self.heads.retain(|(_, of)| *of != base);
            self.stale.extend(source.memory);
        }
        self.hungry.remove(&base);
    }

    /// What comes next of all.
    pub(crate) fn head(&self) -> Option<Head> {
        let (key, base) = self.heads.first()?;
        Some(self.head_of(*key, *base))
    }

    /// What comes next of one segment.
    pub(crate) fn head_in(&self, base: u64) -> Option<Head> {
        let key = self.segments.get(&base)?.head?;
        Some(self.head_of(key, base))
    }

    fn head_of(&self, key: Key, base: u64) -> Head {
        match self.segments[&base].next() {
            Next::Is(key, _) => Head::Is(key),
            Next::Behind(_) | Next::End => Head::Behind(key),
        }
    }

    /// Hands out what comes next of all, when that is known. What memory handed out comes again when the index takes
    /// its place.
    pub(crate) fn pull(&mut self) -> Option<Pulled> {
        let (_, base) = *self.heads.first()?;
        self.pull_from(base)
    }

    /// Hands out what comes next of one segment, when that is known.
    pub(crate) fn pull_from(&mut self, base: u64) -> Option<Pulled> {
        let source = self.segments.get_mut(&base)?;
        let Next::Is(key, bytes) = source.next() else { return None };
        match (&mut source.memory, &mut source.run) {
            (Some(memory), _) => drop(memory.pop_first()),
            (None, Some(run)) => {
                run.pass(key);
                self.hungry.insert(base);
            }
            (None, None) => return None,
        }
        self.refresh(base);
        Some(Pulled { key, bytes, base })
    }

    /// Pages that are to be read now, with their segments.
    pub(crate) fn ask(&mut self) -> Vec<(u64, u32)> {
        let mut wanted = Vec::new();
        for base in std::mem::take(&mut self.hungry) {
            let Some(source) = self.segments.get_mut(&base) else { continue };
            let Some(run) = source.run.as_mut() else { continue };
            wanted.extend(run.ask().map(|page| (base, page)));
            // From here on the index says what is left, and not memory.
            if matches!(run.next(), Next::Is(..) | Next::End) {
                self.stale.extend(source.memory.take());
            }
            self.refresh(base);
        }
        wanted
    }

    /// A page was read, or could not be. Returns whether it is what it should be.
    pub(crate) fn take_page(&mut self, base: u64, page: u32, bytes: Option<&[u8]>) -> bool {
        let source = self.segments.get_mut(&base);
        let Some(run) = source.and_then(|source| source.run.as_mut()) else { return true };
        let is_good = run.take(page, bytes);
        self.hungry.insert(base);
        self.refresh(base);
        is_good
    }

    /// A page was read of an index that may be another by now: it is asked for again. Returns true.
    pub(crate) fn take_old(&mut self, base: u64, page: u32) -> bool {
        let source = self.segments.get_mut(&base);
        if let Some(run) = source.and_then(|source| source.run.as_mut()) {
            run.take_old(page);
            self.hungry.insert(base);
        }
        true
    }

    /// One of a segment's timers is over, as a record says that ends there.
    pub(crate) fn ended(&mut self, base: u64, end: u64) {
        let source = self.segments.entry(base).or_default();
        source.ended_at = source.ended_at.max(end);
    }

    /// Whether nothing of a segment is left here, and that is durable when everything below `flushed` is.
    pub(crate) fn is_clear(&self, base: u64, flushed: u64) -> bool {
        let source = self.segments.get(&base);
        source.is_none_or(|source| source.head.is_none() && source.ended_at <= flushed)
    }

    /// How many are left of a segment; too many while its place is not found.
    pub(crate) fn left_in(&self, base: u64) -> usize {
        self.segments.get(&base).map_or(0, Source::left)
    }

    /// How many are left of all.
    pub(crate) fn left(&self) -> usize {
        self.segments.values().map(Source::left).sum()
    }

    /// Whether rows are to be let go of.
    pub(crate) fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Whether a page may be wanted.
    pub(crate) fn is_hungry(&self) -> bool {
        !self.hungry.is_empty()
    }

    /// Lets go of some rows.
    pub(crate) fn drop_stale(&mut self) {
        let Some(rows) = self.stale.last_mut() else { return };
        for _ in 0..ROWS_A_STEP {
            if rows.pop_first().is_none() {
                self.stale.pop();
                return;
            }
        }
    }

    /// Another reader of what is left behind a key, of which at most `most` are wanted: `over` says what of a segment
    /// is. `beside` are timers that were handed out already, or are behind.
    pub(crate) fn view(
        &self,
        after: Key,
        most: usize,
        over: impl Fn(u64) -> Key,
        beside: impl Iterator<Item = (Key, u32)>,
    ) -> Sources {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut view = Sources::default();
        for (base, source) in &self.segments {
            let copy = view.segments.entry(*base).or_default();
            if let Some(memory) = &source.memory {
                let rows = memory.range((Excluded(after), Unbounded)).take(most);
                copy.memory = Some(rows.map(|(key, bytes)| (*key, *bytes)).collect());
            } else if let Some(run) = &source.run {
                copy.run = Some(run.view(after.max(over(*base))));
                view.hungry.insert(*base);
            }
            view.refresh(*base);
        }
        // No segment begins there.
        let base = u64::MAX;
        let copy = view.segments.entry(base).or_default();
        copy.memory = Some(beside.filter(|(key, _)| *key > after).collect());
        view.refresh(base);
        view
    }

    /// Whether an index that must be read is being made again.
    pub(crate) fn is_lost(&self) -> bool {
        let first = self.heads.first().and_then(|(_, base)| self.segments.get(base));
        first.is_some_and(|source| {
            source.memory.is_none() && source.run.as_ref().is_some_and(Run::is_lost)
        })
    }

    /// The head of a source may be another.
    fn refresh(&mut self, base: u64) {
        let Some(source) = self.segments.get_mut(&base) else { return };
        let head = match source.next() {
            Next::Is(key, _) | Next::Behind(key) => Some(key),
            Next::End => None,
        };
        if head == source.head {
            return;
        }
        if let Some(before) = std::mem::replace(&mut source.head, head) {
            self.heads.remove(&(before, base));
        }
        self.heads.extend(head.map(|key| (key, base)));
    }
}
