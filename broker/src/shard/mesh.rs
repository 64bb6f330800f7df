//! What cores send each other, and what the threads beside them send them.
//!
//! Invariants:
//! - what one core sends another arrives in order, exactly once, while both run;
//! - nobody waits for room while holding anything: parcels queue at the receiver. Their number is bounded
//!   by what connections may have in flight;
//! - a parcel that finds the inbox empty rings its bell, and the receiver empties the inbox after each
//!   ring: no parcel is left without a ring behind it.
//!
//! Nothing of this is on the way of a request at its own shard. glommio's own mesh is not used: its
//! `MeshBuilder` shares an `Rc` and a lock without atomics between threads, and two executors that join
//! it at the same moment were seen to wait for each other for ever.

use super::core::Core;
use crate::disk::beside::Done;
use crate::net::transfer::Returned;
use futures_util::io::AsyncReadExt;
use ringmq_core::ConnectionId;
use ringmq_core::peer::PeerMessage;
use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

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
    /// A connection there cannot have its answer: it is to be closed.
    Cut { connection: ConnectionId },
    /// From the thread that does what would block a core.
    Beside { shard: u16, done: Done },
    /// From a transfer thread.
    Returned(Returned),
}

/// The inboxes of all cores.
#[derive(Debug)]
pub(crate) struct Mesh {
    inboxes: Vec<Inbox>,
}

#[derive(Debug)]
struct Inbox {
    parcels: Mutex<VecDeque<Parcel>>,
    bell: UnixStream,
}

impl Mesh {
    /// Inboxes for so many cores, and for each core the end of its bell where it listens.
    pub(crate) fn new(cores: usize) -> std::io::Result<(Mesh, Vec<UnixStream>)> {
        let (mut inboxes, mut ears) = (Vec::new(), Vec::new());
        for _ in 0..cores {
            let (bell, ear) = UnixStream::pair()?;
            bell.set_nonblocking(true)?;
            inboxes.push(Inbox { parcels: Mutex::default(), bell });
            ears.push(ear);
        }
        Ok((Mesh { inboxes }, ears))
    }

    /// Sends a parcel to a core.
    pub(crate) fn send(&self, core: usize, parcel: Parcel) {
        let inbox = &self.inboxes[core];
        let mut parcels = inbox.parcels.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = parcels.is_empty();
        parcels.push_back(parcel);
        drop(parcels);
        if was_empty {
            self.ring(core);
        }
    }

    /// Lets a core look into its inbox, and at whatever else it was told.
    pub(crate) fn ring(&self, core: usize) {
        // A bell that is full rings already; one without a listener belongs to a core that has ended.
        let _ = (&self.inboxes[core].bell).write(&[1]);
    }

    pub(super) fn take(&self, core: usize) -> VecDeque<Parcel> {
        let mut parcels = self.inboxes[core].parcels.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *parcels)
    }
}

/// Takes parcels from the core's inbox until the core has finished.
pub(crate) async fn receive(core: Rc<Core>, ear: UnixStream) {
    let mut ear = crate::sys::adopt_stream(ear.into());
    let mut rings = [0; 64];
    while !core.has_finished() {
        match ear.read(&mut rings).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::error!(core = core.id, "the core hears no other: {error}");
                return;
            }
        }
        for parcel in core.state.mesh.take(core.id) {
            core.take_parcel(parcel);
        }
    }
}
