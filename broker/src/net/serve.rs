//! Reading one connection: every whole frame that one `recv` brought is handed over where it lies.
//!
//! Invariants:
//! - a frame's length is checked before a byte of it is kept, and memory grows with what came, not with
//!   what was announced;
//! - a connection that broke the protocol is told why, then closed.

use super::connection::Connection;
use crate::shard::core::{Core, RECEIVE_BYTES};
use crate::shard::mesh::Parcel;
use crate::sys;
use ringmq_schema::frame;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use super::dispatch::{self, Step};

/// Up to this length an unfinished frame is copied in front of the next `recv`, which then brings the
/// frames behind it too; a longer one gets its rest by a `recv` of its own.
const JOINED_BYTES_MAX: usize = 16 << 10;
/// Memory for a long frame begins with this and doubles as it is filled.
const GROW_BYTES_MIN: usize = 64 << 10;

/// Waits for the next round of the executor.
const ROUND: Duration = Duration::from_micros(1);

/// Takes over a connection that another core accepted.
pub(crate) fn adopt(core: &Rc<Core>, fd: OwnedFd, head: Vec<u8>) {
    let connection = core.connections.add(sys::adopt_stream(fd), false);
    let serving = Rc::clone(core);
    core.tasks.spawn(async move { serve(serving, connection, head).await });
}

/// Serves a connection until it ends. `head` came already.
pub(crate) async fn serve(core: Rc<Core>, connection: Rc<Connection>, head: Vec<u8>) {
    let mut moves_to = take(&core, &connection, &head);
    drop(head);
    while moves_to.is_none() {
        connection.room.wait_while(|| connection.is_full(&core)).await;
        if let Some(shard) = connection.shard.get() {
            let waits = || core.is_congested(shard) && !connection.is_dead();
            core.congested.wait_while(waits).await;
        }
        match receive(&core, &connection).await {
            Ok(Received::Nothing) | Err(_) => break,
            Ok(Received::Joined(bytes)) => {
                moves_to = take(&core, &connection, &core.receive.borrow()[..bytes]);
                if bytes == RECEIVE_BYTES {
                    // There is more: others first, and completions, which glommio only looks at when
                    // no task is ready.
                    glommio::timer::sleep(ROUND).await;
                }
            }
            Ok(Received::Apart) => moves_to = take_apart(&core, &connection),
        }
    }
    core.connections.remove(connection.id);
    if let Some((to, head)) = moves_to {
        match connection.duplicate() {
            Ok(fd) => return core.state.mesh.send(to, Parcel::Connection { fd, head }),
            Err(error) => tracing::warn!("cannot move a connection to core {to}: {error}"),
        }
    }
    connection.kill();
    core.state.connection_went();
    if connection.shard.get().is_some() {
        core.closed(core.state.now(), connection.id);
    }
    if connection.reached_out.get() {
        for other in (0..core.state.cores).filter(|other| *other != core.id) {
            core.state.mesh.send(other, Parcel::Closed { connection: connection.id });
        }
    }
}

/// What came.
enum Received {
    /// The end.
    Nothing,
    /// So many bytes in the core's buffer, what the connection had kept in front.
    Joined(usize),
    /// More of a long frame, in the connection's own memory.
    Apart,
}

async fn receive(core: &Rc<Core>, connection: &Rc<Connection>) -> io::Result<Received> {
    poll_fn(|cx| {
        let mut partial = connection.partial.borrow_mut();
        let filled = partial.filled;
        if filled <= JOINED_BYTES_MAX {
            let mut buffer = core.receive.borrow_mut();
            buffer[..filled].copy_from_slice(&partial.bytes[..filled]);
            let bytes = ready!(connection.poll_read(cx, &mut buffer[filled..]))?;
            let received =
                if bytes == 0 { Received::Nothing } else { Received::Joined(filled + bytes) };
            return Poll::Ready(Ok(received));
        }
        let end = apart_end(&partial.bytes[..filled]);
        if partial.bytes.len() < end {
            partial.bytes.resize(end, 0);
        }
        let bytes = ready!(connection.poll_read(cx, &mut partial.bytes[filled..end]))?;
        partial.filled += bytes;
        Poll::Ready(Ok(if bytes == 0 { Received::Nothing } else { Received::Apart }))
    })
    .await
}

/// How far to fill the memory of a long frame of which these bytes are there.
fn apart_end(bytes: &[u8]) -> usize {
    // The header was checked when the bytes were kept.
    let length = match frame::parse_header(bytes, u32::MAX) {
        Ok(Some(header)) => header.length.get() as usize,
        _ => bytes.len() + 1,
    };
    length.min((2 * bytes.len()).max(GROW_BYTES_MIN))
}

/// Hands over every whole frame and keeps the rest. Returns the core that is to serve the connection
/// and what it must be given, if it is another.
fn take(core: &Rc<Core>, connection: &Rc<Connection>, bytes: &[u8]) -> Option<(usize, Vec<u8>)> {
    let mut partial = connection.partial.borrow_mut();
    if connection.is_refused() {
        partial.clear();
        return None;
    }
    match dispatch::frames(core, connection, bytes) {
        Step::Took(taken) => {
            let since = partial.since.filter(|_| taken == 0);
            partial.keep(&bytes[taken..]);
            // A frame that comes in drops is not younger for each of them.
            partial.since = since.or(partial.since);
            None
        }
        Step::Refused => {
            partial.clear();
            connection.refuse();
            core.to_flush(Rc::clone(connection));
            None
        }
        Step::HandOver { core: to, at } => Some((to, bytes[at..].to_vec())),
    }
}

/// Looks whether a long frame is whole by now.
fn take_apart(core: &Rc<Core>, connection: &Rc<Connection>) -> Option<(usize, Vec<u8>)> {
    let whole = {
        let partial = connection.partial.borrow();
        let bytes = &partial.bytes[..partial.filled];
        matches!(frame::parse(bytes, u32::MAX), Ok(Some(_)))
    };
    if !whole {
        return None;
    }
    // Its memory is taken out while the frame is handed over, and serves the next long one.
    let mut partial = connection.partial.take();
    let moves_to = take(core, connection, &partial.bytes[..partial.filled]);
    partial.clear();
    connection.partial.replace(partial);
    moves_to
}
