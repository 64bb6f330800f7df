//! Faults planted at the seam, between the core and its disk, its peers and its clients: a judge that never
//! condemned anything proves nothing. The core itself is left as it is.

use crate::sim::Summary;
use crate::sim::disk::{Disk, Op};
use crate::sim::random::Random;
use crate::sim::talk::{Fetched, Intent, PopOf, PoppedOne, QueueKey, Received, Reply, Wanted};
use ringmq_core::peer::PeerMessage;
use ringmq_schema::error::Status;
use std::collections::{BTreeMap, BTreeSet};

/// What is wrong with the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A durable write is reported when it was handed over.
    DurableWriteAnsweredEarly,
    /// A plain write is reported when it was handed over.
    PlainWriteAnsweredEarly,
    /// Durable writes are carried out as plain ones.
    DurableWriteIsPlain,
    /// A sync is reported and not done.
    SyncDropped,
    /// A write is reported and not done.
    WriteLost,
    /// A write lands one block further.
    WriteMisdirected,
    /// The last block that was written is gone after a restart.
    TailBlockLost,
    /// Everything that was written last is gone after a restart.
    TailUnitLost,
    /// A bit of a read is wrong.
    ReadBitFlipped,
    /// A read brings another place of the log.
    ReadStale,
    /// An acknowledgement bears the offset of the one before it.
    OffsetTwice,
    /// An acknowledgement for what was refused.
    RefusalHidden,
    /// A fenced commit is reported as accepted.
    FenceHidden,
    /// A request overtakes the one before it on its connection.
    RequestsSwapped,
    /// A request vanishes.
    RequestLost,
    /// A change of owner is reported as durable, and the queue's shard never heard of it.
    OwnerPretended,
    /// Messages between shards vanish.
    PeersLost,
    /// A registry of topics forgets one.
    TopicHidden,
    /// A committed offset is told too low.
    CommitForgotten,
    /// A commit from before a reset counts after it.
    ResetOvertaken,
    /// A read of an index brings another segment's.
    IndexElsewhere,
    /// An index is reported as written, and is not.
    IndexPretended,
    /// The first segment goes although nobody asked for it.
    RetiredUnasked,
    /// A hole is one block too long.
    PunchTooFar,
    /// A transfer sends another place of the log.
    TransferElsewhere,
    /// A message that is sent back is told to be stored, and is not.
    LostRetry,
    /// Members commit past messages that they have not finished.
    OffsetOverUnfinished,
    /// The wall clock that a shard sees is ahead: delayed messages are early.
    EarlyTimer,
    /// A delayed message that is read back is not what was written: it is lost.
    LostTimer,
    /// A delayed message is said to be taken back, and is not.
    RecallPretended,
    /// An acknowledgement counts after its time was over and somebody else has the message.
    OldReceiptAccepted,
    /// A message that somebody has is handed out again.
    PoppedTwice,
    /// A record that the filter of a fetch leaves out is sent.
    LeftOutSent,
    /// A record that the filter of a fetch wants is left out.
    WantedLeftOut,
    /// A pop is served with another expression than it has.
    PopFilterMistaken,
    /// The next message of a message group is handed out with the one before it.
    NextOfGroupEarly,
    /// As `IndexElsewhere`, now and then only.
    IndexSometimesElsewhere,
    /// An index that was reported as written is gone after a restart.
    IndexForgotten,
    /// A segment that is to go stays.
    RetirementForgotten,
}

impl Bug {
    /// Every one.
    pub const ALL: &'static [Bug] = &[
        Bug::DurableWriteAnsweredEarly,
        Bug::PlainWriteAnsweredEarly,
        Bug::DurableWriteIsPlain,
        Bug::SyncDropped,
        Bug::WriteLost,
        Bug::WriteMisdirected,
        Bug::TailBlockLost,
        Bug::TailUnitLost,
        Bug::ReadBitFlipped,
        Bug::ReadStale,
        Bug::OffsetTwice,
        Bug::RefusalHidden,
        Bug::FenceHidden,
        Bug::RequestsSwapped,
        Bug::RequestLost,
        Bug::OwnerPretended,
        Bug::PeersLost,
        Bug::TopicHidden,
        Bug::CommitForgotten,
        Bug::ResetOvertaken,
        Bug::IndexElsewhere,
        Bug::IndexPretended,
        Bug::RetiredUnasked,
        Bug::PunchTooFar,
        Bug::TransferElsewhere,
        Bug::LostRetry,
        Bug::OffsetOverUnfinished,
        Bug::EarlyTimer,
        Bug::LostTimer,
        Bug::RecallPretended,
        Bug::OldReceiptAccepted,
        Bug::PoppedTwice,
        Bug::LeftOutSent,
        Bug::WantedLeftOut,
        Bug::PopFilterMistaken,
        Bug::NextOfGroupEarly,
    ];

    /// Those that must do no harm: derived files and space, of which nothing is ever answered from memory of
    /// them alone. A page of another segment does not check, and is read again; an index that is missing is made
    /// again from its segment; a segment that stays is only space.
    pub const HARMLESS: &'static [Bug] =
        &[Bug::IndexSometimesElsewhere, Bug::IndexForgotten, Bug::RetirementForgotten];
}

