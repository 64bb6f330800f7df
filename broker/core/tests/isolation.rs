//! promise: isolation. A queue that cannot be served is told so, and the others of its fetch have what they have,
//! also from disk, whatever the consumer keeps asking for.
#![allow(clippy::unwrap_used)]

mod desk;

use desk::{Desk, Files, run};
use ringmq_core::{Input, ShardConfig};
use ringmq_schema::consume::{FetchAnswer, FetchQueue};
use ringmq_schema::error::Status;
use ringmq_schema::frame::read_table;
use ringmq_schema::produce::Flush;
use ringmq_schema::record;
use std::collections::{BTreeMap, BTreeSet};

/// Records of each queue.
const RECORDS: u64 = 20;

fn config(transfer_bytes_min: usize) -> ShardConfig {
    ShardConfig {
        segment_bytes: 128 << 10,
        unit_bytes: 32 << 10,
        small_unit_bytes: 16 << 10,
        tail_cache_bytes: 16 << 10,
        read_cache_bytes: 0,
        transfer_bytes_min,
        ..ShardConfig::new(0, 1, 77)
    }
}

/// A shard with a topic of so many queues, of which nothing is left in memory; the topic's id.
fn with_a_past(transfer_bytes_min: usize, queues: u32) -> (Desk, u32) {
    let mut desk = Desk::open(config(transfer_bytes_min), Files::default());
    let topic = desk.create_topic("orders", queues);
    let other = desk.create_topic("other", 1);
    let mut send = |topic: u32, queue: u32, first: u64| {
        let records = run(topic, queue, first, RECORDS, 1000);
        let sent = desk.produce(topic, queue, &records, RECORDS as u32, Flush::Sync);
        desk.handle(Input::TurnEnd);
        assert_eq!(desk.take(sent).expect("answered").status, Status::Ok);
    };
    for queue in 0..queues {
        send(topic, queue, 0);
    }
    (0..15).for_each(|n| send(other, 0, n * RECORDS));
    (desk, topic)
}

/// What a fetch brings: statuses of queues at fault, and offsets with where they lie.
#[derive(Debug, Default)]
struct Brought {
    faults: BTreeMap<u32, Status>,
    records: BTreeMap<u32, Vec<(u64, u64)>>,
}

fn fetch(desk: &mut Desk, topic: u32, wanted: &[(u32, u64)]) -> Brought {
    let wanted: Vec<FetchQueue> =
        wanted.iter().map(|(q, offset)| FetchQueue::new(topic, *q, *offset, 0, 0, 0)).collect();
    let sent = desk.fetch(&wanted, 0);
    let answer = desk.take(sent).expect("answered at once");
    assert_eq!(answer.status, Status::Ok);
    let mut brought = Brought::default();
    for found in record::records(&answer.run) {
        let header = found.unwrap().header;
        let place = (header.offset.get(), header.position.get());
        brought.records.entry(header.queue.get()).or_default().push(place);
    }
    let table = read_table::<FetchAnswer<'_>>(&answer.table).unwrap();
    for found in table.queues().into_iter().flatten().filter(|found| found.status() != 0) {
        brought.faults.insert(found.queue(), Status::from_code(found.status()));
    }
    brought
}

/// A consumer that asks for all of these each time, whatever it is told; how many fetches it takes until those
/// in `good` have come to their end. `stuck` are asked for from the same offset each time.
fn keep_asking(
    desk: &mut Desk,
    topic: u32,
    good: &BTreeSet<u32>,
    stuck: &BTreeMap<u32, (u64, Status)>,
) -> usize {
    let mut next: BTreeMap<u32, u64> = good.iter().map(|queue| (*queue, 0)).collect();
    let mut told = BTreeSet::new();
    for turn in 1..1000 {
        let mut wanted: Vec<(u32, u64)> = next.iter().map(|(q, offset)| (*q, *offset)).collect();
        wanted.extend(stuck.iter().map(|(queue, (offset, _))| (*queue, *offset)));
        wanted.sort_unstable();
        let brought = fetch(desk, topic, &wanted);
        for (queue, status) in brought.faults {
            assert_eq!(Some(status), stuck.get(&queue).map(|(_, status)| *status), "queue {queue}");
            told.insert(queue);
        }
        for (queue, records) in brought.records {
            let next = next.get_mut(&queue).expect("nothing comes of the others");
            for (offset, _) in records {
                assert_eq!(offset, *next, "queue {queue}");
                *next += 1;
            }
        }
        if next.values().all(|next| *next == RECORDS) {
            assert_eq!(told, stuck.keys().copied().collect(), "all that are stuck are told");
            return turn;
        }
    }
    panic!("the others starve: {next:?}");
}

/// Makes the first record of these queues unreadable.
fn damage(desk: &mut Desk, topic: u32, queues: impl IntoIterator<Item = u32>) {
    for queue in queues {
        let (_, position) = fetch(desk, topic, &[(queue, 0)]).records[&queue][0];
        let block = position / 4096 * 4096;
        desk.unreadable.push(block..block + 4096);
    }
}

#[test]
fn a_queue_that_cannot_be_read_does_not_keep_cold_records_of_others_back() {
    let (mut desk, topic) = with_a_past(0, 6);
    // The lowest in the log, and one between the others.
    damage(&mut desk, topic, [0, 3]);
    let stuck = [0, 3].map(|queue| (queue, (0, Status::ReadFailed))).into();
    let turns = keep_asking(&mut desk, topic, &[1, 2, 4, 5].into(), &stuck);
    assert!(turns <= 40, "{turns} fetches");
    desk.unreadable.clear();
    assert_eq!(fetch(&mut desk, topic, &[(0, 0)]).records[&0][0].0, 0, "it heals");
}

#[test]
fn many_queues_that_cannot_be_read_do_not_starve_the_few_that_can() {
    let (mut desk, topic) = with_a_past(0, 30);
    let good = BTreeSet::from([11, 29]);
    let bad = || (0..30).filter(|queue| !good.contains(queue));
    damage(&mut desk, topic, bad());
    let stuck = bad().map(|queue| (queue, (0, Status::ReadFailed))).collect();
    let turns = keep_asking(&mut desk, topic, &good, &stuck);
    assert!(turns <= 200, "{turns} fetches");
    let reads = desk.reads;
    fetch(&mut desk, topic, &bad().map(|queue| (queue, 0)).collect::<Vec<_>>());
    assert!(desk.reads - reads <= 32, "a fetch gives up at some time");
}

#[test]
fn whatever_is_wrong_with_a_queue_is_said_beside_cold_records_of_others() {
    for transfer_bytes_min in [0, 4096] {
        let (mut desk, topic) = with_a_past(transfer_bytes_min, 4);
        let stuck = [
            (1, (RECORDS + 1, Status::OffsetOutOfRange)),
            (3, (u64::MAX, Status::OffsetOutOfRange)),
            (9, (0, Status::UnknownQueue)),
        ];
        let turns = keep_asking(&mut desk, topic, &[0, 2].into(), &stuck.into());
        assert!(turns <= 40, "{turns} fetches");
        assert_eq!(desk.transfers > 0, transfer_bytes_min > 0, "{} transfers", desk.transfers);
    }
}
