//! Queues: which record is where, and how far consumers may see.
//!
//! Of a segment whose index is on disk a queue keeps one [`Stretch`] in memory; of the active segment, and of
//! sealed ones whose index is being written, the entries themselves in chunks.
//!
//! Invariants:
//! - stretches, then chunks, lie by rising offset and do not overlap; what lies between `min` and `next`
//!   and is in none of them is lost to damage: nothing else ever gets those offsets (promise: fifo);
//! - `min <= visible <= next`; `visible` moves when a flush has passed the records (promise: prefix: what
//!   a consumer saw is durable).

mod table;

pub(crate) use table::Queues;

use crate::index::{Entry, QueueRows, SegmentRows, StretchRow};
use crate::peer::QueueId;
use crate::snapshot::QueueState;
use std::collections::VecDeque;
use std::sync::Arc;

/// Entries per chunk: 12 KiB each, so that a growing queue never copies what it has.
const CHUNK: usize = 512;

/// What the index of a segment has of a queue, without a gap in the offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) first_offset: u64,
    pub(crate) count: u32,
    /// Number of the segment in the log.
    pub(crate) segment: u32,
    /// Number in the index's directory.
    pub(crate) number: u32,
    /// Its first entry in the index.
    pub(crate) first_entry: u32,
}

impl Stretch {
    /// As the directory of a segment has it.
    pub(crate) fn of(segment: u32, row: &StretchRow) -> Stretch {
        Stretch {
            first_offset: row.first_offset,
            count: row.count,
            segment,
            number: row.number,
            first_entry: row.first_entry,
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.first_offset + u64::from(self.count)
    }
}

/// Entries in memory, of one segment and without a gap.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) segment: u32,
    pub(crate) first_offset: u64,
    entries: Entries,
}

#[derive(Debug, Clone)]
enum Entries {
    /// Of the active segment.
    Growing(Vec<Entry>),
    /// Of a sealed one; the thread that writes the index reads it too.
    Sealed(Arc<Vec<Entry>>),
}

impl Chunk {
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.entries {
            Entries::Growing(entries) => entries,
            Entries::Sealed(entries) => entries,
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.first_offset + self.entries().len() as u64
    }

    /// Its entries to be shared; it grows no more.
    pub(crate) fn seal(&mut self) -> Arc<Vec<Entry>> {
        let sealed = match &mut self.entries {
            Entries::Sealed(entries) => return Arc::clone(entries),
            Entries::Growing(entries) => Arc::new(std::mem::take(entries)),
        };
        self.entries = Entries::Sealed(Arc::clone(&sealed));
        sealed
    }
}

/// Where an offset's record is to be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// Here: entries of this segment from the offset on, at least one.
    Memory(u32, &'a [Entry]),
    /// In a segment's index: this stretch, and which entry of it.
    Disk(Stretch, u32),
    /// Lost to damage; the next offset that is not.
    Lost(u64),
}

/// One queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) id: QueueId,
    /// First offset that can be read.
    pub(crate) min: u64,
    /// Offset of the next record.
    pub(crate) next: u64,
    /// High watermark: first offset that consumers may not see.
    pub(crate) visible: u64,
    /// Of its records; once some have expired, by their share of the offsets.
    pub(crate) bytes: u64,
    pub(crate) last_store_ms: i64,
    /// Fetches that wait for more.
    pub(crate) waiting: Vec<u64>,
    pub(crate) stretches: VecDeque<Stretch>,
    pub(crate) chunks: VecDeque<Chunk>,
}

impl Queue {
    fn new(id: QueueId) -> Queue {
        Queue {
            id,
            min: 0,
            next: 0,
            visible: 0,
            bytes: 0,
            last_store_ms: 0,
            waiting: Vec::new(),
            stretches: VecDeque::new(),
            chunks: VecDeque::new(),
        }
    }

    /// Adds the record of offset `next`, which lies in `segment`. `entry.latest_ms` is its store time.
    /// Returns whether it is the queue's first in that segment.
    pub(crate) fn push(&mut self, segment: u32, mut entry: Entry) -> bool {
        self.last_store_ms = self.last_store_ms.max(entry.latest_ms);
        entry.latest_ms = self.last_store_ms;
        let offset = self.next;
        self.next += 1;
        self.bytes += u64::from(entry.bytes);
        let last = self.chunks.back_mut();
        let is_first = last.as_ref().is_none_or(|chunk| chunk.segment != segment);
        if let Some(Chunk { segment: of, first_offset, entries: Entries::Growing(entries) }) = last
            && *of == segment
            && entries.len() < CHUNK
            && *first_offset + entries.len() as u64 == offset
        {
            entries.push(entry);
            return false;
        }
        // The first chunk of a queue in a segment grows from little: where there are many queues, few of
        // them fill one, and 12 KiB each would be most of the shard's memory.
        let mut entries = Vec::with_capacity(if is_first { 8 } else { CHUNK });
        entries.push(entry);
        let entries = Entries::Growing(entries);
        self.chunks.push_back(Chunk { segment, first_offset: offset, entries });
        is_first
    }

