//! Time, shards and network: carries out what the shards of one broker ask for, and brings them what happens.
//!
//! Rules kept here, as the seam has them: actions are carried out in their order; each operation ends once;
//! requests of a connection and messages between two shards arrive in order; `TurnEnd` follows requests;
//! `Tick` comes at `next_wake`, and at least each second. A crash may come between any two actions.

mod beside;
mod course;
mod events;
mod recovery;
mod seam;

use crate::sim::client::admin::Admin;
use crate::sim::client::auditor::Auditor;
use crate::sim::client::member::Member;
use crate::sim::client::popper::Popper;
use crate::sim::client::producer::Producer;
use crate::sim::client::reader::Reader;
use crate::sim::client::vandal::Vandal;
use crate::sim::client::{Client, Context, Links, Phase};
use crate::sim::clock::Clock;
use crate::sim::disk::Disk;
use crate::sim::memory::{SimBlock, SimMemory};
use crate::sim::oracle::{Oracle, Pending};
use crate::sim::plan::{Life, Plan};
use crate::sim::planted::{Bug, Planted};
use crate::sim::random::Random;
use crate::sim::talk::{Intent, Reply, Request, Words};
use crate::sim::{Verdict, violation};
use events::{Event, Events, PeerQueue};
use ringmq_core::Shard;
use ringmq_core::route::TopicChange;
use ringmq_core::seam::{Input, Outbox};
use ringmq_schema::frame;
use ringmq_schema::limits::FRAME_BYTES_MAX;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Runs that never come to rest end here.
const EVENTS_MAX: u64 = 2_000_000;
/// The auditor's place among the clients.
const AUDITOR: usize = 0;

struct Slot {
    core: Option<Shard<SimMemory>>,
    log_id: u64,
    disk: Disk,
    out: Outbox<SimBlock>,
    turn: bool,
    tick_us: Option<u64>,
    /// An operation failed in this life, and one after which nothing may be written.
    faulted: bool,
    poisoned: bool,
    stopped: bool,
    /// Operations reported before their end.
    early: BTreeSet<u64>,
}

struct Connection {
    client: usize,
    shard: u16,
    open: bool,
    requests: VecDeque<Request>,
    replies: VecDeque<(Intent, Reply)>,
}

/// See the module.
pub struct World {
    plan: Plan,
    random: Random,
    clock: Clock,
    events: Events,
    /// Number of the broker's life, and its plan.
    life: u32,
    living: Life,
    phase: Phase,
    up: bool,
    shards: Vec<Slot>,
    links: Links,
    connections: BTreeMap<u64, Connection>,
    clients: Vec<Client>,
    oracle: Oracle,
    words: Words,
    pending: BTreeMap<u64, Pending>,
    peers: BTreeMap<(u16, u16), PeerQueue>,
    /// What a name server would know, and who asked for it.
    topics: BTreeMap<String, TopicChange>,
    watched: BTreeSet<(u16, String)>,
    planted: Planted,
    trace: bool,
    crashing: bool,
    /// Count of events.
    moment: u64,
}

/// Said only when a seed is replayed.
macro_rules! trace {
    ($world:expr, $($text:tt)*) => {
        if $world.trace {
            eprintln!("{:>12} {}", $world.clock.mono_us(), format_args!($($text)*));
        }
    };
}
use trace;

impl World {
    /// The world of a seed.
    pub fn new(seed: u64, bug: Option<Bug>, trace: bool) -> World {
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        let mut slots = Vec::new();
        for _ in 0..plan.shards {
            slots.push(Slot {
                core: None,
                log_id: random.number(),
                disk: Disk::new(plan.device, random.fork()),
                out: Outbox::default(),
                turn: false,
                tick_us: None,
                faulted: false,
                poisoned: false,
                stopped: false,
                early: BTreeSet::new(),
            });
        }
        World {
            clock: Clock::new(),
            events: Events::new(random.fork()),
            life: 0,
            living: plan.lives[0].clone(),
            phase: Phase::Living,
            up: false,
            shards: slots,
            links: Links::default(),
            connections: BTreeMap::new(),
            clients: clients(&plan, &mut random),
            oracle: Oracle::new(random.number(), plan.shards, plan.pop_attempts),
            words: Words::default(),
            pending: BTreeMap::new(),
            peers: BTreeMap::new(),
            topics: BTreeMap::new(),
            watched: BTreeSet::new(),
            planted: Planted::new(bug, random.fork()),
            trace,
            crashing: false,
            moment: 0,
            random,
            plan,
        }
    }

    fn auditor(&self) -> &Auditor {
        match &self.clients[AUDITOR] {
            Client::Auditor(auditor) => auditor,
            other => unreachable!("the first client is the auditor, not {other:?}"),
        }
    }

