//! Messages by key, unique id or position: window after window of segments from the newest down.
//!
//! All segments of a window are probed at the same time, then the records that they name are read and compared, in
//! the order of the answer.
//!
//! Invariants:
//! - a record is answered only when it was compared itself: key or id, topic, place; and when a consumer could read it
//!   (promise: prefix: what was seen is durable);
//! - everything at or above `before` was looked at; what could not be is counted in `unreadable`.

use super::Arrived;
use super::probe::{Places, Probe, Wanted};
use crate::index::{PLACE_BYTES, SegmentRows};
use crate::log::Segment;
use crate::peer::QueueId;
use crate::seam::{BLOCK_BYTES, Block, Memory, Outbox, Slice};
use crate::shard::{Asker, Shard};
use ringmq_schema::limits::RECORD_BYTES_MAX;
use ringmq_schema::record::{self, HEADER_BYTES, Kind};
use std::rc::Rc;

/// Segments probed at the same time: first few, since most look-ups are for what is new.
const FIRST_WINDOW: usize = 8;
/// See [`FIRST_WINDOW`]. 40 segments are 10 GiB: two windows.
const WINDOW: usize = 32;
/// Windows in one step, when all their pages are in memory.
const WINDOWS_A_STEP: usize = 4;
/// Rows in memory looked at in one step: 0.8 MB.
const ROWS_A_STEP: usize = 100_000;
/// Records read ahead of the one that is compared.
const RECORDS_AHEAD: usize = 16;
/// Read of a record whose length is not known; most are not longer.
const SHORT_BYTES: u64 = 8192;
/// Most bytes of one answer; one record always fits.
const ANSWER_BYTES: usize = 1 << 20;

/// One look-up.
#[derive(Debug)]
pub(super) struct Find<B> {
    pub(super) asker: Asker,
    pub(super) wanted: Wanted,
    /// Only of this topic; 0: of any.
    pub(super) topic: u32,
    pub(super) most: usize,
    pub(super) before: u64,
    /// Segments that may still be probed.
    segments: usize,
    window: usize,
    stage: Stage,
    probes: Vec<Probe>,
    /// Pages that are being read.
    pages: usize,
    candidates: Vec<Candidate<B>>,
    /// How many of them were compared.
    compared: usize,
    /// Everything at or above is looked at when all of them were compared.
    floor: u64,
    pub(super) found: Vec<Slice<B>>,
    bytes: usize,
    pub(super) unreadable: u32,
    /// Whether nothing is left to be searched.
    pub(super) is_complete: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Window,
    Probe,
    Compare,
}

/// A record that may be wanted.
#[derive(Debug)]
struct Candidate<B> {
    position: u64,
    state: State<B>,
}

#[derive(Debug)]
enum State<B> {
    /// Not read yet; of this length, when that is known.
    Unread(Option<u32>),
    Reading(Option<u32>),
    There(Slice<B>),
    Unreadable,
}

enum Verdict {
    Wanted,
    Other,
    Unreadable,
}

impl<B: Block> Find<B> {
    pub(super) fn new(
        asker: Asker,
        wanted: Wanted,
        topic: u32,
        most: usize,
        before: u64,
        segments: usize,
    ) -> Find<B> {
        // The record at a position is in the one segment that begins in front of it.
        let (before, segments) = match wanted {
            Wanted::At(position) => (position.saturating_add(1), 1),
            _ => (if before == 0 { u64::MAX } else { before }, segments),
        };
        Find {
            asker,
            wanted,
            topic,
            most,
            before,
            segments,
            window: FIRST_WINDOW,
            stage: Stage::Window,
            probes: Vec::new(),
            pages: 0,
            candidates: Vec::new(),
            compared: 0,
            floor: before,
            found: Vec::new(),
            bytes: 0,
            unreadable: 0,
            is_complete: false,
        }
    }

    /// Part of the log is there, or cannot be read.
    pub(super) fn take_block(&mut self, part: usize, start: u64, block: Option<Rc<B>>) {
        let Some(candidate) = self.candidates.get_mut(part) else { return };
        let State::Reading(known) = candidate.state else { return };
        candidate.state = match block {
            None => State::Unreadable,
            Some(block) => cut(&block, start, candidate.position, known),
        };
    }

    /// What the probes found becomes candidates.
    /// `is_there` says whether there still is a segment.
    fn collect(&mut self, is_there: impl Fn(u64) -> bool) {
        self.candidates.clear();
        self.compared = 0;
        let mut probes = std::mem::take(&mut self.probes);
        for probe in &mut probes {
            let base = probe.segment.base;
            self.segments -= 1;
            self.floor = base;
            let candidate = |position| Candidate { position, state: State::Unread(None) };
            match (probe.take(), &self.wanted) {
                (Places::These(places, is_all), _) => {
                    let positions =
                        places.iter().map(|place| base + u64::from(*place) * PLACE_BYTES);
                    self.candidates.extend(positions.map(candidate));
                    if let (false, Some(last)) = (is_all, self.candidates.last()) {
                        // More of this segment comes first.
                        self.floor = last.position;
                        break;
                    }
                }
                // The record tells itself whether it is one.
                (Places::Unreadable, Wanted::At(position)) => {
                    self.candidates.push(candidate(*position));
                }
                (Places::Unreadable, _) => self.unreadable += u32::from(is_there(base)),
            }
        }
    }
}

