//! How far each group has come in each queue of this shard, and who may say so.
//!
//! Invariants:
//! - a committed offset never moves backwards but by a reset;
//! - promise: one-owner. A commit under a generation counts only when the queue's owner and generation
//!   are the ones it names; one under no generation only when nobody owns the queue.

use crate::peer::{Member, Ownership, QueueId};
use crate::state::Committed;
use std::collections::BTreeMap;

/// What is kept for one group and queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) committed: Option<u64>,
    /// How often the message at the committed offset was delivered and not consumed.
    pub(crate) attempts: u16,
    pub(crate) committed_ms: i64,
    /// 0: nobody.
    pub(crate) owner: Member,
    pub(crate) generation: u32,
    /// First offset that who owns it was not given; not in the log: its next fetch says it again.
    pub(crate) fetched: Option<u64>,
}

/// By group and queue.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    entries: BTreeMap<(u32, QueueId), Progress>,
}

impl Offsets {
    pub(crate) fn get(&self, group: u32, queue: QueueId) -> Progress {
        self.entries.get(&(group, queue)).copied().unwrap_or_default()
    }

    /// Whether `member` may fetch from and commit to the queue under `generation`.
    pub(crate) fn may(&self, group: u32, queue: QueueId, member: Member, generation: u32) -> bool {
        let progress = self.get(group, queue);
        if generation == 0 {
            progress.owner == 0
        } else {
            progress.owner == member && progress.generation == generation
        }
    }

    /// Whether `member` may fetch from the queue under `generation`, which it does from `offset` on.
    pub(crate) fn fetches(
        &mut self,
        (group, queue): (u32, QueueId),
        (member, generation): (Member, u32),
        offset: u64,
    ) -> bool {
        let Some(progress) = self.entries.get_mut(&(group, queue)) else {
            return generation == 0;
        };
        let is_owner = progress.owner == member && progress.generation == generation;
        if is_owner || generation == 0 && progress.owner == 0 {
            progress.fetched = Some(offset);
        }
        // Whoever reads as no member may read everything.
        is_owner || generation == 0
    }

    /// What lies below `offset` goes out to a member.
    pub(crate) fn sent(&mut self, group: u32, queue: QueueId, member: Member, offset: u64) {
        if let Some(progress) = self.entries.get_mut(&(group, queue))
            && (progress.owner == member || progress.owner == 0)
        {
            progress.fetched = Some(offset);
        }
    }

    /// Moves a committed offset forwards, or counts another attempt at what lies there; `false` when that is known
    /// already.
    pub(crate) fn commit(&mut self, commit: Committed, now_ms: i64) -> bool {
        let Committed { group, queue, offset, attempts } = commit;
        let progress = self.entries.entry((group, queue)).or_default();
        progress.committed_ms = now_ms;
        let known = progress.committed.map(|committed| (committed, progress.attempts));
        if known.is_some_and(|known| known >= (offset, attempts)) {
            return false;
        }
        (progress.committed, progress.attempts) = (Some(offset), attempts);
        true
    }

    /// Sets a committed offset, in whatever direction.
    pub(crate) fn reset(&mut self, to: Committed, now_ms: i64) {
        let progress = self.entries.entry((to.group, to.queue)).or_default();
        (progress.committed, progress.attempts) = (Some(to.offset), to.attempts);
        progress.committed_ms = now_ms;
        progress.fetched = None;
    }

    /// Sets the owner when the generation is newer than the one known.
    pub(crate) fn own(&mut self, owner: &Ownership) -> bool {
        let progress = self.entries.entry((owner.group, owner.queue)).or_default();
        if owner.generation <= progress.generation {
            return false;
        }
        progress.owner = owner.member;
        progress.generation = owner.generation;
        progress.fetched = None;
        true
    }

    /// Takes over what a snapshot says.
    pub(crate) fn restore(&mut self, group: u32, queue: QueueId, progress: Progress) {
        self.entries.insert((group, queue), progress);
    }

    /// Everything known behind this group and queue, in order.
    pub(crate) fn after(
        &self,
        last: Option<(u32, QueueId)>,
    ) -> impl Iterator<Item = (u32, QueueId, &Progress)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = last.map_or(Unbounded, Excluded);
        self.entries.range((from, Unbounded)).map(|((group, queue), p)| (*group, *queue, p))
    }

    /// Owners of all queues.
    pub(crate) fn owners(&self) -> impl Iterator<Item = Ownership> + '_ {
        self.entries.iter().filter(|(_, progress)| progress.generation > 0).map(
            |(&(group, queue), progress)| Ownership {
                group,
                queue,
                member: progress.owner,
                generation: progress.generation,
            },
        )
    }

    pub(crate) fn forget_topic(&mut self, topic: u32) {
        self.entries.retain(|(_, queue), _| queue.topic != topic);
    }

    pub(crate) fn forget_group(&mut self, group: u32) {
        self.entries.retain(|(id, _), _| *id != group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: QueueId = QueueId { topic: 1, queue: 0 };

    #[test]
    fn one_owner_commits_and_offsets_only_grow() {
        let mut offsets = Offsets::default();
        assert!(offsets.may(1, QUEUE, 7, 0), "nobody owns it");
        let owner = Ownership { group: 1, queue: QUEUE, member: 7, generation: 3 };
        assert!(offsets.own(&owner));
        assert!(!offsets.own(&owner), "the same generation once");
        assert!(offsets.may(1, QUEUE, 7, 3));
        for (member, generation) in [(7, 2), (7, 4), (8, 3), (7, 0), (0, 0)] {
            assert!(!offsets.may(1, QUEUE, member, generation));
        }
        let at = |offset, attempts| Committed { group: 1, queue: QUEUE, offset, attempts };
        assert!(offsets.commit(at(5, 0), 0));
        assert!(!offsets.commit(at(4, 0), 0) && !offsets.commit(at(4, 9), 0));
        assert_eq!(offsets.get(1, QUEUE).committed, Some(5));
        assert!(offsets.commit(at(5, 2), 0));
        assert!(!offsets.commit(at(5, 1), 0) && !offsets.commit(at(5, 2), 0));
        assert_eq!(offsets.get(1, QUEUE).attempts, 2);
        assert!(offsets.commit(at(6, 0), 0));
        assert_eq!(offsets.get(1, QUEUE).attempts, 0, "those of another message");
        offsets.reset(at(2, 0), 0);
        assert_eq!(offsets.get(1, QUEUE).committed, Some(2));
    }
}
