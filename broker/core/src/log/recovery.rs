//! Recovery: reads the log from its first segment, hands every record on, and finds where it ends.
//!
//! W is the highest `flushed` that any valid unit bears. The first damage at or above W is a torn tail
//! and is cut; damage below W is in the interior, where nothing is ever cut away: the shard does not open
//! and says where. After the cut, whatever units of the torn tail survive are wiped, the rest is made
//! durable, and the log goes on in an epoch above every one seen: a lower epoch after a higher one is
//! never accepted, so torn or recycled bytes can never join the log (promise: prefix).

use super::Segment;
use crate::config::ShardConfig;
use crate::seam::{BLOCK_BYTES, DiskError, LogFiles};
use crate::shard::OpenError;
use ringmq_schema::record::{self, Kind, Prefix, RecordRef, UNIT_HEADER_BYTES, UnitHeader};
use ringmq_schema::zerocopy::FromBytes;
use std::collections::VecDeque;

/// What recovery found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) segments: VecDeque<Segment>,
    /// Where the log goes on.
    pub(crate) end: u64,
    /// The new epoch.
    pub(crate) epoch: u32,
    pub(crate) records: u64,
    /// Bytes of units that were cut off.
    pub(crate) torn_bytes: u64,
}

/// Bytes read at once. Sequential reads of this size run at the speed of the disk.
const WINDOW_BYTES: usize = 4 << 20;

/// A stretch of one segment in memory.
struct Window<'f> {
    files: &'f mut dyn LogFiles,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// `bytes` from `position` on, all within `segment`.
    fn get(&mut self, segment: Segment, position: u64, bytes: usize) -> Result<&[u8], DiskError> {
        let end = position + bytes as u64;
        debug_assert!(position >= segment.base && end <= segment.end());
        if position < self.start || end > self.start + self.bytes.len() as u64 {
            let length = (segment.end() - position).min(WINDOW_BYTES.max(bytes) as u64) as usize;
            self.bytes.resize(length, 0);
            // Nothing is there until the read succeeds.
            self.start = u64::MAX - length as u64;
            self.files.read(position, &mut self.bytes)?;
            self.start = position;
        }
        let at = (position - self.start) as usize;
        Ok(&self.bytes[at..at + bytes])
    }
}

/// How a unit reads.
enum Found {
    /// Valid: its length, and whether the segment ends with it.
    Unit { bytes: u64, seal: bool },
    /// Not a unit of this log at this place, and why.
    Nothing(&'static str),
}

struct Scan<'f> {
    window: Window<'f>,
    log_id: u64,
    shard: u32,
    epoch: u32,
    flushed: u64,
    records: u64,
    /// At least so much behind a cut is wiped, found damaged or not: all that can have been under way.
    wipe_bytes: u64,
}

