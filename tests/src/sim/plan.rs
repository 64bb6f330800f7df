//! What a seed decides before a run begins: the broker, its disks, its clients and what befalls it.

use crate::sim::client::producer::TAGS;
use crate::sim::disk::{CrashKind, Device, Fill};
use crate::sim::random::Random;
use crate::sim::talk::Wish;
use ringmq_core::config::{FlushMode, ShardConfig};

/// One life of the broker, from its start to what ends it.
#[derive(Debug, Clone)]
pub struct Life {
    /// Time between two steps of a client, µs, on average. Dense lives try the disk, sparse ones the timers.
    pub pace_us: u64,
    /// Steps of time until the end: it comes after `pace_us * steps`.
    pub steps: u64,
    /// Ends earlier, in the middle of carrying out an outbox, at this many actions.
    pub crash_at_action: Option<u64>,
    /// How it ends.
    pub end: CrashKind,
    /// Recovery of the next life is cut off after so many calls to the disk.
    pub recovery_calls: Option<u64>,
    /// What befell the disks before it.
    pub between: Between,
    /// What befalls the disks in this life.
    pub faults: Faults,
}

/// What is spoiled on the disks before a life begins.
#[derive(Debug, Clone, Copy, Default)]
pub struct Between {
    /// Chance of each index to be deleted, truncated or wrong in a bit.
    pub indexes_percent: u64,
    /// Chance of each shard that a bit of its log is wrong.
    pub rot_percent: u64,
}

/// Chances of one in n for each operation; 0: never.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// A write fails.
    pub write: u64,
    /// A sync fails.
    pub sync: u64,
    /// A segment cannot be made.
    pub make: u64,
    /// A read or transfer fails.
    pub read: u64,
    /// A bit of what is read from an index is wrong.
    pub index_flip: u64,
    /// An index cannot be written, a hole not punched.
    pub beside: u64,
    /// An operation takes a hundred times as long.
    pub slow: u64,
    /// The wall clock is set, the disk reported full and empty again: at a client's step.
    pub clock: u64,
    /// See `clock`.
    pub full: u64,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Shards of the broker.
    pub shards: u16,
    /// The kind of disk all have.
    pub device: Device,
    /// Settings of every shard; number and log id are set for each.
    pub config: ShardConfig,
    /// The outbox is carried out when a turn ends, not after each input.
    pub batched: bool,
    /// A congested shard is left alone, as the seam asks; otherwise it is to defend itself.
    pub heeds_congestion: bool,
    /// Base time of a device operation, µs.
    pub device_us: u64,
    /// Longest time on the network, µs.
    pub network_us: u64,
    /// Another broker of the cluster has the topics as well.
    pub other_broker: bool,
    /// Producers, readers without a group, members of groups.
    pub producers: usize,
    /// See `producers`.
    pub readers: usize,
    /// See `producers`.
    pub members: usize,
    /// Those who take messages one by one.
    pub poppers: usize,
    /// What the two groups of members want, and the second group of poppers; `None`: everything.
    pub wishes: [Option<Wish>; 2],
    /// See `wishes`.
    pub pop_wish: Option<Wish>,
    /// So often a message is handed out to poppers.
    pub pop_attempts: u16,
    /// Connections that send garbage.
    pub vandals: usize,
    /// Topics made at the beginning.
    pub topics: usize,
    /// Session timeout of members, ms.
    pub session_ms: u32,
    /// Lives before the last one.
    pub lives: Vec<Life>,
    /// The last life ends by `Stop`, and after it nothing at all may be missing.
    pub stops: bool,
}

