//! Fetches that wait: for messages, for their time, for the disk.

use super::super::Shard;
use super::super::locate::PageName;
use super::super::pop::is_pop;
use super::filter::{Filter, Programs};
use crate::index::Entry;
use crate::peer::{Member, QueueId};
use crate::seam::{ConnectionId, Memory, Now, Outbox};
use crate::table::Map;
use ringmq_schema::consume::FetchedQueue;
use std::collections::{BTreeMap, BTreeSet};

/// A queue that a fetch asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) id: QueueId,
    pub(super) slot: u32,
    /// As the request says.
    pub(super) asked: u64,
    /// As far as filters have left records out since.
    pub(super) offset: u64,
    pub(super) generation: u32,
    /// Index into the filters, plus one.
    pub(super) filter: u16,
    /// The record there was looked at and is wanted.
    pub(super) known: Option<u64>,
    /// What lies there could not be read.
    pub(super) failed: bool,
    /// It cannot be served as things are, and is told so: nothing is looked for.
    pub(super) at_fault: bool,
}

impl Wanted {
    /// Whether records of it may be in the answer.
    pub(super) fn is_served(&self) -> bool {
        self.slot != u32::MAX && !self.failed && !self.at_fault
    }
}

/// A read of the log under way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) start: u64,
    /// Index of the queue that it is for, its first record, that one's segment, and where it lies.
    pub(super) wanted: usize,
    pub(super) entry: Entry,
    pub(super) base: u64,
    pub(super) position: u64,
    /// Nothing but that record is read: a longer read failed.
    pub(super) alone: bool,
}

/// One fetch.
#[derive(Debug, Default)]
pub(super) struct Parked {
    pub(super) connection: ConnectionId,
    pub(super) correlation: u64,
    pub(super) group: u32,
    pub(super) member: Member,
    pub(super) due_us: u64,
    pub(super) min_bytes: u64,
    pub(super) max_bytes: u64,
    pub(super) max_records: u32,
    /// Nothing is sent that was not looked at.
    pub(super) checked: bool,
    pub(super) queues: Vec<Wanted>,
    pub(super) filters: Vec<Filter>,
    pub(super) reading: Option<Reading>,
    /// Reads of indexes under way, and how often there were some.
    pub(super) pages: u32,
    pub(super) rounds: u32,
    /// Bases of segments whose index could not be read.
    pub(super) unreadable: Vec<u64>,
    /// Reads of the log that failed for it.
    pub(super) failures: u32,
    /// Work of filters since it last waited.
    pub(super) work: u32,
    /// Its connection is gone while it reads.
    pub(super) orphaned: bool,
}

impl Parked {
    pub(super) fn is_reading(&self) -> bool {
        self.reading.is_some() || self.pages > 0
    }
}

/// A read of an index under way.
#[derive(Debug)]
pub(super) struct IndexRead {
    pub(super) pages: PageName,
    /// Fetches and pops that wait for it.
    pub(super) readers: Vec<u64>,
    /// How many changes of indexes there had been.
    pub(super) changes: u64,
}

/// Fetches that wait, by number.
#[derive(Debug, Default)]
pub(in super::super) struct Fetches {
    pub(super) parked: Map<u64, Parked>,
    due: BTreeSet<(u64, u64)>,
    pub(super) index_reads: Map<u64, IndexRead>,
    /// Reads of pages that pops may share.
    pub(super) pages_under_way: BTreeMap<PageName, u64>,
    pub(super) next: u64,
    pub(super) rotation: usize,
    /// Whose turn it is in a fetch for which a read failed: so that all come to have theirs, it moves on only
    /// when one has had it.
    pub(super) turn: usize,
    pub(in super::super) programs: Programs,
    woken: Vec<u64>,
    /// Emptied ones, for their memory.
    pub(super) spare: Vec<Parked>,
    pub(super) fetched: Vec<FetchedQueue>,
}

