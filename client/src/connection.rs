//! One TCP connection to a server.
//!
//! Requests are pipelined; answers find their requester by correlation id, in any order. What can be
//! written at once is written by the requester itself, without another task's wake-up; the rest is left to
//! the connection's writer. The reader hands out every frame that one read brought, as slices of it.
//!
//! Invariants:
//! - bytes of frames leave in the order in which the frames were started;
//! - every waiter is called exactly once: with its answer, or with the error that closed the connection;
//! - waiters are never called with the state locked.

use crate::error::{Error, ErrorKind, Result};
use bytes::{Buf, Bytes, BytesMut};
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::connection::{Hello, HelloAnswer, HelloArgs, Ping, PingArgs};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, Follow, Verifiable, WIPOffset};
use ringmq_schema::frame::{self, ANY_SHARD, FLAG_ONE_WAY, HEADER_BYTES};
use ringmq_schema::limits;
use ringmq_schema::opcode::Opcode;
use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// Room made for a read: many small answers, or a good part of a fetch.
const READ_BYTES: usize = 256 << 10;
/// Less spare room than this is not worth a read.
const READ_BYTES_MIN: usize = 16 << 10;
/// A connection on which nothing came for so long is pinged, and closed when nothing comes again. Servers
/// close idle connections after 120 s.
const IDLE: Duration = Duration::from_secs(20);
/// Longest frame taken from a server: a full fetch, or a route table of very many topics.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// Called once with the answer.
pub(crate) type Done = Box<dyn FnOnce(Result<Answer>) + Send>;

/// A table under construction.
pub(crate) type Tables = FlatBufferBuilder<'static>;

/// What is asked, and of which shard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) opcode: Opcode,
    pub(crate) shard: u16,
    pub(crate) one_way: bool,
    /// For errors: what the user was doing.
    pub(crate) operation: &'static str,
}

impl Request {
    pub(crate) fn new(opcode: Opcode, operation: &'static str) -> Request {
        Request { opcode, shard: ANY_SHARD, one_way: false, operation }
    }

    pub(crate) fn shard(mut self, shard: u16) -> Request {
        self.shard = shard;
        self
    }
}

/// An answer, or a frame that the server sent by itself.
#[derive(Debug)]
pub(crate) struct Answer {
    frame: Bytes,
    table: Range<usize>,
}

impl Answer {
    /// As it comes from a server: a table, and records.
    #[cfg(test)]
    pub(crate) fn of(table: &[u8], run: &[u8]) -> Answer {
        let padding = vec![0; frame::padded(table.len()) - table.len()];
        let frame = [&[0; HEADER_BYTES], table, &padding, run].concat().into();
        Answer { frame, table: HEADER_BYTES..HEADER_BYTES + table.len() }
    }

    /// Its table, verified.
    pub(crate) fn read<'a, T>(&'a self, operation: &'static str) -> Result<T::Inner>
    where
        T: Follow<'a> + Verifiable + 'a,
    {
        let table = &self.frame[self.table.clone()];
        frame::read_large_table::<T>(table).map_err(|error| Error::protocol(operation, error))
    }

    /// The records behind the table.
    pub(crate) fn run(&self) -> Bytes {
        self.frame.slice(HEADER_BYTES + frame::padded(self.table.len())..)
    }
}

/// What the server said of itself.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) broker: String,
}

/// How a connection is opened.
#[derive(Debug, Clone)]
pub(crate) struct Opening {
    pub(crate) shard: u16,
    pub(crate) client: String,
    pub(crate) limit: Duration,
    /// Where frames go that the server sends by itself.
    pub(crate) pushes: Option<mpsc::Sender<Answer>>,
}

/// See the module.
pub(crate) struct Connection {
    stream: TcpStream,
    address: Arc<str>,
    state: Mutex<State>,
    /// Wakes the writer: something waits to be written, or writing failed.
    unwritten: Notify,
    closed: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    frames: FrameBuilder,
    head: Vec<u8>,
    out: VecDeque<Bytes>,
    out_bytes: usize,
    waiters: HashMap<u64, (&'static str, Done)>,
    correlation: u64,
    /// Writing failed; the writer closes.
    broken: Option<Error>,
    closed: Option<Error>,
}

impl Connection {
    /// Connects and says hello.
    pub(crate) async fn open(address: Arc<str>, opening: Opening) -> Result<Arc<Connection>> {
        let limit = opening.limit;
        let opened =
            tokio::time::timeout(limit, Connection::open_now(Arc::clone(&address), opening));
        match opened.await {
            Ok(connection) => connection,
            Err(cause) => {
                let text = format!("nobody answered within {limit:?}");
                Err(Error::new(ErrorKind::Unreachable, "connect", text)
                    .on(&*address)
                    .because(cause))
            }
        }
    }

