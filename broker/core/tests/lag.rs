//! How far groups are behind: counts behind filters, what is on its way, what waits for its time.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

mod desk;

use desk::{Desk, Files};
use ringmq_core::{Input, ShardConfig};
use ringmq_schema::admin::{CreateGroup, CreateGroupArgs, GroupAnswer};
use ringmq_schema::build::{MessageSpec, RecordBuilder};
use ringmq_schema::consume::{
    CommitEntry, CommitOffsets, CommitOffsetsAnswer, CommitOffsetsArgs, CountMessages,
    CountMessagesAnswer, CountMessagesArgs, Fetch, FetchArgs, FetchQueue, GroupHeartbeat,
    GroupHeartbeatAnswer, GroupHeartbeatArgs, MemberId, QueryLag, QueryLagAnswer, QueryLagArgs,
    QueueLag, QueueRef, ResetOffsets, ResetOffsetsArgs, Subscription, SubscriptionArgs, TagFilter,
    TagFilterArgs,
};
use ringmq_schema::error::Status;
use ringmq_schema::frame::read_table;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::pop::{Pop, PopArgs};
use ringmq_schema::produce::Flush;
use ringmq_schema::record::tag_hash;
use ringmq_schema::timer::{Recall, RecallArgs};

const MEMBER: MemberId = MemberId([7; 16]);

fn config() -> ShardConfig {
    ShardConfig {
        segment_bytes: 128 << 10,
        unit_bytes: 32 << 10,
        small_unit_bytes: 16 << 10,
        tail_cache_bytes: 32 << 10,
        snapshot_bytes: 256 << 10,
        snapshot_pause_ms: 0,
        ..ShardConfig::new(0, 1, 77)
    }
}

/// A run of messages with these numbers, to be delivered then: number and parity are properties, the tag is one of
/// five.
fn messages(topic: u32, numbers: std::ops::Range<u64>, deliver_ms: i64) -> Vec<u8> {
    let (mut builder, mut run) = (RecordBuilder::new(), Vec::new());
    for n in numbers {
        let (number, tag) = (n.to_string(), format!("t{}", n % 5));
        let properties = [("n", number.as_str())];
        let message_id = u128::from(n + 1).to_be_bytes();
        let spec = MessageSpec {
            body: &[n as u8; 150],
            tag: Some(&tag),
            properties: &properties,
            deliver_ms,
            message_id,
            ..MessageSpec::default()
        };
        builder.append(&mut run, topic, 0, &spec).unwrap();
    }
    run
}

fn send(desk: &mut Desk, topic: u32, numbers: std::ops::Range<u64>, deliver_ms: i64) -> u64 {
    let count = (numbers.end - numbers.start) as u32;
    let run = messages(topic, numbers, deliver_ms);
    let sent = desk.produce(topic, 0, &run, count, Flush::Sync);
    desk.handle(Input::TurnEnd);
    let answer = desk.take(sent).unwrap();
    assert_eq!(answer.status, Status::Ok);
    read_table::<ringmq_schema::produce::ProduceAnswer<'_>>(&answer.table).unwrap().position()
}

fn fill(desk: &mut Desk, topic: u32, count: u64) {
    for first in (0..count).step_by(50) {
        send(desk, topic, first..(first + 50).min(count), 0);
        desk.advance(1);
    }
}

/// Time goes on as the shard asks for it.
fn pass_until<T>(desk: &mut Desk, mut done: impl FnMut(&mut Desk) -> Option<T>) -> T {
    for _ in 0..100_000 {
        if let Some(found) = done(desk) {
            return found;
        }
        let wake = desk.shard.next_wake().unwrap_or(u64::MAX);
        let step_us = wake.saturating_sub(desk.now.mono_us).clamp(1, 1_000);
        let ms = (desk.now.mono_us + step_us) / 1000 - desk.now.mono_us / 1000;
        desk.now.mono_us += step_us;
        desk.now.wall_ms += ms as i64;
        desk.handle(Input::Tick);
    }
    panic!("it never comes");
}

