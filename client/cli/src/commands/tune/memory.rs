//! Kernel, its rings, memory and limits.

use super::Finding;
use super::host::Host;

/// What an executor locks: the broker refuses to start below it.
const MEMLOCK_BYTES_PER_CPU: u64 = 512 << 10;
/// Segments, indexes and connections of a middling broker.
const OPEN_FILES_MIN: u64 = 65_536;
const SWAPPINESS_MAX: u64 = 1;

pub(super) fn checks(host: &Host) -> Vec<Finding> {
    vec![huge_pages(host), memlock(host), open_files(host), swap(host)]
}

pub(super) fn kernel(host: &Host) -> Finding {
    let finding = Finding::new(
        "kernel",
        "io_uring got its speed and its fixes release by release; below 5.8 it has not what is needed",
    );
    let Some(release) = host.text("proc/sys/kernel/osrelease") else {
        return finding.unknown("/proc/sys/kernel/osrelease cannot be read");
    };
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return finding.unknown(release);
    };
    let newer = "install a kernel of 6.1 or newer: apt-get install linux-image-amd64";
    if (major, minor) < (5, 8) {
        finding.bad(release, newer)
    } else if (major, minor) < (6, 1) {
        finding.warn(release, newer)
    } else {
        finding.good(release)
    }
}

pub(super) fn io_uring(host: &Host) -> Finding {
    let finding = Finding::new("io_uring", "the broker does all its input and output through it");
    match host.number("proc/sys/kernel/io_uring_disabled") {
        Some(0) => finding.good("allowed"),
        Some(1) => finding.warn(
            "allowed to root and kernel.io_uring_group only",
            "sysctl -w kernel.io_uring_disabled=0",
        ),
        Some(_) => finding.bad("refused to everybody", "sysctl -w kernel.io_uring_disabled=0"),
        // Kernels before 6.6 have no such switch.
        None => finding.good("no switch to forbid it (a container's seccomp profile still may)"),
    }
}

fn huge_pages(host: &Host) -> Finding {
    let finding = Finding::new(
        "transparent huge pages",
        "`always` lets the kernel stop a thread to gather a huge page, and swells what caches hold",
    );
    let path = "sys/kernel/mm/transparent_hugepage";
    match host.choice(&format!("{path}/enabled")) {
        None => finding.unknown("it does not say"),
        Some(chosen) if chosen == "always" => {
            finding.warn(chosen, format!("echo madvise > /{path}/enabled"))
        }
        Some(chosen) => match host.choice(&format!("{path}/defrag")) {
            Some(defrag) if defrag == "always" => finding.warn(
                format!("{chosen}, defrag always"),
                format!("echo defer+madvise > /{path}/defrag"),
            ),
            _ => finding.good(chosen),
        },
    }
}

/// The soft limit of this process: what a broker started from here would have. `None`: unlimited.
fn limit(host: &Host, name: &str) -> Option<Option<u64>> {
    let limits = host.text("proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(None),
        number => Some(Some(number.parse().ok()?)),
    }
}

fn memlock(host: &Host) -> Finding {
    let finding = Finding::new("memlock", "each executor locks the memory of its rings");
    let online = host.text("sys/devices/system/cpu/online").unwrap_or_default();
    let cpus = crate::values::cpus(&online).map_or(1, |cpus| cpus.count().max(1));
    let needed = MEMLOCK_BYTES_PER_CPU * cpus as u64;
    match limit(host, "Max locked memory") {
        None => finding.unknown("/proc/self/limits cannot be read"),
        Some(None) => finding.good("unlimited"),
        Some(Some(bytes)) if bytes >= needed => finding.good(format!(
            "{} KiB, {} KiB needed for {cpus} CPUs",
            bytes >> 10,
            needed >> 10
        )),
        Some(Some(bytes)) => finding.bad(
            format!("{} KiB, {} KiB needed for {cpus} CPUs", bytes >> 10, needed >> 10),
            "ulimit -l unlimited, or LimitMEMLOCK=infinity in the service file",
        ),
    }
}

fn open_files(host: &Host) -> Finding {
    let finding = Finding::new("open files", "segments, indexes and connections each take one");
    match limit(host, "Max open files") {
        None => finding.unknown("/proc/self/limits cannot be read"),
        Some(Some(files)) if files < OPEN_FILES_MIN => finding.warn(
            files.to_string(),
            format!(
                "ulimit -n {OPEN_FILES_MIN}, or LimitNOFILE={OPEN_FILES_MIN} in the service file"
            ),
        ),
        Some(files) => {
            finding.good(files.map_or("unlimited".to_owned(), |files| files.to_string()))
        }
    }
}

fn swap(host: &Host) -> Finding {
    let finding = Finding::new(
        "swap",
        "a page of the broker that was swapped out costs a read of the disk in the middle of a message",
    );
    let Some(swaps) = host.text("proc/swaps") else {
        return finding.unknown("/proc/swaps cannot be read");
    };
    let areas: Vec<&str> =
        swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if areas.is_empty() {
        return finding.good("none");
    }
    match host.number("proc/sys/vm/swappiness") {
        Some(swappiness) if swappiness <= SWAPPINESS_MAX => {
            finding.good(format!("{}, swappiness {swappiness}", areas.join(", ")))
        }
        swappiness => {
            let shown = swappiness.map_or("unknown".to_owned(), |value| value.to_string());
            finding.warn(
                format!("{}, swappiness {shown}", areas.join(", ")),
                "swapoff -a, or sysctl -w vm.swappiness=1",
            )
        }
    }
}
