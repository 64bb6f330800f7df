//! Messages handed out one by one: receipts, times, message groups, and what a restart knows of them.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

mod desk;

use desk::{Answer, Desk, Files, config, numbers, run};
use ringmq_core::{Input, ShardConfig};
use ringmq_schema::admin::{
    AlterTopic, AlterTopicArgs, CreateGroup, CreateGroupArgs, GroupAnswer, MessageType, Topic,
    TopicArgs,
};
use ringmq_schema::build::{MessageSpec, RecordBuilder};
use ringmq_schema::consume::{
    CommitEntry, FetchQueue, QueryOffsets, QueryOffsetsAnswer, QueryOffsetsArgs, QueueRef,
    ResetOffsets, ResetOffsetsArgs,
};
use ringmq_schema::error::Status;
use ringmq_schema::frame::read_table;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement::mix;
use ringmq_schema::pop::{
    Ack, AckAnswer, AckArgs, ChangeInvisible, ChangeInvisibleAnswer, ChangeInvisibleArgs, Changed,
    Pop, PopAnswer, PopArgs, Popped, Receipt,
};
use ringmq_schema::produce::Flush;
use ringmq_schema::record::tag_hash;
use std::collections::BTreeMap;

const FIRST: i64 = -1;
const LAST: i64 = -2;

fn group(desk: &mut Desk, name: &str) -> u32 {
    let answer = desk.call(Opcode::CreateGroup, &[], |fbb| {
        let name = Some(fbb.create_string(name));
        CreateGroup::create(fbb, &CreateGroupArgs { name, settings: None })
    });
    read_table::<GroupAnswer<'_>>(&answer.table).unwrap().group().unwrap().id()
}

/// From here on the topic is of type FIFO.
fn make_fifo(desk: &mut Desk, name: &str) {
    let answer = desk.call(Opcode::AlterTopic, &[], |fbb| {
        let args = TopicArgs {
            name: Some(fbb.create_string(name)),
            read_queues: 1,
            write_queues: 1,
            permission: 6,
            message_type: MessageType::Fifo,
            ..TopicArgs::default()
        };
        let topic = Some(Topic::create(fbb, &args));
        AlterTopic::create(fbb, &AlterTopicArgs { topic })
    });
    assert_eq!(answer.status, Status::Ok);
}

#[derive(Clone, Copy)]
struct Asked<'a> {
    group: u32,
    topic: u32,
    max: u32,
    invisible_ms: u32,
    wait_ms: u32,
    start: i64,
    tags: &'a [u32],
}

impl Asked<'_> {
    fn new(group: u32, topic: u32) -> Asked<'static> {
        let (max, invisible_ms, wait_ms) = (32, 30_000, 0);
        Asked { group, topic, max, invisible_ms, wait_ms, start: FIRST, tags: &[] }
    }

    fn send(self, desk: &mut Desk) -> u64 {
        desk.send(Opcode::Pop, &[], |fbb| {
            let tags = Some(fbb.create_vector(self.tags));
            let args = PopArgs {
                group: self.group,
                topic: self.topic,
                start: self.start,
                tags,
                max_records: self.max,
                invisible_ms: self.invisible_ms,
                wait_ms: self.wait_ms,
                ..PopArgs::default()
            };
            Pop::create(fbb, &args)
        })
    }

    fn take(self, desk: &mut Desk) -> Vec<(u64, Popped)> {
        let sent = self.send(desk);
        desk.handle(Input::TurnEnd);
        let answer = desk.take(sent).expect("answered");
        popped(&answer)
    }
}

/// Body numbers and receipts of an answer.
fn popped(answer: &Answer) -> Vec<(u64, Popped)> {
    assert_eq!(answer.status, Status::Ok);
    let table = read_table::<PopAnswer<'_>>(&answer.table).unwrap();
    let records: Vec<Popped> = table.records().unwrap().iter().copied().collect();
    let numbers = numbers(&answer.run);
    assert_eq!(numbers.len(), records.len(), "one entry for each record");
    numbers.into_iter().zip(records).collect()
}

fn receipts(topic: u32, popped: &[(u64, Popped)]) -> Vec<Receipt> {
    let receipt = |(_, p): &(u64, Popped)| Receipt::new(topic, p.queue(), p.offset(), p.nonce());
    popped.iter().map(receipt).collect()
}