#[derive(Clone, Copy)]
enum By<'a> {
    All,
    Tags(&'a [&'a str]),
    Sql(&'a str),
    Group(u32),
}

/// Counts to the end: matching, unreadable, when the first was stored, and how many answers it took.
fn count(
    desk: &mut Desk,
    topic: u32,
    range: std::ops::Range<u64>,
    by: By<'_>,
) -> (u64, u64, i64, u32) {
    let (mut matching, mut unreadable, mut first_ms, mut rounds) = (0, 0, 0, 0);
    let (mut begin, end) = (range.start, range.end);
    loop {
        let sent = desk.send(Opcode::CountMessages, &[], |fbb| {
            let hashes = match by {
                By::Tags(tags) => {
                    let hashes: Vec<u32> = tags.iter().map(|tag| tag_hash(tag)).collect();
                    Some(fbb.create_vector(&hashes))
                }
                _ => None,
            };
            let sql = match by {
                By::Sql(text) => Some(fbb.create_string(text)),
                _ => None,
            };
            let is_filtered = hashes.is_some() || sql.is_some();
            let filter =
                is_filtered.then(|| TagFilter::create(fbb, &TagFilterArgs { hashes, sql }));
            let popped_by = if let By::Group(group) = by { group } else { 0 };
            let args = CountMessagesArgs { topic, queue: 0, begin, end, filter, popped_by };
            CountMessages::create(fbb, &args)
        });
        let answer = pass_until(desk, |desk| desk.take(sent));
        assert_eq!(answer.status, Status::Ok, "{:?}", String::from_utf8_lossy(&answer.table));
        let table = read_table::<CountMessagesAnswer<'_>>(&answer.table).unwrap();
        matching += table.matching();
        unreadable += table.unreadable();
        first_ms = if first_ms == 0 { table.first_ms() } else { first_ms };
        rounds += 1;
        if table.complete() {
            return (matching, unreadable, first_ms, rounds);
        }
        assert!(table.next() > begin, "it moves on");
        begin = table.next();
    }
}

fn group(desk: &mut Desk, name: &str) -> u32 {
    let answer = desk.call(Opcode::CreateGroup, &[], |fbb| {
        let name = Some(fbb.create_string(name));
        CreateGroup::create(fbb, &CreateGroupArgs { name, settings: None })
    });
    read_table::<GroupAnswer<'_>>(&answer.table).unwrap().group().unwrap().id()
}

fn lag(desk: &mut Desk, group: u32, topic: u32) -> QueueLag {
    let answer = desk.call(Opcode::QueryLag, &[], |fbb| {
        let queues = Some(fbb.create_vector(&[QueueRef::new(topic, 0)]));
        QueryLag::create(fbb, &QueryLagArgs { group, queues })
    });
    assert_eq!(answer.status, Status::Ok);
    let table = read_table::<QueryLagAnswer<'_>>(&answer.table).unwrap();
    let found = *table.queues().unwrap().get(0);
    assert_eq!(found.status(), 0);
    found
}

fn reopen(mut desk: Desk, clean: bool) -> Desk {
    let (files, now) = (desk.files.clone(), desk.now);
    if clean {
        desk.handle(Input::Stop);
        pass_until(&mut desk, |desk| desk.stopped.then_some(()));
    }
    drop(desk);
    Desk::open_at(config(), files, now)
}

/// In memory, on disk, in parts: as many as there are, whatever the filter.
#[test]
fn counts_are_exact_in_memory_and_on_disk() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let begun_ms = desk.now.wall_ms;
    fill(&mut desk, topic, 4000);
    for round in 0..3 {
        assert!(desk.files.1.borrow().len() > 5, "sealed segments");
        let found = count(&mut desk, topic, 0..u64::MAX, By::All);
        assert_eq!((found.0, found.1, found.2), (4000, 0, begun_ms), "{round}");
        assert_eq!(count(&mut desk, topic, 10..3333, By::All).0, 3323);
        assert_eq!(count(&mut desk, topic, 0..u64::MAX, By::Tags(&["t1", "t3", "x"])).0, 1600);
        assert_eq!(count(&mut desk, topic, 7..4000, By::Tags(&["t2"])).0, 799);
        let found = count(&mut desk, topic, 0..u64::MAX, By::Sql("n BETWEEN 1000 AND 1999.5"));
        assert_eq!((found.0, found.1, found.2), (1000, 0, begun_ms + 20));
        let sql = By::Sql("TAGS = 't1' AND n < 500");
        assert_eq!(count(&mut desk, topic, 100..4000, sql).0, 80);
        assert_eq!(count(&mut desk, topic, 4000..u64::MAX, By::All).0, 0);
        assert_eq!(count(&mut desk, topic, 3..3, By::Sql("n = 3")), (0, 0, 0, 1));
        desk = reopen(desk, round == 0);
    }
}

