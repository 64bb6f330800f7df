//! Giving back the space of what has expired in segments that others still need.
//!
//! The index of a segment says of each record whose it is. Write units in which every record is of a topic that
//! has expired there, or of the shard's own state below the snapshots that recovery may take, become a hole:
//! first a record that says so, then, when that is durable, the punch.
//!
//! Invariants:
//! - only whole units are punched, never the first of a segment, and never in a segment that recovery could
//!   replay state from;
//! - one segment at a time, a few pages of its index a step.

use super::Shard;
use super::waiting::Then;
use crate::hole::{Hole, Holes};
use crate::index::{
    NO_QUEUE, OrderRow, PAGE_BYTES, PLACE_BYTES, Section, Stretch, check_page, rows,
};
use crate::log::Segment;
use crate::seam::{Action, BLOCK_BYTES, Block, DiskError, Memory, Outbox};
use ringmq_schema::record::{Kind, UNIT_HEADER_BYTES};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Numbers of its reads have this bit and are even; fetches count up from 0, look-ups have the highest bit.
const READ_BIT: u64 = 1 << 62;
/// Pages of an index looked at in one step.
const PAGES_A_STEP: u32 = 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Punching {
    pub(super) holes: Holes,
    /// Segments that were looked at, and how many topics owned something there then.
    looked_at: BTreeMap<u64, usize>,
    step: Step,
    /// Number of the read under way, or of the last: one that ends after it was given up is not taken for another.
    read: u64,
}

#[derive(Debug, Default)]
enum Step {
    #[default]
    Idle,
    /// Pages of the directory, or of the order of records, are being read.
    Read(Box<Look>),
    /// The record is on its way to the disk.
    Record,
    /// So many punches are under way.
    Punch(usize),
}

/// What is known of a segment so far.
#[derive(Debug)]
struct Look {
    segment: Segment,
    next_page: u32,
    /// By number in the directory: whether its topic has expired.
    dead: Vec<bool>,
    topics: BTreeSet<u32>,
    units: Units,
}

/// Finds runs of units that nobody needs, from records in the order of the log.
#[derive(Debug)]
struct Units {
    /// The unit that is looked at, whether something in it is needed, and where its last record ends.
    unit: u64,
    is_needed: bool,
    record_end: u64,
    /// The run that it may prolong.
    run: Option<u64>,
    least_bytes: u64,
    ranges: Vec<(u64, u64)>,
}

impl Units {
    fn new(base: u64, least_bytes: u64) -> Units {
        let ranges = Vec::new();
        // The first unit names a snapshot and tells whose log it is.
        Units { unit: base, is_needed: true, record_end: base, run: None, least_bytes, ranges }
    }

    fn take(&mut self, position: u64, bytes: u64, is_needed: bool) {
        let unit = position.saturating_sub(UNIT_HEADER_BYTES as u64);
        // Within a unit records adjoin each other.
        if position > self.record_end && unit.is_multiple_of(BLOCK_BYTES as u64) && unit > self.unit
        {
            self.end_unit(unit);
        }
        self.is_needed |= is_needed;
        self.record_end = position + bytes;
    }

    fn end_unit(&mut self, next: u64) {
        if !self.is_needed {
            self.run.get_or_insert(self.unit);
        } else {
            self.end_run(self.unit);
        }
        (self.unit, self.is_needed) = (next, false);
    }

    fn end_run(&mut self, end: u64) {
        if let Some(begin) = self.run.take()
            && end - begin >= self.least_bytes
        {
            self.ranges.push((begin, end - begin));
        }
    }

    fn finish(mut self, end: u64) -> Vec<(u64, u64)> {
        self.end_unit(end);
        self.end_run(end);
        self.ranges
    }
}

impl Punching {
    pub(super) fn new(holes: Holes) -> Punching {
        Punching { holes, ..Punching::default() }
    }
}

impl<M: Memory> Shard<M> {
    /// Whether a read is one of these.
    pub(super) fn is_punching_read(read: u64) -> bool {
        read & READ_BIT != 0 && read.is_multiple_of(2)
    }

