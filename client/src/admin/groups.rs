//! Groups and their members.

use super::types::{BrokerStatus, GroupDescription, GroupMember, OwnedQueue, ResetTo};
use super::{Admin, GroupSettings, GroupSpec};
use crate::connection::Request;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Filter;
use crate::route::Queue;
use ringmq_schema::admin as wire;
use ringmq_schema::consume as offsets;
use ringmq_schema::consume::FilterKind;
use ringmq_schema::error::Status;
use ringmq_schema::names;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// A group on one broker.
pub(super) struct OnBroker {
    pub(super) broker: BrokerStatus,
    pub(super) group_id: u32,
    settings: GroupSettings,
    pub(super) members: Vec<Member>,
}

/// A member as one broker knows it.
pub(super) struct Member {
    pub(super) id: (u64, u64),
    client: String,
    pub(super) subscriptions: Vec<(String, Filter)>,
    /// Topic id, queue, generation.
    queues: Vec<(u32, u32, u32)>,
    idle: Duration,
}

impl Admin {
    /// Names of groups that start with `prefix`, sorted.
    pub async fn groups(&self, prefix: &str) -> Result<Vec<String>> {
        let operation = "list groups";
        let mut names = BTreeSet::new();
        for broker in self.masters().await? {
            let request = Request::new(Opcode::ListGroups, operation);
            let answer = self.ask(&broker.address, request, |fbb| {
                let prefix = Some(fbb.create_string(prefix));
                wire::ListGroups::create(fbb, &wire::ListGroupsArgs { prefix })
            });
            let answer = answer.await.map_err(|error| error.on(broker.broker))?;
            let table = answer.read::<wire::ListGroupsAnswer<'_>>(operation)?;
            names.extend(table.groups().into_iter().flatten().map(|g| g.name().to_owned()));
        }
        Ok(names.into_iter().collect())
    }

