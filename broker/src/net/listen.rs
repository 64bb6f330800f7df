//! The listener: one port, accepted on the first core.
//!
//! Invariants:
//! - a port that is taken is an error, never shared;
//! - beyond `max_connections` a few more are accepted only to be told so, the rest are closed at once.

use super::serve;
use crate::shard::core::Core;
use crate::sys;
use anyhow::{Context, bail};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::cell::RefCell;
use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// Surplus connections that are told so at the same time.
pub(crate) const SURPLUS_MAX: usize = 64;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A peer that acknowledges nothing for so long is gone.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// A silent peer is asked after this.
const KEEPALIVE: Duration = Duration::from_secs(30);

thread_local! {
    /// The core's second descriptor of its listener: shutting it down ends the accepting task.
    static LISTENING: RefCell<Option<Socket>> = const { RefCell::new(None) };
}

/// Binds the broker's port.
pub(crate) fn bind(address: SocketAddr) -> anyhow::Result<(Socket, SocketAddr)> {
    let bound = || -> std::io::Result<(Socket, SocketAddr)> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // For connections of a broker that just ended; two listeners still exclude each other.
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let local = socket.local_addr()?.as_socket();
        Ok((socket, local.ok_or(ErrorKind::AddrNotAvailable)?))
    };
    match bound() {
        Ok(bound) => Ok(bound),
        Err(error) if error.kind() == ErrorKind::AddrInUse => bail!(
            "{address} is in use by another process: choose another port with --port (0 picks one), or \
             stop that process (`ss -ltnp` shows it)"
        ),
        Err(error) => Err(error).with_context(|| format!("cannot listen at {address}")),
    }
}

/// Accepts connections on this core until [`stop`].
pub(crate) fn start(core: &Rc<Core>, listener: Socket) {
    match listener.try_clone() {
        Ok(second) => LISTENING.set(Some(second)),
        Err(error) => tracing::warn!("the listener cannot be stopped before the end: {error}"),
    }
    let accepting = Rc::clone(core);
    core.loops.spawn(async move { accept(accepting, sys::adopt_listener(listener.into())).await });
}

/// Accepts no more.
pub(crate) fn stop(_core: &Rc<Core>) {
    if let Some(listener) = LISTENING.take() {
        let _ = listener.shutdown(Shutdown::Both);
    }
}

async fn accept(core: Rc<Core>, listener: glommio::net::TcpListener) {
    loop {
        let accepted = listener.accept().await;
        if core.state.is_stopping() {
            return;
        }
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!("a connection could not be accepted: {error}");
                glommio::timer::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let before = core.state.connection_came();
        let most = core.state.config.max_connections;
        if before >= most + SURPLUS_MAX {
            core.state.connection_went();
            continue;
        }
        prepare(&sys::descriptor(&stream));
        let connection = core.connections.add(stream, before >= most);
        let serving = Rc::clone(&core);
        core.tasks.spawn(async move { serve::serve(serving, connection, Vec::new()).await });
    }
}

/// Socket options: none of them is worth losing the connection for.
fn prepare(stream: &std::os::fd::BorrowedFd<'_>) {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3);
    let set = socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_tcp_user_timeout(Some(USER_TIMEOUT)))
        .and_then(|()| socket.set_tcp_keepalive(&keepalive));
    if let Err(error) = set {
        tracing::debug!("options of a connection: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_refused_with_the_remedy() {
        let (_first, address) = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_ne!(address.port(), 0);
        let error = bind(address).unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains("--port"), "{error}");
    }
}
