//! The feed against answers that come late.

use super::feed::{Feed, Holding, Place, Room};
use super::held::{Position, Taken, Waiting};
use crate::connection::Answer;
use crate::filter::Filter;
use crate::record::Record;
use crate::route::Queue;
use ringmq_schema::build::{MessageSpec, RecordBuilder};
use ringmq_schema::consume::{FetchAnswer, FetchAnswerArgs, FetchedQueue};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::FlatBufferBuilder;
use ringmq_schema::record::{Kind, RecordHeader};
use ringmq_schema::zerocopy::{FromBytes, IntoBytes};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

const TOPIC: u32 = 7;

fn holding() -> Holding {
    let broker: Arc<str> = "broker-a".into();
    Holding {
        queue: Arc::new(Queue::new("orders", Arc::clone(&broker), 0)),
        place: Place { broker, address: "127.0.0.1:1".into(), shard: 0 },
        topic_id: TOPIC,
        group_id: 1,
        generation: 1,
        filter: Arc::new(Filter::all()),
    }
}

/// Records of the queue with these offsets, as a broker answers.
fn answer(offsets: std::ops::Range<u64>) -> Answer {
    answer_with(offsets, Status::Ok)
}

fn answer_with(offsets: std::ops::Range<u64>, status: Status) -> Answer {
    let mut run = Vec::new();
    for offset in offsets.clone() {
        let mut header = RecordHeader::new(Kind::Message, 0);
        header.topic = TOPIC.into();
        header.offset = offset.into();
        header.seal();
        run.extend_from_slice(header.as_bytes());
    }
    let mut fbb = FlatBufferBuilder::new();
    let count = offsets.clone().count() as u32;
    let fetched = FetchedQueue::new(TOPIC, 0, offsets.end, offsets.end, 0, count, status.code(), 0);
    let queues = Some(fbb.create_vector(&[fetched]));
    let table = FetchAnswer::create(&mut fbb, &FetchAnswerArgs { queues });
    fbb.finish(table, None);
    Answer::of(fbb.finished_data(), &run)
}

/// The record at the beginning of the queue.
fn first_record() -> Record {
    let (mut bytes, spec) = (Vec::new(), MessageSpec { body: b"never", ..MessageSpec::default() });
    RecordBuilder::new().append(&mut bytes, TOPIC, 0, &spec).expect("a good message");
    let (header, _) = RecordHeader::mut_from_prefix(&mut bytes).expect("it begins with that");
    header.seal();
    Record::verify(&holding().queue, 0, bytes.into()).expect("as it was built")
}

fn feed(orderly: bool) -> Feed {
    let feed = Feed::new(Room { records: 100, bytes: 1 << 20 }, orderly);
    let start = Position::new(0);
    feed.hold(holding(), start, Some(start), Arc::new(Notify::new()));
    feed
}

#[test]
fn what_arrives_after_a_queue_was_taken_away_is_not_committed() {
    for orderly in [false, true] {
        let feed = feed(orderly);
        let broker: Arc<str> = "broker-a".into();
        let plan = feed.plan(&broker, 0).expect("there is a queue to fetch");
        feed.answered(&plan, &answer(0..3)).expect("a good answer");
        let taken: Vec<_> = std::iter::from_fn(|| {
            let taken = feed.take()?;
            feed.finish(taken.ticket);
            Some(taken.ticket.id)
        })
        .collect();
        let [id, _, _] = taken[..] else { panic!("three were given out, not {taken:?}") };
        let plan = feed.plan(&broker, 0).expect("there is room for more");
        assert_eq!(plan.asks[0].offset, 3);

        feed.revoke(id);
        feed.answered(&plan, &answer(3..6)).expect("a good answer");
        assert!(feed.take().is_none(), "a revoked queue gives nothing out");
        let commits = feed.to_commit(Some(id));
        // promise: at-least-once. No listener had more than the first three.
        assert_eq!(commits.iter().map(|commit| commit.at.offset).collect::<Vec<_>>(), [3]);
    }
}

#[test]
fn after_a_fetch_that_broke_off_the_broker_looks_at_the_records() {
    let feed = feed(false);
    let broker: Arc<str> = "broker-a".into();
    let plan = || feed.plan(&broker, 0).expect("there is a queue to fetch");
    let first = plan();
    assert!(!first.checked);
    feed.unask(&first);
    let checked = plan();
    assert!(checked.checked);
    feed.answered(&checked, &answer(0..3)).expect("a good answer");
    let next = plan();
    assert!(!next.checked, "files are sent again");
    feed.answered(&next, &answer_with(3..3, Status::ReadFailed)).expect("a good answer");
    let until = feed.plan(&broker, 0).err().flatten().expect("the queue waits a moment");
    assert!(until > std::time::Instant::now());
}

#[test]
fn what_failed_in_its_place_is_counted_on_by_whoever_has_the_queue_next() {
    let feed = feed(true);
    let broker: Arc<str> = "broker-a".into();
    let plan = feed.plan(&broker, 0).expect("there is a queue to fetch");
    feed.answered(&plan, &answer(0..2)).expect("a good answer");
    assert!(feed.to_commit(None).is_empty(), "nothing was consumed");
    let taken = feed.take().expect("the first");
    let message = first_record().on_attempt(4);
    feed.again(taken.ticket, Waiting::Again(message), Duration::from_secs(60));
    let commits = feed.to_commit(None);
    let [commit] = &commits[..] else { panic!("{} commits", commits.len()) };
    assert_eq!(commit.at, Position { offset: 0, attempts: 3 });
    feed.committed(commit.id, commit.at);
    assert!(feed.to_commit(None).is_empty());
    feed.revoke(commit.id);
    feed.drop_held(commit.id);

    let start = Position { offset: 0, attempts: 3 };
    feed.hold(holding(), start, Some(start), Arc::new(Notify::new()));
    assert!(feed.to_commit(None).is_empty(), "as it was committed");
    let mut taken = Taken { ticket: taken.ticket, record: Ok(first_record()), wanted: true };
    taken.resume(start);
    assert_eq!(taken.record.ok().map(|record| record.delivery_attempt()), Some(4));
}
