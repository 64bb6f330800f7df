//! A log of many segments: what was stored is read again from everywhere, after every kind of end, with and
//! without what is derived from it.
#![allow(clippy::unwrap_used)]

mod desk;

use desk::{Desk, Files, numbers, run};
use ringmq_core::{Input, ShardConfig};
use ringmq_schema::consume::{FetchAnswer, FetchQueue};
use ringmq_schema::error::Status;
use ringmq_schema::frame::read_table;
use ringmq_schema::produce::Flush;
use std::collections::BTreeMap;

const QUEUES: u32 = 3;

fn config() -> ShardConfig {
    ShardConfig {
        segment_bytes: 128 << 10,
        unit_bytes: 32 << 10,
        small_unit_bytes: 16 << 10,
        units_in_flight: 2,
        tail_cache_bytes: 64 << 10,
        snapshot_bytes: 300 << 10,
        snapshot_pause_ms: 0,
        transfer_bytes_min: 8 << 10,
        ..ShardConfig::new(0, 1, 77)
    }
}

/// Queue `n % QUEUES` gets message `n`.
fn fill(desk: &mut Desk, topic: u32, numbers: std::ops::Range<u64>, bytes: usize) {
    fill_together(desk, topic, numbers, bytes, 1);
}

/// The same, `together` messages in one write unit.
fn fill_together(
    desk: &mut Desk,
    topic: u32,
    numbers: std::ops::Range<u64>,
    bytes: usize,
    together: u64,
) {
    let all: Vec<u64> = numbers.collect();
    for turn in all.chunks(together as usize) {
        let mut sent = Vec::new();
        for n in turn {
            let queue = (n % u64::from(QUEUES)) as u32;
            let body = run(topic, queue, *n, 1, bytes);
            sent.push(desk.produce(topic, queue, &body, 1, Flush::Sync));
        }
        desk.handle(Input::TurnEnd);
        for sent in sent {
            assert_eq!(desk.take(sent).expect("answered").status, Status::Ok);
        }
        if turn[0] % 30 == 0 {
            desk.advance(10);
        }
    }
}

/// What a consumer of each queue gets from `from` on, by queue and offset, and offsets that are `Corrupt`.
type Seen = (BTreeMap<(u32, u64), u64>, BTreeMap<u32, Vec<(u64, u64)>>);

fn read_all(desk: &mut Desk, topic: u32, from: u64) -> Seen {
    let (mut seen, mut lost) = (BTreeMap::new(), BTreeMap::<u32, Vec<(u64, u64)>>::new());
    let mut next = [from; QUEUES as usize];
    let mut checked = false;
    for _ in 0..100_000 {
        let wanted: Vec<FetchQueue> =
            (0..QUEUES).map(|q| FetchQueue::new(topic, q, next[q as usize], 0, 0, 0)).collect();
        let sent = desk.fetch_with(&wanted, 0, checked);
        let answer = desk.take(sent).expect("answered at once");
        assert_eq!(answer.status, Status::Ok);
        // What comes from the file as it is may be anything: then the shard is to look at it.
        let is_sound = ringmq_schema::record::records(&answer.run)
            .all(|record| record.is_ok_and(|record| record.check_header().is_ok()));
        assert!(is_sound || !checked);
        checked = !is_sound;
        if checked {
            continue;
        }
        let table = read_table::<FetchAnswer<'_>>(&answer.table).unwrap();
        let mut offsets = next;
        for record in ringmq_schema::record::records(&answer.run) {
            let record = record.unwrap();
            record.check_header().unwrap();
            let (queue, offset) = (record.header.queue.get(), record.header.offset.get());
            assert_eq!(record.header.topic.get(), topic);
            assert_eq!(offset, offsets[queue as usize], "queue {queue} has no gap");
            offsets[queue as usize] += 1;
            if record.check_payload().is_ok() {
                let body = record.message().unwrap().body().unwrap().bytes().to_vec();
                let number = u64::from_le_bytes(body[..8].try_into().unwrap());
                assert_eq!(seen.insert((queue, offset), number), None);
            } else {
                lost.entry(queue).or_default().push((offset, offset + 1));
            }
        }
        let mut moved = false;
        for found in table.queues().into_iter().flatten() {
            let queue = found.queue() as usize;
            let before = next[queue];
            match Status::from_code(found.status()) {
                Status::Ok => {
                    assert_eq!(found.next_offset(), offsets[queue]);
                    assert_eq!(u64::from(found.records()), offsets[queue] - before);
                    next[queue] = found.next_offset();
                }
                Status::Corrupt => {
                    assert!(found.next_offset() > before && found.records() == 0);
                    lost.entry(found.queue()).or_default().push((before, found.next_offset()));
                    next[queue] = found.next_offset();
                }
                Status::OffsetOutOfRange if before < found.min_offset() => {
                    next[queue] = found.min_offset();
                }
                other => panic!("queue {queue} at {before}: {other:?}"),
            }
            moved |= next[queue] != before;
        }
        if !moved {
            return (seen, lost);
        }
    }
    panic!("a consumer never comes to the end");
}