impl Bug {
    /// Whether shards asked for what it spoils.
    pub fn can_strike(self, asked: &Summary) -> bool {
        match self {
            Bug::PunchTooFar => asked.holes > 0,
            Bug::TransferElsewhere => asked.transfers > 0,
            Bug::RetirementForgotten => asked.retired > 0,
            Bug::LeftOutSent | Bug::WantedLeftOut => asked.left_out > 0,
            Bug::NextOfGroupEarly => asked.ordered > 0,
            Bug::LostRetry | Bug::OffsetOverUnfinished => asked.retries > 0,
            _ => true,
        }
    }
}

/// The bug of a run, if it has one.
#[derive(Debug)]
pub struct Planted {
    bug: Option<Bug>,
    random: Random,
    last_base: BTreeMap<QueueKey, u64>,
    last_popped: Vec<(PoppedOne, Received)>,
    /// What consumers got without a filter.
    records: BTreeMap<(QueueKey, u64), Received>,
    /// By group and queue: the last commit, and the last before a reset.
    last_commit: BTreeMap<(u32, QueueKey), u64>,
    before_reset: BTreeMap<(u32, QueueKey), u64>,
}

impl Planted {
    /// See [`Bug`].
    pub fn new(bug: Option<Bug>, random: Random) -> Planted {
        Planted {
            bug,
            random,
            last_base: BTreeMap::new(),
            last_commit: BTreeMap::new(),
            before_reset: BTreeMap::new(),
            last_popped: Vec::new(),
            records: BTreeMap::new(),
        }
    }

    fn strikes(&mut self, bug: Bug, one_in: u64) -> bool {
        self.bug == Some(bug) && self.random.once_in(one_in)
    }

    /// Before a write or sync is carried out. True: it is reported at once.
    pub fn starts(&mut self, op: &mut Op) -> bool {
        let Op::Write { durable, .. } = op else { return false };
        if *durable && self.strikes(Bug::DurableWriteIsPlain, 2) {
            *durable = false;
        }
        if *durable {
            self.strikes(Bug::DurableWriteAnsweredEarly, 2)
        } else {
            self.strikes(Bug::PlainWriteAnsweredEarly, 2)
        }
    }

    /// Whether an operation that ends has not happened at all.
    pub fn skips(&mut self, op: &Op) -> bool {
        match op {
            Op::Write { .. } => self.strikes(Bug::WriteLost, 5),
            Op::Sync { .. } => self.strikes(Bug::SyncDropped, 2),
            Op::WriteIndex { .. } => self.strikes(Bug::IndexPretended, 1),
            Op::Retire { .. } => self.strikes(Bug::RetirementForgotten, 1),
            _ => false,
        }
    }

    /// Whether a write lands at the wrong place.
    pub fn misdirects(&mut self) -> bool {
        self.strikes(Bug::WriteMisdirected, 5)
    }

    /// What a read brings.
    pub fn reads(&mut self, disk: &Disk, position: u64, bytes: &mut [u8]) {
        if self.strikes(Bug::ReadBitFlipped, 2) {
            let at = self.random.index(bytes.len());
            bytes[at] ^= 1 << self.random.below(8);
        }
        let length = bytes.len() as u64;
        if self.strikes(Bug::ReadStale, 2)
            && position >= length
            && disk.has(position - length, length)
        {
            disk.read(position - length, bytes);
        }
    }

    /// How far the wall clock is ahead, ms.
    pub fn hastens(&self) -> i64 {
        if self.bug == Some(Bug::EarlyTimer) { 300 } else { 0 }
    }

    /// What a read of records of delayed messages brings.
    pub fn reads_timer(&mut self, read: u64, bytes: &mut [u8]) {
        if read >> 61 == 1 && self.strikes(Bug::LostTimer, 1) {
            bytes.fill(0);
        }
    }

