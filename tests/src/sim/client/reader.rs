//! Readers without a group: they begin somewhere, filter now and then, and wait for more.

use crate::sim::client::producer::TAGS;
use crate::sim::client::{Context, Phase};
use crate::sim::talk::{QueueKey, Reply, Wanted, Wish};
use ringmq_schema::error::Status;
use ringmq_schema::record;
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Debug, Default)]
pub struct Reader {
    next: BTreeMap<QueueKey, u64>,
    waiting: BTreeSet<u16>,
}

impl Reader {
    /// See [`super::Client`].
    pub fn wake(&mut self, context: &mut Context<'_>) {
        if context.phase == Phase::Quiet {
            return;
        }
        let shard = context.random.below(u64::from(context.plan.shards)) as u16;
        if context.random.once_in(60) {
            context.close(shard);
            self.waiting.remove(&shard);
        }
        if self.waiting.contains(&shard) {
            return;
        }
        let mut wanted = Vec::new();
        for queue in context.queues() {
            if context.shard_of(queue) == shard && context.random.percent(70) {
                wanted.push(self.want(context, queue));
            }
        }
        if wanted.is_empty() {
            return;
        }
        let wait_ms = *context.random.pick(&[0, 1, 20, 500]);
        let max_bytes = *context.random.pick(&[1, 4 << 10, 32 << 10, 1 << 20]);
        let max_records = *context.random.pick(&[1, 10, 1024]);
        let request = context.words.fetch(shard, 0, 0, wait_ms, max_bytes, max_records, wanted);
        self.waiting.insert(shard);
        context.send(request);
    }

    fn want(&mut self, context: &mut Context<'_>, queue: QueueKey) -> Wanted {
        let end = context.oracle.messages.end(queue);
        let next = self.next.entry(queue).or_insert(0);
        if context.random.once_in(10) {
            // Back into what lies on the disk.
            *next = context.random.below(end + 1);
        }
        let tag = *context.random.pick(&TAGS[1..]);
        let wish = match context.random.below(5) {
            0 => Some(Wish::Tag(record::tag_hash(tag))),
            1 => Some(Wish::draw(context.random, &TAGS[1..])),
            _ => None,
        };
        Wanted { queue, offset: *next, generation: 0, wish }
    }

    /// See [`super::Client`].
    pub fn hear(&mut self, shard: u16, reply: &Reply) {
        self.waiting.remove(&shard);
        let Reply::Fetched(queues) = reply else { return };
        for got in queues {
            match got.status {
                Status::Ok => self.next.insert(got.queue, got.next_offset),
                Status::OffsetOutOfRange => self.next.insert(got.queue, got.min_offset),
                // What is damaged is left out.
                Status::Corrupt => {
                    let next = self.next.get(&got.queue).map_or(0, |asked| asked + 1);
                    self.next.insert(got.queue, got.next_offset.max(next))
                }
                _ => None,
            };
        }
    }

    /// See [`super::Client`].
    pub fn broken(&mut self, shard: u16) {
        self.waiting.remove(&shard);
    }

    /// See [`super::Client`].
    pub fn cut(&mut self) {
        self.waiting.clear();
    }
}
