//! A connection of its own to every name server, kept up for as long as the broker runs.
//!
//! Invariants:
//! - name servers are independent: none waits for another, and the broker waits for none;
//! - every wait for a name server has an end; after it the connection is made anew, with a growing pause;
//! - with no name server configured, what executors say is dropped here, so that it does not pile up.

use super::routes::Routes;
use super::session::{Received, Session};
use super::topics::Topics;
use super::{ControlConfig, Shared, until_stopped};
use anyhow::{Context, bail};
use bytes::{Buf, BytesMut};
use ringmq_schema::{frame, limits};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, timeout};

const HEARTBEAT: Duration = Duration::from_secs(1);
/// A name server that says nothing for so long, though it is asked each second, is gone.
const SILENCE: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(3);
/// For a name server to take what is sent.
const WRITE: Duration = Duration::from_secs(5);
/// For a name server to take and confirm the broker's leaving.
const LEAVE: Duration = Duration::from_millis(500);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Longest frame taken: the longest answer that a server sends, and its table.
const FRAME_BYTES_MAX: u32 = (limits::FETCH_BYTES_MAX + limits::TABLE_BYTES_MAX) as u32;
const READ_BYTES: usize = 16 << 10;

#[derive(Debug, Default)]
struct View {
    topics: Topics,
    routes: Routes,
}

/// What the links share.
struct Links {
    config: ControlConfig,
    shared: Arc<Shared>,
    view: Mutex<View>,
}

impl Links {
    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what executors said.
    fn gather(&self) {
        let outgoing = self.shared.take_outgoing();
        if self.config.namesrv.is_empty() {
            return;
        }
        let mut view = self.view();
        for change in outgoing.topics {
            view.topics.apply(change);
        }
        for (topic, shard) in outgoing.watches {
            if let Some(known) = view.routes.watch(&topic, shard) {
                self.shared.give_routes(shard, known);
            }
        }
    }

    fn update(&self, session: &mut Session, out: &mut Vec<u8>) {
        let view = self.view();
        let ready = self.shared.is_ready();
        session.update(&self.config, ready, (&view.topics, &view.routes), out);
    }

    fn routes(&self, server: usize, routes: Vec<(String, Vec<ringmq_core::route::BrokerRoute>)>) {
        let mut view = self.view();
        for (topic, brokers) in routes {
            let Some((told, shards)) = view.routes.answer(server, &topic, brokers) else {
                continue;
            };
            for shard in shards {
                self.shared.give_routes(shard, told.clone());
            }
        }
    }
}

