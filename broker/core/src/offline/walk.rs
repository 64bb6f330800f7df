//! The walk over segments: bytes in, events out.

use crate::log::check_unit;
use crate::seam::{BLOCK_BYTES, SegmentFile};
use ringmq_schema::record::{self, Kind, Prefix, RecordRef, UNIT_HEADER_BYTES, UnitHeader};
use ringmq_schema::zerocopy::FromBytes;
use std::ops::ControlFlow;

/// Bytes read at once. Sequential reads of this size run at the speed of the disk.
const WINDOW_BYTES: usize = 4 << 20;
/// A unit is never longer: the broker's `unit_bytes` is 16 MiB at most, a batch far shorter.
const UNIT_BYTES_MAX: u64 = 64 << 20;

/// Fills the bytes from a position on, which lie in one segment; false when they cannot be read.
pub type Read<'r> = dyn FnMut(u64, &mut [u8]) -> bool + 'r;

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// Its identity.
    pub id: u64,
    /// The shard in its broker.
    pub shard: u32,
}

/// How much is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Headers of units and records, lengths, positions, epochs.
    Headers,
    /// Every payload's checksum too.
    Everything,
}

/// A stretch that is not what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// First byte.
    pub from: u64,
    /// Behind the last byte.
    pub to: u64,
    /// What is wrong.
    pub what: &'static str,
}

/// What lies in a log, by rising position.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A segment begins.
    Segment(SegmentFile),
    /// A valid unit; its records follow.
    Unit {
        /// Its header.
        header: &'a UnitHeader,
    },
    /// A record whose own checksums hold.
    Record {
        /// Where it lies in the log.
        position: u64,
        /// Header and payload.
        record: RecordRef<'a>,
        /// Whether the unit around it is valid too; false only behind a [`Event::Damage`].
        sound: bool,
    },
    /// Padding at the end of a unit.
    Padding {
        /// Where it lies.
        position: u64,
        /// Its length.
        bytes: u64,
    },
    /// The segment ends before its file does. Length as of padding; `rest` bytes behind it are unused.
    Seal {
        /// Where it lies.
        position: u64,
        /// Its length.
        bytes: u64,
        /// Bytes from there to the end of the file.
        rest: u64,
    },
    /// Not what it must be.
    Damage(Damage),
    /// Zeros up to the end of the segment: not written yet, or lost when the log goes on behind them.
    Free {
        /// First byte.
        from: u64,
        /// End of the segment.
        to: u64,
    },
}

