//! Reusable builders of frames and records: after warm-up they allocate nothing.

use crate::checksum::crc32;
use crate::connection::{Refusal, RefusalArgs};
use crate::error::Status;
use crate::frame::{self, FLAG_ANSWER, FrameHeader};
use crate::limits;
use crate::message::{Message, MessageArgs, Property, PropertyArgs};
use crate::opcode::Opcode;
use crate::record::{self, Kind, RecordHeader};
use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, WIPOffset};
use zerocopy::IntoBytes;

/// Appends whole frames to a buffer.
#[derive(Default)]
pub struct FrameBuilder {
    fbb: FlatBufferBuilder<'static>,
}

impl FrameBuilder {
    /// A builder with nothing allocated yet.
    pub fn new() -> FrameBuilder {
        FrameBuilder::default()
    }

    /// Appends a request with the table that `build` makes and a copy of `run`.
    pub fn request<T>(
        &mut self,
        out: &mut Vec<u8>,
        opcode: Opcode,
        shard: u16,
        correlation: u64,
        run: &[u8],
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) {
        self.frame(out, (opcode.code(), 0, shard, Status::Ok, correlation), run.len(), build);
        out.extend_from_slice(run);
    }

    /// Appends a request without its run: exactly `run_bytes` of records must follow on the wire.
    /// `flags` may hold [`frame::FLAG_ONE_WAY`].
    #[allow(clippy::too_many_arguments)]
    pub fn request_head<T>(
        &mut self,
        out: &mut Vec<u8>,
        opcode: Opcode,
        flags: u8,
        shard: u16,
        correlation: u64,
        run_bytes: usize,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) {
        self.frame(out, (opcode.code(), flags, shard, Status::Ok, correlation), run_bytes, build);
    }

    /// Appends an answer without its run: exactly `run_bytes` of records must follow on the wire.
    pub fn answer<T>(
        &mut self,
        out: &mut Vec<u8>,
        opcode: u16,
        correlation: u64,
        run_bytes: usize,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) {
        let parts = (opcode, FLAG_ANSWER, frame::ANY_SHARD, Status::Ok, correlation);
        self.frame(out, parts, run_bytes, build);
    }

    /// Appends an answer that has nothing to say but "done".
    pub fn done(&mut self, out: &mut Vec<u8>, opcode: u16, correlation: u64) {
        let header =
            FrameHeader::new(opcode, FLAG_ANSWER, frame::ANY_SHARD, Status::Ok, correlation, 0, 0);
        out.extend_from_slice(header.as_bytes());
    }

    /// Appends a refusal.
    pub fn refuse(
        &mut self,
        out: &mut Vec<u8>,
        opcode: u16,
        correlation: u64,
        status: Status,
        message: &str,
    ) {
        self.refuse_with(out, opcode, correlation, status, message, &RefusalArgs::default());
    }

    /// Appends a refusal with more than a message; `more.message` is not looked at.
    pub fn refuse_with(
        &mut self,
        out: &mut Vec<u8>,
        opcode: u16,
        correlation: u64,
        status: Status,
        message: &str,
        more: &RefusalArgs<'_>,
    ) {
        let parts = (opcode, FLAG_ANSWER, frame::ANY_SHARD, status, correlation);
        self.frame(out, parts, 0, |fbb| {
            let message = Some(fbb.create_string(message));
            let RefusalArgs { retry_after_ms, shard, min_offset, max_offset, .. } = *more;
            let args = RefusalArgs { message, retry_after_ms, shard, min_offset, max_offset };
            Refusal::create(fbb, &args)
        });
    }

    fn frame<T>(
        &mut self,
        out: &mut Vec<u8>,
        (opcode, flags, shard, status, correlation): (u16, u8, u16, Status, u64),
        run_bytes: usize,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) {
        self.fbb.reset();
        let root = build(&mut self.fbb);
        self.fbb.finish_minimal(root);
        let table = self.fbb.finished_data();
        let header =
            FrameHeader::new(opcode, flags, shard, status, correlation, table.len(), run_bytes);
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(table);
        out.resize(out.len() + frame::padded(table.len()) - table.len(), 0);
    }
}

