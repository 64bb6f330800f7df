//! What a pop gets: messages that came back, then new ones, as far as their bytes are at hand.
//!
//! What is taken here is taken: its record is appended in the same step. What must be read first is not reserved;
//! the pop looks again when it was read, and whoever comes first has it.

use super::parked::{Parked, Wanted};
use super::{OpWriter, Piece, Shard};
use crate::pop::{Flight, Op};
use crate::seam::{Memory, Now, Outbox, Slice};
use crate::shard::fetch::{cut_from, is_record};
use crate::shard::locate::{Located, PageName, locate, position};
use ringmq_schema::admin::MessageType;
use ringmq_schema::pop::Popped;
use std::rc::Rc;

/// Messages whose attempts are used up that one step puts aside.
const DEAD_A_STEP: usize = 64;

/// What must be read before a pop goes on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Need {
    /// Of an index.
    Page(PageName),
    /// A record, by position and length.
    Record(u64, u32),
}

/// What was collected.
#[derive(Debug)]
pub(super) struct Collected<B> {
    pub(super) records: Vec<Popped>,
    pub(super) pieces: Vec<Piece<B>>,
    /// With the index of the queue that needs it.
    pub(super) need: Option<(usize, Need)>,
    /// As much was left out as one step may: there may be more behind.
    pub(super) is_cut_short: bool,
}

/// A pop that is being served.
pub(super) struct Taking<'a, B> {
    pub(super) parked: &'a mut Parked<B>,
    pub(super) ops: &'a mut OpWriter,
    /// By [`crate::pop::Pops::now_ms`].
    pub(super) now_ms: i64,
    pub(super) is_fifo: bool,
    nonce: u64,
    bytes: u64,
    is_full: bool,
    /// Work of the filter.
    pub(super) passed: u32,
    pub(super) held_back: u32,
    pub(super) dead: usize,
    pub(super) got: Collected<B>,
    /// The window of the log that the last record from the disk came from.
    window: Option<(u64, Rc<B>)>,
    /// What the last queue needs.
    last_need: Option<Need>,
}

/// What became of an offset.
pub(super) enum Record<B> {
    There(Slice<B>),
    /// It expired, or is lost to damage.
    Gone,
    /// It must be read first, or cannot be.
    Wait,
}

impl<B> Taking<'_, B> {
    pub(super) fn wanted(&self, at: usize) -> Wanted {
        self.parked.queues[at]
    }

    /// How many more there may be.
    pub(super) fn room(&self) -> usize {
        match self.is_full {
            true => 0,
            false => self.parked.max_records.saturating_sub(self.got.records.len()),
        }
    }

    pub(super) fn needs(&mut self, at: usize, need: Need) {
        self.got.need.get_or_insert((at, need));
        self.last_need = Some(need);
    }

    /// Whether a record is still within the bytes of one answer; one always is.
    fn fits(&mut self, piece: &Piece<B>) -> bool {
        let bytes = piece.len();
        self.is_full |= self.bytes > 0 && self.bytes + bytes > self.parked.max_bytes;
        self.bytes += if self.is_full { 0 } else { bytes };
        !self.is_full
    }
}

