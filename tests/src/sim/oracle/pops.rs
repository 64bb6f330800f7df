//! Who was handed which message, and which acknowledgements counted.
//!
//! What is judged:
//! - a message that was acknowledged is handed out no more, whatever crash comes (power takes acknowledgements as young
//!   as ASYNC messages);
//! - within its time nobody else gets it, and of two receipts only the later counts;
//! - nothing is done that was never handed out (promise: at-least-once).

use crate::sim::disk::CrashKind;
use crate::sim::talk::{PoppedOne, QueueKey, ReceiptOf};
use crate::sim::{Verdict, violation};
use ringmq_schema::error::Status;
use std::collections::{BTreeMap, BTreeSet};

/// Group, queue and offset.
pub(super) type Spot = (u32, QueueKey, u64);

#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub(super) nonce: u64,
    attempt: u16,
    /// Since when this is known.
    moment: u64,
    /// Nobody else gets it before.
    pub(super) until_us: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) moment: u64,
    /// `None`: safe from everything; `u64::MAX`: only the log's recovery makes it so.
    pub(super) at_us: Option<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Pops {
    pub(super) held: BTreeMap<Spot, Held>,
    pub(super) done: BTreeMap<Spot, Done>,
    /// Acknowledged by a receipt of this nonce, and whether it counts nobody knows.
    pub(super) perhaps: BTreeMap<Spot, u64>,
    /// Highest attempt seen, and the last one before a message is put aside.
    pub(super) tries: BTreeMap<Spot, u16>,
    pub(super) max_attempts: u16,
    /// Pops delivered and not answered, or nobody knows.
    pub(super) unheard: u64,
    /// Lives that ended.
    pub(super) lives: u64,
    seen: BTreeSet<Spot>,
    /// Set back or forward by an admin: anything may come again, or never.
    reset: BTreeSet<(u32, QueueKey)>,
    /// The wall clock was set in this life.
    jumped: bool,
}

impl Pops {
    /// A message is handed out so often at most.
    pub fn new(max_attempts: u16) -> Pops {
        Pops { max_attempts, ..Pops::default() }
    }

    /// A message was handed out by a request of `delivered` (time and moment) for so long.
    pub fn popped(
        &mut self,
        group: u32,
        one: &PoppedOne,
        invisible_ms: u32,
        delivered: (u64, u64),
        now: (u64, u64),
    ) -> Verdict {
        let spot = (group, one.queue, one.offset);
        if self.reset.contains(&(group, one.queue)) {
            return Ok(());
        }
        if self.done.get(&spot).is_some_and(|done| done.moment < delivered.1) {
            return violation(format!("{spot:?} is handed out after it was acknowledged: {one:?}"));
        }
        if let Some(held) = self.held.get(&spot) {
            if one.nonce <= held.nonce || one.attempt <= held.attempt {
                return violation(format!("{spot:?}: {one:?} comes after {held:?}"));
            }
            if held.until_us > now.0 {
                return violation(format!(
                    "{spot:?} is in two hands at {now:?}: {one:?}, {held:?}"
                ));
            }
        }
        self.seen.insert(spot);
        // It was not done, or that is gone.
        if self.perhaps.get(&spot).is_some_and(|nonce| *nonce < one.nonce) {
            self.perhaps.remove(&spot);
        }
        let tries = self.tries.entry(spot).or_default();
        *tries = one.attempt.max(*tries);
        if *tries > self.max_attempts {
            return violation(format!("{spot:?} is handed out too often: {one:?}"));
        }
        let (nonce, attempt) = (one.nonce, one.attempt);
        // Times are kept in whole milliseconds.
        let until_us = (delivered.0 + u64::from(invisible_ms) * 1000).saturating_sub(2_000);
        self.held.insert(spot, Held { nonce, attempt, moment: now.1, until_us });
        Ok(())
    }

    /// Another time is asked for.
    pub fn changing(&mut self, group: u32, receipt: &ReceiptOf, ms: u32, now_us: u64) {
        if let Some(held) = self.held.get_mut(&(group, receipt.queue, receipt.offset)) {
            let until_us = (now_us + u64::from(ms) * 1000).saturating_sub(2_000);
            held.until_us = held.until_us.min(until_us);
        }
    }

