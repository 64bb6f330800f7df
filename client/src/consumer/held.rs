//! One queue that a consumer holds: what of it waits, and how far it is consumed.
//!
//! Invariants are those of `feed`, which has the lock.

use super::feed::{HeldId, Holding, Room};
use super::lanes::{Lane, Lanes};
use crate::filter::Filter;
use crate::record::Record;
use crate::route::Queue;
use bytes::Bytes;
use ringmq_schema::consume::FetchedQueue;
use ringmq_schema::error::Status;
use ringmq_schema::record as wire;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Pause before a queue is asked for again that a broker refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(500);

/// How far a queue is consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// Next offset to consume.
    pub(super) offset: u64,
    /// How often the message there failed in its place.
    pub(super) attempts: u16,
}

impl Position {
    /// Where nothing failed yet.
    pub(super) fn new(offset: u64) -> Position {
        Position { offset, attempts: 0 }
    }
}

/// See the module.
pub(super) struct Held {
    pub(super) holding: Holding,
    /// Where it was taken over.
    pub(super) resumed: Position,
    /// Messages that are to be tried again in their place, and how often they failed.
    pub(super) failed: BTreeMap<u64, u16>,
    pub(super) next_fetch: u64,
    pub(super) asked: Option<u64>,
    pub(super) waiting: Lanes,
    pub(super) unfinished: VecDeque<(u64, bool)>,
    /// Records not consumed, and their bytes.
    pub(super) records: usize,
    pub(super) bytes: usize,
    pub(super) in_process: usize,
    pub(super) committed: Option<Position>,
    /// In the list of queues with something to take.
    pub(super) listed: bool,
    pub(super) revoked: bool,
    pub(super) paused: bool,
    pub(super) blocked_until: Option<Instant>,
    /// The broker is to look at what it sends next: the last answer could not be read.
    pub(super) checked: bool,
    /// The broker could not read what it was asked for last.
    pub(super) is_unreadable: bool,
    /// Wakes the shard's fetch loop.
    pub(super) fetcher: Arc<Notify>,
}

/// A record that waits; verified when it is taken.
#[derive(Debug, Clone)]
pub(super) enum Waiting {
    Raw(Bytes),
    Again(Record),
}

/// What is to be handed back of a record that was taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    pub(super) id: HeldId,
    pub(super) offset: u64,
    /// Bytes in the queue's account.
    pub(super) bytes: usize,
    pub(super) lane: Lane,
}

/// A record on its way to the user.
pub(super) struct Taken {
    pub(super) ticket: Ticket,
    /// `Err`: it cannot be read.
    pub(super) record: Result<Record, Unreadable>,
    /// The tag is wanted.
    pub(super) wanted: bool,
}

impl Taken {
    /// A message that failed with who had the queue before counts on from there.
    pub(super) fn resume(&mut self, resumed: Position) {
        if self.ticket.offset != resumed.offset || resumed.attempts == 0 {
            return;
        }
        let attempt = u32::from(resumed.attempts) + 1;
        if let Ok(record) = &mut self.record
            && record.delivery_attempt() < attempt
        {
            *record = record.clone().on_attempt(attempt);
        }
    }
}

/// A record whose message does not verify. Its header does.
pub(super) struct Unreadable {
    pub(super) why: String,
    pub(super) raw: Bytes,
}

impl Held {
    pub(super) fn position(&self) -> Position {
        let offset = self.unfinished.front().map_or(self.next_fetch, |(offset, _)| *offset);
        let before = (offset == self.resumed.offset).then_some(self.resumed.attempts);
        let attempts = self.failed.get(&offset).copied().or(before).unwrap_or(0);
        Position { offset, attempts }
    }

    /// A message failed and is to be tried again in its place.
    pub(super) fn fail(&mut self, offset: u64, waiting: &Waiting) {
        if let Waiting::Again(record) = waiting
            && record.delivery_attempt() > 1
        {
            let failed = u16::try_from(record.delivery_attempt() - 1).unwrap_or(u16::MAX);
            self.failed.insert(offset, failed);
        }
    }