fn ack(desk: &mut Desk, group: u32, receipts: &[Receipt]) -> Vec<Status> {
    let answer = desk.call(Opcode::Ack, &[], |fbb| {
        let receipts = Some(fbb.create_vector(receipts));
        Ack::create(fbb, &AckArgs { group, receipts })
    });
    assert_eq!(answer.status, Status::Ok);
    let table = read_table::<AckAnswer<'_>>(&answer.table).unwrap();
    table.statuses().unwrap().iter().map(Status::from_code).collect()
}

fn change(desk: &mut Desk, group: u32, receipts: &[Receipt], invisible_ms: u32) -> Vec<Changed> {
    let answer = desk.call(Opcode::ChangeInvisible, &[], |fbb| {
        let receipts = Some(fbb.create_vector(receipts));
        ChangeInvisible::create(fbb, &ChangeInvisibleArgs { group, receipts, invisible_ms })
    });
    assert_eq!(answer.status, Status::Ok);
    let table = read_table::<ChangeInvisibleAnswer<'_>>(&answer.table).unwrap();
    table.receipts().unwrap().iter().copied().collect()
}

fn produce(desk: &mut Desk, topic: u32, first: u64, count: u64) {
    let run = run(topic, 0, first, count, 100);
    let sent = desk.produce(topic, 0, &run, count as u32, Flush::Sync);
    desk.handle(Input::TurnEnd);
    assert_eq!(desk.take(sent).unwrap().status, Status::Ok);
}

fn committed(desk: &mut Desk, group: u32, topic: u32) -> i64 {
    let answer = desk.call(Opcode::QueryOffsets, &[], |fbb| {
        let queues = Some(fbb.create_vector(&[QueueRef::new(topic, 0)]));
        QueryOffsets::create(fbb, &QueryOffsetsArgs { group, queues })
    });
    let table = read_table::<QueryOffsetsAnswer<'_>>(&answer.table).unwrap();
    table.queues().unwrap().get(0).committed()
}

fn attempts(popped: &[(u64, Popped)]) -> Vec<(u64, u16)> {
    popped.iter().map(|(number, p)| (*number, p.attempt())).collect()
}

#[test]
fn what_is_not_acknowledged_comes_back_with_the_next_attempt_and_an_old_receipt_is_refused() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let group = group(&mut desk, "billing");
    produce(&mut desk, topic, 0, 4);
    let ask = Asked::new(group, topic);
    let first = ask.take(&mut desk);
    assert_eq!(attempts(&first), [(0, 1), (1, 1), (2, 1), (3, 1)]);
    assert!(ask.take(&mut desk).is_empty(), "all of them are in somebody's hands");
    let receipts = receipts(topic, &first);
    assert_eq!(ack(&mut desk, group, &receipts[..1]), [Status::Ok]);
    assert_eq!(ack(&mut desk, group, &receipts[..1]), [Status::BadReceipt], "once");
    assert_eq!(committed(&mut desk, group, topic), 1);
    desk.advance(29_999);
    assert!(ask.take(&mut desk).is_empty());
    desk.advance(1);
    // Its time is over, but nobody else has it.
    assert_eq!(ack(&mut desk, group, &receipts[2..3]), [Status::Ok]);
    let second = ask.take(&mut desk);
    assert_eq!(attempts(&second), [(1, 2), (3, 2)]);
    assert_eq!(ack(&mut desk, group, &receipts[1..]), [Status::BadReceipt; 3]);
    let renewed = self::receipts(topic, &second);
    assert_eq!(ack(&mut desk, group, &renewed), [Status::Ok; 2]);
    assert_eq!(committed(&mut desk, group, topic), 4);
    desk.advance(60_000);
    assert!(ask.take(&mut desk).is_empty());
    assert_eq!(desk.shard.figures().popped_in_flight, 0);
}

