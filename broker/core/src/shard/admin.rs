//! Topics and figures: what administrators ask for.

use super::{Asker, Handled, Shard, read, refuse};
use crate::peer::{Change, TopicSettings};
use crate::seam::{Memory, Now, Outbox};
use ringmq_schema::admin::{
    self, AlterTopic, CreateTopic, DeleteTopic, DescribeTopic, ListTopics, ListTopicsAnswer,
    ListTopicsAnswerArgs, QueryQueues, QueryQueuesAnswer, QueryQueuesAnswerArgs, QueryShardAnswer,
    QueryShardAnswerArgs, QueueStat, TopicAnswer, TopicAnswerArgs, TopicArgs,
};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringmq_schema::limits;
use ringmq_schema::names;
use ringmq_schema::placement::shard_of_queue;

type Fbb = FlatBufferBuilder<'static>;

fn write_topic(
    fbb: &mut Fbb,
    id: u32,
    version: u64,
    settings: &TopicSettings,
) -> WIPOffset<admin::Topic<'static>> {
    let name = Some(fbb.create_string(&settings.name));
    let args = TopicArgs {
        name,
        id,
        version,
        read_queues: settings.read_queues,
        write_queues: settings.write_queues,
        permission: settings.permission,
        message_type: admin::MessageType(settings.message_type),
        retention_ms: settings.retention_ms,
        retention_bytes: settings.retention_bytes,
        flush: settings.flush,
    };
    admin::Topic::create(fbb, &args)
}

fn read_topic(topic: &admin::Topic<'_>) -> Result<TopicSettings, super::Refuse> {
    let name = topic.name();
    names::check_new_topic(name).map_err(|e| refuse(Status::BadName, e.to_string()))?;
    let most = limits::QUEUES_PER_TOPIC_MAX;
    let (read_queues, write_queues) = (topic.read_queues(), topic.write_queues());
    if read_queues == 0 || read_queues > most || write_queues == 0 || write_queues > most {
        let text = format!(
            "topic {name}: {read_queues} read and {write_queues} write queues, 1 to {most} are allowed"
        );
        return Err(refuse(Status::BadRequest, text));
    }
    let (message_type, flush) = (topic.message_type().0, topic.flush());
    if message_type > admin::MessageType::ENUM_MAX || topic.permission() & !6 != 0 || flush > 2 {
        let text = format!("topic {name}: unknown permission, message type or flush mode");
        return Err(refuse(Status::BadRequest, text));
    }
    Ok(TopicSettings {
        name: name.to_owned(),
        read_queues,
        write_queues,
        permission: topic.permission(),
        message_type,
        retention_ms: topic.retention_ms(),
        retention_bytes: topic.retention_bytes(),
        flush,
    })
}

