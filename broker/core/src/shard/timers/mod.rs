//! Delayed messages in a shard: set, delivered, appended again, taken back, listed.
//!
//! A delayed message lies in the log as a [`Kind::Timer`] record, byte for byte as it came. When its time has come it
//! is appended again as a message of its queue, which names the position of that record: so delivery is one append,
//! and a crash leaves either both or neither of the message and the knowledge that it was delivered.
//!
//! Invariants:
//! - a message is appended only when the wall clock has reached its time (promise: never-early);
//! - in the order of (time, position), whatever reads end first;
//! - a segment goes only when none of its timers is pending and what says so is durable;
//! - rows, pages and records in memory are bounded by what a segment holds without its index, and by constants.
//!
//! [`Kind::Timer`]: ringmq_schema::record::Kind::Timer

mod batch;
mod deliver;
mod jobs;
mod moving;
mod read;
mod recall;
mod set;

use super::Shard;
use crate::index::{PLACE_BYTES, Pages, TimerRow};
use crate::log::Segment;
use crate::seam::{Memory, Now, Outbox};
use crate::table::Map;
use crate::timer::{Delayed, Head, Key, Marks, Sources};
use batch::Batch;
use jobs::Job;
use moving::Moving;
use read::Reading;
pub(super) use set::Delays;

/// Timers are read so long before they are due, ms: a disk that is busy answers in tens of ms.
const AHEAD_MS: i64 = 200;
/// Most that are read and wait for their time, and their bytes.
const STAGED_MAX: usize = 1024;
/// See [`STAGED_MAX`].
const STAGED_BYTES: usize = 4 << 20;
/// Nothing is awaited for longer: the runtime looks at the wall clock each second anyway.
const WAKE_MS_MAX: i64 = 3_600_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Timers {
    pub(super) marks: Marks,
    pub(super) sources: Sources,
    pub(super) delayed: Delayed,
    /// The next ones, in the order in which they are due.
    staged: Batch,
    moving: Option<Moving>,
    jobs: Map<u64, Job>,
    reads: Map<u64, Reading>,
    /// Counts reads and jobs.
    next: u64,
    /// What could not be read is tried again then.
    retry_us: Option<u64>,
    wake_us: Option<u64>,
}

impl Timers {
    /// As recovery found them: `rows` of segments without an index, by base; of the others where they are.
    pub(super) fn open(
        marks: Marks,
        delayed: Delayed,
        rows: Vec<(u64, Vec<TimerRow>)>,
        indexes: impl Iterator<Item = (u64, Pages)>,
    ) -> Timers {
        let mut sources = Sources::default();
        for (base, rows) in rows {
            let over = marks.over(base);
            for row in rows {
                let position = base + u64::from(row.place) * PLACE_BYTES;
                let key = Key { due_ms: row.due_ms, position };
                if key > over {
                    sources.insert(base, key, row.bytes);
                }
            }
        }
        for (base, pages) in indexes.filter(|(_, pages)| pages.timer_rows > 0) {
            sources.index(base, pages, marks.over(base));
        }
        Timers { marks, sources, delayed, ..Timers::default() }
    }

    /// When something is due, in `Now::mono_us`.
    pub(super) fn next_wake(&self) -> Option<u64> {
        self.wake_us
    }

    /// How many messages wait for their time.
    pub(super) fn pending(&self) -> u64 {
        let moving = self.moving.as_ref().map_or(0, |moving| moving.batch.count(&self.marks));
        let handed_out = self.staged.count(&self.marks) + moving;
        let all = self.sources.left() + handed_out + self.marks.behind_len();
        all.saturating_sub(self.marks.recalled_len()) as u64
    }

    /// Whether nothing waits at all, also nothing that cannot be read.
    pub(super) fn is_empty(&self) -> bool {
        let handed_out = self.staged.len() + self.moving.as_ref().map_or(0, |m| m.batch.len());
        handed_out == 0 && self.marks.behind_len() == 0 && self.sources.left() == 0
    }

    /// The index of a segment is to be used no more.
    pub(super) fn lose_index(&mut self, base: u64) {
        self.sources.lose(base);
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl<M: Memory> Shard<M> {
    /// Delivers what is due, goes on with what was begun, and says when the next is due.
    pub(super) fn step_timers(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        if self.log.failed().is_some() || self.stopping || !self.epoch_is_durable {
            self.timers.wake_us = None;
            return;
        }
        self.timers.sources.drop_stale();
        let before = self.log.appended();
        self.stage(now, out);
        let is_cut_short = self.deliver(now, out);
        let is_moving = self.step_moving(now, out);
        if self.log.appended() != before {
            // Room was made: what comes next is read meanwhile.
            self.stage(now, out);
            self.log.pump(now, out);
        }
        let timers = &self.timers;
        let wake = match () {
            () if timers.sources.has_stale() || is_cut_short => Some(0),
            () if is_moving => Some(now.mono_us + moving::PAUSE_US),
            () => self.next_due(now),
        };
        self.timers.wake_us = wake.into_iter().chain(self.timers.retry_us).min();
    }

    /// When something is to be read or delivered, as far as nothing is awaited.
    fn next_due(&self, now: Now) -> Option<u64> {
        let at = |ms: i64| {
            let left = ms.saturating_sub(now.wall_ms).clamp(0, WAKE_MS_MAX);
            now.mono_us + left as u64 * 1000
        };
        let timers = &self.timers;
        let ahead = |key: Key| key.due_ms.saturating_sub(AHEAD_MS);
        let staged = timers.staged.first().map(|(key, _)| key.due_ms);
        let head = match timers.sources.head() {
            Some(Head::Is(key)) => Some(ahead(key)),
            Some(Head::Behind(_)) | None => None,
        };
        let behind = timers.marks.behind(None).find(|(key, _)| !timers.staged.has(*key));
        let behind = behind.map(|(key, _)| ahead(key));
        // What is due and not delivered waits for a read, for the disk, or for room; each of these is told.
        staged.into_iter().chain(head).chain(behind).filter(|ms| *ms > now.wall_ms).map(at).min()
    }

    /// The index of a segment is there.
    pub(super) fn timers_indexed(&mut self, number: u32) {
        let Some(segment) = self.log.segment_numbered(number) else { return };
        if let Some(pages) = segment.index {
            let over = self.timers.marks.over(segment.base);
            self.timers.sources.index(segment.base, pages, over);
        }
    }

    /// Whether no timer of a segment is pending, and that is durable.
    pub(super) fn is_clear_of_timers(&self, segment: &Segment) -> bool {
        let timers = &self.timers;
        let range = segment.base..segment.end();
        let is_in = |batch: &Batch| batch.keys().any(|key| range.contains(&key.position));
        timers.sources.is_clear(segment.base, self.log.flushed())
            && !is_in(&timers.staged)
            && !timers.moving.as_ref().is_some_and(|moving| is_in(&moving.batch))
            && !timers.marks.behind(None).any(|(key, _)| range.contains(&key.position))
    }

    /// A segment is gone.
    pub(super) fn forget_timers(&mut self, segment: &Segment) {
        self.timers.marks.forget(segment.base, segment.end());
        self.timers.sources.forget(segment.base);
    }
}
