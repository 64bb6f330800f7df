//! Segments: made ahead of need, sealed when full, retired from the front; and the rows of their indexes.
//!
//! Invariants:
//! - segments adjoin each other, their numbers count up by one;
//! - a record is noted in the rows of its segment and in no other; rows of a sealed segment do not change;
//! - a segment is of no use to recovery once two snapshots that later segments name begin behind it.

use super::unit::OpenUnit;
use super::{Log, SEGMENT_RETRY_US, SealedRows, Segment};
use crate::index::{Pages, SegmentRows};
use crate::seam::{Action, BLOCK_BYTES, Memory, Now, Outbox};

impl<M: Memory> Log<M> {
    /// A whole snapshot that begins there is durable: units say so from here on.
    pub(crate) fn snapshot_ended(&mut self, begin: u64) {
        self.snapshot = self.snapshot.max(begin);
    }

    /// Segment that holds `position`.
    pub(crate) fn segment_of(&self, position: u64) -> Option<Segment> {
        let index = self.segments.partition_point(|s| s.base <= position).checked_sub(1)?;
        self.segments.get(index).copied().filter(|s| position < s.end())
    }

    /// Segment with this number.
    pub(crate) fn segment_numbered(&self, number: u32) -> Option<Segment> {
        let first = self.segments.front()?.number;
        self.segments.get(number.checked_sub(first)? as usize).copied()
    }

    /// Segments with records that begin in front of a position, the newest first.
    pub(crate) fn segments_below(&self, position: u64) -> impl Iterator<Item = Segment> {
        let active = self.rows.base;
        let is_behind = move |segment: &Segment| segment.base >= position || segment.base > active;
        self.segments.iter().rev().copied().skip_while(is_behind)
    }

    /// Rows of the active segment, or of one that nobody took to be indexed yet.
    pub(crate) fn rows_of(&self, base: u64) -> Option<&SegmentRows> {
        if self.rows.base == base {
            return Some(&self.rows);
        }
        self.sealed.iter().map(|sealed| &sealed.rows).find(|rows| rows.base == base)
    }

    /// The index of a segment is there.
    pub(crate) fn indexed(&mut self, number: u32, pages: Pages) {
        if let Some(segment) = self.segments.iter_mut().find(|segment| segment.number == number) {
            segment.index = Some(pages);
        }
    }

    /// The index of a segment is not to be used.
    pub(crate) fn index_is_gone(&mut self, number: u32) {
        if let Some(segment) = self.segments.iter_mut().find(|segment| segment.number == number) {
            segment.index = None;
        }
    }

    /// Rows of the segment before are complete when the first record goes to the next.
    pub(super) fn turn_to_segment(&mut self) {
        let position = self.open.as_ref().expect("make_room opened a unit").position;
        if position >= self.rows.base && position < self.rows.base + self.rows.bytes {
            return;
        }
        let segment = self.segment_of(position).expect("make_room found a segment");
        let rows = SegmentRows {
            order: Vec::with_capacity(self.rows.order.len()),
            ids: Vec::with_capacity(self.rows.ids.len()),
            ..self.no_rows(segment)
        };
        let before = std::mem::replace(&mut self.rows, rows);
        self.active = segment.number;
        if before.bytes > 0
            && let Some(segment) = self.segment_of(before.base)
        {
            let snapshot = self.snapshot;
            let rows = SegmentRows { end: segment.end(), epoch: self.epoch, snapshot, ..before };
            self.sealed.push_back(SealedRows { segment, rows });
            self.seal_passed(segment.number + 1);
        }
    }

    fn no_rows(&self, segment: Segment) -> SegmentRows {
        SegmentRows {
            base: segment.base,
            bytes: segment.bytes,
            shard: self.shard,
            log_id: self.log_id,
            ..SegmentRows::default()
        }
    }

    /// Segments that got nothing but marks are sealed as well.
    fn seal_passed(&mut self, from: u32) {
        for number in from..self.active {
            let Some(segment) = self.segment_numbered(number) else { continue };
            let (end, epoch) = (segment.end(), self.epoch);
            let rows = SegmentRows { end, epoch, ..self.no_rows(segment) };
            self.sealed.push_back(SealedRows { segment, rows });
        }
    }

    /// Whether rows of a sealed segment wait.
    pub(crate) fn has_sealed(&self) -> bool {
        self.sealed.front().is_some_and(|sealed| sealed.segment.end() <= self.flushed)
    }

    /// Rows of the segment that records went to, up to where everything is durable: the log ends there.
    pub(crate) fn take_active(&mut self) -> Option<SealedRows> {
        debug_assert!(self.is_quiet());
        let segment = self.segment_of(self.rows.base).filter(|_| self.rows.bytes > 0)?;
        let rows = SegmentRows {
            end: self.flushed.min(segment.end()),
            epoch: self.epoch,
            snapshot: self.snapshot,
            ..std::mem::take(&mut self.rows)
        };
        Some(SealedRows { segment, rows })
    }

