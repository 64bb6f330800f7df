//! One group on one broker: its members, and which of this broker's queues each is to have.
//!
//! Lives on the group's shard. The queue's shard is the judge: ownership counts once that shard made it
//! durable, and only then is the new owner told (promise: one-owner).
//!
//! A queue goes from one member to another like this: it vanishes from the old owner's answer; the old
//! owner commits and gives it back (a heartbeat that knows the answer and no longer holds the queue), or
//! leaves, or is silent for its session timeout; then the queue's shard gets the new owner under the next
//! generation; then the new owner is told.

use super::assignment::{Placed, assign};
use super::joining::Joining;
use crate::peer::{Member, Ownership, QueueId};
use crate::seam::ConnectionId;
use ringmq_schema::consume::FilterKind;
use std::collections::{BTreeMap, BTreeSet};

/// What a member subscribes to, as it said so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Subscription {
    pub(crate) topic: String,
    pub(crate) kind: u8,
    pub(crate) expression: String,
}

/// A heartbeat, taken apart.
#[derive(Debug, Clone)]
pub(crate) struct Heartbeat {
    pub(crate) group: String,
    pub(crate) member: Member,
    pub(crate) client: String,
    pub(crate) model: u8,
    /// Sorted by topic.
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) session_timeout_us: u64,
    pub(crate) known_version: u64,
    pub(crate) wait_us: u64,
    pub(crate) held: BTreeSet<QueueId>,
    pub(crate) connection: ConnectionId,
    pub(crate) correlation: u64,
}

/// A heartbeat that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parked {
    pub(crate) connection: ConnectionId,
    pub(crate) correlation: u64,
    pub(crate) due_us: u64,
}

#[derive(Debug)]
pub(crate) struct MemberState {
    pub(crate) client: String,
    pub(crate) model: u8,
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) session_timeout_us: u64,
    pub(crate) last_seen_us: u64,
    pub(crate) parked: Option<Parked>,
    /// Version of `queues`.
    pub(crate) version: u64,
    known_version: u64,
    held: BTreeSet<QueueId>,
    /// What it may consume, with generations.
    pub(crate) queues: Vec<(QueueId, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// As the queue's shard has it.
    Settled,
    /// Taken from its owner's answer at `version`; 0: to be told yet.
    Revoking { since_us: u64, version: u64 },
    /// Sent to the queue's shard.
    Assigning,
}

#[derive(Debug, Clone, Copy)]
struct Owner {
    member: Member,
    generation: u32,
    phase: Phase,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct GroupState {
    pub(crate) id: u32,
    pub(crate) members: BTreeMap<Member, MemberState>,
    owners: BTreeMap<QueueId, Owner>,
    target: BTreeMap<QueueId, Member>,
    version: u64,
    /// Until then, owners known from the log may come back and keep their queues.
    grace_end_us: u64,
    /// Owners that came back and went again: for them the grace is over.
    gone: BTreeSet<Member>,
    pub(crate) joining: Joining,
}

/// Why a heartbeat is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Another member subscribes differently.
    Mismatch(String),
    TooManyMembers(usize),
}

impl GroupState {
    /// `first_version` must be above any that an earlier run of the broker gave out.
    pub(crate) fn new(id: u32, first_version: u64, grace_end_us: u64) -> GroupState {
        GroupState {
            id,
            members: BTreeMap::new(),
            owners: BTreeMap::new(),
            target: BTreeMap::new(),
            version: first_version,
            grace_end_us,
            gone: BTreeSet::new(),
            joining: Joining::default(),
        }
    }

    /// Topics that the members subscribe to.
    pub(crate) fn topics(&self) -> BTreeSet<String> {
        let subscriptions = self.members.values().flat_map(|member| &member.subscriptions);
        subscriptions.map(|subscription| subscription.topic.clone()).collect()
    }

