//! A shard on a desk: an obedient disk in memory, one client, no time but what the test gives.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)] // Each test file uses its part.

use ringmq_core::index::SegmentRows;
use ringmq_core::offline::{self, Report};
use ringmq_core::{
    Action, Block, DiskError, Input, LogFiles, Memory, Now, Outbox, SegmentFile, Shard, ShardConfig,
};
use ringmq_schema::admin::{
    CreateTopic, CreateTopicArgs, DeleteTopic, DeleteTopicArgs, Topic, TopicAnswer, TopicArgs,
};
use ringmq_schema::build::{FrameBuilder, MessageSpec, RecordBuilder};
use ringmq_schema::consume::{Fetch, FetchArgs, FetchQueue};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringmq_schema::frame;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::produce::{Flush, Produce, ProduceArgs};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

pub struct Heap(pub Vec<u8>);

impl Block for Heap {
    fn bytes(&self) -> &[u8] {
        &self.0
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
    fn truncate(&mut self, bytes: usize) {
        self.0.truncate(bytes);
    }
}

#[derive(Clone, Default)]
pub struct Pool;

impl Memory for Pool {
    type Block = Heap;
    fn allocate(&mut self, bytes: usize) -> Heap {
        Heap(vec![0xEE; bytes])
    }
}

/// Segments by base, and their indexes.
#[derive(Clone, Default)]
pub struct Files(pub Rc<RefCell<BTreeMap<u64, Vec<u8>>>>, pub Rc<RefCell<BTreeMap<u64, Vec<u8>>>>);

impl Files {
    pub fn write(&self, position: u64, bytes: &[u8]) {
        let mut files = self.0.borrow_mut();
        let (base, file) = files.range_mut(..=position).next_back().expect("a segment");
        let at = (position - base) as usize;
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn read_at(&self, position: u64, out: &mut [u8]) {
        let files = self.0.borrow();
        let (base, file) = files.range(..=position).next_back().expect("a segment");
        let at = (position - base) as usize;
        out.copy_from_slice(&file[at..at + out.len()]);
    }
}

impl LogFiles for Files {
    fn segments(&mut self) -> Result<Vec<SegmentFile>, DiskError> {
        let files = self.0.borrow();
        Ok(files
            .iter()
            .map(|(base, f)| SegmentFile { base: *base, bytes: f.len() as u64 })
            .collect())
    }
    fn read(&mut self, position: u64, out: &mut [u8]) -> Result<(), DiskError> {
        self.read_at(position, out);
        Ok(())
    }
    fn wipe(&mut self, position: u64, bytes: u64) -> Result<(), DiskError> {
        self.write(position, &vec![0; bytes as usize]);
        Ok(())
    }
    fn index_bytes(&mut self, base: u64) -> Result<Option<u64>, DiskError> {
        Ok(self.1.borrow().get(&base).map(|index| index.len() as u64))
    }
    fn read_index(&mut self, base: u64, at: u64, out: &mut [u8]) -> Result<(), DiskError> {
        out.copy_from_slice(&self.1.borrow()[&base][at as usize..][..out.len()]);
        Ok(())
    }
    fn write_index(&mut self, base: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.1.borrow_mut().insert(base, bytes.to_vec());
        Ok(())
    }
    fn remove_index(&mut self, base: u64) -> Result<(), DiskError> {
        self.1.borrow_mut().remove(&base);
        Ok(())
    }
    fn sync(&mut self) -> Result<(), DiskError> {
        Ok(())
    }
}

impl Files {
    /// Other files with the same in them.
    pub fn deep_copy(&self) -> Files {
        let copy = Files::default();
        copy.0.replace(self.0.borrow().clone());
        copy.1.replace(self.1.borrow().clone());
        copy
    }
}

/// Files that take so many calls that change something, and no more.
pub struct Limited {
    pub files: Files,
    pub calls: usize,
}

impl Limited {
    fn call(&mut self) -> Result<&mut Files, DiskError> {
        let stopped = || DiskError { operation: "anything".into(), reason: "it stopped".into() };
        self.calls = self.calls.checked_sub(1).ok_or_else(stopped)?;
        Ok(&mut self.files)
    }
}

impl LogFiles for Limited {
    fn segments(&mut self) -> Result<Vec<SegmentFile>, DiskError> {
        self.files.segments()
    }
    fn read(&mut self, position: u64, out: &mut [u8]) -> Result<(), DiskError> {
        self.files.read(position, out)
    }
    fn wipe(&mut self, position: u64, bytes: u64) -> Result<(), DiskError> {
        self.call()?.wipe(position, bytes)
    }
    fn index_bytes(&mut self, base: u64) -> Result<Option<u64>, DiskError> {
        self.files.index_bytes(base)
    }
    fn read_index(&mut self, base: u64, at: u64, out: &mut [u8]) -> Result<(), DiskError> {
        self.files.read_index(base, at, out)
    }
    fn write_index(&mut self, base: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.call()?.write_index(base, bytes)
    }
    fn remove_index(&mut self, base: u64) -> Result<(), DiskError> {
        self.call()?.remove_index(base)
    }
    fn sync(&mut self) -> Result<(), DiskError> {
        self.call()?.sync()
    }
}

/// Stops everything before the action of this number, and names what was done until then.
#[derive(Clone, Copy)]
pub struct Watch {
    pub name: fn(&Action<Heap>) -> &'static str,
    pub stop_at: usize,
}

fn read_answer(connection: u64, bytes: &[u8]) -> Answer {
    let frame = frame::parse(bytes, u32::MAX).unwrap().expect("whole");
    assert_eq!(frame.header.length.get() as usize, bytes.len());
    Answer {
        connection,
        correlation: frame.header.correlation.get(),
        status: frame.header.status(),
        table: frame.table.to_vec(),
        run: frame.run.to_vec(),
    }
}

fn unreadable() -> DiskError {
    DiskError { operation: "read".to_owned(), reason: "input/output error".to_owned() }
}

/// An answer, copied out.
#[derive(Debug, Clone)]
pub struct Answer {
    pub connection: u64,
    pub correlation: u64,
    pub status: Status,
    pub table: Vec<u8>,
    pub run: Vec<u8>,
}

pub struct Desk {
    pub shard: Shard<Pool>,
    pub out: Outbox<Heap>,
    pub files: Files,
    pub now: Now,
    pub answers: Vec<Answer>,
    /// Writes are carried out, but their end is told only by `finish_writes`.
    pub hold_writes: bool,
    pub held: Vec<u64>,
    pub writes: Vec<(u64, usize, bool)>,
    pub syncs: usize,
    pub reads: usize,
    pub index_reads: usize,
    pub transfers: usize,
    pub stopped: bool,
    /// No segment can be made.
    pub full: bool,
    /// Indexes are encoded and told of by `finish_indexes`.
    pub hold_indexes: bool,
    pub held_indexes: Vec<Arc<SegmentRows>>,
    /// Reads are carried out by `finish_reads`.
    pub hold_reads: bool,
    pub held_reads: Vec<Action<Heap>>,
    /// No read succeeds.
    pub failing_reads: bool,
    /// No read of the log that touches these succeeds.
    pub unreadable: Vec<std::ops::Range<u64>>,
    pub watch: Option<Watch>,
    pub names: Vec<&'static str>,
    /// Nothing is carried out any more.
    pub is_dead: bool,
    frames: FrameBuilder,
    request: Vec<u8>,
    correlation: u64,
}

/// When desks are opened.
pub const START: Now = Now { mono_us: 1_000_000, wall_ms: 1_700_000_000_000 };

pub fn config() -> ShardConfig {
    ShardConfig {
        segment_bytes: 1 << 20,
        unit_bytes: 256 << 10,
        tail_cache_bytes: 1 << 20,
        ..ShardConfig::new(0, 1, 77)
    }
}

impl Desk {
    pub fn open(config: ShardConfig, files: Files) -> Desk {
        Desk::open_at(config, files, START)
    }

