//! The auditor: after each restart it asks what is there before anything new is taken, then reads every queue
//! from its beginning. In the last life it also sends one message through each queue.

use crate::sim::client::producer::append;
use crate::sim::client::{Context, Phase};
use crate::sim::talk::{Fetched, Intent, QueueKey, Reply, Wanted};
use crate::sim::{Verdict, violation};
use ringmq_schema::error::Status;
use std::collections::BTreeMap;

const SYNC: u8 = 1;
/// Queues in one of the auditor's fetches.
const QUEUES_PER_FETCH: usize = 6;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The ends of the queues are to be asked for.
    Ends,
    Reading,
    Done,
}

#[derive(Debug)]
struct Audit {
    stage: Stage,
    waiting: bool,
    ends: BTreeMap<QueueKey, u64>,
    next: BTreeMap<QueueKey, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    Sent,
    Stored(u64),
    Seen,
}

/// See the module.
#[derive(Debug)]
pub struct Auditor {
    listed: bool,
    listing: bool,
    shards: Vec<Audit>,
    probes: BTreeMap<QueueKey, Probe>,
    verdict: Verdict,
}

impl Auditor {
    /// One for so many shards.
    pub fn new(shards: u16) -> Auditor {
        let mut auditor = Auditor {
            listed: false,
            listing: false,
            shards: Vec::new(),
            probes: BTreeMap::new(),
            verdict: Ok(()),
        };
        auditor.shards.resize_with(usize::from(shards), || Audit {
            stage: Stage::Ends,
            waiting: false,
            ends: BTreeMap::new(),
            next: BTreeMap::new(),
        });
        auditor
    }

    /// Whether the topics of this life are known.
    pub fn has_listed(&self) -> bool {
        self.listed
    }

    /// Whether a shard may take something new.
    pub fn knows_ends(&self, shard: u16) -> bool {
        self.shards[usize::from(shard)].stage != Stage::Ends
    }

    /// Whether all has been read.
    pub fn is_done(&self) -> bool {
        self.shards.iter().all(|audit| audit.stage == Stage::Done)
    }

    /// Whether a message went through each of these queues.
    pub fn has_probed(&self, queues: &[QueueKey]) -> bool {
        queues.iter().all(|queue| self.probes.get(queue) == Some(&Probe::Seen))
    }

    /// What was found wrong.
    pub fn verdict(&self) -> Verdict {
        self.verdict.clone()
    }

    /// Where it is, for a report.
    pub fn describe(&self) -> String {
        format!("listed {}, shards {:?}, probes {:?}", self.listed, self.shards, self.probes)
    }

    /// See [`super::Client`].
    pub fn wake(&mut self, context: &mut Context<'_>) {
        if !self.listed {
            if !self.listing {
                self.listing = true;
                let request = context.words.list();
                context.send(request);
            }
            return;
        }
        for shard in 0..context.plan.shards {
            self.read(context, shard);
        }
        if context.phase == Phase::Settling && self.is_done() {
            self.probe(context);
        }
    }

    fn read(&mut self, context: &mut Context<'_>, shard: u16) {
        let audit = &mut self.shards[usize::from(shard)];
        if audit.waiting || audit.stage == Stage::Done {
            return;
        }
        audit.waiting = true;
        if audit.stage == Stage::Ends {
            let known = context.oracle.topics.known();
            let queues = known.flat_map(|(id, topic)| (0..topic.queues).map(move |q| (id, q)));
            let queues: Vec<QueueKey> = queues.collect();
            let queues = queues.into_iter().filter(|q| context.shard_of(*q) == shard).collect();
            let request = context.words.search(shard, -2, queues);
            return context.send(request);
        }
        let open: Vec<Wanted> = audit
            .next
            .iter()
            .filter(|(queue, next)| audit.ends[*queue] > **next)
            .map(|(queue, next)| Wanted { queue: *queue, offset: *next, generation: 0, wish: None })
            .collect();
        let from = context.random.index(open.len().max(1));
        let wanted: Vec<Wanted> = open
            .iter()
            .cycle()
            .skip(from)
            .take(QUEUES_PER_FETCH.min(open.len()))
            .copied()
            .collect();
        let max_bytes = *context.random.pick(&[16 << 10, 64 << 10, 1 << 20]);
        let request = context.words.fetch(shard, 0, 0, 10, max_bytes, 1024, wanted);
        context.send(request);
    }

    fn probe(&mut self, context: &mut Context<'_>) {
        for queue in context.queues() {
            let shard = context.shard_of(queue);
            match self.probes.get(&queue) {
                None => {
                    let first = context.oracle.messages.count();
                    let run = append(context, queue, 1, 200, SYNC, 0);
                    let intent = Intent::Produce { queue, first, count: 1 };
                    let words = &mut context.words;
                    let request = words.produce(shard, false, queue, 1, SYNC, &run, intent);
                    self.probes.insert(queue, Probe::Sent);
                    context.send(request);
                }
                Some(Probe::Stored(offset)) => {
                    let offset = *offset;
                    let wanted = vec![Wanted { queue, offset, generation: 0, wish: None }];
                    let request = context.words.fetch(shard, 0, 0, 100, 1 << 20, 1024, wanted);
                    context.send(request);
                }
                Some(Probe::Sent | Probe::Seen) => {}
            }
        }
    }

