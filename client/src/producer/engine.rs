//! Takes messages into batches and sends batches.
//!
//! A message is built once, into the buffer of its batch. When nothing is on its way, the batch is written
//! to the socket at once, by the task that sends; otherwise the driver sends what has gathered as soon as
//! every task that is ready to send has done so.
//!
//! Invariants:
//! - every message that was taken is told its outcome exactly once, and gives its room back then;
//! - outcomes are told with the state unlocked.

use super::builder::Settings;
use super::lane::{Batch, Class};
use super::receipt::{Delivery, Stored};
use super::state::{InFlight, State};
use super::window::{Taken, Window};
use crate::connection::{Connection, Done, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Flush, Message, MessageId, unix_ms};
use crate::pool::{Key, Pool, Purpose};
use crate::route::Routes;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::produce::{self, Produce, ProduceArgs};
use ringmq_schema::{limits, record};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Notify, watch};

/// One-way messages are dropped while so many bytes wait for their connection: nothing else bounds them.
const ONE_WAY_UNWRITTEN_MAX: usize = 16 << 20;
/// What a record takes beside body, properties, keys and tag, about.
const RECORD_EXTRA: usize = record::HEADER_BYTES + 64;

/// See the module.
pub(crate) struct Engine {
    pub(super) pool: Arc<Pool>,
    pub(super) routes: Arc<Routes>,
    pub(super) settings: Settings,
    pub(super) window: Window,
    /// Wakes the driver.
    pub(super) work: Notify,
    /// The driver has ended: everything taken has its outcome.
    pub(super) driven: watch::Sender<bool>,
    state: Mutex<State>,
}