    async fn open_now(address: Arc<str>, opening: Opening) -> Result<Arc<Connection>> {
        let stream = TcpStream::connect(&*address).await.map_err(|cause| {
            Error::new(ErrorKind::Unreachable, "connect", format!("{cause}"))
                .on(&*address)
                .because(cause)
        })?;
        stream.set_nodelay(true).map_err(|cause| broken("connect", &address, cause))?;
        // A peer that vanished would otherwise stay ESTABLISHED for hours.
        #[cfg(target_os = "linux")]
        socket2::SockRef::from(&stream)
            .set_tcp_user_timeout(Some(IDLE))
            .map_err(|cause| broken("connect", &address, cause))?;
        let connection = Arc::new(Connection {
            stream,
            address,
            state: Mutex::default(),
            unwritten: Notify::new(),
            closed: watch::Sender::new(false),
        });
        tokio::spawn(Arc::clone(&connection).read_frames(opening.pushes));
        tokio::spawn(Arc::clone(&connection).write_frames());
        let guard = CloseUnlessKept(Some(&connection));
        let server = connection.hello(opening.shard, &opening.client).await?;
        guard.keep();
        tracing::debug!(address = %connection.address, broker = server.broker, "connected");
        Ok(connection)
    }

    async fn hello(&self, shard: u16, client: &str) -> Result<Server> {
        let request = Request::new(Opcode::Hello, "connect");
        let answer = self
            .call_unlimited(request, &Bytes::new(), |fbb| {
                let client = Some(fbb.create_string(client));
                let version = u16::from(frame::VERSION);
                Hello::create(fbb, &HelloArgs { version, shard, client, ..HelloArgs::default() })
            })
            .await?;
        let hello = answer.read::<HelloAnswer<'_>>("connect")?;
        Ok(Server { broker: hello.broker().unwrap_or_default().to_owned() })
    }

    /// Sends a request and waits for its answer, at most `limit`.
    pub(crate) async fn call<T>(
        &self,
        request: Request,
        limit: Duration,
        build: impl FnOnce(&mut Tables) -> WIPOffset<T>,
    ) -> Result<Answer> {
        self.call_with_run(request, limit, &Bytes::new(), build).await
    }

    /// Like [`Connection::call`], with a run of records behind the table.
    pub(crate) async fn call_with_run<T>(
        &self,
        request: Request,
        limit: Duration,
        run: &Bytes,
        build: impl FnOnce(&mut Tables) -> WIPOffset<T>,
    ) -> Result<Answer> {
        match tokio::time::timeout(limit, self.call_unlimited(request, run, build)).await {
            Ok(answer) => answer,
            Err(cause) => {
                let text = format!("no answer within {limit:?}");
                let error = Error::new(ErrorKind::Unknown, request.operation, text);
                Err(error.on(&*self.address).because(cause))
            }
        }
    }

    async fn call_unlimited<T>(
        &self,
        request: Request,
        run: &Bytes,
        build: impl FnOnce(&mut Tables) -> WIPOffset<T>,
    ) -> Result<Answer> {
        let (answered, answer) = oneshot::channel();
        let done: Done = Box::new(move |answer| drop(answered.send(answer)));
        let correlation = self.start(request, build, run, Some(done), false)?;
        let _forget = Forget { connection: self, correlation };
        answer.await.unwrap_or_else(|_| Err(Error::closed(request.operation).on(&*self.address)))
    }

    /// Sends a request; `done` is called with its answer, unless this fails. With `corked` the bytes wait
    /// for [`Connection::uncork`].
    pub(crate) fn start<T>(
        &self,
        request: Request,
        build: impl FnOnce(&mut Tables) -> WIPOffset<T>,
        run: &Bytes,
        done: Option<Done>,
        corked: bool,
    ) -> Result<u64> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(error) = state.closed.as_ref().or(state.broken.as_ref()) {
            return Err(error.clone().during(request.operation));
        }
        state.correlation += 1;
        let correlation = state.correlation;
        let flags = if request.one_way { FLAG_ONE_WAY } else { 0 };
        let Request { opcode, shard, operation, .. } = request;
        state.head.clear();
        let (head, run_bytes) = (&mut state.head, run.len());
        state.frames.request_head(head, opcode, flags, shard, correlation, run_bytes, build);
        if let Some(done) = done {
            state.waiters.insert(correlation, (operation, done));
        }
        let mut written = 0;
        if state.out.is_empty() && !corked {
            written = self.write_now(state, run);
        }
        state.queue_rest(written, run);
        if !state.out.is_empty() && !corked {
            self.unwritten.notify_one();
        }
        Ok(correlation)
    }