impl Fetches {
    pub(in super::super) fn len(&self) -> usize {
        self.parked.len()
    }

    pub(in super::super) fn next_due(&self) -> Option<u64> {
        self.due.first().map(|(due, _)| *due)
    }

    /// These are looked at again when the current step ends.
    pub(in super::super) fn wake(&mut self, mut fetches: Vec<u64>) {
        self.woken.append(&mut fetches);
    }

    pub(in super::super) fn take_woken(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.woken)
    }
}

impl<M: Memory> Shard<M> {
    /// Lets a fetch wait: its queues name it.
    pub(super) fn park(&mut self, fetch: u64, mut parked: Parked) {
        for wanted in parked.queues.iter().filter(|wanted| wanted.slot != u32::MAX) {
            let waiting = &mut self.queues.at_mut(wanted.slot).waiting;
            if !waiting.contains(&fetch) {
                waiting.push(fetch);
            }
        }
        parked.work = 0;
        self.fetches.due.insert((parked.due_us, fetch));
        self.fetches.parked.insert(fetch, parked);
    }

    /// Ends a fetch and keeps its memory.
    pub(super) fn forget(&mut self, fetch: u64, mut parked: Parked) {
        self.fetches.due.remove(&(parked.due_us, fetch));
        for wanted in parked.queues.drain(..).filter(|wanted| wanted.slot != u32::MAX) {
            self.queues.at_mut(wanted.slot).waiting.retain(|waiting| *waiting != fetch);
        }
        if self.fetches.spare.len() < 1024 {
            let Parked { queues, mut filters, mut unreadable, .. } = parked;
            filters.clear();
            unreadable.clear();
            let emptied = Parked { queues, filters, unreadable, ..Parked::default() };
            self.fetches.spare.push(emptied);
        }
    }

    /// More is visible, an owner changed, or a message is done: these are looked at again.
    pub(in super::super) fn wake_fetches(
        &mut self,
        woken: Vec<u64>,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        for &fetch in &woken {
            match is_pop(fetch) {
                true => self.serve_parked_pop(fetch, now, out),
                false => self.serve_parked(fetch, false, out),
            }
        }
        // Its memory serves the next time.
        if self.fetches.woken.is_empty() {
            let mut woken = woken;
            woken.clear();
            self.fetches.woken = woken;
        }
    }

    /// Serves one that waits, unless it waits for the disk.
    fn serve_parked(&mut self, fetch: u64, expired: bool, out: &mut Outbox<M::Block>) {
        let Some(parked) = self.fetches.parked.remove(&fetch) else { return };
        if parked.is_reading() {
            self.fetches.parked.insert(fetch, parked);
        } else {
            self.serve(fetch, parked, expired, out);
        }
    }

    pub(in super::super) fn expire_fetches(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        while let Some(&(due, fetch)) = self.fetches.due.first() {
            if due > now.mono_us {
                break;
            }
            self.fetches.due.pop_first();
            self.serve_parked(fetch, true, out);
        }
    }

    /// The shard stops: whoever waits gets what there is.
    pub(in super::super) fn end_fetches(&mut self, out: &mut Outbox<M::Block>) {
        let waiting: Vec<u64> = self.fetches.due.iter().map(|(_, fetch)| *fetch).collect();
        for fetch in waiting {
            self.serve_parked(fetch, true, out);
        }
    }

    pub(in super::super) fn close_fetches(&mut self, connection: ConnectionId) {
        let of =
            |(fetch, parked): (&u64, &Parked)| (parked.connection == connection).then_some(*fetch);
        let mut gone: Vec<u64> = self.fetches.parked.iter().filter_map(of).collect();
        gone.sort_unstable();
        for fetch in gone {
            let Some(mut parked) = self.fetches.parked.remove(&fetch) else { continue };
            if parked.is_reading() {
                parked.orphaned = true;
                self.fetches.parked.insert(fetch, parked);
            } else {
                self.forget(fetch, parked);
            }
        }
    }
}
