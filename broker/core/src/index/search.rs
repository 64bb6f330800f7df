//! Look-ups in an index on disk as state machines: each step says which page it wants, or what it found.
//!
//! Pages are handed in as rooms that were checked (see [`super::PageCache`]). A page that was used once need
//! not be there again, so a look-up ends however small the cache is.
//!
//! Invariant: a look-up asks for pages of its own sections only, each at most once more than it was refused,
//! and so it ends on any bytes (promise: no-trust).

use super::filter;
use super::header::{Extent, Header};
use super::row::{HashRow, Row, Section, TimerRow, row};
use super::{Entry, OrderRow, PLACE_BYTES, Pages, ROOM_BYTES};

/// What is looked up by a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Message ids.
    Ids,
    /// Keys.
    Keys,
}

/// How a step of a look-up ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// It goes on when this page is there.
    Need(u32),
    /// Places of messages that have the hash, descending. What they really have is for the reader of the log.
    Done(Vec<u32>),
    /// This page is not a page.
    Damaged(u32),
}

/// How a step of a search by time ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundTime {
    /// It goes on when this page is there.
    Need(u32),
    /// Number in the stretch of the first entry that reaches the time; as many as it has entries: none does.
    Done(u32),
    /// This page is not a page.
    Damaged(u32),
}

enum Halt {
    Need(u32),
    Damaged(u32),
}

/// Looks a hash up: filter, fences, then the pages that may hold it, from the newest message down.
#[derive(Debug)]
pub struct Lookup {
    hash: u32,
    /// Only places below this one.
    below: u64,
    /// Most places in one answer.
    limit: usize,
    table: Extent,
    filter: Extent,
    fences: Bisect,
    state: State,
    places: Vec<u32>,
}

#[derive(Debug)]
enum State {
    Filter,
    /// For the first page whose fence is not below the hash.
    Low(Bisect),
    /// For the first page behind it whose fence is above the hash.
    High(u32, Bisect),
    /// For the end of the rows that are wanted.
    End(Bisect),
    /// Rows in front of this one are next.
    Rows(u32),
    Ended,
}

impl Lookup {
    /// Of a hash in the ids or keys of an index.
    pub fn new(header: &Header, table: Table, hash: u32) -> Lookup {
        let (table, fences, filter) = match table {
            Table::Ids => (Section::Ids, Section::IdFences, Section::IdFilter),
            Table::Keys => (Section::Keys, Section::KeyFences, Section::KeyFilter),
        };
        let fences = Bisect::new(header, fences, 0, header.extent(fences).rows);
        let (table, filter) = (header.extent(table), header.extent(filter));
        let state = if table.rows == 0 { State::Ended } else { State::Filter };
        let (below, limit) = (u64::MAX, usize::MAX);
        Lookup { hash, below, limit, table, filter, fences, state, places: Vec::new() }
    }

    /// Only of places below this one.
    pub fn below(mut self, place: u64) -> Lookup {
        self.below = place;
        self
    }

    /// With an answer of at most so many places (at least one); the next step then looks for more.
    pub fn at_most(mut self, places: usize) -> Lookup {
        self.limit = places.max(1);
        self
    }

    /// Whether there is nothing more to find.
    pub fn ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Goes on as far as the pages go that `pages` has.
    pub fn step<P: AsRef<[u8]>>(&mut self, mut pages: impl FnMut(u32) -> Option<P>) -> Found {
        let (hash, below) = (self.hash, self.below);
        loop {
            let step = match self.state {
                State::Filter => self.ask_filter(&mut pages),
                State::Low(ref mut fences) => {
                    fences.run(&mut pages, |fence: u32| fence < hash).map(|low| {
                        let fences = Bisect { low, ..self.fences };
                        self.state = State::High(low, fences);
                    })
                }
                State::High(low, ref mut fences) => {
                    fences.run(&mut pages, |fence: u32| fence <= hash).map(|high| {
                        // Equal hashes may begin at the end of the page before.
                        self.state = State::End(self.rows_of(low.saturating_sub(1), high));
                    })
                }
                State::End(ref mut rows) => {
                    let is_wanted = |row: HashRow| (row.hash, u64::from(row.place)) < (hash, below);
                    rows.run(&mut pages, is_wanted).map(|end| self.state = State::Rows(end))
                }
                State::Rows(end) if self.places.len() < self.limit => {
                    self.read_rows(end, &mut pages)
                }
                State::Rows(..) | State::Ended => {
                    return Found::Done(std::mem::take(&mut self.places));
                }
            };
            match step {
                Ok(()) => {}
                Err(Halt::Need(page)) => return Found::Need(page),
                Err(Halt::Damaged(page)) => return Found::Damaged(page),
            }
        }
    }

