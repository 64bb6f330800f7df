//! Topics and groups, by id and by name.
//!
//! Invariants:
//! - versions count up by one; a change applies exactly once and in order on every shard;
//! - a change is *staged* when it is appended and *applied* when it is durable: until then nothing may
//!   bear its id, or a crash could give the id to another while other shards hold what belongs to it;
//! - ids are never given twice, also not after a deletion: what bears an id belongs to that topic.

use crate::peer::{Change, GroupSettings, RegistryChange, TopicSettings, WholeRegistry};
use crate::state;
use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

/// A topic that is there.
#[derive(Debug, Clone)]
pub(crate) struct Topic {
    pub(crate) id: u32,
    /// Version of its last change.
    pub(crate) version: u64,
    pub(crate) settings: TopicSettings,
}

/// A group that is there.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub(crate) id: u32,
    pub(crate) version: u64,
    pub(crate) name: String,
    pub(crate) settings: GroupSettings,
}

impl Group {
    fn new(version: u64, id: u32, name: &str, settings: &GroupSettings) -> Group {
        Group { id, version, name: name.to_owned(), settings: settings.clone() }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    version: u64,
    last_topic: u32,
    last_group: u32,
    /// Appended, not durable yet, in order.
    staged: VecDeque<RegistryChange>,
    topics: BTreeMap<u32, Topic>,
    topic_ids: BTreeMap<String, u32>,
    groups: BTreeMap<u32, Group>,
    group_ids: BTreeMap<String, u32>,
    /// Every change since the last snapshot or start, for shards that are to have it. Kept by the home shard only.
    history: Option<Vec<RegistryChange>>,
    /// See [`Registry::begin_restoring`].
    is_restoring: bool,
    /// Topic ids that may have been given by changes that are lost to damage.
    lost: Vec<RangeInclusive<u32>>,
}

impl Registry {
    pub(crate) fn new(keep_history: bool) -> Registry {
        Registry { history: keep_history.then(Vec::new), ..Registry::default() }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn topic(&self, id: u32) -> Option<&Topic> {
        self.topics.get(&id)
    }

    pub(crate) fn topic_named(&self, name: &str) -> Option<&Topic> {
        self.topics.get(self.topic_ids.get(name)?)
    }

    pub(crate) fn topics(&self) -> impl ExactSizeIterator<Item = &Topic> {
        self.topics.values()
    }

    pub(crate) fn topics_by_name(&self, prefix: &str) -> impl Iterator<Item = &Topic> {
        let prefix = prefix.to_owned();
        self.topic_ids
            .range(prefix.clone()..)
            .take_while(move |(name, _)| name.starts_with(&prefix))
            .filter_map(|(_, id)| self.topics.get(id))
    }

    pub(crate) fn group(&self, id: u32) -> Option<&Group> {
        self.groups.get(&id)
    }

    pub(crate) fn group_named(&self, name: &str) -> Option<&Group> {
        self.groups.get(self.group_ids.get(name)?)
    }

    pub(crate) fn groups(&self) -> impl ExactSizeIterator<Item = &Group> {
        self.groups.values()
    }

    /// Version and the last ids given: where a snapshot begins.
    pub(crate) fn head(&self) -> (u64, u32, u32) {
        (self.version, self.last_topic, self.last_group)
    }

    /// Takes over where a snapshot begins; what it says of topics and groups follows.
    pub(crate) fn restore_head(&mut self, version: u64, last_topic: u32, last_group: u32) {
        self.version = version;
        self.last_topic = self.last_topic.max(last_topic);
        self.last_group = self.last_group.max(last_group);
        if let Some(history) = &mut self.history {
            history.clear();
        }
    }

    /// Takes over what a snapshot says of one topic or group.
    pub(crate) fn restore(&mut self, change: &RegistryChange) {
        let version = change.version;
        match &change.change {
            // Changed while the snapshot was written.
            Change::Topic { id, .. }
                if self.topics.get(id).is_some_and(|t| t.version > version) => {}
            Change::Topic { id, settings } => {
                let topic = Topic { id: *id, version, settings: settings.clone() };
                self.topic_ids.insert(settings.name.clone(), *id);
                self.topics.insert(*id, topic);
            }
            Change::Group { id, .. }
                if self.groups.get(id).is_some_and(|g| g.version > version) => {}
            Change::Group { id, name, settings } => {
                self.group_ids.insert(name.clone(), *id);
                self.groups.insert(*id, Group::new(version, *id, name, settings));
            }
            Change::TopicDeleted { .. } | Change::GroupDeleted { .. } => {}
        }
    }

    /// Topics behind this id, as changes.
    pub(crate) fn topics_after(&self, id: u32) -> impl Iterator<Item = RegistryChange> {
        self.topics.range(id.saturating_add(1)..).map(|(id, topic)| RegistryChange {
            version: topic.version,
            change: Change::Topic { id: *id, settings: topic.settings.clone() },
        })
    }

    /// Groups behind this id, as changes.
    pub(crate) fn groups_after(&self, id: u32) -> impl Iterator<Item = RegistryChange> {
        self.groups.range(id.saturating_add(1)..).map(|(id, group)| RegistryChange {
            version: group.version,
            change: Change::Group {
                id: *id,
                name: group.name.clone(),
                settings: group.settings.clone(),
            },
        })
    }

    /// Changes up to `version` are lost to damage: what they said is not known, their ids are not given
    /// again.
    pub(crate) fn skip_to(&mut self, version: u64) {
        let lost = version.saturating_sub(self.version) as u32;
        if lost > 0 {
            self.lost.push(self.last_topic + 1..=self.last_topic + lost);
        }
        self.last_topic += lost;
        self.last_group += lost;
        self.version = self.version.max(version);
    }

    /// Whether a change waits for the disk.
    pub(crate) fn has_staged(&self) -> bool {
        !self.staged.is_empty() || self.is_restoring
    }

    /// What is missing here of a whole registry is on its way to the disk.
    pub(crate) fn begin_restoring(&mut self) {
        assert!(!self.has_staged(), "home sends no changes to a shard that lacks some");
        self.is_restoring = true;
    }

    /// It is durable: these take effect.
    pub(crate) fn restore_whole(&mut self, whole: &WholeRegistry, news: &[RegistryChange]) {
        assert!(std::mem::take(&mut self.is_restoring), "begun before");
        self.restore_head(whole.version, whole.last_topic, whole.last_group);
        news.iter().for_each(|change| self.restore(change));
    }

    /// Numbers the next change: home shard only.
    pub(crate) fn next(&self, change: Change) -> RegistryChange {
        RegistryChange { version: self.staged_version() + 1, change }
    }

    /// Version of the last change that was appended.
    pub(crate) fn staged_version(&self) -> u64 {
        self.version + self.staged.len() as u64
    }

    /// Keeps a change until it is durable.
    pub(crate) fn stage(&mut self, change: RegistryChange) {
        assert_eq!(change.version, self.staged_version() + 1, "changes are taken in order");
        match &change.change {
            Change::Topic { id, .. } => self.last_topic = self.last_topic.max(*id),
            Change::Group { id, .. } => self.last_group = self.last_group.max(*id),
            Change::TopicDeleted { .. } | Change::GroupDeleted { .. } => {}
        }
        self.staged.push_back(change);
    }

    /// The staged change that is durable now.
    pub(crate) fn unstage(&mut self) -> Option<RegistryChange> {
        self.staged.pop_front()
    }

    /// Whether a change of this topic or group is on its way to the disk.
    pub(crate) fn is_staged(&self, name: &str) -> bool {
        self.staged.iter().any(|staged| match &staged.change {
            Change::Topic { settings, .. } => settings.name == name,
            Change::Group { name: group, .. } => group == name,
            Change::TopicDeleted { id } => {
                self.topics.get(id).is_some_and(|topic| topic.settings.name == name)
            }
            Change::GroupDeleted { id } => {
                self.groups.get(id).is_some_and(|group| group.name == name)
            }
        })
    }

    /// Whether a topic with this id was here once and is not any more. Of one whose making may be lost nobody
    /// knows that here: what it has is kept.
    pub(crate) fn is_deleted(&self, topic: u32) -> bool {
        topic <= self.last_topic
            && !self.topics.contains_key(&topic)
            && !self.lost.iter().any(|lost| lost.contains(&topic))
    }

    /// What became of a topic is known after all.
    fn find_lost(&mut self, topic: u32) {
        let Some(at) = self.lost.iter().position(|lost| lost.contains(&topic)) else { return };
        let (first, last) = self.lost.swap_remove(at).into_inner();
        if first < topic {
            self.lost.push(first..=topic - 1);
        }
        if topic < last {
            self.lost.push(topic + 1..=last);
        }
    }

    /// A digest of all topics and groups (FNV-1a): the same on every shard that has the same.
    pub(crate) fn digest(&self) -> u64 {
        let mut digest = 0xcbf2_9ce4_8422_2325_u64;
        for change in self.topics_after(0).chain(self.groups_after(0)) {
            for byte in state::write_change(&change) {
                digest = (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        digest
    }

    /// Everything that there is.
    pub(crate) fn whole(&self) -> WholeRegistry {
        WholeRegistry {
            version: self.version,
            last_topic: self.last_topic,
            last_group: self.last_group,
            changes: self.topics_after(0).chain(self.groups_after(0)).collect(),
        }
    }

    /// What a whole registry has that is not here, or older.
    pub(crate) fn missing<'a>(
        &self,
        whole: &'a WholeRegistry,
    ) -> impl Iterator<Item = &'a RegistryChange> {
        whole.changes.iter().filter(|change| {
            let here = match &change.change {
                Change::Topic { id, .. } => self.topics.get(id).map(|topic| topic.version),
                Change::Group { id, .. } => self.groups.get(id).map(|group| group.version),
                Change::TopicDeleted { .. } | Change::GroupDeleted { .. } => None,
            };
            here.is_none_or(|version| version < change.version)
        })
    }

    pub(crate) fn next_topic_id(&self) -> u32 {
        self.last_topic + 1
    }

    pub(crate) fn next_group_id(&self) -> u32 {
        self.last_group + 1
    }

    /// Changes above `version`.
    pub(crate) fn since(&self, version: u64) -> &[RegistryChange] {
        let history = self.history.as_deref().unwrap_or_default();
        &history[history.partition_point(|change| change.version <= version)..]
    }

    /// Applies the next change; `false` when it is not the next one.
    pub(crate) fn apply(&mut self, change: &RegistryChange) -> bool {
        if change.version != self.version + 1 {
            return false;
        }
        let version = change.version;
        self.version = version;
        match &change.change {
            Change::Topic { id, settings } => {
                let topic = Topic { id: *id, version, settings: settings.clone() };
                self.last_topic = self.last_topic.max(*id);
                self.topic_ids.insert(settings.name.clone(), *id);
                self.topics.insert(*id, topic);
            }
            Change::TopicDeleted { id } => {
                if let Some(topic) = self.topics.remove(id) {
                    self.topic_ids.remove(&topic.settings.name);
                }
                self.find_lost(*id);
            }
            Change::Group { id, name, settings } => {
                self.last_group = self.last_group.max(*id);
                self.group_ids.insert(name.clone(), *id);
                self.groups.insert(*id, Group::new(version, *id, name, settings));
            }
            Change::GroupDeleted { id } => {
                if let Some(group) = self.groups.remove(id) {
                    self.group_ids.remove(&group.name);
                }
            }
        }
        if let Some(history) = &mut self.history {
            history.push(change.clone());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(version: u64, id: u32, name: &str) -> RegistryChange {
        let settings = TopicSettings {
            name: name.to_owned(),
            read_queues: 1,
            write_queues: 1,
            permission: 6,
            message_type: 0,
            retention_ms: version,
            retention_bytes: 0,
            flush: 0,
        };
        RegistryChange { version, change: Change::Topic { id, settings } }
    }

    fn group(version: u64, id: u32) -> RegistryChange {
        let (name, settings) = (format!("group-{id}"), GroupSettings::default());
        RegistryChange { version, change: Change::Group { id, name, settings } }
    }

    #[test]
    fn what_damage_took_is_noticed_and_comes_back() {
        let deleted = RegistryChange { version: 6, change: Change::TopicDeleted { id: 2 } };
        let all = [
            topic(1, 1, "one"),
            group(2, 1),
            topic(3, 2, "two"),
            topic(4, 3, "three"),
            topic(5, 1, "one"),
            deleted,
        ];
        let (mut home, mut other) = (Registry::new(true), Registry::new(false));
        assert_eq!(home.digest(), other.digest());
        assert!(all.iter().all(|change| home.apply(change)));
        // The group and both new topics are lost, the deletion of one of them is not.
        assert!(other.apply(&all[0]));
        other.skip_to(4);
        assert!(other.apply(&all[4]));
        assert!(!other.is_deleted(2) && !other.is_deleted(3), "nobody knows");
        assert!(other.apply(&all[5]));
        assert!(other.is_deleted(2) && !other.is_deleted(3));
        assert_eq!(home.version(), other.version());
        assert_ne!(home.digest(), other.digest());
        let whole = home.whole();
        let news: Vec<RegistryChange> = other.missing(&whole).cloned().collect();
        assert_eq!(news, [topic(4, 3, "three"), group(2, 1)]);
        other.begin_restoring();
        assert!(other.has_staged());
        other.restore_whole(&whole, &news);
        assert!(!other.has_staged() && other.missing(&whole).next().is_none());
        assert_eq!(home.digest(), other.digest());
        assert_eq!(other.topic_named("three").map(|topic| topic.id), Some(3));
        assert!(other.group_named("group-1").is_some() && other.topic(2).is_none());
        assert!(other.apply(&topic(7, 9, "nine")), "changes go on behind it");
    }
}
