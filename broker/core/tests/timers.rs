//! Delayed messages: never early, in order, once, whatever clock, restarts and indexes do.
#![allow(clippy::unwrap_used)]

mod desk;

use desk::{Desk, Files, run};
use ringmq_core::ShardConfig;
use ringmq_schema::admin::{CreateGroup, CreateGroupArgs, GroupAnswer};
use ringmq_schema::build::{MessageSpec, RecordBuilder};
use ringmq_schema::consume::{
    FetchAnswer, FetchQueue, QueryLag, QueryLagAnswer, QueryLagArgs, QueueRef,
};
use ringmq_schema::error::Status;
use ringmq_schema::frame::read_table;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement::mix;
use ringmq_schema::produce::{Flush, ProduceAnswer};
use ringmq_schema::record::{FLAG_DELAYED, NO_OFFSET, records};
use ringmq_schema::timer::{
    ListTimers, ListTimersAnswer, ListTimersArgs, PendingTimer, Recall, RecallArgs,
};
use std::collections::{BTreeMap, BTreeSet};

fn config() -> ShardConfig {
    ShardConfig {
        segment_bytes: 64 << 10,
        unit_bytes: 16 << 10,
        small_unit_bytes: 8 << 10,
        tail_cache_bytes: 16 << 10,
        snapshot_bytes: 256 << 10,
        snapshot_pause_ms: 0,
        retention_ms: 0,
        hole_bytes_min: 0,
        ..ShardConfig::new(0, 1, 77)
    }
}

fn id_of(number: u64) -> [u8; 16] {
    (u128::from(number) + 1).to_be_bytes()
}

/// A run of messages with these numbers and delivery times.
fn delayed(topic: u32, messages: &[(u64, i64)], bytes: usize) -> Vec<u8> {
    let (mut builder, mut out) = (RecordBuilder::new(), Vec::new());
    for &(number, deliver_ms) in messages {
        let mut body = number.to_le_bytes().to_vec();
        body.resize(bytes.max(8), number as u8);
        let message_id = id_of(number);
        let spec = MessageSpec { body: &body, deliver_ms, message_id, ..MessageSpec::default() };
        builder.append(&mut out, topic, 0, &spec).expect("fits");
    }
    out
}

/// Sends them; returns their positions.
fn send(desk: &mut Desk, topic: u32, messages: &[(u64, i64)], bytes: usize) -> Vec<u64> {
    let run = delayed(topic, messages, bytes);
    let sent = desk.produce(topic, 0, &run, messages.len() as u32, Flush::Sync);
    desk.handle(ringmq_core::Input::TurnEnd);
    let answer = desk.take(sent).expect("answered");
    assert_eq!(answer.status, Status::Ok);
    let table = read_table::<ProduceAnswer<'_>>(&answer.table).unwrap();
    assert_eq!(table.base_offset(), NO_OFFSET);
    records(&run).map(|found| table.position() + found.unwrap().at as u64).collect()
}

/// What arrived: number, time due, time stored.
fn fetch(desk: &mut Desk, topic: u32, next: &mut u64) -> Vec<(u64, i64, i64)> {
    let mut all = Vec::new();
    loop {
        let sent = desk.fetch(&[FetchQueue::new(topic, 0, *next, 0, 0, 0)], 0);
        desk.handle(ringmq_core::Input::TurnEnd);
        let answer = desk.take(sent).expect("answered at once");
        let table = read_table::<FetchAnswer<'_>>(&answer.table).unwrap();
        let told = table.queues().and_then(|queues| queues.iter().next());
        if let Some(told) = told.filter(|told| told.status() != 0) {
            assert_eq!(Status::from_code(told.status()), Status::OffsetOutOfRange);
            assert!(told.min_offset() > *next);
            *next = told.min_offset();
            continue;
        }
        let before = all.len();
        for (found, number) in records(&answer.run).zip(desk::numbers(&answer.run)) {
            let header = found.unwrap().header;
            assert_eq!(header.offset.get(), *next);
            *next += 1;
            all.push((number, header.deliver_ms.get(), header.store_ms.get()));
            assert_eq!(header.deliver_ms.get() != 0, header.flags.get() & FLAG_DELAYED != 0);
        }
        if all.len() == before {
            return all;
        }
    }
}

