//! A host as it shows itself in /proc and /sys, below any root.

use std::fs;
use std::path::{Path, PathBuf};

/// Where to read.
#[derive(Debug, Clone)]
pub(super) struct Host {
    root: PathBuf,
}

/// The mount that holds a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// `major:minor`.
    pub(super) device: String,
    pub(super) point: String,
    pub(super) kind: String,
    pub(super) source: String,
    /// The mount's and the file system's, without repeats.
    pub(super) options: Vec<String>,
}

/// A disk: what has a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) name: String,
    /// `sys/block/NAME`, below the root.
    pub(super) path: String,
}

impl Host {
    pub(super) fn at(root: &Path) -> Host {
        Host { root: root.to_owned() }
    }

    /// A file's text, trimmed; `None` where it cannot be read.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join(path)).ok()?;
        Some(text.trim().to_owned())
    }

    /// A number in a file.
    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// Names in a directory, sorted; none where it cannot be read.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Where a link leads, as it is written.
    pub(super) fn link(&self, path: &str) -> Option<String> {
        Some(fs::read_link(self.root.join(path)).ok()?.display().to_string())
    }

    /// The word in brackets: `none [mq-deadline] kyber`.
    pub(super) fn choice(&self, path: &str) -> Option<String> {
        let text = self.text(path)?;
        let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
        Some(chosen.map_or(text.clone(), |(chosen, _)| chosen.to_owned()))
    }

    /// The innermost mount of an absolute path.
    pub(super) fn mount_of(&self, directory: &Path) -> Option<Mount> {
        let mounts = self.text("proc/self/mountinfo")?;
        let held = mounts.lines().filter_map(mount).filter(|m| directory.starts_with(&m.point));
        // The last of equals is mounted over the others.
        held.max_by_key(|mount| mount.point.len())
    }

    /// The disks below a mount: a partition's disk, and what a mapped device or an array is made of.
    pub(super) fn disks(&self, mount: &Mount) -> Vec<Disk> {
        let by_source = mount.source.strip_prefix("/dev/").map(str::to_owned);
        for block in self.names("sys/block") {
            let path = format!("sys/block/{block}");
            let is = |path: &str| self.text(&format!("{path}/dev")).as_ref() == Some(&mount.device);
            let mut parts = self.names(&path).into_iter().filter(|name| name.starts_with(&block));
            let named = by_source.as_deref() == Some(block.as_str());
            if named || is(&path) || parts.any(|part| is(&format!("{path}/{part}"))) {
                return self.below(block);
            }
        }
        Vec::new()
    }

    fn below(&self, name: String) -> Vec<Disk> {
        let path = format!("sys/block/{name}");
        let mut slaves = self.names(&format!("{path}/slaves"));
        // A slave may be a partition: its disk is the block device whose name it begins with.
        let blocks = self.names("sys/block");
        for slave in &mut slaves {
            let whole = blocks.iter().filter(|block| slave.starts_with(block.as_str()));
            if let Some(block) = whole.max_by_key(|block| block.len()) {
                *slave = block.clone();
            }
        }
        slaves.dedup();
        match slaves.is_empty() {
            true => vec![Disk { name, path }],
            false => slaves.into_iter().flat_map(|slave| self.below(slave)).collect(),
        }
    }
}

/// One line of mountinfo: `36 35 98:0 /sub /point rw,noatime shared:1 - ext4 /dev/root rw,discard`.
fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let device = left.nth(2)?.to_owned();
    let point = left.nth(1)?.replace("\\040", " ");
    let own = left.next()?;
    let mut right = right.split(' ');
    let (kind, source) = (right.next()?.to_owned(), right.next()?.to_owned());
    let mut options: Vec<String> = own.split(',').map(str::to_owned).collect();
    for option in right.next().unwrap_or_default().split(',').filter(|option| !option.is_empty()) {
        if !options.iter().any(|known| known == option) {
            options.push(option.to_owned());
        }
    }
    Some(Mount { device, point, kind, source, options })
}
