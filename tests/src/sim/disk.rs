//! One shard's disk: a medium, a volatile cache above it, and operations under way.
//!
//! What always holds:
//! - a read sees every write that ended (`view`); power loss leaves what is on the `medium`, and of the rest
//!   whatever sectors chance lets land;
//! - a plain write that ended is in the cache until a sync that began after its end has ended;
//! - a durable write is on the medium when it ends; without FUA it takes along what had ended when it began,
//!   with FUA it covers only itself;
//! - what was not told to have ended may land whole, in part or not at all;
//! - the log is only appended to: a write over bytes that this life of the shard wrote already is a violation,
//!   as is one outside a segment that is ready;
//! - what lies beside the log, and goes with it, is in `beside`.

mod beside;
mod units;

use crate::sim::memory::SimBlock;
use crate::sim::random::Random;
use crate::sim::{Verdict, violation};
use beside::Beside;
pub use beside::IndexFault;
use ringmq_core::index::SegmentRows;
use ringmq_core::seam::{BLOCK_BYTES, Block, DiskError, SegmentFile};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
pub use units::Unit;

/// What a new segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// As `fallocate` leaves it.
    Zeros,
    /// Whatever the disk held.
    Garbage,
    /// The bytes of an older segment: a recycled file.
    Recycled,
}

/// What ends a life of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CrashKind {
    /// The process is killed: what the device took stays.
    Kill,
    /// The power fails: what was not made durable is lost, or not.
    PowerLoss,
}

/// What is fixed about a device.
#[derive(Debug, Clone, Copy)]
pub struct Device {
    /// Whether a durable write leaves the cache alone.
    pub fua: bool,
    /// What lands whole or not at all: 512 or 4096 bytes.
    pub sector: usize,
    /// See [`Fill`].
    pub fill: Fill,
}

#[derive(Debug)]
struct Segment {
    view: Vec<u8>,
    medium: Vec<u8>,
}

/// Part of a write that ended but is not durable.
#[derive(Debug)]
struct Cached {
    position: u64,
    bytes: Rc<SimBlock>,
    from: usize,
    to: usize,
    /// Count of ended writes when it ended.
    order: u64,
    /// A sync of it failed: this process will not see it made durable.
    forsaken: bool,
}

/// An operation under way.
#[derive(Debug)]
pub enum Op {
    /// See `Action::Write`. `covers`: writes that had ended when it began.
    #[allow(missing_docs)]
    Write { write: u64, position: u64, block: Rc<SimBlock>, durable: bool, covers: u64 },
    /// See `Action::Sync`.
    #[allow(missing_docs)]
    Sync { sync: u64, from: u64, to: u64, covers: u64 },
    /// See `Action::MakeSegment`.
    #[allow(missing_docs)]
    Make { base: u64, bytes: u64 },
    /// See `Action::Read`.
    #[allow(missing_docs)]
    Read { read: u64, position: u64, bytes: u32 },
    /// See `Action::WriteIndex`.
    #[allow(missing_docs)]
    WriteIndex { rows: Arc<SegmentRows> },
    /// See `Action::ReadIndex`.
    #[allow(missing_docs)]
    ReadIndex { read: u64, base: u64, at: u64, bytes: u32 },
    /// See `Action::Retire`.
    #[allow(missing_docs)]
    Retire { base: u64 },
    /// See `Action::Punch`.
    #[allow(missing_docs)]
    Punch { position: u64, bytes: u64 },
    /// See `Action::Transfer`. Its end brings the run.
    #[allow(missing_docs)]
    Transfer { connection: u64, head: Vec<u8>, position: u64, bytes: u32 },
}

/// See the module.
#[derive(Debug)]
pub struct Disk {
    device: Device,
    segments: BTreeMap<u64, Segment>,
    cached: Vec<Cached>,
    ended_writes: u64,
    in_flight: BTreeMap<u64, Op>,
    next_op: u64,
    /// What this life wrote: start to end, without overlaps.
    written: BTreeMap<u64, u64>,
    /// Highest write that ended, in any life.
    last_written: Option<(u64, u64)>,
    beside: Beside,
    random: Random,
}

impl Disk {
    /// An empty one.
    pub fn new(device: Device, random: Random) -> Disk {
        Disk {
            device,
            segments: BTreeMap::new(),
            cached: Vec::new(),
            ended_writes: 0,
            in_flight: BTreeMap::new(),
            next_op: 0,
            written: BTreeMap::new(),
            last_written: None,
            beside: Beside::default(),
            random,
        }
    }