impl<M: Memory> Shard<M> {
    pub(super) fn create_topic(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let settings = read_topic(&read::<CreateTopic<'_>>(table)?.topic())?;
        self.check_home()?;
        self.check_unstaged(&settings.name)?;
        if let Some(topic) = self.registry.topic_named(&settings.name) {
            if topic.settings != settings {
                let text = format!(
                    "topic {} exists with other settings ({} read and {} write queues, permission {}): alter it instead",
                    settings.name,
                    topic.settings.read_queues,
                    topic.settings.write_queues,
                    topic.settings.permission
                );
                return Err(refuse(Status::TopicExists, text));
            }
            let (id, version) = (topic.id, topic.version);
            self.answer_topic(asker, id, version, &settings, out);
            return Ok(());
        }
        self.check_topic_fits(&settings)?;
        let id = self.registry.next_topic_id();
        self.change(Change::Topic { id, settings }, Some(asker), now, out);
        Ok(())
    }

    /// Whether the broker may have one more topic, with its queues.
    pub(super) fn check_topic_fits(&self, settings: &TopicSettings) -> Handled {
        let most = self.config.topics;
        if self.registry.topics().len() >= most {
            let text = format!("there are {most} topics, the most allowed");
            return Err(refuse(Status::TooMany, text));
        }
        self.check_queues(settings)
    }

    /// Whether the broker may have this topic's queues beside all others.
    fn check_queues(&self, settings: &TopicSettings) -> Handled {
        let queues = |s: &TopicSettings| u64::from(s.read_queues.max(s.write_queues));
        let others = self.registry.topics().filter(|topic| topic.settings.name != settings.name);
        let total = others.map(|topic| queues(&topic.settings)).sum::<u64>() + queues(settings);
        if total <= self.config.queues {
            return Ok(());
        }
        let text =
            format!("{total} queues on this broker, at most {} are allowed", self.config.queues);
        Err(refuse(Status::TooMany, text))
    }

    pub(super) fn alter_topic(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let settings = read_topic(&read::<AlterTopic<'_>>(table)?.topic())?;
        self.check_home()?;
        self.check_unstaged(&settings.name)?;
        let topic = self.find_topic(&settings.name)?;
        if settings.read_queues < settings.write_queues {
            let text = format!(
                "topic {}: {} write queues but only {} can be read; read queues are lowered last",
                settings.name, settings.write_queues, settings.read_queues
            );
            return Err(refuse(Status::BadRequest, text));
        }
        let id = topic.id;
        self.check_queues(&settings)?;
        self.change(Change::Topic { id, settings }, Some(asker), now, out);
        Ok(())
    }

    pub(super) fn delete_topic(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<DeleteTopic<'_>>(table)?;
        self.check_home()?;
        self.check_unstaged(request.name())?;
        let id = self.find_topic(request.name())?.id;
        self.change(Change::TopicDeleted { id }, Some(asker), now, out);
        Ok(())
    }

    fn find_topic(&self, name: &str) -> Result<&crate::registry::Topic, super::Refuse> {
        names::check_topic(name).map_err(|e| refuse(Status::BadName, e.to_string()))?;
        self.registry.topic_named(name).ok_or_else(|| {
            let text = format!("there is no topic {name} on broker {}", self.config.broker);
            refuse(Status::UnknownTopic, text)
        })
    }

    pub(super) fn describe_topic(
        &mut self,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<DescribeTopic<'_>>(table)?;
        self.check_agreement()?;
        let topic = self.find_topic(request.name())?.clone();
        self.answer_topic(asker, topic.id, topic.version, &topic.settings, out);
        Ok(())
    }

    pub(super) fn answer_topic(
        &mut self,
        asker: Asker,
        id: u32,
        version: u64,
        settings: &TopicSettings,
        out: &mut Outbox<M::Block>,
    ) {
        self.answer(asker, out, |fbb| {
            let topic = Some(write_topic(fbb, id, version, settings));
            TopicAnswer::create(fbb, &TopicAnswerArgs { topic })
        });
    }

    pub(super) fn list_topics(
        &mut self,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<ListTopics<'_>>(table)?;
        self.check_agreement()?;
        let prefix = request.prefix().unwrap_or_default();
        let topics: Vec<_> = self.registry.topics_by_name(prefix).cloned().collect();
        self.answer(asker, out, |fbb| {
            let topics: Vec<_> =
                topics.iter().map(|t| write_topic(fbb, t.id, t.version, &t.settings)).collect();
            let topics = Some(fbb.create_vector(&topics));
            ListTopicsAnswer::create(fbb, &ListTopicsAnswerArgs { topics })
        });
        Ok(())
    }

    pub(super) fn query_queues(
        &mut self,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let topic = read::<QueryQueues<'_>>(table)?.topic();
        let settings = &self
            .registry
            .topic(topic)
            .ok_or_else(|| super::produce::unknown_topic(topic))?
            .settings;
        let shards = self.config.shards;
        let stats: Vec<QueueStat> = (0..settings.read_queues.max(settings.write_queues))
            .filter(|queue| shard_of_queue(topic, *queue, shards) == self.config.shard)
            .map(|queue| match self.queues.get(crate::peer::QueueId { topic, queue }) {
                Some(q) => QueueStat::new(queue, 0, q.min, q.visible, q.last_store_ms, q.bytes),
                None => QueueStat::new(queue, 0, 0, 0, 0, 0),
            })
            .collect();
        self.answer(asker, out, |fbb| {
            let queues = Some(fbb.create_vector(&stats));
            QueryQueuesAnswer::create(fbb, &QueryQueuesAnswerArgs { queues })
        });
        Ok(())
    }

    pub(super) fn query_shard(
        &mut self,
        now: Now,
        asker: Asker,
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let figures = self.figures();
        let failed = self.log.failed().map(str::to_owned);
        let (shard, uptime_ms) =
            (self.config.shard, now.mono_us.saturating_sub(self.opened.mono_us) / 1000);
        self.answer(asker, out, |fbb| {
            let failed = failed.map(|reason| fbb.create_string(&reason));
            let args = QueryShardAnswerArgs {
                shard,
                epoch: figures.epoch,
                appended: figures.appended,
                written: figures.written,
                flushed: figures.flushed,
                messages_in: figures.messages_in,
                messages_out: figures.messages_out,
                bytes_in: figures.bytes_in,
                bytes_out: figures.bytes_out,
                queues: figures.queues as u32,
                connections: 0,
                uptime_ms,
                failed,
            };
            QueryShardAnswer::create(fbb, &args)
        });
        Ok(())
    }
}
