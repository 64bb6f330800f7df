//! A client of the bare wire: blocking, and able to say anything, also what no client should.

use ringmq_schema::admin::{CreateTopic, CreateTopicArgs, Topic, TopicAnswer, TopicArgs};
use ringmq_schema::build::{FrameBuilder, MessageSpec, RecordBuilder};
use ringmq_schema::connection::{Hello, HelloAnswer, HelloArgs, Refusal};
use ringmq_schema::consume::{Fetch, FetchAnswer, FetchArgs, FetchQueue};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringmq_schema::frame::{self, ANY_SHARD};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::produce::{Flush, Produce, ProduceAnswer, ProduceArgs};
use ringmq_schema::record;
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::time::Duration;

/// An answer, copied out of its frame.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Of the request.
    pub correlation: u64,
    /// How it went.
    pub status: Status,
    /// The answer's table, or the refusal's.
    pub table: Vec<u8>,
    /// Records.
    pub run: Vec<u8>,
}

impl Answer {
    /// What a refusal says.
    pub fn refusal(&self) -> String {
        let refusal = frame::read_table::<Refusal<'_>>(&self.table);
        refusal.ok().and_then(|r| r.message().map(str::to_owned)).unwrap_or_default()
    }
}

/// What a fetch brought of a queue.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// How it went.
    pub status: Status,
    /// Bodies by offset.
    pub bodies: Vec<(u64, Vec<u8>)>,
    /// Offsets of those whose payload is not what the producer sent.
    pub damaged: Vec<u64>,
    /// Where in the shard's log the others lie.
    pub places: Vec<Range<u64>>,
    /// Where to go on.
    pub next: u64,
    /// The high watermark.
    pub high: u64,
    /// The first offset that can be read.
    pub min: u64,
}

impl Fetched {
    /// Of a queue that an answer does not name.
    pub fn nothing(offset: u64) -> Fetched {
        Fetched {
            status: Status::Ok,
            bodies: Vec::new(),
            damaged: Vec::new(),
            places: Vec::new(),
            next: offset,
            high: offset,
            min: 0,
        }
    }
}

/// One connection.
#[derive(Debug)]
pub struct Wire {
    /// The socket, for those who want to misuse it.
    pub stream: TcpStream,
    received: Vec<u8>,
    correlation: u64,
    /// Whether the broker is to look at records before it sends them.
    pub checked: bool,
    /// Shards of the broker, as it says.
    pub shards: u16,
}

