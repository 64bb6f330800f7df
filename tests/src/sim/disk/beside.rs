//! What lies beside a shard's log, and what becomes of its segments: indexes, retirement, holes, transfers.
//!
//! As the runtime does it (`broker/src/disk/beside.rs`):
//! - an index is written under another name, made durable, renamed, its folder synced; so after a crash there
//!   is the old one or the new one, whole, and never a part of it;
//! - a retired segment loses its index, then its own name, durably, before the next one's turn; its file may
//!   become a later segment;
//! - a hole reads as zeros at once; the power may bring back what was there, block by block, until a sync;
//! - these things happen one after the other in the order in which they were asked for, and never while a
//!   read or a transfer that began before is under way in the segment.

use super::{CrashKind, Disk, Op};
use crate::sim::random::Random;
use crate::sim::{Verdict, violation};
use ringmq_core::index::{Header, PAGE_BYTES, Section};
use ringmq_core::seam::BLOCK_BYTES;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Retired files kept to become segments.
const SPARES_MAX: usize = 2;

/// What is wrong with a derived file after a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexFault {
    /// Somebody deletes it.
    Deleted,
    /// It ends somewhere.
    Truncated,
    /// A bit is wrong of what a start reads of it.
    BitFlipped,
    /// A bit is wrong anywhere.
    AnyBitFlipped,
}

impl IndexFault {
    /// Every one.
    pub const ALL: [IndexFault; 4] = [
        IndexFault::Deleted,
        IndexFault::Truncated,
        IndexFault::BitFlipped,
        IndexFault::AnyBitFlipped,
    ];
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Beside {
    indexes: BTreeMap<u64, Vec<u8>>,
    /// Segments being retired in this life, and those that were.
    retiring: BTreeSet<u64>,
    spares: Vec<Vec<u8>>,
    /// Holes that no sync has covered, by block.
    holes: BTreeSet<u64>,
    /// Units of which a bit is wrong.
    pub(super) rotten: Vec<Range<u64>>,
}

impl Disk {
    /// Whether a segment is retired or about to be.
    pub(super) fn is_retired(&self, base: u64) -> bool {
        self.beside.retiring.contains(&base)
    }

    /// Segments that have an index.
    pub fn indexes(&self) -> Vec<u64> {
        self.beside.indexes.keys().copied().collect()
    }

    /// The index of a segment.
    pub fn index(&self, base: u64) -> Option<&[u8]> {
        self.beside.indexes.get(&base).map(Vec::as_slice)
    }

    /// It is gone.
    pub fn forget_index(&mut self, base: u64) {
        self.beside.indexes.remove(&base);
    }

    /// Writes an index in place of what is there.
    pub fn write_index(&mut self, base: u64, bytes: &[u8]) {
        self.beside.indexes.insert(base, bytes.to_vec());
    }

    /// Recovery writes an index and the machine fails meanwhile: it is there, or it is not.
    pub fn write_index_or_not(&mut self, base: u64, bytes: &[u8]) {
        if self.random.percent(50) {
            self.write_index(base, bytes);
        }
    }

    /// Recovery removes an index and the machine fails meanwhile.
    pub fn forget_index_or_not(&mut self, base: u64) {
        if self.random.percent(50) {
            self.forget_index(base);
        }
    }

    /// Spoils an index between two lives.
    pub fn spoil_index(&mut self, base: u64, fault: IndexFault, random: &mut Random) {
        let Some(bytes) = self.beside.indexes.get_mut(&base) else { return };
        match fault {
            IndexFault::Deleted => drop(self.beside.indexes.remove(&base)),
            IndexFault::Truncated => bytes.truncate(random.index(bytes.len())),
            IndexFault::BitFlipped | IndexFault::AnyBitFlipped => {
                let read = match fault {
                    IndexFault::BitFlipped => read_at_start(base, bytes),
                    _ => bytes.len(),
                };
                let at = random.index(read);
                bytes[at] ^= 1 << random.below(8);
            }
        }
    }

    /// Whether a range is whole on the medium, and nothing of it only in the cache.
    pub fn is_durable(&self, position: u64, bytes: u64) -> bool {
        if !self.has(position, bytes) {
            return false;
        }
        let (base, segment) = self.segment_at(position);
        let (from, to) = ((position - base) as usize, (position - base + bytes) as usize);
        let end = position + bytes;
        let overlaps = |cached: &super::Cached| {
            let (begin, finish) = (cached.from as u64, cached.to as u64);
            cached.position + begin < end && cached.position + finish > position
        };
        let is_dirty = self.cached.iter().any(overlaps);
        !is_dirty && segment.view[from..to] == segment.medium[from..to]
    }

