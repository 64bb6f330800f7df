//! One core: its shards, its connections, and the loop that drives them.
//!
//! Invariants:
//! - a shard is never entered while it is being driven: what its actions cause comes later;
//! - actions are carried out in order, before the outbox is used again;
//! - no `RefCell` is borrowed across an `await`.

use super::busy::BusyPoll;
use super::deadline::Deadlines;
use super::mesh::Parcel;
use super::signal::{Signal, Tasks, Waiters};
use super::state::BrokerState;
use crate::control::Latency;
use crate::disk::Disk;
use crate::disk::memory::{BlockMemory, LogBlock};
use crate::net::connection::{Connection, Connections};
use crate::net::loans::{self, Loans};
use ringmq_core::peer::PeerMessage;
use ringmq_core::{Action, Block, ConnectionId, Input, Now, Outbox, Shard, Slice};
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::frame::{self, Frame};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Bytes received at once, for all connections of the core.
pub(crate) const RECEIVE_BYTES: usize = 256 << 10;
/// Readers take so many bytes of requests before the ring is entered: glommio hands to the device what a round
/// of tasks has left behind, and looks for what has ended, only when the round is over. Less costs system
/// calls, more lets the device stand idle meanwhile (measured: `storage write`).
const ROUND_BYTES: usize = 1 << 20;
/// The core's number stands in the highest bits of a connection's.
pub(super) const CORE_SHIFT: u32 = 48;

/// A shard and what belongs to it.
pub(crate) struct Slot {
    pub(crate) number: u16,
    pub(crate) shard: RefCell<Shard<BlockMemory>>,
    pub(crate) disk: Rc<Disk>,
    pub(crate) latency: RefCell<Latency>,
    pub(crate) deadlines: Deadlines,
    outbox: RefCell<Outbox<LogBlock>>,
    has_requests: Cell<bool>,
    pub(crate) was_ready: Cell<bool>,
    pub(crate) has_stopped: Cell<bool>,
}

impl Slot {
    pub(crate) fn new(
        number: u16,
        shard: Shard<BlockMemory>,
        disk: Rc<Disk>,
        outbox: Outbox<LogBlock>,
    ) -> Slot {
        Slot {
            number,
            shard: RefCell::new(shard),
            disk,
            latency: RefCell::new(Latency::default()),
            deadlines: Deadlines::default(),
            outbox: RefCell::new(outbox),
            has_requests: Cell::new(false),
            was_ready: Cell::new(false),
            has_stopped: Cell::new(false),
        }
    }
}

/// See the module.
pub(crate) struct Core {
    pub(crate) id: usize,
    pub(crate) state: Arc<BrokerState>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) connections: Connections,
    pub(crate) loans: Loans,
    /// Where every `recv` of the core goes: only unfinished frames are kept per connection.
    pub(crate) receive: RefCell<Vec<u8>>,
    pub(crate) frames: RefCell<FrameBuilder>,
    pub(crate) scratch: RefCell<Vec<u8>>,
    /// Something is to be written, sent or looked at.
    pub(crate) turn: Signal,
    /// Readers that wait for a shard's backlog to shrink, or for the ring to be entered.
    pub(crate) congested: Waiters,
    /// They may look again when it was.
    relief: Signal,
    /// Bytes of requests since then.
    round_bytes: Cell<usize>,
    /// Device operations and connections.
    pub(crate) tasks: Rc<Tasks>,
    /// Loops of the core itself.
    pub(crate) loops: Rc<Tasks>,
    pub(crate) busy: BusyPoll,
    /// When a shard wants its next tick, in `Now::mono_us`.
    pub(crate) wake: super::tick::Alarm,
    pub(crate) finished: Signal,
    has_finished: Cell<bool>,
    to_flush: RefCell<Vec<Rc<Connection>>>,
    peers: RefCell<VecDeque<(u16, u16, PeerMessage)>>,
    delivers: Cell<bool>,
}

impl Core {
    pub(crate) fn new(
        id: usize,
        state: Arc<BrokerState>,
        slots: Vec<Slot>,
        busy: BusyPoll,
    ) -> Rc<Core> {
        Rc::new(Core {
            id,
            state,
            slots,
            connections: Connections::new((id as u64) << CORE_SHIFT),
            loans: Loans::default(),
            receive: RefCell::new(vec![0; RECEIVE_BYTES]),
            frames: RefCell::default(),
            scratch: RefCell::default(),
            turn: Signal::default(),
            congested: Waiters::default(),
            relief: Signal::default(),
            round_bytes: Cell::new(0),
            tasks: Rc::default(),
            loops: Rc::default(),
            busy,
            wake: super::tick::Alarm::default(),
            finished: Signal::default(),
            has_finished: Cell::new(false),
            to_flush: RefCell::default(),
            peers: RefCell::default(),
            delivers: Cell::new(false),
        })
    }

