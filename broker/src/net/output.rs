//! What waits to be sent on one connection.
//!
//! Invariants:
//! - bytes leave in the order in which they were pushed;
//! - a range of a file is never sent from here: it is lent out when it has come to the front;
//! - large ranges of log blocks are sent from where they lie; small ones are copied, because a reference
//!   count and an entry in a system call's list cost more than 16 KiB of copying.

use crate::disk::memory::LogBlock;
use crate::disk::segment::InUse;
use crate::shard::core::bytes_of;
use ringmq_core::Slice;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;

/// Ranges from this length on are not copied.
const SHARED_BYTES_MIN: usize = 16 << 10;
/// A part of a block shorter than this, and than a quarter of the block, is copied as well.
const PINNED_BYTES_MIN: usize = 128 << 10;
/// Ranges in one system call.
const RANGES_MAX: usize = 64;
/// Memory for copied bytes that an idle connection keeps.
const KEPT_BYTES: usize = 16 << 10;

/// A range of the log in one segment.
#[derive(Debug, Clone)]
pub(crate) struct FileRange {
    pub(crate) segment: Rc<InUse>,
    pub(crate) position: u64,
    pub(crate) bytes: usize,
    /// Whose segment it is, in the core's slots.
    pub(crate) slot: usize,
}

#[derive(Debug)]
enum Piece {
    /// So many bytes of `copied`.
    Copied(usize),
    Shared(Slice<LogBlock>),
    File(FileRange),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Piece::Copied(bytes) => *bytes,
            Piece::Shared(slice) => slice.range.len(),
            Piece::File(file) => file.bytes,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pieces: VecDeque<Piece>,
    copied: Vec<u8>,
    /// Bytes at the front of `copied` that were sent.
    copied_sent: usize,
    bytes: usize,
}

