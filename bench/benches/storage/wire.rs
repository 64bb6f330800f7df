//! The least that can be asked of a client: it speaks the wire and counts what comes, and looks at no record.

use crate::cold::SINK_BYTES;
use crate::fill::{self, Run};
use anyhow::{Context as _, bail};
use ringmq_schema::admin::TopicAnswer;
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::connection::{Hello, HelloArgs, Refusal};
use ringmq_schema::consume::{Fetch, FetchAnswer, FetchArgs, FetchQueue};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringmq_schema::frame::{self, ANY_SHARD, FrameHeader, HEADER_BYTES};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::produce::Flush;
use ringmq_schema::zerocopy::FromBytes as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

/// Header and table of an answer; its run follows on the wire.
#[derive(Debug)]
pub struct Head {
    pub table: Vec<u8>,
    pub run_bytes: usize,
}

pub struct Wire {
    pub stream: TcpStream,
    buffer: Vec<u8>,
    range: std::ops::Range<usize>,
    frames: FrameBuilder,
    request: Vec<u8>,
    correlation: u64,
    /// When [`read_all`] ends at the latest.
    pub until: Option<Instant>,
}

impl Wire {
    pub fn connect(address: SocketAddr) -> anyhow::Result<Wire> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let mut wire = Wire {
            stream,
            buffer: vec![0; SINK_BYTES],
            range: 0..0,
            frames: FrameBuilder::new(),
            request: Vec::new(),
            correlation: 0,
            until: None,
        };
        wire.call(Opcode::Hello, |fbb| {
            let client = Some(fbb.create_string("ringmq-bench"));
            let version = u16::from(frame::VERSION);
            Hello::create(fbb, &HelloArgs { version, shard: 0, client, ..HelloArgs::default() })
        })?;
        Ok(wire)
    }

    /// Makes a topic; its id.
    pub fn create_topic(&mut self, name: &str, queues: u32) -> anyhow::Result<u32> {
        let table = self.call(Opcode::CreateTopic, |fbb| fill::topic_table(fbb, name, queues))?;
        let answer = frame::read_table::<TopicAnswer<'_>>(&table)?;
        Ok(answer.topic().context("a topic")?.id())
    }

    /// Sends a request; its correlation id.
    pub fn send<T>(
        &mut self,
        opcode: Opcode,
        run: &[u8],
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> anyhow::Result<u64> {
        self.correlation += 1;
        self.request.clear();
        let shard = if opcode == Opcode::Hello { ANY_SHARD } else { 0 };
        self.frames.request(&mut self.request, opcode, shard, self.correlation, run, build);
        self.stream.write_all(&self.request)?;
        Ok(self.correlation)
    }

    pub fn call<T>(
        &mut self,
        opcode: Opcode,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> anyhow::Result<Vec<u8>> {
        self.send(opcode, &[], build)?;
        let head = self.head()?;
        self.skip(head.run_bytes)?;
        Ok(head.table)
    }

    /// Sends a batch without waiting.
    pub fn produce(&mut self, target: (u32, u32), run: &Run, flush: Flush) -> anyhow::Result<u64> {
        self.send(Opcode::Produce, &run.bytes, |fbb| {
            fill::produce_table(fbb, target, run.records, flush)
        })
    }

    /// Asks for what lies at these places.
    pub fn fetch(&mut self, queues: &[FetchQueue], max_bytes: u32) -> anyhow::Result<u64> {
        self.send(Opcode::Fetch, &[], |fbb| {
            let queues = Some(fbb.create_vector(queues));
            let (wait_ms, max_records) = (1000, 1 << 20);
            let args =
                FetchArgs { wait_ms, max_bytes, max_records, queues, ..FetchArgs::default() };
            Fetch::create(fbb, &args)
        })
    }

    /// Reads an answer up to its run.
    pub fn head(&mut self) -> anyhow::Result<Head> {
        let bytes = self.take(HEADER_BYTES)?;
        let header = FrameHeader::read_from_bytes(&bytes).ok().context("a whole header")?;
        let table_bytes = header.table_bytes.get() as usize;
        let table = self.take(frame::padded(table_bytes))?;
        if header.status() != Status::Ok {
            let refusal = frame::read_table::<Refusal<'_>>(&table[..table_bytes]).ok();
            let text = refusal.and_then(|refusal| refusal.message().map(str::to_owned));
            bail!("refused, {}: {}", header.status(), text.unwrap_or_default());
        }
        let run_bytes = header.length.get() as usize - HEADER_BYTES - table.len();
        Ok(Head { table: table[..table_bytes].to_vec(), run_bytes })
    }

    /// Waits for `answers` answers and drops them.
    pub fn answers(&mut self, answers: usize) -> anyhow::Result<()> {
        for _ in 0..answers {
            let head = self.head()?;
            self.skip(head.run_bytes)?;
        }
        Ok(())
    }

    fn take(&mut self, bytes: usize) -> anyhow::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(bytes);
        while out.len() < bytes {
            self.refill()?;
            let now = self.range.len().min(bytes - out.len());
            out.extend_from_slice(&self.buffer[self.range.start..self.range.start + now]);
            self.range.start += now;
        }
        Ok(out)
    }

    /// Reads a run.
    pub fn run(&mut self, bytes: usize) -> anyhow::Result<Vec<u8>> {
        self.take(bytes)
    }

    /// Reads over a run.
    pub fn skip(&mut self, bytes: usize) -> anyhow::Result<()> {
        let mut left = bytes;
        while left > 0 {
            self.refill()?;
            let now = self.range.len().min(left);
            self.range.start += now;
            left -= now;
        }
        Ok(())
    }

    fn refill(&mut self) -> anyhow::Result<()> {
        if self.range.is_empty() {
            let count = self.stream.read(&mut self.buffer)?;
            if count == 0 {
                bail!("the broker closed the connection");
            }
            self.range = 0..count;
        }
        Ok(())
    }
}

