//! promise: prefix. Damage in the files of a stopped broker: what lay there is reported, all else is served.
//!
//! Bits flipped inside a sealed segment and in the record of a topic, indexes cut, damaged and removed, segments cut,
//! of another log, of a newer format.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq::{Message, TopicSpec};
use ringmq_schema::error::Status;
use ringmq_schema::produce::Flush;
use ringmq_tests::consume::consume;
use ringmq_tests::durability::{Load, restart};
use ringmq_tests::server::{BrokerOptions, Process, binary, eventually, namesrv};
use ringmq_tests::site::{Site, read_queues, read_topic, send_all, wait_for_brokers};
use ringmq_tests::wire::{Wire, base_offset, run};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const QUEUES: u32 = 4;

/// A stopped broker with several sealed segments in each of its two shards.
struct Left {
    options: BrokerOptions,
    load: Load,
    namesrv: Process,
    folder: tempfile::TempDir,
}

impl Left {
    fn new() -> Left {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let namesrv = namesrv("names");
        let mut options = BrokerOptions::new("broker-a", &folder.path().join("data"));
        options.more =
            ["--segment-bytes=1 MiB", "--unit-bytes=256 KiB"].map(str::to_owned).to_vec();
        options.namesrv = vec![namesrv.address()];
        let broker = options.start();
        let load = Load::new(&broker, QUEUES, false);
        let producers = load.start(broker.address());
        load.wait_for_queues(&[0, 1, 2, 3], 1200);
        eventually("indexes are there", || broker.metric("ringmq_segments_indexed_total") >= 6.0);
        assert_eq!(broker.terminate(), Some(0));
        producers.join();
        Left { options, load, namesrv, folder }
    }

    fn shard(&self, shard: u16) -> PathBuf {
        self.options.data_dir.join(format!("shard-{shard:04}"))
    }

    /// Files of a shard that end so, in the order of the log.
    fn files(&self, shard: u16, suffix: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.shard(shard)).unwrap().map(|entry| entry.unwrap().path());
        let ends = |path: &PathBuf| path.to_string_lossy().ends_with(suffix);
        let mut files: Vec<_> = entries.filter(ends).collect();
        files.sort();
        files
    }

    /// What `ringmq log verify` finds: its exit code, and the offsets that are damaged, by queue.
    fn verify(&self) -> (Option<i32>, BTreeSet<(u32, u64)>) {
        let output = Command::new(binary("ringmq"))
            .args(["log", "verify", "-o", "json"])
            .arg(&self.options.data_dir)
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let damages = report["verify"]["damages"].as_array().unwrap().iter();
        let covers = damages.flat_map(|damage| damage["covers"].as_array().unwrap());
        let number = |cover: &Value, key: &str| cover[key].as_u64().unwrap();
        let offsets = covers.flat_map(|cover| {
            let queue = number(cover, "queue") as u32;
            let range = number(cover, "first_offset")..number(cover, "end_offset");
            range.map(move |offset| (queue, offset))
        });
        (output.status.code(), offsets.collect())
    }
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn damage_in_a_segment_costs_what_lies_there_and_is_reported() {
    let left = Left::new();
    let broker = restart(&left.options);
    let queue = left.load.queues_on(1)[0];
    let whole = left.load.read_around(broker.address(), queue, Status::Corrupt);
    assert_eq!(broker.terminate(), Some(0));
    // In sealed segments with indexes, far below everything that recovery replays: anywhere, and in the header
    // of a record, which the broker itself looks at.
    let header = whole.places[&50].start + 40;
    assert!(header < 1 << 20, "it lies in the first segment");
    for (segment, at) in [(0, header), (0, 700_001), (1, 500_002)] {
        flip(&left.files(1, ".log")[segment], at);
    }
    let (code, named) = left.verify();
    assert_eq!(code, Some(1));
    let broker = restart(&left.options);
    let (mut missing, mut there) = (BTreeSet::new(), 0);
    for queue in 0..QUEUES {
        let read = left.load.read_around(broker.address(), queue, Status::Corrupt);
        if left.load.queues_on(0).contains(&queue) {
            assert_eq!(read.missing.len(), 0, "queue {queue} of another shard");
        }
        there += read.places.len();
        missing.extend(read.missing.into_iter().map(|offset| (queue, offset)));
    }
    assert!((1..=6).contains(&missing.len()), "three flipped bits: {missing:?}");
    // `verify` names whole units: what else is whole in them is served by the index.
    assert!(missing.is_subset(&named), "missing {missing:?}, named {named:?}");
    assert!(named.iter().all(|(queue, _)| left.load.queues_on(1).contains(queue)));
    // A consumer gets everything else, and says what it passed over.
    let said = says_while_reading(&left, queue, whole.places.len() as u64);
    let place = format!("queue=orders/broker-a/{queue} from=50 to=51");
    let damaged = "these messages are damaged on the broker's disk: they are left out";
    assert!(said.lines().any(|l| l.contains(damaged) && l.contains(&place)), "{place}: {said}");
    let got = consume(left.namesrv.address(), "readers", "orders", move |got| got.len() >= there);
    assert!(missing.iter().all(|place| !got.contains_key(place)), "{missing:?}");
    assert_eq!(got.len(), there);
    eventually("it is counted", || broker.metric("ringmq_corrupt_records_total") > 0.0);
    assert_eq!(broker.terminate(), Some(0));
}

