//! The rows of semantics.md under "Consuming" that are about how a group gets along: where it starts, where it is set
//! to, who has which queue, how far it is, and what pull and broadcasting consumers add.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq::{
    Client, ConsumeFrom, ErrorKind, Filter, GroupSpec, Message, PullConsumer, PushConsumer, Queue,
    Record, SeekTo, TopicSpec,
};
use ringmq_tests::server::PATIENCE;
use ringmq_tests::site::{Site, bounds, send_all};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CLOSING: Duration = Duration::from_secs(10);
/// How soon members are to notice a reset.
const NOTICE: Duration = Duration::from_secs(1);

/// What a consumer was given, in its order.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(Queue, u64, String)>>>);

impl Seen {
    fn add(&self, record: &Record) {
        let body = String::from_utf8(record.body().to_vec()).unwrap();
        self.0.lock().unwrap().push((record.queue().clone(), record.offset(), body));
    }

    fn all(&self) -> Vec<(Queue, u64, String)> {
        self.0.lock().unwrap().clone()
    }

    fn bodies(&self) -> Vec<String> {
        let mut bodies: Vec<String> = self.all().into_iter().map(|(_, _, body)| body).collect();
        bodies.sort_unstable();
        bodies
    }

    fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        a_moment(Duration::from_millis(2)).await;
    }
}

/// Time in which nothing that is waited for happens.
async fn a_moment(time: Duration) {
    let _ = tokio::time::timeout(time, pending::<()>()).await;
}

async fn topic(client: &Client, name: &str, queues: u32) {
    client.admin().create_topic(TopicSpec::new(name).queues(queues)).await.unwrap();
}

async fn send(client: &Client, topic: &str, bodies: impl IntoIterator<Item = String>) {
    let producer = client.producer("tests").build().await.unwrap();
    send_all(&producer, bodies.into_iter().map(|body| Message::new(topic, body))).await;
    producer.close(CLOSING).await.unwrap();
}

fn numbered(range: std::ops::Range<u32>) -> impl Iterator<Item = String> {
    range.map(|n| format!("{n:05}"))
}

/// A member that takes everything in.
async fn member(client: &Client, group: &str, topic: &str, seen: &Seen) -> PushConsumer {
    let into = seen.clone();
    let consumer = client.push_consumer(group).subscribe(topic, Filter::all());
    let consumer = consumer.from(ConsumeFrom::First).listen(move |record| {
        into.add(&record);
        async { Ok::<(), Infallible>(()) }
    });
    consumer.await.unwrap()
}

async fn committed(client: &Client, group: &str) -> u64 {
    let lag = client.admin().lag(group).await.unwrap();
    let counted = lag.iter().filter(|lag| !lag.queue.topic.starts_with('%'));
    counted.filter_map(|lag| lag.committed).sum()
}

#[test]
fn a_new_group_starts_at_the_first_the_last_or_a_time_and_stays_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 2).await;
        send(&client, "orders", numbered(0..20)).await;
        a_moment(Duration::from_millis(5)).await;
        let later = std::time::SystemTime::now();
        send(&client, "orders", numbered(20..30)).await;
        let starts = [ConsumeFrom::First, ConsumeFrom::Time(later), ConsumeFrom::Last];
        let (mut consumers, mut seen) = (Vec::new(), Vec::new());
        for (number, start) in starts.into_iter().enumerate() {
            let got = Seen::default();
            let into = got.clone();
            let builder = client.push_consumer(format!("group-{number}"));
            let consumer = builder.subscribe("orders", Filter::all()).from(start);
            let consumer = consumer.listen(move |record| {
                into.add(&record);
                async { Ok::<(), Infallible>(()) }
            });
            consumers.push(consumer.await.unwrap());
            seen.push(got);
        }
        for consumer in &consumers {
            until("it has both queues", async || consumer.queues().len() == 2).await;
        }
        send(&client, "orders", numbered(30..35)).await;
        for (number, first) in [0, 20, 30].into_iter().enumerate() {
            let expected: Vec<String> = numbered(first..35).collect();
            until("all of them came", async || seen[number].all().len() >= expected.len()).await;
            assert_eq!(seen[number].bodies(), expected);
        }
        for consumer in consumers {
            consumer.close(CLOSING).await.unwrap();
        }
        // What was committed counts, whatever is asked for the second time.
        let again = Seen::default();
        let consumer = member(&client, "group-2", "orders", &again).await;
        until("it has both queues", async || consumer.queues().len() == 2).await;
        send(&client, "orders", numbered(35..36)).await;
        until("it goes on", async || !again.all().is_empty()).await;
        assert_eq!(again.bodies(), ["00035"]);
        consumer.close(CLOSING).await.unwrap();
    });
    site.end();
}

