//! Messages by key, id and position, offsets by time: from memory, from indexes, and when those are damaged.

#![allow(clippy::unwrap_used)] // A failure here is the test's.

mod desk;

use desk::{Answer, Desk, Files};
use ringmq_core::{DiskError, Input, ShardConfig};
use ringmq_schema::build::{MessageSpec, RecordBuilder};
use ringmq_schema::consume::{
    FindMessages, FindMessagesAnswer, FindMessagesArgs, GetMessage, GetMessageAnswer,
    GetMessageArgs, MessageId, OffsetAt, SearchOffsets, SearchOffsetsAnswer, SearchOffsetsArgs,
};
use ringmq_schema::error::Status;
use ringmq_schema::frame::read_table;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement::mix;
use ringmq_schema::produce::Flush;
use ringmq_schema::record::{key_hash, records};

const START_MS: i64 = 1_700_000_000_000;

/// Segments that are full after some 50 messages.
fn small() -> ShardConfig {
    ShardConfig {
        segment_bytes: 128 << 10,
        unit_bytes: 64 << 10,
        tail_cache_bytes: 32 << 10,
        index_cache_bytes: 0,
        ..ShardConfig::new(0, 1, 77)
    }
}

fn id(number: u64) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&mix(number + 1).to_be_bytes());
    id[8..].copy_from_slice(&number.to_be_bytes());
    id
}

/// What was sent.
#[derive(Debug, Clone)]
struct Sent {
    topic: u32,
    queue: u32,
    offset: u64,
    number: u64,
    keys: Vec<String>,
    store_ms: i64,
}

struct World {
    desk: Desk,
    sent: Vec<Sent>,
    topic: u32,
    other: u32,
}

const QUEUES: u32 = 3;

impl World {
    fn open(config: ShardConfig) -> World {
        let mut desk = Desk::open(config, Files::default());
        let topic = desk.create_topic("orders", QUEUES);
        let other = desk.create_topic("other", QUEUES);
        World { desk, sent: Vec::new(), topic, other }
    }

    fn send(&mut self, topic: u32, queue: u32, keys: &[&str]) {
        let number = self.sent.len() as u64;
        let mut body = number.to_le_bytes().to_vec();
        body.resize(1500, number as u8);
        let spec =
            MessageSpec { body: &body, keys, message_id: id(number), ..MessageSpec::default() };
        let mut run = Vec::new();
        RecordBuilder::new().append(&mut run, topic, queue, &spec).unwrap();
        let correlation = self.desk.produce(topic, queue, &run, 1, Flush::Sync);
        self.desk.handle(Input::TurnEnd);
        assert_eq!(self.desk.take(correlation).unwrap().status, Status::Ok);
        let mine = |sent: &&Sent| (sent.topic, sent.queue) == (topic, queue);
        self.sent.push(Sent {
            topic,
            queue,
            offset: self.sent.iter().filter(mine).count() as u64,
            number,
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            store_ms: self.desk.now.wall_ms,
        });
    }

    /// Messages over queues, topics and segments; one key in seven is `hot`, the clock jumps back now and then.
    fn fill(&mut self, count: u64) {
        for _ in 0..count {
            let n = self.sent.len() as u64;
            let topic = if n % 5 == 4 { self.other } else { self.topic };
            let own = format!("key-{n}");
            let shared = format!("shared-{}", n % 11);
            let keys = [own.as_str(), shared.as_str(), "hot"];
            let keys = if n % 7 == 0 { &keys[..] } else { &keys[..2] };
            self.send(topic, (mix(n) % u64::from(QUEUES)) as u32, keys);
            let step = if n % 41 == 40 { -30 } else { (mix(n) % 4) as i64 };
            self.desk.now.wall_ms += step;
        }
    }

    fn reopen(&mut self, config: ShardConfig) {
        self.desk = Desk::open(config, self.desk.files.clone());
    }

