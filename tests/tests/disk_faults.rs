//! promise: ack-is-durable, prefix, isolation. Disks that fail under a broker, by a file system of our own.
//!
//! Whatever fails: what was acknowledged is there after a restart, under its offset and no other; what was
//! refused for want of room is not; other shards, queues and ranges go on.
#![cfg(all(feature = "faults", target_os = "linux"))]
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq_schema::error::{Retry, Status};
use ringmq_schema::produce::Flush;
use ringmq_tests::durability::{End, Load, restart};
use ringmq_tests::faulty::{FaultyDisk, Operation, Trouble, Which};
use ringmq_tests::server::{BrokerOptions, Process, eventually};
use ringmq_tests::wire::{Answer, Wire, run};
use rustix::io::Errno;

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

    fn with(mut self, flag: &str, value: &str) -> Host {
        self.options.more.push(format!("{flag}={value}"));
        self
    }
}

/// Sends one message and waits for the answer.
fn send(broker: &Process, load: &Load, queue: u32) -> Answer {
    let target = load.target(queue);
    let mut wire = Wire::connect(broker.address(), target.2).unwrap();
    let records = run(target.0, queue, &[b"one more".to_vec()]);
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
