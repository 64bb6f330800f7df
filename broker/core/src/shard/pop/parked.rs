//! Pops that wait: for messages, for their time, for the disk.

use super::{Answer, POP_BIT, Shard};
use crate::peer::QueueId;
use crate::seam::{ConnectionId, DiskError, Memory, Now, Outbox};
use crate::shard::Asker;
use crate::shard::fetch::Filter;
use crate::table::Map;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// A message that came back and could not be handed out at once is tried again after this, ms.
const ALARM_PAUSE_MS: i64 = 1_000;

/// A queue that a pop asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) id: QueueId,
    pub(super) slot: u32,
    /// See the request.
    pub(super) start: i64,
    /// What comes next in it could not be read.
    pub(super) failed: bool,
}

/// One pop.
#[derive(Debug)]
pub(super) struct Parked<B> {
    pub(super) asker: Asker,
    pub(super) group: u32,
    pub(super) topic: u32,
    pub(super) queues: Vec<Wanted>,
    pub(super) filter: Option<Filter>,
    pub(super) max_records: usize,
    pub(super) max_bytes: u64,
    pub(super) invisible_ms: i64,
    /// It takes what is not durable yet, too: its answer goes out when that is.
    pub(super) may_wait: bool,
    pub(super) due_us: u64,
    /// What was read for it last, and from where on.
    pub(super) block: Option<(u64, Rc<B>)>,
    /// Index of the queue for which something is read.
    pub(super) reading: Option<usize>,
    /// Index of the queue for which something was read last: it is served first, so that what was read is not read in vain.
    pub(super) first: Option<usize>,
    /// A longer read failed: only what is needed is read.
    pub(super) alone: bool,
    pub(super) rounds: u32,
}

/// Pops that wait, by number, and answers that wait for their record.
#[derive(Debug)]
pub(in crate::shard) struct Poppers<B> {
    pub(super) parked: Map<u64, Parked<B>>,
    due: BTreeSet<(u64, u64)>,
    /// Not after the time at which a message comes back to one that waits, ms since epoch.
    alarm_ms: Option<i64>,
    pub(super) answers: Map<u64, Answer<B>>,
    /// Queues that this turn has appended to, for which pops wait.
    pub(super) appended: Vec<u32>,
    pub(super) rotation: usize,
    /// By group and topic: what the last pop asked for, unless that was everything.
    filters: BTreeMap<(u32, u32), Filter>,
    next: u64,
}

impl<B> Default for Poppers<B> {
    fn default() -> Poppers<B> {
        Poppers {
            parked: Map::default(),
            due: BTreeSet::new(),
            alarm_ms: None,
            answers: Map::default(),
            appended: Vec::new(),
            rotation: 0,
            filters: BTreeMap::new(),
            next: 0,
        }
    }
}

impl<B> Poppers<B> {
    pub(in crate::shard) fn len(&self) -> usize {
        self.parked.len()
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next | POP_BIT
    }

    /// A group pops from a topic with this filter. A counting of what it wants asks for that.
    pub(super) fn note_filter(&mut self, group: u32, topic: u32, filter: Option<&Filter>) {
        let Some(filter) = filter else {
            self.filters.remove(&(group, topic));
            return;
        };
        let known = self.filters.get(&(group, topic));
        if !known.is_some_and(|known| known.is_same(filter)) {
            self.filters.insert((group, topic), filter.clone());
        }
    }

    /// The filter with which a group popped last from a topic; `None`: it wants everything, or that is not known.
    pub(in crate::shard) fn filter_of(&self, group: u32, topic: u32) -> Option<Filter> {
        self.filters.get(&(group, topic)).cloned()
    }

    pub(in crate::shard) fn forget_topic(&mut self, topic: u32) {
        self.filters.retain(|(_, of), _| *of != topic);
    }

    pub(in crate::shard) fn forget_group(&mut self, group: u32) {
        self.filters.retain(|(of, _), _| *of != group);
    }

    /// When something is due, in `Now::mono_us`; `now` is the time of the last step, and `now_ms` the same for pops.
    pub(in crate::shard) fn next_wake(&self, now: Now, now_ms: i64) -> Option<u64> {
        let at = |ms: i64| {
            let left = ms.saturating_sub(now_ms).clamp(0, 3_600_000);
            now.mono_us + left as u64 * 1000
        };
        let due = self.due.first().map(|(due, _)| *due);
        due.into_iter().chain(self.alarm_ms.map(at)).min()
    }

    /// A message comes back then.
    pub(super) fn comes_back(&mut self, until_ms: i64) {
        if !self.due.is_empty() {
            self.alarm_ms = Some(self.alarm_ms.map_or(until_ms, |alarm| alarm.min(until_ms)));
        }
    }
}

