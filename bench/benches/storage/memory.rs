//! What a shard's core keeps in memory of many messages in many queues.
//!
//! The disk obeys and forgets: blocks are dropped when the shard has dropped them, indexes are encoded as ever,
//! piece by piece, and dropped too. What is resident then is the core's own, and what it took from the allocator at its worst.

use crate::fill;
use crate::linux::Place;
use anyhow::{Context as _, ensure};
use ringmq_bench::goals::{Goal, Outcome};
use ringmq_blocks::BlockAllocator;
use ringmq_core::{
    Action, BLOCK_BYTES, Block, DiskError, Input, LogFiles, Memory, Now, Outbox, SegmentFile,
    Shard, ShardConfig,
};
use ringmq_schema::build::{FrameBuilder, readdress};
use ringmq_schema::frame;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::produce::Flush;
use ringmq_schema::zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::{Duration, Instant};

const TOPIC: u32 = 1;

#[global_allocator]
static ALLOCATOR: Counting = Counting { bytes: AtomicIsize::new(0) };

/// The allocator of the broker's binaries, counted.
struct Counting {
    bytes: AtomicIsize,
}

// SAFETY: everything is passed on as it is.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.bytes.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { BlockAllocator.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        self.bytes.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { BlockAllocator.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.bytes.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { BlockAllocator.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        self.bytes.fetch_add(bytes as isize - layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { BlockAllocator.realloc(memory, layout, bytes) }
    }
}

/// Bytes that are allocated, MiB.
fn held() -> f64 {
    ALLOCATOR.bytes.load(Ordering::Relaxed) as f64 / MIB
}

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Millions of messages; the limit speaks of 100
    #[arg(long, default_value_t = 10)]
    millions: u64,
    /// Queues
    #[arg(long, default_value_t = 10_000)]
    queues: u32,
    /// Messages in a batch
    #[arg(long, default_value_t = 10)]
    batch: u32,
    /// Bytes of a body
    #[arg(long, default_value_t = 64)]
    body: usize,
    /// Give each message a key
    #[arg(long)]
    keys: bool,
}

/// As large and as aligned as the broker's are, so that they come from where its blocks come from.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[zerocopy(crate = "ringmq_schema::zerocopy")]
#[repr(C, align(4096))]
struct Page([u8; BLOCK_BYTES]);

pub struct Heap(Vec<Page>);

impl Block for Heap {
    fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }
    fn truncate(&mut self, bytes: usize) {
        let pages = bytes / BLOCK_BYTES;
        match pages <= self.0.len() / 2 {
            true => self.0 = self.0[..pages].to_vec(),
            false => self.0.truncate(pages),
        }
    }
}

pub struct Pool;

impl Memory for Pool {
    type Block = Heap;
    fn allocate(&mut self, bytes: usize) -> Heap {
        Heap(vec![Page([0; BLOCK_BYTES]); bytes / BLOCK_BYTES])
    }
}

/// No file was ever there.
pub struct Nothing;

fn missing<T>() -> Result<T, DiskError> {
    Err(DiskError { operation: "read".to_owned(), reason: "nothing is kept".to_owned() })
}

impl LogFiles for Nothing {
    fn segments(&mut self) -> Result<Vec<SegmentFile>, DiskError> {
        Ok(Vec::new())
    }
    fn read(&mut self, _: u64, _: &mut [u8]) -> Result<(), DiskError> {
        missing()
    }
    fn wipe(&mut self, _: u64, _: u64) -> Result<(), DiskError> {
        missing()
    }
    fn index_bytes(&mut self, _: u64) -> Result<Option<u64>, DiskError> {
        Ok(None)
    }
    fn read_index(&mut self, _: u64, _: u64, _: &mut [u8]) -> Result<(), DiskError> {
        missing()
    }
    fn write_index(&mut self, _: u64, _: &[u8]) -> Result<(), DiskError> {
        missing()
    }
    fn remove_index(&mut self, _: u64) -> Result<(), DiskError> {
        Ok(())
    }
    fn sync(&mut self) -> Result<(), DiskError> {
        Ok(())
    }
}

/// The shard and its forgetful runtime.
struct Desk {
    shard: Shard<Pool>,
    out: Outbox<Heap>,
    begun: Instant,
    index_bytes: u64,
    index_bytes_max: u64,
    rows_took: Duration,
    held_max: f64,
}

impl Desk {
    fn open() -> anyhow::Result<Desk> {
        let mut out = Outbox::default();
        let now = Now { mono_us: 1, wall_ms: 1_700_000_000_000 };
        let config = ShardConfig::new(0, 1, 77);
        let shard = Shard::open(config, Pool, &mut Nothing, now, &mut out)?;
        let (begun, rows_took) = (Instant::now(), Duration::ZERO);
        let mut desk = Desk {
            shard,
            out,
            begun,
            index_bytes: 0,
            index_bytes_max: 0,
            rows_took,
            held_max: 0.0,
        };
        desk.carry_out();
        ensure!(desk.shard.is_ready(), "the shard is not ready");
        Ok(desk)
    }

    fn now(&self) -> Now {
        let mono = self.begun.elapsed();
        let wall_ms = 1_700_000_000_000 + mono.as_millis() as i64;
        Now { mono_us: 2 + mono.as_micros() as u64, wall_ms }
    }

    fn handle(&mut self, input: Input<'_, Heap>) {
        self.shard.handle(self.now(), input, &mut self.out);
        self.carry_out();
    }

