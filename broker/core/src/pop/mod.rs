//! What the groups have popped from the queues of a shard: which messages are in whose hands, and until when.
//!
//! Plain data, changed by [`Op`]s alone: the shard applies them as it appends them to its log, and replay applies them
//! again. Each says what is, so that one applied twice changes nothing (see `crate::snapshot`).
//!
//! Invariants:
//! - an offset below `next` is in flight, or done for ever;
//! - of a lane (the message group of a FIFO topic) only the first that is in flight was handed out: the others wait;
//! - nonces grow: a receipt of an earlier hand-out never fits a later one;
//! - time only goes on, whatever the wall clock does, also from one start to the next: nothing comes back early because
//!   the clock was set, and nothing stays away.

mod ops;

pub(crate) use ops::{Op, OpWriter, read};

use crate::peer::QueueId;
use crate::seam::Now;
use std::collections::{BTreeMap, BTreeSet};

/// A message that is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flight {
    /// Nobody else gets it until then, by [`Pops::now_ms`].
    pub(crate) until_ms: i64,
    /// Of the last hand-out; 0: it was never handed out.
    pub(crate) nonce: u64,
    /// Its message group, hashed; 0: in no order.
    pub(crate) lane: u64,
    /// How often it was handed out.
    pub(crate) attempt: u16,
}

impl Flight {
    /// One of a FIFO topic that waits for another of its message group.
    pub(crate) fn held_back(lane: u64) -> Flight {
        Flight { until_ms: i64::MIN, nonce: 0, lane, attempt: 0 }
    }
}

/// What one group has popped from one queue.
#[derive(Debug, Default, Clone)]
pub(crate) struct Flights {
    next: u64,
    /// Where in the log the last new message lay that was handed out. Nothing depends on it but who is served first: the log
    /// does not tell it.
    reached: u64,
    flights: BTreeMap<u64, Flight>,
    /// Those that can be handed out, by the time from which on they may.
    due: BTreeSet<(i64, u64)>,
    lanes: BTreeMap<u64, BTreeSet<u64>>,
}

impl PartialEq for Flights {
    /// What is due and who waits for whom follow from what is in flight.
    fn eq(&self, other: &Flights) -> bool {
        self.next == other.next && self.flights == other.flights
    }
}

impl Eq for Flights {}

impl Flights {
    /// First offset that was never looked at.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Position in the log up to which new messages were handed out; 0 when nothing is known of that.
    pub(crate) fn reached(&self) -> u64 {
        self.reached
    }

    /// Everything below is done.
    pub(crate) fn done(&self) -> u64 {
        self.flights.first_key_value().map_or(self.next, |(offset, _)| *offset)
    }

    /// How many are not done.
    pub(crate) fn len(&self) -> usize {
        self.flights.len()
    }

    /// How many can be handed out again, or wait for another of their lane. Looks at each that can.
    pub(crate) fn back(&self, now_ms: i64) -> usize {
        let expired = self.due.range(..=(now_ms, u64::MAX)).count();
        expired + self.flights.len() - self.due.len()
    }

    /// When the next one comes back.
    pub(crate) fn earliest_ms(&self) -> Option<i64> {
        self.due.first().map(|(until_ms, _)| *until_ms)
    }

