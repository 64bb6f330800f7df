//! What a fetch needs from the disk, and how it goes on when that is there.
//!
//! Invariants:
//! - a fetch always moves on with what was read for it, however little of the indexes is kept in memory;
//! - what cannot be read is said of the queue that asked for it; others are served as ever (promise: isolation).

use super::super::Shard;
use super::super::locate::{Located, PageName, locate, position};
use super::super::pop::is_pop;
use super::WORK_MAX;
use super::filter::{Filter, InMemory};
use super::gather::Source;
use super::parked::{IndexRead, Parked, Reading, Wanted};
use super::transfer::Run;
use super::windows::{AHEAD_OF_ONE, Range, Read, WINDOW_BYTES};
use crate::index::{Entry, PAGE_BYTES};
use crate::log::Segment;
use crate::seam::{Action, BLOCK_BYTES, Block, DiskError, Memory, Now, Outbox};
use std::collections::BTreeSet;
use std::rc::Rc;

/// Pages are read so often for all queues of a fetch; then it goes on with those that have them.
const ROUNDS_MAX: u32 = 2;

/// What a fetch needs from disk.
pub(super) enum Cold {
    No,
    Pages(BTreeSet<PageName>),
    /// The lowest record that is wanted.
    At(Reading),
    /// A run that goes out from the file.
    Run(Run),
}

