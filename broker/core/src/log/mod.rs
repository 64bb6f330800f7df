//! The log of one shard: write units, group commit, and what is how durable.
//!
//! Invariants:
//! - `flushed <= written <= appended`, each monotone;
//! - `written` ends the contiguous prefix that the device took, `flushed` the contiguous prefix in which
//!   every write was durable by itself or covered by a sync submitted after its end: on disks with FUA
//!   a durable write does not flush the plain ones before it;
//! - a unit that was handed to the device is never changed, and no position is written twice in an epoch;
//! - units are handed to the device in the order of their positions;
//! - after a failed write or sync nothing is written any more ("Can Applications Recover from fsync
//!   Failures?", Rebello et al., ATC 2020: retrying reports success for lost data).

mod flush;
pub(crate) mod recovery;
mod segments;
pub(crate) mod tail;
mod unit;

use crate::config::ShardConfig;
use crate::index::{NO_QUEUE, OrderRow, PLACE_BYTES, Pages, SegmentRows, TimerRow};
use crate::seam::{Action, BLOCK_BYTES, Block, Memory, Now, Outbox};
use ringmq_schema::checksum::crc32;
use ringmq_schema::record::{self, Kind, RecordHeader, UNIT_HEADER_BYTES};
use ringmq_schema::zerocopy::FromBytes;
use std::collections::VecDeque;
use std::rc::Rc;
use tail::Tail;
use unit::{Mark, OpenUnit, State, Unit};
pub(crate) use unit::{check_unit, is_of};

/// One file of the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    /// Counts up by one from segment to segment, for as long as the shard is open.
    pub(crate) number: u32,
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    /// Whether its file can be written.
    pub(crate) ready: bool,
    /// Whether the runtime was asked to make it. One at a time: were two under way at a crash, the
    /// later could be there without the earlier.
    pub(crate) asked: bool,
    /// Where the rows of its index lie, once that is there.
    pub(crate) index: Option<Pages>,
}

impl Segment {
    pub(crate) fn end(&self) -> u64 {
        self.base + self.bytes
    }
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    small_unit_bytes: usize,
    small_units_in_flight: usize,
    unit_bytes: usize,
    units_in_flight: usize,
    segment_bytes: u64,
    async_flush_us: u64,
    idle_mark_us: u64,
}

/// A segment that could not be made is tried again after this.
const SEGMENT_RETRY_US: u64 = 1_000_000;

/// Where a record was put.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Put {
    /// Number of the segment.
    pub(crate) segment: u32,
    /// See [`crate::index::Entry`].
    pub(crate) place: u32,
    pub(crate) row: u32,
}

/// Rows of a segment that no record goes to any more.
#[derive(Debug)]
pub(crate) struct SealedRows {
    pub(crate) segment: Segment,
    pub(crate) rows: SegmentRows,
}

/// What the log counts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LogFigures {
    pub(crate) units: u64,
    pub(crate) unit_bytes: u64,
    pub(crate) padding_bytes: u64,
    pub(crate) syncs: u64,
}

/// Where the next record of a segment is put; its position is set.
fn put(rows: &SegmentRows, segment: u32, header: &RecordHeader) -> Put {
    let place = ((header.position.get() - rows.base) / PLACE_BYTES) as u32;
    Put { segment, place, row: rows.order.len() as u32 }
}

/// Notes a record in the rows of its segment; its position is set.
pub(crate) fn note(rows: &mut SegmentRows, segment: u32, slot: u32, header: &RecordHeader) -> Put {
    let put = put(rows, segment, header);
    let (place, bytes) = (put.place, header.prefix.length.get());
    rows.order.push(OrderRow { place, bytes, queue: slot });
    if header.prefix.kind == Kind::Message as u8 {
        rows.ids.push((crc32(&header.message_id), place));
        let keys = usize::from(header.prefix.key_count).min(header.key_hashes.len());
        rows.keys.extend(header.key_hashes[..keys].iter().map(|hash| (hash.get(), place)));
    } else if header.prefix.kind == Kind::Timer as u8 {
        rows.timers.push(TimerRow { due_ms: header.deliver_ms.get(), place, bytes });
        rows.timers_ms = rows.timers_ms.max(header.store_ms.get());
    }
    put
}