/// What a client's log says while it reads a queue up to an offset.
fn says_while_reading(left: &Left, queue: u32, end: u64) -> String {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
    // One thread, so that all that the client does is heard.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let namesrv = left.namesrv.address().to_string();
    tracing::subscriber::with_default(log.finish(), || {
        runtime.block_on(async {
            let client = ringmq::Client::connect(namesrv).await.unwrap();
            wait_for_brokers(&client, 1).await;
            let queue = ringmq::Queue::new("orders", "broker-a", queue);
            let read = read_queues(&client, [(queue, end)]).await;
            assert!(read.values().flatten().all(|record| record.offset() != 50));
            client.shutdown(Duration::from_secs(10)).await.unwrap();
        });
    });
    String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
}

/// What lies behind a cut is lost, and only that; offsets that were given are not given again.
#[test]
fn a_segment_that_was_cut_short_costs_what_lay_behind_the_cut() {
    let left = Left::new();
    let queues = left.load.queues_on(1);
    let broker = restart(&left.options);
    let around =
        |broker: &Process, queue| left.load.read_around(broker.address(), queue, Status::Corrupt);
    let whole: BTreeMap<u32, _> =
        queues.iter().map(|queue| (*queue, around(&broker, *queue))).collect();
    assert_eq!(broker.terminate(), Some(0));
    let logs = left.files(1, ".log");
    // Of what lies in the last segment that holds something, three quarters stay.
    let places = whole.values().flat_map(|read| read.places.values());
    let end = places.map(|place| place.end).max().unwrap();
    let last = ((end - 1) >> 20) as usize;
    assert!(last >= 3, "there are several: {end}");
    let cuts = [(0, 300_001), (1, 512), (last, (end - ((last as u64) << 20)) / 4 * 3 + 1)];
    for (segment, bytes) in cuts {
        OpenOptions::new().write(true).open(&logs[segment]).unwrap().set_len(bytes).unwrap();
    }
    let is_cut = |place: &std::ops::Range<u64>| {
        cuts.iter().any(|(segment, bytes)| {
            let base = (*segment as u64) << 20;
            base + bytes < place.end && place.start < base + (1 << 20)
        })
    };
    for turn in 0..2 {
        let broker = restart(&left.options);
        for (queue, before) in &whole {
            let read = around(&broker, *queue);
            for (offset, place) in &before.places {
                // A whole unit is lost with the part of it that is.
                let unit = 256 << 10;
                let may_be = (place.start..place.end + unit).end;
                let must_be = !is_cut(&(place.start..may_be));
                let is_there = read.places.contains_key(offset);
                assert!(!must_be || is_there, "queue {queue}, offset {offset} at {place:?}");
                assert!(!is_cut(place) || !is_there, "queue {queue}, offset {offset} at {place:?}");
            }
            let (last, _) = before.places.last_key_value().unwrap();
            let (topic, _, shard) = left.load.target(*queue);
            let mut wire = Wire::connect(broker.address(), shard).unwrap();
            let records = run(topic, *queue, &[left.load.next_body()]);
            wire.produce((topic, *queue, shard), &records, 1, Flush::Sync).unwrap();
            let given = base_offset(&wire.receive().unwrap()).unwrap();
            assert!(given > *last, "queue {queue}: {given} was given before, {last} was the last");
        }
        for queue in left.load.queues_on(0) {
            assert_eq!(around(&broker, queue).missing.len(), 0, "queue {queue} of another shard");
        }
        match turn {
            0 => broker.kill(),
            _ => assert_eq!(broker.terminate(), Some(0)),
        }
    }
}

