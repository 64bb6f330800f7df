//! Which broker has which topic: plain data, no I/O, no clock.
//!
//! A broker's table belongs to the *session* (connection) that registered it. Invariants:
//! - at most one session speaks for a broker (name and id): the newest that registered completely. What an
//!   older one says or its closing changes nothing any more;
//! - a full registration counts when it is complete, that is when the hash over its topics is the one that
//!   was announced: until then the routes stay as they were, so that a table of many frames never shows
//!   in parts;
//! - the snapshot of a topic never changes; a change makes another one with a higher version. A topic that
//!   no broker has is not kept.

use ringmq_schema::placement;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// A connection, numbered by the shell; numbers are not used again.
pub type Session = u64;

/// Who a broker is and where clients find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broker {
    /// Its cluster.
    pub cluster: String,
    /// Its name, the same for master and slaves.
    pub name: String,
    /// 0: master.
    pub id: u32,
    /// host:port for clients.
    pub address: String,
    /// Another one at every start.
    pub instance: u64,
    /// Its number of shards.
    pub shards: u16,
}

/// A topic as one broker has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topic {
    /// Its id there.
    pub id: u32,
    /// Version of its last change there.
    pub version: u64,
    /// Queues that can be read.
    pub read_queues: u32,
    /// Queues that can be written.
    pub write_queues: u32,
    /// 4 read, 2 write.
    pub permission: u8,
    /// `admin::MessageType`.
    pub message_type: u8,
}

impl Topic {
    /// Its part of the table's hash.
    pub fn hash(&self, name: &str) -> u64 {
        let Topic { id, version, read_queues, write_queues, permission, message_type } = *self;
        let queues = (read_queues, write_queues);
        placement::route_hash(name, id, version, queues.0, queues.1, permission, message_type)
    }
}

/// A topic of a registration or of a change; `None`: it is gone.
pub type TopicEntry = (Arc<str>, Option<Topic>);

/// All brokers that have a topic, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSnapshot {
    /// Its name.
    pub topic: Arc<str>,
    /// Grows with each change.
    pub version: u64,
    /// Sorted by name and id; empty: no such topic.
    pub brokers: Vec<(Arc<Broker>, Topic)>,
}

/// Bounds of the table (promise: bounded).
#[derive(Debug, Clone, Copy)]
pub struct TableLimits {
    /// Most brokers, slaves counted.
    pub brokers: usize,
    /// Most topics of one broker.
    pub topics_per_broker: usize,
}

/// What a broker's request did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Topics whose route changed.
    pub changed: Vec<Arc<str>>,
    /// The table here differs from the broker's: it is to register again.
    pub need_full: bool,
}

impl Outcome {
    fn need_full() -> Outcome {
        Outcome { changed: Vec::new(), need_full: true }
    }
}

/// Why a broker's request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// A limit of the table.
    #[error("{what}: at most {limit} are allowed here (see `{key}`)")]
    TooMany {
        /// What there would be too many of.
        what: String,
        /// In force.
        limit: usize,
        /// Setting.
        key: &'static str,
    },
    /// A connection speaks for one broker.
    #[error("this connection speaks for broker {own}: register {asked} on one of its own")]
    OtherBroker {
        /// Registered.
        own: String,
        /// Asked for.
        asked: String,
    },
    /// Another connection speaks for this broker now.
    #[error(
        "broker {name} (id {id}) has registered on another connection since, from {address}: if that is another process, give one of them another name"
    )]
    Superseded {
        /// Broker's name.
        name: String,
        /// Broker's id.
        id: u32,
        /// Address that the other one advertises.
        address: String,
    },
}

#[derive(Debug)]
struct Table {
    broker: Arc<Broker>,
    version: u64,
    hash: u64,
    topics: HashMap<Arc<str>, Topic>,
}

impl Table {
    fn apply(&mut self, (name, topic): TopicEntry) {
        let before = match topic {
            Some(topic) => {
                self.hash = self.hash.wrapping_add(topic.hash(&name));
                self.topics.insert(name.clone(), topic)
            }
            None => self.topics.remove(&name),
        };
        if let Some(before) = before {
            self.hash = self.hash.wrapping_sub(before.hash(&name));
        }
    }
}

/// A full registration that is not complete yet.
#[derive(Debug)]
struct Staged {
    table: Table,
    announced_hash: u64,
}

#[derive(Debug, Default)]
struct Registration {
    live: Option<Table>,
    staged: Option<Staged>,
}

type Identity = (String, u32);

/// See the module.
#[derive(Debug)]
pub struct RouteTable {
    limits: TableLimits,
    version: u64,
    sessions: HashMap<Session, Registration>,
    live: BTreeMap<Identity, Session>,
    superseded: HashMap<Session, RouteError>,
    /// Asked for by name tens of thousands of times a second.
    topics: HashMap<Arc<str>, Arc<TopicSnapshot>>,
    /// The same names in order.
    names: BTreeSet<Arc<str>>,
}

