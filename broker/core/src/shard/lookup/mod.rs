//! Look-ups that need the disk: offsets by time, messages by key, by unique id, by position; how many a filter wants.
//!
//! Each is a small state machine that goes on when a page of an index or a record is there.
//!
//! Invariants:
//! - at most [`crate::ShardConfig::lookups`] are under way, each with a bounded number of reads, and one step of
//!   one is a bounded piece of work (promises: bounded, isolation);
//! - a page that arrives goes to the look-up that asked for it, not only into the cache: a look-up ends however
//!   small the cache is;
//! - what cannot be read is said to be unreadable, never to be not there.

mod compare;
mod count;
mod counts;
mod find;
mod probe;
mod request;
mod times;

use super::locate::PageName;
use super::{Asker, Handled, Refuse, Shard, refuse};
use crate::index::{Header, PAGE_BYTES, PageCache};
use crate::seam::{Action, ConnectionId, DiskError, Memory, Now, Outbox};
use crate::table::Map;
use count::Count;
use find::Find;
use ringmq_schema::error::Status;
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
pub(super) use times::Time;
use times::Times;

/// Reads of look-ups have this bit in their number, those of fetches have not.
const READ_BIT: u64 = 1 << 63;

/// Look-ups under way, by number.
#[derive(Debug)]
pub(super) struct Lookups<B> {
    under_way: Map<u64, Job<B>>,
    reads: Map<u64, Reading>,
    /// They stopped after a bounded piece of work, not to wait for a read.
    ready: BTreeSet<u64>,
    /// Counts that wait for their turn, and when the next has it.
    counting: VecDeque<u64>,
    count_due_us: u64,
    next: u64,
}

impl<B> Default for Lookups<B> {
    fn default() -> Self {
        let (under_way, reads) = (Map::default(), Map::default());
        let (ready, counting) = (BTreeSet::new(), VecDeque::new());
        Lookups { under_way, reads, ready, counting, count_due_us: 0, next: 0 }
    }
}

#[derive(Debug)]
enum Job<B> {
    Times(Times),
    Find(Box<Find<B>>),
    Count(Box<Count<B>>),
}

impl<B> Job<B> {
    fn asker(&self) -> Asker {
        match self {
            Job::Times(times) => times.asker,
            Job::Find(find) => find.asker,
            Job::Count(count) => count.asker,
        }
    }
}

/// What a read is for.
#[derive(Debug, Clone, Copy)]
struct Reading {
    lookup: u64,
    /// Which part of the look-up asked.
    part: usize,
    of: Of,
    /// How many changes of indexes there had been.
    changes: u64,
}

#[derive(Debug, Clone, Copy)]
enum Of {
    Page(PageName),
    /// For a count.
    Pages(PageName),
    /// The log from this position on.
    Log(u64),
}

/// A page that was read for a look-up; `None`: it could not be, or is damaged.
#[derive(Debug, Clone)]
struct Arrived {
    name: PageName,
    room: Option<Rc<[u8]>>,
}

impl<B> Lookups<B> {
    /// Whether a read was asked for here.
    pub(super) fn owns(&self, read: u64) -> bool {
        read & READ_BIT != 0
    }

