//! Reads the records that the probes name, and compares them.

use super::find::{ANSWER_BYTES, Find};
use super::probe::Wanted;
use crate::peer::QueueId;
use crate::seam::{BLOCK_BYTES, Block, Memory, Outbox, Slice};
use crate::shard::Shard;
use ringmq_schema::limits::RECORD_BYTES_MAX;
use ringmq_schema::record::{self, HEADER_BYTES, Kind};
use std::rc::Rc;

/// Records read ahead of the one that is compared.
const RECORDS_AHEAD: usize = 16;
/// Read of a record whose length is not known; most are not longer.
const SHORT_BYTES: u64 = 8192;

/// A record that may be wanted.
#[derive(Debug)]
pub(super) struct Candidate<B> {
    position: u64,
    state: State<B>,
}

#[derive(Debug)]
enum State<B> {
    /// Not read yet; of this length, when that is known.
    Unread(Option<u32>),
    Reading(Option<u32>),
    There(Slice<B>),
    Unreadable,
}

enum Verdict {
    Wanted,
    Other,
    Unreadable,
}

impl<B> Candidate<B> {
    /// The record at a position, which is to be read.
    pub(super) fn new(position: u64) -> Candidate<B> {
        Candidate { position, state: State::Unread(None) }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }
}

impl<B: Block> Find<B> {
    /// Part of the log is there, or cannot be read.
    pub(super) fn take_block(&mut self, part: usize, start: u64, block: Option<Rc<B>>) {
        let Some(candidate) = self.candidates.get_mut(part) else { return };
        let State::Reading(known) = candidate.state else { return };
        candidate.state = match block {
            None => State::Unreadable,
            Some(block) => cut(&block, start, candidate.position, known),
        };
    }
}

/// The record at a position in a block that was read from `start` on.
fn cut<B: Block>(block: &Rc<B>, start: u64, position: u64, known: Option<u32>) -> State<B> {
    let from = (position - start) as usize;
    let Some(bytes) = block.bytes().get(from..) else { return State::Unreadable };
    let Some(length) = length_of(bytes) else { return State::Unreadable };
    match (known, bytes.len() >= length as usize) {
        (_, true) => {
            let range = from as u32..from as u32 + length;
            State::There(Slice { block: Rc::clone(block), range })
        }
        (None, false) => State::Unread(Some(length)),
        (Some(_), false) => State::Unreadable,
    }
}

/// Length that the record at the beginning of `bytes` says of itself.
fn length_of(bytes: &[u8]) -> Option<u32> {
    let length = u32::from_le_bytes(*bytes.first_chunk::<4>()?);
    (HEADER_BYTES..=RECORD_BYTES_MAX).contains(&(length as usize)).then_some(length)
}

impl<M: Memory> Shard<M> {
    /// Reads and compares candidates; returns whether that is done.
    pub(super) fn compare(
        &mut self,
        number: u64,
        find: &mut Find<M::Block>,
        out: &mut Outbox<M::Block>,
    ) -> bool {
        while find.compared < find.candidates.len() {
            if find.found.len() >= find.most || find.bytes >= ANSWER_BYTES {
                return true;
            }
            let at = find.compared;
            let ahead = (at + RECORDS_AHEAD).min(find.candidates.len());
            for part in at..ahead {
                // Long ones one at a time.
                match find.candidates[part].state {
                    State::Unread(Some(_)) if part > at => {}
                    State::Unread(known) => self.read_candidate(number, find, part, known, out),
                    _ => {}
                }
            }
            let Candidate { position, state } = &mut find.candidates[at];
            let position = *position;
            let verdict = match std::mem::replace(state, State::Unreadable) {
                State::There(slice) => {
                    let verdict = self.judge(find, position, &slice);
                    let bytes = slice.range.len();
                    if matches!(verdict, Verdict::Wanted)
                        && !find.found.is_empty()
                        && find.bytes + bytes > ANSWER_BYTES
                    {
                        // It is the first of the next answer.
                        find.bytes = ANSWER_BYTES;
                        return true;
                    }
                    if matches!(verdict, Verdict::Wanted) {
                        find.bytes += bytes;
                        find.found.push(slice);
                    }
                    verdict
                }
                // It expired: its segment is gone, or a hole is there.
                State::Unreadable
                    if self.log.segment_of(position).is_none()
                        || self.punching.holes.contain(position) =>
                {
                    Verdict::Other
                }
                State::Unreadable => Verdict::Unreadable,
                waits => {
                    *state = waits;
                    return false;
                }
            };
            find.unreadable += u32::from(matches!(verdict, Verdict::Unreadable));
            find.before = position;
            find.compared += 1;
        }
        find.before = find.floor;
        true
    }

    /// Takes a record from memory, or begins to read it.
    fn read_candidate(
        &mut self,
        number: u64,
        find: &mut Find<M::Block>,
        part: usize,
        known: Option<u32>,
        out: &mut Outbox<M::Block>,
    ) {
        let candidate = &mut find.candidates[part];
        let position = candidate.position;
        let in_memory = self.log.tail.slice(position, HEADER_BYTES as u32).and_then(|head| {
            let bytes = &head.block.bytes()[head.range.start as usize..];
            self.log.tail.slice(position, length_of(bytes)?)
        });
        if let Some(slice) = in_memory {
            candidate.state = State::There(slice);
            return;
        }
        let block = BLOCK_BYTES as u64;
        let start = position - position % block;
        let Some(segment) = self.log.segment_of(position) else {
            candidate.state = State::Unreadable;
            return;
        };
        let needed = match known {
            Some(length) => (position + u64::from(length)).next_multiple_of(block),
            None => start + SHORT_BYTES,
        };
        let end = needed.min(segment.end()).min(self.log.flushed().next_multiple_of(block));
        candidate.state = State::Reading(known);
        self.read_log(number, part, start, (end - start) as u32, out);
    }

    /// Whether a record is what is wanted, and for everybody to see.
    fn judge(&self, find: &Find<M::Block>, position: u64, slice: &Slice<M::Block>) -> Verdict {
        let bytes = &slice.block.bytes()[slice.range.start as usize..slice.range.end as usize];
        let Ok((_, Some(found))) = record::read_one(bytes, 0) else { return Verdict::Unreadable };
        let header = found.header;
        if found.check_header().is_err() || header.position.get() != position {
            return Verdict::Unreadable;
        }
        if header.prefix.kind != Kind::Message as u8 {
            return Verdict::Other;
        }
        let id = QueueId { topic: header.topic.get(), queue: header.queue.get() };
        let offset = header.offset.get();
        let is_visible = self.readable(id).is_ok()
            && self.queues.get(id).is_some_and(|q| (q.min..q.visible).contains(&offset));
        if !is_visible || find.topic != 0 && find.topic != id.topic {
            return Verdict::Other;
        }
        match &find.wanted {
            Wanted::At(_) => Verdict::Wanted,
            Wanted::Id(id) if header.message_id == *id => Verdict::Wanted,
            Wanted::Id(_) => Verdict::Other,
            Wanted::Key { begin_ms, end_ms, .. }
                if !(*begin_ms..*end_ms).contains(&header.store_ms.get()) =>
            {
                Verdict::Other
            }
            Wanted::Key { key, .. } => {
                if found.check_payload().is_err() {
                    return Verdict::Unreadable;
                }
                // Nobody can read a message that does not verify: it has no keys.
                let Ok(message) = found.message() else { return Verdict::Other };
                let mut keys = message.keys().into_iter().flatten();
                if keys.any(|other| other == key) { Verdict::Wanted } else { Verdict::Other }
            }
        }
    }
}
