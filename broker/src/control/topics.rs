//! The broker's topics as the name servers are to know them: plain data.
//!
//! Invariants:
//! - `hash` is the wrapping sum of `route_hash` over the live topics, kept change by change;
//! - changes are numbered without a gap; the newest are kept, so that a link which is up to date up to a
//!   number that is kept can be told the difference, and every other needs the whole table.

use ringmq_core::route::TopicChange;
use ringmq_schema::placement::route_hash;
use std::collections::{BTreeMap, VecDeque};

/// Changes kept; a link that is further behind sends the whole table.
const CHANGES_KEPT: usize = 4_096;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    live: BTreeMap<String, TopicChange>,
    version: u64,
    hash: u64,
    recent: VecDeque<TopicChange>,
    /// Number of the change after the newest.
    end: u64,
}

impl Topics {
    pub(crate) fn apply(&mut self, change: TopicChange) {
        let name = &change.settings.name;
        let before = self.live.get(name);
        if change.deleted && before.is_none_or(|before| before.id != change.id) {
            // Another topic has that name by now, or none has.
            return;
        }
        if let Some(before) = before {
            self.hash = self.hash.wrapping_sub(hash_of(before));
        }
        if change.deleted {
            self.live.remove(name);
        } else {
            self.hash = self.hash.wrapping_add(hash_of(&change));
            self.live.insert(name.clone(), change.clone());
        }
        self.version = self.version.max(change.version);
        self.end += 1;
        self.recent.push_back(change);
        if self.recent.len() > CHANGES_KEPT {
            self.recent.pop_front();
        }
    }

    /// Version and hash of the table.
    pub(crate) fn state(&self) -> (u64, u64) {
        (self.version, self.hash)
    }

    /// Number of the change after the newest.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &TopicChange> {
        self.live.values()
    }

    /// Changes from number `from` on; `None` when they are not kept any more.
    pub(crate) fn since(&self, from: u64) -> Option<impl Iterator<Item = &TopicChange>> {
        let missing = usize::try_from(self.end.checked_sub(from)?).ok()?;
        let skip = self.recent.len().checked_sub(missing)?;
        Some(self.recent.iter().skip(skip))
    }
}

fn hash_of(topic: &TopicChange) -> u64 {
    let s = &topic.settings;
    let queues = (s.read_queues, s.write_queues);
    let kind = (s.permission, s.message_type);
    route_hash(&s.name, topic.id, topic.version, queues.0, queues.1, kind.0, kind.1)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use ringmq_core::peer::TopicSettings;

    pub(crate) fn change(name: &str, id: u32, version: u64, deleted: bool) -> TopicChange {
        let settings = TopicSettings {
            name: name.to_owned(),
            read_queues: 8,
            write_queues: 8,
            permission: 6,
            message_type: 0,
            retention_ms: 0,
            retention_bytes: 0,
            flush: 0,
        };
        TopicChange { id, version, settings, deleted }
    }

    #[test]
    fn the_hash_follows_every_change() {
        let mut topics = Topics::default();
        topics.apply(change("a", 1, 1, false));
        let one = topics.state();
        topics.apply(change("b", 2, 2, false));
        topics.apply(change("b", 2, 3, true));
        assert_eq!(topics.state(), (3, one.1));
        topics.apply(change("a", 1, 4, true));
        assert_eq!(topics.state(), (4, 0));
        assert_eq!(topics.all().count(), 0);
    }

    #[test]
    fn a_late_deletion_does_not_hit_the_topic_made_again() {
        let mut topics = Topics::default();
        topics.apply(change("a", 2, 5, false));
        let before = topics.state();
        topics.apply(change("a", 1, 4, true));
        assert_eq!(topics.state(), before);
        assert_eq!(topics.end(), 1);
    }

    #[test]
    fn only_the_newest_changes_are_kept() {
        let mut topics = Topics::default();
        let total = CHANGES_KEPT as u64 + 10;
        for version in 1..=total {
            topics.apply(change("a", 1, version, false));
        }
        assert!(topics.since(9).is_none());
        assert_eq!(topics.since(10).unwrap().count(), CHANGES_KEPT);
        assert_eq!(topics.since(total).unwrap().count(), 0);
        assert!(topics.since(total + 1).is_none());
    }
}
