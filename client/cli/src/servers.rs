//! A name server and a broker in this process, for `dev` and `quickstart`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use ringmq_namesrv::{NameServer, NameServerHandle, NamesrvConfig};

/// What the servers are started with. Port 0 picks one.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// The broker's data directory.
    pub data: PathBuf,
    /// Port of the name server.
    pub namesrv_port: u16,
    /// Port of the broker.
    pub broker_port: u16,
    /// Port of metrics and health.
    pub http_port: u16,
    /// Shards of a new data directory; one per CPU without it.
    pub shards: Option<u16>,
    /// Whether messages that do not say are acknowledged only when they survive power loss.
    pub flush_sync: bool,
}

/// Running servers.
pub struct Servers {
    namesrv: NameServerHandle,
}

impl Servers {
    /// Starts the name server, then the broker. Errors of the broker's preflight name cause and remedy.
    pub fn start(settings: &ServerSettings) -> anyhow::Result<Servers> {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, settings.namesrv_port));
        let namesrv = NameServer::start(NamesrvConfig { listen, ..NamesrvConfig::default() })
            .context("starting the name server")?;
        Ok(Servers { namesrv })
    }

    /// Where clients find the cluster.
    pub fn namesrv_address(&self) -> SocketAddr {
        self.namesrv.address()
    }

    /// Drains and stops the broker, then the name server.
    pub fn stop(self) -> anyhow::Result<()> {
        self.namesrv.stop().context("stopping the name server")
    }
}
