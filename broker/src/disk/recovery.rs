//! The log's files before the shard serves: plain blocking calls on the shard's own thread.
//!
//! Invariants:
//! - nothing else has the files open; the page cache that this leaves is dropped by the kernel where
//!   O_DIRECT writes follow;
//! - a file bears its name only when it is whole: what a crash leaves half made ends with `.new` and is
//!   removed at start.

use super::beside::remove;
use super::segment::{
    SPARE_INDEX, SPARES_MAX, base_of, failed, file_name, index_name, spare_base_of, spare_name,
};
use crate::sys;
use anyhow::Context;
use ringmq_core::{BLOCK_BYTES, DiskError, LogFiles, SegmentFile, ShardConfig, check_segment};
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Zeros written at once.
const WIPE_BYTES: usize = 1 << 20;

/// Reads at least so long go through the log from front to back.
const AHEAD_BYTES_MIN: usize = 1 << 20;

/// Longest wait for the writes of a broker that was killed. Seen: some 10 ms; a disk that takes longer
/// than this for one write is broken.
const LANDING_MAX: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(crate) struct RecoveryFiles {
    folder: PathBuf,
    segments: Vec<SegmentFile>,
    spares: Vec<SegmentFile>,
    open: Option<(SegmentFile, File)>,
    open_index: Option<(u64, File)>,
}

impl RecoveryFiles {
    /// Lists the segments of a folder and removes what a crash left half made.
    pub(crate) fn open(folder: PathBuf) -> Result<RecoveryFiles, DiskError> {
        let list = || -> std::io::Result<(Vec<SegmentFile>, Vec<SegmentFile>)> {
            let (mut segments, mut spares) = (Vec::new(), Vec::new());
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.ends_with(".new") {
                    fs::remove_file(entry.path())?;
                } else if let Some(base) = base_of(&name) {
                    segments.push(SegmentFile { base, bytes: entry.metadata()?.len() });
                } else if let Some(base) = spare_base_of(&name) {
                    spares.push(SegmentFile { base, bytes: entry.metadata()?.len() });
                }
            }
            segments.sort_by_key(|segment| segment.base);
            Ok((segments, spares))
        };
        let (segments, spares) =
            list().map_err(|e| failed(format!("list {}", folder.display()), e))?;
        for segment in &segments {
            await_landing(&folder.join(file_name(segment.base)))?;
        }
        Ok(RecoveryFiles { folder, segments, spares, open: None, open_index: None })
    }

    /// Gives segments that were cut short their length back; new ones have this one.
    pub(crate) fn restore_lengths(&mut self, usual: u64) -> Result<(), DiskError> {
        super::lengths::restore(&self.folder, &mut self.segments, usual)
    }

    /// Retired segments that can become new ones of this length; removes the others.
    pub(crate) fn keep_spares(&mut self, bytes: u64) -> Result<Vec<SegmentFile>, DiskError> {
        let mut kept = Vec::new();
        for spare in self.spares.drain(..) {
            if spare.bytes == bytes && kept.len() < SPARES_MAX {
                kept.push(spare);
                continue;
            }
            let path = self.folder.join(spare_name(spare.base));
            fs::remove_file(&path).map_err(|e| failed(format!("remove {}", path.display()), e))?;
        }
        Ok(kept)
    }

    /// What is there.
    pub(crate) fn list(&self) -> &[SegmentFile] {
        &self.segments
    }

    fn file(&mut self, position: u64, bytes: u64) -> Result<(&File, u64), DiskError> {
        let found = self.segments.iter().rev().find(|segment| segment.base <= position).copied();
        let missing = || failed(format!("find position {position}"), "no segment has it");
        let segment = found.ok_or_else(missing)?;
        if position + bytes > segment.base + segment.bytes {
            return Err(missing());
        }
        if self.open.as_ref().is_none_or(|(open, _)| *open != segment) {
            let path = self.folder.join(file_name(segment.base));
            let opened = OpenOptions::new().read(true).write(true).open(&path);
            let file = opened.map_err(|e| failed(format!("open {}", path.display()), e))?;
            self.open = Some((segment, file));
        }
        let (_, file) = self.open.as_ref().expect("opened above");
        Ok((file, position - segment.base))
    }
}

/// So much of an index is on its way to the disk at a time: all of it at once, 12 MiB and more, would stand in front of
/// the log's own small writes.
const INDEX_CHUNK_BYTES: usize = 1 << 20;

/// The index of a segment, written in place of what is there: whole and durable before it has its name.
pub(super) struct NewIndex {
    folder: PathBuf,
    path: PathBuf,
    new: PathBuf,
    /// The first failure ends it.
    file: std::io::Result<File>,
    end: u64,
}