    /// A queue of which nothing is known yet begins with this offset: what was before is retired.
    pub(crate) fn begin_at(&mut self, offset: u64) {
        self.min = offset;
        self.next = offset;
    }

    /// Takes over what a snapshot says. Records behind its beginning may have been seen already.
    pub(crate) fn restore(&mut self, state: &QueueState) {
        self.min = self.min.max(state.min);
        self.next = self.next.max(state.next);
        self.last_store_ms = self.last_store_ms.max(state.last_store_ms);
    }

    /// Adds what the index of the next segment has.
    pub(crate) fn add_stretch(&mut self, stretch: Stretch) {
        if self.stretches.is_empty() && self.chunks.is_empty() && self.next == 0 {
            self.min = stretch.first_offset;
        }
        self.next = self.next.max(stretch.end());
        self.stretches.push_back(stretch);
    }

    /// Adds entries of the active segment, as its index had them.
    pub(crate) fn add_chunk(&mut self, segment: u32, first_offset: u64, entries: &Arc<Vec<Entry>>) {
        if self.stretches.is_empty() && self.chunks.is_empty() && self.next == 0 {
            self.min = first_offset;
        }
        let entries = Entries::Sealed(Arc::clone(entries));
        let chunk = Chunk { segment, first_offset, entries };
        self.next = self.next.max(chunk.end());
        self.bytes += chunk.entries().iter().map(|entry| u64::from(entry.bytes)).sum::<u64>();
        if let Some(last) = chunk.entries().last() {
            self.last_store_ms = self.last_store_ms.max(last.latest_ms);
        }
        self.chunks.push_back(chunk);
    }

    /// Adds the entries of a segment to its rows.
    pub(crate) fn gather(&mut self, slot: u32, segment: u32, rows: &mut SegmentRows) {
        let id = self.id;
        let mut end = None;
        for chunk in self.chunks.iter_mut().filter(|chunk| chunk.segment == segment) {
            let first_offset = chunk.first_offset;
            let follows = end == Some(first_offset);
            end = Some(chunk.end());
            let entries = chunk.seal();
            match rows.queues.last_mut() {
                Some(last) if follows => last.entries.push(entries),
                _ => rows.queues.push(QueueRows { id, slot, first_offset, entries: vec![entries] }),
            }
        }
    }

    /// Leaves out offsets up to `next`: they are lost, and never given again.
    pub(crate) fn skip_to(&mut self, next: u64) {
        debug_assert!(next >= self.next, "offsets only grow");
        self.next = next;
    }

