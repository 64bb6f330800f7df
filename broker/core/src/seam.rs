//! The seam between the shard and whatever runs it.
//!
//! A shard gets an [`Input`] with the time and leaves [`Action`]s in an [`Outbox`]; that is all. The
//! glommio shell of `ringmq-broker` is one such runtime, the simulated world of the tests another.
//!
//! Rules for the runtime:
//! - actions are carried out in the order in which they lie in the outbox, then the outbox is cleared;
//! - `Write`, `Sync`, `MakeSegment` and `Read` are started at once and may end in any order; each is
//!   answered by exactly one input. Their positions and lengths are multiples of [`BLOCK_BYTES`] and lie
//!   in one segment;
//! - a write is *durable* when it reached the medium itself (O_DSYNC or write + fdatasync) before
//!   `Written` is reported; a plain one when the device took it;
//! - a block that was handed out in an action is never written to again;
//! - what was handed out as [`Action::WriteIndex`] is turned into bytes and written beside the core; an index
//!   is derived, so nothing waits for it and nothing is lost with it;
//! - a segment is removed or recycled, and a hole punched, only when no read or transfer of it is under
//!   way;
//! - `TurnEnd` follows the requests that came together: units are built then, so that what arrives
//!   together is written together. `Tick` comes at [`crate::Shard::next_wake`] at the latest, and at
//!   least each second.

use crate::index::{Indexed, SegmentRows};
use crate::peer::PeerMessage;
use crate::route::{TopicChange, TopicRoutes};
use ringmq_schema::frame::Frame;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// Unit of device addressing: every write unit is a multiple of it (STATX_DIOALIGN is at most this on
/// the disks measured).
pub const BLOCK_BYTES: usize = 4096;

/// Time, as the runtime sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// Never goes backwards: microseconds since some start.
    pub mono_us: u64,
    /// Wall clock, ms since epoch; may jump.
    pub wall_ms: i64,
}

/// Memory that can be handed to the device: aligned to [`BLOCK_BYTES`].
pub trait Block: 'static {
    /// What is in it.
    fn bytes(&self) -> &[u8];
    /// To fill it.
    fn bytes_mut(&mut self) -> &mut [u8];
    /// Shortens it to a multiple of [`BLOCK_BYTES`]; what is cut off may be lost.
    fn truncate(&mut self, bytes: usize);
}

/// Where blocks come from.
pub trait Memory {
    /// Kind of block.
    type Block: Block;
    /// A block of exactly `bytes`, a multiple of [`BLOCK_BYTES`], with any content.
    fn allocate(&mut self, bytes: usize) -> Self::Block;
}

/// A connection, as the runtime numbers them. Numbers are not used again.
pub type ConnectionId = u64;

/// Bytes of a block.
#[derive(Debug)]
pub struct Slice<B> {
    /// The block, held until the bytes are sent.
    pub block: Rc<B>,
    /// Which of its bytes.
    pub range: Range<u32>,
}

impl<B: Block> Slice<B> {
    /// The bytes themselves.
    pub fn bytes(&self) -> &[u8] {
        &self.block.bytes()[self.range.start as usize..self.range.end as usize]
    }
}

/// A device operation that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation} failed: {reason}")]
pub struct DiskError {
    /// What was tried, with file and position.
    pub operation: String,
    /// What the system said.
    pub reason: String,
}

/// What happens to a shard.
#[derive(Debug)]
pub enum Input<'a, B> {
    /// A request came. `Hello` and `Ping` are answered by the runtime; everything else comes here.
    Request {
        /// From whom; answers go there.
        connection: ConnectionId,
        /// Parsed and within the limits; its table is not verified yet.
        frame: Frame<'a>,
    },
    /// A connection is gone: answers to it would be thrown away.
    ConnectionClosed {
        /// Which.
        connection: ConnectionId,
    },
    /// A write ended.
    Written {
        /// From its action.
        write: u64,
        /// How.
        result: Result<(), DiskError>,
    },
    /// A sync ended.
    Synced {
        /// From its action.
        sync: u64,
        /// How.
        result: Result<(), DiskError>,
    },
    /// A segment is there, its name durable, or could not be made.
    SegmentReady {
        /// From its action.
        base: u64,
        /// How.
        result: Result<(), DiskError>,
    },
    /// The disk can be used no more, as after a failed write: one that does not come back from making a segment.
    DiskFailed {
        /// What was seen.
        error: DiskError,
    },
    /// A read ended; the block has as many bytes as were asked for.
    Read {
        /// From its action.
        read: u64,
        /// How.
        result: Result<Rc<B>, DiskError>,
    },
    /// A read of an index ended; the block has as many bytes as were asked for.
    IndexRead {
        /// From its action.
        read: u64,
        /// How.
        result: Result<Rc<B>, DiskError>,
    },
    /// The index of a segment is there, durably and under its name, or could not be written.
    IndexWritten {
        /// The segment.
        base: u64,
        /// How; what is in it ([`SegmentRows::indexed`]).
        result: Result<Indexed, DiskError>,
    },
    /// A hole was punched, or could not be.
    Punched {
        /// From its action.
        position: u64,
        /// How.
        result: Result<(), DiskError>,
    },
    /// Another shard of this broker says something.
    Peer {
        /// Which.
        from: u16,
        /// What.
        message: PeerMessage,
    },
    /// The name servers' view of a topic that was asked for with `WatchRoute`.
    Routes(TopicRoutes),
    /// Whether the disk has room above its watermark. True until said otherwise.
    DiskHasRoom(bool),
    /// The requests that came together have been handed over.
    TurnEnd,
    /// Time passes.
    Tick,
    /// Take no more requests, finish what was begun, then `Stopped`.
    Stop,
}

