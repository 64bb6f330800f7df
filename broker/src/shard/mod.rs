//! Executors: one a core, each with its shards, its connections and its part of the mesh.
//!
//! Invariants:
//! - a shard, its disk and its connections live on one thread; other cores reach them by parcels only;
//! - every task has an owner that waits for it ([`signal::Tasks`]); loops end by a flag, not by being
//!   cancelled, because glommio leaks what is cancelled or left behind;
//! - a panic on an executor ends the process.

pub mod alone;
pub(crate) mod busy;
pub(crate) mod core;
pub(crate) mod deadline;
pub(crate) mod device;
pub(crate) mod mesh;
pub(crate) mod signal;
pub(crate) mod state;
pub(crate) mod tick;

use crate::disk::memory::BlockMemory;
use crate::disk::recovery::RecoveryFiles;
use crate::disk::{Disk, Limits};
use crate::net;
use anyhow::{Context, anyhow};
use busy::BusyPoll;
use glommio::{LocalExecutorBuilder, Placement};
use ringmq_core::{Fenced, Outbox, Shard};
use signal::Tasks;
use state::BrokerState;
use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use self::core::{Core, Slot};

/// Memory that an executor registers on its rings: only reads of the tail of a segment and small
/// buffers of glommio's own use it, blocks of the log come from the heap.
const RING_MEMORY_BYTES: usize = 256 << 10;
/// When glommio's preemption timer fires between polling and running, the executor goes to sleep with
/// tasks that could run: at 200 µs one start in ten on a busy machine stood still for ever. So it is long
/// here, and nothing depends on it: no task of ours keeps itself ready, so completions are looked at after
/// every round of tasks.
const PREEMPT: Duration = Duration::from_secs(2);
/// Wakes an executor that went to sleep too early all the same; ten wake-ups a second cost nothing.
const PULSE: Duration = Duration::from_millis(100);
/// How long connections have to take their last answers when the broker stops.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What one executor needs to start.
pub(crate) struct Start {
    pub(crate) core: usize,
    pub(crate) state: Arc<BrokerState>,
    /// Where the core hears of parcels.
    pub(crate) ear: UnixStream,
    /// The first core has the listener.
    pub(crate) listener: Option<socket2::Socket>,
    pub(crate) cpu: Option<usize>,
    /// Told once, when the shards are open or cannot be opened.
    pub(crate) opened: Sender<anyhow::Result<()>>,
    /// Says that every core has opened its shards; closed without a word when one could not.
    pub(crate) go: Receiver<()>,
}

/// Starts an executor on a thread of its own.
pub(crate) fn spawn(start: Start) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let name = format!("ringmq-core-{}", start.core);
    let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
        let _ends_process = EndsProcessOnPanic(name);
        let placement = start.cpu.map_or(Placement::Unbound, Placement::Fixed);
        let executor = LocalExecutorBuilder::new(placement)
            .name("ringmq")
            .io_memory(RING_MEMORY_BYTES)
            .preempt_timer(PREEMPT)
            .make();
        let executor = match executor {
            Ok(executor) => executor,
            Err(error) => {
                let reason = format!("cannot make an executor: {error}");
                let _ = start.opened.send(Err(anyhow!(reason.clone())));
                return Err(anyhow!(reason));
            }
        };
        executor.run(run(start))
    });
    thread.context("cannot start a thread")
}

/// The other threads would go on as if nothing had happened, with a shard or a transfer missing.
pub(crate) struct EndsProcessOnPanic(pub(crate) String);

impl Drop for EndsProcessOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "ringmq-broker: {} panicked (message above): the process ends, acknowledged messages \
                 are on disk; please report this",
                self.0
            );
            std::process::exit(70);
        }
    }
}

async fn run(start: Start) -> anyhow::Result<()> {
    let (beats, pulse) = (Rc::new(Cell::new(true)), Rc::new(Tasks::default()));
    let beating = Rc::clone(&beats);
    pulse.spawn(async move {
        while beating.get() {
            glommio::timer::sleep(PULSE).await;
        }
    });
    let served = serve(start).await;
    beats.set(false);
    pulse.ended().await;
    served
}

