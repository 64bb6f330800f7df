//! Snapshots of a shard's state, in slices that are records of the log itself ([`Kind::Snapshot`]).
//!
//! A snapshot is *fuzzy*: requests go on between its slices. Recovery applies every record from its beginning
//! on in log order; each says what is, not what changed by how much, so a slice and the changes around it
//! come out the same in whatever order they were taken.
//!
//! ```text
//! u8 version, u8 part, then
//! 1 Begin     u64 beginning of the snapshot before, 0: none
//! 2 Registry  u64 version, u32 last topic id, u32 last group id; follows Begin at once
//! 3 Changes   (u32 length, a topic or group as its record has it)*
//! 4 Offsets   (u32 group, u32 topic, u32 queue, i64 committed or -1, i64 committed at, u32 generation, u128 owner)*;
//!             of earlier versions: now 8
//! 5 Queues    (u32 topic, u32 queue, u64 min, u64 next, i64 newest store time)*
//! 6 End       u64 beginning
//! 7 Hole      as its record has it
//! 8 Offsets   as 4, behind each u16 attempts at what lies there
//! 20 Recalled (i64 due, u64 position)*, before Fired
//! 21 Fired    i64 due, u64 position, then (u64 segment, i64 due, u64 position)*
//! 22 Behind   (i64 due, u64 position, u32 bytes)*, after Fired
//! 23 Delayed u32 topic, u32 queue, u32 topic, u32 queue: first and last, then of all in between that have some
//!             (u32 topic, u32 queue, u64 how many wait)*
//! 30 Pops     as their record has them; what is in flight of a queue may go on in the next slice
//! ```
//!
//! [`Kind::Snapshot`]: ringmq_schema::record::Kind::Snapshot

use crate::consume::offsets::Progress;
use crate::hole::Hole;
use crate::peer::{QueueId, RegistryChange};
use crate::pop::{self, Op, OpWriter};
use crate::state::{self, Reader};
use crate::timer::Key;

const VERSION: u8 = 1;

/// What a queue is, but for its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueState {
    pub(crate) id: QueueId,
    pub(crate) min: u64,
    pub(crate) next: u64,
    pub(crate) last_store_ms: i64,
}

/// One thing that a slice says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Item {
    Begin {
        before: u64,
    },
    Registry {
        version: u64,
        last_topic: u32,
        last_group: u32,
    },
    Change(RegistryChange),
    Offset {
        group: u32,
        queue: QueueId,
        progress: Progress,
    },
    Queue(QueueState),
    End {
        begin: u64,
    },
    Hole(Hole),
    /// A delayed message that was taken back.
    Recalled(Key),
    /// Up to where they were delivered.
    Fired(Key),
    /// Up to where those of a segment were appended again.
    Moved(u64, Key),
    /// One that is pending although it is below, with its length.
    Behind(Key, u32),
    /// Of queues from the first to the last all that have delayed messages follow.
    DelayedOf(QueueId, QueueId),
    /// So many wait for a queue.
    Delayed(QueueId, u64),
    /// What a group has popped from a queue.
    Pop(u32, QueueId, Op),
    /// The time of that.
    PopTime(i64),
}

/// A slice that is being filled.
#[derive(Debug)]
pub(crate) struct Slice(Vec<u8>);

impl Slice {
    pub(crate) fn begin(before: u64) -> Slice {
        let mut slice = Slice::new(1);
        slice.0.extend_from_slice(&before.to_le_bytes());
        slice
    }

    pub(crate) fn registry(version: u64, last_topic: u32, last_group: u32) -> Slice {
        let mut slice = Slice::new(2);
        slice.0.extend_from_slice(&version.to_le_bytes());
        slice.0.extend_from_slice(&last_topic.to_le_bytes());
        slice.0.extend_from_slice(&last_group.to_le_bytes());
        slice
    }

    pub(crate) fn changes() -> Slice {
        Slice::new(3)
    }

    pub(crate) fn offsets() -> Slice {
        Slice::new(8)
    }

    pub(crate) fn queues() -> Slice {
        Slice::new(5)
    }

    pub(crate) fn hole(hole: &Hole) -> Slice {
        let mut slice = Slice::new(7);
        slice.0.extend_from_slice(&hole.write());
        slice
    }

    pub(crate) fn recalled() -> Slice {
        Slice::new(20)
    }

    pub(crate) fn fired(key: Key, moved: impl Iterator<Item = (u64, Key)>) -> Slice {
        let mut slice = Slice::new(21);
        slice.add_timer(key);
        for (base, key) in moved {
            slice.0.extend_from_slice(&base.to_le_bytes());
            slice.add_timer(key);
        }
        slice
    }

    pub(crate) fn behind() -> Slice {
        Slice::new(22)
    }

    pub(crate) fn delayed(first: QueueId, last: QueueId) -> Slice {
        let mut slice = Slice::new(23);
        slice.add_id(first);
        slice.add_id(last);
        slice
    }

