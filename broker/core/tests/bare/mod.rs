//! A shard alone, on a disk that takes everything at once and in memory that comes back: what it costs, and nothing else.
#![allow(dead_code, unreachable_pub)] // Each user takes a part of it.
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
use std::cell::RefCell;
use std::rc::Rc;

type Shelf = Rc<RefCell<Vec<Vec<u8>>>>;

/// Memory that comes back when the last reference goes, as the broker's pool does.
pub struct Recycled {
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

pub struct Pool(Shelf);

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

pub struct World {
    pub shard: Shard<Pool>,
    out: Outbox<Recycled>,
    ended: Vec<Input<'static, Recycled>>,
    now: Now,
    pub answers: u64,
    pub run_bytes: u64,
    /// Of the last answer that brought messages.
    pub head: Vec<u8>,
}

impl World {
    pub fn handle(&mut self, input: Input<'_, Recycled>) {
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
                    Action::Sync { sync, .. } => {
                        self.ended.push(Input::Synced { sync, result: Ok(()) });
                    }
                    Action::MakeSegment { base, .. } => {
                        self.ended.push(Input::SegmentReady { base, result: Ok(()) });
                    }
                    Action::Answer { head, slices, .. } => {
                        self.answers += 1;
                        if !slices.is_empty() {
                            self.head.clear();
                            self.head.extend_from_slice(&self.out.heads[head]);
                        }
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

    pub fn request(&mut self, bytes: &[u8]) {
        let frame = frame::parse(bytes, u32::MAX).unwrap().expect("whole");
        self.handle(Input::Request { connection: 1, frame });
    }
}

/// With the topic 1, which has one queue.
pub fn world() -> World {
    let config = ShardConfig { tail_cache_bytes: 8 << 20, ..ShardConfig::new(0, 1, 1) };
    let mut out = Outbox::default();
    let now = Now { mono_us: 1, wall_ms: 1 };
    let pool = Pool(Rc::default());
    let shard = Shard::open(config, pool, &mut NoFiles, now, &mut out).unwrap();
    let mut world =
        World { shard, out, ended: Vec::new(), now, answers: 0, run_bytes: 0, head: Vec::new() };
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

/// Messages of 1 KiB for it, with two properties.
pub fn produce_frame(records: u32) -> Vec<u8> {
    let body = [7; 1024];
    batch(records, |builder, run, n| {
        let number = n.to_string();
        let properties = [("region", "eu"), ("n", number.as_str())];
        let spec = MessageSpec { body: &body, properties: &properties, ..MessageSpec::default() };
        builder.append(run, 1, 0, &spec).unwrap();
    })
}

/// Messages of 64 bytes and nothing else.
pub fn small_frame(records: u32) -> Vec<u8> {
    batch(records, |builder, run, _| {
        let spec = MessageSpec { body: &[7; 64], ..MessageSpec::default() };
        builder.append(run, 1, 0, &spec).unwrap();
    })
}

fn batch(records: u32, mut add: impl FnMut(&mut RecordBuilder, &mut Vec<u8>, u32)) -> Vec<u8> {
    let (mut run, mut builder) = (Vec::new(), RecordBuilder::new());
    (0..records).for_each(|n| add(&mut builder, &mut run, n));
    let mut bytes = Vec::new();
    FrameBuilder::new().request(&mut bytes, Opcode::Produce, 0, 1, &run, |fbb| {
        let args = ProduceArgs { topic: 1, queue: 0, records, ..ProduceArgs::default() };
        Produce::create(fbb, &args)
    });
    bytes
}

/// Asks for what is there from `offset` on.
pub fn fetch_frame(
    frames: &mut FrameBuilder,
    bytes: &mut Vec<u8>,
    offset: u64,
    filter: Option<&str>,
) {
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