#[test]
fn members_that_subscribe_differently_are_told_of_both() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 2).await;
        topic(&client, "refunds", 2).await;
        let first = member(&client, "billing", "orders", &Seen::default()).await;
        for (subscribed, filter) in [("orders", Filter::tags("paid")), ("refunds", Filter::all())] {
            let builder = client.push_consumer("billing").subscribe(subscribed, filter);
            let refused = builder.listen(|_| async { Ok::<(), Infallible>(()) }).await;
            let error = refused.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::SubscriptionMismatch);
            let text = error.to_string();
            let both = ["orders (*)", if subscribed == "orders" { "paid" } else { "refunds (*)" }];
            assert!(both.iter().all(|part| text.contains(part)), "{text}");
        }
        first.close(CLOSING).await.unwrap();
    });
    site.end();
}

#[test]
fn a_live_group_is_reset_and_nothing_committed_before_counts() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 2).await;
        send(&client, "orders", numbered(0..200)).await;
        let seen = Seen::default();
        let consumer = member(&client, "billing", "orders", &seen).await;
        until("all is consumed", async || seen.all().len() == 200).await;
        consumer.commit().await.unwrap();
        assert_eq!(committed(&client, "billing").await, 200);

        let admin = client.admin();
        let end = bounds(&client, "orders").await;
        let middle = std::time::SystemTime::now();
        send(&client, "orders", numbered(200..210)).await;
        until("these too", async || seen.all().len() == 210).await;

        // First, a number, a time, last: each is noticed while the consumer goes on.
        for (to, expected) in [
            (SeekTo::First, 210),
            (SeekTo::Offset(u64::MAX), 0),
            (SeekTo::Offset(95), 210 - 2 * 95),
            (SeekTo::Time(middle), 10),
        ] {
            seen.clear();
            let begun = Instant::now();
            let moved = admin.reset_offsets("billing", "orders", to).await.unwrap();
            assert_eq!(moved.len(), 2);
            until("the group goes on where it was set", async || seen.all().len() >= expected)
                .await;
            let noticed = begun.elapsed();
            ringmq_tests::say(format_args!("reset to {to:?}: noticed after {noticed:?}"));
            assert!(noticed < NOTICE * 10, "far beyond what a busy machine explains: {noticed:?}");
            until("it holds its queues again", async || consumer.positions().len() == 2).await;
            until("positions are at the end", async || {
                consumer.positions().iter().map(|(_, position)| position).sum::<u64>() == 210
            })
            .await;
            assert_eq!(seen.all().len(), expected, "{to:?}");
        }
        // One queue alone.
        seen.clear();
        let queue = end.keys().next().unwrap().clone();
        let one = admin.reset_queues("billing", &[queue.clone()], SeekTo::First).await.unwrap();
        assert_eq!(one, [(queue.clone(), 0)]);
        let in_it = bounds(&client, "orders").await[&queue].1 as usize;
        until("that queue comes again", async || seen.all().len() >= in_it).await;
        assert!(seen.all().iter().all(|(of, _, _)| *of == queue));
        let missing = Queue::new("orders", "broker-a", 7);
        let error = admin.reset_queues("billing", &[missing], SeekTo::First).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        consumer.close(CLOSING).await.unwrap();
    });
    site.end();
}

