//! One run: its clock, its checker, its recorders, and counters for a progress display.
//!
//! Everything here is shared by the senders and receivers of one process. Locks are held for a single
//! note and never across an `await`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ringmq::Record;

use crate::check::{Arrival, Checker};
use crate::payload::Clock;
use crate::record::{Recorder, Sample};

/// State of a run.
#[derive(Debug)]
pub struct Run {
    /// Tells this run's messages from others in the same topic.
    pub id: u64,
    /// What due times and latencies are counted on.
    pub clock: Clock,
    checker: Mutex<Checker>,
    produced: Mutex<Recorder>,
    received: Mutex<Recorder>,
    first_failure: Mutex<Option<ringmq::Error>>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    acknowledged: AtomicU64,
    failed: AtomicU64,
    received: AtomicU64,
    last_arrival_ns: AtomicU64,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Messages given to the client.
    pub sent: u64,
    /// Of them acknowledged.
    pub acknowledged: u64,
    /// Of them failed.
    pub failed: u64,
    /// Messages of this run that came, repeated ones included.
    pub received: u64,
    /// When the last one came.
    pub last_arrival_ns: u64,
}

impl Run {
    /// Starts the clock; figures count from `warm_up_ns` on.
    pub fn start(warm_up_ns: u64, checker: impl FnOnce(u64) -> Checker) -> Run {
        // Process and time together: two benches that start at once have different runs.
        let id = (crate::environment::since_epoch_ms() << 20) ^ u64::from(std::process::id());
        Run {
            id,
            clock: Clock::start(),
            checker: Mutex::new(checker(id)),
            produced: Mutex::new(Recorder::new(warm_up_ns)),
            received: Mutex::new(Recorder::new(warm_up_ns)),
            first_failure: Mutex::new(None),
            counters: Counters::default(),
        }
    }

    /// The checker, for the moment.
    pub fn checker(&self) -> MutexGuard<'_, Checker> {
        locked(&self.checker)
    }

    /// Latencies of sends.
    pub fn produced(&self) -> MutexGuard<'_, Recorder> {
        locked(&self.produced)
    }

    /// Latencies from due to received.
    pub fn received(&self) -> MutexGuard<'_, Recorder> {
        locked(&self.received)
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Progress {
            sent: of(&self.counters.sent),
            acknowledged: of(&self.counters.acknowledged),
            failed: of(&self.counters.failed),
            received: of(&self.counters.received),
            last_arrival_ns: of(&self.counters.last_arrival_ns),
        }
    }

    /// The first send that failed.
    pub fn first_failure(&self) -> Option<ringmq::Error> {
        locked(&self.first_failure).clone()
    }

    /// Notes messages that were given to the client.
    pub fn note_sent(&self, messages: u64) {
        self.counters.sent.fetch_add(messages, Ordering::Relaxed);
    }

    /// Notes a request that was acknowledged: messages of `stream` from sequence `first` on.
    pub fn note_acknowledged(&self, stream: u32, first: u64, sample: Sample) {
        let mut checker = self.checker();
        for sequence in first..first + sample.messages {
            checker.acknowledge(stream, sequence);
        }
        drop(checker);
        self.counters.acknowledged.fetch_add(sample.messages, Ordering::Relaxed);
        self.produced().note(sample);
    }

    /// Notes a request that failed.
    pub fn note_failed(&self, messages: u64, error: ringmq::Error) {
        self.counters.failed.fetch_add(messages, Ordering::Relaxed);
        locked(&self.first_failure).get_or_insert(error);
    }

    /// Notes a message that came.
    pub fn note_received(&self, record: &Record) -> Arrival {
        let done_ns = self.clock.now_ns();
        let body = record.body();
        let queue = record.queue();
        let arrival = self.checker().receive(&queue.broker, queue.id, record.offset(), body);
        if let Arrival::Fresh(stamp) = arrival {
            self.counters.received.fetch_add(1, Ordering::Relaxed);
            self.received().note(Sample {
                due_ns: stamp.due_ns,
                sent_ns: stamp.due_ns,
                done_ns,
                messages: 1,
                bytes: body.len() as u64,
            });
        }
        self.counters.last_arrival_ns.store(done_ns, Ordering::Relaxed);
        arrival
    }
}

/// What is behind these locks stays whole when a holder panics: every note is a few additions.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
