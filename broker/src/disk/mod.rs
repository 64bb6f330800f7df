//! One shard's log on the device.
//!
//! Invariants:
//! - a durable write goes through O_DSYNC; a plain one is durable only after a sync of its file;
//! - what blocks is done by another thread ([`beside`]), and only to files that nobody uses;
//! - an operation that failed is reported, never tried again;
//! - buffers are owned by the ring until the operation ends.

pub(crate) mod ahead;
pub(crate) mod beside;
mod index;
mod lengths;
pub(crate) mod memory;
pub(crate) mod recovery;
pub(crate) mod segment;

use ahead::Ahead;
use beside::Job;
use index::Indexes;
use memory::LogBlock;
use ringmq_core::{Block, DiskError, SegmentFile};
use segment::{InUse, SPARES_MAX, Segments, failed};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;

use crate::shard::signal::Waiters;

/// A read of the log counts as so many of an index, which are pages of 4 KiB, and many at once.
const READ_WEIGHT: usize = 8;

/// Most files that a shard has open: each segment up to three times (written, read, sent from), indexes, and what is
/// just being made or removed.
pub(crate) const FILES_OPEN_MAX: usize = 3 * segment::OPEN_MAX + index::OPEN_MAX + 32;

/// Settings of a disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) zero_ahead_bytes: u64,
    /// Reads of the log under way.
    pub(crate) reads_max: usize,
    /// Length of new segments: others are not kept when they are retired.
    pub(crate) segment_bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Disk {
    segments: Segments,
    indexes: Indexes,
    ahead: Ahead,
    limits: Limits,
    /// Weights of the reads under way.
    reads: Cell<usize>,
    readers: Waiters,
    /// Segments being retired, in order.
    retiring: RefCell<VecDeque<u64>>,
    retirers: Waiters,
    /// Retired segments that are about to become spares.
    becoming_spares: Cell<usize>,
}

impl Disk {
    pub(crate) fn new(
        folder: PathBuf,
        files: &[SegmentFile],
        spares: Vec<SegmentFile>,
        limits: Limits,
    ) -> Rc<Disk> {
        Rc::new(Disk {
            indexes: Indexes::new(folder.clone()),
            segments: Segments::new(folder, files, spares),
            ahead: Ahead::new(limits.zero_ahead_bytes),
            limits,
            reads: Cell::new(0),
            readers: Waiters::default(),
            retiring: RefCell::default(),
            retirers: Waiters::default(),
            becoming_spares: Cell::new(0),
        })
    }

    /// Says that a write is about to begin. To be called in the order of the log, before anything is
    /// awaited.
    pub(crate) fn announce(&self, position: u64, bytes: usize) {
        self.ahead.log_writes(position, bytes as u64);
    }

    /// Writes a whole block that was announced.
    pub(crate) async fn write(
        &self,
        position: u64,
        block: &LogBlock,
        durable: bool,
    ) -> Result<(), DiskError> {
        let bytes = block.bytes().len();
        let operation = || format!("write {bytes} bytes at position {position}");
        let Some(segment) = self.segments.at(position) else {
            return Err(failed(operation(), "no segment has the position"));
        };
        assert!(position + bytes as u64 <= segment.end(), "a write lies in one segment");
        let file = segment.file(durable).await?;
        self.ahead.clear(position, bytes as u64).await;
        match file.write_rc_at(block.shared(), position - segment.base).await {
            Ok(written) if written == bytes => Ok(()),
            Ok(written) => Err(failed(operation(), format!("only {written} were taken"))),
            Err(error) => Err(failed(operation(), error)),
        }
    }

    /// Makes durable what was written in the range.
    pub(crate) async fn sync(&self, from: u64, to: u64) -> Result<(), DiskError> {
        for segment in self.segments.within(from, to) {
            let synced = segment.file(false).await?.fdatasync().await;
            synced.map_err(|error| failed(format!("sync positions {from} to {to}"), error))?;
        }
        // promise: ack-is-durable. A sync beside this one may have been told of a failure instead.
        self.ahead.failure().map_or(Ok(()), Err)
    }

