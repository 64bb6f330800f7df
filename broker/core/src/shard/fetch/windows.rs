//! Windows of the log that were read for consumers that are behind, kept for those who come next.
//!
//! Invariants:
//! - never more bytes than the limit are kept, beside what is being read (promise: bounded);
//! - a window is read once for all who wait for it;
//! - what is kept is durable, and so never changes: positions are not used again.

use super::gather::cut;
use super::single::cut_from;
use crate::seam::{BLOCK_BYTES, Block, Slice};
use crate::table::Map;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// One read of a window; reads of this size run at the speed of the disk.
const READ_BYTES: u64 = 1 << 20;
/// So much of what a window's read brings lies in the next window, too: a record that crosses the border is there at once.
const OVERLAP_BYTES: u64 = 16 << 10;
/// From the start of a window to that of the next.
pub(super) const WINDOW_BYTES: u64 = READ_BYTES - OVERLAP_BYTES;
/// Windows that are read before a reader comes to them: at 1 GB/s one lasts a millisecond, which a disk may take to answer.
pub(super) const AHEAD_OF_ONE: u64 = 2;
/// Most windows that are read before somebody asks for them.
const AHEAD_MAX: usize = 8;

/// What is to be read for a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) bytes: u64,
    /// It is not a window.
    pub(super) alone: bool,
}

impl Range {
    /// The window at `start`.
    pub(super) fn window(start: u64) -> Range {
        Range { start, bytes: READ_BYTES, alone: false }
    }

    /// The window in which the record from `position` to `end` lies, of a segment that begins at `base`; no more than the
    /// record when it does not lie in one, or that is wanted (`alone`).
    pub(super) fn of(base: u64, position: u64, end: u64, alone: bool) -> Range {
        let window = Range::window(window_of(base, position));
        if !alone && end <= window.start + window.bytes {
            return window;
        }
        let start = position - (position - base) % BLOCK_BYTES as u64;
        let bytes = (end - start).next_multiple_of(BLOCK_BYTES as u64);
        Range { start, bytes, alone: true }
    }
}

/// Where the window begins that a position lies in.
fn window_of(base: u64, position: u64) -> u64 {
    position - (position - base) % WINDOW_BYTES
}

/// One read of the log.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) start: u64,
    pub(super) bytes: u32,
    /// Who waits for it; nobody yet when it is read ahead.
    pub(super) fetches: Vec<u64>,
    /// It is not a window: what it brings is not kept.
    pub(super) alone: bool,
}

/// See the module.
#[derive(Debug)]
pub(in super::super) struct Windows<B> {
    /// The one that was used last is the last.
    held: VecDeque<(u64, Rc<B>)>,
    bytes: usize,
    limit: usize,
    reads: Map<u64, Read>,
    /// Reads of windows by their start.
    under_way: BTreeMap<u64, u64>,
    ahead: usize,
}

impl<B: Block> Windows<B> {
    pub(in super::super) fn new(limit: usize) -> Windows<B> {
        Windows {
            held: VecDeque::new(),
            bytes: 0,
            limit,
            reads: Map::default(),
            under_way: BTreeMap::new(),
            ahead: 0,
        }
    }

    /// A window that is kept and reaches to `end`.
    pub(super) fn get(&mut self, start: u64, end: u64) -> Option<Rc<B>> {
        let at = self.held.iter().rposition(|(held, _)| *held == start)?;
        let found = self.held.remove(at)?;
        let block = Rc::clone(&found.1);
        self.held.push_back(found);
        (start + block.bytes().len() as u64 >= end).then_some(block)
    }

    /// A record of a segment that begins at `base`, if a window has it that is kept; `used` is the one that was used last,
    /// with its position.
    pub(super) fn record(
        &mut self,
        used: &mut Option<(u64, Rc<B>)>,
        base: u64,
        position: u64,
        bytes: u32,
    ) -> Option<Slice<B>> {
        if let Some(slice) = cut_from(used.as_ref(), position, bytes) {
            return Some(slice);
        }
        let start = window_of(base, position);
        let block = self.get(start, position + u64::from(bytes))?;
        let slice = cut(start, &block, position, bytes);
        *used = Some((start, block));
        slice
    }

    /// Whether a window is kept or on its way.
    pub(super) fn has(&self, start: u64) -> bool {
        self.under_way.contains_key(&start) || self.held.iter().any(|(held, _)| *held == start)
    }

    /// Lets a fetch wait for a read of that window that is under way and reaches to `end`.
    pub(super) fn join(&mut self, fetch: u64, start: u64, end: u64) -> bool {
        let read = self.under_way.get(&start).and_then(|read| self.reads.get_mut(read));
        let Some(read) = read.filter(|read| start + u64::from(read.bytes) >= end) else {
            return false;
        };
        self.ahead -= usize::from(read.fetches.is_empty());
        read.fetches.push(fetch);
        true
    }

