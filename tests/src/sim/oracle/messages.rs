//! Every message ever sent, and where it was acknowledged or seen.
//!
//! What is judged:
//! - promise ack-is-durable: an acknowledged message is there after a crash, as its flush mode says;
//! - promise prefix: what is lost with the power lies behind all that is left, nothing lost comes back, and no
//!   byte is foreign;
//! - promise fifo: an offset has one message and a message one offset, for as long as anybody may rely on it;
//!   messages of one connection lie in the order in which they were sent;
//! - what a consumer saw lies on the medium, and stays.

use crate::sim::disk::{CrashKind, Disk};
use crate::sim::talk::{QueueKey, Received, Traits};
use crate::sim::{Summary, Verdict, violation};
use ringmq_schema::error::Status;
use ringmq_schema::record::NO_OFFSET;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What is known of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Sent; may or may not be stored.
    Open,
    /// Stored, as its receipt says.
    Acknowledged,
    /// Refused for good: must not be seen.
    Refused,
    /// Not there after a restart: must not come back.
    Gone,
}

/// A message as it was sent.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Sent {
    pub queue: QueueKey,
    pub shard: u16,
    pub connection: u64,
    pub payload_checksum: u32,
    pub payload_bytes: u32,
    pub tag_hash: u32,
    pub traits: Traits,
    pub born_ms: i64,
    /// Not to be delivered before; 0: at once.
    pub deliver_ms: i64,
    /// Its acknowledgement promises that it survives power loss.
    pub sync: bool,
}

#[derive(Debug)]
pub(super) struct Message {
    pub(super) sent: Sent,
    pub(super) fate: Fate,
    pub(super) offset: Option<u64>,
    pub(super) position: Option<u64>,
    /// When it was acknowledged in this life.
    acknowledged_us: Option<u64>,
    /// A consumer saw it, or it was acknowledged longer ago than the flush interval: it stays, whatever comes.
    pub(super) sure: bool,
    /// Its offset is below the end of its queue, which damage may have moved: it may be gone with the power.
    pub(super) doubtful: bool,
    /// Where a delayed message waits, as it was acknowledged.
    pub(super) timer: Option<u64>,
    /// It was asked to be taken back, and that was said to be done.
    pub(super) recalling: bool,
    /// See `recalling`.
    pub(super) recalled: bool,
}

impl Message {
    pub(super) fn must_survive(&self, kind: CrashKind) -> bool {
        self.sure || self.fate == Fate::Acknowledged && (self.sent.sync || kind == CrashKind::Kill)
    }

    /// The power failed since it was acknowledged, and nobody has asked yet what was left.
    pub(super) fn may_have_gone(&self) -> bool {
        !self.sure && !self.sent.sync && self.acknowledged_us.is_none()
    }
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) slots: Vec<Option<u32>>,
    high_watermark: u64,
    /// Offsets that were told to be damaged: nothing else ever gets them.
    pub(super) lost: BTreeSet<u64>,
    /// First offset that is still there, as told.
    pub(super) min: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Messages {
    /// Marks this run's message ids.
    mark: u64,
    pub(super) messages: Vec<Message>,
    pub(super) queues: BTreeMap<QueueKey, Queue>,
    /// By shard: what was retired or punched, and what was spoiled on the medium.
    retired: BTreeMap<u16, Vec<Range<u64>>>,
    pub(super) rotten: BTreeMap<u16, Vec<Range<u64>>>,
    /// The highest that the broker's wall clock ever was.
    pub(super) wall_ms: i64,
}

impl Messages {
    /// An empty journal; `mark` is in every message id.
    pub fn new(mark: u64) -> Messages {
        Messages {
            mark,
            messages: Vec::new(),
            queues: BTreeMap::new(),
            retired: BTreeMap::new(),
            rotten: BTreeMap::new(),
            wall_ms: 0,
        }
    }

    /// How many were sent.
    pub fn count(&self) -> u32 {
        self.messages.len() as u32
    }