    fn find(&mut self, topic: u32, key: &str, window: (i64, i64), max: u32, before: u64) -> Answer {
        self.desk.call(Opcode::FindMessages, &[], |fbb| {
            let key = Some(fbb.create_string(key));
            let (begin_ms, end_ms) = window;
            let args = FindMessagesArgs { topic, key, begin_ms, end_ms, max_records: max, before };
            FindMessages::create(fbb, &args)
        })
    }

    /// Numbers of all that have the key, answer after answer; and what was unreadable.
    fn find_all(&mut self, topic: u32, key: &str, window: (i64, i64), max: u32) -> (Vec<u64>, u32) {
        let (mut found, mut before, mut unreadable) = (Vec::new(), 0, 0);
        loop {
            let answer = self.find(topic, key, window, max, before);
            assert_eq!(answer.status, Status::Ok);
            let table = read_table::<FindMessagesAnswer<'_>>(&answer.table).unwrap();
            let numbers = desk::numbers(&answer.run);
            assert_eq!(table.records() as usize, numbers.len());
            assert!(numbers.len() <= max as usize);
            found.extend(numbers);
            unreadable += table.unreadable();
            assert!(before == 0 || table.next() < before);
            before = table.next();
            if before == 0 {
                return (found, unreadable);
            }
        }
    }

    fn get(&mut self, id: Option<[u8; 16]>, position: u64, topic: u32, before: u64) -> Answer {
        self.desk.call(Opcode::GetMessage, &[], |fbb| {
            let id = id.map(|id| {
                let id = u128::from_be_bytes(id);
                MessageId::new((id >> 64) as u64, id as u64)
            });
            let args = GetMessageArgs { id: id.as_ref(), position, topic, before };
            GetMessage::create(fbb, &args)
        })
    }

    fn search(&mut self, wanted: &[OffsetAt]) -> Vec<(u64, Status)> {
        let answer = self.desk.call(Opcode::SearchOffsets, &[], |fbb| {
            let queues = Some(fbb.create_vector(wanted));
            SearchOffsets::create(fbb, &SearchOffsetsArgs { queues })
        });
        assert_eq!(answer.status, Status::Ok);
        let table = read_table::<SearchOffsetsAnswer<'_>>(&answer.table).unwrap();
        let found = table.queues().unwrap();
        assert_eq!(found.len(), wanted.len());
        found.iter().map(|f| (f.offset(), Status::from_code(f.status()))).collect()
    }

    fn numbers_of(&self, topic: u32, key: &str, window: (i64, i64)) -> Vec<u64> {
        let has = |sent: &&Sent| {
            sent.topic == topic
                && sent.keys.iter().any(|k| k == key)
                && (window.0..window.1).contains(&sent.store_ms)
        };
        self.sent.iter().filter(has).map(|sent| sent.number).rev().collect()
    }

    fn check_keys(&mut self) {
        let all = (0, i64::MAX);
        for topic in [self.topic, self.other] {
            for key in ["hot", "shared-3", "shared-10", "key-0", "key-4", "key-77", "nothing"] {
                for max in [1, 7, 64] {
                    let (found, unreadable) = self.find_all(topic, key, all, max);
                    assert_eq!(found, self.numbers_of(topic, key, all), "{key} {max}");
                    assert_eq!(unreadable, 0);
                }
            }
        }
        let ends: Vec<i64> = self.sent.iter().step_by(37).map(|sent| sent.store_ms).collect();
        for window in ends.windows(3).map(|ends| (ends[0], ends[2])) {
            let (found, _) = self.find_all(self.topic, "hot", window, 5);
            assert_eq!(found, self.numbers_of(self.topic, "hot", window), "{window:?}");
        }
    }

