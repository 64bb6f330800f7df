//! What is to happen, by time; chance decides among things of one moment.

use crate::sim::random::Random;
use ringmq_core::peer::PeerMessage;
use ringmq_core::route::TopicRoutes;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Something that happens. What concerns the broker bears the number of its life, and is nothing in another.
#[derive(Debug)]
#[allow(missing_docs)]
pub(super) enum Event {
    Wake {
        client: usize,
    },
    /// The next request of a connection comes in.
    Request {
        life: u32,
        connection: u64,
    },
    /// The next answer of a connection comes out.
    Answer {
        life: u32,
        connection: u64,
    },
    Closed {
        life: u32,
        connection: u64,
        shard: u16,
    },
    TurnEnd {
        life: u32,
        shard: u16,
    },
    Tick {
        life: u32,
        shard: u16,
        at_us: u64,
    },
    DiskDone {
        life: u32,
        shard: u16,
        op: u64,
    },
    /// A write is reported whose operation has not ended (only planted bugs do).
    Reported {
        life: u32,
        shard: u16,
        write: u64,
    },
    Peer {
        life: u32,
        from: u16,
        to: u16,
    },
    Routes {
        life: u32,
        shard: u16,
        routes: TopicRoutes,
    },
    DiskHasRoom {
        life: u32,
        shard: u16,
        room: bool,
    },
}

/// Messages between two shards, in their order.
pub(super) type PeerQueue = std::collections::VecDeque<PeerMessage>;

#[derive(Debug)]
struct Scheduled {
    at_us: u64,
    chance: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    // Turned round: a heap gives its greatest first.
    fn cmp(&self, other: &Scheduled) -> Ordering {
        (other.at_us, other.chance).cmp(&(self.at_us, self.chance))
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Events {
    heap: BinaryHeap<Scheduled>,
    random: Random,
}

impl Events {
    /// Nothing yet.
    pub(super) fn new(random: Random) -> Events {
        Events { heap: BinaryHeap::new(), random }
    }

    /// It happens at that time.
    pub(super) fn at(&mut self, at_us: u64, event: Event) {
        let chance = self.random.number();
        self.heap.push(Scheduled { at_us, chance, event });
    }

    /// When the next thing happens.
    pub(super) fn next_us(&self) -> Option<u64> {
        self.heap.peek().map(|scheduled| scheduled.at_us)
    }

    /// The next thing and its time.
    pub(super) fn pop(&mut self) -> Option<(u64, Event)> {
        self.heap.pop().map(|scheduled| (scheduled.at_us, scheduled.event))
    }
}
