//! The cluster that a run uses: clients, producers and the topic.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ringmq::{Admin, Client, ErrorKind, Producer, QueueStats, TopicSpec};

use crate::args::{Load, Target, Watch};
use crate::cpu::listener_on_loopback;
use crate::environment::since_epoch_ms;

/// Messages in flight that a client always has room for.
const WINDOW_MESSAGES_MIN: usize = 65_536;
const WINDOW_BYTES_MIN: usize = 64 << 20;
/// An open loop queues at most so many messages behind a broker that fell back.
pub(crate) const WINDOW_MESSAGES_OPEN: usize = 1 << 18;
pub(crate) const WINDOW_BYTES_OPEN: usize = 512 << 20;
/// Room that a record takes beside its body.
pub(crate) const RECORD_EXTRA_BYTES: usize = 256;
/// Latency is measured, not cut off: far above anything but an outage.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// Ten times the longest that an ASYNC message stays invisible by default.
const VISIBLE_LIMIT: Duration = Duration::from_secs(5);
/// Brokers register within a second of their start.
const BROKER_LIMIT: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Clients and topic of a run.
pub struct Session {
    clients: Vec<Client>,
    topics: Vec<String>,
    topics_are_ours: bool,
}

/// How many masters serve. A cluster that has just been started comes to have some.
async fn masters(admin: &Admin, namesrv: &str) -> anyhow::Result<u32> {
    let deadline = Instant::now() + BROKER_LIMIT;
    loop {
        let brokers = admin.brokers().await.context("asking for the brokers")?;
        let masters = brokers.iter().filter(|b| b.broker_id == 0 && b.shards > 0).count() as u32;
        if masters > 0 {
            return Ok(masters);
        }
        if Instant::now() >= deadline {
            bail!("the name server at {namesrv} knows no broker");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn connect(namesrv: &str, connections: u32) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        let client = Client::builder(namesrv).name("ringmq-bench");
        clients.push(client.connect().await.with_context(|| {
            format!("is a name server at {namesrv}? Start one with `ringmq dev`")
        })?);
    }
    Ok(clients)
}

impl Session {
    /// Connects, and makes the topic where it does not exist.
    pub async fn open(target: &Target, may_create: bool) -> anyhow::Result<Session> {
        let clients = connect(&target.namesrv, target.connections).await?;
        let admin = clients[0].admin();
        let fresh = || format!("bench-{:x}-{}", since_epoch_ms(), std::process::id());
        let topic = target.topic.clone().unwrap_or_else(fresh);
        let exists = match &target.topic {
            None => false,
            Some(topic) => match admin.describe_topic(topic).await {
                Ok(_) => true,
                Err(error) if error.kind() == ErrorKind::NotFound => false,
                Err(error) => return Err(error).context("looking for the topic"),
            },
        };
        if !exists && !may_create {
            bail!(
                "there is no topic {topic}: fill one with `ringmq-bench produce --topic {topic}`"
            );
        }
        if !exists {
            masters(&admin, &target.namesrv).await?;
            let spec = TopicSpec::new(topic.as_str()).queues(target.queues);
            admin.create_topic(spec).await.context("making the topic")?;
        }
        Ok(Session { clients, topics_are_ours: target.topic.is_none(), topics: vec![topic] })
    }

    /// Connects, and makes `topics` topics of `queues` queues in all.
    pub async fn open_fresh(
        namesrv: &str,
        connections: u32,
        topics: u32,
        queues: u32,
    ) -> anyhow::Result<Session> {
        let clients = connect(namesrv, connections).await?;
        let admin = clients[0].admin();
        let masters = masters(&admin, namesrv).await?;
        if !queues.is_multiple_of(masters) {
            bail!(
                "{queues} queues cannot be spread evenly over {masters} brokers: every broker of a \
                 topic has the same number"
            );
        }
        let prefix = format!("bench-{:x}-{}", since_epoch_ms(), std::process::id());
        let topics: Vec<String> = (0..topics).map(|number| format!("{prefix}-{number}")).collect();
        for topic in &topics {
            let spec = TopicSpec::new(topic.as_str()).queues(queues / masters);
            admin.create_topic(spec).await.with_context(|| format!("making the topic {topic}"))?;
        }
        Ok(Session { clients, topics, topics_are_ours: true })
    }

    /// The topic of the run; of several, the first.
    pub fn topic(&self) -> &str {
        &self.topics[0]
    }

    /// All topics of the run.
    pub fn topics(&self) -> &[String] {
        &self.topics
    }

    /// One of the clients.
    pub fn client(&self, index: usize) -> &Client {
        &self.clients[index % self.clients.len()]
    }

    /// Where every queue of the topic stands.
    pub async fn queues(&self) -> anyhow::Result<Vec<QueueStats>> {
        self.queues_of(self.topic()).await
    }

    /// Where every queue of one of the topics stands.
    pub async fn queues_of(&self, topic: &str) -> anyhow::Result<Vec<QueueStats>> {
        let stats = self.clients[0].admin().topic_stats(topic).await;
        stats.context("asking where the topic's queues stand")
    }

    /// Where the queues stand once `messages` more than at `before` can be read: what was acknowledged
    /// ASYNC shows as soon as it is durable. After a while whatever is there is the answer.
    pub async fn queues_after(
        &self,
        before: &[QueueStats],
        messages: u64,
    ) -> anyhow::Result<Vec<QueueStats>> {
        self.queues_at(self.topic(), total(before) + messages).await
    }

    /// The same of one of the topics that were made for the run.
    pub async fn queues_of_after(
        &self,
        topic: &str,
        messages: u64,
    ) -> anyhow::Result<Vec<QueueStats>> {
        self.queues_at(topic, messages).await
    }

    async fn queues_at(&self, topic: &str, goal: u64) -> anyhow::Result<Vec<QueueStats>> {
        let deadline = Instant::now() + VISIBLE_LIMIT;
        loop {
            let after = self.queues_of(topic).await?;
            if total(&after) >= goal || Instant::now() >= deadline {
                return Ok(after);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A producer on each client.
    pub async fn producers(&self, load: &Load) -> anyhow::Result<Vec<Producer>> {
        let mut producers = Vec::new();
        for client in 0..self.clients.len() {
            producers.push(self.producer(client, self.topic(), load).await?);
        }
        Ok(producers)
    }

    /// A producer on one of the clients, for one of the topics.
    pub async fn producer(
        &self,
        client: usize,
        topic: &str,
        load: &Load,
    ) -> anyhow::Result<Producer> {
        let batch = load.batch as usize;
        let waiting = load.in_flight as usize * batch;
        let bytes = waiting.saturating_mul(load.size + RECORD_EXTRA_BYTES);
        let (messages, bytes) = match load.rate {
            crate::args::Rate::Max => {
                (waiting.max(WINDOW_MESSAGES_MIN), bytes.max(WINDOW_BYTES_MIN))
            }
            crate::args::Rate::PerSecond(_) => (WINDOW_MESSAGES_OPEN, WINDOW_BYTES_OPEN),
        };
        let builder = self
            .client(client)
            .producer("ringmq-bench")
            .topic(topic)
            .flush(load.flush.into())
            .timeout(SEND_TIMEOUT)
            .max_in_flight(messages)
            .max_in_flight_bytes(bytes);
        builder.build().await.context("making a producer")
    }

    /// The process whose CPU is measured beside the load: the one that was named, or the only broker of
    /// the cluster where it listens on this host's loopback.
    pub async fn broker_pid(&self, watch: &Watch) -> anyhow::Result<Option<u32>> {
        if watch.broker_pid.is_some() {
            return Ok(watch.broker_pid);
        }
        let brokers = self.clients[0].admin().brokers().await.context("asking for the brokers")?;
        let [broker] = brokers.as_slice() else { return Ok(None) };
        let address: Option<std::net::SocketAddr> = broker.address.parse().ok();
        let local = address.filter(|address| address.ip().is_loopback());
        Ok(local.and_then(|address| listener_on_loopback(address.port())))
    }

    /// Removes topics that the run made up, and closes the clients.
    pub async fn close(self) -> anyhow::Result<()> {
        if self.topics_are_ours {
            let admin = self.clients[0].admin();
            for topic in &self.topics {
                admin.delete_topic(topic).await.context("removing the run's topic")?;
            }
        }
        for client in self.clients {
            client.shutdown(CLOSE_LIMIT).await.context("closing the client")?;
        }
        Ok(())
    }
}

/// Messages that a topic ever had.
fn total(stats: &[QueueStats]) -> u64 {
    stats.iter().map(|queue| queue.max_offset).sum()
}
