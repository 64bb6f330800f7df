//! The control plane: one ordinary thread outside the pinned cores (design.md, part 11).
//!
//! It keeps the name servers told and listens to their routes (`link`), and serves metrics and health
//! (`http`). Executors and this thread meet in [`Shared`] only, which never makes an executor wait:
//! a stalled executor does not block a scrape, nor a stuck name server an executor.

mod http;
mod link;
mod metrics;
mod routes;
mod session;
mod shared;
mod topics;

pub use metrics::{Kind, METRICS, Metric};
pub use shared::{Latency, Shared};

use anyhow::{Context, anyhow, bail};
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::sync::watch;

/// What stopping may take: a name server that does not answer is left without a word.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Who the broker is, and whom it talks to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlConfig {
    /// Its cluster.
    pub cluster: String,
    /// Its name.
    pub broker: String,
    /// 0: master.
    pub broker_id: u32,
    /// host:port that clients shall use.
    pub advertise: String,
    /// Another one at every start.
    pub instance: u64,
    /// Its number of shards.
    pub shards: u16,
    /// host:port of each name server; none: the broker stands alone.
    pub namesrv: Vec<String>,
    /// Where to serve `/metrics`, `/healthz` and `/readyz`; port 0 picks one.
    pub http_listen: Option<SocketAddr>,
}

/// The running control plane. Dropping it without [`Control::stop`] ends its thread too, unheard.
#[derive(Debug)]
pub struct Control {
    http_address: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    ended: mpsc::Receiver<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Control {
    /// Binds HTTP, then serves and keeps in touch with the name servers from a thread of its own.
    pub fn start(config: ControlConfig, shared: Arc<Shared>) -> anyhow::Result<Control> {
        let listener = config.http_listen.map(http::bind).transpose()?;
        let http_address = listener
            .as_ref()
            .map(std::net::TcpListener::local_addr)
            .transpose()
            .context("reading the address of metrics and health")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .thread_keep_alive(Duration::from_secs(5))
            .build()
            .context("making the control plane's runtime")?;
        let (stop, stopped) = watch::channel(false);
        let (end, ended) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("ringmq-control".to_owned())
            .spawn(move || {
                runtime.block_on(run(config, shared, listener, stopped));
                // A name look-up may hang for longer than anybody wants to wait.
                runtime.shutdown_timeout(Duration::from_millis(100));
                // Nobody may be waiting any more.
                let _ = end.send(());
            })
            .context("starting the control plane's thread")?;
        Ok(Control { http_address, stop, ended, thread })
    }

    /// Where metrics and health are served.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// Leaves the name servers and ends the thread, within 2 s.
    pub fn stop(self) -> anyhow::Result<()> {
        // An error says that the thread has ended.
        let _ = self.stop.send(true);
        match self.ended.recv_timeout(STOP_WITHIN) {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("the control plane did not end within {STOP_WITHIN:?}")
            }
            // Without a message it panicked, which joining tells.
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {}
        }
        self.thread.join().map_err(|_| anyhow!("the control plane's thread panicked"))
    }
}

async fn run(
    config: ControlConfig,
    shared: Arc<Shared>,
    listener: Option<std::net::TcpListener>,
    stopped: watch::Receiver<bool>,
) {
    let links = link::run(config.clone(), shared.clone(), stopped.clone());
    tokio::join!(links, http::run(listener, config, shared, stopped));
}

/// Returns when the control plane is to end.
async fn until_stopped(stopped: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone: then it is to end, too.
    let _ = stopped.wait_for(|stop| *stop).await;
}
