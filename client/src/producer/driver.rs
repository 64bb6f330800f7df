//! The producer's task: flushes what has gathered, opens connections, asks for routes, watches deadlines.
//!
//! It sleeps while there is nothing of that to do.

use super::engine::Engine;
use super::state::State;
use crate::connection::Connection;
use crate::error::Result;
use crate::pool::Key;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Deadlines are looked at this often while anything waits.
const SWEEP: Duration = Duration::from_millis(25);

/// What a turn leaves to do that takes time.
#[derive(Default)]
struct Errands {
    connect: Vec<(Key, usize)>,
    refresh: Vec<Arc<str>>,
    /// When to look again.
    next: Option<Instant>,
    done: bool,
}

impl Engine {
    /// Runs until the producer is closed and everything it took has its outcome.
    pub(super) async fn drive(self: Arc<Self>) {
        let mut jobs = JoinSet::new();
        let mut sweep_at = Instant::now();
        loop {
            let errands = self.turn(&mut sweep_at);
            for (key, lane) in errands.connect {
                let engine = Arc::clone(&self);
                jobs.spawn(async move {
                    let connection = engine.pool.get(&key).await;
                    engine.connected(lane, connection);
                });
            }
            for topic in errands.refresh {
                let engine = Arc::clone(&self);
                jobs.spawn(async move {
                    if let Err(error) = engine.routes.refresh(&topic).await {
                        tracing::debug!(%error, "cannot refresh the route");
                    }
                });
            }
            if errands.done {
                break;
            }
            let next = errands.next.map(tokio::time::Instant::from_std);
            tokio::select! {
                // Every task that is ready to send does so first; then one frame takes it all.
                () = self.work.notified() => tokio::task::yield_now().await,
                () = sleep_until(next) => {}
                _ = jobs.join_next(), if !jobs.is_empty() => {}
            }
        }
        jobs.shutdown().await;
        self.driven.send_replace(true);
    }

    fn turn(self: &Arc<Self>, sweep_at: &mut Instant) -> Errands {
        let now = Instant::now();
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut corked = Vec::new();
        let mut errands = Errands::default();
        self.catch_up(state);
        self.flush_gathered(state, now, &mut corked, &mut errands);
        if now >= *sweep_at {
            self.sweep(state, now);
            *sweep_at = now + SWEEP;
        }
        self.unblock(state, now, &mut corked, &mut errands);
        for connection in corked {
            connection.uncork();
        }
        errands.connect = std::mem::take(&mut state.to_connect);
        errands.refresh = std::mem::take(&mut state.to_refresh);
        errands.refresh.dedup();
        let drained = state.is_drained();
        if !drained {
            errands.next = Some(errands.next.map_or(*sweep_at, |next| next.min(*sweep_at)));
        }
        errands.done = drained && state.closed;
        self.leave(guard);
        errands
    }

    /// Sends open batches that have waited long enough.
    fn flush_gathered(
        self: &Arc<Self>,
        state: &mut State,
        now: Instant,
        corked: &mut Vec<Arc<Connection>>,
        errands: &mut Errands,
    ) {
        for lane in std::mem::take(&mut state.to_flush) {
            state.lanes[lane].listed = false;
            let Some(open) = &state.lanes[lane].open else { continue };
            let due = open.opened + self.settings.linger;
            if due > now && !state.closed {
                errands.next = Some(errands.next.map_or(due, |next| next.min(due)));
                state.list(lane);
                continue;
            }
            // Without room it goes on gathering; the next answer lists it again.
            if state.lanes[lane].has_room(now) {
                state.lanes[lane].seal();
                self.dispatch(state, lane, now, Some(corked));
            }
        }
    }

    /// Goes on with lanes whose pause is over.
    fn unblock(
        self: &Arc<Self>,
        state: &mut State,
        now: Instant,
        corked: &mut Vec<Arc<Connection>>,
        errands: &mut Errands,
    ) {
        for lane in 0..state.lanes.len() {
            let Some(until) = state.lanes[lane].blocked_until else { continue };
            if until > now {
                errands.next = Some(errands.next.map_or(until, |next| next.min(until)));
                continue;
            }
            state.lanes[lane].blocked_until = None;
            state.lanes[lane].seal();
            self.dispatch(state, lane, now, Some(corked));
        }
    }

    /// A connection was opened, or could not be.
    fn connected(self: &Arc<Self>, lane: usize, connection: Result<Arc<Connection>>) {
        let now = Instant::now();
        let mut guard = self.lock();
        let state = &mut *guard;
        state.lanes[lane].connecting = false;
        match connection {
            Ok(connection) => {
                state.lanes[lane].connection = Some(connection);
                self.dispatch(state, lane, now, None);
            }
            Err(error) => {
                // From the last, so that the first is in front again.
                let mut waiting = std::mem::take(&mut state.lanes[lane].sealed);
                while let Some(batch) = waiting.pop_back() {
                    self.failed(state, lane, batch, error.clone(), now);
                }
                // The broker may be somewhere else by now.
                let topic = Arc::clone(&state.lanes[lane].queue.topic);
                state.to_refresh.push(topic);
            }
        }
        self.work.notify_one();
        self.leave(guard);
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
