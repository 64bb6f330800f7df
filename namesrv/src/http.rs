//! `/metrics`, `/healthz`, `/readyz`.
//!
//! Invariant: bounded. So many connections at once and no longer, each for a while at most, so that a client
//! that hangs does not keep others out for long.

use crate::server::Shared;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

const CONNECTIONS_MAX: usize = 64;
/// A connection is closed after this, busy or not; scrapers connect again.
const LIFETIME: Duration = Duration::from_secs(60);
const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until the task is ended.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let metrics = move || {
        let text = scrape(&shared);
        async move { ([(CONTENT_TYPE, CONTENT)], text) }
    };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async || "ready\n"));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    if let Err(error) = axum::serve(Bounded { listener, places }, router).await {
        tracing::error!(%error, "metrics and health are no longer served");
    }
}

struct Figures(Arc<Shared>);

impl std::fmt::Debug for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Figures")
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (counters, (brokers, topics, subscriptions)) = {
            let state = self.0.lock();
            (state.service.counters, state.service.sizes())
        };
        let gauges: [(&str, &str, usize); 4] = [
            ("ringmq_namesrv_brokers", "Brokers registered, slaves counted.", brokers),
            ("ringmq_namesrv_topics", "Topics that some broker has.", topics),
            (
                "ringmq_namesrv_subscriptions",
                "Topics subscribed to, over all connections.",
                subscriptions,
            ),
            ("ringmq_namesrv_connections", "Connections open.", counters.connections),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counts: [(&str, &str, u64); 4] = [
            ("ringmq_namesrv_requests", "Requests that came.", counters.requests),
            ("ringmq_namesrv_requests_refused", "Requests refused.", counters.refused),
            ("ringmq_namesrv_routes_pushed", "Routes told to subscribers.", counters.pushed),
            ("ringmq_namesrv_brokers_expired", "Brokers dropped for silence.", counters.expired),
        ];
        for (name, help, value) in counts {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(
                name,
                help,
                None,
                counter.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

fn scrape(shared: &Arc<Shared>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Figures(shared.clone())));
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = encode(&mut text, &registry);
    text
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
