//! The index of a sealed segment: one immutable file beside it, derived from it alone.
//!
//! The file is a sequence of pages of [`PAGE_BYTES`]; little endian, fixed-width rows that never span pages.
//! The last four bytes of a page are the CRC-32 of the segment's base (u64), the page's number (u32) and the
//! [`ROOM_BYTES`] before them: a page of another segment, another place or another time does not check.
//! Page 0 is the header; it says where each section begins and how many rows it has.
//!
//! | section | row | sorted by |
//! |---|---|---|
//! | directory | a stretch of one queue without a gap, see [`Stretch`] | queue, first offset |
//! | topics | records, bytes and newest store time of one topic | topic |
//! | entries | one message: place, row in `order`, bytes, tag hash, newest time so far | directory, offset |
//! | order | one record: place, bytes, number in the directory or none | place |
//! | timers | one delayed message: due time, place, bytes | due time, place |
//! | ids | CRC-32 of the message id, place | both |
//! | keys | CRC-32 of a key, place | both |
//! | fences | first hash of each page of `ids`, then of `keys` | |
//! | filters | a Bloom filter over `ids`, then over `keys`, one page a probe | |
//!
//! Each section begins on a page of its own; fences and filters are two sections each. One content has one
//! encoding, and so [`verify`] reads the rows and encodes them again.
//!
//! A *place* is a position counted from the segment's base in steps of 8 bytes.
//!
//! Invariants:
//! - what an index says is what a scan of its segment says, up to `end`;
//! - an index that is missing or damaged costs time, never an answer.

mod cache;
mod encode;
mod error;
mod filter;
mod header;
mod page;
mod read;
mod row;
#[cfg(test)]
mod samples;
mod search;

use crate::peer::QueueId;
use std::sync::Arc;

pub use cache::PageCache;
pub use error::IndexError;
pub use header::{Extent, Header, MAGIC, Spot, VERSION};
pub use page::check_page;
pub use read::{DirectoryReader, read_rows, read_topics, verify};
pub use row::{Fields, HashRow, Row, Section, Stretch, TimerRow, TopicRows, row, rows};
pub use search::{Found, FoundTime, Lookup, PlaceSearch, Table, TimeSearch, TimerSearch};

/// Length of a page.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a page that hold rows.
pub const ROOM_BYTES: usize = PAGE_BYTES - 4;
/// Steps in which a place counts.
pub const PLACE_BYTES: u64 = 8;
/// `queue` of an [`OrderRow`] that is a record of the shard's own state.
pub const NO_QUEUE: u32 = u32::MAX;

/// Where a message lies, and what a filter must know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// From the segment's base, in steps of [`PLACE_BYTES`].
    pub place: u32,
    /// Its number among all records of the segment, in log order.
    pub row: u32,
    /// Length of the record.
    pub bytes: u32,
    /// CRC-32 of its tag; 0: none.
    pub tag_hash: u32,
    /// Highest store time in the queue up to here: monotone even when the clock jumps, and so the
    /// first entry that reaches a time is the first record stored at or after it. ms since epoch.
    pub latest_ms: i64,
}

/// One record of a segment, control records left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OrderRow {
    /// See [`Entry::place`].
    pub place: u32,
    /// Length of the record.
    pub bytes: u32,
    /// In memory the queue's slot, on disk its stretch's number in the directory; [`NO_QUEUE`] for a record of
    /// the shard's own state.
    pub queue: u32,
}

/// A stretch of one queue in one segment, without a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueRows {
    /// The queue.
    pub id: QueueId,
    /// As [`OrderRow::queue`] names it in memory.
    pub slot: u32,
    /// Offset of the first entry.
    pub first_offset: u64,
    /// Its entries, in order. Shared with the shard, which reads them until the index is there.
    pub entries: Vec<Arc<Vec<Entry>>>,
}

/// What a segment's directory has of one queue in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StretchRow {
    /// See [`QueueRows::slot`].
    pub slot: u32,
    /// Offset of the first entry.
    pub first_offset: u64,
    /// Number of entries.
    pub count: u32,
    /// Its number in the directory.
    pub number: u32,
    /// Its first entry among all.
    pub first_entry: u32,
}

/// What the shard keeps in memory of an index that is on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indexed {
    /// The directory.
    pub stretches: Box<[StretchRow]>,
    /// What it holds of each topic, by id.
    pub topics: Box<[TopicRows]>,
    /// Where its rows lie.
    pub pages: Pages,
}

/// First pages of the sections that fetches read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pages {
    /// Of [`Section::Entries`].
    pub entries: u32,
    /// Of [`Section::Order`].
    pub order: u32,
    /// Rows that the latter has.
    pub records: u32,
    /// Rows of the directory, which begins on page 1.
    pub stretches: u32,
    /// Of [`Section::Timers`].
    pub timers: u32,
    /// Rows that it has.
    pub timer_rows: u32,
    /// Latest due time among them, and newest store time; 0 when there are none.
    pub newest_due_ms: i64,
    /// See `newest_due_ms`.
    pub timers_ms: i64,
}

impl Pages {
    /// Where an [`Entry`] lies.
    pub fn entry(&self, number: u32) -> Spot {
        spot(self.entries, Section::Entries, number)
    }

    /// Where an [`OrderRow`] lies.
    pub fn order_row(&self, number: u32) -> Spot {
        spot(self.order, Section::Order, number)
    }

    /// Where a [`TimerRow`] lies.
    pub fn timer_row(&self, number: u32) -> Spot {
        spot(self.timers, Section::Timers, number)
    }
}

fn spot(first: u32, section: Section, number: u32) -> Spot {
    let page = first.saturating_add(number / section.per_page());
    Spot { page, row: (number % section.per_page()) as usize }
}

/// Everything that goes into the index of one segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentRows {
    /// Position of the segment's first byte.
    pub base: u64,
    /// Its length.
    pub bytes: u64,
    /// End of what the index covers: of the segment when that is sealed.
    pub end: u64,
    /// Where a whole snapshot of the state begins that was durable when the index was made; 0: none is known.
    pub snapshot: u64,
    /// Epoch of the last unit covered.
    pub epoch: u32,
    /// The shard.
    pub shard: u16,
    /// Identity of its log.
    pub log_id: u64,
    /// Stretches, in any order. A queue comes more than once when offsets are missing in between.
    pub queues: Vec<QueueRows>,
    /// All records, by place.
    pub order: Vec<OrderRow>,
    /// CRC-32 of each message's id, and its place.
    pub ids: Vec<(u32, u32)>,
    /// CRC-32 of each key of each message (the first four that its header holds), and its place.
    pub keys: Vec<(u32, u32)>,
    /// Delayed messages that wait in the segment, in any order.
    pub timers: Vec<TimerRow>,
    /// Newest store time among them; 0 when there are none.
    pub timers_ms: i64,
}
