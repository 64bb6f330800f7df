//! A folder on a disk that fails on command: a pass-through file system of our own (FUSE).
//!
//! What a test asks for with [`FaultyDisk::fail`] or [`FaultyDisk::hold`] happens until the [`Trouble`] that it
//! gets is dropped. Everything else goes through to a folder of the real file system.
//!
//! Invariants:
//! - an operation fails whole, or not at all: io_uring's retry of short writes over FUSE corrupts them;
//! - a failed write or sync may have reached the disk or not, as the test says: a real one may do either;
//! - what is held is carried out when it is let go, so that no process stays in the kernel for ever;
//! - nothing stays mounted when the disk is dropped, whatever happened to the test.
//!
//! Writes are synced as the writer asks (O_DSYNC), so that a failed sync is one of that very write. The page
//! cache of the kernel is passed by for O_DIRECT only, as on a real file system.

mod files;

use files::Files;
use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::io::Errno;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::server::eventually;

/// What may be in trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Writing bytes, durably or not.
    Write,
    /// fsync, fdatasync, and writes that are to be durable.
    Sync,
    /// Reading bytes, also by sendfile.
    Read,
    /// Giving a file its length (fallocate).
    Make,
}

/// Which operations are in trouble.
#[derive(Debug, Clone)]
pub struct Which {
    operation: Operation,
    part: String,
    range: Range<u64>,
}

impl Which {
    /// Those on files whose path in the folder contains `part`.
    pub fn new(operation: Operation, part: &str) -> Which {
        Which { operation, part: part.to_owned(), range: 0..u64::MAX }
    }

    /// Only those that touch these bytes of the file.
    pub fn within(self, range: Range<u64>) -> Which {
        Which { range, ..self }
    }

    fn covers(&self, operation: Operation, path: &Path, touched: &Range<u64>) -> bool {
        let touches = self.range.start < touched.end && touched.start < self.range.end;
        operation == self.operation && touches && path.to_string_lossy().contains(&self.part)
    }
}

/// What happens to them.
enum Fate {
    /// Nothing but an error.
    Refused(Errno),
    /// They are carried out, and an error is said nevertheless.
    Disowned(Errno),
    /// They wait here.
    Held(Mutex<Vec<Box<dyn FnOnce() + Send>>>),
}

struct Fault {
    which: Which,
    fate: Fate,
    hits: AtomicU64,
}

/// Faults in force.
#[derive(Default)]
struct Faults(Mutex<Vec<Arc<Fault>>>);

impl Faults {
    fn of(&self, operation: Operation, path: &Path, touched: &Range<u64>) -> Option<Arc<Fault>> {
        let faults = self.0.lock().expect("not poisoned");
        let fault = faults.iter().find(|fault| fault.which.covers(operation, path, touched))?;
        Some(Arc::clone(fault))
    }

    /// Carries out an operation as the faults in force say. `work` does it and answers, with this error if
    /// there is one.
    fn carry_out(
        &self,
        operations: &[Operation],
        path: &Path,
        touched: &Range<u64>,
        work: impl FnOnce(Work) + Send + 'static,
    ) {
        let fault = operations.iter().find_map(|operation| self.of(*operation, path, touched));
        let Some(fault) = fault else { return work(Work::Do) };
        match &fault.fate {
            Fate::Refused(error) => work(Work::Refuse(*error)),
            Fate::Disowned(error) => work(Work::DoAndRefuse(*error)),
            Fate::Held(held) => {
                held.lock().expect("not poisoned").push(Box::new(|| work(Work::Do)));
            }
        }
        // Counted when it has happened: a test that sees the count may lift the fault.
        fault.hits.fetch_add(1, Ordering::SeqCst);
    }
}

/// What to do with one operation.
#[derive(Debug, Clone, Copy)]
enum Work {
    Do,
    Refuse(Errno),
    DoAndRefuse(Errno),
}

