//! What consumers may still read, and which segments nobody needs any more.
//!
//! A topic's records expire by whole segments, the oldest first: when the newest record that a segment has of it
//! is older than the topic's time, or when what lies behind the segment alone is as much as the topic's bytes.
//! A segment in which every topic has expired is retired.
//!
//! Invariants:
//! - the earliest readable offset of a topic moves on all of its queues at once, and never back while the shard
//!   is open;
//! - only the log's first segment is retired, and only below the snapshot that was named before the newest:
//!   recovery always finds a whole one, even when the newest is damaged;
//! - a step is bounded, whatever the number of topics.

use super::Shard;
use crate::index::TopicRows;
use crate::log::Segment;
use crate::seam::{Action, Memory, Now, Outbox};
use std::collections::{BTreeMap, VecDeque};

/// Time between two looks at all topics.
const ROUND_US: u64 = 1_000_000;
/// Topics looked at in one step.
const TOPICS_A_STEP: usize = 1000;
/// So many expired segments may wait for the log to grow; when there are more, a snapshot is taken and
/// a segment is begun for their sake. Fewer would never come to rest on an idle shard: the two newest
/// snapshots keep the segments they lie in.
const WAITING_SEGMENTS: usize = 3;
/// At least so long between two segments begun to get rid of expired ones.
const ROLL_PAUSE_US: u64 = 60_000_000;
/// The same while the disk is below its watermark: nothing else makes the log grow then, and producers wait.
const ROLL_PAUSE_FULL_US: u64 = 1_000_000;

/// What one sealed segment has of one topic.
#[derive(Debug, Clone, Copy)]
struct Part {
    segment: u32,
    bytes: u64,
    newest_ms: i64,
}

/// What the sealed segments have of one topic.
#[derive(Debug, Default)]
struct Parts {
    parts: VecDeque<Part>,
    bytes: u64,
}

/// What sealed segments hold of each topic, those that have expired left out.
#[derive(Debug, Default)]
pub(super) struct SegmentTopics {
    topics: BTreeMap<u32, Parts>,
    /// Number of topics that own something in a segment, and the bytes of it.
    owners: BTreeMap<u32, (usize, u64)>,
}

impl SegmentTopics {
    /// A segment whose index is there. What it has of topics that are gone is nobody's.
    pub(super) fn insert(
        &mut self,
        segment: u32,
        topics: &[TopicRows],
        is_gone: impl Fn(u32) -> bool,
    ) {
        let mut owners = (0, 0);
        for rows in topics.iter().filter(|rows| !is_gone(rows.topic)) {
            owners = (owners.0 + 1, owners.1 + rows.bytes);
            let parts = self.topics.entry(rows.topic).or_default();
            parts.bytes += rows.bytes;
            let part = Part { segment, bytes: rows.bytes, newest_ms: rows.newest_ms };
            parts.parts.push_back(part);
        }
        self.owners.insert(segment, owners);
    }

    /// Newest store time of what a sealed segment has of a topic.
    pub(super) fn newest_ms(&self, topic: u32, segment: u32) -> Option<i64> {
        let parts = &self.topics.get(&topic)?.parts;
        let at = parts.binary_search_by_key(&segment, |part| part.segment).ok()?;
        Some(parts[at].newest_ms)
    }

    /// A topic was deleted: it owns nothing any more.
    pub(super) fn forget(&mut self, topic: u32) {
        for part in self.topics.remove(&topic).unwrap_or_default().parts {
            self.disown(part.segment, part.bytes);
        }
    }

    /// Of all topics that are gone.
    pub(super) fn forget_if(&mut self, is_gone: impl Fn(u32) -> bool) {
        let gone: Vec<u32> = self.topics.keys().copied().filter(|topic| is_gone(*topic)).collect();
        gone.into_iter().for_each(|topic| self.forget(topic));
    }

    fn disown(&mut self, segment: u32, bytes: u64) {
        if let Some(owners) = self.owners.get_mut(&segment) {
            *owners = (owners.0 - 1, owners.1 - bytes);
        }
    }