impl Plan {
    /// Drawn from `random`.
    pub fn draw(random: &mut Random) -> Plan {
        let shards = *random.pick(&[1, 1, 2, 2, 3, 4]);
        let device = Device {
            fua: random.percent(60),
            sector: *random.pick(&[512, 4096, 4096]),
            fill: *random.pick(&[Fill::Zeros, Fill::Zeros, Fill::Garbage, Fill::Recycled]),
        };
        let count = random.between(1, 3);
        let hostile = random.percent(40);
        Plan {
            shards,
            device,
            config: config(shards, random),
            batched: random.percent(50),
            heeds_congestion: random.percent(70),
            device_us: *random.pick(&[10, 50, 100, 400]),
            network_us: *random.pick(&[5, 50, 500]),
            other_broker: random.percent(30),
            producers: random.between(1, 4) as usize,
            readers: random.between(0, 2) as usize,
            members: random.between(0, 4) as usize,
            poppers: random.between(0, 4) as usize,
            wishes: [wish(random), wish(random)],
            pop_wish: wish(random),
            pop_attempts: *random.pick(&[3, 16]),
            vandals: usize::from(random.percent(40)),
            topics: random.between(1, 3) as usize,
            session_ms: *random.pick(&[1000, 1500, 3000]),
            lives: (0..count).map(|_| life(hostile, random)).collect(),
            stops: random.percent(50),
        }
    }
}

fn wish(random: &mut Random) -> Option<Wish> {
    random.percent(50).then(|| Wish::draw(random, &TAGS[1..]))
}

fn config(shards: u16, random: &mut Random) -> ShardConfig {
    let mut config = ShardConfig::new(0, shards, 0);
    config.flush = *random.pick(&[FlushMode::Sync, FlushMode::Sync, FlushMode::Async]);
    config.small_unit_bytes = *random.pick(&[4 << 10, 8 << 10, 16 << 10]);
    config.small_units_in_flight = random.between(1, 3) as usize;
    config.unit_bytes = *random.pick(&[16 << 10, 32 << 10]);
    config.units_in_flight = random.between(1, 8) as usize;
    config.segment_bytes = *random.pick(&[64 << 10, 128 << 10, 256 << 10]);
    config.backlog_bytes = *random.pick(&[64 << 10, 256 << 10]);
    config.snapshot_bytes = *random.pick(&[64 << 10, 256 << 10, 1 << 20]);
    config.snapshot_pause_ms = *random.pick(&[0, 100, 1000, 10_000]);
    config.index_cache_bytes = *random.pick(&[64 << 10, 128 << 10, 1 << 20]);
    config.transfer_bytes_min = *random.pick(&[0, 1, 4 << 10, 32 << 10]);
    config.read_cache_bytes = *random.pick(&[0, 128 << 10, 1 << 20]);
    config.hole_bytes_min = *random.pick(&[4 << 10, 16 << 10]);
    config.tail_cache_bytes = *random.pick(&[16 << 10, 64 << 10, 512 << 10]);
    config.async_flush_ms = *random.pick(&[20, 100, 500]);
    config.idle_mark_ms = *random.pick(&[20, 100, 500]);
    config.fetch_bytes = *random.pick(&[32 << 10, 256 << 10]);
    config.pop_in_flight = *random.pick(&[20, 10_000]);
    config.waiting_fetches = *random.pick(&[4, 1024]);
    config.waiting_produces = *random.pick(&[8, 4096]);
    config.topics = 32;
    config.groups = 16;
    config.members = 16;
    config
}

fn life(hostile: bool, random: &mut Random) -> Life {
    let pace_us = *random.pick(&[20, 100, 500, 5_000, 50_000]);
    let one_in = |random: &mut Random, percent, n| if random.percent(percent) { n } else { 0 };
    let mut faults = Faults::default();
    if hostile {
        faults.write = one_in(random, 15, 100);
        faults.sync = one_in(random, 15, 20);
        faults.make = one_in(random, 20, 4);
        faults.read = one_in(random, 40, 10);
        faults.index_flip = one_in(random, 30, 10);
        faults.beside = one_in(random, 30, 3);
        faults.slow = one_in(random, 40, 20);
        faults.full = one_in(random, 30, 100);
    }
    faults.clock = one_in(random, 40, 50);
    Life {
        pace_us,
        steps: random.between(5, 80),
        crash_at_action: random.percent(40).then(|| random.between(1, 400)),
        end: if random.percent(50) { CrashKind::Kill } else { CrashKind::PowerLoss },
        recovery_calls: random.percent(15).then(|| random.between(1, 60)),
        between: Between {
            indexes_percent: *random.pick(&[0, 0, 10, 50, 100]),
            rot_percent: *random.pick(&[0, 0, 0, 0, 0, 0, 20, 50]),
        },
        faults,
    }
}
