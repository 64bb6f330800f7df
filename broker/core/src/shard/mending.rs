//! Making the index of a sealed segment again when a page of it turned out to be damaged.
//!
//! The segment is read from its beginning, a stretch a step, its records become rows, and the index is written in
//! place of the old one. Meanwhile what the index speaks of answers `ReadFailed`; the moment the new one is there,
//! everything is as before.
//!
//! Invariants:
//! - one segment at a time; a step is bounded;
//! - until all queues know the new index nothing is looked up in it: its rows have other numbers;
//! - what the disk does not give is not taken for lost: it is tried again later.

use super::Shard;
use crate::index::{Entry, Indexed, NO_QUEUE, QueueRows, SegmentRows, StretchRow};
use crate::log::{Segment, check_unit, is_of, note};
use crate::peer::QueueId;
use crate::queue::Stretch;
use crate::seam::{Action, BLOCK_BYTES, Block, DiskError, Memory, Now, Outbox};
use ringmq_schema::record::{self, Kind, RecordHeader, UNIT_HEADER_BYTES, UnitHeader};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

/// Numbers of its reads have this bit and are odd; see `punching` for the others.
const READ_BIT: u64 = 1 << 62;
/// Bytes of a segment read in one step, unless a unit is longer.
const READ_BYTES: u64 = 1 << 20;
/// Queues that learn of the new index in one step.
const QUEUES_A_STEP: u32 = 1000;
/// After a failure it is tried again.
const RETRY_US: u64 = 30_000_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Mending {
    /// Bases of segments.
    wanted: BTreeSet<u64>,
    not_before_us: u64,
    step: Step,
    /// Half the number of the read under way, or of the last.
    read: u64,
    /// How often an index was given up or replaced: what was read of one before that counts no more.
    pub(super) changes: u64,
}

#[derive(Debug, Default)]
enum Step {
    #[default]
    Idle,
    Read(Box<Work>),
    Write(Segment),
    /// Queues below this slot know it.
    Tell {
        segment: Segment,
        stretches: BTreeMap<u32, Vec<StretchRow>>,
        indexed: Indexed,
        slot: u32,
    },
}

#[derive(Debug)]
struct Work {
    segment: Segment,
    position: u64,
    epoch: u32,
    rows: SegmentRows,
    /// By slot, stretches without a gap.
    queues: BTreeMap<u32, Vec<(QueueId, u64, Vec<Entry>)>>,
}

impl Work {
    fn take(&mut self, slot: Option<u32>, header: &RecordHeader) {
        let put = note(&mut self.rows, self.segment.number, slot.unwrap_or(NO_QUEUE), header);
        let Some(slot) = slot else { return };
        let id = QueueId { topic: header.topic.get(), queue: header.queue.get() };
        let offset = header.offset.get();
        let stretches = self.queues.entry(slot).or_default();
        // Only the highest so far within this segment: where the clock was set back between two segments, a
        // search by time may begin a little early.
        let before = stretches.last().and_then(|(_, _, entries)| entries.last());
        let store_ms = header.store_ms.get();
        let latest_ms = before.map_or(store_ms, |before| before.latest_ms.max(store_ms));
        let (place, row) = (put.place, put.row);
        let bytes = header.prefix.length.get();
        let entry = Entry { place, row, bytes, tag_hash: header.tag_hash.get(), latest_ms };
        match stretches.last_mut() {
            Some((_, first, entries)) if *first + entries.len() as u64 == offset => {
                entries.push(entry);
            }
            _ => stretches.push((id, offset, vec![entry])),
        }
    }
}

impl Mending {
    /// When it goes on by itself, in `Now::mono_us`.
    pub(super) fn next_wake(&self) -> Option<u64> {
        match self.step {
            Step::Tell { .. } => Some(0),
            Step::Idle if !self.wanted.is_empty() => Some(self.not_before_us),
            _ => None,
        }
    }

    /// Whether an index that was written is one of these.
    pub(super) fn awaits(&self, base: u64) -> bool {
        matches!(&self.step, Step::Write(segment) if segment.base == base)
    }

    /// A segment is gone.
    pub(super) fn forget(&mut self, base: u64) {
        self.wanted.remove(&base);
        let is_it = match &self.step {
            Step::Idle => false,
            Step::Read(work) => work.segment.base == base,
            Step::Write(segment) | Step::Tell { segment, .. } => segment.base == base,
        };
        if is_it {
            self.step = Step::Idle;
        }
    }
}

impl<M: Memory> Shard<M> {
    /// Whether a read is one of these.
    pub(super) fn is_mending_read(read: u64) -> bool {
        read & READ_BIT != 0 && !read.is_multiple_of(2)
    }

    /// The index of a segment could not be read, or is not what was written.
    pub(super) fn mend(&mut self, base: u64) {
        let is_sealed = self.log.sealed_segments().any(|segment| segment.base == base);
        if is_sealed {
            self.mending.wanted.insert(base);
        }
    }

    /// Begins with a segment, or goes on telling queues.
    pub(super) fn step_mending(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        match std::mem::take(&mut self.mending.step) {
            Step::Idle if now.mono_us >= self.mending.not_before_us && !self.stopping => {
                let Some(base) = self.mending.wanted.pop_first() else { return };
                let Some(segment) = self.log.segment_of(base).filter(|s| s.base == base) else {
                    return;
                };
                self.mending.changes += 1;
                self.log.index_is_gone(segment.number);
                self.index_pages.forget(base);
                self.stop_looking(base);
                self.timers.lose_index(base);
                let rows = SegmentRows {
                    base,
                    bytes: segment.bytes,
                    end: segment.end(),
                    shard: self.config.shard,
                    log_id: self.config.log_id,
                    ..SegmentRows::default()
                };
                let queues = BTreeMap::new();
                let work = Work { segment, position: base, epoch: 0, rows, queues };
                self.read_segment(Box::new(work), READ_BYTES, out);
            }
            Step::Tell { segment, stretches, indexed, slot } => {
                self.tell_queues(segment, stretches, indexed, slot);
            }
            step => self.mending.step = step,
        }
    }