    /// Sealed segments that are durable to their ends, from the first on.
    pub(crate) fn sealed_segments(&self) -> impl Iterator<Item = Segment> + '_ {
        let end = self.flushed.min(self.rows.base);
        self.segments.iter().copied().take_while(move |segment| segment.end() <= end)
    }

    /// The first segment, when it is sealed and durable to its end.
    pub(crate) fn first_sealed(&self) -> Option<Segment> {
        self.sealed_segments().next()
    }

    /// Segments that end at or below this are of no use to recovery.
    pub(crate) fn retirable(&self) -> u64 {
        self.named_before
    }

    /// The first segment goes.
    pub(crate) fn retire_first(&mut self) {
        self.segments.pop_front();
    }

    /// Goes on at the next segment although there is room in this one: its first unit names the newest snapshot.
    pub(crate) fn begin_segment(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        if self.failed.is_some() {
            return;
        }
        self.close(now);
        self.submit(out);
        self.find_segment(BLOCK_BYTES, now, out);
        let Some(segment) = self.segment_of(self.next) else { return };
        if segment.base < self.next {
            self.seal_segment(now, out);
            self.next = segment.end();
        }
        self.write_mark(now, out);
    }

    /// Rows of the next sealed segment that is durable to its end.
    pub(crate) fn take_sealed(&mut self) -> Option<SealedRows> {
        let flushed = self.flushed;
        self.sealed.pop_front_if(|sealed| sealed.segment.end() <= flushed)
    }

    /// Moves `next` to a segment with room for `need` bytes; returns the room left there.
    pub(super) fn find_segment(
        &mut self,
        need: usize,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> usize {
        assert!(need as u64 <= self.limits.segment_bytes, "runs are limited to a segment");
        loop {
            let last = self.segments.back().copied();
            let segment = match self.segment_of(self.next) {
                Some(segment) => segment,
                None => {
                    let base = last.map_or(self.next, |s| s.end());
                    assert_eq!(base, self.next, "segments adjoin");
                    self.add_segment(base, out);
                    continue;
                }
            };
            if segment.base == last.map_or(0, |s| s.base) {
                // Made ahead of need: while this one fills.
                self.add_segment(segment.end(), out);
            }
            let remaining = segment.end() - self.next;
            if need as u64 <= remaining {
                return remaining as usize;
            }
            if remaining > 0 {
                self.seal_segment(now, out);
            }
            self.next = segment.end();
        }
    }

    fn add_segment(&mut self, base: u64, out: &mut Outbox<M::Block>) {
        let bytes = self.limits.segment_bytes;
        let number = self.segments.back().map_or(0, |segment| segment.number + 1);
        self.segments.push_back(Segment {
            number,
            base,
            bytes,
            ready: false,
            asked: false,
            index: None,
        });
        self.ask_for_segment(out);
    }

    /// Asks for the next segment when none is being made.
    fn ask_for_segment(&mut self, out: &mut Outbox<M::Block>) {
        if self.failed.is_some() || self.segment_retry_us.is_some() {
            return;
        }
        let next = self.segments.iter_mut().find(|segment| !segment.ready);
        if let Some(segment) = next.filter(|segment| !segment.asked) {
            segment.asked = true;
            out.actions.push(Action::MakeSegment { base: segment.base, bytes: segment.bytes });
        }
    }

    /// One block that says: the log goes on at the next segment.
    fn seal_segment(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        let block = self.memory.allocate(BLOCK_BYTES);
        let mut open = OpenUnit::new(self.next, block, BLOCK_BYTES, Vec::new());
        open.durable = true;
        open.seal = true;
        self.open = Some(open);
        self.close(now);
        self.submit(out);
    }

    /// A segment could not be made, most likely for want of room: nothing was lost by that. It is tried
    /// again, and what is there until then is used up.
    pub(crate) fn segment_failed(&mut self, base: u64, reason: String, now: Now) {
        if let Some(segment) = self.segments.iter_mut().find(|s| s.base == base) {
            segment.asked = false;
            self.segment_failure = reason;
            self.segment_retry_us = Some(now.mono_us + SEGMENT_RETRY_US);
        }
    }

    /// Asks again for a segment that could not be made.
    pub(crate) fn retry_segment(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        if self.segment_retry_us.is_some_and(|due| now.mono_us >= due) {
            self.segment_retry_us = None;
            self.ask_for_segment(out);
        }
    }

    /// Why there is no segment for the next unit, if one could not be made.
    pub(crate) fn lacks_segment(&self) -> Option<&str> {
        let lacks = self.segment_retry_us.is_some()
            && self.segment_of(self.next).is_none_or(|segment| !segment.ready);
        lacks.then_some(self.segment_failure.as_str())
    }

    pub(crate) fn segment_ready(&mut self, base: u64, out: &mut Outbox<M::Block>) {
        if let Some(segment) = self.segments.iter_mut().find(|s| s.base == base) {
            segment.ready = true;
        }
        self.ask_for_segment(out);
    }
}
