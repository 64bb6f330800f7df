//! promise: ack-is-durable, prefix, isolation. Disks that fail under a broker, by a file system of our own.
//!
//! Whatever fails: what was acknowledged is there after a restart, under its offset and no other; what was
//! refused for want of room is not; other shards, queues and ranges go on.
#![cfg(all(feature = "faults", target_os = "linux"))]
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq_schema::error::{Retry, Status};
use ringmq_schema::produce::Flush;
use ringmq_tests::consume::{Delivered, consume};
use ringmq_tests::durability::{End, Load, restart};
use ringmq_tests::faulty::{FaultyDisk, Operation, Trouble, Which};
use ringmq_tests::server::{BrokerOptions, Process, eventually, namesrv};
use ringmq_tests::wire::{Answer, Fetched, Wire, run};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The shard whose disk fails.
const BAD: u16 = 1;
const BAD_FOLDER: &str = "shard-0001/";
const QUEUES: u32 = 4;

/// A broker of two shards on a disk that fails on command. The broker is dropped first.
struct Host {
    options: BrokerOptions,
    disk: FaultyDisk,
    _folder: tempfile::TempDir,
}

impl Host {
    fn new() -> Host {
        let folder = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::new(folder.path());
        let options = BrokerOptions::new("broker-a", &disk.path().join("data"));
        Host { options, disk, _folder: folder }
    }

    fn of_small_segments() -> Host {
        Host::new().with("--segment-bytes", "1 MiB").with("--unit-bytes", "256 KiB")
    }

    fn with(mut self, flag: &str, value: &str) -> Host {
        self.options.more.push(format!("{flag}={value}"));
        self
    }
}

/// Sends one message and waits for the answer.
fn send(broker: &Process, load: &Load, queue: u32) -> Answer {
    let target = load.target(queue);
    let mut wire = Wire::connect(broker.address(), target.2).unwrap();
    let records = run(target.0, queue, &[load.next_body()]);
    wire.produce(target, &records, 1, Flush::Sync).unwrap();
    wire.receive().unwrap()
}

/// The shard stops writing at the first failure, and all that was acknowledged is there.
fn stops_the_shard(trouble: impl FnOnce(&FaultyDisk) -> Trouble, says: &str) {
    let host = Host::new();
    let broker = host.options.start();
    let load = Load::new(&broker, QUEUES, false);
    let (bad, good) = (load.queues_on(BAD), load.queues_on(0));
    let producers = load.start(broker.address());
    load.wait_for_queues(&[0, 1, 2, 3], 50);
    assert_eq!(broker.http("/readyz"), (200, "ready\n".to_owned()));
    let trouble = trouble(&host.disk);
    eventually("producers are refused", || bad.iter().all(|queue| producers.has_ended(*queue)));
    assert!(trouble.hits() > 0);
    let why = |(status, text): (u16, String)| {
        status == 503 && text.contains("shard 1 stopped writing") && text.contains(says)
    };
    eventually("/readyz says why", || why(broker.http("/readyz")));
    load.wait_for_queues(&good, 50);
    // What is durable stays readable: each acknowledged message.
    load.verify(broker.address());
    trouble.lift();
    // Nothing is tried again as if it had worked.
    let answer = send(&broker, &load, bad[0]);
    assert_eq!(answer.status, Status::ShardFailed, "{}", answer.refusal());
    assert_eq!(answer.status.retry(), Retry::Elsewhere);
    load.wait_for_queues(&good, 50);
    assert_eq!(broker.terminate(), Some(0));
    for (queue, end) in producers.join().into_iter().enumerate() {
        if bad.contains(&(queue as u32)) {
            let End::Refused(Status::ShardFailed, text) = end else { panic!("{end:?}") };
            assert!(text.contains(says), "{text}");
        }
    }
    goes_on(&host, &load);
}

/// After a restart everything acknowledged is there, and every queue takes more.
fn goes_on(host: &Host, load: &Load) {
    let broker = restart(&host.options);
    load.verify(broker.address());
    let producers = load.start(broker.address());
    load.wait_for_queues(&[0, 1, 2, 3], 50);
    assert_eq!(broker.http("/readyz").0, 200);
    assert_eq!(broker.terminate(), Some(0));
    producers.join();
    let broker = restart(&host.options);
    load.verify_all(broker.address());
    assert_eq!(broker.terminate(), Some(0));
}

#[test]
fn a_write_that_fails_stops_its_shard_only() {
    let which = Which::new(Operation::Write, BAD_FOLDER);
    stops_the_shard(|disk| disk.fail(which, Errno::IO), "Input/output error");
}