    pub(crate) fn pops(ops: OpWriter) -> Slice {
        let mut slice = Slice::new(30);
        if !ops.is_empty() {
            slice.0.extend_from_slice(&ops.finish());
        }
        slice
    }

    pub(crate) fn end(begin: u64) -> Slice {
        let mut slice = Slice::new(6);
        slice.0.extend_from_slice(&begin.to_le_bytes());
        slice
    }

    fn new(part: u8) -> Slice {
        Slice(vec![VERSION, part])
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.0
    }

    /// Whether nothing was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.len() == 2
    }

    pub(crate) fn add_change(&mut self, change: &RegistryChange) {
        let bytes = state::write_change(change);
        self.0.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.0.extend_from_slice(&bytes);
    }

    pub(crate) fn add_offset(&mut self, group: u32, queue: QueueId, progress: &Progress) {
        let Progress { committed, attempts, committed_ms, owner, generation, fetched: _ } =
            progress;
        let committed = committed.map_or(-1, |offset| offset as i64);
        self.0.extend_from_slice(&group.to_le_bytes());
        self.0.extend_from_slice(&queue.topic.to_le_bytes());
        self.0.extend_from_slice(&queue.queue.to_le_bytes());
        self.0.extend_from_slice(&committed.to_le_bytes());
        self.0.extend_from_slice(&committed_ms.to_le_bytes());
        self.0.extend_from_slice(&generation.to_le_bytes());
        self.0.extend_from_slice(&owner.to_le_bytes());
        self.0.extend_from_slice(&attempts.to_le_bytes());
    }

    pub(crate) fn add_timer(&mut self, key: Key) {
        self.0.extend_from_slice(&key.due_ms.to_le_bytes());
        self.0.extend_from_slice(&key.position.to_le_bytes());
    }

    pub(crate) fn add_behind(&mut self, key: Key, bytes: u32) {
        self.add_timer(key);
        self.0.extend_from_slice(&bytes.to_le_bytes());
    }

    pub(crate) fn add_delayed(&mut self, queue: QueueId, count: u64) {
        self.add_id(queue);
        self.0.extend_from_slice(&count.to_le_bytes());
    }

    fn add_id(&mut self, queue: QueueId) {
        self.0.extend_from_slice(&queue.topic.to_le_bytes());
        self.0.extend_from_slice(&queue.queue.to_le_bytes());
    }

    pub(crate) fn add_queue(&mut self, queue: &QueueState) {
        self.0.extend_from_slice(&queue.id.topic.to_le_bytes());
        self.0.extend_from_slice(&queue.id.queue.to_le_bytes());
        self.0.extend_from_slice(&queue.min.to_le_bytes());
        self.0.extend_from_slice(&queue.next.to_le_bytes());
        self.0.extend_from_slice(&queue.last_store_ms.to_le_bytes());
    }
}

/// Reads a slice, handing on item by item; `None` when it does not parse.
pub(crate) fn read(payload: &[u8], mut visit: impl FnMut(Item)) -> Option<()> {
    let mut reader = Reader(payload);
    if reader.u8()? != VERSION {
        return None;
    }
    let part = reader.u8()?;
    match part {
        1 => visit(Item::Begin { before: reader.u64()? }),
        2 => visit(Item::Registry {
            version: reader.u64()?,
            last_topic: reader.u32()?,
            last_group: reader.u32()?,
        }),
        7 => visit(Item::Hole(Hole::read(reader.take(reader.0.len())?)?)),
        6 => visit(Item::End { begin: reader.u64()? }),
        21 => {
            visit(Item::Fired(read_timer(&mut reader)?));
            while !reader.0.is_empty() {
                visit(Item::Moved(reader.u64()?, read_timer(&mut reader)?));
            }
        }
        23 => {
            visit(Item::DelayedOf(read_id(&mut reader)?, read_id(&mut reader)?));
            while !reader.0.is_empty() {
                visit(Item::Delayed(read_id(&mut reader)?, reader.u64()?));
            }
        }
        30 => {
            let ops = reader.take(reader.0.len())?;
            let at_ms = pop::read(ops, |group, queue, op| visit(Item::Pop(group, queue, op)))?;
            visit(Item::PopTime(at_ms));
        }
        3..=5 | 8 | 20 | 22 => {
            while !reader.0.is_empty() {
                visit(match part {
                    3 => {
                        let bytes = reader.u32()? as usize;
                        Item::Change(state::read_change(reader.take(bytes)?)?)
                    }
                    4 => read_offset(&mut reader, false)?,
                    8 => read_offset(&mut reader, true)?,
                    20 => Item::Recalled(read_timer(&mut reader)?),
                    22 => Item::Behind(read_timer(&mut reader)?, reader.u32()?),
                    _ => read_queue(&mut reader)?,
                });
            }
        }
        _ => return None,
    }
    reader.0.is_empty().then_some(())
}

