//! The shard stops at every step of everything it does to its log, and nothing that was acknowledged is lost.
//!
//! The disk of these tests obeys at once and keeps what it was given; what a disk does that loses power is for the
//! simulated world. What is shown here is that no step relies on the one behind it.
#![allow(clippy::unwrap_used)]

mod desk;

use desk::Watch;
use desk::{Desk, Files, run};
use ringmq_core::{Action, Block, Input, Now, Outbox, Shard, ShardConfig};
use ringmq_schema::build::{MessageSpec, RecordBuilder};
use ringmq_schema::consume::{FetchAnswer, FetchQueue};
use ringmq_schema::error::Status;
use ringmq_schema::frame::read_table;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::produce::{Flush, ProduceAnswer};
use ringmq_schema::record::{self, Kind};
use ringmq_schema::timer::{Recall, RecallArgs};
use std::collections::{BTreeMap, BTreeSet};

fn config() -> ShardConfig {
    ShardConfig {
        segment_bytes: 64 << 10,
        unit_bytes: 16 << 10,
        small_unit_bytes: 8 << 10,
        units_in_flight: 2,
        tail_cache_bytes: 32 << 10,
        snapshot_bytes: 100 << 10,
        snapshot_pause_ms: 0,
        retention_ms: 1_500,
        hole_bytes_min: 8 << 10,
        transfer_bytes_min: 4 << 10,
        ..ShardConfig::new(0, 1, 77)
    }
}

/// Every point at which the shard must have been stopped.
const POINTS: [&str; 19] = [
    "append: a message's unit",
    "timers: set",
    "timers: deliver",
    "timers: read a page of an index",
    "timers: append again",
    "timers: take back",
    "append: acknowledge",
    "roll: make the next segment",
    "roll: seal the full one",
    "roll: first unit of a segment",
    "seal: write the index",
    "snapshot: its beginning",
    "snapshot: a slice",
    "snapshot: its end",
    "retention: retire a segment",
    "holes: write them down",
    "holes: punch",
    "open: begin the epoch",
    "stop: the last mark",
];

/// What the shard was about to do.
fn name(action: &Action<desk::Heap>) -> &'static str {
    let segment_bytes = config().segment_bytes;
    match action {
        Action::Write { position, block, .. } => {
            let mut kinds = BTreeSet::new();
            let (mut delivers, mut again) = (false, false);
            let mut seals = false;
            let (mut at, bytes) = (record::UNIT_HEADER_BYTES, block.bytes());
            while at < bytes.len() {
                seals |= bytes[at..].get(6) == Some(&(Kind::Seal as u8));
                let Ok((next, found)) = record::read_one(bytes, at) else { break };
                if let Some(found) = found {
                    let part = found.payload.get(1).copied().unwrap_or(0);
                    let kind = Kind::from_code(found.header.prefix.kind);
                    delivers |= found.header.flags.get() & record::FLAG_DELAYED != 0;
                    again |= kind == Some(Kind::Timer) && found.header.offset.get() != 0;
                    kinds.insert((kind.map(|kind| kind as u8), part));
                }
                at = next;
            }
            let has = |kind: Kind| kinds.iter().any(|(found, _)| *found == Some(kind as u8));
            let has_part = |part: u8| {
                kinds.iter().any(|(k, p)| *k == Some(Kind::Snapshot as u8) && *p == part)
            };
            match () {
                () if seals => "roll: seal the full one",
                () if position % segment_bytes == 0 && *position > 0 => {
                    "roll: first unit of a segment"
                }
                () if has_part(6) => "snapshot: its end",
                () if has_part(1) => "snapshot: its beginning",
                () if has(Kind::Snapshot) => "snapshot: a slice",
                () if has(Kind::Hole) => "holes: write them down",
                () if has(Kind::Epoch) => "open: begin the epoch",
                () if again => "timers: append again",
                () if has(Kind::TimerEnd) => "timers: take back",
                () if has(Kind::Timer) => "timers: set",
                () if delivers => "timers: deliver",
                () if has(Kind::Message) => "append: a message's unit",
                () if kinds.is_empty() => "stop: the last mark",
                () => "append: other state",
            }
        }
        Action::Sync { .. } => "append: sync",
        Action::MakeSegment { .. } => "roll: make the next segment",
        Action::WriteIndex { .. } => "seal: write the index",
        Action::ReadIndex { read, .. } if read >> 61 == 1 => "timers: read a page of an index",
        Action::Punch { .. } => "holes: punch",
        Action::Retire { .. } => "retention: retire a segment",
        Action::Answer { .. } => "append: acknowledge",
        _ => "other",
    }
}

const QUEUES: u32 = 2;

/// What was acknowledged: number by queue and offset; and what was sent and never answered.
#[derive(Default, Clone)]
struct Journal {
    acknowledged: BTreeMap<(u32, u64), u64>,
    next: u64,
    /// Delayed messages that were acknowledged: number, when due, where they lie.
    delayed: BTreeMap<u64, (i64, u64)>,
    /// Those that were asked to be taken back, and whether that was said to be done.
    recalled: BTreeMap<u64, bool>,
}