    /// Makes a segment ready to be written. Returns whether a retired one became it.
    pub(crate) async fn make_segment(&self, base: u64, bytes: u64) -> Result<bool, DiskError> {
        let is_recycled = self.segments.make(base, bytes).await?;
        self.ahead.look_again();
        Ok(is_recycled)
    }

    /// Reads a range that lies in one segment.
    pub(crate) async fn read(&self, position: u64, bytes: usize) -> Result<LogBlock, DiskError> {
        let result = self.bounded(READ_WEIGHT, self.read_now(position, bytes)).await;
        self.segments.close_surplus().await;
        result
    }

    /// Waits until fewer reads are under way than may be.
    async fn bounded<T>(&self, weight: usize, read: impl Future<Output = T>) -> T {
        let most = self.limits.reads_max * READ_WEIGHT;
        self.readers.wait_while(|| self.reads.get() + weight > most).await;
        self.reads.set(self.reads.get() + weight);
        let result = read.await;
        self.reads.set(self.reads.get() - weight);
        self.readers.wake();
        result
    }

    async fn read_now(&self, position: u64, bytes: usize) -> Result<LogBlock, DiskError> {
        let operation = || format!("read {bytes} bytes at position {position}");
        let Some(segment) = self.segments.at(position) else {
            return Err(failed(operation(), "no segment has the position"));
        };
        let file = segment.file(false).await?;
        let read = file.read_at_aligned(position - segment.base, bytes).await;
        let block = LogBlock::Read(read.map_err(|error| failed(operation(), error))?);
        match block.bytes().len() {
            found if found == bytes => Ok(block),
            found => Err(failed(operation(), format!("only {found} are there"))),
        }
    }

    /// Reads from the index of a segment.
    pub(crate) async fn read_index(
        &self,
        base: u64,
        at: u64,
        bytes: usize,
    ) -> Result<LogBlock, DiskError> {
        let block = LogBlock::Read(self.bounded(1, self.indexes.read(base, at, bytes)).await?);
        match block.bytes().len() {
            found if found == bytes => Ok(block),
            found => {
                let operation = format!("read {bytes} bytes at {at} of the index of {base}");
                Err(failed(operation, format!("only {found} are there")))
            }
        }
    }

    /// Where the shard's files are.
    pub(crate) fn folder(&self) -> PathBuf {
        self.segments.folder.clone()
    }

    /// The index of a segment was replaced.
    pub(crate) async fn index_was_written(&self, base: u64) {
        self.indexes.forget(base).await;
    }

    /// Takes a segment out once nobody uses it, and says what is then left to do for `shard`; in the
    /// order of the calls, so that a crash leaves no gap between segments.
    pub(crate) async fn retire(
        &self,
        shard: u16,
        base: u64,
        has_room: impl Fn() -> bool,
        left: impl FnOnce(Job),
    ) {
        self.retiring.borrow_mut().push_back(base);
        let segment = self.segments.take_out(base).await;
        self.indexes.forget(base).await;
        self.retirers.wait_while(|| self.retiring.borrow().front() != Some(&base)).await;
        if let Some(segment) = segment {
            left(self.retirement(shard, segment, has_room()));
        }
        self.retiring.borrow_mut().pop_front();
        self.retirers.wake();
    }

    fn retirement(&self, shard: u16, segment: SegmentFile, has_room: bool) -> Job {
        let spares = self.segments.spares() + self.becoming_spares.get();
        let keep = segment.bytes == self.limits.segment_bytes && spares < SPARES_MAX && has_room;
        if keep {
            self.becoming_spares.set(self.becoming_spares.get() + 1);
        }
        Job::Retire { shard, folder: self.folder(), segment, keep }
    }

    /// A segment's file is gone, or has become a spare as it was to.
    pub(crate) fn retired(&self, segment: SegmentFile, is_spare: bool, was_to_keep: bool) {
        if was_to_keep {
            self.becoming_spares.set(self.becoming_spares.get() - 1);
        }
        if is_spare {
            self.segments.add_spare(segment);
        }
    }

