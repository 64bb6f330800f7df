//! What is said on one connection to a name server: frames in and out, no sockets.
//!
//! Invariants:
//! - the broker is registered exactly while it is ready;
//! - after a registration only differences are sent, each with the table's version and hash after it; when
//!   the name server says that its table differs, or more has changed than is kept, all is sent again.

use super::ControlConfig;
use super::routes::Routes;
use super::topics::Topics;
use ringmq_core::route::{BrokerRoute, TopicChange};
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::connection::{Hello, HelloAnswer, HelloArgs, Ping, PingArgs, Refusal};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Vector, WIPOffset};
use ringmq_schema::frame::{self, ANY_SHARD, Frame};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::route::{
    BrokerAnswer, BrokerChanges, BrokerChangesArgs, BrokerHeartbeat, BrokerHeartbeatArgs,
    QueryRoute, QueryRouteArgs, RegisterBroker, RegisterBrokerArgs, RouteAnswer, TopicRegistration,
    TopicRegistrationArgs, TopicRoute, UnregisterBroker, UnregisterBrokerArgs,
};

/// Topics of one frame take so many bytes at most, or three quarters of what the name server takes.
const TOPIC_BYTES: usize = 512 << 10;
/// Topics of one route query.
const QUERY_TOPICS: usize = 1_024;

/// What the name server knows from this connection.
#[derive(Debug, Clone, Copy)]
struct Told {
    /// Number of the change after the last it was told of.
    end: u64,
    version: u64,
    /// Answers to earlier requests than this say nothing about the registration.
    since: u64,
}

/// What a frame brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Nothing that others must know.
    Nothing,
    /// The name server took something: the connection works.
    Accepted,
    /// Routes of topics.
    Routes(Vec<(String, Vec<BrokerRoute>)>),
}

/// See the module.
pub(super) struct Session {
    builder: FrameBuilder,
    correlation: u64,
    greeted: bool,
    told: Option<Told>,
    asked: usize,
    topic_bytes: usize,
}

impl Session {
    /// Begins a connection: appends the greeting.
    pub(super) fn begin(config: &ControlConfig, out: &mut Vec<u8>) -> Session {
        let mut session = Session {
            builder: FrameBuilder::new(),
            correlation: 0,
            greeted: false,
            told: None,
            asked: 0,
            topic_bytes: TOPIC_BYTES,
        };
        let client = format!("ringmq-broker {} {}", env!("CARGO_PKG_VERSION"), config.broker);
        session.request(out, Opcode::Hello, |fbb| {
            let client = Some(fbb.create_string(&client));
            let version = u16::from(frame::VERSION);
            Hello::create(fbb, &HelloArgs { version, client, ..HelloArgs::default() })
        });
        session
    }

    /// Appends whatever the name server does not know yet.
    pub(super) fn update(
        &mut self,
        config: &ControlConfig,
        ready: bool,
        (topics, routes): (&Topics, &Routes),
        out: &mut Vec<u8>,
    ) {
        if !self.greeted {
            return;
        }
        match self.told {
            None if ready => self.register(config, topics, out),
            Some(_) if !ready => {
                self.leave(out);
            }
            Some(told) if told.end != topics.end() => self.changes(config, told, topics, out),
            _ => {}
        }
        for names in routes.names()[self.asked..].chunks(QUERY_TOPICS) {
            self.request(out, Opcode::QueryRoute, |fbb| {
                let names: Vec<_> = names.iter().map(|name| fbb.create_string(name)).collect();
                let topics = Some(fbb.create_vector(&names));
                QueryRoute::create(fbb, &QueryRouteArgs { topics, subscribe: true })
            });
        }
        self.asked = routes.names().len();
    }

    /// Appends a sign of life; due each second.
    pub(super) fn heartbeat(&mut self, topics: &Topics, out: &mut Vec<u8>) {
        match self.told {
            Some(told) if told.end == topics.end() => {
                let (version, hash) = topics.state();
                self.request(out, Opcode::BrokerHeartbeat, |fbb| {
                    BrokerHeartbeat::create(fbb, &BrokerHeartbeatArgs { version, hash })
                });
            }
            _ if self.greeted => {
                self.request(out, Opcode::Ping, |fbb| Ping::create(fbb, &PingArgs { sent_ms: 0 }));
            }
            _ => {}
        }
    }

    /// Appends the broker's leaving; false when it was not registered.
    pub(super) fn leave(&mut self, out: &mut Vec<u8>) -> bool {
        let registered = self.told.take().is_some();
        if registered {
            self.request(out, Opcode::UnregisterBroker, |fbb| {
                UnregisterBroker::create(fbb, &UnregisterBrokerArgs {})
            });
        }
        registered
    }