#[test]
fn a_write_that_fails_and_was_done_is_in_doubt_and_never_acknowledged() {
    let which = Which::new(Operation::Write, BAD_FOLDER);
    stops_the_shard(|disk| disk.disown(which, Errno::IO), "Input/output error");
}

#[test]
fn a_durable_write_that_fails_stops_its_shard_only() {
    let which = Which::new(Operation::Sync, BAD_FOLDER);
    stops_the_shard(|disk| disk.fail(which, Errno::IO), "Input/output error");
}

#[test]
fn no_room_for_a_write_stops_its_shard_only() {
    let which = Which::new(Operation::Write, BAD_FOLDER);
    stops_the_shard(|disk| disk.fail(which, Errno::NOSPC), "No space left");
}

/// The name under which a segment is made.
const NEW: &str = "shard-0001/00000000000";

#[test]
fn no_room_for_a_segment_is_refused_and_tried_again() {
    let host = Host::of_small_segments();
    let broker = host.options.start();
    let load = Load::new(&broker, QUEUES, false);
    let (bad, good) = (load.queues_on(BAD), load.queues_on(0));
    let producers = load.start(broker.address());
    load.wait_for_queues(&[0, 1, 2, 3], 50);
    let trouble = host.disk.fail(Which::new(Operation::Make, NEW), Errno::NOSPC);
    eventually("producers are refused", || load.refusals() > 0);
    trouble.wait();
    let answer = send(&broker, &load, bad[0]);
    assert_eq!(answer.status, Status::DiskFull, "{}", answer.refusal());
    assert_eq!(answer.status.retry(), Retry::Elsewhere);
    assert!(answer.refusal().contains("No space left"), "{}", answer.refusal());
    load.wait_for_queues(&good, 50);
    load.verify(broker.address());
    assert!(!bad.iter().any(|queue| producers.has_ended(*queue)), "it may be tried again here");
    trouble.lift();
    load.wait_for_queues(&bad, 500);
    assert_eq!(broker.http("/readyz").0, 200);
    assert_eq!(broker.terminate(), Some(0));
    producers.join();
    goes_on(&host, &load);
}

/// A broker whose shards have several sealed segments with indexes, and nothing of them in memory.
fn with_a_past(host: &Host) -> (Process, Load) {
    let broker = host.options.start();
    let load = Load::new(&broker, QUEUES, false);
    let producers = load.start(broker.address());
    load.wait_for_queues(&[0, 1, 2, 3], 1200);
    eventually("indexes are there", || broker.metric("ringmq_segments_indexed_total") >= 6.0);
    assert_eq!(broker.terminate(), Some(0));
    producers.join();
    (restart(&host.options), load)
}

const SEGMENT: u64 = 1 << 20;

/// Reads go through the core, and it keeps little in memory.
fn host_of_cold_reads() -> Host {
    let host = Host::of_small_segments().with("--transfer-bytes-min", "0");
    host.with("--index-cache-bytes", "64 KiB").with("--tail-cache-bytes", "64 KiB")
}