    fn ask_filter<P: AsRef<[u8]>>(
        &mut self,
        pages: &mut impl FnMut(u32) -> Option<P>,
    ) -> Result<(), Halt> {
        let page = self.filter.first_page + filter::page_of(self.hash, self.filter.rows);
        let room = fetch(page, pages)?;
        let may_hold = filter::may_hold(room.as_ref(), self.hash).ok_or(Halt::Damaged(page))?;
        self.state = if may_hold { State::Low(self.fences) } else { State::Ended };
        Ok(())
    }

    /// The rows of these pages of the table.
    fn rows_of(&self, from: u32, to: u32) -> Bisect {
        let per_page = Section::Ids.per_page();
        let row = |page: u32| page.saturating_mul(per_page).min(self.table.rows);
        let first_page = self.table.first_page;
        Bisect { first_page, per_page, low: row(from), high: row(to) }
    }

    /// Takes rows from a page, the last before `end` first.
    fn read_rows<P: AsRef<[u8]>>(
        &mut self,
        end: u32,
        pages: &mut impl FnMut(u32) -> Option<P>,
    ) -> Result<(), Halt> {
        let Some(last) = end.checked_sub(1) else {
            self.state = State::Ended;
            return Ok(());
        };
        let per_page = Section::Ids.per_page();
        let page = self.table.first_page + last / per_page;
        let room = fetch(page, pages)?;
        let begin = last / per_page * per_page;
        for number in (begin..end).rev() {
            let found: HashRow =
                row(room.as_ref(), (number - begin) as usize).ok_or(Halt::Damaged(page))?;
            if found.hash != self.hash {
                self.state = State::Ended;
                return Ok(());
            }
            if self.places.len() == self.limit {
                self.state = State::Rows(number + 1);
                return Ok(());
            }
            self.places.push(found.place);
        }
        self.state = State::Rows(begin);
        Ok(())
    }
}

/// Whether a record begins at a place.
#[derive(Debug)]
pub struct PlaceSearch {
    place: u32,
    order: Extent,
    bisect: Bisect,
}

impl PlaceSearch {
    /// Of a place in an index.
    pub fn new(header: &Header, place: u32) -> PlaceSearch {
        let bisect = Bisect::new(header, Section::Order, 0, header.records);
        PlaceSearch { place, order: header.extent(Section::Order), bisect }
    }

    /// Goes on as far as the pages go that `pages` has; answers the place, or none.
    pub fn step<P: AsRef<[u8]>>(&mut self, mut pages: impl FnMut(u32) -> Option<P>) -> Found {
        match self.find(&mut pages) {
            Ok(true) => Found::Done(vec![self.place]),
            Ok(false) => Found::Done(Vec::new()),
            Err(Halt::Need(page)) => Found::Need(page),
            Err(Halt::Damaged(page)) => Found::Damaged(page),
        }
    }

    fn find<P: AsRef<[u8]>>(
        &mut self,
        pages: &mut impl FnMut(u32) -> Option<P>,
    ) -> Result<bool, Halt> {
        let place = self.place;
        let number = self.bisect.run(pages, |row: OrderRow| row.place < place)?;
        if number >= self.order.rows {
            return Ok(false);
        }
        let per_page = Section::Order.per_page();
        let page = self.order.first_page + number / per_page;
        let room = fetch(page, pages)?;
        let found: OrderRow =
            row(room.as_ref(), (number % per_page) as usize).ok_or(Halt::Damaged(page))?;
        Ok(found.place == place)
    }
}

/// The first entry of a stretch whose time reaches a given one.
#[derive(Debug)]
pub struct TimeSearch {
    first_entry: u32,
    at_ms: i64,
    bisect: Bisect,
}

impl TimeSearch {
    /// In the stretch with `count` entries from `first_entry` on.
    pub fn new(header: &Header, first_entry: u32, count: u32, at_ms: i64) -> TimeSearch {
        let end = first_entry.saturating_add(count).min(header.messages);
        let first_entry = first_entry.min(end);
        let bisect = Bisect::new(header, Section::Entries, first_entry, end);
        TimeSearch { first_entry, at_ms, bisect }
    }

