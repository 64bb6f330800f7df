//! Hosts made of files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;

/// A host on which there is nothing to find fault with.
struct Fixture {
    root: tempfile::TempDir,
}

const NVME: &str = "sys/block/nvme0n1";

impl Fixture {
    fn good() -> Fixture {
        let fixture = Fixture { root: tempfile::tempdir().expect("a directory") };
        let mounts = "21 1 259:1 / / rw,relatime - ext4 /dev/nvme0n1p1 rw\n\
                      30 21 259:2 / /srv/my\\040data rw,noatime shared:1 - xfs /dev/nvme0n1p2 rw,attr2\n";
        for (path, text) in [
            ("proc/self/mountinfo", mounts),
            (
                "proc/self/limits",
                "Limit  Soft  Hard  Units\nMax open files  1048576  1048576 files\n\
                                  Max locked memory  unlimited unlimited bytes\n",
            ),
            ("proc/sys/kernel/osrelease", "6.12.4-amd64\n"),
            ("proc/sys/kernel/io_uring_disabled", "0\n"),
            ("proc/sys/vm/swappiness", "60\n"),
            ("proc/swaps", "Filename Type Size Used Priority\n"),
            (
                "proc/interrupts",
                "           CPU0       CPU1       CPU2\n\
               41:     999999          0          5  PCI-MSIX-0000:00:04.0  1-edge  eth0-rx\n\
               42:          3     500000          0  PCI-MSIX-0000:00:05.0  1-edge  nvme0q2\n\
              LOC:    1000000    1000000    1000000  Local timer interrupts\n",
            ),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
            ("sys/kernel/mm/transparent_hugepage/defrag", "always defer [madvise] never\n"),
            ("sys/devices/system/cpu/online", "0-2\n"),
            ("sys/devices/system/clocksource/clocksource0/current_clocksource", "tsc\n"),
            ("sys/block/sda/dev", "8:0\n"),
        ] {
            fixture.set(path, text);
        }
        for cpu in 0..3 {
            let path = format!("sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor");
            fixture.set(&path, "performance\n");
        }
        for (name, text) in [
            ("dev", "259:0\n"),
            ("nvme0n1p1/dev", "259:1\n"),
            ("nvme0n1p2/dev", "259:2\n"),
            ("queue/scheduler", "[none] mq-deadline\n"),
            ("queue/fua", "1\n"),
            ("queue/write_cache", "write back\n"),
            ("queue/rotational", "0\n"),
        ] {
            fixture.set(&format!("{NVME}/{name}"), text);
        }
        fixture
    }

    fn set(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, text).expect("written");
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.root.path().join(path)).expect("it was there");
    }

    fn check(&self) -> Vec<Finding> {
        let args = TuneCheck {
            dir: PathBuf::from("/srv/my data/ringmq"),
            cpus: Some(crate::values::cpus("1-2").expect("CPUs")),
            root: self.root.path().to_owned(),
        };
        check(&args).expect("a host can always be looked at")
    }

    /// What is found of one thing when one file is otherwise; all else stays good.
    fn with(&self, path: &str, text: &str, check: &str) -> Finding {
        let before = fs::read_to_string(self.root.path().join(path)).unwrap_or_default();
        self.set(path, text);
        let findings = self.check();
        self.set(path, &before);
        let others = findings.iter().filter(|finding| finding.check != check);
        for other in others {
            assert_eq!(other.state, State::Good, "{path} is otherwise: {other:?}");
        }
        findings.into_iter().find(|finding| finding.check == check).expect("it is looked at")
    }
}

#[test]
fn a_good_host_is_good() {
    for finding in Fixture::good().check() {
        assert_eq!((finding.state, &finding.remedy), (State::Good, &None), "{finding:?}");
        assert!(!finding.found.is_empty() && !finding.why.is_empty(), "{finding:?}");
    }
}

