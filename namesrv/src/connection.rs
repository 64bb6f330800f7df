//! One connection to the name server.
//!
//! Reading, answering and pushing alternate in one task. Deadlines: `Hello` after connecting, the rest of a
//! frame after its first byte, the next frame, and the peer's taking what is sent.

use crate::config::NamesrvConfig;
use crate::route::Session;
use crate::server::Shared;
use crate::service::Peer;
use bytes::{Buf, BytesMut};
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::error::Status;
use ringmq_schema::frame;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

/// Before `Hello` a frame is not longer than this: nobody is known yet.
const HELLO_BYTES_MAX: u32 = 64 << 10;
/// Requests are answered, and pushes built, until so many bytes wait to be sent.
const OUT_BYTES: usize = 1 << 20;
/// Room made for each read.
const READ_BYTES: usize = 16 << 10;
/// How long a connection that was refused stays open for the refusal to arrive.
const LINGER: Duration = Duration::from_secs(1);
/// What a peer may still send in that time, in bytes.
const LINGER_BYTES_MAX: usize = 1 << 20;

/// See the module.
pub(crate) struct Connection {
    stream: TcpStream,
    from: SocketAddr,
    peer: Peer,
    waker: Arc<Notify>,
    shared: Arc<Shared>,
    input: BytesMut,
    out: Vec<u8>,
    /// When what is awaited from the peer must be there.
    due: Instant,
}

/// Forgets the session however its task ends.
struct Guard {
    session: Session,
    shared: Arc<Shared>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.wakers.remove(&self.session);
        state.service.counters.connections -= 1;
        state.service.closed(self.session);
        state.wake();
    }
}

impl Connection {
    pub(crate) fn new(
        stream: TcpStream,
        from: SocketAddr,
        session: Session,
        waker: Arc<Notify>,
        shared: Arc<Shared>,
    ) -> Connection {
        let due = Instant::now() + shared.config.handshake_timeout;
        let peer = Peer { session, greeted: false };
        let (input, out) = (BytesMut::new(), Vec::new());
        Connection { stream, from, peer, waker, shared, input, out, due }
    }

    pub(crate) async fn run(mut self) {
        let _guard = Guard { session: self.peer.session, shared: self.shared.clone() };
        prepare(&self.stream, &self.shared.config);
        match self.serve().await {
            Ok(()) => tracing::debug!(from = %self.from, "connection closed"),
            Err(error) => tracing::debug!(from = %self.from, %error, "connection closed"),
        }
    }

    async fn serve(&mut self) -> io::Result<()> {
        loop {
            let more = self.answer();
            let pushed = self.peer.greeted && self.push();
            self.flush().await?;
            if let Err(()) = more {
                return linger(&mut self.stream).await;
            }
            if pushed || more == Ok(true) {
                continue;
            }
            self.input.reserve(READ_BYTES);
            tokio::select! {
                read = timeout_at(self.due, self.stream.read_buf(&mut self.input)) => {
                    match read {
                        Ok(Ok(0)) => return Ok(()),
                        Ok(Ok(_)) => {}
                        Ok(Err(error)) => return Err(error),
                        Err(_) => return self.too_late().await,
                    }
                }
                () = self.waker.notified() => {}
            }
        }
    }