    /// What a read of an index brings.
    pub fn reads_index(&mut self, disk: &Disk, base: u64, at: u64, page: &mut [u8]) {
        let strikes =
            self.strikes(Bug::IndexElsewhere, 1) || self.strikes(Bug::IndexSometimesElsewhere, 8);
        let other = disk.indexes().into_iter().find(|other| *other != base);
        let (from, to) = (at as usize, at as usize + page.len());
        let bytes = other.and_then(|other| disk.index(other)?.get(from..to));
        if let Some(bytes) = bytes.filter(|_| strikes) {
            page.copy_from_slice(bytes);
        }
    }

    /// What a transfer sends.
    pub fn transfers(&mut self, disk: &Disk, position: u64, run: &mut [u8]) {
        let bytes = run.len() as u64;
        let elsewhere = position.saturating_sub(bytes.next_multiple_of(4096));
        if elsewhere < position
            && disk.has(elsewhere, bytes)
            && self.strikes(Bug::TransferElsewhere, 2)
        {
            disk.read(elsewhere, run);
        }
    }

    /// How long a hole becomes.
    pub fn punches(&mut self, bytes: u64) -> u64 {
        if self.strikes(Bug::PunchTooFar, 2) { bytes + 4096 } else { bytes }
    }

    /// Before a restart.
    pub fn restarts(&mut self, disk: &mut Disk) {
        if self.strikes(Bug::IndexForgotten, 1) {
            let last = disk.indexes().pop();
            last.into_iter().for_each(|base| disk.forget_index(base));
        }
        let segments = disk.segments();
        if segments.len() > 2 && self.strikes(Bug::RetiredUnasked, 2) {
            disk.retire(segments[0].base);
        }
        let Some((position, bytes)) = disk.last_written() else { return };
        if self.strikes(Bug::TailBlockLost, 1) {
            disk.wipe(position + bytes - 4096, 4096);
        }
        if self.strikes(Bug::TailUnitLost, 1) {
            disk.wipe(position, bytes);
        }
    }

    /// Whether a request goes before the one before it.
    pub fn overtakes(&mut self) -> bool {
        self.strikes(Bug::RequestsSwapped, 3)
    }

    /// Whether a request vanishes.
    pub fn loses_request(&mut self) -> bool {
        self.strikes(Bug::RequestLost, 50)
    }

    /// Whether a request vanishes and is answered all the same, and how.
    pub fn swallows(&mut self, intent: &Intent) -> Option<Reply> {
        let is_retry = matches!(intent, Intent::Retry { .. });
        (is_retry && self.strikes(Bug::LostRetry, 3))
            .then_some(Reply::Retried { dead_lettered: false, deliver_ms: 1 })
    }

    /// Whether members commit what they got, finished or not.
    pub fn is_careless(&self) -> bool {
        self.bug == Some(Bug::OffsetOverUnfinished)
    }

    /// Whether a message between shards is answered instead of delivered, and how.
    pub fn pretends(&mut self, message: &PeerMessage) -> Option<PeerMessage> {
        let PeerMessage::Assign(ownership) = message else { return None };
        let ownership = *ownership;
        let strikes = self.strikes(Bug::OwnerPretended, 2);
        strikes.then_some(PeerMessage::Assigned { ownership, accepted: true })
    }

    /// Whether a message between shards vanishes.
    pub fn loses_peer(&mut self) -> bool {
        self.strikes(Bug::PeersLost, 3)
    }