    pub fn open_at(config: ShardConfig, files: Files, now: Now) -> Desk {
        let desk = Desk::begin(config, files, now, None);
        assert!(desk.shard.is_ready());
        desk
    }

    /// One that stops somewhere, perhaps before it is ready.
    pub fn watched(config: ShardConfig, files: Files, watch: Watch) -> Desk {
        Desk::begin(config, files, START, Some(watch))
    }

    fn begin(config: ShardConfig, files: Files, now: Now, watch: Option<Watch>) -> Desk {
        let mut out = Outbox::default();
        let mut log_files = files.clone();
        let shard = Shard::open(config, Pool, &mut log_files, now, &mut out).expect("opens");
        let mut desk = Desk {
            shard,
            out,
            files,
            now,
            answers: Vec::new(),
            hold_writes: false,
            held: Vec::new(),
            writes: Vec::new(),
            syncs: 0,
            reads: 0,
            index_reads: 0,
            transfers: 0,
            stopped: false,
            full: false,
            hold_indexes: false,
            held_indexes: Vec::new(),
            hold_reads: false,
            held_reads: Vec::new(),
            failing_reads: false,
            unreadable: Vec::new(),
            watch,
            names: Vec::new(),
            is_dead: false,
            frames: FrameBuilder::new(),
            request: Vec::new(),
            correlation: 0,
        };
        desk.carry_out();
        desk
    }

