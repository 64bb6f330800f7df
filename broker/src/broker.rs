//! A running broker: start, addresses, stop.
//!
//! Invariants:
//! - everything that can be refused is refused before a thread starts, and leaves nothing behind;
//! - the broker is called ready only when every shard is;
//! - stopping takes no more requests, finishes and makes durable what was begun, then leaves.

use crate::config::BrokerConfig;
use crate::control::{Control, ControlConfig, Shared};
use crate::data_dir::{DataDir, Owner, random_id};
use crate::disk;
use crate::disk::beside::{self, Job};
use crate::disk::recovery::check_folder;
use crate::net::listen;
use crate::net::loans::loans_max;
use crate::net::transfer::{Desk, Transfers};
use crate::shard::mesh::{Mesh, Parcel};
use crate::shard::state::{BrokerState, Threads};
use crate::shard::{self, Start};
use crate::{preflight, sys};
use anyhow::{Context, bail};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Blocks of the log up to this length stay with the allocator when they are freed.
pub(crate) const KEPT_BLOCK_BYTES: usize = 32 << 20;
/// How long shards may take from "opened" to "ready" before that is reported.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// Starts brokers.
#[derive(Debug)]
pub struct Broker;

/// A broker that serves. Dropping it without [`BrokerHandle::stop`] stops it too.
#[derive(Debug)]
pub struct BrokerHandle {
    address: SocketAddr,
    http_address: Option<SocketAddr>,
    state: Arc<BrokerState>,
    cores: Vec<JoinHandle<anyhow::Result<()>>>,
    /// What serves the cores, and ends after them.
    threads: Vec<JoinHandle<()>>,
    watch: Option<(Sender<()>, JoinHandle<()>)>,
    control: Option<Control>,
}

impl Broker {
    /// Starts a broker and waits until all of its shards are ready.
    pub fn start(config: BrokerConfig) -> anyhow::Result<BrokerHandle> {
        config.check()?;
        sys::keep_freed_blocks(KEPT_BLOCK_BYTES);
        let cpus = cpus();
        let default_shards = u16::try_from(cpus.len()).unwrap_or(u16::MAX);
        let owner =
            Owner { cluster: &config.cluster, broker: &config.broker, broker_id: config.broker_id };
        let shards = config.shards.unwrap_or(default_shards);
        let data = DataDir::open(&config.data_dir, owner, shards, config.shards)?;
        let shards = data.shards();
        // All of them before the first is opened, which may write.
        for shard in 0..shards {
            let own = config.shard(shard, shards, data.log_id(shard));
            check_folder(&own, &data.shard_path(shard))?;
        }
        let cores =
            usize::from(config.cores.unwrap_or(default_shards)).min(usize::from(shards)).max(1);
        let files = files_wanted(&config, usize::from(shards), cores);
        preflight::check(&data.probe_path(), cores, files as u64)?;
        let (listener, address) = listen::bind(SocketAddr::new(config.listen, config.port))?;
        let shared = Arc::new(Shared::new(shards));
        let instance = random_id();
        let advertise = advertised(&config, address);
        let control = ControlConfig {
            cluster: config.cluster.clone(),
            broker: config.broker.clone(),
            broker_id: config.broker_id,
            advertise,
            instance,
            shards,
            namesrv: config.namesrv.clone(),
            http_listen: config.http_listen,
        };
        let control = Control::start(control, Arc::clone(&shared))?;
        let (mesh, ears) = Mesh::new(cores).context("cannot connect the cores")?;
        let (transfers, desks) = Transfers::new(usize::from(config.transfer_threads))
            .context("cannot reach the transfer threads")?;
        let (beside, jobs) = mpsc::channel();
        let threads = Threads { beside, transfers };
        let state =
            Arc::new(BrokerState::new(config, data, cores, instance, shared, mesh, threads));
        let mut handle = BrokerHandle {
            address,
            http_address: control.http_address(),
            state,
            cores: Vec::new(),
            threads: Vec::new(),
            watch: None,
            control: Some(control),
        };
        handle.start_threads(jobs, desks)?;
        handle.start_cores(listener, ears, &cpus)?;
        handle.watch = Some(watch_disk(Arc::clone(&handle.state))?);
        handle.wait_until_ready()?;
        handle.state.control.set_ready(true);
        Ok(handle)
    }
}

