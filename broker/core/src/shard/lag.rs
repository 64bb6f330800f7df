//! How far groups are behind: asked for, of single queues; and on each topic of this shard, for metrics.
//!
//! Invariants:
//! - a step is bounded, whatever the number of groups and queues; what metrics tell is of one whole round;
//! - nothing is read for it: of a record in a sealed segment the age is known to the length of that segment.

use super::offsets::{check_count, nothing};
use super::{Asker, Handled, Shard, read};
use crate::consume::offsets::Progress;
use crate::peer::{QueueId, member_id};
use crate::pop::Flights;
use crate::queue::Place;
use crate::seam::{Memory, Now, Outbox};
use ringmq_schema::consume::{QueryLag, QueryLagAnswer, QueryLagAnswerArgs, QueueLag};
use ringmq_schema::error::Status;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Time between the beginnings of two rounds.
const ROUND_US: u64 = 1_000_000;
/// Offsets looked at in one step, at each tick: some 100 µs.
const OFFSETS_A_STEP: usize = 1000;
/// Messages whose time is over cost that much less than offsets.
const BACK_PER_OFFSET: usize = 16;
/// So many groups and topics are told, those that are furthest behind.
const TOLD_MAX: usize = 200;
/// So many messages whose time is over are looked at for one request: some 200 µs. Of the queues behind it is said
/// that they are to be asked for again.
const BACK_A_REQUEST: usize = 20_000;

/// How far a group is behind on a topic, over the queues of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupLag {
    /// The group.
    pub group: Arc<str>,
    /// The topic.
    pub topic: Arc<str>,
    /// Messages that are not consumed, whatever the group's filter.
    pub messages: u64,
    /// Those among them that a member was given and that are not committed, or that are popped and invisible.
    pub in_flight: u64,
    /// When the oldest of them was stored, ms since epoch; of one in a sealed segment, when at the latest. 0: there is
    /// none.
    pub oldest_ms: i64,
}

/// What a round found of one group and topic.
#[derive(Debug, Default)]
struct Found {
    messages: u64,
    in_flight: u64,
    oldest_ms: i64,
}

/// How far a round has come: those that commit, then those that pop.
#[derive(Debug, Default, Clone, Copy)]
enum Next {
    #[default]
    Nothing,
    /// Behind this group and queue.
    Offsets(Option<(u32, QueueId)>),
    /// From this group and queue on.
    Pops((u32, QueueId)),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lags {
    begun_us: u64,
    next: Next,
    /// By group and topic.
    round: BTreeMap<(u32, u32), Found>,
    told: Arc<[GroupLag]>,
}

impl<M: Memory> Shard<M> {
    pub(super) fn query_lag(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<QueryLag<'_>>(table)?;
        let group = request.group();
        self.check_group(group)?;
        let queues = request.queues().ok_or_else(nothing)?;
        check_count(queues.len())?;
        let now_ms = self.pops.now_ms(now);
        let mut looked_at = 0;
        let found: Vec<QueueLag> = queues
            .iter()
            .map(|queue| {
                let id = QueueId { topic: queue.topic(), queue: queue.queue() };
                let status = match self.readable(id) {
                    Err(refused) => refused.status,
                    Ok(_) if looked_at > BACK_A_REQUEST => Status::Busy,
                    Ok(_) => Status::Ok,
                };
                let is_asked = status == Status::Ok;
                let flights = self.pops.get(group, id).filter(|_| is_asked);
                let back = flights.map_or(0, |flights| flights.back(now_ms));
                looked_at += back;
                self.lag_of(group, id, (flights, back), status)
            })
            .collect();
        self.answer(asker, out, |fbb| {
            let queues = Some(fbb.create_vector(&found));
            QueryLagAnswer::create(fbb, &QueryLagAnswerArgs { queues })
        });
        Ok(())
    }

    fn lag_of(
        &self,
        group: u32,
        id: QueueId,
        (flights, back): (Option<&Flights>, usize),
        status: Status,
    ) -> QueueLag {
        let or_never = |offset: Option<u64>| offset.map_or(-1, |offset| offset as i64);
        let progress = self.offsets.get(group, id);
        let (min, max) = self.queues.get(id).map_or((0, 0), |queue| (queue.min, queue.visible));
        let in_flight = flights.map_or(0, |flights| flights.len() - back);
        QueueLag::new(
            id.topic,
            id.queue,
            or_never(progress.committed.max(flights.map(Flights::done))),
            or_never(progress.fetched),
            or_never(flights.map(Flights::next)),
            min,
            max,
            progress.committed_ms,
            &member_id(progress.owner),
            self.timers.delayed.of(id),
            in_flight as u32,
            back as u32,
            progress.generation,
            status.code(),
            0,
        )
    }

