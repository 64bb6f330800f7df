//! SQL filters of fetches: from memory and from disk the same records, within a bounded amount of work.

#![allow(clippy::unwrap_used)] // A failure here is the test's.

mod desk;

use desk::{Answer, Desk, Files, numbers};
use ringmq_core::{Input, ShardConfig};
use ringmq_schema::build::{MessageSpec, RecordBuilder};
use ringmq_schema::connection::Refusal;
use ringmq_schema::consume::{
    Fetch, FetchAnswer, FetchArgs, FetchQueue, FilterKind, GroupHeartbeat, GroupHeartbeatArgs,
    MemberId, Subscription, SubscriptionArgs, TagFilter, TagFilterArgs,
};
use ringmq_schema::error::Status;
use ringmq_schema::frame::read_table;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::produce::Flush;
use ringmq_schema::record;

const QUEUES: u32 = 2;

fn config() -> ShardConfig {
    ShardConfig {
        segment_bytes: 128 << 10,
        unit_bytes: 32 << 10,
        small_unit_bytes: 16 << 10,
        tail_cache_bytes: 64 << 10,
        transfer_bytes_min: 8 << 10,
        ..ShardConfig::new(0, 1, 77)
    }
}

/// Message `n`: its number and region are properties; the tag says whether it is even.
fn message(topic: u32, queue: u32, n: u64, bytes: usize, out: &mut Vec<u8>) {
    let mut body = n.to_le_bytes().to_vec();
    body.resize(bytes.max(8), n as u8);
    let number = n.to_string();
    let region = ["eu", "us", "asia"][(n % 3) as usize];
    let properties = [("region", region), ("n", number.as_str())];
    let tag = Some(if n.is_multiple_of(2) { "even" } else { "odd" });
    let spec = MessageSpec { body: &body, tag, properties: &properties, ..MessageSpec::default() };
    RecordBuilder::new().append(out, topic, queue, &spec).unwrap();
}

/// Queue `n % QUEUES` gets message `n`.
fn fill(desk: &mut Desk, topic: u32, numbers: std::ops::Range<u64>, bytes: usize) {
    for n in numbers {
        let queue = (n % u64::from(QUEUES)) as u32;
        let mut run = Vec::new();
        message(topic, queue, n, bytes, &mut run);
        let sent = desk.produce(topic, queue, &run, 1, Flush::Sync);
        if n % 4 == 3 {
            desk.handle(Input::TurnEnd);
        }
        if n % 100 == 99 {
            desk.advance(10);
        }
        desk.answers.retain(|answer| answer.correlation != sent || answer.status != Status::Ok);
    }
    desk.handle(Input::TurnEnd);
    desk.answers.retain(|answer| answer.status != Status::Ok);
    assert!(desk.answers.is_empty(), "{:?}", desk.answers);
}

fn send(desk: &mut Desk, sql: &[&str], queues: &[FetchQueue], wait_ms: u32) -> u64 {
    desk.send(Opcode::Fetch, &[], |fbb| {
        let filters: Vec<_> = sql
            .iter()
            .map(|sql| {
                let sql = Some(fbb.create_string(sql));
                TagFilter::create(fbb, &TagFilterArgs { sql, ..TagFilterArgs::default() })
            })
            .collect();
        let filters = Some(fbb.create_vector(&filters));
        let queues = Some(fbb.create_vector(queues));
        Fetch::create(fbb, &FetchArgs { queues, filters, wait_ms, ..FetchArgs::default() })
    })
}

fn next(answer: &Answer, queue: u32) -> Option<u64> {
    let table = read_table::<FetchAnswer<'_>>(&answer.table).unwrap();
    let found = table.queues()?.iter().find(|found| found.queue() == queue)?;
    assert_eq!(found.status(), 0);
    Some(found.next_offset())
}

