//! What clients say and what they are told: requests built with the schema, answers parsed with it.

use crate::sim::{Verdict, violation};
use ringmq_schema::admin::{self, TopicArgs};
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::consume::{self, MemberId};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringmq_schema::frame::{self, FLAG_ONE_WAY, Frame};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::produce::{self, Flush};
use ringmq_schema::record;

/// A queue: topic id and number.
pub type QueueKey = (u32, u32);

/// One queue in a fetch.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Wanted {
    pub queue: QueueKey,
    pub offset: u64,
    pub generation: u32,
    /// Hash of the one tag wanted.
    pub tag: Option<u32>,
}

/// One queue in a commit or reset.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Entry {
    pub queue: QueueKey,
    pub offset: u64,
    pub generation: u32,
}

/// What a request is for: kept until its answer comes, for the client and the oracle.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Intent {
    /// Messages `first .. first + count` of the journal.
    Produce {
        queue: QueueKey,
        first: u32,
        count: u32,
    },
    /// A run that must be refused.
    Damaged {
        first: u32,
        count: u32,
    },
    Fetch {
        group: u32,
        wanted: Vec<Wanted>,
        max_bytes: u32,
        max_records: u32,
    },
    Commit {
        group: u32,
        member: u128,
        entries: Vec<Entry>,
    },
    Reset {
        group: u32,
        entry: Entry,
    },
    Offsets {
        group: u32,
        queues: Vec<QueueKey>,
    },
    Search {
        at_ms: i64,
        queues: Vec<QueueKey>,
    },
    Beat {
        group: String,
        member: u128,
    },
    Leave {
        member: u128,
    },
    Create {
        topic: usize,
    },
    Delete {
        topic: usize,
    },
    List,
    /// Anything whose answer is only parsed.
    Idle,
    /// Must not be answered with success.
    Garbage,
}

/// A request on its way.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Request {
    pub shard: u16,
    pub correlation: u64,
    pub one_way: bool,
    pub bytes: Vec<u8>,
    pub intent: Intent,
}

/// A record that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Received {
    pub queue: QueueKey,
    pub offset: u64,
    pub position: u64,
    pub message_id: [u8; 16],
    pub payload_checksum: u32,
    pub payload_bytes: u32,
    pub tag_hash: u32,
    pub born_ms: i64,
}

/// One queue of a fetch answer.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Fetched {
    pub queue: QueueKey,
    pub next_offset: u64,
    pub high_watermark: u64,
    pub min_offset: u64,
    pub status: Status,
    pub records: Vec<Received>,
}

/// One queue of an offsets answer.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct OffsetsOf {
    pub queue: QueueKey,
    pub committed: i64,
    pub min_offset: u64,
    pub max_offset: u64,
    pub status: Status,
}

/// A topic as an answer names it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TopicSeen {
    pub name: String,
    pub id: u32,
    pub queues: u32,
    pub flush: u8,
}

/// An answer, parsed.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Reply {
    Refused { status: Status, message: String },
    Done,
    Produced { base: u64, records: u32, position: u64 },
    Fetched(Vec<Fetched>),
    Committed(Vec<(QueueKey, Status)>),
    Offsets(Vec<OffsetsOf>),
    Found(Vec<(QueueKey, u64, Status)>),
    Beat { group: u32, version: u64, queues: Vec<(QueueKey, u32)> },
    Topic(Option<TopicSeen>),
    Topics(Vec<TopicSeen>),
}

/// Builds requests; correlations are unique in a run.
#[derive(Default)]
pub struct Words {
    frames: FrameBuilder,
    correlation: u64,
}

impl Words {
    /// A request with the table that `build` makes and a copy of `run`.
    #[allow(clippy::too_many_arguments)]
    pub fn request<T>(
        &mut self,
        opcode: Opcode,
        shard: u16,
        one_way: bool,
        run: &[u8],
        intent: Intent,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) -> Request {
        self.correlation += 1;
        let (correlation, flags) = (self.correlation, if one_way { FLAG_ONE_WAY } else { 0 });
        let mut bytes = Vec::new();
        let frames = &mut self.frames;
        frames.request_head(&mut bytes, opcode, flags, shard, correlation, run.len(), build);
        bytes.extend_from_slice(run);
        Request { shard, correlation, one_way, bytes, intent }
    }

    /// Messages.
    #[allow(clippy::too_many_arguments)]
    pub fn produce(
        &mut self,
        shard: u16,
        one_way: bool,
        queue: QueueKey,
        records: u32,
        flush: u8,
        run: &[u8],
        intent: Intent,
    ) -> Request {
        self.request(Opcode::Produce, shard, one_way, run, intent, |fbb| {
            let (topic, queue) = queue;
            let flush = Flush(flush);
            let args = produce::ProduceArgs { topic, queue, records, flush, timeout_ms: 3000 };
            produce::Produce::create(fbb, &args)
        })
    }