/// A queue slot and the offset behind the last record that a unit holds of it.
pub(crate) type Touched = (u32, u64);

/// Where a log goes on.
#[derive(Debug, Default)]
pub(crate) struct Resume {
    pub(crate) segments: VecDeque<Segment>,
    pub(crate) end: u64,
    /// Of the segment that holds the last record.
    pub(crate) rows: SegmentRows,
    pub(crate) snapshot: u64,
    /// The newest that the first unit of a segment names.
    pub(crate) named: u64,
}

#[derive(Debug)]
pub(crate) struct Log<M: Memory> {
    memory: M,
    shard: u16,
    log_id: u64,
    epoch: u32,
    limits: Limits,
    segments: VecDeque<Segment>,
    /// A segment could not be made: when it is tried again, in `Now::mono_us`.
    segment_retry_us: Option<u64>,
    /// Why, the last time.
    segment_failure: String,
    /// Where the next unit begins.
    next: u64,
    open: Option<OpenUnit<M::Block>>,
    /// Closed and not flushed, by position. Ids count up without a gap.
    units: VecDeque<Unit<M::Block>>,
    /// How many of `units`, from the front, were handed to the device.
    submitted: usize,
    /// How many of `units`, from the front, the device took.
    taken: usize,
    next_unit: u64,
    in_flight: usize,
    small_in_flight: usize,
    /// The sync under way.
    sync: Option<u64>,
    next_sync: u64,
    /// Units that the device took, but that are not durable; since when.
    unsynced: usize,
    unsynced_since_us: u64,
    durable_units: usize,
    written: u64,
    flushed: u64,
    /// Highest `flushed` that a unit on its way to the device bears.
    marked: u64,
    /// End of the last unit that holds more than control records.
    content_end: u64,
    last_unit_us: u64,
    backlog_bytes: usize,
    unit_hint_bytes: usize,
    spare_touched: Vec<Vec<Touched>>,
    /// Of the segment that records go to, but for the queues' own rows.
    rows: SegmentRows,
    active: u32,
    /// By rising base; those below `flushed` are complete for ever.
    sealed: VecDeque<SealedRows>,
    /// Where the newest whole, durable snapshot begins; 0: there is none.
    snapshot: u64,
    /// First units of segments that are not flushed: their ends, and the snapshots that they name.
    naming: VecDeque<(u64, u64)>,
    /// The newest snapshot that the durable first unit of a segment names, and the one before it.
    named: u64,
    named_before: u64,
    failed: Option<String>,
    pub(crate) tail: Tail<M::Block>,
    pub(crate) figures: LogFigures,
}

impl<M: Memory> Log<M> {
    /// A log that goes on at `end`, in a new epoch.
    pub(crate) fn new(
        config: &ShardConfig,
        memory: M,
        epoch: u32,
        Resume { segments, end, rows, snapshot, named }: Resume,
        now: Now,
    ) -> Log<M> {
        assert!(
            config.segment_bytes.is_multiple_of(BLOCK_BYTES as u64),
            "segments are whole blocks"
        );
        assert!(end.is_multiple_of(BLOCK_BYTES as u64), "units are whole blocks");
        let active = segments.iter().find(|segment| segment.base == rows.base);
        Log {
            active: active.map_or(u32::MAX, |segment| segment.number),
            rows,
            sealed: VecDeque::new(),
            snapshot,
            naming: VecDeque::new(),
            named,
            named_before: 0,
            memory,
            shard: config.shard,
            log_id: config.log_id,
            epoch,
            limits: Limits {
                small_unit_bytes: config.small_unit_bytes,
                small_units_in_flight: config.small_units_in_flight,
                unit_bytes: config.unit_bytes,
                units_in_flight: config.units_in_flight,
                segment_bytes: config.segment_bytes,
                async_flush_us: config.async_flush_ms * 1000,
                idle_mark_us: config.idle_mark_ms * 1000,
            },
            segments,
            segment_retry_us: None,
            segment_failure: String::new(),
            next: end,
            open: None,
            units: VecDeque::new(),
            submitted: 0,
            taken: 0,
            next_unit: 0,
            in_flight: 0,
            small_in_flight: 0,
            sync: None,
            next_sync: 0,
            unsynced: 0,
            unsynced_since_us: 0,
            durable_units: 0,
            written: end,
            flushed: end,
            marked: 0,
            content_end: 0,
            last_unit_us: now.mono_us,
            backlog_bytes: 0,
            unit_hint_bytes: BLOCK_BYTES,
            spare_touched: Vec::new(),
            failed: None,
            tail: Tail::new(config.tail_cache_bytes),
            figures: LogFigures::default(),
        }
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.epoch
    }

    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    pub(crate) fn flushed(&self) -> u64 {
        self.flushed
    }