    /// Where a shard of this core is in `slots`.
    pub(crate) fn slot_of(&self, shard: u16) -> Option<usize> {
        let here = shard < self.state.shards() && self.state.core_of(shard) == self.id;
        here.then(|| usize::from(shard) / self.state.cores)
    }

    /// Hands a request to a shard, wherever it runs. `bytes` are the whole frame.
    pub(crate) fn request(
        self: &Rc<Self>,
        now: Now,
        shard: u16,
        connection: ConnectionId,
        frame: Frame<'_>,
        bytes: &[u8],
    ) {
        self.round_bytes.set(self.round_bytes.get() + bytes.len());
        if self.round_bytes.get() >= ROUND_BYTES {
            self.relief.set();
        }
        match self.slot_of(shard) {
            Some(at) => {
                if !self.slots[at].has_requests.replace(true) {
                    self.turn.set();
                }
                self.drive(at, now, Input::Request { connection, frame });
            }
            None => {
                let parcel = Parcel::Request { shard, connection, frame: bytes.to_vec() };
                self.state.mesh.send(self.state.core_of(shard), parcel);
            }
        }
    }

    /// One step of a shard, and everything that follows from it on this core.
    pub(crate) fn drive(self: &Rc<Self>, at: usize, now: Now, input: Input<'_, LogBlock>) {
        self.step(at, now, input);
        if self.delivers.replace(true) {
            return;
        }
        loop {
            let next = self.peers.borrow_mut().pop_front();
            let Some((from, to, message)) = next else { break };
            if let Some(at) = self.slot_of(to) {
                self.step(at, now, Input::Peer { from, message });
            }
        }
        self.delivers.set(false);
    }

    fn step(self: &Rc<Self>, at: usize, now: Now, input: Input<'_, LogBlock>) {
        let slot = &self.slots[at];
        let mut out = slot.outbox.take();
        slot.shard.borrow_mut().handle(now, input, &mut out);
        self.carry_out(at, &mut out);
        slot.outbox.replace(out);
    }

    /// Carries out what opening the shard left behind.
    pub(crate) fn begin(self: &Rc<Self>, at: usize) {
        let mut out = self.slots[at].outbox.take();
        self.carry_out(at, &mut out);
        self.slots[at].outbox.replace(out);
    }

    fn carry_out(self: &Rc<Self>, at: usize, out: &mut Outbox<LogBlock>) {
        if out.actions.is_empty() {
            return;
        }
        let slot = &self.slots[at];
        let Outbox { actions, heads, slices } = out;
        for action in actions.drain(..) {
            match action {
                Action::Write { write, position, block, durable } => {
                    self.write(at, write, position, block, durable);
                }
                Action::Sync { sync, from, to } => self.sync(at, sync, from, to),
                Action::MakeSegment { base, bytes } => self.make_segment(at, base, bytes),
                Action::Read { read, position, bytes } => self.read(at, read, position, bytes),
                Action::WriteIndex { rows } => self.write_index(at, rows),
                Action::ReadIndex { read, base, at: from, bytes } => {
                    self.read_index(at, read, base, from, bytes);
                }
                Action::Retire { base } => self.retire(at, base),
                Action::Punch { position, bytes } => self.punch(at, position, bytes),
                Action::Transfer { connection, head, position, bytes } => {
                    self.transfer(at, connection, &heads[head], position, bytes);
                }
                Action::Answer { connection, head, slices: range } => {
                    self.answer(slot, connection, &heads[head], &slices[range]);
                }
                Action::Peer { to, message } => match self.slot_of(to) {
                    Some(_) => self.peers.borrow_mut().push_back((slot.number, to, message)),
                    None => {
                        let parcel = Parcel::Peer { from: slot.number, to, message };
                        self.state.mesh.send(self.state.core_of(to), parcel);
                    }
                },
                Action::Topic(change) => self.state.control.topic(change),
                Action::WatchRoute { topic } => self.state.control.watch(topic, slot.number),
                Action::Stopped => {
                    if !slot.has_stopped.replace(true) {
                        self.state.shard_has_stopped();
                    }
                }
            }
        }
        out.clear();
    }

    fn answer(
        self: &Rc<Self>,
        slot: &Slot,
        connection: ConnectionId,
        head: &[u8],
        slices: &[Slice<LogBlock>],
    ) {
        let core = (connection >> CORE_SHIFT) as usize;
        if core != self.id {
            let run: usize = slices.iter().map(|slice| slice.range.len()).sum();
            let mut frame = Vec::with_capacity(head.len() + run);
            frame.extend_from_slice(head);
            for slice in slices {
                frame.extend_from_slice(bytes_of(slice));
            }
            self.state.mesh.send(core, Parcel::Answer { connection, frame });
            return;
        }
        let Some(connection) = self.connections.find(connection) else { return };
        if let Some(took) = connection.answered(head) {
            slot.latency.borrow_mut().append.saturating_record(took);
        }
        connection.push(head, slices);
        self.to_flush(connection);
    }

