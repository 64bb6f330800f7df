//! Topics.

use super::types::{MessageType, Permission, QueueStats, TopicDescription, TopicSpec};
use super::{Admin, BrokerStatus};
use crate::connection::{Request, Tables};
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Flush, time_of};
use crate::route::{Queue, TopicRoute, unknown_topic};
use ringmq_schema::admin as wire;
use ringmq_schema::flatbuffers::WIPOffset;
use ringmq_schema::names;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::route::{QueryTopics, QueryTopicsAnswer, QueryTopicsArgs};
use std::sync::Arc;
use std::time::Duration;

/// How long a change may take to reach the name servers.
const VISIBLE_LIMIT: Duration = Duration::from_secs(10);
/// How often they are asked for it.
const VISIBLE_STEP: Duration = Duration::from_millis(20);

impl Admin {
    /// Creates a topic on the brokers it names (all by default) and waits until its route is visible.
    /// A topic that is there with the same settings is fine.
    pub async fn create_topic(&self, spec: TopicSpec) -> Result<()> {
        let operation = "create topic";
        check_spec(operation, &spec)?;
        let brokers = self.brokers_of(operation, &spec).await?;
        for broker in &brokers {
            let request = Request::new(Opcode::CreateTopic, operation);
            let answer = self.ask(&broker.address, request, |fbb| {
                let topic = Some(topic_table(fbb, &spec));
                wire::CreateTopic::create(fbb, &wire::CreateTopicArgs { topic })
            });
            answer.await.map_err(|error| at(error, &spec.name, &broker.broker))?;
        }
        self.wait_visible(operation, &spec.name, |route| {
            let has = |broker: &BrokerStatus| route.master(&broker.broker).is_some();
            route.brokers.len() >= brokers.len() && brokers.iter().all(has)
        })
        .await
    }

    /// Changes a topic on every broker that has it (of those named): every setting is taken over.
    pub async fn alter_topic(&self, spec: TopicSpec) -> Result<()> {
        let operation = "alter topic";
        check_spec(operation, &spec)?;
        let route = self.route(&spec.name).await?;
        let chosen = |broker: &str| {
            spec.brokers.is_empty() || spec.brokers.iter().any(|named| named == broker)
        };
        for master in route.masters().filter(|master| chosen(&master.broker)) {
            let request = Request::new(Opcode::AlterTopic, operation);
            let answer = self.ask(&master.address, request, |fbb| {
                let topic = Some(topic_table(fbb, &spec));
                wire::AlterTopic::create(fbb, &wire::AlterTopicArgs { topic })
            });
            answer.await.map_err(|error| at(error, &spec.name, &master.broker))?;
        }
        self.wait_visible(operation, &spec.name, |route| {
            route.masters().filter(|master| chosen(&master.broker)).all(|master| {
                (master.read_queues, master.write_queues, master.permission)
                    == (spec.read_queues, spec.write_queues, spec.permission.code())
            })
        })
        .await
    }

    /// Deletes a topic and its messages on every broker.
    pub async fn delete_topic(&self, topic: &str) -> Result<()> {
        let operation = "delete topic";
        let route = self.route(topic).await.map_err(|error| error.during(operation))?;
        for master in route.masters() {
            let request = Request::new(Opcode::DeleteTopic, operation);
            let answer = self.ask(&master.address, request, |fbb| {
                let name = Some(fbb.create_string(topic));
                wire::DeleteTopic::create(fbb, &wire::DeleteTopicArgs { name })
            });
            answer.await.map_err(|error| at(error, topic, &master.broker))?;
        }
        self.wait_visible(operation, topic, |route| route.brokers.is_empty()).await
    }

    /// Names of topics that start with `prefix`, sorted.
    pub async fn topics(&self, prefix: &str) -> Result<Vec<String>> {
        let request = Request::new(Opcode::QueryTopics, "list topics");
        let answer = self
            .routes()
            .ask(request, |fbb| {
                let prefix = Some(fbb.create_string(prefix));
                QueryTopics::create(fbb, &QueryTopicsArgs { prefix })
            })
            .await?;
        let table = answer.read::<QueryTopicsAnswer<'_>>("list topics")?;
        let mut topics: Vec<String> =
            table.topics().into_iter().flatten().map(str::to_owned).collect();
        topics.sort_unstable();
        Ok(topics)
    }

    /// A topic's settings on each broker that has it.
    pub async fn describe_topic(&self, topic: &str) -> Result<Vec<TopicDescription>> {
        let operation = "describe topic";
        let route = self.route(topic).await.map_err(|error| error.during(operation))?;
        let mut descriptions = Vec::new();
        for master in route.masters() {
            let request = Request::new(Opcode::DescribeTopic, operation);
            let answer = self.ask(&master.address, request, |fbb| {
                let name = Some(fbb.create_string(topic));
                wire::DescribeTopic::create(fbb, &wire::DescribeTopicArgs { name })
            });
            let answer = answer.await.map_err(|error| at(error, topic, &master.broker))?;
            let table = answer.read::<wire::TopicAnswer<'_>>(operation)?;
            if let Some(topic) = table.topic() {
                descriptions.push(read_topic(&topic, &master.broker));
            }
        }
        Ok(descriptions)
    }

    /// Where a topic's queues are, asked now.
    pub async fn route(&self, topic: &str) -> Result<TopicRoute> {
        names::check_topic(topic).map_err(|e| Error::invalid("query route", e).on(topic))?;
        self.routes().ask_route(topic).await?.ok_or_else(|| unknown_topic(topic))
    }