impl<M: Memory> Shard<M> {
    /// Takes messages for a pop; `ops` says what the log must learn.
    pub(super) fn collect(
        &mut self,
        parked: &mut Parked<M::Block>,
        ops: &mut OpWriter,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> Collected<M::Block> {
        let settings = self.registry.topic(parked.topic).map(|topic| &topic.settings);
        let is_fifo = settings.is_some_and(|s| s.message_type == MessageType::Fifo.0);
        let order = self.order_of(parked);
        let got =
            Collected { records: Vec::new(), pieces: Vec::new(), need: None, is_cut_short: false };
        let nonce = self.pops.new_nonce();
        let mut taking = Taking {
            parked,
            ops,
            now_ms: self.pops.now_ms(now),
            is_fifo,
            nonce,
            bytes: 0,
            is_full: false,
            passed: 0,
            held_back: 0,
            dead: 0,
            got,
            window: None,
            last_need: None,
        };
        let group = self.registry.group(taking.parked.group);
        let is_on = group.is_some_and(|group| group.settings.consume_enabled);
        for at in order.take_while(|_| is_on) {
            let wanted = taking.wanted(at);
            if taking.room() == 0 {
                break;
            }
            let queue = self.queues.at(wanted.slot);
            if queue.visible < queue.next {
                self.sync_wanted = self.log.appended();
            }
            if !wanted.failed && self.take_expired(at, &mut taking, now, out) {
                self.take_fresh(at, &mut taking);
            }
            // Others may have enough at hand for every pop that comes: what this queue needs is read beside them.
            if let Some(need) = taking.last_need.take()
                && !self.prepare(need, out)
            {
                break;
            }
        }
        if let Some((start, _)) = taking.window {
            self.came_to(start, out);
        }
        taking.got
    }

    /// Reads what a queue needs before a pop waits for it. Returns `false` when only a pop that waits can have it.
    fn prepare(&mut self, need: Need, out: &mut Outbox<M::Block>) -> bool {
        match need {
            Need::Page(pages) => {
                self.prepare_page(pages, out);
                true
            }
            Need::Record(position, bytes) => self.prepare_record(position, bytes, out),
        }
    }

    /// In which order the queues of a pop are served: the one first for which something was just read; then the one whose
    /// next message lies furthest back in the log, so that one window read from the disk serves all of them; in turn those
    /// that are equally far.
    fn order_of(&mut self, parked: &Parked<M::Block>) -> impl Iterator<Item = usize> + use<M> {
        let count = parked.queues.len();
        let rotation = self.poppers.rotation;
        self.poppers.rotation = rotation.wrapping_add(1);
        let turns = (0..count).map(|turn| (rotation % count + turn) % count);
        let mut order: Vec<(u64, usize)> = turns
            .map(|at| {
                let flights = self.pops.get(parked.group, parked.queues[at].id);
                (flights.map_or(0, crate::pop::Flights::reached), at)
            })
            .collect();
        order.sort_by_key(|(reached, at)| (parked.first != Some(*at), *reached));
        order.into_iter().map(|(_, at)| at)
    }

    /// Hands out again what came back. Returns whether new ones may follow.
    fn take_expired(
        &mut self,
        at: usize,
        taking: &mut Taking<'_, M::Block>,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> bool {
        let (group, id) = (taking.parked.group, taking.wanted(at).id);
        loop {
            let Some(flights) = self.pops.get(group, id) else { return false };
            let expired = flights.expired(taking.now_ms).take(taking.room());
            let expired: Vec<(u64, Flight)> = expired.collect();
            if expired.is_empty() {
                return true;
            }
            for (offset, flight) in expired {
                // Handed out ahead, and the device hangs.
                if offset >= self.queues.at(taking.wanted(at).slot).visible {
                    return true;
                }
                let slice = match self.find_record(at, offset, taking) {
                    Record::There(slice) => slice,
                    Record::Gone => {
                        self.note_pop(at, Op::Done { offset }, taking);
                        continue;
                    }
                    Record::Wait => return false,
                };
                if flight.attempt >= self.max_attempts(group) {
                    taking.dead += 1;
                    if taking.dead > DEAD_A_STEP {
                        taking.got.is_cut_short = true;
                        return false;
                    }
                    self.bury(at, offset, flight, &slice, taking, now, out);
                } else if !self.hand_out(at, offset, flight, Piece::There(slice), taking) {
                    return false;
                }
            }
        }
    }

    /// Hands one out, if it is still within the answer.
    pub(super) fn hand_out(
        &mut self,
        at: usize,
        offset: u64,
        flight: Flight,
        piece: Piece<M::Block>,
        taking: &mut Taking<'_, M::Block>,
    ) -> bool {
        if taking.room() == 0 || !taking.fits(&piece) {
            return false;
        }
        let until_ms = taking.now_ms.saturating_add(taking.parked.invisible_ms);
        let (nonce, attempt) = (taking.nonce, flight.attempt.saturating_add(1));
        let flight = Flight { until_ms, nonce, attempt, lane: flight.lane };
        self.figures.popped_again += u64::from(attempt > 1);
        self.note_pop(at, Op::Out { offset, flight }, taking);
        self.poppers.comes_back(until_ms);
        let queue = taking.wanted(at).id.queue;
        taking.got.records.push(Popped::new(offset, nonce, until_ms, queue, attempt, 0));
        taking.got.pieces.push(piece);
        true
    }

    /// Changes what is in flight, here and in the log.
    pub(super) fn note_pop(&mut self, at: usize, op: Op, taking: &mut Taking<'_, M::Block>) {
        let id = taking.wanted(at).id;
        self.pops.apply(taking.parked.group, id, op);
        taking.ops.add(id, op);
    }

    /// The record of an offset.
    fn find_record(
        &mut self,
        at: usize,
        offset: u64,
        taking: &mut Taking<'_, M::Block>,
    ) -> Record<M::Block> {
        let Shard { queues, log, index_pages, scratch, figures, .. } = self;
        let slot = taking.wanted(at).slot;
        let (position, bytes) = match locate(queues, log, index_pages, scratch, (slot, offset), 1) {
            Located::At(base, entries) => (position(base, &entries[0]), entries[0].bytes),
            Located::Need(page) => {
                taking.needs(at, Need::Page(page));
                return Record::Wait;
            }
            Located::Lost(_) => {
                figures.corrupt_reads += 1;
                return Record::Gone;
            }
            Located::Nowhere => return Record::Gone,
            Located::Unreadable => {
                taking.parked.queues[at].failed = true;
                return Record::Wait;
            }
        };
        self.record_of(at, offset, position, bytes, taking)
    }

    /// The record that lies there, from memory or from what was read.
    pub(super) fn record_of(
        &mut self,
        at: usize,
        offset: u64,
        position: u64,
        bytes: u32,
        taking: &mut Taking<'_, M::Block>,
    ) -> Record<M::Block> {
        if let Some(slice) = self.log.tail.slice(position, bytes) {
            return Record::There(slice);
        }
        let held = cut_from(taking.parked.block.as_ref(), position, bytes);
        let found = held.or_else(|| self.read_record(position, bytes, &mut taking.window));
        let Some(slice) = found else {
            taking.needs(at, Need::Record(position, bytes));
            return Record::Wait;
        };
        if is_record(&slice, taking.wanted(at).id, offset) {
            return Record::There(slice);
        }
        self.figures.corrupt_reads += 1;
        Record::Gone
    }
}