/// All that is to be had of all queues with a filter, and how many answers it took.
fn read_all(
    desk: &mut Desk,
    topic: u32,
    sql: &str,
    ends: [u64; QUEUES as usize],
) -> (Vec<u64>, u32) {
    let (mut at, mut all, mut rounds) = ([0; QUEUES as usize], Vec::new(), 0);
    while at != ends {
        let queues: Vec<FetchQueue> =
            (0..QUEUES).map(|q| FetchQueue::new(topic, q, at[q as usize], 0, 1, 0)).collect();
        let sent = send(desk, &[sql], &queues, 0);
        let answer = desk.take(sent).expect("answered at once");
        assert_eq!(answer.status, Status::Ok);
        let before = at;
        for queue in 0..QUEUES {
            at[queue as usize] = next(&answer, queue).unwrap_or(at[queue as usize]);
        }
        assert_ne!(before, at, "it moves on");
        all.extend(numbers(&answer.run));
        rounds += 1;
        assert!(rounds < 10_000);
    }
    all.sort_unstable();
    (all, rounds)
}

type IsWanted = fn(u64) -> bool;

const FILTERS: [(&str, IsWanted); 6] = [
    ("region = 'eu'", |n| n % 3 == 0),
    ("n BETWEEN 500 AND 509.5 OR n = 7", |n| (500..510).contains(&n) || n == 7),
    ("TAGS = 'odd' AND region <> 'us'", |n| n % 2 == 1 && n % 3 != 1),
    ("TAGS IN ('even', 'none')", |n| n % 2 == 0),
    ("missing = 'x'", |_| false),
    ("missing IS NULL", |_| true),
];

/// semantics: SQL92
#[test]
fn the_same_from_memory_from_disk_and_after_a_restart() {
    const COUNT: u64 = 2000;
    let files = Files::default();
    let mut desk = Desk::open(config(), files.clone());
    let topic = desk.create_topic("t", QUEUES);
    fill(&mut desk, topic, 0..COUNT, 600);
    assert!(files.1.borrow().len() > 5, "most lies in sealed segments");
    let ends = [COUNT / 2; QUEUES as usize];
    // Windows that are kept, and none.
    for read_cache_bytes in [16 << 20, 0] {
        for (sql, is_wanted) in FILTERS {
            let expected: Vec<u64> = (0..COUNT).filter(|n| is_wanted(*n)).collect();
            let left_out = desk.shard.figures().sql_left_out;
            let (found, _) = read_all(&mut desk, topic, sql, ends);
            assert_eq!(found, expected, "{sql}");
            let left_out = desk.shard.figures().sql_left_out - left_out;
            assert_eq!(left_out, COUNT - expected.len() as u64, "{sql}: counted");
        }
        assert_eq!(desk.transfers, 0, "a run from the file may hold what is not wanted");
        assert!(desk.reads > 0);
        desk = Desk::open(ShardConfig { read_cache_bytes, ..config() }, files.clone());
    }
}

/// Where the tag alone leaves a record out it is not read.
#[test]
fn what_the_tag_decides_is_not_read() {
    let files = Files::default();
    let mut desk = Desk::open(config(), files.clone());
    let topic = desk.create_topic("t", QUEUES);
    fill(&mut desk, topic, 0..1000, 600);
    let mut desk = Desk::open(config(), files);
    let (found, _) = read_all(&mut desk, topic, "TAGS = 'none' AND n > 5", [500, 500]);
    assert!(found.is_empty());
    assert_eq!(desk.reads, 0);
    let (found, _) = read_all(&mut desk, topic, "TAGS = 'none' OR n = 5", [500, 500]);
    assert_eq!(found, [5]);
    assert!(desk.reads > 0);
}

/// A long poll is answered by what is wanted, and by nothing else before its time.
#[test]
fn a_long_poll_waits_for_what_is_wanted() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("t", QUEUES);
    let queue = [FetchQueue::new(topic, 0, 0, 0, 1, 0)];
    let sent = send(&mut desk, &["n = 8"], &queue, 10_000);
    fill(&mut desk, topic, 0..8, 10);
    assert!(desk.take(sent).is_none());
    let mut run = Vec::new();
    message(topic, 0, 8, 10, &mut run);
    desk.produce(topic, 0, &run, 1, Flush::Sync);
    desk.handle(Input::TurnEnd);
    let answer = desk.take(sent).unwrap();
    assert_eq!((numbers(&answer.run), next(&answer, 0)), (vec![8], Some(5)));
    assert_eq!(desk.shard.figures().sql_left_out, 4);
    // When it is over it says how far it looked.
    let sent = send(&mut desk, &["n = 9"], &queue, 1000);
    assert!(desk.take(sent).is_none());
    desk.advance(1000);
    let answer = desk.take(sent).unwrap();
    assert_eq!((answer.run.len(), next(&answer, 0)), (0, Some(5)));
}

