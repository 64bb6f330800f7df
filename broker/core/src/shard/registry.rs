//! Changes of topics and groups: durable at the home shard, then on every shard, then acknowledged.
//!
//! A shard stages a change when it appends it and applies it when it is durable: an id that another shard
//! or a member has heard of can never be given to another topic or group by a crash. Other shards are
//! told only after the change is durable at home.
//!
//! At start each shard says what it has. One that has something else, because it missed changes or because damage
//! took some of its log, is sent everything; it makes what it lacks durable, as slices of a snapshot, and only then
//! are requests for topics and groups served. Nothing is ever taken away so: what home lacks may be lost there.

use super::waiting::Then;
use super::{Asker, Handled, Refuse, Shard, refuse};
use crate::peer::{Change, PeerMessage, RegistryChange, WholeRegistry};
use crate::registry::Registry;
use crate::route::TopicChange;
use crate::seam::{Action, Memory, Now, Outbox};
use crate::snapshot::Slice;
use crate::state;
use ringmq_schema::error::Status;
use ringmq_schema::placement::HOME_SHARD;
use ringmq_schema::record::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What the home shard knows of the others.
#[derive(Debug)]
pub(super) struct HomeState {
    /// Durable version of each shard; `None`: not heard of since the start.
    done: Vec<Option<u64>>,
    /// Last version that each shard has or was told.
    told: Vec<u64>,
    /// Version at start: below it nobody is told anything that was not.
    at_start: u64,
    /// Of all topics and groups at start.
    digest: u64,
    agreed: bool,
    /// Groups asked for before all shards agreed.
    wanted_groups: BTreeSet<String>,
    pending: BTreeMap<u64, Pending>,
}

#[derive(Debug)]
struct Pending {
    asker: Option<Asker>,
    topic: Option<TopicChange>,
    group: Option<String>,
    since_us: u64,
}

/// Bytes of topics and groups in one record when all of them are sent again.
const SLICE_BYTES: usize = 16 << 10;
/// A change that a shard does not confirm is answered `NotReady` after this; it goes on all the same.
const CONFIRM_TIMEOUT_US: u64 = 5_000_000;

impl HomeState {
    pub(super) fn new(shards: u16, registry: &Registry) -> HomeState {
        HomeState {
            done: vec![None; usize::from(shards)],
            told: vec![0; usize::from(shards)],
            at_start: registry.version(),
            digest: registry.digest(),
            agreed: false,
            wanted_groups: BTreeSet::new(),
            pending: BTreeMap::new(),
        }
    }

    /// Whether every shard has what was there at start.
    pub(super) fn agrees(&self) -> bool {
        self.agreed
    }

    /// Whether every shard has everything up to `version`, durably: nobody asks for older changes any more.
    pub(super) fn all_have(&self, version: u64) -> bool {
        self.least().is_some_and(|least| least >= version)
    }

    /// Keeps a group's name until it can be made; bounded as the groups are.
    pub(super) fn want_group(&mut self, name: String, most: usize) {
        if self.wanted_groups.len() < most {
            self.wanted_groups.insert(name);
        }
    }

    fn least(&self) -> Option<u64> {
        self.done.iter().copied().min().flatten()
    }
}

impl<M: Memory> Shard<M> {
    /// Whether changes can be made: on the home shard, when all shards agree.
    pub(super) fn check_home(&self) -> Handled {
        self.check_writing()?;
        self.check_agreement()
    }

    /// Whether nobody else is changing this topic or group right now.
    pub(super) fn check_unstaged(&self, name: &str) -> Handled {
        if !self.registry.is_staged(name) {
            return Ok(());
        }
        let text = format!("{name} is being changed at this moment");
        Err(Refuse { retry_after_ms: 20, ..refuse(Status::NotReady, text) })
    }

    /// Whether this is the home shard and all shards have what it has.
    pub(super) fn check_agreement(&self) -> Handled {
        match &self.home {
            None => {
                let text = "topics and groups are made on the home shard";
                Err(Refuse { shard: HOME_SHARD, ..refuse(Status::WrongShard, text) })
            }
            Some(home) if !home.agrees() => {
                let text = "the broker is starting: not all shards have all topics yet";
                Err(Refuse { retry_after_ms: 100, ..refuse(Status::NotReady, text) })
            }
            Some(_) => Ok(()),
        }
    }

    /// Makes a change at home. `asker` is answered when it is durable on all shards.
    pub(super) fn change(
        &mut self,
        change: Change,
        asker: Option<Asker>,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        let change = self.registry.next(change);
        let topic = self.topic_change(&change);
        let group = match &change.change {
            Change::Group { name, .. } => Some(name.clone()),
            _ => None,
        };
        let pending = Pending { asker, topic, group, since_us: now.mono_us };
        if let Some(home) = &mut self.home {
            home.pending.insert(change.version, pending);
        }
        self.take_change(change, now, out);
    }