    /// Goes on until `done`, the end of the life, or `end_us`. True: `done`.
    fn until(&mut self, end_us: u64, done: impl Fn(&World) -> bool) -> Verdict<bool> {
        loop {
            if self.moment.is_multiple_of(16) && done(self) {
                return Ok(true);
            }
            if self.crashing {
                return Ok(false);
            }
            match self.events.next_us() {
                Some(at_us) if at_us <= end_us => {}
                _ => {
                    self.clock.advance(end_us.max(self.clock.mono_us()));
                    return Ok(done(self));
                }
            }
            let (at_us, event) = self.events.pop().expect("it was just there");
            self.clock.advance(at_us.max(self.clock.mono_us()));
            self.moment += 1;
            self.oracle.summary.events += 1;
            if self.moment > EVENTS_MAX {
                return violation("the world does not come to rest");
            }
            self.happen(event)?;
        }
    }

    fn happen(&mut self, event: Event) -> Verdict {
        let now = |life: u32| life == self.life && self.up;
        match event {
            Event::Wake { client } => return self.wake(client),
            Event::Request { life, connection } if now(life) => return self.request(connection),
            Event::Answer { life, connection } if now(life) => return self.answer(connection),
            Event::Closed { life, connection, shard } if now(life) => {
                return self.feed(shard, Input::ConnectionClosed { connection });
            }
            Event::TurnEnd { life, shard } if now(life) => {
                self.shards[usize::from(shard)].turn = false;
                return self.feed(shard, Input::TurnEnd);
            }
            Event::Tick { life, shard, at_us } if now(life) => {
                let slot = &mut self.shards[usize::from(shard)];
                if slot.tick_us != Some(at_us) {
                    // An earlier one was armed since.
                    return Ok(());
                }
                slot.tick_us = None;
                return self.feed(shard, Input::Tick);
            }
            Event::DiskDone { life, shard, op } if now(life) => return self.disk_done(shard, op),
            Event::Reported { life, shard, write } if now(life) => {
                return self.feed(shard, Input::Written { write, result: Ok(()) });
            }
            Event::Peer { life, from, to } if now(life) => {
                let message = self.peers.get_mut(&(from, to)).and_then(VecDeque::pop_front);
                let Some(message) = message else { return Ok(()) };
                trace!(self, "shard {to} hears from {from}: {message:?}");
                return self.feed(to, Input::Peer { from, message });
            }
            Event::Routes { life, shard, routes } if now(life) => {
                return self.feed(shard, Input::Routes(routes));
            }
            Event::DiskHasRoom { life, shard, room } if now(life) => {
                trace!(self, "shard {shard} disk has room: {room}");
                return self.feed(shard, Input::DiskHasRoom(room));
            }
            _ => {}
        }
        Ok(())
    }

    fn wake(&mut self, client: usize) -> Verdict {
        let pace_us = self.living.pace_us;
        let pace_us = if client == AUDITOR { pace_us.min(1000) } else { pace_us };
        let next_us = self.clock.mono_us() + self.random.between(1, 2 * pace_us);
        self.events.at(next_us, Event::Wake { client });
        if !self.up {
            return Ok(());
        }
        self.befall();
        self.with_client(client, |client, context| client.wake(context));
        Ok(())
    }

    /// What befalls the machine beside its operations.
    fn befall(&mut self) {
        let faults = self.living.faults;
        if faults.clock > 0 && self.random.once_in(faults.clock) {
            let ms = self.random.between(0, 10_000_000) as i64 - 5_000_000;
            trace!(self, "the wall clock jumps by {ms} ms");
            self.clock.jump(ms);
            self.oracle.pops.jumped();
        }
        if faults.full > 0 && self.random.once_in(faults.full) {
            let shard = self.random.below(u64::from(self.plan.shards)) as u16;
            let (life, now_us) = (self.life, self.clock.mono_us());
            let until_us = now_us + self.random.below(20 * self.living.pace_us);
            self.events.at(now_us, Event::DiskHasRoom { life, shard, room: false });
            self.events.at(until_us + 1, Event::DiskHasRoom { life, shard, room: true });
        }
    }