    /// Segments by rising base.
    pub fn segments(&self) -> Vec<SegmentFile> {
        let file = |(base, segment): (&u64, &Segment)| SegmentFile {
            base: *base,
            bytes: segment.view.len() as u64,
        };
        self.segments.iter().map(file).collect()
    }

    /// The last write of this life by position, and its length.
    pub fn last_written(&self) -> Option<(u64, u64)> {
        self.last_written
    }

    /// Whether anything is under way.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Whether the record of message `id` lies at `position`: on the medium, or else as reads see it.
    pub fn holds(&self, position: u64, id: &[u8; 16], durable: bool) -> bool {
        let Some((base, segment)) = self.segments.range(..=position).next_back() else {
            return false;
        };
        let bytes = if durable { &segment.medium } else { &segment.view };
        let at = (position - base) as usize;
        // Where the record's header has its message id: see schema's record.rs.
        bytes.get(at + 64..at + 80).is_some_and(|found| found == id)
    }

    /// Begins an operation; it is answered by [`Disk::finish`] with the number returned.
    pub fn start(&mut self, mut op: Op) -> Verdict<u64> {
        match &mut op {
            Op::Write { position, block, covers, .. } => {
                *covers = self.ended_writes;
                let (from, bytes) = (*position, block.bytes().len() as u64);
                self.check_range("write", from, bytes)?;
                self.claim(from, from + bytes)?;
            }
            Op::Sync { from, to, covers, .. } => {
                *covers = self.ended_writes;
                if from > to {
                    return violation(format!("sync from {from} to {to}"));
                }
            }
            Op::Make { base, bytes } => self.check_make(*base, *bytes)?,
            Op::Read { position, bytes, .. } => {
                self.check_range("read", *position, u64::from(*bytes))?;
            }
            beside => self.check_beside(beside)?,
        }
        self.next_op += 1;
        self.in_flight.insert(self.next_op, op);
        Ok(self.next_op)
    }

    fn check_range(&self, what: &str, position: u64, bytes: u64) -> Verdict {
        let unit = BLOCK_BYTES as u64;
        if bytes == 0 || !position.is_multiple_of(unit) || !bytes.is_multiple_of(unit) {
            return violation(format!("{what} of {bytes} bytes at {position} is not aligned"));
        }
        let segment = self.segments.range(..=position).next_back();
        if let Some((base, _)) = segment
            && self.is_retired(*base)
        {
            return violation(format!("{what} at {position} in a segment that was retired"));
        }
        let end = segment.map_or(0, |(base, segment)| base + segment.view.len() as u64);
        if position + bytes > end {
            return violation(format!(
                "{what} of {bytes} bytes at {position} is in no segment that is ready"
            ));
        }
        Ok(())
    }

    fn claim(&mut self, from: u64, to: u64) -> Verdict {
        let before = self.written.range(..to).next_back();
        if let Some((other, end)) = before.filter(|(_, end)| **end > from) {
            return violation(format!(
                "a write of {from}..{to} goes over {other}..{end}, written in the same life"
            ));
        }
        self.written.insert(from, to);
        Ok(())
    }