    /// The id of message `index`.
    pub fn id(&self, index: u32) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.mark.to_le_bytes());
        id[8..].copy_from_slice(&u64::from(index).to_le_bytes());
        id
    }

    fn index(&self, id: &[u8; 16]) -> Option<u32> {
        let mut parts = [[0; 8]; 2];
        parts[0].copy_from_slice(&id[..8]);
        parts[1].copy_from_slice(&id[8..]);
        let index = u64::from_le_bytes(parts[1]);
        let known = u64::from_le_bytes(parts[0]) == self.mark && index < self.messages.len() as u64;
        known.then_some(index as u32)
    }

    /// Notes what is about to be sent; its number is [`Messages::count`] before.
    pub fn send(&mut self, sent: Sent) {
        self.messages.push(Message {
            sent,
            fate: Fate::Open,
            offset: None,
            position: None,
            acknowledged_us: None,
            sure: false,
            doubtful: false,
            timer: None,
            recalling: false,
            recalled: false,
        });
    }

    /// First offset of a queue that nobody is known to have seen or got acknowledged.
    pub fn end(&self, queue: QueueKey) -> u64 {
        self.queues.get(&queue).map_or(0, |q| q.slots.len() as u64)
    }

    /// `count` messages from `first` on were acknowledged.
    #[allow(clippy::too_many_arguments)]
    pub fn acknowledged(
        &mut self,
        (first, count): (u32, u32),
        (base, records): (u64, u32),
        position: u64,
        now_us: u64,
        disk: &Disk,
        summary: &mut Summary,
    ) -> Verdict {
        if records != count {
            return violation(format!("{count} messages sent, {records} acknowledged"));
        }
        let mut durable = false;
        for step in 0..count {
            let index = first + step;
            let message = &mut self.messages[index as usize];
            if message.fate != Fate::Open {
                return violation(format!("message {index} acknowledged: {message:?}"));
            }
            message.fate = Fate::Acknowledged;
            message.acknowledged_us = Some(now_us);
            durable |= message.sent.sync;
            if base == NO_OFFSET {
                if message.sent.deliver_ms == 0 {
                    return violation(format!("message {index} got no offset: {message:?}"));
                }
                message.timer = (step == 0).then_some(position);
                continue;
            }
            if step == 0 {
                message.position = message.position.or(Some(position));
                if message.position != Some(position) {
                    return violation(format!("message {index} is not at {position}: {message:?}"));
                }
            }
            self.bind(index, base + u64::from(step))?;
        }
        summary.acknowledged += u64::from(count);
        // promise: ack-is-durable
        if !disk.holds(position, &self.id(first), durable) {
            let how = if durable { "SYNC, is not on the medium" } else { "ASYNC, is not written" };
            return violation(format!("message {first} at {position}, acknowledged {how}"));
        }
        Ok(())
    }

    /// `count` messages from `first` on were refused.
    pub fn refused(&mut self, (first, count): (u32, u32), status: Status) -> Verdict {
        // After these the messages may be stored all the same.
        let unknown = matches!(
            status,
            Status::ShardFailed
                | Status::Internal
                | Status::FlushDiskTimeout
                | Status::FlushSlaveTimeout
                | Status::SlaveNotAvailable
        );
        for message in &mut self.messages[first as usize..(first + count) as usize] {
            if message.offset.is_some() {
                return if unknown {
                    Ok(())
                } else {
                    violation(format!("refused with {status}, but stored: {message:?}"))
                };
            }
            if !unknown {
                message.fate = Fate::Refused;
            }
        }
        Ok(())
    }

    /// A consumer or auditor got a record.
    pub fn saw(&mut self, record: &Received, disk: &Disk) -> Verdict {
        let Some(index) = self.index(&record.message_id) else {
            return violation(format!("a record that nobody sent: {record:?}"));
        };
        // Its checksum says so: a consumer does not take it for what was sent.
        if record.is_broken {
            let is_rotten =
                self.is_rotten(self.messages[index as usize].sent.shard, record.position);
            if !is_rotten {
                return violation(format!("a consumer got a broken record: {record:?}"));
            }
            self.bind(index, record.offset)?;
            self.queues.entry(record.queue).or_default().lost.insert(record.offset);
            return Ok(());
        }
        self.check_time(index, record)?;
        let message = &mut self.messages[index as usize];
        let sent = &message.sent;
        let same = sent.queue == record.queue
            && sent.payload_checksum == record.payload_checksum
            && sent.payload_bytes == record.payload_bytes
            && sent.tag_hash == record.tag_hash
            && sent.traits.lane == record.lane
            && sent.born_ms == record.born_ms;
        if !same {
            return violation(format!("message {index} came back changed: {record:?}, {sent:?}"));
        }
        if matches!(message.fate, Fate::Refused | Fate::Gone) {
            return violation(format!("message {index} is visible: {message:?}"));
        }
        let may_repeat = message.sent.deliver_ms != 0 && message.doubtful;
        if !may_repeat && message.position.is_some_and(|position| position != record.position) {
            return violation(format!("message {index} moved: {message:?}, {record:?}"));
        }
        message.position = Some(record.position);
        message.sure = true;
        self.bind(index, record.offset)?;
        // promise: prefix (visible-is-durable)
        if !disk.holds(record.position, &record.message_id, true) {
            return violation(format!(
                "message {index} is visible before it is durable: {record:?}"
            ));
        }
        Ok(())
    }

    fn bind(&mut self, index: u32, offset: u64) -> Verdict {
        let message = &mut self.messages[index as usize];
        // Damage that took the record of a delivery may have it happen again.
        let may_repeat = message.sent.deliver_ms != 0 && message.doubtful;
        if !may_repeat && message.offset.is_some_and(|other| other != offset) {
            return violation(format!("message {index} is at {offset} as well: {message:?}"));
        }
        message.offset = Some(offset);
        let queue = self.queues.entry(message.sent.queue).or_default();
        // promise: fifo
        if queue.lost.contains(&offset) && queue.slots.get(offset as usize) != Some(&Some(index)) {
            let message = &self.messages[index as usize];
            return violation(format!(
                "message {index} has {offset}, which was told to be lost: {message:?}"
            ));
        }
        let slots = &mut queue.slots;
        let at = offset as usize;
        if offset > 1 << 20 {
            return violation(format!("message {index} at the absurd offset {offset}"));
        }
        if slots.len() <= at {
            slots.resize(at + 1, None);
        }
        let is_delayed = message.sent.deliver_ms != 0;
        match slots[at] {
            // It went with the power, and this one was delivered before anybody asked what was left.
            Some(other)
                if is_delayed
                    && other != index
                    && self.messages[other as usize].may_have_gone() =>
            {
                slots[at] = Some(index);
                let other = &mut self.messages[other as usize];
                (other.fate, other.offset) = (Fate::Gone, None);
                Ok(())
            }
            // promise: fifo
            Some(other) if other != index => violation(format!(
                "offset {offset} is message {other}'s and message {index}'s: {:?}, {:?}",
                self.messages[other as usize], self.messages[index as usize]
            )),
            _ => {
                slots[at] = Some(index);
                Ok(())
            }
        }
    }

    /// The high watermark of a queue was told.
    pub fn high_watermark(&mut self, queue: QueueKey, told: u64) -> Verdict {
        self.high_watermark_since(queue, told, None)
    }

    /// It was told in an answer that began when `since` was known.
    pub fn high_watermark_since(
        &mut self,
        queue: QueueKey,
        told: u64,
        since: Option<u64>,
    ) -> Verdict {
        let known = &mut self.queues.entry(queue).or_default().high_watermark;
        if told < since.unwrap_or(*known) {
            return violation(format!("high watermark of {queue:?} fell from {known} to {told}"));
        }
        *known = told.max(*known);
        Ok(())
    }

    /// The last that was told.
    pub fn told_watermark(&self, queue: QueueKey) -> u64 {
        self.queues.get(&queue).map_or(0, |queue| queue.high_watermark)
    }

    /// A range of a shard's log was retired or punched, as the shard asked.
    pub fn retired(&mut self, shard: u16, range: Range<u64>) {
        self.retired.entry(shard).or_default().push(range);
    }

    /// A write unit of a shard's log is spoiled on the medium.
    pub fn rots(&mut self, shard: u16, unit: Range<u64>) {
        self.rotten.entry(shard).or_default().push(unit);
        self.doubt_delayed(shard);
    }

    /// Whether a position is in a spoiled unit.
    pub fn is_rotten(&self, shard: u16, position: u64) -> bool {
        self.rotten.get(&shard).is_some_and(|units| units.iter().any(|u| u.contains(&position)))
    }

    /// Whether anything of a shard's log is spoiled.
    pub(super) fn has_rot(&self, shard: u16) -> bool {
        self.rotten.contains_key(&shard)
    }

    /// What is known of an offset, for a report.
    pub fn describe(&self, key: QueueKey, offset: u64) -> String {
        let slot = self.queues.get(&key).and_then(|q| q.slots.get(offset as usize)).copied();
        format!("{:?}", slot.flatten().map(|index| &self.messages[index as usize]))
    }

    /// An offset was told to be damaged; false: it cannot be.
    pub fn lose(&mut self, key: QueueKey, shard: u16, offset: u64) -> bool {
        let may_be = self.may_be_lost(key, shard, offset);
        if may_be {
            let queue = self.queues.entry(key).or_default();
            queue.lost.insert(offset);
            let message = queue.slots.get(offset as usize).copied().flatten();
            let message = message.map(|index| &mut self.messages[index as usize]);
            if let Some(message) = message.filter(|message| message.doubtful && !message.sure) {
                message.fate = Fate::Gone;
            }
        }
        may_be
    }

    /// Whether an offset may be damaged.
    pub fn may_be_lost(&self, key: QueueKey, shard: u16, offset: u64) -> bool {
        let slot = self.queues.get(&key).and_then(|q| q.slots.get(offset as usize)).copied();
        let message = slot.flatten().map(|index| &self.messages[index as usize]);
        // Also one that may have been delivered at another place before.
        let has_rot = self.has_rot(shard);
        let is_doubtful = |m: &Message| !m.sure || m.sent.deliver_ms != 0 && has_rot;
        if message.is_some_and(|m| m.doubtful && is_doubtful(m)) {
            return true;
        }
        match message.map(|message| message.position) {
            Some(Some(position)) => self.is_rotten(shard, position),
            // Nobody knows where it lay, or whether there was one.
            Some(None) | None => has_rot,
        }
    }

    /// Offsets are not there any more: only what was retired may go, and what is not kept (`may`), and only from
    /// the front.
    pub fn expired(&mut self, key: QueueKey, offsets: Range<u64>, may: bool) -> Verdict {
        let Some(queue) = self.queues.get_mut(&key) else { return Ok(()) };
        for (slot, offset) in queue.slots.iter().zip(0..offsets.end).skip(offsets.start as usize) {
            let Some(message) = slot.map(|index| &self.messages[index as usize]) else { continue };
            // A delayed one that went with the power came again, behind.
            if message.doubtful && message.offset.is_some_and(|at| at != offset) {
                continue;
            }
            let retired = self.retired.get(&message.sent.shard);
            // A queue whose first records were damaged begins behind them.
            let rotten = self.rotten.get(&message.sent.shard);
            let is_gone = |at: u64| {
                retired.into_iter().chain(rotten).flatten().any(|range| range.contains(&at))
            };
            let is_allowed = may || message.doubtful && !message.sure;
            if !is_allowed && message.position.is_some_and(|position| !is_gone(position)) {
                return violation(format!("queue {key:?} begins at {}: {message:?}", offsets.end));
            }
        }
        queue.min = queue.min.max(offsets.end);
        Ok(())
    }

    /// A life ended. ASYNC messages acknowledged longer ago than `interval_us` are durable by promise.
    pub fn crashed(&mut self, now_us: u64, interval_us: Option<u64>) {
        for message in self.messages.iter_mut().filter(|m| m.fate == Fate::Acknowledged) {
            if let (Some(at), Some(interval)) = (message.acknowledged_us, interval_us) {
                message.sure |= at + interval < now_us;
            }
            message.acknowledged_us = None;
        }
    }

    /// After `Stop` everything acknowledged is durable.
    pub fn stopped(&mut self) {
        for message in self.messages.iter_mut().filter(|m| m.fate == Fate::Acknowledged) {
            message.sure = true;
        }
    }

    /// What a shard says it has after a restart: the end of each of its queues, before anything new.
    pub fn recovered(
        &mut self,
        shard: u16,
        kind: CrashKind,
        ends: &BTreeMap<QueueKey, u64>,
        summary: &mut Summary,
    ) -> Verdict {
        let (mut last_left, mut first_lost) = (None::<(u64, u32)>, None::<(u64, u32)>);
        // Those that are due are delivered at once, and so the ends do not tell what was left.
        let grows = self.has_delayed(shard);
        for (key, end) in ends {
            let Some(queue) = self.queues.get_mut(key) else { continue };
            let mut kept = *end as usize;
            for (offset, slot) in queue.slots.iter_mut().enumerate() {
                let Some(index) = *slot else { continue };
                let message = &mut self.messages[index as usize];
                assert_eq!(message.sent.shard, shard, "queues are asked for at their shards");
                let at = message.position.map(|position| (position, index));
                let has_rot = self.rotten.contains_key(&shard);
                // Doubt stays until somebody sees it.
                let in_doubt = message.doubtful && !message.sure || !message.must_survive(kind);
                if (offset as u64) < *end
                    && in_doubt
                    && grows
                    && !queue.lost.contains(&(offset as u64))
                {
                    (message.fate, message.offset, message.position) = (Fate::Open, None, None);
                    *slot = None;
                    continue;
                }
                if (offset as u64) < *end && has_rot && in_doubt {
                    message.doubtful = true;
                    continue;
                }
                if (offset as u64) < *end {
                    // A delayed one may have been delivered since.
                    if message.sent.deliver_ms == 0 {
                        last_left = last_left.max(at);
                    }
                    // Recovery makes durable what it found before anybody sees it.
                    message.sure = true;
                    continue;
                }
                // It may have been delivered and seen since the ends were asked for.
                if message.sent.deliver_ms != 0 && message.sure {
                    kept = kept.max(offset + 1);
                    continue;
                }
                // promise: ack-is-durable
                if message.must_survive(kind) {
                    return violation(format!(
                        "after {kind:?} queue {key:?} ends at {end}; missing is message {index}, {message:?}"
                    ));
                }
                if let Some(at) = at {
                    first_lost = Some(first_lost.map_or(at, |lost| lost.min(at)));
                }
                summary.lost += u64::from(message.fate == Fate::Acknowledged);
                message.fate = Fate::Gone;
            }
            queue.slots.truncate(kept);
            queue.lost.retain(|offset| *offset < *end);
        }
        // promise: prefix
        match (last_left, first_lost) {
            (Some(left), Some(lost)) if left > lost => violation(format!(
                "after {kind:?} shard {shard} has message {} at {}, and lost message {} at {} before it",
                left.1, left.0, lost.1, lost.0
            )),
            _ => Ok(()),
        }
    }

    /// Every queue of a shard was read to its end: what was sent before (`below`) and is not there, never will be.
    pub fn audited(&mut self, shard: u16, below: u32, ends: &BTreeMap<QueueKey, u64>) -> Verdict {
        for message in self.messages[..below as usize].iter_mut() {
            // A queue that is not in `ends` was not read: its topic may be about to go.
            let read = message.sent.shard == shard && ends.contains_key(&message.sent.queue);
            let waits = message.sent.deliver_ms != 0;
            if read && !waits && message.offset.is_none() && message.fate == Fate::Open {
                message.fate = Fate::Gone;
            }
        }
        for (key, end) in ends {
            let Some(queue) = self.queues.get(key) else { continue };
            let (slots, min) = (queue.slots.iter().take(*end as usize), queue.min as usize);
            let is_hole = |at: &usize| *at >= min && !queue.lost.contains(&(*at as u64));
            let mut holes = slots.enumerate().filter(|(_, slot)| slot.is_none()).map(|(at, _)| at);
            if let Some(hole) = holes.find(is_hole) {
                return violation(format!("queue {key:?} was read to {end} without offset {hole}"));
            }
            self.check_order(*key, queue)?;
        }
        Ok(())
    }

    /// promise: fifo
    fn check_order(&self, key: QueueKey, queue: &Queue) -> Verdict {
        let mut last: BTreeMap<u64, u32> = BTreeMap::new();
        for (offset, index) in queue.slots.iter().enumerate().filter_map(|(o, i)| Some((o, (*i)?)))
        {
            let Sent { connection, deliver_ms, .. } = self.messages[index as usize].sent;
            if deliver_ms != 0 {
                continue;
            }
            let before = last.insert(connection, index);
            if before.is_some_and(|before| before > index) {
                return violation(format!(
                    "queue {key:?}: message {index} at {offset} was sent before message {before:?} on \
                     connection {connection}, and lies behind it"
                ));
            }
        }
        Ok(())
    }
}
