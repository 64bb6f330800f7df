//! Segments of one shard's log as files.
//!
//! Invariants:
//! - a file bears its final name only once it has its whole length, durably;
//! - each file is opened twice: O_DIRECT for plain writes and reads, O_DIRECT and O_DSYNC for durable
//!   writes, each of which is then complete by itself, several at a time; and buffered, for transfers;
//! - at most [`OPEN_MAX`] files of a shard are open, but for those in use;
//! - whoever touches a segment holds it [`InUse`]; it is taken out, to be removed or to become another
//!   one, only when nobody does;
//! - each open file bears a shared lock. The kernel keeps it until the last write that is under way on
//!   that descriptor has ended, also when the process was killed: recovery waits for it, so that no write
//!   of a dead broker can land on what its successor wrote.

use crate::shard::signal::Waiters;
use glommio::io::{Directory, DmaFile, OpenOptions};
use ringmq_core::{DiskError, SegmentFile};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

/// Open segments of a shard: the ones being written and read; reopening one costs two system calls.
pub(super) const OPEN_MAX: usize = 32;
/// Retired segments that are kept to become new ones: one for the next, one while that is being made.
pub(crate) const SPARES_MAX: usize = 2;

/// Name of the segment that begins at `base`.
pub(crate) fn file_name(base: u64) -> String {
    format!("{base:020}.log")
}

/// Name of its index.
pub(crate) fn index_name(base: u64) -> String {
    format!("{base:020}.index")
}

/// Name of an index that is needed no more, and becomes the next one.
pub(crate) const SPARE_INDEX: &str = "spare.index";

/// Its name when it is retired and waits to become another.
pub(crate) fn spare_name(base: u64) -> String {
    format!("{base:020}.spare")
}

/// Base of the segment with this name.
pub(crate) fn base_of(name: &str) -> Option<u64> {
    base_before(name, ".log")
}

/// Base that the spare with this name had.
pub(crate) fn spare_base_of(name: &str) -> Option<u64> {
    base_before(name, ".spare")
}

fn base_before(name: &str, suffix: &str) -> Option<u64> {
    let digits = name.strip_suffix(suffix)?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

/// A segment's file for transfers, opened by the first thread that needs it.
#[derive(Debug)]
pub(crate) struct Buffered {
    path: PathBuf,
    file: OnceLock<File>,
}

impl Buffered {
    pub(crate) fn new(path: PathBuf) -> Buffered {
        Buffered { path, file: OnceLock::new() }
    }

    /// The file. Blocks: for threads beside the cores.
    pub(crate) fn file(&self) -> std::io::Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let opened = File::open(&self.path)?;
        Ok(self.file.get_or_init(|| opened))
    }
}

/// One segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    /// It was another one before: all of its blocks were written once.
    pub(crate) is_recycled: bool,
    path: PathBuf,
    plain: RefCell<Option<Rc<DmaFile>>>,
    durable: RefCell<Option<Rc<DmaFile>>>,
    buffered: RefCell<Arc<Buffered>>,
    used: Cell<u64>,
    is_listed: Cell<bool>,
    /// Uses that began in this era and in the one before: [`Segment::current_uses_ended`].
    uses: [Cell<usize>; 2],
    era: Cell<usize>,
    ended: Waiters,
}

/// Held while a segment is used.
#[derive(Debug)]
pub(crate) struct InUse {
    segment: Rc<Segment>,
    era: usize,
}

impl Deref for InUse {
    type Target = Segment;

    fn deref(&self) -> &Segment {
        &self.segment
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let uses = &self.segment.uses[self.era];
        uses.set(uses.get() - 1);
        if uses.get() == 0 {
            self.segment.ended.wake();
        }
    }
}

impl Segment {
    fn new(folder: &Path, file: SegmentFile, is_recycled: bool) -> Rc<Segment> {
        let path = folder.join(file_name(file.base));
        Rc::new(Segment {
            base: file.base,
            bytes: file.bytes,
            is_recycled,
            plain: RefCell::new(None),
            durable: RefCell::new(None),
            buffered: RefCell::new(Arc::new(Buffered::new(path.clone()))),
            path,
            used: Cell::new(0),
            is_listed: Cell::new(false),
            uses: Default::default(),
            era: Cell::new(0),
            ended: Waiters::default(),
        })
    }