    /// Figures of each queue of a topic.
    pub async fn topic_stats(&self, topic: &str) -> Result<Vec<QueueStats>> {
        let operation = "query queues";
        let route = self.route(topic).await.map_err(|error| error.during(operation))?;
        let mut all = Vec::new();
        for master in route.masters() {
            for shard in 0..master.shards {
                let request = Request::new(Opcode::QueryQueues, operation).shard(shard);
                let answer = self.ask(&master.address, request, |fbb| {
                    let args = wire::QueryQueuesArgs { topic: master.topic_id };
                    wire::QueryQueues::create(fbb, &args)
                });
                let answer = answer.await.map_err(|error| at(error, topic, &master.broker))?;
                let table = answer.read::<wire::QueryQueuesAnswer<'_>>(operation)?;
                all.extend(table.queues().into_iter().flatten().map(|stat| {
                    let (topic, broker) = (Arc::clone(&route.topic), Arc::clone(&master.broker));
                    QueueStats {
                        queue: Queue::new(topic, broker, stat.queue()),
                        shard,
                        min_offset: stat.min_offset(),
                        max_offset: stat.max_offset(),
                        last_stored_at: (stat.last_store_ms() > 0)
                            .then(|| time_of(stat.last_store_ms())),
                        bytes: stat.bytes(),
                    }
                }));
            }
        }
        all.sort_by(|a, b| a.queue.cmp(&b.queue));
        Ok(all)
    }

    /// The masters that a topic names, or all.
    async fn brokers_of(
        &self,
        operation: &'static str,
        spec: &TopicSpec,
    ) -> Result<Vec<BrokerStatus>> {
        let mut masters = self.brokers().await?;
        masters.retain(|broker| broker.broker_id == 0);
        for named in &spec.brokers {
            if !masters.iter().any(|master| master.broker == *named) {
                let known: Vec<&str> = masters.iter().map(|master| &*master.broker).collect();
                let text =
                    format!("no master broker has that name; there are: {}", known.join(", "));
                return Err(Error::new(ErrorKind::NotFound, operation, text).on(named.as_str()));
            }
        }
        if !spec.brokers.is_empty() {
            masters.retain(|master| spec.brokers.contains(&master.broker));
        }
        if masters.is_empty() {
            let text = "the name servers know no broker";
            return Err(Error::new(ErrorKind::Unreachable, operation, text).on(spec.name.as_str()));
        }
        Ok(masters)
    }

    /// Waits until the name servers show what was done.
    async fn wait_visible(
        &self,
        operation: &'static str,
        topic: &str,
        visible: impl Fn(&TopicRoute) -> bool,
    ) -> Result<()> {
        let deadline = tokio::time::Instant::now() + VISIBLE_LIMIT;
        let gone = TopicRoute { topic: topic.into(), version: 0, brokers: Vec::new() };
        loop {
            match self.routes().ask_route(topic).await {
                Ok(Some(route)) if visible(&route) => break,
                Ok(None) if visible(&gone) => break,
                Err(error) if !error.is_retryable() => return Err(error.during(operation)),
                _ => {}
            }
            if tokio::time::Instant::now() >= deadline {
                let text = format!(
                    "it is done on the brokers, but no name server showed it within {VISIBLE_LIMIT:?}"
                );
                return Err(Error::new(ErrorKind::Timeout, operation, text).on(topic));
            }
            tokio::time::sleep(VISIBLE_STEP).await;
        }
        Ok(())
    }
}

fn check_spec(operation: &'static str, spec: &TopicSpec) -> Result<()> {
    let name = spec.name.as_str();
    names::check_new_topic(name).map_err(|error| Error::invalid(operation, error).on(name))?;
    let max = ringmq_schema::limits::QUEUES_PER_TOPIC_MAX;
    let allowed = 1..=max;
    if !allowed.contains(&spec.read_queues) || !allowed.contains(&spec.write_queues) {
        let (read, write) = (spec.read_queues, spec.write_queues);
        let text = format!("{read} read and {write} write queues; 1 to {max} of each are allowed");
        return Err(Error::invalid(operation, text).on(name));
    }
    Ok(())
}

fn at(error: Error, topic: &str, broker: &str) -> Error {
    error.on(format!("{topic} on broker {broker}"))
}

fn topic_table(fbb: &mut Tables, spec: &TopicSpec) -> WIPOffset<wire::Topic<'static>> {
    let name = Some(fbb.create_string(&spec.name));
    let retention = spec.retention.map_or(0, |retention| retention.as_millis());
    let args = wire::TopicArgs {
        name,
        read_queues: spec.read_queues,
        write_queues: spec.write_queues,
        permission: spec.permission.code(),
        message_type: wire::MessageType(spec.message_type.code()),
        retention_ms: u64::try_from(retention).unwrap_or(u64::MAX),
        retention_bytes: spec.retention_bytes,
        flush: spec.flush.code(),
        ..wire::TopicArgs::default()
    };
    wire::Topic::create(fbb, &args)
}

fn read_topic(topic: &wire::Topic<'_>, broker: &str) -> TopicDescription {
    let retention_ms = topic.retention_ms();
    TopicDescription {
        name: topic.name().to_owned(),
        broker: broker.to_owned(),
        id: topic.id(),
        version: topic.version(),
        read_queues: topic.read_queues(),
        write_queues: topic.write_queues(),
        permission: Permission::from_code(topic.permission()),
        message_type: MessageType::from_code(topic.message_type().0),
        retention: (retention_ms > 0).then(|| Duration::from_millis(retention_ms)),
        retention_bytes: topic.retention_bytes(),
        flush: Flush::from_code(topic.flush()),
    }
}
