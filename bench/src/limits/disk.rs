//! The raw disk, through the same path as the broker's log: O_DIRECT and io_uring by glommio.
//!
//! A probe file has all its blocks written before it is measured: extending a file costs a journal commit
//! per write, which is not what is asked here. glommio judges a device by the first file that is opened on
//! it and misjudges an empty one; this too needs written blocks. Files vanish with the probe, also on errors.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use glommio::io::{DmaFile, OpenOptions};
use glommio::{LocalExecutorBuilder, Placement};

use super::Throughput;
use super::loopback::{nanoseconds, sink};
use crate::record::Latencies;

const DURABLE_WRITE_BYTES: usize = 4 << 10;
const DURABLE_FILE_BYTES: u64 = 64 << 20;
const SEQUENTIAL_WRITE_BYTES: usize = 1 << 20;
const SEQUENTIAL_FILE_BYTES: u64 = 256 << 20;
const SEQUENTIAL_DEPTH: usize = 4;
const TRANSFER_FILE_BYTES: u64 = 128 << 20;
/// What one call sends: as the broker's transfer threads do.
const TRANSFER_BYTES: usize = 1 << 20;

/// A file that is removed when this is dropped.
#[derive(Debug)]
struct ProbeFile {
    path: PathBuf,
}

impl ProbeFile {
    /// Writes every block of a new file of `bytes` in `directory`.
    fn create(directory: &Path, name: &str, bytes: u64) -> anyhow::Result<ProbeFile> {
        fs::create_dir_all(directory)
            .with_context(|| format!("making the directory {}", directory.display()))?;
        let path = directory.join(format!(".ringmq-bench-{name}-{}", std::process::id()));
        let probe = ProbeFile { path };
        let failed = || format!("writing the probe file {}", probe.path.display());
        let mut file = File::create_new(&probe.path).with_context(failed)?;
        let chunk = vec![0x5a; 1 << 20];
        for _ in 0..bytes / chunk.len() as u64 {
            file.write_all(&chunk).with_context(failed)?;
        }
        file.sync_all().with_context(failed)?;
        Ok(probe)
    }
}

impl Drop for ProbeFile {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; the name says whose file it is.
        let _ = fs::remove_file(&self.path);
    }
}

/// 4 KiB durable writes over written blocks, one at a time, on a thread of their own.
#[derive(Debug)]
pub struct DurableWrites {
    commands: mpsc::Sender<Duration>,
    done: mpsc::Receiver<()>,
    thread: JoinHandle<anyhow::Result<Latencies>>,
}

impl DurableWrites {
    /// Makes the file and opens it.
    pub fn start(directory: &Path) -> anyhow::Result<DurableWrites> {
        let probe = ProbeFile::create(directory, "durable", DURABLE_FILE_BYTES)?;
        let (commands, todo) = mpsc::channel();
        let (finished, done) = mpsc::channel();
        let thread = executor("raw-disk", move || async move {
            let file = open(&probe.path, libc::O_DSYNC).await?;
            let result = durable_writes(&file, &todo, &finished).await;
            file.close().await.map_err(|error| anyhow!("closing the probe file: {error}"))?;
            drop(probe);
            result
        })?;
        Ok(DurableWrites { commands, done, thread })
    }

    /// Writes for `duration`.
    pub fn measure(&mut self, duration: Duration) -> anyhow::Result<()> {
        // Where the thread has ended, `finish` knows why.
        if self.commands.send(duration).is_err() || self.done.recv().is_err() {
            bail!("{}", DISK_UNUSABLE);
        }
        Ok(())
    }

    /// Removes the file and gives all samples.
    pub fn finish(self) -> anyhow::Result<Latencies> {
        drop(self.commands);
        joined(self.thread)
    }
}

const DISK_UNUSABLE: &str = "the raw disk cannot be measured: io_uring or O_DIRECT is refused here (a \
    container's seccomp profile, kernel.io_uring_disabled, or tmpfs); give another --dir or allow it";