    fn check_ids(&mut self) {
        for sent in self.sent.clone().into_iter().step_by(13) {
            let answer = self.get(Some(id(sent.number)), 0, sent.topic, 0);
            assert_eq!(
                (answer.status, desk::numbers(&answer.run)),
                (Status::Ok, vec![sent.number])
            );
            let table = read_table::<GetMessageAnswer<'_>>(&answer.table).unwrap();
            let name = if sent.topic == self.topic { "orders" } else { "other" };
            assert_eq!((table.next(), table.topic()), (0, Some(name)));
            let header = *records(&answer.run).next().unwrap().unwrap().header;
            assert_eq!((header.queue.get(), header.offset.get()), (sent.queue, sent.offset));
            // By what it is stored as; and without saying the topic.
            let position = header.position.get();
            let again = self.get(None, position, 0, 0);
            assert_eq!((again.status, &again.run), (Status::Ok, &answer.run));
            for position in [position + 8, position + 1, position - 8] {
                assert_eq!(self.get(None, position, 0, 0).status, Status::NotFound);
            }
            let elsewhere = if sent.topic == self.topic { self.other } else { self.topic };
            assert_eq!(self.get(None, position, elsewhere, 0).status, Status::NotFound);
            assert_eq!(self.get(Some(id(sent.number)), 0, elsewhere, 0).status, Status::NotFound);
        }
        assert_eq!(self.get(Some(id(1 << 40)), 0, 0, 0).status, Status::NotFound);
        assert_eq!(self.get(None, u64::MAX, 0, 0).status, Status::NotFound);
        assert_eq!(self.get(None, 1 << 30, 0, 0).status, Status::NotFound);
        assert_eq!(self.get(None, 1 << 30, 999, 0).status, Status::UnknownTopic);
    }

    fn check_times(&mut self) {
        let times: Vec<i64> = self.sent.iter().step_by(17).map(|sent| sent.store_ms).collect();
        let times = times.into_iter().flat_map(|ms| [ms - 1, ms, ms + 1]);
        let mut wanted = Vec::new();
        let mut expected = Vec::new();
        for at_ms in times.chain([0, i64::MAX, -1, -2]) {
            for (topic, queue) in
                [self.topic, self.other].into_iter().flat_map(|t| (0..QUEUES).map(move |q| (t, q)))
            {
                wanted.push(OffsetAt::new(topic, queue, at_ms));
                let mut of_queue =
                    self.sent.iter().filter(|sent| (sent.topic, sent.queue) == (topic, queue));
                let count = of_queue.clone().count() as u64;
                let offset = match at_ms {
                    -1 => 0,
                    -2 => count,
                    // "The first record stored at or after that time."
                    ms => of_queue.find(|s| s.store_ms >= ms).map_or(count, |sent| sent.offset),
                };
                expected.push((offset, Status::Ok));
            }
        }
        assert_eq!(self.search(&wanted), expected);
    }

    fn check(&mut self) {
        self.check_times();
        self.check_keys();
        self.check_ids();
    }

    /// No page of these indexes is in memory any more: the shard is told that they were not written anew.
    fn forget_pages(&mut self, bases: &[u64]) {
        for base in bases {
            let (operation, reason) = ("write".to_owned(), "not wanted".to_owned());
            let result = Err(DiskError { operation, reason });
            self.desk.handle(Input::IndexWritten { base: *base, result });
        }
    }

    fn indexes(&self) -> Vec<u64> {
        self.desk.files.1.borrow().keys().copied().collect()
    }
}

#[test]
fn what_was_sent_is_found_in_memory_and_in_sealed_segments() {
    let mut world = World::open(small());
    for _ in 0..4 {
        world.fill(120);
        world.check();
    }
    assert!(world.indexes().len() > 4);
    let figures = world.desk.shard.figures();
    assert!(figures.lookups > 100 && figures.index_reads > 500, "{figures:?}");
    // With room for pages, few are read.
    world.reopen(ShardConfig { index_cache_bytes: 4 << 20, ..small() });
    world.check();
    let reads = world.desk.index_reads;
    world.check();
    assert_eq!(world.desk.index_reads, reads);
}