    /// Gives up the spares; what is then left to do.
    pub(crate) fn drop_spares(&self) -> Vec<Job> {
        self.segments.take_spares().into_iter().map(|path| Job::Remove { path }).collect()
    }

    /// Waits until what is under way in a segment has ended; what is then left to do for `shard`.
    pub(crate) async fn punch(
        &self,
        shard: u16,
        position: u64,
        bytes: u64,
    ) -> Result<Job, DiskError> {
        let operation = || format!("punch {bytes} bytes at position {position}");
        let base = match self.segments.at(position) {
            Some(segment) if position + bytes <= segment.end() => segment.base,
            _ => return Err(failed(operation(), "no segment has the range")),
        };
        self.segments.current_uses_ended(base).await;
        Ok(Job::Punch { shard, folder: self.folder(), base, at: position - base, bytes })
    }

    /// Holds the segment with this range, for a transfer.
    pub(crate) fn hold(&self, position: u64, bytes: u64) -> Option<InUse> {
        self.segments.at(position).filter(|segment| position + bytes <= segment.end())
    }

    /// Closes files that transfers opened, if too many are open.
    pub(crate) async fn close_surplus(&self) {
        self.segments.close_surplus().await;
    }

    /// Keeps zeros ahead of the log until [`Disk::stop`].
    pub(crate) async fn write_ahead(self: Rc<Self>) {
        self.ahead.run(&self.segments).await;
    }

    /// Ends [`Disk::write_ahead`].
    pub(crate) fn stop(&self) {
        self.ahead.stop();
    }