    /// Takes a heartbeat. `Ok(true)`: the members or their topics changed. An earlier parked heartbeat
    /// of the member is given back to be answered.
    pub(crate) fn heartbeat(
        &mut self,
        heartbeat: &Heartbeat,
        now_us: u64,
        members_max: usize,
    ) -> Result<(bool, Option<Parked>), Refused> {
        self.check(heartbeat, members_max)?;
        let mut changed = false;
        let version = self.version + 1;
        let state = self.members.entry(heartbeat.member).or_insert_with(|| {
            changed = true;
            MemberState {
                client: String::new(),
                model: 0,
                subscriptions: Vec::new(),
                session_timeout_us: 0,
                last_seen_us: now_us,
                parked: None,
                version,
                known_version: 0,
                held: BTreeSet::new(),
                queues: Vec::new(),
            }
        });
        if changed {
            self.version = version;
        }
        let is_new = changed;
        changed |= state.subscriptions != heartbeat.subscriptions;
        state.client.clone_from(&heartbeat.client);
        state.model = heartbeat.model;
        state.subscriptions.clone_from(&heartbeat.subscriptions);
        state.session_timeout_us = heartbeat.session_timeout_us;
        state.last_seen_us = now_us;
        state.known_version = heartbeat.known_version;
        state.held.clone_from(&heartbeat.held);
        let earlier = state.parked.replace(Parked {
            connection: heartbeat.connection,
            correlation: heartbeat.correlation,
            due_us: now_us + heartbeat.wait_us,
        });
        // The first is served at once; those that come after it are likely to be several.
        if is_new && self.members.len() > 1 {
            self.joining.joined(now_us);
        }
        Ok((changed, earlier))
    }

    fn check(&self, heartbeat: &Heartbeat, members_max: usize) -> Result<(), Refused> {
        let others = self.members.iter().filter(|(member, _)| **member != heartbeat.member);
        for (member, state) in others {
            if state.subscriptions != heartbeat.subscriptions || state.model != heartbeat.model {
                return Err(Refused::Mismatch(format!(
                    "member {:032x} ({}) subscribes to {}, but member {member:032x} ({}) to {}: \
                     all members of group {} must subscribe alike",
                    heartbeat.member,
                    heartbeat.client,
                    listed(&heartbeat.subscriptions),
                    state.client,
                    listed(&state.subscriptions),
                    heartbeat.group,
                )));
            }
        }
        if self.members.len() >= members_max && !self.members.contains_key(&heartbeat.member) {
            return Err(Refused::TooManyMembers(members_max));
        }
        Ok(())
    }

    /// Takes a member out; gives back its parked heartbeat.
    pub(crate) fn leave(&mut self, member: Member) -> Option<MemberState> {
        self.gone.insert(member);
        self.joining.cut_short();
        self.members.remove(&member)
    }

    /// Members silent for longer than their session timeout.
    pub(crate) fn expired(&self, now_us: u64) -> Vec<Member> {
        self.members
            .iter()
            .filter(|(_, state)| {
                state.parked.is_none() && now_us > state.last_seen_us + state.session_timeout_us
            })
            .map(|(member, _)| *member)
            .collect()
    }

    /// A connection is gone: what was parked on it can never be answered.
    pub(crate) fn connection_closed(&mut self, connection: ConnectionId, now_us: u64) {
        for state in self.members.values_mut() {
            if state.parked.is_some_and(|parked| parked.connection == connection) {
                state.parked = None;
                state.last_seen_us = now_us;
            }
        }
    }

    /// Works out anew who is to have what. `placed` is sorted by topic and broker.
    pub(crate) fn retarget(&mut self, placed: &[Placed], broker: &str) {
        let members: Vec<Member> = self
            .members
            .iter()
            .filter(|(_, state)| state.model == 0)
            .map(|(member, _)| *member)
            .collect();
        self.target = assign(placed, &members)
            .into_iter()
            .filter(|((index, _), _)| placed[*index].broker == broker)
            .map(|((index, queue), member)| (QueueId { topic: placed[index].topic, queue }, member))
            .collect();
    }

    /// Who owned what before, as the queue's shard says at start.
    pub(crate) fn owned(&mut self, ownership: &Ownership) {
        let phase = Phase::Settled;
        let Ownership { queue, member, generation, .. } = *ownership;
        let owner = self.owners.entry(queue).or_insert(Owner { member, generation, phase });
        if generation > owner.generation {
            *owner = Owner { member, generation, phase };
        }
    }

    /// The queue's shard made an ownership durable, or knows a newer one.
    pub(crate) fn assigned(&mut self, ownership: &Ownership) {
        let Ownership { queue, member, generation, .. } = *ownership;
        if self.owners.get(&queue).is_none_or(|owner| generation >= owner.generation) {
            self.owners.insert(queue, Owner { member, generation, phase: Phase::Settled });
        }
    }