    /// Half of the room must be free: fetches are large or wait.
    pub(super) fn wants_more(&self, room: Room) -> bool {
        self.asked.is_none()
            && !self.revoked
            && !self.paused
            && self.records <= room.records / 2
            && self.bytes <= room.bytes / 2
    }

    pub(super) fn can_give(&self) -> bool {
        self.waiting.may_give() && !self.revoked && !self.paused
    }

    pub(super) fn add(&mut self, offset: u64, bytes: Bytes) {
        // Records before the offset asked for would be delivered twice.
        if offset < self.next_fetch {
            return;
        }
        self.next_fetch = offset + 1;
        self.records += 1;
        self.bytes += bytes.len();
        self.unfinished.push_back((offset, false));
        self.waiting.add(Waiting::Raw(bytes));
    }

    pub(super) fn finish(&mut self, offset: u64, bytes: usize) {
        let Ok(at) = self.unfinished.binary_search_by_key(&offset, |(offset, _)| *offset) else {
            // A seek forgot it.
            return;
        };
        self.unfinished[at].1 = true;
        self.failed.remove(&offset);
        self.records -= 1;
        self.bytes -= bytes;
        while self.unfinished.front().is_some_and(|(_, done)| *done) {
            self.unfinished.pop_front();
        }
    }

    /// An answer could not be read: the next is to be looked at by the broker. When that was so already, only
    /// later.
    pub(super) fn doubt(&mut self) {
        self.asked = None;
        if std::mem::replace(&mut self.checked, true) {
            self.blocked_until = Some(Instant::now() + REFUSED_PAUSE);
        }
    }

    /// Takes over where the broker says fetching goes on. Returns whether the queue is fenced.
    pub(super) fn go_on(&mut self, fetched: &FetchedQueue) -> bool {
        self.is_unreadable = false;
        match (fetched.status() != 0).then(|| Status::from_code(fetched.status())) {
            None => self.next_fetch = self.next_fetch.max(fetched.next_offset()),
            Some(Status::OffsetOutOfRange) => {
                let (min, max) = (fetched.min_offset(), fetched.high_watermark());
                let to = self.next_fetch.clamp(min, max.max(min));
                let queue = &self.holding.queue;
                tracing::warn!(%queue, from = self.next_fetch, to, "offset out of range");
                if to == self.next_fetch {
                    self.blocked_until = Some(Instant::now() + REFUSED_PAUSE);
                }
                self.next_fetch = to;
            }
            Some(Status::Corrupt) => {
                let (from, to) = (self.next_fetch, fetched.next_offset());
                let queue = &self.holding.queue;
                tracing::error!(
                    %queue, from, to,
                    "these messages are damaged on the broker's disk: they are left out"
                );
                if to <= from {
                    self.blocked_until = Some(Instant::now() + REFUSED_PAUSE);
                }
                self.next_fetch = from.max(to);
            }
            Some(Status::Fenced | Status::UnknownMember) => return true,
            Some(status) => {
                let queue = &self.holding.queue;
                tracing::warn!(%queue, %status, "the broker refuses to read a queue");
                self.is_unreadable = status == Status::ReadFailed;
                self.blocked_until = Some(Instant::now() + REFUSED_PAUSE);
            }
        }
        false
    }
}

/// Verifies a record that was taken.
pub(super) fn open(
    (id, lane): (HeldId, Lane),
    queue: &Arc<Queue>,
    shard: u16,
    filter: &Filter,
    waiting: Waiting,
) -> Taken {
    match waiting {
        Waiting::Again(record) => {
            let (offset, bytes) = (record.offset(), record.stored_bytes());
            let ticket = Ticket { id, offset, bytes, lane };
            Taken { ticket, record: Ok(record), wanted: true }
        }
        Waiting::Raw(raw) => {
            let bytes = raw.len();
            let header = wire::read_one(&raw, 0).ok().and_then(|(_, found)| found);
            let offset = header.expect("walked when it came").header.offset.get();
            let record = Record::verify(queue, shard, raw.clone());
            let wanted = record.as_ref().is_ok_and(|record| filter.matches(record.tag()));
            let ticket = Ticket { id, offset, bytes, lane };
            Taken { ticket, record: record.map_err(|why| Unreadable { why, raw }), wanted }
        }
    }
}