#[test]
fn an_invisible_time_can_be_extended_and_cut_short() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let group = group(&mut desk, "billing");
    produce(&mut desk, topic, 0, 2);
    let ask = Asked::new(group, topic);
    let old = receipts(topic, &ask.take(&mut desk));
    desk.advance(20_000);
    let extended = change(&mut desk, group, &old[..1], 30_000);
    let shortened = change(&mut desk, group, &old[1..], 0);
    assert_eq!(shortened[0].status(), 0);
    assert_eq!(attempts(&ask.take(&mut desk)), [(1, 2)], "the one that is wanted again at once");
    desk.advance(29_000);
    assert!(ask.take(&mut desk).is_empty(), "49 s after it was handed out for 30");
    assert_eq!(ack(&mut desk, group, &old[..1]), [Status::BadReceipt], "it has a new receipt");
    let receipt = Receipt::new(topic, 0, 0, extended[0].nonce());
    assert_eq!(ack(&mut desk, group, &[receipt]), [Status::Ok]);
    let refused = change(&mut desk, group, &[receipt], 1_000);
    assert_eq!(Status::from_code(refused[0].status()), Status::BadReceipt);
}

#[test]
fn a_waiting_pop_gets_new_messages_and_those_that_come_back() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let group = group(&mut desk, "billing");
    let ask = Asked { wait_ms: 40_000, invisible_ms: 10_000, ..Asked::new(group, topic) };
    let waiting = ask.send(&mut desk);
    desk.handle(Input::TurnEnd);
    assert!(desk.take(waiting).is_none());
    produce(&mut desk, topic, 7, 1);
    let first = popped(&desk.take(waiting).expect("the message came"));
    assert_eq!(attempts(&first), [(7, 1)]);
    let waiting = ask.send(&mut desk);
    desk.handle(Input::TurnEnd);
    desk.advance(9_999);
    assert!(desk.take(waiting).is_none());
    let due = desk.shard.next_wake().unwrap();
    assert!(due <= desk.now.mono_us + 1_000, "it asks to be woken in time");
    desk.advance(1);
    assert_eq!(attempts(&popped(&desk.take(waiting).expect("it came back"))), [(7, 2)]);
    let waiting = ask.send(&mut desk);
    desk.handle(Input::TurnEnd);
    desk.handle(Input::ConnectionClosed { connection: 9 });
    desk.advance(10_001);
    assert!(desk.take(waiting).is_none());
    assert_eq!(desk.shard.figures().waiting_pops, 0);
    assert_eq!(attempts(&Asked::new(group, topic).take(&mut desk)), [(7, 3)]);
}

#[test]
fn nothing_is_handed_out_before_its_record_is_written() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let group = group(&mut desk, "billing");
    produce(&mut desk, topic, 0, 1);
    desk.hold_writes = true;
    let sent = Asked::new(group, topic).send(&mut desk);
    desk.handle(Input::TurnEnd);
    assert!(desk.take(sent).is_none());
    desk.finish_writes();
    assert_eq!(popped(&desk.take(sent).unwrap()).len(), 1);
}

/// Push consumers wait for one write of the device, and so do those that pop.
#[test]
fn a_waiting_pop_gets_a_message_with_the_write_that_stores_it() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let group = group(&mut desk, "billing");
    let ask = Asked { wait_ms: 40_000, max: 3, ..Asked::new(group, topic) };
    let (waiting, second) = (ask.send(&mut desk), ask.send(&mut desk));
    desk.handle(Input::TurnEnd);
    desk.hold_writes = true;
    for (flush, first, had) in [(Flush::Sync, 0, 0), (Flush::Async, 5, 2)] {
        desk.writes.clear();
        let (ask, other) = match flush {
            Flush::Sync => (waiting, second),
            _ => (ask.send(&mut desk), ask.send(&mut desk)),
        };
        let sent = desk.produce(topic, 0, &run(topic, 0, first, 5, 100), 5, flush);
        desk.handle(Input::TurnEnd);
        assert_eq!(desk.writes.len(), 1, "messages and hand-outs go together");
        assert!(desk.take(ask).is_none(), "nothing is seen before it is durable");
        assert_eq!(desk.shard.figures().popped, first);
        // A crash now takes both, or neither.
        let files = desk.files.deep_copy();
        desk.finish_writes();
        assert_eq!(desk.take(sent).unwrap().status, Status::Ok);
        let got = popped(&desk.take(ask).expect("no further write is needed"));
        let expected: Vec<(u64, u16)> = (first..first + 3).map(|number| (number, 1)).collect();
        assert_eq!(attempts(&got), expected);
        assert_eq!(popped(&desk.take(other).expect("the rest")).len(), 2);
        desk.hold_writes = false;
        let mut again = Desk::open(config(), files);
        assert!(Asked::new(group, topic).take(&mut again).is_empty(), "all are in hands");
        again.advance(30_000);
        assert_eq!(Asked::new(group, topic).take(&mut again).len(), had + 5);
        ack(&mut desk, group, &receipts(topic, &got));
        desk.hold_writes = true;
    }
}