/// What a message says; borrowed, so that building copies each byte once.
#[derive(Debug, Clone, Default)]
pub struct MessageSpec<'a> {
    /// The user's bytes.
    pub body: &'a [u8],
    /// At most one tag.
    pub tag: Option<&'a str>,
    /// Keys for look-up.
    pub keys: &'a [&'a str],
    /// User properties.
    pub properties: &'a [(&'a str, &'a str)],
    /// Message group (sharding key).
    pub group: Option<&'a str>,
    /// Opaque user flag.
    pub flag: i32,
    /// Host that produced the message.
    pub born_host: Option<&'a str>,
    /// When it was produced, ms since epoch.
    pub born_ms: i64,
    /// Not to be delivered before, ms since epoch; 0: at once.
    pub deliver_ms: i64,
    /// UUID v7.
    pub message_id: [u8; 16],
    /// Flush asked for: a `produce::Flush` value.
    pub flush: u8,
    /// Producer id and sequence; 0, 0: none.
    pub producer: (u64, u32),
    /// Where a message that is sent back was first.
    pub origin: Option<Origin<'a>>,
    /// Why it failed last, at most [`limits::LAST_ERROR_BYTES_MAX`] bytes.
    pub last_error: Option<&'a str>,
}

/// Where a message was first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// Queue of the topic, on the same broker.
    pub queue: u32,
    /// Offset in the queue.
    pub offset: u64,
}

/// Why a message cannot be sent: it breaks a limit of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Body above [`limits::BODY_BYTES_MAX`].
    #[error("the body has {bytes} bytes, at most {max} are allowed", max = limits::BODY_BYTES_MAX)]
    Body {
        /// Its length.
        bytes: usize,
    },
    /// Properties above [`limits::PROPERTIES_BYTES_MAX`] or [`limits::PROPERTIES_MAX`].
    #[error(
        "{count} properties with {bytes} bytes, at most {max} with {max_bytes} bytes are allowed",
        max = limits::PROPERTIES_MAX,
        max_bytes = limits::PROPERTIES_BYTES_MAX
    )]
    Properties {
        /// Their number.
        count: usize,
        /// Bytes of keys and values.
        bytes: usize,
    },
    /// Keys above [`limits::KEYS_MAX`], or tag, keys, group and host too long together.
    #[error(
        "{keys} keys, and tag, keys, group and host with {bytes} bytes; at most {max} keys and {max_bytes} bytes are allowed",
        max = limits::KEYS_MAX,
        max_bytes = limits::RECORD_OVERHEAD_BYTES_MAX / 2
    )]
    Keys {
        /// Number of keys.
        keys: usize,
        /// Bytes together.
        bytes: usize,
    },
}

/// Of the fields of a table: numbers of 64 bits.
const LARGEST_ALIGNMENT: usize = 8;

/// Appends message records to a buffer.
#[derive(Default)]
pub struct RecordBuilder {
    fbb: FlatBufferBuilder<'static>,
    keys: Vec<WIPOffset<&'static str>>,
    properties: Vec<WIPOffset<Property<'static>>>,
}

impl RecordBuilder {
    /// A builder with nothing allocated yet.
    pub fn new() -> RecordBuilder {
        RecordBuilder::default()
    }

    /// Appends one record for `queue` of `topic` (ids of the broker it goes to; see [`readdress`]).
    /// Returns its length.
    pub fn append(
        &mut self,
        out: &mut Vec<u8>,
        topic: u32,
        queue: u32,
        spec: &MessageSpec<'_>,
    ) -> Result<usize, MessageError> {
        let property_bytes = check(spec)?;
        let start = out.len();
        out.resize(start + record::HEADER_BYTES, 0);
        self.payload(out, spec);
        let payload = &out[start + record::HEADER_BYTES..];
        let mut header = RecordHeader::new(Kind::Message, payload.len());
        header.prefix.key_count = spec.keys.len() as u8;
        header.payload_checksum = crc32(payload).into();
        header.topic = topic.into();
        header.queue = queue.into();
        header.deliver_ms = spec.deliver_ms.into();
        header.message_id = spec.message_id;
        header.producer_id = spec.producer.0.into();
        header.producer_sequence = spec.producer.1.into();
        header.tag_hash = spec.tag.map_or(0, record::tag_hash).into();
        header.flags = (u16::from(spec.flush) & record::FLAG_FLUSH_MASK).into();
        header.property_count = (spec.properties.len() as u16).into();
        header.property_bytes = (property_bytes as u16).into();
        for (slot, key) in header.key_hashes.iter_mut().zip(spec.keys) {
            *slot = record::key_hash(key).into();
        }
        header.born_ms = spec.born_ms.into();
        let bytes = record::record_bytes(payload.len());
        out.resize(start + bytes, 0);
        out[start..start + record::HEADER_BYTES].copy_from_slice(header.as_bytes());
        Ok(bytes)
    }