/// Runs all links until the control plane stops.
pub(super) async fn run(
    config: ControlConfig,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let links = Arc::new(Links { config, shared: shared.clone(), view: Mutex::default() });
    let (news, _) = watch::channel(());
    let mut tasks = JoinSet::new();
    for server in 0..links.config.namesrv.len() {
        tasks.spawn(keep(server, links.clone(), news.subscribe(), stopped.clone()));
    }
    loop {
        links.gather();
        news.send_replace(());
        tokio::select! {
            () = shared.changed.notified() => {}
            () = until_stopped(&mut stopped) => break,
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// One link, connected again and again.
async fn keep(
    server: usize,
    links: Arc<Links>,
    mut news: watch::Receiver<()>,
    mut stopped: watch::Receiver<bool>,
) {
    let address = &links.config.namesrv[server];
    let mut pause = PAUSE_MIN;
    let mut reported = false;
    while !*stopped.borrow() {
        let mut accepted = false;
        let link = Link { server, links: &links, accepted: &mut accepted };
        match link.serve(&mut news, &mut stopped).await {
            Ok(()) => break,
            Err(error) if accepted || !reported => {
                tracing::warn!("name server {address}: {error:#}");
            }
            Err(error) => tracing::debug!("name server {address}: {error:#}"),
        }
        reported = true;
        links.view().routes.lost(server);
        if accepted {
            links.shared.linked(-1);
            pause = PAUSE_MIN;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = until_stopped(&mut stopped) => {}
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

struct Link<'a> {
    server: usize,
    links: &'a Links,
    /// Set once the name server has taken something.
    accepted: &'a mut bool,
}

impl Link<'_> {
    /// One connection; `Ok` when the control plane stops.
    async fn serve(
        mut self,
        news: &mut watch::Receiver<()>,
        stopped: &mut watch::Receiver<bool>,
    ) -> anyhow::Result<()> {
        let mut stream = tokio::select! {
            stream = connect(&self.links.config.namesrv[self.server]) => stream?,
            () = until_stopped(stopped) => return Ok(()),
        };
        let mut input = BytesMut::new();
        let mut out = Vec::new();
        let mut session = Session::begin(&self.links.config, &mut out);
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            send(&mut stream, &mut out, WRITE).await?;
            input.reserve(READ_BYTES);
            tokio::select! {
                () = until_stopped(stopped) => {
                    return self.leave(&mut stream, &mut session, &mut input).await;
                }
                changed = news.changed() => changed.context("the control plane has ended")?,
                _ = beat.tick() => {
                    if heard.elapsed() >= SILENCE {
                        bail!("no answer for {SILENCE:?}");
                    }
                    session.heartbeat(&self.links.view().topics, &mut out);
                }
                read = stream.read_buf(&mut input) => {
                    if read.context("reading")? == 0 {
                        bail!("it closed the connection");
                    }
                    heard = Instant::now();
                    self.receive(&mut session, &mut input)?;
                }
            }
            self.links.update(&mut session, &mut out);
        }
    }

    fn receive(&mut self, session: &mut Session, input: &mut BytesMut) -> anyhow::Result<()> {
        while let Some(frame) = frame::parse(input, FRAME_BYTES_MAX)? {
            let length = frame.header.length.get() as usize;
            match session.receive(&frame).map_err(anyhow::Error::msg)? {
                Received::Nothing => {}
                Received::Accepted => {
                    if !std::mem::replace(self.accepted, true) {
                        self.links.shared.linked(1);
                        let address = &self.links.config.namesrv[self.server];
                        tracing::info!("registered at name server {address}");
                    }
                }
                Received::Routes(routes) => self.links.routes(self.server, routes),
            }
            input.advance(length);
        }
        Ok(())
    }

    /// Says that the broker leaves, and waits a moment for the name server to have heard it.
    async fn leave(
        &mut self,
        stream: &mut TcpStream,
        session: &mut Session,
        input: &mut BytesMut,
    ) -> anyhow::Result<()> {
        let mut out = Vec::new();
        if !session.leave(&mut out) || send(stream, &mut out, LEAVE).await.is_err() {
            return Ok(());
        }
        let closing = async {
            stream.shutdown().await?;
            // The name server answers, then closes.
            while stream.read_buf(input).await? > 0 {
                input.clear();
            }
            std::io::Result::Ok(())
        };
        if let Err(error) = timeout(LEAVE, closing).await {
            tracing::debug!(%error, "a name server did not confirm that the broker left");
        }
        Ok(())
    }
}

async fn connect(address: &str) -> anyhow::Result<TcpStream> {
    let stream = timeout(CONNECT, TcpStream::connect(address))
        .await
        .with_context(|| format!("connecting took longer than {CONNECT:?}"))?
        .context("connecting")?;
    let socket = socket2::SockRef::from(&stream);
    socket.set_tcp_nodelay(true).context("setting TCP_NODELAY")?;
    socket.set_tcp_user_timeout(Some(SILENCE)).context("setting TCP_USER_TIMEOUT")?;
    Ok(stream)
}

async fn send(stream: &mut TcpStream, out: &mut Vec<u8>, wait: Duration) -> anyhow::Result<()> {
    if !out.is_empty() {
        timeout(wait, stream.write_all(out))
            .await
            .with_context(|| format!("it takes nothing for {wait:?}"))?
            .context("writing")?;
        out.clear();
        out.shrink_to(READ_BYTES);
    }
    Ok(())
}
