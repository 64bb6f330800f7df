//! Groups as administrators make, change, delete and see them, and the topics of their own.

use super::{Asker, Handled, Refuse, Shard, read, refuse};
use crate::peer::{Change, GroupSettings, PeerMessage, TopicSettings, member_id};
use crate::registry::Group;
use crate::seam::{Memory, Now, Outbox};
use ringmq_schema::admin::{
    self, AlterGroup, CreateGroup, DeleteGroup, DescribeGroup, DescribeGroupAnswer,
    DescribeGroupAnswerArgs, GroupAnswer, GroupAnswerArgs, GroupMember, GroupMemberArgs,
    ListGroups, ListGroupsAnswer, ListGroupsAnswerArgs, MemberQueue, MemberSubscription,
    MemberSubscriptionArgs,
};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringmq_schema::names;
use ringmq_schema::placement::HOME_SHARD;
use ringmq_schema::produce::Flush;

fn write_group(
    fbb: &mut FlatBufferBuilder<'static>,
    group: &Group,
) -> WIPOffset<admin::Group<'static>> {
    let name = Some(fbb.create_string(&group.name));
    let settings = Some(group.settings.write(fbb));
    let args = admin::GroupArgs { name, id: group.id, version: group.version, settings };
    admin::Group::create(fbb, &args)
}

impl<M: Memory> Shard<M> {
    pub(super) fn create_group(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<CreateGroup<'_>>(table)?;
        let name = request.name();
        names::check_group(name).map_err(|e| refuse(Status::BadName, e.to_string()))?;
        self.check_home()?;
        self.check_unstaged(name)?;
        let settings = self.read_settings(name, request.settings())?;
        if let Some(group) = self.registry.group_named(name) {
            if request.settings().is_some() && group.settings != settings {
                let text = format!("group {name} exists with other settings: alter it instead");
                return Err(refuse(Status::GroupExists, text));
            }
            self.answer_group(asker, name, out);
            return Ok(());
        }
        let most = self.config.groups;
        if self.registry.groups().len() >= most {
            return Err(refuse(
                Status::TooMany,
                format!("there are {most} groups, the most allowed"),
            ));
        }
        let id = self.registry.next_group_id();
        let name = name.to_owned();
        self.change(Change::Group { id, name, settings }, Some(asker), now, out);
        Ok(())
    }

    pub(super) fn alter_group(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<AlterGroup<'_>>(table)?;
        let name = request.name();
        self.check_home()?;
        self.check_unstaged(name)?;
        let id = self.find_group(name)?;
        let settings = self.read_settings(name, request.settings())?;
        let name = name.to_owned();
        self.change(Change::Group { id, name, settings }, Some(asker), now, out);
        Ok(())
    }

    fn read_settings(
        &self,
        name: &str,
        table: Option<admin::GroupSettings<'_>>,
    ) -> Result<GroupSettings, Refuse> {
        GroupSettings::read(table, self.config.delay_ms_max)
            .map_err(|why| refuse(Status::BadRequest, format!("group {name}: {why}")))
    }

    /// A shard needs a group that is not there.
    pub(super) fn ensure_group(&mut self, name: String, now: Now, out: &mut Outbox<M::Block>) {
        let most = self.config.groups;
        let full = self.registry.groups().len() >= most;
        if let Some(home) = self.home.as_mut().filter(|home| !home.agrees()) {
            home.want_group(name, most);
        } else if !self.registry.is_staged(&name)
            && self.registry.group_named(&name).is_none()
            && !full
            && self.check_home().is_ok()
        {
            let id = self.registry.next_group_id();
            let settings = GroupSettings::default();
            self.change(Change::Group { id, name, settings }, None, now, out);
        }
    }

    /// A shard needs a topic of a group's own that is not there. Whoever waits for it asks again when this does
    /// nothing.
    pub(super) fn ensure_group_topic(
        &mut self,
        group: u32,
        dead_letters: bool,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        let Some(group) = self.registry.group(group) else { return };
        let settings = self.group_topic(&group.name, dead_letters);
        let is_changing =
            self.registry.is_staged(&group.name) || self.registry.is_staged(&settings.name);
        if is_changing
            || self.registry.topic_named(&settings.name).is_some()
            || self.check_topic_fits(&settings).is_err()
            || self.check_home().is_err()
        {
            return;
        }
        let id = self.registry.next_topic_id();
        self.change(Change::Topic { id, settings }, None, now, out);
    }

    /// A group's retry topic or dead-letter topic: a queue on each shard, and only the broker writes to it.
    pub(super) fn group_topic(&self, group: &str, dead_letters: bool) -> TopicSettings {
        TopicSettings {
            name: match dead_letters {
                true => names::dead_letter_topic(group),
                false => names::retry_topic(group),
            },
            read_queues: u32::from(self.config.shards),
            write_queues: u32::from(self.config.shards),
            permission: super::produce::READ,
            message_type: admin::MessageType::Unspecified.0,
            retention_ms: 0,
            retention_bytes: 0,
            // promise: at-least-once. The original counts as consumed then.
            flush: Flush::Sync.0,
        }
    }

