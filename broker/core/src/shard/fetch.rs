//! Messages out: long polls over many queues, from memory or from disk.
//!
//! Invariants:
//! - nothing above a queue's high watermark is ever sent: what a consumer saw is durable (promise: prefix);
//! - a run holds only records of the queues that were asked for;
//! - queues are served in rotation, so that none starves behind a busy one.

use super::locate::{Located, PageName, locate, position};
use super::offsets::{check_count, nothing};
use super::{Asker, Handled, Refuse, Shard, read, refuse};
use crate::index::PAGE_BYTES;
use crate::peer::{Member, QueueId, member_of};
use crate::seam::{
    Action, BLOCK_BYTES, Block, ConnectionId, DiskError, Memory, Now, Outbox, Slice,
};
use crate::table::Map;
use ringmq_schema::consume::{Fetch, FetchAnswer, FetchAnswerArgs, FetchedQueue, TagFilter};
use ringmq_schema::error::Status;
use ringmq_schema::limits::{FETCH_BYTES_MAX, LONG_POLL_MS_MAX};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::record;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Bytes read from disk at once for a consumer that is behind.
const READ_BYTES: u64 = 1 << 20;

/// Most filters of one fetch, and most tags of a filter: each record is compared with each tag.
const FILTERS_MAX: usize = 1024;
/// See [`FILTERS_MAX`].
const TAGS_MAX: usize = 64;
/// Most records that a filter leaves out in one step, so that no consumer stops the others.
const SKIPPED_MAX: u32 = 50_000;
/// Most fetches waiting on one queue.
const FETCHES_PER_QUEUE_MAX: usize = 1024;

/// A queue that a fetch asks for.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    id: QueueId,
    slot: u32,
    /// As the request says.
    asked: u64,
    /// As far as filters have left records out since.
    offset: u64,
    generation: u32,
    /// Index into the filters, plus one.
    filter: u16,
}

/// One fetch.
#[derive(Debug, Default)]
struct Parked {
    connection: ConnectionId,
    correlation: u64,
    group: u32,
    member: Member,
    due_us: u64,
    min_bytes: u64,
    max_bytes: u64,
    max_records: u32,
    queues: Vec<Wanted>,
    filters: Vec<Vec<u32>>,
    /// First position and length of the read under way.
    reading: Option<(u64, u32)>,
    /// Pages of indexes that are being read, and whether one could not be.
    pages: u32,
    is_lost: bool,
    /// Its connection is gone while it reads.
    orphaned: bool,
}

impl Parked {
    fn is_reading(&self) -> bool {
        self.reading.is_some() || self.pages > 0
    }
}

/// Fetches that wait, by number.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    parked: Map<u64, Parked>,
    due: BTreeSet<(u64, u64)>,
    index_reads: Map<u64, (PageName, u64)>,
    next: u64,
    rotation: usize,
    woken: Vec<u64>,
    /// Emptied ones, for their memory.
    spare: Vec<Parked>,
    fetched: Vec<FetchedQueue>,
}

impl Fetches {
    pub(super) fn len(&self) -> usize {
        self.parked.len()
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }

    /// These are looked at again when the current step ends.
    pub(super) fn wake(&mut self, mut fetches: Vec<u64>) {
        self.woken.append(&mut fetches);
    }

    pub(super) fn take_woken(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.woken)
    }
}

/// Where records come from.
enum Source<'a, B> {
    Tail,
    /// A block read from this position on.
    Disk(u64, &'a Rc<B>),
}

/// What a fetch needs from disk.
enum Cold {
    No,
    Pages(BTreeSet<PageName>),
    /// The lowest record that is wanted, and its length.
    At(u64, u32),
}

/// What gathering a queue's records came to.
enum Gathered {
    /// Everything there was, or all that the answer takes.
    Done,
    /// The next record is damaged.
    Corrupt,
}

