//! Every number a peer must respect, with its source.
//!
//! These are the protocol's own bounds and the defaults of configurable ones. A server may enforce less
//! (it says so in `HelloAnswer`), never more.

/// Longest topic name, in bytes (RocketMQ `TopicValidator.TOPIC_MAX_LENGTH`).
pub const TOPIC_NAME_BYTES_MAX: usize = 127;
/// Longest group name, in bytes (RocketMQ `Validators.CHARACTER_MAX_LENGTH` less the retry prefix).
pub const GROUP_NAME_BYTES_MAX: usize = 120;
/// Largest message body, in bytes (RocketMQ `maxMessageSize`, 4 MiB).
pub const BODY_BYTES_MAX: usize = 4 << 20;
/// Largest sum of user property keys and values of a message, in bytes (RocketMQ: 32767).
pub const PROPERTIES_BYTES_MAX: usize = 32_767;
/// Most user properties of a message.
pub const PROPERTIES_MAX: usize = 128;
/// Most keys of a message.
pub const KEYS_MAX: usize = 32;
/// Room in a record beside body and properties: header, tag, keys, group, flatbuffers' own.
pub const RECORD_OVERHEAD_BYTES_MAX: usize = 32 << 10;
/// Largest record: a message of the largest body and properties.
pub const RECORD_BYTES_MAX: usize =
    BODY_BYTES_MAX + PROPERTIES_BYTES_MAX + 1 + RECORD_OVERHEAD_BYTES_MAX;
/// Largest run of records in one produce request, in bytes: one largest record always fits.
pub const BATCH_BYTES_MAX: usize = RECORD_BYTES_MAX;
/// Most records in one produce request.
pub const BATCH_RECORDS_MAX: usize = 65_536;
/// Largest table in front of a run, in bytes.
pub const TABLE_BYTES_MAX: usize = 1 << 20;
/// Largest frame, header included, in bytes. Default of the server's setting.
pub const FRAME_BYTES_MAX: usize = BATCH_BYTES_MAX + TABLE_BYTES_MAX;
/// Largest answer to a fetch that a server sends whatever the client asks for, in bytes: it holds one
/// largest record.
pub const FETCH_BYTES_MAX: usize = 8 << 20;
/// Most queues in one fetch, commit, query or search.
pub const QUEUES_PER_REQUEST_MAX: usize = 16_384;
/// Most messages in one answer to a look-up by key (RocketMQ `maxMsgsNumBatch`).
pub const FIND_RECORDS_MAX: usize = 64;
/// Most pending messages in one answer to `ListTimers`.
pub const LIST_TIMERS_MAX: usize = 1_000;
/// Most messages in one answer to a `Pop` (RocketMQ: 32).
pub const POP_RECORDS_MAX: usize = 32;
/// Most receipts in one `Ack` or `ChangeInvisible`.
pub const RECEIPTS_MAX: usize = 4_096;
/// Shortest invisible time of a `Pop`, ms (RocketMQ `minInvisibleTime`). `ChangeInvisible` may say less: the message is
/// to be tried again soon.
pub const INVISIBLE_MS_MIN: u32 = 10_000;
/// Longest invisible time, ms (RocketMQ `maxInvisibleTime`, 12 h).
pub const INVISIBLE_MS_MAX: u32 = 12 * 3_600_000;
/// Furthest delivery time of a delayed message, ms from now (RocketMQ `timerMaxDelaySec` is 3 days). Default of the
/// server's setting.
pub const DELAY_MS_MAX: u64 = 40 * 86_400_000;
/// Delays of RocketMQ's 18 levels, ms (`messageDelayLevel`).
pub const DELAY_LEVELS_MS: [u64; 18] = [
    1_000, 5_000, 10_000, 30_000, 60_000, 120_000, 180_000, 240_000, 300_000, 360_000, 420_000,
    480_000, 540_000, 600_000, 1_200_000, 1_800_000, 3_600_000, 7_200_000,
];
/// Pauses before a failed message is delivered again, ms, the last for all further attempts: RocketMQ's levels from the
/// third on (`delayLevelWhenNextConsume`).
pub const RETRY_DELAYS_MS: [u64; 16] = [
    10_000, 30_000, 60_000, 120_000, 180_000, 240_000, 300_000, 360_000, 420_000, 480_000, 540_000,
    600_000, 1_200_000, 1_800_000, 3_600_000, 7_200_000,
];
/// Most pauses in a group's list.
pub const RETRY_DELAYS_MAX: usize = 64;
/// A message that failed so often goes to the dead letters (RocketMQ `maxReconsumeTimes`).
pub const ATTEMPTS_MAX_DEFAULT: u16 = 16;
/// Longest text of a message's last error, in bytes; what is longer is cut.
pub const LAST_ERROR_BYTES_MAX: usize = 1024;
/// Longest a server holds a long poll, ms.
pub const LONG_POLL_MS_MAX: u32 = 60_000;
/// Most queues of one topic on one broker.
pub const QUEUES_PER_TOPIC_MAX: u32 = 65_536;
/// Tables of a flatbuffer: nesting and number. The crate's defaults let a 404-byte frame burn 54 ms
/// (measured); these bound it at 0.2 ms.
pub const VERIFIER_DEPTH_MAX: usize = 8;
/// See [`VERIFIER_DEPTH_MAX`]. Answers that list topics get more: [`VERIFIER_TABLES_MAX_ANSWER`].
pub const VERIFIER_TABLES_MAX: usize = 4_096;
/// Bound for tables that a client asked for (routes, topic lists) and for a broker's full registration:
/// 100 000 topics are normal.
pub const VERIFIER_TABLES_MAX_ANSWER: usize = 1_000_000;
/// Queues of a topic that is made without saying how many (RocketMQ `defaultTopicQueueNums`).
pub const QUEUES_DEFAULT: u32 = 8;