    /// Those whose time is over, in the order in which it ended.
    pub(crate) fn expired(&self, now_ms: i64) -> impl Iterator<Item = (u64, Flight)> + '_ {
        let expired = self.due.range(..=(now_ms, u64::MAX));
        expired.filter_map(|(_, offset)| Some((*offset, *self.flights.get(offset)?)))
    }

    /// Whether a message of this lane is not done.
    pub(crate) fn is_taken(&self, lane: u64) -> bool {
        lane != 0 && self.lanes.contains_key(&lane)
    }

    /// Whether somebody waits for a message to be done.
    pub(crate) fn holds_back(&self) -> bool {
        self.due.len() < self.flights.len()
    }

    /// What a receipt stands for, if it counts.
    pub(crate) fn of_receipt(&self, offset: u64, nonce: u64) -> Option<Flight> {
        self.flights.get(&offset).filter(|flight| nonce != 0 && flight.nonce == nonce).copied()
    }

    /// All behind an offset, in order.
    pub(crate) fn after(&self, last: Option<u64>) -> impl Iterator<Item = (u64, Flight)> + '_ {
        let from = last.map_or(0, |last| last.saturating_add(1));
        self.flights.range(from..).map(|(offset, flight)| (*offset, *flight))
    }

    /// Changes it; the log has or gets the same.
    pub(crate) fn apply(&mut self, op: Op) {
        match op {
            Op::Begin { next } => *self = Flights { next, ..Flights::default() },
            Op::Next { next } => self.next = self.next.max(next),
            Op::Out { offset, flight } => self.put(offset, flight),
            Op::Done { offset } => self.end(offset),
        }
    }

    fn put(&mut self, offset: u64, flight: Flight) {
        self.end(offset);
        self.next = self.next.max(offset + 1);
        self.flights.insert(offset, flight);
        if flight.lane != 0 {
            let lane = self.lanes.entry(flight.lane).or_default();
            let first = lane.first().copied();
            lane.insert(offset);
            match first.filter(|first| *first < offset) {
                Some(_) => return,
                None => first.map(|first| self.withdraw(first)),
            };
        }
        self.due.insert((flight.until_ms, offset));
    }

    fn end(&mut self, offset: u64) {
        let Some(flight) = self.flights.remove(&offset) else { return };
        self.due.remove(&(flight.until_ms, offset));
        let Some(lane) = self.lanes.get_mut(&flight.lane) else { return };
        lane.remove(&offset);
        let first = lane.first().copied();
        match first {
            None => _ = self.lanes.remove(&flight.lane),
            Some(first) => {
                if let Some(flight) = self.flights.get(&first) {
                    self.due.insert((flight.until_ms, first));
                }
            }
        }
    }

    fn withdraw(&mut self, offset: u64) {
        if let Some(flight) = self.flights.get(&offset) {
            self.due.remove(&(flight.until_ms, offset));
        }
    }
}

/// By group and queue.
#[derive(Debug, Default)]
pub(crate) struct Pops {
    queues: BTreeMap<(u32, QueueId), Flights>,
    /// Of the last hand-out.
    nonce: u64,
    in_flight: usize,
    /// The last time that the log knows.
    clock_ms: i64,
    /// When the shard was opened, and the time that it was then.
    opened_us: u64,
    opened_ms: i64,
}

/// Nonces of an epoch begin at its number times this: what a power loss takes back is never given again. 2^40 hand-outs
/// are some months at full speed, and 2^24 epochs more starts than there will be.
const NONCES_BITS: u32 = 40;

impl Pops {
    /// The shard serves in this epoch.
    pub(crate) fn open(&mut self, epoch: u32, now: Now) {
        self.nonce = u64::from(epoch) << NONCES_BITS;
        self.opened_us = now.mono_us;
        self.opened_ms = now.wall_ms.max(self.clock_ms);
    }

    /// The time, ms since epoch: that of the wall clock when the shard was opened, and going on from there.
    pub(crate) fn now_ms(&self, now: Now) -> i64 {
        self.opened_ms + ((now.mono_us - self.opened_us) / 1000) as i64
    }

    /// The log says that it was this late.
    pub(crate) fn was(&mut self, at_ms: i64) {
        self.clock_ms = self.clock_ms.max(at_ms);
    }

    /// For a hand-out.
    pub(crate) fn new_nonce(&mut self) -> u64 {
        self.nonce += 1;
        self.nonce
    }

    /// Messages in flight of all groups and queues.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(crate) fn get(&self, group: u32, queue: QueueId) -> Option<&Flights> {
        self.queues.get(&(group, queue))
    }

    /// Changes what a group has of a queue.
    pub(crate) fn apply(&mut self, group: u32, queue: QueueId, op: Op) {
        let flights = self.queues.entry((group, queue)).or_default();
        self.in_flight -= flights.len();
        flights.apply(op);
        self.in_flight += flights.len();
    }

    /// New messages of a queue were handed out up to this position in the log.
    pub(crate) fn has_reached(&mut self, group: u32, queue: QueueId, position: u64) {
        if let Some(flights) = self.queues.get_mut(&(group, queue)) {
            flights.reached = position;
        }
    }

    /// Everything from this group and queue on, in order.
    pub(crate) fn from(
        &self,
        first: (u32, QueueId),
    ) -> impl Iterator<Item = (u32, QueueId, &Flights)> {
        self.queues.range(first..).map(|((group, queue), flights)| (*group, *queue, flights))
    }

    pub(crate) fn forget_topic(&mut self, topic: u32) {
        self.forget(|_, queue| queue.topic == topic);
    }

    pub(crate) fn forget_group(&mut self, group: u32) {
        self.forget(|id, _| id == group);
    }

    fn forget(&mut self, is_gone: impl Fn(u32, QueueId) -> bool) {
        let in_flight = &mut self.in_flight;
        self.queues.retain(|(group, queue), flights| {
            let gone = is_gone(*group, *queue);
            *in_flight -= if gone { flights.len() } else { 0 };
            !gone
        });
    }
}

#[cfg(test)]
mod tests;