    /// Sends what the connection has at the end of the turn.
    pub(crate) fn to_flush(&self, connection: Rc<Connection>) {
        if !connection.is_to_flush.replace(true) {
            self.to_flush.borrow_mut().push(connection);
            self.turn.set();
        }
    }

    /// Takes a parcel from another core.
    pub(crate) fn take_parcel(self: &Rc<Self>, parcel: Parcel) {
        let now = self.state.now();
        match parcel {
            Parcel::Connection { fd, head } => crate::net::serve::adopt(self, fd, head),
            Parcel::Request { shard, connection, frame: bytes } => {
                // The other core parsed it: it is whole and within the limits.
                if let Ok(Some(frame)) = frame::parse(&bytes, u32::MAX) {
                    self.request(now, shard, connection, frame, &bytes);
                }
            }
            Parcel::Answer { connection, frame } => {
                let Some(connection) = self.connections.find(connection) else { return };
                connection.answered(&frame);
                connection.push(&frame, &[]);
                self.to_flush(connection);
            }
            Parcel::Closed { connection } => self.closed(now, connection),
            Parcel::Cut { connection } => {
                if let Some(connection) = self.connections.find(connection) {
                    connection.kill();
                }
            }
            Parcel::Beside { shard, done } => self.beside_done(shard, done),
            Parcel::Returned(back) => loans::returned(self, back),
            Parcel::Peer { from, to, message } => {
                if let Some(at) = self.slot_of(to) {
                    self.drive(at, now, Input::Peer { from, message });
                    self.turn.set();
                }
            }
        }
    }

    /// Tells the shards of this core that a connection is gone.
    pub(crate) fn closed(self: &Rc<Self>, now: Now, connection: ConnectionId) {
        for at in 0..self.slots.len() {
            self.drive(at, now, Input::ConnectionClosed { connection });
        }
        self.turn.set();
    }

    /// Ends every turn: builds units of what came together, sends answers, lets readers go on. Tasks that
    /// were ready together run before it, so several connections share a turn.
    pub(crate) async fn turns(self: Rc<Self>) {
        while !self.has_finished.get() {
            self.turn.wait().await;
            let now = self.state.now();
            let mut was_busy = false;
            for (at, slot) in self.slots.iter().enumerate() {
                if slot.has_requests.take() {
                    was_busy = true;
                    self.drive(at, now, Input::TurnEnd);
                }
            }
            was_busy |= !self.to_flush.borrow().is_empty();
            self.flush();
            if was_busy {
                let waiting = self.slots.iter().map(|slot| slot.shard.borrow().waiting()).sum();
                self.busy.extend(now.mono_us, waiting);
            }
            if !self.congested.is_empty() {
                self.relief.set();
            }
            let next = self.slots.iter().filter_map(|slot| slot.shard.borrow().next_wake()).min();
            self.wake.sooner(next);
        }
    }

    /// Lets readers go on once the ring was entered: a timer, however short, is looked at only after that.
    pub(crate) async fn relieve(self: Rc<Self>) {
        while !self.has_finished.get() {
            self.relief.wait().await;
            glommio::timer::sleep(Duration::from_micros(1)).await;
            self.round_bytes.set(0);
            self.congested.wake();
        }
    }

    /// Sends everything that waits.
    pub(crate) fn flush(self: &Rc<Self>) {
        let mut connections = self.to_flush.take();
        for connection in connections.drain(..) {
            connection.is_to_flush.set(false);
            connection.flush(self);
        }
        // The list keeps its memory; nothing was added meanwhile, sending adds no answers.
        let mut list = self.to_flush.borrow_mut();
        if list.is_empty() {
            *list = connections;
        }
    }

    /// Whether a shard of this core asks to read no more, or the ring waits to be entered.
    pub(crate) fn is_congested(&self, shard: u16) -> bool {
        self.round_bytes.get() >= ROUND_BYTES
            || self.slot_of(shard).is_some_and(|at| self.slots[at].shard.borrow().is_congested())
    }

    /// Ends the core's loops.
    pub(crate) fn finish(&self) {
        self.has_finished.set(true);
        self.turn.set();
        self.relief.set();
        self.busy.end();
        self.wake.ring();
        self.state.mesh.ring(self.id);
    }

    pub(crate) fn has_finished(&self) -> bool {
        self.has_finished.get()
    }
}

/// The bytes of a slice.
pub(crate) fn bytes_of(slice: &Slice<LogBlock>) -> &[u8] {
    &slice.block.bytes()[slice.range.start as usize..slice.range.end as usize]
}
