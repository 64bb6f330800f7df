//! The queues that a consumer holds, their fetched records, and how far each is consumed.
//!
//! Fetch loops put in, listeners and polls take out; one lock, held briefly.
//!
//! Invariants:
//! - `unfinished` holds, in order, every offset that was fetched and is not consumed, and consumed ones
//!   behind the first such: a queue's position is its front, or where fetching goes on when it is empty;
//! - a queue is in at most one fetch at a time (`asked`), and an answer counts only for queues that still
//!   wait for that very fetch: one that was revoked waits for none, so that its position stays in front of
//!   everything that no listener had;
//! - a queue that was taken away and came back has another `Held` id: nothing old touches it.

use super::held::{Held, Position, Taken, Ticket, Waiting, open};
use super::lanes::{Lane, Lanes};
use crate::connection::Answer;
use crate::error::Result;
use crate::filter::Filter;
use crate::route::Queue;
use ringmq_schema::consume::FetchAnswer;
use ringmq_schema::record as wire;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Identity of one holding of a queue.
pub(super) type HeldId = u64;

/// A broker's name and a shard of it.
pub(super) type ShardKey = (Arc<str>, u16);

/// A shard of a broker, and where that is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) broker: Arc<str>,
    pub(crate) address: Arc<str>,
    pub(crate) shard: u16,
}

/// A queue that is to be held.
#[derive(Debug, Clone)]
pub(super) struct Holding {
    pub(super) queue: Arc<Queue>,
    pub(super) place: Place,
    pub(super) topic_id: u32,
    /// The group's number on that broker.
    pub(super) group_id: u32,
    /// 0: not as a member.
    pub(super) generation: u32,
    pub(super) filter: Arc<Filter>,
}

/// How much may wait in the client per queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) records: usize,
    pub(super) bytes: usize,
}

/// A queue in a fetch that is to be sent.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) id: HeldId,
    pub(super) topic_id: u32,
    pub(super) queue: u32,
    pub(super) offset: u64,
    pub(super) generation: u32,
    pub(super) group_id: u32,
    pub(super) filter: Arc<Filter>,
}

/// A fetch that is to be sent.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) token: u64,
    pub(super) asks: Vec<Ask>,
    pub(super) max_records: usize,
    /// The broker is to look at the records before it sends them.
    pub(super) checked: bool,
}

/// A position that is to be committed.
#[derive(Debug, Clone)]
pub(super) struct Commit {
    pub(super) id: HeldId,
    pub(super) holding: Holding,
    pub(super) at: Position,
}

#[derive(Default)]
struct State {
    /// Looked up for each message, and few: a tree is found through faster than a hash is made.
    held: BTreeMap<HeldId, Held>,
    by_shard: HashMap<ShardKey, Vec<HeldId>>,
    ready: VecDeque<HeldId>,
    /// Failed records by when they are due.
    delayed: BinaryHeap<Reverse<Delayed>>,
    ids: u64,
    stopped: bool,
}

struct Delayed {
    due: Instant,
    sequence: u64,
    id: HeldId,
    lane: Lane,
    waiting: Waiting,
}

/// See the module.
pub(super) struct Feed {
    state: Mutex<State>,
    room: Room,
    /// Records of a queue are given out one at a time, of each message group one.
    orderly: bool,
    /// Something can be taken. A taker that leaves something wakes the next.
    pub(super) ready: Notify,
    /// A failed record was put aside.
    pub(super) delayed: Notify,
    /// Something ended: a queue may be idle now.
    pub(super) ended: Notify,
}