    /// Answers the frames that are there. `Ok(true)`: there are more; `Err`: the bytes are no frames, which
    /// the peer is told, and the connection must end.
    fn answer(&mut self) -> Result<bool, ()> {
        let config = &self.shared.config;
        let mut answered = false;
        while !self.input.is_empty() {
            if self.out.len() >= OUT_BYTES {
                return Ok(true);
            }
            let most = config.frame_bytes_max;
            let limit = if self.peer.greeted { most } else { most.min(HELLO_BYTES_MAX) };
            match frame::parse(&self.input, limit) {
                Ok(Some(parsed)) => {
                    let length = parsed.header.length.get() as usize;
                    let mut state = self.shared.lock();
                    let now = self.shared.now();
                    state.service.handle(&mut self.peer, parsed, now, &mut self.out);
                    state.wake();
                    drop(state);
                    self.input.advance(length);
                    answered = true;
                }
                Ok(None) => break,
                Err(error) => {
                    let (status, message) = (error.status(), error.to_string());
                    FrameBuilder::new().refuse(&mut self.out, 0, 0, status, &message);
                    tracing::debug!(from = %self.from, message, "no frame");
                    return Err(());
                }
            }
        }
        self.set_due(answered);
        if self.input.is_empty() && self.input.capacity() > READ_BYTES {
            // A large frame's buffer is not kept for the small ones that follow.
            self.input = BytesMut::new();
        }
        Ok(false)
    }

    /// When the next byte must have come: of `Hello`, of a frame that has begun, of any frame.
    fn set_due(&mut self, answered: bool) {
        if !self.peer.greeted {
            return;
        }
        let config = &self.shared.config;
        if self.input.is_empty() {
            if answered {
                self.due = Instant::now() + config.idle_timeout;
            }
            return;
        }
        let rest = Instant::now() + config.frame_timeout;
        // Counted from the frame's first byte: a trickle of further ones does not move it.
        self.due = if answered { rest } else { self.due.min(rest) };
    }

    fn push(&mut self) -> bool {
        let mut pushed = false;
        let mut state = self.shared.lock();
        while self.out.len() < OUT_BYTES && state.service.push(self.peer.session, &mut self.out) {
            pushed = true;
        }
        pushed
    }

    async fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        let wait = self.shared.config.write_timeout;
        let written = timeout(wait, self.stream.write_all(&self.out)).await;
        self.out.clear();
        self.out.shrink_to(OUT_BYTES / 16);
        written.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "nothing taken")))
    }

    async fn too_late(&mut self) -> io::Result<()> {
        let config = &self.shared.config;
        let message = match (self.peer.greeted, self.input.is_empty()) {
            (false, _) => format!("no Hello within {:?}", config.handshake_timeout),
            (true, false) => format!("the rest of a frame within {:?}", config.frame_timeout),
            (true, true) => return Ok(()),
        };
        FrameBuilder::new().refuse(&mut self.out, 0, 0, Status::BadFrame, &message);
        self.flush().await?;
        linger(&mut self.stream).await
    }
}

/// Small frames go at once, and a peer that vanished is noticed while there is something to send.
fn prepare(stream: &TcpStream, config: &NamesrvConfig) {
    let socket = socket2::SockRef::from(stream);
    let set = socket.set_tcp_nodelay(true);
    #[cfg(target_os = "linux")]
    let set = set.and_then(|()| socket.set_tcp_user_timeout(Some(config.write_timeout)));
    #[cfg(not(target_os = "linux"))]
    let _ = config;
    if let Err(error) = set {
        tracing::debug!(%error, "socket options");
    }
}

/// Tells a connection above the limit why it is not served.
pub(crate) async fn refuse_connection(mut stream: TcpStream, limit: usize) {
    let message = format!("this name server has its {limit} connections: close some, or come back");
    let mut out = Vec::new();
    FrameBuilder::new().refuse(&mut out, 0, 0, Status::TooManyConnections, &message);
    if timeout(LINGER, stream.write_all(&out)).await.is_ok() {
        // It is closed either way.
        let _ = linger(&mut stream).await;
    }
}

/// Closes so that what was written last arrives: closing with bytes unread would reset the connection.
async fn linger(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let deadline = Instant::now() + LINGER;
    let (mut waste, mut total) = (vec![0; READ_BYTES], 0);
    while let Ok(Ok(read)) = timeout_at(deadline, stream.read(&mut waste)).await {
        total += read;
        if read == 0 || total > LINGER_BYTES_MAX {
            break;
        }
    }
    Ok(())
}
