//! Writing snapshots of the shard's state into its log, a slice a step.
//!
//! Invariants:
//! - a snapshot begins only while no change of the registry is on its way, and (home shard) all shards agree:
//!   what it says is durable everywhere, and no shard will ask for older changes;
//! - a snapshot counts once its end is durable.

use super::Shard;
use super::waiting::Then;
use crate::peer::QueueId;
use crate::pop::{Op, OpWriter};
use crate::seam::{Memory, Now, Outbox};
use crate::snapshot::{QueueState, Slice};
use crate::timer::Key;
use ringmq_schema::record::Kind;

/// The log grows by at least so many times what the last snapshot took.
const SHARE: u64 = 32;
/// Bytes of a slice: some 30 µs to make, and small beside a write unit.
const SLICE_BYTES: usize = 16 << 10;

/// How far a snapshot has come.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Next {
    #[default]
    Nothing,
    Topics(u32),
    Groups(u32),
    Offsets(Option<(u32, QueueId)>),
    Queues(u32),
    Holes(Option<u64>),
    Recalled(Option<Key>),
    Fired,
    Behind(Option<Key>),
    /// From this queue on.
    Delayed(QueueId),
    /// From this group and queue on; with an offset, behind it.
    Pops((u32, QueueId), Option<u64>),
    End,
}

/// The snapshot under way, and when the next is due.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    next: Next,
    /// Where the one under way, or the last one, begins.
    begin: u64,
    /// End of the log when it began, and when that was.
    began_at: u64,
    began_us: u64,
    /// One is to be written although little has happened.
    wanted: bool,
    /// Bytes of slices in the one under way, or in the last.
    bytes: u64,
}

impl Snapshots {
    pub(super) fn new(begin: u64, end: u64) -> Snapshots {
        Snapshots { begin, began_at: end, ..Snapshots::default() }
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.next != Next::Nothing
    }
}

impl<M: Memory> Shard<M> {
    /// Whether a snapshot is to begin now.
    fn snapshot_is_due(&self, now: Now) -> bool {
        let snapshots = &self.snapshots;
        let grown = self.log.appended() - snapshots.began_at;
        let settled = !self.registry.has_staged()
            && self.home.as_ref().is_none_or(|home| home.all_have(self.registry.version()));
        // A log at the disk's speed grows by tens of GiB in a pause: all of it would be replayed.
        let has_paused = now.mono_us >= snapshots.began_us + self.config.snapshot_pause_ms * 1000
            || grown >= 2 * self.config.snapshot_bytes;
        // Where the state is large, snapshots of it stay a small part of what is written.
        let enough = self.config.snapshot_bytes.max(SHARE * snapshots.bytes);
        let due = grown >= enough && has_paused || snapshots.wanted;
        due && settled && self.epoch_is_durable && self.log.failed().is_none()
    }

    /// Begins a snapshot when one is due, or writes the next slice of the one under way.
    pub(super) fn step_snapshot(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        if self.snapshots.is_under_way() {
            self.next_slice(now, out);
        } else if self.snapshot_is_due(now) {
            self.begin_snapshot(now, out);
        }
    }

    /// Writes a whole snapshot at once: the shard stops. Returns whether one could begin.
    pub(super) fn finish_snapshot(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        self.want_snapshot();
        if !self.snapshots.is_under_way() && self.snapshot_is_due(now) {
            self.begin_snapshot(now, out);
        }
        while self.snapshots.is_under_way() {
            self.next_slice(now, out);
        }
    }

    /// One is to be written as soon as it can be, whatever has happened since the last.
    pub(super) fn want_snapshot(&mut self) {
        self.snapshots.wanted = true;
    }

    fn begin_snapshot(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        self.figures.snapshots += 1;
        let slice = Slice::begin(self.snapshots.begin);
        self.append_slice(&slice, now, out);
        let begin = self.log.open_position();
        let (version, last_topic, last_group) = self.registry.head();
        self.append_slice(&Slice::registry(version, last_topic, last_group), now, out);
        self.snapshots = Snapshots {
            next: Next::Topics(0),
            begin,
            began_at: self.log.appended(),
            began_us: now.mono_us,
            wanted: false,
            bytes: 0,
        };
    }

    fn append_slice(&mut self, slice: &Slice, now: Now, out: &mut Outbox<M::Block>) -> u64 {
        self.snapshots.bytes += slice.payload().len() as u64;
        self.log.append_state(Kind::Snapshot, slice.payload(), self.stopping, now, out)
    }

