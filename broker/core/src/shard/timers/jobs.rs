//! Requests about pending timers: taking one back, listing them. Each reads headers of records, and for a list pages
//! of indexes, and goes on when they are there.
//!
//! Invariants:
//! - at most [`crate::ShardConfig::lookups`] are under way, each looks at a bounded number of records.

use super::batch::Batch;
use super::read::{Taken, Whose};
use super::recall::{Search, Wanted};
use super::{Head, Key};
use crate::seam::{ConnectionId, Memory, Now, Outbox};
use crate::shard::{Asker, Handled, Refuse, Shard, read, refuse};
use crate::timer::{Pulled, Sources};
use ringmq_schema::error::Status;
use ringmq_schema::limits::LIST_TIMERS_MAX;
use ringmq_schema::record::{HEADER_BYTES, RecordHeader};
use ringmq_schema::timer::{ListTimers, ListTimersAnswer, ListTimersAnswerArgs, PendingTimer};
use ringmq_schema::zerocopy::FromBytes;

/// A request under way.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) asker: Asker,
    pub(super) batch: Batch,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Recall(Wanted),
    /// For one that is to be taken back.
    Search(Box<Search>),
    List(Box<List>),
}

#[derive(Debug)]
pub(super) struct List {
    view: Sources,
    topic: u32,
    most: usize,
    found: Vec<PendingTimer>,
    /// Records pulled, and the last that was looked at.
    pulled: usize,
    last_pulled: Option<Key>,
    last: Key,
    unreadable: u32,
}

impl Job {
    pub(super) fn sources(&mut self) -> Option<&mut Sources> {
        match &mut self.what {
            What::Recall(_) => None,
            What::Search(search) => Some(&mut search.view),
            What::List(list) => Some(&mut list.view),
        }
    }
}

/// What a job comes to.
pub(super) enum Ended {
    Waits,
    Done,
    Refused(Refuse),
}

impl<M: Memory> Shard<M> {
    pub(super) fn check_timer_jobs(&self) -> Handled {
        let most = self.config.lookups;
        if self.timers.jobs.len() < most {
            return Ok(());
        }
        let text = format!("{most} requests about delayed messages are under way already");
        Err(Refuse { retry_after_ms: 100, ..refuse(Status::Busy, text) })
    }

    pub(in super::super) fn list_timers(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<ListTimers<'_>>(table)?;
        if request.topic() != 0 && self.registry.topic(request.topic()).is_none() {
            return Err(crate::shard::produce::unknown_topic(request.topic()));
        }
        self.check_timer_jobs()?;
        let after = Key { due_ms: request.after_due_ms(), position: request.after_position() };
        let timers = &self.timers;
        let moving = timers.moving.iter().flat_map(|moving| moving.batch.timers());
        let beside = timers.staged.timers().chain(moving).chain(timers.marks.behind(None));
        // Of those that are looked at as many may have been taken back as ever are.
        let most = LIST_TIMERS_MAX + timers.marks.recalled_len();
        let view = timers.sources.view(after, most, |base| timers.marks.over(base), beside);
        let list = List {
            view,
            topic: request.topic(),
            most: (request.max() as usize).clamp(1, LIST_TIMERS_MAX),
            found: Vec::new(),
            pulled: 0,
            last_pulled: None,
            last: after,
            unreadable: 0,
        };
        let what = What::List(Box::new(list));
        self.begin_timer_job(Job { asker, batch: Batch::default(), what }, now, out);
        Ok(())
    }

    pub(super) fn begin_timer_job(&mut self, job: Job, now: Now, out: &mut Outbox<M::Block>) {
        let number = self.timers.number();
        self.timers.jobs.insert(number, job);
        self.run_timer_job(number, now, out);
    }

    /// Goes on with a request as far as it gets.
    pub(super) fn run_timer_job(&mut self, number: u64, now: Now, out: &mut Outbox<M::Block>) {
        let Some(job) = self.timers.jobs.get(&number) else { return };
        let ended = match &job.what {
            What::Recall(wanted) => {
                let wanted = *wanted;
                self.run_recall(number, &wanted, now, out)
            }
            What::Search(_) => self.run_search(number, now, out),
            What::List(_) => self.run_list(number, now, out),
        };
        if matches!(ended, Ended::Waits) {
            return;
        }
        let Some(job) = self.timers.jobs.remove(&number) else { return };
        if let Ended::Refused(refused) = ended {
            self.refuse(job.asker, &refused, out);
        }
    }

