//! What all cores of a broker know: settings, identity, and a few flags that threads outside set.
//!
//! Invariant: nothing here is touched per request; cores look at the flags on their tick.

use crate::config::BrokerConfig;
use crate::control;
use crate::data_dir::DataDir;
use crate::disk::beside::Job;
use crate::net::transfer::Transfers;
use crate::shard::mesh::Mesh;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ringmq_core::Now;

/// The ways to the threads beside the cores, which answer by parcel.
#[derive(Debug)]
pub(crate) struct Threads {
    pub(crate) beside: Sender<Job>,
    pub(crate) transfers: Transfers,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct BrokerState {
    pub(crate) config: BrokerConfig,
    pub(crate) data: DataDir,
    pub(crate) cores: usize,
    /// Changes at every start.
    pub(crate) instance: u64,
    pub(crate) control: Arc<control::Shared>,
    pub(crate) mesh: Mesh,
    pub(crate) threads: Threads,
    started: Instant,
    stopping: AtomicBool,
    disk_has_room: AtomicBool,
    ready_shards: AtomicU32,
    stopped_shards: AtomicU32,
    connections: AtomicUsize,
}

impl BrokerState {
    pub(crate) fn new(
        config: BrokerConfig,
        data: DataDir,
        cores: usize,
        instance: u64,
        control: Arc<control::Shared>,
        mesh: Mesh,
        threads: Threads,
    ) -> BrokerState {
        BrokerState {
            config,
            data,
            cores,
            instance,
            control,
            mesh,
            threads,
            started: Instant::now(),
            stopping: AtomicBool::new(false),
            disk_has_room: AtomicBool::new(true),
            ready_shards: AtomicU32::new(0),
            stopped_shards: AtomicU32::new(0),
            connections: AtomicUsize::new(0),
        }
    }

    /// Number of shards.
    pub(crate) fn shards(&self) -> u16 {
        self.data.shards()
    }

    /// The core that runs a shard.
    pub(crate) fn core_of(&self, shard: u16) -> usize {
        usize::from(shard) % self.cores
    }

    /// The time, for a shard.
    pub(crate) fn now(&self) -> Now {
        Now {
            mono_us: u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            wall_ms: wall_ms(),
        }
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn set_disk_has_room(&self, room: bool) -> bool {
        self.disk_has_room.swap(room, Ordering::Relaxed) != room
    }

    pub(crate) fn disk_has_room(&self) -> bool {
        self.disk_has_room.load(Ordering::Relaxed)
    }

    /// One more shard is ready.
    pub(crate) fn shard_is_ready(&self) {
        self.ready_shards.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn all_ready(&self) -> bool {
        self.ready_shards.load(Ordering::Acquire) == u32::from(self.shards())
    }

    /// One more shard has nothing left to do.
    pub(crate) fn shard_has_stopped(&self) {
        self.stopped_shards.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn all_stopped(&self) -> bool {
        self.stopped_shards.load(Ordering::Acquire) == u32::from(self.shards())
    }

    /// A connection came; how many there were before.
    pub(crate) fn connection_came(&self) -> usize {
        self.control.connections(1);
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// A connection went.
    pub(crate) fn connection_went(&self) {
        self.control.connections(-1);
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Milliseconds since epoch.
pub(crate) fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
