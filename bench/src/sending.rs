//! The sending side of a run as a whole: streams over producers, in one piece or in slices.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use ringmq::Producer;

use crate::args::{Load, Rate};
use crate::load::{Keys, Lane, Stream, Until};
use crate::payload::{Fillers, Template};
use crate::run::Run;
use crate::schedule::{Punctuality, Schedule};

/// All streams of a run.
pub struct Sending {
    run: Arc<Run>,
    streams: Vec<Stream>,
    load: Load,
    messages_left: u64,
    warm_up_ns: u64,
    measured_ns: u64,
    punctuality: Option<Punctuality>,
    stop: Arc<AtomicBool>,
}

impl Sending {
    /// Streams for `load` on `producers`, at most `messages` in all.
    pub fn new(
        run: &Arc<Run>,
        producers: &[Producer],
        topic: &str,
        load: &Load,
        messages: u64,
        warm_up: Duration,
    ) -> Sending {
        let wanted = load.producers.max(u32::try_from(producers.len()).unwrap_or(u32::MAX));
        let number = match load.rate {
            // A stream without a request to keep in flight has nothing to do.
            Rate::Max => wanted.min(load.in_flight),
            Rate::PerSecond(_) => wanted,
        };
        let topic: Arc<str> = topic.into();
        let lane = |number: u32| Lane {
            producer: producers[number as usize % producers.len()].clone(),
            topic: Arc::clone(&topic),
            topic_number: 0,
        };
        let lanes = (0..number).map(lane).collect();
        Sending::over(run, lanes, load, None, Keys::None, messages, warm_up)
    }

    /// A stream on each lane; bodies of `fillers` where given, of noise otherwise.
    pub fn over(
        run: &Arc<Run>,
        lanes: Vec<Lane>,
        load: &Load,
        fillers: Option<&Fillers>,
        keys: Keys,
        messages: u64,
        warm_up: Duration,
    ) -> Sending {
        let stream = |(number, lane)| {
            let template = match fillers {
                Some(fillers) => Template::of(run.id, number, fillers),
                None => Template::new(run.id, number, load.size),
            };
            Stream::new(run, lane, number, template, keys, load.batch as usize)
        };
        Sending {
            run: Arc::clone(run),
            streams: (0..).zip(lanes).map(stream).collect(),
            load: load.clone(),
            messages_left: messages,
            warm_up_ns: nanoseconds(warm_up),
            measured_ns: 0,
            punctuality: None,
            stop: Arc::default(),
        }
    }

    /// Lets the warm-up begin now: all that was set up before is in no figure.
    pub fn warm_up_for(&mut self, warm_up: Duration) {
        self.run.warm_up_for(warm_up);
        self.warm_up_ns = self.run.warm_up_ns();
    }

    /// What ends a slice early when it becomes true.
    pub fn stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Sends for `duration` or until all messages are sent, and waits for the last answer.
    pub async fn slice(&mut self, duration: Duration) -> anyhow::Result<()> {
        let start_ns = self.run.clock.now_ns();
        let sent_before = self.run.progress().sent;
        match self.load.rate {
            Rate::Max => self.closed_loops(start_ns + nanoseconds(duration)).await,
            Rate::PerSecond(rate) => self.open_loops(start_ns, rate, duration).await?,
        }
        let sent = self.run.progress().sent - sent_before;
        self.messages_left = self.messages_left.saturating_sub(sent);
        let end_ns = self.run.clock.now_ns();
        self.measured_ns += end_ns.saturating_sub(start_ns.max(self.warm_up_ns));
        Ok(())
    }

    /// Whether all messages are sent, or sending has failed for good.
    pub fn is_done(&self) -> bool {
        self.messages_left == 0 || self.streams.iter().all(Stream::has_given_up)
    }

    /// Time of load, without the warm-up and what was between slices.
    pub fn measured_ns(&self) -> u64 {
        self.measured_ns
    }

    /// How well the schedule was kept; `None` in a closed loop.
    pub fn punctuality(&self) -> Option<Punctuality> {
        self.punctuality
    }

    async fn closed_loops(&mut self, time_ns: u64) {
        let streams = self.streams.len() as u64;
        let in_flight = u64::from(self.load.in_flight);
        let left = self.messages_left;
        let loops = self.streams.iter_mut().enumerate().map(|(at, stream)| {
            let messages = stream.made().saturating_add(share(left, streams, at as u64));
            let in_flight = share(in_flight, streams, at as u64).max(1);
            let until = Until { time_ns, messages, stop: Arc::clone(&self.stop) };
            stream.closed_loop(in_flight as usize, until)
        });
        join_all(loops).await;
    }

    async fn open_loops(
        &mut self,
        start_ns: u64,
        rate: u64,
        duration: Duration,
    ) -> anyhow::Result<()> {
        let batch = u64::from(self.load.batch);
        let number = self.streams.len() as u64;
        // The first request is due when the threads that send it are there.
        let start_ns = start_ns + 20_000_000;
        let whole = Schedule::new(start_ns, rate, batch);
        let requests = whole.requests_in(nanoseconds(duration)).min(self.messages_left / batch);
        let streams =
            std::mem::take(&mut self.streams).into_iter().enumerate().map(|(at, stream)| {
                // Stream k has the requests k, k + n, k + 2n ... of the whole schedule.
                let first_ns = whole.due_ns(at as u64);
                let schedule = Schedule::new(first_ns, rate, batch * number);
                let stop = Arc::clone(&self.stop);
                stream.open_loop(schedule, share(requests, number, at as u64), stop)
            });
        for (stream, punctuality) in try_join_all(streams).await? {
            self.streams.push(stream);
            self.punctuality.get_or_insert_default().merge(punctuality);
        }
        Ok(())
    }
}

/// What part `at` of `parts` gets of `whole`; the first parts get the remainder.
fn share(whole: u64, parts: u64, at: u64) -> u64 {
    whole / parts + u64::from(at < whole % parts)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn shares_add_up() {
        for (whole, parts) in [(10, 3), (2, 4), (0, 1), (1_000_001, 7)] {
            assert_eq!((0..parts).map(|at| share(whole, parts, at)).sum::<u64>(), whole);
        }
    }
}
