//! Collecting records for one answer, from memory or from what was read.

use super::super::Shard;
use super::super::locate::{Located, locate, position};
use super::WORK_MAX;
use super::filter::Filter;
use super::parked::{Parked, Reading, Wanted};
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
    /// Filters had as much work as one fetch may cost.
    pub(super) exhausted: bool,
    /// A queue has something else to be told.
    pub(super) told: bool,
    /// Records that SQL filters left out behind some that are wanted: they count when this is sent.
    pub(super) left_out: u64,
}

impl<M: Memory> Shard<M> {
    /// Collects records from `source` into `out.slices`, queue after queue, but for those at fault. What filters
    /// leave out in front of the first record of a queue is passed over for good.
    pub(super) fn gather(
        &mut self,
        parked: &mut Parked,
        rotation: usize,
        source: &Source<'_, M::Block>,
        first_slice: usize,
        fetched: &mut Vec<FetchedQueue>,
        out: &mut Outbox<M::Block>,
    ) -> Gathered {
        let (max_bytes, max_records) = (parked.max_bytes, parked.max_records);
        let (mut bytes, mut records) = (0u64, 0u32);
        let (mut cut_short, mut told, mut left_out) = (false, false, 0);
        let count = parked.queues.len();
        for index in (0..count).map(|n| (rotation + n) % count) {
            let Parked { queues: all, filters, work, .. } = &mut *parked;
            let wanted = &mut all[index];
            if !wanted.is_served() {
                continue;
            }
            let Shard { queues, log, index_pages, scratch, .. } = self;
            let queue = queues.at(wanted.slot);
            if queue.visible < queue.next {
                self.sync_wanted = log.appended();
            }
            let filter = wanted.filter.checked_sub(1).map(|n| &filters[usize::from(n)]);
            let (mut offset, mut count, mut is_lost) = (wanted.offset, 0u32, false);
            let mut passed_over = 0;
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
                    if filter.is_some_and(|filter| !filter.admits(entry)) {
                        if *work >= WORK_MAX {
                            break 'queue;
                        }
                        *work += 1;
                        offset += 1;
                        passed_over += 1;
                        continue;
                    }
                    let length = u64::from(entry.bytes);
                    if records > 0 && (bytes + length > max_bytes || records >= max_records) {
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
                    match fate(filter, wanted, (index, offset), (source, &slice), work) {
                        Fate::Sent => {}
                        Fate::LeftOut => {
                            offset += 1;
                            passed_over += 1;
                            continue;
                        }
                        Fate::Later => break 'queue,
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
            let passed_over = if matches!(filter, Some(Filter::Sql(_))) { passed_over } else { 0 };
            if count == 0 && !is_lost {
                self.figures.sql_left_out += passed_over;
                wanted.offset = offset;
            } else {
                left_out += passed_over;
            }
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
        let exhausted = parked.work >= WORK_MAX;
        Gathered { bytes, cut_short: cut_short || exhausted, exhausted, told, left_out }
    }
}

/// What becomes of a record that the index admits.
enum Fate {
    Sent,
    LeftOut,
    /// There is no work left to find out.
    Later,
}

fn fate<B: Block>(
    filter: Option<&Filter>,
    wanted: &Wanted,
    (index, offset): (usize, u64),
    (source, slice): (&Source<'_, B>, &Slice<B>),
    work: &mut u32,
) -> Fate {
    let Some(Filter::Sql(sql)) = filter else { return Fate::Sent };
    if wanted.known == Some(offset) {
        return Fate::Sent;
    }
    // What was read for this fetch is looked at in any case: so it always moves on.
    let is_target = matches!(source, Source::Disk(reading, _)
        if reading.wanted == index && offset == wanted.offset);
    if *work >= WORK_MAX && !is_target {
        return Fate::Later;
    }
    let judged = sql.judge(slice.bytes(), matches!(source, Source::Disk(..)));
    *work = work.saturating_add(judged.work);
    if judged.is_wanted { Fate::Sent } else { Fate::LeftOut }
}

/// The bytes of a record in a block that was read from `start` on, if they are all there.
pub(in super::super) fn cut<B: Block>(
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
    let bytes = slice.bytes();
    let Ok((end, Some(found))) = record::read_one(bytes, 0) else { return false };
    end == bytes.len()
        && found.check_header().is_ok()
        && found.header.topic.get() == id.topic
        && found.header.queue.get() == id.queue
        && found.header.offset.get() == offset
}

/// Adds a slice, as one with the last where they adjoin.
pub(in super::super) fn push_slice<B>(slice: Slice<B>, first_slice: usize, out: &mut Outbox<B>) {
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