#[test]
fn everything_is_found_again_after_reopening_with_and_without_indexes() {
    let mut world = World::open(small());
    world.fill(330);
    world.reopen(small());
    world.check();
    let first = world.indexes()[1];
    world.desk.files.1.borrow_mut().remove(&first);
    world.reopen(small());
    world.check();
    world.desk.files.1.borrow_mut().clear();
    world.reopen(small());
    world.fill(50);
    world.check();
}

#[test]
fn what_is_sealed_and_not_indexed_yet_is_found() {
    let mut world = World::open(small());
    world.desk.hold_indexes = true;
    world.fill(200);
    assert!(world.indexes().is_empty());
    world.check();
    world.desk.finish_indexes(false);
    world.check();
    world.desk.hold_indexes = false;
    world.desk.advance(10_000);
    for _ in 0..10 {
        world.desk.advance(1);
    }
    assert!(world.indexes().len() > 2);
    world.check();
}

#[test]
fn keys_with_the_same_hash_are_told_apart() {
    // CRC-32 is linear: found by trying some 100 000 names.
    let mut seen = std::collections::BTreeMap::new();
    let (a, b) = (0..)
        .find_map(|n| {
            let name = format!("collision-{}", mix(n));
            seen.insert(key_hash(&name), name.clone()).map(|other| (other, name))
        })
        .unwrap();
    assert_eq!(key_hash(&a), key_hash(&b));
    let mut world = World::open(small());
    for n in 0..160 {
        let key = if n % 3 == 0 { &a } else { &b };
        let topic = world.topic;
        world.send(topic, n % QUEUES, &[key]);
    }
    for key in [&a, &b] {
        for max in [1, 64] {
            let (found, _) = world.find_all(world.topic, key, (0, i64::MAX), max);
            assert_eq!(found, world.numbers_of(world.topic, key, (0, i64::MAX)));
        }
    }
}

#[test]
fn one_key_of_very_many_messages_is_answered_in_parts() {
    let mut world = World::open(ShardConfig { segment_bytes: 1 << 20, ..small() });
    for n in 0..1300 {
        let topic = world.topic;
        world.send(topic, n % QUEUES, &["one", "one"]);
    }
    let expected = world.numbers_of(world.topic, "one", (0, i64::MAX));
    for max in [33, 64] {
        let (found, _) = world.find_all(world.topic, "one", (0, i64::MAX), max);
        assert_eq!(found, expected);
    }
    world.reopen(ShardConfig { segment_bytes: 1 << 20, ..small() });
    let (found, _) = world.find_all(world.topic, "one", (0, i64::MAX), 64);
    assert_eq!(found, expected);
}

#[test]
fn a_request_looks_at_so_many_segments_and_says_where_to_go_on() {
    let config = ShardConfig { lookup_segments: 1, ..small() };
    let mut world = World::open(config);
    world.fill(300);
    world.check_keys();
    let (mut before, mut requests) = (0, 0);
    let answer = loop {
        let answer = world.get(Some(id(0)), 0, 0, before);
        requests += 1;
        if answer.status != Status::Ok || !answer.run.is_empty() {
            break answer;
        }
        before = read_table::<GetMessageAnswer<'_>>(&answer.table).unwrap().next();
        assert!(before > 0);
    };
    assert_eq!(desk::numbers(&answer.run), [0]);
    assert!(requests > 3, "{requests}");
}