/// promise: isolation. However long it takes, a step is short, and between two there is time for others.
#[test]
fn counting_is_paced_and_answered_in_parts() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    fill(&mut desk, topic, 40_000);
    let begun_us = desk.now.mono_us;
    let (matching, _, _, rounds) = count(&mut desk, topic, 0..u64::MAX, By::Sql("n >= 0"));
    let took_us = desk.now.mono_us - begun_us;
    // 64 of work for a message, 8000 a step, one step each 500 us.
    assert!(took_us > 40_000 * 64 / 8_000 * 500, "{took_us}");
    assert_eq!((matching, rounds), (40_000, took_us.div_ceil(200_000) as u32));
    let cached = desk.index_reads;
    count(&mut desk, topic, 0..u64::MAX, By::Tags(&["t1"]));
    assert!(desk.index_reads > cached, "what it reads goes into no cache");
}

/// However long the disk takes, each answer gets somewhere.
#[test]
fn a_slow_disk_delays_a_count_and_does_not_stop_it() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    fill(&mut desk, topic, 1000);
    desk.hold_reads = true;
    let sent = desk.send(Opcode::CountMessages, &[], |fbb| {
        let sql = Some(fbb.create_string("n >= 0"));
        let filter = Some(TagFilter::create(fbb, &TagFilterArgs { hashes: None, sql }));
        CountMessages::create(fbb, &CountMessagesArgs { topic, filter, ..Default::default() })
    });
    let answer = pass_until(&mut desk, |desk| {
        desk.advance(500);
        desk.hold_reads = false;
        desk.finish_reads();
        desk.hold_reads = true;
        desk.take(sent)
    });
    let table = read_table::<CountMessagesAnswer<'_>>(&answer.table).unwrap();
    assert!(table.next() > 0 && table.matching() == table.next() && !table.complete());
}

/// What is lost or cannot be read is said, and everything else is counted.
#[test]
fn damage_is_counted_apart() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    fill(&mut desk, topic, 4000);
    let (from, to) = (200_000, 230_000);
    desk.unreadable.push(from..to);
    let (matching, unreadable, ..) = count(&mut desk, topic, 0..u64::MAX, By::Sql("n >= 0"));
    assert!(unreadable > 20 && unreadable < 200, "{unreadable}");
    assert_eq!(matching + unreadable, 4000);
    // By tag nothing but the index is looked at.
    let all = By::Tags(&["t0", "t1", "t2", "t3", "t4"]);
    assert_eq!(count(&mut desk, topic, 0..u64::MAX, all).0, 4000);
    desk.failing_reads = true;
    let sent = desk.send(Opcode::CountMessages, &[], |fbb| {
        let hashes = Some(fbb.create_vector(&[1u32]));
        let filter = Some(TagFilter::create(fbb, &TagFilterArgs { hashes, sql: None }));
        CountMessages::create(fbb, &CountMessagesArgs { topic, filter, ..Default::default() })
    });
    let answer = pass_until(&mut desk, |desk| desk.take(sent));
    assert_eq!(answer.status, Status::ReadFailed);
}

