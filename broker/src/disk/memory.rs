//! Memory for the device: blocks of the log, right-sized and recycled.
//!
//! Invariants:
//! - a block is exactly as long as the device operation that uses it, because glommio writes whole
//!   buffers, and trimming one cannot be undone;
//! - what is kept for reuse is never trimmed, and bounded by [`SPARE_BYTES_MAX`].

use glommio::io::{DmaBuffer, ReadResult};
use ringmq_core::{BLOCK_BYTES, Block, Memory};
use std::cell::RefCell;
use std::rc::{Rc, Weak};

/// Most bytes kept for reuse by one core: a few of the largest units. Smaller blocks are the
/// allocator's, which keeps them too (`sys::keep_freed_blocks`).
const SPARE_BYTES_MAX: usize = 8 << 20;
/// Blocks below this are not worth a list: the allocator has them at hand.
const SPARE_BLOCK_BYTES_MIN: usize = 64 << 10;

/// A block of the log in memory.
#[derive(Debug)]
pub(crate) struct LogBlock {
    bytes: Bytes,
    spare: Weak<RefCell<Spare>>,
}

#[derive(Debug)]
enum Bytes {
    /// To be written, or being filled.
    Ours(Rc<DmaBuffer>),
    /// Came from the disk.
    Read(ReadResult),
}

/// Buffers that wait for their next use.
#[derive(Debug, Default)]
struct Spare {
    buffers: Vec<Rc<DmaBuffer>>,
    bytes: usize,
}

impl Spare {
    fn take(&mut self, bytes: usize) -> Option<Rc<DmaBuffer>> {
        let at = self.buffers.iter().rposition(|b| b.len() == bytes)?;
        self.bytes -= bytes;
        Some(self.buffers.swap_remove(at))
    }

    fn keep(&mut self, buffer: Rc<DmaBuffer>) {
        let bytes = buffer.len();
        if bytes >= SPARE_BLOCK_BYTES_MIN && self.bytes + bytes <= SPARE_BYTES_MAX {
            self.bytes += bytes;
            self.buffers.push(buffer);
        }
    }
}

/// One core's source of blocks; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct BlockMemory {
    spare: Rc<RefCell<Spare>>,
}

impl BlockMemory {
    /// A block that holds what was read.
    pub(crate) fn read(&self, result: ReadResult) -> LogBlock {
        LogBlock { bytes: Bytes::Read(result), spare: Weak::new() }
    }
}

impl Memory for BlockMemory {
    type Block = LogBlock;

    fn allocate(&mut self, bytes: usize) -> LogBlock {
        assert!(bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES), "blocks are whole device blocks");
        let recycled = self.spare.borrow_mut().take(bytes);
        let buffer = recycled.unwrap_or_else(|| Rc::new(new_buffer(bytes)));
        LogBlock { bytes: Bytes::Ours(buffer), spare: Rc::downgrade(&self.spare) }
    }
}

fn new_buffer(bytes: usize) -> DmaBuffer {
    let mut buffer = glommio::allocate_dma_buffer_global(bytes);
    buffer.trim_to_size(bytes);
    buffer
}

impl LogBlock {
    /// To hand it to the device.
    pub(crate) fn shared(&self) -> Rc<DmaBuffer> {
        match &self.bytes {
            Bytes::Ours(buffer) => Rc::clone(buffer),
            Bytes::Read(result) => Rc::new(copied(result)),
        }
    }
}

fn copied(bytes: &[u8]) -> DmaBuffer {
    let mut buffer = new_buffer(bytes.len());
    buffer.as_bytes_mut().copy_from_slice(bytes);
    buffer
}

impl Block for LogBlock {
    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Ours(buffer) => buffer.as_bytes(),
            Bytes::Read(result) => result,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        if let Bytes::Read(result) = &self.bytes {
            self.bytes = Bytes::Ours(Rc::new(copied(result)));
        }
        let Bytes::Ours(buffer) = &mut self.bytes else { unreachable!("made ours above") };
        Rc::get_mut(buffer)
            .expect("a block that was handed out is never written to again")
            .as_bytes_mut()
    }

    fn truncate(&mut self, bytes: usize) {
        let length = self.bytes().len();
        assert!(bytes.is_multiple_of(BLOCK_BYTES) && bytes <= length, "blocks only shrink");
        if bytes == length {
            return;
        }
        // A half-empty block moves into one of its size: the tail cache would otherwise hold memory
        // that nobody uses, and the large one is worth more whole.
        if bytes <= length / 2 {
            let small = copied(&self.bytes()[..bytes]);
            let large = std::mem::replace(&mut self.bytes, Bytes::Ours(Rc::new(small)));
            self.give_back(large);
            return;
        }
        let _ = self.bytes_mut();
        if let Bytes::Ours(buffer) = &mut self.bytes {
            Rc::get_mut(buffer).expect("checked by bytes_mut").trim_to_size(bytes);
        }
        // Trimmed for good: it shall not come back as a whole one.
        self.spare = Weak::new();
    }
}

impl LogBlock {
    fn give_back(&self, bytes: Bytes) {
        let (Bytes::Ours(mut buffer), Some(spare)) = (bytes, self.spare.upgrade()) else { return };
        if Rc::get_mut(&mut buffer).is_some() {
            spare.borrow_mut().keep(buffer);
        }
    }
}

impl Drop for LogBlock {
    fn drop(&mut self) {
        let bytes = std::mem::replace(&mut self.bytes, Bytes::Read(ReadResult::default()));
        self.give_back(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_executor(test: impl FnOnce() + 'static) {
        glommio::LocalExecutorBuilder::default().make().unwrap().run(async move { test() });
    }

    #[test]
    fn blocks_shrink_and_keep_what_is_left() {
        in_executor(|| {
            let mut memory = BlockMemory::default();
            for (whole, left) in [(1 << 20, 4096), (1 << 20, 900 << 10), (8192, 8192)] {
                let mut block = memory.allocate(whole);
                assert_eq!(block.bytes().len(), whole);
                for (i, byte) in block.bytes_mut().iter_mut().enumerate() {
                    *byte = i as u8;
                }
                block.truncate(left);
                assert_eq!(block.bytes().len(), left);
                assert!(block.bytes().iter().enumerate().all(|(i, b)| *b == i as u8));
                assert_eq!(block.bytes().as_ptr() as usize % BLOCK_BYTES, 0);
            }
        });
    }

    #[test]
    fn large_blocks_come_back_whole_and_their_number_is_bounded() {
        in_executor(|| {
            let mut memory = BlockMemory::default();
            let block = memory.allocate(1 << 20);
            let address = block.bytes().as_ptr();
            drop(block);
            assert_eq!(memory.allocate(1 << 20).bytes().as_ptr(), address);
            let many: Vec<_> = (0..32).map(|_| memory.allocate(1 << 20)).collect();
            drop(many);
            assert_eq!(memory.spare.borrow().bytes, SPARE_BYTES_MAX);
            let mut trimmed = memory.allocate(1 << 20);
            trimmed.truncate(1 << 20 >> 1 | 4096);
            drop(trimmed);
            assert!(memory.spare.borrow().buffers.iter().all(|b| b.len() == 1 << 20));
        });
    }
}
