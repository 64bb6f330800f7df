//! Filters of fetches: by tags, from the index; by SQL92 expressions, from the records themselves.
//!
//! Invariants:
//! - a record is left out only when it is certain that it is not wanted: one that does not verify, or is beyond the
//!   limits of messages, goes to the consumer, who sets it aside;
//! - whatever is looked at is paid for in work, and a fetch has a bounded amount of it (promise: isolation);
//! - nothing is allocated for a record.

use super::super::{Refuse, refuse};
use super::WORK_MAX;
use super::gather::is_record;
use super::windows::Windows;
use crate::index::Entry;
use crate::log::tail::Tail;
use crate::peer::QueueId;
use crate::seam::Block;
use ringmq_filter::{Error, Expression, Properties, TAGS, evaluate};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{ForwardsUOffset, Vector};
use ringmq_schema::limits::{PROPERTIES_BYTES_MAX, PROPERTIES_MAX};
use ringmq_schema::message::{Message, Property};
use ringmq_schema::record;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Most expressions kept parsed: long polls come again and again with the same.
const PROGRAMS_MAX: usize = 256;
/// Work of verifying and evaluating a small message: 1.3 us with four properties and three terms, where passing over
/// one by the hash of its tag takes 13 ns (`storage -- filter`, a busy machine). So a fetch takes about a
/// millisecond at most.
const MESSAGE_WORK: u32 = 64;
/// Bytes of a message that are one more: they are summed and searched for strings.
const BYTES_PER_WORK: usize = 256;
/// Bytes of a property's value that are one more, each time that a term looks at it.
const VALUE_BYTES_PER_WORK: usize = 32;
/// Work of a message that cannot be verified, or is full of properties: the verifier is bounded at 0.2 ms.
const STRANGE_WORK: u32 = 10_000;
/// Most work of evaluating one message: more than any within the limits of properties and expressions comes to.
const EVALUATION_WORK_MAX: u32 = 1_000_000;

/// Which records of a queue a fetch wants.
#[derive(Debug, Clone)]
pub(in super::super) enum Filter {
    /// Hashes of tags; the client compares the tags.
    Tags(Vec<u32>),
    Sql(Rc<Sql>),
}

impl Filter {
    /// Whether it selects by the same tags, or by the same expression.
    pub(in super::super) fn is_same(&self, other: &Filter) -> bool {
        match (self, other) {
            (Filter::Tags(tags), Filter::Tags(others)) => tags == others,
            (Filter::Sql(sql), Filter::Sql(other)) => {
                Rc::ptr_eq(sql, other) || sql.text() == other.text()
            }
            (Filter::Tags(_), Filter::Sql(_)) | (Filter::Sql(_), Filter::Tags(_)) => false,
        }
    }

    /// Whether a record may be wanted, as far as the index says.
    pub(in super::super) fn admits(&self, entry: &Entry) -> bool {
        match self {
            Filter::Tags(tags) => tags.contains(&entry.tag_hash),
            Filter::Sql(sql) => sql.tags.as_ref().is_none_or(|tags| tags.contains(&entry.tag_hash)),
        }
    }
}

/// An expression that is ready to be evaluated.
#[derive(Debug)]
pub(in super::super) struct Sql {
    expression: Expression,
    /// Records with another hash need not be looked at: equal tags have equal hashes.
    tags: Option<Vec<u32>>,
}

/// What was seen of a record.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Judged {
    pub(in super::super) is_wanted: bool,
    pub(in super::super) work: u32,
}

impl Sql {
    /// The expression's canonical text.
    pub(in super::super) fn text(&self) -> &str {
        self.expression.as_str()
    }

    /// Looks at a record, all of whose bytes are given. What comes from a disk is compared with its checksum first.
    pub(in super::super) fn judge(&self, bytes: &[u8], is_from_disk: bool) -> Judged {
        let strange = Judged { is_wanted: true, work: STRANGE_WORK };
        let Ok((_, Some(found))) = record::read_one(bytes, 0) else { return strange };
        if is_from_disk && found.check_payload().is_err() {
            return strange;
        }
        let Ok(message) = found.message() else { return strange };
        let properties = message.properties();
        if properties.is_some_and(|properties| properties.len() > PROPERTIES_MAX) {
            return strange;
        }
        let message = Seen { message, properties, work: Cell::new(0) };
        let is_true = evaluate(&self.expression, &message) == Some(true);
        let work = message.work.get();
        Judged {
            is_wanted: is_true || work > EVALUATION_WORK_MAX,
            work: MESSAGE_WORK + (bytes.len() / BYTES_PER_WORK) as u32 + work,
        }
    }
}