async fn durable_writes(
    file: &DmaFile,
    todo: &mpsc::Receiver<Duration>,
    finished: &mpsc::Sender<()>,
) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::default();
    let mut position = 0;
    // The executor has nothing else to do, so it may block here between slices.
    while let Ok(duration) = todo.recv() {
        let mut sent = Instant::now();
        let end = sent + duration;
        while sent < end {
            let mut buffer = file.alloc_dma_buffer(DURABLE_WRITE_BYTES);
            buffer.as_bytes_mut().fill(position as u8);
            file.write_at(buffer, position)
                .await
                .map_err(|error| anyhow!("writing 4 KiB durably: {error}"))?;
            let done = Instant::now();
            latencies.add(nanoseconds(done - sent), 1);
            sent = done;
            position = (position + DURABLE_WRITE_BYTES as u64) % DURABLE_FILE_BYTES;
        }
        if finished.send(()).is_err() {
            break;
        }
    }
    Ok(latencies)
}

/// 1 MiB writes over written blocks, four in flight, on a thread of their own.
#[derive(Debug)]
pub struct SequentialWrites {
    commands: mpsc::Sender<Duration>,
    done: mpsc::Receiver<()>,
    thread: JoinHandle<anyhow::Result<Throughput>>,
}

impl SequentialWrites {
    /// Makes the file and opens it.
    pub fn start(directory: &Path) -> anyhow::Result<SequentialWrites> {
        let probe = ProbeFile::create(directory, "sequential", SEQUENTIAL_FILE_BYTES)?;
        let (commands, todo) = mpsc::channel();
        let (finished, done) = mpsc::channel();
        let thread = executor("raw-disk", move || async move {
            let file = open(&probe.path, 0).await?;
            let mut throughput = Throughput::default();
            let mut result = Ok(());
            // The executor has nothing else to do, so it may block here between slices.
            while let (true, Ok(duration)) = (result.is_ok(), todo.recv()) {
                result = sequential_writes(&file, duration, &mut throughput).await;
                if finished.send(()).is_err() {
                    break;
                }
            }
            file.close().await.map_err(|error| anyhow!("closing the probe file: {error}"))?;
            drop(probe);
            result.map(|()| throughput)
        })?;
        Ok(SequentialWrites { commands, done, thread })
    }

    /// Writes for `duration`.
    pub fn measure(&mut self, duration: Duration) -> anyhow::Result<()> {
        // Where the thread has ended, `finish` knows why.
        if self.commands.send(duration).is_err() || self.done.recv().is_err() {
            bail!("{}", DISK_UNUSABLE);
        }
        Ok(())
    }

    /// Removes the file and gives what was written.
    pub fn finish(self) -> anyhow::Result<Throughput> {
        drop(self.commands);
        joined(self.thread)
    }
}

async fn sequential_writes(
    file: &DmaFile,
    duration: Duration,
    throughput: &mut Throughput,
) -> anyhow::Result<()> {
    let mut in_flight = FuturesUnordered::new();
    let (mut position, mut written) = (0, 0u64);
    let start = Instant::now();
    loop {
        // At least one write: on a busy machine a short slice may be over before it began.
        while in_flight.len() < SEQUENTIAL_DEPTH && (position == 0 || start.elapsed() < duration) {
            // In huge pages, as the broker's blocks.
            let mut buffer = glommio::allocate_dma_buffer_global(SEQUENTIAL_WRITE_BYTES);
            buffer.as_bytes_mut()[0] = position as u8;
            in_flight.push(file.write_at(buffer, position));
            position = (position + SEQUENTIAL_WRITE_BYTES as u64) % SEQUENTIAL_FILE_BYTES;
        }
        let Some(result) = in_flight.next().await else { break };
        written += result.map_err(|error| anyhow!("writing 1 MiB: {error}"))? as u64;
    }
    throughput.add(written, start.elapsed());
    Ok(())
}

