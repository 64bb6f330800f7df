//! After warm-up nothing is allocated per message on the append and fetch paths, nor for one that a filter looks at.
//!
//! What may allocate is the unit (its shared block) and now and then a chunk of a queue's index: both are
//! counted here and bounded per unit and per thousand messages, never per message.

#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq_core::{
    Action, Block, Input, LogFiles, Memory, Now, Outbox, SegmentFile, Shard, ShardConfig,
};
use ringmq_schema::admin::{CreateTopic, CreateTopicArgs, Topic, TopicArgs};
use ringmq_schema::build::{FrameBuilder, MessageSpec, RecordBuilder};
use ringmq_schema::consume::{Fetch, FetchArgs, FetchQueue, TagFilter, TagFilterArgs};
use ringmq_schema::frame;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::produce::{Produce, ProduceArgs};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::cell::RefCell;
use std::rc::Rc;

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

type Shelf = Rc<RefCell<Vec<Vec<u8>>>>;

/// Memory that comes back when the last reference goes, as the broker's pool does.
struct Recycled {
    bytes: Vec<u8>,
    used: usize,
    shelf: Shelf,
}

impl Drop for Recycled {
    fn drop(&mut self) {
        self.shelf.borrow_mut().push(std::mem::take(&mut self.bytes));
    }
}

impl Block for Recycled {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.used]
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.used]
    }
    fn truncate(&mut self, bytes: usize) {
        self.used = bytes;
    }
}

struct Pool(Shelf);

impl Memory for Pool {
    type Block = Recycled;
    fn allocate(&mut self, bytes: usize) -> Recycled {
        let mut memory = self.0.borrow_mut().pop().unwrap_or_default();
        if memory.len() < bytes {
            memory.resize(1 << 20, 0);
        }
        Recycled { bytes: memory, used: bytes, shelf: Rc::clone(&self.0) }
    }
}

struct NoFiles;

impl LogFiles for NoFiles {
    fn segments(&mut self) -> Result<Vec<SegmentFile>, ringmq_core::DiskError> {
        Ok(Vec::new())
    }
    fn read(&mut self, _: u64, _: &mut [u8]) -> Result<(), ringmq_core::DiskError> {
        unreachable!("there are no segments")
    }
    fn wipe(&mut self, _: u64, _: u64) -> Result<(), ringmq_core::DiskError> {
        Ok(())
    }
    fn index_bytes(&mut self, _base: u64) -> Result<Option<u64>, ringmq_core::DiskError> {
        Ok(None)
    }

    fn read_index(
        &mut self,
        _base: u64,
        _at: u64,
        _out: &mut [u8],
    ) -> Result<(), ringmq_core::DiskError> {
        Ok(())
    }

    fn write_index(&mut self, _base: u64, _bytes: &[u8]) -> Result<(), ringmq_core::DiskError> {
        Ok(())
    }
    fn remove_index(&mut self, _base: u64) -> Result<(), ringmq_core::DiskError> {
        Ok(())
    }

    fn sync(&mut self) -> Result<(), ringmq_core::DiskError> {
        Ok(())
    }
}

struct World {
    shard: Shard<Pool>,
    out: Outbox<Recycled>,
    ended: Vec<Input<'static, Recycled>>,
    now: Now,
    answers: u64,
    run_bytes: u64,
}

impl World {
    fn handle(&mut self, input: Input<'_, Recycled>) {
        self.shard.handle(self.now, input, &mut self.out);
        self.carry_out();
    }

    fn carry_out(&mut self) {
        loop {
            for action in self.out.actions.drain(..) {
                match action {
                    Action::Write { write, .. } => {
                        self.ended.push(Input::Written { write, result: Ok(()) });
                    }
                    Action::MakeSegment { base, .. } => {
                        self.ended.push(Input::SegmentReady { base, result: Ok(()) });
                    }
                    Action::Answer { slices, .. } => {
                        self.answers += 1;
                        for slice in &self.out.slices[slices] {
                            self.run_bytes += u64::from(slice.range.end - slice.range.start);
                        }
                    }
                    _ => {}
                }
            }
            self.out.clear();
            let Some(input) = self.ended.pop() else { return };
            self.shard.handle(self.now, input, &mut self.out);
        }
    }

    fn request(&mut self, bytes: &[u8]) {
        let frame = frame::parse(bytes, u32::MAX).unwrap().expect("whole");
        self.handle(Input::Request { connection: 1, frame });
    }
}

