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

use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
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

/// What bodies consist of behind the stamp: bodies take turns. Every one has room for the stamp, which is
/// written over its first bytes.
#[derive(Debug, Clone)]
pub struct Fillers(Arc<[Vec<u8>]>);

impl Fillers {
    /// One filler of `size` bytes that does not compress.
    pub fn noise(seed: u64, size: usize) -> Fillers {
        Fillers::random(seed, size, 1.0, 1)
    }

    /// `number` fillers of `size` bytes, each beginning with so much noise and zero behind it.
    pub fn random(seed: u64, size: usize, ratio: f64, number: usize) -> Fillers {
        let size = size.max(STAMP_BYTES);
        let noise = ((size as f64 * ratio.clamp(0.0, 1.0)).round() as usize).min(size);
        // xorshift64*: enough that nothing compresses it, and the same for the same seed.
        let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
        let filler = |_| {
            let mut bytes = vec![0; size];
            for chunk in bytes[..noise].chunks_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
            }
            bytes
        };
        Fillers((0..number.max(1)).map(filler).collect())
    }

    /// These bytes and no others.
    pub fn fixed(mut bytes: Vec<u8>) -> Fillers {
        bytes.resize(bytes.len().max(STAMP_BYTES), 0);
        Fillers([bytes].into())
    }
}

/// Makes the bodies of one stream.
#[derive(Debug, Clone)]
pub struct Template {
    fillers: Fillers,
    run: u64,
    stream: u32,
    sequence: u64,
}

impl Template {
    /// Bodies of `size` bytes (at least [`STAMP_BYTES`]) for `stream` of `run`.
    pub fn new(run: u64, stream: u32, size: usize) -> Template {
        Template::of(run, stream, &Fillers::noise(run ^ (u64::from(stream) << 32), size))
    }

    /// Bodies made of `fillers`.
    pub fn of(run: u64, stream: u32, fillers: &Fillers) -> Template {
        Template { fillers: fillers.clone(), run, stream, sequence: 0 }
    }

    /// The next body, and its sequence number.
    pub fn next(&mut self, due_ns: u64) -> (u64, Vec<u8>) {
        let mut body = Vec::with_capacity(self.body_bytes());
        (self.append(due_ns, &mut body), body)
    }

    /// Appends the next body; returns its sequence number.
    fn append(&mut self, due_ns: u64, out: &mut Vec<u8>) -> u64 {
        let sequence = self.sequence;
        self.sequence += 1;
        let turn = (sequence % self.fillers.0.len() as u64) as usize;
        let start = out.len();
        out.extend_from_slice(&self.fillers.0[turn]);
        let body = &mut out[start..];
        body[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        body[8..16].copy_from_slice(&self.run.to_le_bytes());
        body[16..24].copy_from_slice(&sequence.to_le_bytes());
        body[24..32].copy_from_slice(&due_ns.to_le_bytes());
        body[32..36].copy_from_slice(&self.stream.to_le_bytes());
        body[36..STAMP_BYTES].fill(0);
        let checksum = crc32fast::hash(&body[CHECKED_FROM..]);
        body[4..8].copy_from_slice(&checksum.to_le_bytes());
        sequence
    }

    /// The next so many bodies with their sequence numbers, in one piece of memory: a generator that asks the
    /// allocator for each of a hundred measures itself.
    pub fn next_batch(&mut self, due_ns: u64, messages: u64) -> Vec<(u64, Bytes)> {
        if messages == 1 {
            let (sequence, body) = self.next(due_ns);
            return vec![(sequence, body.into())];
        }
        let mut all = Vec::with_capacity(messages as usize * self.body_bytes());
        let place = |_| {
            let start = all.len();
            (self.append(due_ns, &mut all), start..all.len())
        };
        let places: Vec<(u64, Range<usize>)> = (0..messages).map(place).collect();
        let all = Bytes::from(all);
        places.into_iter().map(|(sequence, place)| (sequence, all.slice(place))).collect()
    }

    /// Bytes of a body.
    pub fn body_bytes(&self) -> usize {
        self.fillers.0[0].len()
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
    fn fillers_take_turns_and_are_as_random_as_asked() {
        let fillers = Fillers::random(1, 1_000, 0.3, 3);
        let mut template = Template::of(7, 3, &fillers);
        let bodies: Vec<Vec<u8>> = (0..6).map(|_| template.next(0).1).collect();
        assert_ne!(bodies[0][STAMP_BYTES..], bodies[1][STAMP_BYTES..]);
        assert_eq!(bodies[0][STAMP_BYTES..], bodies[3][STAMP_BYTES..]);
        assert!(bodies.iter().all(|body| body[300..].iter().all(|byte| *byte == 0)));
        assert!(bodies[0][290..300].iter().any(|byte| *byte != 0));
        assert!(bodies.iter().all(|body| read(body).is_ok()));
        let fixed = Template::of(1, 1, &Fillers::fixed(vec![b'x'; 60])).next(0).1;
        assert_eq!(fixed[STAMP_BYTES..], [b'x'; 20]);
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
