//! Recovery: finds where the log ends, hands on what the state and the index are made of.
//!
//! The newest unit that begins a segment names the newest snapshot. From there on every record is handed on;
//! of sealed segments before it the index is enough, and where there is none they are read for their
//! messages. After a clean stop the last segment has an index that covers a part of it: this names the snapshot
//! that the shard ended with, and where the log ends. It is removed before anything is written again.
//!
//! W is the highest `flushed` that any valid unit bears. The first damage at or above W is a torn tail
//! and is cut; damage below W is in the interior: nothing is cut away there, the log goes on at the next valid
//! unit, and what lies between is fenced. After the cut, whatever units of the torn tail survive are wiped, the
//! rest is made durable, and the log goes on in an epoch above every one seen: a lower epoch after a
//! higher one is never accepted, so torn or recycled bytes can never join the log (promise: prefix).

mod scan;

use super::{Segment, is_of};
use crate::config::ShardConfig;
use crate::index::{Header, PAGE_BYTES};
use crate::seam::{BLOCK_BYTES, LogFiles};
use crate::shard::OpenError;
use ringmq_schema::record::{RecordRef, UnitHeader};
pub(crate) use scan::check_first_block;
use scan::{Found, Scan};
use std::collections::VecDeque;

/// What recovery found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) segments: VecDeque<Segment>,
    /// Where the log goes on.
    pub(crate) end: u64,
    /// The new epoch.
    pub(crate) epoch: u32,
    /// Where the snapshot begins that was taken; 0: none was.
    pub(crate) snapshot: u64,
    /// The newest one that the first unit of a segment names.
    pub(crate) named: u64,
    pub(crate) records: u64,
    /// Bytes of units that were cut off.
    pub(crate) torn_bytes: u64,
    /// Ranges of the log that are damaged.
    pub(crate) fenced: Vec<Fenced>,
}

/// A damaged range of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fenced {
    /// First position.
    pub from: u64,
    /// End.
    pub to: u64,
    /// What is wrong at the first position.
    pub what: &'static str,
}

/// What the log is read for.
pub(crate) trait Replay {
    /// A segment is about to be read. Returns up to where its messages are known already.
    fn segment(&mut self, segment: Segment, files: &mut dyn LogFiles) -> Result<u64, OpenError>;
    /// A record that is not a control record. `state`: it is behind the beginning of the snapshot, so what
    /// it says of the state counts. What is refused counts as damage.
    fn record(
        &mut self,
        segment: Segment,
        record: &RecordRef<'_>,
        state: bool,
    ) -> Result<(), &'static str>;
    /// A segment was read to its end, and the log goes on behind it.
    fn sealed(
        &mut self,
        segment: Segment,
        epoch: u32,
        files: &mut dyn LogFiles,
    ) -> Result<(), OpenError>;
    /// A range is damaged; records behind it follow.
    fn fenced(&mut self, fenced: &Fenced);
}

/// Reads the log.
pub(crate) fn recover(
    config: &ShardConfig,
    files: &mut dyn LogFiles,
    replay: &mut dyn Replay,
) -> Result<Recovered, OpenError> {
    let segments: VecDeque<Segment> = files
        .segments()?
        .into_iter()
        .zip(0..)
        .map(|(file, number)| Segment {
            number,
            base: file.base,
            bytes: file.bytes,
            ready: true,
            asked: true,
            index: None,
        })
        .collect();
    check_segments(&segments)?;
    let start = segments.front().map_or(0, |s| s.base);
    let mut scan = Scan::new(config);
    let clean = clean_stop(config, files, &segments);
    let named = find_named(config, &mut scan, files, &segments)?;
    let snapshot = match find_clean(&mut scan, files, &segments, clean.as_ref())?.or(named) {
        Some(snapshot) => snapshot,
        None if start == 0 => 0,
        None => return Err(OpenError::NoSnapshot { start }),
    };
    let from = snapshot.max(start);
    let mut fenced = Vec::new();
    let (mut end, mut torn) = (start, false);
    'segments: for segment in &segments {
        let known = replay.segment(*segment, files)?;
        // A whole index in front of the snapshot says everything that is asked of the segment.
        if segment.end() <= from && known >= segment.end() {
            end = segment.end();
            continue;
        }
        end = if segment.base < from && known >= from { from } else { segment.base };
        while end < segment.end() {
            match scan.unit(files, *segment, end, from, replay)? {
                Found::Unit { bytes, seal } => end = if seal { segment.end() } else { end + bytes },
                Found::Nothing(_) if clean.as_ref().is_some_and(|clean| clean.end == end) => {
                    break 'segments;
                }
                Found::Nothing(what) => {
                    // Below the snapshot everything was durable.
                    if end >= from
                        && clean.as_ref().is_none_or(|clean| clean.end < end)
                        && scan.durable_end(files, &segments, end)? <= end
                    {
                        torn = true;
                        break 'segments;
                    }
                    let to = scan.next_unit(files, *segment, end)?;
                    let range = Fenced { from: end, to, what };
                    replay.fenced(&range);
                    fenced.push(range);
                    end = to;
                }
            }
        }
        if segment.number + 1 < segments.len() as u32 {
            replay.sealed(*segment, scan.epoch, files)?;
        }
    }
    let torn_bytes = if torn { scan.cut(files, &segments, end)? } else { 0 };
    // Where what lay behind it is lost, the segment is sealed by now, and this is the index of all of it.
    if let Some(clean) = clean
        && clean_stop(config, files, &segments).is_some_and(|left| left.base == clean.base)
    {
        files.remove_index(clean.base)?;
    }
    files.sync()?;
    let Scan { epoch, records, .. } = scan;
    let named = named.unwrap_or(0);
    Ok(Recovered { segments, end, epoch: epoch + 1, snapshot, named, records, torn_bytes, fenced })
}