/// A message as expressions see it; counts what they look at.
struct Seen<'a> {
    message: Message<'a>,
    properties: Option<Vector<'a, ForwardsUOffset<Property<'a>>>>,
    work: Cell<u32>,
}

impl Properties for Seen<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let mut work = self.work.get() + 1;
        if work > EVALUATION_WORK_MAX {
            return None;
        }
        let found = match name {
            // As the client sees it: an empty tag is none.
            TAGS => self.message.tag().filter(|tag| !tag.is_empty()),
            _ => self.properties.into_iter().flatten().find_map(|property| {
                work += 1;
                (property.key() == name).then(|| property.value())
            }),
        };
        let bytes = found.map_or(0, str::len);
        if bytes > PROPERTIES_BYTES_MAX {
            // No client makes such a message, and no header tells.
            self.work.set(EVALUATION_WORK_MAX + 1);
            return None;
        }
        self.work.set(work + (bytes / VALUE_BYTES_PER_WORK) as u32);
        found
    }
}

/// Looks at records before it is known whether anybody wants them: those that are in memory.
pub(super) struct InMemory<'a, B> {
    tail: &'a Tail<B>,
    windows: &'a mut Windows<B>,
    last: Option<(u64, Rc<B>)>,
}

impl<'a, B: Block> InMemory<'a, B> {
    pub(super) fn new(tail: &'a Tail<B>, windows: &'a mut Windows<B>) -> InMemory<'a, B> {
        InMemory { tail, windows, last: None }
    }

    /// `None`: it must be read first.
    pub(super) fn judge(
        &mut self,
        sql: &Sql,
        (id, offset): (QueueId, u64),
        (base, position, bytes): (u64, u64, u32),
    ) -> Option<Judged> {
        if let Some(slice) = self.tail.slice(position, bytes) {
            return Some(sql.judge(slice.bytes(), false));
        }
        let slice = self.windows.record(&mut self.last, base, position, bytes)?;
        // That it is not what the index says is told when it is to be sent.
        let is_sound = is_record(&slice, id, offset);
        Some(match is_sound {
            true => sql.judge(slice.bytes(), true),
            false => Judged { is_wanted: true, work: MESSAGE_WORK },
        })
    }
}

/// Expressions that were asked for of late, by their text as it came.
#[derive(Debug, Default)]
pub(in super::super) struct Programs {
    by_text: BTreeMap<Rc<str>, (u64, Rc<Sql>)>,
    by_use: BTreeMap<u64, Rc<str>>,
    uses: u64,
}

impl Programs {
    /// Parses an expression, unless it is known.
    pub(in super::super) fn get(&mut self, text: &str) -> Result<Rc<Sql>, Refuse> {
        self.uses += 1;
        if let Some((used, sql)) = self.by_text.get_mut(text) {
            if let Some(text) = self.by_use.remove(used) {
                self.by_use.insert(self.uses, text);
            }
            *used = self.uses;
            return Ok(Rc::clone(sql));
        }
        let expression = Expression::parse(text).map_err(|error| bad(&error))?;
        let hashes = |tags: &mut dyn Iterator<Item = &str>| tags.map(record::tag_hash).collect();
        let tags = expression.tags().map(|mut tags| hashes(&mut tags));
        let sql = Rc::new(Sql { expression, tags });
        let text: Rc<str> = text.into();
        self.by_use.insert(self.uses, Rc::clone(&text));
        self.by_text.insert(text, (self.uses, Rc::clone(&sql)));
        if self.by_text.len() > PROGRAMS_MAX
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.by_text.remove(&oldest);
        }
        Ok(sql)
    }
}

fn bad(error: &Error) -> Refuse {
    refuse(Status::BadFilter, format!("{error}\n{}", error.caret()))
}

const _: () = assert!(STRANGE_WORK < WORK_MAX, "a step takes more than one");

#[cfg(test)]
mod tests {
    use super::*;
    use ringmq_schema::build::{MessageSpec, RecordBuilder};
    use ringmq_schema::zerocopy::IntoBytes;

    fn record(properties: &[(&str, &str)], tag: Option<&str>) -> Vec<u8> {
        let mut run = Vec::new();
        let spec = MessageSpec { body: b"body", tag, properties, ..MessageSpec::default() };
        RecordBuilder::new().append(&mut run, 1, 0, &spec).unwrap();
        run
    }

    fn sql(text: &str) -> Rc<Sql> {
        Programs::default().get(text).unwrap()
    }