impl<M: Memory> Shard<M> {
    pub(super) fn fetch(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<Fetch<'_>>(table)?;
        let queues = request.queues().ok_or_else(nothing)?;
        check_count(queues.len())?;
        if queues.is_empty() {
            return Err(nothing());
        }
        if request.group() != 0 {
            self.check_group(request.group())?;
        }
        if self.fetches.len() >= self.config.waiting_fetches {
            let text = format!("{} fetches wait already", self.fetches.len());
            return Err(Refuse { retry_after_ms: 100, ..refuse(Status::Busy, text) });
        }
        let mut parked = self.fetches.spare.pop().unwrap_or_default();
        parked.connection = asker.connection;
        parked.correlation = asker.correlation;
        parked.group = request.group();
        parked.member = member_of(request.member());
        let wait_us = u64::from(request.wait_ms().min(LONG_POLL_MS_MAX)) * 1000;
        parked.due_us = now.mono_us + wait_us;
        parked.max_bytes =
            u64::from(request.max_bytes()).min(self.config.fetch_bytes.min(FETCH_BYTES_MAX) as u64);
        parked.min_bytes = u64::from(request.min_bytes()).clamp(1, parked.max_bytes.max(1));
        parked.max_records = request.max_records().max(1);
        let filters = request.filters().unwrap_or_default();
        let hashes = |filter: TagFilter<'_>| filter.hashes().map_or(0, |hashes| hashes.len());
        if filters.len() > FILTERS_MAX || filters.iter().any(|f| hashes(f) > TAGS_MAX) {
            let text = format!("at most {FILTERS_MAX} filters of {TAGS_MAX} tags each are allowed");
            return Err(refuse(Status::TooMany, text));
        }
        for filter in filters {
            parked.filters.push(filter.hashes().unwrap_or_default().iter().collect());
        }
        for queue in queues {
            let id = QueueId { topic: queue.topic(), queue: queue.queue() };
            if usize::from(queue.filter()) > parked.filters.len() {
                return Err(refuse(Status::BadRequest, "a queue names a filter that is not there"));
            }
            // Only queues that can be are given a slot; what is wrong with others is found when the
            // fetch is served.
            let slot = match self.readable(id) {
                Ok(_) => self.queues.slot_or_new(id),
                Err(_) => u32::MAX,
            };
            if slot != u32::MAX && self.queues.at(slot).waiting.len() >= FETCHES_PER_QUEUE_MAX {
                let text = format!("{FETCHES_PER_QUEUE_MAX} fetches wait on this queue already");
                return Err(Refuse { retry_after_ms: 100, ..refuse(Status::Busy, text) });
            }
            parked.queues.push(Wanted {
                id,
                slot,
                asked: queue.offset(),
                offset: queue.offset(),
                generation: queue.generation(),
                filter: queue.filter(),
            });
        }
        let fetch = self.fetches.next;
        self.fetches.next += 1;
        self.serve(fetch, parked, wait_us == 0, out);
        Ok(())
    }

    /// Answers a fetch, starts a read for it, or lets it wait.
    fn serve(&mut self, fetch: u64, mut parked: Parked, expired: bool, out: &mut Outbox<M::Block>) {
        let mut fetched = std::mem::take(&mut self.fetches.fetched);
        fetched.clear();
        self.find_faults(&parked, &mut fetched);
        let rotation = self.fetches.rotation % parked.queues.len();
        self.fetches.rotation = self.fetches.rotation.wrapping_add(1);
        if fetched.is_empty() {
            match self.cold_first(&parked, rotation) {
                Cold::No => {}
                Cold::Pages(pages) => {
                    self.fetches.fetched = fetched;
                    self.read_pages(fetch, parked, &pages, out);
                    return;
                }
                Cold::At(position, bytes) => {
                    self.fetches.fetched = fetched;
                    self.start_read(fetch, parked, position, bytes, out);
                    return;
                }
            }
        }
        let (slices, faults) = (out.slices.len(), fetched.len());
        let (run_bytes, cut_short) =
            self.gather(&parked, rotation, &Source::Tail, slices, &mut fetched, out);
        let enough = run_bytes >= parked.min_bytes || faults > 0 || cut_short;
        if enough || expired {
            self.answer_fetch(&parked, run_bytes, slices, &fetched, out);
            self.forget(fetch, parked);
        } else {
            out.slices.truncate(slices);
            if run_bytes == 0 {
                skip_filtered(&mut parked, &fetched);
            }
            self.park(fetch, &parked);
            self.fetches.parked.insert(fetch, parked);
        }
        self.fetches.fetched = fetched;
    }