    /// Closes the files; nothing may be under way.
    pub(crate) async fn close(&self) {
        self.segments.close().await;
        self.indexes.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::memory::BlockMemory;
    use super::segment::{SPARE_INDEX, file_name, index_name};
    use super::*;
    use ringmq_core::Memory;
    use std::sync::mpsc::channel;

    const SEGMENT: u64 = 4 << 20;

    /// Runs in an executor that has looked at a non-empty file first, as the broker's do.
    fn on_disk(test: impl AsyncFnOnce(PathBuf) + 'static) {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().to_owned();
        glommio::LocalExecutorBuilder::default().make().unwrap().run(async move {
            crate::preflight::probe(&path.join("probe")).await.unwrap();
            test(path).await;
        });
    }

    const LIMITS: Limits = Limits { zero_ahead_bytes: 0, reads_max: 2, segment_bytes: SEGMENT };

    fn filled(bytes: usize, with: u8) -> LogBlock {
        let mut block = BlockMemory.allocate(bytes);
        block.bytes_mut().fill(with);
        block
    }

    #[test]
    fn what_is_written_is_read_over_segments() {
        on_disk(async |path| {
            let disk = Disk::new(path, &[], Vec::new(), LIMITS);
            let write = filled(4096, 1);
            assert!(disk.write(0, &write, true).await.is_err(), "no segment yet");
            for base in [0, SEGMENT] {
                disk.make_segment(base, SEGMENT).await.unwrap();
            }
            for (position, durable) in [(0, true), (SEGMENT - 8192, false), (SEGMENT, true)] {
                let block = filled(8192, (position >> 12) as u8 | 1);
                disk.announce(position, 8192);
                disk.write(position, &block, durable).await.unwrap();
            }
            disk.sync(0, SEGMENT + 8192).await.unwrap();
            let read = disk.read(SEGMENT - 8192, 8192).await.unwrap();
            assert!(read.bytes().iter().all(|b| *b == ((SEGMENT - 8192) >> 12) as u8 | 1));
            assert!(disk.read(2 * SEGMENT, 4096).await.is_err());
            disk.close().await;
        });
    }

    #[test]
    fn zeros_run_ahead_and_never_over_the_log() {
        on_disk(async |path| {
            let limits = Limits { zero_ahead_bytes: 2 << 20, ..LIMITS };
            let disk = Disk::new(path, &[], Vec::new(), limits);
            disk.make_segment(0, SEGMENT).await.unwrap();
            disk.make_segment(SEGMENT, SEGMENT).await.unwrap();
            let ahead = glommio::spawn_local(Rc::clone(&disk).write_ahead()).detach();
            let mut position = 0;
            let mut step = 4096;
            while position + step < 2 * SEGMENT {
                let room = SEGMENT - position % SEGMENT;
                let bytes = step.min(room) as usize;
                let block = filled(bytes, 0xAB);
                disk.announce(position, bytes);
                disk.write(position, &block, true).await.unwrap();
                position += bytes as u64;
                step = if step > 200_000 { 4096 } else { step + 28_672 };
            }
            disk.stop();
            ahead.await.unwrap();
            let mut at = 0;
            while at < position {
                let bytes = (position - at).min(1 << 20) as usize;
                let read = disk.read(at, bytes).await.unwrap();
                assert!(read.bytes().iter().all(|b| *b == 0xAB), "at {at}");
                at += bytes as u64;
            }
            disk.close().await;
        });
    }

    /// Does what is left to do, as the thread beside the cores would.
    fn finish(disk: &Disk, job: Job) {
        let (jobs, receiver) = channel();
        [job, Job::End].into_iter().for_each(|job| jobs.send(job).unwrap());
        beside::run(&receiver, |_, done| {
            if let beside::Done::Retired { segment, is_spare, was_to_keep } = done {
                disk.retired(segment, is_spare, was_to_keep);
            }
        });
    }

    fn names(path: &std::path::Path) -> Vec<String> {
        let name = |e: std::io::Result<std::fs::DirEntry>| e.unwrap().file_name();
        let all = std::fs::read_dir(path).unwrap().map(name);
        let mut all: Vec<_> = all.map(|name| name.into_string().unwrap()).collect();
        all.retain(|name| name != "probe");
        all.sort();
        all
    }

    #[test]
    fn retired_segments_become_new_ones() {
        on_disk(async |path| {
            let limits = Limits { zero_ahead_bytes: 1 << 20, ..LIMITS };
            let disk = Disk::new(path.clone(), &[], Vec::new(), limits);
            for base in 0..4 {
                assert!(!disk.make_segment(base * SEGMENT, SEGMENT).await.unwrap());
                std::fs::write(path.join(index_name(base * SEGMENT)), [0; 4096]).unwrap();
            }
            let block = filled(SEGMENT as usize, 9);
            for base in 0..3 {
                disk.announce(base * SEGMENT, SEGMENT as usize);
                disk.write(base * SEGMENT, &block, true).await.unwrap();
                disk.read_index(base * SEGMENT, 0, 4096).await.unwrap();
                disk.retire(0, base * SEGMENT, || true, |job| finish(&disk, job)).await;
                assert!(disk.read(base * SEGMENT, 4096).await.is_err());
                assert!(disk.read_index(base * SEGMENT, 0, 4096).await.is_err());
            }
            disk.retire(0, 0, || true, |job| panic!("it is gone: {job:?}")).await;
            // Two are kept; the third is one too many.
            assert_eq!(disk.segments.spares(), SPARES_MAX);
            let left = [3, 4].map(|base| file_name(base * SEGMENT));
            assert!(disk.make_segment(4 * SEGMENT, SEGMENT).await.unwrap(), "recycled");
            assert!(left.iter().all(|name| names(&path).contains(name)));
            assert!(names(&path).contains(&SPARE_INDEX.to_owned()));
            // Nothing is written ahead over it: what it was shines through.
            let ahead = glommio::spawn_local(Rc::clone(&disk).write_ahead()).detach();
            let first = filled(4096, 1);
            disk.announce(4 * SEGMENT, 4096);
            disk.write(4 * SEGMENT, &first, true).await.unwrap();
            disk.stop();
            ahead.await.unwrap();
            let read = disk.read(4 * SEGMENT, SEGMENT as usize).await.unwrap();
            assert!(read.bytes()[..4096] == *first.bytes());
            assert!(read.bytes()[4096..].iter().all(|b| *b == 9));
            assert!(!disk.make_segment(5 * SEGMENT, 2 * SEGMENT).await.unwrap(), "longer");
            assert_eq!(disk.segments.spares(), 1);
            for job in disk.drop_spares() {
                finish(&disk, job);
            }
            assert!(!names(&path).iter().any(|name| name.contains("spare")));
            disk.close().await;
        });
    }

    #[test]
    fn a_segment_in_use_is_not_retired_and_one_with_new_uses_can_be_punched() {
        on_disk(async |path| {
            let disk = Disk::new(path, &[], Vec::new(), LIMITS);
            disk.make_segment(0, SEGMENT).await.unwrap();
            let ended = Rc::new(Cell::new(0));
            let before = disk.hold(4096, 4096).unwrap();
            let (punching, counting) = (Rc::clone(&disk), Rc::clone(&ended));
            let punch = glommio::spawn_local(async move {
                let job = punching.punch(0, 8192, 4096).await.unwrap();
                counting.set(counting.get() + 1);
                job
            });
            let round = || glommio::timer::sleep(std::time::Duration::from_millis(2));
            round().await;
            let after = disk.hold(4096, 4096).unwrap();
            assert_eq!(ended.get(), 0);
            drop(before);
            assert!(matches!(punch.await, Job::Punch { base: 0, at: 8192, bytes: 4096, .. }));
            // A later one waits for it, or a crash would leave a gap.
            disk.make_segment(SEGMENT, SEGMENT).await.unwrap();
            let order: Rc<RefCell<Vec<u64>>> = Rc::default();
            let retires = [0, SEGMENT].map(|base| {
                let (disk, order) = (Rc::clone(&disk), Rc::clone(&order));
                let retired = move |job| match job {
                    Job::Retire { segment, keep: false, .. } => {
                        order.borrow_mut().push(segment.base);
                    }
                    other => panic!("{other:?}"),
                };
                glommio::spawn_local(async move {
                    disk.retire(0, base, || false, retired).await;
                })
            });
            round().await;
            assert!(order.borrow().is_empty(), "a use is left");
            drop(after);
            for retire in retires {
                retire.await;
            }
            assert_eq!(*order.borrow(), [0, SEGMENT]);
            assert!(disk.punch(0, 8192, 4096).await.is_err());
            disk.close().await;
        });
    }

    #[test]
    fn catching_up_over_many_segments_keeps_few_files_open() {
        on_disk(async |path| {
            let small = 8192;
            for base in (0..120).map(|number| number * small) {
                std::fs::write(path.join(file_name(base)), [1; 8192]).unwrap();
                std::fs::write(path.join(index_name(base)), [2; 8192]).unwrap();
            }
            let files: Vec<_> =
                (0..120).map(|n| SegmentFile { base: n * small, bytes: small }).collect();
            let disk = Disk::new(path, &files, Vec::new(), LIMITS);
            for file in &files {
                let log = disk.read(file.base, 4096).await.unwrap();
                let index = disk.read_index(file.base, 4096, 4096).await.unwrap();
                assert_eq!((log.bytes()[0], index.bytes()[4095]), (1, 2));
                disk.hold(file.base, 8).unwrap().buffered().file().unwrap();
                disk.close_surplus().await;
            }
            assert_eq!(disk.segments.open_files(), 32);
            assert_eq!(disk.indexes.open_files(), 96);
            assert!(disk.read_index(0, 8192, 4096).await.is_err(), "past the end");
            assert!(disk.read_index(1, 0, 4096).await.is_err(), "no such index");
            // A replaced index is read anew.
            let folder = disk.folder();
            recovery::write_index(&folder, 0, &[3; 4096]).unwrap();
            disk.index_was_written(0).await;
            assert_eq!(disk.read_index(0, 0, 4096).await.unwrap().bytes()[0], 3);
            disk.close().await;
        });
    }
}
