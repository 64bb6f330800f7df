//! Asking shards for messages.
//!
//! Who wants messages asks the shards one after the other, each for what it has; when none has any, a long poll is
//! parked at all of them. Requests are tasks of their own: what they bring is kept for whoever asks next, so that a
//! dropped `receive` loses nothing. A shard at which a long poll is parked has nothing, and is not asked, unless its last
//! answer was full: then there is more, and every call asks for itself.
//!
//! Invariants:
//! - at a shard no more long polls are parked than calls wait, and at most [`POLLS`]: one that is parked when a message
//!   comes in gets it with the write that stores it;
//! - a message whose time is half over is not handed on: it is left to come back.

use super::Settings;
use super::places::{Place, PlaceKey, Places};
use super::receipts::Receipts;
use super::received::Received;
use crate::client::{Client, Closing};
use crate::connection::{Answer, Connection, Request};
use crate::consumer::{Asker, ConsumeFrom};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::Pool;
use crate::record::Record;
use crate::route::Routes;
use ringmq_schema::error::Status;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::pop::{Pop, PopAnswer, PopArgs, PopQueue, Receipt};
use ringmq_schema::record;
use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

/// Longest a broker holds a long poll.
const POLL: Duration = Duration::from_secs(15);
/// Long polls that are parked at a shard.
const POLLS: usize = 8;
/// Bytes of an answer.
const BYTES: u32 = 4 << 20;
/// Pause before a shard is asked again that is not ready.
const BEGIN_PAUSE: Duration = Duration::from_millis(20);
/// Pause when a topic has no queues anywhere.
const PAUSE: Duration = Duration::from_millis(200);

/// See the module.
pub(super) struct Engine {
    settings: Settings,
    routes: Arc<Routes>,
    asker: Asker,
    pub(super) receipts: Receipts,
    places: Places,
    state: Mutex<State>,
    /// Messages came, a long poll ended, or the consumer is closed.
    changed: Notify,
}

/// A connection, or room for one; locked while it is opened.
type Slot = Arc<tokio::sync::Mutex<Option<Arc<Connection>>>>;

#[derive(Default)]
struct State {
    ready: VecDeque<Received>,
    /// Connections of our own: closing them ends the long polls that are parked.
    connections: HashMap<(Arc<str>, u16), Slot>,
    /// Places where the group has begun, and the group's number there.
    begun: HashMap<PlaceKey, u32>,
    /// Long polls, by place.
    parked: HashMap<PlaceKey, usize>,
    /// Places whose last long poll failed.
    failed: HashSet<PlaceKey>,
    /// Places whose last answer was full.
    ample: HashSet<PlaceKey>,
    /// Calls that wait.
    waiting: usize,
    rotation: usize,
    tasks: JoinSet<()>,
    is_closed: bool,
}

impl State {
    /// Whether a place has nothing, as far as is known.
    fn is_bare(&self, place: &PlaceKey) -> bool {
        self.parked.contains_key(place) && !self.ample.contains(place)
    }

    fn unpark(&mut self, place: &PlaceKey, has_failed: bool) {
        if has_failed {
            self.failed.insert(place.clone());
        }
        if let Some(parked) = self.parked.get_mut(place) {
            *parked -= 1;
            if *parked == 0 {
                self.parked.remove(place);
            }
        }
    }
}

/// A call that waits, as long as this lives.
struct Waiting<'a>(&'a Engine);

