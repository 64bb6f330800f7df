//! `cargo xtask faults`: the second suite, which breaks disks and networks for real.

use crate::cargo;
use anyhow::bail;
use std::path::Path;

/// Programs that the suite runs, and the Debian packages that have them.
const TOOLS: &[(&str, &str)] = &[
    ("mkfs.ext4", "e2fsprogs"),
    ("losetup", "mount"),
    ("xfs_io", "xfsprogs"),
    ("strace", "strace"),
];

pub(crate) fn run(args: &[String]) -> anyhow::Result<()> {
    let mut missing: Vec<_> =
        TOOLS.iter().filter(|(tool, _)| !is_there(tool)).map(|(_, package)| *package).collect();
    missing.dedup();
    if !missing.is_empty() {
        bail!("tools are missing: apt-get install {}", missing.join(" "));
    }
    if !is_root() {
        bail!("mounts and network namespaces are made: run it as root");
    }
    if !Path::new("/dev/fuse").exists() {
        bail!("there is no /dev/fuse for the file system that fails on command: modprobe fuse");
    }
    let mut command = cargo(&[
        "test",
        "-p",
        "ringmq-tests",
        "--features",
        "faults",
        "--test",
        "power_loss",
        "--test",
        "hosts",
        "--test",
        "disk_faults",
        "--test",
        "disk_watermark",
        "--",
        "--nocapture",
    ]);
    command.args(args);
    crate::run(command)
}

fn is_there(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Not everybody's PATH has the directories of system tools, but root's shell finds them.
    let system = ["/usr/sbin", "/sbin"].map(Into::into);
    std::env::split_paths(&path).chain(system).any(|directory| directory.join(tool).is_file())
}

/// Whether the effective user is root, as the kernel says.
fn is_root() -> bool {
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).unwrap_or_default();
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.and_then(|uids| uids.split_whitespace().nth(1)) == Some("0")
}
