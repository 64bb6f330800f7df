//! The newest units of the log, kept in memory for consumers at the tail.
//!
//! Invariants: units lie by rising position; what is not flushed yet is never evicted.

use crate::seam::{Block, Slice};
use std::collections::VecDeque;
use std::rc::Rc;

#[derive(Debug)]
struct Kept<B> {
    position: u64,
    block: Rc<B>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tail<B> {
    units: VecDeque<Kept<B>>,
    bytes: usize,
    limit: usize,
}

impl<B: Block> Tail<B> {
    pub(crate) fn new(limit: usize) -> Tail<B> {
        Tail { units: VecDeque::new(), bytes: 0, limit }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether more is kept than the limit: units that are not flushed hold on to it.
    pub(crate) fn is_over(&self) -> bool {
        self.bytes > self.limit
    }

    /// Adds the newest unit and lets go of old ones below `flushed`.
    pub(crate) fn push(&mut self, position: u64, block: &Rc<B>, flushed: u64) {
        self.bytes += block.bytes().len();
        self.units.push_back(Kept { position, block: Rc::clone(block) });
        while self.bytes > self.limit {
            let Some(front) = self.units.front() else { return };
            let bytes = front.block.bytes().len();
            if front.position + bytes as u64 > flushed {
                return;
            }
            self.bytes -= bytes;
            self.units.pop_front();
        }
    }

    /// First position that is in memory.
    pub(crate) fn start(&self) -> Option<u64> {
        self.units.front().map(|unit| unit.position)
    }

    /// `bytes` from `position` on, when they are in memory. Records never span units.
    pub(crate) fn slice(&self, position: u64, bytes: u32) -> Option<Slice<B>> {
        let index = self.units.partition_point(|u| u.position <= position).checked_sub(1)?;
        let unit = &self.units[index];
        let start = (position - unit.position) as u32;
        let end = start + bytes;
        (end as usize <= unit.block.bytes().len())
            .then(|| Slice { block: Rc::clone(&unit.block), range: start..end })
    }
}
