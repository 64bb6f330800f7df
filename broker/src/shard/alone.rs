//! One core with one shard over its disk, and no sockets: what benchmarks of the log alone drive.
//!
//! Everything between a request's bytes and the device is the broker's own; its answers go nowhere.

use super::busy::BusyPoll;
use super::core::Core;
use super::mesh::{self, Mesh, Parcel};
use super::state::{BrokerState, Threads};
use super::{PREEMPT, PULSE, RING_MEMORY_BYTES, end, open_shards, tick};
use crate::config::BrokerConfig;
use crate::control::Shared;
use crate::data_dir::{DataDir, Owner};
use crate::disk::beside::{self, Job};
use crate::net::transfer::Transfers;
use anyhow::{Context, anyhow};
use glommio::{LocalExecutorBuilder, Placement};
use ringmq_core::{ConnectionId, Figures};
use ringmq_schema::frame;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

/// There is no such connection.
const NOBODY: ConnectionId = u32::MAX as ConnectionId;
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_micros(100);

/// A shard that serves nobody but whoever drives it.
#[derive(Clone)]
pub struct Alone {
    core: Rc<Core>,
}

impl std::fmt::Debug for Alone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Alone").field("figures", &self.figures()).finish()
    }
}

impl Alone {
    /// Hands a whole request frame to the shard.
    pub fn request(&self, bytes: &[u8]) {
        let frame = frame::parse(bytes, u32::MAX).ok().flatten().expect("a whole frame is given");
        self.core.request(self.core.state.now(), 0, NOBODY, frame, bytes);
    }

    /// Waits as a connection's reader does while too much waits for the device.
    pub async fn room(&self) {
        self.core.congested.wait_while(|| self.core.is_congested(0)).await;
    }

    /// Waits until `holds` is true of the shard.
    pub async fn until(&self, holds: impl Fn(&Figures) -> bool) {
        while !holds(&self.figures()) {
            glommio::timer::sleep(LOOK).await;
        }
    }

    /// The shard's figures.
    pub fn figures(&self) -> Figures {
        self.core.slots[0].shard.borrow().figures()
    }

    /// Retired segments that became new ones.
    pub fn recycled(&self) -> u64 {
        self.core.state.control.recycled.load(Ordering::Relaxed)
    }
}

/// Opens the log in `config.data_dir` on this thread, lets `work` drive it, and stops it in order.
pub fn run<T>(config: BrokerConfig, work: impl AsyncFnOnce(&Alone) -> T) -> anyhow::Result<T> {
    config.check()?;
    crate::sys::keep_freed_blocks(crate::broker::KEPT_BLOCK_BYTES);
    let owner = Owner { cluster: &config.cluster, broker: &config.broker, broker_id: 0 };
    let data = DataDir::open(&config.data_dir, owner, 1, Some(1))?;
    crate::preflight::check(&data.probe_path(), 1, 1024)?;
    let (mesh, mut ears) = Mesh::new(1)?;
    let (transfers, _) = Transfers::new(0)?;
    let (beside, jobs) = mpsc::channel();
    let (shared, threads) = (Arc::new(Shared::new(1)), Threads { beside, transfers });
    let state = Arc::new(BrokerState::new(config, data, 1, 1, shared, mesh, threads));
    let told = Arc::clone(&state);
    let thread = std::thread::spawn(move || {
        beside::run(&jobs, |shard, done| told.mesh.send(0, Parcel::Beside { shard, done }));
    });
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .io_memory(RING_MEMORY_BYTES)
        .preempt_timer(PREEMPT)
        .make()
        .map_err(|error| anyhow!("cannot make an executor: {error}"))?;
    let ear = ears.pop().context("a core has an ear")?;
    let result = executor.run(drive(Arc::clone(&state), ear, work));
    let _ = state.threads.beside.send(Job::End);
    thread.join().map_err(|_| anyhow!("the thread beside the core panicked"))?;
    result
}

async fn drive<T>(
    state: Arc<BrokerState>,
    ear: std::os::unix::net::UnixStream,
    work: impl AsyncFnOnce(&Alone) -> T,
) -> anyhow::Result<T> {
    glommio::timer::sleep(Duration::from_micros(1)).await;
    let slots = open_shards(0, &state).await?;
    let core = Core::new(0, Arc::clone(&state), slots, BusyPoll::new(0));
    let beating = Rc::clone(&core);
    core.loops.spawn(async move {
        while !beating.has_finished() {
            glommio::timer::sleep(PULSE).await;
        }
    });
    core.loops.spawn(mesh::receive(Rc::clone(&core), ear));
    core.loops.spawn(Rc::clone(&core).turns());
    core.loops.spawn(Rc::clone(&core).relieve());
    core.loops.spawn(Rc::clone(&core.slots[0].disk).write_ahead());
    core.begin(0);
    core.loops.spawn(tick::run(Rc::clone(&core)));
    let alone = Alone { core: Rc::clone(&core) };
    while !state.all_ready() {
        glommio::timer::sleep(LOOK).await;
    }
    let result = work(&alone).await;
    drop(alone);
    state.stop();
    core.finished.wait().await;
    end(core).await;
    Ok(result)
}