/// The record at a position in a block that was read from `start` on.
fn cut<B: Block>(block: &Rc<B>, start: u64, position: u64, known: Option<u32>) -> State<B> {
    let from = (position - start) as usize;
    let Some(bytes) = block.bytes().get(from..) else { return State::Unreadable };
    let Some(length) = length_of(bytes) else { return State::Unreadable };
    match (known, bytes.len() >= length as usize) {
        (_, true) => {
            let range = from as u32..from as u32 + length;
            State::There(Slice { block: Rc::clone(block), range })
        }
        (None, false) => State::Unread(Some(length)),
        (Some(_), false) => State::Unreadable,
    }
}

/// Length that the record at the beginning of `bytes` says of itself.
fn length_of(bytes: &[u8]) -> Option<u32> {
    let length = u32::from_le_bytes(*bytes.first_chunk::<4>()?);
    (HEADER_BYTES..=RECORD_BYTES_MAX).contains(&(length as usize)).then_some(length)
}

impl<M: Memory> Shard<M> {
    /// Returns whether it ended.
    pub(super) fn run_find(
        &mut self,
        number: u64,
        find: &mut Find<M::Block>,
        out: &mut Outbox<M::Block>,
    ) -> bool {
        let mut windows = 0;
        loop {
            match find.stage {
                Stage::Window => {
                    if find.found.len() >= find.most || find.bytes >= ANSWER_BYTES {
                        break;
                    }
                    if windows == WINDOWS_A_STEP {
                        self.lookups.ready.insert(number);
                        return false;
                    }
                    windows += 1;
                    if !self.open_window(number, find, out) {
                        break;
                    }
                    find.stage = Stage::Probe;
                }
                Stage::Probe => {
                    if !self.scan_rows(number, find, out) {
                        self.lookups.ready.insert(number);
                        return false;
                    }
                    if find.pages > 0 {
                        return false;
                    }
                    find.collect(|base| self.log.segment_of(base).is_some());
                    find.stage = Stage::Compare;
                }
                Stage::Compare => {
                    if !self.compare(number, find, out) {
                        return false;
                    }
                    find.stage = Stage::Window;
                }
            }
        }
        self.answer_find(find, out);
        true
    }

    /// Begins to probe the next segments; returns whether there are any.
    fn open_window(
        &mut self,
        number: u64,
        find: &mut Find<M::Block>,
        out: &mut Outbox<M::Block>,
    ) -> bool {
        find.before = find.before.min(self.log.flushed());
        if let Wanted::At(position) = find.wanted
            && (position >= find.before || !position.is_multiple_of(PLACE_BYTES))
        {
            find.is_complete = true;
            return false;
        }
        let count = find.window.min(find.segments);
        let segments: Vec<_> = self.log.segments_below(find.before).take(count).collect();
        if segments.is_empty() {
            let is_left = self.log.segments_below(find.before).next().is_some();
            find.is_complete = !is_left || matches!(find.wanted, Wanted::At(_));
            return false;
        }
        find.window = WINDOW;
        let probe = |segment: Segment| match self.rows_of(segment.base) {
            Some(_) => Probe::in_memory(segment),
            None => Probe::on_disk(segment),
        };
        find.probes = segments.into_iter().map(probe).collect();
        for part in 0..find.probes.len() {
            self.step_probe(number, find, part, None, out);
        }
        true
    }

    /// Rows of a segment whose index is not on disk.
    fn rows_of(&self, base: u64) -> Option<&SegmentRows> {
        self.log.rows_of(base).or_else(|| self.sealing.rows_of(base))
    }

    /// Looks at some rows in memory; returns whether all that there are have been looked at.
    fn scan_rows(
        &mut self,
        number: u64,
        find: &mut Find<M::Block>,
        out: &mut Outbox<M::Block>,
    ) -> bool {
        let mut budget = ROWS_A_STEP;
        for part in 0..find.probes.len() {
            let Find { probes, wanted, before, .. } = find;
            let probe = &mut probes[part];
            if !probe.scans() {
                continue;
            }
            match self.rows_of(probe.segment.base) {
                Some(rows) => {
                    if !probe.scan(rows, wanted, *before, &mut budget) {
                        return false;
                    }
                }
                None => {
                    probe.turn_to_disk();
                    self.step_probe(number, find, part, None, out);
                }
            }
        }
        true
    }

    fn step_probe(
        &mut self,
        number: u64,
        find: &mut Find<M::Block>,
        part: usize,
        arrived: Option<&Arrived>,
        out: &mut Outbox<M::Block>,
    ) {
        let Some(probe) = find.probes.get_mut(part) else { return };
        let (config, pages) = (&self.config, &mut self.index_pages);
        if let Some(name) = probe.step(&find.wanted, find.before, config, pages, arrived) {
            find.pages += 1;
            self.read_page(number, part, name, out);
        }
    }