    /// What the name servers are to learn of a change that is about to be made.
    fn topic_change(&self, change: &RegistryChange) -> Option<TopicChange> {
        let version = change.version;
        match &change.change {
            Change::Topic { id, settings } => {
                let settings = settings.clone();
                Some(TopicChange { id: *id, version, settings, deleted: false })
            }
            Change::TopicDeleted { id } => {
                let settings = self.registry.topic(*id)?.settings.clone();
                Some(TopicChange { id: *id, version, settings, deleted: true })
            }
            _ => None,
        }
    }

    /// Appends the next change.
    fn take_change(&mut self, change: RegistryChange, now: Now, out: &mut Outbox<M::Block>) {
        let kind = match change.change {
            Change::Topic { .. } | Change::TopicDeleted { .. } => Kind::Topic,
            Change::Group { .. } | Change::GroupDeleted { .. } => Kind::Group,
        };
        let end = self.log.append_state(kind, &state::write_change(&change), true, now, out);
        self.waiting.push(end, true, Then::Registry { version: change.version });
        self.registry.stage(change);
    }

    /// A change is durable here: it takes effect, and home learns of it.
    pub(super) fn apply_change(&mut self, version: u64, now: Now, out: &mut Outbox<M::Block>) {
        let Some(change) = self.registry.unstage() else { return };
        assert_eq!(change.version, version, "changes become durable in order");
        let applied = self.registry.apply(&change);
        assert!(applied, "changes are taken in order");
        match &change.change {
            Change::Topic { settings, .. } => self.topic_changed(&settings.name, now, out),
            Change::TopicDeleted { id } => {
                let woken = self.queues.forget_topic(*id);
                self.offsets.forget_topic(*id);
                self.pops.forget_topic(*id);
                self.poppers.forget_topic(*id);
                self.timers.delayed.forget_topic(*id);
                self.retention.segments.forget(*id);
                self.fetches.wake(woken);
                self.topic_gone(*id, now, out);
            }
            Change::Group { id, name, .. } => self.group_made(*id, name, now, out),
            Change::GroupDeleted { id } => {
                self.offsets.forget_group(*id);
                self.pops.forget_group(*id);
                self.poppers.forget_group(*id);
                self.end_pops(Some(*id), now, out);
                self.group_gone(*id, out);
            }
        }
        self.tell(HOME_SHARD, PeerMessage::RegistryDone { version }, now, out);
    }

    /// The home shard tells of a change that is durable there.
    pub(super) fn registry_change(
        &mut self,
        change: RegistryChange,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        if self.log.failed().is_some() {
            return;
        }
        if change.version == self.registry.staged_version() + 1 {
            self.take_change(change, now, out);
        }
    }

    /// A shard has begun with this.
    pub(super) fn registry_held(
        &mut self,
        from: u16,
        version: u64,
        digest: u64,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        // One that knows of later changes has them from here, where they are lost.
        if self.home.is_some() && version > self.registry.version() {
            self.skip_lost_changes(version, now, out);
        }
        let Some(home) = &self.home else { return };
        if (version, digest) == (home.at_start, home.digest) {
            return self.registry_done(from, version, now, out);
        }
        let whole = Arc::new(self.registry.whole());
        out.actions.push(Action::Peer { to: from, message: PeerMessage::RegistryWhole(whole) });
    }

    /// Home lost its last changes to damage: their versions and ids are not given again, or what other shards
    /// have of a topic would be taken for another's.
    fn skip_lost_changes(&mut self, version: u64, now: Now, out: &mut Outbox<M::Block>) {
        if self.log.failed().is_some() {
            return;
        }
        self.registry.skip_to(version);
        let (version, last_topic, last_group) = self.registry.head();
        let head = Slice::registry(version, last_topic, last_group);
        let end = self.log.append_state(Kind::Snapshot, head.payload(), true, now, out);
        self.waiting.push(end, true, Then::Nothing);
        let whole = Arc::new(self.registry.whole());
        let Some(home) = &mut self.home else { return };
        home.at_start = version;
        for (shard, done) in (0..).zip(&mut home.done) {
            if shard == HOME_SHARD {
                *done = done.map(|_| version);
            } else if done.take().is_some() {
                let message = PeerMessage::RegistryWhole(Arc::clone(&whole));
                out.actions.push(Action::Peer { to: shard, message });
            }
        }
    }