    pub(super) fn delete_group(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<DeleteGroup<'_>>(table)?;
        self.check_home()?;
        let name = request.name();
        let retry_topic = names::retry_topic(name);
        self.check_unstaged(name)?;
        self.check_unstaged(&retry_topic)?;
        let id = self.find_group(name)?;
        // What waits for another attempt goes with the group; its dead letters stay.
        match self.registry.topic_named(&retry_topic).map(|topic| topic.id) {
            Some(topic) => {
                self.change(Change::GroupDeleted { id }, None, now, out);
                self.change(Change::TopicDeleted { id: topic }, Some(asker), now, out);
            }
            None => self.change(Change::GroupDeleted { id }, Some(asker), now, out),
        }
        Ok(())
    }

    fn find_group(&self, name: &str) -> Result<u32, Refuse> {
        names::check_group(name).map_err(|e| refuse(Status::BadName, e.to_string()))?;
        self.registry.group_named(name).map(|group| group.id).ok_or_else(|| {
            let text = format!("there is no group {name} on broker {}", self.config.broker);
            refuse(Status::UnknownGroup, text)
        })
    }

    /// Answers with a group; with none when it was deleted meanwhile.
    pub(super) fn answer_group(&mut self, asker: Asker, name: &str, out: &mut Outbox<M::Block>) {
        let Some(group) = self.registry.group_named(name).cloned() else {
            self.answer(asker, out, |fbb| GroupAnswer::create(fbb, &GroupAnswerArgs::default()));
            return;
        };
        self.answer(asker, out, |fbb| {
            let group = Some(write_group(fbb, &group));
            GroupAnswer::create(fbb, &GroupAnswerArgs { group })
        });
    }

    pub(super) fn list_groups(
        &mut self,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<ListGroups<'_>>(table)?;
        let prefix = request.prefix().unwrap_or_default();
        let mut groups: Vec<_> =
            self.registry.groups().filter(|g| g.name.starts_with(prefix)).cloned().collect();
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        self.answer(asker, out, |fbb| {
            let list: Vec<_> = groups.iter().map(|group| write_group(fbb, group)).collect();
            let groups = Some(fbb.create_vector(&list));
            ListGroupsAnswer::create(fbb, &ListGroupsAnswerArgs { groups })
        });
        Ok(())
    }

    pub(super) fn describe_group(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<DescribeGroup<'_>>(table)?;
        let name = request.name();
        let id = self.find_group(name)?;
        self.check_group_shard(name)?;
        let group = self.registry.group(id).cloned();
        let state = self.groups.get(&id);
        let start = out.heads.len();
        self.frames.answer(&mut out.heads, asker.opcode, asker.correlation, 0, |fbb| {
            let members: Vec<_> = state
                .into_iter()
                .flat_map(|state| &state.members)
                .map(|(member, state)| {
                    let subscriptions: Vec<_> = state
                        .subscriptions
                        .iter()
                        .map(|s| {
                            let topic = Some(fbb.create_string(&s.topic));
                            let expression = Some(fbb.create_string(&s.expression));
                            let args = MemberSubscriptionArgs { topic, expression, kind: s.kind };
                            MemberSubscription::create(fbb, &args)
                        })
                        .collect();
                    let queues: Vec<_> = state
                        .queues
                        .iter()
                        .map(|(q, generation)| MemberQueue::new(q.topic, q.queue, *generation, 0))
                        .collect();
                    let id = member_id(*member);
                    let args = GroupMemberArgs {
                        member_high: id.high(),
                        member_low: id.low(),
                        client: Some(fbb.create_string(&state.client)),
                        subscriptions: Some(fbb.create_vector(&subscriptions)),
                        queues: Some(fbb.create_vector(&queues)),
                        idle_ms: now.mono_us.saturating_sub(state.last_seen_us) / 1000,
                    };
                    GroupMember::create(fbb, &args)
                })
                .collect();
            let members = Some(fbb.create_vector(&members));
            let group = group.map(|group| write_group(fbb, &group));
            DescribeGroupAnswer::create(fbb, &DescribeGroupAnswerArgs { group, members })
        });
        super::push_answer(asker.connection, start, out);
        Ok(())
    }

    /// Asks the home shard for a group.
    pub(super) fn ask_for_group(&mut self, name: &str, now: Now, out: &mut Outbox<M::Block>) {
        let message = PeerMessage::EnsureGroup { name: name.to_owned() };
        self.tell(HOME_SHARD, message, now, out);
    }
}