#[test]
fn long_messages_are_found_and_an_answer_has_a_limit() {
    let mut world = World::open(ShardConfig { segment_bytes: 4 << 20, ..small() });
    let mut builder = RecordBuilder::new();
    for n in 0..6u64 {
        let mut body = n.to_le_bytes().to_vec();
        body.resize(700_000, n as u8);
        let spec = MessageSpec {
            body: &body,
            keys: &["long"],
            message_id: id(n),
            ..MessageSpec::default()
        };
        let mut run = Vec::new();
        builder.append(&mut run, world.topic, 0, &spec).unwrap();
        world.desk.produce(world.topic, 0, &run, 1, Flush::Sync);
        world.desk.handle(Input::TurnEnd);
    }
    let answer = world.find(world.topic, "long", (0, i64::MAX), 64, 0);
    assert_eq!(desk::numbers(&answer.run), [5], "two are longer than an answer");
    let (found, _) = world.find_all(world.topic, "long", (0, i64::MAX), 64);
    assert_eq!(found, [5, 4, 3, 2, 1, 0]);
}

#[test]
fn what_consumers_cannot_see_is_not_found() {
    let mut world = World::open(small());
    world.fill(10);
    world.desk.hold_writes = true;
    let mut run = Vec::new();
    let spec = MessageSpec { keys: &["early"], message_id: id(500), ..MessageSpec::default() };
    RecordBuilder::new().append(&mut run, world.topic, 0, &spec).unwrap();
    world.desk.produce(world.topic, 0, &run, 1, Flush::Sync);
    world.desk.handle(Input::TurnEnd);
    let all = (0, i64::MAX);
    assert_eq!(world.find_all(world.topic, "early", all, 9).0, []);
    assert_eq!(world.get(Some(id(500)), 0, 0, 0).status, Status::NotFound);
    world.desk.finish_writes();
    assert!(!world.find(world.topic, "early", all, 9, 0).run.is_empty());
    assert_eq!(world.get(Some(id(500)), 0, 0, 0).status, Status::Ok);
    // A deleted topic's messages are gone, in memory and on disk.
    world.desk.hold_writes = false;
    world.fill(150);
    world.desk.delete_topic("orders");
    assert_eq!(world.get(Some(id(0)), 0, 0, 0).status, Status::NotFound);
    assert_eq!(world.find(world.topic, "hot", all, 9, 0).status, Status::UnknownTopic);
    let other = world.sent.iter().find(|sent| sent.topic == world.other).unwrap().number;
    assert_eq!(world.get(Some(id(other)), 0, 0, 0).status, Status::Ok);
}

#[test]
fn a_damaged_index_is_said_to_be_unreadable() {
    let mut world = World::open(small());
    world.fill(300);
    let bases = world.indexes();
    let lost = bases[1];
    let lost_end = bases[2];
    let good = world.desk.files.1.borrow()[&lost].clone();
    let is_lost = |position: u64| (lost..lost_end).contains(&position);
    // Which messages lie there.
    let mut there = Vec::new();
    for sent in world.sent.clone() {
        let answer = world.get(Some(id(sent.number)), 0, 0, 0);
        let position = records(&answer.run).next().unwrap().unwrap().header.position.get();
        there.push((sent, position));
    }
    assert!(there.iter().any(|(_, position)| is_lost(*position)));
    let pages = good.len() / 4096;
    for damaged in (0..pages).map(|page| page * 4096..(page + 1) * 4096).chain([0..good.len()]) {
        let mut bytes = good.clone();
        bytes[damaged.clone()].iter_mut().step_by(100).for_each(|byte| *byte ^= 1);
        world.desk.files.1.borrow_mut().insert(lost, bytes);
        world.forget_pages(&[lost]);
        let everything = damaged.len() == good.len();
        for (sent, position) in there.iter().step_by(3) {
            let answer = world.get(Some(id(sent.number)), 0, 0, 0);
            match answer.status {
                Status::Ok => assert_eq!(desk::numbers(&answer.run), [sent.number]),
                status => assert_eq!(status, Status::ReadFailed),
            }
            assert!(!everything || (answer.status == Status::Ok) != is_lost(*position));
            // What is stored there tells itself what it is.
            assert_eq!(world.get(None, *position, 0, 0).status, Status::Ok);
            let at = OffsetAt::new(sent.topic, sent.queue, sent.store_ms);
            let of_queue = there.iter().map(|(sent, _)| sent);
            let first = of_queue
                .filter(|s| (s.topic, s.queue) == (sent.topic, sent.queue))
                .find(|s| s.store_ms >= sent.store_ms)
                .unwrap();
            match world.search(&[at])[0] {
                (offset, Status::Ok) => assert_eq!(offset, first.offset),
                (_, status) => assert_eq!(status, Status::ReadFailed),
            }
        }
        let (found, unreadable) = world.find_all(world.topic, "hot", (0, i64::MAX), 64);
        let expected = world.numbers_of(world.topic, "hot", (0, i64::MAX));
        assert!(found == expected || unreadable > 0);
        assert!(!everything || unreadable == 1);
    }
    world.desk.files.1.borrow_mut().insert(lost, good);
    world.forget_pages(&[lost]);
    world.check();
}

