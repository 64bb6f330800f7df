//! A journal of what was sent and acknowledged, and the comparison with what is there after a crash.
//!
//! Every message is numbered; it is acknowledged with its offset, or its outcome is unknown. After a restart
//! everything acknowledged must be at its offset with its bytes; what was unknown may be there; nothing
//! else may, offsets have no gap, and what was read once is there for ever.
#![allow(clippy::missing_panics_doc)] // Panicking is how a test says that a promise is broken.

use crate::server::{BrokerOptions, PATIENCE, Process, eventually};
use crate::wire::{Fetched, Wire, base_offset, run};
use ringmq_schema::error::Status;
use ringmq_schema::placement::shard_of_queue;
use ringmq_schema::produce::Flush;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const IN_FLIGHT: usize = 16;

/// Topic id, queue, shard.
pub type Target = (u32, u32, u16);

/// Of one queue.
#[derive(Debug, Default)]
struct Journal {
    /// Acknowledged: number by offset.
    acknowledged: BTreeMap<u64, u64>,
    /// First offset whose content was not read yet.
    verified: u64,
    /// Number at each offset that was read.
    read: Vec<u64>,
    /// Refused for want of room: none of these was taken.
    refused: BTreeSet<u64>,
}

/// Load on every queue of a topic, and its journal.
#[derive(Debug)]
pub struct Load {
    topic: u32,
    shards: u16,
    /// Whether every third batch is ASYNC.
    mixed: bool,
    numbers: Arc<AtomicU64>,
    acknowledged: Arc<AtomicU64>,
    /// Batches refused for want of room.
    refusals: Arc<AtomicU64>,
    journals: Vec<Arc<Mutex<Journal>>>,
}

/// Why a producer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The connection is gone.
    Gone,
    /// It was refused with this, and sees no use in another try here.
    Refused(Status, String),
}

/// Producers at work, one a queue.
#[derive(Debug)]
pub struct Producers(Vec<std::thread::JoinHandle<End>>);

impl Producers {
    /// Waits until all have noticed that the broker is gone; how each of them did.
    pub fn join(self) -> Vec<End> {
        let join = |producer: std::thread::JoinHandle<End>| {
            producer.join().expect("a producer found a broken promise")
        };
        self.0.into_iter().map(join).collect()
    }

    /// Whether the producer of this queue has ended.
    pub fn has_ended(&self, queue: u32) -> bool {
        self.0[queue as usize].is_finished()
    }
}

impl Load {
    /// Makes a topic of `queues` queues to load.
    pub fn new(broker: &Process, queues: u32, mixed: bool) -> Load {
        let mut wire = Wire::connect(broker.address(), 0).expect("the broker serves");
        let topic = wire.create_topic("orders", queues).expect("the topic is made");
        Load {
            topic,
            shards: wire.shards,
            mixed,
            numbers: Arc::default(),
            acknowledged: Arc::default(),
            refusals: Arc::default(),
            journals: (0..queues).map(|_| Arc::default()).collect(),
        }
    }

    /// Where a queue of the topic is.
    pub fn target(&self, queue: u32) -> Target {
        (self.topic, queue, shard_of_queue(self.topic, queue, self.shards))
    }

    /// Messages acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Batches that were refused for want of room so far.
    pub fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    /// The queues on this shard.
    pub fn queues_on(&self, shard: u16) -> Vec<u32> {
        let queues = 0..self.journals.len() as u32;
        queues.filter(|queue| self.target(*queue).2 == shard).collect()
    }

    /// Waits until so many more are acknowledged in each of these queues.
    pub fn wait_for_queues(&self, queues: &[u32], more: u64) {
        let ends = |load: &Load| -> Vec<u64> {
            let all = load.snapshot();
            queues.iter().map(|queue| all[*queue as usize]).collect()
        };
        let before = ends(self);
        eventually("the queues take more", || {
            ends(self).iter().zip(&before).all(|(end, before)| *end >= before + more)
        });
    }

