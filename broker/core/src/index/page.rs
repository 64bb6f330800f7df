//! A page: what it holds, and how it proves that it is the page that was asked for.
//!
//! Invariants:
//! - nothing of a page is looked at before its checksum was;
//! - the checksum covers base, number and room, in every version of the format.

use super::{PAGE_BYTES, ROOM_BYTES};

/// The rows' room of page `number` of the index of the segment at `base`; `None` when the page is not that
/// one, or not whole.
pub fn check_page(base: u64, number: u32, page: &[u8]) -> Option<&[u8]> {
    if page.len() != PAGE_BYTES {
        return None;
    }
    let (room, sum) = page.split_at_checked(ROOM_BYTES)?;
    (checksum(base, number, room).to_le_bytes() == sum).then_some(room)
}

/// What the last four bytes of a page say.
fn checksum(base: u64, number: u32, room: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&base.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(room);
    hasher.finalize()
}

/// Pages are handed on when so many have come together: an index can be larger than all that a shard keeps.
const PIECE_BYTES: usize = 1 << 20;

/// Takes a piece of a file and where it begins there.
pub(super) type Give<'a> = &'a mut dyn FnMut(u64, &[u8]);

/// Pages in the making, one after another.
pub(super) struct PageWriter<'a> {
    base: u64,
    give: Give<'a>,
    /// Pages that were handed on.
    given: u64,
    pub(super) bytes: Vec<u8>,
}

impl<'a> PageWriter<'a> {
    pub(super) fn new(base: u64, give: Give<'a>) -> PageWriter<'a> {
        PageWriter { base, give, given: 0, bytes: Vec::new() }
    }

    /// Number of the page that is written now.
    pub(super) fn number(&self) -> u32 {
        let number = self.given + (self.bytes.len() / PAGE_BYTES) as u64;
        u32::try_from(number).expect("an index has fewer than 2^32 pages")
    }

    /// Fills the room up, adds the checksum.
    pub(super) fn close(&mut self) {
        let number = self.number();
        let begin = self.bytes.len() / PAGE_BYTES * PAGE_BYTES;
        assert!(self.bytes.len() <= begin + ROOM_BYTES, "rows never span pages");
        self.bytes.resize(begin + ROOM_BYTES, 0);
        let sum = checksum(self.base, number, &self.bytes[begin..]);
        self.bytes.extend_from_slice(&sum.to_le_bytes());
        if self.bytes.len() >= PIECE_BYTES {
            self.hand_on();
        }
    }

    fn hand_on(&mut self) {
        (self.give)(self.given * PAGE_BYTES as u64, &self.bytes);
        self.given += (self.bytes.len() / PAGE_BYTES) as u64;
        self.bytes.clear();
    }

    /// Hands on what is left, and what was left out at the beginning: the header says where everything else came to lie.
    pub(super) fn end(mut self, first_room: &[u8]) {
        self.hand_on();
        self.given = 0;
        self.bytes.extend_from_slice(first_room);
        self.close();
        self.hand_on();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(base: u64, number: u32) -> Vec<u8> {
        let mut nowhere = |_, _: &[u8]| ();
        let mut writer = PageWriter::new(base, &mut nowhere);
        for _ in 0..=number {
            writer.bytes.extend_from_slice(b"rows of this page");
            writer.close();
        }
        writer.bytes[number as usize * PAGE_BYTES..].to_vec()
    }

    #[test]
    fn a_page_is_taken_only_for_what_it_is() {
        let page = page(4096, 2);
        assert_eq!(check_page(4096, 2, &page).unwrap().len(), ROOM_BYTES);
        assert_eq!(check_page(4096, 1, &page), None);
        assert_eq!(check_page(8192, 2, &page), None);
        assert_eq!(check_page(4096, 2, &page[..PAGE_BYTES - 1]), None);
        assert_eq!(check_page(4096, 2, &[]), None);
        assert_eq!(check_page(4096, 2, &[0; PAGE_BYTES]), None);
    }

    #[test]
    fn every_flipped_bit_of_a_page_is_noticed() {
        let mut page = page(1 << 40, 1);
        for bit in 0..PAGE_BYTES * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(check_page(1 << 40, 1, &page), None, "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(check_page(1 << 40, 1, &page).is_some());
    }
}
