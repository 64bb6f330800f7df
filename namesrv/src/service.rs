//! What the name server answers: requests in, frames out; no sockets, time comes with each call.
//!
//! Invariants:
//! - every request that wants an answer gets exactly one, a refusal that says why if it must be;
//! - whatever changes a route wakes the subscribers of that topic in the same call;
//! - no input panics: tables are verified, names and counts checked before they are kept
//!   (promise: no-trust).

use crate::config::NamesrvConfig;
use crate::liveness::Liveness;
use crate::route::{Broker, Outcome, RouteError, RouteTable, Session, TableLimits};
use crate::subscribe::Subscriptions;
use crate::wire;
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::connection::{
    Hello, HelloAnswer, HelloAnswerArgs, Ping, PingAnswer, PingAnswerArgs,
};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{Follow, Verifiable};
use ringmq_schema::frame::{self, Frame};
use ringmq_schema::opcode::{Opcode, Place};
use ringmq_schema::route::{
    BrokerAnswer, BrokerAnswerArgs, BrokerChanges, BrokerEntry, BrokerEntryArgs, BrokerHeartbeat,
    QueryClusterAnswer, QueryClusterAnswerArgs, QueryRoute, QueryTopics, QueryTopicsAnswer,
    QueryTopicsAnswerArgs, RegisterBroker,
};
use ringmq_schema::{limits, names};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Most routes in one pushed frame; more follow in further frames.
const ROUTES_PER_PUSH: usize = 256;
/// A broker heard of within this, three heartbeats, does not lose its name to another one.
const HOLDS_NAME_MS: u64 = 3_000;

/// Time of a call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Now {
    /// Never goes backwards: ms since some start.
    pub mono_ms: u64,
    /// Wall clock, ms since epoch.
    pub wall_ms: i64,
}

/// Counters since start, for metrics.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    /// Requests that came.
    pub requests: u64,
    /// Requests refused.
    pub refused: u64,
    /// Routes pushed to subscribers.
    pub pushed: u64,
    /// Brokers dropped because they fell silent.
    pub expired: u64,
    /// Connections open.
    pub connections: usize,
}

struct Refused {
    status: Status,
    message: String,
}

impl From<RouteError> for Refused {
    fn from(error: RouteError) -> Refused {
        let status = match error {
            RouteError::TooMany { .. } => Status::TooMany,
            RouteError::Superseded { .. } => Status::Denied,
            RouteError::OtherBroker { .. } => Status::BadRequest,
        };
        Refused { status, message: error.to_string() }
    }
}

fn refused<T>(status: Status, message: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { status, message: message.into() })
}

/// What a connection must remember between frames.
#[derive(Debug)]
pub struct Peer {
    /// Its session.
    pub session: Session,
    /// `Hello` was answered.
    pub greeted: bool,
}

/// See the module.
pub struct Service {
    config: NamesrvConfig,
    instance: u64,
    table: RouteTable,
    liveness: Liveness,
    subscriptions: Subscriptions,
    wake: BTreeSet<Session>,
    builder: FrameBuilder,
    /// Figures for metrics.
    pub counters: Counters,
}

impl Service {
    /// A server that knows nobody yet. `instance` must be another one at every start.
    pub fn new(config: NamesrvConfig, instance: u64, now: Now) -> Service {
        let limits = TableLimits {
            brokers: config.brokers_max,
            topics_per_broker: config.topics_per_broker_max,
        };
        let first_version = now.wall_ms.max(0).unsigned_abs() * 1000;
        Service {
            table: RouteTable::new(first_version, limits),
            liveness: Liveness::new(config.expiry.as_millis() as u64),
            subscriptions: Subscriptions::default(),
            wake: BTreeSet::new(),
            builder: FrameBuilder::new(),
            counters: Counters::default(),
            instance,
            config,
        }
    }

    /// Answers one frame into `out`.
    pub fn handle(&mut self, peer: &mut Peer, frame: Frame<'_>, now: Now, out: &mut Vec<u8>) {
        if frame.header.is_answer() {
            // Nothing is asked of clients, so nothing waits for this.
            return;
        }
        self.counters.requests += 1;
        let (start, header) = (out.len(), frame.header);
        let (code, correlation) = (header.opcode.get(), header.correlation.get());
        if let Err(refused) = self.answer(peer, &frame, now, out) {
            self.counters.refused += 1;
            out.truncate(start);
            let Refused { status, message } = refused;
            tracing::debug!(session = peer.session, opcode = code, %status, message, "refused");
            self.builder.refuse(out, code, correlation, status, &message);
        }
        if header.is_one_way() {
            out.truncate(start);
        }
    }