    /// Goes on as far as the pages go that `pages` has.
    pub fn step<P: AsRef<[u8]>>(&mut self, mut pages: impl FnMut(u32) -> Option<P>) -> FoundTime {
        let at_ms = self.at_ms;
        match self.bisect.run(&mut pages, |entry: Entry| entry.latest_ms < at_ms) {
            Ok(entry) => FoundTime::Done(entry - self.first_entry),
            Err(Halt::Need(page)) => FoundTime::Need(page),
            Err(Halt::Damaged(page)) => FoundTime::Damaged(page),
        }
    }
}

/// The first delayed message of an index behind a given one.
#[derive(Debug)]
pub struct TimerSearch {
    base: u64,
    after: (i64, u64),
    bisect: Bisect,
}

impl TimerSearch {
    /// Behind what is due at a time and lies at a position.
    pub fn new(base: u64, pages: &Pages, after: (i64, u64)) -> TimerSearch {
        let per_page = Section::Timers.per_page();
        let bisect = Bisect { first_page: pages.timers, per_page, low: 0, high: pages.timer_rows };
        TimerSearch { base, after, bisect }
    }

    /// Goes on as far as the pages go that `pages` has; answers a row number.
    pub fn step<P: AsRef<[u8]>>(&mut self, mut pages: impl FnMut(u32) -> Option<P>) -> FoundTime {
        let (base, after) = (self.base, self.after);
        let key = |row: TimerRow| (row.due_ms, base + u64::from(row.place) * PLACE_BYTES);
        match self.bisect.run(&mut pages, |row: TimerRow| key(row) <= after) {
            Ok(row) => FoundTime::Done(row),
            Err(Halt::Need(page)) => FoundTime::Need(page),
            Err(Halt::Damaged(page)) => FoundTime::Damaged(page),
        }
    }
}

/// Binary search over sorted rows that lie on pages: for the first in `low..high` that is not below.
#[derive(Debug, Clone, Copy)]
struct Bisect {
    first_page: u32,
    per_page: u32,
    low: u32,
    high: u32,
}

impl Bisect {
    fn new(header: &Header, section: Section, low: u32, high: u32) -> Bisect {
        let first_page = header.extent(section).first_page;
        Bisect { first_page, per_page: section.per_page(), low, high }
    }

    fn run<R: Row, P: AsRef<[u8]>>(
        &mut self,
        pages: &mut impl FnMut(u32) -> Option<P>,
        below: impl Fn(R) -> bool,
    ) -> Result<u32, Halt> {
        while self.low < self.high {
            let middle = self.low + (self.high - self.low) / 2;
            let begin = middle / self.per_page * self.per_page;
            let page = self.first_page + middle / self.per_page;
            let room = fetch(page, pages)?;
            // All that the page has of the range: one page is read once.
            let (from, to) =
                (self.low.max(begin), self.high.min(begin.saturating_add(self.per_page)));
            let (mut low, mut high) = (from, to);
            while low < high {
                let n = low + (high - low) / 2;
                let row = row(room.as_ref(), (n - begin) as usize).ok_or(Halt::Damaged(page))?;
                if below(row) { low = n + 1 } else { high = n }
            }
            if low == from {
                self.high = from;
            } else {
                self.low = low;
                if low < to {
                    self.high = low;
                }
            }
        }
        Ok(self.low)
    }
}

