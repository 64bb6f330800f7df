//! Segments for tests, made from a seed.

use super::{Entry, NO_QUEUE, OrderRow, PLACE_BYTES, QueueRows, SegmentRows, TimerRow};
use crate::peer::QueueId;
use ringmq_schema::placement::mix;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Position of the sample's first byte.
pub(super) const BASE: u64 = 7 << 28;

/// What a segment should look like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) records: u32,
    pub(super) queues: u32,
    /// After so many records a queue loses offsets; 0: never.
    pub(super) gap_after: u32,
    /// Different keys; 0: no message has one.
    pub(super) keys: u32,
}

/// A segment of that shape; every eighth record is one of the shard's own.
pub(super) fn segment(seed: u64, shape: Shape) -> SegmentRows {
    let mut state = seed;
    let mut chance = |below: u32| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(state) % u64::from(below.max(1))) as u32
    };
    let mut rows = SegmentRows { base: BASE, epoch: 3, shard: 2, log_id: 77, ..Default::default() };
    // Slot and place in `rows.queues`, records so far, time: of each queue.
    let mut open: BTreeMap<u32, (usize, u32, i64)> = BTreeMap::new();
    let mut place = 512;
    for row in 0..shape.records {
        let bytes = 100 + chance(300);
        let queue = if chance(8) == 0 { NO_QUEUE } else { chance(shape.queues) };
        let slot = if queue == NO_QUEUE { NO_QUEUE } else { 9_000 - queue };
        rows.order.push(OrderRow { place, bytes, queue: slot });
        if queue == NO_QUEUE && chance(2) == 0 {
            let due_ms = 2_000_000 + i64::from(chance(50));
            rows.timers.push(TimerRow { due_ms, place, bytes });
            rows.timers_ms = 1_000_000;
        }
        if queue != NO_QUEUE {
            let (at, count, latest_ms) = open.entry(queue).or_insert((usize::MAX, 0, 1_000_000));
            let gap = shape.gap_after > 0 && *count > 0 && *count % shape.gap_after == 0;
            if *at == usize::MAX || gap {
                let lost = if gap { 5 } else { 0 };
                *at = rows.queues.len();
                rows.queues.push(QueueRows {
                    id: QueueId { topic: queue % 7, queue: queue / 7 },
                    slot,
                    first_offset: u64::from(*count) + 40 + lost * u64::from(*count),
                    entries: Vec::new(),
                });
            }
            *count += 1;
            *latest_ms += i64::from(chance(3));
            let tag_hash = chance(4);
            let entry = Entry { place, row, bytes, tag_hash, latest_ms: *latest_ms };
            push(&mut rows.queues[*at], entry);
            rows.ids.push((mix(seed ^ u64::from(row)) as u32, place));
            for _ in 0..if shape.keys == 0 { 0 } else { chance(4) } {
                rows.keys.push((mix(u64::from(chance(shape.keys))) as u32, place));
            }
        }
        place += bytes.div_ceil(8) + chance(2);
    }
    rows.end = BASE + u64::from(place) * PLACE_BYTES;
    rows.bytes = u64::from(place) * PLACE_BYTES + 4096;
    rows
}

/// In pieces of 100, as a shard that goes on appending may keep them.
fn push(queue: &mut QueueRows, entry: Entry) {
    match queue.entries.last_mut() {
        Some(chunk) if chunk.len() < 100 => Arc::make_mut(chunk).push(entry),
        _ => queue.entries.push(Arc::new(vec![entry])),
    }
}

/// What must come back when the segment's index is read.
pub(super) fn as_read(rows: &SegmentRows) -> SegmentRows {
    let mut rows = rows.clone();
    rows.queues.sort_by_key(|queue| (queue.id, queue.first_offset));
    for row in &mut rows.order {
        row.queue = NO_QUEUE;
    }
    for (number, queue) in rows.queues.iter_mut().enumerate() {
        let entries: Vec<Entry> = queue.entries.iter().flat_map(|c| c.iter().copied()).collect();
        for entry in &entries {
            rows.order[entry.row as usize].queue = number as u32;
        }
        queue.slot = number as u32;
        queue.entries = vec![Arc::new(entries)];
    }
    rows.ids.sort_unstable();
    rows.keys.sort_unstable();
    rows.timers.sort_unstable();
    rows
}