/// `topics`: one with [`QUEUES`] queues, and one that keeps a message in most segments for longer.
fn produce(desk: &mut Desk, topics: [u32; 3], journal: &mut Journal, messages: u64) {
    for _ in 0..messages {
        let (number, queue) = (journal.next, (journal.next % u64::from(QUEUES)) as u32);
        let is_kept = number % 20 == 7;
        let (topic, queue) = if is_kept { (topics[1], 0) } else { (topics[0], queue) };
        journal.next += 1;
        let flush = if number % 3 == 0 { Flush::Async } else { Flush::Sync };
        // Of one block or two, so that some segments end with a block too few.
        let bytes = if number % 5 == 0 { 5000 } else { 1500 };
        let sent = desk.produce(topic, queue, &run(topic, queue, number, 1, bytes), 1, flush);
        desk.handle(Input::TurnEnd);
        let Some(answer) = desk.take(sent).filter(|answer| answer.status == Status::Ok) else {
            continue;
        };
        let table = read_table::<ProduceAnswer<'_>>(&answer.table).unwrap();
        let at = (if is_kept { QUEUES } else { queue }, table.base_offset());
        assert_eq!(journal.acknowledged.insert(at, number), None, "an offset was given twice");
    }
}

/// Numbers of delayed messages begin here.
const DELAYED: u64 = 1 << 32;

/// A delayed message to the topic that keeps what it has.
fn delay(desk: &mut Desk, topic: u32, journal: &mut Journal, delay_ms: i64) {
    let (number, deliver_ms) = (DELAYED + journal.next, desk.now.wall_ms + delay_ms);
    journal.next += 1;
    let mut run = Vec::new();
    let message_id = u128::from(number).to_be_bytes();
    let body = number.to_le_bytes();
    let spec = MessageSpec { body: &body, deliver_ms, message_id, ..MessageSpec::default() };
    RecordBuilder::new().append(&mut run, topic, 0, &spec).expect("fits");
    let sent = desk.produce(topic, 0, &run, 1, Flush::Sync);
    desk.handle(Input::TurnEnd);
    let Some(answer) = desk.take(sent).filter(|answer| answer.status == Status::Ok) else { return };
    let table = read_table::<ProduceAnswer<'_>>(&answer.table).unwrap();
    assert_eq!(table.base_offset(), record::NO_OFFSET);
    journal.delayed.insert(number, (deliver_ms, table.position()));
}

/// Takes back the last delayed message that was acknowledged.
fn take_back(desk: &mut Desk, topic: u32, journal: &mut Journal) {
    let Some((number, (due_ms, position))) = journal.delayed.last_key_value() else { return };
    let (number, due_ms, position) = (*number, *due_ms, *position);
    let args = RecallArgs { topic, queue: 0, position, due_ms, id_high: 0, id_low: number };
    let sent = desk.send(Opcode::Recall, &[], |fbb| Recall::create(fbb, &args));
    desk.handle(Input::TurnEnd);
    let done = desk.take(sent).is_some_and(|answer| answer.status == Status::Ok);
    journal.recalled.insert(number, done);
}

/// Every delayed message arrives once, at its time, but for those taken back.
fn check_delayed(desk: &Desk, journal: &Journal, seen: &[(u64, i64)], what: &str) {
    let mut arrived = BTreeSet::new();
    for (number, stored_ms) in seen.iter().filter(|(number, _)| *number >= DELAYED) {
        assert!(arrived.insert(*number), "{what}: {number} came twice");
        let known = journal.delayed.get(number);
        // promise: never-early
        assert!(known.is_none_or(|(due_ms, _)| stored_ms >= due_ms), "{what}: {number} is early");
        assert_ne!(journal.recalled.get(number), Some(&true), "{what}: {number} was taken back");
    }
    for number in journal.delayed.keys() {
        let gone = journal.recalled.contains_key(number) || arrived.contains(number);
        assert!(gone, "{what}: {number} is lost: {:?}", desk.shard.figures());
    }
}

fn topics(desk: &mut Desk) -> Option<[u32; 3]> {
    Some([
        desk.create_topic_as("orders", QUEUES, 0)?,
        desk.create_topic_as("kept", 1, 4_000)?,
        desk.create_topic_as("delayed", 1, 1 << 40)?,
    ])
}

/// Two lives: the first ends cleanly, the second as it comes. Returns what it did, when it was not stopped.
fn live(files: &Files, journal: &mut Journal, stop_at: usize) -> Vec<&'static str> {
    let watch = Watch { name, stop_at };
    let mut desk = Desk::watched(config(), files.clone(), watch);
    let Some(topics) = topics(&mut desk) else { return desk.names };
    for delay_ms in [60_000, 8_000_000, 9_000_000] {
        delay(&mut desk, topics[2], journal, delay_ms);
    }
    take_back(&mut desk, topics[2], journal);
    produce(&mut desk, topics, journal, 120);
    desk.advance(200);
    desk.handle(Input::Stop);
    let (names, is_dead) = (std::mem::take(&mut desk.names), desk.is_dead);
    if is_dead {
        return names;
    }
    let watch = Watch { name, stop_at: stop_at - names.len() };
    let mut desk = Desk::watched(config(), files.clone(), watch);
    for _ in 0..6 {
        produce(&mut desk, topics, journal, 40);
        delay(&mut desk, topics[2], journal, 700);
        desk.advance(1000);
    }
    [names, std::mem::take(&mut desk.names)].concat()
}