/// What a place turned out to be.
enum Look {
    /// A valid unit.
    Unit(UnitHeader),
    /// A unit of this log and place by its header, damaged behind it.
    Broken(UnitHeader, &'static str),
    /// No unit of this log.
    Nothing { what: &'static str, zeros: bool },
}

/// A walk over one log. Segments are given by rising base.
#[derive(Debug)]
pub struct Walk {
    /// Learnt from the first unit when it was not known.
    log: Option<Log>,
    check: Check,
    epoch: u32,
    flushed: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl Walk {
    /// A walk over this log; `None`: whichever the first valid unit belongs to.
    pub fn new(log: Option<Log>, check: Check) -> Walk {
        Walk { log, check, epoch: 0, flushed: 0, window: Vec::new(), window_start: 0 }
    }

    /// Whose log it is, as far as known.
    pub fn log(&self) -> Option<Log> {
        self.log
    }

    /// W: the highest end of the durable prefix that a unit header so far bears.
    pub fn flushed(&self) -> u64 {
        self.flushed
    }

    /// Goes over one segment. Ends early when `visit` breaks.
    pub fn segment(
        &mut self,
        segment: SegmentFile,
        read: &mut Read<'_>,
        visit: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        self.window.clear();
        visit(Event::Segment(segment))?;
        let end = segment.base.saturating_add(segment.bytes);
        let mut at = segment.base;
        // Where no unit was found: since where, why, and up to where other bytes than zeros lie there.
        let mut lost: Option<(u64, &'static str, u64)> = None;
        while at < end {
            match self.look(at, end, read) {
                Look::Nothing { what, zeros } => {
                    let next = end.min(at.saturating_add(BLOCK_BYTES as u64));
                    let stretch = lost.get_or_insert((at, what, at));
                    if !zeros {
                        if stretch.2 == stretch.0 {
                            stretch.1 = what;
                        }
                        stretch.2 = next;
                    }
                    at = next;
                }
                Look::Unit(header) => {
                    if let Some((from, what, _)) = lost.take() {
                        visit(Event::Damage(Damage { from, to: at, what }))?;
                    }
                    visit(Event::Unit { header: &header })?;
                    let bytes = u64::from(header.unit_bytes.get());
                    if self.contents(at, bytes, end, visit)? {
                        return ControlFlow::Continue(());
                    }
                    at += bytes;
                }
                Look::Broken(header, what) => {
                    if let Some((from, what, _)) = lost.take() {
                        visit(Event::Damage(Damage { from, to: at, what }))?;
                    }
                    let bytes = u64::from(header.unit_bytes.get()).min(end - at);
                    visit(Event::Damage(Damage { from: at, to: at + bytes, what }))?;
                    self.salvage(at, bytes, visit)?;
                    at += bytes;
                }
            }
        }
        if let Some((from, what, dirty_end)) = lost {
            if dirty_end > from {
                visit(Event::Damage(Damage { from, to: dirty_end, what }))?;
            }
            if dirty_end < end {
                visit(Event::Free { from: dirty_end, to: end })?;
            }
        }
        ControlFlow::Continue(())
    }

    /// What begins at `at`. A whole unit lies in the window afterwards.
    fn look(&mut self, at: u64, end: u64, read: &mut Read<'_>) -> Look {
        let nothing = |what| Look::Nothing { what, zeros: false };
        let block_bytes = (end - at).min(BLOCK_BYTES as u64);
        let Some(block) = self.get(at, block_bytes, end, read) else {
            return nothing("it cannot be read from the disk");
        };
        let Some(&header) = UnitHeader::read(block) else {
            let zeros = block.iter().all(|&byte| byte == 0);
            let what = if zeros { "zeros lie where a unit must" } else { "no unit begins here" };
            return Look::Nothing { what, zeros };
        };
        let bytes = u64::from(header.unit_bytes.get());
        if header.position.get() != at {
            return nothing("a unit of another position lies here");
        }
        if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES as u64) || bytes > UNIT_BYTES_MAX {
            return nothing("the unit's length cannot be");
        }
        if header.flushed.get() > at {
            return nothing("the unit's durable end cannot be");
        }
        let owner = Log { id: header.log_id.get(), shard: header.shard.get() };
        if *self.log.get_or_insert(owner) != owner {
            return nothing("a unit of another log lies here");
        }
        self.flushed = self.flushed.max(header.flushed.get());
        if header.epoch.get() < self.epoch {
            return nothing("a unit of an earlier epoch lies here");
        }
        self.epoch = header.epoch.get();
        if bytes > end - at {
            return Look::Broken(header, "the segment's file ends inside the unit");
        }
        let check = self.check;
        let Some(unit) = self.get(at, bytes, end, read) else {
            return Look::Broken(header, "the unit cannot be read from the disk");
        };
        match check_unit(unit, check == Check::Everything) {
            Ok(_) => Look::Unit(header),
            Err(what) => Look::Broken(header, what),
        }
    }

    /// `bytes` from `at` on; `None` when they cannot be read.
    fn get(&mut self, at: u64, bytes: u64, end: u64, read: &mut Read<'_>) -> Option<&[u8]> {
        let held = self.window_start.saturating_add(self.window.len() as u64);
        if self.window.is_empty() || at < self.window_start || at + bytes > held {
            let wide = (end - at).min(bytes.max(WINDOW_BYTES as u64));
            self.window_start = at;
            // Around a bad sector only what is asked for is lost.
            for length in [wide, bytes] {
                self.window.resize(length as usize, 0);
                if read(at, &mut self.window) {
                    break;
                }
                self.window.clear();
            }
        }
        let start = (at - self.window_start) as usize;
        self.window.get(start..start + bytes as usize)
    }

    /// Tells of a valid unit's contents; true when the segment ends with it.
    fn contents(
        &self,
        position: u64,
        bytes: u64,
        end: u64,
        visit: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<(), bool> {
        let unit = self.held(position, bytes);
        let mut at = UNIT_HEADER_BYTES;
        while at < unit.len() {
            let Ok((next, record)) = record::read_one(unit, at) else { break };
            let (begin, length) = (position + at as u64, (next - at) as u64);
            match record {
                Some(record) => visit(Event::Record { position: begin, record, sound: true })?,
                None if is_seal(&unit[at..]) => {
                    let rest = end - position - bytes;
                    visit(Event::Seal { position: begin, bytes: length, rest })?;
                    return ControlFlow::Continue(true);
                }
                None => visit(Event::Padding { position: begin, bytes: length })?,
            }
            at = next;
        }
        ControlFlow::Continue(false)
    }

    /// Tells of the records of a damaged unit that are whole, as far as lengths lead.
    fn salvage(
        &self,
        position: u64,
        bytes: u64,
        visit: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let unit = self.held(position, bytes);
        let mut at = UNIT_HEADER_BYTES;
        while at < unit.len() {
            let (next, record) = match record::read_one(unit, at) {
                Ok((next, Some(record))) => (next, record),
                Ok((_, None)) | Err(_) => break,
            };
            if record.check_header().is_err() {
                break;
            }
            if record.check_payload().is_ok() {
                visit(Event::Record { position: position + at as u64, record, sound: false })?;
            }
            at = next;
        }
        ControlFlow::Continue(())
    }

    /// As much of this range as the window holds.
    fn held(&self, position: u64, bytes: u64) -> &[u8] {
        let start = position.saturating_sub(self.window_start) as usize;
        let rest = self.window.get(start..).unwrap_or_default();
        &rest[..rest.len().min(bytes as usize)]
    }
}

fn is_seal(bytes: &[u8]) -> bool {
    Prefix::ref_from_prefix(bytes).is_ok_and(|(prefix, _)| prefix.kind == Kind::Seal as u8)
}
