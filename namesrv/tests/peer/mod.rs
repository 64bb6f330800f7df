//! A peer of the name server over real TCP, for tests: says one thing at a time.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)] // Tests panic; not every test file uses everything.

use ringmq_namesrv::{NameServer, NameServerHandle, NamesrvConfig};
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::connection::{Hello, HelloArgs, Refusal};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringmq_schema::frame::{self, ANY_SHARD};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement::route_hash;
use ringmq_schema::route::*;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

pub const PATIENCE: Duration = Duration::from_secs(10);

pub fn config() -> NamesrvConfig {
    NamesrvConfig { listen: "127.0.0.1:0".parse().unwrap(), ..NamesrvConfig::default() }
}

pub fn start(config: NamesrvConfig) -> NameServerHandle {
    NameServer::start(config).unwrap()
}

/// A frame that came.
#[derive(Debug)]
pub struct Came {
    pub opcode: u16,
    pub flags: u8,
    pub status: Status,
    pub correlation: u64,
    pub table: Vec<u8>,
}

impl Came {
    pub fn refusal(&self) -> String {
        assert_ne!(self.status, Status::Ok);
        frame::read_table::<Refusal>(&self.table).unwrap().message().unwrap().to_owned()
    }

    /// Topic, and its brokers with the topic's id there.
    pub fn routes(&self) -> Vec<(String, Vec<(String, u32)>)> {
        assert_eq!(self.status, Status::Ok);
        let answer = frame::read_large_table::<RouteAnswer>(&self.table).unwrap();
        let brokers = |topic: TopicRoute<'_>| {
            topic.brokers().unwrap().iter().map(|b| (b.broker().to_owned(), b.topic())).collect()
        };
        answer.topics().unwrap().iter().map(|t| (t.topic().to_owned(), brokers(t))).collect()
    }

    pub fn need_full(&self) -> bool {
        assert_eq!(self.status, Status::Ok, "{}", self.refusal());
        frame::read_table::<BrokerAnswer>(&self.table).unwrap().need_full()
    }
}

pub struct Peer {
    pub stream: TcpStream,
    /// Where its broker says it is.
    pub address: String,
    builder: FrameBuilder,
    correlation: u64,
}

pub type Fbb = FlatBufferBuilder<'static>;

impl Peer {
    /// Connects without a greeting.
    pub fn silent(server: &NameServerHandle) -> Peer {
        let stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let address = "127.0.0.1:10911".to_owned();
        Peer { stream, address, builder: FrameBuilder::new(), correlation: 0 }
    }

    pub fn new(server: &NameServerHandle) -> Peer {
        let mut peer = Peer::silent(server);
        let answer = peer.call(Opcode::Hello, |fbb| {
            Hello::create(fbb, &HelloArgs { version: 1, ..HelloArgs::default() })
        });
        assert_eq!(answer.status, Status::Ok);
        peer
    }

    pub fn send<T>(&mut self, opcode: Opcode, build: impl FnOnce(&mut Fbb) -> WIPOffset<T>) -> u64 {
        let mut out = Vec::new();
        self.correlation += 1;
        self.builder.request(&mut out, opcode, ANY_SHARD, self.correlation, &[], build);
        self.stream.write_all(&out).unwrap();
        self.correlation
    }

    /// Sends and waits for the answer; pushes may not come in between.
    pub fn call<T>(
        &mut self,
        opcode: Opcode,
        build: impl FnOnce(&mut Fbb) -> WIPOffset<T>,
    ) -> Came {
        let correlation = self.send(opcode, build);
        let came = self.read();
        assert_eq!((came.opcode, came.correlation), (opcode.code(), correlation), "{came:?}");
        assert_eq!(came.flags, frame::FLAG_ANSWER);
        came
    }

    pub fn read(&mut self) -> Came {
        let mut bytes = vec![0; frame::HEADER_BYTES];
        self.stream.read_exact(&mut bytes).unwrap();
        let header = *frame::parse_header(&bytes, u32::MAX).unwrap().unwrap();
        bytes.resize(header.length.get() as usize, 0);
        self.stream.read_exact(&mut bytes[frame::HEADER_BYTES..]).unwrap();
        let parsed = frame::parse(&bytes, u32::MAX).unwrap().unwrap();
        Came {
            opcode: header.opcode.get(),
            flags: header.flags,
            status: header.status(),
            correlation: header.correlation.get(),
            table: parsed.table.to_vec(),
        }
    }

