//! Counts what a walk finds and judges the damage.
//!
//! Invariants:
//! - queue offsets rise by one from record to record of a queue; a jump is laid to the damage that lies
//!   between the two records, and is damage itself when there is none;
//! - nothing is judged before the end: the highest `flushed` may lie in the last unit.

use super::walk::{Damage, Event};
use crate::hole::{Hole, Holes};
use crate::snapshot::{self, Item};
use ringmq_schema::record::{Kind, RecordRef};
use std::collections::BTreeMap;

/// What one segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentCount {
    /// Position of its first byte.
    pub base: u64,
    /// Length of its file.
    pub bytes: u64,
    /// Bytes of valid units.
    pub used_bytes: u64,
    /// Valid units.
    pub units: u64,
    /// Records, but for control records.
    pub records: u64,
    /// Messages among them.
    pub messages: u64,
    /// Unused bytes in units, and behind a seal.
    pub padding_bytes: u64,
    /// Store times of the first and the last record in time.
    pub store_ms: Option<(i64, i64)>,
    /// Lowest and highest epoch.
    pub epochs: Option<(u32, u32)>,
    /// Whether it says that the log goes on at the next one.
    pub sealed: bool,
    /// End of the last valid unit.
    pub end: u64,
}

/// What a damage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// At or above the durable end: what a crash left behind. The broker cuts it off at its start.
    TornTail,
    /// Below it: something that was durable is lost.
    Interior,
}

/// A damage and what it costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Where and what.
    pub damage: Damage,
    /// What it is.
    pub verdict: Verdict,
    /// Offsets that lie in it, first and end, by topic id and queue: what can be read there, and what is
    /// missing between the records around it (of several damages between two records, each may be it).
    pub covers: BTreeMap<(u32, u32), (u64, u64)>,
    /// Records in it that can be read by themselves.
    pub readable_records: u64,
}

/// What there is to say of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// By rising base.
    pub segments: Vec<SegmentCount>,
    /// By rising position.
    pub losses: Vec<Loss>,
    /// Bytes given back by holes in front of the durable end: they held nothing that was still kept.
    pub hole_bytes: u64,
    /// W: up to here the log was durable at least.
    pub flushed: u64,
    /// Where the log ends, a torn tail not counted.
    pub end: u64,
}

impl Report {
    /// Whether something that was durable is lost.
    pub fn is_damaged(&self) -> bool {
        self.losses.iter().any(|loss| loss.verdict == Verdict::Interior)
    }
}

#[derive(Debug)]
struct QueuePlace {
    next: u64,
    /// Number of damages before its last record.
    damages: usize,
}

/// What kind of finding it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nature {
    /// Bytes are not what was written.
    Bytes,
    /// The bytes are whole, but offsets do not fit.
    Offsets,
    /// Files do not adjoin: no crash leaves that, and the broker refuses it.
    Files,
}

#[derive(Debug)]
struct Found {
    loss: Loss,
    nature: Nature,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Survey {
    segments: Vec<SegmentCount>,
    found: Vec<Found>,
    queues: BTreeMap<(u32, u32), QueuePlace>,
    /// Zeros to the end of a segment that are not the end of a damage.
    free: Vec<(u64, u64)>,
    holes: Holes,
}

impl Survey {
    /// Takes the next event of a walk over all segments of one log.
    pub fn take(&mut self, event: &Event<'_>) {
        match *event {
            Event::Segment(file) => self.begin(file.base, file.bytes),
            Event::Damage(damage) => self.damaged(damage, Nature::Bytes),
            Event::Record { position, record, sound } => {
                let header = record.header;
                let message = header.prefix.kind == Kind::Message as u8;
                if sound {
                    let store_ms = header.store_ms.get();
                    if let Some(segment) = self.segments.last_mut() {
                        segment.records += 1;
                        segment.messages += u64::from(message);
                        let (first, last) = segment.store_ms.unwrap_or((store_ms, store_ms));
                        segment.store_ms = Some((first.min(store_ms), last.max(store_ms)));
                    }
                } else if let Some(found) = self.found.last_mut() {
                    found.loss.readable_records += 1;
                }
                if sound {
                    self.take_holes(&record);
                }
                if message {
                    let queue = (header.topic.get(), header.queue.get());
                    let to = position.saturating_add(record.bytes.len() as u64);
                    self.offset(queue, header.offset.get(), sound, (position, to));
                }
            }
            Event::Unit { header } => {
                // The log goes on: what was taken for room at its end is a hole in it.
                self.settle_free();
                let Some(segment) = self.segments.last_mut() else { return };
                let (bytes, epoch) = (u64::from(header.unit_bytes.get()), header.epoch.get());
                segment.units += 1;
                segment.used_bytes += bytes;
                segment.end = header.position.get().saturating_add(bytes);
                let (low, high) = segment.epochs.unwrap_or((epoch, epoch));
                segment.epochs = Some((low.min(epoch), high.max(epoch)));
            }
            Event::Padding { bytes, .. } => {
                if let Some(segment) = self.segments.last_mut() {
                    segment.padding_bytes += bytes;
                }
            }
            Event::Seal { bytes, rest, .. } => {
                if let Some(segment) = self.segments.last_mut() {
                    segment.padding_bytes += bytes + rest;
                    segment.sealed = true;
                }
            }
            Event::Free { from, to } => {
                // Whether the damage before was a seal nobody can tell: its zeros are not held against it.
                let behind = self.found.last().is_some_and(|last| last.loss.damage.to == from);
                if !behind {
                    self.free.push((from, to));
                }
            }
        }
    }

