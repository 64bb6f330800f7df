//! The senders of a run.
//!
//! A [`Stream`] numbers its messages and keeps a bounded number in flight (closed loop) or follows a
//! schedule (open loop). A stream enqueues from one place only, so within a queue its messages are
//! stored in the order of their numbers (semantics.md: strict FIFO), which the checker holds the broker to.
//!
//! The open loop has a thread of its own per stream: tokio's timers are a millisecond coarse, a sleeping
//! thread wakes within some ten microseconds. What the thread has sent, a task of the runtime awaits.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use ringmq::{Message, Producer};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::payload::Template;
use crate::record::Sample;
use crate::run::Run;
use crate::schedule::{LATE_AFTER_NS, Punctuality, Schedule};
use crate::session::{RECORD_EXTRA_BYTES, WINDOW_BYTES_OPEN, WINDOW_MESSAGES_OPEN};

/// A stream gives up after so many failed requests: something is wrong that time will not heal.
const FAILURES_MAX: u64 = 100;

/// An open loop that is behind ends this long after its last request was due; what it did not get to start
/// counts as late.
const OVERRUN_NS: u64 = 1_000_000_000;

/// A request on its way; ready when it was acknowledged or failed and that was noted.
type InFlight = Pin<Box<dyn Future<Output = Outcome> + Send>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Acknowledged,
    Failed,
}

/// When a closed loop stops starting requests.
#[derive(Debug, Clone)]
pub struct Until {
    /// Not at or after this time.
    pub time_ns: u64,
    /// Not after so many messages of the stream, earlier slices included.
    pub messages: u64,
    /// Not once this is true.
    pub stop: Arc<AtomicBool>,
}

/// Keys that messages get: so many different ones, as in the OpenMessaging benchmark.
const KEYS: u64 = 10_000;

/// How messages get a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keys {
    /// They have none.
    #[default]
    None,
    /// One key after the other.
    RoundRobin,
    /// Any key.
    Random,
}

impl Keys {
    fn of(self, sequence: u64) -> Option<String> {
        let number = match self {
            Keys::None => return None,
            Keys::RoundRobin => sequence % KEYS,
            // splitmix64: spread well, and the same in every run.
            Keys::Random => {
                let mixed = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                (mixed ^ (mixed >> 27)) % KEYS
            }
        };
        Some(format!("key-{number:04}"))
    }
}

/// Where a stream's messages go.
#[derive(Clone)]
pub struct Lane {
    /// Through which producer.
    pub producer: Producer,
    /// The topic.
    pub topic: Arc<str>,
    /// The topic's number in the run.
    pub topic_number: usize,
}

/// One numbered sequence of messages.
pub struct Stream {
    run: Arc<Run>,
    lane: Lane,
    number: u32,
    batch: u64,
    template: Template,
    keys: Keys,
    failures: u64,
}

impl Stream {
    /// A stream that sends requests of `batch` messages made from `template`, whose stream is `number`.
    pub fn new(
        run: &Arc<Run>,
        lane: Lane,
        number: u32,
        template: Template,
        keys: Keys,
        batch: usize,
    ) -> Stream {
        let batch = batch.max(1) as u64;
        Stream { run: Arc::clone(run), lane, number, batch, template, keys, failures: 0 }
    }

    /// Messages numbered so far.
    pub fn made(&self) -> u64 {
        self.template.made()
    }

    /// Whether so many requests failed that it sends no more.
    pub fn has_given_up(&self) -> bool {
        self.failures >= FAILURES_MAX
    }

    /// Keeps `in_flight` requests on their way until `until`, then waits for the last of them.
    pub async fn closed_loop(&mut self, in_flight: usize, until: Until) {
        let mut waiting = FuturesUnordered::new();
        loop {
            // An answer that is there is noted before the next request takes its time: otherwise the
            // making of requests would count as latency of those before.
            while let Some(Some(outcome)) = waiting.next().now_or_never() {
                self.failures += u64::from(outcome == Outcome::Failed);
            }
            if waiting.len() < in_flight && self.goes_on(&until) {
                let now_ns = self.run.clock.now_ns();
                let messages = self.batch.min(until.messages - self.template.made());
                if let Some(request) = self.start(now_ns, messages).await {
                    waiting.push(request);
                }
                if self.batch > 1 {
                    // The client's tasks may share this thread, and a batch takes long to make.
                    tokio::task::yield_now().await;
                }
                continue;
            }
            match waiting.next().await {
                Some(outcome) => self.failures += u64::from(outcome == Outcome::Failed),
                None => return,
            }
        }
    }

    fn goes_on(&self, until: &Until) -> bool {
        self.template.made() < until.messages
            && self.failures < FAILURES_MAX
            && self.run.clock.now_ns() < until.time_ns
            && !until.stop.load(Ordering::Relaxed)
    }

