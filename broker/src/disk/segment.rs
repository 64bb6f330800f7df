//! Segments of one shard's log as files.
//!
//! Invariants:
//! - a file bears its final name only once it has its whole length, durably;
//! - each file is opened twice: O_DIRECT for plain writes and reads, O_DIRECT and O_DSYNC for durable
//!   writes, each of which is then complete by itself, several at a time;
//! - at most [`OPEN_MAX`] files of a shard are open;
//! - each open file bears a shared lock. The kernel keeps it until the last write that is under way on
//!   that descriptor has ended, also when the process was killed: recovery waits for it, so that no write
//!   of a dead broker can land on what its successor wrote.

use glommio::io::{Directory, DmaFile, OpenOptions};
use ringmq_core::{DiskError, SegmentFile};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Open segments of a shard: the ones being written and read; reopening one costs two system calls.
const OPEN_MAX: usize = 32;

/// Name of the segment that begins at `base`.
pub(crate) fn file_name(base: u64) -> String {
    format!("{base:020}.log")
}

/// Base of the segment with this name.
pub(crate) fn base_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

/// One segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    path: PathBuf,
    plain: RefCell<Option<Rc<DmaFile>>>,
    durable: RefCell<Option<Rc<DmaFile>>>,
    used: Cell<u64>,
}

impl Segment {
    fn new(folder: &Path, file: SegmentFile) -> Rc<Segment> {
        Rc::new(Segment {
            base: file.base,
            bytes: file.bytes,
            path: folder.join(file_name(file.base)),
            plain: RefCell::new(None),
            durable: RefCell::new(None),
            used: Cell::new(0),
        })
    }

    pub(crate) fn end(&self) -> u64 {
        self.base + self.bytes
    }

    /// The file for durable writes, or for everything else.
    pub(crate) async fn file(&self, durable: bool) -> Result<Rc<DmaFile>, DiskError> {
        let slot = if durable { &self.durable } else { &self.plain };
        if let Some(file) = slot.borrow().as_ref() {
            return Ok(Rc::clone(file));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if durable {
            options.custom_flags(libc::O_DSYNC);
        }
        let opened = options.dma_open(&self.path).await;
        let opened =
            opened.map_err(|error| failed(format!("open {}", self.path.display()), error))?;
        let shared = rustix::fs::FlockOperation::NonBlockingLockShared;
        rustix::fs::flock(crate::sys::file_descriptor(&opened), shared)
            .map_err(|error| failed(format!("lock {}", self.path.display()), error))?;
        // Another task may have been faster meanwhile: one of the two stays.
        let mut slot = slot.borrow_mut();
        Ok(Rc::clone(slot.get_or_insert_with(|| Rc::new(opened))))
    }

    fn is_open(&self) -> bool {
        self.plain.borrow().is_some() || self.durable.borrow().is_some()
    }

    fn is_idle(&self) -> bool {
        let idle = |slot: &RefCell<Option<Rc<DmaFile>>>| {
            slot.borrow().as_ref().is_none_or(|file| Rc::strong_count(file) == 1)
        };
        idle(&self.plain) && idle(&self.durable)
    }

    async fn close(&self) {
        let files = [self.plain.take(), self.durable.take()];
        for file in files.into_iter().flatten() {
            if let Err(error) = file.close_rc().await {
                tracing::warn!("closing {}: {error}", self.path.display());
            }
        }
    }
}

/// A disk error in words.
pub(crate) fn failed(operation: String, error: impl std::fmt::Display) -> DiskError {
    DiskError { operation, reason: error.to_string() }
}

/// The segments of one shard.
#[derive(Debug)]
pub(crate) struct Segments {
    folder: PathBuf,
    all: RefCell<BTreeMap<u64, Rc<Segment>>>,
    uses: Cell<u64>,
}

impl Segments {
    pub(crate) fn new(folder: PathBuf, files: &[SegmentFile]) -> Segments {
        let all = files.iter().map(|file| (file.base, Segment::new(&folder, *file))).collect();
        Segments { folder, all: RefCell::new(all), uses: Cell::new(0) }
    }

    /// The segment with this position.
    pub(crate) fn at(&self, position: u64) -> Option<Rc<Segment>> {
        let all = self.all.borrow();
        let (_, segment) = all.range(..=position).next_back()?;
        if position >= segment.end() {
            return None;
        }
        self.uses.set(self.uses.get() + 1);
        segment.used.set(self.uses.get());
        Some(Rc::clone(segment))
    }

    /// The segments with bytes of this range.
    pub(crate) fn within(&self, from: u64, to: u64) -> Vec<Rc<Segment>> {
        let all = self.all.borrow();
        let covers = |segment: &&Rc<Segment>| segment.end() > from;
        all.range(..to).map(|(_, segment)| segment).filter(covers).cloned().collect()
    }

    /// Makes a segment: its whole length allocated, its name durable, open for writing.
    pub(crate) async fn make(&self, base: u64, bytes: u64) -> Result<(), DiskError> {
        let there = self.at(base);
        if let Some(segment) = there.filter(|s| s.base == base && s.bytes == bytes) {
            return segment.file(true).await.map(drop);
        }
        let name = self.folder.join(file_name(base));
        let new = name.with_extension("new");
        let failed = |error| failed(format!("make segment {}", name.display()), error);
        // The name appears only with the whole length behind it: what a crash leaves of a half-made
        // one has the other name, and is removed at start.
        let mut options = OpenOptions::new();
        let options = options.create(true).truncate(true).read(true).write(true);
        let file = options.dma_open(&new).await.map_err(failed)?;
        file.pre_allocate(bytes, false).await.map_err(failed)?;
        file.fdatasync().await.map_err(failed)?;
        file.rename(&name).await.map_err(failed)?;
        file.close().await.map_err(failed)?;
        let folder = Directory::open(&self.folder).await.map_err(failed)?;
        folder.sync().await.map_err(failed)?;
        folder.close().await.map_err(failed)?;
        let segment = Segment::new(&self.folder, SegmentFile { base, bytes });
        segment.file(false).await?;
        segment.file(true).await?;
        self.all.borrow_mut().insert(base, segment);
        self.close_some(OPEN_MAX).await;
        Ok(())
    }

    /// Closes the files that were not used for longest, until at most `keep` are open.
    pub(crate) async fn close_some(&self, keep: usize) {
        let mut open: Vec<Rc<Segment>> = {
            let all = self.all.borrow();
            all.values().filter(|segment| segment.is_open()).cloned().collect()
        };
        if open.len() <= keep {
            return;
        }
        open.sort_by_key(|segment| segment.used.get());
        let surplus = open.len() - keep;
        for segment in open.into_iter().take(surplus).filter(|segment| segment.is_idle()) {
            segment.close().await;
        }
    }

    /// Closes everything.
    pub(crate) async fn close(&self) {
        let all: Vec<_> = self.all.borrow().values().cloned().collect();
        for segment in all {
            segment.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_the_base() {
        assert_eq!(file_name(4096), "00000000000000004096.log");
        assert_eq!(base_of(&file_name(u64::MAX)), Some(u64::MAX));
        for bad in ["1.log", "00000000000000004096.new", "0000000000000000409x.log", "a.log"] {
            assert_eq!(base_of(bad), None, "{bad}");
        }
    }
}