#[test]
fn a_group_begins_where_it_says_and_again_where_it_is_set_back() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let (late, early) = (group(&mut desk, "late"), group(&mut desk, "early"));
    produce(&mut desk, topic, 0, 3);
    // Nothing is asked for but to begin.
    let begin = Asked { start: LAST, max: 0, ..Asked::new(late, topic) };
    assert!(begin.take(&mut desk).is_empty());
    let mut desk = Desk::open(config(), desk.files.deep_copy());
    produce(&mut desk, topic, 3, 1);
    let ask = Asked { start: LAST, ..Asked::new(late, topic) };
    let tail = ask.take(&mut desk);
    assert_eq!(attempts(&tail), [(3, 1)]);
    assert_eq!(Asked::new(early, topic).take(&mut desk).len(), 4);
    let answer = desk.call(Opcode::ResetOffsets, &[], |fbb| {
        let entries = Some(fbb.create_vector(&[CommitEntry::new(topic, 0, 2, 0, 0, 0)]));
        ResetOffsets::create(fbb, &ResetOffsetsArgs { group: late, entries })
    });
    assert_eq!(answer.status, Status::Ok);
    assert_eq!(ack(&mut desk, late, &receipts(topic, &tail)), [Status::BadReceipt]);
    assert_eq!(attempts(&ask.take(&mut desk)), [(2, 1), (3, 1)]);
}

#[test]
fn what_a_filter_leaves_out_is_done() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let group = group(&mut desk, "billing");
    produce(&mut desk, topic, 0, 100);
    let odd = [tag_hash("odd")];
    let ask = Asked { tags: &odd, ..Asked::new(group, topic) };
    let mut seen = Vec::new();
    loop {
        let popped = ask.take(&mut desk);
        if popped.is_empty() {
            break;
        }
        assert!(popped.len() <= 32);
        seen.extend(popped.iter().map(|(number, _)| *number));
        ack(&mut desk, group, &receipts(topic, &popped));
    }
    assert_eq!(seen, (0..100).filter(|n| n % 2 == 1).collect::<Vec<u64>>());
    assert_eq!(committed(&mut desk, group, topic), 100);
}

/// promise: bounded
#[test]
fn a_group_that_acknowledges_nothing_gets_no_more_than_its_bound() {
    let config = ShardConfig { pop_in_flight: 50, ..config() };
    let mut desk = Desk::open(config, Files::default());
    let topic = desk.create_topic("orders", 1);
    let group = group(&mut desk, "billing");
    produce(&mut desk, topic, 0, 100);
    let ask = Asked::new(group, topic);
    let (first, second) = (ask.take(&mut desk), ask.take(&mut desk));
    assert_eq!((first.len(), second.len()), (32, 18));
    let waiting = Asked { wait_ms: 1_000, ..ask }.send(&mut desk);
    desk.handle(Input::TurnEnd);
    assert!(desk.take(waiting).is_none());
    ack(&mut desk, group, &receipts(topic, &first[..3]));
    assert_eq!(popped(&desk.take(waiting).expect("there is room")).len(), 3);
    assert!(ask.take(&mut desk).is_empty());
}

fn grouped(topic: u32, messages: &[(u64, &str)]) -> Vec<u8> {
    let mut builder = RecordBuilder::new();
    let mut out = Vec::new();
    for (number, group) in messages {
        let body = number.to_le_bytes();
        let group = Some(*group).filter(|group| !group.is_empty());
        let spec = MessageSpec { body: &body, group, ..MessageSpec::default() };
        builder.append(&mut out, topic, 0, &spec).unwrap();
    }
    out
}

