//! Blocks of the log in memory, as glommio hands them to the device.
//!
//! Invariant: a block is exactly as long as the device operation that uses it, because glommio writes whole buffers,
//! and trimming one cannot be undone.

use glommio::io::{DmaBuffer, ReadResult};
use ringmq_core::{BLOCK_BYTES, Block, Memory};
use std::rc::Rc;

/// A block of the log in memory.
#[derive(Debug)]
pub(crate) enum LogBlock {
    /// To be written, or being filled.
    Ours(Rc<DmaBuffer>),
    /// Came from the disk.
    Read(ReadResult),
}

/// The source of blocks: the process's allocator, which recycles them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockMemory;

impl Memory for BlockMemory {
    type Block = LogBlock;

    fn allocate(&mut self, bytes: usize) -> LogBlock {
        assert!(bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES), "blocks are whole device blocks");
        LogBlock::Ours(Rc::new(new_buffer(bytes)))
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
        match self {
            LogBlock::Ours(buffer) => Rc::clone(buffer),
            LogBlock::Read(result) => Rc::new(copied(result)),
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
        match self {
            LogBlock::Ours(buffer) => buffer.as_bytes(),
            LogBlock::Read(result) => result,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.own().as_bytes_mut()
    }

    fn truncate(&mut self, bytes: usize) {
        let length = self.bytes().len();
        assert!(bytes.is_multiple_of(BLOCK_BYTES) && bytes <= length, "blocks only shrink");
        // A half-empty block moves into one of its size: the tail cache would otherwise hold memory that nobody uses.
        match bytes <= length / 2 {
            true => *self = LogBlock::Ours(Rc::new(copied(&self.bytes()[..bytes]))),
            false => self.own().trim_to_size(bytes),
        }
    }
}

impl LogBlock {
    /// The buffer of a block that nobody else has.
    fn own(&mut self) -> &mut DmaBuffer {
        if let LogBlock::Read(result) = self {
            *self = LogBlock::Ours(Rc::new(copied(result)));
        }
        let LogBlock::Ours(buffer) = self else { unreachable!("made ours above") };
        Rc::get_mut(buffer).expect("a block that was handed out is never written to again")
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
            let mut memory = BlockMemory;
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
}