    /// The index of a segment is made again: what was read of it counts no more.
    pub(super) fn stop_looking(&mut self, base: u64) {
        if matches!(&self.punching.step, Step::Read(look) if look.segment.base == base) {
            self.punching.step = Step::Idle;
        }
    }

    /// Looks for a segment that is worth it; at the end of a round over all topics.
    pub(super) fn begin_punching(&mut self, out: &mut Outbox<M::Block>) {
        if self.config.hole_bytes_min == 0 || !matches!(self.punching.step, Step::Idle) {
            return;
        }
        let retirable = self.log.retirable();
        let segments = &self.retention.segments;
        let found =
            self.log.sealed_segments().take_while(|s| s.end() <= retirable).find(|segment| {
                let owners = segments.owners(segment.number);
                let before = self.punching.looked_at.get(&segment.base);
                let live = segments.live_bytes(segment.number);
                let gone = segment.bytes.saturating_sub(live);
                owners.is_some_and(|owners| {
                    owners > 0 && before.is_none_or(|before| owners < *before)
                }) && gone >= (segment.bytes / 4).max(self.config.hole_bytes_min)
                    // What is still to be delivered lies in units without an owner.
                    && self.is_clear_of_timers(segment)
            });
        let Some(segment) = found else { return };
        let owners = segments.owners(segment.number).unwrap_or(0);
        self.punching.looked_at.insert(segment.base, owners);
        let units = Units::new(segment.base, self.config.hole_bytes_min);
        let (dead, topics) = (Vec::new(), BTreeSet::new());
        let look = Look { segment, next_page: 1, dead, topics, units };
        self.read_on(Box::new(look), out);
    }

    fn read_on(&mut self, look: Box<Look>, out: &mut Outbox<M::Block>) {
        let Some(pages) = look.segment.index else {
            self.punching.step = Step::Idle;
            return;
        };
        let stretches_end = 1 + pages.stretches.div_ceil(Section::Directory.per_page());
        let records_end = pages.order + pages.records.div_ceil(Section::Order.per_page());
        let mut look = look;
        if look.next_page >= stretches_end && look.next_page < pages.order {
            look.next_page = pages.order;
        }
        if look.next_page >= records_end {
            self.punching.step = Step::Record;
            self.record_hole(*look, out);
            return;
        }
        let end = if look.next_page < stretches_end { stretches_end } else { records_end };
        let count = (end - look.next_page).min(PAGES_A_STEP);
        let at = u64::from(look.next_page) * PAGE_BYTES as u64;
        let (base, bytes) = (look.segment.base, count * PAGE_BYTES as u32);
        self.punching.step = Step::Read(look);
        self.punching.read += 2;
        let read = READ_BIT | self.punching.read;
        out.actions.push(Action::ReadIndex { read, base, at, bytes });
    }

    /// Pages are there.
    pub(super) fn punching_read(
        &mut self,
        read: u64,
        result: Result<Rc<M::Block>, DiskError>,
        out: &mut Outbox<M::Block>,
    ) {
        if read != READ_BIT | self.punching.read || !matches!(self.punching.step, Step::Read(_)) {
            return;
        }
        let Step::Read(mut look) = std::mem::take(&mut self.punching.step) else { return };
        let (Ok(block), Some(pages)) = (result, look.segment.index) else { return };
        for page in block.bytes().chunks_exact(PAGE_BYTES) {
            // What cannot be read stays as it is.
            let Some(room) = check_page(look.segment.base, look.next_page, page) else { return };
            let left = |rows: u32, first: u32, section: Section| {
                let before = (look.next_page - first) * section.per_page();
                rows.saturating_sub(before).min(section.per_page()) as usize
            };
            if look.next_page < pages.order {
                let count = left(pages.stretches, 1, Section::Directory);
                for stretch in rows::<Stretch>(room, count) {
                    let topic = stretch.id.topic;
                    let dead = !self.retention.segments.owns(topic, look.segment.number);
                    look.dead.push(dead);
                    if dead {
                        look.topics.insert(topic);
                    }
                }
            } else {
                let count = left(pages.records, pages.order, Section::Order);
                for row in rows::<OrderRow>(room, count) {
                    let position = look.segment.base + u64::from(row.place) * PLACE_BYTES;
                    let dead = row.queue == NO_QUEUE
                        || look.dead.get(row.queue as usize).copied().unwrap_or(false);
                    look.units.take(position, u64::from(row.bytes), !dead);
                }
            }
            look.next_page += 1;
        }
        self.read_on(look, out);
    }

