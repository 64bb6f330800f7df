//! The least that a broker could do, as a floor: one glommio executor that reads frames, checks their bytes, copies them into
//! blocks, writes the blocks O_DIRECT and answers. No records, queues, index, segments, snapshots or limits.
//!
//! What RingMQ takes beyond it is its own cost; what this takes beyond disk and loopback is the runtime's and the kernel's.

use crate::bed::{Side, stay_on};
use crate::raw::{self, Blocks};
use crate::server::cpu_seconds_of;
use anyhow::{Context as _, anyhow};
use futures_util::io::{AsyncReadExt as _, AsyncWriteExt as _, WriteHalf};
use glommio::io::{DmaBuffer, DmaFile, OpenOptions};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, Placement};
use ringmq_schema::error::Status;
use ringmq_schema::frame::{FLAG_ANSWER, FrameHeader, HEADER_BYTES};
use ringmq_schema::zerocopy::{FromBytes as _, IntoBytes as _};
use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;
use std::task::{Poll, Waker};
use std::thread::JoinHandle;

/// As the broker's.
const READ_BYTES: usize = 256 << 10;
const BLOCK_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;
const WRITES_IN_FLIGHT: usize = 8;
const SMALL_WRITES_IN_FLIGHT: usize = 2;
const SMALL_BYTES: usize = 128 << 10;

/// A running server, for a number of connections.
pub struct Bare {
    pub address: SocketAddr,
    /// Of its thread.
    id: rustix::thread::Pid,
    thread: JoinHandle<anyhow::Result<()>>,
    _folder: tempfile::TempDir,
}

/// What it writes to.
#[derive(Debug, Clone, Copy)]
pub struct Store {
    /// Length of the file; beyond it begins again.
    pub bytes: u64,
    pub blocks: Blocks,
    pub durable: bool,
}

impl Bare {
    /// Starts it with a file in a folder of its own, which goes with it.
    pub fn start(
        folder: tempfile::TempDir,
        connections: usize,
        store: Store,
    ) -> anyhow::Result<Bare> {
        let path = folder.path().join("bare");
        raw::make(&path, store.bytes, store.blocks)?;
        let (listening, address) = mpsc::channel();
        let (started, id) = mpsc::channel();
        let thread = std::thread::Builder::new().name("bare".to_owned()).spawn(move || {
            started.send(rustix::thread::gettid())?;
            stay_on(Side::Broker)?;
            let executor = LocalExecutorBuilder::new(Placement::Unbound)
                .make()
                .map_err(|error| anyhow!("cannot make an executor: {error}"))?;
            executor.run(async move {
                let file = Rc::new(open(&path, store).await?);
                let log = Rc::new(RefCell::new(Log::new(store.bytes)));
                let ended = serve(connections, &listening, &file, &log).await;
                file.close_rc().await.map_err(|error| anyhow!("closing the file: {error}"))?;
                ended
            })
        })?;
        let address = address.recv().context("the bare server did not start")?;
        Ok(Bare { address, id: id.recv()?, thread, _folder: folder })
    }

    /// CPU seconds that it used so far.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds_of(&format!("/proc/self/task/{}/stat", self.id))
    }

    /// Waits until all its connections are closed.
    pub fn finish(self) -> anyhow::Result<()> {
        self.thread.join().ok().context("the bare server panicked")?
    }
}

async fn open(path: &Path, store: Store) -> anyhow::Result<DmaFile> {
    raw::judge_by_written_file(path).await?;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if store.durable {
        options.custom_flags(libc::O_DSYNC);
    }
    options.dma_open(path).await.map_err(|error| anyhow!("opening the file: {error}"))
}

/// Where answers to a connection go.
struct Answers {
    out: RefCell<Vec<u8>>,
    /// Not there while somebody writes.
    writer: RefCell<Option<WriteHalf<TcpStream>>>,
}

/// Answers that wait for a block: to whom, and to which request.
type Waiting = Vec<(Rc<Answers>, u64)>;

struct Log {
    block: Option<DmaBuffer>,
    filled: usize,
    waiting: Waiting,
    spare: Vec<Rc<DmaBuffer>>,
    in_flight: usize,
    /// Connections that wait for room.
    held_up: Vec<Waker>,
    position: u64,
    end: u64,
}

impl Log {
    fn new(end: u64) -> Log {
        let (waiting, spare, held_up) = (Vec::new(), Vec::new(), Vec::new());
        Log { block: None, filled: 0, waiting, spare, in_flight: 0, held_up, position: 0, end }
    }

    /// Takes bytes that fit, with the answers they ask for; how many bytes.
    fn append(&mut self, bytes: &[u8]) -> usize {
        let spare = &mut self.spare;
        let block = self.block.get_or_insert_with(|| {
            let used = spare.pop().and_then(|block| Rc::try_unwrap(block).ok());
            used.unwrap_or_else(|| glommio::allocate_dma_buffer_global(BLOCK_BYTES))
        });
        let now = bytes.len().min(BLOCK_BYTES - self.filled);
        block.as_bytes_mut()[self.filled..self.filled + now].copy_from_slice(&bytes[..now]);
        self.filled += now;
        now
    }