/// What the owner was given and did not commit is in flight: also after a restart, as soon as it fetches again.
#[test]
fn what_the_owner_was_given_is_in_flight() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let (group, generation) =
        pass_until(&mut desk, |desk| Some(join(desk)).filter(|(_, generation)| *generation > 0));
    fill(&mut desk, topic, 100);
    commit(&mut desk, group, topic, (0, generation));
    let told = lag(&mut desk, group, topic);
    assert_eq!((told.committed(), told.fetched(), told.popped()), (0, -1, -1));
    fetch(&mut desk, group, (topic, 0, generation), 30);
    assert_eq!(lag(&mut desk, group, topic).fetched(), 30);
    commit(&mut desk, group, topic, (10, generation));
    let told = lag(&mut desk, group, topic);
    assert_eq!((told.committed(), told.fetched(), told.max_offset()), (10, 30, 100));
    // The owner alone counts.
    fetch(&mut desk, group, (topic, 50, generation + 1), 10);
    assert_eq!(lag(&mut desk, group, topic).fetched(), 30);
    let metric = |desk: &mut Desk| {
        desk.advance(2000);
        desk.advance(1);
        desk.advance(1);
        let lags = desk.shard.lags();
        lags.first().map(|lag| (lag.messages, lag.in_flight))
    };
    assert_eq!(metric(&mut desk), Some((90, 20)));
    let mut desk = reopen(desk, false);
    assert_eq!(lag(&mut desk, group, topic).fetched(), -1);
    fetch(&mut desk, group, (topic, 30, generation), 5);
    assert_eq!(lag(&mut desk, group, topic).fetched(), 35);
    // A reset fences it: what it was given counts no more.
    let answer = desk.call(Opcode::ResetOffsets, &[], |fbb| {
        let entries = Some(fbb.create_vector(&[CommitEntry::new(topic, 0, 5, 0, 0, 0)]));
        ResetOffsets::create(fbb, &ResetOffsetsArgs { group, entries })
    });
    assert_eq!(answer.status, Status::Ok);
    let told = lag(&mut desk, group, topic);
    assert_eq!((told.committed(), told.fetched()), (5, -1));
}

fn join(desk: &mut Desk) -> (u32, u32) {
    let answer = desk.call(Opcode::GroupHeartbeat, &[], |fbb| {
        let topic = Some(fbb.create_string("orders"));
        let one = Subscription::create(fbb, &SubscriptionArgs { topic, ..Default::default() });
        let args = GroupHeartbeatArgs {
            group: Some(fbb.create_string("billing")),
            member: Some(&MEMBER),
            subscriptions: Some(fbb.create_vector(&[one])),
            ..Default::default()
        };
        GroupHeartbeat::create(fbb, &args)
    });
    assert_eq!(answer.status, Status::Ok);
    let table = read_table::<GroupHeartbeatAnswer<'_>>(&answer.table).unwrap();
    let owned = table.queues().and_then(|queues| queues.iter().next());
    (table.group(), owned.map_or(0, |owned| owned.generation()))
}

fn commit(desk: &mut Desk, group: u32, topic: u32, (offset, generation): (u64, u32)) {
    let answer = desk.call(Opcode::CommitOffsets, &[], |fbb| {
        let entry = CommitEntry::new(topic, 0, offset, generation, 0, 0);
        let entries = Some(fbb.create_vector(&[entry]));
        let args = CommitOffsetsArgs { group, member: Some(&MEMBER), entries };
        CommitOffsets::create(fbb, &args)
    });
    assert_eq!(answer.status, Status::Ok);
    let table = read_table::<CommitOffsetsAnswer<'_>>(&answer.table).unwrap();
    assert_eq!(table.entries().unwrap().get(0).status(), 0);
}

fn fetch(desk: &mut Desk, group: u32, (topic, offset, generation): (u32, u64, u32), most: u32) {
    let sent = desk.send(Opcode::Fetch, &[], |fbb| {
        let queues = [FetchQueue::new(topic, 0, offset, generation, 0, 0)];
        let args = FetchArgs {
            group,
            member: Some(&MEMBER),
            max_records: most,
            queues: Some(fbb.create_vector(&queues)),
            ..FetchArgs::default()
        };
        Fetch::create(fbb, &args)
    });
    desk.handle(Input::TurnEnd);
    assert_eq!(desk.take(sent).unwrap().status, Status::Ok);
}

