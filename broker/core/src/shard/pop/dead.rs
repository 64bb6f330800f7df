//! Messages that were handed out as often as they may be, and not acknowledged: they go to the group's dead-letter
//! topic, which has a queue on each shard.
//!
//! The letter is appended before it is noted that the message is done: a crash in between leaves both, and one more
//! letter is written then (promise: at-least-once).

use super::collect::Taking;
use super::{Shard, Slice};
use crate::peer::{PeerMessage, QueueId};
use crate::pop::{Flight, Op};
use crate::seam::{Memory, Now, Outbox};
use ringmq_schema::build::{MessageSpec, Origin, RecordBuilder};
use ringmq_schema::limits::ATTEMPTS_MAX_DEFAULT;
use ringmq_schema::message::Message;
use ringmq_schema::placement::{HOME_SHARD, queue_on_shard};
use ringmq_schema::record::{
    self, FLAG_COMPRESSION_MASK, FLAG_FLUSH_MASK, RecordHeader, RecordRef,
};
use ringmq_schema::zerocopy::FromBytes;

/// A dead message whose topic is being made is looked at again after this, ms.
const TOPIC_MADE_MS: i64 = 1_000;
/// One that cannot go anywhere is looked at again after this, ms.
const KEPT_BACK_MS: i64 = 3_600_000;

impl<M: Memory> Shard<M> {
    /// How often a group is handed the same message: the one place that says so.
    pub(super) fn max_attempts(&self, group: u32) -> u16 {
        let group = self.registry.group(group);
        group.map_or(ATTEMPTS_MAX_DEFAULT, |group| group.settings.max_attempts)
    }

    /// Puts aside a message that is dead for the group. It is handed out no more, and never lost: until it is in the
    /// dead-letter topic it stays in flight.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn bury(
        &mut self,
        at: usize,
        offset: u64,
        flight: Flight,
        record: &Slice<M::Block>,
        taking: &mut Taking<'_, M::Block>,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        let (group, from) = (taking.parked.group, taking.wanted(at).id);
        let op = match self.dead_letters(group, now, out) {
            Ok(to) => {
                let letter = self.letter(record.bytes(), from, offset, flight.attempt, to);
                // What is noted of the message must not outlive its letter: they share the log.
                self.append_messages(to, &letter, 1, true, now, out);
                self.figures.dead_letters += 1;
                Op::Done { offset }
            }
            Err(pause_ms) => {
                self.figures.popped_kept_back += 1;
                // Its last receipt counts no more: its time is over.
                let until_ms = taking.now_ms.saturating_add(pause_ms);
                let nonce = self.pops.new_nonce();
                Op::Out { offset, flight: Flight { until_ms, nonce, ..flight } }
            }
        };
        self.note_pop(at, op, taking);
    }

    /// The queue on this shard of the group's dead-letter topic; how long to wait when it is not there.
    fn dead_letters(
        &mut self,
        group: u32,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> Result<QueueId, i64> {
        let Some(name) = self.registry.group(group).map(|group| &group.name) else {
            return Err(KEPT_BACK_MS);
        };
        let settings = self.group_topic(name, true);
        if let Some(topic) = self.registry.topic_named(&settings.name).map(|topic| topic.id) {
            let queue = queue_on_shard(topic, self.config.shard, self.config.shards);
            let has_room = self.check_room().is_ok();
            return if has_room { Ok(QueueId { topic, queue }) } else { Err(TOPIC_MADE_MS) };
        }
        if self.check_topic_fits(&settings).is_err() {
            return Err(KEPT_BACK_MS);
        }
        let message = PeerMessage::EnsureGroupTopic { group, dead_letters: true };
        self.tell(HOME_SHARD, message, now, out);
        Err(TOPIC_MADE_MS)
    }

    /// The message as it goes to the dead letters: with where it was, unless it was sent back before.
    fn letter(
        &self,
        bytes: &[u8],
        from: QueueId,
        offset: u64,
        attempts: u16,
        to: QueueId,
    ) -> Vec<u8> {
        let topic = self.registry.topic(from.topic).map_or("", |topic| &topic.settings.name);
        let origin = Origin { topic, queue: from.queue, offset };
        let found = record::read_one(bytes, 0).ok().and_then(|(_, found)| found);
        let told = found.and_then(|found| {
            let message = found.message().ok()?;
            rewritten(&found, &message, origin, attempts, to)
        });
        // One that does not verify goes as it is: whoever looks at the dead letters sees that.
        let mut letter = told.unwrap_or_else(|| bytes.to_vec());
        if let Ok((header, _)) = RecordHeader::mut_from_prefix(&mut letter) {
            header.topic = to.topic.into();
            header.queue = to.queue.into();
            header.attempts = attempts.into();
            header.deliver_ms = 0.into();
            if let Some(found) = found {
                let compression = found.header.flags.get() & FLAG_COMPRESSION_MASK;
                let flush = found.header.flags.get() & FLAG_FLUSH_MASK;
                header.flags = (compression | flush).into();
            }
        }
        letter
    }
}

fn rewritten(
    record: &RecordRef<'_>,
    message: &Message<'_>,
    origin: Origin<'_>,
    attempts: u16,
    to: QueueId,
) -> Option<Vec<u8>> {
    let error = format!("handed out {attempts} times and not acknowledged");
    let keys: Vec<&str> = message.keys().into_iter().flatten().collect();
    let properties: Vec<(&str, &str)> =
        message.properties().into_iter().flatten().map(|p| (p.key(), p.value())).collect();
    let first = message.origin_topic().map(|topic| Origin {
        topic,
        queue: message.origin_queue(),
        offset: message.origin_offset(),
    });
    let spec = MessageSpec {
        body: message.body().map_or(&[], |body| body.bytes()),
        tag: message.tag(),
        keys: &keys,
        properties: &properties,
        group: message.group(),
        flag: message.flag(),
        born_host: message.born_host(),
        born_ms: record.header.born_ms.get(),
        message_id: record.header.message_id,
        origin: Some(first.unwrap_or(origin)),
        last_error: Some(&error),
        ..MessageSpec::default()
    };
    let mut letter = Vec::new();
    RecordBuilder::new().append(&mut letter, to.topic, to.queue, &spec).ok()?;
    Some(letter)
}