    /// Starts `requests` requests when `schedule` says so, none once `stop` is true, and waits for the last of them. Gives back the
    /// stream, for the next slice.
    pub async fn open_loop(
        mut self,
        schedule: Schedule,
        requests: u64,
        stop: Arc<AtomicBool>,
    ) -> anyhow::Result<(Stream, Punctuality)> {
        let (started, mut to_await) = mpsc::unbounded_channel();
        let runtime = Handle::current();
        let name = format!("schedule-{}", self.number);
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || {
                wake_precisely();
                let punctuality = self.follow(&runtime, schedule, requests, &stop, &started);
                (self, punctuality)
            })
            .context("starting the thread that keeps the schedule")?;
        let mut waiting = FuturesUnordered::new();
        let (mut open, mut failures) = (true, 0);
        while open || !waiting.is_empty() {
            tokio::select! {
                // What has ended is noted before more is taken up.
                biased;
                Some(outcome) = waiting.next() => failures += u64::from(outcome == Outcome::Failed),
                request = to_await.recv(), if open => match request {
                    Some(request) => waiting.push(request),
                    None => open = false,
                },
            }
            if failures >= FAILURES_MAX {
                // The thread stops at the next request that it cannot hand over.
                to_await.close();
            }
        }
        // It has dropped its end of the channel, or will at its next request: this is a short wait.
        let ended = tokio::task::spawn_blocking(move || thread.join()).await;
        let (mut stream, punctuality) = ended
            .context("waiting for the thread that keeps the schedule")?
            .map_err(|_| anyhow!("the thread that keeps the schedule panicked"))?;
        stream.failures += failures;
        Ok((stream, punctuality))
    }

    fn follow(
        &mut self,
        runtime: &Handle,
        schedule: Schedule,
        requests: u64,
        stop: &AtomicBool,
        started: &mpsc::UnboundedSender<InFlight>,
    ) -> Punctuality {
        let mut punctuality = Punctuality::default();
        // How long requests waited for room in the window since one was on time.
        let mut held_ns = 0;
        let give_up_ns = schedule.due_ns(requests).saturating_add(OVERRUN_NS);
        for index in 0..requests {
            let due_ns = schedule.due_ns(index);
            let mut now_ns = self.run.clock.now_ns();
            while now_ns < due_ns {
                std::thread::sleep(Duration::from_nanos(due_ns - now_ns));
                now_ns = self.run.clock.now_ns();
            }
            if stop.load(Ordering::Relaxed) {
                break;
            }
            if now_ns > give_up_ns {
                punctuality.note_missed(requests - index, due_ns, now_ns, held_ns);
                break;
            }
            if now_ns <= due_ns + LATE_AFTER_NS {
                held_ns = 0;
            }
            punctuality.note(due_ns, now_ns, held_ns);
            let messages = self.batch;
            let request = runtime.block_on(self.start(due_ns, messages));
            if self.window_is_full() {
                held_ns += self.run.clock.now_ns() - now_ns;
            }
            if request.is_some_and(|request| started.send(request).is_err()) {
                break;
            }
        }
        punctuality
    }

    /// Whether the client takes nothing more until something was acknowledged: then the request before
    /// waited, and this one would.
    fn window_is_full(&self) -> bool {
        let (messages, bytes) = self.lane.producer.in_flight();
        // The client counts what a record takes beside its body too.
        let next_bytes = self.batch as usize * (self.template.body_bytes() + RECORD_EXTRA_BYTES);
        messages + self.batch as usize > WINDOW_MESSAGES_OPEN
            || bytes + next_bytes > WINDOW_BYTES_OPEN
    }

    /// Gives the client one request. `None` when it failed before it was taken.
    async fn start(&mut self, due_ns: u64, messages: u64) -> Option<InFlight> {
        let sent_ns = self.run.clock.now_ns();
        let first = self.template.made();
        let message = |(sequence, body): (u64, Bytes)| {
            let message = Message::new(Arc::clone(&self.lane.topic), body);
            match self.keys.of(sequence) {
                Some(key) => message.key(key),
                None => message,
            }
        };
        let bodies = self.template.next_batch(due_ns, messages);
        let bytes = bodies.iter().map(|(_, body)| body.len() as u64).sum();
        let mut batch: Vec<Message> = bodies.into_iter().map(message).collect();
        let mut request: Pin<Box<dyn Future<Output = ringmq::Result<()>> + Send>> =
            match batch.pop_if(|_| messages == 1) {
                Some(single) => match self.lane.producer.enqueue(single).await {
                    Ok(delivery) => Box::pin(async move { delivery.await.map(drop) }),
                    Err(error) => {
                        self.run.note_failed(1, error);
                        self.failures += 1;
                        return None;
                    }
                },
                None => {
                    let producer = self.lane.producer.clone();
                    Box::pin(async move { producer.send_batch(batch).await.map(drop) })
                }
            };
        self.run.note_sent(messages);
        // A batch is on its way only once it was polled: now, or the next might overtake it.
        let early = poll_fn(|context| Poll::Ready(request.as_mut().poll(context))).await;
        let (run, stream) = (Arc::clone(&self.run), self.number);
        let topic = self.lane.topic_number;
        Some(Box::pin(async move {
            let result = match early {
                Poll::Ready(result) => result,
                Poll::Pending => request.await,
            };
            let done_ns = run.clock.now_ns();
            match result {
                Ok(()) => {
                    let sample = Sample { due_ns, sent_ns, done_ns, messages, bytes };
                    run.note_acknowledged(topic, stream, first, sample);
                    Outcome::Acknowledged
                }
                Err(error) => {
                    run.note_failed(messages, error);
                    Outcome::Failed
                }
            }
        }))
    }
}

/// Linux rounds a thread's sleeps up by 50 µs to save power; this thread's by next to nothing.
#[cfg(target_os = "linux")]
fn wake_precisely() {
    // Without it the schedule is 50 µs coarser, and the report's punctuality shows it.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
}

#[cfg(not(target_os = "linux"))]
fn wake_precisely() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_many_and_spread() {
        assert_eq!(Keys::None.of(5), None);
        assert_eq!(Keys::RoundRobin.of(10_003).as_deref(), Some("key-0003"));
        let seen: std::collections::HashSet<_> = (0..50_000).map(|n| Keys::Random.of(n)).collect();
        assert!(seen.len() > 9_000, "{} of 10000 keys in 50000 messages", seen.len());
    }
}