/// Popped messages are in flight until their time is over; then they are back. What pops wanted last is counted.
#[test]
fn popped_messages_are_in_flight_and_come_back() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("orders", 1);
    let group = group(&mut desk, "billing");
    fill(&mut desk, topic, 100);
    let pop = |desk: &mut Desk, tag: &str, most: u32| {
        let answer = desk.call(Opcode::Pop, &[], |fbb| {
            let tags = Some(fbb.create_vector(&[tag_hash(tag)]));
            let (start, invisible_ms) = (-1, 30_000);
            let args = PopArgs {
                group,
                topic,
                start,
                tags,
                max_records: most,
                invisible_ms,
                ..PopArgs::default()
            };
            Pop::create(fbb, &args)
        });
        assert_eq!(answer.status, Status::Ok);
    };
    pop(&mut desk, "t1", 0);
    pop(&mut desk, "t1", 3);
    let told = lag(&mut desk, group, topic);
    assert_eq!((told.committed(), told.popped(), told.in_flight(), told.back()), (1, 12, 3, 0));
    let left = count(&mut desk, topic, 12..u64::MAX, By::Group(group));
    assert_eq!(left.0, 17, "of 20 with that tag 3 are handed out");
    desk.advance(2000);
    desk.advance(1);
    desk.advance(1);
    let lags = desk.shard.lags();
    let lags: Vec<_> = lags.iter().map(|lag| (lag.messages, lag.in_flight)).collect();
    assert_eq!(lags, [(91, 3)]);
    desk.advance(40_000);
    let told = lag(&mut desk, group, topic);
    assert_eq!((told.in_flight(), told.back()), (0, 3));
    let mut desk = reopen(desk, false);
    let told = lag(&mut desk, group, topic);
    assert_eq!((told.popped(), told.in_flight(), told.back()), (12, 0, 3));
    // What it wanted is not known any more: everything counts.
    assert_eq!(count(&mut desk, topic, 12..u64::MAX, By::Group(group)).0, 88);
}

/// Set, taken back, delivered, appended again, stopped at any point: as many as there are.
#[test]
fn messages_that_wait_for_their_time_are_counted_per_queue() {
    let mut desk = Desk::open(config(), Files::default());
    let (topic, other) = (desk.create_topic("orders", 1), desk.create_topic("other", 1));
    let group = group(&mut desk, "billing");
    let start_ms = desk.now.wall_ms;
    let hour = start_ms + 3_600_000;
    let position = send(&mut desk, topic, 0..7, hour);
    send(&mut desk, topic, 7..12, start_ms + 60_000);
    send(&mut desk, other, 12..15, hour);
    let waiting =
        |desk: &mut Desk| (lag(desk, group, topic).delayed(), lag(desk, group, other).delayed());
    assert_eq!(waiting(&mut desk), (12, 3));
    let args = RecallArgs { topic, position, due_ms: hour, id_low: 1, ..Default::default() };
    let answer = desk.call(Opcode::Recall, &[], |fbb| Recall::create(fbb, &args));
    assert_eq!(answer.status, Status::Ok);
    for clean in [false, true, false] {
        assert_eq!(waiting(&mut desk), (11, 3));
        desk = reopen(desk, clean);
    }
    // Snapshots come and go, and their segments.
    fill(&mut desk, topic, 8000);
    assert!(desk.shard.figures().snapshots > 2);
    assert_eq!(waiting(&mut desk), (11, 3));
    desk = reopen(desk, false);
    assert_eq!(waiting(&mut desk), (11, 3));
    desk.advance(60_000);
    pass_until(&mut desk, |desk| (lag(desk, group, topic).delayed() == 6).then_some(()));
    desk = reopen(desk, false);
    assert_eq!(waiting(&mut desk), (6, 3));
    desk.delete_topic("other");
    desk.advance(3_600_000);
    pass_until(&mut desk, |desk| (lag(desk, group, topic).delayed() == 0).then_some(()));
    desk = reopen(desk, true);
    assert_eq!(lag(&mut desk, group, topic).delayed(), 0);
}
