//! Which of a queue's waiting records may be given out.
//!
//! A concurrent consumer gets them in the order of arrival. An orderly one gets one of each *lane* at a time: a lane
//! is a message group, or everything that has none.
//!
//! Invariants:
//! - a lane is in `busy` from when a record of it is given out until nothing of it waits behind that record;
//! - records of a lane are given out in the order of arrival, and one that comes again comes before them.

use super::held::Waiting;
use ringmq_schema::placement::fnv1a;
use ringmq_schema::record as wire;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

/// A hash of a message group: two groups that share one are one after the other, which breaks no order.
pub(super) type Lane = u64;

/// The lane of messages without a group.
const NO_GROUP: Lane = 0;

/// See the module.
pub(super) struct Lanes {
    orderly: bool,
    /// In the order of arrival.
    arrived: VecDeque<Waiting>,
    /// Whose lanes they have: they may be given out.
    ready: VecDeque<(Lane, Waiting)>,
    /// What waits behind a record that was given out.
    busy: HashMap<Lane, VecDeque<Waiting>>,
}

impl Lanes {
    pub(super) fn new(orderly: bool) -> Lanes {
        let (arrived, ready, busy) = (VecDeque::new(), VecDeque::new(), HashMap::new());
        Lanes { orderly, arrived, ready, busy }
    }

    pub(super) fn add(&mut self, waiting: Waiting) {
        self.arrived.push_back(waiting);
    }

    /// Whether there is something that was not found to wait behind another.
    pub(super) fn may_give(&self) -> bool {
        !self.ready.is_empty() || !self.arrived.is_empty()
    }

    /// The next one that may be given out.
    pub(super) fn take(&mut self) -> Option<(Lane, Waiting)> {
        if let Some(next) = self.ready.pop_front() {
            return Some(next);
        }
        while let Some(waiting) = self.arrived.pop_front() {
            if !self.orderly {
                return Some((NO_GROUP, waiting));
            }
            let lane = lane_of(&waiting);
            match self.busy.entry(lane) {
                Entry::Vacant(entry) => {
                    entry.insert(VecDeque::new());
                    return Some((lane, waiting));
                }
                Entry::Occupied(behind) => behind.into_mut().push_back(waiting),
            }
        }
        None
    }

    /// The record of a lane that was given out is done with: the next may follow.
    pub(super) fn end(&mut self, lane: Lane) {
        // Forgotten lanes have none.
        let Some(behind) = self.busy.get_mut(&lane) else { return };
        match behind.pop_front() {
            Some(next) => self.ready.push_back((lane, next)),
            None => drop(self.busy.remove(&lane)),
        }
    }

    /// A record that was given out is to be given out again, before everything that waits behind it.
    pub(super) fn again(&mut self, lane: Lane, waiting: Waiting) {
        self.ready.push_front((lane, waiting));
    }

    /// Forgets everything that waits.
    pub(super) fn clear(&mut self) {
        self.arrived.clear();
        self.ready.clear();
        self.busy.clear();
    }
}

fn lane_of(waiting: &Waiting) -> Lane {
    let of = |group: Option<&str>| group.map_or(NO_GROUP, |group| fnv1a(group.as_bytes()));
    match waiting {
        Waiting::Again(record) => of(record.group()),
        Waiting::Raw(raw) => {
            let found = wire::read_one(raw, 0).ok().and_then(|(_, found)| found);
            // What cannot be read has no group either.
            let message = found.and_then(|found| found.message().ok());
            of(message.and_then(|message| message.group()))
        }
    }
}