    /// Whether a window is on its way.
    pub(super) fn is_coming(&self, start: u64) -> bool {
        self.under_way.contains_key(&start)
    }

    /// Whether so much is kept of what was read.
    pub(super) fn keeps(&self, bytes: u64) -> bool {
        self.limit as u64 >= bytes
    }

    /// Whether one more may be read ahead.
    pub(super) fn may_read_ahead(&self) -> bool {
        self.limit > 0 && self.ahead < AHEAD_MAX
    }

    /// A read begins.
    pub(super) fn begin(&mut self, number: u64, read: Read) {
        self.ahead += usize::from(read.fetches.is_empty());
        if !read.alone {
            self.under_way.insert(read.start, number);
        }
        self.reads.insert(number, read);
    }

    /// A read ended.
    pub(super) fn end(&mut self, number: u64) -> Option<Read> {
        let read = self.reads.remove(&number)?;
        self.ahead -= usize::from(read.fetches.is_empty());
        if self.under_way.get(&read.start) == Some(&number) {
            self.under_way.remove(&read.start);
        }
        Some(read)
    }

    /// Keeps what a window's read brought.
    pub(super) fn keep(&mut self, start: u64, block: &Rc<B>) {
        if let Some(at) = self.held.iter().position(|(held, _)| *held == start)
            && let Some((_, old)) = self.held.remove(at)
        {
            self.bytes -= old.bytes().len();
        }
        self.bytes += block.bytes().len();
        self.held.push_back((start, Rc::clone(block)));
        while self.bytes > self.limit {
            let Some((_, oldest)) = self.held.pop_front() else { break };
            self.bytes -= oldest.bytes().len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bytes(Vec<u8>);

    impl Block for Bytes {
        fn bytes(&self) -> &[u8] {
            &self.0
        }
        fn bytes_mut(&mut self) -> &mut [u8] {
            &mut self.0
        }
        fn truncate(&mut self, bytes: usize) {
            self.0.truncate(bytes);
        }
    }

    #[test]
    fn the_window_used_longest_ago_goes_first() {
        let mut windows = Windows::new(3000);
        for start in [0, 1000, 2000] {
            windows.keep(start, &Rc::new(Bytes(vec![0; 1000])));
        }
        assert!(windows.get(0, 1000).is_some() && windows.get(0, 1001).is_none());
        windows.keep(3000, &Rc::new(Bytes(vec![0; 1000])));
        assert!(windows.has(0) && !windows.has(1000) && windows.has(2000));
        windows.keep(4000, &Rc::new(Bytes(vec![0; 4000])));
        assert_eq!((windows.held.len(), windows.bytes), (0, 0), "longer than all that may be kept");
    }

    #[test]
    fn a_record_across_a_border_lies_in_the_window_where_it_begins() {
        let base = 8 << 20;
        let border = base + WINDOW_BYTES;
        assert_eq!(Range::of(base, base, base + 10, false), Range::window(base));
        assert_eq!(Range::of(base, border - 8, border + OVERLAP_BYTES, false), Range::window(base));
        assert_eq!(Range::of(base, border, border + 8, false), Range::window(border));
        let long = Range::of(base, border - 5000, border + OVERLAP_BYTES + 1, false);
        assert_eq!(
            long,
            Range { start: border - 8192, bytes: 8192 + (16 << 10) + 4096, alone: true }
        );
        let alone = Range::of(base, base + 5000, base + 5100, true);
        assert_eq!(alone, Range { start: base + 4096, bytes: 4096, alone: true });
    }

    #[test]
    fn a_window_is_read_once_for_all_who_wait() {
        let mut windows: Windows<Bytes> = Windows::new(1 << 20);
        let read = |fetches| Read { start: 4096, bytes: 8192, fetches, alone: false };
        windows.begin(7, read(Vec::new()));
        assert!(windows.has(4096) && !windows.join(1, 4096, 12_289) && !windows.join(1, 0, 1));
        assert!(windows.join(1, 4096, 12_288) && windows.join(2, 4096, 5000));
        assert_eq!(windows.end(7).unwrap().fetches, [1, 2]);
        assert!(windows.end(7).is_none() && !windows.has(4096));
        for number in 0..AHEAD_MAX as u64 {
            assert!(windows.may_read_ahead());
            windows.begin(number, Read { start: number, ..read(Vec::new()) });
        }
        assert!(!windows.may_read_ahead());
        windows.end(0);
        assert!(windows.may_read_ahead());
    }
}
