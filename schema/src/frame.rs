//! The frame: length-prefixed, and parsed nowhere else.
//!
//! ```text
//!  0  u32 magic         "RMQ1", little endian as everything
//!  4  u32 length        bytes of the whole frame, this header included
//!  8  u8  version       of the protocol
//!  9  u8  flags         ANSWER, ONE_WAY
//! 10  u16 opcode        of the request; an answer bears its request's
//! 12  u16 shard         for which the request is; 0xFFFF: the connection's
//! 14  u16 status        of an answer; 0 in requests
//! 16  u64 correlation   chosen by the requester, returned in the answer
//! 24  u32 table_bytes   length of the flatbuffers table behind the header
//! 28  u32 checksum      CRC-32 of bytes 0..28
//! 32  table, zero-padded to a multiple of 8, then the run of records
//! ```
//!
//! Invariants:
//! - nothing of a frame is kept, and no memory made for it, before its header passed;
//! - `HEADER_BYTES + table_bytes <= length <= the limit given`.

use crate::checksum::crc32;
use crate::error::Status;
use crate::limits;
use crate::opcode::Opcode;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "RMQ1" read as a little-endian number.
pub const MAGIC: u32 = u32::from_le_bytes(*b"RMQ1");
/// Version of the protocol that this crate speaks.
pub const VERSION: u8 = 1;
/// Length of the frame header.
pub const HEADER_BYTES: usize = 32;
/// The frame is an answer.
pub const FLAG_ANSWER: u8 = 1;
/// No answer is wanted (request) or none was asked for (a push of the server's).
pub const FLAG_ONE_WAY: u8 = 2;
/// In `shard`: the one that serves the connection.
pub const ANY_SHARD: u16 = u16::MAX;

/// Header of a frame as it lies on the wire.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct FrameHeader {
    /// [`MAGIC`].
    pub magic: U32,
    /// Bytes of the whole frame.
    pub length: U32,
    /// [`VERSION`].
    pub version: u8,
    /// [`FLAG_ANSWER`], [`FLAG_ONE_WAY`].
    pub flags: u8,
    /// See [`Opcode`].
    pub opcode: U16,
    /// Shard addressed, or [`ANY_SHARD`].
    pub shard: U16,
    /// See [`Status`].
    pub status: U16,
    /// Matches an answer to its request.
    pub correlation: U64,
    /// Bytes of the table, padding not counted.
    pub table_bytes: U32,
    /// CRC-32 of the bytes before it.
    pub checksum: U32,
}

const _: () = assert!(size_of::<FrameHeader>() == HEADER_BYTES);

impl FrameHeader {
    /// A header with its checksum. `run_bytes` is the length of the records behind the table.
    pub fn new(
        opcode: u16,
        flags: u8,
        shard: u16,
        status: Status,
        correlation: u64,
        table_bytes: usize,
        run_bytes: usize,
    ) -> FrameHeader {
        let length = HEADER_BYTES + padded(table_bytes) + run_bytes;
        let mut header = FrameHeader {
            magic: MAGIC.into(),
            length: u32::try_from(length).expect("frames are limited far below 4 GiB").into(),
            version: VERSION,
            flags,
            opcode: opcode.into(),
            shard: shard.into(),
            status: status.code().into(),
            correlation: correlation.into(),
            table_bytes: (table_bytes as u32).into(),
            checksum: 0.into(),
        };
        header.checksum = header.computed_checksum().into();
        header
    }

    /// Whether this is an answer.
    pub fn is_answer(&self) -> bool {
        self.flags & FLAG_ANSWER != 0
    }

    /// Whether no answer is wanted.
    pub fn is_one_way(&self) -> bool {
        self.flags & FLAG_ONE_WAY != 0
    }

    /// The request's kind, if this version knows it.
    pub fn opcode(&self) -> Option<Opcode> {
        Opcode::from_code(self.opcode.get())
    }

    /// The answer's status.
    pub fn status(&self) -> Status {
        Status::from_code(self.status.get())
    }

    fn computed_checksum(&self) -> u32 {
        crc32(&self.as_bytes()[..HEADER_BYTES - 4])
    }
}

/// Bytes that a table takes in a frame.
pub fn padded(table_bytes: usize) -> usize {
    table_bytes.next_multiple_of(8)
}

/// One whole frame.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// Its header, checked.
    pub header: &'a FrameHeader,
    /// Its table, not verified yet: see [`read_table`].
    pub table: &'a [u8],
    /// The records behind the table.
    pub run: &'a [u8],
}

/// Why bytes are no frame. The connection cannot go on after any of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Something else speaks on the other side.
    #[error(
        "this is no RingMQ frame: it starts with {found:#010x} instead of {MAGIC:#010x} (\"RMQ1\")"
    )]
    Magic {
        /// First four bytes.
        found: u32,
    },
    /// The header was damaged.
    #[error("the frame header's checksum is {found:#010x} where {expected:#010x} was computed")]
    Checksum {
        /// In the header.
        found: u32,
        /// Of the header.
        expected: u32,
    },
    /// A version that this side does not speak.
    #[error("protocol version {found} is not spoken here, only {VERSION}")]
    Version {
        /// In the header.
        found: u8,
    },
    /// Above the limit.
    #[error("a frame of {bytes} bytes is longer than the {limit} bytes allowed here")]
    TooLarge {
        /// In the header.
        bytes: u32,
        /// In force.
        limit: u32,
    },
    /// Lengths that contradict each other.
    #[error(
        "the frame says {length} bytes in all and {table_bytes} for its table, which does not fit"
    )]
    Lengths {
        /// Of the frame.
        length: u32,
        /// Of the table.
        table_bytes: u32,
    },
}

