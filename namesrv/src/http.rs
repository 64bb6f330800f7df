//! `/metrics`, `/healthz`, `/readyz`.

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
use std::sync::Arc;
use tokio::net::TcpListener;

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
    if let Err(error) = axum::serve(listener, router).await {
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
