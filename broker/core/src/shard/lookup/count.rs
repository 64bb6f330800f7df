//! How many messages of a queue a filter wants: a walk over the index, and over the records where it must be.
//!
//! Invariants:
//! - a message is counted when a fetch with the same filter would send it; what could not be looked at is counted apart;
//! - one step is a bounded piece of work, and steps have pauses between them, of all counts together: whoever counts,
//!   however much, has a part of the shard's time (promise: isolation);
//! - pages and records that are read for it go into no cache: what consumers have there stays.

use crate::index::{Entry, PAGE_BYTES, Section, check_page, row};
use crate::log::{Log, Segment};
use crate::peer::QueueId;
use crate::queue::{Place, Stretch};
use crate::seam::{BLOCK_BYTES, Block, Memory, Outbox};
use crate::shard::fetch::{Filter, cut, is_record};
use crate::shard::locate::{PageName, position};
use crate::shard::{Asker, Shard};
use std::ops::Range;
use std::rc::Rc;

/// Work of one step: so many entries are compared with tags in some 100 µs, see [`Filter`] for what else costs how much.
const STEP_WORK: u32 = 8_000;
/// Between the beginnings of two steps of whatever counts.
pub(super) const PAUSE_US: u64 = 500;
/// A request is answered after this, with where to go on: long before its client gives up.
const REQUEST_US: u64 = 200_000;
/// Pages of entries that are read together: 5000 messages.
const PAGES_AHEAD: u32 = 32;
/// Records are read together up to so many bytes, and with gaps of at most so many between them.
const READ_BYTES: u64 = 256 << 10;
/// See [`READ_BYTES`].
const GAP_BYTES: u64 = 32 << 10;

/// One count.
#[derive(Debug)]
pub(super) struct Count<B> {
    pub(super) asker: Asker,
    pub(super) id: QueueId,
    pub(super) filter: Option<Filter>,
    /// The next offset, and the one where it ends.
    pub(super) at: u64,
    pub(super) end: u64,
    begin: u64,
    begun_us: u64,
    pub(super) matching: u64,
    pub(super) first_ms: i64,
    pub(super) unreadable: u64,
    pub(super) is_complete: bool,
    /// Its index cannot be read.
    is_stuck: bool,
    pages: Option<Pages>,
    block: Option<(u64, Rc<B>)>,
    is_reading: bool,
    /// A longer read failed: this record is read by itself.
    alone: Option<u64>,
}

/// Pages of the entries of one segment.
#[derive(Debug)]
struct Pages {
    base: u64,
    first: u32,
    rooms: Vec<Rc<[u8]>>,
    /// How many changes of indexes there had been.
    changes: u64,
}

/// Why a step ended.
enum Stop {
    /// Nothing is left.
    End,
    /// That was enough for one step.
    Enough,
    /// These pages are to be read.
    Pages(PageName),
    /// This part of the log is to be read.
    Log(Range<u64>),
    /// An index is of no use.
    Unreadable,
}

impl<B: Block> Count<B> {
    pub(super) fn new(
        asker: Asker,
        id: QueueId,
        filter: Option<Filter>,
        range: Range<u64>,
        begun_us: u64,
    ) -> Count<B> {
        Count {
            asker,
            id,
            filter,
            at: range.start,
            end: range.end,
            begin: range.start,
            begun_us,
            matching: 0,
            first_ms: 0,
            unreadable: 0,
            is_complete: false,
            is_stuck: false,
            pages: None,
            block: None,
            is_reading: false,
            alone: None,
        }
    }

    /// Pages are there; `None`: they cannot be read. Returns whether they are what they should be.
    pub(super) fn take_pages(
        &mut self,
        name: PageName,
        changes: u64,
        bytes: Option<&[u8]>,
    ) -> bool {
        self.is_reading = false;
        let pages = (name.page..).zip(bytes.unwrap_or_default().chunks_exact(PAGE_BYTES));
        let rooms = pages.map_while(|(page, bytes)| check_page(name.base, page, bytes));
        let rooms: Vec<Rc<[u8]>> = rooms.map(Rc::from).collect();
        let is_good = !rooms.is_empty();
        self.is_stuck |= !is_good;
        self.pages = is_good.then_some(Pages { base: name.base, first: name.page, rooms, changes });
        is_good
    }

