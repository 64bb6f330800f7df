//! Poppers: they take messages one by one, acknowledge some, want others for longer or again, forget about the rest,
//! and try old receipts.

use crate::sim::client::{Context, Phase};
use crate::sim::plan::Plan;
use crate::sim::talk::{Intent, PopOf, QueueKey, ReceiptOf, Reply, Wish};
use ringmq_schema::error::Status;
use std::collections::{BTreeMap, BTreeSet};

/// Their groups: the second may filter.
const GROUPS: [&str; 2] = ["poppers", "pickers"];
/// Old receipts that one remembers.
const OLD_MAX: usize = 100;

/// See the module.
#[derive(Debug, Default)]
pub struct Popper {
    group: &'static str,
    wish: Option<Wish>,
    max_attempts: u16,
    /// 0: not known yet.
    group_id: u32,
    asking: bool,
    /// Shards at which a pop is under way.
    waiting: BTreeSet<u16>,
    /// Nonces of what is in our hands.
    held: BTreeMap<(QueueKey, u64), u64>,
    old: Vec<ReceiptOf>,
    done: BTreeMap<QueueKey, u64>,
}

impl Popper {
    /// One of the group that has this number.
    pub fn new(number: usize, plan: &Plan) -> Popper {
        let at = number % GROUPS.len();
        let wish = if at == 0 { None } else { plan.pop_wish };
        Popper { group: GROUPS[at], wish, max_attempts: plan.pop_attempts, ..Popper::default() }
    }

    /// See [`super::Client`].
    pub fn wake(&mut self, context: &mut Context<'_>) {
        if context.phase == Phase::Quiet {
            return;
        }
        if self.group_id == 0 {
            if !std::mem::replace(&mut self.asking, true) {
                let request = context.words.group(self.group, self.max_attempts);
                context.send(request);
            }
            return;
        }
        let shard = context.random.below(u64::from(context.plan.shards)) as u16;
        if context.phase == Phase::Living && context.random.once_in(80) {
            context.close(shard);
            self.waiting.remove(&shard);
        }
        let settling = context.phase == Phase::Settling;
        if settling {
            // Of each message group one message comes at a time.
            for shard in 0..context.plan.shards {
                self.acknowledge(context, shard, 100);
                self.pop(context, shard);
            }
        }
        match context.random.below(8) {
            0..=2 => self.pop(context, shard),
            3..=4 => self.acknowledge(context, shard, if settling { 100 } else { 50 }),
            5 if !settling => self.change(context, shard),
            6 => self.try_old(context),
            7 if settling => self.ask_done(context, shard),
            _ => {}
        }
    }

    fn pop(&mut self, context: &mut Context<'_>, shard: u16) {
        let settling = context.phase == Phase::Settling;
        let is_wanted = |queue: &&QueueKey| {
            let end = context.oracle.messages.end(**queue);
            !settling || context.shard_of(**queue) == shard && self.done(**queue).1 < end
        };
        let queues = context.queues();
        let topics: BTreeSet<u32> = queues.iter().filter(is_wanted).map(|of| of.0).collect();
        let topics: Vec<u32> = topics.into_iter().collect();
        if topics.is_empty() || !self.waiting.insert(shard) {
            return;
        }
        let waits: &[u32] = if settling { &[0, 1] } else { &[0, 1, 20, 500] };
        let bytes: &[u32] = if settling { &[1 << 20] } else { &[1, 8 << 10, 1 << 20] };
        let pop = PopOf {
            group: self.group_id,
            topic: *context.random.pick(&topics),
            max_records: *context.random.pick(if settling { &[32] } else { &[1, 8, 32] }),
            max_bytes: *context.random.pick(bytes),
            invisible_ms: *context.random.pick(&[10_000, 12_000]),
            wait_ms: *context.random.pick(waits),
            wish: self.wish,
        };
        let request = context.words.pop(shard, pop);
        context.send(request);
    }

    fn receipts(&self, context: &mut Context<'_>, shard: u16, percent: u64) -> Vec<ReceiptOf> {
        let all = self.held.iter();
        let mut receipts: Vec<ReceiptOf> = all
            .map(|((queue, offset), nonce)| ReceiptOf {
                queue: *queue,
                offset: *offset,
                nonce: *nonce,
            })
            .filter(|receipt| context.shard_of(receipt.queue) == shard)
            .collect();
        receipts.retain(|_| context.random.percent(percent));
        receipts
    }