    /// Sessions that have something to be told: see [`Service::push`].
    pub fn take_wake(&mut self) -> BTreeSet<Session> {
        std::mem::take(&mut self.wake)
    }

    /// Appends what the session is to be told, one frame at most. False: nothing was left.
    pub fn push(&mut self, session: Session, out: &mut Vec<u8>) -> bool {
        let due = self.subscriptions.take_due(session, ROUTES_PER_PUSH);
        if due.is_empty() {
            return false;
        }
        self.counters.pushed += due.len() as u64;
        let routes: Vec<_> = due.iter().map(|topic| self.table.route(topic)).collect();
        let (flags, shard) = (frame::FLAG_ONE_WAY, frame::ANY_SHARD);
        self.builder.request_head(out, Opcode::RouteChanged, flags, shard, 0, 0, |fbb| {
            wire::routes(fbb, &routes)
        });
        true
    }

    /// The connection is gone.
    pub fn closed(&mut self, session: Session) {
        self.subscriptions.remove(session);
        self.liveness.forget(session);
        let changed = self.table.remove(session);
        self.wake(&changed);
    }

    /// Drops brokers that fell silent.
    pub fn expire(&mut self, now: Now) {
        for session in self.liveness.expired(now.mono_ms) {
            let changed = self.table.remove(session);
            self.counters.expired += 1;
            let (topics, silent_s) = (changed.len(), self.config.expiry.as_secs_f32());
            tracing::warn!(session, topics, silent_s, "a broker fell silent and was dropped");
            self.wake(&changed);
        }
    }

    /// Brokers, topics, subscriptions: for metrics.
    pub fn sizes(&self) -> (usize, usize, usize) {
        (self.table.brokers().count(), self.table.topic_count(), self.subscriptions.count())
    }

    fn wake(&mut self, changed: &[Arc<str>]) {
        let mut sessions = self.subscriptions.changed(changed);
        self.wake.append(&mut sessions);
    }

    fn answer(
        &mut self,
        peer: &mut Peer,
        frame: &Frame<'_>,
        now: Now,
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        let header = frame.header;
        let code = header.opcode.get();
        let Some(opcode) = header.opcode() else {
            return refused(Status::UnknownOpcode, format!("there is no opcode {code}"));
        };
        if !matches!(opcode.place(), Place::Connection | Place::NameServer) {
            let message = format!("{} is served by brokers, this is a name server", opcode.name());
            return refused(Status::Unsupported, message);
        }
        if !peer.greeted && opcode != Opcode::Hello {
            let message = format!("{} came before Hello", opcode.name());
            return refused(Status::HelloRequired, message);
        }
        if !frame.run.is_empty() {
            let (name, bytes) = (opcode.name(), frame.run.len());
            let message = format!("{name} has no records, {bytes} bytes follow its table");
            return refused(Status::BadRequest, message);
        }
        let correlation = header.correlation.get();
        match opcode {
            Opcode::Hello => self.hello(peer, frame, now, out),
            Opcode::Ping => {
                let sent_ms = table::<Ping>(frame, opcode)?.sent_ms();
                let args = PingAnswerArgs { sent_ms, server_ms: now.wall_ms };
                self.builder
                    .answer(out, code, correlation, 0, |fbb| PingAnswer::create(fbb, &args));
                Ok(())
            }
            Opcode::RegisterBroker | Opcode::BrokerChanges | Opcode::BrokerHeartbeat => {
                self.liveness.heard(peer.session, now.mono_ms);
                let outcome = match opcode {
                    Opcode::RegisterBroker => self.register(peer.session, frame, now),
                    Opcode::BrokerChanges => self.changes(peer.session, frame),
                    _ => self.heartbeat(peer.session, frame),
                }?;
                self.wake(&outcome.changed);
                let args = BrokerAnswerArgs { need_full: outcome.need_full };
                self.builder
                    .answer(out, code, correlation, 0, |fbb| BrokerAnswer::create(fbb, &args));
                Ok(())
            }
            Opcode::UnregisterBroker => {
                self.liveness.forget(peer.session);
                let changed = self.table.remove(peer.session);
                self.wake(&changed);
                self.builder.done(out, code, correlation);
                Ok(())
            }
            Opcode::QueryRoute => self.query_route(peer.session, frame, out),
            Opcode::QueryCluster => self.query_cluster(frame, now, out),
            Opcode::QueryTopics => self.query_topics(frame, out),
            _ => refused(Status::Unsupported, format!("{} is not served here", opcode.name())),
        }
    }