    /// Where the record of an offset is; `None` outside of `min..next`.
    pub(crate) fn find(&self, offset: u64) -> Option<Place<'_>> {
        if offset < self.min || offset >= self.next {
            return None;
        }
        let next = self.chunks.partition_point(|chunk| chunk.first_offset <= offset);
        if let Some(chunk) = next.checked_sub(1).and_then(|at| self.chunks.get(at)) {
            let at = (offset - chunk.first_offset) as usize;
            if let Some(from) = chunk.entries().get(at..).filter(|from| !from.is_empty()) {
                return Some(Place::Memory(chunk.segment, from));
            }
            let after = self.chunks.get(next).map_or(self.next, |chunk| chunk.first_offset);
            return Some(Place::Lost(after));
        }
        let next = self.stretches.partition_point(|stretch| stretch.first_offset <= offset);
        if let Some(stretch) = next.checked_sub(1).and_then(|at| self.stretches.get(at))
            && offset < stretch.end()
        {
            return Some(Place::Disk(*stretch, (offset - stretch.first_offset) as u32));
        }
        let chunk = self.chunks.front().map_or(self.next, |chunk| chunk.first_offset);
        let after = self.stretches.get(next).map_or(chunk, |stretch| stretch.first_offset);
        Some(Place::Lost(after))
    }

    /// First visible offset in memory whose record was stored at or after `ms`; the high watermark if none was.
    /// Right for the whole queue when everything on disk was stored before.
    pub(crate) fn offset_at(&self, ms: i64) -> u64 {
        let is_before = |entry: &Entry| entry.latest_ms < ms;
        let at = self.chunks.partition_point(|c| c.entries().last().is_some_and(is_before));
        let found = self
            .chunks
            .get(at)
            .map(|chunk| chunk.first_offset + chunk.entries().partition_point(is_before) as u64);
        found.unwrap_or(self.visible).min(self.visible)
    }

    /// The entries of a sealed segment went to disk: one stretch takes the place of each run of chunks.
    /// `stretches` are what the index has of this queue, by rising offset.
    pub(crate) fn indexed(&mut self, segment: u32, stretches: impl Iterator<Item = Stretch>) {
        while self.chunks.front().is_some_and(|chunk| chunk.segment <= segment) {
            self.chunks.pop_front();
        }
        self.stretches.extend(stretches.filter(|stretch| stretch.end() > self.min));
    }

    /// The index of a segment was made again: these are what it has of this queue.
    pub(crate) fn replace_stretches(
        &mut self,
        segment: u32,
        stretches: impl Iterator<Item = Stretch>,
    ) {
        let from = self.stretches.partition_point(|stretch| stretch.segment < segment);
        let to = self.stretches.partition_point(|stretch| stretch.segment <= segment);
        let later = self.stretches.split_off(to);
        self.stretches.truncate(from);
        self.stretches.extend(stretches.filter(|stretch| stretch.end() > self.min));
        self.stretches.extend(later);
    }

    /// Segments below `segment` are no longer for readers. Returns whether `min` moved.
    pub(crate) fn expire(&mut self, segment: u32) -> bool {
        while self.stretches.front().is_some_and(|stretch| stretch.segment < segment) {
            self.stretches.pop_front();
        }
        while self.chunks.front().is_some_and(|chunk| chunk.segment < segment) {
            self.chunks.pop_front();
        }
        let chunk = self.chunks.front().map_or(self.next, |chunk| chunk.first_offset);
        let first = self.stretches.front().map_or(chunk, |stretch| stretch.first_offset);
        // What is lost in front of the first record stays lost; below `visible` nothing is hidden.
        let min = first.min(self.visible);
        let moved = min > self.min;
        if moved {
            let (gone, all) = (u128::from(min - self.min), u128::from(self.next - self.min));
            self.bytes -= (u128::from(self.bytes) * gone / all) as u64;
        }
        self.min = self.min.max(min);
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(row: u32) -> Entry {
        Entry { place: row, row, bytes: 8, tag_hash: 0, latest_ms: i64::from(row) }
    }

    fn queue() -> Queue {
        Queue::new(QueueId { topic: 1, queue: 0 })
    }

    #[test]
    fn entries_are_found_over_chunks_and_segments() {
        let mut queue = queue();
        for n in 0..2000u32 {
            let is_first = queue.push(n / 700, entry(n));
            assert_eq!(is_first, n % 700 == 0, "{n}");
        }
        for n in [0, 1, 511, 512, 699, 700, 1399, 1400, 1999] {
            let Some(Place::Memory(segment, entries)) = queue.find(n) else { panic!("{n}") };
            assert_eq!((segment, u64::from(entries[0].row)), (n as u32 / 700, n));
        }
        assert_eq!(queue.find(2000), None);
    }

    #[test]
    fn what_was_indexed_is_found_on_disk_and_what_expired_is_gone() {
        let mut queue = queue();
        (0..1500u32).for_each(|n| _ = queue.push(n / 500, entry(n)));
        queue.visible = 1500;
        let stretch =
            Stretch { first_offset: 0, count: 500, segment: 0, number: 3, first_entry: 40 };
        queue.indexed(0, std::iter::once(stretch));
        assert_eq!(queue.find(499), Some(Place::Disk(stretch, 499)));
        assert!(matches!(queue.find(500), Some(Place::Memory(1, _))));
        assert!(queue.expire(1));
        assert_eq!((queue.min, queue.find(499)), (500, None));
        assert!(queue.expire(2));
        assert_eq!(queue.min, 1000);
        assert!(!queue.expire(2));
    }

    #[test]
    fn lost_offsets_are_said_to_be_lost_and_not_given_again() {
        let mut queue = queue();
        (0..10u32).for_each(|n| _ = queue.push(0, entry(n)));
        queue.skip_to(15);
        (10..20u32).for_each(|n| _ = queue.push(0, entry(n)));
        assert_eq!(queue.next, 25);
        assert_eq!(queue.find(12), Some(Place::Lost(15)));
        let Some(Place::Memory(0, entries)) = queue.find(15) else { panic!("15 is there") };
        assert_eq!((entries[0].row, entries.len()), (10, 10));
        let stretches = [(0, 10, 0), (15, 10, 10)].map(|(first_offset, count, first_entry)| {
            Stretch { first_offset, count, segment: 0, number: 0, first_entry }
        });
        queue.indexed(0, stretches.into_iter());
        assert_eq!(queue.find(14), Some(Place::Lost(15)));
        assert_eq!(queue.find(24), Some(Place::Disk(stretches[1], 9)));
        queue.skip_to(30);
        assert_eq!(queue.find(27), Some(Place::Lost(30)));
    }
}
