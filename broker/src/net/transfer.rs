//! From file to socket: threads beside the cores that send ranges of the log.
//!
//! A core lends a connection's socket and a range of a segment's file to one of them, and has both back
//! with the number of bytes sent. sendfile waits for the disk where the page cache has not the range:
//! that must not happen on a core.
//!
//! Invariants:
//! - while a socket is lent, nobody else sends on it;
//! - each loan comes back once: sent, or after [`LOAN_TIME`] as far as it came, or failed;
//! - a socket that takes nothing holds nobody up: a thread waits for all of its sockets at once;
//! - the files of a loan stay what they are while it is lent: the core holds the segment.

use crate::disk::segment::Buffered;
use ringmq_core::ConnectionId;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most bytes of one loan.
pub(crate) const LOAN_BYTES_MAX: usize = 1 << 20;
/// A loan that gets on slowly comes back after so long, so that its core sees that it does.
const LOAN_TIME: Duration = Duration::from_secs(1);
/// Sent for one connection before the next has its turn.
const ROUND_BYTES: usize = 256 << 10;
/// How often deadlines are looked at.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// What a core lends.
#[derive(Debug)]
pub(crate) struct Loan {
    pub(crate) core: usize,
    pub(crate) connection: ConnectionId,
    /// Of the core's loans.
    pub(crate) number: u64,
    /// Another descriptor of the connection's socket, O_NONBLOCK.
    pub(crate) socket: OwnedFd,
    pub(crate) file: Arc<Buffered>,
    /// Where in the file.
    pub(crate) at: u64,
    pub(crate) bytes: usize,
}

/// How a loan comes back.
#[derive(Debug)]
pub(crate) struct Returned {
    pub(crate) core: usize,
    pub(crate) connection: ConnectionId,
    pub(crate) number: u64,
    pub(crate) sent: usize,
    /// Whether the connection can go on.
    pub(crate) result: io::Result<()>,
}

#[derive(Debug, Default)]
struct Waiting {
    loans: Vec<Loan>,
    has_ended: bool,
}

/// Where one thread gets its loans.
#[derive(Debug)]
struct Counter {
    waiting: Arc<Mutex<Waiting>>,
    bell: UnixStream,
}

/// Where one thread takes its loans from.
#[derive(Debug)]
pub(crate) struct Desk {
    waiting: Arc<Mutex<Waiting>>,
    ear: UnixStream,
}

/// All of the threads, as cores see them.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    counters: Vec<Counter>,
    next: AtomicUsize,
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Transfers {
    /// For so many threads, each of which is to run at its desk.
    pub(crate) fn new(threads: usize) -> io::Result<(Transfers, Vec<Desk>)> {
        let (mut counters, mut desks) = (Vec::new(), Vec::new());
        for _ in 0..threads {
            let (bell, ear) = UnixStream::pair()?;
            bell.set_nonblocking(true)?;
            ear.set_nonblocking(true)?;
            let waiting = Arc::new(Mutex::default());
            counters.push(Counter { waiting: Arc::clone(&waiting), bell });
            desks.push(Desk { waiting, ear });
        }
        Ok((Transfers { counters, next: AtomicUsize::new(0) }, desks))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.counters.is_empty()
    }

    /// Lends; the threads take turns.
    pub(crate) fn lend(&self, loan: Loan) {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let counter = &self.counters[next % self.counters.len()];
        lock(&counter.waiting).loans.push(loan);
        counter.ring();
    }

    /// Ends the threads; loans still out do not come back.
    pub(crate) fn end(&self) {
        for counter in &self.counters {
            lock(&counter.waiting).has_ended = true;
            counter.ring();
        }
    }
}

impl Counter {
    fn ring(&self) {
        // A bell that is full rings already.
        let _ = (&self.bell).write(&[1]);
    }
}

/// A loan that is being worked on.
#[derive(Debug)]
struct Running {
    loan: Loan,
    sent: usize,
    begun: Instant,
    progress: Instant,
    is_ready: bool,
}

impl Desk {
    /// Sends what is lent until the end; a socket that takes nothing for `patience` is given up.
    pub(crate) fn run(self, patience: Duration, back: impl Fn(Returned)) {
        let mut running: Vec<Running> = Vec::new();
        loop {
            {
                let mut waiting = lock(&self.waiting);
                if waiting.has_ended {
                    return;
                }
                let now = Instant::now();
                running.extend(waiting.loans.drain(..).map(|loan| Running {
                    loan,
                    sent: 0,
                    begun: now,
                    progress: now,
                    // Most sockets have room: they are asked by sending.
                    is_ready: true,
                }));
            }
            let mut at = 0;
            while at < running.len() {
                match running[at].step(patience) {
                    None => at += 1,
                    Some(result) => {
                        let Running { loan, sent, .. } = running.swap_remove(at);
                        let Loan { core, connection, number, .. } = loan;
                        back(Returned { core, connection, number, sent, result });
                    }
                }
            }
            self.wait(&mut running);
        }
    }

