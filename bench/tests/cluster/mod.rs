//! A name server and a broker in this process, and the binary run against them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use ringmq::Client;
use ringmq_broker::{Broker, BrokerConfig, BrokerHandle};
use ringmq_namesrv::{NameServer, NameServerHandle, NamesrvConfig};
use tempfile::TempDir;

/// The broker has registered long before, unless it never will.
const REGISTERED_LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Cluster {
    broker: Option<BrokerHandle>,
    pub(crate) namesrv: NameServerHandle,
    pub(crate) directory: TempDir,
}

impl Cluster {
    pub(crate) fn start() -> Cluster {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("on a disk");
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let namesrv = NameServer::start(NamesrvConfig { listen, ..NamesrvConfig::default() })
            .expect("the name server starts");
        let broker = Broker::start(BrokerConfig {
            port: 0,
            http_listen: None,
            namesrv: vec![namesrv.address().to_string()],
            data_dir: directory.path().join("data"),
            shards: Some(2),
            ..BrokerConfig::default()
        });
        let cluster =
            Cluster { broker: Some(broker.expect("the broker starts")), namesrv, directory };
        cluster.wait_for_the_broker();
        cluster
    }

    fn wait_for_the_broker(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let client = Client::connect(self.namesrv.address().to_string()).await.expect("up");
            let begun = Instant::now();
            while client.admin().brokers().await.expect("an answer").is_empty() {
                assert!(begun.elapsed() < REGISTERED_LIMIT, "the broker does not register");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs the binary in the cluster's directory.
    pub(crate) fn bench(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_ringmq-bench"))
            .args(arguments)
            .env("NAMESRV_ADDR", self.namesrv.address().to_string())
            // Whatever this host measured before is not held against.
            .env("XDG_CACHE_HOME", self.directory.path())
            .current_dir(self.directory.path())
            .output()
            .expect("the binary runs")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(broker) = self.broker.take() {
            broker.stop().expect("a clean stop");
        }
    }
}

/// What it said on both streams.
pub(crate) fn text(output: &Output) -> String {
    let of = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    of(&output.stdout) + &of(&output.stderr)
}
