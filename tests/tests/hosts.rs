//! Hosts that are not as they should be: io_uring refused, no O_DIRECT, a disk that fills up.
#![cfg(feature = "faults")]
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq_schema::error::Status;
use ringmq_schema::placement::shard_of_queue;
use ringmq_schema::produce::Flush;
use ringmq_tests::server::{BrokerOptions, Process, binary, eventually};
use ringmq_tests::wire::{Wire, run};
use std::path::{Path, PathBuf};
use std::process::Command;

struct Mount(PathBuf);

impl Mount {
    fn make(at: &Path, args: &[&str]) -> Mount {
        std::fs::create_dir(at).unwrap();
        let output = Command::new("mount").args(args).arg(at).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Mount(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// Docker's default seccomp profile answers `io_uring_setup` with EPERM.
#[test]
fn a_host_that_refuses_io_uring_is_told_why_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let options = BrokerOptions::new("broker-a", folder.path());
    let output = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e", "trace=io_uring_setup"])
        .args(["-e", "inject=io_uring_setup:error=EPERM"])
        .arg(binary("ringmq-broker"))
        .args(options.args())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("io_uring") && text.contains("seccomp"), "{text}");
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn a_directory_without_direct_io_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mount = Mount::make(&folder.path().join("ram"), &["-t", "ramfs", "none"]);
    let options = BrokerOptions::new("broker-a", &mount.0.join("data"));
    let error = Process::try_start("broker-a", "ringmq-broker", &options.args()).unwrap_err();
    assert!(error.contains("O_DIRECT") && error.contains("data"), "{error}");
    assert!(!error.contains("panicked"), "{error}");
}

/// promise: bounded. Writes stop before the disk is full, reads go on, writes resume by themselves.
#[test]
fn a_filling_disk_refuses_writes_and_takes_them_again() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
    let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status().unwrap();
    assert!(made.success());
    let at = folder.path().join("mount");
    let mount = Mount::make(&at, &["-o", "loop", image.to_str().unwrap()]);
    let mut options = BrokerOptions::new("broker-a", &mount.0.join("data"));
    options.more = vec!["--disk-free-percent=20".to_owned()];
    let broker = options.start();
    let mut wire = Wire::connect(broker.address(), 0).unwrap();
    let topic = wire.create_topic("orders", 1).unwrap();
    let target = (topic, 0, shard_of_queue(topic, 0, wire.shards));
    let records = run(topic, 0, &[b"hello".to_vec()]);
    let send = || {
        let mut wire = Wire::connect(broker.address(), target.2).unwrap();
        wire.produce(target, &records, 1, Flush::Sync).unwrap();
        wire.receive().unwrap()
    };
    assert_eq!(send().status, Status::Ok);
    let ballast = mount.0.join("ballast");
    let file = std::fs::File::create(&ballast).unwrap();
    let free = rustix::fs::statvfs(&mount.0).unwrap();
    let bytes = free.f_bavail * free.f_frsize - (32 << 20);
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).unwrap();
    eventually("writes are refused", || {
        let answer = send();
        let full = answer.status == Status::DiskFull;
        assert!(!full || answer.refusal().contains("watermark"), "{}", answer.refusal());
        full
    });
    assert!(!wire.fetch(target, 0, 0).unwrap().bodies.is_empty(), "reads go on");
    drop(file);
    std::fs::remove_file(&ballast).unwrap();
    eventually("writes are taken again", || send().status == Status::Ok);
    assert_eq!(broker.terminate(), Some(0));
}