impl Waiting<'_> {
    fn begin(engine: &Engine) -> Waiting<'_> {
        engine.lock().waiting += 1;
        Waiting(engine)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl Engine {
    pub(super) fn new(client: &Client, settings: Settings) -> Arc<Engine> {
        let (pool, limit) = (client.inner.pool(), client.inner.request_timeout());
        let engine = Arc::new(Engine {
            settings,
            routes: client.inner.routes(),
            asker: Asker { pool: Arc::clone(&pool), limit },
            receipts: Receipts::new(pool, limit),
            places: Places::default(),
            state: Mutex::default(),
            changed: Notify::new(),
        });
        client.inner.register(&engine);
        engine
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics with it locked")
    }

    fn places(&self) -> Arc<Vec<Arc<Place>>> {
        self.places.get(&self.settings, &self.routes)
    }

    /// The group begins everywhere, if it has not yet.
    pub(super) async fn begin_all(&self) -> Result<()> {
        for subscription in &self.settings.subscriptions {
            self.routes.get(&subscription.topic).await?;
        }
        self.places.forget();
        let places = self.places();
        let beginning = places.iter().map(|place| self.begin_soon(place));
        let begun = futures_util::future::join_all(beginning).await;
        // A broker that cannot be reached now begins when it can.
        let all_failed = begun.iter().all(Result::is_err);
        let first = begun.into_iter().find_map(Result::err);
        match first {
            Some(error) if all_failed || !error.is_retryable() => Err(error),
            _ => Ok(()),
        }
    }

    /// The group begins on a shard that answers. One that does not know the topic or the group yet is about to.
    async fn begin_soon(&self, place: &Place) -> Result<u32> {
        let deadline = Instant::now() + self.asker.limit;
        loop {
            match self.begin(place).await {
                Err(error)
                    if error.is_retryable()
                        && error.kind() != ErrorKind::Unreachable
                        && Instant::now() < deadline =>
                {
                    tokio::time::sleep(error.retry_after().unwrap_or(BEGIN_PAUSE)).await;
                }
                ended => return ended,
            }
        }
    }

    /// The group begins on a shard; returns its number there.
    async fn begin(&self, place: &Place) -> Result<u32> {
        if let Some(group_id) = self.lock().begun.get(&place.key()) {
            return Ok(*group_id);
        }
        let group_id = self.asker.group_id(&place.address, &self.settings.group).await?;
        let mut queues = Vec::new();
        if let ConsumeFrom::Time(_) = self.settings.from {
            let at_ms = self.settings.from.at_ms();
            let wanted: Vec<_> = place.queues.keys().map(|q| (place.topic_id, *q, at_ms)).collect();
            for found in self.asker.search(&place.address, place.shard, &wanted).await? {
                match Status::from_code(found.status()) {
                    Status::Ok => {
                        queues.push(PopQueue::new(found.queue(), 0, found.offset() as i64));
                    }
                    status => return Err(Error::of_status("search offsets", status)),
                }
            }
        }
        self.ask(place, group_id, &queues, 0, Duration::ZERO).await?;
        self.lock().begun.insert(place.key(), group_id);
        Ok(group_id)
    }

    /// A connection of this consumer's own.
    async fn connection(&self, place: &Place) -> Result<Arc<Connection>> {
        let slot = {
            let mut state = self.lock();
            let key = (Arc::clone(&place.address), place.shard);
            Arc::clone(state.connections.entry(key).or_default())
        };
        let mut slot = slot.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(Arc::clone(connection));
        }
        let pool: &Pool = &self.asker.pool;
        let opening = pool.opening(place.shard);
        let connection = Connection::open(Arc::clone(&place.address), opening).await?;
        // Looked at after it was opened: `stop` either sees it or is seen here.
        *slot = Some(Arc::clone(&connection));
        if self.lock().is_closed {
            connection.close(Error::closed("receive"));
            return Err(Error::closed("receive"));
        }
        Ok(connection)
    }

    async fn ask(
        &self,
        place: &Place,
        group: u32,
        queues: &[PopQueue],
        max_records: u32,
        wait: Duration,
    ) -> Result<Answer> {
        let connection = self.connection(place).await?;
        let request = Request::new(Opcode::Pop, "receive").shard(place.shard);
        let start = match self.settings.from {
            ConsumeFrom::Last => super::super::AT_LAST,
            // Queues that are added later have nothing from before.
            ConsumeFrom::First | ConsumeFrom::Time(_) => super::super::AT_FIRST,
        };
        let called = connection.call(request, wait + self.asker.limit, |fbb| {
            let tags = place.filter.hashes().map(|hashes| fbb.create_vector(&hashes));
            let sql = place.filter.sql_text().map(|text| fbb.create_string(text));
            let args = PopArgs {
                group,
                topic: place.topic_id,
                queues: Some(fbb.create_vector(queues)),
                start,
                tags,
                sql,
                max_records,
                max_bytes: BYTES,
                invisible_ms: self.settings.invisible.as_millis() as u32,
                wait_ms: wait.as_millis() as u32,
            };
            Pop::create(fbb, &args)
        });
        called.await.map_err(|error| error.on(place.name()))
    }

    /// Asks a shard in a task of its own, which keeps what comes and tells how much that was.
    fn spawn_pop(
        self: &Arc<Self>,
        place: &Arc<Place>,
        max: usize,
        wait: Duration,
    ) -> oneshot::Receiver<Result<usize>> {
        let (done, answered) = oneshot::channel();
        let (engine, place) = (Arc::clone(self), Arc::clone(place));
        let mut state = self.lock();
        if !wait.is_zero() {
            *state.parked.entry(place.key()).or_default() += 1;
        }
        while state.tasks.try_join_next().is_some() {}
        state.tasks.spawn(async move {
            let brought = engine.pop(&place, max, wait).await;
            if let Err(error) = &brought {
                engine.lock().ample.remove(&place.key());
                engine.refresh(&place, error).await;
            }
            if !wait.is_zero() {
                if let Err(error) = &brought {
                    tracing::debug!(%error, "a long poll failed");
                    tokio::time::sleep(PAUSE).await;
                }
                engine.lock().unpark(&place.key(), brought.is_err());
            }
            engine.changed.notify_waiters();
            // Whoever asked may have gone.
            let _ = done.send(brought);
        });
        answered
    }

    /// After a refusal that a newer route may cure.
    async fn refresh(&self, place: &Place, error: &Error) {
        use Status as S;
        if let Some(S::UnknownTopic | S::UnknownQueue | S::UnknownGroup | S::NotMaster) =
            error.status()
        {
            self.lock().begun.remove(&place.key());
            // What is known stays in force while no name server answers.
            let _ = self.routes.refresh(&place.topic).await;
            self.places.forget();
        }
    }

    async fn pop(
        self: &Arc<Self>,
        place: &Arc<Place>,
        max: usize,
        wait: Duration,
    ) -> Result<usize> {
        let group_id = self.begin(place).await?;
        let answer = self.ask(place, group_id, &[], max as u32, wait).await?;
        // Their time began when the broker wrote that down, just before it answered.
        let until = Instant::now() + self.settings.invisible;
        let table = answer.read::<PopAnswer<'_>>("receive")?;
        let run = answer.run();
        let is_full = table.records().is_some_and(|records| records.len() >= max.max(1))
            || run.len() >= BYTES as usize / 2;
        let (mut at, mut received) = (0, Vec::new());
        for popped in table.records().into_iter().flatten() {
            let (end, _) = record::read_one(&run, at)
                .map_err(|error| Error::protocol("receive", error).on(place.name()))?;
            let bytes = run.slice(at..end);
            at = end;
            let receipt =
                Receipt::new(place.topic_id, popped.queue(), popped.offset(), popped.nonce());
            let Some(queue) = place.queues.get(&popped.queue()) else { continue };
            match Record::verify(queue, place.shard, bytes) {
                Ok(record) if place.filter.matches(record.tag()) => {
                    let record = record.on_attempt(u32::from(popped.attempt()));
                    let (place, engine) = (Arc::clone(place), Arc::clone(self));
                    received.push(Received::new(record, receipt, group_id, place, until, engine));
                }
                // Another tag with the same hash: nobody of the group wants it.
                Ok(_) => self.receipts.ack_unseen(place, group_id, receipt),
                // It is handed out again until its attempts are used up.
                Err(error) => {
                    let offset = popped.offset();
                    tracing::error!(%queue, offset, %error, "a message cannot be read");
                }
            }
        }
        let count = received.len();
        let mut state = self.lock();
        if state.is_closed {
            // Nobody takes them any more: they come back when their time is over.
            drop(state);
            return Err(self.closed());
        }
        match is_full {
            true => _ = state.ample.insert(place.key()),
            false => _ = state.ample.remove(&place.key()),
        }
        state.ready.extend(received);
        Ok(count)
    }

    fn take(&self, max: usize) -> Vec<Received> {
        let mut state = self.lock();
        let mut taken = Vec::with_capacity(max.min(state.ready.len()));
        let half_over = Instant::now() + self.settings.invisible / 2;
        while taken.len() < max
            && let Some(message) = state.ready.pop_front()
        {
            if message.until() >= half_over {
                taken.push(message);
            }
        }
        taken
    }

    /// The next place in turn.
    fn turn(&self, places: &[Arc<Place>]) -> Arc<Place> {
        let mut state = self.lock();
        state.rotation = state.rotation.wrapping_add(1);
        Arc::clone(&places[state.rotation % places.len()])
    }

    pub(super) async fn receive(
        self: &Arc<Self>,
        max: usize,
        wait: Duration,
    ) -> Result<Vec<Received>> {
        let deadline = Instant::now() + wait;
        loop {
            let places = self.places();
            let (mut failed, mut brought) = (Vec::new(), 0);
            for _ in 0..places.len() {
                let taken = self.take(max);
                if !taken.is_empty() {
                    return Ok(taken);
                }
                self.check_open()?;
                let place = self.turn(&places);
                if self.lock().is_bare(&place.key()) {
                    continue;
                }
                match self.spawn_pop(&place, max, Duration::ZERO).await {
                    Ok(Ok(count)) => brought += count,
                    Ok(Err(error)) => failed.push(error),
                    Err(_) => return Err(self.closed()),
                }
            }
            let taken = self.take(max);
            if !taken.is_empty() {
                return Ok(taken);
            }
            self.check_open()?;
            let left = deadline.saturating_duration_since(Instant::now());
            match failed.pop() {
                Some(error) if failed.len() + 1 == places.len() || !error.is_retryable() => {
                    return Err(error);
                }
                _ if left.is_zero() => return Ok(Vec::new()),
                // Another call took what came for this one: there may be more.
                _ if brought > 0 => continue,
                _ => {}
            }
            let taken = self.wait(&places, max, deadline).await?;
            if !taken.is_empty() {
                return Ok(taken);
            }
        }
    }

    /// Waits with a long poll parked everywhere, until there is something, the time is over, or they have ended.
    async fn wait(
        self: &Arc<Self>,
        places: &[Arc<Place>],
        max: usize,
        deadline: Instant,
    ) -> Result<Vec<Received>> {
        let _waiting = Waiting::begin(self);
        places.iter().for_each(|place| _ = self.lock().failed.remove(&place.key()));
        let epoch = self.routes.epoch();
        loop {
            self.park(places, max, deadline);
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let taken = self.take(max);
            let (has_parked, is_ample) = {
                let state = self.lock();
                let keys = || places.iter().map(|place| place.key());
                (
                    keys().any(|key| state.parked.contains_key(&key)),
                    keys().any(|key| state.ample.contains(&key)),
                )
            };
            if !taken.is_empty() || is_ample || self.routes.epoch() != epoch {
                return Ok(taken);
            }
            self.check_open()?;
            // Without a place there is nothing to be told of but routes.
            let until = match places.is_empty() {
                true => deadline.min(Instant::now() + PAUSE),
                false if !has_parked => return Ok(Vec::new()),
                false => deadline,
            };
            let waited = tokio::time::timeout_at(until.into(), changed).await;
            if waited.is_err() {
                return Ok(self.take(max));
            }
        }
    }

    /// Parks long polls where there are fewer than calls that wait, but where the last one failed.
    fn park(self: &Arc<Self>, places: &[Arc<Place>], max: usize, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = left.min(POLL).max(Duration::from_millis(1));
        for place in places {
            let wants = {
                let state = self.lock();
                let parked = state.parked.get(&place.key()).copied().unwrap_or_default();
                let wanted = state.waiting.min(POLLS);
                !state.is_closed && parked < wanted && !state.failed.contains(&place.key())
            };
            if wants {
                drop(self.spawn_pop(place, max, wait));
            }
        }
    }

    fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed, "receive", "it was closed").on(self.settings.group.as_str())
    }

    fn check_open(&self) -> Result<()> {
        if self.lock().is_closed { Err(self.closed()) } else { Ok(()) }
    }

    /// Ends long polls and whoever waits; returns what was received and not handed on.
    pub(super) fn stop(&self) -> Vec<Received> {
        let (ready, connections) = {
            let mut state = self.lock();
            state.is_closed = true;
            let connections: Vec<_> = state.connections.drain().map(|(_, slot)| slot).collect();
            (std::mem::take(&mut state.ready), connections)
        };
        for slot in connections {
            // One that is being opened is closed by whoever opens it.
            if let Ok(mut slot) = slot.try_lock()
                && let Some(connection) = slot.take()
            {
                connection.close(Error::closed("receive"));
            }
        }
        self.changed.notify_waiters();
        ready.into()
    }

    pub(super) async fn close(&self, limit: Duration) -> Result<()> {
        let ready = self.stop();
        let mut tasks = std::mem::take(&mut self.lock().tasks);
        let ending = async {
            while tasks.join_next().await.is_some() {}
            self.receipts.give_back(ready).await;
        };
        match tokio::time::timeout(limit, ending).await {
            Ok(()) => Ok(()),
            Err(cause) => {
                let text = format!("what was received ahead could not be given back in {limit:?}");
                let error = Error::new(ErrorKind::Timeout, "close consumer", text);
                Err(error.on(self.settings.group.as_str()).because(cause))
            }
        }
    }
}

impl Closing for Engine {
    fn close_within(
        self: Arc<Self>,
        limit: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> {
        Box::pin(async move { self.close(limit).await })
    }
}