    fn hello(
        &mut self,
        peer: &mut Peer,
        frame: &Frame<'_>,
        now: Now,
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        let hello = table::<Hello>(frame, Opcode::Hello)?;
        let ours = u16::from(frame::VERSION);
        if hello.version() < ours {
            let message = format!(
                "the client speaks protocol version {} at most, this name server {ours}",
                hello.version()
            );
            return refused(Status::VersionMismatch, message);
        }
        peer.greeted = true;
        let (code, correlation) = (frame.header.opcode.get(), frame.header.correlation.get());
        let (name, instance) = (&self.config.name, self.instance);
        let max_frame_bytes = self.config.frame_bytes_max;
        self.builder.answer(out, code, correlation, 0, |fbb| {
            let broker = Some(fbb.create_string(name));
            let args = HelloAnswerArgs {
                version: ours,
                broker,
                instance,
                max_frame_bytes,
                max_body_bytes: limits::BODY_BYTES_MAX as u32,
                max_properties: limits::PROPERTIES_MAX as u32,
                max_properties_bytes: limits::PROPERTIES_BYTES_MAX as u32,
                server_ms: now.wall_ms,
                ..HelloAnswerArgs::default()
            };
            HelloAnswer::create(fbb, &args)
        });
        Ok(())
    }

    fn register(
        &mut self,
        session: Session,
        frame: &Frame<'_>,
        now: Now,
    ) -> Result<Outcome, Refused> {
        let table = large_table::<RegisterBroker>(frame, Opcode::RegisterBroker)?;
        let broker = wire::broker(&table).or_else(|fault| refused(Status::BadRequest, fault))?;
        let topics =
            wire::topics(table.topics()).or_else(|fault| refused(Status::BadRequest, fault))?;
        self.check_name(session, &broker, now)?;
        let (name, id, count) = (broker.name.clone(), broker.id, topics.len());
        let announced = (table.version(), table.hash());
        let outcome = self.table.register(session, broker, announced, topics)?;
        let changed = outcome.changed.len();
        tracing::info!(session, broker = name, id, topics = count, changed, "registration");
        Ok(outcome)
    }

    /// Two brokers started under one name would take it from each other for ever: the first keeps it. One
    /// that was started again (same address) or whose connection broke (same instance) is no other one.
    fn check_name(&self, session: Session, broker: &Broker, now: Now) -> Result<(), Refused> {
        let Some((holder, held)) = self.table.holder(&broker.name, broker.id) else {
            return Ok(());
        };
        let idle_ms = self.liveness.idle_ms(holder, now.mono_ms).unwrap_or(u64::MAX);
        let same =
            holder == session || held.instance == broker.instance || held.address == broker.address;
        if same || idle_ms > HOLDS_NAME_MS {
            return Ok(());
        }
        let (name, id, address) = (&broker.name, broker.id, &held.address);
        let message = format!(
            "broker {name} (id {id}) runs at {address} already: give the one at {} another name",
            broker.address
        );
        refused(Status::Denied, message)
    }

    fn changes(&mut self, session: Session, frame: &Frame<'_>) -> Result<Outcome, Refused> {
        let table = large_table::<BrokerChanges>(frame, Opcode::BrokerChanges)?;
        let topics =
            wire::topics(table.topics()).or_else(|fault| refused(Status::BadRequest, fault))?;
        let announced = (table.version(), table.hash());
        Ok(self.table.change(session, table.from_version(), announced, topics)?)
    }

    fn heartbeat(&mut self, session: Session, frame: &Frame<'_>) -> Result<Outcome, Refused> {
        let table = table::<BrokerHeartbeat>(frame, Opcode::BrokerHeartbeat)?;
        let need_full = self.table.heartbeat(session, table.version(), table.hash())?;
        Ok(Outcome { changed: Vec::new(), need_full })
    }

