//! System calls and descriptors that no safe crate offers: with `ringmq-blocks` the only `unsafe` of the servers.
//!
//! Invariant: each block is one operation, with the reason why it is sound beside it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;

/// Whether this process may make an io_uring: tried with the smallest ring there is.
pub(crate) fn probe_io_uring() -> io::Result<()> {
    // `struct io_uring_params` is 120 bytes of plain numbers; zero asks for the defaults.
    let mut params = [0u64; 15];
    // SAFETY: the kernel writes at most 120 bytes, the size of `params`, which outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2u32, params.as_mut_ptr()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned a new descriptor that nobody else owns.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    Ok(())
}

/// Alignment that O_DIRECT wants in memory and in the file; 0, 0 when the file system refuses O_DIRECT;
/// `None` when it does not say (kernels before 6.1).
pub(crate) fn direct_io_alignment(path: &Path) -> io::Result<Option<(u32, u32)>> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `statx` is plain numbers, for which zero is a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: `name` ends with zero and `found` has the size the kernel writes; both outlive the call.
    let code =
        unsafe { libc::statx(libc::AT_FDCWD, name.as_ptr(), 0, libc::STATX_DIOALIGN, &mut found) };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    let says = found.stx_mask & libc::STATX_DIOALIGN != 0;
    Ok(says.then_some((found.stx_dio_mem_align, found.stx_dio_offset_align)))
}

/// Lets the allocator keep freed blocks of the log instead of giving them back to the system: a block
/// of 1 MiB costs 256 page faults each time it comes fresh from the kernel.
pub(crate) fn keep_freed_blocks(threshold_bytes: usize) {
    #[cfg(target_env = "gnu")]
    {
        let bytes = i32::try_from(threshold_bytes).unwrap_or(i32::MAX);
        // SAFETY: mallopt sets numbers inside the allocator and touches no memory of ours.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) };
        // SAFETY: as above.
        unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, bytes) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = threshold_bytes;
}

/// Writes what the page cache has of a range of a file to the disk, and waits for that. Says nothing of durability,
/// and so nothing of failures: the sync that must follow does.
pub(crate) fn write_back(file: &std::fs::File, from: u64, bytes: u64) {
    let flags = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let (Ok(from), Ok(bytes)) = (i64::try_from(from), i64::try_from(bytes)) else { return };
    // SAFETY: the call gets numbers only; the descriptor is borrowed from the file for its length.
    unsafe { libc::sync_file_range(file.as_raw_fd(), from, bytes, flags) };
}

/// Gives a descriptor to glommio as a TCP stream of the calling executor.
pub(crate) fn adopt_stream(fd: OwnedFd) -> glommio::net::TcpStream {
    // SAFETY: `into_raw_fd` gives the ownership up, the stream takes it.
    unsafe { glommio::net::TcpStream::from_raw_fd(fd.into_raw_fd()) }
}

/// Gives a listening socket to glommio.
pub(crate) fn adopt_listener(fd: OwnedFd) -> glommio::net::TcpListener {
    // SAFETY: as in `adopt_stream`.
    unsafe { glommio::net::TcpListener::from_raw_fd(fd.into_raw_fd()) }
}

/// The descriptor of a stream, for calls that glommio does not have.
pub(crate) fn descriptor(stream: &glommio::net::TcpStream) -> BorrowedFd<'_> {
    // SAFETY: the stream owns the descriptor, and the result borrows the stream.
    unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) }
}

/// The descriptor of a file, for calls that glommio does not have.
pub(crate) fn file_descriptor(file: &glommio::io::DmaFile) -> BorrowedFd<'_> {
    // SAFETY: the file owns the descriptor, and the result borrows the file.
    unsafe { BorrowedFd::borrow_raw(file.as_raw_fd()) }
}

/// SIGTERM and SIGINT, to be waited for.
#[derive(Debug)]
pub struct Signals {
    set: libc::sigset_t,
}

impl Signals {
    /// Blocks them for this thread and those that it starts from now on.
    pub fn block() -> io::Result<Signals> {
        // SAFETY: a signal set is plain bits, for which zero is a value; `sigemptyset` sets them.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is valid for the calls, which only write to it.
        unsafe {
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGTERM);
            libc::sigaddset(&mut set, libc::SIGINT);
        }
        // SAFETY: `set` is initialised, the old mask is not asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
            0 => Ok(Signals { set }),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// Waits for one; its name.
    pub fn wait(&self) -> io::Result<&'static str> {
        let mut signal = 0;
        // SAFETY: both pointers are to values of ours that outlive the call.
        match unsafe { libc::sigwait(&self.set, &mut signal) } {
            0 if signal == libc::SIGTERM => Ok("SIGTERM"),
            0 => Ok("SIGINT"),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_uring_is_there_and_alignment_is_known() {
        probe_io_uring().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        direct_io_alignment(file.path()).unwrap();
    }
}