    /// Everything was looked at: what is to be punched is written down.
    fn record_hole(&mut self, look: Look, out: &mut Outbox<M::Block>) {
        let Look { segment, topics, units, .. } = look;
        let ranges = units.finish(segment.end());
        let mut hole = Hole { base: segment.base, ranges, topics };
        let known = self.punching.holes.get(segment.base);
        if let Some(known) = known {
            hole.unite(known);
        }
        let is_known = known.is_some_and(|known| known.ranges == hole.ranges);
        if self.log.failed().is_some() || self.stopping || hole.ranges.is_empty() || is_known {
            self.punching.step = Step::Idle;
            return;
        }
        let now = self.last_step;
        let end = self.log.append_state(Kind::Hole, &hole.write(), true, now, out);
        // A snapshot that begins behind the record must hold it, also while the record is on its way.
        let base = hole.base;
        self.punching.holes.insert(hole);
        self.waiting.push(end, true, Then::Hole(base));
        self.log.pump(now, out);
    }

    /// The record of a segment's hole is durable.
    pub(super) fn punch(&mut self, base: u64, out: &mut Outbox<M::Block>) {
        // The segment may be gone by now: its file then has another name, or none.
        let Some(hole) = self.punching.holes.get(base) else {
            self.punching.step = Step::Idle;
            return;
        };
        self.punching.step = Step::Punch(hole.ranges.len());
        for &(position, bytes) in &hole.ranges {
            self.figures.punched_bytes += bytes;
            out.actions.push(Action::Punch { position, bytes });
        }
    }

    /// A punch ended. One that failed gives no space back, and nothing else comes of it.
    pub(super) fn punched(&mut self) {
        self.punching.step = match std::mem::take(&mut self.punching.step) {
            Step::Punch(left) if left > 1 => Step::Punch(left - 1),
            Step::Punch(_) => Step::Idle,
            other => other,
        };
    }

    /// A segment is gone.
    pub(super) fn forget_holes(&mut self, base: u64) {
        self.punching.holes.remove(base);
        self.punching.looked_at.remove(&base);
        self.stop_looking(base);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Units of two records of 1000 bytes, at each block; `dead` says which records nobody needs.
    fn ranges(dead: &[(bool, bool)]) -> Vec<(u64, u64)> {
        let mut units = Units::new(40_960, 8192);
        for (n, (first, second)) in (0..).zip(dead) {
            let position = 40_960 + n * 4096 + UNIT_HEADER_BYTES as u64;
            units.take(position, 1000, !first);
            units.take(position + 1000, 1000, !second);
        }
        units.finish(40_960 + dead.len() as u64 * 4096)
    }

    #[test]
    fn only_whole_units_that_nobody_needs_are_punched() {
        let (dead, half, live) = ((true, true), (true, false), (false, false));
        assert_eq!(ranges(&[dead, dead, dead]), [(40_960 + 4096, 8192)], "never the first");
        assert_eq!(ranges(&[live, dead, half, dead]), [], "too short");
        assert_eq!(
            ranges(&[live, dead, dead, half, dead, dead, dead]),
            [(45_056, 8192), (40_960 + 4 * 4096, 3 * 4096)]
        );
        assert_eq!(ranges(&[live, dead, dead, live, half]), [(45_056, 8192)]);
        assert_eq!(ranges(&[live]), []);
    }
}
