//! Members of groups: they heartbeat, take over queues, fetch, commit, leave in order or die without a word. Some
//! messages they cannot process: those they send back, and commit no further until the broker has them.

use crate::sim::client::admin::lasting_topic;
use crate::sim::client::{Context, Phase};
use crate::sim::plan::Plan;
use crate::sim::talk::{Back, Beat, Entry, Fetched, Intent, QueueKey, Reply, Wanted, Wish};
use ringmq_schema::error::Status;
use ringmq_schema::names;
use ringmq_schema::placement::shard_of_group;
use std::collections::{BTreeMap, BTreeSet};

/// Of so many messages one cannot be processed.
const FAILS: u64 = 12;

/// A message that could not be processed.
#[derive(Debug, Clone, Copy)]
struct Failed {
    /// Deliveries so far.
    attempts: u16,
    /// Its request is under way.
    sent: bool,
}

#[derive(Debug, Clone)]
struct Owned {
    generation: u32,
    /// Where to go on, once it is known.
    next: Option<u64>,
    committed: Option<u64>,
    /// The committed offset, or the first one, was asked for.
    asking: bool,
    /// By offset.
    unfinished: BTreeMap<u64, Failed>,
}

impl Owned {
    /// What may be committed.
    fn position(&self, careless: bool) -> Option<u64> {
        let first = self.unfinished.keys().next().filter(|_| !careless);
        first.copied().or(self.next)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Member {
    group: String,
    /// What it wants of its topics; of what was sent back it wants all.
    wish: Option<Wish>,
    topics: Vec<String>,
    /// 0: not alive. It rests until that time.
    member: u128,
    rests_until_us: u64,
    /// Stands still with all it knows; so often it may.
    stalled: bool,
    stalls_left: u32,
    group_id: u32,
    version: u64,
    beating: u32,
    queues: BTreeMap<QueueKey, Owned>,
    fetching: BTreeSet<u16>,
}

impl Member {
    /// A member of group `number`, of all lasting topics.
    pub fn new(number: usize, plan: &Plan) -> Member {
        let group = group_name(number);
        let retry_topic = names::retry_topic(&group);
        Member {
            group,
            wish: plan.wishes[number % 2],
            topics: (0..plan.topics).map(lasting_topic).chain([retry_topic]).collect(),
            member: 0,
            rests_until_us: 0,
            stalled: false,
            stalls_left: 2,
            group_id: 0,
            version: 0,
            beating: 0,
            queues: BTreeMap::new(),
            fetching: BTreeSet::new(),
        }
    }

    /// Its group, and the group's id if it is known.
    pub fn group(&self) -> (&str, u32) {
        (&self.group, self.group_id)
    }

    /// See [`super::Client`].
    pub fn wake(&mut self, context: &mut Context<'_>) {
        if context.phase == Phase::Quiet || context.now_us < self.rests_until_us {
            return;
        }
        if self.member == 0 {
            self.member = (u128::from(context.random.number()) << 64) | 1;
        }
        if self.stalled {
            self.resume(context);
        }
        if self.stalls(context) {
            return;
        }
        if context.phase == Phase::Living && self.ends(context) {
            return;
        }
        if self.beating == 0 || context.random.once_in(40) {
            self.beat(context);
        }
        for shard in 0..context.plan.shards {
            self.take_over(context, shard);
            self.send_back(context, shard);
            self.fetch(context, shard);
            if context.random.once_in(6) {
                self.commit(context, shard);
            }
        }
    }

    /// Stands still for a while, as a process does that is swapped out: when it goes on, it still believes
    /// in what it owned, and others may own it.
    fn stalls(&mut self, context: &mut Context<'_>) -> bool {
        if self.stalls_left == 0 || self.queues.is_empty() || !context.random.once_in(40) {
            return false;
        }
        self.stalls_left -= 1;
        self.stalled = true;
        let session_us = u64::from(context.plan.session_ms) * 1000;
        self.rests_until_us = context.now_us + context.random.below(4 * session_us);
        true
    }

    fn resume(&mut self, context: &mut Context<'_>) {
        self.stalled = false;
        self.cut();
        for owned in self.queues.values_mut() {
            owned.committed = None;
        }
        for shard in 0..context.plan.shards {
            self.commit(context, shard);
        }
    }

    /// Leaves or dies, now and then.
    fn ends(&mut self, context: &mut Context<'_>) -> bool {
        let leaves = context.random.once_in(60);
        if !leaves && !context.random.once_in(120) {
            return false;
        }
        let shard = shard_of_group(&self.group, context.plan.shards);
        if leaves {
            for shard in 0..context.plan.shards {
                self.commit(context, shard);
            }
            let request = context.words.leave(shard, &self.group, self.member);
            context.send(request);
        } else if context.random.percent(50) {
            context.close(shard);
        }
        let session_us = u64::from(context.plan.session_ms) * 1000;
        self.rests_until_us = context.now_us + context.random.below(2 * session_us);
        self.forget();
        true
    }

    fn forget(&mut self) {
        self.member = 0;
        self.version = 0;
        self.beating = 0;
        self.queues.clear();
        self.fetching.clear();
    }

    fn beat(&mut self, context: &mut Context<'_>) {
        let held: Vec<(QueueKey, u32)> =
            self.queues.iter().map(|(queue, owned)| (*queue, owned.generation)).collect();
        let beat = Beat {
            group: &self.group,
            member: self.member,
            topics: &self.topics,
            session_ms: context.plan.session_ms,
            wait_ms: context.plan.session_ms / 3,
            version: self.version,
            held: &held,
        };
        let shard = shard_of_group(&self.group, context.plan.shards);
        let request = context.words.beat(shard, &beat);
        self.beating += 1;
        context.send(request);
    }

    /// Asks where to go on with new queues.
    fn take_over(&mut self, context: &mut Context<'_>, shard: u16) {
        let mut fresh = Vec::new();
        for (queue, owned) in &mut self.queues {
            if owned.next.is_none() && !owned.asking && context.shard_of(*queue) == shard {
                owned.asking = true;
                fresh.push(*queue);
            }
        }
        if !fresh.is_empty() {
            let request = context.words.offsets(shard, self.group_id, fresh);
            context.send(request);
        }
    }

    fn fetch(&mut self, context: &mut Context<'_>, shard: u16) {
        if self.fetching.contains(&shard) {
            return;
        }
        let mut wanted = Vec::new();
        for (queue, Owned { generation, next, .. }) in &self.queues {
            if let (Some(offset), true) = (*next, context.shard_of(*queue) == shard) {
                let wish = self.wish.filter(|_| context.oracle.topics.is_known(queue.0));
                wanted.push(Wanted { queue: *queue, offset, generation: *generation, wish });
            }
        }
        if !wanted.is_empty() {
            let (group, member) = (self.group_id, self.member);
            let wait_ms = *context.random.pick(&[0, 20, 300]);
            let max_bytes = *context.random.pick(&[4 << 10, 64 << 10]);
            let request =
                context.words.fetch(shard, group, member, wait_ms, max_bytes, 1024, wanted);
            self.fetching.insert(shard);
            context.send(request);
        }
    }

    /// Sends back what could not be processed.
    fn send_back(&mut self, context: &mut Context<'_>, shard: u16) {
        let (group, member) = (self.group_id, self.member);
        for (queue, owned) in &mut self.queues {
            if context.shard_of(*queue) != shard {
                continue;
            }
            let generation = owned.generation;
            for (offset, failed) in owned.unfinished.iter_mut().filter(|(_, failed)| !failed.sent) {
                failed.sent = true;
                let attempts = failed.attempts;
                let message_id = context.oracle.retries.send(shard, attempts);
                let delay_ms = *context.random.pick(&[1, 50, 2_000]);
                let dead_letter = context.random.once_in(10);
                let back = Back { member, attempts, delay_ms, dead_letter };
                let (queue, offset) = (*queue, *offset);
                let intent = Intent::Retry { group, queue, generation, offset, message_id };
                let request = context.words.retry(shard, intent, &back);
                context.send(request);
            }
        }
    }

    fn commit(&mut self, context: &mut Context<'_>, shard: u16) {
        // After a reset what was committed is to be committed again.
        let again = context.phase == Phase::Settling;
        let mut entries = Vec::new();
        for (queue, owned) in &self.queues {
            let position = owned.position(context.careless);
            if let Some(offset) = position.filter(|at| again || Some(*at) != owned.committed)
                && context.shard_of(*queue) == shard
            {
                entries.push(Entry { queue: *queue, offset, generation: owned.generation });
            }
        }
        if !entries.is_empty() {
            let request = context.words.commit(shard, self.group_id, self.member, entries);
            context.send(request);
        }
    }

    /// See [`super::Client`].
    pub fn hear(&mut self, context: &mut Context<'_>, shard: u16, intent: &Intent, reply: &Reply) {
        if self.stalled {
            return;
        }
        match (intent, reply) {
            (Intent::Beat { member, .. }, _) if *member != self.member => {}
            (Intent::Beat { .. }, Reply::Beat { group, version, queues }) => {
                self.beating = self.beating.saturating_sub(1);
                self.group_id = *group;
                // Answers of one connection come in order: the last is the newest.
                self.version = *version;
                self.own(queues);
            }
            (Intent::Beat { .. }, _) => {
                self.beating = self.beating.saturating_sub(1);
                self.version = 0;
            }
            (Intent::Fetch { .. }, _) => {
                self.fetching.remove(&shard);
                if let (Reply::Fetched(got), Intent::Fetch { wanted, .. }) = (reply, intent) {
                    for one in got {
                        let asked = wanted.iter().find(|w| w.queue == one.queue);
                        let generation = asked.map_or(0, |w| w.generation);
                        // Asked for before the queue was dropped and came back under the same generation.
                        let stands_at = self.queues.get(&one.queue).and_then(|owned| owned.next);
                        if asked.is_some_and(|w| stands_at != Some(w.offset)) {
                            continue;
                        }
                        self.process(context, one, generation);
                        self.go_on(
                            context,
                            one.queue,
                            generation,
                            one.next_offset,
                            one.min_offset,
                            one.status,
                        );
                    }
                }
            }
            (Intent::Retry { queue, generation, offset, .. }, reply) => {
                self.sent_back((*queue, *generation), *offset, reply);
            }
            (Intent::Offsets { queues, .. }, _) => self.begin(context, shard, queues, reply),
            (Intent::Search { queues, .. }, _) => self.begin_at(queues, reply),
            (Intent::Commit { member, entries, .. }, Reply::Committed(results))
                if *member == self.member =>
            {
                self.committed(entries, results);
            }
            _ => {}
        }
    }

    fn own(&mut self, queues: &[(QueueKey, u32)]) {
        let before = std::mem::take(&mut self.queues);
        for (queue, generation) in queues {
            let fresh = Owned {
                generation: *generation,
                next: None,
                committed: None,
                asking: false,
                unfinished: BTreeMap::new(),
            };
            let same = before.get(queue).filter(|owned| owned.generation == *generation);
            self.queues.insert(*queue, same.cloned().unwrap_or(fresh));
        }
    }

    /// Processes what came, or not.
    fn process(&mut self, context: &mut Context<'_>, got: &Fetched, generation: u32) {
        let group = self.group_id;
        let Some(owned) = self.queues.get_mut(&got.queue) else { return };
        if owned.generation != generation {
            return;
        }
        for record in got.records.iter().filter(|record| Some(record.offset) >= owned.next) {
            let fails = context.phase == Phase::Living && context.random.once_in(FAILS);
            let retries = &mut context.oracle.retries;
            if fails && !record.is_broken {
                retries.begins((group, got.queue, generation), record.offset);
                let failed = Failed { attempts: record.attempts + 1, sent: false };
                owned.unfinished.insert(record.offset, failed);
            } else {
                retries.ends((group, got.queue, generation), record.offset);
            }
        }
    }

    /// What became of a message that was sent back.
    fn sent_back(&mut self, held: (QueueKey, u32), offset: u64, reply: &Reply) {
        let (queue, generation) = held;
        let owned = self.queues.get_mut(&queue).filter(|owned| owned.generation == generation);
        let Some(owned) = owned else { return };
        match reply {
            Reply::Retried { .. } => drop(owned.unfinished.remove(&offset)),
            Reply::Refused { status: Status::Fenced, .. } => {
                self.queues.remove(&queue);
                self.version = 0;
            }
            _ => {
                if let Some(failed) = owned.unfinished.get_mut(&offset) {
                    failed.sent = false;
                }
            }
        }
    }

    fn go_on(
        &mut self,
        context: &mut Context<'_>,
        queue: QueueKey,
        generation: u32,
        next: u64,
        min: u64,
        status: Status,
    ) {
        let Some(owned) = self.queues.get_mut(&queue) else { return };
        if owned.generation != generation {
            return;
        }
        match status {
            Status::Ok => owned.next = Some(next),
            Status::OffsetOutOfRange => {
                context.oracle.retries.passes((self.group_id, queue, generation), min);
                owned.next = Some(min);
            }
            // What is damaged is left out.
            Status::Corrupt => {
                owned.next = owned.next.map(|asked| next.max(asked + 1));
                let below = owned.next.unwrap_or(next);
                context.oracle.retries.passes((self.group_id, queue, generation), below);
            }
            Status::Fenced => {
                self.queues.remove(&queue);
                // What it owns now is told by a full answer only.
                self.version = 0;
            }
            _ => {}
        }
    }

    fn begin(&mut self, context: &mut Context<'_>, shard: u16, asked: &[QueueKey], reply: &Reply) {
        for queue in asked {
            if let Some(owned) = self.queues.get_mut(queue) {
                owned.asking = false;
            }
        }
        let Reply::Offsets(told) = reply else { return };
        let mut unknown = Vec::new();
        for one in told.iter().filter(|one| one.status == Status::Ok) {
            let Some(owned) = self.queues.get_mut(&one.queue) else { continue };
            if one.committed >= 0 {
                owned.next = Some(one.committed as u64);
                owned.committed = owned.next;
            } else {
                owned.asking = true;
                unknown.push(one.queue);
            }
        }
        if !unknown.is_empty() {
            let request = context.words.search(shard, -1, unknown);
            context.send(request);
        }
    }

    fn begin_at(&mut self, asked: &[QueueKey], reply: &Reply) {
        for queue in asked {
            if let Some(owned) = self.queues.get_mut(queue) {
                owned.asking = false;
            }
        }
        let Reply::Found(found) = reply else { return };
        for (queue, offset, status) in found {
            let owned = self.queues.get_mut(queue).filter(|o| o.next.is_none());
            if let (Some(owned), Status::Ok) = (owned, *status) {
                owned.next = Some(*offset);
            }
        }
    }

    fn committed(&mut self, entries: &[Entry], results: &[(QueueKey, Status)]) {
        for (entry, (queue, status)) in entries.iter().zip(results) {
            let owned = self.queues.get_mut(queue).filter(|o| o.generation == entry.generation);
            match (owned, *status) {
                (Some(owned), Status::Ok) => owned.committed = Some(entry.offset),
                (Some(_), Status::Fenced) => {
                    self.queues.remove(queue);
                    self.version = 0;
                }
                _ => {}
            }
        }
    }

    /// See [`super::Client`].
    pub fn cut(&mut self) {
        // The member lives on; its requests have no answers.
        self.version = 0;
        self.beating = 0;
        self.fetching.clear();
        for owned in self.queues.values_mut() {
            owned.asking = false;
            owned.unfinished.values_mut().for_each(|failed| failed.sent = false);
        }
    }
}

/// Two groups share the members.
pub fn group_name(number: usize) -> String {
    format!("group-{}", number % 2)
}
