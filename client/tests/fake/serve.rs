//! Answers of the servers in memory.

use super::{Broker, Group, Joined, QueueKey, World};
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::connection::*;
use ringmq_schema::consume::*;
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringmq_schema::frame::{self, FrameHeader, read_table};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::produce::*;
use ringmq_schema::record::{self, RecordHeader};
use ringmq_schema::retry::*;
use ringmq_schema::route::*;
use ringmq_schema::zerocopy::{FromBytes, IntoBytes};
use ringmq_schema::{admin, placement};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

type Fbb = FlatBufferBuilder<'static>;
type Out = mpsc::UnboundedSender<Vec<u8>>;

#[derive(Clone)]
pub struct Served {
    pub world: Arc<Mutex<World>>,
    pub changed: Arc<Notify>,
    /// `None`: the name server.
    pub broker: Option<usize>,
}

/// Serves a connection until either side closes it.
pub async fn connection(served: Served, stream: TcpStream, mut cut: watch::Receiver<u64>) {
    stream.set_nodelay(true).unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let (out, mut frames) = mpsc::unbounded_channel::<Vec<u8>>();
    let writing = tokio::spawn(async move {
        while let Some(frame) = frames.recv().await {
            if writer.write_all(&frame).await.is_err() {
                return;
            }
        }
    });
    let mut tasks = tokio::task::JoinSet::new();
    let mut bytes = Vec::new();
    loop {
        while let Some(frame) = frame::parse(&bytes, u32::MAX).unwrap() {
            let length = frame.header.length.get() as usize;
            let request = bytes.drain(..length).collect::<Vec<u8>>();
            let (served, out) = (served.clone(), out.clone());
            let header = FrameHeader::read_from_prefix(&request).unwrap().0;
            if header.opcode() == Some(Opcode::Produce) {
                // In the order of arrival.
                served.serve(header, &request, &out).await;
            } else {
                tasks.spawn(async move { served.serve(header, &request, &out).await });
            }
        }
        tokio::select! {
            read = reader.read_buf(&mut bytes) => {
                if !matches!(read, Ok(n) if n > 0) { break }
            }
            _ = cut.changed() => break,
        }
    }
    tasks.shutdown().await;
    writing.abort();
}

impl Served {
    async fn serve(&self, header: FrameHeader, request: &[u8], out: &Out) {
        let frame = frame::parse(request, u32::MAX).unwrap().unwrap();
        let (table, run) = (frame.table, frame.run);
        let opcode = header.opcode().unwrap();
        let answer = Answer { opcode, correlation: header.correlation.get(), out: out.clone() };
        match opcode {
            Opcode::Hello => {
                let shards = if self.broker.is_some() { 2 } else { 0 };
                answer.table(&[], |fbb| {
                    HelloAnswer::create(
                        fbb,
                        &HelloAnswerArgs { version: 1, shards, ..Default::default() },
                    )
                });
            }
            Opcode::Ping => {
                answer.table(&[], |fbb| PingAnswer::create(fbb, &PingAnswerArgs::default()));
            }
            Opcode::QueryRoute => {
                self.query_route(read_table::<QueryRoute>(table).unwrap(), answer).await
            }
            Opcode::QueryCluster => self.query_cluster(answer),
            Opcode::Produce => {
                let one_way = header.is_one_way();
                self.produce(
                    read_table::<Produce>(table).unwrap(),
                    run,
                    one_way,
                    header.shard.get(),
                    answer,
                )
                .await;
            }
            Opcode::Fetch => self.fetch(read_table::<Fetch>(table).unwrap(), answer).await,
            Opcode::CommitOffsets => {
                self.commit(read_table::<CommitOffsets>(table).unwrap(), answer)
            }
            Opcode::QueryOffsets => {
                self.query_offsets(read_table::<QueryOffsets>(table).unwrap(), answer)
            }
            Opcode::SearchOffsets => {
                self.search(read_table::<SearchOffsets>(table).unwrap(), answer)
            }
            Opcode::GroupHeartbeat => {
                self.heartbeat(read_table::<GroupHeartbeat>(table).unwrap(), answer).await;
            }
            Opcode::GroupLeave => self.leave(read_table::<GroupLeave>(table).unwrap(), answer),
            Opcode::CreateGroup => {
                let name = read_table::<admin::CreateGroup>(table).unwrap().name().to_owned();
                let id = self.broker(|broker| group(broker, &name).id);
                answer.table(&[], |fbb| {
                    let name = Some(fbb.create_string(&name));
                    let group = Some(admin::Group::create(
                        fbb,
                        &admin::GroupArgs { name, id, version: 1, ..Default::default() },
                    ));
                    admin::GroupAnswer::create(fbb, &admin::GroupAnswerArgs { group })
                });
            }
            Opcode::RetryLater => {
                self.retry(read_table::<RetryLater>(table).unwrap(), run, answer);
            }
            Opcode::CreateTopic => {
                let topic = read_table::<admin::CreateTopic>(table).unwrap().topic();
                self.broker(|broker| {
                    let id = broker.topics.len() as u32 + 1;
                    broker.topics.insert(topic.name().to_owned(), (id, topic.write_queues()));
                });
                self.changed.notify_waiters();
                answer.table(&[], |fbb| admin::TopicAnswer::create(fbb, &Default::default()));
            }
            _ => answer.refuse(Status::Unsupported, "not in memory"),
        }
    }

