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
use super::compare::Candidate;
use super::probe::{Places, Probe, Wanted};
use crate::index::{PLACE_BYTES, SegmentRows};
use crate::log::Segment;
use crate::seam::{Block, Memory, Outbox, Slice};
use crate::shard::{Asker, Shard};

/// Segments probed at the same time, a page each: 16 GiB of segments of the usual size in one round of reads.
const WINDOW: usize = 64;
/// Windows in one step, when all their pages are in memory.
const WINDOWS_A_STEP: usize = 4;
/// Rows in memory looked at in one step: 0.8 MB.
const ROWS_A_STEP: usize = 100_000;
/// Most bytes of one answer; one record always fits.
pub(super) const ANSWER_BYTES: usize = 1 << 20;

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
    stage: Stage,
    probes: Vec<Probe>,
    /// Pages that are being read.
    pages: usize,
    pub(super) candidates: Vec<Candidate<B>>,
    /// How many of them were compared.
    pub(super) compared: usize,
    /// Everything at or above is looked at when all of them were compared.
    pub(super) floor: u64,
    pub(super) found: Vec<Slice<B>>,
    pub(super) bytes: usize,
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
            match (probe.take(), &self.wanted) {
                (Places::These(places, is_all), _) => {
                    let positions =
                        places.iter().map(|place| base + u64::from(*place) * PLACE_BYTES);
                    self.candidates.extend(positions.map(Candidate::new));
                    if let (false, Some(last)) = (is_all, self.candidates.last()) {
                        // More of this segment comes first.
                        self.floor = last.position();
                        break;
                    }
                }
                // The record tells itself whether it is one.
                (Places::Unreadable, Wanted::At(position)) => {
                    self.candidates.push(Candidate::new(*position));
                }
                (Places::Unreadable, _) => self.unreadable += u32::from(is_there(base)),
            }
        }
    }
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
        let count = WINDOW.min(find.segments);
        let segments: Vec<_> = self.log.segments_below(find.before).take(count).collect();
        if segments.is_empty() {
            let is_left = self.log.segments_below(find.before).next().is_some();
            find.is_complete = !is_left || matches!(find.wanted, Wanted::At(_));
            return false;
        }
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
}
