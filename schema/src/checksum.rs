//! CRC-32, the checksum of everything that RingMQ sends and stores.

use crc32fast::Hasher;
use std::sync::OnceLock;

/// CRC-32 (IEEE 802.3) of `bytes`. For short inputs, of which there are several in each record, finding out what the CPU
/// can do costs as much as the sum itself: here that is done once.
#[inline]
pub fn crc32(bytes: &[u8]) -> u32 {
    static FRESH: OnceLock<Hasher> = OnceLock::new();
    let mut hasher = FRESH.get_or_init(Hasher::new).clone();
    hasher.update(bytes);
    hasher.finalize()
}

/// The same of a header but for the four bytes from 8 on, which hold its own checksum.
#[inline]
pub(crate) fn crc32_of_header<const BYTES: usize>(header: &[u8]) -> u32 {
    // In one piece: two cost more than the copy.
    let mut joined = [0; BYTES];
    joined[..8].copy_from_slice(&header[..8]);
    joined[8..BYTES - 4].copy_from_slice(&header[12..BYTES]);
    crc32(&joined[..BYTES - 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_checksum_that_the_crate_gives() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926, "the check value of CRC-32");
        let bytes: Vec<u8> = (0..4096u32).map(|at| (at * 31) as u8).collect();
        for length in (0..300).chain([1000, 4096]) {
            assert_eq!(crc32(&bytes[..length]), crc32fast::hash(&bytes[..length]), "{length}");
        }
        let mut hasher = Hasher::new();
        hasher.update(&bytes[..8]);
        hasher.update(&bytes[12..128]);
        assert_eq!(crc32_of_header::<128>(&bytes[..128]), hasher.finalize());
    }
}