impl Work {
    /// Does it and says how it went, as it shall be.
    fn with<T>(self, work: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
        match self {
            Work::Do => work(),
            Work::Refuse(error) => Err(error.into()),
            Work::DoAndRefuse(error) => work().and(Err(error.into())),
        }
    }
}

/// Trouble that lasts until this is dropped.
#[must_use]
pub struct Trouble {
    faults: Arc<Faults>,
    fault: Arc<Fault>,
}

impl Trouble {
    /// How many operations it has hit.
    pub fn hits(&self) -> u64 {
        self.fault.hits.load(Ordering::SeqCst)
    }

    /// Waits until it has hit one.
    pub fn wait(&self) {
        eventually("the disk's fault is met", || self.hits() > 0);
    }

    /// The disk is well again.
    pub fn lift(self) {}
}

impl fmt::Debug for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Trouble").field(&self.fault.which).finish()
    }
}

impl Drop for Trouble {
    fn drop(&mut self) {
        // Not `expect`: this runs while a failed test unwinds.
        if let Ok(mut faults) = self.faults.0.lock() {
            faults.retain(|fault| !Arc::ptr_eq(fault, &self.fault));
        }
        if let Fate::Held(held) = &self.fault.fate {
            let held = held.lock().map(|mut held| std::mem::take(&mut *held)).unwrap_or_default();
            held.into_iter().for_each(|work| work());
        }
    }
}

/// A folder whose disk fails on command, unmounted when dropped.
pub struct FaultyDisk {
    mount: PathBuf,
    faults: Arc<Faults>,
    session: Option<BackgroundSession>,
}

impl fmt::Debug for FaultyDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyDisk").field("mount", &self.mount).finish_non_exhaustive()
    }
}

impl FaultyDisk {
    /// Makes one in an empty folder: `folder/real` is seen through `folder/faulty`.
    pub fn new(folder: &Path) -> FaultyDisk {
        let (real, mount) = (folder.join("real"), folder.join("faulty"));
        std::fs::create_dir(&real).expect("the folder is empty");
        std::fs::create_dir(&mount).expect("the folder is empty");
        let faults = Arc::new(Faults::default());
        let files = Files::new(real, Arc::clone(&faults));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("ringmq-faulty".to_owned())];
        config.acl = SessionACL::Owner;
        let session = Session::new(files, &mount, &config).and_then(Session::spawn);
        let session = session.unwrap_or_else(|error| {
            panic!("no FUSE file system can be mounted ({error}): root and /dev/fuse are needed")
        });
        FaultyDisk { mount, faults, session: Some(session) }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// These operations fail and leave nothing behind.
    pub fn fail(&self, which: Which, error: Errno) -> Trouble {
        self.trouble(which, Fate::Refused(error))
    }

    /// These operations are carried out, and say that they failed.
    pub fn disown(&self, which: Which, error: Errno) -> Trouble {
        self.trouble(which, Fate::Disowned(error))
    }

    /// These operations hang until the trouble is over; then they are carried out.
    pub fn hold(&self, which: Which) -> Trouble {
        self.trouble(which, Fate::Held(Mutex::default()))
    }

    fn trouble(&self, which: Which, fate: Fate) -> Trouble {
        let fault = Arc::new(Fault { which, fate, hits: AtomicU64::new(0) });
        self.faults.0.lock().expect("not poisoned").push(Arc::clone(&fault));
        Trouble { faults: Arc::clone(&self.faults), fault }
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        // Busy for a moment after a kill: the name goes at once, the rest when the last file is closed.
        let flags = rustix::mount::UnmountFlags::DETACH;
        if let Err(error) = rustix::mount::unmount(&self.mount, flags) {
            eprintln!("{} stays mounted: {error}", self.mount.display());
        }
        // Its thread ends with the last file; it shall not unmount what may be somebody else's by then.
        std::mem::forget(self.session.take());
    }
}