impl Wire {
    /// Connects without a word.
    pub fn silent(address: SocketAddr) -> Result<Wire> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Wire { stream, received: Vec::new(), correlation: 0, checked: false, shards: 0 })
    }

    /// Connects to a shard's core.
    pub fn connect(address: SocketAddr, shard: u16) -> Result<Wire> {
        let mut wire = Wire::silent(address)?;
        let answer = wire.call(Opcode::Hello, ANY_SHARD, &[], |fbb| {
            let client = Some(fbb.create_string("ringmq-tests"));
            let version = u16::from(frame::VERSION);
            Hello::create(fbb, &HelloArgs { version, shard, client, ..HelloArgs::default() })
        })?;
        if answer.status != Status::Ok {
            return Err(Error::other(format!("{}: {}", answer.status, answer.refusal())));
        }
        let hello = frame::read_table::<HelloAnswer<'_>>(&answer.table).map_err(Error::other)?;
        wire.shards = hello.shards();
        Ok(wire)
    }

    /// Sends a request; its correlation id.
    pub fn send<T>(
        &mut self,
        opcode: Opcode,
        shard: u16,
        run: &[u8],
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> Result<u64> {
        self.correlation += 1;
        let mut bytes = Vec::new();
        FrameBuilder::new().request(&mut bytes, opcode, shard, self.correlation, run, build);
        self.stream.write_all(&bytes)?;
        Ok(self.correlation)
    }

    /// Waits for the next answer.
    pub fn receive(&mut self) -> Result<Answer> {
        loop {
            let parsed = frame::parse(&self.received, u32::MAX).map_err(Error::other)?;
            if let Some(frame) = parsed {
                let answer = Answer {
                    correlation: frame.header.correlation.get(),
                    status: frame.header.status(),
                    table: frame.table.to_vec(),
                    run: frame.run.to_vec(),
                };
                let length = frame.header.length.get() as usize;
                self.received.drain(..length);
                return Ok(answer);
            }
            let mut buffer = [0; 65_536];
            let count = self.stream.read(&mut buffer)?;
            if count == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            self.received.extend_from_slice(&buffer[..count]);
        }
    }

    /// Sends a request and waits for its answer.
    pub fn call<T>(
        &mut self,
        opcode: Opcode,
        shard: u16,
        run: &[u8],
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> Result<Answer> {
        let correlation = self.send(opcode, shard, run, build)?;
        loop {
            let answer = self.receive()?;
            if answer.correlation == correlation {
                return Ok(answer);
            }
        }
    }

    /// Makes a topic; its id.
    pub fn create_topic(&mut self, name: &str, queues: u32) -> Result<u32> {
        let answer = self.call(Opcode::CreateTopic, ANY_SHARD, &[], |fbb| {
            let name = Some(fbb.create_string(name));
            let (read_queues, write_queues) = (queues, queues);
            let args = TopicArgs { name, read_queues, write_queues, ..TopicArgs::default() };
            let topic = Some(Topic::create(fbb, &args));
            CreateTopic::create(fbb, &CreateTopicArgs { topic })
        })?;
        if answer.status != Status::Ok {
            return Err(Error::other(format!("{}: {}", answer.status, answer.refusal())));
        }
        let answer = frame::read_table::<TopicAnswer<'_>>(&answer.table).map_err(Error::other)?;
        Ok(answer.topic().map_or(0, |topic| topic.id()))
    }

    /// Sends a batch; its correlation id.
    pub fn produce(
        &mut self,
        (topic, queue, shard): (u32, u32, u16),
        run: &[u8],
        records: u32,
        flush: Flush,
    ) -> Result<u64> {
        self.send(Opcode::Produce, shard, run, |fbb| {
            let args = ProduceArgs { topic, queue, records, flush, timeout_ms: 3000 };
            Produce::create(fbb, &args)
        })
    }

    /// Reads a queue from `offset` on.
    pub fn fetch(
        &mut self,
        (topic, queue, shard): (u32, u32, u16),
        offset: u64,
        wait_ms: u32,
    ) -> Result<Fetched> {
        let mut all = self.fetch_queues(topic, shard, &[(queue, offset)], wait_ms)?;
        let fetched = all.remove(&queue).unwrap_or_else(|| Fetched::nothing(offset));
        match fetched.status {
            Status::Ok if !fetched.damaged.is_empty() => {
                Err(Error::other(format!("offset {}: its payload is damaged", fetched.damaged[0])))
            }
            Status::Ok => Ok(fetched),
            status => Err(Error::other(format!("offset {offset}: {status}"))),
        }
    }

    /// Reads several queues of a shard, each from its offset on, in one request.
    pub fn fetch_queues(
        &mut self,
        topic: u32,
        shard: u16,
        queues: &[(u32, u64)],
        wait_ms: u32,
    ) -> Result<BTreeMap<u32, Fetched>> {
        let checked = self.checked;
        let answer = self.call(Opcode::Fetch, shard, &[], |fbb| {
            let queue =
                |(queue, offset): &(u32, u64)| FetchQueue::new(topic, *queue, *offset, 0, 0, 0);
            let queues: Vec<FetchQueue> = queues.iter().map(queue).collect();
            let queues = Some(fbb.create_vector(&queues));
            let max_bytes = 4 << 20;
            let max_records = 100_000;
            let args = FetchArgs {
                wait_ms,
                max_bytes,
                max_records,
                queues,
                checked,
                ..FetchArgs::default()
            };
            Fetch::create(fbb, &args)
        })?;
        if answer.status != Status::Ok {
            return Err(Error::other(format!("{}: {}", answer.status, answer.refusal())));
        }
        let table = frame::read_table::<FetchAnswer<'_>>(&answer.table).map_err(Error::other)?;
        let mut all = BTreeMap::new();
        for fetched in table.queues().unwrap_or_default() {
            let found = Fetched {
                status: Status::from_code(fetched.status()),
                bodies: Vec::new(),
                damaged: Vec::new(),
                places: Vec::new(),
                next: fetched.next_offset(),
                high: fetched.high_watermark(),
                min: fetched.min_offset(),
            };
            all.insert(fetched.queue(), found);
        }
        for found in record::records(&answer.run) {
            let found = found.map_err(Error::other)?;
            found.check_header().map_err(Error::other)?;
            let header = found.header;
            let queue = all.get_mut(&header.queue.get());
            let (Some(queue), true) = (queue, header.topic.get() == topic) else {
                return Err(Error::other("a record of a foreign queue"));
            };
            // The broker does not compare it: that is for the consumer.
            if found.check_payload().is_err() {
                queue.damaged.push(header.offset.get());
                continue;
            }
            let message = found.message().map_err(Error::other)?;
            let body = message.body().map(|b| b.bytes().to_vec()).unwrap_or_default();
            queue.bodies.push((header.offset.get(), body));
            let position = header.position.get();
            queue.places.push(position..position + found.bytes.len() as u64);
        }
        Ok(all)
    }
}

/// The base offset that a produce answer gives.
pub fn base_offset(answer: &Answer) -> Result<u64> {
    let table = frame::read_table::<ProduceAnswer<'_>>(&answer.table).map_err(Error::other)?;
    Ok(table.base_offset())
}

/// A run of messages with these bodies.
pub fn run(topic: u32, queue: u32, bodies: &[Vec<u8>]) -> Vec<u8> {
    let mut builder = RecordBuilder::new();
    let mut out = Vec::new();
    for body in bodies {
        let spec = MessageSpec { body, ..MessageSpec::default() };
        builder.append(&mut out, topic, queue, &spec).expect("within the limits");
    }
    out
}
