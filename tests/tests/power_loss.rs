//! promise: ack-is-durable. Power loss on a real file system, many times over on one data directory.
//!
//! The file system on a loop-mounted image is shut down under load (`xfs_io -x -c shutdown`: whatever was not
//! synced is gone, extents and sizes included), mounted again, and the broker started on what is left. What was
//! acknowledged SYNC before the power went must be there.
#![cfg(feature = "faults")]
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq_tests::durability::{Load, restart};
use ringmq_tests::server::{BrokerOptions, eventually};
use std::path::{Path, PathBuf};
use std::process::Command;

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {errors}");
}

/// A file system of its own on an image, unmounted when dropped.
struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    fn make(folder: &Path) -> Disk {
        let disk = Disk { image: folder.join("image"), mount: folder.join("mount") };
        std::fs::create_dir(&disk.mount).unwrap();
        std::fs::File::create(&disk.image).unwrap().set_len(1 << 30).unwrap();
        run("mkfs.ext4", &["-q", disk.image.to_str().unwrap()]);
        disk.plug_in();
        disk
    }

    fn plug_in(&self) {
        let (image, mount) = (self.image.to_str().unwrap(), self.mount.to_str().unwrap());
        run("mount", &["-o", "loop", image, mount]);
    }

    fn lose_power(&self) {
        run("xfs_io", &["-x", "-c", "shutdown", self.mount.to_str().unwrap()]);
    }

    /// The mount stays busy for a moment after a kill: the rings are torn down by the kernel.
    fn unplug(&self) {
        let mount = self.mount.to_str().unwrap();
        eventually("the file system is let go", || {
            Command::new("umount").arg(mount).output().unwrap().status.success()
        });
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).output();
    }
}

#[test]
fn power_loss_loses_nothing_acknowledged() {
    let cycles: u64 =
        std::env::var("RINGMQ_POWER_LOSSES").ok().and_then(|n| n.parse().ok()).unwrap_or(25);
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::make(folder.path());
    let options = BrokerOptions::new("broker-a", &disk.mount.join("data"));
    let mut broker = options.start();
    let load = Load::new(&broker, 4, false);
    for cycle in 0..cycles {
        let producers = load.start(broker.address());
        load.wait_for(20 + cycle * 53 % 700);
        // The list comes first: what is acknowledged while the power goes may be either.
        let ends = load.snapshot();
        disk.lose_power();
        broker.kill();
        producers.join();
        load.forget_beyond(&ends);
        disk.unplug();
        disk.plug_in();
        broker = restart(&options);
        load.verify(broker.address());
    }
    load.verify_all(broker.address());
    ringmq_tests::say(format_args!(
        "power loss: {cycles} cycles, {} messages acknowledged, 0 lost",
        load.acknowledged()
    ));
    assert_eq!(broker.terminate(), Some(0));
    disk.unplug();
}