    /// When look-ups go on by themselves, in `Now::mono_us`.
    pub(super) fn next_wake(&self) -> Option<u64> {
        if !self.ready.is_empty() {
            return Some(0);
        }
        (!self.counting.is_empty()).then_some(self.count_due_us)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl<M: Memory> Shard<M> {
    /// Whether one more look-up may begin.
    fn check_lookups(&self) -> Handled {
        let most = self.config.lookups;
        if self.lookups.under_way.len() < most {
            return Ok(());
        }
        let text = format!("{most} look-ups are under way already");
        Err(Refuse { retry_after_ms: 100, ..refuse(Status::Busy, text) })
    }

    fn begin_lookup(&mut self, job: Job<M::Block>, out: &mut Outbox<M::Block>) {
        self.figures.lookups += 1;
        let number = self.lookups.number();
        self.run_lookup(number, job, out);
    }

    /// Goes on as far as it gets.
    fn run_lookup(&mut self, number: u64, mut job: Job<M::Block>, out: &mut Outbox<M::Block>) {
        let ended = match &mut job {
            Job::Times(times) => self.run_times(number, times, out),
            Job::Find(find) => self.run_find(number, find, out),
            Job::Count(count) => self.run_count(number, count, out),
        };
        if ended {
            self.lookups.ready.remove(&number);
        } else {
            self.lookups.under_way.insert(number, job);
        }
    }

    /// Those go on that stopped after a bounded piece of work.
    pub(super) fn step_lookups(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        for number in std::mem::take(&mut self.lookups.ready) {
            if let Some(job) = self.lookups.under_way.remove(&number) {
                self.run_lookup(number, job, out);
            }
        }
        self.step_counts(now, out);
    }

    /// Reads a page of an index for part of a look-up.
    fn read_page(&mut self, lookup: u64, part: usize, name: PageName, out: &mut Outbox<M::Block>) {
        let changes = self.mending.changes;
        let read = self.lookups.number() | READ_BIT;
        self.lookups.reads.insert(read, Reading { lookup, part, of: Of::Page(name), changes });
        self.figures.index_reads += 1;
        let at = u64::from(name.page) * PAGE_BYTES as u64;
        let bytes = PAGE_BYTES as u32;
        out.actions.push(Action::ReadIndex { read, base: name.base, at, bytes });
    }

    /// Reads from the log for part of a look-up.
    fn read_log(
        &mut self,
        lookup: u64,
        part: usize,
        position: u64,
        bytes: u32,
        out: &mut Outbox<M::Block>,
    ) {
        let changes = self.mending.changes;
        let read = self.lookups.number() | READ_BIT;
        self.lookups.reads.insert(read, Reading { lookup, part, changes, of: Of::Log(position) });
        self.figures.read_bytes += u64::from(bytes);
        out.actions.push(Action::Read { read, position, bytes });
    }

    /// A page of an index or a part of the log is there.
    pub(super) fn lookup_read(
        &mut self,
        read: u64,
        result: Result<Rc<M::Block>, DiskError>,
        out: &mut Outbox<M::Block>,
    ) {
        use crate::seam::Block;
        let Some(reading) = self.lookups.reads.remove(&read) else { return };
        let Reading { lookup, part, of, changes } = reading;
        if let Some(Job::Count(_)) = self.lookups.under_way.get(&lookup) {
            if let Some(Job::Count(mut count)) = self.lookups.under_way.remove(&lookup) {
                self.count_read(&mut count, reading, result);
                self.lookups.under_way.insert(lookup, Job::Count(count));
            }
            return;
        }
        // Nobody may wait for it any more; the page is of use to others.
        let is_old = changes != self.mending.changes;
        let arrived = match (of, &result) {
            (Of::Page(name), _) if is_old => Some(Arrived { name, room: None }),
            (Of::Page(name), Ok(block)) => {
                let room = self.index_pages.insert(name.base, name.page, block.bytes());
                Some(Arrived { name, room })
            }
            (Of::Page(name), Err(_)) => Some(Arrived { name, room: None }),
            (Of::Log(_) | Of::Pages(_), _) => None,
        };
        if let Some(Arrived { name, room: None }) = &arrived
            && !is_old
        {
            self.mend(name.base);
        }
        let Some(mut job) = self.lookups.under_way.remove(&lookup) else { return };
        match (&mut job, of, arrived) {
            (Job::Times(times), _, Some(page)) => self.time_page(lookup, times, part, page, out),
            (Job::Find(find), _, Some(page)) => self.find_page(lookup, find, part, page, out),
            (Job::Find(find), Of::Log(start), _) => find.take_block(part, start, result.ok()),
            (Job::Times(_) | Job::Count(_), ..) | (Job::Find(_), ..) => {}
        }
        self.run_lookup(lookup, job, out);
    }

    /// Nobody waits any more for what this connection asked.
    pub(super) fn close_lookups(&mut self, connection: ConnectionId) {
        let is_gone = |job: &Job<M::Block>| job.asker().connection == connection;
        self.lookups.under_way.retain(|_, job| !is_gone(job));
        let Lookups { ready, counting, under_way, .. } = &mut self.lookups;
        ready.retain(|number| under_way.contains_key(number));
        counting.retain(|number| under_way.contains_key(number));
    }

    /// The shard stops: whoever waits is told.
    pub(super) fn end_lookups(&mut self, out: &mut Outbox<M::Block>) {
        let mut left: Vec<_> = self.lookups.under_way.drain().collect();
        left.sort_unstable_by_key(|(number, _)| *number);
        self.lookups.ready.clear();
        self.lookups.counting.clear();
        for (_, job) in left {
            let text = format!("shard {} is stopping", self.config.shard);
            let refused = Refuse { retry_after_ms: 100, ..refuse(Status::NotReady, text) };
            self.refuse(job.asker(), &refused, out);
        }
    }
}

/// One page of an index.
fn one(base: u64, page: u32) -> PageName {
    PageName { base, page, count: 1 }
}

/// A page that arrived, or that is in the cache. `None`: it must be read.
fn page(pages: &mut PageCache, arrived: Option<&Arrived>, name: PageName) -> Option<Rc<[u8]>> {
    match arrived {
        Some(Arrived { name: here, room: Some(room) }) if *here == name => Some(Rc::clone(room)),
        _ => pages.get(name.base, name.page),
    }
}

/// The header of the index of a whole segment of this shard.
fn header_of(room: &[u8], base: u64, end: u64, log_id: u64, shard: u16) -> Option<Header> {
    let header = Header::from_room(room, base).ok()?;
    header.check_owner(log_id, shard).ok()?;
    (header.end == end).then_some(header)
}
