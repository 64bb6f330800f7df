//! One segment of a look-up: which places of it may hold what is wanted.
//!
//! A place is a promise of nothing: hashes collide, and so the record is read and compared (see [`super::find`]).

use super::{Arrived, header_of, one, page};
use crate::config::ShardConfig;
use crate::index::{
    Found, Header, Lookup, PLACE_BYTES, PageCache, PlaceSearch, SegmentRows, Table,
};
use crate::log::Segment;
use crate::shard::locate::PageName;
use ringmq_schema::checksum::crc32;

/// Most places of one segment that are looked at before older segments are.
pub(super) const PLACES: usize = 128;

/// What is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Id([u8; 16]),
    Key {
        key: String,
        begin_ms: i64,
        end_ms: i64,
    },
    /// The record that begins there.
    At(u64),
}

impl Wanted {
    fn hash(&self) -> u32 {
        match self {
            Wanted::Id(id) => crc32(id),
            Wanted::Key { key, .. } => ringmq_schema::record::key_hash(key),
            Wanted::At(_) => 0,
        }
    }

    /// Whether nothing can be in a segment whose newest message is so old. There is no such bound above: times in
    /// an index never fall, those of records do when the clock jumps. Nor is there one for an id, though it says
    /// when it was made: by the producer's clock.
    fn is_newer_than(&self, newest_ms: i64) -> bool {
        matches!(self, Wanted::Key { begin_ms, .. } if newest_ms < *begin_ms)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) segment: Segment,
    seek: Seek,
}

#[derive(Debug)]
enum Seek {
    /// Rows in memory, in any order.
    Rows(Scan),
    Header,
    Hash(Lookup),
    Place(PlaceSearch),
    Ended(Places),
}

/// How far rows in memory were looked at.
#[derive(Debug)]
struct Scan {
    at: usize,
    places: Vec<u32>,
    /// Whether none was left out for want of room.
    is_all: bool,
}

impl Scan {
    fn keep_newest(&mut self) {
        self.places.sort_unstable_by(|a, b| b.cmp(a));
        self.places.dedup();
        self.is_all &= self.places.len() <= PLACES;
        self.places.truncate(PLACES);
    }
}

/// What a probe came to.
#[derive(Debug)]
pub(super) enum Places {
    /// Descending; and whether there are no more.
    These(Vec<u32>, bool),
    Unreadable,
}

/// The place of a position, as far as a segment reaches.
fn place_of(segment: &Segment, position: u64) -> u64 {
    position.saturating_sub(segment.base).div_ceil(PLACE_BYTES)
}

impl Probe {
    /// Of a segment whose index is on disk.
    pub(super) fn on_disk(segment: Segment) -> Probe {
        Probe { segment, seek: Seek::Header }
    }

    /// Of one whose rows are in memory.
    pub(super) fn in_memory(segment: Segment) -> Probe {
        Probe { segment, seek: Seek::Rows(Scan { at: 0, places: Vec::new(), is_all: true }) }
    }

    /// Whether rows in memory are still to be looked at.
    pub(super) fn scans(&self) -> bool {
        matches!(self.seek, Seek::Rows(_))
    }

    /// The index is there meanwhile, and the rows are gone.
    pub(super) fn turn_to_disk(&mut self) {
        self.seek = Seek::Header;
    }

    /// Looks at some rows; returns whether it got through. `budget` is how many may be looked at.
    pub(super) fn scan(
        &mut self,
        rows: &SegmentRows,
        wanted: &Wanted,
        before: u64,
        budget: &mut usize,
    ) -> bool {
        let Seek::Rows(scan) = &mut self.seek else { return true };
        let pairs = match wanted {
            Wanted::Id(_) => &rows.ids,
            Wanted::Key { .. } => &rows.keys,
            Wanted::At(position) => {
                let place = place_of(&self.segment, *position);
                let found = rows.order.binary_search_by_key(&place, |row| u64::from(row.place));
                let places = found.map(|row| rows.order[row].place).into_iter().collect();
                self.seek = Seek::Ended(Places::These(places, true));
                return true;
            }
        };
        let (hash, below) = (wanted.hash(), place_of(&self.segment, before));
        let end = pairs.len().min(scan.at.saturating_add(*budget));
        *budget -= end.saturating_sub(scan.at);
        for (_, place) in pairs[scan.at.min(end)..end].iter().filter(|(h, _)| *h == hash) {
            if u64::from(*place) < below {
                scan.places.push(*place);
            }
            if scan.places.len() >= 8 * PLACES {
                scan.keep_newest();
            }
        }
        scan.at = end;
        if end < pairs.len() {
            return false;
        }
        scan.keep_newest();
        let places = Places::These(std::mem::take(&mut scan.places), scan.is_all);
        self.seek = Seek::Ended(places);
        true
    }

    /// Goes on until a page is needed, or to the end.
    pub(super) fn step(
        &mut self,
        wanted: &Wanted,
        before: u64,
        config: &ShardConfig,
        pages: &mut PageCache,
        arrived: Option<&Arrived>,
    ) -> Option<PageName> {
        let base = self.segment.base;
        if arrived.is_some_and(|page| page.name.base == base && page.room.is_none()) {
            self.seek = Seek::Ended(Places::Unreadable);
            return None;
        }
        let mut room = |number| page(pages, arrived, one(base, number));
        loop {
            let (found, ended) = match &mut self.seek {
                Seek::Ended(_) | Seek::Rows(_) => return None,
                Seek::Header => {
                    let Some(first) = room(0) else { return Some(one(base, 0)) };
                    let (log_id, shard) = (config.log_id, config.shard);
                    let header = header_of(&first, base, self.segment.end(), log_id, shard);
                    self.seek = match header {
                        Some(header) => begin(&self.segment, &header, wanted, before),
                        None => Seek::Ended(Places::Unreadable),
                    };
                    continue;
                }
                Seek::Hash(lookup) => {
                    let found = lookup.step(&mut room);
                    (found, lookup.ended())
                }
                Seek::Place(search) => (search.step(&mut room), true),
            };
            self.seek = Seek::Ended(match found {
                Found::Need(page) => return Some(one(base, page)),
                Found::Damaged(_) => Places::Unreadable,
                Found::Done(mut places) => {
                    // A message with one key twice.
                    places.dedup();
                    Places::These(places, ended)
                }
            });
        }
    }

    /// What it came to; nothing more can be asked of it then.
    pub(super) fn take(&mut self) -> Places {
        match std::mem::replace(&mut self.seek, Seek::Header) {
            Seek::Ended(places) => places,
            _ => Places::Unreadable,
        }
    }
}

fn begin(segment: &Segment, header: &Header, wanted: &Wanted, before: u64) -> Seek {
    let hashes = |table| {
        let lookup = Lookup::new(header, table, wanted.hash());
        Seek::Hash(lookup.below(place_of(segment, before)).at_most(PLACES))
    };
    match wanted {
        _ if wanted.is_newer_than(header.newest_ms) => Seek::Ended(Places::These(Vec::new(), true)),
        Wanted::Id(_) => hashes(Table::Ids),
        Wanted::Key { .. } => hashes(Table::Keys),
        Wanted::At(position) => {
            let place = u32::try_from(place_of(segment, *position)).unwrap_or(u32::MAX);
            Seek::Place(PlaceSearch::new(header, place))
        }
    }
}