#[test]
fn what_a_member_had_before_a_reset_is_not_committed_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 1).await;
        send(&client, "orders", numbered(0..50)).await;
        // It polled everything, and commits only after the reset.
        let mut consumer = polling(&client, "billing", "orders").await;
        let got = poll_all(&mut consumer, 50).await;
        assert_eq!(got.len(), 50);
        let begun = Instant::now();
        client.admin().reset_offsets("billing", "orders", SeekTo::Offset(7)).await.unwrap();
        // Fenced, or nothing is left to commit: either way it does not count.
        let _ = consumer.commit().await;
        assert_eq!(committed(&client, "billing").await, 7);
        let again = poll_all(&mut consumer, 43).await;
        ringmq_tests::say(format_args!("reset: polled again after {:?}", begun.elapsed()));
        assert_eq!(again.first().unwrap().offset(), 7);
        consumer.commit().await.unwrap();
        assert_eq!(committed(&client, "billing").await, 50);
        consumer.close(CLOSING).await.unwrap();
    });
    // It is durable with its fence.
    let site = site.kill_and_restart();
    site.run(async |client| {
        client.admin().reset_offsets("billing", "orders", SeekTo::Offset(3)).await.unwrap();
    });
    let site = site.kill_and_restart();
    site.run(async |client| assert_eq!(committed(&client, "billing").await, 3));
    site.end();
}

async fn polling(client: &Client, group: &str, topic: &str) -> PullConsumer {
    let builder = client.pull_consumer(group).subscribe(topic, Filter::all());
    builder.from(ConsumeFrom::First).build().await.unwrap()
}

/// Polls until so many came.
async fn poll_all(consumer: &mut PullConsumer, count: usize) -> Vec<Record> {
    let (mut all, begun) = (Vec::new(), Instant::now());
    while all.len() < count {
        all.extend(consumer.poll(Duration::from_millis(100)).await.unwrap());
        assert!(begun.elapsed() < PATIENCE, "{} of {count} came", all.len());
    }
    all
}

/// A broadcasting member.
async fn listener(client: &Client, file: &Path, from: ConsumeFrom, seen: &Seen) -> PushConsumer {
    let into = seen.clone();
    let consumer = client.push_consumer("news").subscribe("orders", Filter::all());
    let consumer = consumer.broadcasting().offsets_file(file).from(from).listen(move |record| {
        into.add(&record);
        async { Ok::<(), Infallible>(()) }
    });
    let consumer = consumer.await.unwrap();
    until("it has all queues", async || consumer.queues().len() == 4).await;
    consumer
}

#[test]
fn broadcasting_gives_every_member_every_message_and_keeps_offsets_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let files: Vec<_> = (0..3).map(|n| folder.path().join(format!("member-{n}"))).collect();
    site.run(async |client| {
        topic(&client, "orders", 4).await;
        send(&client, "orders", numbered(0..100)).await;
        let seen = [Seen::default(), Seen::default(), Seen::default()];
        let first = listener(&client, &files[0], ConsumeFrom::First, &seen[0]).await;
        let second = listener(&client, &files[1], ConsumeFrom::First, &seen[1]).await;
        // A new member starts as it says.
        let late = listener(&client, &files[2], ConsumeFrom::Last, &seen[2]).await;
        send(&client, "orders", numbered(100..150)).await;
        until("everybody has everything", async || {
            seen[0].all().len() >= 150 && seen[1].all().len() >= 150 && seen[2].all().len() >= 50
        })
        .await;
        assert_eq!(seen[0].bodies(), numbered(0..150).collect::<Vec<_>>());
        assert_eq!(seen[0].bodies(), seen[1].bodies());
        assert_eq!(seen[2].bodies(), numbered(100..150).collect::<Vec<_>>());

        // One file, one consumer.
        let builder = client.push_consumer("news").subscribe("orders", Filter::all());
        let builder = builder.broadcasting().offsets_file(&files[0]);
        let taken = builder.listen(|_| async { Ok::<(), Infallible>(()) }).await;
        assert_eq!(taken.err().unwrap().kind(), ErrorKind::Exists);
        // A group is of one model.
        let builder = client.push_consumer("news").subscribe("orders", Filter::all());
        let mixed = builder.listen(|_| async { Ok::<(), Infallible>(()) }).await;
        assert_eq!(mixed.err().unwrap().kind(), ErrorKind::SubscriptionMismatch);

        first.close(CLOSING).await.unwrap();
        second.close(CLOSING).await.unwrap();
        late.close(CLOSING).await.unwrap();
        send(&client, "orders", numbered(150..160)).await;
        // The file of the second is damaged: it begins as a new one.
        let mut bytes = std::fs::read(&files[1]).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        std::fs::write(&files[1], &bytes).unwrap();
        seen.iter().for_each(Seen::clear);
        let first = listener(&client, &files[0], ConsumeFrom::First, &seen[0]).await;
        let second = listener(&client, &files[1], ConsumeFrom::First, &seen[1]).await;
        until("they go on", async || seen[0].all().len() >= 10 && seen[1].all().len() >= 160).await;
        assert_eq!(seen[0].bodies(), numbered(150..160).collect::<Vec<_>>());
        assert!(folder.path().join("member-1.damaged").exists());
        first.close(CLOSING).await.unwrap();
        second.close(CLOSING).await.unwrap();
    });
    site.end();
}

