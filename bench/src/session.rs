//! The cluster that a run uses: clients, producers and the topic.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use ringmq::{Client, ErrorKind, Producer, QueueStats, TopicSpec};

use crate::args::{Load, Target};
use crate::environment::since_epoch_ms;

/// Messages in flight that a client always has room for.
const WINDOW_MESSAGES_MIN: usize = 65_536;
const WINDOW_BYTES_MIN: usize = 64 << 20;
/// An open loop queues at most so many messages behind a broker that fell back.
const WINDOW_MESSAGES_OPEN: usize = 1 << 18;
const WINDOW_BYTES_OPEN: usize = 512 << 20;
/// Room that a record takes beside its body.
const RECORD_EXTRA_BYTES: usize = 256;
/// Latency is measured, not cut off: far above anything but an outage.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// Ten times the longest that an ASYNC message stays invisible by default.
const VISIBLE_LIMIT: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Clients and topic of a run.
pub struct Session {
    clients: Vec<Client>,
    topic: String,
    topic_is_ours: bool,
}

impl Session {
    /// Connects, and makes the topic where it does not exist.
    pub async fn open(target: &Target, may_create: bool) -> anyhow::Result<Session> {
        let mut clients = Vec::new();
        for _ in 0..target.connections {
            let client = Client::builder(target.namesrv.as_str()).name("ringmq-bench");
            clients.push(client.connect().await.with_context(|| {
                format!("is a name server at {}? Start one with `ringmq dev`", target.namesrv)
            })?);
        }
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
            let spec = TopicSpec::new(topic.as_str()).queues(target.queues);
            admin.create_topic(spec).await.context("making the topic")?;
        }
        Ok(Session { clients, topic_is_ours: target.topic.is_none(), topic })
    }

    /// The topic of the run.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// One of the clients.
    pub fn client(&self, index: usize) -> &Client {
        &self.clients[index % self.clients.len()]
    }

    /// Where every queue of the topic stands.
    pub async fn queues(&self) -> anyhow::Result<Vec<QueueStats>> {
        let stats = self.clients[0].admin().topic_stats(&self.topic).await;
        stats.context("asking where the topic's queues stand")
    }

    /// Where the queues stand once `messages` more than at `before` can be read: what was acknowledged
    /// ASYNC shows as soon as it is durable. After a while whatever is there is the answer.
    pub async fn queues_after(
        &self,
        before: &[QueueStats],
        messages: u64,
    ) -> anyhow::Result<Vec<QueueStats>> {
        let total = |stats: &[QueueStats]| stats.iter().map(|queue| queue.max_offset).sum::<u64>();
        let goal = total(before) + messages;
        let deadline = Instant::now() + VISIBLE_LIMIT;
        loop {
            let after = self.queues().await?;
            if total(&after) >= goal || Instant::now() >= deadline {
                return Ok(after);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A producer on each client.
    pub async fn producers(&self, load: &Load) -> anyhow::Result<Vec<Producer>> {
        let batch = load.batch as usize;
        let waiting = load.in_flight as usize * batch;
        let bytes = waiting.saturating_mul(load.size + RECORD_EXTRA_BYTES);
        let (messages, bytes) = match load.rate {
            crate::args::Rate::Max => {
                (waiting.max(WINDOW_MESSAGES_MIN), bytes.max(WINDOW_BYTES_MIN))
            }
            crate::args::Rate::PerSecond(_) => (WINDOW_MESSAGES_OPEN, WINDOW_BYTES_OPEN),
        };
        let mut producers = Vec::new();
        for client in &self.clients {
            let builder = client
                .producer("ringmq-bench")
                .topic(self.topic.as_str())
                .flush(load.flush.into())
                .timeout(SEND_TIMEOUT)
                .max_in_flight(messages)
                .max_in_flight_bytes(bytes);
            producers.push(builder.build().await.context("making a producer")?);
        }
        Ok(producers)
    }

    /// Removes the topic if the run made it up, and closes the clients.
    pub async fn close(self) -> anyhow::Result<()> {
        if self.topic_is_ours {
            let admin = self.clients[0].admin();
            admin.delete_topic(&self.topic).await.context("removing the run's topic")?;
        }
        for client in self.clients {
            client.shutdown(CLOSE_LIMIT).await.context("closing the client")?;
        }
        Ok(())
    }
}