impl NewIndex {
    pub(super) fn begin(folder: &Path, base: u64) -> NewIndex {
        let path = folder.join(index_name(base));
        let new = folder.join(format!("{}.new", index_name(base)));
        let file = match fs::rename(folder.join(SPARE_INDEX), &new) {
            Ok(()) => OpenOptions::new().write(true).open(&new),
            Err(error) if error.kind() == ErrorKind::NotFound => File::create(&new),
            Err(error) => Err(error),
        };
        NewIndex { folder: folder.to_owned(), path, new, file, end: 0 }
    }

    /// Writes a piece of at most [`INDEX_CHUNK_BYTES`] or so, and waits for the disk; failures are told at the end.
    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        self.end = self.end.max(at + bytes.len() as u64);
        let Ok(file) = &self.file else { return };
        match file.write_all_at(bytes, at) {
            Ok(()) => sys::write_back(file, at, bytes.len() as u64),
            Err(error) => self.file = Err(error),
        }
    }

    pub(super) fn finish(self) -> Result<(), DiskError> {
        let NewIndex { folder, path, new, file, end } = self;
        let finish = || -> std::io::Result<()> {
            let file = file?;
            file.set_len(end)?;
            file.sync_data()?;
            // It is read past the page cache.
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            fs::rename(&new, &path)?;
            File::open(folder)?.sync_all()
        };
        finish().map_err(|error| failed(format!("write {}", path.display()), error))
    }

    /// Leaves what was there before.
    pub(super) fn give_up(self) -> std::io::Result<()> {
        remove(&self.new)
    }
}

/// Writes the index of a segment.
pub(super) fn write_index(folder: &Path, base: u64, bytes: &[u8]) -> Result<(), DiskError> {
    let mut index = NewIndex::begin(folder, base);
    let places = (0u64..).step_by(INDEX_CHUNK_BYTES);
    bytes.chunks(INDEX_CHUNK_BYTES).zip(places).for_each(|(chunk, at)| index.write(at, chunk));
    index.finish()
}

/// Refuses a folder with segments of another log or of a newer version. Changes nothing.
pub(crate) fn check_folder(config: &ShardConfig, folder: &Path) -> anyhow::Result<()> {
    let shard = config.shard;
    let unreadable = || format!("shard {shard}: cannot read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let Some(base) = base_of(&entry.file_name().to_string_lossy()) else { continue };
        let mut block = [0; BLOCK_BYTES];
        let file = File::open(entry.path()).with_context(unreadable)?;
        // What cannot be read is for recovery to judge.
        if file.read_exact_at(&mut block, 0).is_ok() {
            check_segment(config, base, &block)
                .with_context(|| format!("shard {shard} in {} does not open", folder.display()))?;
        }
    }
    Ok(())
}

