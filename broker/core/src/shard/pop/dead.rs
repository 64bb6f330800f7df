//! Messages that were handed out as often as they may be, and not acknowledged.

use super::collect::Taking;
use super::{Shard, Slice};
use crate::pop::{Flight, Op};
use crate::seam::{Memory, Outbox};

/// How often a message is handed out before it is dead (RocketMQ `maxReconsumeTimes`, 16).
const ATTEMPTS_MAX: u16 = 16;
/// A dead message for which there is no dead-letter topic is looked at again after this, ms.
const KEPT_BACK_MS: i64 = 3_600_000;

/// How often a group is handed the same message: the one place that says so.
pub(super) fn max_attempts(_group: u32) -> u16 {
    ATTEMPTS_MAX
}

impl<M: Memory> Shard<M> {
    /// Puts aside a message that is dead for the group. It is handed out no more, and never lost: it stays in flight
    /// until there is a dead-letter topic for it.
    pub(super) fn bury(
        &mut self,
        at: usize,
        offset: u64,
        flight: Flight,
        record: &Slice<M::Block>,
        taking: &mut Taking<'_, M::Block>,
        out: &mut Outbox<M::Block>,
    ) {
        let op = if self.append_dead(taking.parked.group, flight, record, out) {
            Op::Done { offset }
        } else {
            self.figures.popped_kept_back += 1;
            // The nonce of the last hand-out goes with it: its time is over.
            let until_ms = taking.now_ms.saturating_add(KEPT_BACK_MS);
            let nonce = self.pops.new_nonce();
            Op::Out { offset, flight: Flight { until_ms, nonce, ..flight } }
        };
        self.note_pop(at, op, taking);
    }

    /// Appends it to the group's dead-letter topic; `false` when there is none on this shard.
    fn append_dead(
        &mut self,
        _group: u32,
        _flight: Flight,
        _record: &Slice<M::Block>,
        _out: &mut Outbox<M::Block>,
    ) -> bool {
        false
    }
}
