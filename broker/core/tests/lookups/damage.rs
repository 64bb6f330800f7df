//! What cannot be read is said to be unreadable, never to be not there.

use crate::desk;
use crate::world::{START_MS, World, id, small};
use ringmq_schema::consume::OffsetAt;
use ringmq_schema::error::Status;
use ringmq_schema::record::records;

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
    for damaged in
        (0..pages).map(|page| page * 4096..(page + 1) * 4096).chain(std::iter::once(0..good.len()))
    {
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