    /// Takes a frame in. An error ends the connection.
    pub(super) fn receive(&mut self, frame: &Frame<'_>) -> Result<Received, String> {
        let Some(opcode) = frame.header.opcode() else {
            return Err(refusal(frame, "the connection"));
        };
        if frame.header.status() != Status::Ok {
            let fault = refusal(frame, opcode.name());
            if opcode == Opcode::QueryRoute {
                // The registration is worth keeping even if routes cannot be had.
                tracing::warn!("{fault}");
                return Ok(Received::Nothing);
            }
            return Err(fault);
        }
        let unreadable =
            |error| format!("the answer to {} does not verify: {error}", opcode.name());
        match opcode {
            Opcode::Hello => {
                let answer = frame::read_table::<HelloAnswer>(frame.table).map_err(unreadable)?;
                let frame_bytes = answer.max_frame_bytes() as usize;
                self.topic_bytes = TOPIC_BYTES.min(frame_bytes / 4 * 3);
                self.greeted = true;
                Ok(Received::Nothing)
            }
            Opcode::RegisterBroker | Opcode::BrokerChanges | Opcode::BrokerHeartbeat => {
                let answer = frame::read_table::<BrokerAnswer>(frame.table).map_err(unreadable)?;
                let correlation = frame.header.correlation.get();
                let counts = self.told.is_some_and(|told| correlation >= told.since);
                if answer.need_full() && counts {
                    self.told = None;
                }
                Ok(Received::Accepted)
            }
            Opcode::QueryRoute | Opcode::RouteChanged => {
                let answer =
                    frame::read_large_table::<RouteAnswer>(frame.table).map_err(unreadable)?;
                let topics = answer.topics().into_iter().flatten();
                Ok(Received::Routes(topics.map(|topic| route_of(&topic)).collect()))
            }
            _ => Ok(Received::Nothing),
        }
    }

    fn register(&mut self, config: &ControlConfig, topics: &Topics, out: &mut Vec<u8>) {
        let (version, hash) = topics.state();
        let all: Vec<_> = topics.all().collect();
        let mut frames = split(&all, self.topic_bytes).into_iter();
        self.told = Some(Told { end: topics.end(), version, since: self.correlation + 1 });
        let first = frames.next().unwrap_or_default();
        self.request(out, Opcode::RegisterBroker, |fbb| {
            let cluster = Some(fbb.create_string(&config.cluster));
            let broker = Some(fbb.create_string(&config.broker));
            let address = Some(fbb.create_string(&config.advertise));
            let topics = Some(registrations(fbb, first));
            let (broker_id, instance, shards) = (config.broker_id, config.instance, config.shards);
            let args = RegisterBrokerArgs {
                cluster,
                broker,
                broker_id,
                address,
                instance,
                shards,
                version,
                hash,
                topics,
            };
            RegisterBroker::create(fbb, &args)
        });
        for rest in frames {
            self.change_frame(version, (version, hash), rest, out);
        }
    }

    fn changes(&mut self, config: &ControlConfig, told: Told, topics: &Topics, out: &mut Vec<u8>) {
        let changes: Option<Vec<_>> = topics.since(told.end).map(Iterator::collect);
        // The hash is of the table after all of them, so they go in one frame or not at all.
        match changes.filter(|changes| split(changes, self.topic_bytes).len() == 1) {
            None => self.register(config, topics, out),
            Some(changes) => {
                let state = topics.state();
                self.change_frame(told.version, state, &changes, out);
                self.told = Some(Told { end: topics.end(), version: state.0, ..told });
            }
        }
    }

    fn change_frame(
        &mut self,
        from_version: u64,
        (version, hash): (u64, u64),
        changes: &[&TopicChange],
        out: &mut Vec<u8>,
    ) {
        self.request(out, Opcode::BrokerChanges, |fbb| {
            let topics = Some(registrations(fbb, changes));
            let args = BrokerChangesArgs { from_version, version, hash, topics };
            BrokerChanges::create(fbb, &args)
        });
    }

    fn request<T>(
        &mut self,
        out: &mut Vec<u8>,
        opcode: Opcode,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) {
        self.correlation += 1;
        self.builder.request(out, opcode, ANY_SHARD, self.correlation, &[], build);
    }
}

/// Cuts the list so that the topics of each part fit a frame.
fn split<'a>(topics: &'a [&'a TopicChange], bytes: usize) -> Vec<&'a [&'a TopicChange]> {
    let mut frames = Vec::new();
    let (mut start, mut taken) = (0, 0);
    for (at, topic) in topics.iter().enumerate() {
        // Vector slot, table, shared layout, string with its length and padding: 64 is the most.
        let needs = 64 + topic.settings.name.len();
        if taken + needs > bytes && at > start {
            frames.push(&topics[start..at]);
            (start, taken) = (at, 0);
        }
        taken += needs;
    }
    frames.push(&topics[start..]);
    frames
}

type Registrations<'a> = WIPOffset<Vector<'a, ForwardsUOffset<TopicRegistration<'a>>>>;

fn registrations(
    fbb: &mut FlatBufferBuilder<'static>,
    changes: &[&TopicChange],
) -> Registrations<'static> {
    let mut list = Vec::with_capacity(changes.len());
    for change in changes {
        let settings = &change.settings;
        let args = TopicRegistrationArgs {
            name: Some(fbb.create_string(&settings.name)),
            id: change.id,
            version: change.version,
            read_queues: settings.read_queues,
            write_queues: settings.write_queues,
            permission: settings.permission,
            message_type: settings.message_type,
            deleted: change.deleted,
        };
        list.push(TopicRegistration::create(fbb, &args));
    }
    fbb.create_vector(&list)
}

fn route_of(topic: &TopicRoute<'_>) -> (String, Vec<BrokerRoute>) {
    let brokers = topic.brokers().into_iter().flatten();
    let routes = brokers.filter(|route| route.shards() > 0).map(|route| BrokerRoute {
        broker: route.broker().to_owned(),
        broker_id: route.broker_id(),
        topic: route.topic(),
        shards: route.shards(),
        read_queues: route.read_queues(),
    });
    (topic.topic().to_owned(), routes.collect())
}

fn refusal(frame: &Frame<'_>, what: &str) -> String {
    let status = frame.header.status();
    let refusal = frame::read_table::<Refusal>(frame.table).ok();
    let message = refusal.and_then(|refusal| refusal.message()).unwrap_or("no reason given");
    format!("{what} was refused with {status}: {message}")
}
