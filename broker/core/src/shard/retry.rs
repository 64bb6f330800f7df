//! Messages that a consumer sends back: for a later attempt, or to the dead letters.
//!
//! Invariants:
//! - a message is taken only from the owner of the queue that it came from (promise: one-owner);
//! - it is answered when it is durable, and only then its consumer moves on: a crash leaves it in the one queue, in
//!   the other, or in both (promise: at-least-once);
//! - a group's retry topic and dead-letter topic have one queue on each shard, so nothing crosses shards.

use super::timers::Delays;
use super::{Asker, Handled, Refuse, Shard, read, refuse};
use crate::peer::{PeerMessage, QueueId};
use crate::seam::{Memory, Now, Outbox};
use ringmq_schema::error::Status;
use ringmq_schema::frame::Frame;
use ringmq_schema::names;
use ringmq_schema::placement::{HOME_SHARD, queue_on_shard};
use ringmq_schema::record::RecordHeader;
use ringmq_schema::retry::{RetryLater, RetryLaterAnswer, RetryLaterAnswerArgs};
use ringmq_schema::zerocopy::FromBytes;

/// The topic is there after about this long: a change is durable on every shard in a few device writes.
const MADE_AFTER_MS: u32 = 50;

impl<M: Memory> Shard<M> {
    pub(super) fn retry_later(
        &mut self,
        now: Now,
        asker: Asker,
        frame: Frame<'_>,
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<RetryLater<'_>>(frame.table)?;
        let from = QueueId { topic: request.topic(), queue: request.queue() };
        self.check_returned(&request, from)?;
        self.check_writing()?;
        self.check_room()?;
        let group = self.registry.group(request.group()).expect("checked a moment ago");
        let attempts = request.attempts().max(1);
        let dead_lettered = request.dead_letter() || attempts >= group.settings.max_attempts;
        let delay_ms = match request.delay_ms() {
            0 => group.settings.pause_ms(attempts),
            given => given,
        };
        let deliver_ms = match dead_lettered {
            true => 0,
            false => self.deliver_ms(delay_ms, now)?,
        };
        self.check_run(from, frame.run, 1, true)?;
        let to = self.group_queue(request.group(), dead_lettered, now, out)?;
        let record = readdressed(frame.run, to, attempts, deliver_ms);
        let (_, end) = match dead_lettered {
            true => self.append_messages(to, &record, 1, true, now, out),
            false => {
                let mut delays = Delays::default();
                delays.take(deliver_ms);
                self.check_timers(&delays)?;
                self.append_timers(&record, true, now, out)
            }
        };
        // promise: ack-is-durable
        self.answer_at(end, true, asker, |fbb| {
            RetryLaterAnswer::create(fbb, &RetryLaterAnswerArgs { dead_lettered, deliver_ms })
        });
        match dead_lettered {
            true => self.figures.dead_letters += 1,
            false => self.figures.retries += 1,
        }
        Ok(())
    }

    /// Whether the message can come from there, and from whom it comes.
    fn check_returned(&self, request: &RetryLater<'_>, from: QueueId) -> Handled {
        self.check_group(request.group())?;
        let next = self.readable(from)?;
        let member = (u128::from(request.member_high()) << 64) | u128::from(request.member_low());
        // promise: one-owner
        if !self.offsets.may(request.group(), from, member, request.generation()) {
            let text = "another member owns the queue, or owned it since: the message is its own";
            return Err(refuse(Status::Fenced, text));
        }
        if request.offset() >= next {
            let text = format!(
                "queue {} of topic id {} ends at {next}: no message has offset {}",
                from.queue,
                from.topic,
                request.offset()
            );
            return Err(refuse(Status::OffsetOutOfRange, text));
        }
        Ok(())
    }

    fn deliver_ms(&self, delay_ms: u64, now: Now) -> Result<i64, Refuse> {
        if delay_ms > self.config.delay_ms_max {
            let most = self.config.delay_ms_max;
            let text = format!("a pause of {delay_ms} ms, at most {most} ms are allowed");
            return Err(refuse(Status::BadRequest, text));
        }
        let delay_ms = i64::try_from(delay_ms).unwrap_or(i64::MAX);
        Ok(now.wall_ms.saturating_add(delay_ms))
    }

    /// The queue on this shard of the group's retry topic or dead-letter topic. Where the topic is not there yet it
    /// is asked for, and the sender comes again.
    fn group_queue(
        &mut self,
        group: u32,
        dead_letters: bool,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> Result<QueueId, Refuse> {
        let name = &self.registry.group(group).expect("checked a moment ago").name;
        let settings = self.group_topic(name, dead_letters);
        if let Some(topic) = self.registry.topic_named(&settings.name).map(|topic| topic.id) {
            let queue = queue_on_shard(topic, self.config.shard, self.config.shards);
            return Ok(QueueId { topic, queue });
        }
        self.check_topic_fits(&settings)?;
        self.tell(HOME_SHARD, PeerMessage::EnsureGroupTopic { group, dead_letters }, now, out);
        let text = format!("topic {} is being made", settings.name);
        Err(Refuse { retry_after_ms: MADE_AFTER_MS, ..refuse(Status::NotReady, text) })
    }

    /// A member subscribes to these topics: if its group's retry topic is among them, it is made.
    pub(super) fn ensure_retry_topic<'a>(
        &mut self,
        group: u32,
        mut topics: impl Iterator<Item = &'a str>,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        let Some(name) = self.registry.group(group).map(|group| &group.name) else { return };
        let is_own = |topic: &str| topic.strip_prefix(names::RETRY_PREFIX) == Some(name);
        let missing =
            topics.any(|topic| is_own(topic) && self.registry.topic_named(topic).is_none());
        if missing {
            let message = PeerMessage::EnsureGroupTopic { group, dead_letters: false };
            self.tell(HOME_SHARD, message, now, out);
        }
    }
}

/// The record as it goes to a group's own topic.
fn readdressed(run: &[u8], to: QueueId, attempts: u16, deliver_ms: i64) -> Vec<u8> {
    let mut record = run.to_vec();
    let (header, _) = RecordHeader::mut_from_prefix(&mut record).expect("the run was checked");
    header.topic = to.topic.into();
    header.queue = to.queue.into();
    header.attempts = attempts.into();
    header.deliver_ms = deliver_ms.into();
    record
}
