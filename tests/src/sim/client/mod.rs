//! Clients of the simulated broker. Each does a step when it is woken, and hears of the answers to its requests.

pub mod admin;
pub mod auditor;
pub mod member;
pub mod popper;
pub mod producer;
pub mod reader;
pub mod vandal;

use crate::sim::oracle::Oracle;
use crate::sim::plan::Plan;
use crate::sim::random::Random;
use crate::sim::talk::{Intent, QueueKey, Reply, Request, Words};
use ringmq_schema::placement::shard_of_queue;
use std::collections::BTreeMap;

/// What clients are up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Everything goes.
    Living,
    /// Nothing fails any more; what was begun must get through.
    Settling,
    /// Nothing new is asked; only the auditor works.
    Quiet,
}

/// Connections by client and shard; numbers are not used again.
#[derive(Debug, Default)]
pub struct Links {
    open: BTreeMap<(usize, u16), u64>,
    last: u64,
}

impl Links {
    /// The connection of a client to a shard.
    pub fn link(&mut self, client: usize, shard: u16) -> u64 {
        *self.open.entry((client, shard)).or_insert_with(|| {
            self.last += 1;
            self.last
        })
    }

    /// Closes one, if it was open.
    pub fn close(&mut self, client: usize, shard: u16) -> Option<u64> {
        self.open.remove(&(client, shard))
    }

    /// All are gone.
    pub fn cut(&mut self) {
        self.open.clear();
    }
}

/// What a client has at hand in its step.
pub struct Context<'a> {
    /// Its number.
    pub client: usize,
    /// Time, µs.
    pub now_us: u64,
    /// The broker's wall clock, ms.
    pub wall_ms: i64,
    /// See [`Phase`].
    pub phase: Phase,
    /// The auditor has listed the topics of this life.
    pub listed: bool,
    /// Members commit what they got, finished or not (only a planted bug does).
    pub careless: bool,
    /// The run's plan.
    pub plan: &'a Plan,
    /// The run's chance.
    pub random: &'a mut Random,
    /// Where everything is noted.
    pub oracle: &'a mut Oracle,
    /// Builds requests.
    pub words: &'a mut Words,
    /// Connections.
    pub links: &'a mut Links,
    /// Requests to send, each on its connection.
    pub out: Vec<(u64, Request)>,
    /// Connections to close.
    pub closed: Vec<(u64, u16)>,
}

impl Context<'_> {
    /// Sends on the client's connection to the shard in the request.
    pub fn send(&mut self, request: Request) {
        let connection = self.links.link(self.client, request.shard);
        self.out.push((connection, request));
    }

    /// Breaks the connection to a shard.
    pub fn close(&mut self, shard: u16) {
        if let Some(connection) = self.links.close(self.client, shard) {
            self.closed.push((connection, shard));
        }
    }

    /// The shard of a queue.
    pub fn shard_of(&self, queue: QueueKey) -> u16 {
        shard_of_queue(queue.0, queue.1, self.plan.shards)
    }

    /// Queues of all topics that can be used.
    pub fn queues(&self) -> Vec<QueueKey> {
        let live = self.oracle.topics.live();
        live.flat_map(|(_, id, topic)| (0..topic.queues).map(move |q| (id, q))).collect()
    }
}

/// One client.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Client {
    Producer(producer::Producer),
    Reader(reader::Reader),
    Member(member::Member),
    Popper(popper::Popper),
    Admin(admin::Admin),
    Vandal(vandal::Vandal),
    Auditor(auditor::Auditor),
}

impl Client {
    /// Does something.
    pub fn wake(&mut self, context: &mut Context<'_>) {
        match self {
            Client::Producer(producer) => producer.wake(context),
            Client::Reader(reader) => reader.wake(context),
            Client::Member(member) => member.wake(context),
            Client::Popper(popper) => popper.wake(context),
            Client::Admin(admin) => admin.wake(context),
            Client::Vandal(vandal) => vandal.wake(context),
            Client::Auditor(auditor) => auditor.wake(context),
        }
    }

    /// Hears an answer from `shard`.
    pub fn hear(&mut self, context: &mut Context<'_>, shard: u16, intent: &Intent, reply: &Reply) {
        match self {
            Client::Producer(producer) => producer.hear(intent),
            Client::Reader(reader) => reader.hear(shard, reply),
            Client::Member(member) => member.hear(context, shard, intent, reply),
            Client::Popper(popper) => popper.hear(shard, intent, reply),
            Client::Admin(admin) => admin.hear(intent, reply),
            Client::Vandal(_) => {}
            Client::Auditor(auditor) => auditor.hear(context, shard, intent, reply),
        }
    }

    /// The broker closed the connection to a shard: what was under way there has no answer.
    pub fn broken(&mut self, context: &mut Context<'_>, shard: u16) {
        match self {
            Client::Producer(producer) => producer.cut(),
            Client::Reader(reader) => reader.broken(shard),
            Client::Member(member) => member.cut(),
            Client::Popper(popper) => popper.broken(shard),
            Client::Admin(admin) => admin.cut(),
            Client::Vandal(_) => {}
            Client::Auditor(auditor) => auditor.broken(context, shard),
        }
    }

    /// The broker crashed: whatever was under way has no answer.
    pub fn cut(&mut self) {
        match self {
            Client::Producer(producer) => producer.cut(),
            Client::Reader(reader) => reader.cut(),
            Client::Member(member) => member.cut(),
            Client::Popper(popper) => popper.cut(),
            Client::Admin(admin) => admin.cut(),
            Client::Vandal(_) => {}
            Client::Auditor(auditor) => auditor.cut(),
        }
    }
}