/// As a runtime does: ticks when the shard wants one.
fn pass(desk: &mut Desk, ms: u64) {
    let end = desk.now.mono_us + ms * 1000;
    for _ in 0..100_000 {
        let wake = desk.shard.next_wake().unwrap_or(end).max(desk.now.mono_us + 1);
        let step_us = wake.min(end) - desk.now.mono_us;
        desk.now.mono_us += step_us;
        // Whole ms pass on the wall clock, and the rest is kept by the other.
        let passed = desk.now.mono_us / 1000 - (desk.now.mono_us - step_us) / 1000;
        desk.now.wall_ms += passed as i64;
        desk.handle(ringmq_core::Input::Tick);
        if desk.now.mono_us >= end {
            return;
        }
    }
    panic!("the shard never rests");
}

fn reopen(desk: Desk, config: ShardConfig, clean: bool) -> Desk {
    let mut desk = desk;
    let (files, now) = (desk.files.clone(), desk.now);
    if clean {
        desk.handle(ringmq_core::Input::Stop);
        for _ in 0..100 {
            if desk.stopped {
                break;
            }
            desk.handle(ringmq_core::Input::Tick);
        }
        assert!(desk.stopped);
    }
    drop(desk);
    let mut desk = Desk::open(config, files);
    desk.now = now;
    desk
}

fn recall(desk: &mut Desk, topic: u32, number: u64, due_ms: i64, position: u64) -> Status {
    let id = u128::from_be_bytes(id_of(number));
    let args = RecallArgs {
        topic,
        queue: 0,
        position,
        due_ms,
        id_high: (id >> 64) as u64,
        id_low: id as u64,
    };
    desk.call(Opcode::Recall, &[], |fbb| Recall::create(fbb, &args)).status
}

/// All that are pending, by as many requests as it takes.
fn list(desk: &mut Desk, topic: u32, max: u32) -> Vec<PendingTimer> {
    let mut all = Vec::new();
    let (mut after_due_ms, mut after_position) = (i64::MIN, 0);
    loop {
        let args = ListTimersArgs { after_due_ms, after_position, topic, max };
        let answer = desk.call(Opcode::ListTimers, &[], |fbb| ListTimers::create(fbb, &args));
        assert_eq!(answer.status, Status::Ok);
        let table = read_table::<ListTimersAnswer<'_>>(&answer.table).unwrap();
        assert_eq!(table.unreadable(), 0);
        all.extend(table.timers().into_iter().flatten().copied());
        (after_due_ms, after_position) = (table.next_due_ms(), table.next_position());
        if !table.more() {
            return all;
        }
    }
}

/// promise: never-early
#[test]
fn a_delayed_message_arrives_at_its_time_and_not_before() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let (begin, mut next) = (desk.now.wall_ms, 0);
    send(&mut desk, topic, &[(1, begin + 5_000), (2, begin + 3_000), (3, begin + 3_000)], 100);
    pass(&mut desk, 2_999);
    assert_eq!(fetch(&mut desk, topic, &mut next), []);
    desk = reopen(desk, config(), false);
    pass(&mut desk, 1);
    let arrived = fetch(&mut desk, topic, &mut next);
    assert_eq!(arrived, [(2, begin + 3_000, begin + 3_000), (3, begin + 3_000, begin + 3_000)]);
    desk = reopen(desk, config(), true);
    pass(&mut desk, 10_000);
    let arrived = fetch(&mut desk, topic, &mut next);
    assert_eq!(arrived, [(1, begin + 5_000, begin + 5_000)]);
    assert_eq!(desk.shard.figures().timers_pending, 0);
}

