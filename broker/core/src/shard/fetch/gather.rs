//! Collecting records for one answer, from memory or from what was read.

use super::super::Shard;
use super::super::locate::{Located, locate, position};
use super::SKIPPED_MAX;
use super::parked::{Parked, Reading};
use crate::peer::QueueId;
use crate::seam::{Block, Memory, Outbox, Slice};
use ringmq_schema::consume::FetchedQueue;
use ringmq_schema::error::Status;
use ringmq_schema::record;
use std::rc::Rc;

/// Where records come from.
pub(super) enum Source<'a, B> {
    Tail,
    /// What was read.
    Disk(&'a Reading, &'a Rc<B>),
}

/// What was collected.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Gathered {
    /// Bytes of records.
    pub(super) bytes: u64,
    /// It stopped where filters left out as much as one step may, or where something must be read first: there
    /// may be more behind.
    pub(super) cut_short: bool,
    /// A queue has something else to be told.
    pub(super) told: bool,
}

impl<M: Memory> Shard<M> {
    /// Collects records from `source` into `out.slices`, queue after queue, but for those at fault.
    pub(super) fn gather(
        &mut self,
        parked: &Parked,
        rotation: usize,
        source: &Source<'_, M::Block>,
        first_slice: usize,
        fetched: &mut Vec<FetchedQueue>,
        out: &mut Outbox<M::Block>,
    ) -> Gathered {
        let (mut bytes, mut records, mut skipped) = (0u64, 0u32, parked.skipped);
        let (mut cut_short, mut told) = (false, false);
        let count = parked.queues.len();
        for index in (0..count).map(|n| (rotation + n) % count) {
            let wanted = &parked.queues[index];
            if !wanted.is_served() {
                continue;
            }
            let Shard { queues, log, index_pages, scratch, .. } = self;
            let queue = queues.at(wanted.slot);
            if queue.visible < queue.next {
                self.sync_wanted = log.appended();
            }
            let filter = wanted.filter.checked_sub(1).map(|n| &parked.filters[usize::from(n)]);
            let (mut offset, mut count, mut is_lost) = (wanted.offset, 0u32, false);
            'queue: while offset < queue.visible {
                let known;
                let located =
                    locate(queues, log, index_pages, scratch, (wanted.slot, offset), u32::MAX);
                let (base, entries) = match (located, source) {
                    (Located::At(base, entries), _) => (base, entries),
                    // What was gathered goes first; then the queue is told, and where to go on.
                    (Located::Lost(next), _) => {
                        if count == 0 {
                            (is_lost, offset) = (true, next);
                        }
                        break;
                    }
                    // The page that said where to read is gone again.
                    (Located::Need(_), Source::Disk(reading, _))
                        if reading.wanted == index && offset == wanted.offset =>
                    {
                        known = [reading.entry];
                        (reading.base, &known[..])
                    }
                    (Located::Need(_) | Located::Unreadable, _) => {
                        cut_short |= offset > wanted.offset;
                        break;
                    }
                    (Located::Nowhere, _) => break,
                };
                for entry in entries {
                    if offset >= queue.visible {
                        break 'queue;
                    }
                    if filter.is_some_and(|tags| !tags.contains(&entry.tag_hash)) {
                        if skipped >= SKIPPED_MAX {
                            break 'queue;
                        }
                        skipped += 1;
                        offset += 1;
                        continue;
                    }
                    let length = u64::from(entry.bytes);
                    if records > 0
                        && (bytes + length > parked.max_bytes || records >= parked.max_records)
                    {
                        break 'queue;
                    }
                    let at = position(base, entry);
                    let slice = match source {
                        Source::Tail => log.tail.slice(at, entry.bytes),
                        Source::Disk(reading, block) => cut(reading.start, block, at, entry.bytes),
                    };
                    let Some(slice) = slice else {
                        cut_short |= offset > wanted.offset;
                        break 'queue;
                    };
                    if matches!(source, Source::Disk(..)) && !is_record(&slice, wanted.id, offset) {
                        if count == 0 {
                            (is_lost, offset) = (true, offset + 1);
                        }
                        break 'queue;
                    }
                    push_slice(slice, first_slice, out);
                    bytes += length;
                    records += 1;
                    count += 1;
                    offset += 1;
                }
            }
            self.figures.corrupt_reads += u64::from(is_lost);
            told |= is_lost;
            if offset > wanted.asked {
                let status = if is_lost { Status::Corrupt } else { Status::Ok };
                fetched.push(FetchedQueue::new(
                    wanted.id.topic,
                    wanted.id.queue,
                    offset,
                    queue.visible,
                    queue.min,
                    count,
                    status.code(),
                    0,
                ));
            }
        }
        Gathered { bytes, cut_short: cut_short || skipped >= SKIPPED_MAX, told }
    }
}

/// The bytes of a record in a block that was read from `start` on, if they are all there.
pub(super) fn cut<B: Block>(
    start: u64,
    block: &Rc<B>,
    position: u64,
    bytes: u32,
) -> Option<Slice<B>> {
    let from = position.checked_sub(start)?;
    let end = from + u64::from(bytes);
    (end <= block.bytes().len() as u64)
        .then(|| Slice { block: Rc::clone(block), range: from as u32..end as u32 })
}

/// Whether what was read from disk is the record that the index says (promise: no foreign byte). The
/// payload's checksum is the consumer's to compare.
pub(in super::super) fn is_record<B: Block>(slice: &Slice<B>, id: QueueId, offset: u64) -> bool {
    let bytes = &slice.block.bytes()[slice.range.start as usize..slice.range.end as usize];
    let Ok((end, Some(found))) = record::read_one(bytes, 0) else { return false };
    end == bytes.len()
        && found.check_header().is_ok()
        && found.header.topic.get() == id.topic
        && found.header.queue.get() == id.queue
        && found.header.offset.get() == offset
}

/// Adds a slice, as one with the last where they adjoin.
fn push_slice<B>(slice: Slice<B>, first_slice: usize, out: &mut Outbox<B>) {
    if out.slices.len() > first_slice
        && let Some(last) = out.slices.last_mut()
        && Rc::ptr_eq(&last.block, &slice.block)
        && last.range.end == slice.range.start
    {
        last.range.end = slice.range.end;
        return;
    }
    out.slices.push(slice);
}
