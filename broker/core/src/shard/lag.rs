//! How far groups are behind on each topic of this shard, for metrics.
//!
//! Invariants:
//! - a step is bounded, whatever the number of groups and queues; what is told is of one whole round;
//! - nothing is read for it: of a record in a sealed segment the age is known to the length of that segment.

use super::Shard;
use crate::peer::QueueId;
use crate::queue::Place;
use crate::seam::{Memory, Now};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Time between the beginnings of two rounds.
const ROUND_US: u64 = 1_000_000;
/// Offsets looked at in one step, at each tick: some 100 µs.
const OFFSETS_A_STEP: usize = 1000;
/// So many groups and topics are told, those that are furthest behind.
const TOLD_MAX: usize = 200;

/// How far a group is behind on a topic, over the queues of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupLag {
    /// The group.
    pub group: Arc<str>,
    /// The topic.
    pub topic: Arc<str>,
    /// Messages that are not consumed, whatever the group's filter.
    pub messages: u64,
    /// When the oldest of them was stored, ms since epoch; of one in a sealed segment, when at the latest. 0: there is
    /// none.
    pub oldest_ms: i64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lags {
    begun_us: u64,
    /// The last offset that was looked at; `None`: a round begins.
    last: Option<(u32, QueueId)>,
    /// By group and topic: messages, and the oldest.
    round: BTreeMap<(u32, u32), (u64, i64)>,
    told: Arc<[GroupLag]>,
}

impl<M: Memory> Shard<M> {
    /// How far groups are behind, as the last round found.
    pub fn lags(&self) -> Arc<[GroupLag]> {
        Arc::clone(&self.lags.told)
    }

    pub(super) fn step_lags(&mut self, now: Now) {
        if self.lags.last.is_none() {
            if now.mono_us < self.lags.begun_us + ROUND_US {
                return;
            }
            self.lags.begun_us = now.mono_us;
        }
        let mut seen = 0;
        let mut last = None;
        for (group, queue, progress) in self.offsets.after(self.lags.last).take(OFFSETS_A_STEP) {
            seen += 1;
            last = Some((group, queue));
            let (Some(committed), Some(found)) = (progress.committed, self.queues.get(queue))
            else {
                continue;
            };
            let from = committed.max(found.min);
            let messages = found.visible.saturating_sub(from);
            let oldest_ms = match messages {
                0 => 0,
                _ => self.stored_ms(queue, from),
            };
            let lag = self.lags.round.entry((group, queue.topic)).or_default();
            lag.0 += messages;
            if oldest_ms > 0 && (lag.1 == 0 || oldest_ms < lag.1) {
                lag.1 = oldest_ms;
            }
        }
        self.lags.last = last;
        if seen < OFFSETS_A_STEP {
            self.end_round();
        }
    }

    /// When a record was stored, as far as it is known without a look.
    fn stored_ms(&self, queue: QueueId, offset: u64) -> i64 {
        let place = self.queues.get(queue).and_then(|found| found.find(offset));
        match place {
            Some(Place::Memory(_, entries)) => entries[0].latest_ms,
            Some(Place::Disk(stretch, _)) => {
                self.retention.segments.newest_ms(queue.topic, stretch.segment).unwrap_or(0)
            }
            Some(Place::Lost(_)) | None => 0,
        }
    }

    fn end_round(&mut self) {
        self.lags.last = None;
        let round = std::mem::take(&mut self.lags.round);
        let named = round.into_iter().filter_map(|((group, topic), (messages, oldest_ms))| {
            let group = self.registry.group(group)?.name.as_str().into();
            let topic = self.registry.topic(topic)?.settings.name.as_str().into();
            Some(GroupLag { group, topic, messages, oldest_ms })
        });
        let mut told: Vec<GroupLag> = named.collect();
        if told.len() > TOLD_MAX {
            told.sort_unstable_by_key(|lag| std::cmp::Reverse(lag.messages));
            told.truncate(TOLD_MAX);
        }
        self.lags.told = told.into();
    }
}