#[test]
fn a_batch_is_delayed_as_a_whole_or_not_at_all_and_not_for_too_long() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let now = desk.now.wall_ms;
    let day = 86_400_000;
    let refused: [(&[(u64, i64)], &str); 3] = [
        (&[(1, 0), (2, now + 10)], "not both"),
        (&[(1, now + 41 * day)], "40 days"),
        (&[(1, -5)], "1970"),
    ];
    for (messages, text) in refused {
        let run = delayed(topic, messages, 100);
        let sent = desk.produce(topic, 0, &run, messages.len() as u32, Flush::Sync);
        let answer = desk.take(sent).unwrap();
        assert_eq!(answer.status, Status::BadRecord);
        let refusal = read_table::<ringmq_schema::connection::Refusal<'_>>(&answer.table).unwrap();
        assert!(refusal.message().unwrap().contains(text), "{:?}", refusal.message());
    }
    send(&mut desk, topic, &[(1, now + 40 * day), (2, 5)], 100);
    // What is due is a message like any other.
    let run = delayed(topic, &[(3, now), (4, 1)], 100);
    let sent = desk.produce(topic, 0, &run, 2, Flush::Sync);
    desk.handle(ringmq_core::Input::TurnEnd);
    let answer = desk.take(sent).unwrap();
    let table = read_table::<ProduceAnswer<'_>>(&answer.table).unwrap();
    assert!(table.base_offset() < 2);
    assert_eq!(desk.shard.figures().timers_pending, 1);
}

#[test]
fn one_that_was_taken_back_is_not_delivered() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let (due, mut next) = (desk.now.wall_ms + 60_000, 0);
    let positions = send(&mut desk, topic, &[(1, due), (2, due), (3, due + 50)], 100);
    assert_eq!(recall(&mut desk, topic, 2, due, positions[1] + 8), Status::NotFound);
    assert_eq!(recall(&mut desk, topic, 1, due, positions[1]), Status::NotFound);
    assert_eq!(recall(&mut desk, topic, 2, due + 1, positions[1]), Status::NotFound);
    assert_eq!(recall(&mut desk, topic, 2, due, u64::MAX - 7), Status::NotFound);
    assert_eq!(recall(&mut desk, topic, 2, due, positions[1]), Status::Ok);
    assert_eq!(recall(&mut desk, topic, 2, due, positions[1]), Status::NotFound);
    for clean in [false, true] {
        desk = reopen(desk, config(), clean);
        assert_eq!(recall(&mut desk, topic, 2, due, positions[1]), Status::NotFound);
        let listed = list(&mut desk, topic, 1);
        assert_eq!(listed.iter().map(PendingTimer::id_low).collect::<Vec<_>>(), [2, 4]);
    }
    assert_eq!(desk.shard.figures().timers_pending, 2);
    pass(&mut desk, 60_000);
    let arrived: Vec<u64> = fetch(&mut desk, topic, &mut next).iter().map(|m| m.0).collect();
    assert_eq!(arrived, [1]);
    assert_eq!(recall(&mut desk, topic, 1, due, positions[0]), Status::NotFound);
    pass(&mut desk, 60_000);
    assert_eq!(fetch(&mut desk, topic, &mut next).len(), 1);
}