    /// Appends the table of a message. Its body goes straight from the user's memory to `out`: the builder gets some
    /// bytes in its place, so many that everything around it is aligned as with the body.
    fn payload(&mut self, out: &mut Vec<u8>, spec: &MessageSpec<'_>) {
        let fbb = &mut self.fbb;
        fbb.reset();
        let instead = &[0; LARGEST_ALIGNMENT][..spec.body.len() % LARGEST_ALIGNMENT];
        // A byte string is a vector with a zero behind it. The first that is built lies at the end of the table.
        let body = Some(WIPOffset::new(fbb.create_byte_string(instead).value()));
        let body_vector_bytes = fbb.unfinished_data().len();
        let tag = spec.tag.map(|tag| fbb.create_string(tag));
        let group = spec.group.map(|group| fbb.create_string(group));
        let born_host = spec.born_host.map(|host| fbb.create_string(host));
        let origin_topic = spec.origin.map(|origin| fbb.create_string(origin.topic));
        let last_error = spec.last_error.map(|error| fbb.create_string(error));
        self.keys.clear();
        for key in spec.keys {
            self.keys.push(fbb.create_string(key));
        }
        self.properties.clear();
        for (key, value) in spec.properties {
            let key = Some(fbb.create_string(key));
            let value = Some(fbb.create_string(value));
            self.properties.push(Property::create(fbb, &PropertyArgs { key, value }));
        }
        let keys: Option<WIPOffset<flatbuffers::Vector<'_, ForwardsUOffset<&str>>>> =
            (!self.keys.is_empty()).then(|| fbb.create_vector(&self.keys));
        let properties = (!self.properties.is_empty()).then(|| fbb.create_vector(&self.properties));
        let args = MessageArgs {
            body,
            tag,
            keys,
            properties,
            group,
            flag: spec.flag,
            born_host,
            origin_topic,
            origin_queue: spec.origin.map_or(0, |origin| origin.queue),
            origin_offset: spec.origin.map_or(0, |origin| origin.offset),
            last_error,
            ..MessageArgs::default()
        };
        let root = Message::create(fbb, &args);
        fbb.finish_minimal(root);
        let table = fbb.finished_data();
        let (before, vector) = table.split_at(table.len() - body_vector_bytes);
        out.reserve(table.len() + spec.body.len() + record::ALIGNMENT);
        out.extend_from_slice(before);
        out.extend_from_slice(&(spec.body.len() as u32).to_le_bytes());
        out.extend_from_slice(spec.body);
        out.extend_from_slice(&vector[size_of::<u32>() + instead.len()..]);
    }
}

/// Points the records of `run` at another topic id and queue: a client chooses the broker last.
///
/// `run` must have been made by [`RecordBuilder`].
pub fn readdress(run: &mut [u8], topic: u32, queue: u32) {
    let mut at = 0;
    while at + record::HEADER_BYTES <= run.len() {
        let length = u32::from_le_bytes([run[at], run[at + 1], run[at + 2], run[at + 3]]) as usize;
        run[at + 20..at + 24].copy_from_slice(&topic.to_le_bytes());
        run[at + 24..at + 28].copy_from_slice(&queue.to_le_bytes());
        assert!(length >= record::HEADER_BYTES, "the run was made by RecordBuilder");
        at += length;
    }
}