    fn broker<R>(&self, work: impl FnOnce(&mut Broker) -> R) -> R {
        work(&mut self.world.lock().unwrap().brokers[self.broker.unwrap()])
    }

    async fn query_route(&self, query: QueryRoute<'_>, answer: Answer) {
        let topics: Vec<String> = query.topics().into_iter().flatten().map(str::to_owned).collect();
        let mut last = routes(&self.world.lock().unwrap(), &topics);
        answer.table(&[], |fbb| route_table(fbb, &last));
        while query.subscribe() {
            self.changed.notified().await;
            let now = routes(&self.world.lock().unwrap(), &topics);
            if now != last {
                last = now;
                answer.push(Opcode::RouteChanged, |fbb| route_table(fbb, &last));
            }
        }
    }

    fn query_cluster(&self, answer: Answer) {
        let world = self.world.lock().unwrap();
        answer.table(&[], |fbb| {
            let entries: Vec<_> = world
                .brokers
                .iter()
                .filter(|broker| broker.alive)
                .map(|broker| {
                    let args = BrokerEntryArgs {
                        broker: Some(fbb.create_string(&broker.name)),
                        address: Some(fbb.create_string(&broker.address)),
                        shards: broker.shards,
                        ..Default::default()
                    };
                    BrokerEntry::create(fbb, &args)
                })
                .collect();
            let brokers = Some(fbb.create_vector(&entries));
            QueryClusterAnswer::create(fbb, &QueryClusterAnswerArgs { brokers })
        });
    }

    async fn produce(
        &self,
        table: Produce<'_>,
        run: &[u8],
        one_way: bool,
        shard: u16,
        answer: Answer,
    ) {
        let refused = self.broker(|broker| {
            broker.produced.push(table.records());
            assert_eq!(
                shard,
                placement::shard_of_queue(table.topic(), table.queue(), broker.shards)
            );
            broker.refuse.pop_front()
        });
        if let Some(status) = refused {
            return answer.refuse(status, "as the test wants");
        }
        loop {
            let changed = self.changed.notified();
            if !self.broker(|broker| broker.hold) {
                break;
            }
            changed.await;
        }
        let base = self.broker(|broker| {
            let stored = broker.queues.entry((table.topic(), table.queue())).or_default();
            let base = stored.len();
            for found in record::records(run) {
                let found = found.unwrap();
                found.check_payload().unwrap();
                let mut header: RecordHeader = *found.header;
                assert_eq!(
                    (header.topic.get(), header.queue.get()),
                    (table.topic(), table.queue())
                );
                header.offset = (stored.len() as u64).into();
                header.store_ms = 1.into();
                header.seal();
                let mut bytes = found.bytes.to_vec();
                bytes[..record::HEADER_BYTES].copy_from_slice(header.as_bytes());
                stored.push(bytes);
            }
            assert_eq!(stored.len() - base, table.records() as usize);
            base as u64
        });
        self.changed.notify_waiters();
        if !one_way {
            let args = ProduceAnswerArgs {
                base_offset: base,
                records: table.records(),
                ..Default::default()
            };
            answer.table(&[], |fbb| ProduceAnswer::create(fbb, &args));
        }
    }