/// Timers over many segments: in order, read from disk, and what is in memory does not grow with them.
#[test]
fn far_timers_lie_in_the_log_and_arrive_in_order() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let begin = desk.now.wall_ms;
    let mut model = BTreeMap::new();
    for n in 0..6_000_u64 {
        let due = begin + 100_000 + (mix(n) % 5_000) as i64;
        let position = send(&mut desk, topic, &[(n, due)], 60)[0];
        model.insert((due, position), n);
    }
    assert!(desk.files.0.borrow().len() > 100);
    let mut expected: Vec<u64> = model.values().copied().collect();
    let listed: Vec<u64> = list(&mut desk, 0, 700).iter().map(|t| t.id_low() - 1).collect();
    assert_eq!(listed, expected);
    // From the indexes, and without them: the same.
    let files = desk.files.deep_copy();
    files.1.borrow_mut().clear();
    let mut bare = Desk::open(config(), files);
    bare.now = desk.now;
    let listed: Vec<u64> = list(&mut bare, 0, 1000).iter().map(|t| t.id_low() - 1).collect();
    assert_eq!(listed, expected);
    desk = reopen(desk, config(), true);
    assert_eq!(desk.shard.figures().timers_pending, 6_000);
    let (mut next, mut arrived) = (0, Vec::new());
    for round in 0..12 {
        let left = begin + 100_000 - desk.now.wall_ms;
        pass(&mut desk, if round == 0 { left as u64 } else { 500 });
        if round % 4 == 2 {
            desk = reopen(desk, config(), round % 8 == 2);
        }
        for (number, due, stored) in fetch(&mut desk, topic, &mut next) {
            assert!(stored >= due && stored - due < 100, "{number}: due {due}, stored {stored}");
            arrived.push(number);
        }
    }
    // Few are left in the first segments at the end: they are appended again, behind others of the same time.
    let first = expected.iter().take(4_000);
    assert!(first.eq(arrived.iter().take(4_000)), "in the order of time and position");
    arrived.sort_unstable();
    expected.sort_unstable();
    assert!(arrived == expected);
    assert_eq!(desk.shard.figures().timers_pending, 0);
}

/// No disk is held by a few timers: they are appended again, and their segments go.
#[test]
fn what_is_owed_is_appended_again_before_its_segment_goes() {
    let config = || ShardConfig { retention_ms: 2_000, ..config() };
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let (begin, mut next) = (desk.now.wall_ms, 0);
    let mut owed = BTreeMap::new();
    let mut handles = Vec::new();
    for n in 0..400_u64 {
        let sent = desk.produce(topic, 0, &run(topic, 0, n, 1, 2000), 1, Flush::Sync);
        desk.handle(ringmq_core::Input::TurnEnd);
        assert_eq!(desk.take(sent).unwrap().status, Status::Ok);
        if n % 10 == 0 {
            let due = begin + 60_000 + (mix(n) % 1_000) as i64;
            let position = send(&mut desk, topic, &[(1_000 + n, due)], 100)[0];
            owed.insert(1_000 + n, due);
            handles.push((1_000 + n, due, position));
        }
        pass(&mut desk, 50);
        if n % 90 == 80 {
            desk = reopen(desk, config(), n % 180 == 80);
        }
    }
    let figures = desk.shard.figures();
    assert!(desk.files.0.borrow().len() < 30, "{} {figures:?}", desk.files.0.borrow().len());
    assert!(*desk.files.0.borrow().keys().next().unwrap() > handles[3].2, "segments went");
    assert_eq!(figures.timers_pending, owed.len() as u64);
    let (number, due, position) = handles[0];
    let listed = list(&mut desk, topic, 1000);
    let ids: BTreeSet<u64> = listed.iter().map(|timer| timer.id_low() - 1).collect();
    assert!(ids.iter().eq(owed.keys()));
    let moved = listed.iter().find(|timer| timer.id_low() - 1 == number).unwrap();
    assert!(moved.position() > position, "it has moved");
    // By its old handle and by its new one it can be taken back, once.
    assert_eq!(recall(&mut desk, topic, number + 1, due, position), Status::NotFound, "another");
    assert_eq!(recall(&mut desk, topic, number, due, position), Status::Ok);
    assert_eq!(recall(&mut desk, topic, number, due, position), Status::NotFound);
    assert_eq!(recall(&mut desk, topic, number, due, moved.position()), Status::NotFound);
    owed.remove(&number);
    let (number, due, _) = handles[1];
    let moved = listed.iter().find(|timer| timer.id_low() - 1 == number).unwrap();
    assert_eq!(recall(&mut desk, topic, number, due, moved.position()), Status::Ok);
    owed.remove(&number);
    desk = reopen(desk, config(), false);
    fetch(&mut desk, topic, &mut next);
    let left = begin + 59_000 - desk.now.wall_ms;
    pass(&mut desk, left as u64);
    let mut arrived = BTreeMap::new();
    for _ in 0..10 {
        pass(&mut desk, 300);
        for (number, due, stored) in fetch(&mut desk, topic, &mut next) {
            assert!(stored >= due);
            assert_eq!(arrived.insert(number, due), None, "{number} came twice");
        }
    }
    assert_eq!(arrived, owed);
}