/// Waits until no write of an earlier process is under way in a file: each holds a shared lock until it
/// has ended.
fn await_landing(path: &Path) -> Result<(), DiskError> {
    let failed = |error: std::io::Error| failed(format!("lock {}", path.display()), error);
    let file = File::open(path).map_err(failed)?;
    let begun = Instant::now();
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < LANDING_MAX => {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

impl LogFiles for RecoveryFiles {
    fn segments(&mut self) -> Result<Vec<SegmentFile>, DiskError> {
        Ok(self.segments.clone())
    }

    fn read(&mut self, position: u64, out: &mut [u8]) -> Result<(), DiskError> {
        let (file, at) = self.file(position, out.len() as u64)?;
        let operation = || format!("read {} bytes at position {position}", out.len());
        let operation = operation();
        if out.len() >= AHEAD_BYTES_MIN {
            // The log is read from front to back: the disk brings what comes next while this is replayed. Only
            // advice, so how it went is of no interest.
            let next = at + out.len() as u64;
            let length = std::num::NonZeroU64::new(out.len() as u64);
            let _ = rustix::fs::fadvise(file, next, length, rustix::fs::Advice::WillNeed);
        }
        file.read_exact_at(out, at).map_err(|e| failed(operation, e))
    }

    fn wipe(&mut self, position: u64, bytes: u64) -> Result<(), DiskError> {
        let (file, at) = self.file(position, bytes)?;
        let zeros = vec![0; WIPE_BYTES.min(usize::try_from(bytes).unwrap_or(WIPE_BYTES))];
        let write = || -> std::io::Result<()> {
            let mut done = 0;
            while done < bytes {
                let part = (bytes - done).min(zeros.len() as u64);
                file.write_all_at(&zeros[..part as usize], at + done)?;
                done += part;
            }
            file.sync_data()
        };
        write().map_err(|e| failed(format!("wipe {bytes} bytes at position {position}"), e))
    }

    fn index_bytes(&mut self, base: u64) -> Result<Option<u64>, DiskError> {
        let path = self.folder.join(index_name(base));
        match fs::metadata(&path) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(format!("look at {}", path.display()), error)),
        }
    }

    fn read_index(&mut self, base: u64, at: u64, out: &mut [u8]) -> Result<(), DiskError> {
        let path = self.folder.join(index_name(base));
        let operation = format!("read {} bytes at {at} of {}", out.len(), path.display());
        let mut read = || -> std::io::Result<()> {
            if self.open_index.as_ref().is_none_or(|(open, _)| *open != base) {
                self.open_index = Some((base, File::open(&path)?));
            }
            let (_, file) = self.open_index.as_ref().expect("opened above");
            file.read_exact_at(out, at)
        };
        read().map_err(|error| failed(operation, error))
    }

    fn write_index(&mut self, base: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.open_index = None;
        write_index(&self.folder, base, bytes)
    }

    fn remove_index(&mut self, base: u64) -> Result<(), DiskError> {
        self.open_index = None;
        let path = self.folder.join(index_name(base));
        let removed = remove(&path).and_then(|()| File::open(&self.folder)?.sync_all());
        removed.map_err(|error| failed(format!("remove {}", path.display()), error))
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        for segment in &self.segments {
            let path = self.folder.join(file_name(segment.base));
            let synced = File::open(&path).and_then(|file| file.sync_data());
            synced.map_err(|e| failed(format!("sync {}", path.display()), e))?;
        }
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(|e| failed(format!("sync {}", self.folder.display()), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_listed_read_wiped_and_leftovers_go() {
        let dir = tempfile::tempdir().unwrap();
        for base in [8192u64, 0] {
            fs::write(dir.path().join(file_name(base)), vec![base as u8 | 1; 8192]).unwrap();
        }
        fs::write(dir.path().join("00000000000000016384.new"), b"half").unwrap();
        let mut files = RecoveryFiles::open(dir.path().to_owned()).unwrap();
        let bases: Vec<u64> = files.segments().unwrap().iter().map(|s| s.base).collect();
        assert_eq!(bases, [0, 8192]);
        assert!(!dir.path().join("00000000000000016384.new").exists());
        let mut out = [0; 100];
        files.read(8192 + 50, &mut out).unwrap();
        assert_eq!(out, [1; 100]);
        files.wipe(4096, 4096).unwrap();
        files.read(4050, &mut out).unwrap();
        assert_eq!((out[45], out[46]), (1, 0));
        assert!(files.read(8150, &mut out).is_err(), "across two segments");
        assert!(files.read(1 << 20, &mut out).is_err());
        files.sync().unwrap();
    }

    #[test]
    fn an_index_is_replaced_whole_and_is_no_segment() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(file_name(0)), vec![0; 4096]).unwrap();
        fs::write(dir.path().join("00000000000000000000.index.new"), b"half").unwrap();
        let mut files = RecoveryFiles::open(dir.path().to_owned()).unwrap();
        assert_eq!(files.index_bytes(0), Ok(None));
        let mut out = [0; 3];
        assert!(files.read_index(0, 0, &mut out).is_err());
        for with in [1u8, 2] {
            files.write_index(0, &vec![with; 4096 * usize::from(with)]).unwrap();
            assert_eq!(files.index_bytes(0), Ok(Some(4096 * u64::from(with))));
            files.read_index(0, 4000, &mut out).unwrap();
            assert_eq!(out, [with; 3]);
        }
        assert!(files.read_index(0, 8190, &mut out).is_err(), "past the end");
        let files = RecoveryFiles::open(dir.path().to_owned()).unwrap();
        assert_eq!(files.list(), [SegmentFile { base: 0, bytes: 4096 }]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn spares_of_the_wanted_length_are_kept_up_to_their_number() {
        let dir = tempfile::tempdir().unwrap();
        for (base, bytes) in [(0, 4096), (4096, 8192), (8192, 4096), (12_288, 4096)] {
            fs::write(dir.path().join(spare_name(base)), vec![0; bytes]).unwrap();
        }
        let mut files = RecoveryFiles::open(dir.path().to_owned()).unwrap();
        assert_eq!(files.list(), []);
        let kept = files.keep_spares(4096).unwrap();
        assert!(kept.len() == SPARES_MAX && kept.iter().all(|spare| spare.bytes == 4096));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), SPARES_MAX);
    }

    #[test]
    fn recovery_waits_for_writes_of_a_dead_broker() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file_name(0));
        fs::write(&path, vec![0; 4096]).unwrap();
        let held = File::open(&path).unwrap();
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockShared).unwrap();
        let folder = dir.path().to_owned();
        let (sender, opened) = std::sync::mpsc::channel();
        let recovery = std::thread::spawn(move || {
            let files = RecoveryFiles::open(folder);
            sender.send(()).unwrap();
            files.unwrap();
        });
        assert!(opened.recv_timeout(Duration::from_millis(100)).is_err(), "it waits");
        drop(held);
        opened.recv_timeout(Duration::from_secs(5)).unwrap();
        recovery.join().unwrap();
    }
}