    /// Stores what is sent back at once, in the group's retry or dead-letter topic, if that is there.
    fn retry(&self, table: RetryLater<'_>, run: &[u8], answer: Answer) {
        let dead_lettered = self.broker(|broker| {
            if let Some(status) = broker.refuse_retries.pop_front() {
                return Err(status);
            }
            let max_attempts = broker.max_attempts;
            let member = (table.member_high(), table.member_low());
            let name = broker.groups.iter().find(|(_, g)| g.id == table.group()).unwrap().0.clone();
            let owner = broker.groups[&name].owners.get(&(table.topic(), table.queue()));
            if owner != Some(&(member, table.generation())) {
                return Err(Status::Fenced);
            }
            let dead = table.dead_letter() || table.attempts() >= max_attempts;
            let prefix = if dead { "%DLQ%" } else { "%RETRY%" };
            let Some((topic, _)) = broker.topics.get(&format!("{prefix}{name}")).copied() else {
                return Err(Status::NotReady);
            };
            let stored = broker.queues.entry((topic, 0)).or_default();
            let found = record::records(run).next().unwrap().unwrap();
            found.check_payload().unwrap();
            let mut header: RecordHeader = *found.header;
            assert_eq!((header.topic.get(), header.queue.get()), (table.topic(), table.queue()));
            header.topic = topic.into();
            header.queue = 0.into();
            header.attempts = table.attempts().into();
            header.offset = (stored.len() as u64).into();
            header.seal();
            let mut bytes = found.bytes.to_vec();
            bytes[..record::HEADER_BYTES].copy_from_slice(header.as_bytes());
            stored.push(bytes);
            Ok(dead)
        });
        self.changed.notify_waiters();
        match dead_lettered {
            Ok(dead_lettered) => answer.table(&[], |fbb| {
                RetryLaterAnswer::create(
                    fbb,
                    &RetryLaterAnswerArgs { dead_lettered, deliver_ms: 0 },
                )
            }),
            Err(status) => answer.refuse(status, "as the test wants"),
        }
    }

    async fn fetch(&self, table: Fetch<'_>, answer: Answer) {
        let until = Instant::now() + Duration::from_millis(u64::from(table.wait_ms()));
        loop {
            let changed = self.changed.notified();
            let (queues, run) = self.broker(|broker| read_queues(broker, &table));
            if !queues.is_empty() || Instant::now() >= until {
                return answer.table(&run, |fbb| {
                    let queues = Some(fbb.create_vector(&queues));
                    FetchAnswer::create(fbb, &FetchAnswerArgs { queues })
                });
            }
            let _ = tokio::time::timeout_at(until, changed).await;
        }
    }

    fn commit(&self, table: CommitOffsets<'_>, answer: Answer) {
        let member = table.member().map_or((0, 0), |m| (m.high(), m.low()));
        let results: Vec<CommitResult> = self.broker(|broker| {
            let group = group_by_id(broker, table.group());
            let entries = table.entries().into_iter().flatten();
            entries
                .map(|entry| {
                    let key = (entry.topic(), entry.queue());
                    let owner = group.owners.get(&key).copied();
                    let fenced =
                        entry.generation() != 0 && owner != Some((member, entry.generation()));
                    let status = if fenced { Status::Fenced } else { Status::Ok };
                    if !fenced {
                        group.committed.insert(key, entry.offset());
                    }
                    CommitResult::new(key.0, key.1, status.code(), 0)
                })
                .collect()
        });
        answer.table(&[], |fbb| {
            let entries = Some(fbb.create_vector(&results));
            CommitOffsetsAnswer::create(fbb, &CommitOffsetsAnswerArgs { entries })
        });
    }

    fn query_offsets(&self, table: QueryOffsets<'_>, answer: Answer) {
        let queues: Vec<QueueOffsets> = self.broker(|broker| {
            let committed = group_by_id(broker, table.group()).committed.clone();
            let refs = table.queues().into_iter().flatten();
            refs.map(|queue| {
                let key = (queue.topic(), queue.queue());
                let end = broker.queues.get(&key).map_or(0, Vec::len) as u64;
                let at = committed.get(&key).map_or(-1, |at| *at as i64);
                QueueOffsets::new(key.0, key.1, at, 0, end, 0, 0, 0, &MemberId::new(0, 0), 0)
            })
            .collect()
        });
        answer.table(&[], |fbb| {
            let queues = Some(fbb.create_vector(&queues));
            QueryOffsetsAnswer::create(fbb, &QueryOffsetsAnswerArgs { queues })
        });
    }

    fn search(&self, table: SearchOffsets<'_>, answer: Answer) {
        let found: Vec<FoundOffset> = self.broker(|broker| {
            let queues = table.queues().into_iter().flatten();
            queues
                .map(|queue| {
                    let key = (queue.topic(), queue.queue());
                    let end = broker.queues.get(&key).map_or(0, Vec::len) as u64;
                    let offset = if queue.at_ms() == -2 { end } else { 0 };
                    FoundOffset::new(key.0, key.1, offset, 0, 0, 0)
                })
                .collect()
        });
        answer.table(&[], |fbb| {
            let queues = Some(fbb.create_vector(&found));
            SearchOffsetsAnswer::create(fbb, &SearchOffsetsAnswerArgs { queues })
        });
    }

