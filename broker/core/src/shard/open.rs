//! Opening: replay the log, begin an epoch, tell the other shards what they must know.

use super::Shard;
use super::fetch::{Fetches, Windows};
use super::lag::Lags;
use super::lookup::Lookups;
use super::mending::Mending;
use super::pop::Poppers;
use super::punching::Punching;
use super::registry::HomeState;
use super::replay::Tables;
use super::retention::Retention;
use super::snapshot::Snapshots;
use super::timers::Timers;
use super::waiting::{Then, Waiting};
use crate::config::{Figures, ShardConfig};
use crate::index::PageCache;
use crate::log::recovery::check_first_block;
use crate::log::recovery::{self, Recovered};
use crate::log::{Log, Resume};
use crate::peer::PeerMessage;
use crate::seam::{BLOCK_BYTES, DiskError, LogFiles, Memory, Now, Outbox};
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::placement::{HOME_SHARD, shard_of_group};
use ringmq_schema::record::Kind;
use std::collections::{BTreeMap, BTreeSet};

/// What one fetch reads of indexes at once fits, however little is allowed.
const INDEX_CACHE_BYTES_MIN: usize = 512 << 10;

/// Checks the first block of each segment before anything of a data directory is opened: a file of another log,
/// or of a newer version, is refused.
pub fn check_segment(config: &ShardConfig, base: u64, first_block: &[u8]) -> Result<(), OpenError> {
    check_first_block(config.log_id, u32::from(config.shard), base, first_block)
}

/// Why a shard does not open. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Settings that cannot be.
    #[error("{0}")]
    Config(String),
    /// A file could not be read or written.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A segment that is not of this log.
    #[error("segment {base:020}.log is not of this shard: {what}. Nothing was changed")]
    Foreign {
        /// Its name.
        base: u64,
        /// What differs.
        what: String,
    },
    /// A record whose checksums match and that cannot be.
    #[error(
        "the record at position {position} is whole, but {what}. Nothing was changed; please report this, and move the data directory away to start empty"
    )]
    Impossible {
        /// Where.
        position: u64,
        /// What is wrong.
        what: String,
    },
    /// The log begins behind 0 and names no whole snapshot.
    #[error(
        "the log begins at position {start}, and the snapshot of what was before is damaged or missing. Nothing was changed; restore the newest segments from a copy, or move the data directory away to start empty"
    )]
    NoSnapshot {
        /// First position.
        start: u64,
    },
}

impl<M: Memory> Shard<M> {
    /// Recovers the shard from its files and begins a new epoch. Actions (the epoch's first unit, what
    /// other shards must know) are left in `out`; requests are answered `NotReady` until
    /// [`Shard::is_ready`].
    pub fn open(
        config: ShardConfig,
        memory: M,
        files: &mut dyn LogFiles,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> Result<Shard<M>, OpenError> {
        check_config(&config)?;
        let is_home = config.shard == HOME_SHARD;
        let mut tables = Tables::new(&config, is_home);
        let recovered = recovery::recover(&config, files, &mut tables)?;
        let Recovered { mut segments, end, epoch, snapshot, records, torn_bytes, fenced, named } =
            recovered;
        let fenced = tables.finish(fenced, &segments);
        let Tables { mut queues, registry, offsets, rows, touched, topics, indexes, holes, .. } =
            tables;
        let mut pops = tables.pops;
        pops.open(epoch, now);
        for (number, pages) in indexes {
            segments[number as usize].index = Some(pages);
        }
        let indexed =
            segments.iter().filter_map(|segment| segment.index.map(|i| (segment.base, i)));
        let timers = Timers::open(tables.timers, tables.delayed, tables.timer_rows, indexed);
        // Recovery made all of it durable before a consumer can see it.
        queues.show_all();
        let fenced_bytes = fenced.iter().map(|range| range.to - range.from).sum();
        let figures = Figures { replayed: records, torn_bytes, fenced_bytes, ..Figures::default() };
        let resume = Resume { segments, end, rows, snapshot, named };
        let windows = Windows::new(config.read_cache_bytes);
        let mut shard = Shard {
            log: Log::new(&config, memory, epoch, resume, now),
            snapshots: Snapshots::new(snapshot, end),
            sealing: touched,
            index_pages: PageCache::new(config.index_cache_bytes.max(INDEX_CACHE_BYTES_MIN)),
            scratch: Vec::new(),
            retention: Retention::new(topics),
            lags: Lags::default(),
            punching: Punching::new(holes),
            mending: Mending::default(),
            timers,
            last_step: now,
            home: is_home.then(|| HomeState::new(config.shards, &registry)),
            config,
            queues,
            registry,
            offsets,
            pops,
            poppers: Poppers::default(),
            groups: BTreeMap::new(),
            unborn: Vec::new(),
            routes: BTreeMap::new(),
            groups_looked_at_us: now.mono_us,
            groups_to_reconcile: BTreeSet::new(),
            fetches: Fetches::default(),
            windows,
            lookups: Lookups::default(),
            waiting: Waiting::default(),
            frames: FrameBuilder::new(),
            figures,
            damage: fenced,
            opened: now,
            epoch_is_durable: false,
            disk_has_room: true,
            sync_wanted: 0,
            stopping: false,
            stopped: false,
        };
        shard.begin_epoch(now, out);
        Ok(shard)
    }

    fn begin_epoch(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        let end = self.log.append_state(Kind::Epoch, &[], true, now, out);
        self.waiting.push(end, true, Then::Epoch);
        self.log.pump(now, out);
        let owners: Vec<_> = self.offsets.owners().collect();
        for ownership in owners {
            let Some(group) = self.registry.group(ownership.group) else { continue };
            let to = shard_of_group(&group.name, self.config.shards);
            self.tell(to, PeerMessage::Owned(ownership), now, out);
        }
    }

    /// The epoch is durable: this shard serves.
    pub(super) fn epoch_began(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        self.epoch_is_durable = true;
        let version = self.registry.version();
        let message = match self.home {
            Some(_) => PeerMessage::RegistryDone { version },
            None => PeerMessage::RegistryHeld { version, digest: self.registry.digest() },
        };
        self.tell(HOME_SHARD, message, now, out);
    }
}

fn check_config(config: &ShardConfig) -> Result<(), OpenError> {
    let fault = |text: String| Err(OpenError::Config(text));
    let (segment, unit) = (config.segment_bytes, config.unit_bytes as u64);
    if config.shards == 0 || config.shard >= config.shards {
        return fault(format!("there is no shard {} of {}", config.shard, config.shards));
    }
    if !segment.is_multiple_of(BLOCK_BYTES as u64) || segment < 2 * unit || segment > 1 << 40 {
        return fault(format!(
            "segment_bytes {segment} must be a multiple of {BLOCK_BYTES}, at least twice unit_bytes {unit}"
        ));
    }
    if !unit.is_multiple_of(BLOCK_BYTES as u64)
        || unit == 0
        || config.units_in_flight == 0
        || config.small_units_in_flight == 0
    {
        return fault(format!(
            "unit_bytes {unit} must be a multiple of {BLOCK_BYTES}, and units must be allowed in flight"
        ));
    }
    Ok(())
}
