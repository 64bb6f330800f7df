//! What cores send each other.
//!
//! Invariants:
//! - what one core sends another arrives in order, exactly once, while both run;
//! - nobody waits for room while holding anything: parcels queue at the sender. Their number is bounded
//!   by what connections may have in flight.

use super::signal::Signal;
use glommio::channels::channel_mesh::Senders;
use ringmq_core::ConnectionId;
use ringmq_core::peer::PeerMessage;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// Parcels between two cores before the sender waits.
pub(crate) const CHANNEL_PARCELS: usize = 1024;

/// One thing sent to another core.
#[derive(Debug)]
pub(crate) enum Parcel {
    /// A connection to be served there; `head` came already, its first frame is the `Hello`.
    Connection { fd: OwnedFd, head: Vec<u8> },
    /// A frame for a shard there.
    Request { shard: u16, connection: ConnectionId, frame: Vec<u8> },
    /// A frame for a connection there.
    Answer { connection: ConnectionId, frame: Vec<u8> },
    /// A connection that sent requests there is gone.
    Closed { connection: ConnectionId },
    /// From shard to shard.
    Peer { from: u16, to: u16, message: PeerMessage },
}

/// Parcels on their way from one core to the others.
#[derive(Debug)]
pub(crate) struct Outgoing {
    lanes: Vec<Lane>,
    closed: Cell<bool>,
}

#[derive(Debug, Default)]
struct Lane {
    parcels: RefCell<VecDeque<Parcel>>,
    signal: Signal,
}

impl Outgoing {
    pub(crate) fn new(cores: usize) -> Outgoing {
        Outgoing { lanes: (0..cores).map(|_| Lane::default()).collect(), closed: Cell::new(false) }
    }

    /// Sends a parcel to a core.
    pub(crate) fn send(&self, core: usize, parcel: Parcel) {
        let lane = &self.lanes[core];
        lane.parcels.borrow_mut().push_back(parcel);
        lane.signal.set();
    }

    /// Ends [`Outgoing::carry`] once everything is sent.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        for lane in &self.lanes {
            lane.signal.set();
        }
    }

    /// Carries parcels to one core until [`Outgoing::close`].
    pub(crate) async fn carry(&self, core: usize, senders: Rc<Senders<Parcel>>) {
        let lane = &self.lanes[core];
        loop {
            let parcel = lane.parcels.borrow_mut().pop_front();
            match parcel {
                Some(parcel) => {
                    if senders.send_to(core, parcel).await.is_err() {
                        // The other core has ended: nobody is left to tell.
                        return;
                    }
                }
                None if self.closed.get() => return,
                None => lane.signal.wait().await,
            }
        }
    }
}
