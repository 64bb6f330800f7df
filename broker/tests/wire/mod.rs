//! A blocking client of a few lines, which shares only the schema with the broker, and broker processes.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use ringmq_schema::admin::{CreateTopic, CreateTopicArgs, Topic, TopicAnswer, TopicArgs};
use ringmq_schema::build::{FrameBuilder, MessageSpec, RecordBuilder};
use ringmq_schema::connection::{Hello, HelloArgs, Refusal};
use ringmq_schema::consume::{Fetch, FetchAnswer, FetchArgs, FetchQueue};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringmq_schema::frame::{self, ANY_SHARD, Frame, HEADER_BYTES};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::produce::{Produce, ProduceAnswer, ProduceArgs};
use ringmq_schema::record;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// An answer, whole.
pub struct Answer(Vec<u8>);

impl Answer {
    pub fn frame(&self) -> Frame<'_> {
        frame::parse(&self.0, u32::MAX).unwrap().unwrap()
    }

    pub fn status(&self) -> Status {
        self.frame().header.status()
    }

    pub fn refusal(&self) -> String {
        let frame = self.frame();
        let refusal = frame::read_table::<Refusal<'_>>(frame.table).unwrap();
        format!("{}: {}", self.status(), refusal.message().unwrap_or_default())
    }

    pub fn ok(self) -> Answer {
        assert_eq!(self.status(), Status::Ok, "{}", self.refusal());
        self
    }
}

/// A connection.
pub struct Wire {
    pub stream: TcpStream,
    frames: FrameBuilder,
    next: u64,
}

impl Wire {
    /// Connects without a word.
    pub fn silent(address: &str) -> Wire {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Wire { stream, frames: FrameBuilder::new(), next: 1 }
    }

    /// Connects and says `Hello` for a shard.
    pub fn connect(address: &str, shard: u16) -> Wire {
        let mut wire = Wire::silent(address);
        wire.hello(shard).ok();
        wire
    }

    pub fn hello(&mut self, shard: u16) -> Answer {
        self.request(Opcode::Hello, ANY_SHARD, &[], |fbb| {
            let client = Some(fbb.create_string("test"));
            Hello::create(fbb, &HelloArgs { version: 1, shard, client, ..Default::default() })
        })
    }

