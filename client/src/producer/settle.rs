//! What becomes of a batch that was answered, refused, cut off or late.

use super::engine::Engine;
use super::lane::{Batch, Class};
use super::receipt::{SendStatus, Stored};
use super::state::{InFlight, State};
use crate::connection::Answer;
use crate::error::{Error, ErrorKind, Result};
use ringmq_schema::error::{Retry, Status};
use ringmq_schema::produce::ProduceAnswer;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pause before the same broker is asked again, when it names none: first and longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

impl Engine {
    /// The answer of a batch came, or its connection ended.
    pub(super) fn finished(self: &Arc<Self>, id: u64, answer: Result<Answer>) {
        let now = Instant::now();
        let mut guard = self.lock();
        let state = &mut *guard;
        // Absent: it was late, and its messages know that.
        let Some(InFlight { batch, lane, sent, .. }) = state.in_flight.remove(&id) else { return };
        state.lanes[lane].in_flight -= 1;
        let queue = Arc::clone(&state.lanes[lane].queue);
        match answer.and_then(|answer| read_stored(&answer, &batch, &queue)) {
            Ok(stored) => {
                state.faults.answered(&queue.broker, now - sent, now);
                state.ended.push((batch, Ok(stored)));
            }
            Err(error) => self.failed(state, lane, batch, error, now),
        }
        self.dispatch(state, lane, now, None);
        if state.lanes[lane].open.is_some() && !state.lanes[lane].listed {
            state.list(lane);
        }
        if !state.to_flush.is_empty() || state.closed {
            self.work.notify_one();
        }
        self.leave(guard);
    }

    /// An attempt failed: sends again where that can help, or tells.
    pub(super) fn failed(
        self: &Arc<Self>,
        state: &mut State,
        lane: usize,
        mut batch: Batch,
        error: Error,
        now: Instant,
    ) {
        let retry = retry_of(&error);
        batch.tries += 1;
        batch.maybe_stored |= error.kind() == ErrorKind::Unknown;
        // An attempt that reached nobody costs none of the retries: the deadline bounds it.
        batch.attempts += u32::from(error.kind() != ErrorKind::Unreachable);
        let class = state.lanes[lane].class;
        let used_up = class != Class::Ordered && batch.attempts > self.settings.retries;
        if retry == Retry::Never || used_up || now >= batch.deadline {
            return end(state, lane, batch, error);
        }
        let queue = Arc::clone(&state.lanes[lane].queue);
        match (retry, error.status()) {
            (Retry::Elsewhere, Some(Status::Busy)) => {
                state.faults.answered(&queue.broker, Duration::from_millis(550), now);
            }
            (Retry::Elsewhere, _) => state.faults.failed(&queue.broker, now),
            (Retry::AfterRefresh, _) => {
                state.to_refresh.push(Arc::clone(&queue.topic));
                self.work.notify_one();
            }
            _ => {}
        }
        tracing::debug!(%queue, %error, tries = batch.tries, "sending again");
        let pause = error.retry_after().unwrap_or_else(|| pause_after(batch.tries));
        batch.last_error = Some(error);
        if class != Class::Ordered
            && retry != Retry::Here
            && let Some(other) = state.other_lane(lane, now)
            && state.lanes[other].queue.broker != queue.broker
        {
            state.lanes[other].sealed.push_back(batch);
            return self.dispatch(state, other, now, None);
        }
        let at = &mut state.lanes[lane];
        at.sealed.push_front(batch);
        at.blocked_until = Some(now + pause);
        self.work.notify_one();
    }