    /// Lets go of what a topic need not keep; returns the last segment that expired for it.
    fn expire(&mut self, topic: u32, before_ms: i64, keep_bytes: u64) -> Option<u32> {
        let mut last = None;
        while let Some(parts) = self.topics.get_mut(&topic) {
            let Some(front) = parts.parts.front().copied() else { break };
            let is_old = front.newest_ms < before_ms;
            let is_much = keep_bytes > 0 && parts.bytes - front.bytes >= keep_bytes;
            if !is_old && !is_much {
                break;
            }
            parts.parts.pop_front();
            parts.bytes -= front.bytes;
            last = Some(front.segment);
            self.disown(front.segment, front.bytes);
        }
        last
    }

    /// Whether a segment is indexed and nobody owns anything in it.
    fn is_expired(&self, segment: u32) -> bool {
        self.owners(segment) == Some(0)
    }

    /// How many topics own something in a segment; `None`: it is not indexed.
    pub(super) fn owners(&self, segment: u32) -> Option<usize> {
        self.owners.get(&segment).map(|(owners, _)| *owners)
    }

    /// Bytes of the records that are owned.
    pub(super) fn live_bytes(&self, segment: u32) -> u64 {
        self.owners.get(&segment).map_or(0, |(_, bytes)| *bytes)
    }

    /// Whether a topic still needs what a segment has of it.
    pub(super) fn owns(&self, topic: u32, segment: u32) -> bool {
        let parts = self.topics.get(&topic).map(|parts| &parts.parts);
        parts.and_then(VecDeque::front).is_some_and(|front| front.segment <= segment)
    }

    /// A topic has expired up to a segment, that included.
    pub(super) fn expire_through(&mut self, topic: u32, segment: u32) {
        while let Some(parts) = self.topics.get_mut(&topic)
            && let Some(front) = parts.parts.pop_front_if(|front| front.segment <= segment)
        {
            parts.bytes -= front.bytes;
            self.disown(front.segment, front.bytes);
        }
    }
}

/// Where the look at all topics is, and when the next begins.
#[derive(Debug, Default)]
pub(super) struct Retention {
    pub(super) segments: SegmentTopics,
    /// The topic behind which the round goes on.
    after: Option<u32>,
    next_us: u64,
    rolled_us: Option<u64>,
    /// A snapshot was asked for; a segment begins when it is durable.
    wants_roll: bool,
}

impl Retention {
    pub(super) fn new(segments: SegmentTopics) -> Retention {
        Retention { segments, ..Retention::default() }
    }
}

impl<M: Memory> Shard<M> {
    /// Looks at some topics, and at the log's first segment.
    pub(super) fn step_retention(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        if self.log.failed().is_some() || self.stopping {
            return;
        }
        if self.retention.after.is_none() && now.mono_us < self.retention.next_us {
            return;
        }
        let from = self.retention.after.map_or(0, |after| after.saturating_add(1));
        let topics: Vec<u32> = self
            .retention
            .segments
            .topics
            .range(from..)
            .map(|(topic, _)| *topic)
            .take(TOPICS_A_STEP)
            .collect();
        for topic in &topics {
            self.expire_topic(*topic, now);
        }
        self.retention.after = topics.last().copied().filter(|_| topics.len() == TOPICS_A_STEP);
        if self.retention.after.is_some() {
            return;
        }
        self.retention.next_us = now.mono_us + ROUND_US;
        self.retire_segments(now, out);
        self.begin_punching(out);
    }

