//! Records: what a producer sends, the log stores and a consumer gets, byte for byte the same but for the
//! fields that the broker fills in.
//!
//! ```text
//!   0 u32 length            of the whole record, a multiple of 8
//!   4 u8  magic             0xA7
//!   5 u8  version
//!   6 u8  kind              see `Kind`
//!   7 u8  key_count
//!   8 u32 header_checksum   broker: CRC-32 of bytes 0..8 and 12..128
//!  12 u32 payload_checksum  producer: CRC-32 of the payload
//!  16 u32 payload_bytes     of the flatbuffers message, padding not counted
//!  20 u32 topic             id on this broker
//!  24 u32 queue
//!  28 u32 epoch             broker
//!  32 u64 offset            broker: in the queue
//!  40 u64 position          broker: in the shard's log
//!  48 i64 store_ms          broker
//!  56 i64 deliver_ms        not before; 0: at once. It stays when the message is delivered
//!  64 [16] message_id       UUID v7, big endian as UUIDs are
//!  80 u64 producer_id       0: no idempotence
//!  88 u32 producer_sequence
//!  92 u32 tag_hash          CRC-32 of the tag; 0: no tag
//!  96 u16 flags             bits 0-1 flush, bits 2-3 compression, bit 4 transaction, bit 5 delayed
//!  98 u16 property_count
//! 100 u16 property_bytes
//! 102 u16 attempts          broker: deliveries before, of a message that came back from a consumer
//! 104 [u32; 4] key_hashes   CRC-32 of the first four keys
//! 120 i64 born_ms
//! 128 payload, zero-padded to a multiple of 8
//! ```
//!
//! Control records share the first eight bytes: `Pad` fills a gap of any multiple of 8, `Unit` opens a
//! write unit, `Seal` ends a segment. Clients skip them.

use crate::checksum::{crc32, crc32_of_header};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Second word of every record starts with this byte.
pub const MAGIC: u8 = 0xA7;
/// Version of the record format.
pub const VERSION: u8 = 1;
/// Length of a record's header.
pub const HEADER_BYTES: usize = 128;
/// Length of a write unit's header.
pub const UNIT_HEADER_BYTES: usize = 64;
/// Records are aligned to, and their lengths multiples of, this.
pub const ALIGNMENT: usize = 8;

/// Flush bits of `flags`: 0 the topic's default, 1 SYNC, 2 ASYNC.
pub const FLAG_FLUSH_MASK: u16 = 0b11;
/// Compression bits of `flags`: 0 none, 1 lz4, 2 zstd.
pub const FLAG_COMPRESSION_MASK: u16 = 0b1100;
/// Half message of a transaction.
pub const FLAG_TRANSACTION: u16 = 0b1_0000;
/// The broker delivered the message when its time had come: `producer_id` is the position of its `Timer` record.
pub const FLAG_DELAYED: u16 = 0b10_0000;

/// `base_offset` of the answer to delayed messages: they get their offsets when they are due.
pub const NO_OFFSET: u64 = u64::MAX;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Kind {
    /// A user's message.
    Message = 1,
    /// Topic made, changed or deleted.
    Topic = 16,
    /// Group made or deleted.
    Group = 17,
    /// Offsets committed or reset.
    Offsets = 18,
    /// Owner and generation of a queue in a group.
    Owner = 19,
    /// Outcome of a transaction (reserved).
    TransactionEnd = 20,
    /// What became of popped messages.
    Pop = 21,
    /// A delayed message that waits for its time. `offset` not 0: it was appended again, from `offset - 1`.
    Timer = 22,
    /// A hole is about to be punched.
    Hole = 23,
    /// An epoch begins.
    Epoch = 24,
    /// A slice of a snapshot of the shard's state.
    Snapshot = 25,
    /// A delayed message is taken back.
    TimerEnd = 26,
    /// Control: nothing.
    Pad = 128,
    /// Control: a write unit begins.
    Unit = 129,
    /// Control: the log goes on at the next segment.
    Seal = 130,
}

