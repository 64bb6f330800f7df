//! Messages in and out of one shard.

#![allow(clippy::unwrap_used)] // A failure here is the test's.

mod desk;

use desk::{Desk, Files, config, numbers, run};
use ringmq_core::Input;
use ringmq_schema::consume::{FetchAnswer, FetchQueue};
use ringmq_schema::error::Status;
use ringmq_schema::frame::read_table;
use ringmq_schema::produce::{Flush, ProduceAnswer};

fn from(topic: u32, queue: u32, offset: u64) -> FetchQueue {
    FetchQueue::new(topic, queue, offset, 0, 0, 0)
}

#[test]
fn a_message_comes_out_as_it_went_in() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 4);
    let sent = desk.produce(topic, 1, &run(topic, 1, 100, 3, 1000), 3, Flush::Sync);
    desk.handle(Input::TurnEnd);
    let answer = desk.take(sent).unwrap();
    assert_eq!(answer.status, Status::Ok);
    assert_eq!(read_table::<ProduceAnswer<'_>>(&answer.table).unwrap().base_offset(), 0);
    let fetch = desk.fetch(&[from(topic, 1, 0)], 0);
    let answer = desk.take(fetch).unwrap();
    assert_eq!(numbers(&answer.run), [100, 101, 102]);
    let table = read_table::<FetchAnswer<'_>>(&answer.table).unwrap();
    assert_eq!(table.queues().unwrap().get(0).next_offset(), 3);
}

/// promise: ack-is-durable, prefix
#[test]
fn nothing_is_acknowledged_or_shown_before_its_write_ended() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let fetch = desk.fetch(&[from(topic, 0, 0)], 10_000);
    desk.hold_writes = true;
    let sent = desk.produce(topic, 0, &run(topic, 0, 1, 1, 10), 1, Flush::Sync);
    desk.handle(Input::TurnEnd);
    assert!(desk.take(sent).is_none() && desk.take(fetch).is_none());
    desk.finish_writes();
    assert!(desk.take(sent).is_some());
    assert_eq!(numbers(&desk.take(fetch).unwrap().run), [1]);
}

#[test]
fn a_waiting_consumer_makes_async_messages_durable_at_once() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let sent = desk.produce(topic, 0, &run(topic, 0, 1, 1, 10), 1, Flush::Async);
    desk.handle(Input::TurnEnd);
    assert!(desk.take(sent).is_some());
    assert_eq!(desk.syncs, 0, "nobody waits");
    let fetch = desk.fetch(&[from(topic, 0, 0)], 10_000);
    desk.handle(Input::TurnEnd);
    assert_eq!(desk.syncs, 1);
    assert_eq!(numbers(&desk.take(fetch).unwrap().run), [1]);
    desk.produce(topic, 0, &run(topic, 0, 2, 1, 10), 1, Flush::Async);
    desk.handle(Input::TurnEnd);
    assert_eq!(desk.syncs, 1);
    desk.advance(500);
    assert_eq!(desk.syncs, 2, "after 500 ms in any case");
}

#[test]
fn small_records_gather_while_writes_are_under_way() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    desk.hold_writes = true;
    let before = desk.writes.len();
    for n in 0..100 {
        desk.produce(topic, 0, &run(topic, 0, n, 1, 500), 1, Flush::Sync);
        desk.handle(Input::TurnEnd);
    }
    assert_eq!(desk.writes.len() - before, 2, "two small units are under way");
    desk.finish_writes();
    desk.finish_writes();
    assert_eq!(desk.writes.len() - before, 3, "and the other 98 went together");
    assert_eq!(desk.answers.len(), 100);
}

#[test]
fn everything_is_there_after_a_restart_across_segments() {
    let files = Files::default();
    let mut desk = Desk::open(config(), files.clone());
    let topic = desk.create_topic("orders", 2);
    for n in 0..400 {
        let queue = (n % 2) as u32;
        desk.produce(topic, queue, &run(topic, queue, n * 10, 10, 1000), 10, Flush::Default);
        desk.handle(Input::TurnEnd);
    }
    assert!(desk.answers.iter().all(|a| a.status == Status::Ok));
    assert!(files.0.borrow().len() > 4);
    let mut desk = Desk::open(config(), files);
    assert_eq!(desk.shard.figures().replayed, 4000 + 2);
    for queue in 0..2u32 {
        let mut all = Vec::new();
        let mut offset = 0;
        while offset < 2000 {
            let fetch = desk.fetch(&[from(topic, queue, offset)], 0);
            desk.handle(Input::TurnEnd);
            let answer = desk.take(fetch).unwrap();
            let table = read_table::<FetchAnswer<'_>>(&answer.table).unwrap();
            let next = table.queues().unwrap().get(0).next_offset();
            assert!(next > offset);
            all.extend(numbers(&answer.run));
            offset = next;
        }
        let expected: Vec<u64> = (0..400)
            .filter(|n| n % 2 == u64::from(queue))
            .flat_map(|n| n * 10..n * 10 + 10)
            .collect();
        assert_eq!(all, expected);
    }
    assert!(desk.reads > 0, "the tail in memory is empty after a restart");
}