#[test]
fn a_broadcasting_member_tries_a_failed_message_again_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let file = folder.path().join("offsets");
    site.run(async |client| {
        topic(&client, "orders", 4).await;
        client.admin().create_group(GroupSpec::new("news").max_attempts(3)).await.unwrap();
        let seen = Seen::default();
        let into = seen.clone();
        let consumer = client.push_consumer("news").subscribe("orders", Filter::all());
        let consumer = consumer.broadcasting().offsets_file(&file).from(ConsumeFrom::First);
        let consumer = consumer.orderly_pause(Duration::from_millis(10)).listen(move |record| {
            into.add(&record);
            let fails = record.body() == b"00003";
            async move { if fails { Err("not today") } else { Ok(()) } }
        });
        let consumer = consumer.await.unwrap();
        send(&client, "orders", numbered(0..10)).await;
        until("all came, and one thrice", async || seen.all().len() >= 12).await;
        let failed = seen.bodies().iter().filter(|body| *body == "00003").count();
        assert_eq!(failed, 3);
        consumer.close(CLOSING).await.unwrap();
        let retry = client.admin().topic_stats("%RETRY%news").await.unwrap_or_default();
        assert!(retry.iter().all(|queue| queue.max_offset == 0), "nobody else gets it again");
    });
    site.end();
}