    /// Writes what corked requests left.
    pub(crate) fn uncork(&self) {
        self.write_queued(&mut self.lock());
    }

    /// Bytes that wait to be written.
    pub(crate) fn unwritten_bytes(&self) -> usize {
        self.lock().out_bytes
    }

    /// No longer waits for an answer.
    pub(crate) fn forget(&self, correlation: u64) {
        let waiter = self.lock().waiters.remove(&correlation);
        drop(waiter);
    }

    /// Where it leads.
    pub(crate) fn address(&self) -> Arc<str> {
        Arc::clone(&self.address)
    }

    /// Whether requests can no longer be sent.
    pub(crate) fn is_closed(&self) -> bool {
        let state = self.lock();
        state.closed.is_some() || state.broken.is_some()
    }

    /// Waits until the connection is closed, by whomever.
    pub(crate) async fn wait_closed(&self) {
        let mut closed = self.closed.subscribe();
        // The sender lives as long as `self`.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// Closes and fails everything that waits.
    pub(crate) fn close(&self, error: Error) {
        let waiters = {
            let mut state = self.lock();
            if state.closed.is_some() {
                return;
            }
            state.closed = Some(error.clone());
            state.out.clear();
            state.out_bytes = 0;
            std::mem::take(&mut state.waiters)
        };
        self.closed.send_replace(true);
        // The other side may have closed already.
        let _ = socket2::SockRef::from(&self.stream).shutdown(std::net::Shutdown::Both);
        for (operation, done) in waiters.into_values() {
            done(Err(error.clone().during(operation)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens with the state locked")
    }

    /// Writes the head and the run as far as the socket takes them; returns how far that was.
    fn write_now(&self, state: &mut State, run: &Bytes) -> usize {
        let whole = state.head.len() + run.len();
        let mut written = 0;
        while written < whole {
            let head = &state.head[written.min(state.head.len())..];
            let rest = &run[written.saturating_sub(state.head.len())..];
            let wrote = if head.is_empty() {
                self.stream.try_write(rest)
            } else {
                self.stream.try_write_vectored(&[IoSlice::new(head), IoSlice::new(rest)])
            };
            match wrote {
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.fail_writing(state, error);
                    break;
                }
            }
        }
        written
    }

    fn write_queued(&self, state: &mut State) {
        while !state.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); 32];
            let count = state.out.len().min(slices.len());
            for (slice, bytes) in slices.iter_mut().zip(&state.out) {
                *slice = IoSlice::new(bytes);
            }
            match self.stream.try_write_vectored(&slices[..count]) {
                Ok(bytes) => state.advance(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.unwritten.notify_one();
                    return;
                }
                Err(error) => return self.fail_writing(state, error),
            }
        }
    }

    /// Waiters may not be called here, with locks held: the writer closes.
    fn fail_writing(&self, state: &mut State, error: io::Error) {
        state.broken = Some(broken("write", &self.address, error));
        self.unwritten.notify_one();
    }

    async fn write_frames(self: Arc<Self>) {
        let mut closed = self.closed.subscribe();
        loop {
            tokio::select! {
                _ = closed.wait_for(|closed| *closed) => return,
                () = self.unwritten.notified() => {}
            }
            loop {
                let broken = self.lock().broken.clone();
                if let Some(error) = broken {
                    return self.close(error);
                }
                if self.lock().out.is_empty() {
                    break;
                }
                tokio::select! {
                    _ = closed.wait_for(|closed| *closed) => return,
                    ready = self.stream.writable() => {
                        if let Err(error) = ready {
                            return self.close(broken_by(&self.address, error));
                        }
                    }
                }
                self.write_queued(&mut self.lock());
            }
        }
    }