    /// A receipt was accepted that was delivered at that moment.
    fn counts(&self, group: u32, receipt: &ReceiptOf, delivered: u64) -> Verdict {
        let spot = (group, receipt.queue, receipt.offset);
        if self.reset.contains(&(group, receipt.queue)) {
            return Ok(());
        }
        if let Some(held) = self.held.get(&spot)
            && held.nonce > receipt.nonce
            && held.moment < delivered
        {
            return violation(format!("an old receipt counts: {receipt:?} after {held:?}"));
        }
        if self.done.get(&spot).is_some_and(|done| done.moment < delivered) {
            return violation(format!("a receipt counts twice: {receipt:?}"));
        }
        Ok(())
    }

    /// An acknowledgement was answered.
    pub fn acked(
        &mut self,
        group: u32,
        receipts: &[ReceiptOf],
        statuses: &[Status],
        delivered: u64,
        now: (u64, u64),
    ) -> Verdict<u64> {
        if receipts.len() != statuses.len() {
            return violation(format!("{} receipts, {} results", receipts.len(), statuses.len()));
        }
        let mut count = 0;
        for (receipt, _) in receipts.iter().zip(statuses).filter(|(_, s)| **s == Status::Ok) {
            self.counts(group, receipt, delivered)?;
            let done = Done { moment: now.1, at_us: Some(now.0) };
            let spot = (group, receipt.queue, receipt.offset);
            self.perhaps.remove(&spot);
            self.done.insert(spot, done);
            count += 1;
        }
        Ok(count)
    }

    /// A change of times was answered, each with its new nonce.
    pub fn changed(
        &mut self,
        group: u32,
        receipts: &[ReceiptOf],
        results: &[(u64, Status)],
        ms: u32,
        delivered: (u64, u64),
        moment: u64,
    ) -> Verdict {
        for (receipt, (nonce, _)) in
            receipts.iter().zip(results).filter(|(_, (_, status))| *status == Status::Ok)
        {
            self.counts(group, receipt, delivered.1)?;
            if let Some(held) = self.held.get_mut(&(group, receipt.queue, receipt.offset))
                && held.nonce < *nonce
            {
                let until_us = (delivered.0 + u64::from(ms) * 1000).saturating_sub(2_000);
                *held = Held { nonce: *nonce, moment, until_us, ..*held };
            }
        }
        Ok(())
    }

    /// Whether one was.
    pub(super) fn is_reset(&self, group: u32, queue: QueueKey) -> bool {
        self.reset.contains(&(group, queue))
    }

    /// A group was told to go elsewhere in a queue.
    pub fn resets(&mut self, group: u32, queue: QueueKey) {
        self.reset.insert((group, queue));
    }

    /// Offsets below `end` that are done and that nobody was ever handed.
    pub fn never_seen(&self, group: u32, queue: QueueKey, end: u64) -> Vec<u64> {
        if self.reset.contains(&(group, queue)) {
            return Vec::new();
        }
        (0..end).filter(|offset| !self.seen.contains(&(group, queue, *offset))).collect()
    }

    /// The wall clock is set.
    pub fn jumped(&mut self) {
        self.jumped = true;
    }

    /// The wall clock is set between two lives: what is held may come back at once.
    pub fn jumped_between(&mut self) {
        self.held.values_mut().for_each(|held| held.until_us = 0);
    }

    /// A life ended. Records of pops are flushed like ASYNC messages: power takes those younger than `interval_us`.
    pub fn crashed(&mut self, kind: CrashKind, now_us: u64, interval_us: Option<u64>) {
        let jumped = std::mem::take(&mut self.jumped);
        self.lives += 1;
        let safe =
            |at: u64| interval_us.is_some_and(|interval| at.saturating_add(interval) < now_us);
        match kind {
            CrashKind::PowerLoss => {
                for (spot, _) in self.done.extract_if(.., |_, done| !done.at_us.is_none_or(safe)) {
                    self.perhaps.insert(spot, self.held.get(&spot).map_or(0, |held| held.nonce));
                }
                self.held.clear();
            }
            // The next life may begin at another time.
            CrashKind::Kill if jumped => self.held.values_mut().for_each(|held| held.until_us = 0),
            CrashKind::Kill => {}
        }
        // While the broker is down nothing is flushed.
        for done in self.done.values_mut() {
            done.at_us = done.at_us.filter(|at| !safe(*at)).map(|_| u64::MAX);
        }
    }

    /// Every shard has recovered, which makes durable what it found.
    pub fn recovered(&mut self) {
        self.done.values_mut().for_each(|done| done.at_us = None);
    }
}
