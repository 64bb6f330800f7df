//! Changes of what is popped, and how they stand in the log.
//!
//! ```text
//! u8 version, then
//! 7 Time   i64 when it was written
//! 1 Queue  u32 group, u32 topic, u32 queue: what follows is about it
//! 2 Begin  u64 next: the group begins here, or was set back; nothing is in flight
//! 3 Next   u64 next: below it is nothing new
//! 4 Out    u64 first offset, u32 count, i64 until, u64 nonce, u16 attempt
//! 5 Lane   u64 offset, i64 until, u64 nonce, u16 attempt, u64 lane: as Out, of a FIFO topic
//! 6 Done   u64 first offset, u32 count
//! ```

use super::Flight;
use crate::peer::QueueId;
use crate::state::Reader;

const VERSION: u8 = 1;
/// Longest run: more than any record has.
const COUNT_MAX: u32 = 1 << 20;

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Nothing is in flight, and `next` comes next.
    Begin { next: u64 },
    /// What lies below and is not in flight is done.
    Next { next: u64 },
    /// It is in flight, so.
    Out { offset: u64, flight: Flight },
    /// It is done.
    Done { offset: u64 },
}

/// A run that may go on.
#[derive(Debug, Clone, Copy)]
struct Run {
    first: u64,
    count: u32,
    /// `None`: they are done.
    flight: Option<Flight>,
}

/// Writes the payload of a `Pop` record.
#[derive(Debug)]
pub(crate) struct OpWriter {
    bytes: Vec<u8>,
    group: u32,
    queue: Option<QueueId>,
    run: Option<Run>,
}

impl OpWriter {
    pub(crate) fn new(group: u32, now_ms: i64) -> OpWriter {
        let mut bytes = vec![VERSION, 7];
        bytes.extend_from_slice(&now_ms.to_le_bytes());
        OpWriter { bytes, group, queue: None, run: None }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_none()
    }

    /// Another group comes next.
    pub(crate) fn set_group(&mut self, group: u32) {
        self.end_run();
        if self.group != group {
            (self.group, self.queue) = (group, None);
        }
    }

    /// How long it is, about.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn add(&mut self, queue: QueueId, op: Op) {
        if self.queue != Some(queue) {
            self.end_run();
            self.queue = Some(queue);
            self.bytes.push(1);
            self.put_u32(self.group);
            self.put_u32(queue.topic);
            self.put_u32(queue.queue);
        }
        match op {
            Op::Begin { next } => self.put_next(2, next),
            Op::Next { next } => self.put_next(3, next),
            Op::Out { offset, flight } if flight.lane != 0 => {
                self.end_run();
                self.bytes.push(5);
                self.put_u64(offset);
                self.put_flight(&flight);
                self.put_u64(flight.lane);
            }
            Op::Out { offset, flight } => self.extend(offset, Some(flight)),
            Op::Done { offset } => self.extend(offset, None),
        }
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.end_run();
        self.bytes
    }

    fn extend(&mut self, offset: u64, flight: Option<Flight>) {
        if let Some(run) = &mut self.run
            && run.flight == flight
            && run.first + u64::from(run.count) == offset
            && run.count < COUNT_MAX
        {
            run.count += 1;
            return;
        }
        self.end_run();
        self.run = Some(Run { first: offset, count: 1, flight });
    }

    fn end_run(&mut self) {
        let Some(Run { first, count, flight }) = self.run.take() else { return };
        self.bytes.push(if flight.is_some() { 4 } else { 6 });
        self.put_u64(first);
        self.put_u32(count);
        if let Some(flight) = flight {
            self.put_flight(&flight);
        }
    }

    fn put_next(&mut self, tag: u8, next: u64) {
        self.end_run();
        self.bytes.push(tag);
        self.put_u64(next);
    }

    fn put_flight(&mut self, flight: &Flight) {
        self.bytes.extend_from_slice(&flight.until_ms.to_le_bytes());
        self.put_u64(flight.nonce);
        self.bytes.extend_from_slice(&flight.attempt.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
}

/// Reads what an [`OpWriter`] wrote, handing on change by change; returns when it was written, `None` when it does not
/// parse.
pub(crate) fn read(payload: &[u8], mut visit: impl FnMut(u32, QueueId, Op)) -> Option<i64> {
    let mut reader = Reader(payload);
    if reader.u8()? != VERSION {
        return None;
    }
    let (mut about, mut written_ms) = (None, i64::MIN);
    while !reader.0.is_empty() {
        let tag = reader.u8()?;
        if tag == 1 {
            let group = reader.u32()?;
            about = Some((group, QueueId { topic: reader.u32()?, queue: reader.u32()? }));
            continue;
        }
        if tag == 7 {
            written_ms = reader.u64()? as i64;
            continue;
        }
        let (group, queue) = about?;
        match tag {
            2 => visit(group, queue, Op::Begin { next: reader.u64()? }),
            3 => visit(group, queue, Op::Next { next: reader.u64()? }),
            4 | 6 => {
                let (first, count) = (reader.u64()?, reader.u32()?);
                let flight = if tag == 4 { Some(read_flight(&mut reader)?) } else { None };
                if count > COUNT_MAX || first > u64::MAX - u64::from(COUNT_MAX) {
                    return None;
                }
                for offset in first..first + u64::from(count) {
                    let op = match flight {
                        Some(flight) => Op::Out { offset, flight },
                        None => Op::Done { offset },
                    };
                    visit(group, queue, op);
                }
            }
            5 => {
                let offset = reader.u64()?;
                let flight = read_flight(&mut reader)?;
                let flight = Flight { lane: reader.u64()?, ..flight };
                visit(group, queue, Op::Out { offset, flight });
            }
            _ => return None,
        }
    }
    Some(written_ms)
}

fn read_flight(reader: &mut Reader<'_>) -> Option<Flight> {
    let (until_ms, nonce) = (reader.u64()? as i64, reader.u64()?);
    let attempt = u16::from_le_bytes(reader.take(2)?.try_into().ok()?);
    Some(Flight { until_ms, nonce, lane: 0, attempt })
}
