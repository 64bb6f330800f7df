//! Requests for messages by key or id, and their answers.

use super::Job;
use super::find::Find;
use super::probe::Wanted;
use crate::seam::{Action, Block, Memory, Outbox};
use crate::shard::produce::{READ, unknown_topic};
use crate::shard::{Asker, Handled, Refuse, Shard, read, refuse};
use ringmq_schema::consume::{
    FindMessages, FindMessagesAnswer, FindMessagesAnswerArgs, GetMessage, GetMessageAnswer,
    GetMessageAnswerArgs,
};
use ringmq_schema::error::Status;
use ringmq_schema::limits::FIND_RECORDS_MAX;
use ringmq_schema::record;
use ringmq_schema::stored_id::StoredId;

impl<M: Memory> Shard<M> {
    pub(in crate::shard) fn get_message(
        &mut self,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<GetMessage<'_>>(table)?;
        if request.topic() != 0 {
            self.check_topic(request.topic())?;
        }
        self.check_lookups()?;
        let wanted = match request.id() {
            None => Wanted::At(request.position()),
            Some(id) => {
                let id = (u128::from(id.high()) << 64) | u128::from(id.low());
                Wanted::Id(id.to_be_bytes())
            }
        };
        let segments = self.config.lookup_segments;
        let find = Find::new(asker, wanted, request.topic(), 1, request.before(), segments);
        self.begin_lookup(Job::Find(Box::new(find)), out);
        Ok(())
    }

    pub(in crate::shard) fn find_messages(
        &mut self,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<FindMessages<'_>>(table)?;
        self.check_topic(request.topic())?;
        if request.key().is_empty() {
            return Err(refuse(Status::BadRequest, "the key is empty"));
        }
        self.check_lookups()?;
        let (begin_ms, end_ms) = (request.begin_ms(), request.end_ms());
        let wanted = Wanted::Key { key: request.key().to_owned(), begin_ms, end_ms };
        let most = (request.max_records() as usize).clamp(1, FIND_RECORDS_MAX);
        let segments = self.config.lookup_segments;
        let find = Find::new(asker, wanted, request.topic(), most, request.before(), segments);
        self.begin_lookup(Job::Find(Box::new(find)), out);
        Ok(())
    }

    fn check_topic(&self, topic: u32) -> Handled {
        let settings = &self.registry.topic(topic).ok_or_else(|| unknown_topic(topic))?.settings;
        if settings.permission & READ == 0 {
            let text =
                format!("topic {} is not to be read: its permission is write-only", settings.name);
            return Err(refuse(Status::NotReadable, text));
        }
        Ok(())
    }

    pub(super) fn answer_find(&mut self, find: &mut Find<M::Block>, out: &mut Outbox<M::Block>) {
        let next = if find.is_complete { 0 } else { find.before };
        let unreadable = find.unreadable;
        if let Wanted::Key { .. } = find.wanted {
            let records = find.found.len() as u32;
            self.answer_run(find, out, |fbb| {
                let args = FindMessagesAnswerArgs { records, next, unreadable };
                FindMessagesAnswer::create(fbb, &args)
            });
            return;
        }
        let Some(slice) = find.found.first() else {
            if find.is_complete {
                let refused = self.not_found(find);
                self.refuse(find.asker, &refused, out);
            } else {
                self.answer_run(find, out, |fbb| {
                    let args = GetMessageAnswerArgs { next, unreadable, topic: None };
                    GetMessageAnswer::create(fbb, &args)
                });
            }
            return;
        };
        let bytes = &slice.block.bytes()[slice.range.start as usize..slice.range.end as usize];
        let found = record::read_one(bytes, 0).ok().and_then(|(_, found)| found);
        let topic = found.and_then(|found| self.registry.topic(found.header.topic.get()));
        let topic = topic.map(|topic| topic.settings.name.clone()).unwrap_or_default();
        self.answer_run(find, out, |fbb| {
            let topic = Some(fbb.create_string(&topic));
            let args = GetMessageAnswerArgs { next: 0, unreadable, topic };
            GetMessageAnswer::create(fbb, &args)
        });
    }

    /// Why there is no such message: a fault of the disk is never taken for that.
    fn not_found(&self, find: &Find<M::Block>) -> Refuse {
        let shard = self.config.shard;
        if find.unreadable > 0 {
            let text = format!(
                "shard {shard} could not read {} segments or records where the message may be",
                find.unreadable
            );
            return Refuse { retry_after_ms: 1000, ..refuse(Status::ReadFailed, text) };
        }
        let broker = &self.config.broker;
        let text = match find.wanted {
            Wanted::At(position) => {
                let id = StoredId { shard, position };
                format!("no message that can be read is stored as {id} on broker {broker}")
            }
            _ => format!("shard {shard} of broker {broker} has no message with that id"),
        };
        refuse(Status::NotFound, text)
    }

    fn answer_run<T>(
        &mut self,
        find: &mut Find<M::Block>,
        out: &mut Outbox<M::Block>,
        build: impl FnOnce(
            &mut ringmq_schema::flatbuffers::FlatBufferBuilder<'static>,
        ) -> ringmq_schema::flatbuffers::WIPOffset<T>,
    ) {
        let Asker { connection, correlation, opcode, .. } = find.asker;
        let bytes = find.found.iter().map(|slice| slice.range.len()).sum();
        let (start, slices) = (out.heads.len(), out.slices.len());
        self.frames.answer(&mut out.heads, opcode, correlation, bytes, build);
        out.slices.append(&mut find.found);
        let (head, slices) = (start..out.heads.len(), slices..out.slices.len());
        out.actions.push(Action::Answer { connection, head, slices });
    }
}