    /// Holes stand in records of their own and in snapshots.
    fn take_holes(&mut self, record: &RecordRef<'_>) {
        let kind = record.header.prefix.kind;
        if kind == Kind::Hole as u8 {
            Hole::read(record.payload).into_iter().for_each(|hole| self.holes.insert(hole));
        } else if kind == Kind::Snapshot as u8 {
            let holes = &mut self.holes;
            // A slice that does not parse is for recovery to refuse.
            let _ = snapshot::read(record.payload, |item| {
                if let Item::Hole(hole) = item {
                    holes.insert(hole);
                }
            });
        }
    }

    fn begin(&mut self, base: u64, bytes: u64) {
        let expected = self.segments.last().map(|last| last.base.saturating_add(last.bytes));
        if let Some(expected) = expected.filter(|&expected| expected != base) {
            let what = if expected < base {
                "a segment is missing before this one"
            } else {
                "two segments overlap"
            };
            let (from, to) = (expected.min(base), expected.max(base));
            self.damaged(Damage { from, to, what }, Nature::Files);
        }
        self.segments.push(SegmentCount {
            base,
            bytes,
            used_bytes: 0,
            units: 0,
            records: 0,
            messages: 0,
            padding_bytes: 0,
            store_ms: None,
            epochs: None,
            sealed: false,
            end: base,
        });
    }

    fn settle_free(&mut self) {
        for (from, to) in std::mem::take(&mut self.free) {
            let what = "zeros lie where a unit must";
            self.damaged(Damage { from, to, what }, Nature::Bytes);
        }
    }

    fn damaged(&mut self, damage: Damage, nature: Nature) {
        // Judged in the end.
        let verdict = Verdict::Interior;
        let loss = Loss { damage, verdict, covers: BTreeMap::new(), readable_records: 0 };
        self.found.push(Found { loss, nature });
    }

    fn offset(&mut self, queue: (u32, u32), offset: u64, sound: bool, place: (u64, u64)) {
        let count = self.found.len();
        if !sound {
            if let Some(found) = self.found.last_mut() {
                cover(&mut found.loss, queue, offset, offset.saturating_add(1));
            }
            return;
        }
        // The log's front may have been retired, and the queue's first offsets with it.
        let whole = self.segments.first().is_some_and(|first| first.base == 0);
        let start = if whole { 0 } else { offset };
        let fresh = QueuePlace { next: start, damages: 0 };
        let last = self.queues.entry(queue).or_insert(fresh);
        let (expected, since) = (last.next, last.damages);
        *last = QueuePlace { next: offset.saturating_add(1), damages: count };
        if offset == expected {
            return;
        }
        if offset > expected && since < count {
            let mut explained = false;
            for found in &mut self.found[since..] {
                if found.nature != Nature::Offsets {
                    cover(&mut found.loss, queue, expected, offset);
                    explained = true;
                }
            }
            if explained {
                return;
            }
        }
        let what = if offset > expected {
            "queue offsets are missing before this record, and nothing before it is damaged"
        } else {
            "the queue offset of this record was given before"
        };
        self.damaged(Damage { from: place.0, to: place.1, what }, Nature::Offsets);
        if let Some(found) = self.found.last_mut() {
            cover(&mut found.loss, queue, expected.min(offset), expected.max(offset));
        }
        if let Some(last) = self.queues.get_mut(&queue) {
            last.damages = self.found.len();
        }
    }

    /// Judges. `flushed` is the walk's, after all segments.
    pub fn finish(mut self, flushed: u64) -> Report {
        let last_unit = self.segments.iter().filter(|s| s.units > 0).map(|s| s.end).max();
        if self.free.iter().any(|&(from, _)| from < flushed) {
            self.settle_free();
        }
        let (holes, mut hole_bytes) = (std::mem::take(&mut self.holes), 0);
        self.found.retain(|Found { loss, nature }| {
            let Damage { from, to, .. } = loss.damage;
            let is_hole = *nature == Nature::Bytes && to <= flushed && holes.cover(from, to);
            hole_bytes += if is_hole { to - from } else { 0 };
            !is_hole
        });
        let cut = self.found.iter().filter(|found| found.nature == Nature::Bytes);
        let cut = cut.map(|found| found.loss.damage.from).filter(|&from| from >= flushed).min();
        let mut losses = Vec::with_capacity(self.found.len());
        for mut found in self.found {
            let limit = match found.nature {
                Nature::Bytes => flushed,
                Nature::Offsets => cut.unwrap_or(u64::MAX),
                Nature::Files => u64::MAX,
            };
            if found.loss.damage.from >= limit {
                found.loss.verdict = Verdict::TornTail;
            }
            losses.push(found.loss);
        }
        losses.sort_by_key(|loss| loss.damage.from);
        let start = self.segments.first().map_or(0, |first| first.base);
        let end = cut.or(last_unit).unwrap_or(start);
        Report { segments: self.segments, losses, hole_bytes, flushed, end }
    }
}

fn cover(loss: &mut Loss, queue: (u32, u32), first: u64, end: u64) {
    let range = loss.covers.entry(queue).or_insert((first, end));
    *range = (range.0.min(first), range.1.max(end));
}
