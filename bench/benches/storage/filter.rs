//! Messages that one core looks at in a second for a filter: the shard alone, all in its memory, no sockets.
//!
//! A consumer walks a whole queue, again and again, with each filter in turn; what it wants is a tenth. Beside it the
//! expression alone, evaluated over the same messages without a shard.

use crate::fill;
use crate::linux::Place;
use crate::memory::{Heap, Nothing, Pool};
use anyhow::{Context as _, ensure};
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use ringmq_core::{Action, Input, Now, Outbox, Shard, ShardConfig};
use ringmq_filter::{Expression, Properties, evaluate};
use ringmq_schema::build::{FrameBuilder, MessageSpec, RecordBuilder};
use ringmq_schema::consume::{Fetch, FetchAnswer, FetchArgs, FetchQueue, TagFilter, TagFilterArgs};
use ringmq_schema::message::Message;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::produce::Flush;
use ringmq_schema::zerocopy::FromBytes;
use ringmq_schema::{frame, record};
use std::hint::black_box;
use std::time::Instant;

const TOPIC: u32 = 1;
const BATCH: u32 = 1000;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Thousands of messages in the queue
    #[arg(long, default_value_t = 200)]
    thousands: u32,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// The expression; its 3 terms want a tenth
    #[arg(long, default_value = "region = 'eu' AND amount < 50 AND kind IS NOT NULL")]
    sql: String,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

struct Desk {
    shard: Shard<Pool>,
    out: Outbox<Heap>,
    now: Now,
    frames: FrameBuilder,
    request: Vec<u8>,
    /// Where the last answer to a fetch says to go on, and how many records it had.
    next: Option<(u64, u32)>,
}

impl Desk {
    fn open(config: ShardConfig) -> anyhow::Result<Desk> {
        let mut out = Outbox::default();
        let now = Now { mono_us: 1, wall_ms: 1_700_000_000_000 };
        let shard = Shard::open(config, Pool, &mut Nothing, now, &mut out)?;
        let (frames, request) = (FrameBuilder::new(), Vec::new());
        let mut desk = Desk { shard, out, now, frames, request, next: None };
        desk.carry_out()?;
        ensure!(desk.shard.is_ready(), "the shard is not ready");
        Ok(desk)
    }

    fn handle(&mut self, input: Input<'_, Heap>) -> anyhow::Result<()> {
        self.now.mono_us += 1;
        self.shard.handle(self.now, input, &mut self.out);
        self.carry_out()
    }