    /// Reads until the server has closed; panics if it says anything, or does not close.
    pub fn closed(&mut self) {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("the connection should be closed: {other:?}"),
        }
    }

    pub fn register(&mut self, broker: &str, instance: u64, topics: &[Topic]) -> Came {
        let hash = hash(topics);
        self.register_part(broker, instance, (1, hash), topics)
    }

    pub fn register_part(
        &mut self,
        broker: &str,
        instance: u64,
        (version, hash): (u64, u64),
        topics: &[Topic],
    ) -> Came {
        let address = self.address.clone();
        self.call(Opcode::RegisterBroker, |fbb| {
            let cluster = Some(fbb.create_string("test"));
            let broker = Some(fbb.create_string(broker));
            let address = Some(fbb.create_string(&address));
            let topics = Some(registrations(fbb, topics));
            let (broker_id, shards) = (0, 2);
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
        })
    }

    pub fn changes(&mut self, from_version: u64, state: (u64, u64), topics: &[Topic]) -> Came {
        let (version, hash) = state;
        self.call(Opcode::BrokerChanges, |fbb| {
            let topics = Some(registrations(fbb, topics));
            let args = BrokerChangesArgs { from_version, version, hash, topics };
            BrokerChanges::create(fbb, &args)
        })
    }

    pub fn heartbeat(&mut self, version: u64, hash: u64) -> Came {
        self.call(Opcode::BrokerHeartbeat, |fbb| {
            BrokerHeartbeat::create(fbb, &BrokerHeartbeatArgs { version, hash })
        })
    }

    pub fn query(&mut self, topics: &[&str], subscribe: bool) -> Came {
        self.call(Opcode::QueryRoute, |fbb| {
            let names: Vec<_> = topics.iter().map(|name| fbb.create_string(name)).collect();
            let topics = Some(fbb.create_vector(&names));
            QueryRoute::create(fbb, &QueryRouteArgs { topics, subscribe })
        })
    }

    /// The next push.
    pub fn pushed(&mut self) -> Vec<(String, Vec<(String, u32)>)> {
        let came = self.read();
        assert_eq!(came.opcode, Opcode::RouteChanged.code());
        assert_eq!(came.flags, frame::FLAG_ONE_WAY);
        came.routes()
    }
}

#[derive(Debug, Clone)]
pub struct Topic {
    pub name: String,
    pub id: u32,
    pub deleted: bool,
}

pub fn topic(name: &str, id: u32) -> Topic {
    Topic { name: name.to_owned(), id, deleted: false }
}

pub fn hash(topics: &[Topic]) -> u64 {
    topics
        .iter()
        .fold(0, |hash, topic| hash.wrapping_add(route_hash(&topic.name, topic.id, 1, 8, 8, 6, 0)))
}

type Registrations<'a> = ringmq_schema::flatbuffers::Vector<
    'a,
    ringmq_schema::flatbuffers::ForwardsUOffset<TopicRegistration<'a>>,
>;

fn registrations(fbb: &mut Fbb, topics: &[Topic]) -> WIPOffset<Registrations<'static>> {
    let list: Vec<_> = topics
        .iter()
        .map(|topic| {
            let args = TopicRegistrationArgs {
                name: Some(fbb.create_string(&topic.name)),
                id: topic.id,
                version: 1,
                read_queues: 8,
                write_queues: 8,
                permission: 6,
                message_type: 0,
                deleted: topic.deleted,
            };
            TopicRegistration::create(fbb, &args)
        })
        .collect();
    fbb.create_vector(&list)
}

pub fn at(topic: &str, brokers: &[(&str, u32)]) -> (String, Vec<(String, u32)>) {
    (topic.to_owned(), brokers.iter().map(|(name, id)| ((*name).to_owned(), *id)).collect())
}
