//! Groups whose shard this is: heartbeats in, assignments out.

use super::{Asker, Handled, Refuse, Shard, read, refuse};
use crate::consume::assignment::Placed;
use crate::consume::group::{GroupState, Heartbeat, Parked, Refused, Subscription};
use crate::peer::{Member, Ownership, PeerMessage, QueueId, member_of};
use crate::route::TopicRoutes;
use crate::seam::{Action, Memory, Now, Outbox};
use ringmq_schema::consume::{
    FilterKind, GroupHeartbeat, GroupHeartbeatAnswer, GroupHeartbeatAnswerArgs, GroupLeave,
    OwnedQueue,
};
use ringmq_schema::error::Status;
use ringmq_schema::limits::{LONG_POLL_MS_MAX, QUEUES_PER_REQUEST_MAX};
use ringmq_schema::names;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement::shard_of_queue;
use std::collections::BTreeMap;

/// Shortest session timeout: below it a busy client would lose its queues.
const SESSION_TIMEOUT_MS_MIN: u64 = 1000;
/// Default session timeout, and how long owners from before a restart may take to come back.
const SESSION_TIMEOUT_MS: u64 = 10_000;
/// While a group has members, its deadlines are looked at this often.
const GROUP_TICK_US: u64 = 100_000;
/// A heartbeat waits so long for its group to be made.
const UNBORN_TIMEOUT_US: u64 = 3_000_000;
/// Most topics in one subscription.
const SUBSCRIPTIONS_MAX: usize = 1024;
/// Longest text by which a member introduces itself.
const CLIENT_BYTES_MAX: usize = 255;
/// Most bytes of topics and expressions in one subscription.
const SUBSCRIPTION_BYTES_MAX: usize = 64 << 10;
/// Most heartbeats that wait for groups.
const UNBORN_MAX: usize = 4096;

impl<M: Memory> Shard<M> {
    pub(super) fn group_heartbeat(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<GroupHeartbeat<'_>>(table)?;
        let heartbeat = self.read_heartbeat(&request, asker)?;
        self.check_group_shard(&heartbeat.group)?;
        let Some(group) = self.registry.group_named(&heartbeat.group) else {
            return self.await_group(heartbeat, now, out);
        };
        let id = group.id;
        self.join(id, &heartbeat, now, out)
    }

    fn read_heartbeat(
        &mut self,
        request: &GroupHeartbeat<'_>,
        asker: Asker,
    ) -> Result<Heartbeat, Refuse> {
        let group = request.group();
        names::check_group(group).map_err(|e| refuse(Status::BadName, e.to_string()))?;
        let member = member_of(request.member());
        if member == 0 {
            return Err(refuse(Status::BadRequest, "the heartbeat names no member"));
        }
        let subscriptions = request.subscriptions().unwrap_or_default();
        let held = request.held().unwrap_or_default();
        if subscriptions.len() > SUBSCRIPTIONS_MAX || held.len() > QUEUES_PER_REQUEST_MAX {
            let text = format!(
                "{} subscriptions and {} held queues, at most {SUBSCRIPTIONS_MAX} and {QUEUES_PER_REQUEST_MAX} are allowed",
                subscriptions.len(),
                held.len()
            );
            return Err(refuse(Status::TooMany, text));
        }
        let client = request.client().unwrap_or_default();
        let texts: usize = subscriptions
            .iter()
            .map(|s| s.topic().len() + s.expression().map_or(0, str::len))
            .sum();
        if client.len() > CLIENT_BYTES_MAX || texts > SUBSCRIPTION_BYTES_MAX {
            let text = format!(
                "the client's name has {} bytes and the subscriptions {texts}, at most {CLIENT_BYTES_MAX} and {SUBSCRIPTION_BYTES_MAX} are allowed",
                client.len()
            );
            return Err(refuse(Status::TooMany, text));
        }
        let mut listed = Vec::with_capacity(subscriptions.len());
        for subscription in subscriptions {
            let topic = subscription.topic();
            names::check_topic(topic).map_err(|e| refuse(Status::BadName, e.to_string()))?;
            let expression = self.read_expression(&subscription)?;
            let kind = subscription.kind().0;
            listed.push(Subscription { topic: topic.to_owned(), kind, expression });
        }
        listed.sort();
        let timeout = match u64::from(request.session_timeout_ms()) {
            0 => SESSION_TIMEOUT_MS,
            given => given,
        };
        let longest = self.config.session_timeout_ms.max(SESSION_TIMEOUT_MS_MIN);
        Ok(Heartbeat {
            group: group.to_owned(),
            member,
            client: client.to_owned(),
            model: request.model().0,
            subscriptions: listed,
            session_timeout_us: timeout.clamp(SESSION_TIMEOUT_MS_MIN, longest) * 1000,
            known_version: request.known_version(),
            wait_us: u64::from(request.wait_ms().min(LONG_POLL_MS_MAX)) * 1000,
            held: held
                .iter()
                .map(|queue| QueueId { topic: queue.topic(), queue: queue.queue() })
                .collect(),
            connection: asker.connection,
            correlation: asker.correlation,
        })
    }

