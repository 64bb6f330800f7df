//! The file system itself: each request goes to the file of the same name in another folder.
//!
//! Invariants:
//! - numbers of files are the real ones, but for the root's, which FUSE fixes;
//! - the kernel keeps no names and no attributes: it asks each time.

use super::{Faults, Operation};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, OFlags};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Result};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

const FRESH: Duration = Duration::ZERO;
const NEVER_REUSED: Generation = Generation(0);

/// An open file.
struct Open {
    ino: INodeNo,
    file: File,
}

#[derive(Default)]
struct Known {
    /// Paths in the folder.
    paths: BTreeMap<INodeNo, PathBuf>,
    open: BTreeMap<FileHandle, Arc<Open>>,
    opened: u64,
}

/// See the module.
pub(super) struct Files {
    root: PathBuf,
    faults: Arc<Faults>,
    known: Mutex<Known>,
}

impl Files {
    pub(super) fn new(root: PathBuf, faults: Arc<Faults>) -> Files {
        let paths = BTreeMap::from([(INodeNo::ROOT, PathBuf::new())]);
        Files { root, faults, known: Mutex::new(Known { paths, ..Known::default() }) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("not poisoned")
    }

    /// Path in the folder.
    fn path(&self, ino: INodeNo) -> Result<PathBuf> {
        self.known().paths.get(&ino).cloned().ok_or(ErrorKind::NotFound.into())
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Result<PathBuf> {
        Ok(self.path(parent)?.join(name))
    }

    /// Attributes, and the number is known from now on.
    fn look(&self, path: &Path) -> Result<FileAttr> {
        let found = attributes(&fs::symlink_metadata(self.root.join(path))?, path);
        self.known().paths.insert(found.ino, path.to_owned());
        Ok(found)
    }

    fn file(&self, handle: FileHandle) -> Result<(Arc<Open>, PathBuf)> {
        let known = self.known();
        let open = known.open.get(&handle).cloned();
        let open = open.ok_or(rustix::io::Errno::BADF)?;
        // Of a removed file nobody asks the name: no fault is meant for it.
        let path = known.paths.get(&open.ino).cloned().unwrap_or_default();
        Ok((open, path))
    }

    fn add(&self, ino: INodeNo, file: File) -> FileHandle {
        let mut known = self.known();
        known.opened += 1;
        let handle = FileHandle(known.opened);
        known.open.insert(handle, Arc::new(Open { ino, file }));
        handle
    }

    fn open_now(&self, path: &Path, flags: i32) -> Result<File> {
        let flags = of(flags);
        let mode = flags & OFlags::ACCMODE;
        let mut options = OpenOptions::new();
        options.read(mode != OFlags::WRONLY).write(mode != OFlags::RDONLY);
        options.truncate(flags.contains(OFlags::TRUNC) && mode != OFlags::RDONLY);
        options.open(self.root.join(path))
    }

    fn rename_now(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))?;
        let ino = INodeNo(fs::symlink_metadata(self.root.join(to))?.ino());
        let mut known = self.known();
        known.paths.retain(|_, path| path != to && path != from);
        known.paths.insert(ino, to.to_owned());
        Ok(())
    }

    fn forget_path(&self, path: &Path) {
        self.known().paths.retain(|_, known| known != path);
    }
}

fn of(flags: i32) -> OFlags {
    OFlags::from_bits_retain(flags.cast_unsigned())
}

/// O_DIRECT passes the page cache by; several such writes of a file at once, as on ext4.
fn how_opened(flags: i32) -> FopenFlags {
    match of(flags).contains(OFlags::DIRECT) {
        true => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
        false => FopenFlags::empty(),
    }
}

