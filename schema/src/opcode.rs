//! Requests: their numbers, the permission each needs, and where each is served.
//!
//! One exhaustive table for all daemons and clients. Requests of parts that are still to come have their
//! numbers already and are answered `Unsupported`.

/// What a user must be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Everybody, even before authentication.
    Open,
    /// Send to the topic.
    Publish,
    /// Read the topic as the group.
    Subscribe,
    /// Make a topic, group or user.
    Create,
    /// Change one.
    Update,
    /// Delete one.
    Delete,
    /// See one.
    Get,
    /// See what there is.
    List,
    /// Servers among themselves.
    Peer,
}

/// Where a request is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The connection's core, whatever the shard.
    Connection,
    /// The shard named in the frame header.
    Shard,
    /// The broker's home shard, whatever the frame header says.
    Home,
    /// A name server.
    NameServer,
}

macro_rules! opcodes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $permission:ident, $place:ident, $served:literal;)*) => {
        /// Kind of a request; its answer bears the same.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum Opcode { $($(#[$doc])* $name = $code,)* }

        impl Opcode {
            /// Every opcode, in the order of their numbers.
            pub const ALL: &'static [Opcode] = &[$(Opcode::$name,)*];

            /// The opcode with this number.
            pub fn from_code(code: u16) -> Option<Opcode> {
                match code { $($code => Some(Opcode::$name),)* _ => None }
            }

            /// Name as in the documentation.
            pub fn name(self) -> &'static str {
                match self { $(Opcode::$name => stringify!($name),)* }
            }

            /// What the user must be allowed to do.
            pub fn permission(self) -> Permission {
                match self { $(Opcode::$name => Permission::$permission,)* }
            }

            /// Where it is served.
            pub fn place(self) -> Place {
                match self { $(Opcode::$name => Place::$place,)* }
            }

            /// Whether this version serves it.
            pub fn is_served(self) -> bool {
                match self { $(Opcode::$name => $served,)* }
            }
        }
    };
}

