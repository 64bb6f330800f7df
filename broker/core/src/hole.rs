//! Holes: ranges of a sealed segment whose space was given back, since only expired topics had records there.
//!
//! A hole is a record of the log ([`Kind::Hole`]) that is durable before anything is punched, so recovery and
//! verification know that zeros there are no damage, and that what lay there has expired for ever.
//!
//! ```text
//! u8 version, u64 segment's base, u32 ranges, (u64 position, u64 bytes)*, u32 topics, u32 topic*
//! ```
//!
//! [`Kind::Hole`]: ringmq_schema::record::Kind::Hole

use crate::state::Reader;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

const VERSION: u8 = 1;

/// The holes of one segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hole {
    /// The segment.
    pub base: u64,
    /// First positions and lengths, by rising position; whole write units.
    pub ranges: Vec<(u64, u64)>,
    /// Topics that have expired up to the segment's end.
    pub topics: BTreeSet<u32>,
}

impl Hole {
    /// Payload of its record.
    pub fn write(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.base.to_le_bytes());
        out.extend_from_slice(&(self.ranges.len() as u32).to_le_bytes());
        for (position, bytes) in &self.ranges {
            out.extend_from_slice(&position.to_le_bytes());
            out.extend_from_slice(&bytes.to_le_bytes());
        }
        out.extend_from_slice(&(self.topics.len() as u32).to_le_bytes());
        self.topics.iter().for_each(|topic| out.extend_from_slice(&topic.to_le_bytes()));
        out
    }

    /// Reads the payload of its record; `None` when that does not parse.
    pub fn read(payload: &[u8]) -> Option<Hole> {
        let mut reader = Reader(payload);
        if reader.u8()? != VERSION {
            return None;
        }
        let base = reader.u64()?;
        let expected = reader.u32()?;
        let ranges: Vec<_> = (0..expected).map_while(|_| reader.u64().zip(reader.u64())).collect();
        let count = reader.u32()?;
        let topics: BTreeSet<u32> = (0..count).map_while(|_| reader.u32()).collect();
        let in_order = ranges.windows(2).all(|two| end(two[0]) <= Some(two[1].0))
            && ranges.iter().all(|range| range.0 >= base && end(*range).is_some());
        let is_whole = ranges.len() == expected as usize && topics.len() == count as usize;
        (in_order && is_whole && reader.0.is_empty()).then_some(Hole { base, ranges, topics })
    }
}

fn end((position, bytes): (u64, u64)) -> Option<u64> {
    position.checked_add(bytes)
}

impl Hole {
    /// Takes in another of the same segment. What was punched once stays a hole, whatever is found out later.
    pub(crate) fn unite(&mut self, other: &Hole) {
        let mut ranges = std::mem::take(&mut self.ranges);
        ranges.extend_from_slice(&other.ranges);
        ranges.sort_unstable();
        for (position, bytes) in ranges {
            match self.ranges.last_mut() {
                Some((before, length)) if position <= *before + *length => {
                    *length = (*length).max(position + bytes - *before);
                }
                _ => self.ranges.push((position, bytes)),
            }
        }
        self.topics.extend(&other.topics);
    }
}

/// All holes of a log, by their segments' bases.
#[derive(Debug, Clone, Default)]
pub struct Holes(BTreeMap<u64, Hole>);

impl Holes {
    /// Takes over what a record says.
    pub fn insert(&mut self, hole: Hole) {
        match self.0.entry(hole.base) {
            Entry::Vacant(none) => _ = none.insert(hole),
            Entry::Occupied(mut known) => known.get_mut().unite(&hole),
        }
    }

    /// The segment is gone.
    pub(crate) fn remove(&mut self, base: u64) {
        self.0.remove(&base);
    }

    pub(crate) fn get(&self, base: u64) -> Option<&Hole> {
        self.0.get(&base)
    }

    /// Those of segments behind this base.
    pub(crate) fn after(&self, base: Option<u64>) -> Option<&Hole> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.0.range((base.map_or(Unbounded, Excluded), Unbounded)).next().map(|(_, hole)| hole)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Hole> {
        self.0.values()
    }

    /// Whether a position lies in a hole.
    pub(crate) fn contain(&self, position: u64) -> bool {
        let of_segment = self.0.range(..=position).next_back();
        let mut ranges = of_segment.iter().flat_map(|(_, hole)| &hole.ranges);
        ranges.any(|(from, bytes)| (*from..from + bytes).contains(&position))
    }

    /// Whether a range lies in holes wholly.
    pub fn cover(&self, from: u64, to: u64) -> bool {
        let mut at = from;
        for (position, bytes) in self.iter().flat_map(|hole| hole.ranges.iter().copied()) {
            if position <= at && at < position + bytes {
                at = position + bytes;
            }
        }
        at >= to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_punched_once_stays_a_hole() {
        let of = |ranges: &[(u64, u64)], topic| Hole {
            base: 0,
            ranges: ranges.to_vec(),
            topics: BTreeSet::from([topic]),
        };
        let mut holes = Holes::default();
        holes.insert(of(&[(4096, 8192), (32768, 4096), (65536, 4096)], 1));
        // An index that was made again knows nothing of what is gone.
        holes.insert(of(&[(12288, 4096), (28672, 12288)], 2));
        let hole = holes.get(0).unwrap();
        assert_eq!(hole.ranges, [(4096, 12288), (28672, 12288), (65536, 4096)]);
        assert_eq!(hole.topics, BTreeSet::from([1, 2]));
        assert_eq!(Hole::read(&hole.write()).as_ref(), Some(hole));
    }

    #[test]
    fn a_payload_is_read_as_it_was_written_and_nothing_else_is() {
        let hole = Hole {
            base: 4096,
            ranges: vec![(8192, 4096), (16384, 8192)],
            topics: BTreeSet::from([3, 9]),
        };
        let bytes = hole.write();
        assert_eq!(Hole::read(&bytes), Some(hole.clone()));
        for end in 0..bytes.len() {
            assert_eq!(Hole::read(&bytes[..end]), None, "{end}");
        }
        let disordered = Hole { ranges: vec![(16384, 8192), (8192, 4096)], ..hole.clone() };
        assert_eq!(Hole::read(&disordered.write()), None);
        let foreign = Hole { ranges: vec![(0, 4096)], ..hole };
        assert_eq!(Hole::read(&foreign.write()), None);
    }

    #[test]
    fn ranges_that_adjoin_cover_together() {
        let mut holes = Holes::default();
        let hole =
            |base, ranges: &[(u64, u64)]| Hole { base, ranges: ranges.to_vec(), ..Hole::default() };
        holes.insert(hole(0, &[(4096, 4096), (12288, 4096)]));
        holes.insert(hole(16384, &[(16384, 4096)]));
        assert!(holes.cover(4096, 8192) && holes.cover(5000, 6000) && holes.cover(12288, 20480));
        assert!(holes.contain(4096) && holes.contain(16384) && !holes.contain(8192));
        assert!(!holes.cover(4096, 8193) && !holes.cover(0, 4096) && !holes.cover(4000, 4100));
        assert_eq!(holes.after(Some(0)).map(|hole| hole.base), Some(16384));
        assert_eq!(holes.after(Some(16384)), None);
    }
}