fn expect_all(desk: &mut Desk, topic: u32, count: u64) {
    let (seen, lost) = read_all(desk, topic, 0);
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!(seen.len() as u64, count);
    for ((queue, offset), number) in seen {
        assert_eq!(number, offset * u64::from(QUEUES) + u64::from(queue));
    }
}

fn copy(files: &Files) -> Files {
    let copy = Files::default();
    copy.0.replace(files.0.borrow().clone());
    copy.1.replace(files.1.borrow().clone());
    copy
}

fn stop(desk: &mut Desk) {
    desk.handle(Input::Stop);
    assert!(desk.stopped, "a shard whose disk obeys stops at once");
}

#[test]
fn sealed_segments_are_read_through_their_indexes() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", QUEUES);
    fill_together(&mut desk, topic, 0..3000, 500, 30);
    let segments = desk.files.0.borrow().len();
    assert!(segments > 12, "{segments}");
    assert!(desk.files.1.borrow().len() >= segments - 2, "all but the active one and the next");
    expect_all(&mut desk, topic, 3000);
    assert!(desk.transfers > 10, "{}", desk.transfers);
    // Of one queue alone a third lies together: read and gathered.
    let before = desk.reads;
    let sent = desk.fetch(&[FetchQueue::new(topic, 1, 10, 0, 0, 0)], 0);
    let found = numbers(&desk.take(sent).unwrap().run);
    assert!(found.len() > 40, "{}", found.len());
    assert!(found.iter().zip(10..).all(|(n, offset)| *n == offset * 3 + 1));
    assert_eq!(desk.reads, before + 1);
}

#[test]
fn nothing_changes_when_indexes_are_lost_or_damaged() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", QUEUES);
    fill(&mut desk, topic, 0..1500, 500);
    let files = desk.files;
    let bases: Vec<u64> = files.1.borrow().keys().copied().collect();
    let reopened = |files: Files| {
        let mut desk = Desk::open(config(), files);
        expect_all(&mut desk, topic, 1500);
        desk.files
    };
    reopened(copy(&files));
    for base in &bases {
        let files = copy(&files);
        files.1.borrow_mut().remove(base);
        let files = reopened(files);
        assert!(files.1.borrow().contains_key(base), "it is made again");
        for length in [0, 100, 4096, 5000] {
            let files = copy(&files);
            files.1.borrow_mut().get_mut(base).unwrap().truncate(length);
            reopened(files);
        }
        for bit in [5, 8 * 30, 8 * 4096 + 77, 8 * 8192 + 5] {
            let files = copy(&files);
            files.1.borrow_mut().get_mut(base).unwrap()[bit / 8] ^= 1 << (bit % 8);
            let mut desk = Desk::open(config(), files);
            // A page of entries is not looked at when the shard opens: what it speaks of cannot be read then,
            // and nothing else is said.
            let queues: Vec<FetchQueue> =
                (0..QUEUES).map(|q| FetchQueue::new(topic, q, 0, 0, 0, 0)).collect();
            let sent = desk.fetch(&queues, 0);
            let answer = desk.take(sent).expect("answered");
            assert_eq!(answer.status, Status::Ok);
        }
    }
    let all = copy(&files);
    all.1.borrow_mut().clear();
    reopened(all);
}

#[test]
fn a_shard_that_stopped_goes_on_where_it_was_at_once() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", QUEUES);
    fill(&mut desk, topic, 0..1500, 500);
    let epoch = desk.shard.figures().epoch;
    stop(&mut desk);
    let indexes = desk.files.1.borrow().len();
    let mut desk = Desk::open(config(), desk.files);
    let figures = desk.shard.figures();
    assert!(figures.replayed < 20, "{} records", figures.replayed);
    assert!(figures.epoch > epoch && figures.torn_bytes == 0 && figures.fenced_bytes == 0);
    assert_eq!(desk.files.1.borrow().len(), indexes - 1, "it is no longer the whole truth");
    expect_all(&mut desk, topic, 1500);
    // It goes on, also without ever stopping again.
    fill(&mut desk, topic, 1500..2100, 500);
    let mut desk = Desk::open(config(), desk.files);
    expect_all(&mut desk, topic, 2100);
    // And without the index of the clean stop.
    stop(&mut desk);
    let last = *desk.files.1.borrow().keys().next_back().unwrap();
    desk.files.1.borrow_mut().remove(&last);
    let mut desk = Desk::open(config(), desk.files);
    expect_all(&mut desk, topic, 2100);
    for _ in 0..5 {
        stop(&mut desk);
        desk = Desk::open(config(), desk.files);
    }
    expect_all(&mut desk, topic, 2100);
    assert_eq!(desk.create_topic("orders", QUEUES), topic, "the registry is in the snapshot");
}