    #[test]
    fn properties_and_the_tag_are_seen() {
        let bytes = record(&[("region", "eu"), ("amount", "120")], Some("paid"));
        for (text, expected) in [
            ("region = 'eu' AND amount > 100 AND TAGS = 'paid'", true),
            ("region = 'us'", false),
            ("TAGS IN ('a', 'b')", false),
            ("missing = 'x'", false),
            ("missing IS NULL AND TAGS IS NOT NULL", true),
        ] {
            let judged = sql(text).judge(&bytes, true);
            assert_eq!(judged.is_wanted, expected, "{text}");
            assert!(judged.work >= MESSAGE_WORK && judged.work < 100);
        }
        assert!(sql("TAGS IS NULL").judge(&record(&[], Some("")), false).is_wanted);
    }

    #[test]
    fn what_does_not_verify_is_the_consumers() {
        let mut bytes = record(&[("a", "1")], None);
        let filter = sql("a = '2'");
        assert!(!filter.judge(&bytes, true).is_wanted);
        let last = record::HEADER_BYTES + 20;
        bytes[last] ^= 1;
        assert!(filter.judge(&bytes, true).is_wanted, "its checksum is wrong");
        for at in record::HEADER_BYTES..bytes.len() {
            // Never a panic, whatever is there; the checksum is not looked at.
            let mut damaged = bytes.clone();
            damaged[at] = 0xff;
            filter.judge(&damaged, false);
        }
        let payload = record::HEADER_BYTES;
        bytes[payload..payload + 4].copy_from_slice(&[0xff; 4]);
        let judged = filter.judge(&bytes, false);
        assert!(judged.is_wanted && judged.work == STRANGE_WORK);
    }

    /// promise: bounded
    #[test]
    fn work_grows_with_what_is_looked_at_and_ends() {
        let long = "x".repeat(30_000);
        let bytes = record(&[("a", &long)], None);
        let terms = vec!["a CONTAINS 'xy'"; 200].join(" OR ");
        let judged = sql(&terms).judge(&bytes, false);
        assert!(!judged.is_wanted && judged.work > 200 * 30_000 / 32, "{}", judged.work);
        assert!(judged.work < EVALUATION_WORK_MAX);
    }

    /// A message that no client makes: its header tells nothing of it, and its properties are beyond all limits.
    #[test]
    fn what_is_beyond_the_limits_is_the_consumers() {
        use ringmq_schema::message::{MessageArgs, PropertyArgs};
        for (count, bytes) in [(1, PROPERTIES_BYTES_MAX + 1), (PROPERTIES_MAX + 1, 1)] {
            let mut fbb = ringmq_schema::flatbuffers::FlatBufferBuilder::new();
            let value = "x".repeat(bytes);
            let properties: Vec<_> = (0..count)
                .map(|_| {
                    let (key, value) = (fbb.create_string("a"), fbb.create_string(&value));
                    Property::create(&mut fbb, &PropertyArgs { key: Some(key), value: Some(value) })
                })
                .collect();
            let properties = Some(fbb.create_vector(&properties));
            let root = Message::create(&mut fbb, &MessageArgs { properties, ..Default::default() });
            fbb.finish_minimal(root);
            let payload = fbb.finished_data();
            let header = record::RecordHeader::new(record::Kind::Message, payload.len());
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend_from_slice(payload);
            bytes.resize(record::record_bytes(payload.len()), 0);
            let judged = sql("a = 'y'").judge(&bytes, false);
            assert!(judged.is_wanted && judged.work >= STRANGE_WORK);
        }
    }

    #[test]
    fn programs_are_kept_and_the_one_used_longest_ago_goes_first() {
        let mut programs = Programs::default();
        let first = programs.get("a = 0").unwrap();
        for n in 1..PROGRAMS_MAX {
            programs.get(&format!("a = {n}")).unwrap();
        }
        assert!(Rc::ptr_eq(&first, &programs.get("a = 0").unwrap()));
        let second = programs.get("a = 2").unwrap();
        for n in 0..PROGRAMS_MAX - 2 {
            programs.get(&format!("b = {n}")).unwrap();
        }
        assert_eq!((programs.by_text.len(), programs.by_use.len()), (PROGRAMS_MAX, PROGRAMS_MAX));
        assert!(Rc::ptr_eq(&first, &programs.get("a = 0").unwrap()));
        assert!(Rc::ptr_eq(&second, &programs.get("a = 2").unwrap()));
        programs.get("c = 1").unwrap();
        programs.get("c = 2").unwrap();
        assert!(programs.by_text.contains_key("a = 0") && !programs.by_text.contains_key("a = 1"));
        assert_eq!(programs.get("a = ").unwrap_err().status, Status::BadFilter);
        assert_eq!(programs.by_text.len(), PROGRAMS_MAX);
    }
}