impl BrokerHandle {
    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where metrics and health are served, if they are.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http_address
    }

    /// The settings in force.
    pub fn config(&self) -> &BrokerConfig {
        &self.state.config
    }

    /// Number of shards.
    pub fn shards(&self) -> u16 {
        self.state.shards()
    }

    /// Stops: no new connections and requests, what was begun is finished and durable, the name servers
    /// are told, every thread has ended.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn start_threads(&mut self, jobs: Receiver<Job>, desks: Vec<Desk>) -> anyhow::Result<()> {
        let state = Arc::clone(&self.state);
        self.start_thread("ringmq-index".to_owned(), move || {
            beside::run(&jobs, |shard, done| {
                state.mesh.send(state.core_of(shard), Parcel::Beside { shard, done });
            });
        })?;
        for (number, desk) in desks.into_iter().enumerate() {
            let state = Arc::clone(&self.state);
            self.start_thread(format!("ringmq-transfer-{number}"), move || {
                let patience = state.config.send_timeout;
                desk.run(patience, |back| state.mesh.send(back.core, Parcel::Returned(back)));
            })?;
        }
        Ok(())
    }

    fn start_thread(
        &mut self,
        name: String,
        run: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<()> {
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            let _ends_process = shard::EndsProcessOnPanic(name);
            run();
        });
        self.threads.push(thread.context("cannot start a thread")?);
        Ok(())
    }

    fn start_cores(
        &mut self,
        listener: socket2::Socket,
        ears: Vec<UnixStream>,
        cpus: &[usize],
    ) -> anyhow::Result<()> {
        let cores = self.state.cores;
        let pinned = match self.state.config.pin.as_deref() {
            Some(pin) => pin == "true",
            // On a small machine the executors share the CPUs with their clients, and several brokers
            // may run: the scheduler knows better.
            None => cpus.len() >= 4 && cores < cpus.len(),
        };
        let (opened, answers) = mpsc::channel();
        let mut listener = Some(listener);
        let mut goes = Vec::new();
        for (core, ear) in ears.into_iter().enumerate() {
            let (go, may_go) = mpsc::channel();
            goes.push(go);
            self.cores.push(shard::spawn(Start {
                core,
                state: Arc::clone(&self.state),
                ear,
                listener: listener.take(),
                cpu: cpus.get(core).copied().filter(|_| pinned),
                opened: opened.clone(),
                go: may_go,
            })?);
        }
        drop(opened);
        for _ in 0..cores {
            match answers.recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => bail!("an executor ended before its shards were open"),
            }
        }
        for go in goes {
            let _ = go.send(());
        }
        Ok(())
    }

    fn wait_until_ready(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !self.state.all_ready() {
            if self.cores.iter().any(JoinHandle::is_finished) {
                bail!("an executor ended before the broker was ready");
            }
            if self.state.control.failed().contains(&true) {
                bail!("{}", self.state.control.unready().unwrap_or_default());
            }
            if begun.elapsed() > READY_PATIENCE {
                let seconds = READY_PATIENCE.as_secs();
                bail!(
                    "the shards were not ready within {seconds} s; what they wait for is said above"
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.state.control.set_ready(false);
        self.state.stop();
        let mut first = Ok(());
        for core in self.cores.drain(..) {
            let ended =
                core.join().unwrap_or_else(|_| Err(anyhow::anyhow!("an executor panicked")));
            first = first.and(ended);
        }
        // Fails only when the thread never started.
        let _ = self.state.threads.beside.send(Job::End);
        self.state.threads.transfers.end();
        for thread in self.threads.drain(..) {
            let ended = thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"));
            first = first.and(ended);
        }
        if let Some((stop, watch)) = self.watch.take() {
            drop(stop);
            let _ = watch.join();
        }
        if let Some(control) = self.control.take() {
            first = first.and(control.stop().context("stopping the control plane"));
        }
        first
    }
}

impl Drop for BrokerHandle {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!("stopping: {error:#}");
        }
    }
}