#[test]
fn expired_segments_are_retired_and_the_log_opens_without_them() {
    let config = ShardConfig { retention_ms: 400, ..config() };
    let mut desk = Desk::open(config.clone(), Files::default());
    let topic = desk.create_topic("orders", QUEUES);
    fill(&mut desk, topic, 0..6000, 500);
    for _ in 0..10 {
        desk.advance(1000);
    }
    let figures = desk.shard.figures();
    assert!(figures.segments_retired > 10, "{}", figures.segments_retired);
    assert!(figures.expired_messages > 1000, "{}", figures.expired_messages);
    fill(&mut desk, topic, 6000..6300, 500);
    let (seen, lost) = read_all(&mut desk, topic, 0);
    assert!(lost.is_empty());
    assert!(desk.shard.figures().out_of_range > 0);
    let first = seen.keys().next().unwrap().1;
    assert!(first > 300, "{first}");
    for ((queue, offset), number) in &seen {
        assert_eq!(*number, offset * 3 + u64::from(*queue));
    }
    let mut desk = Desk::open(config, desk.files);
    let (again, lost) = read_all(&mut desk, topic, 0);
    assert!(lost.is_empty());
    assert!(seen.iter().all(|(at, number)| again.get(at) == Some(number)), "nothing went");
    fill(&mut desk, topic, 6300..6600, 500);
    let (_, lost) = read_all(&mut desk, topic, 0);
    assert!(lost.is_empty());
}

#[test]
fn an_idle_shard_gets_rid_of_what_expired() {
    let config = ShardConfig { retention_ms: 5_000, snapshot_bytes: 1 << 30, ..config() };
    let mut desk = Desk::open(config, Files::default());
    let topic = desk.create_topic("orders", QUEUES);
    fill(&mut desk, topic, 0..3000, 500);
    let before = desk.files.0.borrow().len();
    for _ in 0..300 {
        desk.advance(1000);
    }
    let after = desk.files.0.borrow().len();
    assert!(before > 14 && after <= 6, "{before} segments, then {after}");
    for _ in 0..300 {
        desk.advance(1000);
    }
    assert!(desk.files.0.borrow().len() <= 6, "and comes to rest");
    let end = desk.shard.figures().appended;
    for _ in 0..600 {
        desk.advance(1000);
    }
    assert_eq!(desk.shard.figures().appended, end);
}

/// Of two topics in turns one expires early: its runs become holes, the other is read as ever.
#[test]
fn what_expired_between_what_is_kept_becomes_a_hole() {
    let config = ShardConfig { retention_ms: 0, hole_bytes_min: 16 << 10, ..config() };
    let mut desk = Desk::open(config.clone(), Files::default());
    let kept = desk.create_topic("kept", QUEUES);
    let short = desk.create_topic_for("short", QUEUES, 2_000);
    for n in 0..40 {
        fill(&mut desk, kept, n * 30..n * 30 + 30, 500);
        fill(&mut desk, short, n * 30..n * 30 + 30, 500);
    }
    let (before, _) = read_all(&mut desk, short, 0);
    assert!(before.len() > 300);
    for _ in 0..60 {
        desk.advance(1000);
    }
    let figures = desk.shard.figures();
    assert_eq!(figures.segments_retired, 0, "the other topic has something in each");
    assert!(figures.punched_bytes > 2 << 20, "{}", figures.punched_bytes);
    expect_all(&mut desk, kept, 1200);
    let (after, lost) = read_all(&mut desk, short, 0);
    assert!(lost.is_empty() && after.len() < 200, "{} {lost:?}", after.len());
    let report = desk.survey();
    assert!(!report.is_damaged(), "{:?}", report.losses);
    assert!(report.hole_bytes >= figures.punched_bytes, "{}", report.hole_bytes);
    // Also when the indexes are gone, and after the clock went back: expired is expired.
    for without_indexes in [false, true] {
        let files = copy(&desk.files);
        if without_indexes {
            files.1.borrow_mut().clear();
        }
        let mut desk = Desk::open(config.clone(), files);
        assert_eq!(desk.shard.damage(), []);
        expect_all(&mut desk, kept, 1200);
        let (again, lost) = read_all(&mut desk, short, 0);
        assert!(lost.is_empty(), "{lost:?}");
        assert!(after.iter().all(|(at, number)| again.get(at) == Some(number)));
        stop(&mut desk);
        let mut desk = Desk::open(config.clone(), desk.files);
        expect_all(&mut desk, kept, 1200);
        assert_eq!(desk.shard.damage(), []);
    }
}