/// Many are due at the same moment: the one is found among them, and beyond a bound the answer says where to look.
#[test]
fn one_that_moved_is_found_among_many_that_are_due_then() {
    let config = ShardConfig { retention_ms: 2_000, ..config() };
    let mut desk = Desk::open(config, Files::default());
    let topic = desk.create_topic("orders", 1);
    let due = desk.now.wall_ms + 10_000_000;
    let mut handles = Vec::new();
    for n in 0..3_000 {
        // Most of what its segment holds may go.
        let run = run(topic, 0, n, 1, 1500);
        desk.produce(topic, 0, &run, 1, Flush::Sync);
        let due = if n < 100 { due } else { due + 1 + i64::from(n % 2 == 0) };
        if n % 3 == 0 {
            handles.push((n, due, send(&mut desk, topic, &[(n, due)], 100)[0]));
        }
        pass(&mut desk, 20);
    }
    let first = *desk.files.0.borrow().keys().next().unwrap();
    let moved: Vec<_> = handles.iter().filter(|(.., position)| *position < first).collect();
    assert!(moved.len() > 200, "{}", moved.len());
    for (number, due, position) in moved.iter().step_by(37) {
        assert_eq!(recall(&mut desk, topic, *number, *due, *position), Status::Ok, "{number}");
        assert_eq!(recall(&mut desk, topic, *number, *due, *position), Status::NotFound);
    }
    let pending = desk.shard.figures().timers_pending;
    assert_eq!(pending, handles.len() as u64 - moved.iter().step_by(37).count() as u64);
}

/// A message behind the mark was taken back; while a snapshot says so, another behind the mark is delivered. Whatever
/// slice of the snapshot is written then, the first stays taken back when all of that is replayed.
#[test]
fn what_was_taken_back_behind_the_mark_stays_so_whenever_a_snapshot_is_written() {
    for slices in 0..24 {
        let mut desk = Desk::open(config(), Files::default());
        let topic = desk.create_topic("orders", 1);
        // The mark, and the clock set back behind it.
        let start = desk.now.wall_ms;
        send(&mut desk, topic, &[(0, start + 20_000)], 100);
        pass(&mut desk, 21_000);
        desk.now.wall_ms = start + 1_000;
        let soon = (1, start + 6_000);
        let later = (2, start + 12_000);
        let positions = send(&mut desk, topic, &[soon, later], 100);
        assert_eq!(recall(&mut desk, topic, later.0, later.1, positions[1]), Status::Ok);
        let before = desk.shard.figures().snapshots;
        let more = |desk: &mut Desk| {
            desk.produce(topic, 0, &run(topic, 0, 1 << 40, 1, 1500), 1, Flush::Sync);
            desk.handle(ringmq_core::Input::TurnEnd);
        };
        // One slice for each input from here on.
        desk.hold_writes = true;
        while desk.shard.figures().snapshots == before {
            more(&mut desk);
        }
        for _ in 0..slices {
            desk.handle(ringmq_core::Input::TurnEnd);
        }
        desk.now.wall_ms = soon.1;
        desk.now.mono_us += 1_000;
        desk.handle(ringmq_core::Input::Tick);
        desk.hold_writes = false;
        desk.finish_writes();
        pass(&mut desk, 1_000);
        // Recovery begins with the snapshot that the first unit of the last segment names.
        let segments = desk.files.0.borrow().len();
        while desk.files.0.borrow().len() < segments + 2 {
            more(&mut desk);
        }
        assert_eq!(desk.shard.figures().snapshots, before + 1);
        let mut next = 0;
        fetch(&mut desk, topic, &mut next);
        let mut desk = reopen(desk, config(), false);
        pass(&mut desk, 20_000);
        let arrived = fetch(&mut desk, topic, &mut next);
        assert_eq!(arrived, [], "after {slices} slices");
        assert_eq!(desk.shard.figures().timers_pending, 0, "after {slices} slices");
    }
}