#[test]
fn a_damaged_record_is_said_to_be_unreadable() {
    let mut world = World::open(small());
    world.fill(300);
    let answer = world.get(Some(id(0)), 0, 0, 0);
    let position = records(&answer.run).next().unwrap().unwrap().header.position.get();
    for at in [4, 40, 64, 400] {
        let mut byte = [0];
        world.desk.files.read_at(position + at, &mut byte);
        world.desk.files.write(position + at, &[byte[0] ^ 4]);
        let (found, unreadable) = world.find_all(world.topic, "key-0", (0, i64::MAX), 9);
        assert_eq!((found, unreadable), (vec![], 1), "{at}");
        if at < 128 {
            assert_eq!(world.get(Some(id(0)), 0, 0, 0).status, Status::ReadFailed);
            assert_eq!(world.get(None, position, 0, 0).status, Status::ReadFailed);
        }
        world.desk.files.write(position + at, &byte);
    }
    world.check();
    let bases = world.indexes();
    world.forget_pages(&bases);
    world.desk.failing_reads = true;
    assert_eq!(world.get(Some(id(0)), 0, 0, 0).status, Status::ReadFailed);
    assert_eq!(world.get(None, position, 0, 0).status, Status::ReadFailed);
    let at = OffsetAt::new(world.topic, 0, START_MS);
    assert_eq!(world.search(&[at])[0].1, Status::ReadFailed);
}

#[test]
fn look_ups_have_a_limit_and_end_with_their_connection() {
    let mut world = World::open(ShardConfig { lookups: 2, ..small() });
    world.fill(200);
    world.desk.hold_reads = true;
    let ask = |world: &mut World| {
        let topic = world.topic;
        world.desk.send(Opcode::FindMessages, &[], |fbb| {
            let key = Some(fbb.create_string("key-0"));
            FindMessages::create(fbb, &FindMessagesArgs { topic, key, ..Default::default() })
        })
    };
    let waiting = [ask(&mut world), ask(&mut world)];
    let third = ask(&mut world);
    assert_eq!(world.desk.take(third).unwrap().status, Status::Busy);
    // What memory answers needs no place.
    assert_eq!(world.search(&[OffsetAt::new(world.topic, 0, i64::MAX - 1)])[0].1, Status::Ok);
    world.desk.hold_reads = false;
    world.desk.finish_reads();
    for correlation in waiting {
        assert_eq!(desk::numbers(&world.desk.take(correlation).unwrap().run), [0]);
    }
    world.desk.hold_reads = true;
    let gone = ask(&mut world);
    world.desk.handle(Input::ConnectionClosed { connection: 9 });
    let stopped = ask(&mut world);
    world.desk.handle(Input::Stop);
    assert_eq!(world.desk.take(stopped).unwrap().status, Status::NotReady);
    world.desk.hold_reads = false;
    world.desk.finish_reads();
    assert!(world.desk.take(gone).is_none() && world.desk.take(stopped).is_none());
}
