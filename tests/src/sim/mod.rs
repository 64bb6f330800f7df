//! A simulated world around the shard core: one seed fixes everything that happens in it.
//!
//! - [`plan`]: what the seed decides beforehand;
//! - [`world`]: time, shards, network; carries out what shards ask for and brings them what happens;
//! - [`disk`], [`memory`], [`clock`], [`random`]: what a shard stands on;
//! - [`client`]: producers, consumers, admins, vandals and the auditor, and what they say ([`talk`]);
//! - [`oracle`]: the journal of everything sent, acknowledged and seen, and the judge;
//! - [`planted`]: faults of the seam, planted to see the judge at work.
//!
//! A run is several lives of one broker. Each ends with a crash; after each restart the auditor reads every
//! queue from the beginning, and the oracle compares. In the last life nothing fails any more, and everything
//! must get through.

pub mod client;
pub mod clock;
pub mod disk;
pub mod memory;
pub mod oracle;
pub mod plan;
pub mod planted;
pub mod random;
pub mod talk;
pub mod world;

use crate::sim::planted::Bug;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What the judge found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// Nothing found, or what was.
pub type Verdict<T = ()> = Result<T, Violation>;

/// A promise is broken.
pub fn violation<T>(what: impl Into<String>) -> Verdict<T> {
    Err(Violation(what.into()))
}

/// What a clean run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Lives that ended in a crash.
    pub crashes: u64,
    /// Those of them that lost what was not durable.
    pub power_losses: u64,
    /// Messages acknowledged, all compared byte for byte at least once.
    pub acknowledged: u64,
    /// Records that consumers and auditors received and compared.
    pub seen: u64,
    /// Acknowledged ASYNC and gone with the power, as allowed.
    pub lost: u64,
    /// Commits of group members that were accepted.
    pub commits: u64,
    /// Messages popped, and acknowledged.
    pub popped: u64,
    /// See `popped`.
    pub acked: u64,
    /// Disk operations that failed, as the plan had it.
    pub failed_operations: u64,
    /// Segments made.
    pub segments: u64,
    /// Indexes written while shards served, those spoiled between lives, and units of the log spoiled there.
    pub indexes: u64,
    /// See `indexes`.
    pub spoiled: u64,
    /// See `indexes`.
    pub rotten: u64,
    /// Answers that something expired.
    pub expired: u64,
    /// Transfers from file to socket, segments retired, holes punched.
    pub transfers: u64,
    /// See `transfers`.
    pub retired: u64,
    /// See `transfers`.
    pub holes: u64,
    /// Offsets that filters left out, and messages handed out behind others of their message group.
    pub left_out: u64,
    /// See `left_out`.
    pub ordered: u64,
    /// Messages that members sent back.
    pub retries: u64,
    /// Delayed messages taken back.
    pub recalled: u64,
    /// Things that happened.
    pub events: u64,
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, other: Summary) {
        self.crashes += other.crashes;
        self.power_losses += other.power_losses;
        self.acknowledged += other.acknowledged;
        self.seen += other.seen;
        self.lost += other.lost;
        self.commits += other.commits;
        self.popped += other.popped;
        self.acked += other.acked;
        self.failed_operations += other.failed_operations;
        self.segments += other.segments;
        self.indexes += other.indexes;
        self.spoiled += other.spoiled;
        self.rotten += other.rotten;
        self.expired += other.expired;
        self.transfers += other.transfers;
        self.retired += other.retired;
        self.holes += other.holes;
        self.left_out += other.left_out;
        self.ordered += other.ordered;
        self.retries += other.retries;
        self.recalled += other.recalled;
        self.events += other.events;
    }
}

/// One run. A panic anywhere in it is a violation as well.
pub fn run(seed: u64, bug: Option<Bug>, trace: bool) -> Verdict<Summary> {
    let run = || world::World::new(seed, bug, trace).run();
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|panic| violation(format!("panic: {}", panic_text(panic.as_ref()))))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else {
        panic.downcast_ref::<String>().map_or("without a text", String::as_str)
    }
}