/// A cold file sent to a socket by the kernel alone: the most that catching up from disk can reach.
#[derive(Debug)]
pub struct ColdTransfers {
    probe: ProbeFile,
    throughput: Throughput,
}

impl ColdTransfers {
    /// Makes the file.
    pub fn start(directory: &Path) -> anyhow::Result<ColdTransfers> {
        let probe = ProbeFile::create(directory, "transfer", TRANSFER_FILE_BYTES)?;
        Ok(ColdTransfers { probe, throughput: Throughput::default() })
    }

    /// Sends the file, again and again, for `duration`.
    pub fn measure(&mut self, duration: Duration) -> anyhow::Result<()> {
        let (near, sink) = sink().context("starting a sink")?;
        let file = File::open(&self.probe.path).context("opening the probe file")?;
        let until = Instant::now() + duration;
        let (mut sent, mut elapsed) = (0, Duration::ZERO);
        // At least one call: on a busy machine a short slice may be over before it began.
        while sent == 0 || Instant::now() < until {
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
                .context("dropping the probe file from memory")?;
            // Only the sending counts, not the forgetting.
            let start = Instant::now();
            let mut offset = 0;
            while offset < TRANSFER_FILE_BYTES && (offset == 0 || Instant::now() < until) {
                let bytes = rustix::fs::sendfile(&near, &file, Some(&mut offset), TRANSFER_BYTES);
                match bytes.context("sendfile")? {
                    0 => bail!("the probe file is shorter than it was written"),
                    bytes => sent += bytes as u64,
                }
            }
            elapsed += start.elapsed();
        }
        drop(near);
        sink.join().map_err(|_| anyhow!("the sink panicked"))??;
        self.throughput.add(sent, elapsed);
        Ok(())
    }

    /// Removes the file and gives what was sent.
    pub fn finish(self) -> Throughput {
        self.throughput
    }
}

async fn open(path: &Path, flags: i32) -> anyhow::Result<DmaFile> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .dma_open(path)
        .await
        .map_err(|error| anyhow!("opening the probe file {}: {error}", path.display()))
}

/// Runs `work` in an executor of its own. glommio panics where io_uring is refused; the panic stays in
/// that thread and becomes an error.
fn executor<T, F, Work>(name: &str, work: F) -> anyhow::Result<JoinHandle<anyhow::Result<T>>>
where
    T: Send + 'static,
    F: FnOnce() -> Work + Send + 'static,
    Work: Future<Output = anyhow::Result<T>>,
{
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        let executor = LocalExecutorBuilder::new(Placement::Unbound)
            .make()
            .map_err(|error| anyhow!("{DISK_UNUSABLE} ({error})"))?;
        executor.run(work())
    })?;
    Ok(thread)
}

fn joined<T>(thread: JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow!(DISK_UNUSABLE))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durable_writes_are_measured_in_slices_and_leave_nothing() {
        // The build directory is on a real disk; /tmp need not be.
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let mut probe = DurableWrites::start(directory.path()).unwrap();
        probe.measure(Duration::from_millis(20)).unwrap();
        probe.measure(Duration::from_millis(20)).unwrap();
        let latencies = probe.finish().unwrap();
        assert!(latencies.count() >= 2, "one in each slice, however busy the machine");
        assert!(latencies.at_ns(50.0) > 1_000);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn sequential_writes_and_transfers_give_rates() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let mut writes = SequentialWrites::start(directory.path()).unwrap();
        writes.measure(Duration::from_millis(20)).unwrap();
        writes.measure(Duration::from_millis(20)).unwrap();
        assert!(writes.finish().unwrap().bytes_per_second() > 1e6);
        let mut transfers = ColdTransfers::start(directory.path()).unwrap();
        transfers.measure(Duration::from_millis(20)).unwrap();
        assert!(transfers.finish().bytes_per_second() > 1e6);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = DurableWrites::start(file.path()).unwrap_err();
        assert!(format!("{error:#}").contains(&file.path().display().to_string()), "{error:#}");
    }
}
