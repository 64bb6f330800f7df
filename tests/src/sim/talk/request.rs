//! Requests, as clients of any language build them.

use super::{Entry, Intent, PopOf, QueueKey, ReceiptOf, Request, Timer, Wanted, Wish};
use ringmq_schema::admin::{self, GroupSettingsArgs, TopicArgs};
use ringmq_schema::build::{FrameBuilder, MessageSpec, RecordBuilder};
use ringmq_schema::consume::{self, MemberId};
use ringmq_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringmq_schema::frame::FLAG_ONE_WAY;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::pop as wire_pop;
use ringmq_schema::produce::{self, Flush};
use ringmq_schema::retry::{RetryLater, RetryLaterArgs};
use ringmq_schema::timer::{Recall, RecallArgs};

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

    /// A delayed message is taken back.
    pub fn recall(&mut self, timer: &Timer) -> Request {
        let intent = Intent::Recall { index: timer.index };
        let id = u128::from_be_bytes(timer.message_id);
        let args = RecallArgs {
            topic: timer.queue.0,
            queue: timer.queue.1,
            position: timer.position,
            due_ms: timer.due_ms,
            id_high: (id >> 64) as u64,
            id_low: id as u64,
        };
        self.request(Opcode::Recall, timer.shard, false, &[], intent, |fbb| {
            Recall::create(fbb, &args)
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
        // What could not be read is asked for again, sooner or later in this way.
        let correlation = self.correlation + 1;
        self.request(Opcode::Fetch, shard, false, &[], intent, |fbb| {
            let mut wishes = Vec::new();
            let mut queues = Vec::new();
            for one in &wanted {
                let filter = one.wish.map_or(0, |wish| {
                    wishes.push(wish);
                    wishes.len() as u16
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
            let filters: Vec<_> = wishes.iter().map(|wish| filter_of(fbb, wish)).collect();
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
                checked: correlation.is_multiple_of(4),
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

    /// A message is sent back.
    pub fn retry(&mut self, shard: u16, intent: Intent, back: &Back) -> Request {
        let Intent::Retry { group, queue, generation, offset, message_id } = intent else {
            unreachable!("only what is sent back is sent so")
        };
        let mut run = Vec::new();
        let spec = MessageSpec { body: b"back", message_id, ..MessageSpec::default() };
        let built = RecordBuilder::new().append(&mut run, queue.0, queue.1, &spec);
        built.expect("within the limits");
        let args = RetryLaterArgs {
            group,
            member_high: (back.member >> 64) as u64,
            member_low: back.member as u64,
            generation,
            topic: queue.0,
            queue: queue.1,
            offset,
            attempts: back.attempts,
            delay_ms: back.delay_ms,
            dead_letter: back.dead_letter,
        };
        self.request(Opcode::RetryLater, shard, false, &run, intent, |fbb| {
            RetryLater::create(fbb, &args)
        })
    }

    /// A topic, number `topic` of the journal.
    pub fn create(
        &mut self,
        topic: usize,
        name: &str,
        queues: u32,
        flush: u8,
        retention_bytes: u64,
        is_fifo: bool,
    ) -> Request {
        self.request(Opcode::CreateTopic, 0, false, &[], Intent::Create { topic }, |fbb| {
            let name = Some(fbb.create_string(name));
            let fifo = admin::MessageType::Fifo;
            let args = TopicArgs {
                name,
                read_queues: queues,
                write_queues: queues,
                permission: 6,
                message_type: if is_fifo { fifo } else { admin::MessageType::Unspecified },
                flush,
                retention_bytes,
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

    /// A group, made when it is not there. Its messages are handed out so often at most.
    pub fn group(&mut self, name: &str, max_attempts: u16) -> Request {
        self.request(Opcode::CreateGroup, 0, false, &[], Intent::Group, |fbb| {
            let name = Some(fbb.create_string(name));
            let settings = GroupSettingsArgs { max_attempts, ..GroupSettingsArgs::default() };
            let settings = Some(admin::GroupSettings::create(fbb, &settings));
            let args = admin::CreateGroupArgs { name, settings };
            admin::CreateGroup::create(fbb, &args)
        })
    }

    /// Messages one by one, from the first on.
    pub fn pop(&mut self, shard: u16, pop: PopOf) -> Request {
        self.request(Opcode::Pop, shard, false, &[], Intent::Pop(pop), |fbb| {
            let PopOf { group, topic, max_records, max_bytes, invisible_ms, wait_ms, wish } = pop;
            let (mut tags, mut sql) = (None, None);
            match wish {
                Some(Wish::Tag(tag)) => tags = Some(fbb.create_vector(&[tag])),
                Some(wish) => sql = wish.sql().map(|text| fbb.create_string(&text)),
                None => {}
            }
            let args = wire_pop::PopArgs {
                group,
                topic,
                start: -1,
                max_records,
                max_bytes,
                invisible_ms,
                wait_ms,
                tags,
                sql,
                ..wire_pop::PopArgs::default()
            };
            wire_pop::Pop::create(fbb, &args)
        })
    }

    /// They are done.
    pub fn ack(&mut self, shard: u16, group: u32, receipts: Vec<ReceiptOf>) -> Request {
        let wire: Vec<wire_pop::Receipt> = receipts.iter().map(receipt).collect();
        self.request(Opcode::Ack, shard, false, &[], Intent::Ack { group, receipts }, |fbb| {
            let receipts = Some(fbb.create_vector(&wire));
            wire_pop::Ack::create(fbb, &wire_pop::AckArgs { group, receipts })
        })
    }

    /// They are to come back after another time.
    pub fn change(&mut self, shard: u16, group: u32, receipts: Vec<ReceiptOf>, ms: u32) -> Request {
        let wire: Vec<wire_pop::Receipt> = receipts.iter().map(receipt).collect();
        let intent = Intent::Change { group, receipts, ms };
        self.request(Opcode::ChangeInvisible, shard, false, &[], intent, |fbb| {
            let receipts = Some(fbb.create_vector(&wire));
            let args = wire_pop::ChangeInvisibleArgs { group, receipts, invisible_ms: ms };
            wire_pop::ChangeInvisible::create(fbb, &args)
        })
    }

    /// Up to where a group that pops is done.
    pub fn pops_done(
        &mut self,
        shard: u16,
        group: u32,
        wish: Option<Wish>,
        queues: Vec<QueueKey>,
    ) -> Request {
        let mut request = self.offsets(shard, group, queues.clone());
        request.intent = Intent::PopsDone { group, wish, queues };
        request
    }

    /// Figures.
    pub fn figures(&mut self, shard: u16) -> Request {
        self.request(Opcode::QueryShard, shard, false, &[], Intent::Idle, |fbb| {
            admin::QueryShard::create(fbb, &admin::QueryShardArgs {})
        })
    }
}

/// What is said of a message that is sent back.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Back {
    pub member: u128,
    pub attempts: u16,
    pub delay_ms: u64,
    pub dead_letter: bool,
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

fn filter_of(
    fbb: &mut FlatBufferBuilder<'static>,
    wish: &Wish,
) -> WIPOffset<consume::TagFilter<'static>> {
    let (mut hashes, mut sql) = (None, None);
    match wish {
        Wish::Tag(tag) => hashes = Some(fbb.create_vector(&[*tag])),
        wish => sql = wish.sql().map(|text| fbb.create_string(&text)),
    }
    consume::TagFilter::create(fbb, &consume::TagFilterArgs { hashes, sql })
}

fn member_id(member: u128) -> MemberId {
    MemberId::new((member >> 64) as u64, member as u64)
}

fn receipt(receipt: &ReceiptOf) -> wire_pop::Receipt {
    let (topic, queue) = receipt.queue;
    wire_pop::Receipt::new(topic, queue, receipt.offset, receipt.nonce)
}

fn commit_entry(entry: &Entry) -> consume::CommitEntry {
    let (topic, queue) = entry.queue;
    consume::CommitEntry::new(topic, queue, entry.offset, entry.generation, 0, 0)
}