fn read_id(reader: &mut Reader<'_>) -> Option<QueueId> {
    Some(QueueId { topic: reader.u32()?, queue: reader.u32()? })
}

fn read_timer(reader: &mut Reader<'_>) -> Option<Key> {
    Some(Key { due_ms: reader.u64()? as i64, position: reader.u64()? })
}

fn read_offset(reader: &mut Reader<'_>, with_attempts: bool) -> Option<Item> {
    let group = reader.u32()?;
    let queue = QueueId { topic: reader.u32()?, queue: reader.u32()? };
    let committed = u64::try_from(reader.u64()? as i64).ok();
    let committed_ms = reader.u64()? as i64;
    let (generation, owner) = (reader.u32()?, reader.u128()?);
    let attempts = if with_attempts { reader.u16()? } else { 0 };
    let fetched = None;
    let progress = Progress { committed, attempts, committed_ms, owner, generation, fetched };
    Some(Item::Offset { group, queue, progress })
}

fn read_queue(reader: &mut Reader<'_>) -> Option<Item> {
    let id = QueueId { topic: reader.u32()?, queue: reader.u32()? };
    let (min, next) = (reader.u64()?, reader.u64()?);
    if min > next {
        return None;
    }
    Some(Item::Queue(QueueState { id, min, next, last_store_ms: reader.u64()? as i64 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::{Change, GroupSettings};

    fn items(slice: &Slice) -> Option<Vec<Item>> {
        let mut items = Vec::new();
        read(slice.payload(), |item| items.push(item)).map(|()| items)
    }

    #[test]
    fn slices_round_trip_and_no_prefix_panics() {
        let queue = QueueId { topic: 7, queue: 3 };
        let progress = Progress {
            committed: Some(9),
            attempts: 3,
            committed_ms: 5,
            owner: 1 << 100,
            generation: 4,
            fetched: None,
        };
        let state = QueueState { id: queue, min: 1, next: 9, last_store_ms: -1 };
        let (name, settings) = ("g".to_owned(), GroupSettings::default());
        let change = RegistryChange { version: 3, change: Change::Group { id: 1, name, settings } };
        let mut changes = Slice::changes();
        let mut offsets = Slice::offsets();
        let mut queues = Slice::queues();
        assert!(queues.is_empty());
        for _ in 0..3 {
            changes.add_change(&change);
            offsets.add_offset(2, queue, &progress);
            queues.add_queue(&state);
        }
        assert_eq!(items(&changes), Some(vec![Item::Change(change); 3]));
        let offset = Item::Offset { group: 2, queue, progress };
        assert_eq!(items(&offsets), Some(vec![offset; 3]));
        // As it was before attempts were told.
        let mut old = Slice(offsets.0[..2 + 48].to_vec());
        old.0[1] = 4;
        let progress = Progress { attempts: 0, ..progress };
        assert_eq!(items(&old), Some(vec![Item::Offset { group: 2, queue, progress }]));
        assert_eq!(items(&queues), Some(vec![Item::Queue(state); 3]));
        assert_eq!(items(&Slice::begin(8)), Some(vec![Item::Begin { before: 8 }]));
        assert_eq!(items(&Slice::end(8)), Some(vec![Item::End { begin: 8 }]));
        let registry = Item::Registry { version: 1, last_topic: 2, last_group: 3 };
        assert_eq!(items(&Slice::registry(1, 2, 3)), Some(vec![registry]));
        let (first, second) = (Key { due_ms: -7, position: 8 }, Key { due_ms: 9, position: 16 });
        let (mut recalled, mut behind) = (Slice::recalled(), Slice::behind());
        for key in [first, second] {
            recalled.add_timer(key);
            behind.add_behind(key, 200);
        }
        let fired = Slice::fired(second, [(4096, first)].into_iter());
        let expected = vec![Item::Recalled(first), Item::Recalled(second)];
        assert_eq!(items(&recalled), Some(expected));
        let expected = vec![Item::Behind(first, 200), Item::Behind(second, 200)];
        assert_eq!(items(&behind), Some(expected));
        assert_eq!(items(&fired), Some(vec![Item::Fired(second), Item::Moved(4096, first)]));
        let mut delayed = Slice::delayed(queue, QueueId { topic: 9, queue: 0 });
        delayed.add_delayed(queue, 12);
        let of = Item::DelayedOf(queue, QueueId { topic: 9, queue: 0 });
        assert_eq!(items(&delayed), Some(vec![of, Item::Delayed(queue, 12)]));
        let timers = [recalled, behind, fired, delayed];
        let others = [changes, offsets, queues, Slice::begin(8), Slice::registry(1, 2, 3)];
        for slice in timers.into_iter().chain(others) {
            for end in 0..slice.0.len() {
                // A shorter list may be a whole one; nothing panics.
                let _ = read(&slice.0[..end], |_| {});
            }
        }
    }
}