#[test]
fn each_fault_is_found_with_a_remedy() {
    let host = Fixture::good();
    let mounts = |options: &str| {
        format!("30 21 259:2 / /srv/my\\040data rw,noatime - xfs /dev/nvme0n1p2 rw,{options}\n")
    };
    let of_kind =
        |kind: &str| format!("30 21 259:2 / /srv/my\\040data rw - {kind} /dev/nvme0n1p2 rw\n");
    let mountinfo = "proc/self/mountinfo";
    let limits = "proc/self/limits";
    let huge = "sys/kernel/mm/transparent_hugepage";
    let governor = "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor";
    let clock = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    let queue = |name: &str| format!("{NVME}/queue/{name}");
    let few = "Max open files 1024 4096 files\nMax locked memory unlimited unlimited bytes\n";
    let little = "Max open files 1048576 1048576 files\nMax locked memory 65536 65536 bytes\n";
    let moved = " CPU0 CPU1 CPU2\n 41: 5 20000 0 PCI-MSIX 1-edge eth0-rx\n";
    let swaps = "Filename Type Size Used Priority\n/dev/sdb partition 100 0 -2\n";
    let cases = [
        (
            "proc/sys/kernel/osrelease".to_owned(),
            "5.4.0-1".to_owned(),
            "kernel",
            State::Bad,
            "6.1 or newer",
        ),
        (
            "proc/sys/kernel/osrelease".to_owned(),
            "5.15.0".to_owned(),
            "kernel",
            State::Warn,
            "6.1 or newer",
        ),
        (
            "proc/sys/kernel/io_uring_disabled".to_owned(),
            "2".to_owned(),
            "io_uring",
            State::Bad,
            "sysctl -w kernel.io_uring_disabled=0",
        ),
        (
            mountinfo.to_owned(),
            mounts("nobarrier"),
            "mount options",
            State::Bad,
            "barrier=1 /srv/my data",
        ),
        (mountinfo.to_owned(), mounts("discard"), "mount options", State::Warn, "fstrim.timer"),
        (mountinfo.to_owned(), mounts("data=journal"), "mount options", State::Warn, "tune2fs"),
        (mountinfo.to_owned(), of_kind("btrfs"), "file system", State::Warn, "--data-dir"),
        (mountinfo.to_owned(), of_kind("nfs4"), "file system", State::Bad, "--data-dir"),
        (
            queue("scheduler"),
            "none [mq-deadline]".to_owned(),
            "I/O scheduler",
            State::Warn,
            "echo none > /sys/block/nvme0n1/queue/scheduler",
        ),
        (queue("fua"), "0".to_owned(), "durable writes", State::Warn, "power-loss protection"),
        (queue("rotational"), "1".to_owned(), "kind of disk", State::Warn, "NVMe"),
        (
            governor.to_owned(),
            "powersave".to_owned(),
            "CPU governor",
            State::Warn,
            "cpupower frequency-set -g performance",
        ),
        (clock.to_owned(), "hpet".to_owned(), "clock source", State::Warn, "echo tsc"),
        (
            "proc/interrupts".to_owned(),
            moved.to_owned(),
            "interrupts",
            State::Warn,
            "echo 0 > /proc/irq/41/smp_affinity_list",
        ),
        (
            format!("{huge}/enabled"),
            "[always] madvise never".to_owned(),
            "transparent huge pages",
            State::Warn,
            "echo madvise",
        ),
        (
            format!("{huge}/defrag"),
            "[always] defer madvise".to_owned(),
            "transparent huge pages",
            State::Warn,
            "defer+madvise",
        ),
        (limits.to_owned(), few.to_owned(), "open files", State::Warn, "ulimit -n 65536"),
        (limits.to_owned(), little.to_owned(), "memlock", State::Bad, "ulimit -l unlimited"),
        ("proc/swaps".to_owned(), swaps.to_owned(), "swap", State::Warn, "swapoff -a"),
    ];
    for (path, text, name, state, remedy) in cases {
        let finding = host.with(&path, &text, name);
        assert_eq!(finding.state, state, "{path} {text:?}: {finding:?}");
        let said = finding.remedy.as_deref().unwrap_or_default();
        assert!(said.contains(remedy), "{path}: {said}");
    }
}

#[test]
fn what_cannot_be_read_is_not_called_good() {
    let host = Fixture::good();
    for path in ["proc/sys/kernel/osrelease", "proc/swaps", "proc/interrupts", "proc/self/limits"] {
        host.remove(path);
    }
    for path in ["queue/scheduler", "queue/write_cache"] {
        host.remove(&format!("{NVME}/{path}"));
    }
    let unknown: Vec<&str> = host
        .check()
        .iter()
        .filter(|finding| finding.state == State::Unknown)
        .map(|finding| finding.check)
        .collect();
    let expected = [
        "kernel",
        "I/O scheduler",
        "durable writes",
        "interrupts",
        "memlock",
        "open files",
        "swap",
    ];
    assert_eq!(unknown, expected);
    let empty = Host::at(tempfile::tempdir().expect("a directory").path());
    assert!(empty.mount_of(Path::new("/")).is_none());
}

#[test]
fn disks_below_a_mapped_device_are_found() {
    let host = Fixture::good();
    host.set("proc/self/mountinfo", "30 21 253:0 / / rw - xfs /dev/mapper/vg-data rw\n");
    host.set("sys/block/dm-0/dev", "253:0\n");
    for part in ["nvme0n1p1", "vda"] {
        fs::create_dir_all(host.root.path().join("sys/block/dm-0/slaves").join(part))
            .expect("made");
    }
    host.set("sys/block/vda/dev", "254:0\n");
    fs::create_dir_all(host.root.path().join("sys/block/vda/device")).expect("made");
    let driver = host.root.path().join("sys/block/vda/device/driver");
    symlink("../../../bus/virtio/drivers/virtio_blk", driver).expect("a link");
    let at = Host::at(host.root.path());
    let mount = at.mount_of(Path::new("/data")).expect("a mount");
    let names: Vec<String> = at.disks(&mount).into_iter().map(|disk| disk.name).collect();
    assert_eq!(names, ["nvme0n1", "vda"]);
    let findings = host.check();
    let kinds: Vec<(State, &str)> = findings
        .iter()
        .filter(|finding| finding.check == "kind of disk")
        .map(|finding| (finding.state, finding.found.as_str()))
        .collect();
    assert_eq!(kinds, [(State::Good, "nvme0n1"), (State::Warn, "vda: a virtual disk")]);
}

#[test]
fn faults_are_explained_and_the_good_is_one_line() {
    let findings = [
        Finding::new("kernel", "because").good("6.12"),
        Finding::new("swap", "it is slow").warn("/dev/sdb", "swapoff -a"),
    ];
    let expected = "good  kernel  6.12\n\
                    WARN  swap    /dev/sdb\n\
                    \x20             why     it is slow\n\
                    \x20             remedy  swapoff -a\n";
    assert_eq!(text(&findings, false), expected);
    assert!(text(&findings, true).contains("because"));
}
