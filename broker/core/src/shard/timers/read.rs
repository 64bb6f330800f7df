//! Reads for timers: pages of indexes and records of the log, and whom they are for.

use super::batch::{Batch, State, is_timer};
use super::{Key, Timers};
use crate::index::PAGE_BYTES;
use crate::seam::{Action, Block, DiskError, Memory, Now, Outbox, Slice};
use crate::shard::Shard;
use crate::timer::Sources;
use std::rc::Rc;

/// Numbers of these reads have this bit; look-ups have the highest, punching and mending the one below.
const READ_BIT: u64 = 1 << 61;
/// What could not be read is tried again after this.
const RETRY_US: u64 = 200_000;

/// Whom a read is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Delivery,
    Moving,
    Job(u64),
}

/// What was asked for.
#[derive(Debug)]
pub(super) enum Reading {
    Page {
        whose: Whose,
        base: u64,
        page: u32,
        /// How many changes of indexes there had been.
        changes: u64,
    },
    Records {
        whose: Whose,
        start: u64,
        keys: Vec<Key>,
    },
}

/// A record's bytes.
pub(super) enum Bytes<B> {
    Tail(Slice<B>),
    Read(Rc<[u8]>),
}

impl<B: Block> Bytes<B> {
    pub(super) fn get(&self) -> &[u8] {
        match self {
            Bytes::Tail(slice) => {
                &slice.block.bytes()[slice.range.start as usize..slice.range.end as usize]
            }
            Bytes::Read(bytes) => bytes,
        }
    }
}

/// What became of the first record of a batch.
pub(super) enum Taken<B> {
    There(Bytes<B>),
    /// It cannot be had.
    Lost,
    /// It waits for a read, or for the unit that it lies in.
    NotYet,
}

impl Timers {
    /// Whether a read is for timers.
    pub(in super::super) fn owns(&self, read: u64) -> bool {
        read & READ_BIT != 0 && read >> 62 == 0
    }

    fn batch(&mut self, whose: Whose) -> Option<&mut Batch> {
        match whose {
            Whose::Delivery => Some(&mut self.staged),
            Whose::Moving => self.moving.as_mut().map(|moving| &mut moving.batch),
            Whose::Job(number) => self.jobs.get_mut(&number).map(|job| &mut job.batch),
        }
    }

    fn sources(&mut self, whose: Whose) -> Option<&mut Sources> {
        match whose {
            Whose::Delivery | Whose::Moving => Some(&mut self.sources),
            Whose::Job(number) => self.jobs.get_mut(&number).and_then(|job| job.sources()),
        }
    }
}

impl<M: Memory> Shard<M> {
    /// Asks for the pages that are wanted.
    pub(super) fn read_timer_pages(&mut self, whose: Whose, out: &mut Outbox<M::Block>) {
        let Some(sources) = self.timers.sources(whose).filter(|sources| sources.is_hungry()) else {
            return;
        };
        let changes = self.mending.changes;
        for (base, page) in sources.ask() {
            let read = self.timers.number() | READ_BIT;
            self.timers.reads.insert(read, Reading::Page { whose, base, page, changes });
            self.figures.index_reads += 1;
            let at = u64::from(page) * PAGE_BYTES as u64;
            out.actions.push(Action::ReadIndex { read, base, at, bytes: PAGE_BYTES as u32 });
        }
    }

    /// Asks for the records of a batch that are not in memory.
    pub(super) fn read_timer_records(
        &mut self,
        whose: Whose,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        let log = &self.log;
        let again = whose != Whose::Delivery
            || self.timers.retry_us.take_if(|due| *due <= now.mono_us).is_some();
        let Some(batch) = self.timers.batch(whose) else { return };
        // The first may have been in memory when it was taken up, and be there no more.
        let first = batch.first().map(|(key, staged)| (key, staged.bytes, &staged.state));
        let is_stuck = first.is_some_and(|(key, bytes, state)| {
            matches!(state, State::Unread) && log.tail.slice(key.position, bytes).is_none()
        });
        if !batch.is_fresh() && !again && !is_stuck {
            return;
        }
        let ranges = batch.plan(again, |key, bytes| {
            // What is not durable yet is in memory, or about to be.
            let is_on_disk = key.position < log.flushed();
            let is_in_memory = log.tail.slice(key.position, bytes).is_some();
            log.segment_of(key.position).filter(|_| is_on_disk && !is_in_memory)
        });
        for range in ranges {
            let read = self.timers.number() | READ_BIT;
            let (start, keys) = (range.start, range.keys);
            self.timers.reads.insert(read, Reading::Records { whose, start, keys });
            self.figures.read_bytes += u64::from(range.bytes);
            out.actions.push(Action::Read { read, position: start, bytes: range.bytes });
        }
    }

    /// The bytes of the first record of a batch.
    pub(super) fn take_bytes(&self, key: Key, staged: &super::batch::Staged) -> Taken<M::Block> {
        match &staged.state {
            State::There(bytes) => Taken::There(Bytes::Read(Rc::clone(bytes))),
            State::Damaged | State::Failed => Taken::Lost,
            State::Unread | State::Reading => {
                match self.log.tail.slice(key.position, staged.bytes) {
                    Some(slice) => {
                        let bytes = Bytes::Tail(slice);
                        // Memory does not lie; the place may, when a client says it.
                        if is_timer(key, bytes.get()) { Taken::There(bytes) } else { Taken::Lost }
                    }
                    None => Taken::NotYet,
                }
            }
        }
    }

    /// A page or records are there, or cannot be read.
    pub(in super::super) fn timer_read(
        &mut self,
        read: u64,
        result: Result<Rc<M::Block>, DiskError>,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        let bytes = result.as_ref().ok().map(|block| block.bytes());
        let whose = match self.timers.reads.remove(&read) {
            None => return,
            Some(Reading::Page { whose, base, page, changes }) => {
                let is_old = changes != self.mending.changes;
                let is_good = match self.timers.sources(whose) {
                    Some(sources) if is_old => sources.take_old(base, page),
                    Some(sources) => sources.take_page(base, page, bytes),
                    None => true,
                };
                if !is_good {
                    self.mend(base);
                }
                whose
            }
            Some(Reading::Records { whose, start, keys }) => {
                let batch = self.timers.batch(whose);
                let again = batch.is_some_and(|batch| batch.take_read(start, &keys, bytes));
                if again && whose == Whose::Delivery {
                    self.timers.retry_us = Some(now.mono_us + RETRY_US);
                }
                whose
            }
        };
        match whose {
            Whose::Job(number) => self.run_timer_job(number, now, out),
            Whose::Delivery | Whose::Moving => self.step_timers(now, out),
        }
    }
}
