//! Messages by key, id and position, offsets by time: from memory, from indexes, and when those are damaged.

#![allow(clippy::unwrap_used)] // A failure here is the test's.

mod damage;
#[path = "../desk/mod.rs"]
mod desk;
mod world;

use ringmq_core::{Input, ShardConfig};
use ringmq_schema::build::{MessageSpec, RecordBuilder};
use ringmq_schema::consume::{FindMessages, FindMessagesArgs, GetMessageAnswer, OffsetAt};
use ringmq_schema::error::Status;
use ringmq_schema::frame::read_table;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement::mix;
use ringmq_schema::produce::Flush;
use ringmq_schema::record::key_hash;
use world::{QUEUES, World, id, small};

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

/// By whole segments: what is below a queue's first offset is found no more, in no way.
#[test]
fn what_has_expired_is_not_found() {
    let config = ShardConfig { retention_ms: 25_000, snapshot_bytes: 64 << 10, ..small() };
    let mut world = World::open(config);
    let (mut expired, mut left) = (0, 0);
    for _ in 0..6 {
        world.fill(120);
        world.desk.advance(15_000);
        let queues: Vec<(u32, u32)> = [world.topic, world.other]
            .into_iter()
            .flat_map(|topic| (0..QUEUES).map(move |queue| (topic, queue)))
            .collect();
        let at = |ms| queues.iter().map(move |(t, q)| OffsetAt::new(*t, *q, ms));
        let first: Vec<u64> = world
            .search(&at(-1).collect::<Vec<_>>())
            .into_iter()
            .map(|(offset, _)| offset)
            .collect();
        // What was stored long ago comes at the first that is left.
        let early: Vec<u64> = world
            .search(&at(1).collect::<Vec<_>>())
            .into_iter()
            .map(|(offset, _)| offset)
            .collect();
        assert_eq!(early, first);
        (expired, left) = (0, 0);
        for sent in world.sent.clone().into_iter().step_by(3) {
            let queue = queues.iter().position(|q| *q == (sent.topic, sent.queue)).unwrap();
            let is_there = sent.offset >= first[queue];
            let (key, all) = (sent.keys[0].clone(), (0, i64::MAX));
            let (found, unreadable) = world.find_all(sent.topic, &key, all, 9);
            assert_eq!((found.contains(&sent.number), unreadable), (is_there, 0));
            let status = world.get(Some(id(sent.number)), 0, 0, 0).status;
            assert_eq!(status, if is_there { Status::Ok } else { Status::NotFound });
            *if is_there { &mut left } else { &mut expired } += 1;
        }
    }
    assert!(expired > 100 && left > 5, "{expired} {left}");
    let figures = world.desk.shard.figures();
    assert!(figures.segments_retired > 3, "{figures:?}");
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
