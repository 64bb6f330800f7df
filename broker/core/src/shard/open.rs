//! Opening: replay the log, begin an epoch, tell the other shards what they must know.

use super::Shard;
use super::fetch::Fetches;
use super::registry::HomeState;
use super::waiting::{Then, Waiting};
use crate::config::{Figures, ShardConfig};
use crate::consume::offsets::Offsets;
use crate::log::Log;
use crate::log::recovery::{self, Recovered};
use crate::peer::{PeerMessage, QueueId};
use crate::queue::Queues;
use crate::registry::Registry;
use crate::seam::{BLOCK_BYTES, DiskError, LogFiles, Memory, Now, Outbox};
use crate::state;
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::placement::{HOME_SHARD, shard_of_group, shard_of_queue};
use ringmq_schema::record::{Kind, RecordRef};
use std::collections::{BTreeMap, BTreeSet};

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
    #[error("segment {base:020}.log is not of this shard: {what}")]
    Foreign {
        /// Its name.
        base: u64,
        /// What differs.
        what: String,
    },
    /// Damage that is no torn tail.
    #[error(
        "the log is damaged at position {position}, below {flushed}, up to where it was durable: {what}. Nothing was changed; restore the segment from a copy, or move the data directory away to start empty"
    )]
    Damaged {
        /// Where.
        position: u64,
        /// Durable end that the log knows of.
        flushed: u64,
        /// What is wrong.
        what: String,
    },
}

/// What replay builds.
struct Tables {
    shard: u16,
    shards: u16,
    queues: Queues,
    registry: Registry,
    offsets: Offsets,
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
        let mut tables = Tables {
            shard: config.shard,
            shards: config.shards,
            queues: Queues::default(),
            registry: Registry::new(is_home),
            offsets: Offsets::default(),
        };
        let recovered = recovery::recover(&config, files, |record| tables.replay(record))?;
        let Recovered { segments, end, epoch, records, torn_bytes } = recovered;
        let Tables { mut queues, registry, offsets, .. } = tables;
        // Recovery made all of it durable before a consumer can see it.
        queues.show_all();
        let figures = Figures { replayed: records, torn_bytes, ..Figures::default() };
        let mut shard = Shard {
            log: Log::new(&config, memory, epoch, segments, end, now),
            home: is_home.then(|| HomeState::new(config.shards, registry.version())),
            config,
            queues,
            registry,
            offsets,
            groups: BTreeMap::new(),
            unborn: Vec::new(),
            routes: BTreeMap::new(),
            groups_looked_at_us: now.mono_us,
            groups_to_reconcile: BTreeSet::new(),
            fetches: Fetches::default(),
            waiting: Waiting::default(),
            frames: FrameBuilder::new(),
            figures,
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
        self.tell(HOME_SHARD, PeerMessage::RegistryDone { version }, now, out);
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

impl Tables {
    /// Takes one record of the log into the tables.
    fn replay(&mut self, record: &RecordRef<'_>) -> Result<(), &'static str> {
        let header = record.header;
        match Kind::from_code(header.prefix.kind) {
            Some(Kind::Message) => self.replay_message(record),
            Some(Kind::Topic | Kind::Group) => {
                let change = state::read_change(record.payload)
                    .ok_or("a topic or group record does not parse")?;
                if change.version != self.registry.version() + 1 {
                    return Err("topic and group records are out of order");
                }
                self.registry.stage(change);
                let Some(change) = self.registry.unstage() else { return Ok(()) };
                self.registry.apply(&change);
                if let crate::peer::Change::TopicDeleted { id } = change.change {
                    self.queues.forget_topic(id);
                    self.offsets.forget_topic(id);
                }
                if let crate::peer::Change::GroupDeleted { id } = change.change {
                    self.offsets.forget_group(id);
                }
                Ok(())
            }
            Some(Kind::Offsets) => {
                let at_ms = header.store_ms.get();
                state::read_offsets(record.payload, |entry| {
                    if !self.registry.is_deleted(entry.queue.topic) {
                        self.offsets.reset(entry.group, entry.queue, entry.offset, at_ms);
                    }
                })
                .ok_or("an offsets record does not parse")
            }
            Some(Kind::Owner) => {
                let owner =
                    state::read_owner(record.payload).ok_or("an owner record does not parse")?;
                // A topic that is not here yet counts: its owner may be told before this shard has it.
                if !self.registry.is_deleted(owner.queue.topic) {
                    self.offsets.own(&owner);
                }
                Ok(())
            }
            Some(Kind::Epoch) => Ok(()),
            _ => Err("a record of a kind that this version does not know"),
        }
    }

    fn replay_message(&mut self, record: &RecordRef<'_>) -> Result<(), &'static str> {
        let header = record.header;
        let id = QueueId { topic: header.topic.get(), queue: header.queue.get() };
        if self.registry.is_deleted(id.topic) {
            // Taken between the deletion's append and its effect: gone with the topic.
            return Ok(());
        }
        if self.registry.topic(id.topic).is_none() {
            return Err("a message of a topic that was never made");
        }
        if shard_of_queue(id.topic, id.queue, self.shards) != self.shard {
            return Err("a message of another shard's queue");
        }
        let slot = self.queues.slot_or_new(id);
        let queue = self.queues.at_mut(slot);
        // promise: fifo
        if header.offset.get() != queue.next {
            return Err("a message's queue offset does not follow the one before");
        }
        let bytes = record.bytes.len() as u32;
        let tag_hash = header.tag_hash.get();
        queue.push(header.position.get(), bytes, tag_hash, header.store_ms.get());
        Ok(())
    }
}
