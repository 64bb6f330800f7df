//! Producers: batches of messages, several requests under way on each connection.

use crate::sim::client::{Context, Phase};
use crate::sim::oracle::messages::Sent;
use crate::sim::plan::Plan;
use crate::sim::random::Random;
use crate::sim::talk::{Intent, QueueKey, Traits};
use ringmq_core::config::FlushMode;
use ringmq_schema::build::{MessageSpec, RecordBuilder};
use ringmq_schema::record;

/// Tags in use; the empty one is none.
pub const TAGS: [&str; 4] = ["", "paid", "refunded", "open"];

/// Longest delay: several lives end meanwhile.
const DELAY_MS_MAX: u64 = 5_000;

const DEFAULT: u8 = 0;
const SYNC: u8 = 1;
const ASYNC: u8 = 2;

/// See the module.
#[derive(Debug)]
pub struct Producer {
    window: u32,
    batch: u64,
    body: u64,
    under_way: u32,
}

impl Producer {
    /// One with habits of its own.
    pub fn new(random: &mut Random) -> Producer {
        Producer {
            window: random.between(1, 16) as u32,
            batch: *random.pick(&[1, 4, 50]),
            body: *random.pick(&[64, 1024, 20 << 10]),
            under_way: 0,
        }
    }

    /// See [`super::Client`].
    pub fn wake(&mut self, context: &mut Context<'_>) {
        let queues = context.queues();
        if context.phase != Phase::Living || queues.is_empty() {
            return;
        }
        if context.random.once_in(100) {
            let shard = context.random.below(u64::from(context.plan.shards)) as u16;
            context.close(shard);
            self.under_way = 0;
        }
        if context.random.once_in(8) {
            recall(context);
        }
        for _ in 0..context.random.between(1, 3) {
            if self.under_way < self.window {
                let queue = *context.random.pick(&queues);
                self.send(context, queue);
            }
        }
    }

    fn send(&mut self, context: &mut Context<'_>, queue: QueueKey) {
        let one_way = context.random.once_in(20);
        let by_request = *context.random.pick(&[DEFAULT, DEFAULT, SYNC, ASYNC]);
        let count = context.random.skewed(1, self.batch) as u32;
        let first = context.oracle.messages.count();
        let is_delayed = context.random.once_in(5) && !context.oracle.topics.is_fifo(queue.0);
        let delay_ms = if is_delayed { DELAY_MS_MAX } else { 0 };
        let run = append(context, queue, count, self.body, by_request, delay_ms);
        let count = context.oracle.messages.count() - first;
        let intent = Intent::Produce { queue, first, count };
        let shard = context.shard_of(queue);
        let request = context.words.produce(shard, one_way, queue, count, by_request, &run, intent);
        self.under_way += u32::from(!one_way);
        context.send(request);
    }

    /// See [`super::Client`].
    pub fn hear(&mut self, _intent: &Intent) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// See [`super::Client`].
    pub fn cut(&mut self) {
        self.under_way = 0;
    }
}

/// Takes back one of the delayed messages, whoever sent it.
fn recall(context: &mut Context<'_>) {
    let nth = context.random.below(1 << 20);
    let Some(timer) = context.oracle.messages.recallable(nth) else { return };
    let request = context.words.recall(&timer);
    context.send(request);
}

/// A run of at most `count` new messages of at most `body` bytes each, noted in the journal. With
/// `by_request` `DEFAULT` each message may say itself how it is to be flushed. With `delay_ms` each is delayed by up to
/// so much.
pub fn append(
    context: &mut Context<'_>,
    queue: QueueKey,
    count: u32,
    body: u64,
    by_request: u8,
    delay_ms: u64,
) -> Vec<u8> {
    let (mut run, mut records) = (Vec::new(), RecordBuilder::new());
    let shard = context.shard_of(queue);
    let connection = context.links.link(context.client, shard);
    let limit = run_bytes_max(context.plan);
    for _ in 0..count {
        let bytes = body_bytes(context.random, body, &run);
        if run.len() + bytes.len() + 512 > limit && !run.is_empty() {
            break;
        }
        let tag = *context.random.pick(&TAGS);
        let flush = match by_request {
            DEFAULT => *context.random.pick(&[DEFAULT, DEFAULT, SYNC, ASYNC]),
            _ => DEFAULT,
        };
        let message_id = context.oracle.messages.id(context.oracle.messages.count());
        let born_ms = context.random.between(1, 1 << 40) as i64;
        let deliver_ms = match delay_ms {
            0 => 0,
            most => context.wall_ms + context.random.skewed(1, most) as i64,
        };
        let traits = Traits::draw(context.random, context.oracle.topics.is_fifo(queue.0));
        let (amount, group) = (traits.amount(), traits.group());
        let mut properties = vec![("amount", amount.as_str())];
        properties.extend(traits.region().map(|region| ("region", region)));
        let spec = MessageSpec {
            deliver_ms,
            body: &bytes,
            tag: (!tag.is_empty()).then_some(tag),
            keys: &["order-17"],
            properties: &properties,
            group: group.as_deref(),
            born_ms,
            message_id,
            flush,
            ..MessageSpec::default()
        };
        let at = run.len();
        records.append(&mut run, queue.0, queue.1, &spec).expect("within the limits");
        let (_, record) = record::read_one(&run, at).expect("the builder builds records");
        let payload = record.expect("a message is no control record").payload;
        context.oracle.messages.send(Sent {
            queue,
            shard,
            connection,
            payload_checksum: crc32fast::hash(payload),
            payload_bytes: payload.len() as u32,
            tag_hash: spec.tag.map_or(0, record::tag_hash),
            traits,
            born_ms,
            deliver_ms,
            sync: is_sync(context, queue.0, by_request, flush),
        });
    }
    run
}

/// Runs are kept well below a segment.
fn run_bytes_max(plan: &Plan) -> usize {
    plan.config.segment_bytes as usize / 2 - 8192
}

/// Random bytes, or what looks like records of this very log.
fn body_bytes(random: &mut Random, max: u64, run: &[u8]) -> Vec<u8> {
    let bytes = random.skewed(0, max) as usize;
    if random.once_in(50) && run.len() > 256 {
        return run[..bytes.min(run.len())].to_vec();
    }
    let mut body = vec![0; bytes];
    random.fill(&mut body);
    body
}

fn is_sync(context: &Context<'_>, topic: u32, by_request: u8, by_message: u8) -> bool {
    let of_topic = context.oracle.topics.live().find(|(_, id, _)| *id == topic);
    let of_topic = of_topic.map_or(DEFAULT, |(_, _, topic)| topic.flush);
    let of_broker = match context.plan.config.flush {
        FlushMode::Sync => SYNC,
        FlushMode::Async => ASYNC,
    };
    let said = [by_message, by_request, of_topic, of_broker].into_iter().find(|f| *f != DEFAULT);
    said == Some(SYNC)
}
