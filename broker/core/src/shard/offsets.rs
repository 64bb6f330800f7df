//! Offsets: commit, query, search by time, reset; and ownership as the queue's shard keeps it.

use super::lookup::Time;
use super::waiting::Then;
use super::{Asker, Handled, Refuse, Shard, read, refuse};
use crate::peer::{Ownership, QueueId, member_id, member_of};
use crate::seam::{Memory, Now, Outbox};
use crate::state::{self, Committed};
use ringmq_schema::consume::{
    CommitEntry, CommitOffsets, CommitOffsetsAnswer, CommitOffsetsAnswerArgs, CommitResult,
    QueryOffsets, QueryOffsetsAnswer, QueryOffsetsAnswerArgs, QueueOffsets, ResetOffsets,
    SearchOffsets,
};
use ringmq_schema::error::Status;
use ringmq_schema::limits::QUEUES_PER_REQUEST_MAX;
use ringmq_schema::placement::shard_of_group;
use ringmq_schema::record::Kind;

/// In a search: the first readable offset.
const FIRST: i64 = -1;
/// In a search: the high watermark.
const LAST: i64 = -2;

impl<M: Memory> Shard<M> {
    pub(super) fn commit_offsets(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<CommitOffsets<'_>>(table)?;
        let group = request.group();
        self.check_group(group)?;
        self.check_writing()?;
        let entries = request.entries().ok_or_else(nothing)?;
        check_count(entries.len())?;
        let member = member_of(request.member());
        let mut results = Vec::with_capacity(entries.len());
        let mut moved = Vec::new();
        for entry in entries {
            let queue = QueueId { topic: entry.topic(), queue: entry.queue() };
            let status = self.commit_status(group, queue, entry, member);
            let (offset, attempts) = (entry.offset(), entry.attempts());
            let commit = Committed { group, queue, offset, attempts };
            if status == Status::Ok && self.offsets.commit(commit, now.wall_ms) {
                moved.push(commit);
            }
            results.push(CommitResult::new(queue.topic, queue.queue, status.code(), 0));
        }
        self.answer_commit(&moved, &results, false, asker, now, out);
        Ok(())
    }

    fn commit_status(
        &self,
        group: u32,
        queue: QueueId,
        entry: &CommitEntry,
        member: u128,
    ) -> Status {
        match self.readable(queue) {
            Err(refused) => refused.status,
            // promise: one-owner
            Ok(_) if !self.offsets.may(group, queue, member, entry.generation()) => Status::Fenced,
            Ok(next) if entry.offset() > next => Status::OffsetOutOfRange,
            Ok(_) => Status::Ok,
        }
    }

    pub(super) fn reset_offsets(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<ResetOffsets<'_>>(table)?;
        let group = request.group();
        self.check_group(group)?;
        self.check_writing()?;
        let entries = request.entries().ok_or_else(nothing)?;
        check_count(entries.len())?;
        let mut results = Vec::with_capacity(entries.len());
        let mut moved = Vec::new();
        for entry in entries {
            let queue = QueueId { topic: entry.topic(), queue: entry.queue() };
            let status = match self.readable(queue) {
                Err(refused) => refused.status,
                Ok(next) if entry.offset() > next => Status::OffsetOutOfRange,
                Ok(_) => Status::Ok,
            };
            if status == Status::Ok {
                self.fence_owner(group, queue, now, out);
                let to = Committed { group, queue, offset: entry.offset(), attempts: 0 };
                self.offsets.reset(to, now.wall_ms);
                self.reset_popped(group, queue, to.offset, now, out);
                moved.push(to);
            }
            results.push(CommitResult::new(queue.topic, queue.queue, status.code(), 0));
        }
        self.answer_commit(&moved, &results, true, asker, now, out);
        Ok(())
    }

    /// Has the owner of a queue start anew, under the next generation: whatever it read before and commits from here
    /// on does not count. It learns so from its fetch, and from the group's shard what it owns then.
    fn fence_owner(&mut self, group: u32, queue: QueueId, now: Now, out: &mut Outbox<M::Block>) {
        let progress = self.offsets.get(group, queue);
        let Some(name) = self.registry.group(group).map(|group| group.name.as_str()) else {
            return;
        };
        if progress.owner == 0 {
            return;
        }
        let to = shard_of_group(name, self.config.shards);
        let (member, generation) = (progress.owner, progress.generation + 1);
        let ownership = Ownership { group, queue, member, generation };
        let is_newer = self.offsets.own(&ownership);
        debug_assert!(is_newer, "one more than the one that is known");
        self.log_owner(ownership, to, now, out);
    }

    /// Logs an ownership that stands from here on; the group's shard is told when it is durable, and whoever fetches
    /// under the old one at once.
    fn log_owner(&mut self, ownership: Ownership, to: u16, now: Now, out: &mut Outbox<M::Block>) {
        let payload = state::write_owner(&ownership);
        let end = self.log.append_state(Kind::Owner, &payload, true, now, out);
        self.waiting.push(end, true, Then::Assigned { to, ownership, accepted: true });
        if let Some(slot) = self.queues.slot(ownership.queue) {
            let waiting = std::mem::take(&mut self.queues.at_mut(slot).waiting);
            self.fetches.wake(waiting);
        }
    }

