//! Status codes of answers, and what a client may do about each.
//!
//! A frame's `status` is one of these. 0 is success; every other comes with a `Refusal` table whose
//! message is made for a person. The list is complete from the start: codes of parts that are still to
//! come have their numbers already.

/// What a client may do with a refused request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The same request will be refused again.
    Never,
    /// The same request may succeed here after a pause.
    Here,
    /// Another broker may take it at once; this one after a pause.
    Elsewhere,
    /// Learn the route (or assignment) again first.
    AfterRefresh,
}

macro_rules! status {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $retry:ident;)*) => {
        /// Status of an answer.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum Status { $($(#[$doc])* $name = $code,)* }

        impl Status {
            /// Every status, in the order of their numbers.
            pub const ALL: &'static [Status] = &[$(Status::$name,)*];

            /// The status with this number; unknown numbers (of a newer peer) are `Internal`.
            pub fn from_code(code: u16) -> Status {
                match code { $($code => Status::$name,)* _ => Status::Internal }
            }

            /// Name as in the documentation.
            pub fn name(self) -> &'static str {
                match self { $(Status::$name => stringify!($name),)* }
            }

            /// What a client may do about it.
            pub fn retry(self) -> Retry {
                match self { $(Status::$name => Retry::$retry,)* }
            }
        }
    };
}

status! {
    /// Done.
    Ok = 0, Never;
    // 1..: the request itself.
    /// The frame cannot be read: magic, version, checksum or lengths are wrong. The connection closes.
    BadFrame = 1, Never;
    /// The frame is longer than the server takes. The connection closes.
    FrameTooLarge = 2, Never;
    /// The table does not verify, or a field is missing or out of range.
    BadRequest = 3, Never;
    /// No such opcode.
    UnknownOpcode = 4, Never;
    /// The opcode is known, but this server does not serve it (yet, or in this role).
    Unsupported = 5, Never;
    /// No version in common.
    VersionMismatch = 6, Never;
    /// A request came before `Hello`.
    HelloRequired = 7, Never;
    /// The request belongs to another shard, named in the refusal.
    WrongShard = 8, AfterRefresh;
    // 20..: who may.
    /// Authentication is needed or failed.
    Unauthenticated = 20, Never;
    /// The user may not do this.
    Denied = 21, Never;
    // 30..: topics, queues, groups.
    /// A name outside the rules.
    BadName = 30, Never;
    /// No topic of that name or id here.
    UnknownTopic = 31, AfterRefresh;
    /// The topic has no queue of that number here.
    UnknownQueue = 32, AfterRefresh;
    /// No group of that name or id here.
    UnknownGroup = 33, AfterRefresh;
    /// A topic of that name exists with other settings.
    TopicExists = 34, Never;
    /// The topic takes no writes (permission, or the broker is being drained).
    NotWritable = 35, Elsewhere;
    /// The topic is not to be read (permission), or consumption of the group is switched off.
    NotReadable = 36, Never;
    /// A limit on topics, queues, groups or members is reached.
    TooMany = 37, Never;
    /// The message's type does not fit the topic's.
    WrongMessageType = 38, Never;
    /// A group of that name exists with other settings.
    GroupExists = 39, Never;
    // 50..: messages.
    /// Body, properties or batch above their limit.
    MessageTooLarge = 50, Never;
    /// A record in the run is malformed.
    BadRecord = 51, Never;
    /// A record's payload does not have the checksum that its header says.
    BadChecksum = 52, Here;
    /// A sequence number that does not follow (idempotent producer).
    OutOfSequence = 53, Never;
    // 60..: state of the broker.
    /// Too much at once, or the request waited too long: come back after the hint.
    Busy = 60, Elsewhere;
    /// The disk is fuller than its watermark: no writes until there is room.
    DiskFull = 61, Elsewhere;
    /// The shard stopped writing after a disk error.
    ShardFailed = 62, Elsewhere;
    /// The broker is starting or stopping.
    NotReady = 63, Elsewhere;
    /// This broker is a slave.
    NotMaster = 64, AfterRefresh;
    /// The connection has as much in flight as it may.
    TooManyInFlight = 65, Here;
    /// The broker has as many connections as it may.
    TooManyConnections = 66, Elsewhere;
    // 70..: stored, weaker than asked.
    /// Stored, but not known to be durable in time.
    FlushDiskTimeout = 70, Never;
    /// Stored, but not known to be on a slave in time.
    FlushSlaveTimeout = 71, Never;
    /// Stored, but there is no slave to have it.
    SlaveNotAvailable = 72, Never;
    // 80..: consuming.
    /// The offset is outside what can be read; the refusal names the bounds.
    OffsetOutOfRange = 80, Never;
    /// Another member owns the queue, or the generation is an old one.
    Fenced = 81, AfterRefresh;
    /// Members of the group subscribe differently.
    SubscriptionMismatch = 82, Never;
    /// The filter expression cannot be parsed.
    BadFilter = 83, Never;
    /// The receipt handle is old or of another message.
    BadReceipt = 84, Never;
    /// The range is damaged on disk.
    Corrupt = 85, Never;
    /// Reading the range from disk failed.
    ReadFailed = 86, Here;
    /// The member is not known: join first.
    UnknownMember = 87, AfterRefresh;
    // 90..
    /// Nothing with that id.
    NotFound = 90, Never;
    /// The epoch or position of a replica does not fit.
    EpochMismatch = 91, Never;
    /// A fault of ours: the message says where.
    Internal = 99, Here;
}

impl Status {
    /// Number on the wire.
    pub fn code(self) -> u16 {
        self as u16
    }

    /// Whether the same request may succeed later, here or elsewhere.
    pub fn is_retryable(self) -> bool {
        self.retry() != Retry::Never
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_round_trip() {
        for pair in Status::ALL.windows(2) {
            assert!(pair[0].code() < pair[1].code(), "{} before {}", pair[0], pair[1]);
        }
        for status in Status::ALL {
            assert_eq!(Status::from_code(status.code()), *status);
        }
        assert_eq!(Status::from_code(60_000), Status::Internal);
    }
}