/// promise: fifo
#[test]
fn of_a_message_group_the_next_comes_only_when_the_one_before_is_acknowledged() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let group = group(&mut desk, "billing");
    let messages = [(0, "a"), (1, "a"), (2, "b"), (3, ""), (4, "b"), (5, ""), (6, "a"), (7, "c")];
    let run = grouped(topic, &messages);
    desk.produce(topic, 0, &run, messages.len() as u32, Flush::Sync);
    desk.handle(Input::TurnEnd);
    // Then no more come without a message group, but those that are there are in the order of the queue.
    make_fifo(&mut desk, "orders");
    let sent = desk.produce(topic, 0, &run, messages.len() as u32, Flush::Sync);
    desk.handle(Input::TurnEnd);
    assert_eq!(desk.take(sent).unwrap().status, Status::WrongMessageType);
    let ask = Asked::new(group, topic);
    let first = ask.take(&mut desk);
    assert_eq!(attempts(&first), [(0, 1), (2, 1), (3, 1), (7, 1)]);
    assert!(ask.take(&mut desk).is_empty());
    // A restart knows who waits for whom.
    let mut desk = Desk::open(config(), desk.files.deep_copy());
    let waiting = Asked { wait_ms: 20_000, ..ask }.send(&mut desk);
    desk.handle(Input::TurnEnd);
    assert!(desk.take(waiting).is_none());
    ack(&mut desk, group, &receipts(topic, &first[..1]));
    let second = popped(&desk.take(waiting).expect("the next of a"));
    assert_eq!(attempts(&second), [(1, 1)]);
    desk.advance(30_000);
    let third = ask.take(&mut desk);
    let mut again = attempts(&third);
    again.sort_unstable();
    assert_eq!(again, [(1, 2), (2, 2), (3, 2), (7, 2)], "the same ones, not those behind them");
    ack(&mut desk, group, &receipts(topic, &third));
    assert_eq!(attempts(&ask.take(&mut desk)), [(4, 1), (5, 1), (6, 1)]);
}

#[test]
fn messages_that_are_on_disk_only_are_popped_too() {
    let config = || ShardConfig {
        tail_cache_bytes: 0,
        read_cache_bytes: 0,
        fetch_bytes: 1 << 20,
        ..config()
    };
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 2);
    let group = group(&mut desk, "billing");
    for n in 0..300u64 {
        let queue = (n % 2) as u32;
        desk.produce(topic, queue, &run(topic, queue, n * 10, 10, 1000), 10, Flush::Sync);
        desk.handle(Input::TurnEnd);
    }
    desk.answers.clear();
    let mut desk = Desk::open(config(), desk.files.deep_copy());
    let mut seen = Vec::new();
    let ask = Asked::new(group, topic);
    for _ in 0..300 {
        let popped = ask.take(&mut desk);
        if popped.is_empty() {
            break;
        }
        seen.extend(popped.iter().map(|(number, _)| *number));
        assert!(ack(&mut desk, group, &receipts(topic, &popped)).iter().all(|s| *s == Status::Ok));
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..3000).collect::<Vec<u64>>());
    assert!(desk.reads > 0 && desk.index_reads > 0);
}

#[test]
fn a_message_that_cannot_be_read_is_said_and_does_not_stop_another_queue() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 2);
    let group = group(&mut desk, "billing");
    for queue in 0..2 {
        let run = run(topic, queue, u64::from(queue), 1, 300_000);
        desk.produce(topic, queue, &run, 1, Flush::Sync);
        desk.handle(Input::TurnEnd);
    }
    let mut desk = Desk::open(config(), desk.files.deep_copy());
    desk.unreadable.push(0..200_000);
    let ask = Asked::new(group, topic);
    let readable = ask.take(&mut desk);
    assert_eq!(attempts(&readable), [(1, 1)]);
    let answer = desk.call(Opcode::Pop, &[], |fbb| {
        let queue = ringmq_schema::pop::PopQueue::new(0, 0, FIRST);
        let queues = Some(fbb.create_vector(&[queue]));
        Pop::create(fbb, &PopArgs { group, topic, queues, ..PopArgs::default() })
    });
    assert_eq!(answer.status, Status::ReadFailed);
    desk.unreadable.clear();
    assert_eq!(attempts(&ask.take(&mut desk)), [(0, 1)]);
}

