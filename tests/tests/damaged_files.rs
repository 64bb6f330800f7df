//! promise: prefix. Damage in the files of a stopped broker: what lay there is reported, all else is served.
//!
//! Bits flipped inside a sealed segment, indexes cut, damaged and removed, segments of another log, a newer format.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq_schema::error::Status;
use ringmq_tests::consume::consume;
use ringmq_tests::durability::{Load, restart};
use ringmq_tests::server::{BrokerOptions, Process, binary, eventually, namesrv};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

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
    let got = consume(left.namesrv.address(), "readers", "orders", move |got| got.len() >= there);
    assert!(missing.iter().all(|place| !got.contains_key(place)), "{missing:?}");
    assert_eq!(got.len(), there);
    eventually("it is counted", || broker.metric("ringmq_corrupt_records_total") > 0.0);
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
