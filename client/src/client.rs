//! The client: one per program and cluster. Everything else is made from it.

use crate::admin::Admin;
use crate::consumer::{PullConsumerBuilder, PushConsumerBuilder};
use crate::error::{Error, ErrorKind, Result};
use crate::producer::ProducerBuilder;
use std::sync::Arc;
use std::time::Duration;

/// Environment variable that names the name servers.
pub const NAMESRV_ADDR: &str = "NAMESRV_ADDR";

/// A connection to a cluster. Clones share everything.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<ClientInner>,
}

pub(crate) struct ClientInner {}

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ClientBuilder {
    name_servers: String,
    name: String,
    connect_timeout: Duration,
    request_timeout: Duration,
}

impl Client {
    /// Connects to a cluster by its name servers: `host:port;host:port`.
    pub async fn connect(name_servers: impl Into<String>) -> Result<Client> {
        Client::builder(name_servers).connect().await
    }

    /// Like [`Client::connect`] with the addresses in `NAMESRV_ADDR`.
    pub async fn from_env() -> Result<Client> {
        match std::env::var(NAMESRV_ADDR) {
            Ok(name_servers) => Client::connect(name_servers).await,
            Err(cause) => {
                let text = format!("{NAMESRV_ADDR} is not set: it names the name servers");
                Err(Error::new(ErrorKind::Invalid, "connect", text).because(cause))
            }
        }
    }

    /// Settings to connect with.
    pub fn builder(name_servers: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            name_servers: name_servers.into(),
            name: format!("ringmq/{}", env!("CARGO_PKG_VERSION")),
            connect_timeout: Duration::from_secs(3),
            request_timeout: Duration::from_secs(5),
        }
    }

    /// A producer under this name, shown in logs and metrics.
    pub fn producer(&self, name: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), name.into())
    }

    /// A consumer that calls a listener, as a member of this group.
    pub fn push_consumer(&self, group: impl Into<String>) -> PushConsumerBuilder {
        PushConsumerBuilder::new(self.clone(), group.into())
    }

    /// A consumer that is asked for records and keeps its position as this group.
    pub fn pull_consumer(&self, group: impl Into<String>) -> PullConsumerBuilder {
        PullConsumerBuilder::new(self.clone(), group.into())
    }

    /// Topics, groups, offsets, cluster.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// Closes every producer and consumer of this client and its connections: windows drain, offsets are
    /// committed, groups are left. What did not end within `limit` is cut off, and said.
    pub async fn shutdown(&self, limit: Duration) -> Result<()> {
        let _ = limit;
        Err(Error::closed("shut down"))
    }
}

impl ClientBuilder {
    /// Name of the program, shown by brokers to people.
    pub fn name(mut self, name: impl Into<String>) -> ClientBuilder {
        self.name = name.into();
        self
    }

    /// Limit for opening a connection. Default 3 s.
    pub fn connect_timeout(mut self, limit: Duration) -> ClientBuilder {
        self.connect_timeout = limit;
        self
    }

    /// Limit for a request other than sends and long polls. Default 5 s.
    pub fn request_timeout(mut self, limit: Duration) -> ClientBuilder {
        self.request_timeout = limit;
        self
    }

    /// Connects: at least one name server must answer.
    pub async fn connect(self) -> Result<Client> {
        Err(Error::closed("connect"))
    }
}