#[test]
fn after_sixteen_attempts_a_message_goes_to_the_dead_letters_with_where_it_was() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let group = group(&mut desk, "billing");
    produce(&mut desk, topic, 0, 2);
    let ask = Asked { max: 1, ..Asked::new(group, topic) };
    let mut last = Vec::new();
    for attempt in 1..=16u16 {
        last = ask.take(&mut desk);
        assert_eq!(attempts(&last), [(0, attempt)]);
        let changed = change(&mut desk, group, &receipts(topic, &last), 0);
        assert_eq!(changed[0].status(), 0);
    }
    assert_eq!(attempts(&ask.take(&mut desk)), [(1, 1)], "it is in nobody's way");
    assert_eq!(ack(&mut desk, group, &receipts(topic, &last)), [Status::BadReceipt]);
    let figures = desk.shard.figures();
    assert_eq!((figures.popped_kept_back, figures.popped_in_flight), (1, 2), "not lost");
    assert_eq!(committed(&mut desk, group, topic), 0);
    // Its topic is there now.
    desk.advance(1_000);
    assert!(ask.take(&mut desk).is_empty());
    let figures = desk.shard.figures();
    assert_eq!((figures.dead_letters, figures.popped_in_flight), (1, 1));
    assert_eq!(committed(&mut desk, group, topic), 1);
    // The letters, as anybody reads them.
    let letters = topic + 1;
    let fetch = desk.fetch(&[FetchQueue::new(letters, 0, 0, 0, 0, 0)], 0);
    let answer = desk.take(fetch).unwrap();
    let found = ringmq_schema::record::records(&answer.run).next().unwrap().unwrap();
    found.check_header().unwrap();
    found.check_payload().unwrap();
    let message = found.message().unwrap();
    assert_eq!(found.header.attempts.get(), 16);
    assert_eq!(
        (message.origin_topic(), message.origin_queue(), message.origin_offset()),
        (Some("orders"), 0, 0)
    );
    assert_eq!(message.body().unwrap().bytes()[..8], 0u64.to_le_bytes());
    assert!(message.last_error().unwrap().contains("16 times"));
}

#[test]
fn a_deleted_topic_takes_what_was_popped_with_it() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let group = group(&mut desk, "billing");
    produce(&mut desk, topic, 0, 5);
    let ask = Asked::new(group, topic);
    let popped = ask.take(&mut desk);
    let waiting = Asked { wait_ms: 5_000, ..ask }.send(&mut desk);
    desk.handle(Input::TurnEnd);
    desk.delete_topic("orders");
    desk.handle(Input::Tick);
    assert_eq!(desk.take(waiting).expect("told").status, Status::UnknownTopic);
    let statuses = ack(&mut desk, group, &receipts(topic, &popped));
    assert_eq!(statuses, [Status::UnknownTopic; 5]);
    assert_eq!(desk.shard.figures().popped_in_flight, 0);
    let desk = Desk::open(config(), desk.files.deep_copy());
    assert_eq!(desk.shard.figures().popped_in_flight, 0);
}

/// What a group of members that do as they please must see.
#[derive(Default)]
struct Oracle {
    /// By offset: the receipt that counts, and until when nobody else may have it.
    held: BTreeMap<u64, (Popped, i64)>,
    old: Vec<(u64, u64)>,
    done: BTreeMap<u64, bool>,
}

impl Oracle {
    fn handed_out(&mut self, popped: &[(u64, Popped)], now_ms: i64, context: &str) {
        for (number, found) in popped {
            assert_eq!(*number, found.offset(), "{context}");
            assert!(!self.done.contains_key(number), "{context}: {number} was acknowledged");
            let mut attempt = 0;
            if let Some((before, until_ms)) = self.held.get(number) {
                assert!(*until_ms <= now_ms, "{context}: {number} is in somebody's hands");
                attempt = before.attempt();
                self.old.push((*number, before.nonce()));
            }
            assert_eq!(found.attempt(), attempt + 1, "{context}");
            self.held.insert(*number, (*found, found.until_ms()));
        }
    }
}

