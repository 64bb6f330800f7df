//! The pending timers of one sealed segment, read from its index in the order in which they are due.
//!
//! Invariants:
//! - at most two pages are in memory, one is being read;
//! - what is not known yet is not below `floor`: nobody overtakes a page that is still to come.

use super::Key;
use crate::index::{
    FoundTime, PLACE_BYTES, Pages, Section, TimerRow, TimerSearch, check_page, row,
};

/// So many rows before a page ends the next is asked for.
const AHEAD_ROWS: u32 = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Run {
    base: u64,
    pages: Pages,
    state: State,
    page: Option<Page>,
    ahead: Option<Page>,
    asked: Option<u32>,
    /// Everything that is left is behind this.
    floor: Key,
}

#[derive(Debug)]
enum State {
    /// The first that is left is being looked for.
    Seek(TimerSearch),
    /// It is this row.
    At(u32),
    /// The index is being made again.
    Lost,
}

#[derive(Debug)]
struct Page {
    number: u32,
    room: Box<[u8]>,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// This one, with the length of its record.
    Is(Key, u32),
    /// Not known yet, but behind this.
    Behind(Key),
    /// Nothing is left.
    End,
}

impl Run {
    /// What the index of a segment has behind a key.
    pub(super) fn new(base: u64, pages: Pages, after: Key) -> Run {
        let state = State::Seek(TimerSearch::new(base, &pages, (after.due_ms, after.position)));
        Run { base, pages, state, page: None, ahead: None, asked: None, floor: after }
    }

    /// Another reader of the same, from behind a key on.
    pub(super) fn view(&self, after: Key) -> Run {
        let mut view = Run::new(self.base, self.pages, after);
        if matches!(self.state, State::Lost) {
            view.state = State::Lost;
        }
        view
    }

    /// The index is not to be read any more.
    pub(super) fn lose(&mut self) {
        self.state = State::Lost;
        (self.page, self.ahead, self.asked) = (None, None, None);
    }

    pub(super) fn is_lost(&self) -> bool {
        matches!(self.state, State::Lost)
    }

    /// Rows that are left; all of them while that is not known.
    pub(super) fn left(&self) -> u32 {
        match self.state {
            State::At(row) => self.pages.timer_rows - row,
            State::Seek(_) | State::Lost => self.pages.timer_rows,
        }
    }

    pub(super) fn next(&self) -> Next {
        let State::At(number) = self.state else { return Next::Behind(self.floor) };
        if number >= self.pages.timer_rows {
            return Next::End;
        }
        let spot = self.pages.timer_row(number);
        let page = self.page.as_ref().filter(|page| page.number == spot.page);
        match page.and_then(|page| row::<TimerRow>(&page.room, spot.row)) {
            Some(row) => Next::Is(self.key(&row), row.bytes),
            None => Next::Behind(self.floor),
        }
    }

    fn key(&self, row: &TimerRow) -> Key {
        let position = self.base + u64::from(row.place) * PLACE_BYTES;
        Key { due_ms: row.due_ms, position }
    }

    /// Passes over what comes next, which is known.
    pub(super) fn pass(&mut self, key: Key) {
        let State::At(number) = &mut self.state else { return };
        *number += 1;
        self.floor = self.floor.max(key);
        let page = self.pages.timer_row(*number).page;
        if self.page.as_ref().is_some_and(|held| held.number != page) {
            self.page = self.ahead.take();
        }
    }

    /// The page that is to be read now. It is not named again until it has arrived.
    pub(super) fn ask(&mut self) -> Option<u32> {
        if self.asked.is_some() {
            return None;
        }
        self.asked = self.wanted();
        self.asked
    }

    fn wanted(&mut self) -> Option<u32> {
        if let State::Seek(search) = &mut self.state {
            let held = self.page.as_ref();
            let found = search.step(|number| {
                held.filter(|page| page.number == number).map(|page| &page.room[..])
            });
            match found {
                FoundTime::Need(page) | FoundTime::Damaged(page) => return Some(page),
                FoundTime::Done(row) => self.state = State::At(row),
            }
        }
        let State::At(number) = self.state else { return None };
        if number >= self.pages.timer_rows {
            self.page = None;
            return None;
        }
        let spot = self.pages.timer_row(number);
        if self.page.as_ref().is_none_or(|page| page.number != spot.page) {
            return Some(spot.page);
        }
        let per_page = Section::Timers.per_page();
        let is_near = spot.row as u32 + AHEAD_ROWS >= per_page;
        let next = spot.page + 1;
        let last = self.pages.timer_row(self.pages.timer_rows - 1).page;
        (is_near && next <= last && self.ahead.is_none()).then_some(next)
    }

    /// A page that was asked for is of no use.
    pub(super) fn take_old(&mut self, number: u32) {
        self.asked.take_if(|asked| *asked == number);
    }

    /// A page that was asked for is there. Returns whether it is what it should be.
    pub(super) fn take(&mut self, number: u32, bytes: Option<&[u8]>) -> bool {
        if self.asked != Some(number) {
            return true;
        }
        self.asked = None;
        let room = bytes.and_then(|bytes| check_page(self.base, number, bytes));
        let Some(room) = room else {
            self.lose();
            return false;
        };
        let page = Page { number, room: room.into() };
        match &self.page {
            Some(held) if held.number + 1 == number && matches!(self.state, State::At(_)) => {
                self.ahead = Some(page);
            }
            _ => self.page = Some(page),
        }
        true
    }
}