    /// A long poll.
    #[allow(clippy::too_many_arguments)]
    pub fn fetch(
        &mut self,
        shard: u16,
        group: u32,
        member: u128,
        wait_ms: u32,
        max_bytes: u32,
        max_records: u32,
        wanted: Vec<Wanted>,
    ) -> Request {
        let intent = Intent::Fetch { group, wanted: wanted.clone(), max_bytes, max_records };
        self.request(Opcode::Fetch, shard, false, &[], intent, |fbb| {
            let mut tags = Vec::new();
            let mut queues = Vec::new();
            for one in &wanted {
                let filter = one.tag.map_or(0, |tag| {
                    tags.push(tag);
                    tags.len() as u16
                });
                let ((topic, queue), offset) = (one.queue, one.offset);
                queues.push(consume::FetchQueue::new(
                    topic,
                    queue,
                    offset,
                    one.generation,
                    filter,
                    0,
                ));
            }
            let filters: Vec<_> = tags
                .iter()
                .map(|tag| {
                    let hashes = Some(fbb.create_vector(&[*tag]));
                    consume::TagFilter::create(fbb, &consume::TagFilterArgs { hashes })
                })
                .collect();
            let filters = Some(fbb.create_vector(&filters));
            let queues = Some(fbb.create_vector(&queues));
            let id = member_id(member);
            let args = consume::FetchArgs {
                group,
                member: (member != 0).then_some(&id),
                wait_ms,
                min_bytes: 1,
                max_bytes,
                max_records,
                queues,
                filters,
            };
            consume::Fetch::create(fbb, &args)
        })
    }

    /// Offsets of a member.
    pub fn commit(&mut self, shard: u16, group: u32, member: u128, entries: Vec<Entry>) -> Request {
        let intent = Intent::Commit { group, member, entries: entries.clone() };
        self.request(Opcode::CommitOffsets, shard, false, &[], intent, |fbb| {
            let entries: Vec<_> = entries.iter().map(commit_entry).collect();
            let entries = Some(fbb.create_vector(&entries));
            let member = member_id(member);
            let args = consume::CommitOffsetsArgs { group, member: Some(&member), entries };
            consume::CommitOffsets::create(fbb, &args)
        })
    }

    /// The one way back.
    pub fn reset(&mut self, shard: u16, group: u32, entry: Entry) -> Request {
        let intent = Intent::Reset { group, entry };
        self.request(Opcode::ResetOffsets, shard, false, &[], intent, |fbb| {
            let entries = Some(fbb.create_vector(&[commit_entry(&entry)]));
            consume::ResetOffsets::create(fbb, &consume::ResetOffsetsArgs { group, entries })
        })
    }

    /// Committed and available offsets.
    pub fn offsets(&mut self, shard: u16, group: u32, queues: Vec<QueueKey>) -> Request {
        let intent = Intent::Offsets { group, queues: queues.clone() };
        self.request(Opcode::QueryOffsets, shard, false, &[], intent, |fbb| {
            let queues: Vec<_> =
                queues.iter().map(|(t, q)| consume::QueueRef::new(*t, *q)).collect();
            let queues = Some(fbb.create_vector(&queues));
            consume::QueryOffsets::create(fbb, &consume::QueryOffsetsArgs { group, queues })
        })
    }

    /// Offsets by time.
    pub fn search(&mut self, shard: u16, at_ms: i64, queues: Vec<QueueKey>) -> Request {
        let intent = Intent::Search { at_ms, queues: queues.clone() };
        self.request(Opcode::SearchOffsets, shard, false, &[], intent, |fbb| {
            let queues: Vec<_> =
                queues.iter().map(|(t, q)| consume::OffsetAt::new(*t, *q, at_ms)).collect();
            let queues = Some(fbb.create_vector(&queues));
            consume::SearchOffsets::create(fbb, &consume::SearchOffsetsArgs { queues })
        })
    }

