//! Taking a delayed message back.
//!
//! Its handle says where its record lay. One that was appended again since is looked for among those that are due at
//! the same moment and lie behind: the copy has the same time and id.
//!
//! Invariants:
//! - a timer is taken back only when its record was compared, and answered only when that is durable.

use super::Key;
use super::batch::{Batch, State};
use super::jobs::{Ended, Job, What};
use super::read::{Taken, Whose};
use crate::peer::QueueId;
use crate::seam::{Memory, Now, Outbox};
use crate::shard::waiting::Then;
use crate::shard::{Asker, Handled, Refuse, Shard, read, refuse};
use crate::state;
use crate::timer::{Head, Pulled, Sources};
use ringmq_schema::error::Status;
use ringmq_schema::limits::LIST_TIMERS_MAX;
use ringmq_schema::record::{HEADER_BYTES, Kind, RecordHeader};
use ringmq_schema::timer::Recall;
use ringmq_schema::zerocopy::FromBytes;

/// Headers that are read together.
const BATCH_MAX: usize = 128;

/// The message that is to be taken back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    base: u64,
    id: QueueId,
    message_id: [u8; 16],
}

impl Wanted {
    fn is(&self, header: &RecordHeader) -> bool {
        header.topic.get() == self.id.topic
            && header.queue.get() == self.id.queue
            && header.message_id == self.message_id
    }
}

/// A search for one that lies elsewhere by now.
#[derive(Debug)]
pub(super) struct Search {
    wanted: Wanted,
    due_ms: i64,
    pub(super) view: Sources,
    pulled: usize,
    last_pulled: Option<Key>,
}

fn not_pending() -> Refuse {
    let text = "no delayed message with that handle is pending: it was delivered, or taken back";
    refuse(Status::NotFound, text)
}

fn too_many_at_once() -> Refuse {
    let text = format!(
        "the message was appended again when its segment expired, and more than {LIST_TIMERS_MAX} delayed \
         messages are due at the very same time: `ringmq timer ls` shows its new handle"
    );
    refuse(Status::NotFound, text)
}

impl<M: Memory> Shard<M> {
    pub(in super::super) fn recall(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<Recall<'_>>(table)?;
        let id = QueueId { topic: request.topic(), queue: request.queue() };
        let position = request.position();
        if self.registry.topic(id.topic).is_none() {
            return Err(crate::shard::produce::unknown_topic(id.topic));
        }
        self.check_writing()?;
        self.check_timer_jobs()?;
        let key = Key { due_ms: request.due_ms(), position };
        if position >= self.log.written() || !position.is_multiple_of(8) {
            return Err(not_pending());
        }
        let most = self.config.timers_recalled;
        if self.timers.marks.recalled_len() >= most {
            let text =
                format!("{most} messages that were taken back are not past their time; no more");
            return Err(refuse(Status::TooMany, text));
        }
        let mut message_id = [0; 16];
        message_id[..8].copy_from_slice(&request.id_high().to_be_bytes());
        message_id[8..].copy_from_slice(&request.id_low().to_be_bytes());
        let segment = self.log.segment_of(position);
        let base = segment.map_or(0, |segment| segment.base);
        let wanted = Wanted { base, id, message_id };
        let is_here = segment.is_some() && self.timers.marks.is_pending(base, key);
        let (batch, what) = match is_here {
            true => (one(key, base), What::Recall(wanted)),
            false => (Batch::default(), What::Search(self.search_for(wanted, key)?)),
        };
        self.begin_timer_job(Job { asker, batch, what }, now, out);
        Ok(())
    }

    /// Begins to look for one that is not pending where its handle says, if it can be elsewhere.
    fn search_for(&self, wanted: Wanted, key: Key) -> Result<Box<Search>, Refuse> {
        let (timers, due_ms) = (&self.timers, key.due_ms);
        let marks = &timers.marks;
        let is_gone = self.log.segment_of(key.position).is_none();
        let was_moved = is_gone || key <= marks.over(wanted.base);
        // Those that are due before what was delivered last were delivered, but for a few.
        let may_wait = due_ms >= marks.fired().due_ms || marks.is_behind_at(due_ms);
        if marks.is_recalled(key) || !was_moved || !may_wait {
            return Err(not_pending());
        }
        let moving = timers.moving.iter().flat_map(|moving| moving.batch.timers());
        let beside = timers.staged.timers().chain(moving).chain(marks.behind(None));
        let most = LIST_TIMERS_MAX + marks.recalled_len();
        let view = timers.sources.view(key, most, |base| marks.over(base), beside);
        Ok(Box::new(Search { wanted, due_ms, view, pulled: 0, last_pulled: None }))
    }

