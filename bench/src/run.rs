//! One run: its clock, its checkers, its recorders, and counters for a progress display.
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
    /// When the clock was started, ms since 1970.
    pub started_at_ms: u64,
    warm_up_ns: AtomicU64,
    /// One for each subscription of each topic, a topic's side by side.
    checkers: Vec<Mutex<Checker>>,
    checkers_per_topic: usize,
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
        let mut checker = Some(checker);
        let only = |id| checker.take().expect("one checker is asked for")(id);
        Run::start_over(warm_up_ns, 1, 1, only)
    }

    /// The same over several topics, each read whole by so many subscriptions (at least one).
    pub fn start_over(
        warm_up_ns: u64,
        topics: usize,
        subscriptions: usize,
        mut checker: impl FnMut(u64) -> Checker,
    ) -> Run {
        let started_at_ms = crate::environment::since_epoch_ms();
        // Process and time together: two benches that start at once have different runs.
        let id = (started_at_ms << 20) ^ u64::from(std::process::id());
        Run {
            id,
            clock: Clock::start(),
            started_at_ms,
            warm_up_ns: AtomicU64::new(warm_up_ns),
            checkers: (0..topics * subscriptions).map(|_| Mutex::new(checker(id))).collect(),
            checkers_per_topic: subscriptions,
            produced: Mutex::new(Recorder::new(warm_up_ns)),
            received: Mutex::new(Recorder::new(warm_up_ns)),
            first_failure: Mutex::new(None),
            counters: Counters::default(),
        }
    }

    /// The first checker, which is the only one of a run over one topic, for the moment.
    pub fn checker(&self) -> MutexGuard<'_, Checker> {
        self.checker_of(0, 0)
    }

    /// The checker of a subscription of a topic, for the moment.
    pub fn checker_of(&self, topic: usize, subscription: usize) -> MutexGuard<'_, Checker> {
        locked(&self.checkers[topic * self.checkers_per_topic + subscription])
    }

    /// Every checker, those of a topic side by side, and how many a topic has.
    pub fn checkers(&self) -> (impl Iterator<Item = MutexGuard<'_, Checker>>, usize) {
        (self.checkers.iter().map(locked), self.checkers_per_topic)
    }

    /// Acknowledged messages that some subscription has not seen yet.
    pub fn outstanding(&self) -> u64 {
        self.checkers().0.map(|checker| checker.outstanding()).sum()
    }

    /// When the warm-up ends.
    pub fn warm_up_ns(&self) -> u64 {
        self.warm_up_ns.load(Ordering::Relaxed)
    }

    /// Lets the warm-up begin now, when everything is ready to send.
    pub fn warm_up_for(&self, warm_up: std::time::Duration) {
        let length = u64::try_from(warm_up.as_nanos()).unwrap_or(u64::MAX);
        let until_ns = self.clock.now_ns().saturating_add(length);
        self.warm_up_ns.store(until_ns, Ordering::Relaxed);
        self.produced().warm_until(until_ns);
        self.received().warm_until(until_ns);
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

    /// Notes a request that was acknowledged: messages of `stream`, which is of the topic numbered
    /// `topic`, from sequence `first` on.
    pub fn note_acknowledged(&self, topic: usize, stream: u32, first: u64, sample: Sample) {
        for subscription in 0..self.checkers_per_topic {
            let mut checker = self.checker_of(topic, subscription);
            for sequence in first..first + sample.messages {
                checker.acknowledge(stream, sequence);
            }
        }
        self.counters.acknowledged.fetch_add(sample.messages, Ordering::Relaxed);
        self.produced().note(sample);
    }

    /// Notes a request that failed.
    pub fn note_failed(&self, messages: u64, error: ringmq::Error) {
        self.counters.failed.fetch_add(messages, Ordering::Relaxed);
        self.produced().note_failed(self.clock.now_ns(), messages);
        locked(&self.first_failure).get_or_insert(error);
    }

    /// Notes a message that came.
    pub fn note_received(&self, record: &Record) -> Arrival {
        self.note_received_by(0, 0, record)
    }

    /// Notes a message that came to a subscription of a topic.
    pub fn note_received_by(&self, topic: usize, subscription: usize, record: &Record) -> Arrival {
        let done_ns = self.clock.now_ns();
        let body = record.body();
        let queue = record.queue();
        let arrival = self.checker_of(topic, subscription).receive(
            &queue.broker,
            queue.id,
            record.offset(),
            body,
        );
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