    /// A group and its members.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription> {
        let mut members: HashMap<(u64, u64), GroupMember> = HashMap::new();
        let mut settings = None;
        for on in self.group_on_brokers("describe group", group).await? {
            settings.get_or_insert(on.settings);
            for member in on.members {
                let queues = self.owned(&on.broker, &member).await;
                let Member { id, client, subscriptions, idle, .. } = member;
                let known = members.entry(id).or_insert_with(|| GroupMember {
                    id: member_name(id),
                    client,
                    subscriptions: subscriptions
                        .into_iter()
                        .map(|(topic, filter)| (topic, filter.expression()))
                        .collect(),
                    queues: Vec::new(),
                    idle,
                });
                known.queues.extend(queues);
                known.idle = known.idle.min(idle);
            }
        }
        let mut members: Vec<GroupMember> = members.into_values().collect();
        members.iter_mut().for_each(|member| member.queues.sort_by(|a, b| a.queue.cmp(&b.queue)));
        members.sort_by(|a, b| a.id.cmp(&b.id));
        let settings = settings.unwrap_or_default();
        Ok(GroupDescription { name: group.to_owned(), settings, members })
    }

    /// What a member owns on a broker, by names.
    async fn owned(&self, broker: &BrokerStatus, member: &Member) -> Vec<OwnedQueue> {
        let mut topics: HashMap<u32, Arc<str>> = HashMap::new();
        for (topic, _) in &member.subscriptions {
            // A topic that is gone names no queues.
            if let Ok(route) = self.routes().get(topic).await
                && let Some(master) = route.master(&broker.broker)
            {
                topics.insert(master.topic_id, Arc::clone(&route.topic));
            }
        }
        let named = member.queues.iter().filter_map(|(topic, queue, generation)| {
            let topic = Arc::clone(topics.get(topic)?);
            let queue = Queue::new(topic, broker.broker.as_str(), *queue);
            Some(OwnedQueue { queue, generation: *generation })
        });
        named.collect()
    }

    /// The group as each master broker that has it knows it.
    pub(super) async fn group_on_brokers(
        &self,
        operation: &'static str,
        group: &str,
    ) -> Result<Vec<OnBroker>> {
        names::check_group(group).map_err(|error| Error::invalid(operation, error).on(group))?;
        let mut found = Vec::new();
        for broker in self.masters().await? {
            let shard = placement::shard_of_group(group, broker.shards);
            let request = Request::new(Opcode::DescribeGroup, operation).shard(shard);
            let answer = self.ask(&broker.address, request, |fbb| {
                let name = Some(fbb.create_string(group));
                wire::DescribeGroup::create(fbb, &wire::DescribeGroupArgs { name })
            });
            let answer = match answer.await {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                answer => answer.map_err(|e| e.on(format!("{group} on {}", broker.broker)))?,
            };
            let table = answer.read::<wire::DescribeGroupAnswer<'_>>(operation)?;
            let Some(group) = table.group() else { continue };
            let members = table.members().into_iter().flatten().map(|m| read_member(&m)).collect();
            let settings = GroupSettings::read(group.settings());
            found.push(OnBroker { broker, group_id: group.id(), settings, members });
        }
        if found.is_empty() {
            let mut error = Error::of_status(operation, Status::UnknownGroup).on(group);
            error.say("no broker knows a group of that name");
            return Err(error);
        }
        Ok(found)
    }

    /// Creates a group on every broker; consumers do so by themselves. One that is there is fine, unless other
    /// settings are asked for.
    ///
    /// ```no_run
    /// # use ringmq::{Client, GroupSpec};
    /// # use std::time::Duration;
    /// # async fn example(client: Client) -> ringmq::Result<()> {
    /// let pauses = [1, 5, 30].map(Duration::from_secs);
    /// client.admin().create_group(GroupSpec::new("billing").max_attempts(5).retry_pauses(pauses)).await?;
    /// # Ok(()) }
    /// ```
    pub async fn create_group(&self, group: impl Into<GroupSpec>) -> Result<()> {
        let operation = "create group";
        let GroupSpec { name, settings } = group.into();
        let (name, settings) = (name.as_str(), settings.as_ref());
        names::check_group(name).map_err(|error| Error::invalid(operation, error).on(name))?;
        for broker in self.masters().await? {
            let request = Request::new(Opcode::CreateGroup, operation);
            let answer = self.ask(&broker.address, request, |fbb| {
                let name = Some(fbb.create_string(name));
                let settings = settings.map(|settings| settings.write(fbb));
                wire::CreateGroup::create(fbb, &wire::CreateGroupArgs { name, settings })
            });
            answer.await.map_err(|error| error.on(format!("{name} on {}", broker.broker)))?;
        }
        Ok(())
    }

    /// Changes a group on every broker that has it: every setting is taken over.
    pub async fn alter_group(&self, group: impl Into<GroupSpec>) -> Result<()> {
        let operation = "alter group";
        let GroupSpec { name, settings } = group.into();
        let (name, settings) = (name.as_str(), settings.unwrap_or_default());
        for on in self.group_on_brokers(operation, name).await? {
            let request = Request::new(Opcode::AlterGroup, operation);
            let answer = self.ask(&on.broker.address, request, |fbb| {
                let name = Some(fbb.create_string(name));
                let settings = Some(settings.write(fbb));
                wire::AlterGroup::create(fbb, &wire::AlterGroupArgs { name, settings })
            });
            answer.await.map_err(|error| error.on(format!("{name} on {}", on.broker.broker)))?;
        }
        Ok(())
    }

    /// Deletes a group, its offsets and what waits for another attempt, on every broker. Its dead letters stay.
    pub async fn delete_group(&self, group: &str) -> Result<()> {
        let operation = "delete group";
        for on in self.group_on_brokers(operation, group).await? {
            let request = Request::new(Opcode::DeleteGroup, operation);
            let answer = self.ask(&on.broker.address, request, |fbb| {
                let name = Some(fbb.create_string(group));
                wire::DeleteGroup::create(fbb, &wire::DeleteGroupArgs { name })
            });
            answer.await.map_err(|e| e.on(format!("{group} on {}", on.broker.broker)))?;
        }
        Ok(())
    }

    /// Moves a group's committed offsets on every topic that it consumes, as [`Admin::reset_offsets`] does on one: on
    /// those that its members subscribe, and those for which it committed or popped.
    ///
    /// Its retry topic is left as it is, as RocketMQ does: what failed comes again whatever the group is reset to, after
    /// a reset to the last message too. [`Admin::reset_offsets`] with the topic `%RETRY%` and the group's name
    /// skips what came back to it so far; what waits for its next attempt comes nevertheless.
    pub async fn reset_group(&self, group: &str, to: ResetTo) -> Result<Vec<(Queue, u64)>> {
        let retry_topic = names::retry_topic(group);
        let mut topics = self.consumed_topics(group).await?;
        topics.remove(retry_topic.as_str());
        let mut reset = Vec::new();
        for topic in &topics {
            reset.extend(self.reset_offsets(group, topic, to).await?);
        }
        reset.sort();
        Ok(reset)
    }

    /// Moves a group's committed offsets on a topic, also backwards. Members that own its queues start there anew, at
    /// once: nothing that they commit of what they had before counts. An offset beyond what there is stands for the
    /// nearest that is. Returns where each queue stands then.
    pub async fn reset_offsets(
        &self,
        group: &str,
        topic: &str,
        to: ResetTo,
    ) -> Result<Vec<(Queue, u64)>> {
        self.reset_where(group, topic, to, |_, _| true).await
    }

    /// Like [`Admin::reset_offsets`], of these queues alone, which are of one topic.
    pub async fn reset_queues(
        &self,
        group: &str,
        queues: &[Queue],
        to: ResetTo,
    ) -> Result<Vec<(Queue, u64)>> {
        let operation = "reset offsets";
        let Some(topic) = queues.first().map(|queue| Arc::clone(&queue.topic)) else {
            return Err(Error::invalid(operation, "no queue is named").on(group));
        };
        if let Some(other) = queues.iter().find(|queue| queue.topic != topic) {
            let text = format!("queues of one topic at a time: {topic} and {}", other.topic);
            return Err(Error::invalid(operation, text).on(group));
        }
        let chosen = |broker: &str, id: u32| {
            queues.iter().any(|queue| &*queue.broker == broker && queue.id == id)
        };
        let reset = self.reset_where(group, &topic, to, chosen).await?;
        let missing = queues.iter().find(|queue| !reset.iter().any(|(done, _)| done == *queue));
        match missing {
            Some(queue) => {
                let text = "the topic's route has no such queue, or the group was never there";
                Err(Error::new(ErrorKind::NotFound, operation, text).on(queue.to_string()))
            }
            None => Ok(reset),
        }
    }

    async fn reset_where(
        &self,
        group: &str,
        topic: &str,
        to: ResetTo,
        chosen: impl Fn(&str, u32) -> bool,
    ) -> Result<Vec<(Queue, u64)>> {
        let operation = "reset offsets";
        let route = self.route(topic).await.map_err(|error| error.during(operation))?;
        let on_brokers = self.group_on_brokers(operation, group).await?;
        let asker = self.asker();
        let mut reset = Vec::new();
        for master in route.masters() {
            // Where the group never was, there is nothing to reset.
            let Some(on) = on_brokers.iter().find(|on| on.broker.broker == *master.broker) else {
                continue;
            };
            let mut by_shard: HashMap<u16, Vec<u32>> = HashMap::new();
            for queue in (0..master.read_queues).filter(|queue| chosen(&master.broker, *queue)) {
                by_shard.entry(master.shard_of(queue)).or_default().push(queue);
            }
            for (shard, queues) in by_shard {
                let topic_id = master.topic_id;
                let offsets: Vec<(u32, u64)> = match to.known() {
                    Ok(offset) => {
                        let of: Vec<_> = queues.iter().map(|queue| (topic_id, *queue)).collect();
                        let known = asker.query(&master.address, shard, on.group_id, &of).await?;
                        let nearest = |known: &offsets::QueueOffsets| {
                            let (min, max) = (known.min_offset(), known.max_offset());
                            (known.queue(), offset.clamp(min, max.max(min)))
                        };
                        known.iter().map(nearest).collect()
                    }
                    Err(at_ms) => {
                        let at: Vec<_> =
                            queues.iter().map(|queue| (topic_id, *queue, at_ms)).collect();
                        let found = asker.search(&master.address, shard, &at).await?;
                        found.iter().map(|found| (found.queue(), found.offset())).collect()
                    }
                };
                let entries: Vec<offsets::CommitEntry> = offsets
                    .iter()
                    .map(|(queue, to)| {
                        offsets::CommitEntry::new(master.topic_id, *queue, *to, 0, 0, 0)
                    })
                    .collect();
                self.reset_on(&master.address, shard, on.group_id, &entries)
                    .await
                    .map_err(|error| error.on(format!("{group} on {topic}/{}", master.broker)))?;
                reset.extend(offsets.into_iter().map(|(queue, offset)| {
                    let (topic, broker) = (Arc::clone(&route.topic), Arc::clone(&master.broker));
                    (Queue::new(topic, broker, queue), offset)
                }));
            }
        }
        reset.sort();
        Ok(reset)
    }

    async fn reset_on(
        &self,
        address: &str,
        shard: u16,
        group: u32,
        entries: &[offsets::CommitEntry],
    ) -> Result<()> {
        let operation = "reset offsets";
        let request = Request::new(Opcode::ResetOffsets, operation).shard(shard);
        let answer = self.ask(address, request, |fbb| {
            let entries = Some(fbb.create_vector(entries));
            offsets::ResetOffsets::create(fbb, &offsets::ResetOffsetsArgs { group, entries })
        });
        let answer = answer.await?;
        let table = answer.read::<offsets::CommitOffsetsAnswer<'_>>(operation)?;
        let mut statuses = table.entries().into_iter().flatten().map(|entry| entry.status());
        match statuses.find(|status| *status != 0) {
            Some(status) => Err(Error::of_status(operation, Status::from_code(status))),
            None => Ok(()),
        }
    }
}

/// A member's identity as text.
pub(super) fn member_name(id: (u64, u64)) -> String {
    uuid::Uuid::from_u64_pair(id.0, id.1).hyphenated().to_string()
}

fn read_member(member: &wire::GroupMember<'_>) -> Member {
    let subscriptions = member.subscriptions().into_iter().flatten().map(|subscription| {
        let expression = subscription.expression().unwrap_or_default();
        let filter = match FilterKind(subscription.kind()) {
            FilterKind::Sql92 => Filter::sql(expression),
            _ => Filter::tags(expression),
        };
        (subscription.topic().unwrap_or_default().to_owned(), filter)
    });
    let queues = member.queues().into_iter().flatten();
    Member {
        id: (member.member_high(), member.member_low()),
        client: member.client().unwrap_or_default().to_owned(),
        subscriptions: subscriptions.collect(),
        queues: queues.map(|queue| (queue.topic(), queue.queue(), queue.generation())).collect(),
        idle: Duration::from_millis(member.idle_ms()),
    }
}
