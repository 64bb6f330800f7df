//! Reading units one after the other, and telling torn from damaged.

use super::super::{Segment, check_unit, is_of};
use super::Replay;
use crate::config::ShardConfig;
use crate::seam::{BLOCK_BYTES, DiskError, LogFiles};
use crate::shard::OpenError;
use ringmq_schema::record::{self, Kind, Prefix, UNIT_HEADER_BYTES, UnitHeader};
use ringmq_schema::zerocopy::FromBytes;
use std::collections::VecDeque;

/// Bytes read at once. Sequential reads of this size run at the speed of the disk.
const WINDOW_BYTES: usize = 4 << 20;

/// A stretch of one segment in memory.
#[derive(Default)]
pub(super) struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// `bytes` from `position` on, all within `segment`.
    pub(super) fn get(
        &mut self,
        files: &mut dyn LogFiles,
        segment: Segment,
        position: u64,
        bytes: usize,
    ) -> Result<&[u8], DiskError> {
        let end = position + bytes as u64;
        debug_assert!(position >= segment.base && end <= segment.end());
        if position < self.start || end > self.start + self.bytes.len() as u64 {
            let length = (segment.end() - position).min(WINDOW_BYTES.max(bytes) as u64) as usize;
            self.bytes.resize(length, 0);
            // Nothing is there until the read succeeds.
            self.start = u64::MAX - length as u64;
            files.read(position, &mut self.bytes)?;
            self.start = position;
        }
        let at = (position - self.start) as usize;
        Ok(&self.bytes[at..at + bytes])
    }
}

/// How a unit reads.
pub(super) enum Found {
    /// Valid: its length, and whether the segment ends with it.
    Unit { bytes: u64, seal: bool },
    /// Not a unit of this log at this place, and why.
    Nothing(&'static str),
}

/// What units behind some position say, read once.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    /// Highest `flushed`.
    flushed: u64,
    /// End of the last unit, by its header.
    end: u64,
    epoch: u32,
}

pub(super) struct Scan {
    pub(super) window: Window,
    log_id: u64,
    shard: u32,
    pub(super) epoch: u32,
    pub(super) records: u64,
    /// At least so much behind a cut is wiped, found damaged or not: all that can have been under way.
    wipe_bytes: u64,
    ahead: Option<Ahead>,
}

impl Scan {
    pub(super) fn new(config: &ShardConfig) -> Scan {
        Scan {
            window: Window::default(),
            log_id: config.log_id,
            shard: u32::from(config.shard),
            epoch: 0,
            records: 0,
            wipe_bytes: (config.units_in_flight * config.unit_bytes) as u64,
            ahead: None,
        }
    }

