//! Who was told to own which queue under which generation, and which commits counted.
//!
//! What is judged, promise one-owner:
//! - a generation of a queue in a group belongs to one member, for ever;
//! - once a generation was told, an older one is not told any more, and nothing committed under it counts;
//! - an acknowledged commit never moves back but by a reset;
//! - nothing counts after a reset that was committed under a generation told before it.

use crate::sim::disk::CrashKind;
use crate::sim::talk::{Entry, OffsetsOf, QueueKey};
use crate::sim::{Verdict, violation};
use std::collections::BTreeMap;

/// A queue in a group.
type Place = (u32, QueueKey);

#[derive(Debug, Default)]
struct Committed {
    /// Acknowledged commits of this life that count: when, and where to.
    recent: Vec<(u64, u64)>,
    /// Acknowledged and safe from everything but a reset.
    floor: Option<u64>,
    /// Acknowledged shortly before a kill: safe once the log has recovered.
    killed: Option<u64>,
    /// Everything anybody asked for that may count, and the highest generation under which.
    asked: BTreeMap<u64, u32>,
    /// Resets under way; commits delivered before this moment do not count.
    resets: u32,
    reset_moment: u64,
    /// Highest generation told before the resets under way, and before the last that was answered.
    told_before: u32,
    stale: u32,
    /// Highest generation told or accepted, and when it was first.
    fence: (u32, u64),
}

impl Committed {
    fn expected(&self) -> Option<u64> {
        let recent = self.recent.iter().map(|(_, offset)| *offset).max();
        recent.max(self.killed).max(self.floor)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Groups {
    owners: BTreeMap<(Place, u32), u128>,
    committed: BTreeMap<Place, Committed>,
}

impl Groups {
    /// A member was told its queues.
    pub fn told(
        &mut self,
        group: u32,
        member: u128,
        queues: &[(QueueKey, u32)],
        moment: u64,
    ) -> Verdict {
        for (queue, generation) in queues {
            self.owns(group, *queue, *generation, member)?;
            let fence = &mut self.committed.entry((group, *queue)).or_default().fence;
            if *generation < fence.0 {
                return violation(format!(
                    "group {group}, queue {queue:?}: generation {generation} is told after {}",
                    fence.0
                ));
            }
            if *generation > fence.0 {
                *fence = (*generation, moment);
            }
        }
        Ok(())
    }

    /// promise: one-owner
    fn owns(&mut self, group: u32, queue: QueueKey, generation: u32, member: u128) -> Verdict {
        let owner = *self.owners.entry(((group, queue), generation)).or_insert(member);
        if owner != member || generation == 0 {
            return violation(format!(
                "group {group}, queue {queue:?}, generation {generation}: members {owner:x} and {member:x}"
            ));
        }
        Ok(())
    }

    /// A commit goes out; a reset under the highest generation there can be.
    pub fn asks(&mut self, group: u32, entry: &Entry) {
        let committed = self.committed.entry((group, entry.queue)).or_default();
        let generation = committed.asked.entry(entry.offset).or_default();
        *generation = entry.generation.max(*generation);
    }

    /// A commit was accepted that had been delivered at moment `delivered`.
    pub fn accepted(
        &mut self,
        group: u32,
        member: u128,
        entry: &Entry,
        delivered: u64,
        now: (u64, u64),
    ) -> Verdict {
        let (now_us, moment) = now;
        self.owns(group, entry.queue, entry.generation, member)?;
        let committed = self.committed.entry((group, entry.queue)).or_default();
        let (generation, since) = committed.fence;
        // promise: one-owner
        if entry.generation < generation && since < delivered {
            return violation(format!(
                "group {group}, queue {:?}: a commit under generation {} counts after {generation} was told",
                entry.queue, entry.generation
            ));
        }
        if entry.generation > generation {
            committed.fence = (entry.generation, moment);
        }
        if entry.generation <= committed.stale && delivered > committed.reset_moment {
            return violation(format!(
                "group {group}, queue {:?}: a commit under generation {} counts after a reset when {} was told",
                entry.queue, entry.generation, committed.stale
            ));
        }
        if committed.resets == 0 && delivered > committed.reset_moment {
            committed.recent.push((now_us, entry.offset));
        }
        Ok(())
    }

    /// A reset is delivered: from now on either offset is right.
    pub fn resetting(&mut self, group: u32, entry: &Entry) {
        let committed = self.committed.entry((group, entry.queue)).or_default();
        committed.asked.insert(entry.offset, u32::MAX);
        if committed.resets == 0 {
            committed.told_before = committed.fence.0;
        }
        committed.resets += 1;
        committed.floor = committed.floor.map(|floor| floor.min(entry.offset));
        committed.killed = committed.killed.map(|killed| killed.min(entry.offset));
        for (_, offset) in &mut committed.recent {
            *offset = entry.offset.min(*offset);
        }
    }

    /// A reset was answered, and done or not.
    pub fn reset(&mut self, group: u32, entry: &Entry, done: bool, moment: u64) {
        let committed = self.committed.entry((group, entry.queue)).or_default();
        committed.resets = committed.resets.saturating_sub(1);
        committed.reset_moment = moment;
        if done {
            let stale = committed.told_before.max(committed.stale);
            committed.stale = stale;
            committed.asked.retain(|_, generation| *generation > stale);
        }
    }

    /// What the group is known to have committed at least.
    pub fn floor(&self, group: u32, queue: QueueKey) -> Option<u64> {
        self.committed.get(&(group, queue)).and_then(Committed::expected)
    }

    /// Offsets were told that were asked for when `floor` was known.
    pub fn offsets(&self, group: u32, told: &OffsetsOf, floor: Option<u64>) -> Verdict {
        let Some(committed) = self.committed.get(&(group, told.queue)) else { return Ok(()) };
        // A reset between question and answer moves it back rightly.
        let floor = floor.min(committed.expected());
        let back = floor.is_some_and(|floor| told.committed < floor as i64);
        if back {
            return violation(format!(
                "group {group}: committed {told:?}, where {floor:?} had been acknowledged"
            ));
        }
        if told.committed >= 0 && !committed.asked.contains_key(&(told.committed as u64)) {
            return violation(format!("group {group}: {told:?} was never committed"));
        }
        if told.committed > told.max_offset as i64 {
            return violation(format!("group {group}: committed beyond the end, {told:?}"));
        }
        Ok(())
    }

    /// A life ended. Commits are flushed like ASYNC messages: power takes those younger than `interval_us`.
    pub fn crashed(&mut self, kind: CrashKind, now_us: u64, interval_us: Option<u64>) {
        for committed in self.committed.values_mut() {
            committed.resets = 0;
            let recent = std::mem::take(&mut committed.recent);
            let safe = |at: u64| interval_us.is_some_and(|interval| at + interval < now_us);
            let kept = recent.iter().filter(|(at, _)| safe(*at)).map(|(_, offset)| *offset).max();
            let all = recent.iter().map(|(_, offset)| *offset).max();
            committed.killed = match kind {
                CrashKind::Kill => committed.killed.max(all),
                CrashKind::PowerLoss => None,
            };
            committed.floor = committed.floor.max(kept);
        }
    }

    /// Every shard has recovered, which makes durable what it found.
    pub fn recovered(&mut self) {
        for committed in self.committed.values_mut() {
            committed.floor = committed.floor.max(committed.killed.take());
        }
    }
}