#[test]
fn pull_seeks_pauses_and_commits() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 1).await;
        send(&client, "orders", numbered(0..100)).await;
        a_moment(Duration::from_millis(5)).await;
        let later = std::time::SystemTime::now();
        send(&client, "orders", numbered(100..120)).await;
        let queue = bounds(&client, "orders").await.into_keys().next().unwrap();

        let mut consumer = polling(&client, "audit", "orders").await;
        assert_eq!(poll_all(&mut consumer, 120).await.len(), 120);
        for (to, first) in [
            (SeekTo::Offset(17), Some(17)),
            (SeekTo::First, Some(0)),
            (SeekTo::Time(later), Some(100)),
            (SeekTo::Last, None),
        ] {
            consumer.seek(&queue, to).await.unwrap();
            let records = match first {
                Some(first) => poll_all(&mut consumer, 120 - first).await,
                None => consumer.poll(Duration::from_millis(50)).await.unwrap(),
            };
            assert_eq!(records.first().map(|record| record.offset()), first.map(|f| f as u64));
        }
        // Paused: nothing comes, whatever is there.
        consumer.seek(&queue, SeekTo::First).await.unwrap();
        consumer.pause(&queue);
        assert!(consumer.poll(Duration::from_millis(100)).await.unwrap().is_empty());
        consumer.resume(&queue);
        assert_eq!(poll_all(&mut consumer, 120).await.len(), 120);

        // Sync, and async: the error of one is said by the next call.
        consumer.seek(&queue, SeekTo::Offset(30)).await.unwrap();
        consumer.commit().await.unwrap();
        assert_eq!(committed(&client, "audit").await, 30);
        consumer.seek(&queue, SeekTo::Offset(40)).await.unwrap();
        consumer.commit_async().unwrap();
        until("it is committed", async || committed(&client, "audit").await == 40).await;
        consumer.seek(&queue, SeekTo::Offset(u64::MAX)).await.unwrap();
        consumer.commit_async().unwrap();
        until("the error is said", async || consumer.poll(Duration::from_millis(1)).await.is_err())
            .await;
        consumer.close(CLOSING).await.unwrap();

        // Explicitly: nothing is held, nothing waits.
        let consumer = client.pull_consumer("audit").assign(queue.clone(), Filter::all());
        let consumer = consumer.build().await.unwrap();
        let pulled = consumer.pull(&queue, 110, 4).await.unwrap();
        let offsets: Vec<u64> = pulled.records.iter().map(Record::offset).collect();
        assert_eq!((offsets, pulled.next_offset), (vec![110, 111, 112, 113], 114));
        assert_eq!((pulled.min_offset, pulled.max_offset), (0, 120));
        let end = consumer.pull(&queue, 120, 4).await.unwrap();
        assert_eq!((end.records.len(), end.next_offset), (0, 120));
        let beyond = consumer.pull(&queue, 500, 4).await.unwrap();
        assert_eq!((beyond.records.len(), beyond.next_offset), (0, 120));
        consumer.close(CLOSING).await.unwrap();
    });
    site.end();
}

#[test]
fn pull_commits_by_itself_what_was_polled_before() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 1).await;
        send(&client, "orders", numbered(0..20)).await;
        let build = async || {
            let builder = client.pull_consumer("audit").subscribe("orders", Filter::all());
            let builder = builder.from(ConsumeFrom::First).max_records(10);
            builder.auto_commit(Duration::from_millis(20)).build().await.unwrap()
        };
        let mut consumer = build().await;
        assert_eq!(poll_all(&mut consumer, 10).await.len(), 10);
        assert_eq!(consumer.positions()[0].1, 10);
        // What is under way is not committed; dropping the consumer keeps it so.
        a_moment(Duration::from_millis(100)).await;
        assert_eq!(committed(&client, "audit").await, 0);
        drop(consumer);
        let mut consumer = build().await;
        assert_eq!(poll_all(&mut consumer, 10).await[0].offset(), 0);
        assert_eq!(poll_all(&mut consumer, 10).await[0].offset(), 10);
        until("the first ten are", async || committed(&client, "audit").await == 10).await;
        consumer.close(CLOSING).await.unwrap();
        assert_eq!(committed(&client, "audit").await, 20);
    });
    site.end();
}

#[test]
fn pull_keeps_to_its_room_and_a_dropped_poll_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 3).await;
        let builder = client.pull_consumer("audit").subscribe("orders", Filter::all());
        let builder = builder.from(ConsumeFrom::First).max_records(7);
        let mut consumer = builder.max_waiting(20).max_waiting_bytes(4096).build().await.unwrap();
        let sending = {
            let client = client.clone();
            tokio::spawn(async move {
                for part in 0..20 {
                    send(&client, "orders", numbered(part * 100..part * 100 + 100)).await;
                }
            })
        };
        let (mut got, mut dropped) = (Vec::new(), 0u32);
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let begun = Instant::now();
        while got.len() < 2000 {
            assert!(begun.elapsed() < PATIENCE, "{} came", got.len());
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let pause = Duration::from_micros(random >> 54);
            let polled = tokio::select! {
                biased;
                () = after(pause, random) => None,
                polled = consumer.poll(Duration::from_secs(1)) => Some(polled.unwrap()),
            };
            dropped += u32::from(polled.is_none());
            got.extend(polled.into_iter().flatten());
        }
        sending.await.unwrap();
        let mut next: BTreeMap<Queue, u64> = BTreeMap::new();
        for record in &got {
            let next = next.entry(record.queue().clone()).or_default();
            assert_eq!(record.offset(), *next, "nothing is lost, nothing comes twice");
            *next += 1;
        }
        ringmq_tests::say(format_args!("pull: 2000 records, {dropped} polls dropped"));
        assert!(dropped > 0);
        consumer.close(CLOSING).await.unwrap();
    });
    site.end();
}

