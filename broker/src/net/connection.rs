//! One connection, and all connections of a core.
//!
//! Invariants:
//! - one task reads; whoever has answers pushes them, the end of the turn sends them in one system call;
//! - a socket that takes no more is left to one task that waits for it;
//! - one whose next bytes are a file's is lent to a transfer thread: nobody sends until it is back;
//! - deadlines are looked at once a second for all connections, not by a timer each.

use super::output::{FileRange, Output};
use super::partial::{KEPT_BYTES, Partial};
use crate::disk::memory::LogBlock;
use crate::disk::segment::InUse;
use crate::shard::core::Core;
use crate::sys;
use futures_util::io::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use ringmq_core::{ConnectionId, Slice};
use ringmq_schema::opcode::Opcode;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::shard::signal::Waiters;

/// A refused connection may be written to for so long before it is cut: the client is to read why.
const LINGER: Duration = Duration::from_secs(2);
/// How far sending came.
enum Sent {
    All,
    Blocked,
    /// A range of a file is next.
    UpToFile,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    stream: RefCell<TcpStream>,
    /// The shard that serves it; `None` before `Hello`.
    pub(crate) shard: Cell<Option<u16>>,
    /// It is one more than the broker takes: to be told so.
    pub(crate) is_surplus: bool,
    /// Requests went to other cores, which must be told of its end.
    pub(crate) reached_out: Cell<bool>,
    pub(crate) partial: RefCell<Partial>,
    pub(crate) is_to_flush: Cell<bool>,
    output: RefCell<Output>,
    /// The socket is left to `drain`, or lent.
    is_blocked: Cell<bool>,
    is_lent: Cell<bool>,
    was_lent: Cell<bool>,
    is_dead: Cell<bool>,
    refused: Cell<Option<Instant>>,
    in_flight: Cell<usize>,
    in_flight_bytes: Cell<usize>,
    /// One request at a time is timed: its correlation, and when it came.
    timed: Cell<Option<(u64, Instant)>>,
    opened: Instant,
    active: Cell<Instant>,
    progress: Cell<Instant>,
    /// Its reader waits for output or requests in flight to shrink.
    pub(crate) room: Waiters,
}

impl Connection {
    fn new(id: ConnectionId, stream: TcpStream, is_surplus: bool) -> Connection {
        let now = Instant::now();
        Connection {
            id,
            stream: RefCell::new(stream),
            shard: Cell::new(None),
            is_surplus,
            reached_out: Cell::new(false),
            partial: RefCell::default(),
            is_to_flush: Cell::new(false),
            output: RefCell::default(),
            is_blocked: Cell::new(false),
            is_lent: Cell::new(false),
            was_lent: Cell::new(false),
            is_dead: Cell::new(false),
            refused: Cell::new(None),
            in_flight: Cell::new(0),
            in_flight_bytes: Cell::new(0),
            timed: Cell::new(None),
            opened: now,
            active: Cell::new(now),
            progress: Cell::new(now),
            room: Waiters::default(),
        }
    }

