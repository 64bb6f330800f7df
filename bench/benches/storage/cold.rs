//! Files out of the page cache, and files into a socket.

use anyhow::Context as _;
use std::fs::File;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes of one sendfile: what a transfer thread sends at a time.
const RANGE_BYTES: usize = 256 << 10;
/// What a sink reads at once.
pub const SINK_BYTES: usize = 256 << 10;

/// Files below `folder` with this ending, by name.
pub fn files(folder: &Path, ending: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path, ending)?);
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Takes everything below `folder` out of the page cache, and where this may be done all else too.
pub fn make(folder: &Path) -> anyhow::Result<()> {
    for path in files(folder, "")? {
        let file = File::open(&path)?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    // Only root may: the files themselves are what matters.
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "1");
    Ok(())
}

/// Takes these files, which nobody writes, out of the page cache.
pub fn forget(paths: &[PathBuf]) -> anyhow::Result<()> {
    for path in paths {
        rustix::fs::fadvise(&File::open(path)?, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

/// Sends the files to a sink over the loopback by `sendfile`; bytes per second.
pub fn send_files(paths: &[PathBuf], limit: u64) -> anyhow::Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    let sink = std::thread::spawn(move || -> std::io::Result<u64> {
        let (mut chunk, mut total) = (vec![0; SINK_BYTES], 0);
        loop {
            match far.read(&mut chunk)? {
                0 => return Ok(total),
                bytes => total += bytes as u64,
            }
        }
    });
    let begun = Instant::now();
    let mut left = limit;
    for path in paths {
        let file = File::open(path)?;
        let end = file.metadata()?.len().min(left);
        let mut offset = 0;
        while offset < end {
            let range = RANGE_BYTES.min((end - offset) as usize);
            if rustix::fs::sendfile(&near, &file, Some(&mut offset), range)? == 0 {
                break;
            }
        }
        left -= end;
    }
    drop(near);
    let total = sink.join().ok().context("the sink panicked")??;
    Ok(total as f64 / begun.elapsed().as_secs_f64())
}