    /// Sends a request and waits for its answer.
    pub fn request<T>(
        &mut self,
        opcode: Opcode,
        shard: u16,
        run: &[u8],
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> Answer {
        let sent = self.send(opcode, shard, run, build);
        let answer = self.receive().expect("the broker answers");
        assert_eq!(answer.frame().header.correlation.get(), sent);
        answer
    }

    /// Sends a request; its correlation.
    pub fn send<T>(
        &mut self,
        opcode: Opcode,
        shard: u16,
        run: &[u8],
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> u64 {
        let mut out = Vec::new();
        let correlation = self.next;
        self.next += 1;
        self.frames.request(&mut out, opcode, shard, correlation, run, build);
        self.stream.write_all(&out).unwrap();
        correlation
    }

    /// The next frame; `None` when the connection has ended.
    pub fn receive(&mut self) -> Option<Answer> {
        let mut bytes = vec![0; HEADER_BYTES];
        self.stream.read_exact(&mut bytes).ok()?;
        let header = frame::parse_header(&bytes, u32::MAX).unwrap().unwrap();
        bytes.resize(header.length.get() as usize, 0);
        self.stream.read_exact(&mut bytes[HEADER_BYTES..]).ok()?;
        Some(Answer(bytes))
    }

    /// Whether the broker closes the connection.
    pub fn is_closed(&mut self) -> bool {
        self.receive().is_none()
    }

    /// Makes a topic; its id.
    pub fn create_topic(&mut self, name: &str, queues: u32) -> u32 {
        let answer = self.request(Opcode::CreateTopic, ANY_SHARD, &[], |fbb| {
            let name = Some(fbb.create_string(name));
            let (read_queues, write_queues) = (queues, queues);
            let args = TopicArgs { name, read_queues, write_queues, ..TopicArgs::default() };
            let topic = Some(Topic::create(fbb, &args));
            CreateTopic::create(fbb, &CreateTopicArgs { topic })
        });
        let answer = answer.ok();
        let table = frame::read_table::<TopicAnswer<'_>>(answer.frame().table).unwrap();
        table.topic().unwrap().id()
    }

    /// Sends a batch to a queue; the offset of its first message, or the refusal.
    pub fn produce(
        &mut self,
        topic: u32,
        queue: u32,
        shard: u16,
        bodies: &[&[u8]],
    ) -> Result<u64, String> {
        let run = run(topic, queue, bodies);
        let records = bodies.len() as u32;
        let answer = self.request(Opcode::Produce, shard, &run, |fbb| {
            Produce::create(fbb, &ProduceArgs { topic, queue, records, ..Default::default() })
        });
        if answer.status() != Status::Ok {
            return Err(answer.refusal());
        }
        let table = frame::read_table::<ProduceAnswer<'_>>(answer.frame().table).unwrap();
        Ok(table.base_offset())
    }

    /// Bodies of a queue from an offset on, as many as one answer has.
    pub fn fetch(&mut self, topic: u32, queue: u32, shard: u16, offset: u64) -> Vec<Vec<u8>> {
        let answer = self.request(Opcode::Fetch, shard, &[], |fbb| {
            let queues = fbb.create_vector(&[FetchQueue::new(topic, queue, offset, 0, 0, 0)]);
            let args = FetchArgs {
                queues: Some(queues),
                wait_ms: 500,
                max_bytes: 1 << 20,
                max_records: 10_000,
                ..FetchArgs::default()
            };
            Fetch::create(fbb, &args)
        });
        let answer = answer.ok();
        frame::read_table::<FetchAnswer<'_>>(answer.frame().table).unwrap();
        let records = record::records(answer.frame().run);
        let body = |record: Result<_, _>| {
            let record: record::RecordRef<'_> = record.unwrap();
            record.check_payload().unwrap();
            record.message().unwrap().body().unwrap().bytes().to_vec()
        };
        records.map(body).collect()
    }
}

/// Records with these bodies.
pub fn run(topic: u32, queue: u32, bodies: &[&[u8]]) -> Vec<u8> {
    let (mut run, mut builder) = (Vec::new(), RecordBuilder::new());
    for body in bodies {
        let spec = MessageSpec { body, ..MessageSpec::default() };
        builder.append(&mut run, topic, queue, &spec).unwrap();
    }
    run
}

/// A broker process; killed when dropped.
pub struct Process {
    child: Child,
    pub address: String,
    pub ready: String,
}

impl Process {
    /// A folder for data on a disk, removed when dropped.
    pub fn folder() -> tempfile::TempDir {
        tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
    }

    pub fn command(data: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringmq-broker"));
        command.env_clear().arg("--data-dir").arg(data);
        // By the environment, so that tests may say otherwise by flags.
        let settings = [
            ("PORT", "0"),
            ("HTTP_LISTEN", "off"),
            ("SEGMENT_BYTES", "8 MiB"),
            ("DISK_FREE_BYTES", "0"),
        ];
        for (name, value) in settings {
            command.env(format!("RINGMQ_{name}"), value);
        }
        command.stdout(Stdio::piped());
        command
    }

    /// Starts a broker and waits until it is ready.
    pub fn start(data: &Path, more: &[&str]) -> Process {
        let mut command = Process::command(data);
        command.args(more);
        Process::run(command)
    }

    /// Runs a command that is a broker, until it is ready.
    pub fn run(mut command: Command) -> Process {
        let mut child = command.spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let address = ready.split_whitespace().find_map(|word| word.strip_prefix("listen="));
        let address = address.expect("a ready line with the address").to_owned();
        Process { child, address, ready }
    }

    /// CPU that it used so far, in hundredths of a second.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it without a warning.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end; its exit code.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where a broker's data is in these tests.
pub fn data(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("data")
}
