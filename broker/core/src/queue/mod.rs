//! Queues: which record is where, and how far consumers may see.
//!
//! Invariants:
//! - offsets of a queue are contiguous from `min` to `next` (promise: fifo);
//! - `min <= visible <= next`; `visible` moves when a flush has passed the records (promise: prefix: what
//!   a consumer saw is durable).

use crate::peer::QueueId;
use crate::table::Map;

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) position: u64,
    pub(crate) bytes: u32,
    pub(crate) tag_hash: u32,
    /// Highest store time in the queue up to here: monotone even when the clock jumps, and so the
    /// first entry that reaches a time is the first record stored at or after it.
    pub(crate) latest_ms: i64,
}

/// Entries per chunk: 12 KiB each, so that a growing queue never copies what it has.
const CHUNK: usize = 512;

/// One queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) id: QueueId,
    /// First offset that can be read.
    pub(crate) min: u64,
    /// Offset of the next record.
    pub(crate) next: u64,
    /// High watermark: first offset that consumers may not see.
    pub(crate) visible: u64,
    pub(crate) bytes: u64,
    pub(crate) last_store_ms: i64,
    /// Fetches that wait for more.
    pub(crate) waiting: Vec<u64>,
    chunks: Vec<Vec<Entry>>,
}

impl Queue {
    fn new(id: QueueId) -> Queue {
        Queue {
            id,
            min: 0,
            next: 0,
            visible: 0,
            bytes: 0,
            last_store_ms: 0,
            waiting: Vec::new(),
            chunks: Vec::new(),
        }
    }

    /// Adds the record of offset `next`.
    pub(crate) fn push(&mut self, position: u64, bytes: u32, tag_hash: u32, store_ms: i64) {
        self.last_store_ms = self.last_store_ms.max(store_ms);
        let entry = Entry { position, bytes, tag_hash, latest_ms: self.last_store_ms };
        match self.chunks.last_mut() {
            Some(chunk) if chunk.len() < CHUNK => chunk.push(entry),
            _ => {
                // The first chunk of a queue grows from little: most queues stay small.
                let mut chunk = Vec::with_capacity(if self.chunks.is_empty() { 8 } else { CHUNK });
                chunk.push(entry);
                self.chunks.push(chunk);
            }
        }
        self.next += 1;
        self.bytes += u64::from(bytes);
    }

    /// The record of an offset.
    pub(crate) fn entry(&self, offset: u64) -> Option<Entry> {
        let index = offset.checked_sub(self.min)? as usize;
        self.chunks.get(index / CHUNK)?.get(index % CHUNK).copied()
    }

    /// First visible offset whose record was stored at or after `ms`; the high watermark if none was.
    pub(crate) fn offset_at(&self, ms: i64) -> u64 {
        let (mut low, mut high) = (self.min, self.visible);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entry(middle).is_some_and(|entry| entry.latest_ms < ms) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// All queues of a shard that hold or held messages, by slot.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    slots: Vec<Queue>,
    by_id: Map<u64, u32>,
}

fn key(id: QueueId) -> u64 {
    (u64::from(id.topic) << 32) | u64::from(id.queue)
}

impl Queues {
    pub(crate) fn slot(&self, id: QueueId) -> Option<u32> {
        self.by_id.get(&key(id)).copied()
    }

    /// The queue's slot, made when it is not there.
    pub(crate) fn slot_or_new(&mut self, id: QueueId) -> u32 {
        if let Some(slot) = self.slot(id) {
            return slot;
        }
        let slot = self.slots.len() as u32;
        self.slots.push(Queue::new(id));
        self.by_id.insert(key(id), slot);
        slot
    }

    pub(crate) fn at(&self, slot: u32) -> &Queue {
        &self.slots[slot as usize]
    }

    pub(crate) fn at_mut(&mut self, slot: u32) -> &mut Queue {
        &mut self.slots[slot as usize]
    }

    pub(crate) fn get(&self, id: QueueId) -> Option<&Queue> {
        self.slot(id).map(|slot| self.at(slot))
    }

    /// Number of queues.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Everything recovered is durable: recovery made it so.
    pub(crate) fn show_all(&mut self) {
        for queue in &mut self.slots {
            queue.visible = queue.next;
        }
    }

    /// Forgets what a deleted topic's queues hold; their slots stay, empty, since units under way and
    /// fetches name them.
    pub(crate) fn forget_topic(&mut self, topic: u32) -> Vec<u64> {
        let mut waiting = Vec::new();
        for queue in self.slots.iter_mut().filter(|queue| queue.id.topic == topic) {
            waiting.append(&mut queue.waiting);
            self.by_id.remove(&key(queue.id));
            let gone = Queue::new(queue.id);
            *queue = gone;
        }
        waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_by_offset() {
        let mut queues = Queues::default();
        let slot = queues.slot_or_new(QueueId { topic: 1, queue: 0 });
        let queue = queues.at_mut(slot);
        for n in 0..2000u64 {
            queue.push(n * 8, 8, 0, n as i64);
        }
        for n in [0, 1, 7, 8, 511, 512, 1024, 1999] {
            assert_eq!(queue.entry(n).map(|e| e.position), Some(n * 8));
        }
        assert_eq!(queue.entry(2000), None);
        assert_eq!(queue.offset_at(5), 0, "nothing is visible yet");
        queue.visible = 2000;
        for ms in [0, 1, 511, 512, 513, 1500, 1999, 2000] {
            assert_eq!(queue.offset_at(ms), ms as u64);
        }
        assert_eq!(queue.offset_at(-5), 0);
        assert_eq!(queue.offset_at(5000), 2000);
    }
}