    async fn read_frames(self: Arc<Self>, pushes: Option<mpsc::Sender<Answer>>) {
        let mut closed = self.closed.subscribe();
        let mut bytes = BytesMut::with_capacity(READ_BYTES);
        let mut pinged = false;
        let error = loop {
            tokio::select! {
                biased;
                ready = tokio::time::timeout(IDLE, self.stream.readable()) => match ready {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => break broken_by(&self.address, error),
                    Err(_) if pinged => {
                        let text = format!("nothing came for {:?}", IDLE * 2);
                        break Error::new(ErrorKind::Unknown, "read", text).on(&*self.address);
                    }
                    Err(_) => {
                        pinged = true;
                        self.ping();
                        continue;
                    }
                },
                _ = closed.wait_for(|closed| *closed) => return,
            }
            if bytes.capacity() - bytes.len() < READ_BYTES_MIN {
                bytes.reserve(READ_BYTES);
            }
            match self.stream.try_read_buf(&mut bytes) {
                Ok(0) => {
                    let text = "the server closed the connection";
                    break Error::new(ErrorKind::Unknown, "read", text).on(&*self.address);
                }
                Ok(_) => pinged = false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => break broken_by(&self.address, error),
            }
            if let Err(error) = self.hand_out(&mut bytes, pushes.as_ref()) {
                break error;
            }
        };
        tracing::debug!(address = %self.address, %error, "connection ended");
        self.close(error);
    }

    /// Gives every whole frame in `bytes` to whom it is for.
    fn hand_out(&self, bytes: &mut BytesMut, pushes: Option<&mpsc::Sender<Answer>>) -> Result<()> {
        loop {
            let header = frame::parse_header(bytes, FRAME_BYTES_MAX as u32)
                .map_err(|error| Error::protocol("read", error).on(&*self.address))?;
            let Some(header) = header.copied() else { return Ok(()) };
            let length = header.length.get() as usize;
            if bytes.len() < length {
                bytes.reserve(length - bytes.len());
                return Ok(());
            }
            let table = HEADER_BYTES..HEADER_BYTES + header.table_bytes.get() as usize;
            let answer = Answer { frame: bytes.split_to(length).freeze(), table };
            if !header.is_answer() {
                self.push(answer, pushes)?;
                continue;
            }
            let waiter = self.lock().waiters.remove(&header.correlation.get());
            let Some((operation, done)) = waiter else { continue };
            match header.status() {
                Status::Ok => done(Ok(answer)),
                status => {
                    let table = &answer.frame[answer.table.clone()];
                    done(Err(Error::refused(operation, status, table).on(&*self.address)));
                }
            }
        }
    }

    fn push(&self, frame: Answer, pushes: Option<&mpsc::Sender<Answer>>) -> Result<()> {
        match pushes.map(|pushes| pushes.try_send(frame)) {
            // Frames of later versions that nobody here asked for.
            None | Some(Ok(())) => Ok(()),
            // Whoever listens learns everything anew on the next connection.
            Some(Err(_)) => Err(Error::protocol("read", "more unasked frames than can be kept")),
        }
    }

    fn ping(&self) {
        let request = Request::new(Opcode::Ping, "ping");
        let done: Done = Box::new(|_| {});
        // Failure to send shows as silence.
        let _ = self.start(
            request,
            |fbb| Ping::create(fbb, &PingArgs { sent_ms: 0 }),
            &Bytes::new(),
            Some(done),
            false,
        );
    }
}

impl State {
    /// Queues what of head and run was not written.
    fn queue_rest(&mut self, written: usize, run: &Bytes) {
        let head = self.head.len();
        if written < head {
            self.out.push_back(Bytes::copy_from_slice(&self.head[written..]));
        }
        if written < head + run.len() && !run.is_empty() {
            self.out.push_back(run.slice(written.saturating_sub(head)..));
        }
        self.out_bytes += head + run.len() - written;
    }

    fn advance(&mut self, mut bytes: usize) {
        self.out_bytes -= bytes;
        while let Some(front) = self.out.front_mut() {
            if bytes < front.len() {
                front.advance(bytes);
                return;
            }
            bytes -= front.len();
            self.out.pop_front();
        }
    }
}

/// Forgets a waiter when the call that waits is dropped.
struct Forget<'a> {
    connection: &'a Connection,
    correlation: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.connection.forget(self.correlation);
    }
}

/// Closes a connection whose opening was given up.
struct CloseUnlessKept<'a>(Option<&'a Connection>);

impl CloseUnlessKept<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for CloseUnlessKept<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.0 {
            connection.close(Error::closed("connect"));
        }
    }
}

fn broken(operation: &'static str, address: &str, cause: io::Error) -> Error {
    Error::new(ErrorKind::Unknown, operation, format!("the connection broke: {cause}"))
        .on(address)
        .because(cause)
}

fn broken_by(address: &str, cause: io::Error) -> Error {
    broken("read", address, cause)
}

/// Longest run that a server may send beside its table.
const _: () = assert!(FRAME_BYTES_MAX >= limits::FETCH_BYTES_MAX + limits::TABLE_BYTES_MAX);