fn fetch<P: AsRef<[u8]>>(page: u32, pages: &mut impl FnMut(u32) -> Option<P>) -> Result<P, Halt> {
    let room = pages(page).ok_or(Halt::Need(page))?;
    if room.as_ref().len() == ROOM_BYTES { Ok(room) } else { Err(Halt::Damaged(page)) }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{BASE, Shape, segment};
    use super::super::{PAGE_BYTES, PageCache, SegmentRows, read_rows};
    use super::*;
    use ringmq_schema::placement::mix;

    /// Runs a look-up with a cache of so many pages; answers places and pages read.
    fn find(lookup: &mut Lookup, file: &[u8], cache: &mut PageCache) -> (Vec<u32>, Vec<u32>) {
        let mut asked = Vec::new();
        loop {
            match lookup.step(|page| cache.get(BASE, page)) {
                Found::Done(places) => return (places, asked),
                Found::Damaged(page) => panic!("page {page}"),
                Found::Need(page) => {
                    asked.push(page);
                    let begin = page as usize * PAGE_BYTES;
                    cache.insert(BASE, page, &file[begin..begin + PAGE_BYTES]).unwrap();
                }
            }
        }
    }

    fn model(pairs: &[(u32, u32)], hash: u32) -> Vec<u32> {
        let mut places: Vec<u32> = pairs.iter().filter(|p| p.0 == hash).map(|p| p.1).collect();
        places.sort_unstable();
        places.reverse();
        places
    }

    fn check(rows: &SegmentRows, hashes: impl Iterator<Item = (Table, u32)>) {
        let file = rows.encode();
        let header = Header::of_file(&file).unwrap();
        for (table, hash) in hashes {
            let pairs = if table == Table::Ids { &rows.ids } else { &rows.keys };
            let expected = model(pairs, hash);
            // A cache of one page is enough.
            let mut cache = PageCache::new(PAGE_BYTES);
            let mut lookup = Lookup::new(&header, table, hash);
            let (places, asked) = find(&mut lookup, &file, &mut cache);
            assert_eq!(places, expected, "{table:?} {hash}");
            assert!(lookup.ended());
            let mut once = asked.clone();
            once.dedup();
            assert_eq!(once, asked, "no page is read twice");
            // A bisection over the pages that begin with the hash.
            let pages = places.len() / 511;
            let most = 6 + pages + (pages as u32 + 1).ilog2() as usize;
            assert!(asked.len() <= most, "{asked:?} for {}", places.len());
            // In portions.
            let mut lookup = Lookup::new(&header, table, hash).at_most(100);
            let mut cache = PageCache::new(1 << 20);
            let mut portions = Vec::new();
            while !lookup.ended() {
                let (places, _) = find(&mut lookup, &file, &mut cache);
                assert!(places.len() <= 100);
                portions.extend(places);
            }
            assert_eq!(portions, expected);
            // From the middle down.
            if let Some(middle) = expected.get(expected.len() / 2) {
                let mut lookup = Lookup::new(&header, table, hash).below(u64::from(*middle));
                let (places, _) = find(&mut lookup, &file, &mut cache);
                let below = expected.iter().position(|place| place < middle);
                assert_eq!(places, expected[below.unwrap_or(expected.len())..]);
            }
        }
    }

    #[test]
    fn a_lookup_finds_what_a_scan_finds() {
        let mut rows = segment(11, Shape { records: 40_000, queues: 5, gap_after: 0, keys: 900 });
        // Equal ids over several pages, at both ends, and a run that begins where a page does.
        for n in 0..1_600 {
            let place = rows.ids[n * 3].1;
            rows.ids.push((0, place));
            rows.ids.push((u32::MAX, place));
            rows.ids.push((0x8000_0000, place));
        }
        let some = (0..40).map(|n| (Table::Ids, rows.ids[n * 700].0));
        let keys = (0..60).map(|n| (Table::Keys, mix(n * 16) as u32));
        let ends = [0, 1, u32::MAX, u32::MAX - 1, 0x8000_0000].map(|hash| (Table::Ids, hash));
        let strange = (0..60).map(|n| (Table::Ids, mix(n + (9 << 40)) as u32));
        let all: Vec<_> = some.chain(keys).chain(ends).chain(strange).collect();
        check(&rows, all.into_iter());
    }

    #[test]
    fn runs_of_equal_hashes_are_found_wherever_pages_end() {
        let rows = segment(12, Shape { records: 4_000, queues: 2, gap_after: 0, keys: 0 });
        for run in [1_usize, 2, 510, 511, 512, 1_022, 1_023] {
            let mut rows = rows.clone();
            let hashes = (0..rows.ids.len()).map(|n| (n / run) as u32 * 2).collect::<Vec<_>>();
            for (pair, hash) in rows.ids.iter_mut().zip(hashes) {
                pair.0 = hash;
            }
            let last = rows.ids.len() / run * 2 + 2;
            let step = (last / 40).max(1);
            check(&rows, (0..last).step_by(step).map(|hash| (Table::Ids, hash as u32)));
        }
    }

    #[test]
    fn several_pages_of_fences_are_searched() {
        let mut rows = segment(13, Shape { records: 200, queues: 2, gap_after: 0, keys: 0 });
        let place = rows.ids[0].1;
        rows.ids = (0..1_100_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) | 1, place)).collect();
        let header = Header::of_file(&rows.encode()).unwrap();
        assert_eq!(header.pages_of(Section::IdFences).len(), 3);
        let hashes: Vec<u32> = (0..1_100_000).step_by(91_003).map(|n| rows.ids[n].0).collect();
        check(&rows, hashes.into_iter().flat_map(|h| [(Table::Ids, h), (Table::Ids, h ^ 1)]));
    }

    #[test]
    fn what_is_not_there_costs_one_page() {
        let rows = segment(14, Shape { records: 60_000, queues: 3, gap_after: 0, keys: 0 });
        let file = rows.encode();
        let header = Header::of_file(&file).unwrap();
        let mut further = 0;
        for n in 0..4_000 {
            let mut lookup = Lookup::new(&header, Table::Ids, mix(n + (5 << 40)) as u32);
            let (_, asked) = find(&mut lookup, &file, &mut PageCache::new(PAGE_BYTES));
            further += usize::from(asked.len() > 1);
        }
        assert!(further < 120, "{further} of 4000 passed the filter");
        let mut lookup = Lookup::new(&header, Table::Keys, 7);
        assert!(lookup.ended());
        assert_eq!(lookup.step(|_| None::<Vec<u8>>), Found::Done(Vec::new()));
    }

    #[test]
    fn a_time_leads_to_the_first_entry_that_reaches_it() {
        let rows = segment(15, Shape { records: 30_000, queues: 6, gap_after: 2_000, keys: 0 });
        let file = rows.encode();
        let header = Header::of_file(&file).unwrap();
        let mut first_entry = 0;
        for queue in &read_rows(&file).unwrap().queues {
            let entries = &queue.entries[0];
            let (first, last) = (entries[0].latest_ms, entries[entries.len() - 1].latest_ms);
            for at_ms in (first - 2..last + 3).step_by(97).chain([i64::MIN, last, last + 1]) {
                let count = entries.len() as u32;
                let mut search = TimeSearch::new(&header, first_entry, count, at_ms);
                let mut asked = 0;
                let mut held = None;
                let found = loop {
                    let answer = search.step(|page| {
                        held.and_then(|(number, room)| (number == page).then_some::<&[u8]>(room))
                    });
                    match answer {
                        FoundTime::Done(n) => break n,
                        FoundTime::Damaged(page) => panic!("page {page}"),
                        FoundTime::Need(page) => {
                            asked += 1;
                            let begin = page as usize * PAGE_BYTES;
                            held = Some((page, &file[begin..begin + ROOM_BYTES]));
                        }
                    }
                };
                assert_eq!(found as usize, entries.partition_point(|e| e.latest_ms < at_ms));
                assert!(asked <= 6, "{asked}");
            }
            first_entry += entries.len() as u32;
        }
    }

    #[test]
    fn a_place_is_where_a_record_begins() {
        for records in [0, 1, 340, 341, 342, 9_000] {
            let rows = segment(17, Shape { records, queues: 2, gap_after: 0, keys: 0 });
            let file = rows.encode();
            let header = Header::of_file(&file).unwrap();
            let places: Vec<u32> = rows.order.iter().map(|row| row.place).collect();
            let some = places.iter().step_by(89).flat_map(|place| [*place, place ^ 1, place + 1]);
            for place in some.chain([0, u32::MAX]).chain(places.last().copied()) {
                let mut search = PlaceSearch::new(&header, place);
                let mut held = None;
                let mut asked = 0;
                let found = loop {
                    match search.step(|page| {
                        held.and_then(|(number, room)| (number == page).then_some::<&[u8]>(room))
                    }) {
                        Found::Done(found) => break found,
                        Found::Damaged(page) => panic!("page {page}"),
                        Found::Need(page) => {
                            asked += 1;
                            let begin = page as usize * PAGE_BYTES;
                            held = Some((page, &file[begin..begin + ROOM_BYTES]));
                        }
                    }
                };
                let is_there = places.binary_search(&place).is_ok();
                assert_eq!(found, if is_there { vec![place] } else { Vec::new() });
                assert!(asked <= 7, "{asked}");
            }
        }
    }

    #[test]
    fn a_page_of_rubbish_ends_a_lookup() {
        let rows = segment(16, Shape { records: 20_000, queues: 1, gap_after: 0, keys: 10 });
        let header = Header::of_file(&rows.encode()).unwrap();
        for byte in [0, 1, 0x7f, 0xff] {
            for bytes in [0, 7, ROOM_BYTES - 1, ROOM_BYTES, PAGE_BYTES] {
                let page = vec![byte; bytes];
                let found = Lookup::new(&header, Table::Keys, 5).step(|_| Some(&page));
                assert!(bytes == ROOM_BYTES || matches!(found, Found::Damaged(_)));
                for (first, count) in [(0, 9_000), (u32::MAX, 9), (5, u32::MAX)] {
                    TimeSearch::new(&header, first, count, 5).step(|_| Some(&page));
                }
            }
        }
    }
}
