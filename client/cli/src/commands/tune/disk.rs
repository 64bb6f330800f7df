//! The data directory's file system and disks.

use std::path::Path;

use super::Finding;
use super::host::{Disk, Host, Mount};

pub(super) fn checks(host: &Host, mount: Option<&Mount>, directory: &Path) -> Vec<Finding> {
    let Some(mount) = mount else {
        return vec![file_system(None), mount_options(None)];
    };
    let mut findings = vec![file_system(Some(mount)), mount_options(Some(mount))];
    let disks = host.disks(mount);
    if disks.is_empty() {
        let why = "the disk's queue and cache decide what a durable write costs";
        let found = format!("no disk is known below {} ({})", directory.display(), mount.source);
        findings.push(Finding::new("disk", why).unknown(found));
    }
    for disk in &disks {
        findings.extend([virtual_disk(host, disk), scheduler(host, disk), flush(host, disk)]);
    }
    findings
}

fn file_system(mount: Option<&Mount>) -> Finding {
    let finding = Finding::new(
        "file system",
        "the log is written around the page cache, into blocks that exist: ext4 and XFS do that in place",
    );
    let Some(mount) = mount else { return finding.unknown("/proc/self/mountinfo cannot be read") };
    let found = format!("{} at {}", mount.kind, mount.point);
    let move_it = "mkfs.xfs a disk of its own, mount it, and give it as --data-dir".to_owned();
    match mount.kind.as_str() {
        "ext4" | "xfs" => finding.good(found),
        "tmpfs" | "ramfs" | "overlay" => finding.bad(
            format!("{found}: nothing on it survives, or it cannot be written directly"),
            move_it,
        ),
        kind if kind.starts_with("nfs") || kind.starts_with("fuse") || kind == "cifs" => {
            finding.bad(format!("{found}: every write waits for somebody else"), move_it)
        }
        "btrfs" | "zfs" | "bcachefs" => finding.warn(
            format!("{found}: it copies on write, so a block written before is new again"),
            move_it,
        ),
        _ => finding.warn(format!("{found}: nobody has measured RingMQ on it"), move_it),
    }
}

fn mount_options(mount: Option<&Mount>) -> Finding {
    let finding = Finding::new(
        "mount options",
        "an option can make a durable write slower, or make it durable no longer",
    );
    let Some(mount) = mount else { return finding.unknown("/proc/self/mountinfo cannot be read") };
    let has = |option: &str| mount.options.iter().any(|known| known == option);
    let point = &mount.point;
    let again = |option: &str| format!("mount -o remount,{option} {point} (and in /etc/fstab)");
    if has("nobarrier") || has("barrier=0") {
        let found = "nobarrier: what is acknowledged may not survive power loss";
        return finding.bad(found, again("barrier=1"));
    }
    if has("data=journal") {
        let found = "data=journal: every block is written twice";
        let remedy = "tune2fs -o ^journal_data DEVICE, and mount it with data=ordered";
        return finding.warn(found, remedy);
    }
    if has("sync") || has("dirsync") {
        return finding
            .warn("sync: every change of a directory waits for the disk", again("async"));
    }
    if has("strictatime") {
        return finding.warn("strictatime: every read becomes a write", again("relatime"));
    }
    if has("discard") {
        let found = "discard: the disk is told of freed blocks at once, in front of writes";
        let remedy = format!("{}; systemctl enable --now fstrim.timer", again("nodiscard"));
        return finding.warn(found, remedy);
    }
    finding.good(mount.options.join(","))
}

fn is_virtual(host: &Host, disk: &Disk) -> bool {
    let prefixes = ["vd", "xvd", "zram", "loop", "nbd", "rbd"];
    let driver = host.link(&format!("{}/device/driver", disk.path)).unwrap_or_default();
    prefixes.iter().any(|prefix| disk.name.starts_with(prefix))
        || ["virtio", "xen", "vmw", "hv_"].iter().any(|name| driver.contains(name))
}

fn virtual_disk(host: &Host, disk: &Disk) -> Finding {
    let finding = Finding::new(
        "kind of disk",
        "behind a virtual disk other guests and the host's cache have a say in every write's latency",
    );
    match is_virtual(host, disk) {
        true => finding.warn(
            format!("{}: a virtual disk", disk.name),
            "use a local NVMe disk, passed through; or measure this one: ringmq bench limits --dir DIR",
        ),
        false if host.text(&format!("{}/queue/rotational", disk.path)).as_deref() == Some("1") => {
            finding.warn(
                format!("{}: a disk that turns, or says so", disk.name),
                "use an NVMe disk: a durable write here waits for the disk to come round",
            )
        }
        false => finding.good(disk.name.clone()),
    }
}

fn scheduler(host: &Host, disk: &Disk) -> Finding {
    let finding = Finding::new(
        "I/O scheduler",
        "the broker orders its own writes; a scheduler holds them back to sort them again",
    );
    let path = format!("{}/queue/scheduler", disk.path);
    let Some(chosen) = host.choice(&path) else {
        return finding.unknown(format!("{}: it does not say", disk.name));
    };
    let found = format!("{}: {chosen}", disk.name);
    match chosen.as_str() {
        "none" | "noop" => finding.good(found),
        _ => finding.warn(
            found,
            format!(
                "echo none > /{path} (for good: a udev rule, ACTION==\"add|change\", \
                 KERNEL==\"{}\", ATTR{{queue/scheduler}}=\"none\")",
                disk.name
            ),
        ),
    }
}

fn flush(host: &Host, disk: &Disk) -> Finding {
    let finding = Finding::new(
        "durable writes",
        "without FUA a durable write empties the disk's whole cache, not only its own block",
    );
    let cache = host.text(&format!("{}/queue/write_cache", disk.path));
    let fua = host.text(&format!("{}/queue/fua", disk.path));
    let name = &disk.name;
    match (cache.as_deref(), fua.as_deref()) {
        (Some("write through"), _) => finding.good(format!("{name}: no volatile cache")),
        (Some(_), Some("1")) => finding.good(format!("{name}: volatile cache, FUA")),
        (Some(_), Some(_)) => finding.warn(
            format!("{name}: volatile cache, no FUA"),
            format!(
                "a disk with power-loss protection or FUA; cat /sys/block/{name}/queue/fua shows it"
            ),
        ),
        _ => finding.unknown(format!("{name}: it does not say")),
    }
}
