//! What a shard is told about itself, and its limits.

/// How durable a message is when it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushMode {
    /// When it is durable.
    Sync,
    /// When the device took it; durable at most [`ShardConfig::async_flush_ms`] later.
    Async,
}

/// Settings of one shard. [`ShardConfig::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// This shard, and how many the broker has: fixed when the data directory is made.
    pub shard: u16,
    /// See `shard`.
    pub shards: u16,
    /// Identity of this shard's log: random, made with the data directory.
    pub log_id: u64,
    /// Name of the broker.
    pub broker: String,
    /// Flush mode of topics and messages that do not say.
    pub flush: FlushMode,
    /// Length of a segment; a multiple of 4096, at least twice the largest write unit.
    pub segment_bytes: u64,
    /// Units up to this length count as small: at most `small_units_in_flight` durable ones are under
    /// way, meanwhile records gather. 128 KiB: above it a device write costs by bytes, not by operation.
    pub small_unit_bytes: usize,
    /// See `small_unit_bytes`.
    pub small_units_in_flight: usize,
    /// A unit is closed at this length. 1 MiB × QD 4 saturates the disks measured.
    pub unit_bytes: usize,
    /// Units of any size under way.
    pub units_in_flight: usize,
    /// Bytes received but not yet handed to the device above which the runtime stops reading from
    /// producers; at twice this requests are answered `Busy`.
    pub backlog_bytes: usize,
    /// Newest bytes of the log kept in memory for consumers at the tail.
    pub tail_cache_bytes: usize,
    /// Longest time between an ASYNC acknowledgement and durability, ms.
    pub async_flush_ms: u64,
    /// An idle shard writes down its `flushed` after this, ms.
    pub idle_mark_ms: u64,
    /// A snapshot of the state is written when the log grew by so much since the last: what recovery reads
    /// at most beside the active segment, twice over when it grows fast. 256 MiB: under half a second on the
    /// disks measured.
    pub snapshot_bytes: u64,
    /// At least so long between two snapshots, ms, unless the log grew by twice `snapshot_bytes` (design,
    /// part 6).
    pub snapshot_pause_ms: u64,
    /// Holes are punched where only expired topics have records, in runs at least so long; 0: never.
    pub hole_bytes_min: u64,
    /// How long messages of topics that do not say are kept, ms; 0: for ever. RocketMQ `fileReservedTime`, 72 h.
    pub retention_ms: u64,
    /// How many bytes are kept of a topic that does not say, on this broker; 0: any number.
    pub retention_bytes: u64,
    /// Pages of indexes kept in memory for consumers that are behind and for look-ups; at least 512 KiB.
    pub index_cache_bytes: usize,
    /// Most look-ups under way that wait for the disk: by time, key or id.
    pub lookups: usize,
    /// Most segments that one request for messages by key or id looks at; the answer says where to go on.
    pub lookup_segments: usize,
    /// Windows of the log read for consumers that are behind are kept for the next, up to so many bytes.
    pub read_cache_bytes: usize,
    /// Most bytes one answer to a fetch holds; one record always fits.
    pub fetch_bytes: usize,
    /// A run of records of a sealed segment goes out from the file to the socket when it is at least so long;
    /// 0: never. See `bench` for where it pays.
    pub transfer_bytes_min: usize,
    /// A message may be delayed for so long, ms.
    pub delay_ms_max: u64,
    /// Most delayed messages that wait for a time before that of one that was delivered already: there are such after
    /// the clock was set back.
    pub timers_behind: usize,
    /// Most messages that were taken back and are not past their time.
    pub timers_recalled: usize,
    /// Most messages that a group has popped from one queue and not acknowledged: then it gets no new ones of it.
    pub pop_in_flight: usize,
    /// The same of all groups and queues together.
    pub pops_in_flight: usize,
    /// Most fetches waiting for messages; and so many pops.
    pub waiting_fetches: usize,
    /// Most produce requests waiting for their write.
    pub waiting_produces: usize,
    /// Most topics.
    pub topics: usize,
    /// Most queues of all topics together.
    pub queues: u64,
    /// Most groups.
    pub groups: usize,
    /// Most members of a group.
    pub members: usize,
    /// Longest session timeout that a member may ask for, ms; shorter than 1000 is raised to that.
    pub session_timeout_ms: u64,
    /// Whether an unknown group is made on first use.
    pub create_groups: bool,
}