/// Files and sockets that may be open at once with these settings.
fn files_wanted(config: &BrokerConfig, shards: usize, cores: usize) -> usize {
    // One that moves to another core has two descriptors for a moment.
    let connections = config.max_connections + listen::SURPLUS_MAX + cores;
    let loans = match config.transfer_threads {
        0 => 0,
        _ => cores * loans_max(config.transfer_bytes.as_usize()),
    };
    // Beside them rings, name servers, whoever looks at the metrics, and the program's own.
    connections + loans + shards * disk::FILES_OPEN_MAX + 256
}

/// CPUs that this process may use.
fn cpus() -> Vec<usize> {
    let all = |set: rustix::thread::CpuSet| {
        (0..rustix::thread::CpuSet::MAX_CPU).filter(move |c| set.is_set(*c))
    };
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) if set.count() > 0 => all(set).collect(),
        _ => vec![0],
    }
}

fn advertised(config: &BrokerConfig, address: SocketAddr) -> String {
    match &config.advertise {
        Some(name) if name.parse::<SocketAddr>().is_ok() => name.clone(),
        Some(name)
            if name
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.contains(':') && port.parse::<u16>().is_ok()) =>
        {
            name.clone()
        }
        Some(name) => format!("{name}:{}", address.port()),
        None => address.to_string(),
    }
}

/// Between two looks at the room on the disk: one costs microseconds, and in a whole second a fast disk may fill the
/// rest below the watermark, after which not even a shorter retention can be stored.
const LOOK_AT_DISK_EVERY: Duration = Duration::from_millis(100);

/// Looks whether the disk has room above its watermark.
fn watch_disk(state: Arc<BrokerState>) -> anyhow::Result<(Sender<()>, JoinHandle<()>)> {
    let (stop, stopped) = mpsc::channel();
    let look = move || {
        let path = &state.config.data_dir;
        match rustix::fs::statvfs(path) {
            Ok(found) => {
                let total = found.f_blocks.saturating_mul(found.f_frsize);
                let free = found.f_bavail.saturating_mul(found.f_frsize);
                let percent = total / 100 * u64::from(state.config.disk_free_percent);
                let wanted = state.config.disk_free_bytes.0.min(percent);
                if state.set_disk_has_room(free >= wanted) {
                    let (free, wanted) = (free >> 20, wanted >> 20);
                    let room = free >= wanted;
                    tracing::warn!(
                        free_mib = free,
                        watermark_mib = wanted,
                        room,
                        "disk watermark crossed"
                    );
                }
            }
            Err(error) => tracing::warn!("cannot see how full {} is: {error}", path.display()),
        }
    };
    look();
    let watch = std::thread::Builder::new().name("ringmq-disk-watch".to_owned()).spawn(move || {
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(LOOK_AT_DISK_EVERY) {
            look();
        }
    });
    Ok((stop, watch.context("cannot start a thread")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Bytes;

    #[test]
    fn the_files_that_may_be_open_follow_from_the_settings() {
        let config = BrokerConfig::default();
        let usual = files_wanted(&config, 2, 2);
        assert!((10_000..20_000).contains(&usual), "{usual} is what many systems allow");
        let more = BrokerConfig { max_connections: 20_000, ..BrokerConfig::default() };
        assert_eq!(files_wanted(&more, 2, 2), usual + 10_000);
        assert_eq!(files_wanted(&config, 4, 2), usual + 2 * disk::FILES_OPEN_MAX);
        let none = BrokerConfig { transfer_threads: 0, ..BrokerConfig::default() };
        let few = BrokerConfig { transfer_bytes: Bytes::mib(1), ..BrokerConfig::default() };
        assert!(files_wanted(&none, 2, 2) < files_wanted(&few, 2, 2));
        assert!(files_wanted(&few, 2, 2) < usual - 1000);
    }
}
