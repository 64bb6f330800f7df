//! Append latency beside a consumer that catches up at full speed, and without, slice by slice.
//!
//! The append load is an open loop: latency counts from when a message was due. A third kind of slice has a
//! bare `sendfile` of the same files beside the appends: what disk and CPUs alone do to them, with no broker
//! between the reader and the files.

use crate::cold;
use crate::fill::{self, Run};
use crate::linux::Place;
use crate::server::{self, Server};
use crate::wire::{Wire, fill_queues, read_all};
use anyhow::{Context as _, bail};
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use ringmq_bench::record::Latencies;
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::connection::{Hello, HelloArgs};
use ringmq_schema::frame::{self, ANY_SHARD, FrameHeader, HEADER_BYTES};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::produce::Flush;
use ringmq_schema::zerocopy::FromBytes as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// MiB that the consumer has to catch up with
    #[arg(long, default_value_t = 2048)]
    mib: u64,
    /// Slices of each kind
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds of a slice
    #[arg(long, default_value_t = 2000)]
    slice_ms: u64,
    /// Messages a second
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Flags for the broker
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    broker: Vec<String>,
}

const KINDS: [&str; 3] = ["alone", "beside a consumer", "beside bare sendfile"];

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("beside");
    let folder = options.place.folder()?;
    let data = folder.path().join("data");
    let mut start = server::Options::new(&data);
    start.flags.clone_from(&options.broker);
    let broker = start.start()?;
    let mut wire = Wire::connect(broker.address("listen")?)?;
    let old = wire.create_topic("old", 1)?;
    let new = wire.create_topic("new", 1)?;
    let batch = fill::run_of((old, 0), 100, 1024, |_| None);
    let batches = (options.mib << 20) / batch.bytes.len() as u64;
    fill_queues(&mut wire, &[(old, 0, batch)], batches, 64, Flush::Default)?;
    drop(wire);
    broker.stop()?;
    let broker = start.start()?;

    let message = fill::run_of((new, 0), 1, options.body, |_| None);
    let slice = Duration::from_millis(options.slice_ms);
    let mut latencies: [Latencies; 3] = Default::default();
    let mut rates = [const { Vec::new() }; 3];
    append(&broker, (new, 0), &message, options.rate, slice, &mut Latencies::default())?;
    for _ in 0..options.rounds {
        for kind in 0..KINDS.len() {
            cold::make(&data)?;
            let load =
                Load { kind, topic: old, records: batches * 100, until: Instant::now() + slice };
            let rate = std::thread::scope(|scope| {
                let reader = scope.spawn(|| read_until(&broker, &data, load));
                append(&broker, (new, 0), &message, options.rate, slice, &mut latencies[kind])?;
                reader.join().ok().context("the reader panicked")?
            })?;
            rates[kind].push(rate / 1e9);
        }
    }
    broker.stop()?;
    for (percent, name) in [(50.0, "p50"), (99.0, "p99"), (99.9, "p99.9")] {
        let at = |kind: usize| latencies[kind].at_ns(percent) as f64 / 1e3;
        let goal = if percent == 99.9 { Goal::AtMost(2.0) } else { Goal::Shown };
        outcome.ratio(format!("{name} {}", KINDS[1]), "us", (at(1), at(0)), goal);
        outcome.ratio(format!("{name} {}", KINDS[2]), "us", (at(2), at(0)), Goal::Shown);
    }
    for kind in [1, 2] {
        let what = format!("read meanwhile, {}", KINDS[kind]);
        outcome.figure(&what, "GB/s", median(&rates[kind]), Goal::Shown);
        outcome.note(rounds(&what, &rates[kind]));
    }
    Ok(outcome)
}

#[derive(Debug, Clone, Copy)]
struct Load {
    kind: usize,
    topic: u32,
    records: u64,
    until: Instant,
}

/// Reads at full speed until the slice is over; bytes a second.
fn read_until(broker: &Server, data: &Path, load: Load) -> anyhow::Result<f64> {
    let (begun, mut bytes) = (Instant::now(), 0.0);
    while load.kind != 0 && Instant::now() < load.until {
        match load.kind {
            1 => {
                let mut wire = Wire::connect(broker.address("listen")?)?;
                wire.until = Some(load.until);
                let read = read_all(&mut wire, load.topic, 1, load.records, 4 << 20)?;
                bytes += read.bytes as f64;
            }
            _ => {
                for file in cold::files(data, ".log")? {
                    if Instant::now() < load.until {
                        let length = std::fs::metadata(&file)?.len();
                        cold::send_files(&[file], length)?;
                        bytes += length as f64;
                    }
                }
            }
        }
        if Instant::now() < load.until {
            cold::make(data)?;
        }
    }
    Ok(bytes / begun.elapsed().as_secs_f64().max(1e-9))
}

/// Sends single durable messages when they are due, and notes how late each was acknowledged.
fn append(
    broker: &Server,
    target: (u32, u32),
    message: &Run,
    rate: u64,
    duration: Duration,
    latencies: &mut Latencies,
) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(broker.address("listen")?)?;
    stream.set_nodelay(true)?;
    let mut hello = Vec::new();
    FrameBuilder::new().request(&mut hello, Opcode::Hello, ANY_SHARD, u64::MAX, &[], |fbb| {
        let client = Some(fbb.create_string("ringmq-bench"));
        let version = u16::from(frame::VERSION);
        Hello::create(fbb, &HelloArgs { version, shard: 0, client, ..HelloArgs::default() })
    });
    stream.write_all(&hello)?;
    let total = rate * duration.as_millis() as u64 / 1000;
    let begun = Instant::now();
    let due = move |number: u64| begun + Duration::from_nanos(number * 1_000_000_000 / rate);
    let mut answers = stream.try_clone()?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || -> anyhow::Result<Latencies> {
            let (mut latencies, mut count) = (Latencies::default(), 0);
            let mut head = [0; HEADER_BYTES];
            let mut rest = Vec::new();
            while count < total {
                answers.read_exact(&mut head)?;
                let at = Instant::now();
                let header = FrameHeader::read_from_bytes(&head).ok().context("a header")?;
                rest.resize(header.length.get() as usize - HEADER_BYTES, 0);
                answers.read_exact(&mut rest)?;
                if header.status.get() != 0 {
                    bail!("a message was refused: {}", header.status());
                }
                let number = header.correlation.get();
                if number < total {
                    let late = at.saturating_duration_since(due(number));
                    latencies.add(late.as_nanos() as u64, 1);
                    count += 1;
                }
            }
            Ok(latencies)
        });
        for number in 0..total {
            let wait = due(number).saturating_duration_since(Instant::now());
            if !wait.is_zero() {
                std::thread::sleep(wait);
            }
            let frame = fill::produce_frame(target, message, Flush::Sync, number);
            stream.write_all(&frame)?;
        }
        latencies.merge(&receiver.join().ok().context("the receiver panicked")??);
        Ok(())
    })
}