    /// Waits for sockets that take more, for new loans, or for the next look at deadlines.
    fn wait(&self, running: &mut [Running]) {
        let mut fds = Vec::with_capacity(running.len() + 1);
        fds.push(PollFd::new(&self.ear, PollFlags::IN));
        for one in running.iter() {
            fds.push(PollFd::new(&one.loan.socket, PollFlags::OUT));
        }
        let limit = (!running.is_empty()).then_some(&LOOK);
        let polled = rustix::event::poll(&mut fds, limit);
        let is_ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if let Err(error) = polled
            && error != Errno::INTR
        {
            // Out of memory, at worst: sockets are asked by sending.
            tracing::warn!("transfers cannot wait for sockets: {error}");
            std::thread::park_timeout(Duration::from_millis(10));
            return running.iter_mut().for_each(|one| one.is_ready = true);
        }
        if is_ready[0] {
            let mut rings = [0; 256];
            while matches!((&self.ear).read(&mut rings), Ok(bytes) if bytes == rings.len()) {}
        }
        for (one, is_ready) in running.iter_mut().zip(&is_ready[1..]) {
            one.is_ready = *is_ready;
        }
    }
}

impl Running {
    /// Sends some; the end if that has come.
    fn step(&mut self, patience: Duration) -> Option<io::Result<()>> {
        let now = Instant::now();
        if self.is_ready {
            match self.send() {
                Ok(0) => {}
                Ok(bytes) => {
                    self.sent += bytes;
                    self.progress = now;
                    if self.sent == self.loan.bytes {
                        return Some(Ok(()));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
        if now.duration_since(self.progress) > patience {
            return Some(Err(io::ErrorKind::TimedOut.into()));
        }
        (self.sent > 0 && now.duration_since(self.begun) > LOAN_TIME).then_some(Ok(()))
    }

    /// Sends what the socket takes now, if anything. SIGPIPE is ignored by Rust programs.
    fn send(&self) -> io::Result<usize> {
        let file = self.loan.file.file()?;
        let mut at = self.loan.at + self.sent as u64;
        let bytes = (self.loan.bytes - self.sent).min(ROUND_BYTES);
        match rustix::fs::sendfile(&self.loan.socket, file, Some(&mut at), bytes) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the segment ends before")),
            Ok(sent) => Ok(sent),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc::{Receiver, channel};
    use std::thread::JoinHandle;

    fn started(patience: Duration) -> (Transfers, Receiver<Returned>, JoinHandle<()>) {
        let (transfers, mut desks) = Transfers::new(1).unwrap();
        let (sender, returned) = channel();
        let desk = desks.pop().unwrap();
        let thread = std::thread::spawn(move || {
            desk.run(patience, |back| sender.send(back).unwrap());
        });
        (transfers, returned, thread)
    }

    fn pair() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        (server.into(), client)
    }

    fn file(bytes: usize) -> (tempfile::NamedTempFile, Arc<Buffered>, Vec<u8>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..bytes).map(|at| (at / 13) as u8).collect();
        file.write_all(&content).unwrap();
        let buffered = Arc::new(Buffered::new(file.path().to_owned()));
        (file, buffered, content)
    }

    #[test]
    fn ranges_arrive_as_they_are_beside_a_socket_that_takes_nothing() {
        let (transfers, returned, thread) = started(Duration::from_secs(60));
        let (_file, buffered, content) = file(4 << 20);
        let (stuck, _silent) = pair();
        let (socket, mut client) = pair();
        let loan = |number, socket: &OwnedFd, at, bytes| Loan {
            core: 1,
            connection: 2,
            number,
            socket: socket.try_clone().unwrap(),
            file: Arc::clone(&buffered),
            at,
            bytes,
        };
        // More than loopback takes at once.
        for number in 100..116 {
            transfers.lend(loan(number, &stuck, 0, LOAN_BYTES_MAX));
        }
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; 3 << 20];
            client.read_exact(&mut got).unwrap();
            got
        });
        let (mut at, end) = (8, 8 + (3 << 20));
        while at < end {
            let bytes = (end - at).min(LOAN_BYTES_MAX);
            transfers.lend(loan(7, &socket, at as u64, bytes));
            let back = loop {
                let back = returned.recv_timeout(Duration::from_secs(20)).unwrap();
                if back.number == 7 {
                    break back;
                }
            };
            back.result.unwrap();
            assert!(back.core == 1 && back.connection == 2 && back.sent > 0);
            at += back.sent;
        }
        assert!(reader.join().unwrap() == content[8..end]);
        transfers.end();
        thread.join().unwrap();
    }

    #[test]
    fn what_cannot_be_sent_comes_back_as_failed() {
        let (transfers, returned, thread) = started(Duration::from_millis(50));
        let (held, buffered, _) = file(1 << 20);
        let lend = |socket: &OwnedFd, file: &Arc<Buffered>, at| {
            let (socket, file) = (socket.try_clone().unwrap(), Arc::clone(file));
            let bytes = 1 << 20;
            transfers.lend(Loan { core: 0, connection: 0, number: 0, socket, file, at, bytes });
            let back = returned.recv_timeout(Duration::from_secs(20)).unwrap();
            back.result.err().map(|error| error.kind())
        };
        let (socket, client) = pair();
        assert_eq!(lend(&socket, &buffered, 1 << 20), Some(io::ErrorKind::UnexpectedEof));
        let gone = Arc::new(Buffered::new(held.path().with_extension("gone")));
        assert_eq!(lend(&socket, &gone, 0), Some(io::ErrorKind::NotFound));
        let silent = (0..64).find_map(|_| lend(&socket, &buffered, 0));
        assert_eq!(silent, Some(io::ErrorKind::TimedOut));
        drop(client);
        let (socket, client) = pair();
        drop(client);
        let cut = (0..64).find_map(|_| lend(&socket, &buffered, 0)).unwrap();
        assert!([io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset].contains(&cut));
        transfers.end();
        thread.join().unwrap();
    }
}
