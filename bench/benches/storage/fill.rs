//! Requests made before they are needed.

use ringmq_schema::admin::{CreateTopic, CreateTopicArgs, Topic, TopicArgs};
use ringmq_schema::build::{FrameBuilder, MessageSpec, RecordBuilder};
use ringmq_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::produce::{Flush, Produce, ProduceArgs};

/// A run of messages for a queue.
#[derive(Debug, Clone)]
pub struct Run {
    pub bytes: Vec<u8>,
    pub records: u32,
}

/// A run of `records` messages with bodies of `body_bytes`, and keys when `key` gives some.
pub fn run_of(
    (topic, queue): (u32, u32),
    records: u32,
    body_bytes: usize,
    key: impl Fn(u32) -> Option<String>,
) -> Run {
    let mut builder = RecordBuilder::new();
    let mut bytes = Vec::new();
    let body: Vec<u8> = (0..body_bytes).map(|at| (at * 31) as u8).collect();
    for number in 0..records {
        let key = key(number);
        let keys: Vec<&str> = key.iter().map(String::as_str).collect();
        let spec = MessageSpec { body: &body, keys: &keys, ..MessageSpec::default() };
        builder.append(&mut bytes, topic, queue, &spec).expect("within the protocol's limits");
    }
    Run { bytes, records }
}

/// As many messages as fit into `bytes`.
pub fn run_within(target: (u32, u32), bytes: usize, body_bytes: usize) -> Run {
    let one = run_of(target, 1, body_bytes, |_| None).bytes.len();
    run_of(target, (bytes / one).max(1) as u32, body_bytes, |_| None)
}

/// The table of a produce request.
pub fn produce_table(
    fbb: &mut FlatBufferBuilder<'static>,
    (topic, queue): (u32, u32),
    records: u32,
    flush: Flush,
) -> WIPOffset<Produce<'static>> {
    let args = ProduceArgs { topic, queue, records, flush, timeout_ms: 30_000 };
    Produce::create(fbb, &args)
}

/// A whole produce request.
pub fn produce_frame(target: (u32, u32), run: &Run, flush: Flush, correlation: u64) -> Vec<u8> {
    let mut frame = Vec::new();
    FrameBuilder::new().request(&mut frame, Opcode::Produce, 0, correlation, &run.bytes, |fbb| {
        produce_table(fbb, target, run.records, flush)
    });
    frame
}

/// The table of a request for a new topic.
pub fn topic_table(
    fbb: &mut FlatBufferBuilder<'static>,
    name: &str,
    queues: u32,
) -> WIPOffset<CreateTopic<'static>> {
    let name = Some(fbb.create_string(name));
    let args =
        TopicArgs { name, read_queues: queues, write_queues: queues, ..TopicArgs::default() };
    let topic = Some(Topic::create(fbb, &args));
    CreateTopic::create(fbb, &CreateTopicArgs { topic })
}

/// A whole request for a new topic.
pub fn topic_frame(name: &str, queues: u32) -> Vec<u8> {
    let mut frame = Vec::new();
    FrameBuilder::new()
        .request(&mut frame, Opcode::CreateTopic, 0, 1, &[], |fbb| topic_table(fbb, name, queues));
    frame
}
