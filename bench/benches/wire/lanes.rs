//! Many connections from one thread: frames that were made before go out, answers are counted.

use crate::wire::Wire;
use anyhow::{Context as _, bail};
use ringmq_bench::record::Latencies;
use ringmq_schema::frame::{FrameHeader, HEADER_BYTES};
use ringmq_schema::zerocopy::FromBytes as _;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tokio::io::Interest;

const BUFFER_BYTES: usize = 256 << 10;
/// Of each connection of many; a frame may come in parts.
const SMALL_BUFFER_BYTES: usize = 16 << 10;
/// Looked at together.
const EVENTS: usize = 256;
/// From when the last frame of an open loop was due to its answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Finds the ends of answers in what comes.
#[derive(Debug)]
pub struct Answers {
    buffer: Vec<u8>,
    filled: usize,
}

impl Answers {
    pub fn new(bytes: usize) -> Answers {
        Answers { buffer: vec![0; bytes], filled: 0 }
    }

    /// Room for what comes next.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.filled..]
    }

    /// So many bytes came: calls `each` with the correlation id of every frame that is whole; how many were.
    pub fn came(&mut self, bytes: usize, mut each: impl FnMut(u64)) -> anyhow::Result<u64> {
        if bytes == 0 {
            bail!("the server closed the connection");
        }
        self.filled += bytes;
        let (mut at, mut count) = (0, 0);
        while let Some(head) = self.buffer[at..self.filled].get(..HEADER_BYTES) {
            let header = FrameHeader::read_from_bytes(head).ok().context("a header")?;
            let length = header.length.get() as usize;
            if self.filled - at < length {
                break;
            }
            if header.status.get() != 0 {
                bail!("refused: {}", header.status());
            }
            each(header.correlation.get());
            at += length;
            count += 1;
        }
        self.buffer.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(count)
    }
}

/// One of the connections.
#[derive(Debug)]
pub struct Lane {
    stream: tokio::net::TcpStream,
    answers: Answers,
}

impl Lane {
    /// To a broker.
    pub fn greet(address: SocketAddr) -> anyhow::Result<Lane> {
        Lane::over(Wire::connect(address)?.stream)
    }

    /// To who wants no greeting.
    pub fn bare(address: SocketAddr) -> anyhow::Result<Lane> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Lane::over(stream)
    }

    fn over(stream: TcpStream) -> anyhow::Result<Lane> {
        stream.set_nonblocking(true)?;
        let stream = tokio::net::TcpStream::from_std(stream)?;
        Ok(Lane { stream, answers: Answers::new(BUFFER_BYTES) })
    }

    /// Keeps all of `frames`, which are equally long, on their way until `until`, and waits for the last. Returns how many
    /// were answered.
    pub async fn closed_loop(
        &mut self,
        frames: &[u8],
        frame_bytes: usize,
        until: Instant,
    ) -> anyhow::Result<u64> {
        let window = (frames.len() / frame_bytes) as u64;
        // Frames begin where a round of the window begins; the position goes round in it.
        let (mut started, mut answered, mut at) = (window, 0, 0usize);
        let mut unsent = frames.len();
        while answered < started {
            while unsent > 0 {
                let end = frames.len().min(at + unsent);
                match self.stream.try_write(&frames[at..end]) {
                    Ok(bytes) => {
                        unsent -= bytes;
                        at = (at + bytes) % frames.len();
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
            let writable = if unsent > 0 { Interest::WRITABLE } else { Interest::READABLE };
            self.stream.ready(Interest::READABLE.add(writable)).await?;
            match self.stream.try_read(self.answers.room()) {
                Ok(bytes) => {
                    let came = self.answers.came(bytes, |_| ())?;
                    answered += came;
                    if Instant::now() < until {
                        started += came;
                        unsent += came as usize * frame_bytes;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(answered)
    }
}

/// Frames when they are due, on the connections in turn. `frame` makes each from its number, which is its correlation id.
/// Latency counts from when each was due. Also how many a second were answered.
///
/// One thread writes and reads, and does not sleep: on a CPU of its own the generator then adds no wake-up to what it measures.
pub fn open_loop(
    streams: &[TcpStream],
    rate: u64,
    duration: Duration,
    mut frame: impl FnMut(u64) -> Vec<u8>,
) -> anyhow::Result<(Latencies, f64)> {
    let total = rate * duration.as_millis() as u64 / 1000;
    let readable = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut lanes = Vec::new();
    for (number, stream) in (0..).zip(streams) {
        stream.set_nonblocking(true)?;
        epoll::add(&readable, stream, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?;
        let answers = Answers::new(SMALL_BUFFER_BYTES);
        lanes.push(Open { stream, answers, unsent: Vec::new(), written: 0 });
    }
    let mut latencies = Latencies::default();
    let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS);
    let begun = Instant::now();
    let due = |number: u64| begun + Duration::from_nanos(number * 1_000_000_000 / rate);
    let (mut sent, mut answered) = (0, 0);
    while answered < total {
        let now = Instant::now();
        while sent < total && due(sent) <= now {
            let lane = &mut lanes[sent as usize % streams.len()];
            lane.unsent.extend_from_slice(&frame(sent));
            lane.write()?;
            sent += 1;
        }
        events.clear();
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(&readable, spare_capacity(&mut events), Some(&none))?;
        for event in &events {
            let lane = &mut lanes[event.data.u64() as usize];
            // What an answer took is over; a full socket has room by now.
            answered += lane.read(|number| {
                let late = Instant::now().saturating_duration_since(due(number));
                latencies.add(late.as_nanos() as u64, 1);
            })?;
            lane.write()?;
        }
        if events.is_empty() {
            std::thread::yield_now();
        }
        let is_late = now > due(total) + PATIENCE;
        anyhow::ensure!(!is_late, "{answered} of {total} were answered");
    }
    Ok((latencies, total as f64 / begun.elapsed().as_secs_f64()))
}

/// A connection of an open loop.
struct Open<'a> {
    stream: &'a TcpStream,
    answers: Answers,
    unsent: Vec<u8>,
    /// Of them at the front are written already: moving the rest each time would cost more than sending it.
    written: usize,
}

impl Open<'_> {
    /// Writes what the socket takes.
    fn write(&mut self) -> anyhow::Result<()> {
        while self.written < self.unsent.len() {
            match self.stream.write(&self.unsent[self.written..]) {
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        if 2 * self.written >= self.unsent.len() {
            self.unsent.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }

    /// Reads what is there; how many answers that were.
    fn read(&mut self, each: impl FnMut(u64)) -> anyhow::Result<u64> {
        match self.stream.read(self.answers.room()) {
            Ok(bytes) => self.answers.came(bytes, each),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}