    pub(super) fn check_beside(&mut self, op: &Op) -> Verdict {
        match op {
            Op::WriteIndex { rows } => self.check_index_write(rows.base, rows.bytes, rows.end),
            Op::ReadIndex { base, at, bytes, .. } => {
                self.check_index_read(*base, *at, u64::from(*bytes))
            }
            Op::Retire { base } => self.check_retirement(*base),
            Op::Punch { position, bytes } => self.check_punch(*position, *bytes),
            Op::Transfer { position, bytes, .. } => {
                self.check_transfer(*position, u64::from(*bytes))
            }
            Op::Write { .. } | Op::Sync { .. } | Op::Make { .. } | Op::Read { .. } => Ok(()),
        }
    }

    fn check_index_write(&self, base: u64, bytes: u64, end: u64) -> Verdict {
        let segment = self.segments.get(&base).map(|segment| segment.view.len() as u64);
        if segment != Some(bytes) || end < base || end > base + bytes || self.is_retired(base) {
            return violation(format!(
                "an index of {base}..{end} of {bytes} bytes, where a segment has {segment:?}"
            ));
        }
        Ok(())
    }

    fn check_index_read(&self, base: u64, at: u64, bytes: u64) -> Verdict {
        if bytes == 0 || !at.is_multiple_of(BLOCK) || !bytes.is_multiple_of(BLOCK) {
            return violation(format!("a read of {bytes} bytes at {at} of index {base}"));
        }
        if self.is_retired(base) {
            return violation(format!("a read of the index of {base}, which was retired"));
        }
        match self.index(base) {
            Some(index) if at + bytes > index.len() as u64 => violation(format!(
                "a read of {bytes} bytes at {at} of index {base} of {} bytes",
                index.len()
            )),
            // One that is not there fails.
            _ => Ok(()),
        }
    }

    fn check_retirement(&mut self, base: u64) -> Verdict {
        let mut left = self.segments.iter().filter(|(base, _)| !self.is_retired(**base));
        let (first, next) = (left.next(), left.next());
        let Some(((first, segment), _)) = first.zip(next) else {
            return violation(format!("the last segment is retired: {base}"));
        };
        if *first != base {
            return violation(format!("segment {base} is retired before {first}"));
        }
        let bytes = segment.view.len() as u64;
        let is_written = |op: &Op| match op {
            Op::Write { position, .. } => (base..base + bytes).contains(position),
            _ => false,
        };
        if !self.is_durable(base, bytes) && self.beside.holes.range(base..base + bytes).count() == 0
            || self.in_flight.values().any(is_written)
        {
            return violation(format!("segment {base} is retired while it is written"));
        }
        self.beside.retiring.insert(base);
        Ok(())
    }

    fn check_punch(&self, position: u64, bytes: u64) -> Verdict {
        self.check_range("a hole", position, bytes)?;
        // What was punched before may be so again, as part of a longer hole.
        let is_again = self.beside.holes.range(position..position + bytes).next().is_some();
        if !self.is_durable(position, bytes) && !is_again {
            return violation(format!("a hole of {bytes} bytes at {position}, not yet durable"));
        }
        Ok(())
    }

    fn check_transfer(&self, position: u64, bytes: u64) -> Verdict {
        if bytes == 0 || !position.is_multiple_of(8) || !bytes.is_multiple_of(8) {
            return violation(format!("a transfer of {bytes} bytes at {position}"));
        }
        if !self.has(position, bytes) || self.is_retired(self.segment_at(position).0) {
            return violation(format!("a transfer of {bytes} bytes at {position}: no segment"));
        }
        // promise: prefix
        if !self.is_durable(position, bytes) {
            return violation(format!("a transfer of {bytes} bytes at {position}, not durable"));
        }
        Ok(())
    }

    /// Whether an operation has to wait for others that began before it.
    pub fn must_wait(&self, number: u64) -> bool {
        let Some(op) = self.in_flight.get(&number) else { return false };
        let before = || self.in_flight.range(..number).map(|(_, op)| op);
        let range = match op {
            Op::WriteIndex { .. } => None,
            Op::Retire { base } => Some((*base, base + self.segments[base].view.len() as u64)),
            Op::Punch { position, .. } => {
                let (base, segment) = self.segment_at(*position);
                Some((base, base + segment.view.len() as u64))
            }
            _ => return false,
        };
        before().any(|op| match op {
            Op::WriteIndex { .. } | Op::Retire { .. } | Op::Punch { .. } => true,
            Op::Read { position, .. } | Op::Transfer { position, .. } => {
                range.is_some_and(|(from, to)| (from..to).contains(position))
            }
            Op::ReadIndex { base, .. } => range.is_some_and(|(from, _)| from == *base),
            _ => false,
        })
    }

