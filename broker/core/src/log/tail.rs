//! The newest units of the log, kept in memory for consumers at the tail.
//!
//! Invariants: units lie by rising position; what the device has not taken yet is never evicted, and nothing that is
//! not flushed while somebody holds on to it.

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
    /// How many wait for what is not flushed yet to become so, and want it from here then.
    held: usize,
}

impl<B: Block> Tail<B> {
    pub(crate) fn new(limit: usize) -> Tail<B> {
        Tail { units: VecDeque::new(), bytes: 0, limit, held: 0 }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps what is not flushed yet until [`Tail::release`].
    pub(crate) fn hold(&mut self) {
        self.held += 1;
    }

    pub(crate) fn release(&mut self) {
        self.held -= 1;
    }

    /// Adds the newest unit and lets go of old ones. What was taken by the device may go before it is flushed: at the
    /// disk's speed that is more in 500 ms than fits here, and nobody reads it before.
    pub(crate) fn push(&mut self, position: u64, block: &Rc<B>, flushed: u64, written: u64) {
        self.bytes += block.bytes().len();
        self.units.push_back(Kept { position, block: Rc::clone(block) });
        let may_go = if self.held > 0 { flushed } else { written };
        while self.bytes > self.limit {
            let Some(front) = self.units.front() else { return };
            let bytes = front.block.bytes().len();
            if front.position + bytes as u64 > may_go {
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
