//! The journal and the judge. It hears of every request when it is delivered and of every answer when it
//! leaves the shard, which is the earliest moment at which a client may rely on it.

pub mod delayed;
pub mod groups;
pub mod lanes;
pub mod messages;
pub mod pops;
pub mod retries;
pub mod topics;
pub mod wanted;

use crate::sim::disk::{CrashKind, Disk};
use crate::sim::talk::{
    Fetched, Intent, OffsetsOf, PopOf, PoppedOne, QueueKey, Received, Reply, Wanted, Wish,
};
use crate::sim::{Summary, Verdict, violation};
use groups::Groups;
use messages::Messages;
use pops::Pops;
use retries::Retries;
use ringmq_schema::error::{Retry, Status};
use ringmq_schema::placement::shard_of_queue;
use std::collections::BTreeMap;
use topics::Topics;
use wanted::Deliveries;

/// A request that was delivered and not yet answered.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Pending {
    pub connection: u64,
    pub client: usize,
    pub shard: u16,
    pub one_way: bool,
    pub intent: Intent,
    /// Number of the event in which it was delivered, and its time; 0: on its way.
    pub delivered: u64,
    pub delivered_us: u64,
    /// What the group was known to have committed then.
    pub floors: Vec<Option<u64>>,
    /// High watermarks that had been told when an answer that takes its time began.
    pub watermarks: Option<BTreeMap<QueueKey, u64>>,
}

/// When something happens: µs, and the number of the event.
pub type When = (u64, u64);

/// See the module.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Oracle {
    pub messages: Messages,
    pub groups: Groups,
    pub pops: Pops,
    pub deliveries: Deliveries,
    pub topics: Topics,
    pub retries: Retries,
    pub summary: Summary,
    /// By shard: the worst crash since its queues' ends were last compared.
    crashes: Vec<Option<CrashKind>>,
    /// Messages sent before the last crash.
    sent_before: u32,
}

impl Oracle {
    /// An empty journal.
    pub fn new(mark: u64, shards: u16, pop_attempts: u16) -> Oracle {
        Oracle {
            messages: Messages::new(mark),
            groups: Groups::default(),
            pops: Pops::new(pop_attempts),
            deliveries: Deliveries::default(),
            topics: Topics::default(),
            retries: Retries::default(),
            summary: Summary::default(),
            crashes: vec![None; usize::from(shards)],
            sent_before: 0,
        }
    }

    /// A request is handed to its shard.
    pub fn delivered(&mut self, pending: &mut Pending, when: When) {
        (pending.delivered_us, pending.delivered) = when;
        match &pending.intent {
            Intent::Commit { group, entries, .. } => {
                entries.iter().for_each(|entry| self.groups.asks(*group, entry));
            }
            Intent::Reset { group, entry } => {
                self.groups.resetting(*group, entry);
                self.retries.resets(*group, entry.queue);
                self.pops.resets(*group, entry.queue);
            }
            Intent::Offsets { group, queues } => {
                pending.floors = queues.iter().map(|q| self.groups.floor(*group, *q)).collect();
            }
            Intent::Change { group, receipts, ms } => {
                let changing = |of| self.pops.changing(*group, of, *ms, when.0);
                receipts.iter().for_each(changing);
            }
            Intent::Pop(_) => self.pops.asks(),
            Intent::Ack { group, receipts } => {
                receipts.iter().for_each(|receipt| self.pops.acking(*group, receipt));
            }
            Intent::Delete { topic } => self.topics.deleting(*topic),
            Intent::Recall { index } => self.messages.recalling(*index),
            _ => {}
        }
    }