impl<M: Memory> Shard<M> {
    /// Lets a pop wait: its queues name it.
    pub(super) fn park_pop(&mut self, pop: u64, mut parked: Parked<M::Block>) {
        self.poppers.due.insert((parked.due_us, pop));
        parked.rounds = 0;
        parked.alone = false;
        (parked.block, parked.first) = (None, None);
        let now_ms = self.pops.now_ms(self.last_step);
        for wanted in &mut parked.queues {
            wanted.failed = false;
            let waiting = &mut self.queues.at_mut(wanted.slot).waiting;
            if !waiting.contains(&pop) {
                waiting.push(pop);
            }
            let flights = self.pops.get(parked.group, wanted.id);
            if let Some(until_ms) = flights.and_then(crate::pop::Flights::earliest_ms) {
                // What is due already and was not handed out waits for the disk, or for room.
                let is_over = until_ms <= now_ms;
                let alarm_ms = if is_over { now_ms + ALARM_PAUSE_MS } else { until_ms };
                self.poppers.comes_back(alarm_ms);
            }
        }
        self.poppers.parked.insert(pop, parked);
    }

    /// Nothing names the pop any more.
    pub(super) fn end_pop(&mut self, pop: u64, parked: Parked<M::Block>) {
        self.poppers.due.remove(&(parked.due_us, pop));
        for wanted in parked.queues {
            self.queues.at_mut(wanted.slot).waiting.retain(|waiting| *waiting != pop);
        }
    }

    /// Serves one that waits, unless it waits for the disk.
    pub(in crate::shard) fn serve_parked_pop(
        &mut self,
        pop: u64,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        match self.poppers.parked.remove(&pop) {
            Some(parked) if parked.reading.is_some() => _ = self.poppers.parked.insert(pop, parked),
            Some(parked) => self.serve_pop(pop, parked, now, out),
            None => {}
        }
    }

    /// Answers those whose time is over, and serves those for whom a message came back.
    pub(in crate::shard) fn tick_pops(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        while let Some(&(due, pop)) = self.poppers.due.first() {
            if due > now.mono_us {
                break;
            }
            self.poppers.due.pop_first();
            self.serve_parked_pop(pop, now, out);
        }
        let now_ms = self.pops.now_ms(now);
        if self.poppers.alarm_ms.is_none_or(|alarm| alarm > now_ms) {
            return;
        }
        self.poppers.alarm_ms = None;
        for pop in self.sorted_pops(|_| true) {
            let Some(parked) = self.poppers.parked.get(&pop) else { continue };
            let earliest = |wanted: &Wanted| self.pops.get(parked.group, wanted.id)?.earliest_ms();
            match parked.queues.iter().filter_map(earliest).min() {
                Some(until_ms) if until_ms <= now_ms => self.serve_parked_pop(pop, now, out),
                Some(until_ms) => self.poppers.comes_back(until_ms),
                None => {}
            }
        }
    }

    fn sorted_pops(&self, which: impl Fn(&Parked<M::Block>) -> bool) -> Vec<u64> {
        let parked = self.poppers.parked.iter().filter(|(_, parked)| which(parked));
        let mut pops: Vec<u64> = parked.map(|(pop, _)| *pop).collect();
        pops.sort_unstable();
        pops
    }

    /// The group is gone, or (`None`) nobody is served any more: whoever waits is told.
    pub(in crate::shard) fn end_pops(
        &mut self,
        group: Option<u32>,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        for pop in self.sorted_pops(|parked| group.is_none_or(|group| parked.group == group)) {
            self.serve_parked_pop(pop, now, out);
        }
    }

    pub(in crate::shard) fn close_pops(&mut self, connection: ConnectionId) {
        for pop in self.sorted_pops(|parked| parked.asker.connection == connection) {
            if let Some(parked) = self.poppers.parked.remove(&pop) {
                self.end_pop(pop, parked);
            }
        }
    }

    /// A page that a pop waits for is there, or cannot be read.
    pub(in crate::shard) fn pop_page(
        &mut self,
        pop: u64,
        is_there: bool,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        let Some(mut parked) = self.poppers.parked.remove(&pop) else { return };
        let reading = parked.reading.take();
        parked.first = reading;
        if let Some(at) = reading.filter(|_| !is_there) {
            parked.queues[at].failed = true;
        }
        self.serve_pop(pop, parked, now, out);
        self.log.pump(now, out);
    }

    /// A part of the log that a pop waits for is there, or cannot be read.
    pub(in crate::shard) fn pop_block(
        &mut self,
        pop: u64,
        start: u64,
        result: Result<&Rc<M::Block>, &DiskError>,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        let Some(mut parked) = self.poppers.parked.remove(&pop) else { return };
        let reading = parked.reading.take();
        parked.first = reading;
        let was_alone = std::mem::take(&mut parked.alone);
        match (result, reading) {
            (Ok(block), _) => parked.block = Some((start, Rc::clone(block))),
            // Perhaps it is another place of the range that is bad.
            (Err(_), _) if !was_alone => parked.alone = true,
            (Err(_), Some(at)) => {
                self.figures.failed_reads += 1;
                parked.queues[at].failed = true;
            }
            (Err(_), None) => {}
        }
        self.serve_pop(pop, parked, now, out);
        self.log.pump(now, out);
    }
}