/// A moment: so many turns of the executor, or some time, or never.
async fn after(pause: Duration, random: u64) {
    match random >> 40 & 3 {
        0 => a_moment(pause).await,
        1 => {
            for _ in 0..random >> 50 & 7 {
                tokio::task::yield_now().await;
            }
        }
        2 => a_moment(pause / 8).await,
        _ => pending().await,
    }
}

#[test]
fn two_hundred_members_settle_and_few_queues_move() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        for name in ["orders", "refunds"] {
            topic(&client, name, 150).await;
        }
        let joining = (0..200).map(|_| {
            let builder = client.push_consumer("billing").subscribe("orders", Filter::all());
            builder.subscribe("refunds", Filter::all()).listen(|_| async { Ok::<(), Infallible>(()) })
        });
        let begun = Instant::now();
        let members = futures_util::future::try_join_all(joining).await.unwrap();
        let joined = begun.elapsed();
        let counts = || members.iter().map(|m| m.queues().len()).collect::<Vec<_>>();
        until("everybody has one queue or two", async || {
            counts().iter().all(|count| (1..=2).contains(count)) && counts().iter().sum::<usize>() == 300
        })
        .await;
        let settled = begun.elapsed();
        let group = client.admin().describe_group("billing").await.unwrap();
        let owned = group.members.iter().flat_map(|member| &member.queues);
        let generations = owned.filter(|owned| !owned.queue.topic.starts_with('%'));
        let moves = generations.map(|owned| owned.generation - 1).max().unwrap();
        ringmq_tests::say(format_args!(
            "200 members: joined within {joined:?}, settled after {settled:?}, {moves} moves at most"
        ));
        assert!(moves <= 2, "{moves}");
        for member in &members {
            member.close(CLOSING).await.unwrap();
        }
    });
    site.end();
}

#[test]
fn queues_stay_with_who_comes_back_and_go_from_who_leaves_or_dies() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 4).await;
        let seen = Seen::default();
        let first = member(&client, "billing", "orders", &seen).await;
        until("it has all", async || first.queues().len() == 4).await;
        let second = Client::connect(site.namesrv()).await.unwrap();
        let other = member(&second, "billing", "orders", &seen).await;
        // Queues of the retry topic count as well: three of six each.
        let shares = || 1 <= first.queues().len() && first.queues().len() <= 3;
        until("they share", async || shares() && first.queues().len() + other.queues().len() == 4)
            .await;

        // A clean stop moves them at once.
        let begun = Instant::now();
        other.close(CLOSING).await.unwrap();
        until("the first has all again", async || first.queues().len() == 4).await;
        let stopped = begun.elapsed();
        assert!(stopped < Duration::from_secs(5), "not only after the session: {stopped:?}");

        // A process that dies says nothing: its session has to end.
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_ringmq-test-consumer"))
            .args([&site.namesrv(), "billing", "orders"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        until("they share", async || shares()).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let begun = Instant::now();
        until("the first has all again", async || first.queues().len() == 4).await;
        let died = begun.elapsed();
        assert!(died > Duration::from_secs(5), "a session lasts: {died:?}");
        ringmq_tests::say(format_args!(
            "queues are with another member {stopped:?} after a clean stop, {died:?} after a death"
        ));
        first.close(CLOSING).await.unwrap();
        second.shutdown(CLOSING).await.unwrap();
    });

    // A broker that is killed and comes back: the member reconnects and keeps its queues under their generations.
    let generations = async |client: &Client| {
        // While the broker is away there is none.
        let group = client.admin().describe_group("billing").await;
        let members = group.map_or_else(|_| Vec::new(), |group| group.members);
        let owned = members.into_iter().flat_map(|member| member.queues);
        let mut all: Vec<_> = owned.map(|owned| (owned.queue, owned.generation)).collect();
        all.retain(|(queue, _)| !queue.topic.starts_with('%'));
        all.sort();
        all
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(Client::connect(site.namesrv())).unwrap();
    let seen = Seen::default();
    let consumer = runtime.block_on(member(&client, "billing", "orders", &seen));
    let before = runtime.block_on(async {
        until("it has all", async || consumer.queues().len() == 4).await;
        generations(&client).await
    });
    let site = site.kill_with_damage(|| {});
    runtime.block_on(async {
        let mut after = Vec::new();
        until("it is back", async || {
            after = generations(&client).await;
            after.len() == 4
        })
        .await;
        assert_eq!(after, before);
        client.shutdown(CLOSING).await.unwrap();
    });
    site.end();
}