    /// Queues that cannot be served: gone, fenced, out of range.
    fn find_faults(&self, parked: &Parked, fetched: &mut Vec<FetchedQueue>) {
        for wanted in &parked.queues {
            let (mut min, mut max) = (0, 0);
            let status = match self.readable(wanted.id) {
                Err(refused) => refused.status,
                // promise: one-owner
                Ok(_)
                    if wanted.generation != 0
                        && !self.offsets.may(
                            parked.group,
                            wanted.id,
                            parked.member,
                            wanted.generation,
                        ) =>
                {
                    Status::Fenced
                }
                Ok(next) => {
                    if let Some(queue) = self.queues.get(wanted.id) {
                        (min, max) = (queue.min, queue.visible);
                    }
                    let out_of_range = wanted.offset < min || wanted.offset > next;
                    if out_of_range { Status::OffsetOutOfRange } else { Status::Ok }
                }
            };
            if status != Status::Ok {
                let QueueId { topic, queue } = wanted.id;
                let code = status.code();
                let entry = FetchedQueue::new(topic, queue, wanted.offset, max, min, 0, code, 0);
                fetched.push(entry);
            }
        }
    }

    /// Whether the first queue in turn that has something has it on disk only, and what is to be read then.
    fn cold_first(&mut self, parked: &Parked, rotation: usize) -> Cold {
        let tail_start = self.log.tail.start().unwrap_or(u64::MAX);
        let (before, from) = parked.queues.split_at(rotation);
        let mut pages = BTreeSet::new();
        let mut lowest: Option<(u64, u32)> = None;
        let mut is_first = true;
        for wanted in from.iter().chain(before).filter(|wanted| wanted.slot != u32::MAX) {
            if wanted.offset >= self.queues.at(wanted.slot).visible {
                continue;
            }
            let Shard { queues, log, index_pages, scratch, .. } = self;
            match locate(queues, log, index_pages, scratch, wanted.slot, wanted.offset) {
                Located::At(base, entries) => {
                    let at = position(base, &entries[0]);
                    if is_first && at >= tail_start {
                        return Cold::No;
                    }
                    if lowest.is_none_or(|(lowest, _)| at < lowest) {
                        lowest = Some((at, entries[0].bytes));
                    }
                }
                Located::Need(page) => drop(pages.insert(page)),
                // Said of that queue when records are gathered.
                Located::Lost(_) | Located::Unreadable(_) if is_first => return Cold::No,
                Located::Lost(_) | Located::Unreadable(_) | Located::Nowhere => continue,
            }
            is_first = false;
        }
        match lowest {
            _ if !pages.is_empty() => Cold::Pages(pages),
            Some((at, bytes)) => Cold::At(at, bytes),
            None => Cold::No,
        }
    }

    /// Reads pages of indexes that a fetch needs, all at once.
    fn read_pages(
        &mut self,
        fetch: u64,
        mut parked: Parked,
        pages: &BTreeSet<PageName>,
        out: &mut Outbox<M::Block>,
    ) {
        parked.pages = pages.len() as u32;
        self.fetches.parked.insert(fetch, parked);
        for page in pages {
            self.figures.index_reads += 1;
            let read = self.fetches.next;
            self.fetches.next += 1;
            self.fetches.index_reads.insert(read, (*page, fetch));
            let at = u64::from(page.page) * PAGE_BYTES as u64;
            let bytes = PAGE_BYTES as u32;
            out.actions.push(Action::ReadIndex { read, base: page.base, at, bytes });
        }
    }