impl Kind {
    /// The kind with this number.
    pub fn from_code(code: u8) -> Option<Kind> {
        Some(match code {
            1 => Kind::Message,
            16 => Kind::Topic,
            17 => Kind::Group,
            18 => Kind::Offsets,
            19 => Kind::Owner,
            20 => Kind::TransactionEnd,
            21 => Kind::Pop,
            22 => Kind::Timer,
            23 => Kind::Hole,
            24 => Kind::Epoch,
            25 => Kind::Snapshot,
            26 => Kind::TimerEnd,
            128 => Kind::Pad,
            129 => Kind::Unit,
            130 => Kind::Seal,
            _ => return None,
        })
    }

    /// Whether it is a control record.
    pub fn is_control(self) -> bool {
        self as u8 >= 128
    }
}

/// First eight bytes of every record.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Prefix {
    /// Of the whole record.
    pub length: U32,
    /// [`MAGIC`].
    pub magic: u8,
    /// [`VERSION`].
    pub version: u8,
    /// See [`Kind`].
    pub kind: u8,
    /// Keys of a message.
    pub key_count: u8,
}

/// Header of a record as it lies on wire and disk.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs)] // The module's table says what each is.
pub struct RecordHeader {
    pub prefix: Prefix,
    pub header_checksum: U32,
    pub payload_checksum: U32,
    pub payload_bytes: U32,
    pub topic: U32,
    pub queue: U32,
    pub epoch: U32,
    pub offset: U64,
    pub position: U64,
    pub store_ms: I64,
    pub deliver_ms: I64,
    pub message_id: [u8; 16],
    pub producer_id: U64,
    pub producer_sequence: U32,
    pub tag_hash: U32,
    pub flags: U16,
    pub property_count: U16,
    pub property_bytes: U16,
    pub attempts: U16,
    pub key_hashes: [U32; 4],
    pub born_ms: I64,
}

const _: () = assert!(size_of::<RecordHeader>() == HEADER_BYTES);
const _: () = assert!(size_of::<UnitHeader>() == UNIT_HEADER_BYTES);

impl RecordHeader {
    /// A header of zeros but for lengths and kind. `payload_bytes` without padding.
    pub fn new(kind: Kind, payload_bytes: usize) -> RecordHeader {
        let mut header = RecordHeader::new_zeroed();
        header.prefix = Prefix {
            length: (record_bytes(payload_bytes) as u32).into(),
            magic: MAGIC,
            version: VERSION,
            kind: kind as u8,
            key_count: 0,
        };
        header.payload_bytes = (payload_bytes as u32).into();
        header
    }

    /// CRC-32 of the header but for the checksum's own four bytes.
    pub fn computed_checksum(&self) -> u32 {
        crc32_of_header::<HEADER_BYTES>(self.as_bytes())
    }

    /// Sets the header checksum; the last thing done to a header.
    pub fn seal(&mut self) {
        self.header_checksum = self.computed_checksum().into();
    }
}

/// Header of a write unit: what the broker hands to the device at once.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct UnitHeader {
    /// Length 64, kind `Unit`.
    pub prefix: Prefix,
    /// CRC-32 of bytes 0..8 and 12..64.
    pub header_checksum: U32,
    /// Of the whole unit: this header, records, padding.
    pub unit_bytes: U32,
    /// Where the unit begins in the shard's log.
    pub position: U64,
    /// Epoch in which it was written.
    pub epoch: U32,
    /// Shard whose log it is.
    pub shard: U32,
    /// End of the durable prefix, known when the unit was built.
    pub flushed: U64,
    /// Identity of the log: a segment copied from elsewhere is refused.
    pub log_id: U64,
    /// Where the newest whole snapshot of the shard's state begins that was durable when the unit was
    /// built; 0: there is none.
    pub snapshot: U64,
    /// Room for later versions, zero.
    pub reserved: [u8; 8],
}

