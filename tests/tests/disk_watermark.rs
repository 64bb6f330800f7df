//! semantics.md, retention: below the watermark writes are refused and may be tried again, what is stored stays
//! readable, and writes resume by themselves once retention or a deletion has made room.
#![cfg(all(feature = "faults", target_os = "linux"))]
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq::{Client, TopicSpec};
use ringmq_schema::error::Status;
use ringmq_schema::produce::Flush;
use ringmq_tests::consume::consume;
use ringmq_tests::durability::{Load, Producers, restart};
use ringmq_tests::server::{BrokerOptions, Process, eventually, namesrv};
use ringmq_tests::wire::{Wire, run};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const QUEUES: u32 = 4;

/// A small file system of its own.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// A broker whose disk is filled up to the watermark by producers that go on trying.
struct Full {
    load: Load,
    producers: Producers,
    broker: Process,
    namesrv: Process,
    _mount: Mount,
    _folder: tempfile::TempDir,
}

impl Mount {
    /// 96 MiB on ext4.
    fn new(folder: &Path) -> Mount {
        let (image, mount) = (folder.join("image"), folder.join("mount"));
        std::fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
        std::fs::create_dir(&mount).unwrap();
        let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status().unwrap();
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount).status();
        assert!(made.success() && mounted.unwrap().success());
        Mount(mount)
    }
}

impl Full {
    fn new() -> Full {
        let folder = tempfile::tempdir().unwrap();
        let mount = Mount::new(folder.path());
        let namesrv = namesrv("names");
        let mut options = BrokerOptions::new("broker-a", &mount.0.join("data"));
        options.namesrv = vec![namesrv.address()];
        for flag in [
            "--segment-bytes=1 MiB",
            "--unit-bytes=256 KiB",
            "--disk-free-bytes=40 MiB",
            "--disk-free-percent=99",
        ] {
            options.more.push(flag.to_owned());
        }
        let broker = options.start();
        let load = Load::new(&broker, QUEUES, false);
        let producers = load.start(broker.address());
        load.wait_for_queues(&[0, 1, 2, 3], 50);
        // The group stands near the beginning of what will go.
        consume(namesrv.address(), "readers", "orders", |got| got.len() >= 40);
        eventually("messages are refused", || load.refusals() > 100);
        Full { load, producers, broker, namesrv, _mount: mount, _folder: folder }
    }

    fn admin(&self, work: impl AsyncFnOnce(Client)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let address = self.namesrv.address().to_string();
        runtime.block_on(async move {
            let client = Client::connect(&address).await.unwrap();
            work(client.clone()).await;
            client.shutdown(Duration::from_secs(10)).await.unwrap();
        });
    }

    /// What is stored stays readable, and the broker is no failed one.
    fn reads_go_on(&self) {
        self.load.verify(self.broker.address());
        assert_eq!(self.broker.http("/readyz").0, 200);
    }

    fn end(self) {
        assert_eq!(self.broker.terminate(), Some(0));
        self.producers.join();
    }
}

#[test]
fn retention_makes_room_and_a_consumer_that_is_late_goes_on_at_the_earliest() {
    let full = Full::new();
    full.reads_go_on();
    full.admin(async |client| {
        let spec = TopicSpec::new("orders").queues(QUEUES).retention(Duration::from_secs(1));
        client.admin().alter_topic(spec).await.unwrap();
    });
    full.load.wait_for_queues(&[0, 1, 2, 3], 500);
    // Told where to go on, by the wire and by the client.
    let (topic, queue, shard) = full.load.target(0);
    let mut wire = Wire::connect(full.broker.address(), shard).unwrap();
    let mut earliest = 0;
    eventually("the earliest offset moves", || {
        let answers = wire.fetch_queues(topic, shard, &[(queue, 0)], 0).unwrap();
        let told = answers.get(&queue).filter(|told| told.status == Status::OffsetOutOfRange);
        earliest = told.map_or(0, |told| told.min);
        earliest > 0
    });
    let address = full.namesrv.address();
    consume(address, "readers", "orders", move |got| got.keys().any(|place| place.1 >= earliest));
    eventually("it is counted", || full.broker.metric("ringmq_out_of_range_total") > 0.0);
    assert!(full.broker.metric("ringmq_segments_retired_total") > 0.0);
    full.end();
}

#[test]
fn a_deletion_makes_room() {
    let full = Full::new();
    full.reads_go_on();
    full.admin(async |client| {
        let admin = client.admin();
        admin.create_topic(TopicSpec::new("payments").queues(2)).await.unwrap();
        admin.delete_topic("orders").await.unwrap();
        let producer = client.producer("payers").build().await.unwrap();
        let begun = std::time::Instant::now();
        while let Err(error) = producer.send(ringmq::Message::new("payments", "one")).await {
            assert!(error.is_retryable(), "{error}");
            assert!(begun.elapsed() < Duration::from_secs(60), "{error}");
        }
    });
    full.end();
}

/// Without a watermark the disk runs full where a segment is made: that is refused and tried again, nothing else.
#[test]
fn a_disk_without_room_for_a_segment_refuses_and_goes_on_when_there_is_some() {
    let folder = tempfile::tempdir().unwrap();
    let mount = Mount::new(folder.path());
    let ballast = |name: &str, mib: u64| -> PathBuf {
        let path = mount.0.join(name);
        let file = std::fs::File::create(&path).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, mib << 20).unwrap();
        path
    };
    let (first, second) = (ballast("first", 24), ballast("second", 20));
    let mut options = BrokerOptions::new("broker-a", &mount.0.join("data"));
    options.more = ["--segment-bytes=4 MiB", "--unit-bytes=256 KiB", "--disk-free-bytes=0"]
        .into_iter()
        .chain(["--disk-free-percent=0"])
        .map(str::to_owned)
        .collect();
    let broker = options.start();
    let load = Load::new(&broker, QUEUES, false);
    let producers = load.start(broker.address());
    eventually("messages are refused", || load.refusals() > 100);
    let target = load.target(0);
    let mut wire = Wire::connect(broker.address(), target.2).unwrap();
    eventually("the refusal says why", || {
        let records = run(target.0, 0, &[load.next_body()]);
        wire.produce(target, &records, 1, Flush::Sync).unwrap();
        let answer = wire.receive().unwrap();
        assert!(matches!(answer.status, Status::DiskFull | Status::Ok), "{}", answer.status);
        let text = answer.refusal();
        text.contains("next file of its log") && text.contains("No space left")
    });
    load.verify(broker.address());
    assert_eq!(broker.http("/readyz").0, 200);
    assert!((0..QUEUES).all(|queue| !producers.has_ended(queue)), "it may be tried again here");
    std::fs::remove_file(&first).unwrap();
    load.wait_for_queues(&[0, 1, 2, 3], 200);
    // Full again, and killed: what was acknowledged is there. An epoch needs room to begin.
    let before = load.refusals();
    eventually("messages are refused again", || load.refusals() > before + 100);
    broker.kill();
    producers.join();
    std::fs::remove_file(&second).unwrap();
    let broker = restart(&options);
    load.verify_all(broker.address());
    assert_eq!(broker.terminate(), Some(0));
}