    /// A page of an index is there.
    pub(super) fn index_read(
        &mut self,
        read: u64,
        result: Result<Rc<M::Block>, DiskError>,
        out: &mut Outbox<M::Block>,
    ) {
        let Some((page, fetch)) = self.fetches.index_reads.remove(&read) else { return };
        let taken = match result {
            Ok(block) => self.index_pages.insert(page.base, page.page, block.bytes()).is_some(),
            Err(_) => false,
        };
        let Some(mut parked) = self.fetches.parked.remove(&fetch) else { return };
        parked.pages -= 1;
        parked.is_lost |= !taken;
        if parked.pages > 0 {
            self.fetches.parked.insert(fetch, parked);
        } else if parked.orphaned {
            self.forget(fetch, parked);
        } else if std::mem::take(&mut parked.is_lost) {
            self.read_failed(fetch, parked, "the index of a segment cannot be read", out);
        } else {
            self.serve(fetch, parked, false, out);
        }
    }

    fn start_read(
        &mut self,
        fetch: u64,
        mut parked: Parked,
        position: u64,
        needed: u32,
        out: &mut Outbox<M::Block>,
    ) {
        let block = BLOCK_BYTES as u64;
        let start = position - position % block;
        let Some(segment) = self.log.segment_of(position) else {
            // Cannot be while retention keeps what is indexed; answered as damage, not a panic.
            self.read_failed(fetch, parked, "the position is in no segment", out);
            return;
        };
        let needed = position + u64::from(needed) - start;
        let end = (start + READ_BYTES.max(needed.next_multiple_of(block)))
            .min(segment.end())
            .min(self.log.flushed().next_multiple_of(block));
        let bytes = (end - start) as u32;
        parked.reading = Some((start, bytes));
        self.figures.read_bytes += u64::from(bytes);
        self.fetches.parked.insert(fetch, parked);
        out.actions.push(Action::Read { read: fetch, position: start, bytes });
    }

    /// A read ended.
    pub(super) fn fetch_read(
        &mut self,
        fetch: u64,
        result: Result<Rc<M::Block>, DiskError>,
        out: &mut Outbox<M::Block>,
    ) {
        let Some(mut parked) = self.fetches.parked.remove(&fetch) else { return };
        let Some((start, _)) = parked.reading.take() else {
            self.fetches.parked.insert(fetch, parked);
            return;
        };
        if parked.orphaned {
            self.forget(fetch, parked);
            return;
        }
        let block = match result {
            Ok(block) => block,
            Err(error) => {
                self.read_failed(fetch, parked, &error.to_string(), out);
                return;
            }
        };
        let mut fetched = std::mem::take(&mut self.fetches.fetched);
        fetched.clear();
        // Ownership may have moved meanwhile.
        self.find_faults(&parked, &mut fetched);
        if !fetched.is_empty() {
            self.fetches.fetched = fetched;
            self.serve(fetch, parked, false, out);
            return;
        }
        let slices = out.slices.len();
        let source = Source::Disk(start, &block);
        let (run_bytes, _) = self.gather(&parked, 0, &source, slices, &mut fetched, out);
        self.answer_fetch(&parked, run_bytes, slices, &fetched, out);
        self.fetches.fetched = fetched;
        self.forget(fetch, parked);
    }

    fn read_failed(
        &mut self,
        fetch: u64,
        parked: Parked,
        reason: &str,
        out: &mut Outbox<M::Block>,
    ) {
        let text = format!("shard {} could not read its log: {reason}", self.config.shard);
        let refused = Refuse { retry_after_ms: 1000, ..refuse(Status::ReadFailed, text) };
        self.refuse(fetch_asker(&parked), &refused, out);
        self.forget(fetch, parked);
    }

