//! From the active segment's rows to its index on disk.
//!
//! Invariants:
//! - entries stay in memory until the index is there; an index that cannot be written is tried again;
//! - what is done in one step is bounded: a segment with a million queues is sealed in slices.

use super::Shard;
use crate::index::{Indexed, SegmentRows};
use crate::log::SealedRows;
use crate::seam::{Action, DiskError, Memory, Now, Outbox};
use std::collections::VecDeque;
use std::sync::Arc;

/// Queues looked at in one step.
const QUEUES_A_STEP: usize = 1000;
/// An index that could not be written is tried again after this.
const RETRY_US: u64 = 5_000_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Sealing {
    /// By segment: slots with records in it. The last is the active one.
    touched: VecDeque<(u32, Vec<u32>)>,
    step: Step,
}

/// One segment at a time.
#[derive(Debug, Default)]
enum Step {
    #[default]
    Idle,
    /// Collects the entries of the queues.
    Gather { segment: u32, rows: SegmentRows, touched: Vec<u32>, at: usize },
    /// The index is being written.
    Write { segment: u32, rows: Arc<SegmentRows> },
    /// It could not be written; again at that time.
    Retry { segment: u32, rows: Arc<SegmentRows>, due_us: u64 },
    /// It is there: entries make way for stretches.
    Replace { segment: u32, indexed: Indexed, at: usize },
    /// The shard stops: the index of a part of the active segment is being written.
    Last { base: u64 },
    /// It is there, or was not to be.
    Stopped,
}

impl Sealing {
    /// A queue's first record in a segment.
    pub(super) fn touch(&mut self, segment: u32, slot: u32) {
        match self.touched.back_mut() {
            Some((of, slots)) if *of == segment => slots.push(slot),
            _ => self.touched.push_back((segment, vec![slot])),
        }
    }

    /// Rows of a sealed segment whose index is not there yet.
    pub(super) fn rows_of(&self, base: u64) -> Option<&SegmentRows> {
        let rows = match &self.step {
            Step::Gather { rows, .. } => rows,
            Step::Write { rows, .. } | Step::Retry { rows, .. } => rows.as_ref(),
            Step::Idle | Step::Replace { .. } | Step::Last { .. } | Step::Stopped => return None,
        };
        (rows.base == base).then_some(rows)
    }

    /// Slots with records in a segment, the first that there is.
    pub(super) fn take(&mut self, segment: u32) -> Vec<u32> {
        let taken = self.touched.pop_front_if(|(of, _)| *of <= segment);
        taken.map_or(Vec::new(), |(_, touched)| touched)
    }

    /// Whether there is something to be done without waiting for the disk.
    fn has_work(&self) -> bool {
        matches!(self.step, Step::Gather { .. } | Step::Replace { .. })
    }

    pub(super) fn next_wake(&self) -> Option<u64> {
        match self.step {
            _ if self.has_work() => Some(0),
            Step::Retry { due_us, .. } => Some(due_us),
            _ => None,
        }
    }
}

impl<M: Memory> Shard<M> {
    /// Goes on with sealing, a bounded step.
    pub(super) fn step_sealing(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        let step = std::mem::take(&mut self.sealing.step);
        self.sealing.step = match step {
            Step::Idle => match self.log.take_sealed() {
                None => Step::Idle,
                Some(sealed) => {
                    let segment = sealed.segment.number;
                    let touched = self.sealing.take(segment);
                    Step::Gather { segment, rows: sealed.rows, touched, at: 0 }
                }
            },
            Step::Gather { segment, mut rows, touched, at } => {
                let end = (at + QUEUES_A_STEP).min(touched.len());
                for &slot in &touched[at..end] {
                    self.queues.at_mut(slot).gather(slot, segment, &mut rows);
                }
                if end < touched.len() {
                    Step::Gather { segment, rows, touched, at: end }
                } else {
                    let rows = Arc::new(rows);
                    out.actions.push(Action::WriteIndex { rows: Arc::clone(&rows) });
                    Step::Write { segment, rows }
                }
            }
            Step::Retry { segment, rows, due_us } if now.mono_us >= due_us => {
                out.actions.push(Action::WriteIndex { rows: Arc::clone(&rows) });
                Step::Write { segment, rows }
            }
            Step::Replace { segment, indexed, at } => {
                let stretches = &indexed.stretches;
                let mut end = (at + QUEUES_A_STEP).min(stretches.len());
                // All stretches of one queue together.
                while end > at
                    && end < stretches.len()
                    && stretches[end].slot == stretches[end - 1].slot
                {
                    end += 1;
                }
                for of_queue in stretches[at..end].chunk_by(|a, b| a.slot == b.slot) {
                    self.queues.replace(segment, of_queue);
                }
                if end < stretches.len() {
                    Step::Replace { segment, indexed, at: end }
                } else {
                    let is_gone = |topic| self.registry.is_deleted(topic);
                    self.retention.segments.insert(segment, &indexed.topics, is_gone);
                    self.timers_indexed(segment);
                    Step::Idle
                }
            }
            waits => waits,
        };
    }

    /// The index of a segment is there, or could not be written.
    pub(super) fn index_written(
        &mut self,
        base: u64,
        result: Result<Indexed, DiskError>,
        now: Now,
    ) {
        if self.mending.awaits(base) {
            self.index_mended(result, now);
            return;
        }
        // What was read of one that is replaced counts no more.
        self.index_pages.forget(base);
        let step = std::mem::take(&mut self.sealing.step);
        self.sealing.step = match (step, result) {
            (Step::Write { segment, rows }, Ok(indexed)) if rows.base == base => {
                self.figures.segments_indexed += 1;
                self.log.indexed(segment, indexed.pages);
                Step::Replace { segment, indexed, at: 0 }
            }
            (Step::Write { segment, rows }, Err(_)) if rows.base == base => {
                Step::Retry { segment, rows, due_us: now.mono_us + RETRY_US }
            }
            // One that could not be written is made again at the next start.
            (Step::Last { base: last }, _) if last == base => Step::Stopped,
            (other, _) => other,
        };
    }

    /// The shard stops and everything is durable: indexes that are owed are written, last that of what the
    /// active segment has. Returns whether that is done.
    pub(super) fn finish_sealing(&mut self, now: Now, out: &mut Outbox<M::Block>) -> bool {
        loop {
            match &self.sealing.step {
                Step::Stopped => return true,
                Step::Write { .. } | Step::Last { .. } => return false,
                // The disk refuses; the next start reads the segment instead.
                Step::Retry { .. } => self.sealing.step = Step::Stopped,
                Step::Gather { .. } | Step::Replace { .. } => self.step_sealing(now, out),
                Step::Idle if self.log.has_sealed() => self.step_sealing(now, out),
                Step::Idle => self.sealing.step = self.index_active(out),
            }
        }
    }

    fn index_active(&mut self, out: &mut Outbox<M::Block>) -> Step {
        let Some(SealedRows { segment, mut rows }) = self.log.take_active() else {
            return Step::Stopped;
        };
        for slot in self.sealing.take(segment.number) {
            self.queues.at_mut(slot).gather(slot, segment.number, &mut rows);
        }
        out.actions.push(Action::WriteIndex { rows: Arc::new(rows) });
        Step::Last { base: segment.base }
    }
}