/// Random members, times, kills at any point, and snapshots in between.
#[test]
fn whatever_happens_nothing_is_lost_or_in_two_hands() {
    for seed in 0..24u64 {
        let config = || ShardConfig {
            snapshot_bytes: 20 << 10,
            snapshot_pause_ms: 0,
            segment_bytes: 256 << 10,
            unit_bytes: 64 << 10,
            small_unit_bytes: 16 << 10,
            tail_cache_bytes: 64 << 10,
            ..config()
        };
        let mut state = seed << 32;
        let mut below = |end: u64| {
            state += 1;
            mix(state) % end
        };
        let mut desk = Desk::open(config(), Files::default());
        let topic = desk.create_topic("orders", 1);
        let group = group(&mut desk, "billing");
        let mut oracle = Oracle::default();
        let (mut sent, mut snapshots) = (0, 0);
        for step in 0..400 {
            let context = format!("seed {seed}, step {step}");
            let now_ms = desk.now.wall_ms;
            match below(12) {
                0..=2 => {
                    let count = below(8) + 1;
                    produce(&mut desk, topic, sent, count);
                    sent += count;
                }
                3..=5 => {
                    let max = below(20) as u32 + 1;
                    let ask = Asked { max, invisible_ms: 10_000, ..Asked::new(group, topic) };
                    oracle.handed_out(&ask.take(&mut desk), now_ms, &context);
                }
                6..=7 => {
                    let at = |(offset, (popped, _)): (&u64, &(Popped, i64))| {
                        Receipt::new(topic, 0, *offset, popped.nonce())
                    };
                    let mine: Vec<Receipt> =
                        oracle.held.iter().map(at).filter(|_| below(3) == 0).collect();
                    if mine.is_empty() {
                        continue;
                    }
                    let statuses = ack(&mut desk, group, &mine);
                    assert!(statuses.iter().all(|status| *status == Status::Ok), "{context}");
                    for receipt in mine {
                        oracle.held.remove(&receipt.offset());
                        oracle.done.insert(receipt.offset(), true);
                        oracle.old.push((receipt.offset(), receipt.nonce()));
                    }
                }
                8 if !oracle.old.is_empty() => {
                    let (offset, nonce) = oracle.old[below(oracle.old.len() as u64) as usize];
                    let old = Receipt::new(topic, 0, offset, nonce);
                    assert_eq!(ack(&mut desk, group, &[old]), [Status::BadReceipt], "{context}");
                }
                9 if !oracle.held.is_empty() => {
                    let nth = below(oracle.held.len() as u64) as usize;
                    let (&offset, &(popped, _)) = oracle.held.iter().nth(nth).unwrap();
                    let receipt = Receipt::new(topic, 0, offset, popped.nonce());
                    let changed = change(&mut desk, group, &[receipt], below(20_000) as u32)[0];
                    assert_eq!(changed.status(), 0, "{context}");
                    let renewed = Popped::new(
                        offset,
                        changed.nonce(),
                        changed.until_ms(),
                        0,
                        popped.attempt(),
                        0,
                    );
                    oracle.held.insert(offset, (renewed, changed.until_ms()));
                    oracle.old.push((offset, popped.nonce()));
                }
                10 => {
                    desk.advance(below(15_000));
                }
                _ => {
                    snapshots += desk.shard.figures().snapshots;
                    desk = Desk::open_at(config(), desk.files.deep_copy(), desk.now);
                }
            }
        }
        // In the end everything is handed out and acknowledged.
        while (oracle.done.len() as u64) < sent {
            desk.advance(20_000);
            let popped = Asked::new(group, topic).take(&mut desk);
            assert!(!popped.is_empty(), "seed {seed}: {} of {sent} are done", oracle.done.len());
            oracle.handed_out(&popped, desk.now.wall_ms, "at the end");
            ack(&mut desk, group, &receipts(topic, &popped));
            oracle.done.extend(popped.iter().map(|(number, _)| (*number, true)));
            popped.iter().for_each(|(number, _)| _ = oracle.held.remove(number));
        }
        snapshots += desk.shard.figures().snapshots;
        assert!(snapshots > 0 || sent < 100, "seed {seed}");
    }
}