impl UnitHeader {
    /// A header with its checksum.
    pub fn new(
        unit_bytes: u32,
        position: u64,
        epoch: u32,
        shard: u16,
        flushed: u64,
        log_id: u64,
        snapshot: u64,
    ) -> UnitHeader {
        let mut header = UnitHeader {
            prefix: Prefix {
                length: (UNIT_HEADER_BYTES as u32).into(),
                magic: MAGIC,
                version: VERSION,
                kind: Kind::Unit as u8,
                key_count: 0,
            },
            header_checksum: 0.into(),
            unit_bytes: unit_bytes.into(),
            position: position.into(),
            epoch: epoch.into(),
            shard: u32::from(shard).into(),
            flushed: flushed.into(),
            log_id: log_id.into(),
            snapshot: snapshot.into(),
            reserved: [0; 8],
        };
        header.header_checksum = header.computed_checksum().into();
        header
    }

    /// The valid unit header at the start of `bytes`, if there is one.
    pub fn read(bytes: &[u8]) -> Option<&UnitHeader> {
        let (header, _) = UnitHeader::ref_from_prefix(bytes).ok()?;
        let ok = header.prefix.magic == MAGIC
            && header.prefix.version == VERSION
            && header.prefix.kind == Kind::Unit as u8
            && header.prefix.length.get() as usize == UNIT_HEADER_BYTES
            && header.header_checksum.get() == header.computed_checksum();
        ok.then_some(header)
    }

    fn computed_checksum(&self) -> u32 {
        crc32_of_header::<UNIT_HEADER_BYTES>(self.as_bytes())
    }
}

/// Length of a record with a payload of so many bytes.
pub fn record_bytes(payload_bytes: usize) -> usize {
    HEADER_BYTES + payload_bytes.next_multiple_of(ALIGNMENT)
}

/// Hash of a tag as it stands in headers and filters; never 0 for a tag.
pub fn tag_hash(tag: &str) -> u32 {
    crc32(tag.as_bytes()).max(1)
}

/// Hash of a key as it stands in headers.
pub fn key_hash(key: &str) -> u32 {
    crc32(key.as_bytes())
}

/// Writes a `Pad` (or, with `seal`, a `Seal`) over all of `gap`.
///
/// `gap` is a multiple of 8 bytes, so that a control header always fits where padding is needed.
pub fn write_padding(gap: &mut [u8], seal: bool) {
    assert!(gap.len().is_multiple_of(ALIGNMENT), "gaps between aligned records are aligned");
    if gap.is_empty() {
        return;
    }
    gap.fill(0);
    let prefix = Prefix {
        length: (gap.len() as u32).into(),
        magic: MAGIC,
        version: VERSION,
        kind: if seal { Kind::Seal } else { Kind::Pad } as u8,
        key_count: 0,
    };
    gap[..8].copy_from_slice(prefix.as_bytes());
}

/// Why bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Too few bytes.
    #[error("the run ends inside a record: {have} bytes of {need}")]
    Short {
        /// Bytes there.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// Magic, version, kind or lengths are wrong.
    #[error("byte {at} of the run starts no record: {what}")]
    Malformed {
        /// Offset in the run.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The header's checksum does not fit.
    #[error("the header checksum of the record at byte {at} does not match")]
    HeaderChecksum {
        /// Offset in the run.
        at: usize,
    },
    /// The payload's checksum does not fit.
    #[error("the payload checksum of the record at byte {at} does not match")]
    PayloadChecksum {
        /// Offset in the run.
        at: usize,
    },
}

/// One record of a run.
#[derive(Debug, Clone, Copy)]
pub struct RecordRef<'a> {
    /// The header, its lengths checked, its checksum not.
    pub header: &'a RecordHeader,
    /// The flatbuffers message.
    pub payload: &'a [u8],
    /// The whole record.
    pub bytes: &'a [u8],
    /// Where it starts in the run.
    pub at: usize,
}

impl<'a> RecordRef<'a> {
    /// Compares the header's checksum.
    pub fn check_header(&self) -> Result<(), RecordError> {
        if self.header.header_checksum.get() == self.header.computed_checksum() {
            Ok(())
        } else {
            Err(RecordError::HeaderChecksum { at: self.at })
        }
    }

    /// Compares the payload's checksum.
    pub fn check_payload(&self) -> Result<(), RecordError> {
        if self.header.payload_checksum.get() == crc32(self.payload) {
            Ok(())
        } else {
            Err(RecordError::PayloadChecksum { at: self.at })
        }
    }