    /// Logs what moved; the answer follows when the device took it, or it is durable.
    fn answer_commit(
        &mut self,
        moved: &[Committed],
        results: &[CommitResult],
        durable: bool,
        asker: Asker,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        let build = |fbb: &mut ringmq_schema::flatbuffers::FlatBufferBuilder<'static>| {
            let entries = Some(fbb.create_vector(results));
            CommitOffsetsAnswer::create(fbb, &CommitOffsetsAnswerArgs { entries })
        };
        // A commit that changes nothing answers for the one that did: that may be on its way still.
        if moved.is_empty() && self.log.written() >= self.log.appended() {
            self.answer(asker, out, build);
            return;
        }
        let end = if moved.is_empty() {
            self.log.appended()
        } else {
            let payload = state::write_offsets(moved);
            self.log.append_state(Kind::Offsets, &payload, durable, now, out)
        };
        self.answer_at(end, durable, asker, build);
    }

    pub(super) fn check_group(&self, group: u32) -> Handled {
        if self.registry.group(group).is_some() {
            return Ok(());
        }
        let text = format!("there is no group with id {group} on broker {}", self.config.broker);
        Err(refuse(Status::UnknownGroup, text))
    }

    /// Whether a queue can be read here; returns its next offset.
    pub(super) fn readable(&self, queue: QueueId) -> Result<u64, Refuse> {
        self.check_readable(queue)?;
        Ok(self.queues.get(queue).map_or(0, |q| q.next))
    }

    /// Whether a queue can be read here.
    pub(super) fn check_readable(&self, queue: QueueId) -> Handled {
        let topic = self
            .registry
            .topic(queue.topic)
            .ok_or_else(|| super::produce::unknown_topic(queue.topic))?;
        let settings = &topic.settings;
        if settings.permission & super::produce::READ == 0 {
            let text =
                format!("topic {} is not to be read: its permission is write-only", settings.name);
            return Err(refuse(Status::NotReadable, text));
        }
        if queue.queue >= settings.read_queues {
            let text = format!(
                "topic {} has {} read queues here, there is no queue {}",
                settings.name, settings.read_queues, queue.queue
            );
            return Err(refuse(Status::UnknownQueue, text));
        }
        self.check_shard(queue)
    }

    pub(super) fn query_offsets(
        &mut self,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<QueryOffsets<'_>>(table)?;
        let group = request.group();
        if group != 0 {
            self.check_group(group)?;
        }
        let queues = request.queues().ok_or_else(nothing)?;
        check_count(queues.len())?;
        let found: Vec<QueueOffsets> = queues
            .iter()
            .map(|queue| {
                let id = QueueId { topic: queue.topic(), queue: queue.queue() };
                let status = self.readable(id).err().map_or(Status::Ok, |refused| refused.status);
                let (min, max) = self.queues.get(id).map_or((0, 0), |q| (q.min, q.visible));
                let progress = self.offsets.get(group, id);
                let done = self.pops.get(group, id).map(crate::pop::Flights::done);
                let committed = progress.committed.max(done);
                let is_its = committed == progress.committed;
                let attempts = if is_its { progress.attempts } else { 0 };
                QueueOffsets::new(
                    id.topic,
                    id.queue,
                    committed.map_or(-1, |offset| offset as i64),
                    min,
                    max,
                    progress.generation,
                    status.code(),
                    attempts,
                    &member_id(progress.owner),
                    progress.committed_ms,
                )
            })
            .collect();
        self.answer(asker, out, |fbb| {
            let queues = Some(fbb.create_vector(&found));
            QueryOffsetsAnswer::create(fbb, &QueryOffsetsAnswerArgs { queues })
        });
        Ok(())
    }

    pub(super) fn search_offsets(
        &mut self,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<SearchOffsets<'_>>(table)?;
        let queues = request.queues().ok_or_else(nothing)?;
        check_count(queues.len())?;
        let wanted = queues
            .iter()
            .map(|wanted| {
                let id = QueueId { topic: wanted.topic(), queue: wanted.queue() };
                let status = self.readable(id).err().map_or(Status::Ok, |refused| refused.status);
                let known = match (self.queues.get(id), wanted.at_ms()) {
                    (None, _) => 0,
                    (Some(queue), FIRST) => queue.min,
                    (Some(queue), LAST) => queue.visible,
                    (Some(_), at_ms) if status == Status::Ok => return Time::new(id, at_ms),
                    (Some(_), _) => 0,
                };
                Time::known(id, known, status)
            })
            .collect();
        self.search_times(asker, wanted, out)
    }

    /// The group's shard gives a queue of this shard an owner.
    pub(super) fn assign(
        &mut self,
        from: u16,
        ownership: Ownership,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        if self.log.failed().is_some() {
            return;
        }
        let Ownership { group, queue, .. } = ownership;
        // The fence stands as soon as it is appended: the old owner's commits fail from here on.
        if !self.offsets.own(&ownership) {
            let progress = self.offsets.get(group, queue);
            let known =
                Ownership { group, queue, member: progress.owner, generation: progress.generation };
            // promise: one-owner. What is known may not be durable yet: a member that was told of a generation
            // which a power loss takes back would share it with another.
            let then = Then::Assigned { to: from, ownership: known, accepted: false };
            self.waiting.push(self.log.appended(), true, then);
            self.answer_waiting(now, out);
            return;
        }
        self.log_owner(ownership, from, now, out);
    }
}

/// Whoever asks about queues must name some.
pub(super) fn nothing() -> Refuse {
    refuse(Status::BadRequest, "the request names no queues")
}

pub(super) fn check_count(count: usize) -> Handled {
    if count <= QUEUES_PER_REQUEST_MAX {
        return Ok(());
    }
    let text =
        format!("the request names {count} queues, at most {QUEUES_PER_REQUEST_MAX} are allowed");
    Err(refuse(Status::BadRequest, text))
}