    fn read_segment(&mut self, work: Box<Work>, bytes: u64, out: &mut Outbox<M::Block>) {
        let position = work.position;
        let bytes = bytes.min(work.segment.end() - position) as u32;
        self.mending.step = Step::Read(work);
        self.mending.read += 1;
        let read = READ_BIT | (2 * self.mending.read + 1);
        out.actions.push(Action::Read { read, position, bytes });
    }

    /// A part of the segment is there.
    pub(super) fn mending_read(
        &mut self,
        read: u64,
        result: Result<Rc<M::Block>, DiskError>,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        if read != READ_BIT | (2 * self.mending.read + 1)
            || !matches!(self.mending.step, Step::Read(_))
        {
            return;
        }
        let Step::Read(mut work) = std::mem::take(&mut self.mending.step) else { return };
        let Ok(block) = result else {
            self.mending.wanted.insert(work.segment.base);
            self.mending.not_before_us = now.mono_us + RETRY_US;
            return;
        };
        let (start, bytes) = (work.position, block.bytes());
        let mut at = 0;
        while at < bytes.len() {
            work.position = start + at as u64;
            match self.unit_at(work.position, work.segment, &bytes[at..]) {
                // Where nothing valid begins there is damage, a hole, or what a seal left unused.
                None => at += BLOCK_BYTES,
                Some(unit_bytes) => {
                    let Some(unit) = bytes.get(at..at + unit_bytes) else {
                        let more = READ_BYTES.max(unit_bytes as u64);
                        self.read_segment(work, more, out);
                        return;
                    };
                    self.take_unit(&mut work, unit);
                    at += unit_bytes;
                }
            }
        }
        work.position = start + bytes.len() as u64;
        if work.position < work.segment.end() {
            self.read_segment(work, READ_BYTES, out);
            return;
        }
        let Work { segment, epoch, mut rows, queues, .. } = *work;
        rows.epoch = epoch;
        for (slot, stretches) in queues {
            rows.queues.extend(stretches.into_iter().map(|(id, first_offset, entries)| {
                QueueRows { id, slot, first_offset, entries: vec![Arc::new(entries)] }
            }));
        }
        self.mending.step = Step::Write(segment);
        out.actions.push(Action::WriteIndex { rows: Arc::new(rows) });
    }

    /// Length of the unit that begins there, if one may.
    fn unit_at(&self, position: u64, segment: Segment, bytes: &[u8]) -> Option<usize> {
        let header = UnitHeader::read(bytes)?;
        let shard = u32::from(self.config.shard);
        let is_ours = is_of(header, self.config.log_id, shard, position);
        let length = u64::from(header.unit_bytes.get());
        let fits = length > 0
            && length.is_multiple_of(BLOCK_BYTES as u64)
            && length <= segment.end() - position;
        (is_ours && fits).then_some(length as usize)
    }

    fn take_unit(&self, work: &mut Work, unit: &[u8]) {
        let Some(header) = UnitHeader::read(unit) else { return };
        let epoch = header.epoch.get();
        if check_unit(unit, true).is_err() {
            return;
        }
        work.epoch = epoch;
        let mut at = UNIT_HEADER_BYTES;
        while at < unit.len() {
            let Ok((next, found)) = record::read_one(unit, at) else { return };
            if let Some(found) = found {
                let header = found.header;
                let is_message = header.prefix.kind == Kind::Message as u8;
                let id = QueueId { topic: header.topic.get(), queue: header.queue.get() };
                let slot = if is_message { self.queues.slot(id) } else { None };
                work.take(slot, header);
            }
            at = next;
        }
    }

    /// The new index is there, or could not be written.
    pub(super) fn index_mended(&mut self, result: Result<Indexed, DiskError>, now: Now) {
        let Step::Write(segment) = std::mem::take(&mut self.mending.step) else { return };
        self.index_pages.forget(segment.base);
        let Ok(indexed) = result else {
            self.mending.wanted.insert(segment.base);
            self.mending.not_before_us = now.mono_us + RETRY_US;
            return;
        };
        let mut stretches = BTreeMap::<u32, Vec<StretchRow>>::new();
        for row in &indexed.stretches {
            stretches.entry(row.slot).or_default().push(*row);
        }
        self.mending.step = Step::Tell { segment, stretches, indexed, slot: 0 };
    }

    fn tell_queues(
        &mut self,
        segment: Segment,
        mut stretches: BTreeMap<u32, Vec<StretchRow>>,
        indexed: Indexed,
        slot: u32,
    ) {
        let end = slot.saturating_add(QUEUES_A_STEP).min(self.queues.slots());
        for slot in slot..end {
            let rows = stretches.remove(&slot).unwrap_or_default();
            let number = segment.number;
            let rows = rows.iter().map(|row| Stretch::of(number, row));
            self.queues.at_mut(slot).replace_stretches(number, rows);
        }
        if end < self.queues.slots() {
            self.mending.step = Step::Tell { segment, stretches, indexed, slot: end };
            return;
        }
        self.figures.indexes_mended += 1;
        self.mending.changes += 1;
        self.index_pages.forget(segment.base);
        self.log.indexed(segment.number, indexed.pages);
        self.timers_indexed(segment.number);
    }
}