    /// A producer for each queue, until the broker is gone.
    pub fn start(&self, address: SocketAddr) -> Producers {
        let start = |(queue, journal): (usize, &Arc<Mutex<Journal>>)| {
            let target = self.target(queue as u32);
            let (numbers, acknowledged) =
                (Arc::clone(&self.numbers), Arc::clone(&self.acknowledged));
            let (journal, mixed) = (Arc::clone(journal), self.mixed);
            let refusals = Arc::clone(&self.refusals);
            std::thread::spawn(move || {
                send(address, target, mixed, &numbers, &journal, [&acknowledged, &refusals])
            })
        };
        Producers(self.journals.iter().enumerate().map(start).collect())
    }

    /// Waits until so many more are acknowledged.
    pub fn wait_for(&self, more: u64) {
        let goal = self.acknowledged() + more;
        let deadline = Instant::now() + PATIENCE;
        while self.acknowledged() < goal {
            assert!(Instant::now() < deadline, "the broker takes nothing");
            std::thread::park_timeout(Duration::from_micros(200));
        }
    }

    /// Body of one more message, which may be read later or not.
    pub fn next_body(&self) -> Vec<u8> {
        body(self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// What is acknowledged in each queue at this moment: the end of what must survive.
    pub fn snapshot(&self) -> Vec<u64> {
        let end = |journal: &Arc<Mutex<Journal>>| {
            let journal = journal.lock().expect("not poisoned");
            journal.acknowledged.last_key_value().map_or(0, |(offset, _)| offset + 1)
        };
        self.journals.iter().map(end).collect()
    }

    /// Whatever was acknowledged at or after these offsets is of unknown outcome.
    pub fn forget_beyond(&self, ends: &[u64]) {
        for (journal, end) in self.journals.iter().zip(ends) {
            journal.lock().expect("not poisoned").acknowledged.split_off(end);
        }
    }

    /// Reads what is new in every queue and compares it with the journal.
    pub fn verify(&self, address: SocketAddr) {
        for (queue, journal) in self.journals.iter().enumerate() {
            let mut journal = journal.lock().expect("not poisoned");
            verify(address, self.target(queue as u32), &mut journal);
        }
    }

    /// Reads everything from the beginning: what was seen is never taken back.
    pub fn verify_all(&self, address: SocketAddr) {
        for (queue, journal) in self.journals.iter().enumerate() {
            let mut journal = journal.lock().expect("not poisoned");
            let seen = std::mem::take(&mut journal.read);
            journal.verified = 0;
            verify(address, self.target(queue as u32), &mut journal);
            assert_eq!(journal.read[..seen.len()], seen[..], "queue {queue}");
        }
    }

    /// Reads a queue from the beginning, and goes on behind each offset that is answered with `fault`: these
    /// are returned, and what was read has the bytes it must have.
    pub fn read_around(&self, address: SocketAddr, queue: u32, fault: Status) -> Read {
        let journal = self.journals[queue as usize].lock().expect("not poisoned");
        let (topic, _, shard) = self.target(queue);
        let mut wire = Wire::connect(address, shard).expect("the broker serves");
        wire.checked = true;
        let (mut read, mut at) = (Read::default(), 0);
        loop {
            let mut all = wire.fetch_queues(topic, shard, &[(queue, at)], 0).expect("it answers");
            let fetched = all.remove(&queue).unwrap_or_else(|| Fetched::nothing(at));
            for ((offset, bytes), place) in fetched.bodies.into_iter().zip(fetched.places) {
                let number = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
                assert_eq!(bytes, body(number), "queue {queue}, offset {offset}: foreign bytes");
                let expected = journal.acknowledged.get(&offset);
                assert!(expected.is_none_or(|expected| *expected == number), "offset {offset}");
                read.places.insert(offset, place);
                at = offset + 1;
            }
            at = fetched.damaged.last().map_or(at, |damaged| at.max(damaged + 1));
            read.missing.extend(fetched.damaged);
            if fetched.status == fault {
                // A damaged stretch is passed over at once, what cannot be read one by one.
                let next = fetched.next.max(at + 1);
                read.missing.extend(at..next);
                at = next;
            } else {
                assert_eq!(fetched.status, Status::Ok, "queue {queue}, offset {at}");
                if at >= fetched.high {
                    break;
                }
            }
        }
        read
    }
}

/// What [`Load::read_around`] found.
#[derive(Debug, Clone, Default)]
pub struct Read {
    /// Offsets that cannot be read.
    pub missing: BTreeSet<u64>,
    /// Where in the shard's log the others lie.
    pub places: BTreeMap<u64, Range<u64>>,
}

fn body(number: u64) -> Vec<u8> {
    let length = 8 + (number.wrapping_mul(0x9e37_79b9) % 3000) as usize;
    let mut body = number.to_le_bytes().to_vec();
    body.resize(length, number as u8);
    body
}

/// Sends until the broker dies; journals what it acknowledged.
fn send(
    address: SocketAddr,
    (topic, queue, shard): Target,
    mixed: bool,
    numbers: &AtomicU64,
    journal: &Mutex<Journal>,
    [acknowledged, refusals]: [&AtomicU64; 2],
) -> End {
    let Ok(mut wire) = Wire::connect(address, shard) else { return End::Gone };
    let mut in_flight: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    loop {
        while in_flight.len() < IN_FLIGHT {
            let count = 1 + numbers.load(Ordering::Relaxed) % 7;
            let first = numbers.fetch_add(count, Ordering::Relaxed);
            let batch: Vec<u64> = (first..first + count).collect();
            let bodies: Vec<Vec<u8>> = batch.iter().map(|n| body(*n)).collect();
            let records = run(topic, queue, &bodies);
            let to = (topic, queue, shard);
            // SYNC and ASYNC mixed: both survive kill -9.
            let flush = if mixed && first.is_multiple_of(3) { Flush::Async } else { Flush::Sync };
            let Ok(id) = wire.produce(to, &records, count as u32, flush) else { return End::Gone };
            in_flight.insert(id, batch);
        }
        let Ok(answer) = wire.receive() else { return End::Gone };
        // A disk that is gone refuses writes, and a broker that stops all requests: as good as dead.
        // So is a topic that was deleted.
        let ends = [Status::ShardFailed, Status::NotReady, Status::UnknownTopic];
        if ends.contains(&answer.status) {
            return End::Refused(answer.status, answer.refusal());
        }
        let batch = in_flight.remove(&answer.correlation).expect("it was asked for");
        if answer.status == Status::DiskFull {
            refusals.fetch_add(1, Ordering::Relaxed);
            journal.lock().expect("not poisoned").refused.extend(batch);
            std::thread::park_timeout(Duration::from_millis(5));
            continue;
        }
        assert_eq!(answer.status, Status::Ok, "{}", answer.refusal());
        let base = base_offset(&answer).expect("an answer to produce");
        acknowledged.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let mut journal = journal.lock().expect("not poisoned");
        for (n, number) in batch.into_iter().enumerate() {
            journal.acknowledged.insert(base + n as u64, number);
        }
    }
}

/// Reads what is new in a queue and compares it with the journal.
fn verify(address: SocketAddr, (topic, queue, shard): Target, journal: &mut Journal) {
    let mut wire = Wire::connect(address, shard).expect("the broker serves");
    loop {
        let fetched =
            wire.fetch((topic, queue, shard), journal.verified, 0).expect("the queue can be read");
        let (next, high) = (fetched.next, fetched.high);
        for (offset, bytes) in fetched.bodies {
            assert_eq!(offset, journal.read.len() as u64, "queue {queue}: offsets have a gap");
            let number = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
            assert_eq!(bytes, body(number), "queue {queue}, offset {offset}: foreign bytes");
            if let Some(expected) = journal.acknowledged.get(&offset) {
                assert_eq!(number, *expected, "queue {queue}, offset {offset}: another message");
            }
            let is_refused = journal.refused.contains(&number);
            assert!(!is_refused, "queue {queue}, offset {offset}: it was refused, and is there");
            journal.read.push(number);
        }
        journal.verified = next;
        if next >= high {
            break;
        }
    }
    let last = journal.acknowledged.last_key_value().map_or(0, |(offset, _)| offset + 1);
    assert!(
        journal.verified >= last,
        "queue {queue}: {} acknowledged messages are lost",
        last - journal.verified
    );
}

/// After kill -9 the kernel still tears the rings down for some ms: the lock holds until then.
pub fn restart(options: &BrokerOptions) -> Process {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Process::try_start(&options.name, "ringmq-broker", &options.args()) {
            Ok(process) => return process,
            Err(error) => {
                let locked = error.contains("lock") || error.contains("another broker");
                assert!(locked && Instant::now() < deadline, "{error}");
                std::thread::park_timeout(Duration::from_millis(20));
            }
        }
    }
}
