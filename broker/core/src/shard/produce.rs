//! Messages in.

use super::timers::Delays;
use super::waiting::{Produced, Then};
use super::{Asker, Handled, Refuse, Shard, read, refuse};
use crate::config::FlushMode;
use crate::index::Entry;
use crate::log::Put;
use crate::peer::QueueId;
use crate::seam::{Memory, Now, Outbox};
use ringmq_schema::error::Status;
use ringmq_schema::frame::Frame;
use ringmq_schema::limits;
use ringmq_schema::placement::shard_of_queue;
use ringmq_schema::produce::{Flush, Produce};
use ringmq_schema::record::{self, Kind, RecordRef};

/// Permission bits of a topic (RocketMQ `PermName`).
pub(super) const READ: u8 = 4;
/// See [`READ`].
pub(super) const WRITE: u8 = 2;

impl<M: Memory> Shard<M> {
    pub(super) fn produce(
        &mut self,
        now: Now,
        asker: Asker,
        frame: Frame<'_>,
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<Produce<'_>>(frame.table)?;
        let id = QueueId { topic: request.topic(), queue: request.queue() };
        let topic_flush = self.check_target(id)?;
        self.check_writing()?;
        self.check_room()?;
        let records = request.records();
        let durable = match request.flush() {
            Flush::Sync => true,
            Flush::Async => false,
            _ => topic_flush == FlushMode::Sync,
        };
        let (durable, delays) = self.check_run(id, frame.run, records, durable)?;
        if delays.check(self.config.delay_ms_max, now)? {
            self.check_timers(&delays)?;
            let (position, end) = self.append_timers(frame.run, durable, now, out);
            let produced = (record::NO_OFFSET, records, position, end);
            self.produced(asker, produced, frame.run.len(), durable, now);
            return Ok(());
        }

        let base_offset = self.queues.get(id).map_or(0, |queue| queue.next);
        let (position, end) = self.append_messages(id, frame.run, records, durable, now, out);
        let produced = (base_offset, records, position, end);
        self.produced(asker, produced, frame.run.len(), durable, now);
        Ok(())
    }

