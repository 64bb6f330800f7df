//! Where the records of queue offsets lie: in the entries in memory, or by the indexes of their segments.

use crate::index::{Entry, PLACE_BYTES, PageCache, Section, row};
use crate::log::{Log, Segment};
use crate::queue::{Place, Queues, Stretch};
use crate::seam::Memory;

/// Most pages of an index read at once.
pub(super) const PAGES_MAX: u32 = 16;

/// Pages of an index that must be read first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PageName {
    /// Base of the segment.
    pub(super) base: u64,
    /// The one that is needed.
    pub(super) page: u32,
    /// How many from there on, at most [`PAGES_MAX`]: the others are wanted next.
    pub(super) count: u32,
}

/// Most pages of an index read in one go for all queues of a fetch.
const RUN_MAX: u32 = 64;

impl PageName {
    /// Takes in pages that begin within these or right behind them, when that is not too much for one read.
    pub(super) fn take(&mut self, other: &PageName) -> bool {
        let end = (self.page + self.count).max(other.page + other.count);
        let adjoins = other.base == self.base && other.page <= self.page + self.count;
        let fits = adjoins && end - self.page <= RUN_MAX;
        if fits {
            self.count = end - self.page;
        }
        fits
    }
}

/// What is known of an offset.
#[derive(Debug)]
pub(super) enum Located<'a> {
    /// It and those behind it, at least one, lie in the segment with this base.
    At(u64, &'a [Entry]),
    Need(PageName),
    /// Lost to damage; the next offset that is not.
    Lost(u64),
    /// The segment's index says nothing of use.
    Unreadable,
    /// Outside of what the queue holds.
    Nowhere,
}

/// Finds the records of a queue from an offset on, at least one if it is there, and not many more than `most`.
/// `scratch` is for what comes from an index.
pub(super) fn locate<'a, M: Memory>(
    queues: &'a Queues,
    log: &Log<M>,
    pages: &mut PageCache,
    scratch: &'a mut Vec<Entry>,
    (slot, offset): (u32, u64),
    most: u32,
) -> Located<'a> {
    match queues.at(slot).find(offset) {
        None => Located::Nowhere,
        Some(Place::Lost(next)) => Located::Lost(next),
        Some(Place::Memory(segment, entries)) => match log.segment_numbered(segment) {
            Some(segment) => Located::At(segment.base, entries),
            None => Located::Nowhere,
        },
        Some(Place::Disk(stretch, at)) => match log.segment_numbered(stretch.segment) {
            Some(segment) => by_index(pages, scratch, segment, (stretch, at), most),
            None => Located::Nowhere,
        },
    }
}

fn by_index<'a>(
    pages: &mut PageCache,
    scratch: &'a mut Vec<Entry>,
    Segment { base, index, .. }: Segment,
    (stretch, at): (Stretch, u32),
    most: u32,
) -> Located<'a> {
    // The index was there when the stretch was made of it.
    let Some(index) = index else { return Located::Unreadable };
    let left = stretch.count - at;
    let spot = index.entry(stretch.first_entry + at);
    let Some(page) = pages.get(base, spot.page) else {
        let rows = spot.row as u32 + left;
        let count = rows.div_ceil(Section::Entries.per_page()).min(PAGES_MAX);
        return Located::Need(PageName { base, page: spot.page, count });
    };
    scratch.clear();
    let few = left.min(most) as usize;
    scratch.extend((spot.row..).map_while(|number| row::<Entry>(&page, number)).take(few));
    if scratch.is_empty() { Located::Unreadable } else { Located::At(base, scratch) }
}

/// Where an entry's record begins.
pub(super) fn position(base: u64, entry: &Entry) -> u64 {
    base + u64::from(entry.place) * PLACE_BYTES
}
