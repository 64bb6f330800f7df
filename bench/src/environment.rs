//! Where a run took place: without it no figure can be compared with another.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The machine, as far as figures depend on it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the keys of run.json and say it")]
pub struct Environment {
    pub kernel: String,
    pub cpu: String,
    pub cores: usize,
    pub memory_bytes: u64,
    pub directory: String,
    pub disk_device: String,
    pub disk_filesystem: String,
    pub client_version: String,
    pub optimised: bool,
    pub started_at_ms: u64,
}

impl Environment {
    /// Reads it; what cannot be read is an empty string or zero. `directory` says whose disk.
    pub fn read(directory: &Path) -> Environment {
        let (disk_device, disk_filesystem) = mount_of(directory).unwrap_or_default();
        Environment {
            kernel: first_line("/proc/sys/kernel/osrelease"),
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_bytes(),
            directory: directory.display().to_string(),
            disk_device,
            disk_filesystem,
            client_version: env!("CARGO_PKG_VERSION").to_owned(),
            optimised: !cfg!(debug_assertions),
            started_at_ms: since_epoch_ms(),
        }
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        format!(
            "{} cores of {}, kernel {}, {} on {}",
            self.cores, self.cpu, self.kernel, self.disk_filesystem, self.disk_device
        )
    }
}

/// Milliseconds since 1970, UTC.
pub fn since_epoch_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// `2026-01-31 12:00:05Z` of milliseconds since 1970.
pub fn utc(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1_000 % 86_400);
    // Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is the last one.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

fn first_line(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

fn field(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    })
}

fn memory_bytes() -> u64 {
    let line = field("/proc/meminfo", "MemTotal").unwrap_or_default();
    let kib: u64 = line.trim_end_matches(" kB").parse().unwrap_or(0);
    kib * 1024
}

/// Device and file system type of the mount that holds `directory`.
fn mount_of(directory: &Path) -> Option<(String, String)> {
    let directory = directory.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    longest_mount(&mounts, &directory)
}

fn longest_mount(mounts: &str, directory: &Path) -> Option<(String, String)> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (device, point, kind) = (words.next()?, words.next()?, words.next()?);
            let point = point.replace("\\040", " ");
            directory.starts_with(&point).then_some((point.len(), device, kind))
        })
        // The last of equals is mounted over the others.
        .max_by_key(|(length, ..)| *length)
        .map(|(_, device, kind)| (device.to_owned(), kind.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_holds_a_directory() {
        let mounts = "/dev/a / ext4 rw 0 0\n/dev/b /mnt/my\\040disk xfs rw 0 0\n";
        let of = |path: &str| longest_mount(mounts, Path::new(path)).map(|(device, _)| device);
        assert_eq!(of("/mnt/my disk/x").as_deref(), Some("/dev/b"));
        assert_eq!(of("/mnt/other").as_deref(), Some("/dev/a"));
    }

    #[test]
    fn dates_are_written() {
        assert_eq!(utc(1_769_860_805_250), "2026-01-31 12:00:05Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00Z");
    }

    #[test]
    fn the_environment_can_be_read_here() {
        let environment = Environment::read(Path::new("."));
        assert!(environment.cores > 0);
        assert!(environment.started_at_ms > 0);
    }
}
