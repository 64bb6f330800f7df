//! Where the records of queue offsets lie: in the entries in memory, or by the indexes of their segments.

use crate::index::{Entry, Header, PLACE_BYTES, PageCache, row};
use crate::log::Log;
use crate::queue::{Place, Queues, Stretch};
use crate::seam::Memory;

/// A page of an index that must be read first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PageName {
    /// Base of the segment.
    pub(super) base: u64,
    pub(super) page: u32,
}

/// What is known of an offset.
#[derive(Debug)]
pub(super) enum Located<'a> {
    /// It and those behind it, at least one, lie in the segment with this base.
    At(u64, &'a [Entry]),
    Need(PageName),
    /// Lost to damage; the next offset that is not.
    Lost(u64),
    /// The index of the segment with this base says nothing of use.
    Unreadable(u64),
    /// Outside of what the queue holds.
    Nowhere,
}

/// Finds the records of a queue from an offset on. `scratch` is for what comes from an index.
pub(super) fn locate<'a, M: Memory>(
    queues: &'a Queues,
    log: &Log<M>,
    pages: &mut PageCache,
    scratch: &'a mut Vec<Entry>,
    slot: u32,
    offset: u64,
) -> Located<'a> {
    match queues.at(slot).find(offset) {
        None => Located::Nowhere,
        Some(Place::Lost(next)) => Located::Lost(next),
        Some(Place::Memory(segment, entries)) => match log.segment_numbered(segment) {
            Some(segment) => Located::At(segment.base, entries),
            None => Located::Nowhere,
        },
        Some(Place::Disk(stretch, at)) => match log.segment_numbered(stretch.segment) {
            Some(segment) => by_index(pages, scratch, segment.base, stretch, at),
            None => Located::Nowhere,
        },
    }
}

fn by_index<'a>(
    pages: &mut PageCache,
    scratch: &'a mut Vec<Entry>,
    base: u64,
    stretch: Stretch,
    at: u32,
) -> Located<'a> {
    let Some(first) = pages.get(base, 0) else {
        return Located::Need(PageName { base, page: 0 });
    };
    let Ok(header) = Header::from_room(&first, base) else { return Located::Unreadable(base) };
    let Some(spot) = header.entry_page(stretch.first_entry + at) else {
        return Located::Unreadable(base);
    };
    let Some(page) = pages.get(base, spot.page) else {
        return Located::Need(PageName { base, page: spot.page });
    };
    scratch.clear();
    let left = (stretch.count - at) as usize;
    scratch.extend((spot.row..).map_while(|number| row::<Entry>(&page, number)).take(left));
    if scratch.is_empty() { Located::Unreadable(base) } else { Located::At(base, scratch) }
}

/// Where an entry's record begins.
pub(super) fn position(base: u64, entry: &Entry) -> u64 {
    base + u64::from(entry.place) * PLACE_BYTES
}