    /// A page is there, or cannot be read.
    pub(super) fn find_page(
        &mut self,
        number: u64,
        find: &mut Find<M::Block>,
        part: usize,
        arrived: Arrived,
        out: &mut Outbox<M::Block>,
    ) {
        find.pages -= 1;
        self.step_probe(number, find, part, Some(&arrived), out);
    }

    /// Reads and compares candidates; returns whether that is done.
    fn compare(
        &mut self,
        number: u64,
        find: &mut Find<M::Block>,
        out: &mut Outbox<M::Block>,
    ) -> bool {
        while find.compared < find.candidates.len() {
            if find.found.len() >= find.most || find.bytes >= ANSWER_BYTES {
                return true;
            }
            let at = find.compared;
            let ahead = (at + RECORDS_AHEAD).min(find.candidates.len());
            for part in at..ahead {
                // Long ones one at a time.
                match find.candidates[part].state {
                    State::Unread(Some(_)) if part > at => {}
                    State::Unread(known) => self.read_candidate(number, find, part, known, out),
                    _ => {}
                }
            }
            let Candidate { position, state } = &mut find.candidates[at];
            let position = *position;
            let verdict = match std::mem::replace(state, State::Unreadable) {
                State::There(slice) => {
                    let verdict = self.judge(find, position, &slice);
                    let bytes = slice.range.len();
                    if matches!(verdict, Verdict::Wanted)
                        && !find.found.is_empty()
                        && find.bytes + bytes > ANSWER_BYTES
                    {
                        // It is the first of the next answer.
                        find.bytes = ANSWER_BYTES;
                        return true;
                    }
                    if matches!(verdict, Verdict::Wanted) {
                        find.bytes += bytes;
                        find.found.push(slice);
                    }
                    verdict
                }
                State::Unreadable if self.log.segment_of(position).is_none() => Verdict::Other,
                State::Unreadable => Verdict::Unreadable,
                waits => {
                    *state = waits;
                    return false;
                }
            };
            find.unreadable += u32::from(matches!(verdict, Verdict::Unreadable));
            find.before = position;
            find.compared += 1;
        }
        find.before = find.floor;
        true
    }

    /// Takes a record from memory, or begins to read it.
    fn read_candidate(
        &mut self,
        number: u64,
        find: &mut Find<M::Block>,
        part: usize,
        known: Option<u32>,
        out: &mut Outbox<M::Block>,
    ) {
        let candidate = &mut find.candidates[part];
        let position = candidate.position;
        let in_memory = self.log.tail.slice(position, HEADER_BYTES as u32).and_then(|head| {
            let bytes = &head.block.bytes()[head.range.start as usize..];
            self.log.tail.slice(position, length_of(bytes)?)
        });
        if let Some(slice) = in_memory {
            candidate.state = State::There(slice);
            return;
        }
        let block = BLOCK_BYTES as u64;
        let start = position - position % block;
        let Some(segment) = self.log.segment_of(position) else {
            candidate.state = State::Unreadable;
            return;
        };
        let needed = match known {
            Some(length) => (position + u64::from(length)).next_multiple_of(block),
            None => start + SHORT_BYTES,
        };
        let end = needed.min(segment.end()).min(self.log.flushed().next_multiple_of(block));
        candidate.state = State::Reading(known);
        self.read_log(number, part, start, (end - start) as u32, out);
    }

    /// Whether a record is what is wanted, and for everybody to see.
    fn judge(&self, find: &Find<M::Block>, position: u64, slice: &Slice<M::Block>) -> Verdict {
        let bytes = &slice.block.bytes()[slice.range.start as usize..slice.range.end as usize];
        let Ok((_, Some(found))) = record::read_one(bytes, 0) else { return Verdict::Unreadable };
        let header = found.header;
        if found.check_header().is_err() || header.position.get() != position {
            return Verdict::Unreadable;
        }
        if header.prefix.kind != Kind::Message as u8 {
            return Verdict::Other;
        }
        let id = QueueId { topic: header.topic.get(), queue: header.queue.get() };
        let offset = header.offset.get();
        let is_visible = self.readable(id).is_ok()
            && self.queues.get(id).is_some_and(|q| (q.min..q.visible).contains(&offset));
        if !is_visible || find.topic != 0 && find.topic != id.topic {
            return Verdict::Other;
        }
        match &find.wanted {
            Wanted::At(_) => Verdict::Wanted,
            Wanted::Id(id) if header.message_id == *id => Verdict::Wanted,
            Wanted::Id(_) => Verdict::Other,
            Wanted::Key { begin_ms, end_ms, .. }
                if !(*begin_ms..*end_ms).contains(&header.store_ms.get()) =>
            {
                Verdict::Other
            }
            Wanted::Key { key, .. } => {
                if found.check_payload().is_err() {
                    return Verdict::Unreadable;
                }
                // Nobody can read a message that does not verify: it has no keys.
                let Ok(message) = found.message() else { return Verdict::Other };
                let mut keys = message.keys().into_iter().flatten();
                if keys.any(|other| other == key) { Verdict::Wanted } else { Verdict::Other }
            }
        }
    }
}
