//! What is still owed is appended again before its segment goes.
//!
//! Invariants:
//! - the copy names the position of the record that it takes the place of: replay counts that one as over;
//! - what is behind goes first, then the others in the order in which they are due, so that one key says how far;
//! - a segment is emptied only when that gives back more than it costs, or when it is old: a log of nothing but timers
//!   is not written again and again.

use super::batch::Batch;
use super::deliver::patch_timer;
use super::read::{Taken, Whose};
use super::{AHEAD_MS, Key};
use crate::log::Segment;
use crate::peer::QueueId;
use crate::seam::{Memory, Now, Outbox};
use crate::shard::Shard;
use crate::timer::{Head, Pulled};
use ringmq_schema::record::RecordHeader;
use ringmq_schema::zerocopy::FromBytes;

/// Most records read at once, and their bytes.
const BATCH_MAX: usize = 256;
/// See [`BATCH_MAX`].
const BATCH_BYTES: usize = 1 << 20;
/// Between two steps: timers, consumers and producers go first.
pub(super) const PAUSE_US: u64 = 2_000;
/// Pending timers may be at most this share of the records of the segments that are given back for them.
const SHARE: usize = 4;

/// The segment that is being emptied.
#[derive(Debug)]
pub(super) struct Moving {
    segment: Segment,
    pub(super) batch: Batch,
}

impl<M: Memory> Shard<M> {
    /// The first segment of the log could go if it had no pending timers: they are appended again if that is worth
    /// it.
    pub(in super::super) fn empty_of_timers(&mut self, first: Segment, now: Now) {
        if self.timers.moving.is_some() || !self.is_worth_emptying(&first, now) {
            return;
        }
        self.timers.moving = Some(Moving { segment: first, batch: Batch::default() });
    }

    fn is_worth_emptying(&self, first: &Segment, now: Now) -> bool {
        let keep_ms = i64::try_from(self.config.retention_ms).unwrap_or(i64::MAX);
        let newest_ms = first.index.map_or(i64::MAX, |pages| pages.timers_ms);
        if keep_ms > 0 && newest_ms < now.wall_ms.saturating_sub(keep_ms) {
            return true;
        }
        // Those behind it go as well as soon as it has gone.
        let (mut pending, mut records) = (0, 0);
        self.log.sealed_segments().take_while(|segment| self.has_expired(segment)).any(|segment| {
            pending += self.timers.sources.left_in(segment.base);
            records += segment.index.map_or(0, |pages| pages.records as usize);
            pending * SHARE <= records
        })
    }

    /// Appends some of the timers of the segment again. Returns whether there is more to be done.
    pub(super) fn step_moving(&mut self, now: Now, out: &mut Outbox<M::Block>) -> bool {
        let Some(moving) = &self.timers.moving else { return false };
        let segment = moving.segment;
        if self.log.segment_of(segment.base).is_none_or(|found| found.base != segment.base) {
            self.timers.moving = None;
            return false;
        }
        self.pull_for_move(segment, now);
        self.read_timer_records(Whose::Moving, now, out);
        let has_room = self.log.lacks_segment().is_none()
            && self.log.backlog_bytes() <= self.config.backlog_bytes;
        while has_room
            && let Some((key, staged)) =
                self.timers.moving.as_ref().and_then(|moving| moving.batch.first())
        {
            let record = match self.take_bytes(key, staged) {
                Taken::NotYet => return false,
                Taken::There(record) => Some(record),
                Taken::Lost => None,
            };
            self.figures.timers_lost += u64::from(record.is_none());
            let is_recalled = self.timers.marks.is_recalled(key);
            // Also what is not appended again is over, and before the copy is set.
            self.timers.marks.append_again(Some(segment.base), key);
            if let Some(record) = record.filter(|_| !is_recalled) {
                self.append_again(segment.base, key, record.get(), now, out);
            }
            if let Some(moving) = &mut self.timers.moving {
                moving.batch.take_first();
            }
        }
        let left = self.timers.sources.head_in(segment.base).is_some()
            || self.behind_in(segment).next().is_some();
        if !left && self.timers.moving.as_ref().is_some_and(|moving| moving.batch.len() == 0) {
            self.timers.moving = None;
            return false;
        }
        true
    }

    fn behind_in(&self, segment: Segment) -> impl Iterator<Item = (Key, u32)> + '_ {
        let range = segment.base..segment.end();
        self.timers.marks.behind(None).filter(move |(key, _)| range.contains(&key.position))
    }

    /// What is due soon is left to delivery.
    fn pull_for_move(&mut self, segment: Segment, now: Now) {
        let horizon = now.wall_ms.saturating_add(AHEAD_MS);
        let Some(mut moving) = self.timers.moving.take() else { return };
        let batch = &mut moving.batch;
        let has_room = |batch: &Batch| batch.len() < BATCH_MAX && batch.bytes() < BATCH_BYTES;
        if batch.len() == 0 {
            let is_far = |key: Key| key.due_ms > horizon && !self.timers.staged.has(key);
            for (key, bytes) in self.behind_in(segment).filter(|(key, _)| is_far(*key)) {
                if !has_room(batch) {
                    break;
                }
                batch.add(Pulled { key, bytes, base: segment.base });
            }
        }
        // One key says how far it has come of the others, and so what is behind goes by itself.
        let is_behind = batch.first().is_some_and(|(key, _)| key <= self.timers.marks.fired());
        while !is_behind
            && has_room(batch)
            && let Some(Head::Is(key)) = self.timers.sources.head_in(segment.base)
            && key.due_ms > horizon
        {
            let Some(timer) = self.timers.sources.pull_from(segment.base) else { break };
            let is_over = timer.key <= self.timers.marks.over(segment.base);
            if !is_over && !self.timers.staged.has(timer.key) {
                batch.add(timer);
            }
        }
        self.timers.moving = Some(moving);
    }

    fn append_again(
        &mut self,
        base: u64,
        key: Key,
        record: &[u8],
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        let Ok((header, _)) = RecordHeader::ref_from_prefix(record) else { return };
        let id = QueueId { topic: header.topic.get(), queue: header.queue.get() };
        let bytes = header.prefix.length.get();
        if self.registry.topic(id.topic).is_none() {
            return;
        }
        let (position, end) = self.log.append(record, true, None, now, out, |header, _| {
            patch_timer(header, key.position + 1, now);
        });
        self.timers.sources.ended(base, end);
        self.figures.timers_moved += 1;
        self.set_timer(Key { due_ms: key.due_ms, position }, bytes);
    }
}