    pub(crate) fn appended(&self) -> u64 {
        self.open.as_ref().map_or(self.next, |open| open.position + open.used as u64)
    }

    /// Where the unit that records gather in begins, or the next would.
    pub(crate) fn open_position(&self) -> u64 {
        self.open.as_ref().map_or(self.next, |open| open.position)
    }

    /// Whether the unit that records gather in is to be durable by itself.
    pub(crate) fn is_open_durable(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.durable)
    }

    pub(crate) fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Bytes that wait for the device to take them.
    pub(crate) fn backlog_bytes(&self) -> usize {
        self.backlog_bytes + self.open.as_ref().map_or(0, |open| open.used)
    }

    /// Whether everything appended is durable.
    pub(crate) fn is_quiet(&self) -> bool {
        self.open.is_none() && self.units.is_empty() && self.sync.is_none()
    }

    /// Largest run that fits a segment.
    pub(crate) fn run_bytes_max(&self) -> usize {
        (self.limits.segment_bytes as usize) - UNIT_HEADER_BYTES
    }

    /// Takes a run of records into the open unit: one copy, then `patch` fills in each header (position
    /// and epoch are set already) before it is noted and sealed. Returns the position of the first record and
    /// the end of the last.
    pub(crate) fn append(
        &mut self,
        run: &[u8],
        durable: bool,
        touched: Option<Touched>,
        now: Now,
        out: &mut Outbox<M::Block>,
        mut patch: impl FnMut(&mut RecordHeader, Put),
    ) -> (u64, u64) {
        debug_assert!(run.len().is_multiple_of(record::ALIGNMENT) && !run.is_empty());
        self.make_room(run.len(), now, out);
        self.turn_to_segment();
        let epoch = self.epoch;
        let slot = touched.map_or(NO_QUEUE, |(slot, _)| slot);
        let open = self.open.as_mut().expect("make_room opened a unit");
        let start = open.used;
        let end = start + run.len();
        let target = &mut open.block.bytes_mut()[start..end];
        target.copy_from_slice(run);
        let first = open.position + start as u64;
        let mut at = 0;
        while at < target.len() {
            let (header, _) = RecordHeader::mut_from_prefix(&mut target[at..])
                .expect("runs are walked before they are appended");
            header.position = (first + at as u64).into();
            header.epoch = epoch.into();
            patch(header, put(&self.rows, self.active, header));
            note(&mut self.rows, self.active, slot, header);
            header.seal();
            at += header.prefix.length.get() as usize;
        }
        assert_eq!(at, run.len(), "runs are walked before they are appended");
        open.used = end;
        open.durable |= durable;
        if let Some((slot, offset)) = touched {
            match open.touched.last_mut() {
                Some(last) if last.0 == slot => last.1 = offset,
                _ => open.touched.push((slot, offset)),
            }
        }
        (first, first + run.len() as u64)
    }

    /// Appends one record of the shard's own state.
    pub(crate) fn append_state(
        &mut self,
        kind: Kind,
        payload: &[u8],
        durable: bool,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> u64 {
        use ringmq_schema::zerocopy::IntoBytes;
        let mut header = RecordHeader::new(kind, payload.len());
        header.payload_checksum = crc32(payload).into();
        let mut bytes = Vec::with_capacity(record::record_bytes(payload.len()));
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(payload);
        bytes.resize(record::record_bytes(payload.len()), 0);
        let store_ms = now.wall_ms;
        self.append(&bytes, durable, None, now, out, |h, _| h.store_ms = store_ms.into()).1
    }

    fn make_room(&mut self, bytes: usize, now: Now, out: &mut Outbox<M::Block>) {
        if let Some(open) = &mut self.open {
            if open.used + bytes <= open.limit {
                open.grow(open.used + bytes, &mut self.memory);
                return;
            }
            self.close(now);
            self.submit(out);
        }
        let need = (UNIT_HEADER_BYTES + bytes).next_multiple_of(BLOCK_BYTES);
        let remaining = self.find_segment(need, now, out);
        let limit = self.limits.unit_bytes.max(need).min(remaining);
        // A run that leaves no room for another like it gets a block of its size: one that is cut to it would
        // not come back whole.
        let capacity = match need > limit / 2 {
            true => need,
            false => self.unit_hint_bytes.max(need).next_power_of_two().min(limit),
        };
        let touched = self.spare_touched.pop().unwrap_or_default();
        let block = self.memory.allocate(capacity);
        self.open = Some(OpenUnit::new(self.next, block, limit, touched));
    }

    fn close(&mut self, now: Now) {
        let Some(mut open) = self.open.take() else { return };
        let content = open.used > UNIT_HEADER_BYTES;
        self.unit_hint_bytes = open.used.next_multiple_of(BLOCK_BYTES);
        let padding = open.finish(&self.mark(), &mut self.memory);
        let bytes = open.block.bytes().len();
        self.marked = self.marked.max(self.flushed);
        let block = Rc::new(open.block);
        let unit = Unit {
            id: self.next_unit,
            position: open.position,
            bytes,
            block: Some(Rc::clone(&block)),
            durable: open.durable,
            small: bytes < self.limits.small_unit_bytes,
            state: State::Closed,
            synced: false,
            sync: None,
            touched: open.touched,
        };
        self.next_unit += 1;
        self.next = unit.end();
        if self.snapshot > 0
            && self.segment_of(unit.position).is_some_and(|s| s.base == unit.position)
        {
            self.naming.push_back((unit.end(), self.snapshot));
        }
        if content {
            self.content_end = unit.end();
        }
        self.last_unit_us = now.mono_us;
        self.backlog_bytes += bytes;
        self.durable_units += usize::from(unit.durable);
        self.figures.units += 1;
        self.figures.unit_bytes += bytes as u64;
        self.figures.padding_bytes += padding as u64;
        self.tail.push(unit.position, &block, self.flushed, self.written);
        self.units.push_back(unit);
    }

    fn mark(&self) -> Mark {
        Mark {
            epoch: self.epoch,
            shard: self.shard,
            flushed: self.flushed,
            log_id: self.log_id,
            snapshot: self.snapshot,
        }
    }

    fn submit(&mut self, out: &mut Outbox<M::Block>) {
        while self.failed.is_none()
            && self.submitted < self.units.len()
            && self.in_flight < self.limits.units_in_flight
        {
            let unit = &self.units[self.submitted];
            let ready = self.segment_of(unit.position).is_some_and(|segment| segment.ready);
            if !ready {
                return;
            }
            let unit = &mut self.units[self.submitted];
            let Some(block) = unit.block.take() else { return };
            unit.state = State::Writing;
            self.submitted += 1;
            self.in_flight += 1;
            self.small_in_flight += usize::from(unit.small);
            self.backlog_bytes -= unit.bytes;
            out.actions.push(Action::Write {
                write: unit.id,
                position: unit.position,
                block,
                durable: unit.durable,
            });
        }
    }

    /// Hands to the device what may go. Few small units are under way at a time; a larger one goes when it fills the
    /// share of a whole unit that the units before it take of those allowed: a device that is quick gets what there
    /// is, and one that is behind gets few whole units instead of many small ones. Records gather meanwhile.
    pub(crate) fn pump(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        self.submit(out);
        let Some(open) = &self.open else { return };
        let Limits { units_in_flight, unit_bytes, small_unit_bytes, .. } = self.limits;
        if self.submitted < self.units.len() || self.in_flight >= units_in_flight {
            return;
        }
        let may_go = match open.used < small_unit_bytes {
            true => self.small_in_flight < self.limits.small_units_in_flight,
            false => open.used >= unit_bytes * self.in_flight / units_in_flight,
        };
        if may_go {
            self.close(now);
            self.submit(out);
        }
    }
}