#[test]
fn a_range_that_cannot_be_read_costs_only_what_lies_in_it() {
    let host = host_of_cold_reads();
    let (broker, load) = with_a_past(&host);
    let address = broker.address();
    // In the second segment of the shard.
    let bad_range = SEGMENT + (300 << 10)..SEGMENT + (400 << 10);
    let in_file = bad_range.start - SEGMENT..bad_range.end - SEGMENT;
    let which = Which::new(Operation::Read, "shard-0001/00000000000001048576.log").within(in_file);
    let trouble = host.disk.fail(which, Errno::IO);
    let read = |queue| load.read_around(address, queue, Status::ReadFailed);
    let mut missing = Vec::new();
    for queue in 0..QUEUES {
        let found = read(queue);
        match load.queues_on(BAD).contains(&queue) {
            true => missing.push((queue, found.missing)),
            false => assert_eq!(found.missing.len(), 0, "queue {queue} of another shard"),
        }
    }
    assert!(trouble.hits() > 0);
    assert!(missing.iter().any(|(_, offsets)| !offsets.is_empty()), "{missing:?}");
    // Asked for both as consumers do: the queue at the range is told, the other is served.
    missing.sort_by_key(|(_, offsets)| offsets.is_empty());
    let [(hit, offsets), (other, passed)] = &missing[..] else { panic!("two queues a shard") };
    let (topic, _, shard) = load.target(*hit);
    let mut wire = Wire::connect(address, shard).unwrap();
    let begin = passed.last().map_or(0, |last| last + 1);
    let (mut is_told, mut served) = (false, begin);
    eventually("both are answered", || {
        let mut asked = vec![(*other, served)];
        // A consumer leaves a queue that it was told of alone for a moment.
        asked.extend(offsets.first().filter(|_| !is_told).map(|offset| (*hit, *offset)));
        let answers = wire.fetch_queues(topic, shard, &asked, 0).unwrap();
        is_told |= answers.get(hit).is_some_and(|found| found.status == Status::ReadFailed);
        served = answers.get(other).map_or(served, |found| found.next);
        is_told && served > begin
    });
    // A client that goes on asking for both, whatever it is told, gets all of the other too.
    let Some(bad) = offsets.first().copied() else { panic!("{offsets:?}") };
    let end = load.snapshot()[*other as usize];
    let (mut at, mut told, mut left_out) = (0, 0, BTreeSet::new());
    eventually("the other queue is read to its end", || {
        let mut answers = wire.fetch_queues(topic, shard, &[(*hit, bad), (*other, at)], 0).unwrap();
        let fault = answers.remove(hit).map(|found| found.status);
        assert!(matches!(fault, None | Some(Status::ReadFailed)), "{fault:?}");
        told += u64::from(fault.is_some());
        let found = answers.remove(other).unwrap_or_else(|| Fetched::nothing(at));
        at = match found.status {
            Status::Ok => found.next,
            Status::ReadFailed => {
                left_out.insert(at);
                at + 1
            }
            status => panic!("{status}"),
        };
        at >= end
    });
    assert!(told > 0, "and of the one that cannot be read it is told so");
    assert_eq!(&left_out, passed, "nothing else is left out");
    assert!(broker.http("/readyz").0 == 200 && send(&broker, &load, *hit).status == Status::Ok);
    eventually("it is counted", || broker.metric("ringmq_failed_reads_total") > 0.0);
    trouble.lift();
    // It heals, and nothing was missing but what touches the range.
    for (queue, offsets) in missing {
        let whole = read(queue);
        assert_eq!(whole.missing.len(), 0, "queue {queue} is whole again");
        for offset in offsets {
            let place = &whole.places[&offset];
            let blocks = place.start / 4096 * 4096..place.end.next_multiple_of(4096);
            let touches = blocks.start < bad_range.end && bad_range.start < blocks.end;
            assert!(touches, "queue {queue}, offset {offset} at {place:?} was readable");
        }
    }
    assert_eq!(broker.terminate(), Some(0));
}

#[test]
fn an_index_that_cannot_be_read_costs_only_its_segment() {
    let host = host_of_cold_reads();
    let (broker, load) = with_a_past(&host);
    let address = broker.address();
    let which = Which::new(Operation::Read, "shard-0001/00000000000001048576.index");
    let trouble = host.disk.fail(which, Errno::IO);
    let read = |queue| load.read_around(address, queue, Status::ReadFailed);
    let mut hit = 0;
    for queue in load.queues_on(BAD) {
        let missing = read(queue).missing;
        trouble.wait();
        hit += missing.len();
        // Offsets of one segment: one stretch.
        if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
            assert_eq!(last - first + 1, missing.len() as u64, "queue {queue}");
        }
    }
    assert!(hit > 0, "some records are found by that index only");
    for queue in load.queues_on(0) {
        assert_eq!(read(queue).missing.len(), 0, "queue {queue} of another shard");
    }
    assert_eq!(broker.http("/readyz").0, 200);
    trouble.lift();
    for queue in 0..QUEUES {
        assert_eq!(read(queue).missing.len(), 0, "queue {queue} is whole again");
    }
    assert_eq!(broker.terminate(), Some(0));
}

/// Runs a program of the system.
fn system(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
}

/// A block device in a file on the failing disk, as the home of one shard. io_uring over FUSE submits reads and
/// writes in line, so a held one would hold the core; over a block device they hang as on a real disk.
struct ShardDevice(PathBuf);

impl ShardDevice {
    /// Moves the bad shard of a stopped broker there.
    fn new(host: &Host, folder: &Path) -> ShardDevice {
        let (image, shard) =
            (host.disk.path().join("image"), host.options.data_dir.join("shard-0001"));
        std::fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        let moved = folder.join("moved");
        std::fs::rename(&shard, &moved).unwrap();
        system("mkfs.ext4", &["-q", "-d", moved.to_str().unwrap(), image.to_str().unwrap()]);
        std::fs::create_dir(&shard).unwrap();
        system("mount", &["-o", "loop", image.to_str().unwrap(), shard.to_str().unwrap()]);
        ShardDevice(shard)
    }
}