#[test]
fn a_segment_that_is_missing_is_asked_for_and_nothing_is_written() {
    let left = Left::new();
    let (mine, kept) = (left.files(1, ".log"), left.folder.path().join("kept"));
    fs::rename(&mine[1], &kept).unwrap();
    let error = Process::try_start("broker-a", "ringmq-broker", &left.options.args()).unwrap_err();
    assert!(error.contains("a segment at 1048576 should come before it"), "{error}");
    fs::rename(&kept, &mine[1]).unwrap();
    let broker = restart(&left.options);
    left.load.verify_all(broker.address());
    assert_eq!(broker.terminate(), Some(0));
}

#[test]
fn a_segment_of_a_newer_format_is_refused_untouched() {
    let left = Left::new();
    for segment in [0, 1] {
        let path = &left.files(1, ".log")[segment];
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut version = [0];
        // See `Prefix` in the schema: length, magic, version.
        file.read_exact_at(&mut version, 5).unwrap();
        assert_eq!(version, [ringmq_schema::record::VERSION]);
        file.write_all_at(&[version[0] + 1], 5).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        is_refused(&left.options, &["format is version 2", "newer version", &name]);
        file.write_all_at(&version, 5).unwrap();
    }
    let broker = restart(&left.options);
    left.load.verify_all(broker.address());
    assert_eq!(broker.terminate(), Some(0));
}

#[test]
fn indexes_that_are_damaged_cut_or_gone_are_made_again() {
    let left = Left::new();
    let indexes = left.files(0, ".index");
    assert!(indexes.len() >= 3, "{indexes:?}");
    fs::remove_file(&indexes[0]).unwrap();
    OpenOptions::new().write(true).open(&indexes[1]).unwrap().set_len(4096).unwrap();
    // The header's page: found at start.
    flip(&indexes[2], 100);
    let broker = restart(&left.options);
    left.load.verify_all(broker.address());
    assert_eq!(broker.terminate(), Some(0));
    // All of them, on both shards.
    for shard in 0..2 {
        left.files(shard, ".index").iter().for_each(|index| fs::remove_file(index).unwrap());
    }
    let broker = restart(&left.options);
    left.load.verify_all(broker.address());
    assert_eq!(broker.terminate(), Some(0));
    assert_eq!(left.verify(), (Some(0), BTreeSet::new()));
}

/// Every file with its content.
fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(content(&path)),
            // Both are written at each start and say nothing of the log.
            false if path.ends_with("lock") || path.ends_with("probe") => {}
            false => drop(all.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    all
}

/// The broker does not start, says `words`, and has written nothing.
fn is_refused(options: &BrokerOptions, words: &[&str]) {
    let before = content(&options.data_dir);
    let error = Process::try_start("broker-a", "ringmq-broker", &options.args()).unwrap_err();
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    let after = content(&options.data_dir);
    assert!(before == after, "files were written: {:?}", changed(&before, &after));
}

fn changed<'a>(
    before: &'a BTreeMap<PathBuf, Vec<u8>>,
    after: &'a BTreeMap<PathBuf, Vec<u8>>,
) -> Vec<&'a PathBuf> {
    let all: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    all.into_iter().filter(|path| before.get(*path) != after.get(*path)).collect()
}

#[test]
fn a_directory_of_a_newer_version_is_refused_untouched() {
    let left = Left::new();
    let identity = left.options.data_dir.join("ringmq.toml");
    let text = fs::read_to_string(&identity).unwrap();
    fs::write(&identity, text.replace("format = 1", "format = 2")).unwrap();
    is_refused(&left.options, &["format 2", "newer version"]);
    fs::write(&identity, &text).unwrap();
    let broker = restart(&left.options);
    left.load.verify_all(broker.address());
    assert_eq!(broker.terminate(), Some(0));
}

#[test]
fn a_segment_of_another_log_is_refused_untouched() {
    let left = Left::new();
    let (mine, others) = (left.files(1, ".log"), left.files(0, ".log"));
    let kept = left.folder.path().join("kept");
    fs::copy(&mine[1], &kept).unwrap();
    fs::copy(&others[1], &mine[1]).unwrap();
    is_refused(&left.options, &["another log", "00000000000001048576.log"]);
    fs::copy(&kept, &mine[1]).unwrap();
    let broker = restart(&left.options);
    left.load.verify_all(broker.address());
    assert_eq!(broker.terminate(), Some(0));
}