    /// An answer leaves the shard.
    pub fn answered(
        &mut self,
        pending: &Pending,
        reply: &Reply,
        when: When,
        disk: &Disk,
    ) -> Verdict {
        if let Intent::Pop(_) = &pending.intent {
            self.pops.heard();
        }
        if let Reply::Refused { status, message } = reply {
            return self.refused(pending, *status, message, when);
        }
        let summary = &mut self.summary;
        match (&pending.intent, reply) {
            (Intent::Produce { first, count, .. }, Reply::Produced { base, records, position }) => {
                let (sent, stored) = ((*first, *count), (*base, *records));
                self.messages.acknowledged(sent, stored, *position, when.0, disk, summary)
            }
            (Intent::Recall { index }, _) => {
                summary.recalled += 1;
                self.messages.recalled(*index)
            }
            (Intent::Damaged { .. } | Intent::Garbage, _) => {
                violation(format!("garbage was taken: {:?}, {reply:?}", pending.intent))
            }
            (Intent::Fetch { group, wanted, max_bytes, max_records }, Reply::Fetched(queues)) => {
                let total: usize = queues.iter().map(|q| q.records.len()).sum();
                if total > *max_records as usize {
                    return violation(format!("{total} records where {max_records} were wanted"));
                }
                let bytes: u64 = queues
                    .iter()
                    .flat_map(|q| &q.records)
                    .map(|r| u64::from(r.payload_bytes))
                    .sum();
                if total > 1 && bytes > u64::from(*max_bytes) {
                    return violation(format!("{bytes} bytes where {max_bytes} were wanted"));
                }
                let known = pending.watermarks.as_ref();
                for queue in queues {
                    self.fetched(wanted, queue, known, disk)?;
                    self.note_delivery(*group, wanted, queue);
                }
                Ok(())
            }
            (Intent::Commit { group, member, entries }, Reply::Committed(results)) => {
                self.committed(*group, *member, entries, results, pending.delivered, when)
            }
            (
                Intent::Retry { group, queue, generation, offset, message_id },
                Reply::Retried { dead_lettered, deliver_ms },
            ) => {
                self.summary.retries += 1;
                self.retries.ends((*group, *queue, *generation), *offset);
                self.retries.acknowledged(message_id, *dead_lettered, *deliver_ms)
            }
            (Intent::Reset { group, entry }, reply) => {
                let done =
                    matches!(reply, Reply::Committed(r) if r.iter().all(|r| r.1 == Status::Ok));
                self.groups.reset(*group, entry, done, when.1);
                Ok(())
            }
            (Intent::Offsets { group, queues }, Reply::Offsets(told)) => {
                if queues.len() != told.len() {
                    return violation(format!("asked for {queues:?}, told {told:?}"));
                }
                for ((told, key), floor) in told.iter().zip(queues).zip(&pending.floors) {
                    if told.queue != *key {
                        return violation(format!("asked for {key:?}, told {told:?}"));
                    }
                    if told.status == Status::Ok && !self.is_in_doubt(*key) {
                        self.messages.high_watermark(*key, told.max_offset)?;
                        self.groups.offsets(*group, told, *floor)?;
                    } else if told.status != Status::Ok {
                        self.queue_refused(*key, told.status)?;
                    }
                }
                Ok(())
            }
            (Intent::Pop(of), Reply::Popped(popped)) => {
                let delivered = (pending.delivered_us, pending.delivered);
                for (one, record) in popped {
                    self.messages.saw(record, disk)?;
                    self.check_wanted(of.wish, record)?;
                    self.pops.popped(of.group, one, of.invisible_ms, delivered, when)?;
                    self.check_lane(of, one, record, when)?;
                    self.summary.popped += 1;
                }
                if popped.len() > of.max_records as usize {
                    return violation(format!("{} where {of:?} was asked", popped.len()));
                }
                Ok(())
            }
            (Intent::Ack { group, receipts }, Reply::Acked(statuses)) => {
                let delivered = pending.delivered;
                let acked = self.pops.acked(*group, receipts, statuses, delivered, when)?;
                self.summary.acked += acked;
                Ok(())
            }
            (Intent::Change { group, receipts, ms }, Reply::Changed(results)) => {
                let delivered = (pending.delivered_us, pending.delivered);
                self.pops.changed(*group, receipts, results, *ms, delivered, when.1)
            }
            (Intent::PopsDone { group, wish, .. }, Reply::Offsets(told)) => {
                told.iter().try_for_each(|told| self.pops_done(*group, *wish, told))
            }
            (Intent::Beat { member, .. }, Reply::Beat { group, queues, .. }) => {
                self.groups.told(*group, *member, queues, when.1)
            }
            (Intent::Create { topic }, Reply::Topic(seen)) => {
                self.topics.created(*topic, seen.as_ref())
            }
            (Intent::Delete { topic }, _) => {
                self.topics.deleted(*topic);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn refused(&mut self, pending: &Pending, status: Status, text: &str, when: When) -> Verdict {
        if status == Status::Internal {
            return violation(format!("{:?} is answered Internal: {text}", pending.intent));
        }
        let not_begun = matches!(status, Status::NotReady | Status::Busy);
        match &pending.intent {
            Intent::Produce { first, count, .. } | Intent::Damaged { first, count } => {
                self.messages.refused((*first, *count), status)
            }
            Intent::Create { topic } if status.retry() == Retry::Never || not_begun => {
                self.topics.refused(*topic);
                Ok(())
            }
            Intent::Delete { topic } if not_begun => {
                self.topics.kept(*topic);
                Ok(())
            }
            Intent::Reset { group, entry } => {
                self.groups.reset(*group, entry, false, when.1);
                Ok(())
            }
            Intent::Retry { message_id, .. } => self.retries.refused(message_id, status),
            _ => Ok(()),
        }
    }

    /// The last time at which anything that was delayed or sent back is due, ms.
    pub fn last_due_ms(&self) -> i64 {
        self.messages.last_due_ms().max(self.retries.last_due_ms(self.messages.wall_ms))
    }

    /// Damage may have taken the end of a queue that the auditor does not look at: a group's own.
    fn is_in_doubt(&self, queue: QueueKey) -> bool {
        let shard = shard_of_queue(queue.0, queue.1, self.crashes.len() as u16);
        self.retries.is_damaged(shard) && !self.topics.is_known(queue.0)
    }

    /// promise: at-least-once
    fn pops_done(&mut self, group: u32, wish: Option<Wish>, told: &OffsetsOf) -> Verdict {
        let (queue, end) = (told.queue, u64::try_from(told.committed).unwrap_or(0));
        if told.status != Status::Ok || self.topics.may_expire(queue.0) {
            return Ok(());
        }
        let shard = shard_of_queue(queue.0, queue.1, self.crashes.len() as u16);
        for offset in self.pops.never_seen(group, queue, end) {
            let is_unwanted =
                wish.is_some_and(|wish| self.messages.may_be_left_out(queue, offset, &wish));
            if !is_unwanted && !self.messages.lose(queue, shard, offset) {
                let what = self.messages.describe(queue, offset);
                return violation(format!(
                    "group {group}, queue {queue:?}: {offset} of {end} is done and nobody got it: {what}"
                ));
            }
        }
        Ok(())
    }

    fn queue_refused(&self, queue: QueueKey, status: Status) -> Verdict {
        let gone = matches!(status, Status::UnknownTopic | Status::UnknownQueue);
        if gone && self.topics.must_serve(queue.0) {
            return violation(format!("queue {queue:?} of a live topic is {status}"));
        }
        if matches!(status, Status::Corrupt | Status::Internal) {
            return violation(format!("queue {queue:?} is {status}"));
        }
        Ok(())
    }

    fn fetched(
        &mut self,
        wanted: &[Wanted],
        got: &Fetched,
        known: Option<&BTreeMap<QueueKey, u64>>,
        disk: &Disk,
    ) -> Verdict {
        let Some(asked) = wanted.iter().find(|wanted| wanted.queue == got.queue) else {
            return violation(format!("{:?} was not asked for", got.queue));
        };
        if got.status != Status::Ok {
            return match (got.status, got.records.is_empty()) {
                (_, false) => violation(format!("{} with records: {got:?}", got.status)),
                (Status::Corrupt, true) => self.corrupt(asked, got),
                (Status::OffsetOutOfRange, true) if asked.offset < got.min_offset => {
                    let may = self.topics.may_expire(got.queue.0);
                    self.summary.expired += u64::from(may);
                    self.messages.expired(got.queue, asked.offset..got.min_offset, may)
                }
                (status, true) => self.queue_refused(got.queue, status),
            };
        }
        let known = known.and_then(|known| known.get(&got.queue)).copied();
        if !self.is_in_doubt(got.queue) {
            self.messages.high_watermark_since(got.queue, got.high_watermark, known)?;
        }
        let mut next = asked.offset;
        for record in &got.records {
            if record.queue != got.queue || record.offset >= got.high_watermark {
                return violation(format!("{record:?} in an answer for {got:.200?}"));
            }
            self.skipped(asked, next, record.offset)?;
            match self.retries.is_one(&record.message_id) {
                true => self.retries.delivered(record, disk)?,
                false => self.messages.saw(record, disk)?,
            }
            self.check_wanted(asked.wish, record)?;
            self.summary.seen += 1;
            next = record.offset + 1;
        }
        if got.next_offset < next || got.next_offset > got.high_watermark.max(asked.offset) {
            let (told, end) = (got.next_offset, got.high_watermark);
            return violation(format!("{asked:?}: {next} is next of {end}, told is {told}"));
        }
        self.skipped(asked, next, got.next_offset)
    }

    /// Only what lay in a damaged unit is said to be damaged.
    fn corrupt(&mut self, asked: &Wanted, got: &Fetched) -> Verdict {
        let (from, to) = (asked.offset, got.next_offset);
        if to < from {
            return violation(format!("{asked:?}: damaged, to go on at {to}"));
        }
        let shard = shard_of_queue(got.queue.0, got.queue.1, self.crashes.len() as u16);
        let mut found = false;
        for offset in from..to.max(from + 1) {
            let filtered = asked
                .wish
                .is_some_and(|w| to > from && self.messages.may_be_left_out(got.queue, offset, &w));
            if filtered {
                // What nobody wants is not told to be damaged, nor to be whole.
                found |= self.messages.may_be_lost(got.queue, shard, offset);
            } else if self.messages.lose(got.queue, shard, offset) {
                found = true;
            } else {
                return violation(format!(
                    "{asked:?}: told damaged up to {to}, and offset {offset} is not: {}",
                    self.messages.describe(got.queue, offset)
                ));
            }
        }
        if !found && !self.messages.lose(got.queue, shard, to) {
            return violation(format!("{asked:?}: told damaged up to {to}, and nothing is"));
        }
        Ok(())
    }

    /// Only a filter leaves offsets out, and only those that it does not want.
    fn skipped(&mut self, asked: &Wanted, from: u64, to: u64) -> Verdict {
        if from == to {
            return Ok(());
        }
        let Some(wish) = asked.wish.filter(|_| from < to) else {
            return violation(format!("{asked:?}: offset {to} comes where {from} was next"));
        };
        self.summary.left_out += to - from;
        let is_missed = |offset: &u64| !self.messages.may_be_left_out(asked.queue, *offset, &wish);
        match (from..to).find(is_missed) {
            Some(offset) => violation(format!("{asked:?}: offset {offset} was left out")),
            None => Ok(()),
        }
    }

    /// What does not verify comes whatever is wanted: the consumer sets it aside.
    fn check_wanted(&self, wish: Option<Wish>, record: &Received) -> Verdict {
        let Some(wish) = wish.filter(|_| !record.is_broken) else { return Ok(()) };
        match self.messages.is_wanted(record.queue, record.offset, &wish) {
            true => Ok(()),
            false => violation(format!("{record:?} is sent, and wanted was {wish:?}")),
        }
    }

    /// promise: fifo
    fn check_lane(
        &mut self,
        of: &PopOf,
        one: &PoppedOne,
        record: &Received,
        when: When,
    ) -> Verdict {
        if record.lane == 0 || record.is_broken {
            return Ok(());
        }
        let before = self.messages.before_in_lane(one.queue, one.offset, record.lane, of.wish);
        self.summary.ordered += u64::from(!before.is_empty());
        self.pops.in_order(of.group, one, &before, when)
    }

    fn note_delivery(&mut self, group: u32, wanted: &[Wanted], got: &Fetched) {
        let asked = wanted.iter().find(|wanted| wanted.queue == got.queue);
        if let Some(asked) = asked.filter(|_| group != 0) {
            let offsets = got.records.iter().map(|record| record.offset);
            self.deliveries.came(group, asked.wish, got.queue, offsets);
        }
    }

    /// The members have consumed everything: what their groups want has come.
    pub fn all_wanted_came(&self) -> Verdict {
        let committed = |group, queue| self.groups.floor(group, queue);
        self.deliveries.all_came(&self.messages, committed)
    }

    fn committed(
        &mut self,
        group: u32,
        member: u128,
        entries: &[crate::sim::talk::Entry],
        results: &[(QueueKey, Status)],
        delivered: u64,
        when: When,
    ) -> Verdict {
        if entries.len() != results.len() {
            return violation(format!("{} commits, {} results", entries.len(), results.len()));
        }
        for (entry, (queue, status)) in entries.iter().zip(results) {
            if entry.queue != *queue {
                return violation(format!("committed {entry:?}, answered {queue:?}"));
            }
            if *status == Status::Ok {
                self.summary.commits += 1;
                self.groups.accepted(group, member, entry, delivered, when)?;
                self.retries.committed((group, entry.queue, entry.generation), entry.offset)?;
            } else {
                self.queue_refused(*queue, *status)?;
            }
        }
        Ok(())
    }

    /// A life ended.
    pub fn crashed(&mut self, kind: CrashKind, now_us: u64, interval_us: Option<u64>) {
        self.summary.crashes += 1;
        self.summary.power_losses += u64::from(kind == CrashKind::PowerLoss);
        for crash in &mut self.crashes {
            *crash = (*crash).max(Some(kind));
        }
        self.sent_before = self.messages.count();
        self.messages.crashed(now_us, interval_us);
        self.messages.delayed_crashed(kind);
        self.groups.crashed(kind, now_us, interval_us);
        self.pops.crashed(kind, now_us, interval_us);
    }

    /// The ends of a shard's queues, as it tells them after a restart before it took anything new.
    pub fn recovered(&mut self, shard: u16, ends: &BTreeMap<QueueKey, u64>) -> Verdict {
        if let Some(kind) = self.crashes[usize::from(shard)].take() {
            self.messages.recovered(shard, kind, ends, &mut self.summary)?;
        }
        // What is due is delivered, and may be seen, after the ends were asked for.
        let since = self.messages.has_delayed(shard).then_some(0);
        let told = |(queue, end): (&QueueKey, &u64)| {
            self.messages.high_watermark_since(*queue, *end, since)
        };
        ends.iter().try_for_each(told)
    }

    /// Everything is due, was read, and nothing failed: whatever was delayed must have come.
    pub fn all_delivered(&self) -> Verdict {
        let serves = |topic| self.topics.must_serve(topic) && !self.topics.may_expire(topic);
        self.messages.all_delivered(serves)
    }

    /// All of a shard's queues were read to these ends.
    pub fn audited(&mut self, shard: u16, ends: &BTreeMap<QueueKey, u64>) -> Verdict {
        self.messages.audited(shard, self.sent_before, ends)
    }
}