    async fn heartbeat(&self, table: GroupHeartbeat<'_>, answer: Answer) {
        let member = table.member().map(|m| (m.high(), m.low())).unwrap();
        let until = Instant::now() + Duration::from_millis(u64::from(table.wait_ms()));
        let held: HashSet<QueueKey> =
            table.held().into_iter().flatten().map(|held| (held.topic(), held.queue())).collect();
        let topics: Vec<String> =
            table.subscriptions().into_iter().flatten().map(|s| s.topic().to_owned()).collect();
        self.broker(|broker| {
            let joined = group(broker, table.group()).members.entry(member).or_default();
            (joined.topics, joined.held) = (topics, held);
        });
        self.changed.notify_waiters();
        loop {
            let changed = self.changed.notified();
            let (id, version, owned, members) = self.broker(|broker| {
                assign(broker, table.group());
                let group = group(broker, table.group());
                let (id, members) = (group.id, group.members.len() as u32);
                // It left while this heartbeat was parked.
                let Some(joined) = group.members.get(&member) else {
                    return (id, u64::MAX, BTreeMap::new(), members);
                };
                (id, joined.version, joined.told.clone(), members)
            });
            if version != table.known_version() || Instant::now() >= until {
                return answer.table(&[], |fbb| {
                    let owned: Vec<OwnedQueue> = owned
                        .iter()
                        .map(|((topic, queue), generation)| {
                            OwnedQueue::new(*topic, *queue, *generation, 0)
                        })
                        .collect();
                    let queues = Some(fbb.create_vector(&owned));
                    let max_attempts = self.broker(|broker| broker.max_attempts);
                    let args = GroupHeartbeatAnswerArgs {
                        group: id,
                        version,
                        queues,
                        members,
                        max_attempts,
                    };
                    GroupHeartbeatAnswer::create(fbb, &args)
                });
            }
            let _ = tokio::time::timeout_at(until, changed).await;
        }
    }

    fn leave(&self, table: GroupLeave<'_>, answer: Answer) {
        let member = table.member().map(|m| (m.high(), m.low())).unwrap();
        self.broker(|broker| {
            broker.leaves += 1;
            let group = group(broker, table.group());
            group.members.remove(&member);
            group.owners.retain(|_, (owner, _)| *owner != member);
        });
        self.changed.notify_waiters();
        answer.done();
    }
}

fn group<'a>(broker: &'a mut Broker, name: &str) -> &'a mut Group {
    let id = broker.groups.len() as u32 + 1;
    broker.groups.entry(name.to_owned()).or_insert_with(|| Group { id, ..Default::default() })
}

fn group_by_id(broker: &mut Broker, id: u32) -> &mut Group {
    broker.groups.values_mut().find(|group| group.id == id).unwrap()
}

/// Queues in turn to members in order; one that another still holds stays with it until given back.
fn assign(broker: &mut Broker, name: &str) {
    let topics = broker.topics.clone();
    let group = group(broker, name);
    let members: Vec<_> = group.members.keys().copied().collect();
    let subscribed: HashSet<&String> = group.members.values().flat_map(|m| &m.topics).collect();
    let mut owned: BTreeMap<_, BTreeMap<QueueKey, u32>> = BTreeMap::new();
    let queues = topics.iter().filter(|(topic, _)| subscribed.contains(topic));
    let keys = queues.flat_map(|(_, (id, queues))| (0..*queues).map(|queue| (*id, queue)));
    for (at, key) in keys.enumerate() {
        let Some(wanted) = members.get(at % members.len().max(1)).copied() else { continue };
        let (owner, generation) = group.owners.get(&key).copied().unwrap_or((wanted, 0));
        let holds = |joined: &Joined| joined.held.contains(&key) || joined.told.contains_key(&key);
        let kept = owner != wanted && group.members.get(&owner).is_some_and(holds);
        if !kept && (owner != wanted || generation == 0) {
            group.owners.insert(key, (wanted, generation + 1));
        }
        if !kept {
            let generation = group.owners[&key].1;
            owned.entry(wanted).or_default().insert(key, generation);
        }
    }
    for (member, joined) in &mut group.members {
        let owned = owned.remove(member).unwrap_or_default();
        if owned != joined.told || joined.version == 0 {
            joined.told = owned;
            joined.version += 1;
        }
    }
}