fn attributes(found: &fs::Metadata, path: &Path) -> FileAttr {
    let is_root = path.as_os_str().is_empty();
    let time = |time: Result<SystemTime>| time.unwrap_or(SystemTime::UNIX_EPOCH);
    FileAttr {
        ino: if is_root { INodeNo::ROOT } else { INodeNo(found.ino()) },
        size: found.len(),
        blocks: found.blocks(),
        atime: time(found.accessed()),
        mtime: time(found.modified()),
        ctime: time(found.modified()),
        crtime: time(found.created()),
        kind: FileType::from_std(found.file_type()).unwrap_or(FileType::RegularFile),
        perm: (found.permissions().mode() & 0o7777) as u16,
        nlink: found.nlink() as u32,
        uid: found.uid(),
        gid: found.gid(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// As much as there is.
fn read(file: &File, offset: u64, size: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn answer(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.child(parent, name).and_then(|path| self.look(&path)) {
            Ok(found) => reply.entry(&FRESH, &found, NEVER_REUSED),
            Err(error) => reply.error(error.into()),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        // An open file may have no name any more.
        let found = match handle.map(|handle| self.file(handle)) {
            Some(Ok((open, path))) => open.file.metadata().map(|found| {
                let path = if ino == INodeNo::ROOT { PathBuf::new() } else { path.join("file") };
                attributes(&found, &path)
            }),
            _ => self.path(ino).and_then(|path| self.look(&path)),
        };
        match found {
            Ok(found) => reply.attr(&FRESH, &found),
            Err(error) => reply.error(error.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = || {
            let path = self.path(ino)?;
            let real = self.root.join(&path);
            if let Some(mode) = mode {
                fs::set_permissions(&real, fs::Permissions::from_mode(mode))?;
            }
            if let Some(size) = size {
                OpenOptions::new().write(true).open(&real)?.set_len(size)?;
            }
            self.look(&path)
        };
        match set() {
            Ok(found) => reply.attr(&FRESH, &found),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let make = || {
            let path = self.child(parent, name)?;
            fs::create_dir(self.root.join(&path))?;
            self.look(&path)
        };
        match make() {
            Ok(found) => reply.entry(&FRESH, &found, NEVER_REUSED),
            Err(error) => reply.error(error.into()),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let remove = || {
            let path = self.child(parent, name)?;
            fs::remove_file(self.root.join(&path))?;
            self.forget_path(&path);
            Ok(())
        };
        answer(reply, remove());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let from = self.child(parent, name);
        let paths = from.and_then(|from| Ok((from, self.child(new_parent, new_name)?)));
        answer(reply, paths.and_then(|(from, to)| self.rename_now(&from, &to)));
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.path(ino).and_then(|path| self.open_now(&path, flags.0)) {
            Ok(file) => reply.opened(self.add(ino, file), how_opened(flags.0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let path = match self.child(parent, name) {
            Ok(path) => path,
            Err(error) => return reply.error(error.into()),
        };
        let make = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true);
            options.create_new(of(flags).contains(OFlags::EXCL));
            let file = options.truncate(of(flags).contains(OFlags::TRUNC));
            let file = file.open(self.root.join(&path))?;
            Ok((self.look(&path)?, file))
        };
        match make() {
            Ok((found, file)) => {
                let handle = self.add(found.ino, file);
                reply.created(&FRESH, &found, NEVER_REUSED, handle, how_opened(flags));
            }
            Err::<_, std::io::Error>(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (open, path) = match self.file(handle) {
            Ok(found) => found,
            Err(error) => return reply.error(error.into()),
        };
        let touched = offset..offset + u64::from(size);
        self.faults.carry_out(&[Operation::Read], &path, &touched, move |work| {
            match work.with(|| read(&open.file, offset, size as usize)) {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        _how: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (open, path) = match self.file(handle) {
            Ok(found) => found,
            Err(error) => return reply.error(error.into()),
        };
        let is_durable = of(flags.0).contains(OFlags::DSYNC);
        let operations = [Operation::Write, Operation::Sync];
        let operations = if is_durable { &operations[..] } else { &operations[..1] };
        let touched = offset..offset + bytes.len() as u64;
        let bytes = bytes.to_vec();
        self.faults.carry_out(operations, &path, &touched, move |work| {
            let written = work.with(|| {
                open.file.write_all_at(&bytes, offset)?;
                if is_durable { open.file.sync_data() } else { Ok(()) }
            });
            match written {
                Ok(()) => reply.written(bytes.len() as u32),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn flush(
        &self,
        _: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.known().open.remove(&handle);
        reply.ok();
    }

    fn fsync(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let (open, path) = match self.file(handle) {
            Ok(found) => found,
            Err(error) => return reply.error(error.into()),
        };
        self.faults.carry_out(&[Operation::Sync], &path, &(0..u64::MAX), move |work| {
            answer(reply, work.with(|| open.file.sync_data()));
        });
    }

    fn fsyncdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let sync = |path: PathBuf| File::open(self.root.join(path))?.sync_all();
        answer(reply, self.path(ino).and_then(sync));
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let list = || -> Result<Vec<(INodeNo, FileType, std::ffi::OsString)>> {
            let mut all = Vec::new();
            for entry in fs::read_dir(self.root.join(self.path(ino)?))? {
                let entry = entry?;
                let kind = FileType::from_std(entry.file_type()?).unwrap_or(FileType::RegularFile);
                all.push((INodeNo(entry.metadata()?.ino()), kind, entry.file_name()));
            }
            all.sort_by(|a, b| a.2.cmp(&b.2));
            Ok(all)
        };
        let all = match list() {
            Ok(all) => all,
            Err(error) => return reply.error(error.into()),
        };
        for (at, (ino, kind, name)) in all.into_iter().enumerate().skip(offset as usize) {
            if reply.add(ino, at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match rustix::fs::statvfs(&self.root) {
            Ok(found) => reply.statfs(
                found.f_blocks,
                found.f_bfree,
                found.f_bavail,
                found.f_files,
                found.f_ffree,
                found.f_bsize as u32,
                found.f_namemax as u32,
                found.f_frsize as u32,
            ),
            Err(error) => reply.error(Errno::from_i32(error.raw_os_error())),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (open, path) = match self.file(handle) {
            Ok(found) => found,
            Err(error) => return reply.error(error.into()),
        };
        let flags = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        self.faults.carry_out(&[Operation::Make], &path, &(0..u64::MAX), move |work| {
            let made = work.with(|| Ok(rustix::fs::fallocate(&open.file, flags, offset, length)?));
            answer(reply, made);
        });
    }
}