/// Home sends a shard what damage took of its topics.
#[test]
fn a_topic_whose_record_is_damaged_in_one_shard_is_served_by_all_again() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut site = Site::new(folder.path(), &["--shards=3"]);
    let topics = ["damaged-first", "whole", "damaged-last"];
    let send = async |client: ringmq::Client, range: std::ops::Range<u32>| {
        let producer = client.producer("sender").build().await.unwrap();
        for topic in topics {
            let queues = producer.queues(topic).await.unwrap();
            let message = |n: u32| Message::new(topic, n.to_string());
            let to = |n: u32| message(n).queue(queues[n as usize % queues.len()].clone());
            let receipts = send_all(&producer, range.clone().map(to)).await;
            let offsets = receipts.iter().zip(range.clone()).map(|(r, n)| (r.offset, n / 6));
            assert!(offsets.clone().all(|(offset, n)| offset == u64::from(n)), "no offset twice");
        }
    };
    let check = async |client: ringmq::Client, count: usize| {
        for topic in topics {
            let read = read_topic(&client, topic).await;
            assert_eq!(read.values().map(Vec::len).sum::<usize>(), count, "{topic}");
            assert_eq!(read.len(), 6, "{topic}: every queue of every shard");
        }
    };
    site.run(async |client| {
        for topic in topics {
            client.admin().create_topic(TopicSpec::new(topic).queues(6)).await.unwrap();
        }
        send(client, 0..60).await;
    });
    // Only what is durable is replayed in spite of damage: a stop writes that down, and a snapshot as well.
    let log = site.options.data_dir.join("shard-0001/00000000000000000000.log");
    site = site.kill_with_damage(|| {
        let bytes = fs::read(&log).unwrap();
        for name in ["damaged-first", "damaged-last"] {
            let found = bytes.windows(name.len()).position(|part| part == name.as_bytes());
            flip(&log, found.expect("the topic's record") as u64);
        }
    });
    let restored = || site.broker().metric("ringmq_restored_topics_total") >= 2.0;
    eventually("both were sent again", restored);
    site.run(async |client| {
        check(client.clone(), 60).await;
        send(client.clone(), 60..120).await;
        // Changes go on as ever.
        let admin = client.admin();
        admin.create_topic(TopicSpec::new("new").queues(6)).await.unwrap();
        admin
            .alter_topic(TopicSpec::new("whole").queues(6).retention_bytes(1 << 40))
            .await
            .unwrap();
    });
    for _ in 0..2 {
        site = site.kill_and_restart();
        site.run(async |client| check(client, 120).await);
        assert_eq!(site.broker().metric("ringmq_restored_topics_total"), 0.0, "once is enough");
        site = site.stop_and_restart();
        site.run(async |client| check(client, 120).await);
    }
    site.end();
}

/// What home lost is gone; nobody gets its number, and so nothing of it shows under another topic.
#[test]
fn a_topic_that_home_lost_to_damage_leaves_nothing_to_the_next() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut site = Site::new(folder.path(), &["--shards=3"]);
    let make = async |client: &ringmq::Client, topic: &str, messages: u32| {
        client.admin().create_topic(TopicSpec::new(topic).queues(6)).await.unwrap();
        let producer = client.producer("sender").build().await.unwrap();
        let message = |n: u32| Message::new(topic, format!("{topic} {n}"));
        let _stored = send_all(&producer, (0..messages).map(message)).await;
        client.admin().describe_topic(topic).await.unwrap()[0].id
    };
    let ids = site
        .run(async |client| [make(&client, "stays", 60).await, make(&client, "goes", 60).await]);
    let log = site.options.data_dir.join("shard-0000/00000000000000000000.log");
    site = site.kill_with_damage(|| {
        let bytes = fs::read(&log).unwrap();
        let found = bytes.windows(4).position(|part| part == b"goes");
        flip(&log, found.expect("the topic's record") as u64);
    });
    site.run(async |client| {
        assert_eq!(client.admin().topics("").await.unwrap(), ["stays"]);
        for topic in ["new", "goes"] {
            let id = make(&client, topic, 30).await;
            assert!(!ids.contains(&id), "{id} was given before");
        }
    });
    for _ in 0..2 {
        site.run(async |client| {
            for (topic, count) in [("stays", 60), ("new", 30), ("goes", 30)] {
                let read = read_topic(&client, topic).await;
                assert_eq!(read.values().map(Vec::len).sum::<usize>(), count, "{topic}");
            }
        });
        site = site.kill_and_restart();
    }
    site.end();
}