#[test]
fn filters_pass_by_what_does_not_match() {
    use ringmq_schema::consume::{Fetch, FetchArgs, TagFilter, TagFilterArgs};
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    desk.produce(topic, 0, &run(topic, 0, 0, 10, 10), 10, Flush::Sync);
    desk.handle(Input::TurnEnd);
    let answer = desk.call(ringmq_schema::opcode::Opcode::Fetch, &[], |fbb| {
        let hashes = Some(fbb.create_vector(&[ringmq_schema::record::tag_hash("odd")]));
        let filter = TagFilter::create(fbb, &TagFilterArgs { hashes, sql: None });
        let filters = Some(fbb.create_vector(&[filter]));
        let queues = Some(fbb.create_vector(&[FetchQueue::new(topic, 0, 0, 0, 1, 0)]));
        Fetch::create(fbb, &FetchArgs { queues, filters, ..FetchArgs::default() })
    });
    assert_eq!(numbers(&answer.run), [1, 3, 5, 7, 9]);
    let table = read_table::<FetchAnswer<'_>>(&answer.table).unwrap();
    assert_eq!(table.queues().unwrap().get(0).next_offset(), 10);
}

#[test]
fn a_failed_write_stops_writing_but_not_reading() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    desk.produce(topic, 0, &run(topic, 0, 1, 1, 10), 1, Flush::Sync);
    desk.handle(Input::TurnEnd);
    desk.hold_writes = true;
    let lost = desk.produce(topic, 0, &run(topic, 0, 2, 1, 10), 1, Flush::Sync);
    desk.handle(Input::TurnEnd);
    let write = desk.held[0];
    let error = ringmq_core::DiskError { operation: "write".into(), reason: "EIO".into() };
    desk.handle(Input::Written { write, result: Err(error) });
    assert_eq!(desk.take(lost).unwrap().status, Status::ShardFailed);
    let after = desk.produce(topic, 0, &run(topic, 0, 3, 1, 10), 1, Flush::Sync);
    assert_eq!(desk.take(after).unwrap().status, Status::ShardFailed);
    let fetch = desk.fetch(&[from(topic, 0, 0)], 0);
    assert_eq!(numbers(&desk.take(fetch).unwrap().run), [1]);
    assert!(!desk.shard.is_ready());
}

#[test]
fn stop_makes_everything_durable_and_an_idle_shard_writes_nothing() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    desk.produce(topic, 0, &run(topic, 0, 1, 1, 10), 1, Flush::Async);
    desk.handle(Input::TurnEnd);
    desk.advance(500);
    desk.advance(500);
    let writes = desk.writes.len();
    for _ in 0..10 {
        desk.advance(1000);
    }
    assert_eq!(desk.writes.len(), writes);
    desk.produce(topic, 0, &run(topic, 0, 2, 1, 10), 1, Flush::Async);
    desk.handle(Input::TurnEnd);
    desk.handle(Input::Stop);
    assert!(desk.stopped);
    let figures = desk.shard.figures();
    assert_eq!(figures.flushed, figures.appended);
}

/// promise: bounded. A disk without room for the next segment costs nothing that is stored.
#[test]
fn a_segment_that_cannot_be_made_is_tried_again() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    desk.full = true;
    let mut stored = 0;
    let refused = loop {
        let sent = desk.produce(topic, 0, &run(topic, 0, stored, 1, 100_000), 1, Flush::Sync);
        desk.handle(Input::TurnEnd);
        match desk.take(sent) {
            Some(answer) if answer.status == Status::Ok => stored += 1,
            Some(answer) => break answer.status,
            // Taken into memory, for the segment that is not there.
            None => {}
        }
        assert!(stored < 100);
    };
    assert_eq!(refused, Status::DiskFull);
    assert!(desk.shard.failure().is_none());
    let fetch = desk.fetch(&[from(topic, 0, 0)], 0);
    assert!(!numbers(&desk.take(fetch).unwrap().run).is_empty(), "reads go on");
    desk.full = false;
    desk.advance(1000);
    let sent = desk.produce(topic, 0, &run(topic, 0, 1, 1, 10), 1, Flush::Sync);
    desk.handle(Input::TurnEnd);
    assert_eq!(desk.take(sent).unwrap().status, Status::Ok);
}

/// promise: isolation. A filter leaves out a bounded stretch per step, and its consumer goes on from there at once.
#[test]
fn a_filter_that_matches_nothing_is_answered_where_it_stopped() {
    use ringmq_schema::consume::{Fetch, FetchArgs, TagFilter, TagFilterArgs};
    let config = ringmq_core::ShardConfig { tail_cache_bytes: 64 << 20, ..config() };
    let mut desk = Desk::open(config, Files::default());
    let topic = desk.create_topic("orders", 1);
    for n in 0..60 {
        desk.produce(topic, 0, &run(topic, 0, n * 1000, 1000, 8), 1000, Flush::Sync);
        desk.handle(Input::TurnEnd);
    }
    let mut next_from = |offset: u64| {
        let sent = desk.send(ringmq_schema::opcode::Opcode::Fetch, &[], |fbb| {
            let hashes = Some(fbb.create_vector(&[1u32]));
            let filter = TagFilter::create(fbb, &TagFilterArgs { hashes, sql: None });
            let filters = Some(fbb.create_vector(&[filter]));
            let queues = Some(fbb.create_vector(&[FetchQueue::new(topic, 0, offset, 0, 1, 0)]));
            let wait_ms = 10_000;
            Fetch::create(fbb, &FetchArgs { wait_ms, queues, filters, ..FetchArgs::default() })
        });
        let answer = desk.take(sent)?;
        let table = read_table::<FetchAnswer<'_>>(&answer.table).unwrap();
        Some(table.queues().unwrap().get(0).next_offset())
    };
    assert_eq!(next_from(0), Some(50_000), "at once, not when the wait is over");
    assert_eq!(next_from(50_000), None, "the rest was looked at: it waits for more");
}