    /// Collects records from `source` into `out.slices`, queue after queue; returns their bytes, and
    /// whether it stopped where filters left out as much as one step may, or where something must be read
    /// first: there may be more behind.
    fn gather(
        &mut self,
        parked: &Parked,
        rotation: usize,
        source: &Source<'_, M::Block>,
        first_slice: usize,
        fetched: &mut Vec<FetchedQueue>,
        out: &mut Outbox<M::Block>,
    ) -> (u64, bool) {
        let faults = fetched.len();
        let (mut bytes, mut records, mut skipped) = (0u64, 0u32, 0u32);
        let mut cut_short = false;
        let (before, from) = parked.queues.split_at(rotation);
        for wanted in from.iter().chain(before) {
            let has_fault =
                |f: &FetchedQueue| f.topic() == wanted.id.topic && f.queue() == wanted.id.queue;
            if wanted.slot == u32::MAX || fetched[..faults].iter().any(has_fault) {
                continue;
            }
            let Shard { queues, log, index_pages, scratch, .. } = self;
            let queue = queues.at(wanted.slot);
            if queue.visible < queue.next {
                self.sync_wanted = log.appended();
            }
            let filter = wanted.filter.checked_sub(1).map(|n| &parked.filters[usize::from(n)]);
            let mut offset = wanted.offset;
            let mut count = 0u32;
            let mut outcome = Gathered::Done;
            'queue: while offset < queue.visible {
                let (base, entries) =
                    match locate(queues, log, index_pages, scratch, wanted.slot, offset) {
                        Located::At(base, entries) => (base, entries),
                        // What was gathered goes first; then the queue is told, and where to go on.
                        Located::Lost(next) => {
                            if count == 0 {
                                (outcome, offset) = (Gathered::Corrupt, next);
                            }
                            break;
                        }
                        Located::Unreadable(_) => {
                            outcome = Gathered::Corrupt;
                            break;
                        }
                        Located::Need(_) => {
                            cut_short |= offset > wanted.offset;
                            break;
                        }
                        Located::Nowhere => break,
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
                        Source::Disk(start, block) => cut(*start, block, at, entry.bytes),
                    };
                    let Some(slice) = slice else {
                        cut_short |= offset > wanted.offset;
                        break 'queue;
                    };
                    if matches!(source, Source::Disk(..)) && !is_record(&slice, wanted.id, offset) {
                        outcome = Gathered::Corrupt;
                        break 'queue;
                    }
                    push_slice(slice, first_slice, out);
                    bytes += length;
                    records += 1;
                    count += 1;
                    offset += 1;
                }
            }
            let status = match outcome {
                Gathered::Corrupt if count == 0 => Status::Corrupt,
                _ => Status::Ok,
            };
            if offset > wanted.asked || status != Status::Ok {
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
        (bytes, cut_short || skipped >= SKIPPED_MAX)
    }

    fn answer_fetch(
        &mut self,
        parked: &Parked,
        run_bytes: u64,
        first_slice: usize,
        fetched: &[FetchedQueue],
        out: &mut Outbox<M::Block>,
    ) {
        self.figures.messages_out += fetched.iter().map(|f| u64::from(f.records())).sum::<u64>();
        self.figures.bytes_out += run_bytes;
        let start = out.heads.len();
        let opcode = Opcode::Fetch.code();
        let correlation = parked.correlation;
        self.frames.answer(&mut out.heads, opcode, correlation, run_bytes as usize, |fbb| {
            let queues = Some(fbb.create_vector(fetched));
            FetchAnswer::create(fbb, &FetchAnswerArgs { queues })
        });
        out.actions.push(Action::Answer {
            connection: parked.connection,
            head: start..out.heads.len(),
            slices: first_slice..out.slices.len(),
        });
    }

    /// Lets a fetch wait: its queues name it.
    fn park(&mut self, fetch: u64, parked: &Parked) {
        for wanted in parked.queues.iter().filter(|wanted| wanted.slot != u32::MAX) {
            let waiting = &mut self.queues.at_mut(wanted.slot).waiting;
            if !waiting.contains(&fetch) {
                waiting.push(fetch);
            }
        }
        self.fetches.due.insert((parked.due_us, fetch));
    }

