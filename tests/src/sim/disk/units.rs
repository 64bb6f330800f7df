//! What lies in a segment, read as the format has it: write units one after the other, and their records.
//!
//! With it the judge compares an index with its segment, and bit rot finds what it spoils.

use super::Disk;
use crate::sim::talk::QueueKey;
use ringmq_core::index::read_rows;
use ringmq_core::seam::BLOCK_BYTES;
use ringmq_schema::record::{self, Kind, UNIT_HEADER_BYTES, UnitHeader};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A write unit on the disk.
#[derive(Debug)]
pub struct Unit {
    /// Where it lies.
    pub range: Range<u64>,
    /// What was durable when it was built.
    pub flushed: u64,
    /// Its messages: where each begins, its queue and offset.
    pub messages: Vec<(u64, QueueKey, u64)>,
    /// There is nothing but messages in it.
    pub only_messages: bool,
}

impl Disk {
    /// The units of a segment, as reads see them; what is no unit is left out.
    pub fn units(&self, base: u64) -> Vec<Unit> {
        let Some(segment) = self.segments.get(&base) else { return Vec::new() };
        let (bytes, mut at, mut units) = (&segment.view, 0, Vec::new());
        while at < bytes.len() {
            let Some(header) = UnitHeader::read(&bytes[at..]) else {
                at += BLOCK_BYTES;
                continue;
            };
            let (position, length) = (base + at as u64, header.unit_bytes.get() as usize);
            if header.position.get() != position || length > bytes.len() - at {
                at += BLOCK_BYTES;
                continue;
            }
            let mut unit = Unit {
                range: position..position + length as u64,
                flushed: header.flushed.get(),
                messages: Vec::new(),
                only_messages: true,
            };
            let run = &bytes[at..at + length];
            let mut next = UNIT_HEADER_BYTES;
            while next < length {
                let Ok((behind, record)) = record::read_one(run, next) else { break };
                if let Some(record) = record {
                    let header = record.header;
                    let queue = (header.topic.get(), header.queue.get());
                    let found = (position + next as u64, queue, header.offset.get());
                    match header.prefix.kind == Kind::Message as u8 {
                        true => unit.messages.push(found),
                        false => unit.only_messages = false,
                    }
                }
                next = behind;
            }
            units.push(unit);
            at += length;
        }
        units
    }

    /// Units that may rot without anybody being in doubt that they were written: with nothing but messages in
    /// them, below the durable end that a later unit bears.
    pub fn perishable(&self) -> Vec<Unit> {
        let all: Vec<Unit> = self.segments.keys().flat_map(|base| self.units(*base)).collect();
        let mut durable = 0;
        let mut found = Vec::new();
        for unit in all.into_iter().rev() {
            let (flushed, end) = (unit.flushed, unit.range.end);
            if end <= durable
                && unit.only_messages
                && !unit.messages.is_empty()
                && !self.is_rotten(unit.range.clone())
            {
                found.push(unit);
            }
            durable = durable.max(flushed);
        }
        found
    }

    /// A bit of the medium turns.
    pub fn rot(&mut self, unit: Range<u64>, at: u64, bit: u64) {
        let mut byte = [0];
        self.read(at, &mut byte);
        byte[0] ^= 1 << bit;
        self.put_in_view(at, &byte);
        self.put_on_medium(at, &byte);
        self.beside.rotten.push(unit);
    }

    /// Whether a range has bytes of a unit that rotted.
    pub fn is_rotten(&self, range: Range<u64>) -> bool {
        self.beside.rotten.iter().any(|unit| unit.start < range.end && range.start < unit.end)
    }

    /// Compares the index of a segment with the segment. Returns the topics of which it leaves out messages.
    pub fn compare_index(&self, base: u64, index: &[u8]) -> Result<BTreeSet<u32>, String> {
        let rows = read_rows(index).map_err(|error| format!("index {base}: {error}"))?;
        let mut lie: BTreeMap<u64, (QueueKey, u64)> = BTreeMap::new();
        for unit in self.units(base).into_iter().filter(|unit| unit.range.start < rows.end) {
            lie.extend(unit.messages.into_iter().map(|(at, queue, offset)| (at, (queue, offset))));
        }
        for queue in &rows.queues {
            let entries = queue.entries.iter().flat_map(|chunk| chunk.iter());
            for (entry, offset) in entries.zip(queue.first_offset..) {
                let at = base + u64::from(entry.place) * ringmq_core::index::PLACE_BYTES;
                let said = ((queue.id.topic, queue.id.queue), offset);
                let found = lie.remove(&at);
                if found != Some(said) && !self.is_rotten(at..at + 1) {
                    return Err(format!("index {base} says {said:?} of {at}: there is {found:?}"));
                }
            }
        }
        lie.retain(|at, _| !self.is_rotten(*at..at + 1));
        Ok(lie.into_values().map(|((topic, _), _)| topic).collect())
    }
}