    /// The pages that were read may be of an index that is another by now: they are read again.
    pub(super) fn take_old(&mut self) {
        self.is_reading = false;
    }

    /// Part of the log is there, or cannot be read.
    pub(super) fn take_block(&mut self, start: u64, block: Option<Rc<B>>) {
        self.is_reading = false;
        match block {
            Some(block) => self.block = Some((start, block)),
            None if self.alone == Some(self.at) => self.pass_unreadable(),
            None => self.alone = Some(self.at),
        }
    }

    fn pass_unreadable(&mut self) {
        self.unreadable += 1;
        self.at += 1;
        self.alone = None;
    }

    fn found(&mut self, count: u64, at_ms: i64) {
        self.matching += count;
        if self.first_ms == 0 && count > 0 {
            self.first_ms = at_ms;
        }
    }

    fn room(&self, base: u64, page: u32, changes: u64) -> Option<Rc<[u8]>> {
        let pages = self.pages.as_ref().filter(|p| p.base == base && p.changes == changes)?;
        let at = page.checked_sub(pages.first)? as usize;
        pages.rooms.get(at).map(Rc::clone)
    }
}

impl<M: Memory> Shard<M> {
    /// One step of a count; returns whether it ended.
    pub(super) fn run_count(
        &mut self,
        number: u64,
        count: &mut Count<M::Block>,
        out: &mut Outbox<M::Block>,
    ) -> bool {
        if count.is_reading {
            return false;
        }
        let stop = if count.is_stuck { Stop::Unreadable } else { self.step_count(count) };
        // Whoever asks is to get somewhere, however long the disk takes.
        let is_late = self.last_step.mono_us >= count.begun_us + REQUEST_US;
        let is_late = is_late && count.at > count.begin;
        match stop {
            Stop::End => {
                count.is_complete = true;
                self.answer_count(count, out);
                return true;
            }
            Stop::Unreadable => {
                self.refuse_count(count, out);
                return true;
            }
            Stop::Enough | Stop::Pages(_) | Stop::Log(_) if is_late => {
                self.answer_count(count, out);
                return true;
            }
            Stop::Enough => self.lookups.counting.push_back(number),
            Stop::Pages(name) => {
                count.is_reading = true;
                self.read_pages_for(number, name, out);
            }
            Stop::Log(range) => {
                count.is_reading = true;
                let bytes = (range.end - range.start) as u32;
                self.read_log(number, 0, range.start, bytes, out);
            }
        }
        false
    }

    fn step_count(&mut self, count: &mut Count<M::Block>) -> Stop {
        let changes = self.mending.changes;
        let mut work = 0;
        loop {
            let Shard { queues, log, index_pages, .. } = self;
            let Some(queue) = queues.get(count.id) else { return Stop::End };
            count.at = count.at.max(queue.min);
            let end = count.end.min(queue.visible);
            if count.at >= end {
                return Stop::End;
            }
            if work >= STEP_WORK {
                return Stop::Enough;
            }
            work += 1;
            let left = end - count.at;
            let rows;
            let (number, entries) = match queue.find(count.at) {
                None => return Stop::End,
                Some(Place::Lost(next)) => {
                    let lost = (next - count.at).min(left);
                    count.unreadable += lost;
                    count.at += lost;
                    continue;
                }
                Some(Place::Memory(number, entries)) => (number, entries),
                Some(Place::Disk(stretch, at)) if count.filter.is_none() && count.first_ms != 0 => {
                    let all = u64::from(stretch.count - at).min(left);
                    count.found(all, 0);
                    count.at += all;
                    continue;
                }
                Some(Place::Disk(stretch, at)) => {
                    let segment = log.segment_numbered(stretch.segment);
                    let room = |base, page| {
                        count.room(base, page, changes).or_else(|| index_pages.get(base, page))
                    };
                    match by_index(segment, stretch, at, room) {
                        Ok(found) => rows = found,
                        Err(stop) => return stop,
                    }
                    (stretch.segment, &rows[..])
                }
            };
            let Some(segment) = log.segment_numbered(number) else { return Stop::Unreadable };
            let most = entries.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let stop = walk(count, log, &segment, &entries[..most], &mut work);
            self.figures.sql_left_out += u64::from(stop.1);
            if let Some(stop) = stop.0 {
                return stop;
            }
        }
    }
}