    pub fn handle(&mut self, input: Input<'_, Heap>) {
        self.shard.handle(self.now, input, &mut self.out);
        self.carry_out();
    }

    fn fails(&self, position: u64, bytes: u32) -> bool {
        let end = position + u64::from(bytes);
        let touches = |range: &std::ops::Range<u64>| range.start < end && position < range.end;
        self.failing_reads || self.unreadable.iter().any(touches)
    }

    pub fn carry_out(&mut self) {
        while !self.out.actions.is_empty() {
            let mut out = std::mem::take(&mut self.out);
            let mut next = Vec::new();
            for action in out.actions.drain(..) {
                if let Some(watch) = self.watch {
                    self.is_dead |= self.names.len() == watch.stop_at;
                    if self.is_dead {
                        continue;
                    }
                    self.names.push((watch.name)(&action));
                }
                match action {
                    Action::Write { write, position, block, durable } => {
                        self.files.write(position, block.bytes());
                        self.writes.push((position, block.bytes().len(), durable));
                        if self.hold_writes {
                            self.held.push(write);
                        } else {
                            next.push(Input::Written { write, result: Ok(()) });
                        }
                    }
                    Action::Sync { sync, .. } => {
                        self.syncs += 1;
                        next.push(Input::Synced { sync, result: Ok(()) });
                    }
                    Action::MakeSegment { base, .. } if self.full => {
                        let operation = "make segment".to_owned();
                        let reason = "no space left on device".to_owned();
                        let result = Err(DiskError { operation, reason });
                        next.push(Input::SegmentReady { base, result });
                    }
                    Action::MakeSegment { base, bytes } => {
                        let file = vec![0; bytes as usize];
                        self.files.0.borrow_mut().insert(base, file);
                        next.push(Input::SegmentReady { base, result: Ok(()) });
                    }
                    action @ (Action::Read { .. } | Action::ReadIndex { .. })
                        if self.hold_reads =>
                    {
                        self.held_reads.push(action);
                    }
                    Action::Read { read, position, bytes } if self.fails(position, bytes) => {
                        next.push(Input::Read { read, result: Err(unreadable()) });
                    }
                    Action::ReadIndex { read, .. } if self.failing_reads => {
                        next.push(Input::IndexRead { read, result: Err(unreadable()) });
                    }
                    Action::Read { read, position, bytes } => {
                        self.reads += 1;
                        let mut block = Heap(vec![0; bytes as usize]);
                        self.files.read_at(position, &mut block.0);
                        next.push(Input::Read { read, result: Ok(Rc::new(block)) });
                    }
                    Action::Answer { connection, head, slices } => {
                        let mut bytes = out.heads[head].to_vec();
                        for slice in &out.slices[slices] {
                            let range = slice.range.start as usize..slice.range.end as usize;
                            bytes.extend_from_slice(&slice.block.bytes()[range]);
                        }
                        self.answers.push(read_answer(connection, &bytes));
                    }
                    Action::Transfer { connection, head, position, bytes: length } => {
                        self.transfers += 1;
                        let mut bytes = out.heads[head].to_vec();
                        let at = bytes.len();
                        bytes.resize(at + length as usize, 0);
                        self.files.read_at(position, &mut bytes[at..]);
                        self.answers.push(read_answer(connection, &bytes));
                    }
                    Action::WriteIndex { rows } if self.hold_indexes => {
                        self.held_indexes.push(rows);
                    }
                    Action::WriteIndex { rows } => {
                        let index = rows.encode();
                        let result = Ok(rows.indexed());
                        self.files.1.borrow_mut().insert(rows.base, index);
                        next.push(Input::IndexWritten { base: rows.base, result });
                    }
                    Action::ReadIndex { read, base, at, bytes } => {
                        self.index_reads += 1;
                        let mut block = Heap(vec![0; bytes as usize]);
                        self.files.read_index(base, at, &mut block.0).unwrap();
                        next.push(Input::IndexRead { read, result: Ok(Rc::new(block)) });
                    }
                    Action::Retire { base } => {
                        self.files.0.borrow_mut().remove(&base);
                        self.files.1.borrow_mut().remove(&base);
                    }
                    Action::Punch { position, bytes } => {
                        self.files.write(position, &vec![0; bytes as usize]);
                        next.push(Input::Punched { position, result: Ok(()) });
                    }
                    Action::Stopped => self.stopped = true,
                    Action::Peer { .. } | Action::Topic(_) | Action::WatchRoute { .. } => {}
                }
            }
            out.clear();
            self.out = out;
            for input in next {
                self.shard.handle(self.now, input, &mut self.out);
            }
        }
    }

