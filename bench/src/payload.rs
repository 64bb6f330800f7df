//! What a measured message carries.
//!
//! Every body starts with a stamp of 40 bytes, little endian, and goes on with filler:
//!
//! ```text
//!  0 magic u32 | 4 crc32 u32 of all that follows | 8 run u64 | 16 sequence u64
//! 24 due u64, ns on the run's clock | 32 stream u32 | 36 reserved u32, zero | 40 filler ...
//! ```
//!
//! Invariants:
//! - the checksum covers stamp and filler, so a flipped bit anywhere is found;
//! - the filler does not compress, so that what is sent is what was asked for;
//! - `due` means something only in the process that wrote it: it counts from its [`Clock`].

use std::time::Instant;

/// Bytes of the stamp, hence the smallest body.
pub const STAMP_BYTES: usize = 40;

const MAGIC: u32 = u32::from_le_bytes(*b"RQb1");
const CHECKED_FROM: usize = 8;

/// The run's clock: nanoseconds since it was made, monotone.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// Starts at zero, now.
    pub fn start() -> Clock {
        Clock { origin: Instant::now() }
    }

    /// Nanoseconds since the start.
    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The instant at `ns` on this clock.
    pub fn instant(&self, ns: u64) -> Instant {
        self.origin + std::time::Duration::from_nanos(ns)
    }
}

/// What identifies a message and says when it was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The run that sent it: other runs' messages in the same topic are told apart by it.
    pub run: u64,
    /// The stream within the run: sequences count up within one.
    pub stream: u32,
    /// Its number in the stream, from 0.
    pub sequence: u64,
    /// When it was due, on the sender's clock.
    pub due_ns: u64,
}

/// Why a body is not one of ours, or no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// It does not start like a measured message: somebody else sent it.
    Foreign,
    /// It starts like one, and its checksum does not hold.
    Corrupt,
}

/// Makes the bodies of one stream.
#[derive(Debug, Clone)]
pub struct Template {
    bytes: Vec<u8>,
    sequence: u64,
}

impl Template {
    /// Bodies of `size` bytes (at least [`STAMP_BYTES`]) for `stream` of `run`.
    pub fn new(run: u64, stream: u32, size: usize) -> Template {
        let mut bytes = vec![0; size.max(STAMP_BYTES)];
        // xorshift64*: enough that nothing compresses it, and the same for the same stream.
        let mut state = run ^ (u64::from(stream) << 32) ^ 0x9e37_79b9_7f4a_7c15;
        for chunk in bytes[STAMP_BYTES..].chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
        }
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..16].copy_from_slice(&run.to_le_bytes());
        bytes[32..36].copy_from_slice(&stream.to_le_bytes());
        Template { bytes, sequence: 0 }
    }

    /// The next body, and its sequence number.
    pub fn next(&mut self, due_ns: u64) -> (u64, Vec<u8>) {
        let sequence = self.sequence;
        self.sequence += 1;
        self.bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
        self.bytes[24..32].copy_from_slice(&due_ns.to_le_bytes());
        let checksum = crc32fast::hash(&self.bytes[CHECKED_FROM..]);
        self.bytes[4..8].copy_from_slice(&checksum.to_le_bytes());
        (sequence, self.bytes.clone())
    }

    /// How many bodies were made.
    pub fn made(&self) -> u64 {
        self.sequence
    }
}

/// Reads a body's stamp and checks every byte of it.
pub fn read(body: &[u8]) -> Result<Stamp, Unreadable> {
    if body.len() < STAMP_BYTES || read_u32(body, 0) != MAGIC {
        return Err(Unreadable::Foreign);
    }
    if crc32fast::hash(&body[CHECKED_FROM..]) != read_u32(body, 4) {
        return Err(Unreadable::Corrupt);
    }
    Ok(Stamp {
        run: read_u64(body, 8),
        stream: read_u32(body, 32),
        sequence: read_u64(body, 16),
        due_ns: read_u64(body, 24),
    })
}

fn read_u32(body: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(body[at..at + 4].try_into().expect("a slice of four bytes"))
}

fn read_u64(body: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(body[at..at + 8].try_into().expect("a slice of eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_come_back_and_count_up() {
        let mut template = Template::new(7, 3, 100);
        for expected in 0..3 {
            let (sequence, body) = template.next(1_000 + expected);
            assert_eq!((sequence, body.len()), (expected, 100));
            let stamp = Stamp { run: 7, stream: 3, sequence, due_ns: 1_000 + expected };
            assert_eq!(read(&body), Ok(stamp));
        }
        assert_eq!(template.made(), 3);
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let (_, body) = Template::new(1, 0, 64).next(5);
        for at in 0..body.len() {
            let mut damaged = body.clone();
            damaged[at] ^= 0x10;
            let expected = if at < 4 { Unreadable::Foreign } else { Unreadable::Corrupt };
            assert_eq!(read(&damaged), Err(expected), "byte {at}");
        }
    }

    #[test]
    fn short_and_cut_bodies_are_not_read() {
        assert_eq!(read(b""), Err(Unreadable::Foreign));
        let (_, body) = Template::new(1, 0, 64).next(5);
        assert_eq!(read(&body[..STAMP_BYTES - 1]), Err(Unreadable::Foreign));
        assert_eq!(read(&body[..63]), Err(Unreadable::Corrupt));
    }

    #[test]
    fn a_size_below_the_stamp_is_raised_to_it() {
        assert_eq!(Template::new(1, 0, 1).next(0).1.len(), STAMP_BYTES);
    }
}
