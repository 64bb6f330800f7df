//! Messages that members sent back, and what they had not finished.
//!
//! What is judged:
//! - promise at-least-once: what was acknowledged as sent back is delivered from the retry topic, and a commit that
//!   counts never passes a message that its member has neither consumed nor sent back;
//! - promise never-early: it is not delivered before its time;
//! - promise ack-is-durable: whatever befalls the broker in between.

use crate::sim::disk::Disk;
use crate::sim::talk::{QueueKey, Received};
use crate::sim::{Verdict, violation};
use ringmq_schema::error::Status;
use std::collections::{BTreeMap, BTreeSet};

/// First half of the id of every message that is sent back.
const MARK: [u8; 8] = *b"returned";

/// Longest pause that members ask for, ms.
const DELAY_MS_MAX: i64 = 2_000;

/// A group's holding of a queue: group, queue, generation.
pub type Held = (u32, QueueKey, u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    /// To be delivered at that time, ms.
    Due(i64),
    Dead,
    Refused,
}

#[derive(Debug)]
struct Returned {
    shard: u16,
    attempts: u16,
    fate: Fate,
    delivered: Option<(QueueKey, u64)>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Retries {
    returned: Vec<Returned>,
    /// What a member got and did not consume.
    unfinished: BTreeMap<Held, BTreeSet<u64>>,
    /// Shards on which damage may have taken what waited.
    damaged: BTreeSet<u16>,
}

impl Retries {
    /// Notes a message about to be sent back; returns its id.
    pub fn send(&mut self, shard: u16, attempts: u16) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&MARK);
        id[8..].copy_from_slice(&(self.returned.len() as u64).to_le_bytes());
        self.returned.push(Returned { shard, attempts, fate: Fate::Open, delivered: None });
        id
    }

    fn of(&mut self, id: &[u8; 16]) -> Option<&mut Returned> {
        let number = u64::from_le_bytes(id[8..].try_into().ok()?);
        (id[..8] == MARK).then(|| self.returned.get_mut(number as usize)).flatten()
    }

    /// Whether a record is one that was sent back.
    pub fn is_one(&self, id: &[u8; 16]) -> bool {
        id[..8] == MARK
    }

    /// The broker says that it has it.
    pub fn acknowledged(&mut self, id: &[u8; 16], dead_lettered: bool, due_ms: i64) -> Verdict {
        let Some(returned) = self.of(id) else { return violation("nobody sent that back") };
        let fate = if dead_lettered { Fate::Dead } else { Fate::Due(due_ms) };
        if returned.fate != Fate::Open {
            return violation(format!("acknowledged as {fate:?}: {returned:?}"));
        }
        returned.fate = fate;
        Ok(())
    }

    /// The broker refused it.
    pub fn refused(&mut self, id: &[u8; 16], status: Status) -> Verdict {
        // After these it may be stored all the same.
        let unknown = matches!(status, Status::ShardFailed | Status::Internal);
        if let Some(returned) = self.of(id).filter(|_| !unknown) {
            if returned.delivered.is_some() {
                return violation(format!("refused with {status}, but stored: {returned:?}"));
            }
            returned.fate = Fate::Refused;
        }
        Ok(())
    }

    /// A consumer got one.
    pub fn delivered(&mut self, record: &Received, disk: &Disk) -> Verdict {
        let place = (record.queue, record.offset);
        let damaged = self.damaged.clone();
        let Some(returned) = self.of(&record.message_id) else {
            return violation(format!("a record that nobody sent back: {record:?}"));
        };
        let is_damaged = damaged.contains(&returned.shard);
        if record.is_broken {
            return match is_damaged {
                true => Ok(()),
                false => violation(format!("a consumer got a broken record: {record:?}")),
            };
        }
        if record.attempts != returned.attempts || returned.fate == Fate::Refused {
            return violation(format!("{returned:?} is delivered as {record:?}"));
        }
        // promise: never-early
        let due_ms = if let Fate::Due(due_ms) = returned.fate { due_ms } else { record.deliver_ms };
        if record.deliver_ms != due_ms || record.store_ms < due_ms {
            return violation(format!("{returned:?} is delivered early: {record:?}"));
        }
        if returned.delivered.is_some_and(|before| before != place) && !is_damaged {
            return violation(format!("{returned:?} is delivered again: {record:?}"));
        }
        returned.delivered = Some(place);
        if !disk.holds(record.position, &record.message_id, true) {
            return violation(format!("visible before it is durable: {record:?}"));
        }
        Ok(())
    }

    /// The last time at which one is due, ms, where the broker's wall clock never was beyond `wall_ms`.
    pub fn last_due_ms(&self, wall_ms: i64) -> i64 {
        let due = self.returned.iter().filter_map(|returned| match returned.fate {
            Fate::Due(due_ms) => Some(due_ms),
            // Perhaps it is stored, and its answer was lost.
            Fate::Open => Some(wall_ms + DELAY_MS_MAX),
            Fate::Dead | Fate::Refused => None,
        });
        due.max().unwrap_or(i64::MIN)
    }

    /// One that was acknowledged and nobody got yet.
    pub fn missing(&self) -> Option<String> {
        let missing = |returned: &&Returned| {
            matches!(returned.fate, Fate::Due(_))
                && returned.delivered.is_none()
                && !self.damaged.contains(&returned.shard)
        };
        self.returned.iter().find(missing).map(|returned| format!("sent back: {returned:?}"))
    }

    /// A shard's log is spoiled somewhere.
    pub fn rots(&mut self, shard: u16) {
        self.damaged.insert(shard);
    }

    /// Whether it is.
    pub fn is_damaged(&self, shard: u16) -> bool {
        self.damaged.contains(&shard)
    }

    /// A member got a message and could not process it.
    pub fn begins(&mut self, held: Held, offset: u64) {
        self.unfinished.entry(held).or_default().insert(offset);
    }

    /// A member consumed a message, or the broker has it back.
    pub fn ends(&mut self, held: Held, offset: u64) {
        if let Some(offsets) = self.unfinished.get_mut(&held) {
            offsets.remove(&offset);
        }
    }

    /// What was below cannot be read any more.
    pub fn passes(&mut self, held: Held, below: u64) {
        if let Some(offsets) = self.unfinished.get_mut(&held) {
            *offsets = offsets.split_off(&below);
        }
    }

    /// The group's offset of a queue is set: whoever owns it begins anew.
    pub fn resets(&mut self, group: u32, queue: QueueKey) {
        self.unfinished.retain(|(of, at, _), _| (*of, *at) != (group, queue));
    }

    /// A commit counts. promise: at-least-once
    pub fn committed(&self, held: Held, offset: u64) -> Verdict {
        let first = self.unfinished.get(&held).and_then(BTreeSet::first);
        match first.filter(|first| **first < offset) {
            Some(first) => violation(format!(
                "{held:?} (group, queue, generation) committed {offset}, and {first} is unfinished"
            )),
            None => Ok(()),
        }
    }
}
