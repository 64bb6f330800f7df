//! A lane: one queue's batches, from the open one that gathers messages to those on their way.
//!
//! Invariants:
//! - sealed batches leave in order; a batch that goes again on the same queue goes first;
//! - an ordered lane has at most one batch on its way, so a retry never overtakes.

use super::receipt::Outcome;
use super::select::Target;
use super::window::Room;
use crate::connection::Connection;
use crate::error::Error;
use crate::message::Flush;
use crate::route::Queue;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

/// Batches of a plain lane on their way at a time: beyond it, messages gather into larger batches.
const IN_FLIGHT_MAX: usize = 16;

/// What the messages of a lane have in common beside the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// May go to another queue when it must be sent again.
    Plain = 0,
    /// With a message group or an explicit queue: never elsewhere, never out of order.
    Ordered = 1,
    /// Nobody waits for an answer.
    OneWay = 2,
}

/// Number of [`Class`]es.
pub(super) const CLASSES: usize = 3;

/// Messages that travel together.
pub(super) struct Batch {
    /// Records while the batch is open.
    pub(super) building: Vec<u8>,
    /// Records once it is sealed.
    pub(super) run: Bytes,
    pub(super) records: u32,
    /// Window room that its messages hold.
    pub(super) room: Room,
    pub(super) outcome: Arc<Outcome>,
    pub(super) flush: Flush,
    /// Whether its messages have a delivery time.
    pub(super) delayed: bool,
    pub(super) opened: Instant,
    pub(super) deadline: Instant,
    /// Topic id and queue in its records' headers.
    pub(super) addressed: (u32, u32),
    /// Attempts that reached a broker, or may have.
    pub(super) attempts: u32,
    /// All attempts.
    pub(super) tries: u32,
    pub(super) last_error: Option<Error>,
    /// An earlier attempt may have stored it.
    pub(super) maybe_stored: bool,
}

impl Batch {
    pub(super) fn new(
        building: Vec<u8>,
        flush: Flush,
        addressed: (u32, u32),
        opened: Instant,
        deadline: Instant,
    ) -> Batch {
        Batch {
            building,
            run: Bytes::new(),
            records: 0,
            room: Room::default(),
            outcome: Arc::default(),
            flush,
            delayed: false,
            opened,
            deadline,
            addressed,
            attempts: 0,
            tries: 0,
            last_error: None,
            maybe_stored: false,
        }
    }

    /// Closes it for further messages.
    pub(super) fn seal(mut self) -> Batch {
        self.run = Bytes::from(std::mem::take(&mut self.building));
        self
    }

    /// Writes another topic id and queue into its records, where they differ.
    pub(super) fn address(&mut self, topic_id: u32, queue: u32) {
        if self.addressed == (topic_id, queue) {
            return;
        }
        // A connection that broke may still hold the bytes of an earlier attempt; then they are copied.
        let mut run = Vec::from(std::mem::take(&mut self.run));
        ringmq_schema::build::readdress(&mut run, topic_id, queue);
        self.run = Bytes::from(run);
        self.addressed = (topic_id, queue);
    }
}

/// See the module.
pub(super) struct Lane {
    pub(super) queue: Arc<Queue>,
    pub(super) class: Class,
    /// Where the queue is; `None` when the route no longer has it.
    pub(super) target: Option<Target>,
    pub(super) connection: Option<Arc<Connection>>,
    /// Its connection is being opened.
    pub(super) connecting: bool,
    pub(super) open: Option<Batch>,
    pub(super) sealed: VecDeque<Batch>,
    pub(super) in_flight: usize,
    /// Nothing is sent before: a broker asked for a pause.
    pub(super) blocked_until: Option<Instant>,
    /// The open batch is on the list of those to flush.
    pub(super) listed: bool,
}

impl Lane {
    pub(super) fn new(target: Target, class: Class) -> Lane {
        Lane {
            queue: Arc::clone(&target.queue),
            class,
            target: Some(target),
            connection: None,
            connecting: false,
            open: None,
            sealed: VecDeque::new(),
            in_flight: 0,
            blocked_until: None,
            listed: false,
        }
    }

    /// Takes over where the queue is now.
    pub(super) fn moved(&mut self, target: Option<Target>) {
        if self.target != target {
            self.connection = None;
            self.target = target;
        }
    }

    pub(super) fn is_blocked(&self, now: Instant) -> bool {
        self.blocked_until.is_some_and(|until| until > now)
    }

    /// Whether a batch could leave now.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        let most = if self.class == Class::Ordered { 1 } else { IN_FLIGHT_MAX };
        self.in_flight < most && !self.is_blocked(now)
    }

    /// Closes the open batch, if there is one.
    pub(super) fn seal(&mut self) {
        if let Some(open) = self.open.take() {
            self.sealed.push_back(open.seal());
        }
    }
}