/// Checks a message against the protocol's limits; returns the bytes of its properties.
pub fn check(spec: &MessageSpec<'_>) -> Result<usize, MessageError> {
    if spec.body.len() > limits::BODY_BYTES_MAX {
        return Err(MessageError::Body { bytes: spec.body.len() });
    }
    let bytes: usize = spec.properties.iter().map(|(k, v)| k.len() + v.len()).sum();
    let count = spec.properties.len();
    if bytes > limits::PROPERTIES_BYTES_MAX || count > limits::PROPERTIES_MAX {
        return Err(MessageError::Properties { count, bytes });
    }
    debug_assert!(spec.last_error.is_none_or(|e| e.len() <= limits::LAST_ERROR_BYTES_MAX));
    let texts = [spec.tag, spec.group, spec.born_host];
    let labels = texts.iter().flatten().map(|t| t.len()).sum::<usize>()
        + spec.keys.iter().map(|k| k.len()).sum::<usize>();
    if spec.keys.len() > limits::KEYS_MAX || labels > limits::RECORD_OVERHEAD_BYTES_MAX / 2 {
        return Err(MessageError::Keys { keys: spec.keys.len(), bytes: labels });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip() {
        let mut run = Vec::new();
        let mut builder = RecordBuilder::new();
        let spec = MessageSpec {
            body: b"hello",
            tag: Some("paid"),
            keys: &["42", "43"],
            properties: &[("region", "eu")],
            group: Some("user-7"),
            message_id: [7; 16],
            born_ms: 5,
            ..MessageSpec::default()
        };
        builder.append(&mut run, 1, 2, &spec).unwrap();
        builder.append(&mut run, 1, 2, &MessageSpec::default()).unwrap();
        readdress(&mut run, 9, 4);
        let all: Vec<_> = record::records(&run).map(Result::unwrap).collect();
        assert_eq!(all.len(), 2);
        let first = all[0];
        first.check_payload().unwrap();
        assert_eq!((first.header.topic.get(), first.header.queue.get()), (9, 4));
        assert_eq!(first.header.tag_hash.get(), record::tag_hash("paid"));
        assert_eq!(first.header.prefix.key_count, 2);
        let message = first.message().unwrap();
        assert_eq!(message.body().unwrap().bytes(), b"hello");
        assert_eq!(message.tag(), Some("paid"));
        assert_eq!(message.properties().unwrap().get(0).value(), "eu");
        assert_eq!(message.keys().unwrap().get(1), "43");
    }

    #[test]
    fn a_body_that_the_builder_never_saw_lies_as_if_it_had() {
        let origin = Some(Origin { topic: "first", queue: 3, offset: 1 << 40 });
        let mut builder = RecordBuilder::new();
        for length in 0..70 {
            let body: Vec<u8> = (0..length).map(|at| at as u8 + 1).collect();
            for (tag, origin) in [(None, None), (Some("paid"), None), (None, origin)] {
                let spec = MessageSpec { body: &body, tag, origin, ..MessageSpec::default() };
                let mut ours = Vec::new();
                builder.payload(&mut ours, &spec);
                let mut fbb = FlatBufferBuilder::new();
                let body = Some(WIPOffset::new(fbb.create_byte_string(&body).value()));
                let tag = tag.map(|tag| fbb.create_string(tag));
                let origin_topic = origin.map(|origin| fbb.create_string(origin.topic));
                let (origin_queue, origin_offset) = origin.map_or((0, 0), |o| (o.queue, o.offset));
                let args = MessageArgs {
                    body,
                    tag,
                    origin_topic,
                    origin_queue,
                    origin_offset,
                    ..MessageArgs::default()
                };
                let root = Message::create(&mut fbb, &args);
                fbb.finish_minimal(root);
                assert_eq!(ours, fbb.finished_data(), "{length} bytes");
            }
        }
    }

    #[test]
    fn limits_are_checked() {
        let body = vec![0; limits::BODY_BYTES_MAX + 1];
        let spec = MessageSpec { body: &body, ..MessageSpec::default() };
        assert_eq!(check(&spec), Err(MessageError::Body { bytes: body.len() }));
        let value = "v".repeat(limits::PROPERTIES_BYTES_MAX);
        let properties = [("k", value.as_str())];
        let spec = MessageSpec { properties: &properties, ..MessageSpec::default() };
        assert!(matches!(check(&spec), Err(MessageError::Properties { count: 1, .. })));
        let properties = [("k", "v"); limits::PROPERTIES_MAX + 1];
        let spec = MessageSpec { properties: &properties, ..MessageSpec::default() };
        assert!(matches!(check(&spec), Err(MessageError::Properties { count: 129, .. })));
    }

    #[test]
    fn the_largest_message_fits_a_record() {
        let body = vec![1; limits::BODY_BYTES_MAX];
        let key = "k".repeat(250);
        let value = "v".repeat(limits::PROPERTIES_BYTES_MAX / limits::PROPERTIES_MAX - 250);
        let properties = vec![(key.as_str(), value.as_str()); limits::PROPERTIES_MAX];
        let tag = "t".repeat(limits::RECORD_OVERHEAD_BYTES_MAX / 2);
        let spec = MessageSpec {
            body: &body,
            properties: &properties,
            tag: Some(&tag),
            origin: Some(Origin { topic: &"o".repeat(127), queue: 1, offset: 2 }),
            last_error: Some(&"e".repeat(limits::LAST_ERROR_BYTES_MAX)),
            ..MessageSpec::default()
        };
        let mut run = Vec::new();
        let bytes = RecordBuilder::new().append(&mut run, 1, 1, &spec).unwrap();
        assert!(bytes <= limits::RECORD_BYTES_MAX, "{bytes}");
    }
}