/// A log of nothing but timers is not written again and again.
#[test]
fn segments_full_of_timers_stay_until_they_are_old() {
    let config = || ShardConfig { retention_ms: 600_000, ..config() };
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let due = desk.now.wall_ms + 10_000_000;
    for n in 0..1_000 {
        send(&mut desk, topic, &[(n, due)], 500);
    }
    let segments = desk.files.0.borrow().len();
    pass(&mut desk, 120_000);
    assert_eq!(desk.shard.figures().timers_moved, 0);
    assert!(desk.files.0.borrow().len() <= segments + 3);
}

/// One life of a shard with a clock that jumps, restarts, indexes that go missing, and timers that are taken back.
struct World {
    desk: Desk,
    config: ShardConfig,
    topic: u32,
    seed: u64,
    next: u64,
    /// By number: due time, position.
    pending: BTreeMap<u64, (i64, u64)>,
    arrived: BTreeSet<u64>,
    numbers: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let (retention_ms, hole_bytes_min) =
            if seed.is_multiple_of(2) { (0, 0) } else { (3_000, 8 << 10) };
        let config = ShardConfig { retention_ms, hole_bytes_min, ..config() };
        let mut desk = Desk::open(config.clone(), Files::default());
        let topic = desk.create_topic("orders", 1);
        let (pending, arrived) = (BTreeMap::new(), BTreeSet::new());
        World { desk, config, topic, seed, next: 0, pending, arrived, numbers: 0 }
    }

    fn chance(&mut self, below: u64) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.seed) % below
    }

    fn step(&mut self) {
        let what = self.chance(20);
        // Before it expires.
        self.fetch();
        match what {
            0..8 => self.send(),
            8..12 => {
                let number = 1 << 40;
                let run = run(self.topic, 0, number, 1, 1500);
                self.desk.produce(self.topic, 0, &run, 1, Flush::Sync);
                self.desk.handle(ringmq_core::Input::TurnEnd);
            }
            12..15 => {
                let ms = self.chance(1_500);
                pass(&mut self.desk, ms);
            }
            15 => {
                let ms = self.chance(8_000) as i64 - 4_000;
                self.desk.now.wall_ms += ms;
                self.desk.handle(ringmq_core::Input::Tick);
            }
            16 => self.recall(),
            17 => self.restart(),
            18 => self.look(),
            _ => self.fetch(),
        }
    }

    fn send(&mut self) {
        let count = 1 + self.chance(3);
        let now = self.desk.now.wall_ms;
        let mut messages = Vec::new();
        for _ in 0..count {
            let far = if self.chance(4) == 0 { 60_000 } else { 4_000 };
            let due = now + 1 + self.chance(far) as i64;
            messages.push((self.numbers, due));
            self.numbers += 1;
        }
        let positions = send(&mut self.desk, self.topic, &messages, 300);
        for ((number, due), position) in messages.into_iter().zip(positions) {
            self.pending.insert(number, (due, position));
        }
    }

    fn recall(&mut self) {
        let Some((number, due, position)) = self.choose() else { return };
        let status = recall(&mut self.desk, self.topic, number, due, position);
        match status {
            Status::Ok => drop(self.pending.remove(&number)),
            Status::NotFound => {
                // It arrived, and nobody looked yet.
                self.fetch();
                assert!(!self.pending.contains_key(&number), "{number} is pending");
            }
            other => panic!("{other}"),
        }
    }

    /// As many as the shard counts for the queue.
    fn waiting(&mut self) -> u64 {
        let answer = self.desk.call(Opcode::CreateGroup, &[], |fbb| {
            let name = Some(fbb.create_string("g"));
            CreateGroup::create(fbb, &CreateGroupArgs { name, settings: None })
        });
        let group = read_table::<GroupAnswer<'_>>(&answer.table).unwrap().group().unwrap().id();
        let answer = self.desk.call(Opcode::QueryLag, &[], |fbb| {
            let queues = Some(fbb.create_vector(&[QueueRef::new(self.topic, 0)]));
            QueryLag::create(fbb, &QueryLagArgs { group, queues })
        });
        let table = read_table::<QueryLagAnswer<'_>>(&answer.table).unwrap();
        table.queues().unwrap().get(0).delayed()
    }

    fn choose(&mut self) -> Option<(u64, i64, u64)> {
        let at = self.chance(self.pending.len().max(1) as u64) as usize;
        self.pending.iter().nth(at).map(|(number, (due, position))| (*number, *due, *position))
    }

    fn restart(&mut self) {
        let clean = self.chance(2) == 0;
        let desk = std::mem::replace(&mut self.desk, Desk::open(config(), Files::default()));
        let files = desk.files.clone();
        let config = self.config.clone();
        if self.chance(3) == 0 {
            let now = desk.now;
            drop(desk);
            let gone = self.chance(1 + files.1.borrow().len() as u64) as usize;
            let bases: Vec<u64> = files.1.borrow().keys().copied().skip(gone).collect();
            bases.iter().for_each(|base| drop(files.1.borrow_mut().remove(base)));
            self.desk = Desk::open(config, files);
            self.desk.now = now;
        } else {
            self.desk = reopen(desk, config, clean);
        }
    }

    /// The list says what is pending, sorted.
    fn look(&mut self) {
        self.fetch();
        let fired = self.desk.shard.figures().timers_fired;
        let listed = list(&mut self.desk, self.topic, 7);
        let waiting = self.waiting();
        if fired == self.desk.shard.figures().timers_fired {
            assert_eq!(waiting, listed.len() as u64);
        }
        let keys: Vec<(i64, u64)> = listed.iter().map(|t| (t.due_ms(), t.position())).collect();
        assert!(keys.is_sorted(), "{keys:?}");
        // What is due may be delivered between the two.
        self.fetch();
        let listed: BTreeSet<u64> = listed.iter().map(|timer| timer.id_low() - 1).collect();
        let missing: Vec<_> =
            self.pending.iter().filter(|(number, _)| !listed.contains(number)).collect();
        assert_eq!(missing, [], "at {}", self.desk.now.wall_ms);
        assert!(listed.iter().all(|n| self.pending.contains_key(n) || self.arrived.contains(n)));
    }

    fn fetch(&mut self) {
        let now = self.desk.now.wall_ms;
        for (number, due, stored) in fetch(&mut self.desk, self.topic, &mut self.next) {
            if number == 1 << 40 {
                continue;
            }
            // promise: never-early
            assert!(stored >= due && (due <= now || stored <= now + 8_000), "{number} came early");
            assert!(self.arrived.insert(number), "{number} came twice");
            let known = self.pending.remove(&number).expect("it was sent, and not taken back");
            assert_eq!(known.0, due);
        }
    }

    fn finish(mut self) {
        for _ in 0..40 {
            pass(&mut self.desk, 2_000);
            self.fetch();
        }
        pass(&mut self.desk, 80_000);
        self.fetch();
        assert!(self.pending.is_empty(), "lost: {:?}", self.pending);
        assert_eq!((self.desk.shard.figures().timers_pending, self.waiting()), (0, 0));
        assert_eq!(self.desk.shard.figures().timers_lost, 0);
    }
}

/// promise: never-early, and none is lost or delivered twice.
#[test]
fn whatever_clock_and_restarts_do() {
    let mut moved = 0;
    for seed in 0..60 {
        let mut world = World::new(seed);
        for _ in 0..250 {
            world.step();
        }
        moved += world.desk.shard.figures().timers_moved;
        world.finish();
    }
    assert!(moved > 10, "{moved}");
}