impl RouteTable {
    /// An empty table. Versions of routes start above `first_version`: with the wall clock's
    /// microseconds they grow over restarts too.
    pub fn new(first_version: u64, limits: TableLimits) -> RouteTable {
        RouteTable {
            limits,
            version: first_version,
            sessions: HashMap::new(),
            live: BTreeMap::new(),
            superseded: HashMap::new(),
            topics: HashMap::new(),
            names: BTreeSet::new(),
        }
    }

    /// Begins, and mostly completes, a broker's full table.
    pub fn register(
        &mut self,
        session: Session,
        broker: Broker,
        (version, announced_hash): (u64, u64),
        topics: Vec<TopicEntry>,
    ) -> Result<Outcome, RouteError> {
        self.check_superseded(session)?;
        if let Some(own) = self.sessions.get(&session) {
            let speaks_for = own.live.as_ref().map(|table| &table.broker);
            if let Some(own) =
                speaks_for.filter(|own| (&own.name, own.id) != (&broker.name, broker.id))
            {
                let (own, asked) = (own.name.clone(), broker.name);
                return Err(RouteError::OtherBroker { own, asked });
            }
        } else if self.sessions.len() >= self.limits.brokers {
            let what = format!("broker {} (id {}) would be one too many", broker.name, broker.id);
            let (limit, key) = (self.limits.brokers, "brokers_max");
            return Err(RouteError::TooMany { what, limit, key });
        }
        let broker = Arc::new(broker);
        let table = Table { broker, version, hash: 0, topics: HashMap::new() };
        let staged = Staged { table, announced_hash };
        self.sessions.entry(session).or_default().staged = Some(staged);
        self.stage(session, topics)
    }

    /// What changed since `from_version`, or more of a registration of many frames.
    pub fn change(
        &mut self,
        session: Session,
        from_version: u64,
        (version, hash): (u64, u64),
        topics: Vec<TopicEntry>,
    ) -> Result<Outcome, RouteError> {
        self.check_superseded(session)?;
        let Some(registration) = self.sessions.get_mut(&session) else {
            return Ok(Outcome::need_full());
        };
        if let Some(staged) = &registration.staged {
            let continues = from_version == staged.table.version
                && version == staged.table.version
                && hash == staged.announced_hash;
            if continues {
                return self.stage(session, topics);
            }
            registration.staged = None;
            return Ok(Outcome::need_full());
        }
        let Some(table) = &mut registration.live else { return Ok(Outcome::need_full()) };
        if from_version != table.version {
            return Ok(Outcome::need_full());
        }
        let made = topics.iter().filter(|(_, topic)| topic.is_some()).count();
        check_topics(&self.limits, &table.broker, table.topics.len() + made)?;
        let mut changed = Vec::with_capacity(topics.len());
        for (name, topic) in topics {
            let name = intern(&self.topics, name);
            if table.topics.get(&name) != topic.as_ref() {
                changed.push(name.clone());
            }
            table.apply((name, topic));
        }
        table.version = version;
        let need_full = table.hash != hash;
        let broker = table.broker.clone();
        self.refresh(&changed, &broker, session);
        Ok(Outcome { changed, need_full })
    }

    /// A heartbeat: whether the broker is to register again.
    pub fn heartbeat(&self, session: Session, version: u64, hash: u64) -> Result<bool, RouteError> {
        self.check_superseded(session)?;
        let table = self.sessions.get(&session).and_then(|registration| registration.live.as_ref());
        Ok(table.is_none_or(|table| (table.version, table.hash) != (version, hash)))
    }

    /// The broker registered under that name and id, and the session that speaks for it.
    pub fn holder(&self, name: &str, id: u32) -> Option<(Session, &Broker)> {
        let session = *self.live.get(&(name.to_owned(), id))?;
        Some((session, &self.sessions.get(&session)?.live.as_ref()?.broker))
    }

    /// The session is over: its broker goes, if the session still speaks for it. Topics whose route
    /// changed.
    pub fn remove(&mut self, session: Session) -> Vec<Arc<str>> {
        self.superseded.remove(&session);
        let Some(registration) = self.sessions.remove(&session) else { return Vec::new() };
        let Some(table) = registration.live else { return Vec::new() };
        self.live.remove(&(table.broker.name.clone(), table.broker.id));
        let changed: Vec<_> = table.topics.into_keys().collect();
        self.refresh(&changed, &table.broker, session);
        changed
    }

    /// The route of a topic; one that nobody has comes back without brokers.
    pub fn route(&self, topic: &str) -> Arc<TopicSnapshot> {
        self.topics.get(topic).cloned().unwrap_or_else(|| {
            let (topic, version) = (topic.into(), self.version);
            Arc::new(TopicSnapshot { topic, version, brokers: Vec::new() })
        })
    }

    /// Names that start with `prefix`, sorted.
    pub fn topics<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Arc<str>> {
        let from = std::ops::Bound::Included(prefix);
        let range = self.names.range::<str, _>((from, std::ops::Bound::Unbounded));
        range.take_while(move |name| name.starts_with(prefix))
    }