    /// What members are compared by: of an expression the canonical text, so that its spelling does not matter.
    fn read_expression(
        &mut self,
        subscription: &ringmq_schema::consume::Subscription<'_>,
    ) -> Result<String, Refuse> {
        let expression = subscription.expression();
        match subscription.kind() {
            FilterKind::Tags => Ok(expression.unwrap_or("*").to_owned()),
            FilterKind::Sql92 => {
                let program = self.fetches.programs.get(expression.unwrap_or_default());
                let program = program.map_err(|bad| Refuse {
                    message: format!(
                        "the filter of topic {}: {}",
                        subscription.topic(),
                        bad.message
                    ),
                    ..bad
                })?;
                Ok(program.text().to_owned())
            }
            other => {
                let text = format!("there is no kind of filter with the number {}", other.0);
                Err(refuse(Status::BadRequest, text))
            }
        }
    }

    /// The group is not there: it is made on first use, or refused.
    fn await_group(
        &mut self,
        heartbeat: Heartbeat,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let name = heartbeat.group.clone();
        if !self.config.create_groups {
            let text = format!("there is no group {name} on broker {}", self.config.broker);
            return Err(refuse(Status::UnknownGroup, text));
        }
        self.check_writing()?;
        if self.unborn.len() >= UNBORN_MAX {
            let text = "too many groups are being made at once";
            return Err(Refuse { retry_after_ms: 200, ..refuse(Status::Busy, text) });
        }
        let asked = self.unborn.iter().any(|(_, waiting)| waiting.group == name);
        // A member waits once: its earlier heartbeat is answered by this one.
        let member = heartbeat.member;
        let earlier = self.unborn.iter().position(|(_, h)| h.member == member && h.group == name);
        let earlier = earlier.map(|index| self.unborn.swap_remove(index).1);
        self.unborn.push((now.mono_us + UNBORN_TIMEOUT_US, heartbeat));
        if let Some(earlier) = earlier {
            let asker = heartbeat_asker(earlier.connection, earlier.correlation);
            self.refuse(asker, &not_yet(), out);
        }
        if !asked {
            self.ask_for_group(&name, now, out);
        }
        Ok(())
    }

    /// A group was made: whoever waits for it joins.
    pub(super) fn group_made(&mut self, id: u32, name: &str, now: Now, out: &mut Outbox<M::Block>) {
        let mut waiting = Vec::new();
        self.unborn.retain(|(_, heartbeat)| {
            let keep = heartbeat.group != *name;
            if !keep {
                waiting.push(heartbeat.clone());
            }
            keep
        });
        for heartbeat in waiting {
            let asker = heartbeat_asker(heartbeat.connection, heartbeat.correlation);
            if let Err(refused) = self.join(id, &heartbeat, now, out) {
                self.refuse(asker, &refused, out);
            }
        }
    }

    fn group_state(&mut self, id: u32) -> &mut GroupState {
        // Above any version of an earlier run: that had a lower epoch.
        let first_version = u64::from(self.log.epoch()) << 32;
        let grace_end_us = self.opened.mono_us + SESSION_TIMEOUT_MS * 1000;
        self.groups.entry(id).or_insert_with(|| GroupState::new(id, first_version, grace_end_us))
    }

    fn join(
        &mut self,
        id: u32,
        heartbeat: &Heartbeat,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let members_max = self.config.members;
        let state = self.group_state(id);
        let before = state.members.len();
        let taken = state.heartbeat(heartbeat, now.mono_us, members_max);
        let (changed, earlier) = taken.map_err(|refused| match refused {
            Refused::Mismatch(text) => refuse(Status::SubscriptionMismatch, text),
            Refused::TooManyMembers(most) => {
                refuse(Status::TooMany, format!("the group has {most} members, the most allowed"))
            }
        })?;
        if changed {
            for subscription in &heartbeat.subscriptions {
                let topic = subscription.topic.clone();
                if before == 0 || !self.routes.contains_key(&topic) {
                    out.actions.push(Action::WatchRoute { topic });
                }
            }
            self.retarget(id);
        }
        if let Some(parked) = earlier {
            self.answer_heartbeat(id, heartbeat.member, parked, out);
        }
        let topics = heartbeat.subscriptions.iter().map(|s| s.topic.as_str());
        self.ensure_retry_topic(id, topics, now, out);
        self.reconcile(id, now, out);
        Ok(())
    }

