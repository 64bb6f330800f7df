//! Members of a consumer group as processes, and what each of them did when.
#![allow(clippy::missing_panics_doc)] // Panicking is how a test says that a promise is broken.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

/// Broker, queue, offset.
pub type Place = (String, u32, u64);

/// The clock of [`Delivery`], ns: all processes of a machine share it.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).expect("it counts from the start")
}

/// A message that a member's listener was called with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Where the message lies.
    pub place: Place,
    /// Its body in hexadecimal.
    pub body: String,
    /// When the listener was called, on the clock that all processes of a machine share, ns.
    pub begun_ns: u64,
    /// When it ended; `None`: the member died in it, or is in it.
    pub ended_ns: Option<u64>,
}

/// A member of a group in a process of its own; killed when it is dropped.
#[derive(Debug)]
pub struct Member {
    child: Child,
    stdin: Option<ChildStdin>,
    seen: Arc<Mutex<Vec<Delivery>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Member {
    /// Starts `ringmq-test-consumer` (at `binary`) with these arguments.
    pub fn start(binary: &str, args: &[&str]) -> Member {
        let mut command = Command::new(binary);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a process starts");
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("piped");
        let seen: Arc<Mutex<Vec<Delivery>>> = Arc::default();
        let into = Arc::clone(&seen);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                note(&mut into.lock().expect("not poisoned"), &line);
            }
        });
        Member { child, stdin, seen, reader: Some(reader) }
    }

    /// What it was given so far, in its order.
    pub fn seen(&self) -> Vec<Delivery> {
        self.seen.lock().expect("not poisoned").clone()
    }

    /// Whether it was given anything.
    pub fn has_seen(&self) -> bool {
        !self.seen.lock().expect("not poisoned").is_empty()
    }

    /// Whether neither [`Member::kill`] nor [`Member::close`] was called.
    pub fn is_alive(&self) -> bool {
        self.reader.is_some()
    }

    /// kill -9; what it printed counts all the same.
    pub fn kill(&mut self) {
        self.child.kill().expect("it was ours");
        self.child.wait().expect("it was ours");
        self.read_to_end();
    }

    /// Asks it to leave its group; [`Member::close`] waits for it.
    pub fn ask_to_leave(&mut self) {
        drop(self.stdin.take());
    }

    /// Leaves the group as it should.
    pub fn close(&mut self) {
        self.ask_to_leave();
        let status = self.child.wait().expect("it was ours");
        assert!(status.success(), "a member left with {status}");
        self.read_to_end();
    }

    fn read_to_end(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().expect("lines are read");
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `> broker queue offset ns body` when a listener is called, `< broker queue offset ns` when it ends. A line that a kill
/// cut off is none.
fn note(seen: &mut Vec<Delivery>, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let [sign, broker, queue, offset, at_ns, ref rest @ ..] = words[..] else { return };
    let (Ok(queue), Ok(offset), Ok(at_ns)) = (queue.parse(), offset.parse(), at_ns.parse()) else {
        return;
    };
    let place = (broker.to_owned(), queue, offset);
    match (sign, rest) {
        (">", [body]) => {
            let body = (*body).to_owned();
            seen.push(Delivery { place, body, begun_ns: at_ns, ended_ns: None });
        }
        ("<", []) => {
            let open = seen.iter_mut().rev().find(|one| one.place == place);
            open.expect("what ends began").ended_ns = Some(at_ns);
        }
        _ => {}
    }
}