    /// Reads the unit at `position`; its records go to `replay`, their state counts from `from` on.
    pub(super) fn unit(
        &mut self,
        files: &mut dyn LogFiles,
        segment: Segment,
        position: u64,
        from: u64,
        replay: &mut dyn Replay,
    ) -> Result<Found, OpenError> {
        let bytes = match self.check_header(files, segment, position)? {
            Ok(bytes) => bytes,
            Err(what) => return Ok(Found::Nothing(what)),
        };
        let unit = self.window.get(files, segment, position, bytes as usize)?;
        let Some(header) = UnitHeader::read(unit) else {
            return Ok(Found::Nothing("no write unit begins here"));
        };
        let epoch = header.epoch.get();
        // All or nothing: the whole unit is checked before any record of it counts.
        let seal = match check_unit(unit, true) {
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
                if let Err(what) = replay.record(segment, &record, position >= from) {
                    return Err(OpenError::Impossible {
                        position: position + at as u64,
                        what: what.to_owned(),
                    });
                }
            }
            at = next;
        }
        self.epoch = epoch;
        Ok(Found::Unit { bytes, seal })
    }

    /// Whether a whole, valid unit lies there.
    pub(super) fn is_unit(
        &mut self,
        files: &mut dyn LogFiles,
        segment: Segment,
        position: u64,
    ) -> Result<bool, OpenError> {
        if !position.is_multiple_of(BLOCK_BYTES as u64) {
            return Ok(false);
        }
        let Ok(bytes) = self.check_header(files, segment, position)? else { return Ok(false) };
        let unit = self.window.get(files, segment, position, bytes as usize)?;
        Ok(check_unit(unit, true).is_ok())
    }

    /// Checks what a unit's header says; returns the unit's length.
    fn check_header(
        &mut self,
        files: &mut dyn LogFiles,
        segment: Segment,
        position: u64,
    ) -> Result<Result<u64, &'static str>, OpenError> {
        let block = self.window.get(files, segment, position, BLOCK_BYTES)?;
        if position == segment.base {
            check_first_block(self.log_id, self.shard, segment.base, block)?;
        }
        let Some(header) = UnitHeader::read(block) else {
            return Ok(Err("no write unit begins here"));
        };
        let header = *header;
        if header.log_id.get() != self.log_id || header.shard.get() != self.shard {
            return Ok(Err("a write unit of another log lies here"));
        }
        if header.position.get() != position {
            return Ok(Err("a write unit of another position lies here"));
        }
        if header.epoch.get() < self.epoch {
            return Ok(Err("a write unit of an earlier epoch lies here"));
        }
        let bytes = u64::from(header.unit_bytes.get());
        if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return Ok(Err("the write unit's length is no multiple of 4096"));
        }
        if bytes > segment.end() - position || header.flushed.get() > position {
            return Ok(Err("the write unit's length or durable end cannot be"));
        }
        Ok(Ok(bytes))
    }

    /// Up to where the log was durable, as units behind the damage at `end` say.
    pub(super) fn durable_end(
        &mut self,
        files: &mut dyn LogFiles,
        segments: &VecDeque<Segment>,
        end: u64,
    ) -> Result<u64, OpenError> {
        Ok(self.look_ahead(files, segments, end)?.flushed)
    }

    /// Looks at every block behind `end` once: a unit's length cannot be trusted there.
    fn look_ahead(
        &mut self,
        files: &mut dyn LogFiles,
        segments: &VecDeque<Segment>,
        end: u64,
    ) -> Result<Ahead, OpenError> {
        if let Some(ahead) = self.ahead {
            return Ok(ahead);
        }
        let (log_id, shard) = (self.log_id, self.shard);
        let mut ahead = Ahead { flushed: 0, end, epoch: self.epoch };
        for segment in segments.iter().filter(|s| s.end() > end) {
            let mut position = segment.base.max(end);
            while position < segment.end() {
                let block = self.window.get(files, *segment, position, BLOCK_BYTES)?;
                if let Some(header) = UnitHeader::read(block)
                    && is_of(header, log_id, shard, position)
                {
                    ahead.end = ahead.end.max(position + u64::from(header.unit_bytes.get()));
                    ahead.epoch = ahead.epoch.max(header.epoch.get());
                    ahead.flushed = ahead.flushed.max(header.flushed.get());
                }
                position += BLOCK_BYTES as u64;
            }
        }
        self.ahead = Some(ahead);
        Ok(ahead)
    }

    /// The next whole unit behind damage at `end`, or the segment's end.
    pub(super) fn next_unit(
        &mut self,
        files: &mut dyn LogFiles,
        segment: Segment,
        end: u64,
    ) -> Result<u64, OpenError> {
        let mut position = end + BLOCK_BYTES as u64;
        while position < segment.end() {
            if self.is_unit(files, segment, position)? {
                return Ok(position);
            }
            position += BLOCK_BYTES as u64;
        }
        Ok(segment.end())
    }

    /// Wipes what is left of a torn tail. Returns the bytes of units cut off.
    pub(super) fn cut(
        &mut self,
        files: &mut dyn LogFiles,
        segments: &VecDeque<Segment>,
        end: u64,
    ) -> Result<u64, OpenError> {
        let ahead = self.look_ahead(files, segments, end)?;
        let torn_end = ahead.end.max(end);
        let wipe_end = torn_end.max(end + self.wipe_bytes);
        for segment in segments.iter().filter(|s| s.end() > end && s.base < wipe_end) {
            let from = segment.base.max(end);
            files.wipe(from, wipe_end.min(segment.end()) - from)?;
        }
        self.epoch = self.epoch.max(ahead.epoch);
        Ok(torn_end - end)
    }
}

/// Checks the first block of a segment: one of another log, or of a format that this version does not know, is
/// refused, not taken for a torn one. Somebody put the file there: nothing is touched.
pub(crate) fn check_first_block(
    log_id: u64,
    shard: u32,
    base: u64,
    block: &[u8],
) -> Result<(), OpenError> {
    if let Some(header) = UnitHeader::read(block) {
        if header.log_id.get() == log_id && header.shard.get() == shard {
            return Ok(());
        }
        let what = format!(
            "it belongs to shard {} of another log ({:016x}), not to shard {shard} of this one ({log_id:016x}); \
             put the right file in its place from a copy, or give the broker another data directory",
            header.shard, header.log_id
        );
        return Err(OpenError::Foreign { base, what });
    }
    let Ok((prefix, _)) = Prefix::ref_from_prefix(block) else { return Ok(()) };
    let is_unit = prefix.magic == record::MAGIC && prefix.kind == Kind::Unit as u8;
    if is_unit && prefix.version > record::VERSION {
        let what = format!(
            "its format is version {}, this broker knows versions up to {}; start the newer version that \
             wrote it",
            prefix.version,
            record::VERSION
        );
        return Err(OpenError::Foreign { base, what });
    }
    Ok(())
}