    /// Number of topics.
    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    /// Brokers by name and id: the session that speaks for each, its number of topics and the version of
    /// its table.
    pub fn brokers(&self) -> impl Iterator<Item = (&Broker, Session, usize, u64)> {
        self.live.values().filter_map(|session| {
            let table = self.sessions.get(session)?.live.as_ref()?;
            Some((&*table.broker, *session, table.topics.len(), table.version))
        })
    }

    fn check_superseded(&self, session: Session) -> Result<(), RouteError> {
        self.superseded.get(&session).map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Adds to the staged table; makes it the live one when it is complete.
    fn stage(&mut self, session: Session, topics: Vec<TopicEntry>) -> Result<Outcome, RouteError> {
        let registration = self.sessions.entry(session).or_default();
        let Some(staged) = &mut registration.staged else { return Ok(Outcome::need_full()) };
        let total = staged.table.topics.len() + topics.len();
        if let Err(error) = check_topics(&self.limits, &staged.table.broker, total) {
            registration.staged = None;
            self.forget_if_empty(session);
            return Err(error);
        }
        for (name, topic) in topics {
            staged.table.apply((intern(&self.topics, name), topic));
        }
        if staged.table.hash != staged.announced_hash {
            return Ok(Outcome::default());
        }
        let Some(Staged { table, .. }) = registration.staged.take() else {
            return Ok(Outcome::need_full());
        };
        Ok(Outcome { changed: self.commit(session, table), need_full: false })
    }

    fn commit(&mut self, session: Session, table: Table) -> Vec<Arc<str>> {
        let broker = table.broker.clone();
        let identity = (broker.name.clone(), broker.id);
        let mut before = self.sessions.get_mut(&session).and_then(|own| own.live.take());
        if let Some(other) = self.live.insert(identity, session)
            && other != session
        {
            before = self.sessions.remove(&other).and_then(|registration| registration.live);
            let Broker { name, id, address, .. } = (*broker).clone();
            self.superseded.insert(other, RouteError::Superseded { name, id, address });
        }
        let changed = difference(before.as_ref(), &table);
        self.sessions.entry(session).or_default().live = Some(table);
        self.refresh(&changed, &broker, session);
        changed
    }

    /// Makes new snapshots of topics of which `broker`'s part has changed.
    fn refresh(&mut self, changed: &[Arc<str>], broker: &Broker, session: Session) {
        let table = self.sessions.get(&session).and_then(|registration| registration.live.as_ref());
        for name in changed {
            self.version += 1;
            let mut brokers =
                self.topics.get(name).map_or_else(Vec::new, |snapshot| snapshot.brokers.clone());
            brokers.retain(|(other, _)| (&other.name, other.id) != (&broker.name, broker.id));
            if let Some((table, topic)) = table.and_then(|t| Some((t, t.topics.get(name)?)))
                && (&table.broker.name, table.broker.id) == (&broker.name, broker.id)
            {
                let key = |b: &Broker| (b.name.clone(), b.id);
                let at = brokers.partition_point(|(other, _)| key(other) < key(broker));
                brokers.insert(at, (table.broker.clone(), *topic));
            }
            if brokers.is_empty() {
                self.topics.remove(name);
                self.names.remove(name);
            } else {
                let topic = name.clone();
                let snapshot = TopicSnapshot { topic, version: self.version, brokers };
                if self.topics.insert(name.clone(), Arc::new(snapshot)).is_none() {
                    self.names.insert(name.clone());
                }
            }
        }
    }

    fn forget_if_empty(&mut self, session: Session) {
        if self.sessions.get(&session).is_some_and(|r| r.live.is_none() && r.staged.is_none()) {
            self.sessions.remove(&session);
        }
    }
}

/// Topics in which two tables differ; all of both when the broker itself does.
fn difference(before: Option<&Table>, after: &Table) -> Vec<Arc<str>> {
    let Some(before) = before else { return after.topics.keys().cloned().collect() };
    let moved = before.broker != after.broker;
    let mut changed: HashSet<Arc<str>> = HashSet::new();
    for (name, topic) in &after.topics {
        if moved || before.topics.get(name) != Some(topic) {
            changed.insert(name.clone());
        }
    }
    changed.extend(before.topics.keys().filter(|n| !after.topics.contains_key(*n)).cloned());
    changed.into_iter().collect()
}

/// One allocation for each name, however many brokers have the topic.
fn intern(topics: &HashMap<Arc<str>, Arc<TopicSnapshot>>, name: Arc<str>) -> Arc<str> {
    topics.get_key_value(&name).map_or(name, |(known, _)| known.clone())
}

fn check_topics(limits: &TableLimits, broker: &Broker, topics: usize) -> Result<(), RouteError> {
    if topics <= limits.topics_per_broker {
        return Ok(());
    }
    let what = format!("broker {} would have {topics} topics", broker.name);
    let (limit, key) = (limits.topics_per_broker, "topics_per_broker_max");
    Err(RouteError::TooMany { what, limit, key })
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