    /// Reads what is there.
    pub(crate) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_dead.get() {
            return Poll::Ready(Ok(0));
        }
        let mut stream = self.stream.borrow_mut();
        let read = Pin::new(&mut *stream).poll_read(cx, into);
        if let Poll::Ready(Ok(bytes)) = &read
            && *bytes > 0
        {
            self.active.set(Instant::now());
        }
        read
    }

    /// A request was taken that will be answered.
    pub(crate) fn requested(&self, opcode: Opcode, correlation: u64, bytes: usize) {
        self.in_flight.set(self.in_flight.get() + 1);
        self.in_flight_bytes.set(self.in_flight_bytes.get() + bytes);
        if opcode == Opcode::Produce && self.timed.get().is_none() {
            self.timed.set(Some((correlation, Instant::now())));
        }
    }

    /// An answer is there; returns how long the request took, in ns, if it is the one that is timed.
    pub(crate) fn answered(&self, head: &[u8]) -> Option<u64> {
        let in_flight = self.in_flight.get();
        // Which request had how many bytes is not worth a table: the average is taken off.
        let bytes = self.in_flight_bytes.get();
        if let Some(average) = bytes.checked_div(in_flight) {
            self.in_flight_bytes.set(bytes - average);
            self.in_flight.set(in_flight - 1);
        }
        let (correlation, begun) = self.timed.get()?;
        let answered = head.get(16..24)?.try_into().ok().map(u64::from_le_bytes)?;
        if answered != correlation {
            return None;
        }
        self.timed.set(None);
        Some(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Whether it has as much to be sent as it may.
    pub(crate) fn output_is_full(&self, core: &Core) -> bool {
        self.output.borrow().bytes() > core.state.config.max_output_bytes.as_usize()
    }

    /// Whether it should be read no further for now.
    pub(crate) fn is_full(&self, core: &Core) -> bool {
        let config = &core.state.config;
        !self.is_dead.get()
            && (self.output_is_full(core)
                || self.in_flight_bytes.get() > config.max_in_flight_bytes.as_usize())
    }

    /// Adds a frame to what is to be sent.
    pub(crate) fn push(&self, head: &[u8], slices: &[Slice<LogBlock>]) {
        if self.is_dead.get() {
            return;
        }
        let mut output = self.begin_push();
        output.push(head);
        for slice in slices {
            output.push_slice(slice);
        }
    }

    /// Adds a frame whose run is a range of a segment's file; `slot` says whose, in the core's slots.
    pub(crate) fn push_file(
        &self,
        head: &[u8],
        segment: InUse,
        position: u64,
        bytes: usize,
        slot: usize,
    ) {
        if self.is_dead.get() {
            return;
        }
        let mut output = self.begin_push();
        output.push(head);
        output.push_file(FileRange { segment: Rc::new(segment), position, bytes, slot });
    }

    fn begin_push(&self) -> std::cell::RefMut<'_, Output> {
        let output = self.output.borrow_mut();
        if output.bytes() == 0 {
            self.progress.set(Instant::now());
        }
        output
    }

    /// The first bytes of the range of a file that is to be sent next.
    pub(crate) fn front_file(&self, most: usize) -> Option<FileRange> {
        let front = self.output.borrow().front_file().cloned()?;
        Some(FileRange { bytes: front.bytes.min(most), ..front })
    }

    /// The socket for a transfer thread.
    pub(crate) fn lent_socket(&self) -> io::Result<OwnedFd> {
        let socket = self.duplicate()?;
        if !self.was_lent.replace(true) {
            // Shared with the core's descriptor, which does not mind: glommio asks for readiness,
            // then receives and sends with MSG_DONTWAIT.
            rustix::io::ioctl_fionbio(&socket, true)?;
        }
        Ok(socket)
    }

    fn lend(self: &Rc<Self>, core: &Rc<Core>) {
        self.is_blocked.set(true);
        self.is_lent.set(true);
        super::loans::lend(core, Rc::clone(self));
    }

    /// A transfer thread gave the socket back.
    pub(crate) fn came_back(self: &Rc<Self>, core: &Rc<Core>, sent: usize, may_go_on: bool) {
        self.is_lent.set(false);
        if !may_go_on {
            self.kill();
        }
        if self.is_dead.get() {
            return self.output.borrow_mut().clear();
        }
        self.output.borrow_mut().sent(sent);
        self.is_blocked.set(false);
        self.active.set(Instant::now());
        self.progress.set(Instant::now());
        self.room.wake();
        core.to_flush(Rc::clone(self));
    }

    /// Sends as much as the socket takes now.
    pub(crate) fn flush(self: &Rc<Self>, core: &Rc<Core>) {
        if self.is_blocked.get() || self.is_dead.get() {
            let most = core.state.config.max_output_bytes.as_usize().saturating_mul(4);
            if self.output.borrow().bytes() > most {
                tracing::info!(connection = self.id, "closed: it does not take its answers");
                self.kill();
            }
            return;
        }
        match self.send() {
            Ok(Sent::All) => self.sent_some(),
            Ok(Sent::UpToFile) => self.lend(core),
            Ok(Sent::Blocked) => {
                self.is_blocked.set(true);
                let (connection, core_of) = (Rc::clone(self), Rc::clone(core));
                core.tasks.spawn(async move { connection.drain(&core_of).await });
            }
            Err(_) => self.kill(),
        }
    }

    /// Sends until nothing is left, the socket takes no more, or a file is next.
    fn send(&self) -> io::Result<Sent> {
        let stream = self.stream.borrow();
        let mut output = self.output.borrow_mut();
        while output.bytes() > 0 {
            let mut ranges: Vec<IoSlice<'_>> = Vec::with_capacity(8);
            let file_follows = output.ranges(&mut ranges);
            if ranges.is_empty() {
                return Ok(Sent::UpToFile);
            }
            let mut flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            flags.set(SendFlags::MORE, file_follows);
            let mut control = SendAncillaryBuffer::default();
            let sent = match &ranges[..] {
                [one] => rustix::net::send(sys::descriptor(&stream), one, flags),
                all => rustix::net::sendmsg(sys::descriptor(&stream), all, &mut control, flags),
            };
            match sent {
                Ok(bytes) => {
                    drop(ranges);
                    output.sent(bytes);
                    self.active.set(Instant::now());
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Sent::Blocked),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Sent::All)
    }

    fn sent_some(&self) {
        self.progress.set(Instant::now());
        self.room.wake();
        if self.refused.get().is_some() {
            // The client reads the refusal, then the end; what it still sends is thrown away.
            let _ = socket2::SockRef::from(&sys::descriptor(&self.stream.borrow()))
                .shutdown(Shutdown::Write);
        }
    }

    /// Waits for the socket to take more, until nothing is left. glommio has no "writable" but a write.
    async fn drain(self: Rc<Self>, core: &Rc<Core>) {
        while !self.is_dead.get() {
            let written = poll_fn(|cx| {
                if self.is_dead.get() {
                    return Poll::Ready(Ok(0));
                }
                let output = self.output.borrow();
                Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, output.first())
            })
            .await;
            match written {
                Ok(bytes) => self.output.borrow_mut().sent(bytes),
                Err(_) => self.kill(),
            }
            self.progress.set(Instant::now());
            self.active.set(Instant::now());
            self.room.wake();
            if self.is_dead.get() {
                break;
            }
            match self.send() {
                Ok(Sent::UpToFile) => {
                    self.progress.set(Instant::now());
                    return self.lend(core);
                }
                Ok(Sent::All) => {
                    self.is_blocked.set(false);
                    self.sent_some();
                    core.to_flush(self);
                    return;
                }
                Ok(Sent::Blocked) => {}
                Err(_) => self.kill(),
            }
        }
        self.output.borrow_mut().clear();
    }

    /// No more is read but to be thrown away; what waits is still sent.
    pub(crate) fn refuse(&self) {
        self.refused.set(Some(Instant::now()));
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.refused.get().is_some()
    }

    /// Ends it now: its reader and writer notice.
    pub(crate) fn kill(&self) {
        if !self.is_dead.replace(true) {
            let _ = socket2::SockRef::from(&sys::descriptor(&self.stream.borrow()))
                .shutdown(Shutdown::Both);
            self.room.wake();
        }
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead.get()
    }

    /// A second descriptor of the same socket, for another core.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(rustix::io::fcntl_dupfd_cloexec(sys::descriptor(&self.stream.borrow()), 3)?)
    }

    /// Why it is to be closed, if a deadline has passed.
    fn overdue(&self, core: &Core, now: Instant) -> Option<&'static str> {
        let config = &core.state.config;
        let past = |since: Instant, limit: Duration| now.saturating_duration_since(since) > limit;
        if let Some(since) = self.refused.get() {
            return past(since, LINGER).then_some("refused");
        }
        if self.shard.get().is_none() && past(self.opened, config.handshake_timeout) {
            return Some("no Hello came in time");
        }
        // While it is lent, the transfer thread looks whether it takes anything.
        let waits = self.output.borrow().bytes() > 0 && !self.is_lent.get();
        if waits && past(self.progress.get(), config.send_timeout) {
            return Some("it does not take its answers");
        }
        // A reader that was made to wait is not the client's delay.
        let partial = self.partial.borrow();
        if partial.since.is_some_and(|since| past(since, config.frame_timeout))
            && self.room.is_empty()
        {
            return Some("the rest of a frame did not come");
        }
        let silent = past(self.active.get(), config.idle_timeout);
        (silent && self.in_flight.get() == 0).then_some("idle")
    }
}