/// promise: isolation. A fetch costs a bounded amount of work, and always moves on.
#[test]
fn work_is_bounded_and_goes_on_where_it_stopped() {
    let config = ShardConfig { tail_cache_bytes: 64 << 20, segment_bytes: 64 << 20, ..config() };
    let files = Files::default();
    let mut desk = Desk::open(config.clone(), files.clone());
    let topic = desk.create_topic("t", QUEUES);
    fill(&mut desk, topic, 0..8000, 8);
    let terms = vec!["region CONTAINS 'x'"; 150].join(" OR ");
    let (ends, some) = ([4000, 4000], "n = 7999");
    let (found, cheap) = read_all(&mut desk, topic, some, ends);
    assert_eq!(found, [7999]);
    assert!((5..20).contains(&cheap), "{cheap}");
    let (found, dear) = read_all(&mut desk, topic, &terms, ends);
    assert!(found.is_empty());
    assert!((cheap * 3..500).contains(&dear), "{dear}");
    // The same from disk, also where nothing that was read is kept.
    for read_cache_bytes in [16 << 20, 0] {
        let config = ShardConfig { read_cache_bytes, ..config.clone() };
        let mut desk = Desk::open(config, files.clone());
        assert_eq!(read_all(&mut desk, topic, some, ends).0, [7999]);
        assert!(read_all(&mut desk, topic, &terms, ends).0.is_empty());
    }
    // One message that costs more than all that a fetch may: still it moves on.
    let value = "y".repeat(30_000);
    let mut run = Vec::new();
    for body in [8000u64, 8001, 8002] {
        let (body, properties) = (body.to_le_bytes(), [("region", value.as_str())]);
        let spec = MessageSpec { body: &body, properties: &properties, ..MessageSpec::default() };
        RecordBuilder::new().append(&mut run, topic, 0, &spec).unwrap();
    }
    desk.produce(topic, 0, &run, 3, Flush::Sync);
    desk.handle(Input::TurnEnd);
    assert!(read_all(&mut desk, topic, &terms, [4003, 4000]).0.is_empty());
    let all = format!("{terms} OR region STARTSWITH 'yyy'");
    assert_eq!(read_all(&mut desk, topic, &all, [4003, 4000]).0, [8000, 8001, 8002]);
    let mut desk = Desk::open(config, files);
    assert_eq!(read_all(&mut desk, topic, &all, [4003, 4000]).0, [8000, 8001, 8002]);
}

/// What the broker cannot verify it does not judge: the consumer sets it aside.
#[test]
fn a_damaged_payload_goes_to_the_consumer() {
    let files = Files::default();
    let mut desk = Desk::open(config(), files.clone());
    let topic = desk.create_topic("t", QUEUES);
    fill(&mut desk, topic, 0..400, 600);
    desk.handle(Input::Stop);
    let mut damaged = 0;
    for file in files.0.borrow_mut().values_mut() {
        // The bodies of these are damaged, one byte each.
        for n in [100u64, 101, 301] {
            let mut body = n.to_le_bytes().to_vec();
            body.resize(64, n as u8);
            if let Some(at) = file.windows(64).position(|window| window == body) {
                file[at + 10] ^= 1;
                damaged += 1;
            }
        }
    }
    assert_eq!(damaged, 3);
    let mut desk = Desk::open(config(), files);
    let mut seen = Vec::new();
    for queue in 0..QUEUES {
        let mut at = 0;
        while at < 200 {
            let queues = [FetchQueue::new(topic, queue, at, 0, 1, 0)];
            let sent = send(&mut desk, &["n = 5"], &queues, 0);
            let answer = desk.take(sent).unwrap();
            at = next(&answer, queue).unwrap();
            for found in record::records(&answer.run) {
                let found = found.unwrap();
                let number = found.header.offset.get() * u64::from(QUEUES) + u64::from(queue);
                seen.push((number, found.check_payload().is_ok()));
            }
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, [(5, true), (100, false), (101, false), (301, false)]);
}

#[test]
fn several_filters_side_by_side() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("t", QUEUES);
    fill(&mut desk, topic, 0..20, 10);
    let queues = [FetchQueue::new(topic, 0, 0, 0, 2, 0), FetchQueue::new(topic, 1, 0, 0, 1, 0)];
    let sent = send(&mut desk, &["n < 10", "n >= 10"], &queues, 0);
    let mut found = numbers(&desk.take(sent).unwrap().run);
    found.sort_unstable();
    assert_eq!(found, [1, 3, 5, 7, 9, 10, 12, 14, 16, 18]);
}

