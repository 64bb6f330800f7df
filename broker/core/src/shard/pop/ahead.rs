//! Messages handed out before they are durable, to pops that may wait: when they come in the same turn, the record that
//! says so lies behind them in the same write unit, and one write of the device makes both durable. Otherwise a message
//! would wait for two, one after the other.
//!
//! Invariants:
//! - the answer goes out when both are durable: nobody sees what a power loss takes back (promise: prefix);
//! - only what the index in memory decides is handed out so; for an expression, or a message group, a record is
//!   read, and a unit that is not closed cannot be.

use super::collect::Taking;
use super::{Answer, Piece, Popped, Shard, is_pop};
use crate::seam::{Memory, Now, Outbox, Slice};
use crate::shard::fetch::Filter;

impl<M: Memory> Shard<M> {
    /// Records of a queue were appended up to `end`: whoever waits for them is looked at when the turn ends, and they
    /// are made durable for them.
    pub(in crate::shard) fn appended_to(&mut self, slot: u32, end: u64, durable: bool) {
        let waiting = &self.queues.at(slot).waiting;
        if waiting.is_empty() {
            return;
        }
        if !durable {
            self.sync_wanted = end;
        }
        let appended = &mut self.poppers.appended;
        if waiting.iter().any(|number| is_pop(*number)) && appended.last() != Some(&slot) {
            appended.push(slot);
        }
    }

    /// Serves pops that wait for what this turn has brought, before it goes to the device.
    pub(in crate::shard) fn pop_ahead(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        let mut appended = std::mem::take(&mut self.poppers.appended);
        for slot in appended.drain(..) {
            let queue = self.queues.at(slot);
            let waiting: Vec<u64> =
                queue.waiting.iter().copied().filter(|number| is_pop(*number)).collect();
            for pop in waiting {
                let Some(parked) = self.poppers.parked.get(&pop) else { continue };
                let queue = self.queues.at(slot);
                let flights = self.pops.get(parked.group, queue.id);
                // Others of its group may have taken all.
                if flights.is_some_and(|flights| flights.next() < queue.next) {
                    self.serve_parked_pop(pop, now, out);
                }
            }
        }
        self.poppers.appended = appended;
    }

    /// First offset of a queue that a pop cannot have yet.
    pub(super) fn end_for(&self, at: usize, taking: &Taking<'_, M::Block>) -> u64 {
        let queue = self.queues.at(taking.wanted(at).slot);
        let by_index = !taking.is_fifo && !matches!(taking.parked.filter, Some(Filter::Sql(_)));
        if taking.parked.may_wait && by_index { queue.next } else { queue.visible }
    }

    /// The bytes of what an answer hands out. What is not there any more, which nothing short of a tail cache smaller than the
    /// units in flight can bring about, comes back when its time is over.
    pub(super) fn bytes_of_answer(
        &self,
        answer: Answer<M::Block>,
    ) -> (Vec<Popped>, Vec<Slice<M::Block>>) {
        let pairs = answer.records.into_iter().zip(answer.pieces);
        let found = pairs.filter_map(|(record, piece)| match piece {
            Piece::There(slice) => Some((record, slice)),
            Piece::Later(position, bytes) => Some((record, self.log.tail.slice(position, bytes)?)),
        });
        found.unzip()
    }
}
