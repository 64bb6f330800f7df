//! All queues of a shard that hold or held messages, by slot.

use super::{Queue, Stretch};
use crate::index::StretchRow;
use crate::peer::QueueId;
use crate::table::Map;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    slots: Vec<Queue>,
    by_id: Map<u64, u32>,
    of_topic: Map<u32, Vec<u32>>,
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
        self.of_topic.entry(id.topic).or_default().push(slot);
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

    /// Number of slots, those of deleted topics among them.
    pub(crate) fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Whether the slot's queue is there, and not of a deleted topic.
    pub(crate) fn is_there(&self, slot: u32) -> bool {
        self.slot(self.at(slot).id) == Some(slot)
    }

    /// The index of a segment is there: these stretches, of one queue, take the place of its entries.
    pub(crate) fn replace(&mut self, segment: u32, stretches: &[StretchRow]) {
        let Some(first) = stretches.first() else { return };
        let queue = self.at_mut(first.slot);
        // A topic that was deleted meanwhile has nothing here any more.
        if queue.chunks.is_empty() {
            return;
        }
        let stretches = stretches.iter().map(|row| Stretch::of(segment, row));
        queue.indexed(segment, stretches);
    }

    /// Everything recovered is durable: recovery made it so.
    pub(crate) fn show_all(&mut self) {
        for queue in &mut self.slots {
            queue.visible = queue.next;
        }
    }

    /// Topics that have queues here.
    pub(crate) fn topics(&self) -> impl Iterator<Item = u32> {
        self.of_topic.keys().copied()
    }

    /// Slots of a topic's queues.
    pub(crate) fn slots_of(&self, topic: u32) -> &[u32] {
        self.of_topic.get(&topic).map_or(&[], Vec::as_slice)
    }

    /// Forgets what a deleted topic's queues hold; their slots stay, empty, since units under way and
    /// fetches name them.
    pub(crate) fn forget_topic(&mut self, topic: u32) -> Vec<u64> {
        let mut waiting = Vec::new();
        for slot in self.of_topic.remove(&topic).unwrap_or_default() {
            let queue = self.at_mut(slot);
            let id = queue.id;
            waiting.append(&mut queue.waiting);
            *queue = Queue::new(id);
            self.by_id.remove(&key(id));
        }
        waiting
    }
}