impl Drop for ShardDevice {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// A disk that does not answer has failed; the broker neither waits for it nor is kept from stopping by it.
#[test]
fn a_write_that_hangs_counts_as_failed_and_the_broker_can_be_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let mut host = Host::new().with("--disk-timeout", "1s").with("--stop-timeout", "2s");
    host.options.data_dir = folder.path().join("data");
    assert_eq!(host.options.start().terminate(), Some(0));
    let device = ShardDevice::new(&host, folder.path());
    let mut broker = host.options.start();
    let load = Load::new(&broker, QUEUES, false);
    let (bad, good) = (load.queues_on(BAD), load.queues_on(0));
    let producers = load.start(broker.address());
    load.wait_for_queues(&[0, 1, 2, 3], 50);
    let trouble = host.disk.hold(Which::new(Operation::Sync, "image"));
    eventually("producers are refused", || bad.iter().all(|queue| producers.has_ended(*queue)));
    trouble.wait();
    let says = |text: &str| broker.http("/readyz").1.contains(text);
    eventually("/readyz says why", || says("did not answer within 1000 ms"));
    load.wait_for_queues(&good, 50);
    load.verify(broker.address());
    let begun = Instant::now();
    broker.ask_to_stop();
    eventually("the process ends", || broker.has_left());
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
    // What the disk takes this late is in doubt, as after a power loss.
    trouble.lift();
    broker.kill();
    producers.join();
    goes_on(&host, &load);
    drop(device);
}

#[test]
fn a_segment_whose_making_hangs_stops_its_shard_only() {
    let host = Host::of_small_segments().with("--disk-timeout", "1s").with("--stop-timeout", "2s");
    let mut broker = host.options.start();
    let load = Load::new(&broker, QUEUES, false);
    let (bad, good) = (load.queues_on(BAD), load.queues_on(0));
    let producers = load.start(broker.address());
    load.wait_for_queues(&[0, 1, 2, 3], 50);
    let trouble = host.disk.hold(Which::new(Operation::Make, NEW));
    eventually("producers are refused", || bad.iter().all(|queue| producers.has_ended(*queue)));
    let says = |text: &str| broker.http("/readyz").1.contains(text);
    eventually("/readyz says why", || says("did not answer within 1000 ms"));
    load.wait_for_queues(&good, 50);
    load.verify(broker.address());
    broker.ask_to_stop();
    eventually("the process ends", || broker.has_left());
    trouble.lift();
    broker.kill();
    producers.join();
    goes_on(&host, &load);
}

/// Runs of records go from file to socket, and the answer breaks off where the disk gives no more: consumers get
/// everything else nevertheless, and that too when it can be read again.
#[test]
fn consumers_get_past_an_unreadable_range_of_a_run_sent_from_the_file() {
    let namesrv = namesrv("names");
    let mut host = Host::of_small_segments();
    host.options.namesrv = vec![namesrv.address()];
    let (broker, load) = with_a_past(&host);
    let ends = load.snapshot();
    let in_file = 300 << 10..400 << 10;
    let which = Which::new(Operation::Read, "shard-0001/00000000000001048576.log").within(in_file);
    let trouble = host.disk.fail(which, Errno::IO);
    let good = load.queues_on(0);
    let wanted: u64 = good.iter().map(|queue| ends[*queue as usize]).sum();
    let others = move |got: &Delivered| {
        got.keys().filter(|place| good.contains(&place.0)).count() as u64 >= wanted
    };
    let first = consume(namesrv.address(), "readers", "orders", others);
    eventually("transfers were made", || broker.metric("ringmq_transfers_total") > 0.0);
    trouble.lift();
    // The group goes on where it stood: nothing was left out.
    let all: u64 = ends.iter().sum();
    let before = first.len() as u64;
    let rest = move |got: &Delivered| before + got.len() as u64 >= all;
    let second = if before < all {
        consume(namesrv.address(), "readers", "orders", rest)
    } else {
        Delivered::new()
    };
    for (queue, end) in ends.iter().enumerate() {
        for offset in 0..*end {
            let place = (queue as u32, offset);
            assert!(first.contains_key(&place) || second.contains_key(&place), "{place:?} is lost");
        }
    }
    assert_eq!(broker.terminate(), Some(0));
}
