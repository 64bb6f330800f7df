//! The raw disk: sequential O_DIRECT writes through the same ring as the broker's log.

use anyhow::{Context as _, anyhow};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use glommio::io::{DmaFile, OpenOptions};
use glommio::{LocalExecutorBuilder, Placement};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

/// How blocks of the file are before they are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocks {
    /// Allocated, never written.
    Fresh,
    /// Written before.
    Recycled,
}

/// What is written.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub bytes: u64,
    pub write_bytes: usize,
    pub depth: usize,
    pub durable: bool,
}

/// Makes a file of whole length with blocks of this kind.
pub fn make(path: &Path, bytes: u64, blocks: Blocks) -> anyhow::Result<()> {
    let mut file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)
        .context("allocating the file")?;
    if blocks == Blocks::Recycled {
        let chunk = vec![0x5a; 1 << 20];
        for _ in 0..bytes >> 20 {
            file.write_all(&chunk).context("writing the file's blocks")?;
        }
    }
    file.sync_all().context("syncing the file")?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

/// Writes the plan's bytes from the file's beginning; bytes per second.
pub fn write(path: &Path, plan: Plan) -> anyhow::Result<f64> {
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .make()
        .map_err(|error| anyhow!("cannot make an executor: {error}"))?;
    executor.run(async move {
        judge_by_written_file(path).await?;
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if plan.durable {
            options.custom_flags(libc::O_DSYNC);
        }
        let opened = options.dma_open(path).await;
        let file = Rc::new(opened.map_err(|error| anyhow!("opening the raw file: {error}"))?);
        let rate = writes(&file, plan).await;
        file.close_rc().await.map_err(|error| anyhow!("closing the raw file: {error}"))?;
        rate
    })
}

/// glommio judges a device by the first file opened on it, and misjudges one without written blocks.
pub async fn judge_by_written_file(beside: &Path) -> anyhow::Result<()> {
    let path = beside.with_extension("probe");
    std::fs::write(&path, [1; 4096])?;
    let opened = OpenOptions::new().read(true).write(true).dma_open(&path).await;
    let file = opened.map_err(|error| anyhow!("opening the probe file: {error}"))?;
    file.close().await.map_err(|error| anyhow!("closing the probe file: {error}"))?;
    Ok(std::fs::remove_file(&path)?)
}

async fn writes(file: &Rc<DmaFile>, plan: Plan) -> anyhow::Result<f64> {
    // The same buffers again and again, as many as are in flight.
    let mut spare: Vec<_> = (0..plan.depth)
        .map(|number| {
            // In huge pages, as the log's.
            let mut buffer = glommio::allocate_dma_buffer_global(plan.write_bytes);
            buffer.as_bytes_mut().fill(number as u8);
            Rc::new(buffer)
        })
        .collect();
    let mut in_flight = FuturesUnordered::new();
    let mut position = 0;
    let begun = Instant::now();
    loop {
        while position < plan.bytes
            && let Some(buffer) = spare.pop()
        {
            let at = position;
            position += plan.write_bytes as u64;
            in_flight.push(async move {
                let written = file.write_rc_at(Rc::clone(&buffer), at).await;
                (buffer, written)
            });
        }
        let Some((buffer, written)) = in_flight.next().await else { break };
        written.map_err(|error| anyhow!("a raw write: {error}"))?;
        spare.push(buffer);
    }
    Ok(plan.bytes as f64 / begun.elapsed().as_secs_f64())
}