impl<M: Memory> Shard<M> {
    /// Whether the first queue in turn that has something has it on disk only, and what is to be read then.
    /// What filters leave out in front of the first record of each queue is passed over.
    pub(super) fn look(&mut self, parked: &mut Parked, rotation: usize) -> Cold {
        let tail_start = self.log.tail.start().unwrap_or(u64::MAX);
        let mut pages = BTreeSet::new();
        let mut lowest: Option<Reading> = None;
        let mut is_first = true;
        let Shard { queues, log, index_pages, scratch, windows, figures, fetches, .. } = self;
        let Parked { queues: all, filters, work, unreadable, failures, .. } = parked;
        let mut memory = InMemory::new(&log.tail, windows);
        let has_failed = *failures > 0;
        let first = if has_failed { fetches.turn } else { rotation };
        let count = all.len();
        'queues: for at in (0..count).map(|n| (first + n) % count) {
            let wanted = &mut all[at];
            if !wanted.is_served() {
                continue;
            }
            let filter = wanted.filter.checked_sub(1).map(|n| &filters[usize::from(n)]);
            let visible = queues.at(wanted.slot).visible;
            // With thousands of queues in a fetch, entries that nobody looks at would cost most of it.
            let most = filter.map_or(1, |_| u32::MAX);
            while wanted.offset < visible {
                let place = (wanted.slot, wanted.offset);
                match locate(queues, log, index_pages, scratch, place, most) {
                    Located::At(base, entries) => {
                        let mut left = entries.iter().take((visible - wanted.offset) as usize);
                        let found = left.find(|entry| {
                            let passes = filter.is_some_and(|filter| {
                                passes(filter, wanted, entry, base, work, &mut memory)
                            });
                            let is_sql = passes && matches!(filter, Some(Filter::Sql(_)));
                            figures.sql_left_out += u64::from(is_sql);
                            wanted.offset += u64::from(passes);
                            !passes
                        });
                        let Some(entry) = found else { continue };
                        let is_known = filter.is_none() || wanted.known == Some(wanted.offset);
                        if *work >= WORK_MAX && !is_known {
                            // What was found before is not to wait for what takes so long.
                            match lowest {
                                None => return Cold::No,
                                Some(_) => break 'queues,
                            }
                        }
                        let position = position(base, entry);
                        // Where reads fail the queues have their turns: the lowest may fail for ever.
                        if has_failed && lowest.is_none() {
                            fetches.turn = at + 1;
                        }
                        if is_first && position >= tail_start {
                            return Cold::No;
                        }
                        is_first = false;
                        let is_lower = |lowest: Reading| !has_failed && position < lowest.position;
                        if lowest.is_none_or(is_lower) {
                            let (wanted, entry) = (at, *entry);
                            let reading =
                                Reading { start: 0, wanted, base, entry, position, alone: false };
                            lowest = Some(reading);
                        }
                    }
                    Located::Need(page) if unreadable.contains(&page.base) => wanted.failed = true,
                    Located::Unreadable => wanted.failed = true,
                    Located::Need(page) => {
                        pages.insert(page);
                        is_first = false;
                    }
                    // Said of that queue when records are gathered.
                    Located::Lost(_) if is_first => return Cold::No,
                    Located::Lost(_) | Located::Nowhere => {}
                }
                continue 'queues;
            }
        }
        match lowest {
            Some(lowest) if pages.is_empty() || parked.rounds >= ROUNDS_MAX => {
                self.plan_transfer(parked, lowest)
            }
            _ if !pages.is_empty() => Cold::Pages(pages),
            _ => Cold::No,
        }
    }

    /// Reads pages of indexes that a fetch needs, all at once.
    pub(super) fn read_pages(
        &mut self,
        fetch: u64,
        mut parked: Parked,
        pages: &BTreeSet<PageName>,
        out: &mut Outbox<M::Block>,
    ) {
        // A fetch of many queues wants pages that lie side by side: they are read together.
        let mut runs: Vec<PageName> = Vec::new();
        for page in pages {
            if !runs.last_mut().is_some_and(|run| run.take(page)) {
                runs.push(*page);
            }
        }
        parked.pages = runs.len() as u32;
        parked.rounds += 1;
        self.fetches.parked.insert(fetch, parked);
        for pages in runs {
            self.read_index(pages, vec![fetch], out);
        }
    }

    /// Pages of an index are there.
    pub(in super::super) fn index_read(
        &mut self,
        read: u64,
        result: Result<Rc<M::Block>, DiskError>,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        let Some(IndexRead { pages, readers, changes }) = self.fetches.index_reads.remove(&read)
        else {
            return;
        };
        if self.fetches.pages_under_way.get(&pages) == Some(&read) {
            self.fetches.pages_under_way.remove(&pages);
        }
        // Read of an index that was made again meanwhile: it is read once more.
        let is_old = changes != self.mending.changes;
        let is_there = !is_old
            && result.is_ok_and(|block| {
                // The one that is needed last: it is there when the fetch goes on.
                let mut is_there = true;
                for (n, bytes) in block.bytes().chunks_exact(PAGE_BYTES).enumerate().rev() {
                    let page = pages.page + n as u32;
                    is_there &= self.index_pages.insert(pages.base, page, bytes).is_some();
                }
                is_there
            });
        let is_bad = !is_there && !is_old;
        if is_bad {
            self.mend(pages.base);
        }
        for reader in readers {
            if is_pop(reader) {
                self.pop_page(reader, !is_bad, now, out);
                continue;
            }
            let Some(mut parked) = self.fetches.parked.remove(&reader) else { continue };
            parked.pages -= 1;
            if is_bad {
                parked.unreadable.push(pages.base);
            }
            if parked.pages > 0 {
                self.fetches.parked.insert(reader, parked);
            } else if parked.orphaned {
                self.forget(reader, parked);
            } else {
                let expired = self.is_due(&parked, now);
                self.serve(reader, parked, expired, out);
            }
        }
    }

    /// Reads what a fetch needs, or takes it from what was read before.
    pub(super) fn start_read(
        &mut self,
        fetch: u64,
        mut parked: Parked,
        reading: Reading,
        expired: bool,
        out: &mut Outbox<M::Block>,
    ) {
        let Reading { wanted, position, entry, alone, .. } = reading;
        let record_end = position + u64::from(entry.bytes);
        let segment = self.log.segment_of(position).filter(|segment| record_end <= segment.end());
        let Some(segment) = segment else {
            // An index that says what cannot be.
            parked.queues[wanted].failed = true;
            parked.failures += 1;
            self.serve(fetch, parked, true, out);
            return;
        };
        let range = Range::of(segment.base, position, record_end, alone);
        let (start, alone) = (range.start, range.alone);
        let reading = Reading { start, alone, ..reading };
        if !alone && let Some(block) = self.windows.get(start, record_end) {
            self.read_ahead(start, segment, out);
            self.take_block(fetch, parked, &reading, &block, expired, out);
            return;
        }
        parked.reading = Some(reading);
        self.fetches.parked.insert(fetch, parked);
        if alone || !self.windows.join(fetch, start, record_end) {
            self.read_range(range, segment, vec![fetch], out);
        }
        if !alone {
            self.read_ahead(start, segment, out);
        }
    }

    pub(super) fn read_range(
        &mut self,
        range: Range,
        segment: Segment,
        fetches: Vec<u64>,
        out: &mut Outbox<M::Block>,
    ) {
        let Range { start, bytes, alone } = range;
        let flushed = self.log.flushed().next_multiple_of(BLOCK_BYTES as u64);
        let bytes = (start + bytes).min(segment.end()).min(flushed).saturating_sub(start) as u32;
        if bytes == 0 {
            return;
        }
        let read = self.fetches.next;
        self.fetches.next += 1;
        self.figures.read_bytes += u64::from(bytes);
        self.windows.begin(read, Read { start, bytes, fetches, alone });
        out.actions.push(Action::Read { read, position: start, bytes });
    }

    /// Whoever has come from the window before will want those behind.
    pub(super) fn read_ahead(&mut self, start: u64, segment: Segment, out: &mut Outbox<M::Block>) {
        let is_sequence =
            start >= segment.base + WINDOW_BYTES && self.windows.has(start - WINDOW_BYTES);
        if !is_sequence {
            return;
        }
        let end = segment.end().min(self.log.flushed());
        for next in (1..=AHEAD_OF_ONE).map(|n| start + n * WINDOW_BYTES) {
            if next + WINDOW_BYTES <= end
                && !self.windows.has(next)
                && self.windows.may_read_ahead()
            {
                self.read_range(Range::window(next), segment, Vec::new(), out);
            }
        }
    }

    /// A read ended.
    pub(in super::super) fn fetch_read(
        &mut self,
        read: u64,
        result: Result<Rc<M::Block>, DiskError>,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        let Some(Read { start, fetches, alone, .. }) = self.windows.end(read) else { return };
        if let Ok(block) = &result
            && !alone
        {
            self.windows.keep(start, block);
        }
        for fetch in fetches {
            if is_pop(fetch) {
                self.pop_block(fetch, start, result.as_ref(), now, out);
                continue;
            }
            let Some(mut parked) = self.fetches.parked.remove(&fetch) else { continue };
            let Some(reading) = parked.reading.take() else {
                self.fetches.parked.insert(fetch, parked);
                continue;
            };
            if parked.orphaned {
                self.forget(fetch, parked);
                continue;
            }
            let expired = self.is_due(&parked, now);
            match &result {
                Ok(block) => self.take_block(fetch, parked, &reading, block, expired, out),
                // Perhaps it is another place of the range that is bad.
                Err(_) if !alone => {
                    let reading = Reading { alone: true, ..reading };
                    self.start_read(fetch, parked, reading, expired, out);
                }
                Err(_) => {
                    self.figures.failed_reads += 1;
                    parked.queues[reading.wanted].failed = true;
                    parked.failures += 1;
                    self.serve(fetch, parked, true, out);
                }
            }
        }
    }

    /// Answers a fetch with what was read.
    fn take_block(
        &mut self,
        fetch: u64,
        mut parked: Parked,
        reading: &Reading,
        block: &Rc<M::Block>,
        expired: bool,
        out: &mut Outbox<M::Block>,
    ) {
        let mut fetched = std::mem::take(&mut self.fetches.fetched);
        fetched.clear();
        // Ownership may have moved meanwhile: of such a queue nothing is taken.
        self.find_faults(&mut parked, &mut fetched);
        let slices = out.slices.len();
        let source = Source::Disk(reading, block);
        let first = reading.wanted;
        let gathered = self.gather(&mut parked, first, &source, slices, &mut fetched, out);
        let has_stopped = gathered.exhausted && !fetched.is_empty();
        if gathered.bytes > 0 || gathered.told || has_stopped {
            self.figures.sql_left_out += gathered.left_out;
            self.answer_fetch(&parked, gathered.bytes, slices, &fetched, out);
            self.fetches.fetched = fetched;
            self.forget(fetch, parked);
        } else {
            // Nothing of it is wanted: a filter left it out, or it expired meanwhile.
            self.fetches.fetched = fetched;
            out.slices.truncate(slices);
            self.serve(fetch, parked, expired, out);
        }
    }

    fn is_due(&self, parked: &Parked, now: Now) -> bool {
        self.stopping || parked.due_us <= now.mono_us
    }
}

/// Whether a filter passes over the next record of a queue, as far as there is work left for that. A record that is
/// not in memory is to be read, as one that is wanted.
fn passes<B: Block>(
    filter: &Filter,
    wanted: &mut Wanted,
    entry: &Entry,
    base: u64,
    work: &mut u32,
    memory: &mut InMemory<'_, B>,
) -> bool {
    if *work >= WORK_MAX || wanted.known == Some(wanted.offset) {
        return false;
    }
    if !filter.admits(entry) {
        *work += 1;
        return true;
    }
    let Filter::Sql(sql) = filter else { return false };
    let place = (base, position(base, entry), entry.bytes);
    let Some(judged) = memory.judge(sql, (wanted.id, wanted.offset), place) else { return false };
    *work = work.saturating_add(judged.work);
    if judged.is_wanted {
        wanted.known = Some(wanted.offset);
    }
    !judged.is_wanted
}
