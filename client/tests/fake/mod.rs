//! A cluster in memory that speaks the schema: a name server and brokers, with faults on request.
//!
//! It knows just enough to test the client: runs are stored as they come, one assignment rule, no flush.

#![allow(dead_code)] // Each test file uses its part.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod serve;

use ringmq_schema::error::Status;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

pub type Member = (u64, u64);
/// Topic id and queue.
pub type QueueKey = (u32, u32);

/// A member of a group at one broker.
#[derive(Default)]
pub struct Joined {
    pub topics: Vec<String>,
    pub held: HashSet<QueueKey>,
    /// What it was told last, with the version.
    pub told: BTreeMap<QueueKey, u32>,
    pub version: u64,
}

#[derive(Default)]
pub struct Group {
    pub id: u32,
    pub members: BTreeMap<Member, Joined>,
    pub owners: HashMap<QueueKey, (Member, u32)>,
    pub committed: HashMap<QueueKey, u64>,
}

pub struct Broker {
    pub name: String,
    pub address: String,
    pub shards: u16,
    pub alive: bool,
    pub topics: BTreeMap<String, (u32, u32)>,
    pub queues: HashMap<QueueKey, Vec<Vec<u8>>>,
    pub groups: BTreeMap<String, Group>,
    /// Statuses that the next produce requests are refused with.
    pub refuse: VecDeque<Status>,
    /// Statuses that the next messages that are sent back are refused with.
    pub refuse_retries: VecDeque<Status>,
    pub max_attempts: u16,
    /// Produce requests wait while this is set.
    pub hold: bool,
    /// Records in each produce request that came.
    pub produced: Vec<u32>,
    /// Requests that came by name.
    pub leaves: usize,
    pub fetch_filters: Vec<Vec<u32>>,
}

pub struct World {
    pub brokers: Vec<Broker>,
    pub names_up: bool,
}

/// The cluster; ends with its last handle.
#[derive(Clone)]
pub struct Fake {
    pub world: Arc<Mutex<World>>,
    pub changed: Arc<Notify>,
    pub name_server: String,
    /// Closes every connection of a server whose generation is below.
    pub cut: Arc<watch::Sender<u64>>,
    tasks: Arc<Tasks>,
}

struct Tasks(Mutex<Vec<JoinHandle<()>>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.lock().unwrap().iter().for_each(JoinHandle::abort);
    }
}

impl Fake {
    /// Starts brokers of these names with two shards each.
    pub async fn start(names: &[&str]) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Fake {
            world: Arc::new(Mutex::new(World { brokers: Vec::new(), names_up: true })),
            changed: Arc::new(Notify::new()),
            name_server: listener.local_addr().unwrap().to_string(),
            cut: Arc::new(watch::Sender::new(0)),
            tasks: Arc::new(Tasks(Mutex::default())),
        };
        fake.listen(listener, None);
        for name in names {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            fake.lock().brokers.push(Broker {
                name: (*name).to_owned(),
                address,
                shards: 2,
                alive: true,
                topics: BTreeMap::new(),
                queues: HashMap::new(),
                groups: BTreeMap::new(),
                refuse: VecDeque::new(),
                refuse_retries: VecDeque::new(),
                max_attempts: 16,
                hold: false,
                produced: Vec::new(),
                leaves: 0,
                fetch_filters: Vec::new(),
            });
            let index = fake.lock().brokers.len() - 1;
            fake.listen(listener, Some(index));
        }
        fake
    }

    fn listen(&self, listener: TcpListener, broker: Option<usize>) {
        // Weak: the accepting task must not keep the cluster alive.
        let (world, changed) = (Arc::downgrade(&self.world), Arc::clone(&self.changed));
        let cut = Arc::clone(&self.cut);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Some(world) = world.upgrade() else { return };
                let served = serve::Served { world, changed: Arc::clone(&changed), broker };
                tokio::spawn(serve::connection(served, stream, cut.subscribe()));
            }
        });
        self.tasks.0.lock().unwrap().push(task);
    }

    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Makes a topic on every broker.
    pub fn topic(&self, name: &str, queues: u32) -> &Fake {
        for (index, broker) in self.lock().brokers.iter_mut().enumerate() {
            let id = broker.topics.len() as u32 + 1 + 100 * index as u32;
            broker.topics.insert(name.to_owned(), (id, queues));
        }
        self.changed.notify_waiters();
        self
    }

    pub async fn client(&self) -> ringmq::Client {
        ringmq::Client::connect(self.name_server.clone()).await.unwrap()
    }

    /// Closes every connection there is.
    pub fn cut_connections(&self) {
        self.cut.send_modify(|generation| *generation += 1);
    }

    /// Changes something of a broker.
    pub fn with<R>(&self, broker: usize, change: impl FnOnce(&mut Broker) -> R) -> R {
        let result = change(&mut self.lock().brokers[broker]);
        self.changed.notify_waiters();
        result
    }

    /// Waits until the world is as wanted.
    pub async fn wait(&self, what: &str, wanted: impl Fn(&World) -> bool) {
        eventually(what, || wanted(&self.lock())).await;
    }

    /// Takes no more connections as a name server.
    pub fn stop_name_server(&self) {
        self.tasks.0.lock().unwrap()[0].abort();
    }

    /// Messages of every queue of a topic.
    pub fn stored(&self, topic: &str) -> usize {
        let world = self.lock();
        let of = |broker: &Broker| {
            let id = broker.topics[topic].0;
            let queues = broker.queues.iter().filter(|((topic, _), _)| *topic == id);
            queues.map(|(_, records)| records.len()).sum::<usize>()
        };
        world.brokers.iter().map(of).sum()
    }
}

/// Waits until something holds; fails with its name after 10 s.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), waiting).await.is_ok(), "never: {what}");
}