    /// A member's long poll.
    pub fn beat(&mut self, shard: u16, beat: &Beat<'_>) -> Request {
        let intent = Intent::Beat { group: beat.group.to_owned(), member: beat.member };
        self.request(Opcode::GroupHeartbeat, shard, false, &[], intent, |fbb| {
            let group = Some(fbb.create_string(beat.group));
            let client = Some(fbb.create_string("simulated"));
            let subscriptions: Vec<_> = beat
                .topics
                .iter()
                .map(|topic| {
                    let topic = Some(fbb.create_string(topic));
                    let expression = Some(fbb.create_string("*"));
                    let kind = consume::FilterKind::Tags;
                    let args = consume::SubscriptionArgs { topic, kind, expression };
                    consume::Subscription::create(fbb, &args)
                })
                .collect();
            let subscriptions = Some(fbb.create_vector(&subscriptions));
            let held: Vec<_> = beat
                .held
                .iter()
                .map(|((t, q), generation)| consume::OwnedQueue::new(*t, *q, *generation, 0))
                .collect();
            let held = Some(fbb.create_vector(&held));
            let member = member_id(beat.member);
            let args = consume::GroupHeartbeatArgs {
                group,
                member: Some(&member),
                client,
                model: consume::Model::Clustering,
                subscriptions,
                session_timeout_ms: beat.session_ms,
                known_version: beat.version,
                wait_ms: beat.wait_ms,
                held,
            };
            consume::GroupHeartbeat::create(fbb, &args)
        })
    }

    /// A member's farewell.
    pub fn leave(&mut self, shard: u16, group: &str, member: u128) -> Request {
        self.request(Opcode::GroupLeave, shard, false, &[], Intent::Leave { member }, |fbb| {
            let group = Some(fbb.create_string(group));
            let member = member_id(member);
            let args = consume::GroupLeaveArgs { group, member: Some(&member) };
            consume::GroupLeave::create(fbb, &args)
        })
    }

    /// A topic, number `topic` of the journal.
    pub fn create(&mut self, topic: usize, name: &str, queues: u32, flush: u8) -> Request {
        self.request(Opcode::CreateTopic, 0, false, &[], Intent::Create { topic }, |fbb| {
            let name = Some(fbb.create_string(name));
            let args = TopicArgs {
                name,
                read_queues: queues,
                write_queues: queues,
                permission: 6,
                message_type: admin::MessageType::Unspecified,
                flush,
                ..TopicArgs::default()
            };
            let topic = Some(admin::Topic::create(fbb, &args));
            admin::CreateTopic::create(fbb, &admin::CreateTopicArgs { topic })
        })
    }

    /// Its end.
    pub fn delete(&mut self, topic: usize, name: &str) -> Request {
        self.request(Opcode::DeleteTopic, 0, false, &[], Intent::Delete { topic }, |fbb| {
            let name = Some(fbb.create_string(name));
            admin::DeleteTopic::create(fbb, &admin::DeleteTopicArgs { name })
        })
    }

    /// All topics.
    pub fn list(&mut self) -> Request {
        self.request(Opcode::ListTopics, 0, false, &[], Intent::List, |fbb| {
            admin::ListTopics::create(fbb, &admin::ListTopicsArgs { prefix: None })
        })
    }

    /// Figures.
    pub fn figures(&mut self, shard: u16) -> Request {
        self.request(Opcode::QueryShard, shard, false, &[], Intent::Idle, |fbb| {
            admin::QueryShard::create(fbb, &admin::QueryShardArgs {})
        })
    }
}

/// What a heartbeat says.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Beat<'a> {
    pub group: &'a str,
    pub member: u128,
    pub topics: &'a [String],
    pub session_ms: u32,
    pub wait_ms: u32,
    pub version: u64,
    pub held: &'a [(QueueKey, u32)],
}

fn member_id(member: u128) -> MemberId {
    MemberId::new((member >> 64) as u64, member as u64)
}

fn commit_entry(entry: &Entry) -> consume::CommitEntry {
    let (topic, queue) = entry.queue;
    consume::CommitEntry::new(topic, queue, entry.offset, entry.generation, 0)
}

macro_rules! table {
    ($kind:ty, $frame:expr) => {
        match frame::read_large_table::<$kind>($frame.table) {
            Ok(table) => table,
            Err(error) => return violation(format!("an answer does not verify: {error}")),
        }
    };
}