    pub(super) fn group_leave(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<GroupLeave<'_>>(table)?;
        let name = request.group();
        self.check_group_shard(name)?;
        let member = member_of(request.member());
        self.unborn.retain(|(_, heartbeat)| heartbeat.member != member);
        let id = self.registry.group_named(name).map(|group| group.id);
        if let Some(id) = id
            && let Some(state) = self.groups.get_mut(&id)
            && let Some(left) = state.leave(member)
        {
            if let Some(parked) = left.parked {
                let text = "the member left the group";
                self.refuse_heartbeat(parked, &refuse(Status::UnknownMember, text), out);
            }
            self.retarget(id);
            self.reconcile(id, now, out);
        }
        self.done(asker, out);
        Ok(())
    }

    /// Works out anew who is to have which queue; while members are joining, later.
    fn retarget(&mut self, id: u32) {
        let Some(state) = self.groups.get(&id) else { return };
        if state.joining.is_under_way() {
            return;
        }
        let mut placed = Vec::new();
        for topic in state.topics() {
            self.place(&topic, &mut placed);
        }
        if let Some(state) = self.groups.get_mut(&id) {
            state.retarget(&placed, &self.config.broker);
        }
    }

    /// All brokers that have a topic, this one as its own registry says.
    fn place(&self, topic: &str, placed: &mut Vec<Placed>) {
        let mut brokers: BTreeMap<&str, Placed> = BTreeMap::new();
        for route in self.routes.get(topic).into_iter().flat_map(|routes| &routes.brokers) {
            if route.broker_id == 0 && route.broker != self.config.broker {
                let entry = Placed {
                    topic_name: topic.to_owned(),
                    broker: route.broker.clone(),
                    topic: route.topic,
                    shards: route.shards,
                    queues: route.read_queues,
                };
                brokers.insert(&route.broker, entry);
            }
        }
        if let Some(own) = self.registry.topic_named(topic)
            && own.settings.permission & super::produce::READ != 0
        {
            let entry = Placed {
                topic_name: topic.to_owned(),
                broker: self.config.broker.clone(),
                topic: own.id,
                shards: self.config.shards,
                queues: own.settings.read_queues,
            };
            brokers.insert(&self.config.broker, entry);
        }
        placed.extend(brokers.into_values());
    }

    /// Moves a group on: asks queues' shards, answers members.
    fn reconcile(&mut self, id: u32, now: Now, out: &mut Outbox<M::Block>) {
        let Some(state) = self.groups.get_mut(&id) else { return };
        for ownership in state.reconcile(now.mono_us) {
            let QueueId { topic, queue } = ownership.queue;
            let shard = shard_of_queue(topic, queue, self.config.shards);
            self.tell(shard, PeerMessage::Assign(ownership), now, out);
        }
        let Some(state) = self.groups.get_mut(&id) else { return };
        for (member, parked) in state.answerable(now.mono_us) {
            self.answer_heartbeat(id, member, parked, out);
        }
    }

    fn answer_heartbeat(
        &mut self,
        id: u32,
        member: Member,
        parked: Parked,
        out: &mut Outbox<M::Block>,
    ) {
        let Some(state) = self.groups.get(&id) else { return };
        let Some(found) = state.members.get(&member) else { return };
        let queues: Vec<OwnedQueue> = found
            .queues
            .iter()
            .map(|(queue, generation)| OwnedQueue::new(queue.topic, queue.queue, *generation, 0))
            .collect();
        let (version, members) = (found.version, state.members.len() as u32);
        let max_attempts = self.registry.group(id).map_or(0, |group| group.settings.max_attempts);
        let asker = heartbeat_asker(parked.connection, parked.correlation);
        self.answer(asker, out, |fbb| {
            let queues = Some(fbb.create_vector(&queues));
            let args =
                GroupHeartbeatAnswerArgs { group: id, version, queues, members, max_attempts };
            GroupHeartbeatAnswer::create(fbb, &args)
        });
    }

    fn refuse_heartbeat(&mut self, parked: Parked, why: &Refuse, out: &mut Outbox<M::Block>) {
        self.refuse(heartbeat_asker(parked.connection, parked.correlation), why, out);
    }

    /// Moves on the groups that queues' shards answered: once a step, however many queues it were.
    pub(super) fn reconcile_groups(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        while let Some(id) = self.groups_to_reconcile.pop_first() {
            self.reconcile(id, now, out);
        }
    }

    /// A queue's shard answered.
    pub(super) fn assigned(&mut self, ownership: &Ownership) {
        if let Some(state) = self.groups.get_mut(&ownership.group) {
            state.assigned(ownership);
            self.groups_to_reconcile.insert(ownership.group);
        }
    }

