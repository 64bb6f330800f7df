//! The rows of each section: fixed width, little endian.
//!
//! Invariant: a row that is not wholly within the bytes given is `None`, never a panic (promise: no-trust).

use super::{Entry, OrderRow, ROOM_BYTES};
use crate::peer::QueueId;

/// Sections in the order in which they lie in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// [`Stretch`].
    Directory,
    /// [`TopicRows`].
    Topics,
    /// [`Entry`].
    Entries,
    /// [`OrderRow`].
    Order,
    /// [`TimerRow`].
    Timers,
    /// [`HashRow`] of message ids.
    Ids,
    /// [`HashRow`] of keys.
    Keys,
    /// First hash (u32) of each page of ids.
    IdFences,
    /// First hash (u32) of each page of keys.
    KeyFences,
    /// Pages of the Bloom filter over ids.
    IdFilter,
    /// Pages of the Bloom filter over keys.
    KeyFilter,
}

impl Section {
    /// All of them, in order.
    pub const ALL: [Section; 11] = [
        Section::Directory,
        Section::Topics,
        Section::Entries,
        Section::Order,
        Section::Timers,
        Section::Ids,
        Section::Keys,
        Section::IdFences,
        Section::KeyFences,
        Section::IdFilter,
        Section::KeyFilter,
    ];

    /// Length of a row.
    pub const fn row_bytes(self) -> usize {
        match self {
            Section::Directory => Stretch::BYTES,
            Section::Topics => TopicRows::BYTES,
            Section::Entries => Entry::BYTES,
            Section::Order => OrderRow::BYTES,
            Section::Timers => TimerRow::BYTES,
            Section::Ids | Section::Keys => HashRow::BYTES,
            Section::IdFences | Section::KeyFences => u32::BYTES,
            Section::IdFilter | Section::KeyFilter => ROOM_BYTES,
        }
    }

    /// Rows in a full page.
    pub const fn per_page(self) -> u32 {
        (ROOM_BYTES / self.row_bytes()) as u32
    }
}

/// A stretch of one queue in one segment, without a gap: a row of the directory, known by its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// The queue.
    pub id: QueueId,
    /// Offset of the first entry.
    pub first_offset: u64,
    /// Number of its entries.
    pub count: u32,
    /// Number of the first among all entries of the segment.
    pub first_entry: u32,
    /// Bytes of its records.
    pub bytes: u64,
    /// [`Entry::latest_ms`] of the last.
    pub last_ms: i64,
}

/// What a segment holds of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicRows {
    /// Its id.
    pub topic: u32,
    /// Number of its records.
    pub records: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Newest [`Entry::latest_ms`].
    pub newest_ms: i64,
}

/// A delayed message that waits. The order is that of the file, and that in which they are delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerRow {
    /// When it is due, ms since epoch.
    pub due_ms: i64,
    /// See [`Entry::place`].
    pub place: u32,
    /// Length of its record.
    pub bytes: u32,
}

/// A hash and the place of a message that has it. The order is that of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HashRow {
    /// CRC-32 of the id or key.
    pub hash: u32,
    /// See [`Entry::place`].
    pub place: u32,
}

/// A row of fixed width.
pub trait Row: Sized {
    /// Its length.
    const BYTES: usize;
    /// Appends it.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads it.
    fn take(fields: &mut Fields<'_>) -> Option<Self>;
}

/// Row `number` of a page.
pub fn row<R: Row>(room: &[u8], number: usize) -> Option<R> {
    let begin = number.checked_mul(R::BYTES)?;
    let bytes = room.get(begin..begin.checked_add(R::BYTES)?)?;
    R::take(&mut Fields(bytes))
}

/// The first `count` rows of a page; fewer when there is no room for as many.
pub fn rows<R: Row>(room: &[u8], count: usize) -> impl Iterator<Item = R> {
    room.chunks_exact(R::BYTES).take(count).filter_map(|bytes| R::take(&mut Fields(bytes)))
}

/// Numbers one after another.
#[derive(Debug)]
pub struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }
}

impl Row for Stretch {
    const BYTES: usize = 40;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.topic.to_le_bytes());
        out.extend_from_slice(&self.id.queue.to_le_bytes());
        out.extend_from_slice(&self.first_offset.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.first_entry.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.last_ms.to_le_bytes());
    }

    fn take(fields: &mut Fields<'_>) -> Option<Stretch> {
        Some(Stretch {
            id: QueueId { topic: fields.u32()?, queue: fields.u32()? },
            first_offset: fields.u64()?,
            count: fields.u32()?,
            first_entry: fields.u32()?,
            bytes: fields.u64()?,
            last_ms: fields.i64()?,
        })
    }
}

impl Row for TopicRows {
    const BYTES: usize = 24;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.topic.to_le_bytes());
        out.extend_from_slice(&self.records.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.newest_ms.to_le_bytes());
    }

    fn take(fields: &mut Fields<'_>) -> Option<TopicRows> {
        Some(TopicRows {
            topic: fields.u32()?,
            records: fields.u32()?,
            bytes: fields.u64()?,
            newest_ms: fields.i64()?,
        })
    }
}

impl Row for Entry {
    const BYTES: usize = 24;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.place.to_le_bytes());
        out.extend_from_slice(&self.row.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.tag_hash.to_le_bytes());
        out.extend_from_slice(&self.latest_ms.to_le_bytes());
    }

    fn take(fields: &mut Fields<'_>) -> Option<Entry> {
        Some(Entry {
            place: fields.u32()?,
            row: fields.u32()?,
            bytes: fields.u32()?,
            tag_hash: fields.u32()?,
            latest_ms: fields.i64()?,
        })
    }
}

impl Row for OrderRow {
    const BYTES: usize = 12;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.place.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
        out.extend_from_slice(&self.queue.to_le_bytes());
    }

    fn take(fields: &mut Fields<'_>) -> Option<OrderRow> {
        Some(OrderRow { place: fields.u32()?, bytes: fields.u32()?, queue: fields.u32()? })
    }
}

impl Row for TimerRow {
    const BYTES: usize = 16;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.due_ms.to_le_bytes());
        out.extend_from_slice(&self.place.to_le_bytes());
        out.extend_from_slice(&self.bytes.to_le_bytes());
    }

    fn take(fields: &mut Fields<'_>) -> Option<TimerRow> {
        Some(TimerRow { due_ms: fields.i64()?, place: fields.u32()?, bytes: fields.u32()? })
    }
}

impl Row for HashRow {
    const BYTES: usize = 8;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.hash.to_le_bytes());
        out.extend_from_slice(&self.place.to_le_bytes());
    }

    fn take(fields: &mut Fields<'_>) -> Option<HashRow> {
        Some(HashRow { hash: fields.u32()?, place: fields.u32()? })
    }
}

impl Row for u32 {
    const BYTES: usize = 4;

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn take(fields: &mut Fields<'_>) -> Option<u32> {
        fields.u32()
    }
}