    fn next_slice(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        let (slice, next) = match self.snapshots.next {
            Next::Nothing => return,
            Next::Topics(after) => {
                let (slice, last) = changes(self.registry.topics_after(after), |change| {
                    let crate::peer::Change::Topic { id, .. } = change else { return u32::MAX };
                    *id
                });
                (slice, last.map_or(Next::Groups(0), Next::Topics))
            }
            Next::Groups(after) => {
                let (slice, last) = changes(self.registry.groups_after(after), |change| {
                    let crate::peer::Change::Group { id, .. } = change else { return u32::MAX };
                    *id
                });
                (slice, last.map_or(Next::Offsets(None), Next::Groups))
            }
            Next::Offsets(after) => {
                let mut slice = Slice::offsets();
                let mut last = None;
                for (group, queue, progress) in self.offsets.after(after) {
                    slice.add_offset(group, queue, progress);
                    if slice.payload().len() >= SLICE_BYTES {
                        last = Some((group, queue));
                        break;
                    }
                }
                (slice, last.map_or(Next::Queues(0), |last| Next::Offsets(Some(last))))
            }
            Next::Queues(first) => self.queue_slice(first),
            Next::Holes(after) => match self.punching.holes.after(after) {
                Some(hole) => (Slice::hole(hole), Next::Holes(Some(hole.base))),
                None => (Slice::queues(), Next::Recalled(None)),
            },
            // One that is over between two slices is then named by neither, or by the mark alone: never is one
            // pending that was taken back.
            Next::Recalled(after) => {
                let mut slice = Slice::recalled();
                let mut next = Next::Fired;
                for key in self.timers.marks.recalled(after) {
                    slice.add_timer(key);
                    if slice.payload().len() >= SLICE_BYTES {
                        next = Next::Recalled(Some(key));
                        break;
                    }
                }
                (slice, next)
            }
            Next::Fired => {
                let marks = &self.timers.marks;
                (Slice::fired(marks.fired(), marks.moved()), Next::Behind(None))
            }
            Next::Behind(after) => {
                let mut slice = Slice::behind();
                let mut next = Next::Delayed(QueueId { topic: 0, queue: 0 });
                // One that was taken back is as good as over. Replay may have forgotten by now that it was: it knew
                // of nothing behind before this slice.
                let marks = &self.timers.marks;
                for (key, bytes) in marks.behind(after).filter(|(key, _)| !marks.is_recalled(*key))
                {
                    slice.add_behind(key, bytes);
                    if slice.payload().len() >= SLICE_BYTES {
                        next = Next::Behind(Some(key));
                        break;
                    }
                }
                (slice, next)
            }
            Next::Delayed(first) => self.delayed_slice(first),
            Next::Pops(first, behind) => self.pop_slice(first, behind, now),
            Next::End => {
                let begin = self.snapshots.begin;
                let end = self.append_slice(&Slice::end(begin), now, out);
                self.waiting.push(end, true, Then::Snapshot { begin });
                self.snapshots.next = Next::Nothing;
                return;
            }
        };
        if !slice.is_empty() {
            self.append_slice(&slice, now, out);
        }
        self.snapshots.next = next;
    }

    /// It says of each queue of a range how many wait, and replay counts on from there.
    fn delayed_slice(&self, first: QueueId) -> (Slice, Next) {
        const ENTRY_BYTES: usize = 16;
        let most = SLICE_BYTES / ENTRY_BYTES;
        let counts: Vec<_> = self.timers.delayed.from(first).take(most).collect();
        let is_full = counts.len() == most;
        let end = QueueId { topic: u32::MAX, queue: u32::MAX };
        let last = counts.last().map_or(end, |(queue, _)| if is_full { *queue } else { end });
        let mut slice = Slice::delayed(first, last);
        counts.iter().for_each(|(queue, count)| slice.add_delayed(*queue, *count));
        let behind = QueueId { queue: last.queue.saturating_add(1), ..last };
        let start = (0, QueueId { topic: 0, queue: 0 });
        if counts.is_empty() && first == start.1 {
            // Replay counts no more than there are: what it knows of by then is none, too.
            return (Slice::queues(), Next::Pops(start, None));
        }
        (slice, if is_full { Next::Delayed(behind) } else { Next::Pops(start, None) })
    }

    fn pop_slice(&self, first: (u32, QueueId), mut behind: Option<u64>, now: Now) -> (Slice, Next) {
        let mut ops = OpWriter::new(first.0, self.pops.now_ms(now));
        for (group, queue, flights) in self.pops.from(first) {
            ops.set_group(group);
            let behind = behind.take().filter(|_| (group, queue) == first);
            if behind.is_none() {
                ops.add(queue, Op::Begin { next: flights.next() });
            }
            for (offset, flight) in flights.after(behind) {
                ops.add(queue, Op::Out { offset, flight });
                if ops.len() >= SLICE_BYTES {
                    return (Slice::pops(ops), Next::Pops((group, queue), Some(offset)));
                }
            }
            if ops.len() >= SLICE_BYTES {
                return (Slice::pops(ops), Next::Pops((group, queue), Some(u64::MAX)));
            }
        }
        (Slice::pops(ops), Next::End)
    }

    fn queue_slice(&self, first: u32) -> (Slice, Next) {
        let mut slice = Slice::queues();
        for slot in first..self.queues.slots() {
            if slice.payload().len() >= SLICE_BYTES {
                return (slice, Next::Queues(slot));
            }
            let queue = self.queues.at(slot);
            if queue.next > 0 && self.queues.is_there(slot) {
                slice.add_queue(&QueueState {
                    id: queue.id,
                    min: queue.min,
                    next: queue.next,
                    last_store_ms: queue.last_store_ms,
                });
            }
        }
        (slice, Next::Holes(None))
    }
}

/// A slice of topics or groups, and the last id in it when there may be more.
fn changes(
    all: impl Iterator<Item = crate::peer::RegistryChange>,
    id: impl Fn(&crate::peer::Change) -> u32,
) -> (Slice, Option<u32>) {
    let mut slice = Slice::changes();
    for change in all {
        slice.add_change(&change);
        if slice.payload().len() >= SLICE_BYTES {
            return (slice, Some(id(&change.change)));
        }
    }
    (slice, None)
}