impl Feed {
    pub(super) fn new(room: Room, orderly: bool) -> Feed {
        Feed {
            state: Mutex::default(),
            room,
            orderly,
            ready: Notify::new(),
            delayed: Notify::new(),
            ended: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens with the state locked")
    }

    /// Begins to hold a queue, at `start`.
    pub(super) fn hold(
        &self,
        holding: Holding,
        start: Position,
        committed: Option<Position>,
        fetcher: Arc<Notify>,
    ) {
        let mut state = self.lock();
        if state.stopped {
            return;
        }
        state.ids += 1;
        let id = state.ids;
        let shard = (Arc::clone(&holding.place.broker), holding.place.shard);
        state.by_shard.entry(shard).or_default().push(id);
        fetcher.notify_one();
        let held = Held {
            holding,
            next_fetch: start.offset,
            resumed: start,
            failed: BTreeMap::new(),
            asked: None,
            waiting: Lanes::new(self.orderly),
            unfinished: VecDeque::new(),
            records: 0,
            bytes: 0,
            in_process: 0,
            committed,
            listed: false,
            revoked: false,
            paused: false,
            blocked_until: None,
            checked: false,
            is_unreadable: false,
            fetcher,
        };
        state.held.insert(id, held);
    }

    /// What is held of a broker, revoked ones included.
    pub(super) fn held_of(&self, broker: &str) -> Vec<(HeldId, Holding, bool)> {
        let state = self.lock();
        let of = state.held.iter().filter(|(_, held)| &*held.holding.place.broker == broker);
        of.map(|(id, held)| (*id, held.holding.clone(), held.revoked)).collect()
    }

    /// Every queue that is held and not revoked, with its position, sorted.
    pub(super) fn positions(&self) -> Vec<(Queue, u64)> {
        let state = self.lock();
        let held = state.held.values().filter(|held| !held.revoked);
        let mut all: Vec<_> =
            held.map(|held| ((*held.holding.queue).clone(), held.position().offset)).collect();
        all.sort();
        all
    }

    /// The holding of a queue.
    pub(super) fn find(&self, queue: &Queue) -> Option<(HeldId, Holding)> {
        let state = self.lock();
        let found =
            state.held.iter().find(|(_, held)| *held.holding.queue == *queue && !held.revoked);
        found.map(|(id, held)| (*id, held.holding.clone()))
    }

    /// What is held under this id, if it still is.
    pub(super) fn holding(&self, id: HeldId) -> Option<Holding> {
        self.lock().held.get(&id).map(|held| held.holding.clone())
    }

    /// No longer gives out what waits of a queue, and asks for no more.
    pub(super) fn revoke(&self, id: HeldId) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(held) = state.held.get_mut(&id) else { return };
        held.revoked = true;
        // What is on its way would be left out of the position: nobody is to take it any more.
        held.asked = None;
        held.waiting.clear();
        state.delayed.retain(|delayed| delayed.0.id != id);
    }

    /// Forgets a queue at once: nothing of it counts any more.
    pub(super) fn drop_held(&self, id: HeldId) {
        let mut state = self.lock();
        let Some(held) = state.held.remove(&id) else { return };
        let shard = (Arc::clone(&held.holding.place.broker), held.holding.place.shard);
        if let Some(ids) = state.by_shard.get_mut(&shard) {
            ids.retain(|other| *other != id);
        }
        state.delayed.retain(|delayed| delayed.0.id != id);
        drop(state);
        self.ended.notify_waiters();
    }

    /// Whether nothing of the queue is with a listener.
    pub(super) fn is_idle(&self, id: HeldId) -> bool {
        self.lock().held.get(&id).is_none_or(|held| held.in_process == 0)
    }

    /// Whether nothing at all is with a listener.
    pub(super) fn is_all_idle(&self) -> bool {
        self.lock().held.values().all(|held| held.in_process == 0)
    }