fn refusal(answer: &Answer) -> (Status, String) {
    let refusal = read_table::<Refusal<'_>>(&answer.table).unwrap();
    (answer.status, refusal.message().unwrap().to_owned())
}

/// semantics: "a bad expression is refused at subscribe time with the position of the fault"
#[test]
fn bad_filters_are_refused() {
    let mut desk = Desk::open(config(), Files::default());
    let topic = desk.create_topic("t", QUEUES);
    let queues = [FetchQueue::new(topic, 0, 0, 0, 1, 0)];
    let sent = send(&mut desk, &["n > 'x'"], &queues, 0);
    let (status, text) = refusal(&desk.take(sent).unwrap());
    assert_eq!(status, Status::BadFilter);
    assert!(text.contains("byte 4") && text.ends_with("n > 'x'\n    ^"), "{text}");
    let sent = send(&mut desk, &["("; 1000], &queues, 0);
    assert_eq!(refusal(&desk.take(sent).unwrap()).0, Status::BadFilter);
    let long = format!("a = '{}'", "x".repeat(4000));
    let sent = send(&mut desk, &[long.as_str(); 20], &queues, 0);
    assert_eq!(refusal(&desk.take(sent).unwrap()).0, Status::TooMany);
    let both = desk.call(Opcode::Fetch, &[], |fbb| {
        let (hashes, sql) = (Some(fbb.create_vector(&[1u32])), Some(fbb.create_string("a = 1")));
        let filter = TagFilter::create(fbb, &TagFilterArgs { hashes, sql });
        let filters = Some(fbb.create_vector(&[filter]));
        let queues = Some(fbb.create_vector(&queues));
        Fetch::create(fbb, &FetchArgs { queues, filters, ..FetchArgs::default() })
    });
    assert_eq!(refusal(&both).0, Status::BadRequest);
    let answer = heartbeat(&mut desk, 1, FilterKind::Sql92, "region =");
    let (status, text) = refusal(&answer);
    assert_eq!(status, Status::BadFilter);
    assert!(text.contains("topic t") && text.ends_with("region =\n        ^"), "{text}");
}

/// semantics: "members of a group must subscribe alike". Spelling does not matter.
#[test]
fn members_subscribe_alike_whatever_the_spelling() {
    let mut desk = Desk::open(config(), Files::default());
    desk.create_topic("t", QUEUES);
    let sql = FilterKind::Sql92;
    assert_eq!(heartbeat(&mut desk, 1, sql, "region='eu' and n>5").status, Status::Ok);
    assert_eq!(heartbeat(&mut desk, 2, sql, "(region = 'eu') AND 5 < n").status, Status::Ok);
    let (status, text) = refusal(&heartbeat(&mut desk, 3, sql, "region = 'eu' AND n > 6"));
    assert_eq!(status, Status::SubscriptionMismatch);
    let (mine, others) = ("t (SQL: region = 'eu' AND n > 6)", "t (SQL: region = 'eu' AND n > 5)");
    assert!(text.contains(mine) && text.contains(others), "{text}");
    let answer = heartbeat(&mut desk, 3, FilterKind::Tags, "region = 'eu' AND n > 5");
    assert_eq!(answer.status, Status::SubscriptionMismatch);
}

fn heartbeat(desk: &mut Desk, member: u64, kind: FilterKind, expression: &str) -> Answer {
    desk.call(Opcode::GroupHeartbeat, &[], |fbb| {
        let (topic, text) = (Some(fbb.create_string("t")), Some(fbb.create_string(expression)));
        let args = SubscriptionArgs { topic, kind, expression: text };
        let subscription = Subscription::create(fbb, &args);
        let args = GroupHeartbeatArgs {
            group: Some(fbb.create_string("g")),
            member: Some(&MemberId::new(0, member)),
            subscriptions: Some(fbb.create_vector(&[subscription])),
            session_timeout_ms: 10_000,
            ..GroupHeartbeatArgs::default()
        };
        GroupHeartbeat::create(fbb, &args)
    })
}
