//! The filter in front of `ids` and `keys`: a Bloom filter in blocks of one page, so that a look-up of what
//! is not there reads one page.
//!
//! Invariant: it never denies a hash that went in.

use super::ROOM_BYTES;
use ringmq_schema::placement::mix;

/// Hashes for which a page is made: about ten bits for each, with which seven probes let some 0.9 % of
/// strange hashes through.
const HASHES_PER_PAGE: usize = 3_200;
/// Bits set for each hash.
const PROBES: u64 = 7;
const BITS: u64 = ROOM_BYTES as u64 * 8;

/// Pages of the filter over so many hashes.
pub(super) fn pages_for(hashes: usize) -> u32 {
    u32::try_from(hashes.div_ceil(HASHES_PER_PAGE)).expect("fewer pages than rows")
}

/// The page of a filter of so many pages that knows a hash.
pub(super) fn page_of(hash: u32, pages: u32) -> u32 {
    ((u64::from(pages) * (mix(u64::from(hash)) >> 32)) >> 32) as u32
}

/// The rooms of the filter over the hashes.
pub(super) fn build(hashes: impl ExactSizeIterator<Item = u32>) -> Vec<[u8; ROOM_BYTES]> {
    let pages = pages_for(hashes.len());
    let mut rooms = vec![[0; ROOM_BYTES]; pages as usize];
    let mut last = None;
    for hash in hashes {
        // Sorted as they come, equal ones follow each other.
        if last == Some(hash) {
            continue;
        }
        last = Some(hash);
        let room = &mut rooms[page_of(hash, pages) as usize];
        for bit in bits(hash) {
            room[bit / 8] |= 1 << (bit % 8);
        }
    }
    rooms
}

/// Whether the hash may be there; `None` when that is no room of a page.
pub(super) fn may_hold(room: &[u8], hash: u32) -> Option<bool> {
    for bit in bits(hash) {
        if room.get(bit / 8)? & (1 << (bit % 8)) == 0 {
            return Some(false);
        }
    }
    Some(true)
}

/// Double hashing from numbers that have nothing to do with the one that chose the page.
fn bits(hash: u32) -> impl Iterator<Item = usize> {
    let mixed = mix(u64::from(hash) | 1 << 32);
    let (first, step) = (mixed >> 32, (mixed & 0xffff_ffff) | 1);
    (0..PROBES).map(move |probe| ((first + probe * step) % BITS) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_and_few_others_are() {
        for count in [1_u64, 100, 3_200, 3_201, 200_000] {
            let hashes: Vec<u32> = (0..count).map(|n| mix(n) as u32).collect();
            let rooms = build(hashes.iter().copied());
            let ask = |hash: u32| {
                may_hold(&rooms[page_of(hash, rooms.len() as u32) as usize], hash).unwrap()
            };
            assert!(hashes.iter().all(|hash| ask(*hash)), "{count}");
            let strange = (0..100_000_u64).filter(|n| ask(mix(n + (1 << 40)) as u32)).count();
            assert!(strange < 2_000, "{strange} of 100000 with {count} hashes");
        }
    }

    #[test]
    fn no_hash_needs_no_filter() {
        assert!(build([].into_iter()).is_empty());
        assert_eq!(may_hold(&[], 7), None);
    }
}
