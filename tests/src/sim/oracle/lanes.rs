//! The order of messages of one message group that are popped.
//!
//! What is judged, promise fifo: a message is handed out only when each of its message group before it in the queue is
//! done: acknowledged, or put aside because its attempts are used up. What a crash took back may come again, and then
//! its followers come after it again.
//!
//! An acknowledgement without an answer may count or not; a follower that is handed out shows that it did.

use super::pops::{Done, Pops, Spot};
use crate::sim::talk::{PoppedOne, ReceiptOf};
use crate::sim::{Verdict, violation};

/// Least time for which poppers ask, µs.
const INVISIBLE_US_MIN: u64 = 10_000_000;

impl Pops {
    /// A pop was delivered: until its answer is seen, it may have handed out anything.
    pub fn asks(&mut self) {
        self.unheard += 1;
    }

    /// A pop was answered.
    pub fn heard(&mut self) {
        self.unheard -= 1;
    }

    /// An acknowledgement was delivered: from now on its message may be done.
    pub fn acking(&mut self, group: u32, receipt: &ReceiptOf) {
        let spot = (group, receipt.queue, receipt.offset);
        let is_old = self.held.get(&spot).is_some_and(|held| held.nonce > receipt.nonce);
        if !is_old {
            let nonce = self.perhaps.entry(spot).or_default();
            *nonce = receipt.nonce.max(*nonce);
        }
    }

    /// A message was handed out that is behind `before` in its message group. promise: fifo
    pub fn in_order(
        &mut self,
        group: u32,
        one: &PoppedOne,
        before: &[u64],
        now: (u64, u64),
    ) -> Verdict {
        if self.is_reset(group, one.queue) {
            return Ok(());
        }
        for offset in before {
            let spot = (group, one.queue, *offset);
            if self.perhaps.remove(&spot).is_some() {
                self.done.insert(spot, Done { moment: now.1, at_us: Some(now.0) });
            } else if !self.done.contains_key(&spot) && !self.may_be_buried(&spot, now.0) {
                return violation(format!(
                    "{one:?} is handed out to group {group}, and {offset} before it in its message group is \
                     not done: {:?}",
                    self.held.get(&spot)
                ));
            }
        }
        Ok(())
    }

    /// Whether the attempts of a message may be used up. Those of pops whose answers nobody saw count as well: each kept
    /// it for its time, or until the next start.
    fn may_be_buried(&self, spot: &Spot, now_us: u64) -> bool {
        let held = self.held.get(spot);
        let until_us = held.map_or(0, |held| held.until_us);
        if until_us > now_us {
            return false;
        }
        let lasted = 1 + self.lives + (now_us - until_us) / INVISIBLE_US_MIN;
        let known = self.tries.get(spot).copied().unwrap_or(0);
        u64::from(known) + lasted.min(self.unheard) >= u64::from(self.max_attempts)
    }
}