    /// Home says everything: what is not here is made durable.
    pub(super) fn registry_whole(
        &mut self,
        whole: Arc<WholeRegistry>,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        let version = self.registry.version();
        if self.log.failed().is_some() || self.registry.has_staged() || version > whole.version {
            return;
        }
        let head = Slice::registry(whole.version, whole.last_topic, whole.last_group);
        let mut slices = vec![head];
        let mut slice = Slice::changes();
        for change in self.registry.missing(&whole) {
            slice.add_change(change);
            if slice.payload().len() >= SLICE_BYTES {
                slices.push(std::mem::replace(&mut slice, Slice::changes()));
            }
        }
        if !slice.is_empty() {
            slices.push(slice);
        }
        if slices.len() == 1 && version == whole.version {
            // All of it is here, and more: deletions that are lost.
            return self.tell(HOME_SHARD, PeerMessage::RegistryDone { version }, now, out);
        }
        let mut end = 0;
        for slice in &slices {
            end = self.log.append_state(Kind::Snapshot, slice.payload(), true, now, out);
        }
        // No snapshot may begin behind these records without what they say.
        self.registry.begin_restoring();
        self.waiting.push(end, true, Then::WholeRegistry(whole));
    }

    /// What was missing is durable here: it takes effect, and home learns of it.
    pub(super) fn restore_registry(
        &mut self,
        whole: &WholeRegistry,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        let news: Vec<RegistryChange> = self.registry.missing(whole).cloned().collect();
        self.registry.restore_whole(whole, &news);
        for change in &news {
            match &change.change {
                Change::Topic { settings, .. } => self.topic_changed(&settings.name, now, out),
                Change::Group { id, name, .. } => self.group_made(*id, name, now, out),
                Change::TopicDeleted { .. } | Change::GroupDeleted { .. } => {}
            }
        }
        self.figures.registry_restored += news.len() as u64;
        let version = whole.version;
        self.tell(HOME_SHARD, PeerMessage::RegistryDone { version }, now, out);
    }

    /// A shard has everything up to `version` durably; from home itself: it may go out.
    pub(super) fn registry_done(
        &mut self,
        from: u16,
        version: u64,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        let Some(home) = &mut self.home else { return };
        let Some(done) = home.done.get_mut(usize::from(from)) else { return };
        let before = *done;
        if before.is_none() && from != HOME_SHARD && version < home.at_start {
            // What it confirms was everything until another shard knew of more.
            let whole = Arc::new(self.registry.whole());
            out.actions.push(Action::Peer { to: from, message: PeerMessage::RegistryWhole(whole) });
            return;
        }
        *done = Some(version.max(before.unwrap_or(0)));
        if before.is_none() {
            home.told[usize::from(from)] = version;
        }
        self.tell_changes(out);
        self.complete_changes(out);
        let wanted = match &mut self.home {
            Some(home) if home.agreed => std::mem::take(&mut home.wanted_groups),
            _ => return,
        };
        for name in wanted {
            self.ensure_group(name, now, out);
        }
    }

    /// Sends each shard that was heard of what is durable here and new to it.
    fn tell_changes(&mut self, out: &mut Outbox<M::Block>) {
        let Some(home) = &mut self.home else { return };
        let Some(durable) = home.done[usize::from(HOME_SHARD)] else { return };
        for shard in 0..home.done.len() {
            if shard == usize::from(HOME_SHARD) || home.done[shard].is_none() {
                continue;
            }
            let news = self.registry.since(home.told[shard]);
            for change in news.iter().take_while(|change| change.version <= durable) {
                let message = PeerMessage::Registry(change.clone());
                out.actions.push(Action::Peer { to: shard as u16, message });
            }
            home.told[shard] = home.told[shard].max(durable);
        }
    }

    fn complete_changes(&mut self, out: &mut Outbox<M::Block>) {
        let Some(home) = &mut self.home else { return };
        let Some(least) = home.least() else { return };
        if !home.agreed && least >= home.at_start {
            home.agreed = true;
            for topic in self.registry.topics() {
                out.actions.push(Action::Topic(TopicChange {
                    id: topic.id,
                    version: topic.version,
                    settings: topic.settings.clone(),
                    deleted: false,
                }));
            }
        }
        let mut answers = Vec::new();
        while let Some(entry) = home.pending.first_entry() {
            if *entry.key() > least {
                break;
            }
            let pending = entry.remove();
            if let Some(topic) = &pending.topic {
                out.actions.push(Action::Topic(topic.clone()));
            }
            answers.push(pending);
        }
        for pending in answers {
            let Some(asker) = pending.asker else { continue };
            match pending.topic {
                Some(topic) if !topic.deleted => {
                    self.answer_topic(asker, topic.id, topic.version, &topic.settings, out);
                }
                _ => match pending.group {
                    Some(name) => self.answer_group(asker, &name, out),
                    None => self.done(asker, out),
                },
            }
        }
    }

    /// Answers those whose change a shard does not confirm.
    pub(super) fn expire_changes(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        let Some(home) = &mut self.home else { return };
        let late = |pending: &&mut Pending| now.mono_us > pending.since_us + CONFIRM_TIMEOUT_US;
        let askers: Vec<Asker> =
            home.pending.values_mut().filter(late).filter_map(|p| p.asker.take()).collect();
        for asker in askers {
            let text = "a shard of this broker has not confirmed the change yet; it is stored and \
                        goes on: look again in a moment";
            self.refuse(asker, &refuse(Status::NotReady, text), out);
        }
    }
}