impl Output {
    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.copied.extend_from_slice(bytes);
        self.bytes += bytes.len();
        match self.pieces.back_mut() {
            Some(Piece::Copied(length)) => *length += bytes.len(),
            _ => self.pieces.push_back(Piece::Copied(bytes.len())),
        }
    }

    /// Adds a range of a block.
    pub(crate) fn push_slice(&mut self, slice: &Slice<LogBlock>) {
        // A small part of a large block is copied too: waiting, it would hold all of it.
        let pins = slice.range.len() * 4 < ringmq_core::Block::bytes(&*slice.block).len();
        if slice.range.len() < SHARED_BYTES_MIN || pins && slice.range.len() < PINNED_BYTES_MIN {
            return self.push(bytes_of(slice));
        }
        self.bytes += slice.range.len();
        let slice = Slice { block: Rc::clone(&slice.block), range: slice.range.clone() };
        self.pieces.push_back(Piece::Shared(slice));
    }

    /// Adds a range of a file.
    pub(crate) fn push_file(&mut self, file: FileRange) {
        if file.bytes > 0 {
            self.bytes += file.bytes;
            self.pieces.push_back(Piece::File(file));
        }
    }

    /// The range of a file that is to be sent first, if it is one.
    pub(crate) fn front_file(&self) -> Option<&FileRange> {
        match self.pieces.front() {
            Some(Piece::File(file)) => Some(file),
            _ => None,
        }
    }

    /// What is to be sent first, for one system call, up to a range of a file. Returns whether such a
    /// range follows.
    pub(crate) fn ranges<'a>(&'a self, into: &mut Vec<IoSlice<'a>>) -> bool {
        let mut copied = &self.copied[self.copied_sent..];
        for piece in self.pieces.iter().take(RANGES_MAX) {
            match piece {
                Piece::Copied(length) => {
                    let (now, later) = copied.split_at(*length);
                    into.push(IoSlice::new(now));
                    copied = later;
                }
                Piece::Shared(slice) => into.push(IoSlice::new(bytes_of(slice))),
                Piece::File(_) => return true,
            }
        }
        false
    }

    /// The bytes to be sent first; none when they are a file's.
    pub(crate) fn first(&self) -> &[u8] {
        match self.pieces.front() {
            None | Some(Piece::File(_)) => &[],
            Some(Piece::Copied(length)) => &self.copied[self.copied_sent..][..*length],
            Some(Piece::Shared(slice)) => bytes_of(slice),
        }
    }

    /// So many bytes were sent.
    pub(crate) fn sent(&mut self, mut bytes: usize) {
        self.bytes -= bytes;
        while bytes > 0 {
            let piece = self.pieces.front_mut().expect("no more is sent than waits");
            let part = bytes.min(piece.len());
            match piece {
                Piece::Copied(length) => {
                    *length -= part;
                    self.copied_sent += part;
                }
                Piece::Shared(slice) => slice.range.start += part as u32,
                Piece::File(file) => {
                    file.position += part as u64;
                    file.bytes -= part;
                }
            }
            if piece.len() == 0 {
                self.pieces.pop_front();
            }
            bytes -= part;
        }
        if self.pieces.is_empty() {
            self.copied.clear();
            self.copied_sent = 0;
            self.copied.shrink_to(KEPT_BYTES);
        } else if self.copied_sent > KEPT_BYTES && self.copied_sent * 2 >= self.copied.len() {
            // A connection that always has more to send is never empty: what was sent must go even so.
            self.copied.drain(..self.copied_sent);
            self.copied_sent = 0;
        }
    }

    /// Throws everything away.
    pub(crate) fn clear(&mut self) {
        *self = Output::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::memory::BlockMemory;
    use crate::disk::segment::Segments;
    use ringmq_core::{Block, Memory, SegmentFile};

    #[test]
    fn bytes_leave_in_order_however_they_are_cut() {
        glommio::LocalExecutorBuilder::default().make().unwrap().run(async {
            let mut block = BlockMemory.allocate(64 << 10);
            for (i, byte) in block.bytes_mut().iter_mut().enumerate() {
                *byte = (i / 7) as u8;
            }
            let block = Rc::new(block);
            for step in [1usize, 1000, 17_000, 1 << 20] {
                let (mut output, mut expected) = (Output::default(), Vec::new());
                for range in [0..10u32, 100..20_000, 0..16_384, 5..6] {
                    output.push(b"head");
                    expected.extend_from_slice(b"head");
                    let slice = Slice { block: Rc::clone(&block), range };
                    expected.extend_from_slice(bytes_of(&slice));
                    output.push_slice(&slice);
                }
                let mut got = Vec::new();
                while output.bytes() > 0 {
                    let mut ranges = Vec::new();
                    output.ranges(&mut ranges);
                    assert_eq!(&ranges[0][..], output.first());
                    let all: Vec<u8> = ranges.iter().flat_map(|r| r.to_vec()).collect();
                    assert_eq!(all.len(), output.bytes());
                    let part = step.min(all.len());
                    got.extend_from_slice(&all[..part]);
                    output.sent(part);
                }
                assert_eq!(got, expected, "step {step}");
                assert!(output.first().is_empty() && output.copied.is_empty());
            }
        });
    }

    #[test]
    fn a_file_waits_for_what_is_before_it_and_holds_up_what_is_behind() {
        let segment = SegmentFile { base: 4096, bytes: 8192 };
        let segments = Segments::new("unused".into(), &[segment], Vec::new());
        let segment = Rc::new(segments.at(5000).unwrap());
        let mut output = Output::default();
        output.push(b"head");
        let file = FileRange { segment: Rc::clone(&segment), position: 5000, bytes: 100, slot: 0 };
        output.push_file(file);
        output.push(b"later");
        assert_eq!(output.bytes(), 109);
        let mut ranges = Vec::new();
        assert!(output.ranges(&mut ranges) && ranges.len() == 1 && &ranges[0][..] == b"head");
        drop(ranges);
        assert!(output.front_file().is_none());
        output.sent(4);
        let front = output.front_file().map(|file| (file.position, file.bytes));
        assert!(front == Some((5000, 100)) && output.first().is_empty());
        assert!(output.ranges(&mut Vec::new()));
        output.sent(60);
        assert_eq!(output.front_file().map(|file| (file.position, file.bytes)), Some((5060, 40)));
        output.sent(40);
        assert!(output.front_file().is_none() && output.first() == b"later");
        assert_eq!((output.bytes(), Rc::strong_count(&segment)), (5, 1));
    }
}