    /// See [`super::Client`].
    pub fn hear(&mut self, context: &mut Context<'_>, shard: u16, intent: &Intent, reply: &Reply) {
        let verdict = self.take(context, shard, intent, reply);
        if self.verdict.is_ok() {
            self.verdict = verdict;
        }
    }

    fn take(
        &mut self,
        context: &mut Context<'_>,
        shard: u16,
        intent: &Intent,
        reply: &Reply,
    ) -> Verdict {
        let audit = &mut self.shards[usize::from(shard)];
        match (intent, reply) {
            (Intent::List, Reply::Topics(topics)) => {
                self.listed = true;
                context.oracle.topics.listed(topics)?;
            }
            (Intent::List, _) => self.listing = false,
            (Intent::Search { queues, .. }, Reply::Found(found)) => {
                audit.waiting = false;
                audit.ends = ends(context, queues, found)?;
                audit.next = audit.ends.keys().map(|queue| (*queue, 0)).collect();
                context.oracle.recovered(shard, &audit.ends)?;
                audit.stage = Stage::Reading;
                finish(context, shard, audit)?;
            }
            (Intent::Produce { queue, .. }, Reply::Produced { base, .. }) => {
                self.probes.insert(*queue, Probe::Stored(*base));
            }
            (Intent::Produce { queue, .. }, _) => {
                self.probes.remove(queue);
            }
            (Intent::Fetch { .. }, Reply::Fetched(got)) if audit.stage == Stage::Done => {
                self.probed(got);
            }
            (Intent::Fetch { .. }, Reply::Fetched(got)) => {
                audit.waiting = false;
                for one in got {
                    take_fetched(context, audit, one)?;
                }
                finish(context, shard, audit)?;
            }
            _ => audit.waiting = false,
        }
        // What can go on at once does: an audit is over before the pace of its life matters.
        if self.listed && !matches!(reply, Reply::Refused { .. }) {
            self.read(context, shard);
        }
        Ok(())
    }

    fn probed(&mut self, got: &[Fetched]) {
        for one in got {
            let expired = one.status == Status::OffsetOutOfRange;
            if let Some(Probe::Stored(offset)) = self.probes.get(&one.queue)
                && (one.records.iter().any(|record| record.offset == *offset)
                    || expired && *offset < one.min_offset)
            {
                self.probes.insert(one.queue, Probe::Seen);
            }
        }
    }

    /// See [`super::Client`].
    pub fn broken(&mut self, context: &Context<'_>, shard: u16) {
        self.shards[usize::from(shard)].waiting = false;
        self.listing &= shard != 0;
        self.probes
            .retain(|queue, probe| *probe != Probe::Sent || context.shard_of(*queue) != shard);
    }

    /// See [`super::Client`].
    pub fn cut(&mut self) {
        *self = Auditor { verdict: self.verdict.clone(), ..Auditor::new(self.shards.len() as u16) };
    }
}

fn ends(
    context: &Context<'_>,
    asked: &[QueueKey],
    found: &[(QueueKey, u64, Status)],
) -> Verdict<BTreeMap<QueueKey, u64>> {
    if asked.len() != found.len() {
        return violation(format!("asked for the ends of {asked:?}, told {found:?}"));
    }
    let mut ends = BTreeMap::new();
    for (queue, end, status) in found {
        if *status == Status::Ok {
            ends.insert(*queue, *end);
        } else if context.oracle.topics.must_serve(queue.0) {
            return violation(format!("after a restart queue {queue:?} is {status}"));
        }
    }
    Ok(ends)
}

fn take_fetched(context: &Context<'_>, audit: &mut Audit, got: &Fetched) -> Verdict {
    match got.status {
        Status::Ok => {
            audit.next.insert(got.queue, got.next_offset);
        }
        Status::ReadFailed => {}
        // Judged already: what is damaged is left out, what is retired is not there.
        Status::Corrupt => {
            let next = audit.next.get(&got.queue).map_or(0, |asked| asked + 1);
            audit.next.insert(got.queue, got.next_offset.max(next));
        }
        Status::OffsetOutOfRange if audit.next.get(&got.queue) < Some(&got.min_offset) => {
            audit.next.insert(got.queue, got.min_offset);
        }
        status if context.oracle.topics.must_serve(got.queue.0) => {
            return violation(format!("the auditor's queue {:?} is {status}", got.queue));
        }
        _ => {
            audit.next.remove(&got.queue);
            audit.ends.remove(&got.queue);
        }
    }
    Ok(())
}

fn finish(context: &mut Context<'_>, shard: u16, audit: &mut Audit) -> Verdict {
    if audit.next.iter().all(|(queue, next)| *next >= audit.ends[queue]) {
        audit.stage = Stage::Done;
        context.oracle.audited(shard, &audit.ends)?;
    }
    Ok(())
}
