//! Write units: what is handed to the device at once.
//!
//! A unit is a control record (position, epoch, length, the `flushed` known when it was built), records,
//! and padding up to a whole number of blocks, so that the next unit starts at a fresh one and a byte that
//! was acknowledged is never written again.

use super::Touched;
use crate::seam::{BLOCK_BYTES, Block, Memory};
use ringmq_schema::record::{self, Kind, RecordError, UNIT_HEADER_BYTES, UnitHeader};
use ringmq_schema::zerocopy::{FromBytes, IntoBytes};
use std::rc::Rc;

/// What every unit says of its log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) epoch: u32,
    pub(super) shard: u16,
    pub(super) flushed: u64,
    pub(super) log_id: u64,
    pub(super) snapshot: u64,
}

/// The unit that records gather in.
#[derive(Debug)]
pub(super) struct OpenUnit<B> {
    pub(super) position: u64,
    pub(super) block: B,
    /// Bytes in use, the header included.
    pub(super) used: usize,
    /// Most bytes it may come to.
    pub(super) limit: usize,
    /// Whether a record in it asks for durability before its acknowledgement.
    pub(super) durable: bool,
    /// Whether the segment ends with it.
    pub(super) seal: bool,
    pub(super) touched: Vec<Touched>,
}

impl<B: Block> OpenUnit<B> {
    pub(super) fn new(position: u64, block: B, limit: usize, touched: Vec<Touched>) -> OpenUnit<B> {
        debug_assert!(touched.is_empty());
        OpenUnit {
            position,
            block,
            used: UNIT_HEADER_BYTES,
            limit,
            durable: false,
            seal: false,
            touched,
        }
    }

    /// Makes room for `bytes` in all: blocks grow fourfold, so that what is copied again stays small.
    pub(super) fn grow<M: Memory<Block = B>>(&mut self, bytes: usize, memory: &mut M) {
        let capacity = self.block.bytes().len();
        if bytes <= capacity {
            return;
        }
        let wanted = (capacity * 4).max(bytes).next_multiple_of(BLOCK_BYTES).min(self.limit);
        let mut larger = memory.allocate(wanted);
        larger.bytes_mut()[..self.used].copy_from_slice(&self.block.bytes()[..self.used]);
        self.block = larger;
    }

    /// Pads it, writes its header, and cuts the block to whole device blocks. Returns the padding.
    pub(super) fn finish<M: Memory<Block = B>>(&mut self, mark: &Mark, memory: &mut M) -> usize {
        // A seal needs a record of its own even where the header fills the block to the brim.
        let bytes = (self.used + if self.seal { record::ALIGNMENT } else { 0 })
            .next_multiple_of(BLOCK_BYTES);
        assert!(bytes <= self.limit);
        if bytes <= self.block.bytes().len() / 4 {
            // A large block for little: give it back whole, it is worth more than the copy.
            let mut smaller = memory.allocate(bytes);
            smaller.bytes_mut()[..self.used].copy_from_slice(&self.block.bytes()[..self.used]);
            self.block = smaller;
        }
        let target = self.block.bytes_mut();
        record::write_padding(&mut target[self.used..bytes], self.seal);
        let Mark { epoch, shard, flushed, log_id, snapshot } = *mark;
        let header =
            UnitHeader::new(bytes as u32, self.position, epoch, shard, flushed, log_id, snapshot);
        target[..UNIT_HEADER_BYTES].copy_from_slice(header.as_bytes());
        self.block.truncate(bytes);
        bytes - self.used
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Closed,
    Writing,
    Written,
}

/// A unit that is closed.
#[derive(Debug)]
pub(super) struct Unit<B> {
    pub(super) id: u64,
    pub(super) position: u64,
    pub(super) bytes: usize,
    /// Until it is handed to the device.
    pub(super) block: Option<Rc<B>>,
    pub(super) durable: bool,
    pub(super) small: bool,
    pub(super) state: State,
    /// Durable: by its own write, or by a sync submitted after that ended.
    pub(super) synced: bool,
    /// The sync that covers it.
    pub(super) sync: Option<u64>,
    pub(super) touched: Vec<Touched>,
}

impl<B> Unit<B> {
    pub(super) fn end(&self) -> u64 {
        self.position + self.bytes as u64
    }
}

/// Whether a unit's header is of this log, shard and place.
pub(crate) fn is_of(header: &UnitHeader, log_id: u64, shard: u32, position: u64) -> bool {
    header.log_id.get() == log_id
        && header.shard.get() == shard
        && header.position.get() == position
}

/// Checks every record of a whole unit, with `payloads` to the last byte; returns whether the segment ends with it.
pub(crate) fn check_unit(unit: &[u8], payloads: bool) -> Result<bool, &'static str> {
    let header = UnitHeader::read(unit).ok_or("no write unit begins here")?;
    let (position, epoch) = (header.position.get(), header.epoch);
    let (mut at, mut seal) = (UNIT_HEADER_BYTES, false);
    while at < unit.len() {
        let (next, found) = record::read_one(unit, at).map_err(|error| reason(&error))?;
        match found {
            Some(found) => {
                found.check_header().map_err(|error| reason(&error))?;
                if payloads {
                    found.check_payload().map_err(|error| reason(&error))?;
                }
                if found.header.position.get() != position + at as u64
                    || found.header.epoch != epoch
                {
                    return Err("a record of another position or epoch lies in the unit");
                }
            }
            // Padding runs to the end of the unit, whatever its kind.
            None if next != unit.len() => return Err("padding ends inside the unit"),
            None => {
                let prefix = record::Prefix::ref_from_prefix(&unit[at..]).ok();
                seal = prefix.is_some_and(|(prefix, _)| prefix.kind == Kind::Seal as u8);
            }
        }
        at = next;
    }
    Ok(seal)
}

fn reason(error: &RecordError) -> &'static str {
    match error {
        RecordError::HeaderChecksum { .. } => "a record's header checksum does not match",
        RecordError::PayloadChecksum { .. } => "a record's payload checksum does not match",
        _ => "a record's lengths or magic are wrong",
    }
}