    fn run_list(&mut self, number: u64, now: Now, out: &mut Outbox<M::Block>) -> Ended {
        loop {
            self.read_timer_pages(Whose::Job(number), out);
            if let Some(ended) = self.pull_for_list(number) {
                return ended;
            }
            self.read_timer_records(Whose::Job(number), now, out);
            let is_full = self.look_at_headers(number);
            let Some(job) = self.timers.jobs.get(&number) else { return Ended::Done };
            let What::List(list) = &job.what else { return Ended::Done };
            let is_through = list.view.head().is_none();
            let is_enough = is_full || list.pulled >= LIST_TIMERS_MAX;
            if is_full || job.batch.len() == 0 && (is_through || is_enough) {
                self.answer_list(number, !(is_through && job.batch.len() == 0), out);
                return Ended::Done;
            }
            if job.batch.len() > 0 || !list.view.is_hungry() {
                return Ended::Waits;
            }
        }
    }

    /// Takes up more timers of a list; `Some`: it cannot go on.
    fn pull_for_list(&mut self, number: u64) -> Option<Ended> {
        let timers = &mut self.timers;
        let Some(job) = timers.jobs.get_mut(&number) else { return Some(Ended::Done) };
        let What::List(list) = &mut job.what else { return Some(Ended::Done) };
        while list.pulled < LIST_TIMERS_MAX
            && let Some(Head::Is(_)) = list.view.head()
            && let Some(timer) = list.view.pull()
        {
            let is_again = list.last_pulled.replace(timer.key) == Some(timer.key);
            let segment = self.log.segment_of(timer.key.position);
            let Some(segment) = segment.filter(|_| !is_again) else { continue };
            let is_there = timer.key.position < self.log.open_position();
            if is_there && timers.marks.is_pending(segment.base, timer.key) {
                list.pulled += 1;
                job.batch.add(Pulled { bytes: HEADER_BYTES as u32, ..timer });
            }
        }
        list.view.is_lost().then(|| {
            let text = "the index of a segment is damaged and is being made again";
            Ended::Refused(Refuse { retry_after_ms: 1000, ..refuse(Status::ReadFailed, text) })
        })
    }

    /// Looks at the headers that are there; returns whether the list is full.
    fn look_at_headers(&mut self, number: u64) -> bool {
        loop {
            let Some(job) = self.timers.jobs.get(&number) else { return true };
            let Some((key, staged)) = job.batch.first() else { return false };
            let record = match self.take_bytes(key, staged) {
                Taken::NotYet => return false,
                Taken::There(record) => Some(record),
                Taken::Lost => None,
            };
            let Some(job) = self.timers.jobs.get_mut(&number) else { return true };
            let What::List(list) = &mut job.what else { return true };
            if list.found.len() >= list.most {
                return true;
            }
            let header = record.as_ref().and_then(|record| {
                RecordHeader::ref_from_prefix(record.get()).ok().map(|(header, _)| header)
            });
            match header {
                None => list.unreadable += 1,
                Some(header) if list.topic != 0 && header.topic.get() != list.topic => {}
                Some(header) => list.found.push(pending(key, header)),
            }
            list.last = key;
            job.batch.take_first();
        }
    }

    fn answer_list(&mut self, number: u64, more: bool, out: &mut Outbox<M::Block>) {
        let Some(job) = self.timers.jobs.remove(&number) else { return };
        let What::List(list) = job.what else { return };
        let pending = self.timers.pending();
        self.answer(job.asker, out, |fbb| {
            let timers = Some(fbb.create_vector(&list.found));
            let args = ListTimersAnswerArgs {
                timers,
                more,
                next_due_ms: list.last.due_ms,
                next_position: list.last.position,
                unreadable: list.unreadable,
                pending,
            };
            ListTimersAnswer::create(fbb, &args)
        });
    }

    /// Nobody waits any more for what this connection asked.
    pub(in super::super) fn close_timer_jobs(&mut self, connection: ConnectionId) {
        self.timers.jobs.retain(|_, job| job.asker.connection != connection);
    }

    /// The shard stops: whoever waits is told.
    pub(in super::super) fn end_timer_jobs(&mut self, out: &mut Outbox<M::Block>) {
        let mut left: Vec<_> = self.timers.jobs.drain().collect();
        left.sort_unstable_by_key(|(number, _)| *number);
        for (_, job) in left {
            let text = format!("shard {} is stopping", self.config.shard);
            let refused = Refuse { retry_after_ms: 100, ..refuse(Status::NotReady, text) };
            self.refuse(job.asker, &refused, out);
        }
    }
}

fn pending(key: Key, header: &RecordHeader) -> PendingTimer {
    let id = u128::from_be_bytes(header.message_id);
    PendingTimer::new(
        key.due_ms,
        key.position,
        (id >> 64) as u64,
        id as u64,
        header.store_ms.get(),
        header.topic.get(),
        header.queue.get(),
        header.prefix.length.get(),
        0,
    )
}
