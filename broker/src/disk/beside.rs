//! Work on the log's files that would block a core: one thread for all of them.
//!
//! Invariants:
//! - jobs are done in the order in which they came, each answered once (but [`Job::Remove`]);
//! - nothing here is on the way of a message: an index is derived, a retired segment is needed no more;
//! - a job that fails is answered as failed, whatever went wrong with it.

use super::recovery::NewIndex;
use super::segment::{SPARE_INDEX, failed, file_name, index_name, spare_name};
use ringmq_core::index::{Indexed, SegmentRows};
use ringmq_core::{DiskError, SegmentFile};
use rustix::fs::FallocateFlags;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// What a core wants done. `folder` is its shard's.
#[derive(Debug)]
pub(crate) enum Job {
    /// Write the index of a segment.
    Index { shard: u16, folder: PathBuf, rows: Arc<SegmentRows> },
    /// Give back the space of `bytes` from `at` on in the segment; nobody reads there.
    Punch { shard: u16, folder: PathBuf, base: u64, at: u64, bytes: u64 },
    /// Make a segment's index and the segment spares, or remove both; nobody uses them.
    Retire { shard: u16, folder: PathBuf, segment: SegmentFile, keep: bool },
    /// Remove a file that nobody uses.
    Remove { path: PathBuf },
    /// Nothing comes after this.
    End,
}

/// How a job ended.
#[derive(Debug)]
pub(crate) enum Done {
    /// With what its directory has, and how long it took.
    Index {
        base: u64,
        result: Result<Indexed, DiskError>,
        took: Duration,
    },
    Punched {
        position: u64,
        result: Result<(), DiskError>,
    },
    /// Whether the segment is a spare now, and whether it was to become one.
    Retired {
        segment: SegmentFile,
        is_spare: bool,
        was_to_keep: bool,
    },
}

/// Does jobs until [`Job::End`]; `answer` gets the shard and how each ended.
pub(crate) fn run(jobs: &Receiver<Job>, answer: impl Fn(u16, Done)) {
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Index { shard, folder, rows } => {
                let (begun, base) = (Instant::now(), rows.base);
                let result = index(&folder, &rows);
                // Its rows are large, and shared with the shard until it hears of this.
                drop(rows);
                answer(shard, Done::Index { base, result, took: begun.elapsed() });
            }
            Job::Punch { shard, folder, base, at, bytes } => {
                let result = punch(&folder.join(file_name(base)), at, bytes);
                answer(shard, Done::Punched { position: base + at, result });
            }
            Job::Retire { shard, folder, segment, keep } => {
                let retired = retire(&folder, segment, keep);
                let is_spare = retired.unwrap_or_else(|error| {
                    tracing::warn!(shard, "a retired segment stays until the next start: {error}");
                    false
                });
                answer(shard, Done::Retired { segment, is_spare, was_to_keep: keep });
            }
            Job::Remove { path } => {
                if let Err(error) = remove(&path) {
                    tracing::warn!("cannot remove {}: {error}", path.display());
                }
            }
            Job::End => return,
        }
    }
}

fn index(folder: &Path, rows: &SegmentRows) -> Result<Indexed, DiskError> {
    // The shard goes on without this index; what is wrong with its rows shall not end the others.
    let mut file = NewIndex::begin(folder, rows.base);
    let encoded = catch_unwind(AssertUnwindSafe(|| {
        rows.encode_to(&mut |at, bytes| file.write(at, bytes));
        rows.indexed()
    }));
    match encoded {
        Ok(indexed) => file.finish().map(|()| indexed),
        Err(_) => {
            // What is left of it goes with the next start at the latest.
            let _ = file.give_up();
            let operation = format!("encode the index of the segment at {}", rows.base);
            let reason = "its rows contradict each other (message above): please report this";
            Err(failed(operation, reason))
        }
    }
}

fn punch(path: &Path, at: u64, bytes: u64) -> Result<(), DiskError> {
    let punch = || -> std::io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&file, flags, at, bytes)?)
    };
    punch().map_err(|error| {
        failed(format!("punch {bytes} bytes at {at} of {}", path.display()), error)
    })
}

/// Returns whether it became a spare.
fn retire(folder: &Path, segment: SegmentFile, keep: bool) -> Result<bool, DiskError> {
    let path = folder.join(file_name(segment.base));
    let retire = || -> std::io::Result<bool> {
        // First: an index without its segment means nothing, and the name may come again.
        let index = folder.join(index_name(segment.base));
        match keep {
            // Mounted with `discard`, this disk wrote nothing for 50 to 100 ms when 12 MiB were removed.
            true => unless_missing(fs::rename(&index, folder.join(SPARE_INDEX)))?,
            false => remove(&index)?,
        }
        // One with holes would have to be allocated anew while it is written.
        let is_whole = keep && {
            let found = fs::metadata(&path)?;
            found.len() == segment.bytes && found.blocks() * 512 >= segment.bytes
        };
        match is_whole {
            true => {
                // What transfers left in the page cache would have to go with each write.
                let advice = rustix::fs::Advice::DontNeed;
                rustix::fs::fadvise(File::open(&path)?, 0, None, advice)?;
                fs::rename(&path, folder.join(spare_name(segment.base)))?;
            }
            false => remove(&path)?,
        }
        File::open(folder)?.sync_all()?;
        Ok(is_whole)
    };
    retire().map_err(|error| failed(format!("retire {}", path.display()), error))
}

