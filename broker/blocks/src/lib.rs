//! Memory for the device: large aligned blocks in huge pages, everything else from the system's allocator.
//!
//! Why: a write of 1 MiB from ordinary pages is 256 pieces of memory, which the kernel pins one by one and hands to
//! the disk as 256 segments; many disks take fewer at once (virtio without indirect descriptors: 254 for *all* requests
//! together), so writes queue up behind each other. From a huge page it is one segment. Measured on such a disk, 8 writes of
//! 1 MiB in flight over written blocks: 0.9 against 1.3 GB/s, durable ones 0.7 against 1.05.
//!
//! glommio takes its buffers from the global allocator and from nowhere else, so this is one:
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: ringmq_blocks::BlockAllocator = ringmq_blocks::BlockAllocator;
//! ```
//!
//! Invariants:
//! - a block lies in one chunk, which is one huge page where the system grants it;
//! - what is not a block, and what cannot be had as one, is the system allocator's: the address tells whose it is;
//! - empty chunks beyond [`SPARE_CHUNKS_MAX`] are given back.
#![allow(unsafe_code)]

mod pool;

use pool::{CHUNK_BYTES, Pool, SLOT_BYTES};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the device wants of addresses, and nobody else asks for.
const ALIGNMENT: usize = 4096;
/// Empty chunks that are kept: 16 MiB, two of the largest gusts of units a core has in flight.
pub const SPARE_CHUNKS_MAX: usize = 8;

/// One for the process: blocks come and go once per write unit, some thousand times a second and core.
static POOL: Mutex<Pool> = Mutex::new(Pool::new());

/// See the crate.
#[derive(Debug, Clone, Copy, Default)]
pub struct BlockAllocator;

/// Whether such memory is a block. Smaller ones are few pages, larger ones rare.
fn is_block(layout: Layout) -> bool {
    layout.align() == ALIGNMENT && (SLOT_BYTES..=CHUNK_BYTES).contains(&layout.size())
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

// SAFETY: blocks come from `Pool`, which hands out each slot to one at a time until it is freed, aligned to a slot (more
// than `ALIGNMENT`) and whole; the rest is `System`'s, for which the contract is passed on as it is. Nothing here panics,
// and the pool's own list is too small and too little aligned to be a block, so it never asks for one.
unsafe impl GlobalAlloc for BlockAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = match is_block(layout) {
            true => pool().take(layout.size()),
            false => None,
        };
        // SAFETY: the caller's promise about `layout`.
        block.unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if is_block(layout) && pool().give_back(memory, layout.size()) {
            return;
        }
        // SAFETY: not from the pool, so `System` made it, with this layout.
        unsafe { System.dealloc(memory, layout) };
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !is_block(layout) {
            // SAFETY: the caller's promise about `layout`.
            return unsafe { System.alloc_zeroed(layout) };
        }
        // SAFETY: as above; what came is as long as the layout says.
        unsafe {
            let memory = self.alloc(layout);
            if !memory.is_null() {
                memory.write_bytes(0, layout.size());
            }
            memory
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller promises a size that makes a layout.
        let new = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        if !is_block(layout) && !is_block(new) {
            // SAFETY: `System` made it, with this layout.
            return unsafe { System.realloc(memory, layout, bytes) };
        }
        // SAFETY: both are whole and apart, and the old one is not used after.
        unsafe {
            let larger = self.alloc(new);
            if !larger.is_null() {
                larger.copy_from_nonoverlapping(memory, layout.size().min(bytes));
                self.dealloc(memory, layout);
            }
            larger
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: BlockAllocator = BlockAllocator;

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, ALIGNMENT).unwrap()
    }

    #[test]
    fn blocks_are_whole_apart_and_theirs_alone() {
        // Sizes from a linear congruence, so that each run is the same.
        let (mut seed, mut held) = (7u64, Vec::new());
        for step in 0..20_000u64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let layout = layout(((seed >> 33) % (5 << 19)) as usize + 1);
            // SAFETY: the layout has a size.
            let memory = unsafe { ALLOCATOR.alloc(layout) };
            assert_eq!(memory as usize % ALIGNMENT, 0);
            let (first, last) = (memory.cast::<u64>(), memory as usize + layout.size() - 8);
            if layout.size() >= 16 {
                // SAFETY: within the memory that came.
                unsafe {
                    first.write(step);
                    (last as *mut u64).write_unaligned(!step);
                }
            }
            held.push((step, memory, layout));
            if held.len() > 40 {
                let (step, memory, layout) = held.swap_remove((seed >> 40) as usize % 40);
                if layout.size() >= 16 {
                    let last = memory as usize + layout.size() - 8;
                    // SAFETY: written above.
                    let found = unsafe {
                        (memory.cast::<u64>().read(), (last as *const u64).read_unaligned())
                    };
                    assert_eq!(found, (step, !step));
                }
                // SAFETY: made with this layout.
                unsafe { ALLOCATOR.dealloc(memory, layout) };
            }
        }
        for (_, memory, layout) in held {
            // SAFETY: made with this layout.
            unsafe { ALLOCATOR.dealloc(memory, layout) };
        }
    }

    #[test]
    fn zeroed_is_zero_and_what_grows_keeps_its_bytes() {
        let block = layout(1 << 20);
        // SAFETY: layouts have sizes, and each piece is used within it and freed once.
        unsafe {
            let memory = ALLOCATOR.alloc(block);
            memory.write_bytes(7, block.size());
            ALLOCATOR.dealloc(memory, block);
            let memory = ALLOCATOR.alloc_zeroed(block);
            assert!(std::slice::from_raw_parts(memory, block.size()).iter().all(|b| *b == 0));
            ALLOCATOR.dealloc(memory, block);
            let (small, large) = (layout(4096), layout(3 << 20));
            let mut memory = ALLOCATOR.alloc(small);
            memory.write_bytes(9, small.size());
            memory = ALLOCATOR.realloc(memory, small, block.size());
            memory = ALLOCATOR.realloc(memory, block, large.size());
            memory = ALLOCATOR.realloc(memory, large, small.size());
            assert!(std::slice::from_raw_parts(memory, small.size()).iter().all(|b| *b == 9));
            ALLOCATOR.dealloc(memory, small);
        }
    }
}