    fn may_write(&self) -> bool {
        let most =
            if self.filled < SMALL_BYTES { SMALL_WRITES_IN_FLIGHT } else { WRITES_IN_FLIGHT };
        self.filled > 0 && self.in_flight < most
    }

    /// The block that is to be written, where, and who waits for it.
    fn take(&mut self) -> (Rc<DmaBuffer>, u64, Waiting) {
        let mut block = self.block.take().unwrap_or_else(|| unreachable!("something is in it"));
        let bytes = self.filled.next_multiple_of(PAGE_BYTES);
        if bytes < BLOCK_BYTES {
            // A write takes the whole buffer, and one that was trimmed does not grow again.
            let mut short = glommio::allocate_dma_buffer_global(bytes);
            short.as_bytes_mut()[..self.filled].copy_from_slice(&block.as_bytes()[..self.filled]);
            std::mem::swap(&mut short, &mut block);
            self.spare.push(Rc::new(short));
        }
        if self.position + bytes as u64 > self.end {
            self.position = 0;
        }
        let at = self.position;
        self.position += bytes as u64;
        self.filled = 0;
        self.in_flight += 1;
        (Rc::new(block), at, std::mem::take(&mut self.waiting))
    }
}

/// Writes what there is while it may.
fn pump(file: &Rc<DmaFile>, log: &Rc<RefCell<Log>>) {
    while log.borrow().may_write() {
        let (block, at, waiting) = log.borrow_mut().take();
        let (file, log) = (Rc::clone(file), Rc::clone(log));
        glommio::spawn_local(async move {
            // A bench has nobody to tell but who runs it.
            file.write_rc_at(Rc::clone(&block), at).await.expect("writing");
            answer(&waiting).await.expect("answering");
            {
                let mut log = log.borrow_mut();
                log.in_flight -= 1;
                if block.len() == BLOCK_BYTES {
                    log.spare.push(block);
                }
            }
            pump(&file, &log);
            log.borrow_mut().held_up.drain(..).for_each(Waker::wake);
        })
        .detach();
    }
}

/// Answers in one write to each that waits.
async fn answer(waiting: &Waiting) -> std::io::Result<()> {
    for (at, (answers, correlation)) in waiting.iter().enumerate() {
        let header = FrameHeader::new(0, FLAG_ANSWER, 0, Status::Ok, *correlation, 0, 0);
        answers.out.borrow_mut().extend_from_slice(header.as_bytes());
        if waiting.get(at + 1).is_some_and(|(next, _)| Rc::ptr_eq(next, answers)) {
            continue;
        }
        let Some(mut writer) = answers.writer.take() else { continue };
        loop {
            let bytes = answers.out.take();
            if bytes.is_empty() {
                break;
            }
            writer.write_all(&bytes).await?;
        }
        answers.writer.replace(Some(writer));
    }
    Ok(())
}

async fn serve(
    connections: usize,
    listening: &mpsc::Sender<SocketAddr>,
    file: &Rc<DmaFile>,
    log: &Rc<RefCell<Log>>,
) -> anyhow::Result<()> {
    let failed = |error| anyhow!("the bare server: {error}");
    let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
    listening.send(listener.local_addr().map_err(failed)?)?;
    let mut tasks = Vec::new();
    for _ in 0..connections {
        let stream = listener.accept().await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        tasks.push(glommio::spawn_local(take(stream, Rc::clone(file), Rc::clone(log))));
    }
    for task in tasks {
        task.await?;
    }
    Ok(())
}

/// Reads a connection until it is closed.
async fn take(stream: TcpStream, file: Rc<DmaFile>, log: Rc<RefCell<Log>>) -> anyhow::Result<()> {
    let (mut stream, writer) = stream.split();
    let answers = Rc::new(Answers { out: RefCell::default(), writer: RefCell::new(Some(writer)) });
    let mut buffer = vec![0; READ_BYTES];
    // Bytes until the next frame begins, and a header that came in parts.
    let (mut left, mut head, mut correlation) = (0, Vec::new(), 0);
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        let mut bytes = &buffer[..count];
        std::hint::black_box(crc32fast::hash(bytes));
        while !bytes.is_empty() {
            if left == 0 {
                let now = bytes.len().min(HEADER_BYTES - head.len());
                head.extend_from_slice(&bytes[..now]);
                bytes = &bytes[now..];
                if head.len() == HEADER_BYTES {
                    let header = FrameHeader::read_from_bytes(&head).ok().context("a header")?;
                    left = header.length.get() as usize - HEADER_BYTES;
                    correlation = header.correlation.get();
                    head.clear();
                }
                continue;
            }
            let now = log.borrow_mut().append(&bytes[..bytes.len().min(left)]);
            left -= now;
            bytes = &bytes[now..];
            if left == 0 {
                log.borrow_mut().waiting.push((Rc::clone(&answers), correlation));
            }
            while log.borrow().filled == BLOCK_BYTES {
                pump(&file, &log);
                // As many are in flight as may be: until one ends.
                poll_fn(|context| {
                    let mut log = log.borrow_mut();
                    if log.filled < BLOCK_BYTES {
                        return Poll::Ready(());
                    }
                    log.held_up.push(context.waker().clone());
                    Poll::Pending
                })
                .await;
            }
        }
        pump(&file, &log);
    }
}
