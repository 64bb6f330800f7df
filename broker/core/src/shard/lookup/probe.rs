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
            Wanted::Id(id) => crc32fast::hash(id),
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
    Header,
    Hash(Lookup),
    Place(PlaceSearch),
    Ended(Places),
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

    /// Of one whose rows are in memory, in any order.
    pub(super) fn in_memory(
        segment: Segment,
        rows: &SegmentRows,
        wanted: &Wanted,
        before: u64,
    ) -> Probe {
        let below = place_of(&segment, before);
        let (hash, pairs) = match wanted {
            Wanted::Id(_) => (wanted.hash(), &rows.ids),
            Wanted::Key { .. } => (wanted.hash(), &rows.keys),
            Wanted::At(position) => {
                let place = place_of(&segment, *position);
                let found = rows.order.binary_search_by_key(&place, |row| u64::from(row.place));
                let places = found.map(|row| rows.order[row].place).into_iter().collect();
                return Probe { segment, seek: Seek::Ended(Places::These(places, true)) };
            }
        };
        let (mut places, mut is_all) = (Vec::new(), true);
        let newest = |places: &mut Vec<u32>| {
            places.sort_unstable_by(|a, b| b.cmp(a));
            places.dedup();
            let more = places.len() > PLACES;
            places.truncate(PLACES);
            more
        };
        for (_, place) in pairs.iter().filter(|(h, place)| *h == hash && u64::from(*place) < below)
        {
            places.push(*place);
            if places.len() >= 8 * PLACES {
                is_all &= !newest(&mut places);
            }
        }
        is_all &= !newest(&mut places);
        Probe { segment, seek: Seek::Ended(Places::These(places, is_all)) }
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
                Seek::Ended(_) => return None,
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
