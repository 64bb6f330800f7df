//! Records of timers on their way from the log, in the order in which they are due.
//!
//! Invariants:
//! - what is handed on was compared: it is the timer's record, whole, with the right checksums (promise: no-trust);
//! - records that lie close together are read together; what could not be read is read alone.

use crate::log::Segment;
use crate::seam::BLOCK_BYTES;
use crate::timer::{Key, Marks, Pulled};
use ringmq_schema::record::{self, HEADER_BYTES, Kind, RecordHeader};
use ringmq_schema::zerocopy::FromBytes;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Records with a gap of at most so many bytes are read together: it costs less than a read of its own.
const GAP_BYTES: u64 = 32 << 10;
/// Most bytes of one read.
const READ_BYTES: u64 = 1 << 20;
/// So often a record is read before it is given up: for some seconds, while those behind it wait.
pub(super) const TRIES: u8 = 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Batch {
    records: BTreeMap<Key, Staged>,
    bytes: usize,
    /// Some came since it was last planned what to read.
    is_fresh: bool,
}

/// One record.
#[derive(Debug)]
pub(super) struct Staged {
    /// Its segment.
    pub(super) base: u64,
    /// How many of its bytes are wanted.
    pub(super) bytes: u32,
    tries: u8,
    pub(super) state: State,
}

#[derive(Debug)]
pub(super) enum State {
    Unread,
    Reading,
    There(Rc<[u8]>),
    /// It is not what was written.
    Damaged,
    /// The disk does not give it.
    Failed,
}

/// A range of the log to be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) bytes: u32,
    pub(super) keys: Vec<Key>,
}

impl Batch {
    pub(super) fn add(&mut self, timer: Pulled) {
        let Pulled { key, bytes, base } = timer;
        self.bytes += bytes as usize;
        self.is_fresh = true;
        self.records.insert(key, Staged { base, bytes, tries: 0, state: State::Unread });
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether it may be that something is to be read.
    pub(super) fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn has(&self, key: Key) -> bool {
        self.records.contains_key(&key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.records.keys().copied()
    }

    /// All of them, with their lengths.
    pub(super) fn timers(&self) -> impl Iterator<Item = (Key, u32)> + '_ {
        self.records.iter().map(|(key, staged)| (*key, staged.bytes))
    }

    /// How many are not known by the marks as being behind.
    pub(super) fn count(&self, marks: &Marks) -> usize {
        self.records.keys().filter(|key| **key > marks.fired()).count()
    }

    pub(super) fn first(&self) -> Option<(Key, &Staged)> {
        self.records.first_key_value().map(|(key, staged)| (*key, staged))
    }

    pub(super) fn last(&self) -> Option<Key> {
        self.records.last_key_value().map(|(key, _)| *key)
    }

    pub(super) fn take_first(&mut self) -> Option<(Key, Staged)> {
        let (key, staged) = self.records.pop_first()?;
        self.bytes -= staged.bytes as usize;
        Some((key, staged))
    }

    /// What is to be read now; with `again` also what failed. `segment` says where a record lies on disk, if it is to
    /// be read from there.
    pub(super) fn plan(
        &mut self,
        again: bool,
        segment: impl Fn(Key, u32) -> Option<Segment>,
    ) -> Vec<Range> {
        self.is_fresh = false;
        let mut wanted: Vec<(Key, u32, bool)> = self
            .records
            .iter()
            .filter(|(_, staged)| matches!(staged.state, State::Unread))
            .filter(|(_, staged)| staged.tries == 0 || again)
            .map(|(key, staged)| (*key, staged.bytes, staged.tries > 0))
            .collect();
        wanted.sort_unstable_by_key(|(key, ..)| key.position);
        let mut ranges: Vec<(Segment, Range, bool)> = Vec::new();
        let block = BLOCK_BYTES as u64;
        for (key, bytes, is_alone) in wanted {
            let Some(segment) = segment(key, bytes) else { continue };
            let start = key.position - key.position % block;
            let end = (key.position + u64::from(bytes)).next_multiple_of(block).min(segment.end());
            if let Some((of, range, closed)) = ranges.last_mut()
                && of.base == segment.base
                && !*closed
                && !is_alone
                && start <= range.start + u64::from(range.bytes) + GAP_BYTES
                && end - range.start <= READ_BYTES
            {
                range.bytes = range.bytes.max((end - range.start) as u32);
                range.keys.push(key);
                continue;
            }
            // A longer record than the segment has room for is none; it is seen to be none when it is read.
            let bytes = end.saturating_sub(start).max(block) as u32;
            ranges.push((segment, Range { start, bytes, keys: vec![key] }, is_alone));
        }
        for key in ranges.iter().flat_map(|(_, range, _)| &range.keys) {
            if let Some(staged) = self.records.get_mut(key) {
                staged.state = State::Reading;
            }
        }
        ranges.into_iter().map(|(_, range, _)| range).collect()
    }

    /// A read ended. Returns whether something is to be read again.
    pub(super) fn take_read(&mut self, start: u64, keys: &[Key], bytes: Option<&[u8]>) -> bool {
        let mut again = false;
        for key in keys {
            let Some(staged) = self.records.get_mut(key) else { continue };
            if !matches!(staged.state, State::Reading) {
                continue;
            }
            let Some(bytes) = bytes else {
                staged.tries += 1;
                let is_last = staged.tries >= TRIES;
                staged.state = if is_last { State::Failed } else { State::Unread };
                again |= !is_last;
                continue;
            };
            let from = (key.position - start) as usize;
            let record = bytes.get(from..from + staged.bytes as usize);
            staged.state = match record.filter(|record| is_timer(*key, record)) {
                Some(record) => State::There(record.into()),
                None => State::Damaged,
            };
        }
        again
    }
}

/// Whether these are the bytes of a timer's record, or of its header alone.
pub(super) fn is_timer(key: Key, bytes: &[u8]) -> bool {
    let Ok((header, _)) = RecordHeader::ref_from_prefix(bytes) else { return false };
    let is_it = header.prefix.magic == record::MAGIC
        && header.prefix.kind == Kind::Timer as u8
        && header.position.get() == key.position
        && header.deliver_ms.get() == key.due_ms
        && header.header_checksum.get() == header.computed_checksum();
    if bytes.len() == HEADER_BYTES && header.prefix.length.get() as usize > HEADER_BYTES {
        return is_it;
    }
    let whole = record::read_one(bytes, 0).ok().filter(|(end, _)| *end == bytes.len());
    is_it && whole.and_then(|(_, found)| found).is_some_and(|found| found.check_payload().is_ok())
}
