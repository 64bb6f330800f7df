//! Pages of indexes in memory, bounded.
//!
//! Invariants:
//! - only pages that checked are held;
//! - never more than the limit, whatever is asked (promise: bounded); pages that somebody still reads count
//!   for the reader;
//! - which page goes depends on the calls alone: CLOCK, and a page read once goes before one read twice.

use super::page::check_page;
use super::{PAGE_BYTES, ROOM_BYTES};
use crate::table::Map;
use std::rc::Rc;

/// Pages of indexes, known by the base of their segment and their number.
#[derive(Debug)]
pub struct PageCache {
    most: usize,
    slots: Vec<Slot>,
    places: Map<(u64, u32), usize>,
    hand: usize,
    hits: u64,
    misses: u64,
}

#[derive(Debug)]
struct Slot {
    key: (u64, u32),
    room: Rc<[u8]>,
    /// Asked for since the hand came by.
    touched: bool,
}

impl PageCache {
    /// With room for as many whole pages as `bytes` holds; it may hold none.
    pub fn new(bytes: usize) -> PageCache {
        PageCache {
            most: bytes / PAGE_BYTES,
            slots: Vec::new(),
            places: Map::default(),
            hand: 0,
            hits: 0,
            misses: 0,
        }
    }

    /// The room of a page.
    pub fn get(&mut self, base: u64, page: u32) -> Option<Rc<[u8]>> {
        let Some(place) = self.places.get(&(base, page)) else {
            self.misses += 1;
            return None;
        };
        self.hits += 1;
        let slot = &mut self.slots[*place];
        slot.touched = true;
        Some(slot.room.clone())
    }

    /// Takes a page in, in place of one that was not asked for of late. `None`: it is not that page. What was
    /// held under its name stays then.
    pub fn insert(&mut self, base: u64, page: u32, bytes: &[u8]) -> Option<Rc<[u8]>> {
        let room = check_page(base, page, bytes)?;
        let key = (base, page);
        if let Some(place) = self.places.get(&key) {
            let slot = &mut self.slots[*place];
            // The active segment's index is written again, longer, when the segment is sealed.
            replace(&mut slot.room, room);
            return Some(slot.room.clone());
        }
        if self.slots.len() < self.most {
            let room: Rc<[u8]> = room.into();
            self.places.insert(key, self.slots.len());
            self.slots.push(Slot { key, room: room.clone(), touched: false });
            return Some(room);
        }
        if self.most == 0 {
            return Some(room.into());
        }
        let place = self.victim();
        let slot = &mut self.slots[place];
        self.places.remove(&slot.key);
        self.places.insert(key, place);
        slot.key = key;
        replace(&mut slot.room, room);
        Some(slot.room.clone())
    }

    /// Drops all pages of the index of a segment: it is gone, or was written again.
    pub fn forget(&mut self, base: u64) {
        self.slots.retain(|slot| slot.key.0 != base);
        self.places.clear();
        for (place, slot) in self.slots.iter().enumerate() {
            self.places.insert(slot.key, place);
        }
        self.hand = 0;
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.slots.len() * PAGE_BYTES
    }

    /// Pages that were asked for and there.
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// Pages that were asked for and not there.
    pub fn misses(&self) -> u64 {
        self.misses
    }

    /// The next slot that was not touched since the hand came by; at most two rounds.
    fn victim(&mut self) -> usize {
        loop {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            if !std::mem::take(&mut self.slots[place].touched) {
                return place;
            }
        }
    }
}

/// In the same memory when nobody reads it.
fn replace(held: &mut Rc<[u8]>, room: &[u8]) {
    debug_assert_eq!(room.len(), ROOM_BYTES);
    match Rc::get_mut(held) {
        Some(memory) if memory.len() == room.len() => memory.copy_from_slice(room),
        _ => *held = room.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::page::PageWriter;
    use super::*;

    fn page(base: u64, number: u32, byte: u8) -> Vec<u8> {
        let mut nowhere = |_, _: &[u8]| ();
        let mut writer = PageWriter::new(base, &mut nowhere);
        for _ in 0..=number {
            writer.bytes.push(byte);
            writer.close();
        }
        writer.bytes[number as usize * PAGE_BYTES..].to_vec()
    }

    #[test]
    fn it_never_holds_more_than_its_limit() {
        let mut cache = PageCache::new(3 * PAGE_BYTES + 100);
        for number in 0..20 {
            let room = cache.insert(8, number, &page(8, number, 1)).unwrap();
            assert_eq!(room.len(), ROOM_BYTES);
            assert!(cache.bytes() <= 3 * PAGE_BYTES);
            assert!(cache.get(8, number).is_some());
        }
        assert_eq!((0..20).filter(|n| cache.get(8, *n).is_some()).count(), 3);
        let mut none = PageCache::new(0);
        assert!(none.insert(8, 1, &page(8, 1, 1)).is_some());
        assert!(none.get(8, 1).is_none());
        assert_eq!((none.bytes(), none.hits(), none.misses()), (0, 0, 1));
    }

    #[test]
    fn what_is_asked_for_stays_and_what_is_read_once_goes() {
        let mut cache = PageCache::new(4 * PAGE_BYTES);
        for number in 0..40 {
            cache.insert(8, number, &page(8, number, 1)).unwrap();
            assert!(cache.get(8, 0).is_some(), "{number}");
        }
        assert_eq!((cache.hits(), cache.misses()), (40, 0));
    }

    #[test]
    fn only_pages_that_check_come_in() {
        let mut cache = PageCache::new(4 * PAGE_BYTES);
        assert!(cache.insert(8, 2, &page(8, 1, 1)).is_none());
        assert!(cache.insert(16, 1, &page(8, 1, 1)).is_none());
        assert!(cache.insert(8, 1, &page(8, 1, 1)[..100]).is_none());
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn a_reader_keeps_what_it_holds() {
        let mut cache = PageCache::new(PAGE_BYTES);
        let held = cache.insert(8, 0, &page(8, 0, 1)).unwrap();
        cache.insert(8, 0, &page(8, 0, 2)).unwrap();
        assert_eq!((held[0], cache.get(8, 0).unwrap()[0]), (1, 2));
        cache.insert(8, 1, &page(8, 1, 3)).unwrap();
        assert_eq!(held[0], 1);
        assert!(cache.get(8, 0).is_none());
    }

    #[test]
    fn a_forgotten_index_is_gone_and_the_others_stay() {
        let mut cache = PageCache::new(6 * PAGE_BYTES);
        for number in 0..3 {
            cache.insert(8, number, &page(8, number, 1)).unwrap();
            cache.insert(16, number, &page(16, number, 2)).unwrap();
        }
        cache.forget(8);
        assert_eq!(cache.bytes(), 3 * PAGE_BYTES);
        for number in 0..3 {
            assert!(cache.get(8, number).is_none());
            assert_eq!(cache.get(16, number).unwrap()[0], 2);
        }
        for number in 0..9 {
            cache.insert(24, number, &page(24, number, 3)).unwrap();
        }
        assert_eq!(cache.bytes(), 6 * PAGE_BYTES);
    }
}