    fn carry_out(&mut self) {
        while !self.out.actions.is_empty() {
            let mut out = std::mem::take(&mut self.out);
            let mut next = Vec::new();
            for action in out.actions.drain(..) {
                match action {
                    Action::Write { write, .. } => {
                        next.push(Input::Written { write, result: Ok(()) })
                    }
                    Action::Sync { sync, .. } => next.push(Input::Synced { sync, result: Ok(()) }),
                    Action::MakeSegment { base, .. } => {
                        next.push(Input::SegmentReady { base, result: Ok(()) });
                    }
                    Action::WriteIndex { rows } => {
                        let begun = Instant::now();
                        let (mut bytes, held_max) = (0, &mut self.held_max);
                        rows.encode_to(&mut |at, piece| {
                            bytes = bytes.max(at + piece.len() as u64);
                            *held_max = held_max.max(held());
                        });
                        self.rows_took += begun.elapsed();
                        self.index_bytes += bytes;
                        self.index_bytes_max = self.index_bytes_max.max(bytes);
                        let result = Ok(rows.indexed());
                        next.push(Input::IndexWritten { base: rows.base, result });
                    }
                    Action::Read { read, .. } => next.push(Input::Read { read, result: missing() }),
                    Action::ReadIndex { read, .. } => {
                        next.push(Input::IndexRead { read, result: missing() });
                    }
                    Action::Punch { position, .. } => {
                        next.push(Input::Punched { position, result: Ok(()) });
                    }
                    Action::Answer { .. }
                    | Action::Transfer { .. }
                    | Action::Retire { .. }
                    | Action::Peer { .. }
                    | Action::Topic(_)
                    | Action::WatchRoute { .. }
                    | Action::Stopped => {}
                }
            }
            out.clear();
            self.out = out;
            for input in next {
                self.shard.handle(self.now(), input, &mut self.out);
            }
        }
    }

    fn request(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let frame = frame::parse(bytes, u32::MAX)?.context("a whole frame")?;
        self.handle(Input::Request { connection: 9, frame });
        Ok(())
    }
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("memory");
    let mut desk = Desk::open()?;
    desk.request(&fill::topic_frame("bench", options.queues))?;
    desk.handle(Input::TurnEnd);
    let key = |number| options.keys.then(|| format!("key-{number}"));
    let mut run = fill::run_of((TOPIC, 0), options.batch, options.body, key);
    let mut frames = FrameBuilder::new();
    let mut request = Vec::with_capacity(run.bytes.len() + 4096);
    forget_peak()?;
    let (empty, empty_held) = (resident("VmRSS")?, held());
    let batches = options.millions * 1_000_000 / u64::from(options.batch);
    let begun = Instant::now();
    for batch in 0..batches {
        let queue = (batch % u64::from(options.queues)) as u32;
        readdress(&mut run.bytes, TOPIC, queue);
        request.clear();
        frames.request(&mut request, Opcode::Produce, 0, batch, &run.bytes, |fbb| {
            fill::produce_table(fbb, (TOPIC, queue), run.records, Flush::Async)
        });
        desk.request(&request)?;
        // As many together as a turn of the broker brings when it is busy.
        if batch % 64 == 63 {
            desk.handle(Input::TurnEnd);
        }
        if batch % 4096 == 0 {
            desk.handle(Input::Tick);
            desk.held_max = desk.held_max.max(held());
        }
    }
    desk.handle(Input::TurnEnd);
    let took = begun.elapsed();
    let figures = desk.shard.figures();
    ensure!(figures.refused == 0, "{} requests were refused", figures.refused);
    ensure!(figures.messages_in == batches * u64::from(options.batch), "messages are missing");
    let (peak, kept) = (resident("VmHWM")? - empty, resident("VmRSS")? - empty);
    let tail = figures.tail_bytes as f64 / MIB;
    let (held_peak, held_kept) = (desk.held_max - empty_held, held() - empty_held);
    outcome.figure("peak but the tail, resident", "MiB", peak - tail, Goal::AtMost(256.0));
    outcome.figure("peak but the tail, allocated", "MiB", held_peak - tail, Goal::AtMost(256.0));
    outcome.figure("at the end, resident", "MiB", kept - tail, Goal::Shown);
    outcome.figure("at the end, allocated", "MiB", held_kept - tail, Goal::Shown);
    outcome.figure("tail", "MiB", tail, Goal::Shown);
    let messages = figures.messages_in as f64;
    outcome.figure("log", "GiB", figures.appended as f64 / MIB / 1024.0, Goal::Shown);
    outcome.figure(
        "CPU of the core",
        "us/message",
        took.as_secs_f64() * 1e6 / messages,
        Goal::Shown,
    );
    outcome.figure("indexes", "bytes/message", desk.index_bytes as f64 / messages, Goal::Shown);
    let largest = desk.index_bytes_max as f64 / MIB;
    outcome.figure("largest index", "MiB", largest, Goal::Shown);
    let share = desk.rows_took.as_secs_f64() / took.as_secs_f64();
    outcome.note(format!(
        "{} messages in {} queues, {} segments indexed, {} snapshots; encoding indexes took {:.0} % of the time",
        figures.messages_in,
        figures.queues,
        figures.segments_indexed,
        figures.snapshots,
        share * 100.0
    ));
    Ok(outcome)
}

const MIB: f64 = 1_048_576.0;

/// A line of /proc/self/status, MiB.
fn resident(name: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let text = line.with_context(|| format!("no {name}"))?;
    let kib: f64 = text.split_whitespace().next().context("a number")?.parse()?;
    Ok(kib / 1024.0)
}

/// Lets VmHWM begin afresh.
fn forget_peak() -> anyhow::Result<()> {
    std::fs::write("/proc/self/clear_refs", "5").context("forgetting the peak")
}
