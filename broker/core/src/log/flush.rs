//! What the device has taken, what is durable, and when that is seen to.
//!
//! Invariants: see the module around it.

use super::Log;
use super::unit::{OpenUnit, State};
use crate::seam::{Action, BLOCK_BYTES, Memory, Now, Outbox};

impl<M: Memory> Log<M> {
    /// The device took a unit.
    pub(crate) fn written_unit(&mut self, write: u64, now: Now) {
        let Some(front) = self.units.front().map(|unit| unit.id) else { return };
        let Some(unit) = write.checked_sub(front).and_then(|i| self.units.get_mut(i as usize))
        else {
            return;
        };
        assert!(matches!(unit.state, State::Writing), "a write ends once");
        unit.state = State::Written;
        unit.synced = unit.durable;
        self.in_flight -= 1;
        self.small_in_flight -= usize::from(unit.small);
        if !unit.synced {
            if self.unsynced == 0 {
                self.unsynced_since_us = now.mono_us;
            }
            self.unsynced += 1;
        }
        while let Some(unit) = self.units.get(self.taken) {
            if !matches!(unit.state, State::Written) {
                break;
            }
            self.written = unit.end();
            self.taken += 1;
        }
    }

    /// A sync ended: what it covered is durable.
    pub(crate) fn synced(&mut self, sync: u64, now: Now) {
        if self.sync != Some(sync) {
            return;
        }
        self.sync = None;
        for unit in &mut self.units {
            if unit.sync == Some(sync) && !unit.synced {
                unit.synced = true;
                self.unsynced -= 1;
            }
        }
        // What was written while the sync ran has waited at most as long as the sync took.
        self.unsynced_since_us = now.mono_us;
    }

    /// Moves `flushed` on; `visit` learns which queues have more that is durable.
    pub(crate) fn advance_flushed(&mut self, mut visit: impl FnMut(u32, u64)) {
        while let Some(unit) = self.units.front() {
            if !matches!(unit.state, State::Written) || !unit.synced {
                break;
            }
            let Some(mut unit) = self.units.pop_front() else { break };
            assert!(unit.end() > self.flushed, "flushed is monotone");
            self.flushed = unit.end();
            self.durable_units -= usize::from(unit.durable);
            self.taken -= 1;
            self.submitted -= 1;
            for (slot, offset) in unit.touched.drain(..) {
                visit(slot, offset);
            }
            if self.spare_touched.len() < 64 {
                self.spare_touched.push(unit.touched);
            }
        }
        while let Some((_, snapshot)) = self.naming.pop_front_if(|(end, _)| *end <= self.flushed) {
            if snapshot > self.named {
                self.named_before = std::mem::replace(&mut self.named, snapshot);
            }
        }
        assert!(self.flushed <= self.written);
    }

    /// Starts a sync when something waits for it: durable records behind plain ones, a consumer
    /// (`wanted`), or the time after which ASYNC messages are to be durable.
    pub(crate) fn sync_if_due(&mut self, wanted: bool, now: Now, out: &mut Outbox<M::Block>) {
        if self.sync.is_some() || self.unsynced == 0 || self.failed.is_some() {
            return;
        }
        let durable_behind =
            self.durable_units > 0 || self.open.as_ref().is_some_and(|open| open.durable);
        let due = now.mono_us >= self.unsynced_since_us + self.limits.async_flush_us;
        if !(wanted || durable_behind || due) {
            return;
        }
        let sync = self.next_sync;
        self.next_sync += 1;
        let (mut from, mut to) = (u64::MAX, 0);
        for unit in &mut self.units {
            if matches!(unit.state, State::Written) && !unit.synced {
                unit.sync = Some(sync);
                from = from.min(unit.position);
                to = to.max(unit.end());
            }
        }
        self.sync = Some(sync);
        self.figures.syncs += 1;
        out.actions.push(Action::Sync { sync, from, to });
    }

    /// Writes `flushed` down when nobody else did for a while: recovery tells a torn tail from damage
    /// by it. With `at_once` without waiting. Returns whether there was anything to write.
    pub(crate) fn mark_if_idle(
        &mut self,
        at_once: bool,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> bool {
        if !self.mark_is_owed() || !self.is_quiet() || self.failed.is_some() {
            return false;
        }
        if !at_once && now.mono_us < self.last_unit_us + self.limits.idle_mark_us {
            return false;
        }
        self.write_mark(now, out);
        true
    }

    /// A unit without records.
    pub(super) fn write_mark(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        self.find_segment(BLOCK_BYTES, now, out);
        let block = self.memory.allocate(BLOCK_BYTES);
        let touched = self.spare_touched.pop().unwrap_or_default();
        let mut open = OpenUnit::new(self.next, block, BLOCK_BYTES, touched);
        open.durable = true;
        self.open = Some(open);
        self.close(now);
        self.submit(out);
    }

    pub(super) fn mark_is_owed(&self) -> bool {
        self.marked < self.content_end
    }

    /// When something is due by time alone, in `Now::mono_us`.
    pub(crate) fn next_wake(&self) -> Option<u64> {
        if self.failed.is_some() {
            return None;
        }
        let sync = (self.unsynced > 0 && self.sync.is_none())
            .then(|| self.unsynced_since_us + self.limits.async_flush_us);
        let mark = (self.mark_is_owed() && self.is_quiet())
            .then(|| self.last_unit_us + self.limits.idle_mark_us);
        sync.into_iter().chain(mark).chain(self.segment_retry_us).min()
    }

    /// Stops all writing, for ever.
    pub(crate) fn fail(&mut self, reason: String) {
        self.failed.get_or_insert(reason);
        self.sync = None;
    }
}
