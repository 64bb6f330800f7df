//! What a name server is told, and its limits.

use ringmq_schema::limits;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Port of name servers (RocketMQ's).
pub const PORT_DEFAULT: u16 = 9876;

/// Settings of a name server; [`NamesrvConfig::default`] has the defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct NamesrvConfig {
    /// Shown to clients.
    pub name: String,
    /// Where to listen; port 0 picks one.
    pub listen: SocketAddr,
    /// Where to serve `/metrics`, `/healthz` and `/readyz`.
    pub http_listen: Option<SocketAddr>,
    /// Whether listening beyond loopback is wanted although there is no authentication yet.
    pub insecure: bool,
    /// Most connections.
    pub connections_max: usize,
    /// Longest frame taken. Requests have no records, so a table is all; a broker's table of 100 000
    /// topics comes in several.
    pub frame_bytes_max: u32,
    /// Most topics that one connection subscribes to.
    pub subscriptions_max: usize,
    /// Most topics in one route query.
    pub topics_per_query_max: usize,
    /// Most brokers, slaves counted.
    pub brokers_max: usize,
    /// Most topics of one broker.
    pub topics_per_broker_max: usize,
    /// A broker that is silent for so long is dropped.
    pub expiry: Duration,
    /// `Hello` must come within.
    pub handshake_timeout: Duration,
    /// The rest of a frame must come within.
    pub frame_timeout: Duration,
    /// A connection on which nothing comes for so long is closed.
    pub idle_timeout: Duration,
    /// A peer that takes nothing of what is sent for so long is closed.
    pub write_timeout: Duration,
}

impl Default for NamesrvConfig {
    fn default() -> NamesrvConfig {
        NamesrvConfig {
            name: "namesrv".to_owned(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, PORT_DEFAULT)),
            http_listen: None,
            insecure: false,
            connections_max: 10_000,
            frame_bytes_max: (limits::TABLE_BYTES_MAX + (64 << 10)) as u32,
            subscriptions_max: 100_000,
            topics_per_query_max: limits::QUEUES_PER_REQUEST_MAX,
            brokers_max: 1_024,
            topics_per_broker_max: 200_000,
            expiry: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(5),
            frame_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(120),
            write_timeout: Duration::from_secs(10),
        }
    }
}