    /// What a client is told.
    pub fn answers(&mut self, intent: &Intent, reply: &mut Reply) {
        match (intent, reply) {
            (Intent::Produce { queue, .. }, Reply::Produced { base, .. }) => {
                let last = self.last_base.insert(*queue, *base);
                if let Some(last) = last.filter(|_| self.strikes(Bug::OffsetTwice, 10)) {
                    *base = last;
                }
            }
            (Intent::Produce { count, .. }, reply @ Reply::Refused { .. })
                if self.strikes(Bug::RefusalHidden, 1) =>
            {
                *reply = Reply::Produced { base: 0, records: *count, position: 0 };
            }
            (Intent::Recall { .. }, reply @ Reply::Refused { .. })
                if self.strikes(Bug::RecallPretended, 1) =>
            {
                *reply = Reply::Done;
            }
            (Intent::Reset { group, entry }, Reply::Committed(_)) => {
                let key = (*group, entry.queue);
                if let Some(offset) = self.last_commit.remove(&key) {
                    self.before_reset.insert(key, offset);
                }
            }
            (Intent::Commit { group, entries, .. }, Reply::Committed(results)) => {
                for (entry, (queue, _)) in entries.iter().zip(results.iter()) {
                    self.last_commit.insert((*group, *queue), entry.offset);
                }
                for (_, status) in results.iter_mut().filter(|(_, s)| *s == Status::Fenced) {
                    if self.strikes(Bug::FenceHidden, 1) {
                        *status = Status::Ok;
                    }
                }
            }
            (Intent::Ack { .. }, Reply::Acked(statuses)) => {
                for status in statuses.iter_mut().filter(|s| **s == Status::BadReceipt) {
                    if self.strikes(Bug::OldReceiptAccepted, 1) {
                        *status = Status::Ok;
                    }
                }
            }
            (Intent::Fetch { wanted, max_bytes, max_records, .. }, Reply::Fetched(queues)) => {
                let count: usize = queues.iter().map(|got| got.records.len()).sum();
                // One more is within what was asked for.
                let has_room = *max_bytes >= 1 << 20 && count < *max_records as usize;
                for got in queues.iter_mut().filter(|got| got.status == Status::Ok) {
                    let asked = wanted.iter().find(|asked| asked.queue == got.queue);
                    if let Some(asked) = asked {
                        self.filters(asked, got, has_room);
                    }
                }
            }
            (Intent::Pop(_), Reply::Popped(popped)) => {
                self.hastens_group(popped);
                let last = std::mem::replace(&mut self.last_popped, popped.clone());
                if let Some(again) = last.first().filter(|_| self.strikes(Bug::PoppedTwice, 4)) {
                    popped.push(*again);
                }
            }
            (Intent::List, Reply::Topics(topics)) if self.strikes(Bug::TopicHidden, 2) => {
                topics.pop();
            }
            (Intent::Offsets { group, .. }, Reply::Offsets(told)) => {
                for one in told.iter_mut() {
                    let overtaken = self.before_reset.get(&(*group, one.queue)).copied();
                    if let Some(offset) = overtaken.filter(|_| self.strikes(Bug::ResetOvertaken, 1))
                    {
                        one.committed = offset as i64;
                    }
                }
                for one in told.iter_mut().filter(|one| one.committed > 0) {
                    if self.strikes(Bug::CommitForgotten, 2) {
                        one.committed -= 1;
                    }
                }
            }
            _ => {}
        }
    }

    /// A request as its shard gets it.
    pub fn arrives(&mut self, intent: &Intent, bytes: &mut [u8]) {
        let Intent::Pop(PopOf { wish: Some(_), .. }) = intent else { return };
        for (said, read) in [(" = 'eu'", " = 'us'"), (" = 'us'", " = 'eu'"), (" > ", " < ")] {
            let at = bytes.windows(said.len()).position(|window| window == said.as_bytes());
            if let Some(at) = at.filter(|_| self.strikes(Bug::PopFilterMistaken, 2)) {
                bytes[at..at + said.len()].copy_from_slice(read.as_bytes());
                return;
            }
        }
    }

    /// What a fetch with a filter brings.
    fn filters(&mut self, asked: &Wanted, got: &mut Fetched, has_room: bool) {
        if asked.wish.is_none() {
            let records = got.records.iter().filter(|record| !record.is_broken);
            self.records.extend(records.map(|record| ((record.queue, record.offset), *record)));
            return;
        }
        let came: BTreeSet<u64> = got.records.iter().map(|record| record.offset).collect();
        let known = self.records.range((got.queue, asked.offset)..(got.queue, got.next_offset));
        let left_out = known.map(|(_, record)| *record).find(|r| !came.contains(&r.offset));
        if let Some(left_out) = left_out.filter(|_| has_room && self.strikes(Bug::LeftOutSent, 2)) {
            got.records.push(left_out);
            got.records.sort_by_key(|record| record.offset);
        }
        if !got.records.is_empty() && self.strikes(Bug::WantedLeftOut, 4) {
            let at = self.random.index(got.records.len());
            got.records.remove(at);
        }
    }

    /// The next message of a message group comes with the one before it.
    fn hastens_group(&mut self, popped: &mut Vec<(PoppedOne, Received)>) {
        let early = popped.iter().find_map(|(one, record)| {
            let behind = self.records.range((one.queue, one.offset + 1)..);
            let mut behind = behind.take_while(|((queue, _), _)| *queue == one.queue);
            let is_next = |next: &Received| record.lane != 0 && next.lane == record.lane;
            let (_, next) = behind.find(|(_, next)| is_next(next))?;
            Some((PoppedOne { offset: next.offset, attempt: 1, ..*one }, *next))
        });
        if let Some(early) = early.filter(|_| self.strikes(Bug::NextOfGroupEarly, 4)) {
            popped.push(early);
        }
    }
}