    /// How far groups are behind, as the last round found.
    pub fn lags(&self) -> Arc<[GroupLag]> {
        Arc::clone(&self.lags.told)
    }

    pub(super) fn step_lags(&mut self, now: Now) {
        match self.lags.next {
            Next::Nothing if now.mono_us < self.lags.begun_us + ROUND_US => {}
            Next::Nothing => {
                self.lags.begun_us = now.mono_us;
                self.step_committed(None);
            }
            Next::Offsets(last) => self.step_committed(last),
            Next::Pops(first) => self.step_popped(first, self.pops.now_ms(now)),
        }
    }

    fn step_committed(&mut self, last: Option<(u32, QueueId)>) {
        let mut round = std::mem::take(&mut self.lags.round);
        let (mut seen, mut last) = (0, last);
        for (group, queue, progress) in self.offsets.after(last).take(OFFSETS_A_STEP) {
            seen += 1;
            last = Some((group, queue));
            let Progress { committed, fetched, .. } = *progress;
            let (Some(committed), Some(found)) = (committed, self.queues.get(queue)) else {
                continue;
            };
            if self.pops.get(group, queue).is_some() {
                continue;
            }
            let from = committed.max(found.min);
            let messages = found.visible.saturating_sub(from);
            let fetched =
                fetched.map_or(from, |offset| offset.clamp(from, found.visible.max(from)));
            let of = round.entry((group, queue.topic)).or_default();
            of.add(messages, fetched - from, self.oldest_ms(queue, from, messages));
        }
        self.lags.round = round;
        let first = (0, QueueId { topic: 0, queue: 0 });
        self.lags.next =
            if seen < OFFSETS_A_STEP { Next::Pops(first) } else { Next::Offsets(last) };
    }

    fn step_popped(&mut self, first: (u32, QueueId), now_ms: i64) {
        let mut round = std::mem::take(&mut self.lags.round);
        let (mut seen, mut next) = (0, None);
        for (group, queue, flights) in self.pops.from(first) {
            if seen >= OFFSETS_A_STEP {
                next = Some((group, queue));
                break;
            }
            let Some(found) = self.queues.get(queue) else { continue };
            let back = flights.back(now_ms);
            seen += 1 + back / BACK_PER_OFFSET;
            let ahead = found.visible.saturating_sub(flights.next().max(found.min));
            let messages = ahead + flights.len() as u64;
            let oldest_ms = self.oldest_ms(queue, flights.done().max(found.min), messages);
            let of = round.entry((group, queue.topic)).or_default();
            of.add(messages, (flights.len() - back) as u64, oldest_ms);
        }
        self.lags.round = round;
        match next {
            Some(next) => self.lags.next = Next::Pops(next),
            None => self.end_round(),
        }
    }

    /// When a record was stored, as far as it is known without a look; 0 when there are no messages.
    fn oldest_ms(&self, queue: QueueId, offset: u64, messages: u64) -> i64 {
        let found = self.queues.get(queue).filter(|_| messages > 0);
        match found.and_then(|found| found.find(offset)) {
            Some(Place::Memory(_, entries)) => entries[0].latest_ms,
            Some(Place::Disk(stretch, _)) => {
                self.retention.segments.newest_ms(queue.topic, stretch.segment).unwrap_or(0)
            }
            Some(Place::Lost(_)) | None => 0,
        }
    }

    fn end_round(&mut self) {
        self.lags.next = Next::Nothing;
        if self.timers.is_empty() {
            // What was lost to damage waits no more.
            self.timers.delayed.forget_all();
        }
        let round = std::mem::take(&mut self.lags.round);
        let named = round.into_iter().filter_map(|((group, topic), found)| {
            let group = self.registry.group(group)?.name.as_str().into();
            let topic = self.registry.topic(topic)?.settings.name.as_str().into();
            let Found { messages, in_flight, oldest_ms } = found;
            Some(GroupLag { group, topic, messages, in_flight, oldest_ms })
        });
        let mut told: Vec<GroupLag> = named.collect();
        if told.len() > TOLD_MAX {
            told.sort_unstable_by_key(|lag| std::cmp::Reverse(lag.messages));
            told.truncate(TOLD_MAX);
        }
        self.lags.told = told.into();
    }
}

impl Found {
    fn add(&mut self, messages: u64, in_flight: u64, oldest_ms: i64) {
        self.messages += messages;
        self.in_flight += in_flight;
        if oldest_ms > 0 && (self.oldest_ms == 0 || oldest_ms < self.oldest_ms) {
            self.oldest_ms = oldest_ms;
        }
    }
}