    fn query_route(
        &mut self,
        session: Session,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        let query = table::<QueryRoute>(frame, Opcode::QueryRoute)?;
        let topics: Vec<&str> = query.topics().into_iter().flatten().collect();
        let limit = self.config.topics_per_query_max;
        if topics.len() > limit {
            let count = topics.len();
            let message = format!("{count} topics in one query, at most {limit} are allowed");
            return refused(Status::TooMany, message);
        }
        for topic in &topics {
            names::check_topic(topic)
                .or_else(|error| refused(Status::BadName, error.to_string()))?;
        }
        let routes: Vec<_> = topics.iter().map(|topic| self.table.route(topic)).collect();
        self.check_answer(routes.iter().map(|route| wire::route_bytes(route)).sum(), "topics")?;
        if query.subscribe() {
            let limit = self.config.subscriptions_max;
            if let Err(total) = self.subscriptions.subscribe(session, &topics, limit) {
                let message = format!(
                    "this connection would subscribe to {total} topics, at most {limit} are allowed"
                );
                return refused(Status::TooMany, message);
            }
        }
        let (code, correlation) = (frame.header.opcode.get(), frame.header.correlation.get());
        self.builder.answer(out, code, correlation, 0, |fbb| wire::routes(fbb, &routes));
        Ok(())
    }

    fn query_cluster(
        &mut self,
        frame: &Frame<'_>,
        now: Now,
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        let (code, correlation) = (frame.header.opcode.get(), frame.header.correlation.get());
        let (brokers, liveness) = (&self.table, &self.liveness);
        self.builder.answer(out, code, correlation, 0, |fbb| {
            let entries: Vec<_> = brokers
                .brokers()
                .map(|(broker, session, topics, version)| {
                    let args = BrokerEntryArgs {
                        cluster: Some(fbb.create_string(&broker.cluster)),
                        broker: Some(fbb.create_string(&broker.name)),
                        broker_id: broker.id,
                        address: Some(fbb.create_string(&broker.address)),
                        instance: broker.instance,
                        shards: broker.shards,
                        topics: topics as u32,
                        version,
                        idle_ms: liveness.idle_ms(session, now.mono_ms).unwrap_or(0),
                    };
                    BrokerEntry::create(fbb, &args)
                })
                .collect();
            let brokers = Some(fbb.create_vector(&entries));
            QueryClusterAnswer::create(fbb, &QueryClusterAnswerArgs { brokers })
        });
        Ok(())
    }

    fn query_topics(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<(), Refused> {
        let query = table::<QueryTopics>(frame, Opcode::QueryTopics)?;
        let prefix = query.prefix().unwrap_or("");
        let bytes = self.table.topics(prefix).map(|name| name.len() + 12).sum();
        self.check_answer(bytes, "topic names")?;
        let (code, correlation) = (frame.header.opcode.get(), frame.header.correlation.get());
        let topics = self.table.topics(prefix);
        self.builder.answer(out, code, correlation, 0, |fbb| {
            let names: Vec<_> = topics.map(|name| fbb.create_string(name)).collect();
            let topics = Some(fbb.create_vector(&names));
            QueryTopicsAnswer::create(fbb, &QueryTopicsAnswerArgs { topics })
        });
        Ok(())
    }

    /// Answers cannot be split: what would be longer than clients take is refused with the remedy.
    fn check_answer(&self, bytes: usize, what: &str) -> Result<(), Refused> {
        let limit = limits::FETCH_BYTES_MAX;
        if bytes <= limit {
            return Ok(());
        }
        let remedy = format!(
            "the {what} would take {bytes} bytes, an answer holds {limit} at most: ask for fewer at once"
        );
        refused(Status::TooMany, remedy)
    }
}

fn table<'a, T>(frame: &Frame<'a>, opcode: Opcode) -> Result<T::Inner, Refused>
where
    T: Follow<'a> + Verifiable + 'a,
{
    frame::read_table::<T>(frame.table).or_else(|error| bad_table(opcode, &error))
}

fn large_table<'a, T>(frame: &Frame<'a>, opcode: Opcode) -> Result<T::Inner, Refused>
where
    T: Follow<'a> + Verifiable + 'a,
{
    frame::read_large_table::<T>(frame.table).or_else(|error| bad_table(opcode, &error))
}

fn bad_table<T>(opcode: Opcode, error: &dyn std::fmt::Display) -> Result<T, Refused> {
    refused(Status::BadRequest, format!("the table of {} does not verify: {error}", opcode.name()))
}

/// Wakers of connections by session; kept beside the service so that it knows nothing of tasks.
pub(crate) type Wakers = HashMap<Session, Arc<tokio::sync::Notify>>;