/// Entries from one of a stretch on, as its index has them.
fn by_index(
    segment: Option<Segment>,
    stretch: Stretch,
    at: u32,
    mut room: impl FnMut(u64, u32) -> Option<Rc<[u8]>>,
) -> Result<Vec<Entry>, Stop> {
    let segment = segment.ok_or(Stop::Unreadable)?;
    let index = segment.index.ok_or(Stop::Unreadable)?;
    let (left, spot) = (stretch.count - at, index.entry(stretch.first_entry + at));
    let Some(room) = room(segment.base, spot.page) else {
        let rows = spot.row as u32 + left;
        let count = rows.div_ceil(Section::Entries.per_page()).min(PAGES_AHEAD);
        return Err(Stop::Pages(PageName { base: segment.base, page: spot.page, count }));
    };
    let rows = (spot.row..).map_while(|number| row::<Entry>(&room, number));
    let rows: Vec<Entry> = rows.take(left as usize).collect();
    if rows.is_empty() { Err(Stop::Unreadable) } else { Ok(rows) }
}

/// Passes over entries of one segment. Returns why it stopped before their end, and how many an expression left out.
fn walk<M: Memory>(
    count: &mut Count<M::Block>,
    log: &Log<M>,
    segment: &Segment,
    entries: &[Entry],
    work: &mut u32,
) -> (Option<Stop>, u32) {
    let mut left_out = 0;
    if count.filter.is_none() {
        count.found(entries.len() as u64, entries.first().map_or(0, |entry| entry.latest_ms));
        count.at += entries.len() as u64;
        return (None, left_out);
    }
    for (number, entry) in entries.iter().enumerate() {
        if *work >= STEP_WORK {
            return (Some(Stop::Enough), left_out);
        }
        *work += 1;
        let Some(filter) = &count.filter else { break };
        let is_wanted = match filter {
            _ if !filter.admits(entry) => false,
            Filter::Tags(_) => true,
            Filter::Sql(sql) => {
                let at = position(segment.base, entry);
                let tail = log.tail.slice(at, entry.bytes);
                let held = || {
                    let (start, block) = count.block.as_ref()?;
                    cut(*start, block, at, entry.bytes)
                };
                let is_from_disk = tail.is_none();
                let Some(slice) = tail.or_else(held) else {
                    let is_alone = count.alone == Some(count.at);
                    let together =
                        if is_alone { &entries[number..=number] } else { &entries[number..] };
                    return match range_of(segment, filter, together) {
                        Some(range) => (Some(Stop::Log(range)), left_out),
                        None => (Some(Stop::Unreadable), left_out),
                    };
                };
                if is_from_disk && !is_record(&slice, count.id, count.at) {
                    *work += 64;
                    count.pass_unreadable();
                    continue;
                }
                let judged = sql.judge(slice.bytes(), is_from_disk);
                *work = work.saturating_add(judged.work);
                left_out += u32::from(!judged.is_wanted);
                judged.is_wanted
            }
        };
        count.found(u64::from(is_wanted), entry.latest_ms);
        count.at += 1;
        count.alone = None;
    }
    (None, left_out)
}

/// What is read of the log to look at the first of these and at those behind it that lie near; `None`: the index
/// says what cannot be.
fn range_of(segment: &Segment, filter: &Filter, entries: &[Entry]) -> Option<Range<u64>> {
    let place = |entry: &Entry| {
        let start = position(segment.base, entry);
        start..start + u64::from(entry.bytes)
    };
    let mut wanted = entries.iter().filter(|entry| filter.admits(entry)).map(place);
    let mut range = wanted.next().filter(|first| first.end <= segment.end())?;
    for next in wanted {
        let is_near = next.start >= range.end && next.start - range.end <= GAP_BYTES;
        if !is_near || next.end - range.start > READ_BYTES || next.end > segment.end() {
            break;
        }
        range.end = next.end;
    }
    let block = BLOCK_BYTES as u64;
    let start = range.start - range.start % block;
    Some(start..range.end.next_multiple_of(block).min(segment.end()))
}