fn world() -> World {
    let config = ShardConfig { tail_cache_bytes: 8 << 20, ..ShardConfig::new(0, 1, 1) };
    let mut out = Outbox::default();
    let now = Now { mono_us: 1, wall_ms: 1 };
    let pool = Pool(Rc::default());
    let shard = Shard::open(config, pool, &mut NoFiles, now, &mut out).unwrap();
    let mut world = World { shard, out, ended: Vec::new(), now, answers: 0, run_bytes: 0 };
    world.carry_out();
    let mut bytes = Vec::new();
    FrameBuilder::new().request(&mut bytes, Opcode::CreateTopic, 0, 1, &[], |fbb| {
        let name = Some(fbb.create_string("t"));
        let (read_queues, write_queues) = (1, 1);
        let args = TopicArgs { name, read_queues, write_queues, ..TopicArgs::default() };
        let topic = Some(Topic::create(fbb, &args));
        CreateTopic::create(fbb, &CreateTopicArgs { topic })
    });
    world.request(&bytes);
    world.handle(Input::TurnEnd);
    world
}

fn produce_frame(records: u32) -> Vec<u8> {
    let mut run = Vec::new();
    let mut builder = RecordBuilder::new();
    let body = [7; 1024];
    for n in 0..records {
        let number = n.to_string();
        let properties = [("region", "eu"), ("n", number.as_str())];
        let spec = MessageSpec { body: &body, properties: &properties, ..MessageSpec::default() };
        builder.append(&mut run, 1, 0, &spec).unwrap();
    }
    let mut bytes = Vec::new();
    FrameBuilder::new().request(&mut bytes, Opcode::Produce, 0, 1, &run, |fbb| {
        let args = ProduceArgs { topic: 1, queue: 0, records, ..ProduceArgs::default() };
        Produce::create(fbb, &args)
    });
    bytes
}

fn fetch_frame(frames: &mut FrameBuilder, bytes: &mut Vec<u8>, offset: u64, filter: Option<&str>) {
    bytes.clear();
    frames.request(bytes, Opcode::Fetch, 0, 2, &[], |fbb| {
        let filters = filter.map(|sql| {
            let sql = Some(fbb.create_string(sql));
            let filter = TagFilter::create(fbb, &TagFilterArgs { hashes: None, sql });
            fbb.create_vector(&[filter])
        });
        let number = u16::from(filter.is_some());
        let queues = Some(fbb.create_vector(&[FetchQueue::new(1, 0, offset, 0, number, 0)]));
        let args = FetchArgs { queues, filters, wait_ms: 1000, ..FetchArgs::default() };
        Fetch::create(fbb, &args)
    });
}

/// One test, because the counter counts for the whole process.
#[test]
fn append_and_fetch_allocate_nothing_per_message() {
    // How many records come together, how many times in a turn, with which filter, and what part of them it wants.
    let some = "region = 'eu' AND n < 10 AND missing IS NULL";
    for (records, turn, filter, part) in
        [(100u32, 1u32, None, 1), (1, 64, None, 1), (100, 1, Some(some), 10)]
    {
        let mut world = world();
        let produce = produce_frame(records);
        let (mut frames, mut fetch, mut offset) = (FrameBuilder::new(), Vec::new(), 0u64);
        let mut rounds = |world: &mut World, count: u32| {
            for _ in 0..count {
                fetch_frame(&mut frames, &mut fetch, offset, filter);
                world.request(&fetch);
                for _ in 0..turn {
                    world.request(&produce);
                }
                world.handle(Input::TurnEnd);
                offset += u64::from(records * turn);
            }
        };
        rounds(&mut world, 400);
        let (units, answers, run_bytes) =
            (world.shard.figures().units, world.answers, world.run_bytes);
        let region = Region::new(COUNTING);
        let count = 1000;
        rounds(&mut world, count);
        let stats = region.change();
        let allocations = (stats.allocations + stats.reallocations) as u64;
        let messages = u64::from(count * records * turn);
        let units = world.shard.figures().units - units;
        println!(
            "batches of {records}: {allocations} allocations, {messages} messages, {units} units"
        );
        assert_eq!(world.answers - answers, u64::from(count * (turn + 1)));
        let wanted = messages / part;
        assert!(world.run_bytes - run_bytes >= wanted * 1024, "all of it was fetched");
        let most = wanted * 1400;
        assert!(world.run_bytes - run_bytes <= most, "and nothing else");
        // The unit's shared block and the tables that grow with the log: nothing else.
        assert!(
            allocations <= 2 * units + messages / 100 + u64::from(count),
            "{allocations} allocations for {messages} messages in {units} units"
        );
    }
}