    fn acknowledge(&mut self, context: &mut Context<'_>, shard: u16, percent: u64) {
        let receipts = self.receipts(context, shard, percent);
        if !receipts.is_empty() {
            let request = context.words.ack(shard, self.group_id, receipts);
            context.send(request);
        }
    }

    fn change(&mut self, context: &mut Context<'_>, shard: u16) {
        let receipts = self.receipts(context, shard, 30);
        let ms = *context.random.pick(&[0, 0, 20, 5_000]);
        if !receipts.is_empty() {
            let request = context.words.change(shard, self.group_id, receipts, ms);
            context.send(request);
        }
    }

    fn try_old(&mut self, context: &mut Context<'_>) {
        if !self.old.is_empty() {
            let receipt = *context.random.pick(&self.old);
            let shard = context.shard_of(receipt.queue);
            let request = context.words.ack(shard, self.group_id, vec![receipt]);
            context.send(request);
        }
    }

    fn ask_done(&mut self, context: &mut Context<'_>, shard: u16) {
        let mut queues = context.queues();
        queues.retain(|queue| context.shard_of(*queue) == shard);
        if !queues.is_empty() {
            let request = context.words.pops_done(shard, self.group_id, self.wish, queues);
            context.send(request);
        }
    }

    /// Up to where a queue is done, as the broker said last; the group.
    pub fn done(&self, queue: QueueKey) -> (u32, u64) {
        (self.group_id, self.done.get(&queue).copied().unwrap_or(0))
    }

    fn drop_held(&mut self, receipt: &ReceiptOf) {
        let key = (receipt.queue, receipt.offset);
        if self.held.get(&key) == Some(&receipt.nonce) {
            self.held.remove(&key);
        }
        if self.old.len() < OLD_MAX {
            self.old.push(*receipt);
        }
    }

    /// See [`super::Client`].
    pub fn hear(&mut self, shard: u16, intent: &Intent, reply: &Reply) {
        if matches!(intent, Intent::Pop(_)) {
            self.waiting.remove(&shard);
        }
        match (intent, reply) {
            (Intent::Group, Reply::Group(id)) => self.group_id = *id,
            (Intent::Group, _) => self.asking = false,
            (Intent::Pop(_), Reply::Popped(popped)) => {
                for (one, _) in popped {
                    let before = self.held.insert((one.queue, one.offset), one.nonce);
                    if let Some(nonce) = before.filter(|_| self.old.len() < OLD_MAX) {
                        let (queue, offset) = (one.queue, one.offset);
                        self.old.push(ReceiptOf { queue, offset, nonce });
                    }
                }
            }
            (Intent::Ack { receipts, .. }, Reply::Acked(statuses)) => {
                for (receipt, status) in receipts.iter().zip(statuses) {
                    if matches!(status, Status::Ok | Status::BadReceipt | Status::UnknownTopic) {
                        self.drop_held(receipt);
                    }
                }
            }
            (Intent::Change { receipts, .. }, Reply::Changed(results)) => {
                for (receipt, (nonce, status)) in receipts.iter().zip(results) {
                    let had = self.held.get(&(receipt.queue, receipt.offset)).copied();
                    self.drop_held(receipt);
                    if *status == Status::Ok && had == Some(receipt.nonce) {
                        self.held.insert((receipt.queue, receipt.offset), *nonce);
                    }
                }
            }
            (Intent::PopsDone { .. }, Reply::Offsets(told)) => {
                for one in told.iter().filter(|one| one.status == Status::Ok) {
                    self.done.insert(one.queue, u64::try_from(one.committed).unwrap_or(0));
                }
            }
            _ => {}
        }
    }

    /// See [`super::Client`].
    pub fn broken(&mut self, shard: u16) {
        self.waiting.remove(&shard);
        self.asking = false;
    }

    /// See [`super::Client`].
    pub fn cut(&mut self) {
        self.waiting.clear();
        self.asking = false;
    }
}