/// What the runtime is to do.
#[derive(Debug)]
pub enum Action<B> {
    /// Write the whole block.
    Write {
        /// To tell its end.
        write: u64,
        /// Where in the shard's log.
        position: u64,
        /// What; shared with the shard's tail cache.
        block: Rc<B>,
        /// Whether it must have reached the medium when its end is told.
        durable: bool,
    },
    /// Make durable what was written between the positions before this action.
    Sync {
        /// To tell its end.
        sync: u64,
        /// First position.
        from: u64,
        /// End.
        to: u64,
    },
    /// Make the segment that begins at `base` ready to be written. Segments are made in order and
    /// adjoin each other.
    MakeSegment {
        /// Its first position.
        base: u64,
        /// Its length.
        bytes: u64,
    },
    /// Read from the log.
    Read {
        /// To tell its end.
        read: u64,
        /// Where.
        position: u64,
        /// How many bytes.
        bytes: u32,
    },
    /// Turn the rows into the index of their segment ([`SegmentRows::encode`]) and write it beside the
    /// segment, in place of what is there. Done by [`Input::IndexWritten`].
    WriteIndex {
        /// What is in it; goes to another thread.
        rows: Arc<SegmentRows>,
    },
    /// Read from the index of a segment. Done by [`Input::IndexRead`].
    ReadIndex {
        /// To tell its end.
        read: u64,
        /// The segment.
        base: u64,
        /// Where in the index, a multiple of [`BLOCK_BYTES`].
        at: u64,
        /// How many bytes, a multiple of [`BLOCK_BYTES`].
        bytes: u32,
    },
    /// Nothing needs the segment any more: its index goes, then its file goes or is kept to become a
    /// later segment. Segments are retired in order from the first. Nothing is told.
    Retire {
        /// The segment.
        base: u64,
    },
    /// Give back the space of a range in one segment, a multiple of [`BLOCK_BYTES`]; it reads as zeros
    /// then. Done by [`Input::Punched`].
    Punch {
        /// First position.
        position: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// Send a frame whose run is a range of the log on disk, from file to socket. When that cannot be done
    /// (file or socket fail) the connection is closed.
    Transfer {
        /// To whom.
        connection: ConnectionId,
        /// Header and table: a range of [`Outbox::heads`].
        head: Range<usize>,
        /// First position of the run; the range lies in one segment, below `flushed`.
        position: u64,
        /// Its length, a multiple of 8.
        bytes: u32,
    },
    /// Send a frame.
    Answer {
        /// To whom.
        connection: ConnectionId,
        /// Header and table: a range of [`Outbox::heads`].
        head: Range<usize>,
        /// The run that follows: a range of [`Outbox::slices`].
        slices: Range<usize>,
    },
    /// Tell another shard of this broker.
    Peer {
        /// Which.
        to: u16,
        /// What.
        message: PeerMessage,
    },
    /// A topic was made, changed or deleted, durably and on all shards: the name servers are to learn
    /// of it. Only the home shard says so; after opening it says so of every topic there is.
    Topic(TopicChange),
    /// Routes of this topic over all brokers are wanted, now and whenever they change.
    WatchRoute {
        /// Its name.
        topic: String,
    },
    /// After `Stop`: everything begun is done and durable.
    Stopped,
}

/// Actions and the bytes that belong to them. Reused: nothing is allocated after warm-up.
#[derive(Debug)]
pub struct Outbox<B> {
    /// To be carried out in this order.
    pub actions: Vec<Action<B>>,
    /// Headers and tables of answers.
    pub heads: Vec<u8>,
    /// Runs of answers.
    pub slices: Vec<Slice<B>>,
}

impl<B> Default for Outbox<B> {
    fn default() -> Self {
        Outbox { actions: Vec::new(), heads: Vec::new(), slices: Vec::new() }
    }
}

impl<B> Outbox<B> {
    /// Forgets what was carried out; keeps the memory.
    pub fn clear(&mut self) {
        self.actions.clear();
        self.heads.clear();
        self.slices.clear();
    }
}

/// One segment that is there at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentFile {
    /// Position of its first byte: its name.
    pub base: u64,
    /// Its length.
    pub bytes: u64,
}

/// The log's files at start, before the shard serves: plain blocking calls, so that recovery reads from
/// top to bottom.
pub trait LogFiles {
    /// Segments by rising base.
    fn segments(&mut self) -> Result<Vec<SegmentFile>, DiskError>;
    /// Fills `out` from `position` on; both lie in one segment.
    fn read(&mut self, position: u64, out: &mut [u8]) -> Result<(), DiskError>;
    /// Writes zeros, durably; the range lies in one segment.
    fn wipe(&mut self, position: u64, bytes: u64) -> Result<(), DiskError>;
    /// Length of a segment's index in bytes; `None` when there is none.
    fn index_bytes(&mut self, base: u64) -> Result<Option<u64>, DiskError>;
    /// Fills `out` from the byte `at` of a segment's index on.
    fn read_index(&mut self, base: u64, at: u64, out: &mut [u8]) -> Result<(), DiskError>;
    /// Writes a segment's index, in place of what is there; it has its name only when it is whole.
    fn write_index(&mut self, base: u64, bytes: &[u8]) -> Result<(), DiskError>;
    /// Removes a segment's index, durably; there need not be one.
    fn remove_index(&mut self, base: u64) -> Result<(), DiskError>;
    /// Makes durable whatever the files hold.
    fn sync(&mut self) -> Result<(), DiskError>;
}
