//! A broker on the first CPU, a client on the second, and what the loopback does between them.

use crate::cold::SINK_BYTES;
use crate::linux::Place;
use crate::server::{self, Server};
use crate::wire::Wire;
use anyhow::Context as _;
use ringmq_bench::args::{FlushMode, Load, Rate, Target};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// Where a thread stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// With the broker's executor.
    Broker,
    /// With the client.
    Client,
}

/// Keeps this thread, and threads it starts, on a CPU; a machine with one has all on that.
pub fn stay_on(side: Side) -> anyhow::Result<()> {
    let allowed = all_cpus()?;
    let mut usable = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let first = usable.next().context("a CPU")?;
    let cpu = match side {
        Side::Broker => first,
        Side::Client => usable.next().unwrap_or(first),
    };
    let mut only = CpuSet::new();
    only.set(cpu);
    Ok(sched_setaffinity(None, &only)?)
}

/// The CPUs that this process had at first.
fn all_cpus() -> anyhow::Result<CpuSet> {
    static ALL: std::sync::OnceLock<CpuSet> = std::sync::OnceLock::new();
    let now = sched_getaffinity(None)?;
    Ok(*ALL.get_or_init(|| now))
}

/// A broker, with a name server where the client of the workspace is used too.
pub struct Bed {
    pub broker: Server,
    pub namesrv: Server,
    folder: tempfile::TempDir,
}

impl Bed {
    /// Starts both, and keeps this thread on the client's CPU from now on.
    pub fn start(place: &Place, flags: &[String]) -> anyhow::Result<Bed> {
        all_cpus()?;
        let folder = place.folder()?;
        let namesrv = server::namesrv()?;
        let mut options = server::Options::new(&folder.path().join("data"));
        options.namesrv = Some(namesrv.address("listen")?);
        options.flags.push("--pin=true".to_owned());
        // Rounds are many, and the folder goes with them.
        options.flags.push("--retention-bytes=4GiB".to_owned());
        options.flags.extend(flags.iter().cloned());
        let broker = options.start()?;
        stay_on(Side::Client)?;
        Ok(Bed { broker, namesrv, folder })
    }

    /// Where the broker's files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn wire(&self) -> anyhow::Result<Wire> {
        Wire::connect(self.broker.address("listen")?)
    }

    /// For a session of the client of the workspace.
    pub fn target(&self, queues: u32) -> anyhow::Result<Target> {
        let namesrv = self.namesrv.address("listen")?.to_string();
        Ok(Target { namesrv, topic: None, queues, out: None, threads: 1, connections: 1 })
    }
}

/// A closed loop of `in_flight` requests of `batch` messages.
pub fn closed_loop(in_flight: u32, batch: u32, size: usize, flush: FlushMode) -> Load {
    let rate = Rate::Max;
    let (count, duration, warmup, producers) = (None, None, None, 1);
    Load { rate, in_flight, count, duration, warmup, size, batch, flush, producers }
}

/// One stream over the loopback from one side to the other for `duration`; bytes a second.
pub fn stream(from: Side, duration: Duration) -> anyhow::Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    let to = if from == Side::Broker { Side::Client } else { Side::Broker };
    let sink = std::thread::spawn(move || -> anyhow::Result<u64> {
        stay_on(to)?;
        let (mut chunk, mut total) = (vec![0; SINK_BYTES], 0);
        loop {
            match far.read(&mut chunk)? {
                0 => return Ok(total),
                bytes => total += bytes as u64,
            }
        }
    });
    let sender = std::thread::spawn(move || -> anyhow::Result<()> {
        stay_on(from)?;
        let chunk = vec![7; SINK_BYTES];
        let begun = Instant::now();
        while begun.elapsed() < duration {
            near.write_all(&chunk)?;
        }
        Ok(())
    });
    let begun = Instant::now();
    sender.join().ok().context("the sender panicked")??;
    let bytes = sink.join().ok().context("the sink panicked")??;
    Ok(bytes as f64 / begun.elapsed().as_secs_f64())
}

/// A runtime whose tasks stay on this thread.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