/// Parses an answer to a request with `intent`.
pub fn parse(frame: &Frame<'_>, intent: &Intent) -> Verdict<Reply> {
    let status = frame.header.status();
    if status != Status::Ok {
        let refusal = table!(ringmq_schema::connection::Refusal, frame);
        let message = refusal.message().unwrap_or_default().to_owned();
        if message.is_empty() {
            return violation(format!("a refusal {status} without a message"));
        }
        return Ok(Reply::Refused { status, message });
    }
    if !matches!(intent, Intent::Fetch { .. }) && !frame.run.is_empty() {
        return violation("an answer with a run that has none");
    }
    Ok(match intent {
        Intent::Produce { .. } | Intent::Damaged { .. } => {
            let answer = table!(produce::ProduceAnswer, frame);
            let (base, records) = (answer.base_offset(), answer.records());
            Reply::Produced { base, records, position: answer.position() }
        }
        Intent::Fetch { .. } => fetched(frame)?,
        Intent::Commit { .. } | Intent::Reset { .. } => {
            let answer = table!(consume::CommitOffsetsAnswer, frame);
            let entries = answer.entries().into_iter().flatten();
            let one =
                |e: &consume::CommitResult| ((e.topic(), e.queue()), Status::from_code(e.status()));
            Reply::Committed(entries.map(one).collect())
        }
        Intent::Offsets { .. } => {
            let answer = table!(consume::QueryOffsetsAnswer, frame);
            Reply::Offsets(answer.queues().into_iter().flatten().map(offsets_of).collect())
        }
        Intent::Search { .. } => {
            let answer = table!(consume::SearchOffsetsAnswer, frame);
            let queues = answer.queues().into_iter().flatten();
            let one = |q: &consume::FoundOffset| {
                ((q.topic(), q.queue()), q.offset(), Status::from_code(q.status()))
            };
            Reply::Found(queues.map(one).collect())
        }
        Intent::Beat { .. } => {
            let answer = table!(consume::GroupHeartbeatAnswer, frame);
            let queues = answer.queues().into_iter().flatten();
            let queues = queues.map(|q| ((q.topic(), q.queue()), q.generation())).collect();
            Reply::Beat { group: answer.group(), version: answer.version(), queues }
        }
        Intent::Create { .. } => {
            let answer = table!(admin::TopicAnswer, frame);
            Reply::Topic(answer.topic().map(topic_seen))
        }
        Intent::List => {
            let answer = table!(admin::ListTopicsAnswer, frame);
            Reply::Topics(answer.topics().into_iter().flatten().map(topic_seen).collect())
        }
        Intent::Leave { .. } | Intent::Delete { .. } | Intent::Idle | Intent::Garbage => {
            Reply::Done
        }
    })
}

fn offsets_of(q: &consume::QueueOffsets) -> OffsetsOf {
    OffsetsOf {
        queue: (q.topic(), q.queue()),
        committed: q.committed(),
        min_offset: q.min_offset(),
        max_offset: q.max_offset(),
        status: Status::from_code(q.status()),
    }
}

fn topic_seen(topic: admin::Topic<'_>) -> TopicSeen {
    TopicSeen {
        name: topic.name().to_owned(),
        id: topic.id(),
        queues: topic.read_queues(),
        flush: topic.flush(),
    }
}

fn fetched(frame: &Frame<'_>) -> Verdict<Reply> {
    let answer = table!(consume::FetchAnswer, frame);
    let mut run = record::records(frame.run);
    let mut queues = Vec::new();
    for queue in answer.queues().into_iter().flatten() {
        let key = (queue.topic(), queue.queue());
        let mut records = Vec::new();
        for _ in 0..queue.records() {
            let Some(next) = run.next() else {
                return violation(format!("queue {key:?}: fewer records than the answer says"));
            };
            records.push(received(next)?);
        }
        queues.push(Fetched {
            queue: key,
            next_offset: queue.next_offset(),
            high_watermark: queue.high_watermark(),
            min_offset: queue.min_offset(),
            status: Status::from_code(queue.status()),
            records,
        });
    }
    match run.next() {
        None => Ok(Reply::Fetched(queues)),
        Some(_) => violation("a fetch answer with more records than it says"),
    }
}

fn received(next: Result<record::RecordRef<'_>, record::RecordError>) -> Verdict<Received> {
    let record = match next {
        Ok(record) => record,
        Err(error) => return violation(format!("a consumer got a broken run: {error}")),
    };
    if let Err(error) = record.check_header().and_then(|()| record.check_payload()) {
        return violation(format!("a consumer got a broken record: {error}"));
    }
    if let Err(error) = record.message() {
        return violation(format!("a consumer got a message that does not verify: {error}"));
    }
    let header = record.header;
    if header.prefix.kind != record::Kind::Message as u8 {
        return violation(format!("a consumer got a record of kind {}", header.prefix.kind));
    }
    Ok(Received {
        queue: (header.topic.get(), header.queue.get()),
        offset: header.offset.get(),
        position: header.position.get(),
        message_id: header.message_id,
        payload_checksum: crc32fast::hash(record.payload),
        payload_bytes: record.payload.len() as u32,
        tag_hash: header.tag_hash.get(),
        born_ms: header.born_ms.get(),
    })
}