    pub(super) fn finish_beside(&mut self, op: &Op) -> Option<Vec<u8>> {
        match op {
            Op::WriteIndex { rows } => self.write_index(rows.base, &rows.encode()),
            Op::ReadIndex { base, at, bytes, .. } => {
                let (from, to) = (*at as usize, *at as usize + *bytes as usize);
                return self.index(*base).and_then(|index| index.get(from..to)).map(<[u8]>::to_vec);
            }
            Op::Retire { base } => self.retire(*base),
            Op::Punch { position, bytes } => self.punch(*position, *bytes),
            Op::Transfer { position, bytes, .. } => {
                let mut out = vec![0; *bytes as usize];
                self.read(*position, &mut out);
                return Some(out);
            }
            Op::Write { .. } | Op::Sync { .. } | Op::Make { .. } | Op::Read { .. } => {}
        }
        None
    }

    /// The index goes, then the segment; nothing checks whether it may.
    pub fn retire(&mut self, base: u64) {
        self.beside.indexes.remove(&base);
        self.remove_segment(base);
    }

    fn remove_segment(&mut self, base: u64) {
        let Some(segment) = self.segments.remove(&base) else { return };
        let end = base + segment.view.len() as u64;
        self.forget_cached(base, end);
        let has_holes = self.beside.holes.range(base..end).next().is_some();
        self.beside.holes.retain(|block| !(base..end).contains(block));
        if self.beside.spares.len() < SPARES_MAX && !has_holes {
            self.beside.spares.push(segment.view);
        }
    }

    /// A retired file becomes a segment, with all it holds.
    pub(super) fn take_spare(&mut self, content: &mut Vec<u8>) -> bool {
        let same = |spare: &Vec<u8>| spare.len() == content.len();
        let Some(at) = self.beside.spares.iter().position(same) else { return false };
        *content = self.beside.spares.swap_remove(at);
        true
    }

    /// Zeros in the range; nothing checks whether it may be.
    pub fn punch(&mut self, position: u64, bytes: u64) {
        self.put_in_view(position, &vec![0; bytes as usize]);
        self.beside.holes.extend((position..position + bytes).step_by(BLOCK_BYTES));
    }

    /// Holes in the range are durable.
    pub(super) fn keep_holes(&mut self, from: u64, to: u64) {
        let kept: Vec<u64> = self.beside.holes.range(from..to).copied().collect();
        for block in kept {
            self.beside.holes.remove(&block);
            self.put_on_medium(block, &[0; BLOCK_BYTES]);
        }
    }

    /// The power fails: some holes are there, in others lies again what lay there.
    pub(super) fn lose_holes(&mut self) {
        let percent = *self.random.pick(&[0, 50, 100]);
        for block in std::mem::take(&mut self.beside.holes) {
            if self.random.percent(percent) {
                self.put_on_medium(block, &[0; BLOCK_BYTES]);
            }
        }
    }

    /// What was under way happened up to some point.
    pub(super) fn crash_beside<'a>(&mut self, kind: CrashKind, ops: impl Iterator<Item = &'a Op>) {
        for op in ops {
            let is_beside =
                matches!(op, Op::WriteIndex { .. } | Op::Retire { .. } | Op::Punch { .. });
            if !is_beside {
                continue;
            }
            match (self.random.below(4), op) {
                // Not begun, and so nothing behind it is.
                (0, _) => break,
                (1, Op::Retire { base }) => {
                    drop(self.beside.indexes.remove(base));
                    break;
                }
                // The folder's changes need not reach the medium in their order.
                (2, Op::Retire { base }) if kind == CrashKind::PowerLoss => {
                    self.remove_segment(*base);
                    break;
                }
                (1, Op::Punch { position, bytes }) => {
                    self.punch(*position, BLOCK.min(*bytes));
                    break;
                }
                _ => drop(self.finish_beside(op)),
            }
        }
        self.beside.retiring.clear();
    }
}

/// How much of a whole index a start reads: its header, directory and topics.
fn read_at_start(base: u64, index: &[u8]) -> usize {
    let header = index.first_chunk::<PAGE_BYTES>().and_then(|page| Header::read(page, base).ok());
    let pages = header.map_or(1, |header| header.pages_of(Section::Topics).end as usize);
    (pages * PAGE_BYTES).min(index.len())
}

#[cfg(test)]
mod tests;
