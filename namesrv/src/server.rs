//! The name server's thread: sockets around [`Service`].
//!
//! Invariants:
//! - one task a connection: it reads only after it has written what it had to say, so that a peer which
//!   does not take its answers is not listened to either, and closed after a while;
//! - memory of a connection is bounded: one frame in, and out what one turn of requests or pushes makes;
//! - every task is owned by `run`, which ends them all before the thread ends.

use crate::config::NamesrvConfig;
use crate::connection::{Connection, refuse_connection};
use crate::http;
use crate::service::{Now, Service, Wakers};
use anyhow::{Context, anyhow, ensure};
use socket2::{Domain, Socket, Type};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

/// Length of the queue of connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Connections above the limit that are told so at the same time; further ones are just closed.
const REFUSALS_MAX: usize = 64;

/// A name server in this process.
#[derive(Debug)]
pub struct NameServer;

/// A running name server. Dropping it stops it.
#[derive(Debug)]
pub struct NameServerHandle {
    address: SocketAddr,
    http_address: Option<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl NameServer {
    /// Binds, and serves from a thread of its own.
    pub fn start(config: NamesrvConfig) -> anyhow::Result<NameServerHandle> {
        for listen in [Some(config.listen), config.http_listen].into_iter().flatten() {
            ensure!(
                listen.ip().is_loopback() || config.insecure,
                "listening on {listen} would let anybody on the network in, and there is no \
                 authentication yet: listen on 127.0.0.1, or say --insecure if the network is trusted"
            );
        }
        let listener = bind(config.listen)?;
        let http_listener = config.http_listen.map(bind).transpose()?;
        let address = listener.local_addr().context("reading the address listened on")?;
        let http_address = http_listener
            .as_ref()
            .map(std::net::TcpListener::local_addr)
            .transpose()
            .context("reading the address listened on")?;
        let (stop, stopped) = oneshot::channel();
        let (started, start) = mpsc::channel();
        // The runtime is made and dropped in its thread: the caller may be inside another one.
        let thread = std::thread::Builder::new()
            .name("ringmq-namesrv".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                // The receiver waits for exactly one message.
                let _ = match runtime {
                    Err(error) => started.send(Err(error)),
                    Ok(runtime) => {
                        let served = run(config, listener, http_listener, stopped, &started);
                        runtime.block_on(served).or_else(|error| started.send(Err(error)))
                    }
                };
            })
            .context("starting the name server's thread")?;
        start
            .recv()
            .context("the name server's thread ended at once")?
            .context("preparing the name server's runtime")?;
        Ok(NameServerHandle { address, http_address, stop: Some(stop), thread: Some(thread) })
    }
}

impl NameServerHandle {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it serves metrics and health.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Whether its thread is there: it ends by [`NameServerHandle::stop`], or by a fault of ours.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Closes all connections and ends the thread.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        // An error says that the thread is gone already; joining tells why.
        let _ = self.stop.take().map(|stop| stop.send(()));
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_| anyhow!("the name server's thread panicked"))
    }
}

impl Drop for NameServerHandle {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!("{error:#}");
        }
    }
}

fn bind(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        std::io::Result::Ok(socket.into())
    };
    listen().with_context(|| {
        format!("cannot listen on {address} (is another server running there? port 0 picks one)")
    })
}

/// What all connections share. Locks are short and never held across an await.
pub(crate) struct Shared {
    pub(crate) config: NamesrvConfig,
    pub(crate) state: Mutex<State>,
    started: Instant,
}

pub(crate) struct State {
    pub(crate) service: Service,
    pub(crate) wakers: Wakers,
}

impl Shared {
    /// The state. A panic of a task that held it must not take the others with it: the tables are
    /// changed by calls that do not panic half-way.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn now(&self) -> Now {
        Now { mono_ms: self.started.elapsed().as_millis() as u64, wall_ms: wall_ms() }
    }
}

impl State {
    /// Wakes the connections that have something to tell their subscriber.
    pub(crate) fn wake(&mut self) {
        for session in self.service.take_wake() {
            if let Some(waker) = self.wakers.get(&session) {
                waker.notify_one();
            }
        }
    }
}

fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// Another number at every start.
fn instance() -> u64 {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    ringmq_schema::placement::mix(nanos as u64 ^ (u64::from(std::process::id()) << 40))
}

async fn run(
    config: NamesrvConfig,
    listener: std::net::TcpListener,
    http_listener: Option<std::net::TcpListener>,
    mut stopped: oneshot::Receiver<()>,
    ready: &mpsc::Sender<std::io::Result<()>>,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let http_listener = http_listener.map(TcpListener::from_std).transpose()?;
    // The receiver waits for exactly this.
    let _ = ready.send(Ok(()));
    let started = Instant::now();
    let now = Now { mono_ms: 0, wall_ms: wall_ms() };
    let service = Service::new(config.clone(), instance(), now);
    let state = Mutex::new(State { service, wakers: Wakers::new() });
    let check_every = (config.expiry / 10).clamp(Duration::from_millis(5), Duration::from_secs(1));
    let shared = Arc::new(Shared { config, state, started });
    let mut http_task = JoinSet::new();
    if let Some(listener) = http_listener {
        http_task.spawn(http::serve(listener, shared.clone()));
    }
    let (mut connections, mut refusals) = (JoinSet::new(), JoinSet::new());
    let mut next_session = 1;
    let mut check = tokio::time::interval(check_every);
    check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(_) = connections.join_next() => {}
            Some(_) = refusals.join_next() => {}
            _ = check.tick() => {
                let mut state = shared.lock();
                state.service.expire(shared.now());
                state.wake();
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() >= shared.config.connections_max => {
                    if refusals.len() < REFUSALS_MAX {
                        refusals.spawn(refuse_connection(stream, shared.config.connections_max));
                    }
                }
                Ok((stream, from)) => {
                    let waker = Arc::new(Notify::new());
                    let mut state = shared.lock();
                    state.wakers.insert(next_session, waker.clone());
                    state.service.counters.connections += 1;
                    drop(state);
                    let session = next_session;
                    next_session += 1;
                    let connection = Connection::new(stream, from, session, waker, shared.clone());
                    connections.spawn(connection.run());
                }
                Err(error) => {
                    // Out of descriptors, most likely: others must close before this can succeed.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    drop(listener);
    connections.shutdown().await;
    refusals.shutdown().await;
    http_task.shutdown().await;
    Ok(())
}