    /// What the offline tools say of the files.
    pub fn survey(&self) -> Report {
        let log = offline::Log { id: self.shard.config().log_id, shard: 0 };
        survey(&self.files.0.borrow(), Some(log))
    }

    pub fn finish_writes(&mut self) {
        for write in std::mem::take(&mut self.held) {
            self.handle(Input::Written { write, result: Ok(()) });
        }
    }

    /// Ends what `hold_indexes` held back; unless `well`, none could be written.
    pub fn finish_indexes(&mut self, well: bool) {
        for rows in std::mem::take(&mut self.held_indexes) {
            let base = rows.base;
            let result = if well {
                self.files.1.borrow_mut().insert(base, rows.encode());
                Ok(rows.indexed())
            } else {
                Err(unreadable())
            };
            self.handle(Input::IndexWritten { base, result });
        }
    }

    pub fn finish_reads(&mut self) {
        self.out.actions.append(&mut self.held_reads);
        self.carry_out();
    }

    pub fn advance(&mut self, ms: u64) {
        self.now.mono_us += ms * 1000;
        self.now.wall_ms += ms as i64;
        self.handle(Input::Tick);
    }

    /// Sends a request, without the end of the turn.
    pub fn send<T>(
        &mut self,
        opcode: Opcode,
        run: &[u8],
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> u64 {
        self.correlation += 1;
        let mut request = std::mem::take(&mut self.request);
        request.clear();
        self.frames.request(&mut request, opcode, 0, self.correlation, run, build);
        let frame = frame::parse(&request, u32::MAX).unwrap().expect("whole");
        self.handle(Input::Request { connection: 9, frame });
        self.request = request;
        self.correlation
    }

    pub fn call<T>(
        &mut self,
        opcode: Opcode,
        run: &[u8],
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> Answer {
        let correlation = self.send(opcode, run, build);
        self.handle(Input::TurnEnd);
        // What is done in slices goes on by itself.
        for _ in 0..1000 {
            let is_answered = self.answers.iter().any(|a| a.correlation == correlation);
            let is_due = self.shard.next_wake().is_some_and(|due| due <= self.now.mono_us);
            if is_answered || !is_due {
                break;
            }
            self.handle(Input::Tick);
        }
        self.take(correlation).expect("answered")
    }

    pub fn take(&mut self, correlation: u64) -> Option<Answer> {
        let index = self.answers.iter().position(|a| a.correlation == correlation)?;
        Some(self.answers.remove(index))
    }

    pub fn create_topic(&mut self, name: &str, queues: u32) -> u32 {
        self.try_create_topic(name, queues).expect("answered")
    }

    pub fn create_topic_for(&mut self, name: &str, queues: u32, retention_ms: u64) -> u32 {
        self.create_topic_as(name, queues, retention_ms).expect("answered")
    }

    pub fn try_create_topic(&mut self, name: &str, queues: u32) -> Option<u32> {
        self.create_topic_as(name, queues, 0)
    }

    pub fn create_topic_as(&mut self, name: &str, queues: u32, retention_ms: u64) -> Option<u32> {
        let sent = self.send(Opcode::CreateTopic, &[], |fbb| {
            let name = Some(fbb.create_string(name));
            let args = TopicArgs {
                name,
                read_queues: queues,
                write_queues: queues,
                permission: 6,
                retention_ms,
                ..TopicArgs::default()
            };
            let topic = Some(Topic::create(fbb, &args));
            CreateTopic::create(fbb, &CreateTopicArgs { topic })
        });
        self.handle(Input::TurnEnd);
        let answer = self.take(sent)?;
        assert_eq!(answer.status, Status::Ok);
        let answer = frame::read_table::<TopicAnswer<'_>>(&answer.table).unwrap();
        Some(answer.topic().unwrap().id())
    }

    pub fn delete_topic(&mut self, name: &str) {
        let answer = self.call(Opcode::DeleteTopic, &[], |fbb| {
            let name = Some(fbb.create_string(name));
            DeleteTopic::create(fbb, &DeleteTopicArgs { name })
        });
        assert_eq!(answer.status, Status::Ok);
    }

    pub fn produce(
        &mut self,
        topic: u32,
        queue: u32,
        run: &[u8],
        records: u32,
        flush: Flush,
    ) -> u64 {
        self.send(Opcode::Produce, run, |fbb| {
            let args = ProduceArgs { topic, queue, records, flush, timeout_ms: 3000 };
            Produce::create(fbb, &args)
        })
    }

    pub fn fetch(&mut self, queues: &[FetchQueue], wait_ms: u32) -> u64 {
        self.fetch_with(queues, wait_ms, false)
    }

    pub fn fetch_with(&mut self, queues: &[FetchQueue], wait_ms: u32, checked: bool) -> u64 {
        self.send(Opcode::Fetch, &[], |fbb| {
            let queues = Some(fbb.create_vector(queues));
            let args = FetchArgs { wait_ms, queues, checked, ..FetchArgs::default() };
            Fetch::create(fbb, &args)
        })
    }
}

/// What the offline tools say of segments by base.
pub fn survey(disk: &BTreeMap<u64, Vec<u8>>, log: Option<offline::Log>) -> Report {
    let mut walk = offline::Walk::new(log, offline::Check::Everything);
    let mut survey = offline::Survey::default();
    for (&base, file) in disk {
        let mut read = |position: u64, out: &mut [u8]| {
            let at = (position - base) as usize;
            let bytes = file.get(at..at + out.len());
            bytes.map(|bytes| out.copy_from_slice(bytes)).is_some()
        };
        let segment = SegmentFile { base, bytes: file.len() as u64 };
        let ended = walk.segment(segment, &mut read, &mut |event| {
            survey.take(&event);
            ControlFlow::Continue(())
        });
        assert!(ended.is_continue());
    }
    survey.finish(walk.flushed())
}

/// A run of messages whose bodies are `first`, `first + 1`, ... and `bytes` long.
pub fn run(topic: u32, queue: u32, first: u64, count: u64, bytes: usize) -> Vec<u8> {
    let mut builder = RecordBuilder::new();
    let mut out = Vec::new();
    for n in first..first + count {
        let mut body = n.to_le_bytes().to_vec();
        body.resize(bytes.max(8), n as u8);
        let tag = if n % 2 == 0 { "even" } else { "odd" };
        let spec = MessageSpec { body: &body, tag: Some(tag), ..MessageSpec::default() };
        builder.append(&mut out, topic, queue, &spec).expect("fits");
    }
    out
}

/// Body numbers of a run.
pub fn numbers(run: &[u8]) -> Vec<u64> {
    ringmq_schema::record::records(run)
        .map(|record| {
            let record = record.unwrap();
            record.check_header().unwrap();
            record.check_payload().unwrap();
            let body = record.message().unwrap().body().unwrap().bytes().to_vec();
            u64::from_le_bytes(body[..8].try_into().unwrap())
        })
        .collect()
}