/// Sends `batches` batches, round the queues, `window` in flight, and waits for all.
pub fn fill_queues(
    wire: &mut Wire,
    runs: &[(u32, u32, Run)],
    batches: u64,
    window: u64,
    flush: Flush,
) -> anyhow::Result<()> {
    let mut answered = 0;
    for batch in 0..batches {
        if batch - answered >= window {
            wire.answers(1)?;
            answered += 1;
        }
        let (topic, queue, run) = &runs[(batch % runs.len() as u64) as usize];
        wire.produce((*topic, *queue), run, flush)?;
    }
    wire.answers((batches - answered) as usize)
}

/// What a reader of everything saw.
#[derive(Debug, Default, Clone, Copy)]
pub struct Read {
    pub records: u64,
    pub bytes: u64,
    pub fetches: u64,
}

/// Reads the queues from offset 0 until `records` records came. The next request goes out as soon as the head of
/// an answer says where to go on.
pub fn read_all(
    wire: &mut Wire,
    topic: u32,
    queues: u32,
    records: u64,
    max_bytes: u32,
) -> anyhow::Result<Read> {
    let mut places: Vec<FetchQueue> =
        (0..queues).map(|queue| FetchQueue::new(topic, queue, 0, 0, 0, 0)).collect();
    let mut read = Read::default();
    wire.fetch(&places, max_bytes)?;
    while read.records < records {
        let head = wire.head()?;
        let answer = frame::read_table::<FetchAnswer<'_>>(&head.table)?;
        let mut came = 0;
        for fetched in answer.queues().unwrap_or_default() {
            if fetched.status() != 0 {
                bail!("queue {}: {}", fetched.queue(), Status::from_code(fetched.status()));
            }
            places[fetched.queue() as usize].set_offset(fetched.next_offset());
            came += u64::from(fetched.records());
        }
        read.records += came;
        read.fetches += 1;
        let is_over = wire.until.is_some_and(|until| Instant::now() >= until);
        if read.records < records && !is_over {
            wire.fetch(&places, max_bytes)?;
        }
        wire.skip(head.run_bytes)?;
        read.bytes += head.run_bytes as u64;
        if is_over {
            break;
        }
    }
    Ok(read)
}