    /// Ends batches whose deadline passed, and moves those whose queue is gone.
    pub(super) fn sweep(self: &Arc<Self>, state: &mut State, now: Instant) {
        let late: Vec<u64> = state
            .in_flight
            .iter()
            .filter(|(_, flying)| flying.batch.deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            let Some(InFlight { batch, lane, connection, correlation, .. }) =
                state.in_flight.remove(&id)
            else {
                continue;
            };
            connection.forget(correlation);
            state.lanes[lane].in_flight -= 1;
            let broker = Arc::clone(&state.lanes[lane].queue.broker);
            state.faults.failed(&broker, now);
            let text = "the broker did not answer before the deadline; the message may be stored";
            end(state, lane, batch, Error::new(ErrorKind::Unknown, "send", text));
        }
        for lane in 0..state.lanes.len() {
            if state.lanes[lane].target.is_none() {
                self.move_away(state, lane, now);
            }
            let at = &mut state.lanes[lane];
            if at.open.as_ref().is_some_and(|open| open.deadline <= now) {
                at.seal();
            }
            if !at.sealed.iter().any(|batch| batch.deadline <= now) {
                continue;
            }
            for batch in std::mem::take(&mut state.lanes[lane].sealed) {
                if batch.deadline > now {
                    state.lanes[lane].sealed.push_back(batch);
                    continue;
                }
                let text = "it could not be sent before the deadline";
                end(state, lane, batch, Error::new(ErrorKind::Timeout, "send", text));
            }
        }
    }

    /// The lane's queue is no longer in the route.
    fn move_away(self: &Arc<Self>, state: &mut State, lane: usize, now: Instant) {
        state.lanes[lane].seal();
        for batch in std::mem::take(&mut state.lanes[lane].sealed) {
            let other = match state.lanes[lane].class {
                // Its queue may come back before the deadline: a broker that restarts.
                Class::Ordered => None,
                _ => state.other_lane(lane, now).filter(|other| *other != lane),
            };
            match other {
                Some(other) => {
                    state.lanes[other].sealed.push_back(batch);
                    self.dispatch(state, other, now, None);
                }
                None => state.lanes[lane].sealed.push_back(batch),
            }
        }
    }
}

fn read_stored(answer: &Answer, batch: &Batch, queue: &Arc<crate::route::Queue>) -> Result<Stored> {
    let table = answer.read::<ProduceAnswer<'_>>("send")?;
    if table.records() != batch.records {
        let (sent, stored) = (batch.records, table.records());
        return Err(Error::protocol("send", format!("{sent} records sent, {stored} answered")));
    }
    let status = match table.status().0 {
        1 => SendStatus::FlushDiskTimeout,
        2 => SendStatus::FlushSlaveTimeout,
        3 => SendStatus::SlaveNotAvailable,
        _ => SendStatus::SendOk,
    };
    let (queue, position) = (Arc::clone(queue), table.position());
    Ok(Stored { queue, base_offset: table.base_offset(), position, status })
}

fn retry_of(error: &Error) -> Retry {
    match (error.status(), error.kind()) {
        (Some(status), _) => status.retry(),
        (None, ErrorKind::Unreachable | ErrorKind::Unknown) => Retry::Elsewhere,
        _ => Retry::Never,
    }
}

/// Tells the messages of a batch that they failed, and how.
fn end(state: &mut State, lane: usize, mut batch: Batch, error: Error) {
    let queue = state.lanes[lane].queue.to_string();
    let maybe_stored = batch.maybe_stored && error.kind() != ErrorKind::Unknown;
    let mut error = error.during("send").on(queue);
    if maybe_stored {
        let text = format!("an attempt may have stored it, and the last one failed: {error}");
        error = Error::new(ErrorKind::Unknown, "send", text).on(error.target()).because(error);
    } else if let (ErrorKind::Timeout, Some(last)) = (error.kind(), batch.last_error.take()) {
        error.say(format!("it could not be sent before the deadline; last: {last}"));
        error = error.because(last);
    }
    state.ended.push((batch, Err(error)));
}

fn pause_after(tries: u32) -> Duration {
    (PAUSE.0 * 2u32.saturating_pow(tries.saturating_sub(1).min(8))).min(PAUSE.1)
}
