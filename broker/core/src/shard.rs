//! One shard: its log, queues, groups, and what waits for them.

use crate::config::{Figures, ShardConfig};
use crate::seam::{DiskError, Input, LogFiles, Memory, Now, Outbox};

/// Why a shard does not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
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
        "the log is damaged at position {position}, below {flushed}, up to where it was durable: {what}. Nothing was changed"
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

/// See the module.
#[derive(Debug)]
pub struct Shard<M: Memory> {
    config: ShardConfig,
    memory: M,
}

impl<M: Memory> Shard<M> {
    /// Recovers the shard from its files and begins a new epoch. Actions (the epoch's first unit, what
    /// peers must know) are left in `out`; requests are answered `NotReady` until [`Shard::is_ready`].
    pub fn open(
        config: ShardConfig,
        memory: M,
        files: &mut dyn LogFiles,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> Result<Shard<M>, OpenError> {
        let _ = (files, now, out);
        Ok(Shard { config, memory })
    }

    /// One step.
    pub fn handle(&mut self, now: Now, input: Input<'_, M::Block>, out: &mut Outbox<M::Block>) {
        let _ = (now, input, out, &mut self.memory);
    }

    /// When `Tick` is due at the latest, in `Now::mono_us`.
    pub fn next_wake(&self) -> Option<u64> {
        None
    }

    /// Whether the epoch has begun durably and the registry agrees with the home shard's.
    pub fn is_ready(&self) -> bool {
        true
    }

    /// Whether more than `backlog_bytes` wait for the device: the runtime stops reading from
    /// connections until this is false again.
    pub fn is_congested(&self) -> bool {
        false
    }

    /// Why the shard stopped writing, if it did.
    pub fn failure(&self) -> Option<&str> {
        None
    }

    /// Its figures.
    pub fn figures(&self) -> Figures {
        Figures::default()
    }

    /// Its settings.
    pub fn config(&self) -> &ShardConfig {
        &self.config
    }
}
