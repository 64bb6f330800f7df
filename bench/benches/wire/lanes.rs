//! Many connections from one thread: frames that were made before go out, answers are counted.

use crate::wire::Wire;
use anyhow::{Context as _, bail};
use ringmq_bench::record::Latencies;
use ringmq_schema::frame::{FrameHeader, HEADER_BYTES};
use ringmq_schema::zerocopy::FromBytes as _;
use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::sync::Notify;

const BUFFER_BYTES: usize = 256 << 10;
/// Of each connection of many; a frame may come in parts.
const SMALL_BUFFER_BYTES: usize = 16 << 10;
/// Until the last answer of an open loop.
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

/// Frames when they are due, on the connections in turn: a `LocalSet` reads the answers, a thread of its own writes.
/// `frame` makes each from its number, which is its correlation id. Latency counts from when each was due. Also how many
/// a second were answered.
pub async fn open_loop(
    streams: Vec<TcpStream>,
    rate: u64,
    duration: Duration,
    mut frame: impl FnMut(u64) -> Vec<u8> + Send + 'static,
) -> anyhow::Result<(Latencies, f64)> {
    let total = rate * duration.as_millis() as u64 / 1000;
    // Every reader is there before the first is due.
    let begun = Instant::now() + Duration::from_millis(200);
    let due = move |number: u64| begun + Duration::from_nanos(number * 1_000_000_000 / rate);
    let latencies = Rc::new(RefCell::new(Latencies::default()));
    let answered = Rc::new(Cell::new(0));
    let last = Rc::new(Notify::new());
    let mut tasks = Vec::new();
    for stream in &streams {
        stream.set_nonblocking(true)?;
        let reader = tokio::net::TcpStream::from_std(stream.try_clone()?)?;
        let (latencies, answered, last) = (latencies.clone(), answered.clone(), last.clone());
        tasks.push(tokio::task::spawn_local(async move {
            let mut answers = Answers::new(SMALL_BUFFER_BYTES);
            loop {
                reader.readable().await?;
                let bytes = match reader.try_read(answers.room()) {
                    Ok(bytes) => bytes,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    Err(error) => return anyhow::Result::<()>::Err(error.into()),
                };
                let at = Instant::now();
                let came = answers.came(bytes, |number| {
                    let late = at.saturating_duration_since(due(number)).as_nanos() as u64;
                    latencies.borrow_mut().add(late, 1);
                })?;
                answered.set(answered.get() + came);
                if answered.get() == total {
                    last.notify_one();
                }
            }
        }));
    }
    let sender = std::thread::spawn(move || -> anyhow::Result<()> {
        // Sleeping is 50 us coarser otherwise.
        rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
        for number in 0..total {
            std::thread::sleep(due(number).saturating_duration_since(Instant::now()));
            let frame = frame(number);
            let mut stream = &streams[number as usize % streams.len()];
            let mut unsent = frame.as_slice();
            while !unsent.is_empty() {
                match stream.write(unsent) {
                    Ok(bytes) => unsent = &unsent[bytes..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    });
    let is_whole = tokio::time::timeout(PATIENCE, last.notified()).await;
    is_whole.with_context(|| format!("{} of {total} were answered", answered.get()))?;
    let rate = total as f64 / begun.elapsed().as_secs_f64();
    sender.join().ok().context("the sender panicked")??;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    Ok((latencies.take(), rate))
}