    /// Moves on what can move; returns what is to be asked of the queues' shards. Members whose answer
    /// changed have a new version.
    pub(crate) fn reconcile(&mut self, now_us: u64) -> Vec<Ownership> {
        let mut assign = Vec::new();
        let mut queues: BTreeSet<QueueId> = self.target.keys().copied().collect();
        queues.extend(self.owners.keys().copied());
        for queue in queues {
            let target = self.target.get(&queue).copied().unwrap_or(0);
            let fresh = Owner { member: 0, generation: 0, phase: Phase::Settled };
            let mut owner = self.owners.get(&queue).copied().unwrap_or(fresh);
            if owner.phase == Phase::Assigning {
                continue;
            }
            if owner.member == target {
                owner.phase = Phase::Settled;
            } else if self.is_free(&mut owner, queue, now_us) {
                owner.phase = Phase::Assigning;
                let generation = owner.generation + 1;
                assign.push(Ownership { group: self.id, queue, member: target, generation });
            }
            self.owners.insert(queue, owner);
        }
        if now_us >= self.grace_end_us {
            self.gone.clear();
        }
        self.refresh_answers();
        assign
    }

    /// Whether the owner has let go of the queue, or must.
    fn is_free(&self, owner: &mut Owner, queue: QueueId, now_us: u64) -> bool {
        if owner.member == 0 {
            return true;
        }
        let Some(state) = self.members.get(&owner.member) else {
            return now_us >= self.grace_end_us || self.gone.contains(&owner.member);
        };
        match owner.phase {
            Phase::Revoking { since_us, version } => {
                let told = version != 0 && state.known_version >= version;
                let given_back = told && !state.held.contains(&queue);
                given_back || now_us > since_us + state.session_timeout_us
            }
            _ if self.joining.is_under_way() => false,
            _ => {
                owner.phase = Phase::Revoking { since_us: now_us, version: 0 };
                false
            }
        }
    }

    fn refresh_answers(&mut self) {
        let mut settled: BTreeMap<Member, Vec<(QueueId, u32)>> = BTreeMap::new();
        for (queue, owner) in &self.owners {
            if owner.phase == Phase::Settled {
                settled.entry(owner.member).or_default().push((*queue, owner.generation));
            }
        }
        for (member, state) in &mut self.members {
            let queues = settled.remove(member).unwrap_or_default();
            if queues != state.queues {
                self.version += 1;
                state.version = self.version;
                state.queues = queues;
            }
        }
        for owner in self.owners.values_mut() {
            if let Phase::Revoking { version: version @ 0, .. } = &mut owner.phase
                && let Some(state) = self.members.get(&owner.member)
            {
                *version = state.version;
            }
        }
        // Nobody's queues that nobody wants: their generation lives on at their shard.
        let target = &self.target;
        self.owners.retain(|queue, owner| {
            owner.member != 0 || owner.phase != Phase::Settled || target.contains_key(queue)
        });
    }

    /// Parked heartbeats that are to be answered now.
    pub(crate) fn answerable(&mut self, now_us: u64) -> Vec<(Member, Parked)> {
        let mut answers = Vec::new();
        for (member, state) in &mut self.members {
            if let Some(parked) = state.parked
                && (state.version != state.known_version || now_us >= parked.due_us)
            {
                state.parked = None;
                state.last_seen_us = now_us;
                answers.push((*member, parked));
            }
        }
        answers
    }

    /// Forgets queues of a topic that is gone.
    pub(crate) fn forget_topic(&mut self, topic: u32) {
        self.owners.retain(|queue, _| queue.topic != topic);
        self.target.retain(|queue, _| queue.topic != topic);
    }

    /// Whether nothing needs this state: nobody is in the group and nothing is under way.
    pub(crate) fn is_idle(&self, now_us: u64) -> bool {
        self.members.is_empty()
            && now_us >= self.grace_end_us
            && self.owners.values().all(|o| o.member == 0 && o.phase == Phase::Settled)
    }
}

fn listed(subscriptions: &[Subscription]) -> String {
    let each = subscriptions.iter().map(|s| {
        let kind = if s.kind == FilterKind::Sql92.0 { "SQL: " } else { "" };
        format!("{} ({kind}{})", s.topic, s.expression)
    });
    each.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
