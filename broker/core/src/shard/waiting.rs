//! What waits for the log: answers and steps that are due when a position is written or durable.

use super::{Asker, Refuse, Shard, push_answer, refuse};
use crate::peer::{Ownership, PeerMessage, WholeRegistry};
use crate::seam::{ConnectionId, Memory, Now, Outbox};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement::shard_of_group;
use ringmq_schema::produce::{ProduceAnswer, ProduceAnswerArgs, SendStatus};
use std::collections::VecDeque;
use std::sync::Arc;

/// A batch that was taken in and is to be acknowledged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Produced {
    pub(super) connection: ConnectionId,
    pub(super) correlation: u64,
    pub(super) base_offset: u64,
    pub(super) records: u32,
    pub(super) position: u64,
    pub(super) store_ms: i64,
    pub(super) received_us: u64,
}

/// What follows.
#[derive(Debug)]
pub(super) enum Then {
    Acknowledge(Produced),
    /// Acknowledged already, as not durable in time.
    Nothing,
    /// A frame made ahead.
    Answer(Asker, Vec<u8>),
    /// Messages that were popped, by number.
    Popped(u64),
    /// A change of the registry is durable here.
    Registry {
        version: u64,
    },
    /// What was missing of the registry is durable here.
    WholeRegistry(Arc<WholeRegistry>),
    /// An ownership is durable: the group's shard is told.
    Assigned {
        to: u16,
        ownership: Ownership,
        accepted: bool,
    },
    /// The new epoch has begun.
    Epoch,
    /// The record of the hole in the segment with this base is durable.
    Hole(u64),
    /// A snapshot is whole and durable.
    Snapshot {
        begin: u64,
    },
}

/// Both orders are by position.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// For `flushed`.
    durable: VecDeque<(u64, Then)>,
    /// For `written`.
    taken: VecDeque<(u64, Then)>,
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.durable.len() + self.taken.len()
    }

    /// `then` follows when everything below `end` is durable, or (`durable` false) was taken by the
    /// device.
    pub(super) fn push(&mut self, end: u64, durable: bool, then: Then) {
        let list = if durable { &mut self.durable } else { &mut self.taken };
        debug_assert!(list.back().is_none_or(|(last, _)| *last <= end));
        list.push_back((end, then));
    }

    fn pop(&mut self, written: u64, flushed: u64) -> Option<Then> {
        let durable = self.durable.pop_front_if(|(end, _)| *end <= flushed);
        let next = durable.or_else(|| self.taken.pop_front_if(|(end, _)| *end <= written));
        next.map(|(_, then)| then)
    }
}

/// A SYNC message that is not durable after so long is acknowledged with `FlushDiskTimeout` (RocketMQ
/// `syncFlushTimeout`, 5 s).
const FLUSH_TIMEOUT_US: u64 = 5_000_000;

impl<M: Memory> Shard<M> {
    /// Answers when the log is durable up to `end`, or, without `durable`, when the device has taken it.
    pub(super) fn answer_at<T>(
        &mut self,
        end: u64,
        durable: bool,
        asker: Asker,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) {
        if asker.one_way {
            return;
        }
        let mut bytes = Vec::with_capacity(256);
        self.frames.answer(&mut bytes, asker.opcode, asker.correlation, 0, build);
        self.waiting.push(end, durable, Then::Answer(asker, bytes));
    }

    /// Follows up on whatever is written or durable now.
    pub(super) fn answer_waiting(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        if self.log.failed().is_some() {
            return;
        }
        while let Some(then) = self.waiting.pop(self.log.written(), self.log.flushed()) {
            match then {
                Then::Acknowledge(produced) => {
                    self.acknowledge(&produced, SendStatus::SendOk, out);
                }
                Then::Nothing => {}
                Then::Answer(asker, bytes) => {
                    let start = out.heads.len();
                    out.heads.extend_from_slice(&bytes);
                    push_answer(asker.connection, start, out);
                }
                Then::Popped(number) => self.popped(number, out),
                Then::Registry { version } => self.apply_change(version, now, out),
                Then::WholeRegistry(whole) => self.restore_registry(&whole, now, out),
                Then::Assigned { to, ownership, accepted } => {
                    let message = PeerMessage::Assigned { ownership, accepted };
                    self.tell(to, message, now, out);
                }
                Then::Epoch => self.epoch_began(now, out),
                Then::Hole(base) => self.punch(base, out),
                Then::Snapshot { begin } => self.snapshot_ended(begin, now, out),
            }
        }
    }

    fn acknowledge(&mut self, produced: &Produced, status: SendStatus, out: &mut Outbox<M::Block>) {
        let asker = Asker {
            connection: produced.connection,
            correlation: produced.correlation,
            opcode: Opcode::Produce.code(),
            one_way: false,
        };
        let args = ProduceAnswerArgs {
            base_offset: produced.base_offset,
            records: produced.records,
            position: produced.position,
            store_ms: produced.store_ms,
            status,
        };
        self.answer(asker, out, |fbb| ProduceAnswer::create(fbb, &args));
    }

    /// Answers those who waited too long for durability.
    pub(super) fn expire_produces(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        let mut late = Vec::new();
        for (_, then) in &mut self.waiting.durable {
            match then {
                Then::Acknowledge(p) if now.mono_us > p.received_us + FLUSH_TIMEOUT_US => {
                    late.push(*p);
                    *then = Then::Nothing;
                }
                Then::Acknowledge(_) => break,
                _ => {}
            }
        }
        for produced in late {
            self.acknowledge(&produced, SendStatus::FlushDiskTimeout, out);
        }
    }

    /// The shard failed: everybody who waits is told, nobody is acknowledged.
    pub(super) fn refuse_waiting(&mut self, out: &mut Outbox<M::Block>) {
        let waiting = std::mem::take(&mut self.waiting);
        let Err(refused) = self.check_writing() else { return };
        for (_, then) in waiting.durable.into_iter().chain(waiting.taken) {
            match then {
                Then::Acknowledge(produced) => {
                    let asker = Asker {
                        connection: produced.connection,
                        correlation: produced.correlation,
                        opcode: Opcode::Produce.code(),
                        one_way: false,
                    };
                    self.refuse(asker, &refused, out);
                }
                Then::Answer(asker, _) => self.refuse(asker, &refused, out),
                Then::Popped(number) => self.refuse_popped(number, &refused, out),
                Then::Nothing
                | Then::Registry { .. }
                | Then::WholeRegistry(_)
                | Then::Assigned { .. }
                | Then::Epoch
                | Then::Hole(_)
                | Then::Snapshot { .. } => {}
            }
        }
    }

    /// The group's shard, checked against the name in a request.
    pub(super) fn check_group_shard(&self, group: &str) -> Result<(), Refuse> {
        let shard = shard_of_group(group, self.config.shards);
        if shard == self.config.shard {
            return Ok(());
        }
        let text = format!(
            "group {group} lives on shard {shard} of this broker, not on {}",
            self.config.shard
        );
        Err(Refuse { shard, ..refuse(Status::WrongShard, text) })
    }
}