    fn with_client(&mut self, client: usize, act: impl FnOnce(&mut Client, &mut Context<'_>)) {
        let listed = self.auditor().has_listed();
        let mut context = Context {
            client,
            now_us: self.clock.mono_us(),
            wall_ms: self.clock.now().wall_ms,
            phase: self.phase,
            careless: self.planted.is_careless(),
            listed,
            plan: &self.plan,
            random: &mut self.random,
            oracle: &mut self.oracle,
            words: &mut self.words,
            links: &mut self.links,
            out: Vec::new(),
            closed: Vec::new(),
        };
        act(&mut self.clients[client], &mut context);
        let Context { out, closed, .. } = context;
        for (connection, shard) in closed {
            self.close(connection, shard);
        }
        for (connection, request) in out {
            self.send(client, connection, request);
        }
    }

    fn close(&mut self, connection: u64, shard: u16) {
        let Some(gone) = self.connections.get_mut(&connection) else { return };
        trace!(self, "client {} closes connection {connection}", gone.client);
        gone.open = false;
        gone.requests.clear();
        gone.replies.clear();
        self.pending.retain(|_, pending| pending.connection != connection);
        let at_us = self.clock.mono_us() + self.random.between(1, self.plan.network_us);
        self.events.at(at_us, Event::Closed { life: self.life, connection, shard });
    }

    fn send(&mut self, client: usize, connection: u64, request: Request) {
        let shard = request.shard;
        let link = self.connections.entry(connection).or_insert_with(|| Connection {
            client,
            shard,
            open: true,
            requests: VecDeque::new(),
            replies: VecDeque::new(),
        });
        let pending = Pending {
            connection,
            client,
            shard,
            one_way: request.one_way,
            intent: request.intent.clone(),
            delivered: 0,
            delivered_us: 0,
            floors: Vec::new(),
            watermarks: None,
        };
        self.pending.insert(request.correlation, pending);
        link.requests.push_back(request);
        let waiting = link.requests.len();
        if waiting > 1 && self.planted.overtakes() {
            link.requests.swap(waiting - 1, waiting - 2);
        }
        let at_us = self.clock.mono_us() + self.random.between(1, self.plan.network_us);
        self.events.at(at_us, Event::Request { life: self.life, connection });
    }

    /// The next request of a connection reaches its shard, if it may.
    fn request(&mut self, connection: u64) -> Verdict {
        let Some(link) = self.connections.get(&connection) else { return Ok(()) };
        let Some(next) = link.requests.front() else { return Ok(()) };
        if self.must_wait(link.shard, &next.intent) {
            let at_us = self.clock.mono_us() + self.random.between(20, 400);
            self.events.at(at_us, Event::Request { life: self.life, connection });
            return Ok(());
        }
        let link = self.connections.get_mut(&connection).expect("it was just there");
        let shard = link.shard;
        let mut request = link.requests.pop_front().expect("it was just there");
        self.planted.arrives(&request.intent, &mut request.bytes);
        if self.planted.loses_request() {
            return Ok(());
        }
        if let Some(reply) = self.planted.swallows(&request.intent) {
            return self.pretend(connection, &request, reply);
        }
        let when = (self.clock.mono_us(), self.moment);
        if let Some(pending) = self.pending.get_mut(&request.correlation) {
            self.oracle.delivered(pending, when);
        }
        if request.one_way {
            self.pending.remove(&request.correlation);
        }
        trace!(
            self,
            "shard {shard} gets request {} on connection {connection}: {:?}",
            request.correlation,
            request.intent
        );
        let parsed = frame::parse(&request.bytes, FRAME_BYTES_MAX as u32);
        let frame = parsed.expect("clients send frames").expect("clients send whole frames");
        let slot = &mut self.shards[usize::from(shard)];
        if !slot.turn {
            slot.turn = true;
            let at_us = self.clock.mono_us() + self.random.below(30);
            self.events.at(at_us, Event::TurnEnd { life: self.life, shard });
        }
        self.feed(shard, Input::Request { connection, frame })
    }

    /// A request is answered that never reached its shard.
    fn pretend(&mut self, connection: u64, request: &Request, reply: Reply) -> Verdict {
        let Some(pending) = self.pending.remove(&request.correlation) else { return Ok(()) };
        let when = (self.clock.mono_us(), self.moment);
        let disk = &self.shards[usize::from(request.shard)].disk;
        self.oracle.answered(&pending, &reply, when, disk)?;
        let link = self.connections.get_mut(&connection).expect("its request came on it");
        link.replies.push_back((pending.intent, reply));
        self.events.at(when.0 + 1, Event::Answer { life: self.life, connection });
        Ok(())
    }

    /// Nothing new is taken before the auditor knows what was there; a congested shard is left alone.
    fn must_wait(&self, shard: u16, intent: &Intent) -> bool {
        let Some(core) = &self.shards[usize::from(shard)].core else { return true };
        match intent {
            Intent::Produce { .. } => {
                !self.auditor().knows_ends(shard)
                    || self.plan.heeds_congestion && core.is_congested()
            }
            Intent::Create { .. } | Intent::Delete { .. } => !self.auditor().has_listed(),
            _ => false,
        }
    }

    /// The next answer of a connection reaches its client.
    fn answer(&mut self, connection: u64) -> Verdict {
        let Some(link) = self.connections.get_mut(&connection) else { return Ok(()) };
        let Some((intent, reply)) = link.replies.pop_front() else { return Ok(()) };
        let (client, shard) = (link.client, link.shard);
        self.with_client(client, |client, context| client.hear(context, shard, &intent, &reply));
        self.auditor().verdict()
    }
}

fn clients(plan: &Plan, random: &mut Random) -> Vec<Client> {
    let mut clients =
        vec![Client::Auditor(Auditor::new(plan.shards)), Client::Admin(Admin::new(plan))];
    clients.extend((0..plan.producers).map(|_| Client::Producer(Producer::new(random))));
    clients.extend((0..plan.readers).map(|_| Client::Reader(Reader::default())));
    clients.extend((0..plan.members).map(|n| Client::Member(Member::new(n, plan))));
    clients.extend((0..plan.poppers).map(|n| Client::Popper(Popper::new(n, plan))));
    clients.extend((0..plan.vandals).map(|_| Client::Vandal(Vandal)));
    clients
}
