//! A name server and a broker in this process, for `dev` and `quickstart`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use ringmq_broker::{Broker, BrokerConfig, BrokerHandle, FlushMode};
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
    /// Port of metrics and health; none are served without it.
    pub http_port: Option<u16>,
    /// Shards of a new data directory; one per CPU without it.
    pub shards: Option<u16>,
    /// Whether messages that do not say are acknowledged only when they survive power loss.
    pub flush_sync: bool,
}

/// Running servers. Dropping them stops them, the broker first.
#[derive(Debug)]
pub struct Servers {
    // Fields are dropped in this order: a broker that stops tells its name server.
    broker: BrokerHandle,
    namesrv: NameServerHandle,
}

impl Servers {
    /// Starts the name server, then the broker, and waits until it is ready. Errors of the broker's
    /// preflight name cause and remedy.
    pub fn start(settings: &ServerSettings) -> anyhow::Result<Servers> {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, settings.namesrv_port));
        let namesrv = NameServer::start(NamesrvConfig { listen, ..NamesrvConfig::default() })
            .context("the name server did not start")?;
        let http_listen = settings.http_port.map(|port| (Ipv4Addr::LOCALHOST, port).into());
        let broker = Broker::start(BrokerConfig {
            port: settings.broker_port,
            http_listen,
            namesrv: vec![namesrv.address().to_string()],
            data_dir: settings.data.clone(),
            shards: settings.shards,
            flush: if settings.flush_sync { FlushMode::Sync } else { FlushMode::Async },
            ..BrokerConfig::default()
        })
        .context("the broker did not start")?;
        Ok(Servers { broker, namesrv })
    }

    /// Where clients find the cluster.
    pub fn namesrv_address(&self) -> SocketAddr {
        self.namesrv.address()
    }

    /// Where the broker listens.
    pub fn broker_address(&self) -> SocketAddr {
        self.broker.address()
    }

    /// Where metrics and health are served.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.broker.http_address()
    }

    /// Shards of the broker.
    pub fn shards(&self) -> u16 {
        self.broker.shards()
    }

    /// Drains and stops the broker, then the name server.
    pub fn stop(self) -> anyhow::Result<()> {
        let broker = self.broker.stop().context("the broker did not stop cleanly");
        broker.and(self.namesrv.stop().context("the name server did not stop cleanly"))
    }
}