    /// Appends a run that was checked to its queue; returns the position of the first record and the end of the
    /// last.
    pub(super) fn append_messages(
        &mut self,
        id: QueueId,
        run: &[u8],
        records: u32,
        durable: bool,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> (u64, u64) {
        let slot = self.queues.slot_or_new(id);
        let queue = self.queues.at_mut(slot);
        let store_ms = now.wall_ms;
        let end_offset = queue.next + u64::from(records);
        let touched = Some((slot, end_offset));
        let sealing = &mut self.sealing;
        let (position, end) = self.log.append(run, durable, touched, now, out, |header, put| {
            header.offset = queue.next.into();
            header.store_ms = store_ms.into();
            let bytes = header.prefix.length.get();
            let Put { segment, place, row } = put;
            let tag_hash = header.tag_hash.get();
            let entry = Entry { place, row, bytes, tag_hash, latest_ms: store_ms };
            if queue.push(segment, entry) {
                sealing.touch(segment, slot);
            }
        });
        debug_assert_eq!(queue.next, end_offset);
        self.appended_to(slot, end, durable);
        (position, end)
    }

    /// A run was appended: it is counted, and acknowledged when it is as durable as it must be.
    fn produced(
        &mut self,
        asker: Asker,
        (base_offset, records, position, end): (u64, u32, u64, u64),
        bytes: usize,
        durable: bool,
        now: Now,
    ) {
        self.figures.messages_in += u64::from(records);
        self.figures.bytes_in += bytes as u64;
        if !asker.one_way {
            let produced = Produced {
                connection: asker.connection,
                correlation: asker.correlation,
                base_offset,
                records,
                position,
                store_ms: now.wall_ms,
                received_us: now.mono_us,
            };
            // promise: ack-is-durable
            self.waiting.push(end, durable, Then::Acknowledge(produced));
        }
    }

    /// Whether the queue takes messages here; returns the topic's flush mode.
    fn check_target(&self, id: QueueId) -> Result<FlushMode, Refuse> {
        let topic = self.registry.topic(id.topic).ok_or_else(|| unknown_topic(id.topic))?;
        let settings = &topic.settings;
        if settings.permission & WRITE == 0 {
            let text =
                format!("topic {} takes no messages: its permission is read-only", settings.name);
            return Err(refuse(Status::NotWritable, text));
        }
        if id.queue >= settings.write_queues {
            let text = format!(
                "topic {} has {} write queues here, there is no queue {}",
                settings.name, settings.write_queues, id.queue
            );
            return Err(refuse(Status::UnknownQueue, text));
        }
        self.check_shard(id)?;
        Ok(self.flush_of(id.topic).unwrap_or(self.config.flush))
    }

    /// Flush mode of a topic that is there.
    pub(super) fn flush_of(&self, topic: u32) -> Option<FlushMode> {
        Some(match Flush(self.registry.topic(topic)?.settings.flush) {
            Flush::Sync => FlushMode::Sync,
            Flush::Async => FlushMode::Async,
            _ => self.config.flush,
        })
    }

    /// Whether the queue is one of this shard's.
    pub(super) fn check_shard(&self, id: QueueId) -> Handled {
        let shard = shard_of_queue(id.topic, id.queue, self.config.shards);
        if shard == self.config.shard {
            return Ok(());
        }
        let text = format!(
            "queue {} of topic id {} lives on shard {shard}, not on {}",
            id.queue, id.topic, self.config.shard
        );
        Err(Refuse { shard, ..refuse(Status::WrongShard, text) })
    }

    pub(super) fn check_room(&self) -> Handled {
        let full = |text| Err(Refuse { retry_after_ms: 1000, ..refuse(Status::DiskFull, text) });
        let broker = &self.config.broker;
        if !self.disk_has_room {
            return full(format!(
                "the disk of broker {broker} is fuller than its watermark: no messages until there is room"
            ));
        }
        if let Some(reason) = self.log.lacks_segment() {
            return full(format!(
                "broker {broker} cannot make the next file of its log, and tries again: {reason}"
            ));
        }
        if self.waiting.len() >= self.config.waiting_produces {
            let text = format!("{} requests wait for the disk already", self.waiting.len());
            return Err(Refuse { retry_after_ms: 20, ..refuse(Status::Busy, text) });
        }
        Ok(())
    }

    /// Walks the run: nothing of it is kept unless all of it is in order. Returns whether any record
    /// asks for durability, and what they say of their delivery times.
    pub(super) fn check_run(
        &self,
        id: QueueId,
        run: &[u8],
        records: u32,
        default_durable: bool,
    ) -> Result<(bool, Delays), Refuse> {
        let most = limits::BATCH_BYTES_MAX.min(self.log.run_bytes_max());
        if run.len() > most {
            let text = format!("the batch has {} bytes, at most {most} are allowed", run.len());
            return Err(refuse(Status::MessageTooLarge, text));
        }
        let (mut count, mut durable, mut bytes) = (0u32, false, 0);
        let mut delays = Delays::default();
        for found in record::records(run) {
            let found = found.map_err(|e| refuse(Status::BadRecord, e.to_string()))?;
            let header = found.header;
            let fault = |what: &str| {
                Err(refuse(Status::BadRecord, format!("record {count} of the batch {what}")))
            };
            if header.prefix.kind != Kind::Message as u8 {
                return fault("is no message");
            }
            if header.topic.get() != id.topic || header.queue.get() != id.queue {
                return fault("is addressed to another topic or queue than the request");
            }
            if found.bytes.len() > limits::RECORD_BYTES_MAX {
                let text = format!(
                    "record {count} has {} bytes, at most {} are allowed",
                    found.bytes.len(),
                    limits::RECORD_BYTES_MAX
                );
                return Err(refuse(Status::MessageTooLarge, text));
            }
            if usize::from(header.property_count.get()) > limits::PROPERTIES_MAX
                || usize::from(header.property_bytes.get()) > limits::PROPERTIES_BYTES_MAX
            {
                let text = format!(
                    "record {count} has {} properties with {} bytes, at most {} with {} bytes are allowed",
                    header.property_count,
                    header.property_bytes,
                    limits::PROPERTIES_MAX,
                    limits::PROPERTIES_BYTES_MAX
                );
                return Err(refuse(Status::MessageTooLarge, text));
            }
            let flags = header.flags.get();
            // promise: never-early. What cannot be held back yet must not be taken.
            if flags & record::FLAG_TRANSACTION != 0 {
                let text = "transactional messages are not served by this version";
                return Err(refuse(Status::Unsupported, text));
            }
            if flags & record::FLAG_DELAYED != 0 {
                return fault("says that it was delivered after a delay");
            }
            // Only the broker counts them, or a message could come with none left.
            if header.attempts.get() != 0 {
                return fault("says that it was delivered before");
            }
            delays.take(header.deliver_ms.get());
            if found.check_payload().is_err() {
                let text = format!("record {count}: the payload's checksum does not match");
                return Err(refuse(Status::BadChecksum, text));
            }
            check_body(count, &found)?;
            durable |= match flags & record::FLAG_FLUSH_MASK {
                1 => true,
                2 => false,
                _ => default_durable,
            };
            count += 1;
            bytes += found.bytes.len();
        }
        if count == 0 || count != records || count as usize > limits::BATCH_RECORDS_MAX {
            let text = format!(
                "the batch holds {count} records where the request says {records} (1 to {} are allowed)",
                limits::BATCH_RECORDS_MAX
            );
            return Err(refuse(Status::BadRecord, text));
        }
        if bytes != run.len() {
            return Err(refuse(Status::BadRecord, "a producer's batch holds no control records"));
        }
        Ok((durable, delays))
    }
}

/// Whether the body of a record is within its limit. A record has room for more beside it, and so one that is
/// longer than the largest body is looked into; others cannot have too large a one.
fn check_body(number: u32, record: &RecordRef<'_>) -> Handled {
    if record.payload.len() <= limits::BODY_BYTES_MAX {
        return Ok(());
    }
    let message = record.message().map_err(|error| {
        let error = error.to_string();
        let first = error.lines().next().unwrap_or_default();
        refuse(Status::BadRecord, format!("record {number} of the batch does not verify: {first}"))
    })?;
    let bytes = message.body().map_or(0, |body| body.len());
    if bytes <= limits::BODY_BYTES_MAX {
        return Ok(());
    }
    let most = limits::BODY_BYTES_MAX;
    let text = format!("the body of record {number} has {bytes} bytes, at most {most} are allowed");
    Err(refuse(Status::MessageTooLarge, text))
}

pub(super) fn unknown_topic(id: u32) -> Refuse {
    let text = format!("there is no topic with id {id} here: ask the name server for its route");
    refuse(Status::UnknownTopic, text)
}