    /// Verifies and reads the message.
    pub fn message(&self) -> Result<crate::message::Message<'a>, flatbuffers::InvalidFlatbuffer> {
        crate::frame::read_table::<crate::message::Message>(self.payload)
    }
}

/// Walks the records of a run; control records are skipped. Ends after the first error.
pub fn records(run: &[u8]) -> Records<'_> {
    Records { run, at: 0 }
}

/// See [`records`].
#[derive(Debug, Clone)]
pub struct Records<'a> {
    run: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RecordRef<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.at >= self.run.len() {
                return None;
            }
            match read_one(self.run, self.at) {
                Ok((end, record)) => {
                    self.at = end;
                    if let Some(record) = record {
                        return Some(Ok(record));
                    }
                }
                Err(error) => {
                    self.at = self.run.len();
                    return Some(Err(error));
                }
            }
        }
    }
}

/// The record at `at`, with the place behind it; `None` for a control record.
pub fn read_one(run: &[u8], at: usize) -> Result<(usize, Option<RecordRef<'_>>), RecordError> {
    let rest = &run[at..];
    let Ok((prefix, _)) = Prefix::ref_from_prefix(rest) else {
        return Err(RecordError::Short { have: rest.len(), need: size_of::<Prefix>() });
    };
    let malformed = |what| Err(RecordError::Malformed { at, what });
    if prefix.magic != MAGIC {
        return malformed("wrong magic");
    }
    if prefix.version != VERSION {
        return malformed("unknown version");
    }
    let Some(kind) = Kind::from_code(prefix.kind) else { return malformed("unknown kind") };
    let length = prefix.length.get() as usize;
    if length < size_of::<Prefix>() || !length.is_multiple_of(ALIGNMENT) {
        return malformed("length too small or not a multiple of 8");
    }
    if length > rest.len() {
        return Err(RecordError::Short { have: rest.len(), need: length });
    }
    if kind.is_control() {
        return Ok((at + length, None));
    }
    let bytes = &rest[..length];
    let Ok((header, body)) = RecordHeader::ref_from_prefix(bytes) else {
        return malformed("length too small for a header");
    };
    let payload_bytes = header.payload_bytes.get() as usize;
    if payload_bytes > body.len() || record_bytes(payload_bytes) != length {
        return malformed("payload and record lengths do not fit");
    }
    Ok((at + length, Some(RecordRef { header, payload: &body[..payload_bytes], bytes, at })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(payload: &[u8]) -> Vec<u8> {
        let mut header = RecordHeader::new(Kind::Message, payload.len());
        header.payload_checksum = crc32(payload).into();
        header.seal();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(payload);
        bytes.resize(record_bytes(payload.len()), 0);
        bytes
    }

    #[test]
    fn runs_are_walked_and_control_records_skipped() {
        let mut run = record(b"one");
        let mut gap = vec![9; 8];
        write_padding(&mut gap, false);
        run.extend_from_slice(&gap);
        let unit = UnitHeader::new(4096, 0, 1, 0, 0, 7, 0);
        run.extend_from_slice(unit.as_bytes());
        run.extend_from_slice(&record(b"second"));
        let payloads: Vec<&[u8]> = records(&run).map(|r| r.unwrap().payload).collect();
        assert_eq!(payloads, [&b"one"[..], b"second"]);
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let bytes = record(b"payload");
        // The padding behind the payload belongs to no checksum.
        for bit in 0..(HEADER_BYTES + 7) * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let noticed = match records(&damaged).next() {
                Some(Ok(r)) => r.check_header().is_err() || r.check_payload().is_err(),
                Some(Err(_)) | None => true,
            };
            assert!(noticed, "bit {bit}");
        }
    }

    #[test]
    fn unit_headers_verify() {
        let unit = UnitHeader::new(8192, 4096, 3, 1, 512, 99, 512);
        let bytes = unit.as_bytes();
        assert_eq!(UnitHeader::read(bytes).unwrap().unit_bytes.get(), 8192);
        for bit in 0..UNIT_HEADER_BYTES * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(UnitHeader::read(&damaged).is_none(), "bit {bit}");
        }
    }
}