opcodes! {
    // connection.fbs
    /// `Hello` → `HelloAnswer`.
    Hello = 1, Open, Connection, true;
    /// `Ping` → `PingAnswer`.
    Ping = 2, Open, Connection, true;
    /// Further steps of an authentication.
    Authenticate = 3, Open, Connection, false;
    // produce.fbs
    /// `Produce` + run → `ProduceAnswer`.
    Produce = 10, Publish, Shard, true;
    /// Commit or rollback of a transaction.
    EndTransaction = 11, Publish, Shard, false;
    /// Server to producer: is this transaction done?
    CheckBack = 12, Publish, Connection, false;
    /// `Recall` → empty: takes a delayed message back.
    Recall = 13, Publish, Shard, true;
    // consume.fbs
    /// `Fetch` → `FetchAnswer` + run.
    Fetch = 20, Subscribe, Shard, true;
    /// `CommitOffsets` → `CommitOffsetsAnswer`.
    CommitOffsets = 21, Subscribe, Shard, true;
    /// `QueryOffsets` → `QueryOffsetsAnswer`.
    QueryOffsets = 22, Get, Shard, true;
    /// `SearchOffsets` → `SearchOffsetsAnswer`.
    SearchOffsets = 23, Get, Shard, true;
    /// `ResetOffsets` → `CommitOffsetsAnswer`.
    ResetOffsets = 24, Update, Shard, true;
    /// `GroupHeartbeat` → `GroupHeartbeatAnswer`. Shard: `placement::shard_of_group`.
    GroupHeartbeat = 25, Subscribe, Shard, true;
    /// `GroupLeave` → empty.
    GroupLeave = 26, Subscribe, Shard, true;
    // pop.fbs
    /// `Pop` → `PopAnswer` + run: message-level receive.
    Pop = 27, Subscribe, Shard, true;
    /// `Ack` → `AckAnswer`: acknowledges popped messages.
    Ack = 28, Subscribe, Shard, true;
    /// `ChangeInvisible` → `ChangeInvisibleAnswer`: extends or shortens a popped message's invisible time.
    ChangeInvisible = 29, Subscribe, Shard, true;
    /// `RetryLater` + run → `RetryLaterAnswer`: sends a message back for a later attempt.
    RetryLater = 30, Subscribe, Shard, true;
    /// `GetMessage` → `GetMessageAnswer` + run: by unique or stored id.
    GetMessage = 31, Get, Shard, true;
    /// `FindMessages` → `FindMessagesAnswer` + run: by key.
    FindMessages = 32, Get, Shard, true;
    /// `QueryLag` → `QueryLagAnswer`: how far a group is behind, and what is on its way.
    QueryLag = 33, Get, Shard, true;
    /// `CountMessages` → `CountMessagesAnswer`: how many a filter wants.
    CountMessages = 34, Get, Shard, true;
    // admin.fbs
    /// `CreateTopic` → `TopicAnswer`.
    CreateTopic = 40, Create, Home, true;
    /// `AlterTopic` → `TopicAnswer`.
    AlterTopic = 41, Update, Home, true;
    /// `DeleteTopic` → empty.
    DeleteTopic = 42, Delete, Home, true;
    /// `DescribeTopic` → `TopicAnswer`.
    DescribeTopic = 43, Get, Home, true;
    /// `ListTopics` → `ListTopicsAnswer`.
    ListTopics = 44, List, Home, true;
    /// `QueryQueues` → `QueryQueuesAnswer`.
    QueryQueues = 45, Get, Shard, true;
    /// `CreateGroup` → `GroupAnswer`.
    CreateGroup = 46, Create, Home, true;
    /// `DeleteGroup` → empty.
    DeleteGroup = 47, Delete, Home, true;
    /// `ListGroups` → `ListGroupsAnswer`.
    ListGroups = 48, List, Home, true;
    /// `DescribeGroup` → `DescribeGroupAnswer`. Shard: `placement::shard_of_group`.
    DescribeGroup = 49, Get, Shard, true;
    /// `QueryShard` → `QueryShardAnswer`.
    QueryShard = 50, Get, Shard, true;
    /// Changes a setting from the allow-list at run time.
    ChangeConfig = 51, Update, Home, false;
    /// Users and access rules.
    ChangeAccess = 52, Update, Home, false;
    // timer.fbs
    /// `ListTimers` → `ListTimersAnswer`.
    ListTimers = 53, Get, Shard, true;
    // admin.fbs
    /// `AlterGroup` → `GroupAnswer`.
    AlterGroup = 54, Update, Home, true;
    // route.fbs
    /// `RegisterBroker` → `BrokerAnswer`.
    RegisterBroker = 60, Peer, NameServer, true;
    /// `BrokerHeartbeat` → `BrokerAnswer`.
    BrokerHeartbeat = 61, Peer, NameServer, true;
    /// `BrokerChanges` → `BrokerAnswer`.
    BrokerChanges = 62, Peer, NameServer, true;
    /// `UnregisterBroker` → empty.
    UnregisterBroker = 63, Peer, NameServer, true;
    /// `QueryRoute` → `RouteAnswer`.
    QueryRoute = 64, Get, NameServer, true;
    /// One-way from a name server to a subscriber: `RouteAnswer`.
    RouteChanged = 65, Peer, NameServer, true;
    /// `QueryCluster` → `QueryClusterAnswer`.
    QueryCluster = 66, List, NameServer, true;
    /// `QueryTopics` → `QueryTopicsAnswer`.
    QueryTopics = 67, List, NameServer, true;
    /// Votes and log entries of the controller's Raft group.
    Controller = 68, Peer, NameServer, false;
    // replicate.fbs, to come
    /// A slave asks for its master's log bytes.
    ReplicateFetch = 80, Peer, Shard, false;
    /// A slave asks where its log and its master's part.
    ReplicateEpochs = 81, Peer, Shard, false;
}

impl Opcode {
    /// Number on the wire.
    pub fn code(self) -> u16 {
        self as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_round_trip() {
        for pair in Opcode::ALL.windows(2) {
            assert!(pair[0].code() < pair[1].code());
        }
        for opcode in Opcode::ALL {
            assert_eq!(Opcode::from_code(opcode.code()), Some(*opcode));
        }
        assert_eq!(Opcode::from_code(0), None);
    }
}