impl Engine {
    pub(super) fn new(pool: Arc<Pool>, routes: Arc<Routes>, settings: Settings) -> Engine {
        let window = Window::new(settings.max_in_flight, settings.max_in_flight_bytes);
        Engine {
            pool,
            routes,
            settings,
            window,
            work: Notify::new(),
            driven: watch::Sender::new(false),
            state: Mutex::new(State::new()),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens with the state locked")
    }

    /// Releases the state and tells the outcomes that were found under it.
    pub(super) fn leave(&self, mut state: MutexGuard<'_, State>) {
        if state.ended.is_empty() {
            return;
        }
        let ended = std::mem::take(&mut state.ended);
        drop(state);
        let mut batches = Vec::with_capacity(ended.len());
        for (batch, result) in ended {
            self.window.give_back(batch.room);
            batch.outcome.resolve(result);
            batches.push(batch);
        }
        let mut state = self.lock();
        for batch in batches {
            state.recycle(batch, self.settings.batch_bytes);
        }
    }

    /// Takes a message, if its topic's route is known (otherwise `None`, and nothing happened).
    pub(super) fn accept(
        self: &Arc<Self>,
        message: &Message,
        taken: &mut Option<Taken<'_>>,
        one_way: bool,
        deadline: Instant,
    ) -> Result<Option<Delivery>> {
        let now = Instant::now();
        let mut guard = self.lock();
        let Some(lane) = self.lane_with_room(&mut guard, message, one_way, now)? else {
            return Ok(None);
        };
        let state = &mut *guard;
        let flush = self.flush_of(message);
        let (message_id, born_ms) = state.identity_of(message, unix_ms(SystemTime::now()));
        let target =
            state.lanes[lane].target.as_ref().expect("the route has lanes that are chosen");
        let addressed = (target.topic_id, target.queue.id);
        let spare = &mut state.spare;
        let open = state.lanes[lane].open.get_or_insert_with(|| {
            Batch::new(spare.pop().unwrap_or_default(), flush, addressed, now, deadline)
        });
        let (topic_id, queue) = open.addressed;
        open.delayed = message.deliver_ms != 0;
        let at = open.building.len() as u64;
        let (builder, building) = (&mut state.builder, &mut open.building);
        let built = message.with_spec(message_id, born_ms, flush, |spec| {
            builder.append(building, topic_id, queue, spec)
        });
        if let Err(error) = built {
            if open.records == 0 {
                state.lanes[lane].open = None;
            }
            return Err(Error::invalid("send", error).on(message.topic()));
        }
        let delivery = Delivery {
            message_id: MessageId(message_id),
            outcome: Arc::clone(&open.outcome),
            index: open.records,
            at,
            due_ms: message.deliver_ms,
            accept_weaker: self.settings.accept_weaker,
        };
        open.records += 1;
        open.deadline = open.deadline.min(deadline);
        open.room.add(taken.take().expect("room is taken before a message is").keep());
        let full = open.building.len() >= self.settings.batch_bytes
            || open.records as usize >= limits::BATCH_RECORDS_MAX;
        let idle = self.settings.linger.is_zero() && state.in_flight.is_empty() && !one_way;
        if full || (idle && state.lanes[lane].has_room(now)) {
            state.lanes[lane].seal();
            self.dispatch(state, lane, now, None);
        } else if !state.lanes[lane].listed {
            state.list(lane);
            self.work.notify_one();
        }
        self.leave(guard);
        Ok(Some(delivery))
    }

    /// Takes messages as one batch of its own; they were checked to be alike.
    pub(super) fn accept_batch(
        self: &Arc<Self>,
        messages: &[Message],
        taken: &mut Option<Taken<'_>>,
        deadline: Instant,
    ) -> Result<Option<Vec<Delivery>>> {
        let now = Instant::now();
        let mut guard = self.lock();
        let first = messages.first().expect("checked not to be empty");
        let Some(lane) = self.lane_with_room(&mut guard, first, false, now)? else {
            return Ok(None);
        };
        let state = &mut *guard;
        let target =
            state.lanes[lane].target.as_ref().expect("the route has lanes that are chosen");
        let addressed = (target.topic_id, target.queue.id);
        let flush = self.flush_of(first);
        let buffer = state.spare.pop().unwrap_or_default();
        let mut batch = Batch::new(buffer, flush, addressed, now, deadline);
        let now_ms = unix_ms(SystemTime::now());
        let mut deliveries = Vec::with_capacity(messages.len());
        for message in messages {
            let (message_id, born_ms) = state.identity_of(message, now_ms);
            let at = batch.building.len() as u64;
            let (builder, building) = (&mut state.builder, &mut batch.building);
            let built = message.with_spec(message_id, born_ms, flush, |spec| {
                builder.append(building, addressed.0, addressed.1, spec)
            });
            built.map_err(|error| Error::invalid("send", error).on(message.topic()))?;
            deliveries.push(Delivery {
                message_id: MessageId(message_id),
                outcome: Arc::clone(&batch.outcome),
                index: batch.records,
                at,
                due_ms: message.deliver_ms,
                accept_weaker: self.settings.accept_weaker,
            });
            batch.records += 1;
        }
        if batch.building.len() > limits::BATCH_BYTES_MAX {
            let (bytes, max) = (batch.building.len(), limits::BATCH_BYTES_MAX);
            let text = format!("the batch has {bytes} bytes, at most {max} are allowed");
            return Err(Error::invalid("send", text).on(first.topic()));
        }
        batch.room = taken.take().expect("room is taken before a message is").keep();
        let lane_state = &mut state.lanes[lane];
        // What was taken before goes before.
        lane_state.seal();
        lane_state.sealed.push_back(batch.seal());
        self.dispatch(state, lane, now, None);
        self.leave(guard);
        Ok(Some(deliveries))
    }

    /// The lane for a message, with an open batch that has room for it or none.
    fn lane_with_room(
        self: &Arc<Self>,
        state: &mut State,
        message: &Message,
        one_way: bool,
        now: Instant,
    ) -> Result<Option<usize>> {
        if state.closed {
            return Err(Error::closed("send").on(message.topic()));
        }
        self.catch_up(state);
        let mut lane = state.lane_for(message, one_way, now)?;
        if lane.is_none() {
            let Some(route) = self.routes.known(&message.topic) else { return Ok(None) };
            state.take_route(&message.topic, route);
            lane = state.lane_for(message, one_way, now)?;
        }
        let Some(lane) = lane else {
            let text =
                "no queue of the topic takes messages: its permission or its brokers forbid it";
            return Err(Error::new(ErrorKind::Busy, "send", text).on(message.topic()));
        };
        let Some(open) = &state.lanes[lane].open else { return Ok(Some(lane)) };
        let bytes = open.building.len() + estimate(message);
        // A batch is delayed as a whole or not at all.
        let is_alike =
            open.flush == self.flush_of(message) && open.delayed == (message.deliver_ms != 0);
        if bytes <= self.settings.batch_bytes && is_alike {
            return Ok(Some(lane));
        }
        state.lanes[lane].seal();
        self.dispatch(state, lane, now, None);
        // A plain message now begins a batch on the next queue.
        state.lane_for(message, one_way, now)
    }

    fn flush_of(&self, message: &Message) -> Flush {
        match message.flush {
            Flush::Default => self.settings.flush,
            flush => flush,
        }
    }

    /// Takes over routes that changed.
    pub(super) fn catch_up(&self, state: &mut State) {
        let epoch = self.routes.epoch();
        if state.epoch == epoch {
            return;
        }
        state.epoch = epoch;
        let topics: Vec<Arc<str>> = state.topics.keys().cloned().collect();
        for topic in topics {
            if let Some(route) = self.routes.known_or_empty(&topic) {
                state.take_route(&topic, route);
            }
        }
    }

    /// Sends what may leave the lane. With `corked`, the connection is noted there, and its bytes wait.
    pub(super) fn dispatch(
        self: &Arc<Self>,
        state: &mut State,
        lane: usize,
        now: Instant,
        mut corked: Option<&mut Vec<Arc<Connection>>>,
    ) {
        while state.lanes[lane].has_room(now) && !state.lanes[lane].sealed.is_empty() {
            let Some(connection) = self.connection_of(state, lane) else { return };
            let at = &mut state.lanes[lane];
            let (Some(target), Some(mut batch)) = (at.target.clone(), at.sealed.pop_front()) else {
                return;
            };
            let one_way = at.class == Class::OneWay;
            if one_way && connection.unwritten_bytes() > ONE_WAY_UNWRITTEN_MAX {
                let error = Error::new(ErrorKind::Busy, "send", "the connection is congested");
                state.ended.push((batch, Err(error)));
                continue;
            }
            batch.address(target.topic_id, target.queue.id);
            state.batches += 1;
            let id = state.batches;
            let started =
                self.start(&connection, &batch, target.shard, id, one_way, corked.is_some());
            let correlation = match started {
                Ok(correlation) => correlation,
                Err(_closed) => {
                    // Nothing was sent: a new connection takes it.
                    at.connection = None;
                    at.sealed.push_front(batch);
                    continue;
                }
            };
            if let Some(corked) = corked.as_deref_mut()
                && !corked.iter().any(|other| Arc::ptr_eq(other, &connection))
            {
                corked.push(Arc::clone(&connection));
            }
            if one_way {
                let queue = Arc::clone(&target.queue);
                let status = super::SendStatus::SendOk;
                state
                    .ended
                    .push((batch, Ok(Stored { queue, base_offset: 0, position: 0, status })));
                continue;
            }
            at.in_flight += 1;
            state
                .in_flight
                .insert(id, InFlight { batch, lane, connection, correlation, sent: now });
        }
    }

    /// The lane's connection when it is open; otherwise the driver is told to open it.
    fn connection_of(&self, state: &mut State, lane: usize) -> Option<Arc<Connection>> {
        let at = &mut state.lanes[lane];
        if let Some(connection) = at.connection.as_ref().filter(|c| !c.is_closed()) {
            return Some(Arc::clone(connection));
        }
        // Without a target the driver moves the lane's batches.
        let target = at.target.as_ref()?;
        let address = Arc::clone(&target.address);
        let key = Key { address, shard: target.shard, purpose: Purpose::Produce };
        at.connection = self.pool.ready(&key);
        if at.connection.is_none() && !std::mem::replace(&mut at.connecting, true) {
            state.to_connect.push((key, lane));
            self.work.notify_one();
        }
        state.lanes[lane].connection.clone()
    }

    fn start(
        self: &Arc<Self>,
        connection: &Connection,
        batch: &Batch,
        shard: u16,
        id: u64,
        one_way: bool,
        corked: bool,
    ) -> Result<u64> {
        let (topic, queue) = batch.addressed;
        let timeout = batch.deadline.saturating_duration_since(Instant::now());
        let table = ProduceArgs {
            topic,
            queue,
            records: batch.records,
            flush: produce::Flush(batch.flush.code()),
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1),
        };
        let mut request = Request::new(Opcode::Produce, "send").shard(shard);
        request.one_way = one_way;
        let done = (!one_way).then(|| {
            let engine = Arc::clone(self);
            let done: Done = Box::new(move |answer| engine.finished(id, answer));
            done
        });
        connection.start(request, |fbb| Produce::create(fbb, &table), &batch.run, done, corked)
    }