    /// Goes on with a search. When it is found the job is to take it back.
    pub(super) fn run_search(
        &mut self,
        number: u64,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> Ended {
        loop {
            self.read_timer_pages(Whose::Job(number), out);
            let is_through = match self.pull_for_search(number) {
                Ok(is_through) => is_through,
                Err(refused) => return Ended::Refused(refused),
            };
            self.read_timer_records(Whose::Job(number), now, out);
            if let Some((key, wanted)) = self.compare_headers(number) {
                let Some(job) = self.timers.jobs.get_mut(&number) else { return Ended::Done };
                (job.batch, job.what) = (one(key, wanted.base), What::Recall(wanted));
                return self.run_recall(number, &wanted, now, out);
            }
            let Some(job) = self.timers.jobs.get(&number) else { return Ended::Done };
            let What::Search(search) = &job.what else { return Ended::Done };
            let is_enough = search.pulled >= LIST_TIMERS_MAX;
            match job.batch.len() {
                0 if is_through => return Ended::Refused(not_pending()),
                0 if is_enough => return Ended::Refused(too_many_at_once()),
                0 if search.view.is_hungry() || matches!(search.view.head(), Some(Head::Is(_))) => {
                }
                _ => return Ended::Waits,
            }
        }
    }

    /// Takes up more timers that are due at that time; returns whether there are no more.
    fn pull_for_search(&mut self, number: u64) -> Result<bool, Refuse> {
        let timers = &mut self.timers;
        let Some(job) = timers.jobs.get_mut(&number) else { return Ok(true) };
        let What::Search(search) = &mut job.what else { return Ok(true) };
        while search.pulled < LIST_TIMERS_MAX
            && job.batch.len() < BATCH_MAX
            && let Some(Head::Is(key)) = search.view.head()
            && key.due_ms <= search.due_ms
            && let Some(timer) = search.view.pull()
        {
            let is_again = search.last_pulled.replace(timer.key) == Some(timer.key);
            let segment = self.log.segment_of(timer.key.position);
            let Some(segment) = segment.filter(|_| !is_again) else { continue };
            let is_there = timer.key.position < self.log.open_position();
            if is_there && timers.marks.is_pending(segment.base, timer.key) {
                search.pulled += 1;
                let (bytes, base) = (HEADER_BYTES as u32, segment.base);
                job.batch.add(Pulled { bytes, base, ..timer });
            }
        }
        if search.view.is_lost() {
            let text = "the index of a segment is damaged and is being made again";
            let refused = refuse(Status::ReadFailed, text);
            return Err(Refuse { retry_after_ms: 1000, ..refused });
        }
        Ok(search.view.head().is_none_or(|head| head.key().due_ms > search.due_ms))
    }

    /// Looks at the headers that are there; returns the one that was looked for.
    fn compare_headers(&mut self, number: u64) -> Option<(Key, Wanted)> {
        loop {
            let (key, staged) = self.timers.jobs.get(&number)?.batch.first()?;
            let base = staged.base;
            let record = match self.take_bytes(key, staged) {
                Taken::NotYet => return None,
                Taken::There(record) => Some(record),
                Taken::Lost => None,
            };
            let job = self.timers.jobs.get_mut(&number)?;
            job.batch.take_first();
            let What::Search(search) = &job.what else { return None };
            let header = record.as_ref().and_then(|record| {
                RecordHeader::ref_from_prefix(record.get()).ok().map(|(header, _)| header)
            });
            if header.is_some_and(|header| search.wanted.is(header)) {
                return Some((key, Wanted { base, ..search.wanted }));
            }
        }
    }

    pub(super) fn run_recall(
        &mut self,
        number: u64,
        wanted: &Wanted,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> Ended {
        self.read_timer_records(Whose::Job(number), now, out);
        let Some(job) = self.timers.jobs.get(&number) else { return Ended::Done };
        let Some((key, staged)) = job.batch.first() else { return Ended::Done };
        let asker = job.asker;
        let record = match self.take_bytes(key, staged) {
            Taken::NotYet => return Ended::Waits,
            Taken::There(record) => record,
            Taken::Lost if matches!(staged.state, State::Failed) => {
                let text = format!("the disk does not give the record at {}", key.position);
                return Ended::Refused(refuse(Status::ReadFailed, text));
            }
            Taken::Lost => return Ended::Refused(not_pending()),
        };
        let Ok((header, _)) = RecordHeader::ref_from_prefix(record.get()) else {
            return Ended::Refused(not_pending());
        };
        // It may have been delivered while it was read, or appended again: then it is looked for there.
        if wanted.is(header) && !self.timers.marks.is_pending(wanted.base, key) {
            let search = match self.search_for(*wanted, key) {
                Ok(search) => search,
                Err(refused) => return Ended::Refused(refused),
            };
            let Some(job) = self.timers.jobs.get_mut(&number) else { return Ended::Done };
            (job.batch, job.what) = (Batch::default(), What::Search(search));
            return self.run_search(number, now, out);
        }
        if !wanted.is(header) {
            return Ended::Refused(not_pending());
        }
        if let Err(refused) = self.check_writing() {
            return Ended::Refused(refused);
        }
        let payload = state::write_timer(key.due_ms, key.position, wanted.id);
        let end = self.log.append_state(Kind::TimerEnd, &payload, true, now, out);
        self.timers.marks.recall(key);
        self.timers.delayed.end(wanted.id);
        self.timers.sources.ended(wanted.base, end);
        self.figures.timers_recalled += 1;
        let mut bytes = Vec::new();
        self.frames.done(&mut bytes, asker.opcode, asker.correlation);
        self.waiting.push(end, true, Then::Answer(asker, bytes));
        self.log.pump(now, out);
        Ended::Done
    }
}

fn one(key: Key, base: u64) -> Batch {
    let mut batch = Batch::default();
    batch.add(Pulled { key, bytes: HEADER_BYTES as u32, base });
    batch
}