async fn serve(start: Start) -> anyhow::Result<()> {
    let Start { core: id, state, ear, listener, cpu, opened, go } = start;
    // The first timer of an executor is some 9 ms late.
    glommio::timer::sleep(Duration::from_micros(1)).await;
    let slots = match open_shards(id, &state).await {
        Ok(slots) => slots,
        Err(error) => {
            let _ = opened.send(Err(error));
            return Ok(());
        }
    };
    let _ = opened.send(Ok(()));
    drop(opened);
    // Blocks: nothing is served yet.
    if go.recv().is_err() {
        return Ok(());
    }
    // Who shares its CPU takes it away from others by this.
    let busy_us = cpu.map_or(0, |_| u64::from(state.config.busy_poll_us));
    let core = Core::new(id, state, slots, BusyPoll::new(busy_us));
    core.loops.spawn(mesh::receive(Rc::clone(&core), ear));
    core.loops.spawn(Rc::clone(&core).turns());
    core.loops.spawn(Rc::clone(&core).relieve());
    core.loops.spawn(busy::run(Rc::clone(&core)));
    for at in 0..core.slots.len() {
        core.loops.spawn(Rc::clone(&core.slots[at].disk).write_ahead());
        core.begin(at);
    }
    core.loops.spawn(tick::run(Rc::clone(&core)));
    if let Some(listener) = listener {
        net::listen::start(&core, listener);
    }
    core.finished.wait().await;
    end(core).await;
    Ok(())
}

/// Recovers the shards of a core, one after the other. Blocks: nothing is served yet.
async fn open_shards(id: usize, state: &Arc<BrokerState>) -> anyhow::Result<Vec<Slot>> {
    let probe = state.data.probe_path();
    crate::preflight::probe(&probe).await.with_context(|| format!("{}", probe.display()))?;
    let mut slots = Vec::new();
    for number in (0..state.shards()).filter(|shard| state.core_of(*shard) == id) {
        let folder = state.data.shard_path(number);
        let config = state.config.shard(number, state.shards(), state.data.log_id(number));
        let mut files = RecoveryFiles::open(folder.clone())?;
        let limits = Limits {
            zero_ahead_bytes: state.config.zero_ahead_bytes.0,
            reads_max: state.config.reads_in_flight,
            segment_bytes: state.config.segment_bytes.0,
        };
        files.restore_lengths(limits.segment_bytes)?;
        let spares = files.keep_spares(limits.segment_bytes)?;
        let disk = Disk::new(folder.clone(), files.list(), spares, limits);
        let mut out = Outbox::default();
        let shard = Shard::open(config, BlockMemory, &mut files, state.now(), &mut out)
            .with_context(|| format!("shard {number} in {} does not open", folder.display()))?;
        let figures = shard.figures();
        if figures.torn_bytes > 0 {
            tracing::warn!(shard = number, bytes = figures.torn_bytes, "a torn tail was cut");
        }
        for Fenced { from, to, what } in shard.damage() {
            tracing::error!(
                shard = number,
                from,
                to,
                what,
                "the log is damaged there: what lay in it is lost and answered Corrupt, all else is served. \
                 `ringmq log verify` shows what it covers"
            );
        }
        tracing::info!(
            shard = number,
            records = figures.replayed,
            end = figures.flushed,
            "recovered"
        );
        slots.push(Slot::new(number, shard, disk, out));
    }
    Ok(slots)
}

/// Everything begun has ended or had its time: sends the last answers, then ends every task.
async fn end(core: Rc<Core>) {
    core.flush();
    within(LAST_WORDS, || !core.connections.have_output()).await;
    core.connections.close_all(&core);
    within(LAST_WORDS, || core.tasks.running() == 0).await;
    for slot in &core.slots {
        slot.disk.stop();
    }
    core.finish();
    within(LAST_WORDS, || core.loops.running() == 0).await;
    if core.tasks.running() == 0 && core.loops.running() == 0 {
        core.loops.ended().await;
        for slot in &core.slots {
            slot.disk.close().await;
        }
    } else {
        tracing::warn!(core = core.id, "left tasks behind that did not end in time");
    }
}

/// Waits for a condition, for so long at most.
async fn within(limit: Duration, is_done: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !is_done() && begun.elapsed() < limit {
        glommio::timer::sleep(Duration::from_millis(1)).await;
    }
}
