//! Timers that are due become messages of their queues.

use super::read::{Taken, Whose};
use super::{AHEAD_MS, Key, STAGED_BYTES, STAGED_MAX};
use crate::config::LATENESS_BOUNDS_MS;
use crate::index::Entry;
use crate::log::Put;
use crate::peer::QueueId;
use crate::seam::{Memory, Now, Outbox};
use crate::shard::Shard;
use crate::timer::{Head, Pulled};
use ringmq_schema::record::{self, FLAG_DELAYED, FLAG_FLUSH_MASK, Kind, RecordHeader};
use ringmq_schema::zerocopy::FromBytes;

/// Most messages appended in one step, and their bytes: some 200 µs.
const STEP_MAX: usize = 256;
/// See [`STEP_MAX`].
const STEP_BYTES: usize = 1 << 20;

impl<M: Memory> Shard<M> {
    /// Takes up what is due soon, and begins to read it.
    pub(super) fn stage(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        let horizon = now.wall_ms.saturating_add(AHEAD_MS);
        self.read_timer_pages(Whose::Delivery, out);
        let timers = &mut self.timers;
        // Also when there is no room: what is due before something that is staged must not wait behind it.
        let fits = |staged: &super::Batch, key: Key| {
            key.due_ms <= horizon
                && (staged.len() < STAGED_MAX && staged.bytes() < STAGED_BYTES
                    || staged.last().is_some_and(|last| key < last))
        };
        while let Some(Head::Is(key)) = timers.sources.head()
            && fits(&timers.staged, key)
        {
            let Some(timer) = timers.sources.pull() else { break };
            let is_over = timer.key <= timers.marks.over(timer.base);
            let is_moving = timers.moving.as_ref().is_some_and(|m| m.batch.has(timer.key));
            if !is_over && !is_moving && !timers.staged.has(timer.key) {
                timers.staged.add(timer);
            }
        }
        for (key, bytes) in timers.marks.behind(None) {
            if !fits(&timers.staged, key) {
                break;
            }
            let is_moving = timers.moving.as_ref().is_some_and(|moving| moving.batch.has(key));
            let segment = self.log.segment_of(key.position);
            if let Some(segment) = segment.filter(|_| !timers.staged.has(key) && !is_moving) {
                timers.staged.add(Pulled { key, bytes, base: segment.base });
            }
        }
        self.read_timer_pages(Whose::Delivery, out);
        self.read_timer_records(Whose::Delivery, now, out);
    }

    /// Appends what is due, in order. Returns whether it stopped only because that was enough for one step.
    pub(super) fn deliver(&mut self, now: Now, out: &mut Outbox<M::Block>) -> bool {
        let (mut count, mut bytes) = (0, 0);
        while let Some((key, staged)) = self.timers.staged.first() {
            // promise: never-early
            if key.due_ms > now.wall_ms || !self.is_next(key) || !self.may_deliver() {
                return false;
            }
            if count >= STEP_MAX || bytes >= STEP_BYTES {
                return true;
            }
            let base = staged.base;
            let record = match self.take_bytes(key, staged) {
                _ if self.timers.marks.is_recalled(key) => None,
                Taken::NotYet => return false,
                Taken::There(record) => Some(record),
                Taken::Lost => {
                    self.figures.timers_lost += 1;
                    None
                }
            };
            (count, bytes) = (count + 1, bytes + staged.bytes as usize);
            self.timers.staged.take_first();
            match record.and_then(|record| self.append_due(key, record.get(), now, out)) {
                Some(end) => {
                    self.timers.marks.fire(key);
                    self.timers.sources.ended(base, end);
                }
                None => self.timers.marks.skip(key),
            }
        }
        false
    }

    /// Whether nothing that is due before is still on its way.
    fn is_next(&self, key: Key) -> bool {
        let head = self.timers.sources.head().map(Head::key);
        let moving = self.timers.moving.as_ref().and_then(|moving| moving.batch.first());
        head.is_none_or(|head| head >= key) && moving.is_none_or(|(first, _)| first > key)
    }

    /// Whether there is room for more: what is late is late, but memory and disk have their limits.
    pub(super) fn may_deliver(&self) -> bool {
        self.disk_has_room
            && self.log.lacks_segment().is_none()
            && self.log.backlog_bytes() <= self.config.backlog_bytes
    }

    /// Appends one as a message; returns where its record ends. Nothing is appended for a topic that is gone.
    fn append_due(
        &mut self,
        key: Key,
        record: &[u8],
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> Option<u64> {
        let (header, _) = RecordHeader::ref_from_prefix(record).ok()?;
        let id = QueueId { topic: header.topic.get(), queue: header.queue.get() };
        let flush = self.flush_of(id.topic)?;
        let durable = match header.flags.get() & FLAG_FLUSH_MASK {
            1 => true,
            2 => false,
            _ => flush == crate::FlushMode::Sync,
        };
        let slot = self.queues.slot_or_new(id);
        let queue = self.queues.at_mut(slot);
        let touched = Some((slot, queue.next + 1));
        let sealing = &mut self.sealing;
        let (_, end) = self.log.append(record, durable, touched, now, out, |header, put| {
            header.prefix.kind = Kind::Message as u8;
            header.flags = (header.flags.get() | FLAG_DELAYED).into();
            header.producer_id = key.position.into();
            header.offset = queue.next.into();
            header.store_ms = now.wall_ms.into();
            let bytes = header.prefix.length.get();
            let Put { segment, place, row } = put;
            let tag_hash = header.tag_hash.get();
            let entry = Entry { place, row, bytes, tag_hash, latest_ms: now.wall_ms };
            if queue.push(segment, entry) {
                sealing.touch(segment, slot);
            }
        });
        self.appended_to(slot, end, durable);
        let late_ms = now.wall_ms.saturating_sub(key.due_ms).max(0) as u64;
        let bucket = LATENESS_BOUNDS_MS.partition_point(|bound| *bound < late_ms);
        self.figures.timers_late[bucket] += 1;
        self.figures.timers_late_ms += late_ms;
        self.figures.timers_fired += 1;
        Some(end)
    }
}

/// A run of delayed messages is stored as it came; this is all that is changed.
pub(super) fn patch_timer(header: &mut RecordHeader, offset: u64, now: Now) {
    debug_assert_eq!(header.prefix.magic, record::MAGIC);
    header.prefix.kind = Kind::Timer as u8;
    header.offset = offset.into();
    header.store_ms = now.wall_ms.into();
}