fn read_queues(broker: &mut Broker, table: &Fetch<'_>) -> (Vec<FetchedQueue>, Vec<u8>) {
    let member = table.member().map_or((0, 0), |m| (m.high(), m.low()));
    let filters: Vec<Vec<u32>> = table
        .filters()
        .into_iter()
        .flatten()
        .map(|filter| filter.hashes().into_iter().flatten().collect())
        .collect();
    broker.fetch_filters.extend(filters.iter().cloned());
    let (mut fetched, mut run) = (Vec::new(), Vec::new());
    for ask in table.queues().into_iter().flatten() {
        let key = (ask.topic(), ask.queue());
        let owner =
            broker.groups.values().find(|g| g.id == table.group()).and_then(|g| g.owners.get(&key));
        if ask.generation() != 0 && owner != Some(&(member, ask.generation())) {
            fetched.push(FetchedQueue::new(key.0, key.1, 0, 0, 0, 0, Status::Fenced.code(), 0));
            continue;
        }
        let stored = broker.queues.get(&key).map_or(&[][..], Vec::as_slice);
        let (mut next, mut records) = (ask.offset(), 0);
        for bytes in stored.iter().skip(next as usize).take(table.max_records() as usize) {
            let header = RecordHeader::read_from_prefix(bytes).unwrap().0;
            let filter = (ask.filter() > 0).then(|| &filters[usize::from(ask.filter()) - 1]);
            if filter.is_none_or(|hashes| hashes.contains(&header.tag_hash.get())) {
                run.extend_from_slice(bytes);
                records += 1;
            }
            next += 1;
        }
        if next > ask.offset() {
            let end = stored.len() as u64;
            fetched.push(FetchedQueue::new(key.0, key.1, next, end, 0, records, 0, 0));
        }
    }
    (fetched, run)
}

/// Topic; broker, address, topic id, queues.
type Routes = Vec<(String, Vec<(String, String, u32, u32)>)>;

fn routes(world: &World, topics: &[String]) -> Routes {
    let of = |topic: &String| {
        let brokers = world.brokers.iter().filter(|broker| broker.alive);
        let has = brokers.filter_map(|broker| {
            let (id, queues) = *broker.topics.get(topic)?;
            Some((broker.name.clone(), broker.address.clone(), id, queues))
        });
        (topic.clone(), has.collect())
    };
    topics.iter().map(of).collect()
}

fn route_table(fbb: &mut Fbb, routes: &Routes) -> WIPOffset<RouteAnswer<'static>> {
    let mut tables = Vec::new();
    for (topic, brokers) in routes {
        let mut entries = Vec::new();
        for (broker, address, id, queues) in brokers {
            let args = BrokerRouteArgs {
                broker: Some(fbb.create_string(broker)),
                address: Some(fbb.create_string(address)),
                shards: 2,
                topic: *id,
                read_queues: *queues,
                write_queues: *queues,
                permission: 6,
                ..Default::default()
            };
            entries.push(BrokerRoute::create(fbb, &args));
        }
        let topic = Some(fbb.create_string(topic));
        let brokers = Some(fbb.create_vector(&entries));
        tables.push(TopicRoute::create(fbb, &TopicRouteArgs { topic, version: 1, brokers }));
    }
    let topics = Some(fbb.create_vector(&tables));
    RouteAnswer::create(fbb, &RouteAnswerArgs { topics })
}

/// Where an answer goes.
struct Answer {
    opcode: Opcode,
    correlation: u64,
    out: Out,
}

impl Answer {
    fn table<T>(&self, run: &[u8], build: impl FnOnce(&mut Fbb) -> WIPOffset<T>) {
        let mut bytes = Vec::new();
        FrameBuilder::new().answer(
            &mut bytes,
            self.opcode.code(),
            self.correlation,
            run.len(),
            build,
        );
        bytes.extend_from_slice(run);
        let _ = self.out.send(bytes);
    }

    fn push<T>(&self, opcode: Opcode, build: impl FnOnce(&mut Fbb) -> WIPOffset<T>) {
        let mut bytes = Vec::new();
        FrameBuilder::new().request_head(&mut bytes, opcode, frame::FLAG_ONE_WAY, 0, 0, 0, build);
        let _ = self.out.send(bytes);
    }

    fn done(&self) {
        let mut bytes = Vec::new();
        FrameBuilder::new().done(&mut bytes, self.opcode.code(), self.correlation);
        let _ = self.out.send(bytes);
    }

    fn refuse(&self, status: Status, message: &str) {
        let mut bytes = Vec::new();
        let code = self.opcode.code();
        FrameBuilder::new().refuse(&mut bytes, code, self.correlation, status, message);
        let _ = self.out.send(bytes);
    }
}