/// Reads the whole log. `visit` gets each record that is not a control record, in log order; what it
/// refuses counts as damage.
pub(crate) fn recover(
    config: &ShardConfig,
    files: &mut dyn LogFiles,
    mut visit: impl FnMut(&RecordRef<'_>) -> Result<(), &'static str>,
) -> Result<Recovered, OpenError> {
    let segments: VecDeque<Segment> = files
        .segments()?
        .into_iter()
        .map(|file| Segment { base: file.base, bytes: file.bytes, ready: true, asked: true })
        .collect();
    check_segments(&segments)?;
    let mut scan = Scan {
        window: Window { files, start: 0, bytes: Vec::new() },
        log_id: config.log_id,
        shard: u32::from(config.shard),
        epoch: 0,
        flushed: 0,
        records: 0,
        wipe_bytes: (config.units_in_flight * config.unit_bytes) as u64,
    };
    let start = segments.front().map_or(0, |s| s.base);
    let mut end = start;
    let mut damage = None;
    'segments: for segment in &segments {
        debug_assert_eq!(end, segment.base);
        while end < segment.end() {
            match scan.unit(*segment, end, &mut visit)? {
                Found::Unit { bytes, seal } => {
                    end = if seal { segment.end() } else { end + bytes };
                }
                Found::Nothing(what) => {
                    damage = Some((*segment, what));
                    break 'segments;
                }
            }
        }
    }
    let mut torn_bytes = 0;
    if let Some((segment, what)) = damage {
        torn_bytes = scan.cut(&segments, segment, end, what)?;
    }
    scan.window.files.sync()?;
    let Scan { epoch, records, .. } = scan;
    Ok(Recovered { segments, end, epoch: epoch + 1, records, torn_bytes })
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

impl Scan<'_> {
    fn unit(
        &mut self,
        segment: Segment,
        position: u64,
        visit: &mut impl FnMut(&RecordRef<'_>) -> Result<(), &'static str>,
    ) -> Result<Found, OpenError> {
        let block = self.window.get(segment, position, BLOCK_BYTES)?;
        let Some(header) = UnitHeader::read(block) else {
            return Ok(Found::Nothing("no write unit begins here"));
        };
        let header = *header;
        let foreign = header.log_id.get() != self.log_id || header.shard.get() != self.shard;
        if foreign && position != segment.base {
            return Ok(Found::Nothing("a write unit of another log lies here"));
        }
        if foreign {
            // Not torn: somebody put a file of another log here. Nothing is touched.
            let what = format!(
                "it belongs to shard {} of log {:016x}, not to shard {} of log {:016x}",
                header.shard, header.log_id, self.shard, self.log_id
            );
            return Err(OpenError::Foreign { base: segment.base, what });
        }
        if header.position.get() != position {
            return Ok(Found::Nothing("a write unit of another position lies here"));
        }
        if header.epoch.get() < self.epoch {
            return Ok(Found::Nothing("a write unit of an earlier epoch lies here"));
        }
        let bytes = u64::from(header.unit_bytes.get());
        if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Ok(Found::Nothing("the write unit's length is no multiple of 4096"));
        }
        if bytes > segment.end() - position || header.flushed.get() > position {
            return Ok(Found::Nothing("the write unit's length or durable end cannot be"));
        }
        let unit = self.window.get(segment, position, bytes as usize)?;
        // All or nothing: the whole unit is checked before any record of it counts.
        let seal = match check_unit(unit, position, header.epoch.get()) {
            Ok(seal) => seal,
            Err(what) => return Ok(Found::Nothing(what)),
        };
        let mut at = UNIT_HEADER_BYTES;
        while at < unit.len() {
            let Ok((next, record)) = record::read_one(unit, at) else {
                return Ok(Found::Nothing("a record cannot be read"));
            };
            if let Some(record) = record {
                self.records += 1;
                if let Err(what) = visit(&record) {
                    return Err(OpenError::Damaged {
                        position: position + at as u64,
                        flushed: self.flushed.max(header.flushed.get()),
                        what: what.to_owned(),
                    });
                }
            }
            at = next;
        }
        self.epoch = header.epoch.get();
        self.flushed = self.flushed.max(header.flushed.get());
        Ok(Found::Unit { bytes, seal })
    }

    /// Decides whether the damage at `end` is a torn tail, and if so wipes what is left of it. Returns
    /// the bytes of units cut off.
    fn cut(
        &mut self,
        segments: &VecDeque<Segment>,
        damaged: Segment,
        end: u64,
        what: &'static str,
    ) -> Result<u64, OpenError> {
        let mut torn_end = end;
        let mut torn_epoch = self.epoch;
        for segment in segments.iter().filter(|s| s.base >= damaged.base) {
            let mut position = segment.base.max(end);
            while position < segment.end() {
                let block = self.window.get(*segment, position, BLOCK_BYTES)?;
                if let Some(header) = UnitHeader::read(block)
                    && header.log_id.get() == self.log_id
                    && header.shard.get() == self.shard
                    && header.position.get() == position
                {
                    torn_end = torn_end.max(position + u64::from(header.unit_bytes.get()));
                    torn_epoch = torn_epoch.max(header.epoch.get());
                    self.flushed = self.flushed.max(header.flushed.get());
                }
                position += BLOCK_BYTES as u64;
            }
        }
        if self.flushed > end {
            let what = what.to_owned();
            return Err(OpenError::Damaged { position: end, flushed: self.flushed, what });
        }
        let wipe_end = torn_end.max(end + self.wipe_bytes);
        for segment in segments.iter().filter(|s| s.end() > end && s.base < wipe_end) {
            let from = segment.base.max(end);
            self.window.files.wipe(from, wipe_end.min(segment.end()) - from)?;
        }
        self.epoch = torn_epoch;
        Ok(torn_end - end)
    }
}

/// Checks every record of a unit; returns whether the segment ends with it.
fn check_unit(unit: &[u8], position: u64, epoch: u32) -> Result<bool, &'static str> {
    let mut at = UNIT_HEADER_BYTES;
    let mut seal = false;
    while at < unit.len() {
        let kind = Prefix::ref_from_prefix(&unit[at..]).ok().map(|(prefix, _)| prefix.kind);
        let Ok((next, record)) = record::read_one(unit, at) else {
            return Err("a record's lengths or magic are wrong");
        };
        match record {
            Some(record) => {
                if record.check_header().is_err() {
                    return Err("a record's header checksum does not match");
                }
                if record.check_payload().is_err() {
                    return Err("a record's payload checksum does not match");
                }
                let header = record.header;
                if header.position.get() != position + at as u64 || header.epoch.get() != epoch {
                    return Err("a record of another position or epoch lies here");
                }
            }
            // Padding runs to the end of the unit, whatever its kind.
            None if next != unit.len() => return Err("padding ends inside the unit"),
            None => seal = kind == Some(Kind::Seal as u8),
        }
        at = next;
    }
    Ok(seal)
}