impl ShardConfig {
    /// Defaults for shard `shard` of `shards`.
    pub fn new(shard: u16, shards: u16, log_id: u64) -> ShardConfig {
        ShardConfig {
            shard,
            shards,
            log_id,
            broker: "broker-a".to_owned(),
            flush: FlushMode::Sync,
            segment_bytes: 256 << 20,
            small_unit_bytes: 128 << 10,
            small_units_in_flight: 2,
            unit_bytes: 1 << 20,
            units_in_flight: 8,
            backlog_bytes: 16 << 20,
            tail_cache_bytes: 64 << 20,
            async_flush_ms: 500,
            idle_mark_ms: 500,
            snapshot_bytes: 256 << 20,
            snapshot_pause_ms: 10_000,
            hole_bytes_min: 1 << 20,
            retention_ms: 72 * 3_600_000,
            retention_bytes: 0,
            index_cache_bytes: 16 << 20,
            lookups: 256,
            lookup_segments: 4096,
            read_cache_bytes: 16 << 20,
            fetch_bytes: 4 << 20,
            transfer_bytes_min: 64 << 10,
            delay_ms_max: ringmq_schema::limits::DELAY_MS_MAX,
            timers_behind: 65_536,
            timers_recalled: 100_000,
            pop_in_flight: 10_000,
            pops_in_flight: 1_000_000,
            waiting_fetches: 65_536,
            waiting_produces: 262_144,
            topics: 100_000,
            queues: 1_000_000,
            groups: 10_000,
            members: 10_000,
            session_timeout_ms: 300_000,
            create_groups: true,
        }
    }
}

/// Figures of one shard since it was opened; the runtime publishes them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Current epoch.
    pub epoch: u32,
    /// End of what is in memory.
    pub appended: u64,
    /// End of what the device took without a gap.
    pub written: u64,
    /// End of what is durable without a gap.
    pub flushed: u64,
    /// Messages stored, and their records' bytes.
    pub messages_in: u64,
    /// See `messages_in`.
    pub bytes_in: u64,
    /// Messages sent to consumers, and their records' bytes.
    pub messages_out: u64,
    /// See `messages_out`.
    pub bytes_out: u64,
    /// Write units handed to the device, their bytes, and the padding among them.
    pub units: u64,
    /// See `units`.
    pub unit_bytes: u64,
    /// See `units`.
    pub padding_bytes: u64,
    /// Syncs of their own (not O_DSYNC writes).
    pub syncs: u64,
    /// Requests refused.
    pub refused: u64,
    /// Queues that hold messages.
    pub queues: u64,
    /// Topics known.
    pub topics: u64,
    /// Groups with members here.
    pub active_groups: u64,
    /// Fetches waiting for messages.
    pub waiting_fetches: u64,
    /// Bytes of the log in memory.
    pub tail_bytes: u64,
    /// Bytes read back from disk for consumers.
    pub read_bytes: u64,
    /// Look-ups by time, key or id that did not end with what was in memory of queues.
    pub lookups: u64,
    /// Pages of indexes read from disk.
    pub index_reads: u64,
    /// Records replayed at start, and bytes cut off as a torn tail.
    pub replayed: u64,
    /// See `replayed`.
    pub torn_bytes: u64,
    /// Bytes of the log that are damaged: what lay there is lost, what lies around is not.
    pub fenced_bytes: u64,
    /// Topics and groups that the home shard had to send again: missed when a crash came in between, or lost to
    /// damage.
    pub registry_restored: u64,
    /// Indexes of segments written.
    pub segments_indexed: u64,
    /// Indexes that were damaged and made again.
    pub indexes_mended: u64,
    /// Segments retired, and messages that consumers can no longer read.
    pub segments_retired: u64,
    /// See `segments_retired`.
    pub expired_messages: u64,
    /// Runs sent from file to socket, and their bytes.
    pub transfers: u64,
    /// See `transfers`.
    pub transfer_bytes: u64,
    /// Records that could not be read, or that were read and are not what was written.
    pub failed_reads: u64,
    /// See `failed_reads`.
    pub corrupt_reads: u64,
    /// Bytes given back by holes.
    pub punched_bytes: u64,
    /// Fetches from an offset that is not, or no longer, there.
    pub out_of_range: u64,
    /// Records that SQL filters left out.
    pub sql_left_out: u64,
    /// Snapshots of the state written.
    pub snapshots: u64,
    /// Delayed messages that wait for their time.
    pub timers_pending: u64,
    /// Delayed messages delivered, taken back, appended again before their segment went, and lost to damage.
    pub timers_fired: u64,
    /// See `timers_fired`.
    pub timers_recalled: u64,
    /// See `timers_fired`.
    pub timers_moved: u64,
    /// See `timers_fired`.
    pub timers_lost: u64,
    /// Pops waiting for messages.
    pub waiting_pops: u64,
    /// Messages that were popped and not acknowledged.
    pub popped_in_flight: u64,
    /// Messages popped; those among them not for the first time; acknowledged; found to have used up their attempts, with
    /// no dead-letter topic to go to.
    pub popped: u64,
    /// See `popped`.
    pub popped_again: u64,
    /// See `popped`.
    pub popped_acked: u64,
    /// See `popped`.
    pub popped_kept_back: u64,
    /// How late they were delivered: how many by [`LATENESS_BOUNDS_MS`], the last later than all; and all together, ms.
    pub timers_late: [u64; LATENESS_BOUNDS_MS.len() + 1],
    /// See `timers_late`.
    pub timers_late_ms: u64,
    /// Messages that consumers sent back, for a later attempt.
    pub retries: u64,
    /// Messages that went to a dead-letter topic.
    pub dead_letters: u64,
}

/// Upper bounds of the classes of lateness, ms.
pub const LATENESS_BOUNDS_MS: [u64; 13] =
    [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 30_000, 300_000];