/// Removes a file; it need not be there.
pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    unless_missing(fs::remove_file(path))
}

fn unless_missing(done: std::io::Result<()>) -> std::io::Result<()> {
    match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::sync::mpsc::channel;

    const BYTES: u64 = 64 << 10;

    fn done(jobs: Vec<Job>) -> Vec<(u16, Done)> {
        let (sender, receiver) = channel();
        jobs.into_iter().chain([Job::End]).for_each(|job| sender.send(job).unwrap());
        let answers = RefCell::new(Vec::new());
        run(&receiver, |shard, done| answers.borrow_mut().push((shard, done)));
        answers.into_inner()
    }

    fn written(folder: &Path, base: u64) -> SegmentFile {
        fs::write(folder.join(file_name(base)), vec![7; BYTES as usize]).unwrap();
        File::open(folder.join(file_name(base))).unwrap().sync_all().unwrap();
        SegmentFile { base, bytes: BYTES }
    }

    #[test]
    fn an_index_is_written_and_a_failure_is_answered() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let rows = || Box::new(SegmentRows { base: 4096, bytes: 4096, ..SegmentRows::default() });
        let job =
            |folder: &Path| Job::Index { shard: 3, folder: folder.to_owned(), rows: rows().into() };
        let answers = done(vec![job(dir.path()), job(Path::new("/proc/nowhere"))]);
        let [(3, Done::Index { base: 4096, result, .. }), (3, Done::Index { result: bad, .. })] =
            &answers[..]
        else {
            panic!("{answers:?}")
        };
        let path = dir.path().join(index_name(4096));
        assert!(result.is_ok() && path.exists());
        assert!(bad.as_ref().unwrap_err().operation.contains("/proc/nowhere"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_hole_reads_as_zeros_and_gives_space_back() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let folder = dir.path().to_owned();
        written(&folder, 0);
        let blocks = || fs::metadata(dir.path().join(file_name(0))).unwrap().blocks();
        let before = blocks();
        let punch =
            |base| Job::Punch { shard: 0, folder: folder.clone(), base, at: 4096, bytes: 8192 };
        let answers = done(vec![punch(0), punch(BYTES)]);
        let [(0, Done::Punched { position: 4096, result: Ok(()) }), (_, missing)] = &answers[..]
        else {
            panic!("{answers:?}")
        };
        assert!(matches!(missing, Done::Punched { result: Err(_), .. }));
        let bytes = fs::read(dir.path().join(file_name(0))).unwrap();
        let zeros = bytes.iter().enumerate().filter(|(_, b)| **b == 0).map(|(at, _)| at);
        assert!(zeros.eq(4096..3 * 4096) && bytes.len() as u64 == BYTES);
        assert_eq!(blocks(), before - 16);
    }

    #[test]
    fn a_retired_segment_becomes_a_spare_unless_it_has_holes_or_none_is_wanted() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let folder = dir.path().to_owned();
        let segments = [0, BYTES, 2 * BYTES].map(|base| written(&folder, base));
        fs::write(folder.join(index_name(0)), b"index").unwrap();
        punch(&folder.join(file_name(BYTES)), 0, 4096).unwrap();
        let retire = |at: usize, keep| Job::Retire {
            shard: 0,
            folder: folder.clone(),
            segment: segments[at],
            keep,
        };
        let answers = done(vec![retire(0, true), retire(1, true), retire(2, false)]);
        let spares = answers.iter().map(|(_, done)| match done {
            Done::Retired { is_spare, .. } => *is_spare,
            other => panic!("{other:?}"),
        });
        assert_eq!(spares.collect::<Vec<_>>(), [true, false, false]);
        let left = || {
            let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        let spares = [spare_name(0), SPARE_INDEX.to_owned()].map(Into::into);
        assert_eq!(left(), spares.into());
        // The next index is written over the spare one, and as long as it is to be.
        let spare = folder.join(SPARE_INDEX);
        fs::write(&spare, vec![9; 1 << 20]).unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        let was = inode(&spare);
        let rows = SegmentRows { base: 4096, bytes: 4096, ..SegmentRows::default() };
        let bytes = rows.encode();
        done(vec![Job::Index { shard: 0, folder: folder.clone(), rows: rows.into() }]);
        let index = folder.join(index_name(4096));
        assert_eq!((inode(&index), fs::read(&index).unwrap()), (was, bytes));
        assert!(done(vec![Job::Remove { path: folder.join(spare_name(0)) }]).is_empty());
        assert_eq!(left(), [index_name(4096).into()].into());
    }
}
