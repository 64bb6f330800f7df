//! `/metrics`, `/healthz` and `/readyz`.
//!
//! Invariant: bounded. So many connections at once and no longer, each for a while at most: a client that
//! hangs takes neither the broker's descriptors nor, for long, another client's place.

use super::metrics::Scraper;
use super::{ControlConfig, Shared, until_stopped};
use anyhow::Context as _;
use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;

const CONNECTIONS_MAX: usize = 64;
/// A connection is closed after this, busy or not; scrapers connect again.
const LIFETIME: Duration = Duration::from_secs(60);
const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) fn bind(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address).with_context(|| {
        format!(
            "cannot serve metrics and health on {address} (is another broker running? port 0 picks one)"
        )
    })?;
    listener.set_nonblocking(true).context("making the metrics listener non-blocking")?;
    Ok(listener)
}

/// Serves until the control plane stops; at once over when there is no listener.
pub(super) async fn run(
    listener: Option<std::net::TcpListener>,
    config: ControlConfig,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let Some(listener) = listener else { return };
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => Bounded { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) },
        Err(error) => return tracing::error!(%error, "metrics and health are not served"),
    };
    let scraper = Arc::new(Scraper::new(&config, shared.clone()));
    let metrics = async move || match scraper.scrape() {
        Ok(text) => (StatusCode::OK, [(CONTENT_TYPE, CONTENT)], text),
        Err(_) => {
            let text = "the figures could not be written down\n".to_owned();
            (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain")], text)
        }
    };
    let ready = async move || match shared.unready() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready));
    tokio::select! {
        result = async { axum::serve(listener, router).await } => {
            if let Err(error) = result {
                tracing::error!(%error, "metrics and health are no longer served");
            }
        }
        () = until_stopped(&mut stopped) => {}
    }
}

struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

impl axum::serve::Listener for Bounded {
    type Io = Held;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Held, SocketAddr) {
        let places = self.places.clone();
        let place = places.acquire_owned().await.expect("the semaphore is never closed");
        // The standard listener logs and waits when it cannot accept.
        let (stream, from) = axum::serve::Listener::accept(&mut self.listener).await;
        (Held { stream, end: Box::pin(tokio::time::sleep(LIFETIME)), _place: place }, from)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with its place, until its time is over.
struct Held {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Held {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