impl FrameError {
    /// Status to answer with before the connection closes.
    pub fn status(&self) -> Status {
        match self {
            FrameError::TooLarge { .. } => Status::FrameTooLarge,
            FrameError::Version { .. } => Status::VersionMismatch,
            _ => Status::BadFrame,
        }
    }
}

/// Checks the header at the start of `bytes`; `None` while it is not whole.
pub fn parse_header(bytes: &[u8], limit: u32) -> Result<Option<&FrameHeader>, FrameError> {
    // A foreign protocol is recognised by its first four bytes, also when it sends no more than those.
    if bytes.len() >= 4 {
        let found = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if found != MAGIC {
            return Err(FrameError::Magic { found });
        }
    }
    let Ok((header, _)) = FrameHeader::ref_from_prefix(bytes) else { return Ok(None) };
    let (found, expected) = (header.checksum.get(), header.computed_checksum());
    if found != expected {
        return Err(FrameError::Checksum { found, expected });
    }
    if header.version != VERSION {
        return Err(FrameError::Version { found: header.version });
    }
    let (length, table_bytes) = (header.length.get(), header.table_bytes.get());
    if length > limit {
        return Err(FrameError::TooLarge { bytes: length, limit });
    }
    let table_max = (limit as usize).min(length as usize);
    let table_end = HEADER_BYTES + padded(table_bytes as usize);
    if (length as usize) < HEADER_BYTES || table_bytes as usize > table_max {
        return Err(FrameError::Lengths { length, table_bytes });
    }
    if table_end > length as usize {
        return Err(FrameError::Lengths { length, table_bytes });
    }
    Ok(Some(header))
}

/// The frame at the start of `bytes`; `None` while it is not whole. Its length is in its header.
pub fn parse(bytes: &[u8], limit: u32) -> Result<Option<Frame<'_>>, FrameError> {
    let Some(header) = parse_header(bytes, limit)? else { return Ok(None) };
    let (length, table_bytes) = (header.length.get() as usize, header.table_bytes.get() as usize);
    if bytes.len() < length {
        return Ok(None);
    }
    Ok(Some(Frame {
        header,
        table: &bytes[HEADER_BYTES..HEADER_BYTES + table_bytes],
        run: &bytes[HEADER_BYTES + padded(table_bytes)..length],
    }))
}

/// Verifies a request's table within the limits for untrusted input.
pub fn read_table<'a, T>(table: &'a [u8]) -> Result<T::Inner, flatbuffers::InvalidFlatbuffer>
where
    T: flatbuffers::Follow<'a> + flatbuffers::Verifiable + 'a,
{
    read_table_with::<T>(table, limits::VERIFIER_TABLES_MAX)
}

/// Like [`read_table`] for answers and registrations, which may hold very many tables.
pub fn read_large_table<'a, T>(table: &'a [u8]) -> Result<T::Inner, flatbuffers::InvalidFlatbuffer>
where
    T: flatbuffers::Follow<'a> + flatbuffers::Verifiable + 'a,
{
    read_table_with::<T>(table, limits::VERIFIER_TABLES_MAX_ANSWER)
}

fn read_table_with<'a, T>(
    table: &'a [u8],
    max_tables: usize,
) -> Result<T::Inner, flatbuffers::InvalidFlatbuffer>
where
    T: flatbuffers::Follow<'a> + flatbuffers::Verifiable + 'a,
{
    let options = flatbuffers::VerifierOptions {
        max_depth: limits::VERIFIER_DEPTH_MAX,
        max_tables,
        max_apparent_size: 64 << 20,
        ignore_missing_null_terminator: false,
    };
    flatbuffers::root_with_opts::<T>(&options, table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::FrameBuilder;
    use crate::connection::{Ping, PingArgs};

    fn ping() -> Vec<u8> {
        let mut out = Vec::new();
        FrameBuilder::new().request(&mut out, Opcode::Ping, 3, 7, b"run8byte", |fbb| {
            Ping::create(fbb, &PingArgs { sent_ms: 42 })
        });
        out
    }

    #[test]
    fn round_trip() {
        let bytes = ping();
        let frame = parse(&bytes, 1 << 20).unwrap().unwrap();
        assert_eq!(frame.header.opcode(), Some(Opcode::Ping));
        assert_eq!(frame.header.correlation.get(), 7);
        assert_eq!(frame.header.shard.get(), 3);
        assert_eq!(frame.run, b"run8byte");
        assert_eq!(read_table::<Ping>(frame.table).unwrap().sent_ms(), 42);
    }

    #[test]
    fn every_prefix_waits_and_every_flipped_header_bit_is_refused() {
        let bytes = ping();
        for end in 0..bytes.len() {
            assert!(parse(&bytes[..end], 1 << 20).unwrap().is_none(), "{end}");
        }
        for bit in 0..HEADER_BYTES * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&damaged, 1 << 20).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn limits_come_before_bytes() {
        let header = FrameHeader::new(2, 0, 0, Status::Ok, 1, 0, 1 << 20);
        let error = parse(header.as_bytes(), 1 << 20).unwrap_err();
        assert_eq!(error.status(), Status::FrameTooLarge);
        let mut header = FrameHeader::new(2, 0, 0, Status::Ok, 1, 64, 0);
        header.length = 40.into();
        header.checksum = header.computed_checksum().into();
        assert!(matches!(parse(header.as_bytes(), 1 << 20), Err(FrameError::Lengths { .. })));
    }

    #[test]
    fn garbage_tables_do_not_verify() {
        for length in 0..64 {
            let garbage: Vec<u8> = (0..length).map(|i| (i * 37 + 11) as u8).collect();
            assert!(read_table::<crate::consume::Fetch>(&garbage).is_err());
        }
    }
}