    /// A queue's shard says at start who owned it.
    pub(super) fn owned(&mut self, ownership: &Ownership) {
        self.group_state(ownership.group).owned(ownership);
        self.groups_to_reconcile.insert(ownership.group);
    }

    /// The name servers' view of a topic changed.
    pub(super) fn routes_changed(
        &mut self,
        routes: TopicRoutes,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        if self.routes.get(&routes.topic) == Some(&routes) {
            return;
        }
        let topic = routes.topic.clone();
        self.routes.insert(topic.clone(), routes);
        self.topic_changed(&topic, now, out);
        self.log.pump(now, out);
        self.settle(now, out);
    }

    /// Groups that subscribe to a topic look again.
    pub(super) fn topic_changed(&mut self, topic: &str, now: Now, out: &mut Outbox<M::Block>) {
        let concerned: Vec<u32> = self
            .groups
            .iter()
            .filter(|(_, state)| state.topics().contains(topic))
            .map(|(id, _)| *id)
            .collect();
        for id in concerned {
            self.retarget(id);
            self.reconcile(id, now, out);
        }
    }

    /// A topic is gone: nobody owns its queues any more.
    pub(super) fn topic_gone(&mut self, topic: u32, now: Now, out: &mut Outbox<M::Block>) {
        let ids: Vec<u32> = self.groups.keys().copied().collect();
        for id in ids {
            if let Some(state) = self.groups.get_mut(&id) {
                state.forget_topic(topic);
            }
            self.retarget(id);
            self.reconcile(id, now, out);
        }
    }

    /// A group is gone: its members are told when they ask.
    pub(super) fn group_gone(&mut self, id: u32, out: &mut Outbox<M::Block>) {
        let Some(mut state) = self.groups.remove(&id) else { return };
        let refused = refuse(Status::UnknownGroup, "the group was deleted");
        for member in state.members.values_mut() {
            if let Some(parked) = member.parked.take() {
                self.refuse_heartbeat(parked, &refused, out);
            }
        }
    }

    pub(super) fn groups_wake(&self) -> Option<u64> {
        if self.groups.is_empty() && self.unborn.is_empty() {
            return None;
        }
        Some(self.groups_looked_at_us + GROUP_TICK_US)
    }

    /// Deadlines of groups: silent members, queues to be taken, heartbeats to be answered.
    pub(super) fn tick_groups(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        if now.mono_us < self.groups_looked_at_us + GROUP_TICK_US {
            return;
        }
        self.groups_looked_at_us = now.mono_us;
        let mut late = Vec::new();
        self.unborn.retain(|(due, heartbeat)| {
            let keep = now.mono_us < *due;
            if !keep {
                late.push(heartbeat_asker(heartbeat.connection, heartbeat.correlation));
            }
            keep
        });
        for asker in late {
            self.refuse(asker, &not_yet(), out);
        }
        let ids: Vec<u32> = self.groups.keys().copied().collect();
        for id in ids {
            let Some(state) = self.groups.get_mut(&id) else { continue };
            let expired = state.expired(now.mono_us);
            for member in &expired {
                state.leave(*member);
            }
            if state.joining.end(now.mono_us) || !expired.is_empty() {
                self.retarget(id);
            }
            self.reconcile(id, now, out);
            if self.groups.get(&id).is_some_and(|state| state.is_idle(now.mono_us)) {
                self.groups.remove(&id);
            }
        }
    }

    /// The shard stops: whoever waits is told to come again.
    pub(super) fn end_heartbeats(&mut self, out: &mut Outbox<M::Block>) {
        let text = format!("broker {} is stopping", self.config.broker);
        let refused = Refuse { retry_after_ms: 500, ..refuse(Status::NotReady, text) };
        let mut parked: Vec<Parked> = Vec::new();
        for state in self.groups.values_mut() {
            parked.extend(state.members.values_mut().filter_map(|member| member.parked.take()));
        }
        for parked in parked {
            self.refuse_heartbeat(parked, &refused, out);
        }
        for (_, heartbeat) in std::mem::take(&mut self.unborn) {
            let asker = heartbeat_asker(heartbeat.connection, heartbeat.correlation);
            self.refuse(asker, &refused, out);
        }
    }
}

fn not_yet() -> Refuse {
    let text = "the group is still being made";
    Refuse { retry_after_ms: 500, ..refuse(Status::NotReady, text) }
}

fn heartbeat_asker(connection: u64, correlation: u64) -> Asker {
    Asker { connection, correlation, opcode: Opcode::GroupHeartbeat.code(), one_way: false }
}