    /// Gives out nothing more.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
    }

    pub(super) fn pause(&self, queue: &Queue, paused: bool) {
        let mut state = self.lock();
        let State { held, ready, .. } = &mut *state;
        for (id, held) in held.iter_mut().filter(|(_, held)| *held.holding.queue == *queue) {
            held.paused = paused;
            if held.can_give() && !std::mem::replace(&mut held.listed, true) {
                ready.push_back(*id);
            }
            held.fetcher.notify_one();
        }
        self.ready.notify_one();
    }

    /// Goes to another offset; what was fetched is forgotten.
    pub(super) fn seek(&self, id: HeldId, offset: u64) {
        if let Some(held) = self.lock().held.get_mut(&id) {
            held.waiting.clear();
            held.unfinished.clear();
            held.failed.clear();
            held.resumed = Position::new(offset);
            (held.records, held.bytes) = (0, 0);
            held.next_fetch = offset;
            held.asked = None;
            held.blocked_until = None;
            // Also a step back is to be committed.
            held.committed = None;
            held.fetcher.notify_one();
        }
    }

    /// Which queues of a shard are to be fetched now; they count as asked from here on. `Err`: none, but
    /// one may be at that time.
    pub(super) fn plan(&self, broker: &Arc<str>, shard: u16) -> Result<Plan, Option<Instant>> {
        let now = Instant::now();
        let mut state = self.lock();
        if state.stopped {
            return Err(None);
        }
        state.ids += 1;
        let token = state.ids;
        let State { held, by_shard, .. } = &mut *state;
        let ids = by_shard.get(&(Arc::clone(broker), shard)).map_or(&[][..], Vec::as_slice);
        let (mut asks, mut max_records, mut later) = (Vec::new(), 0, None::<Instant>);
        let mut checked = false;
        for id in ids {
            let held = held.get_mut(id).expect("by_shard names what is held");
            if let Some(until) = held.blocked_until
                && until > now
            {
                later = Some(later.map_or(until, |later| later.min(until)));
                continue;
            }
            if !held.wants_more(self.room) {
                continue;
            }
            held.blocked_until = None;
            held.asked = Some(token);
            checked |= held.checked;
            max_records += self.room.records - held.records;
            asks.push(Ask {
                id: *id,
                topic_id: held.holding.topic_id,
                queue: held.holding.queue.id,
                offset: held.next_fetch,
                generation: held.holding.generation,
                group_id: held.holding.group_id,
                filter: Arc::clone(&held.holding.filter),
            });
        }
        if asks.is_empty() { Err(later) } else { Ok(Plan { token, asks, max_records, checked }) }
    }

    /// A fetch failed: its queues may be asked for again. The broker is to look at the records then: an answer
    /// that it sends from a file ends with its connection where the disk does not give the rest.
    pub(super) fn unask(&self, plan: &Plan) {
        let mut state = self.lock();
        for ask in &plan.asks {
            if let Some(held) = state.held.get_mut(&ask.id)
                && held.asked == Some(plan.token)
            {
                (held.asked, held.checked) = (None, true);
            }
        }
    }

    /// Takes a fetch's answer. Returns the queues that belong to somebody else now, already dropped.
    pub(super) fn answered(&self, plan: &Plan, answer: &Answer) -> Result<Vec<HeldId>> {
        let table = answer.read::<FetchAnswer<'_>>("fetch")?;
        let run = answer.run();
        let asks: HashMap<(u32, u32), HeldId> =
            plan.asks.iter().map(|ask| ((ask.topic_id, ask.queue), ask.id)).collect();
        let mut fenced = Vec::new();
        let mut guard = self.lock();
        let state = &mut *guard;
        let live = |state: &State, id: &HeldId| {
            state.held.get(id).is_some_and(|held| held.asked == Some(plan.token))
        };
        // Records first: their queues' next offsets lie behind them.
        let (mut at, mut added, mut is_sound) = (0, false, true);
        while at < run.len() {
            let read = wire::read_one(&run, at).ok();
            let sound = |found: &Option<wire::RecordRef<'_>>| {
                found.as_ref().is_none_or(|found| found.check_header().is_ok())
            };
            // Sent from the broker's file as it lies there: what was damaged on the disk is seen here first.
            let Some((end, found)) = read.filter(|(_, found)| sound(found)) else {
                is_sound = false;
                break;
            };
            if let Some(found) = found {
                let header = found.header;
                let id = asks.get(&(header.topic.get(), header.queue.get()));
                if let Some(id) = id.filter(|id| live(state, id)) {
                    let held = state.held.get_mut(id).expect("just found");
                    held.add(header.offset.get(), run.slice(at..end));
                    added = true;
                    if held.can_give() && !std::mem::replace(&mut held.listed, true) {
                        state.ready.push_back(*id);
                    }
                }
            }
            at = end;
        }
        for fetched in table.queues().into_iter().flatten().filter(|_| is_sound) {
            let Some(id) = asks.get(&(fetched.topic(), fetched.queue())) else { continue };
            if live(state, id) {
                let held = state.held.get_mut(id).expect("just found");
                if held.go_on(fetched) {
                    fenced.push(*id);
                }
            }
        }
        for ask in &plan.asks {
            if live(state, &ask.id) {
                let held = state.held.get_mut(&ask.id).expect("just found");
                match is_sound {
                    true => (held.asked, held.checked) = (None, held.is_unreadable),
                    false => held.doubt(),
                }
            }
        }
        drop(guard);
        if added {
            self.ready.notify_one();
        }
        for id in &fenced {
            self.drop_held(*id);
        }
        Ok(fenced)
    }

    /// The next record, of each queue in turn.
    pub(super) fn take(&self) -> Option<Taken> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.stopped {
            return None;
        }
        loop {
            let id = state.ready.pop_front()?;
            let Some(held) = state.held.get_mut(&id) else { continue };
            held.listed = false;
            if !held.can_give() {
                continue;
            }
            let Some((lane, waiting)) = held.waiting.take() else { continue };
            held.in_process += 1;
            if held.can_give() {
                held.listed = true;
                state.ready.push_back(id);
            }
            let queue = Arc::clone(&held.holding.queue);
            let shard = held.holding.place.shard;
            let filter = Arc::clone(&held.holding.filter);
            let resumed = held.resumed;
            let more = !state.ready.is_empty();
            drop(guard);
            if more {
                self.ready.notify_one();
            }
            let mut taken = open((id, lane), &queue, shard, &filter, waiting);
            taken.resume(resumed);
            return Some(taken);
        }
    }

    /// A record was consumed (or is not to be).
    pub(super) fn finish(&self, ticket: Ticket) {
        let Ticket { id, offset, bytes, lane } = ticket;
        let mut guard = self.lock();
        let State { held, ready, stopped, .. } = &mut *guard;
        let Some(held) = held.get_mut(&id) else { return };
        held.in_process -= 1;
        held.waiting.end(lane);
        held.finish(offset, bytes);
        if held.asked.is_none() && held.wants_more(self.room) {
            held.fetcher.notify_one();
        }
        self.list(id, held, ready);
        let wake = held.in_process == 0 && (*stopped || held.revoked);
        drop(guard);
        if wake {
            self.ended.notify_waiters();
        }
    }

    /// A record was taken and does not count as consumed: whoever holds the queue next gets it again.
    pub(super) fn abandon(&self, ticket: Ticket) {
        if let Some(held) = self.lock().held.get_mut(&ticket.id) {
            held.in_process -= 1;
            held.waiting.end(ticket.lane);
        }
        self.ended.notify_waiters();
    }

    /// A record is to be given out again after a pause. In an orderly queue its lane waits for it.
    pub(super) fn again(&self, ticket: Ticket, waiting: Waiting, pause: Duration) {
        let Ticket { id, lane, offset, .. } = ticket;
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(held) = state.held.get_mut(&id) else { return };
        held.fail(offset, &waiting);
        let keep = !held.revoked && !state.stopped;
        held.in_process -= 1;
        if keep {
            state.ids += 1;
            let (due, sequence) = (Instant::now() + pause, state.ids);
            state.delayed.push(Reverse(Delayed { due, sequence, id, lane, waiting }));
            self.relist(state, id);
        }
        drop(guard);
        self.delayed.notify_one();
        self.ended.notify_waiters();
    }

    /// Makes failed records ready that are due; says when the next is.
    pub(super) fn redeliver(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut next = None;
        while let Some(Reverse(first)) = state.delayed.peek() {
            if first.due > now {
                next = Some(first.due);
                break;
            }
            let Some(Reverse(Delayed { id, lane, waiting, .. })) = state.delayed.pop() else {
                break;
            };
            let Some(held) = state.held.get_mut(&id) else { continue };
            held.waiting.again(lane, waiting);
            self.relist(state, id);
        }
        let more = !state.ready.is_empty();
        drop(guard);
        if more {
            self.ready.notify_one();
        }
        next
    }

    /// Records that wait for their redelivery are given up.
    pub(super) fn drop_delayed(&self) {
        self.lock().delayed.clear();
    }

    fn relist(&self, state: &mut State, id: HeldId) {
        let State { held, ready, .. } = state;
        if let Some(held) = held.get_mut(&id) {
            self.list(id, held, ready);
        }
    }

    fn list(&self, id: HeldId, held: &mut Held, ready: &mut VecDeque<HeldId>) {
        if held.can_give() && !std::mem::replace(&mut held.listed, true) {
            ready.push_back(id);
            self.ready.notify_one();
        }
    }

    /// Positions that differ from what was committed; of one queue, or of all.
    pub(super) fn to_commit(&self, only: Option<HeldId>) -> Vec<Commit> {
        let state = self.lock();
        let chosen = state.held.iter().filter(|(id, _)| only.is_none_or(|only| only == **id));
        let changed = chosen.filter(|(_, held)| held.committed != Some(held.position()));
        changed
            .map(|(id, held)| Commit {
                id: *id,
                holding: held.holding.clone(),
                at: held.position(),
            })
            .collect()
    }

    pub(super) fn committed(&self, id: HeldId, at: Position) {
        if let Some(held) = self.lock().held.get_mut(&id) {
            held.committed = Some(at);
        }
    }
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Delayed) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Delayed {}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Delayed) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Delayed {
    fn cmp(&self, other: &Delayed) -> std::cmp::Ordering {
        (self.due, self.sequence).cmp(&(other.due, other.sequence))
    }
}