/// promise: prefix. Wherever the log ends, what is there is exactly a beginning of what was.
#[test]
fn a_log_cut_off_anywhere_is_a_prefix() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", QUEUES);
    fill(&mut desk, topic, 0..600, 700);
    let files = desk.files;
    let bases: Vec<u64> = files.0.borrow().keys().copied().collect();
    let end = desk.shard.figures().flushed;
    let from = bases[bases.len() - 4];
    let mut counts = Vec::new();
    for cut in (from..end + 512).step_by(512) {
        let files = copy(&files);
        // The file system lost everything from there on.
        for (base, file) in files.0.borrow_mut().iter_mut() {
            let keep = cut.saturating_sub(*base).min(file.len() as u64) as usize;
            file[keep..].fill(0);
        }
        files.1.borrow_mut().retain(|base, _| *base + (128 << 10) <= cut);
        let mut desk = Desk::open(config(), files);
        let (seen, lost) = read_all(&mut desk, topic, 0);
        assert!(lost.is_empty(), "cut at {cut}: {lost:?}");
        for ((queue, offset), number) in &seen {
            assert_eq!(*number, offset * 3 + u64::from(*queue), "cut at {cut}");
        }
        // No hole over the queues either: they were written in turn.
        assert_eq!(seen.values().max().map_or(0, |max| max + 1), seen.len() as u64, "cut at {cut}");
        counts.push(seen.len());
    }
    assert!(counts.is_sorted() && counts.last() == Some(&600), "{counts:?}");
}

/// promise: no-trust. A bit that flips anywhere costs at most what lay there: never a wrong byte, never an
/// offset twice.
#[test]
fn a_flipped_bit_costs_at_most_what_lay_there() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", QUEUES);
    fill(&mut desk, topic, 0..600, 700);
    desk.advance(1000);
    let files = desk.files;
    let end = desk.shard.figures().flushed;
    let bases: Vec<u64> = files.0.borrow().keys().copied().collect();
    let mut fenced = 0;
    // The first segment with the topic's record, and the last two that are sealed, with what follows.
    let last = bases[bases.len() - 4];
    let places = (0..bases[1]).chain(last..end).step_by(1024);
    for (n, at) in places.enumerate() {
        for with_indexes in [true, false] {
            let files = copy(&files);
            let base = *bases.iter().rev().find(|base| **base <= at).unwrap();
            let bit = (at - base) as usize * 8 + (n * 2731) % (1024 * 8);
            files.0.borrow_mut().get_mut(&base).unwrap()[bit / 8] ^= 1 << (bit % 8);
            if !with_indexes {
                files.1.borrow_mut().clear();
            }
            let what = format!("bit {bit} of segment {base}, indexes: {with_indexes}");
            let mut desk = Desk::open(config(), files);
            if desk.create_topic("orders", QUEUES) != topic {
                // The record of the topic itself is gone, and all of its messages with it.
                assert!(at < 8192, "{what}");
                continue;
            }
            let (seen, lost) = read_all(&mut desk, topic, 0);
            for ((queue, offset), number) in &seen {
                assert_eq!(*number, offset * 3 + u64::from(*queue), "{what}");
            }
            fenced += usize::from(!lost.is_empty());
            let missing = 600 - seen.len();
            assert!(missing <= 3 * 5, "{missing} messages: {what}");
            assert!(missing == 0 || !lost.is_empty() || at + 8192 > end, "{what}: {lost:?}");
            // What comes now gets offsets that nobody had.
            let next = [0, 1, 2].map(|queue| {
                let sent =
                    desk.produce(topic, queue, &run(topic, queue, 9999, 1, 8), 1, Flush::Sync);
                desk.handle(Input::TurnEnd);
                let answer = desk.take(sent).unwrap();
                let table =
                    read_table::<ringmq_schema::produce::ProduceAnswer<'_>>(&answer.table).unwrap();
                table.base_offset()
            });
            assert!(next.iter().all(|next| *next >= 200), "{what}: {next:?}");
        }
    }
    assert!(fenced > 100, "{fenced}");
}