    fn in_use(self: &Rc<Self>) -> InUse {
        let era = self.era.get();
        self.uses[era].set(self.uses[era].get() + 1);
        InUse { segment: Rc::clone(self), era }
    }

    fn is_used(&self) -> bool {
        self.uses.iter().any(|uses| uses.get() > 0)
    }

    /// Waits until those that use it now have ended; others may begin meanwhile, and are not waited for.
    async fn current_uses_ended(&self) {
        // One waits at a time: an era ends before the one after next begins.
        let other = || self.uses[1 - self.era.get()].get() > 0;
        self.ended.wait_while(other).await;
        let ending = self.era.get();
        self.era.set(1 - ending);
        self.ended.wait_while(|| self.uses[ending].get() > 0).await;
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

    /// The file for transfers.
    pub(crate) fn buffered(&self) -> Arc<Buffered> {
        Arc::clone(&self.buffered.borrow())
    }

    #[cfg(test)]
    fn is_open(&self) -> bool {
        self.plain.borrow().is_some()
            || self.durable.borrow().is_some()
            || self.buffered.borrow().file.get().is_some()
    }

    async fn close(&self) {
        // Closed by whoever has it last.
        self.buffered.replace(Arc::new(Buffered::new(self.path.clone())));
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
    pub(crate) folder: PathBuf,
    all: RefCell<BTreeMap<u64, Rc<Segment>>>,
    /// Those that may be open.
    listed: RefCell<Vec<Rc<Segment>>>,
    spares: RefCell<Vec<SegmentFile>>,
    uses: Cell<u64>,
}

impl Segments {
    pub(crate) fn new(
        folder: PathBuf,
        files: &[SegmentFile],
        spares: Vec<SegmentFile>,
    ) -> Segments {
        let segment = |file: &SegmentFile| (file.base, Segment::new(&folder, *file, false));
        let all = files.iter().map(segment).collect();
        Segments {
            folder,
            all: RefCell::new(all),
            listed: RefCell::default(),
            spares: RefCell::new(spares),
            uses: Cell::new(0),
        }
    }

    /// The segment with this position.
    pub(crate) fn at(&self, position: u64) -> Option<InUse> {
        let all = self.all.borrow();
        let (_, segment) = all.range(..=position).next_back()?;
        if position >= segment.end() {
            return None;
        }
        Some(self.in_use(segment))
    }

    fn in_use(&self, segment: &Rc<Segment>) -> InUse {
        self.uses.set(self.uses.get() + 1);
        segment.used.set(self.uses.get());
        if !segment.is_listed.replace(true) {
            self.listed.borrow_mut().push(Rc::clone(segment));
        }
        segment.in_use()
    }

    /// The segments with bytes of this range.
    pub(crate) fn within(&self, from: u64, to: u64) -> Vec<InUse> {
        let all = self.all.borrow();
        let covers = |segment: &&Rc<Segment>| segment.end() > from;
        all.range(..to).map(|(_, segment)| segment).filter(covers).map(|s| self.in_use(s)).collect()
    }

    /// Makes a segment: its whole length allocated, its name durable, open for writing. Returns whether a
    /// retired one was used for it.
    pub(crate) async fn make(&self, base: u64, bytes: u64) -> Result<bool, DiskError> {
        let there = self.at(base);
        if let Some(segment) = there.filter(|s| s.base == base && s.bytes == bytes) {
            return segment.file(true).await.map(|_| false);
        }
        let name = self.folder.join(file_name(base));
        let failed = |error| failed(format!("make segment {}", name.display()), error);
        let spare = self.take_spare(bytes);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true);
        let file = match spare {
            Some(spare) => {
                options.dma_open(self.folder.join(spare_name(spare.base))).await.map_err(failed)?
            }
            None => {
                // The name appears only with the whole length behind it: what a crash leaves of a
                // half-made one has the other name, and is removed at start.
                let options = options.create(true).truncate(true);
                let file = options.dma_open(name.with_extension("new")).await.map_err(failed)?;
                file.pre_allocate(bytes, false).await.map_err(failed)?;
                file.fdatasync().await.map_err(failed)?;
                file
            }
        };
        file.rename(&name).await.map_err(failed)?;
        file.close().await.map_err(failed)?;
        let folder = Directory::open(&self.folder).await.map_err(failed)?;
        folder.sync().await.map_err(failed)?;
        folder.close().await.map_err(failed)?;
        let is_recycled = spare.is_some();
        let segment = Segment::new(&self.folder, SegmentFile { base, bytes }, is_recycled);
        let in_use = self.in_use(&segment);
        in_use.file(false).await?;
        in_use.file(true).await?;
        drop(in_use);
        self.all.borrow_mut().insert(base, segment);
        self.close_surplus().await;
        Ok(is_recycled)
    }

    /// Takes a segment out once nobody uses it, and closes it: nothing finds it from now on.
    pub(crate) async fn take_out(&self, base: u64) -> Option<SegmentFile> {
        let segment = self.all.borrow_mut().remove(&base)?;
        segment.ended.wait_while(|| segment.is_used()).await;
        self.listed.borrow_mut().retain(|listed| !Rc::ptr_eq(listed, &segment));
        segment.close().await;
        Some(SegmentFile { base, bytes: segment.bytes })
    }

    /// Waits until those that use a segment now have ended.
    pub(crate) async fn current_uses_ended(&self, base: u64) {
        let segment = self.all.borrow().get(&base).cloned();
        if let Some(segment) = segment {
            segment.current_uses_ended().await;
        }
    }

    fn take_spare(&self, bytes: u64) -> Option<SegmentFile> {
        let mut spares = self.spares.borrow_mut();
        let at = spares.iter().position(|spare| spare.bytes == bytes)?;
        Some(spares.swap_remove(at))
    }

    /// How many retired ones wait to become new ones.
    pub(crate) fn spares(&self) -> usize {
        self.spares.borrow().len()
    }

    /// A retired segment has its name as a spare.
    pub(crate) fn add_spare(&self, spare: SegmentFile) {
        self.spares.borrow_mut().push(spare);
    }

    /// Forgets the spares; their paths, and that of the index which became one beside them.
    pub(crate) fn take_spares(&self) -> Vec<PathBuf> {
        let names = self.spares.take().into_iter().map(|spare| spare_name(spare.base));
        let mut paths: Vec<PathBuf> = names.map(|name| self.folder.join(name)).collect();
        if !paths.is_empty() {
            paths.push(self.folder.join(SPARE_INDEX));
        }
        paths
    }

    /// Closes the files that were not used for longest, if too many are open.
    pub(crate) async fn close_surplus(&self) {
        let surplus: Vec<Rc<Segment>> = {
            let mut listed = self.listed.borrow_mut();
            if listed.len() <= OPEN_MAX {
                return;
            }
            listed.sort_by_key(|segment| segment.used.get());
            let mut surplus = listed.len() - OPEN_MAX;
            let goes = |segment: &mut Rc<Segment>| {
                let goes = surplus > 0 && !segment.is_used();
                surplus -= usize::from(goes);
                goes
            };
            listed.extract_if(.., goes).collect()
        };
        for segment in &surplus {
            segment.is_listed.set(false);
        }
        for segment in surplus {
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

    #[cfg(test)]
    pub(super) fn open_files(&self) -> usize {
        self.all.borrow().values().filter(|segment| segment.is_open()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_the_base() {
        assert_eq!(file_name(4096), "00000000000000004096.log");
        assert_eq!(base_of(&file_name(u64::MAX)), Some(u64::MAX));
        assert_eq!(spare_base_of(&spare_name(7)), Some(7));
        let others = [index_name(4096), spare_name(4096)];
        let bad = ["1.log", "00000000000000004096.new", "0000000000000000409x.log", "a.log"];
        for bad in bad.into_iter().chain(others.iter().map(String::as_str)) {
            assert_eq!(base_of(bad), None, "{bad}");
        }
    }
}