    fn expire_topic(&mut self, topic: u32, now: Now) {
        let Some(settings) = self.registry.topic(topic).map(|topic| &topic.settings) else {
            return;
        };
        let or_default = |own: u64, default: u64| if own > 0 { own } else { default };
        let keep_ms = or_default(settings.retention_ms, self.config.retention_ms);
        let keep_bytes = or_default(settings.retention_bytes, self.config.retention_bytes);
        let queues = settings.read_queues.max(settings.write_queues);
        // Each shard keeps its part of what the topic may have on the broker.
        let shards = u64::from(self.config.shards).min(u64::from(queues)).max(1);
        let before_ms = match i64::try_from(keep_ms) {
            Ok(keep_ms) if keep_ms > 0 => now.wall_ms.saturating_sub(keep_ms),
            _ => i64::MIN,
        };
        let expired = self.retention.segments.expire(topic, before_ms, keep_bytes.div_ceil(shards));
        let Some(last) = expired else { return };
        let slots = self.queues.slots_of(topic).to_vec();
        for slot in slots {
            let queue = self.queues.at_mut(slot);
            let min = queue.min;
            if queue.expire(last + 1) {
                self.figures.expired_messages += queue.min - min;
            }
        }
    }

    /// Whether no topic needs anything in a segment.
    pub(super) fn has_expired(&self, segment: &Segment) -> bool {
        self.retention.segments.is_expired(segment.number)
    }

    /// Gives back the log's first segments while nobody needs them.
    fn retire_segments(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        while let Some(first) = self.log.first_sealed() {
            if !self.has_expired(&first) || first.end() > self.log.retirable() {
                break;
            }
            if !self.is_clear_of_timers(&first) {
                self.empty_of_timers(first, now);
                break;
            }
            self.forget_timers(&first);
            self.log.retire_first();
            self.retention.segments.owners.remove(&first.number);
            self.index_pages.forget(first.base);
            self.forget_holes(first.base);
            self.mending.forget(first.base);
            self.figures.segments_retired += 1;
            out.actions.push(Action::Retire { base: first.base });
        }
        let waiting = self.log.sealed_segments();
        // Those with pending timers go in their own time.
        let can_go = |s: &Segment| self.has_expired(s) && self.is_clear_of_timers(s);
        let waiting = waiting.take_while(can_go).count();
        let pause_us = if self.disk_has_room { ROLL_PAUSE_US } else { ROLL_PAUSE_FULL_US };
        let rested = self.retention.rolled_us.is_none_or(|rolled| now.mono_us >= rolled + pause_us);
        if waiting > WAITING_SEGMENTS && rested && !self.retention.wants_roll {
            self.retention.rolled_us = Some(now.mono_us);
            self.retention.wants_roll = true;
            self.want_snapshot();
        }
    }

    /// A snapshot is durable: units name it from here on, the first of a segment for ever.
    pub(super) fn snapshot_ended(&mut self, begin: u64, now: Now, out: &mut Outbox<M::Block>) {
        self.log.snapshot_ended(begin);
        if std::mem::take(&mut self.retention.wants_roll) && !self.stopping {
            self.log.begin_segment(now, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(topic: u32, bytes: u64, newest_ms: i64) -> TopicRows {
        TopicRows { topic, records: 1, bytes, newest_ms }
    }

    #[test]
    fn a_topic_expires_by_time_and_by_bytes_and_each_for_itself() {
        let mut segments = SegmentTopics::default();
        for n in 0..4 {
            segments.insert(
                n,
                &[rows(1, 100, i64::from(n) * 10), rows(2, 1, i64::from(n)), rows(3, 1, 0)],
                |topic| topic == 3,
            );
        }
        assert_eq!(segments.expire(1, 0, 0), None);
        assert_eq!(segments.expire(1, 11, 0), Some(1), "two are older than 11");
        assert!(!segments.is_expired(0), "the other topic owns something there");
        assert_eq!(segments.expire(1, i64::MIN, 101), None, "one alone is less than 101 bytes");
        assert_eq!(segments.expire(1, i64::MIN, 100), Some(2));
        segments.forget(2);
        assert!(segments.is_expired(0) && segments.is_expired(2));
        assert!(!segments.is_expired(3) && !segments.is_expired(4), "4 is not indexed");
        assert_eq!(segments.expire(1, i64::MAX, 0), Some(3));
        assert!(segments.is_expired(3));
    }
}