/// Everything that was acknowledged is read, but for what expired; what comes next gets new offsets.
fn check(files: Files, journal: &Journal, what: &str) {
    let mut desk = Desk::open(config(), files);
    let topics = topics(&mut desk).expect("answered");
    let kept = (QUEUES, topics[1], 0);
    for (known, topic, queue) in (0..QUEUES).map(|q| (q, topics[0], q)).chain([kept]) {
        let (mut next, mut end) = (0, false);
        while !end {
            let sent = desk.fetch(&[FetchQueue::new(topic, queue, next, 0, 0, 0)], 0);
            let answer = desk.take(sent).expect("answered at once");
            let numbers = desk::numbers(&answer.run);
            let table = read_table::<FetchAnswer<'_>>(&answer.table).unwrap();
            let found = table.queues().and_then(|queues| queues.iter().next());
            let status = found.map_or(Status::Ok, |found| Status::from_code(found.status()));
            match status {
                Status::OffsetOutOfRange if next == 0 => {
                    next = found.unwrap().min_offset();
                    assert!(next > 0, "{what}");
                    continue;
                }
                Status::Ok => {}
                other => panic!("{what}: queue {known} at {next}: {other}"),
            }
            for (offset, number) in (next..).zip(&numbers) {
                let sent = journal.acknowledged.get(&(known, offset));
                assert!(sent.is_none_or(|sent| sent == number), "{what}: {known} {offset}");
            }
            next += numbers.len() as u64;
            end = numbers.is_empty();
        }
        let last = journal.acknowledged.range((known, 0)..(known + 1, 0)).next_back();
        let acknowledged = last.map_or(0, |((_, offset), _)| offset + 1);
        assert!(next >= acknowledged, "{what}: queue {known} ends at {next}, not {acknowledged}");
    }
    desk.now.wall_ms += 100_000_000;
    desk.now.mono_us += 100_000_000_000;
    for _ in 0..20 {
        desk.handle(Input::Tick);
    }
    let mut seen = Vec::new();
    let mut next = 0;
    loop {
        let sent = desk.fetch(&[FetchQueue::new(topics[2], 0, next, 0, 0, 0)], 0);
        let answer = desk.take(sent).expect("answered at once");
        let before = seen.len();
        for (found, number) in record::records(&answer.run).zip(desk::numbers(&answer.run)) {
            seen.push((number, found.unwrap().header.store_ms.get()));
        }
        next += (seen.len() - before) as u64;
        if seen.len() == before {
            break;
        }
    }
    check_delayed(&desk, journal, &seen, what);
    let mut after = journal.clone();
    produce(&mut desk, topics, &mut after, 6);
    assert_eq!(after.acknowledged.len(), journal.acknowledged.len() + 6, "{what}");
}

/// promise: ack-is-durable, for every step.
#[test]
fn the_shard_may_stop_before_any_step() {
    let mut journal = Journal::default();
    let files = Files::default();
    let all = live(&files, &mut journal, usize::MAX);
    check(files, &journal, "not stopped");
    assert!(journal.acknowledged.len() == 360 && all.len() > 700, "{}", all.len());
    for point in POINTS {
        assert!(all.contains(&point), "{point} is never reached");
    }
    for (stop_at, name) in all.iter().enumerate() {
        let (mut journal, files) = (Journal::default(), Files::default());
        let names = live(&files, &mut journal, stop_at);
        assert_eq!(names, all[..stop_at], "the same run as ever");
        check(files, &journal, &format!("stopped at {stop_at}, before {name:?}"));
    }
}

/// Recovery itself may be cut off before anything that it writes.
#[test]
fn recovery_may_stop_before_anything_it_writes() {
    let (mut journal, files) = (Journal::default(), Files::default());
    let all = live(&files, &mut journal, usize::MAX);
    let mut most = 0;
    for stop_at in (0..all.len()).step_by(37) {
        let (mut journal, files) = (Journal::default(), Files::default());
        live(&files, &mut journal, stop_at);
        // Without an index there is the more to be written.
        if stop_at % 2 == 0 {
            files.1.borrow_mut().clear();
        }
        for calls in 0.. {
            let files = files.deep_copy();
            let mut limited = desk::Limited { files: files.clone(), calls };
            let opened = Shard::open(
                config(),
                desk::Pool,
                &mut limited,
                Now { mono_us: 1, wall_ms: 1_700_000_000_000 },
                &mut Outbox::default(),
            );
            let is_open = opened.is_ok();
            drop(opened);
            check(files, &journal, &format!("stopped at {stop_at}, recovery at call {calls}"));
            if is_open {
                most = most.max(calls);
                break;
            }
        }
    }
    assert!(most >= 3, "{most}");
}