    /// Ends a fetch and keeps its memory.
    fn forget(&mut self, fetch: u64, mut parked: Parked) {
        self.fetches.due.remove(&(parked.due_us, fetch));
        for wanted in parked.queues.drain(..).filter(|wanted| wanted.slot != u32::MAX) {
            self.queues.at_mut(wanted.slot).waiting.retain(|waiting| *waiting != fetch);
        }
        parked.filters.clear();
        parked.orphaned = false;
        parked.reading = None;
        if self.fetches.spare.len() < 1024 {
            self.fetches.spare.push(parked);
        }
    }

    /// More is visible, or an owner changed: these are looked at again.
    pub(super) fn wake_fetches(&mut self, woken: Vec<u64>, out: &mut Outbox<M::Block>) {
        for &fetch in &woken {
            let Some(parked) = self.fetches.parked.remove(&fetch) else { continue };
            if parked.is_reading() {
                self.fetches.parked.insert(fetch, parked);
                continue;
            }
            self.serve(fetch, parked, false, out);
        }
        // Its memory serves the next time.
        if self.fetches.woken.is_empty() {
            let mut woken = woken;
            woken.clear();
            self.fetches.woken = woken;
        }
    }

    pub(super) fn expire_fetches(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        while let Some(&(due, fetch)) = self.fetches.due.first() {
            if due > now.mono_us {
                break;
            }
            self.fetches.due.pop_first();
            let Some(parked) = self.fetches.parked.remove(&fetch) else { continue };
            if parked.is_reading() {
                self.fetches.parked.insert(fetch, parked);
                continue;
            }
            self.serve(fetch, parked, true, out);
        }
    }

    /// The shard stops: whoever waits gets what there is.
    pub(super) fn end_fetches(&mut self, out: &mut Outbox<M::Block>) {
        let waiting: Vec<u64> = self.fetches.due.iter().map(|(_, fetch)| *fetch).collect();
        for fetch in waiting {
            let Some(parked) = self.fetches.parked.remove(&fetch) else { continue };
            if parked.is_reading() {
                self.fetches.parked.insert(fetch, parked);
                continue;
            }
            self.serve(fetch, parked, true, out);
        }
    }

    pub(super) fn close_fetches(&mut self, connection: ConnectionId) {
        let mut gone: Vec<u64> = self
            .fetches
            .parked
            .iter()
            .filter(|(_, parked)| parked.connection == connection)
            .map(|(fetch, _)| *fetch)
            .collect();
        gone.sort_unstable();
        for fetch in gone {
            let Some(mut parked) = self.fetches.parked.remove(&fetch) else { continue };
            if parked.is_reading() {
                parked.orphaned = true;
                self.fetches.parked.insert(fetch, parked);
            } else {
                self.forget(fetch, parked);
            }
        }
    }
}

fn fetch_asker(parked: &Parked) -> Asker {
    Asker {
        connection: parked.connection,
        correlation: parked.correlation,
        opcode: Opcode::Fetch.code(),
        one_way: false,
    }
}

/// What a filter left out is not looked at again.
fn skip_filtered(parked: &mut Parked, fetched: &[FetchedQueue]) {
    for found in fetched {
        let id = QueueId { topic: found.topic(), queue: found.queue() };
        let wanted = parked.queues.iter_mut().filter(|wanted| wanted.id == id);
        wanted.for_each(|wanted| wanted.offset = wanted.offset.max(found.next_offset()));
    }
}

/// The bytes of a record in a block that was read from `start` on, if they are all there.
fn cut<B: Block>(start: u64, block: &Rc<B>, position: u64, bytes: u32) -> Option<Slice<B>> {
    let from = position.checked_sub(start)?;
    let end = from + u64::from(bytes);
    (end <= block.bytes().len() as u64)
        .then(|| Slice { block: Rc::clone(block), range: from as u32..end as u32 })
}

/// Whether what was read from disk is the record that the index says (promise: no foreign byte). The
/// payload's checksum is the consumer's to compare.
fn is_record<B: Block>(slice: &Slice<B>, id: QueueId, offset: u64) -> bool {
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
