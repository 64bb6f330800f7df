//! What the machine must offer, checked before anything starts.
//!
//! Each check that fails says in one line what is missing and what to do. glommio panics where io_uring
//! is refused, so nothing of it runs before this has passed.

use crate::sys;
use anyhow::{Context, bail};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// glommio needs this much lockable memory per executor (kernels since 5.12 count it to the cgroup,
/// but the limit is still looked at).
const MEMLOCK_BYTES_PER_CORE: u64 = 512 << 10;
/// Length of the probe file: one device block at least.
const PROBE_BYTES: usize = 4096;

/// Checks the machine and the data directory, in which it leaves the probe file.
pub(crate) fn check(probe: &Path, cores: usize, files_wanted: u64) -> anyhow::Result<()> {
    io_uring()?;
    memlock(cores)?;
    open_files(files_wanted);
    direct_io(probe)?;
    through_glommio(probe)
}

fn io_uring() -> anyhow::Result<()> {
    sys::probe_io_uring().map_err(|error| {
        let remedy = match error.raw_os_error() {
            Some(libc::ENOSYS) => "the kernel has none: Linux 5.8 or newer is needed",
            Some(libc::EPERM) => {
                "it is forbidden here: Docker's default seccomp profile blocks it (run with \
                 --security-opt seccomp=unconfined or a profile that allows io_uring_setup, \
                 io_uring_enter, io_uring_register), or set sysctl kernel.io_uring_disabled=0"
            }
            Some(libc::ENOMEM) => "raise the memlock limit: ulimit -l unlimited",
            _ => "see `man 2 io_uring_setup`",
        };
        anyhow::anyhow!("io_uring cannot be used ({error}): {remedy}")
    })
}

fn memlock(cores: usize) -> anyhow::Result<()> {
    let needed = MEMLOCK_BYTES_PER_CORE * cores as u64;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    match limit.current {
        Some(bytes) if bytes < needed => bail!(
            "only {} KiB may be locked in memory, {cores} executors need {} KiB: ulimit -l {}, or \
             LimitMEMLOCK=infinity in the service file",
            bytes >> 10,
            needed >> 10,
            needed >> 10,
        ),
        _ => Ok(()),
    }
}

/// Raises the soft limit as far as it goes; too low a hard limit only bounds the connections.
fn open_files(wanted: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let reachable = limit.maximum.map_or(wanted, |most| wanted.min(most));
    if limit.current.is_some_and(|current| current < reachable) {
        let raised = Rlimit { current: Some(reachable), maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!("cannot raise the limit of open files to {reachable}: {error}");
        }
    }
    if reachable < wanted {
        tracing::warn!(
            "only {reachable} files may be open, with these settings {wanted} could be needed: raise \
             `ulimit -n`, or lower max_connections or transfer_bytes"
        );
    }
}

fn direct_io(probe: &Path) -> anyhow::Result<()> {
    let folder = probe.parent().unwrap_or(probe).display();
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(probe)?;
        file.write_all(&[0x5a; PROBE_BYTES])?;
        file.sync_all()
    };
    write().with_context(|| format!("cannot write in the data directory {folder}"))?;
    let remedy = "put the data directory on ext4 or xfs on a local disk (not tmpfs, overlay or a \
                  network file system)";
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    if let Err(error) = options.open(probe) {
        bail!("the file system of {folder} does not take O_DIRECT ({error}): {remedy}");
    }
    let found = sys::direct_io_alignment(probe)
        .with_context(|| format!("cannot ask for the alignment of {}", probe.display()))?;
    match found {
        Some((0, _) | (_, 0)) => {
            bail!("the file system of {folder} does not do O_DIRECT: {remedy}")
        }
        Some((memory, file)) if memory > 4096 || file > 4096 => bail!(
            "the disk of {folder} wants O_DIRECT aligned to {} bytes, at most 4096 are supported: \
             use another disk",
            memory.max(file)
        ),
        _ => Ok(()),
    }
}

/// glommio looks devices up in /sys and panics where it does not find what it expects: better here, on
/// a thread of its own, than in an executor that serves.
fn through_glommio(probe_path: &Path) -> anyhow::Result<()> {
    let path = probe_path.to_owned();
    let tried = std::thread::Builder::new().name("preflight".to_owned()).spawn(move || {
        let executor = glommio::LocalExecutorBuilder::default().io_memory(64 << 10).make();
        let executor = executor.map_err(|error| anyhow::anyhow!("{error}"))?;
        executor.run(probe(&path))
    });
    let tried = tried.context("cannot start a thread")?;
    let advice = "try another disk; with NVMe partitions see docs on /sys/dev/block";
    match tried.join() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => bail!(
            "writing and reading {} through io_uring failed ({error:#}): {advice}",
            probe_path.display()
        ),
        Err(_) => bail!(
            "the I/O library cannot handle the device of {} (it panicked, see above): {advice}",
            probe_path.display()
        ),
    }
}

/// Opens, writes and reads the probe file in the calling executor. The first file that an executor opens
/// on a device decides whether polled I/O is thought to work: an empty one would wrongly say yes.
pub(crate) async fn probe(path: &Path) -> anyhow::Result<()> {
    if std::fs::metadata(path).map_or(0, |found| found.len()) < PROBE_BYTES as u64 {
        std::fs::write(path, [0x5a; PROBE_BYTES])?;
    }
    let failed = |error: glommio::GlommioError<()>| anyhow::anyhow!("{error}");
    let mut options = glommio::io::OpenOptions::new();
    let file = options.read(true).write(true).dma_open(path).await.map_err(failed)?;
    let mut buffer = file.alloc_dma_buffer(PROBE_BYTES);
    buffer.trim_to_size(PROBE_BYTES);
    buffer.as_bytes_mut().fill(0x5a);
    let written = file.write_at(buffer, 0).await.map_err(failed)?;
    let read = file.read_at_aligned(0, PROBE_BYTES).await.map_err(failed)?;
    let same =
        written == PROBE_BYTES && read.len() == PROBE_BYTES && read.iter().all(|b| *b == 0x5a);
    drop(read);
    file.close().await.map_err(failed)?;
    if same { Ok(()) } else { bail!("what was read is not what was written") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_passes_and_a_folder_without_direct_io_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        check(&dir.path().join("probe"), 1, 64).unwrap();
        let error = check(Path::new("/proc/probe"), 1, 64).unwrap_err();
        assert!(error.to_string().contains("cannot write in the data directory"), "{error}");
    }
}