    fn carry_out(&mut self) -> anyhow::Result<()> {
        while !self.out.actions.is_empty() {
            let mut next = Vec::new();
            for action in self.out.actions.drain(..) {
                match action {
                    Action::Write { write, .. } => {
                        next.push(Input::Written { write, result: Ok(()) });
                    }
                    Action::Sync { sync, .. } => next.push(Input::Synced { sync, result: Ok(()) }),
                    Action::MakeSegment { base, .. } => {
                        next.push(Input::SegmentReady { base, result: Ok(()) });
                    }
                    Action::Answer { head, .. } => {
                        let bytes = &self.out.heads[head];
                        let header = frame::FrameHeader::ref_from_prefix(bytes);
                        let (header, rest) = header.ok().context("a header")?;
                        ensure!(header.status() == ringmq_schema::error::Status::Ok, "refused");
                        if header.opcode() == Some(Opcode::Fetch) {
                            let table = &rest[..header.table_bytes.get() as usize];
                            let table = frame::read_table::<FetchAnswer<'_>>(table)?;
                            let queue = table.queues().context("queues")?.get(0);
                            self.next = Some((queue.next_offset(), queue.records()));
                        }
                    }
                    Action::Topic(_) | Action::Peer { .. } | Action::WatchRoute { .. } => {}
                    _ => anyhow::bail!("all is in memory, but the shard wants more than that"),
                }
            }
            self.out.clear();
            for input in next {
                self.shard.handle(self.now, input, &mut self.out);
            }
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let frame = frame::parse(bytes, u32::MAX)?.context("a whole frame")?;
        self.handle(Input::Request { connection: 9, frame })
    }

    /// Walks the queue from its beginning; how many records came.
    fn read(&mut self, end: u64, wanted: &Wanted<'_>) -> anyhow::Result<u64> {
        let (mut at, mut records) = (0, 0);
        let mut request = std::mem::take(&mut self.request);
        while at < end {
            request.clear();
            self.frames.request(&mut request, Opcode::Fetch, 0, at, &[], |fbb| {
                let (hashes, sql) = match wanted {
                    Wanted::All => (None, None),
                    Wanted::Tag(tag) => (Some(fbb.create_vector(&[record::tag_hash(tag)])), None),
                    Wanted::Sql(text) => (None, Some(fbb.create_string(text))),
                };
                let number = u16::from(!matches!(wanted, Wanted::All));
                let filter = TagFilter::create(fbb, &TagFilterArgs { hashes, sql });
                let filters = Some(fbb.create_vector(&[filter]));
                let queue = FetchQueue::new(TOPIC, 0, at, 0, number, 0);
                let queues = Some(fbb.create_vector(&[queue]));
                let (max_bytes, max_records) = (4 << 20, 16_384);
                let args =
                    FetchArgs { queues, filters, max_bytes, max_records, ..FetchArgs::default() };
                Fetch::create(fbb, &args)
            });
            self.next = None;
            self.send(&request)?;
            let (next, count) = self.next.context("answered at once")?;
            ensure!(next > at, "it moves on");
            (at, records) = (next, records + u64::from(count));
        }
        self.request = request;
        Ok(records)
    }
}

enum Wanted<'a> {
    All,
    Tag(&'a str),
    Sql(&'a str),
}

/// Messages of which a tenth has each tag; four properties.
fn batch(first: u32, body_bytes: usize) -> fill::Run {
    let body: Vec<u8> = (0..body_bytes).map(|at| (at * 31) as u8).collect();
    let (mut builder, mut bytes) = (RecordBuilder::new(), Vec::new());
    for n in first..first + BATCH {
        let (tag, amount) = (format!("tag-{}", n % 10), format!("{}.25", n % 100));
        let region = ["eu", "us", "asia", "mea", "latam"][(n % 5) as usize];
        let properties =
            [("kind", "order"), ("region", region), ("source", "web"), ("amount", &amount)];
        let tag = Some(tag.as_str());
        let spec =
            MessageSpec { body: &body, tag, properties: &properties, ..MessageSpec::default() };
        builder.append(&mut bytes, TOPIC, 0, &spec).expect("within the protocol's limits");
    }
    fill::Run { bytes, records: BATCH }
}

struct Seen<'a>(Message<'a>);

impl Properties for Seen<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let mut properties = self.0.properties().into_iter().flatten();
        properties.find(|property| property.key() == name).map(|property| property.value())
    }
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("filter");
    let expression =
        Expression::parse(&options.sql).map_err(|e| anyhow::anyhow!("{e}\n{}", e.caret()))?;
    let count = u64::from(options.thousands * BATCH);
    let config = ShardConfig {
        tail_cache_bytes: usize::MAX >> 1,
        segment_bytes: 4 << 30,
        ..ShardConfig::new(0, 1, 77)
    };
    let mut desk = Desk::open(config)?;
    desk.send(&fill::topic_frame("bench", 1))?;
    desk.handle(Input::TurnEnd)?;
    for thousand in 0..options.thousands {
        let run = batch(thousand * BATCH, options.body);
        desk.send(&fill::produce_frame((TOPIC, 0), &run, Flush::Sync, 1))?;
        desk.handle(Input::TurnEnd)?;
    }
    ensure!(desk.shard.figures().messages_in == count, "messages are missing");
    let sides = [
        ("a tag, one of ten", Wanted::Tag("tag-3")),
        ("an expression of 3 terms", Wanted::Sql(&options.sql)),
        ("no filter", Wanted::All),
    ];
    let mut figures = [const { Vec::new() }; 3];
    let mut alone = Vec::new();
    let sample = batch(0, options.body);
    for _ in 0..options.rounds {
        for ((_, wanted), figures) in sides.iter().zip(&mut figures) {
            let begun = Instant::now();
            let came = desk.read(count, wanted)?;
            figures.push(count as f64 / begun.elapsed().as_secs_f64());
            let expected = if matches!(wanted, Wanted::All) { count } else { count / 10 };
            ensure!(came == expected, "{came} records came, {expected} are wanted");
        }
        let found: Vec<_> = record::records(&sample.bytes).collect::<Result<_, _>>()?;
        let messages: Vec<_> =
            found.iter().map(|r| r.message().map(Seen)).collect::<Result<_, _>>()?;
        let begun = Instant::now();
        for _ in 0..options.thousands {
            for message in &messages {
                black_box(evaluate(&expression, message));
            }
        }
        alone.push(count as f64 / begun.elapsed().as_secs_f64());
    }
    for ((what, _), figures) in sides.iter().zip(&figures) {
        outcome.figure(*what, "messages/s", median(figures), Goal::Shown);
        outcome.note(rounds(what, figures));
    }
    outcome.figure("the expression alone", "evaluations/s", median(&alone), Goal::Shown);
    outcome.note(format!("{count} messages of {} bytes, 4 properties; {expression}", options.body));
    Ok(outcome)
}
