//! Chunks of one huge page each, cut into slots.
//!
//! Invariants: chunks lie by rising address; a slot has its bit set for as long as a block has it.

use super::SPARE_CHUNKS_MAX;
use std::ptr::null_mut;

/// A huge page on x86-64, and on arm64 with pages of 4 KiB.
pub(super) const CHUNK_BYTES: usize = 2 << 20;
/// Blocks are whole slots of one chunk, whose slots are the bits of a `u32`.
pub(super) const SLOT_BYTES: usize = CHUNK_BYTES / u32::BITS as usize;

#[derive(Debug)]
struct Chunk {
    address: usize,
    used: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pool {
    chunks: Vec<Chunk>,
    /// No chunk before this one has a free slot.
    first_free: usize,
    empty: usize,
}

/// As many bits as `bytes` need slots.
fn mask(bytes: usize) -> u32 {
    u32::MAX >> (u32::BITS as usize - bytes.div_ceil(SLOT_BYTES))
}

/// The lowest of so many free slots in a row.
fn find(used: u32, slots: u32) -> Option<u32> {
    let mut begins = !used;
    // A bit is left where it and the ones above it are free; nothing is free above the highest.
    for _ in 1..slots {
        begins &= begins >> 1;
    }
    (begins != 0).then(|| begins.trailing_zeros())
}

impl Pool {
    pub(super) const fn new() -> Pool {
        Pool { chunks: Vec::new(), first_free: 0, empty: 0 }
    }

    /// A block of so many bytes, at least one and at most a chunk's; `None` when the system has no memory.
    pub(super) fn take(&mut self, bytes: usize) -> Option<*mut u8> {
        let wanted = mask(bytes);
        let slots = wanted.count_ones();
        while self.chunks.get(self.first_free).is_some_and(|chunk| chunk.used == u32::MAX) {
            self.first_free += 1;
        }
        let mut open = self.chunks[self.first_free..].iter_mut();
        let found = open.find_map(|chunk| Some((find(chunk.used, slots)?, chunk)));
        let Some((slot, chunk)) = found else {
            let address = map()? as usize;
            let at = self.chunks.partition_point(|chunk| chunk.address < address);
            self.chunks.insert(at, Chunk { address, used: wanted });
            self.first_free = self.first_free.min(at);
            return Some(address as *mut u8);
        };
        self.empty -= usize::from(chunk.used == 0);
        chunk.used |= wanted << slot;
        Some((chunk.address + slot as usize * SLOT_BYTES) as *mut u8)
    }

    /// Takes a block back; `false` when it is none of these.
    pub(super) fn give_back(&mut self, block: *mut u8, bytes: usize) -> bool {
        let address = block as usize;
        let after = self.chunks.partition_point(|chunk| chunk.address <= address);
        let Some(at) = after.checked_sub(1) else { return false };
        let chunk = &mut self.chunks[at];
        let offset = address - chunk.address;
        if offset >= CHUNK_BYTES {
            return false;
        }
        chunk.used &= !(mask(bytes) << (offset / SLOT_BYTES));
        self.first_free = self.first_free.min(at);
        if chunk.used == 0 {
            if self.empty < SPARE_CHUNKS_MAX {
                self.empty += 1;
            } else {
                unmap(self.chunks.remove(at).address, CHUNK_BYTES);
            }
        }
        true
    }
}

/// A chunk fresh from the system.
fn map() -> Option<*mut u8> {
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // Twice as much holds an aligned chunk wherever it lies; the rest goes back.
    // SAFETY: new memory wherever the kernel likes; nothing that is in use changes.
    let mapped = unsafe { libc::mmap(null_mut(), 2 * CHUNK_BYTES, access, kind, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return None;
    }
    let begin = mapped as usize;
    let chunk = begin.next_multiple_of(CHUNK_BYTES);
    let (before, after) = (chunk - begin, begin + CHUNK_BYTES - chunk);
    if before > 0 {
        unmap(begin, before);
    }
    if after > 0 {
        unmap(chunk + CHUNK_BYTES, after);
    }
    // Advice: where there are no huge pages these are ordinary ones.
    // SAFETY: the chunk was mapped above, and advice changes nothing that it holds.
    unsafe { libc::madvise(chunk as *mut libc::c_void, CHUNK_BYTES, libc::MADV_HUGEPAGE) };
    Some(chunk as *mut u8)
}

/// Gives memory of [`map`] back.
fn unmap(address: usize, bytes: usize) {
    // SAFETY: `map` mapped it, and no block lies in it.
    unsafe { libc::munmap(address as *mut libc::c_void, bytes) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_in_a_row_are_found_at_the_lowest_place() {
        assert_eq!(find(0, 32), Some(0));
        assert_eq!(find(1, 32), None);
        assert_eq!(find(0b1011, 1), Some(2));
        assert_eq!(find(0b1011, 2), Some(4));
        assert_eq!(find(0x0000_ffff, 16), Some(16));
        assert_eq!(find(0x0001_ffff, 16), None, "nothing lies behind the end");
        assert_eq!(mask(1), 1);
        assert_eq!((mask(SLOT_BYTES + 1), mask(CHUNK_BYTES)), (0b11, u32::MAX));
    }

    #[test]
    fn a_full_chunk_is_followed_by_another_and_few_empty_ones_stay() {
        let mut pool = Pool::new();
        let halves: Vec<_> = (0..40).map(|_| pool.take(CHUNK_BYTES / 2).unwrap()).collect();
        assert_eq!((pool.chunks.len(), pool.empty), (20, 0));
        assert!(pool.chunks.is_sorted_by_key(|chunk| chunk.address));
        let again = halves[7];
        assert!(pool.give_back(again, CHUNK_BYTES / 2));
        assert_eq!(pool.take(CHUNK_BYTES / 2).unwrap(), again);
        for block in halves {
            assert!(pool.give_back(block, CHUNK_BYTES / 2));
        }
        assert_eq!((pool.chunks.len(), pool.empty), (SPARE_CHUNKS_MAX, SPARE_CHUNKS_MAX));
        assert!(!pool.give_back(4096 as *mut u8, 4096), "not from here");
        let block = pool.take(SLOT_BYTES).unwrap();
        assert_eq!((pool.chunks.len(), pool.empty), (SPARE_CHUNKS_MAX, SPARE_CHUNKS_MAX - 1));
        pool.give_back(block, SLOT_BYTES);
        pool.chunks.drain(..).for_each(|chunk| unmap(chunk.address, CHUNK_BYTES));
    }
}