#[test]
fn lag_is_exact_behind_filters_and_says_who_and_since_when() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 2).await;
        let producer = client.producer("tests").build().await.unwrap();
        let tagged = |n: u32| {
            let tag = if n % 5 == 0 { "paid" } else { "open" };
            Message::new("orders", vec![b'x'; 300]).tag(tag).property("n", n.to_string())
        };
        send_all(&producer, (0..5000).map(tagged)).await;
        for (group, filter, expected) in [
            ("by-tag", Filter::tags("paid"), 1000),
            ("by-sql", Filter::sql("n < 100"), 100),
            ("all", Filter::all(), 5000),
        ] {
            let builder = client.pull_consumer(group).subscribe("orders", filter);
            let mut consumer = builder.from(ConsumeFrom::First).build().await.unwrap();
            until("it owns both", async || consumer.positions().len() == 2).await;
            let lag = client.admin().lag(group).await.unwrap();
            assert_eq!(lag.iter().map(|lag| lag.messages).sum::<u64>(), expected, "{group}");
            assert!(lag.iter().all(|lag| !lag.at_least && lag.owner.is_some()), "{lag:?}");
            assert!(lag.iter().filter(|lag| lag.messages > 0).all(|lag| lag.age.is_some()));
            poll_all(&mut consumer, expected as usize).await;
            consumer.commit().await.unwrap();
            let lag = client.admin().lag(group).await.unwrap();
            assert_eq!(lag.iter().map(|lag| lag.messages).sum::<u64>(), 0, "{lag:?}");
            assert!(lag.iter().all(|lag| lag.age.is_none() && lag.committed_at.is_some()));
            consumer.close(CLOSING).await.unwrap();
        }
        // Beyond the bound it says so.
        send_all(&producer, (0..25_000).map(|_| Message::new("orders", "y").tag("paid"))).await;
        let builder = client.pull_consumer("by-tag").subscribe("orders", Filter::tags("paid"));
        let consumer = builder.build().await.unwrap();
        until("it owns both", async || consumer.positions().len() == 2).await;
        let lag = client.admin().lag("by-tag").await.unwrap();
        assert!(lag.iter().any(|lag| lag.at_least && lag.messages >= 10_000), "{lag:?}");
        consumer.close(CLOSING).await.unwrap();
    });
    // In metrics, before filters, once the shards have looked.
    ringmq_tests::server::eventually_ok("the metric says it", || {
        let (_, text) = site.broker().http("/metrics");
        let of = |name: &str| {
            let mut lines = text.lines().filter(|line| line.starts_with(name));
            let line = lines.find(|line| line.contains("consumer_group=\"all\",topic=\"orders\""));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        };
        let found = (of("rocketmq_consumer_lag_messages"), of("ringmq_consumer_lag_seconds"));
        match found {
            (Some(25_000.0), Some(seconds)) if seconds > 0.0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    site.end();
}