    fn check_make(&self, base: u64, bytes: u64) -> Verdict {
        let making = self.in_flight.values().filter_map(|op| match op {
            Op::Make { base, bytes } => Some(base + bytes),
            _ => None,
        });
        let last = self.segments.iter().next_back().map(|(base, s)| base + s.view.len() as u64);
        let end = making.chain(last).max();
        if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return violation(format!("a segment of {bytes} bytes"));
        }
        if end.is_some_and(|end| end != base) {
            return violation(format!("a segment at {base} does not adjoin the end at {end:?}"));
        }
        Ok(())
    }

    /// Ends an operation as it should and hands it back, with the bytes of a read.
    pub fn finish(&mut self, number: u64) -> (Op, Option<Vec<u8>>) {
        let op = self.in_flight.remove(&number).expect("the world finishes what it started");
        let mut read = None;
        match &op {
            Op::Write { position, block, durable, covers, .. } => {
                let bytes = block.bytes().len();
                self.last_written = self.last_written.max(Some((*position, bytes as u64)));
                self.put_in_view(*position, block.bytes());
                if *durable {
                    self.forget_cached(*position, *position + bytes as u64);
                    if !self.device.fua {
                        self.flush(0, u64::MAX, *covers);
                    }
                    self.put_on_medium(*position, block.bytes());
                } else {
                    self.cache(*position, block, 0, bytes);
                }
            }
            Op::Sync { from, to, covers, .. } => {
                self.flush(*from, *to, *covers);
                self.keep_holes(*from, *to);
            }
            Op::Make { base, bytes } => self.make(*base, *bytes),
            Op::Read { position, bytes, .. } => {
                let mut out = vec![0; *bytes as usize];
                self.read(*position, &mut out);
                read = Some(out);
            }
            beside => read = self.finish_beside(beside),
        }
        (op, read)
    }

    /// Ends an operation that never happened (only planted bugs do).
    pub fn skip(&mut self, number: u64) -> Op {
        self.in_flight.remove(&number).expect("the world finishes what it started")
    }

    /// Looks at an operation under way.
    pub fn op(&mut self, number: u64) -> &mut Op {
        self.in_flight.get_mut(&number).expect("the world finishes what it started")
    }

    /// Ends an operation in failure. Some of a write's sectors have landed; what a sync should have covered
    /// stays in the cache, and no later sync of this life reaches it.
    pub fn fail(&mut self, number: u64) -> (Op, DiskError) {
        let op = self.in_flight.remove(&number).expect("the world finishes what it started");
        let reason = match &op {
            Op::Make { .. } => "No space left on device (os error 28)",
            _ => "Input/output error (os error 5)",
        };
        match &op {
            Op::Write { position, block, .. } => self.land_in_part(*position, block),
            Op::Sync { from, to, covers, .. } => {
                for cached in &mut self.cached {
                    let end = cached.position + cached.to as u64;
                    let begin = cached.position + cached.from as u64;
                    if cached.order <= *covers && begin < *to && end > *from {
                        cached.forsaken = true;
                    }
                }
            }
            _ => {}
        }
        let operation = format!("simulated {op:.60?}");
        (op, DiskError { operation, reason: reason.to_owned() })
    }

    /// The end of a life: operations under way land or not, and with the power goes the cache.
    pub fn crash(&mut self, kind: CrashKind) {
        let in_flight = std::mem::take(&mut self.in_flight);
        self.crash_beside(kind, in_flight.values());
        for (_, op) in in_flight {
            match op {
                Op::Write { position, block, .. } => self.land_in_part(position, &block),
                Op::Make { base, bytes } => {
                    // Segments are made in order: one that landed without the one before it would be a
                    // fault of the runtime.
                    let end = self.segments().last().map(|s| s.base + s.bytes);
                    if end.is_none_or(|end| end == base) && self.random.percent(50) {
                        self.make(base, bytes);
                    }
                }
                _ => {}
            }
        }
        self.written.clear();
        for cached in &mut self.cached {
            cached.forsaken = false;
        }
        if kind == CrashKind::PowerLoss {
            self.lose_holes();
            self.lose_cache();
        }
    }

    /// What recovery reads.
    pub fn read(&self, position: u64, out: &mut [u8]) {
        let (base, segment) = self.segment_at(position);
        let at = (position - base) as usize;
        out.copy_from_slice(&segment.view[at..at + out.len()]);
    }

    /// Whether a range lies in one segment.
    pub fn has(&self, position: u64, bytes: u64) -> bool {
        self.segments
            .range(..=position)
            .next_back()
            .is_some_and(|(base, s)| position + bytes <= base + s.view.len() as u64)
    }

    /// Recovery's zeros, durable when this returns.
    pub fn wipe(&mut self, position: u64, bytes: u64) {
        let zeros = vec![0; bytes as usize];
        self.forget_cached(position, position + bytes);
        self.put_in_view(position, &zeros);
        self.put_on_medium(position, &zeros);
    }

    /// Recovery's zeros when the power fails meanwhile: some sectors.
    pub fn wipe_in_part(&mut self, position: u64, bytes: u64) {
        let sector = self.device.sector as u64;
        for at in (position..position + bytes).step_by(sector as usize) {
            if self.random.percent(50) {
                self.wipe(at, sector.min(position + bytes - at));
            }
        }
    }

    /// Everything that ended becomes durable.
    pub fn sync_all(&mut self) {
        self.flush(0, u64::MAX, u64::MAX);
        self.keep_holes(0, u64::MAX);
    }

    fn make(&mut self, base: u64, bytes: u64) {
        let mut content = vec![0; bytes as usize];
        let device = self.device;
        match device.fill {
            Fill::Zeros => {}
            Fill::Garbage => self.random.fill(&mut content),
            Fill::Recycled if self.take_spare(&mut content) => {}
            Fill::Recycled => {
                let older: Vec<u64> = self.segments.keys().copied().collect();
                if !older.is_empty() {
                    let from = &self.segments[self.random.pick(&older)].view;
                    let shared = from.len().min(content.len());
                    content[..shared].copy_from_slice(&from[..shared]);
                }
            }
        }
        let medium = content.clone();
        self.segments.insert(base, Segment { view: content, medium });
    }

    fn segment_at(&self, position: u64) -> (u64, &Segment) {
        let (base, segment) =
            self.segments.range(..=position).next_back().expect("ranges were checked");
        (*base, segment)
    }

    fn segment_at_mut(&mut self, position: u64) -> (u64, &mut Segment) {
        let (base, segment) =
            self.segments.range_mut(..=position).next_back().expect("ranges were checked");
        (*base, segment)
    }

    fn put_in_view(&mut self, position: u64, bytes: &[u8]) {
        let (base, segment) = self.segment_at_mut(position);
        let at = (position - base) as usize;
        segment.view[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn put_on_medium(&mut self, position: u64, bytes: &[u8]) {
        let (base, segment) = self.segment_at_mut(position);
        let at = (position - base) as usize;
        segment.medium[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn cache(&mut self, position: u64, block: &Rc<SimBlock>, from: usize, to: usize) {
        self.ended_writes += 1;
        let order = self.ended_writes;
        let bytes = Rc::clone(block);
        self.cached.push(Cached { position, bytes, from, to, order, forsaken: false });
    }

    /// Parts of the cache between the positions come out; what lies beside them stays.
    fn split_cached(
        &mut self,
        from: u64,
        to: u64,
        wanted: impl Fn(&Cached) -> bool,
    ) -> Vec<Cached> {
        let mut out = Vec::new();
        let mut kept = Vec::with_capacity(self.cached.len());
        for cached in self.cached.drain(..) {
            let begin = from.saturating_sub(cached.position).min(cached.to as u64) as usize;
            let end = to.saturating_sub(cached.position).min(cached.to as u64) as usize;
            let begin = begin.max(cached.from);
            if !wanted(&cached) || begin >= end {
                kept.push(cached);
                continue;
            }
            for (part_from, part_to) in [(cached.from, begin), (end, cached.to)] {
                if part_from < part_to {
                    let bytes = Rc::clone(&cached.bytes);
                    kept.push(Cached { bytes, from: part_from, to: part_to, ..cached });
                }
            }
            out.push(Cached { from: begin, to: end, ..cached });
        }
        self.cached = kept;
        out
    }

    fn forget_cached(&mut self, from: u64, to: u64) {
        self.split_cached(from, to, |_| true);
    }

    fn flush(&mut self, from: u64, to: u64, covers: u64) {
        for part in self.split_cached(from, to, |c| c.order <= covers && !c.forsaken) {
            let bytes = &part.bytes.bytes()[part.from..part.to];
            self.put_on_medium(part.position + part.from as u64, bytes);
        }
    }

    /// A write whose end nobody was told: whole, by sectors, a beginning, or nothing.
    fn land_in_part(&mut self, position: u64, block: &Rc<SimBlock>) {
        let bytes = block.bytes().len();
        let sector = self.device.sector;
        let sectors = bytes / sector;
        let (style, cut) = (self.random.below(4), self.random.index(sectors + 1));
        for index in 0..sectors {
            let lands = match style {
                0 => false,
                1 => true,
                2 => index < cut,
                _ => self.random.percent(50),
            };
            if lands {
                let (from, to) = (index * sector, (index + 1) * sector);
                self.put_in_view(position + from as u64, &block.bytes()[from..to]);
                self.cache(position, block, from, to);
            }
        }
    }

    fn lose_cache(&mut self) {
        let sector = self.device.sector;
        let percent = *self.random.pick(&[0, 0, 10, 50, 90, 100]);
        for cached in std::mem::take(&mut self.cached) {
            for from in (cached.from..cached.to).step_by(sector) {
                let to = (from + sector).min(cached.to);
                if self.random.percent(percent) {
                    let bytes = &cached.bytes.bytes()[from..to];
                    self.put_on_medium(cached.position + from as u64, bytes);
                }
            }
        }
        for segment in self.segments.values_mut() {
            segment.view.copy_from_slice(&segment.medium);
        }
    }
}

#[cfg(test)]
mod tests;
