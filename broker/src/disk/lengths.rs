//! Segments that were cut short get their length back before the log is read.
//!
//! What lay there is gone; in its place are zeros, which recovery takes for what they are: a torn tail, or damage
//! in the interior, which is fenced and reported. So a file that lost its end costs what lay there and no more.
//!
//! Invariants:
//! - a file only grows, and none of what it holds changes;
//! - a file that is missing altogether is not made up for: recovery refuses the folder, and it can be put back.

use super::segment::{failed, file_name, index_name};
use ringmq_core::index::{Header, PAGE_BYTES};
use ringmq_core::{BLOCK_BYTES, DiskError, SegmentFile};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Restores lengths of these segments, in the order of the log. `usual` is the length of a new one.
pub(super) fn restore(
    folder: &Path,
    segments: &mut [SegmentFile],
    usual: u64,
) -> Result<(), DiskError> {
    for at in 0..segments.len() {
        let SegmentFile { base, bytes } = segments[at];
        let indexed = indexed_bytes(folder, base);
        let was = match segments.get(at + 1) {
            // Up to the next, unless one in between is missing.
            Some(next) => {
                let reach = next.base - base;
                Some(reach).filter(|reach| indexed == Some(*reach) || *reach <= usual)
            }
            // The last one may be of any length when nothing else says so.
            None if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES as u64) => {
                let whole = bytes.next_multiple_of(BLOCK_BYTES as u64).max(usual);
                Some(indexed.unwrap_or(whole))
            }
            None => indexed,
        };
        let Some(was) = was.filter(|was| *was > bytes) else { continue };
        let path = folder.join(file_name(base));
        let grow = || {
            let file = OpenOptions::new().write(true).open(&path)?;
            file.set_len(was)?;
            file.sync_all()
        };
        grow()
            .map_err(|error| failed(format!("restore the length of {}", path.display()), error))?;
        segments[at].bytes = was;
        tracing::error!(
            file = %path.display(), bytes, was,
            "a segment was cut short: what lay behind its end is lost, it is filled with zeros"
        );
    }
    Ok(())
}

/// The length of a segment as its index has it.
fn indexed_bytes(folder: &Path, base: u64) -> Option<u64> {
    let mut page = [0; PAGE_BYTES];
    let file = File::open(folder.join(index_name(base))).ok()?;
    file.read_exact_at(&mut page, 0).ok()?;
    Some(Header::read(&page, base).ok()?.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_is_filled_and_what_is_missing_is_not() {
        let dir = tempfile::tempdir().unwrap();
        // The second was cut, behind the third one is missing, of the last something odd is left.
        let files = [(0, 8192), (8192, 5000), (16_384, 8192), (32_768, 100)];
        let mut segments = Vec::new();
        for (base, bytes) in files {
            std::fs::write(dir.path().join(file_name(base)), vec![7; bytes]).unwrap();
            segments.push(SegmentFile { base, bytes: bytes as u64 });
        }
        restore(dir.path(), &mut segments, 8192).unwrap();
        assert!(segments.iter().all(|segment| segment.bytes == 8192));
        let second = std::fs::read(dir.path().join(file_name(8192))).unwrap();
        assert_eq!(second.len(), 8192);
        assert!(second[..5000].iter().all(|byte| *byte == 7));
        assert!(second[5000..].iter().all(|byte| *byte == 0));
        // A last segment of whole blocks may have been made so.
        std::fs::write(dir.path().join(file_name(32_768)), vec![7; 4096]).unwrap();
        segments[3].bytes = 4096;
        restore(dir.path(), &mut segments, 8192).unwrap();
        assert_eq!(segments[3].bytes, 4096);
    }
}