/// Spreads numbers that count up over a table.
#[derive(Debug, Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

/// The connections of one core.
#[derive(Debug)]
pub(crate) struct Connections {
    next: Cell<ConnectionId>,
    all: RefCell<HashMap<ConnectionId, Rc<Connection>, BuildHasherDefault<NumberHasher>>>,
}

impl Connections {
    pub(crate) fn new(first: ConnectionId) -> Connections {
        Connections { next: Cell::new(first + 1), all: RefCell::default() }
    }

    pub(crate) fn add(&self, stream: TcpStream, is_surplus: bool) -> Rc<Connection> {
        let id = self.next.get();
        self.next.set(id + 1);
        let connection = Rc::new(Connection::new(id, stream, is_surplus));
        self.all.borrow_mut().insert(id, Rc::clone(&connection));
        connection
    }

    pub(crate) fn find(&self, id: ConnectionId) -> Option<Rc<Connection>> {
        self.all.borrow().get(&id).cloned()
    }

    pub(crate) fn remove(&self, id: ConnectionId) {
        self.all.borrow_mut().remove(&id);
    }

    /// Whether anything waits to be sent.
    pub(crate) fn have_output(&self) -> bool {
        let waits = |c: &Rc<Connection>| !c.is_dead() && c.output.borrow().bytes() > 0;
        self.all.borrow().values().any(waits)
    }

    /// Closes those whose deadline has passed, and frees memory that quiet ones hold.
    pub(crate) fn sweep(&self, core: &Core) {
        let now = Instant::now();
        for connection in self.all.borrow().values() {
            if let Some(reason) = connection.overdue(core, now) {
                tracing::debug!(connection = connection.id, reason, "closed");
                connection.kill();
            }
            let mut partial = connection.partial.borrow_mut();
            let is_quiet = now.saturating_duration_since(connection.active.get()).as_secs() >= 1;
            if partial.filled == 0 && partial.bytes.len() > KEPT_BYTES && is_quiet {
                *partial = Partial::default();
            }
        }
    }

    /// Closes all.
    pub(crate) fn close_all(&self, _core: &Core) {
        for connection in self.all.borrow().values() {
            connection.kill();
        }
    }
}