    /// Takes nothing more; the driver ends when all is settled.
    pub(super) fn stop_taking(&self) {
        self.lock().closed = true;
        self.work.notify_one();
    }

    /// Gives up everything that is left.
    pub(super) fn abandon(&self) {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.closed = true;
        for flying in std::mem::take(&mut state.in_flight).into_values() {
            flying.connection.forget(flying.correlation);
            let text = "the producer was closed before the answer came; it may be stored";
            let error = Error::new(ErrorKind::Unknown, "send", text);
            state.ended.push((flying.batch, Err(error)));
        }
        for lane in &mut state.lanes {
            lane.in_flight = 0;
            lane.seal();
            for batch in lane.sealed.drain(..) {
                state.ended.push((batch, Err(Error::closed("send"))));
            }
        }
        self.leave(guard);
        self.work.notify_one();
    }

    /// Waits until the driver has ended, at most `limit`; then gives up the rest.
    pub(super) async fn close(&self, limit: Duration) -> Result<()> {
        self.stop_taking();
        let mut driven = self.driven.subscribe();
        if tokio::time::timeout(limit, driven.wait_for(|driven| *driven)).await.is_ok() {
            return Ok(());
        }
        let (messages, _) = self.window.in_use();
        self.abandon();
        let text = format!("{messages} messages had no acknowledgement within {limit:?}");
        Err(Error::new(ErrorKind::Unknown, "close producer", text).on(self.settings.name.as_str()))
    }
}

/// Bytes of a message's record, about.
pub(super) fn estimate(message: &Message) -> usize {
    let properties: usize = message.properties.iter().map(|(k, v)| k.len() + v.len() + 32).sum();
    let keys: usize = message.keys.iter().map(|key| key.len() + 12).sum();
    let texts =
        [&message.tag, &message.group].into_iter().flatten().map(String::len).sum::<usize>();
    RECORD_EXTRA + message.body.len() + properties + keys + texts
}