/// The index of a part of the last segment that was begun: the shard stopped cleanly, and nothing was
/// written since.
fn clean_stop(
    config: &ShardConfig,
    files: &mut dyn LogFiles,
    segments: &VecDeque<Segment>,
) -> Option<Header> {
    let mut page = [0; PAGE_BYTES];
    for segment in segments.iter().rev() {
        let Ok(Some(bytes)) = files.index_bytes(segment.base) else { continue };
        if bytes < page.len() as u64 || files.read_index(segment.base, 0, &mut page).is_err() {
            return None;
        }
        let header = Header::read(&page, segment.base).ok()?;
        header.check_owner(config.log_id, config.shard).ok()?;
        return (header.bytes == segment.bytes && header.end < segment.end()).then_some(header);
    }
    None
}

/// The snapshot that the shard stopped with.
fn find_clean(
    scan: &mut Scan,
    files: &mut dyn LogFiles,
    segments: &VecDeque<Segment>,
    clean: Option<&Header>,
) -> Result<Option<u64>, OpenError> {
    let Some(begin) = clean.map(|clean| clean.snapshot).filter(|begin| *begin > 0) else {
        return Ok(None);
    };
    let Some(within) = segments.iter().find(|s| s.base <= begin && begin < s.end()) else {
        return Ok(None);
    };
    Ok(scan.is_unit(files, *within, begin)?.then_some(begin))
}

/// The newest snapshot that the first unit of a segment names and the log still has.
fn find_named(
    config: &ShardConfig,
    scan: &mut Scan,
    files: &mut dyn LogFiles,
    segments: &VecDeque<Segment>,
) -> Result<Option<u64>, OpenError> {
    for segment in segments.iter().rev() {
        let block = scan.window.get(files, *segment, segment.base, BLOCK_BYTES)?;
        let Some(header) = UnitHeader::read(block).copied() else { continue };
        if !is_of(&header, config.log_id, u32::from(config.shard), segment.base) {
            continue;
        }
        let snapshot = header.snapshot.get();
        if snapshot == 0 {
            break;
        }
        // Where its first unit is damaged, an older one has to do.
        let within = segments.iter().find(|s| s.base <= snapshot && snapshot < s.end());
        if let Some(within) = within
            && snapshot < segment.base
            && scan.is_unit(files, *within, snapshot)?
        {
            return Ok(Some(snapshot));
        }
    }
    Ok(None)
}

fn check_segments(segments: &VecDeque<Segment>) -> Result<(), OpenError> {
    let foreign = |base, what: String| Err(OpenError::Foreign { base, what });
    let mut expected = segments.front().map_or(0, |s| s.base);
    for segment in segments {
        if segment.base != expected {
            return foreign(segment.base, format!("a segment at {expected} should come before it"));
        }
        if segment.bytes == 0
            || !segment.bytes.is_multiple_of(BLOCK_BYTES as u64)
            || !segment.base.is_multiple_of(BLOCK_BYTES as u64)
        {
            return foreign(segment.base, format!("{} bytes are not whole blocks", segment.bytes));
        }
        expected = segment.end();
    }
    Ok(())
}
