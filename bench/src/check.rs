//! Whether what was sent is what came: the checker that rides along with every run.
//!
//! Senders note what was acknowledged; receivers show every message that they get. The checker keeps a bit
//! per message and a small window per queue, so a run of a hundred million messages costs some 25 MB.
//!
//! Definitions:
//! - *lost*: acknowledged, never received;
//! - *duplicated*: received again, at the same offset or at another;
//! - *out of order*: within a queue, a stream's sequence goes down while offsets go up. A concurrent
//!   listener may see messages of a queue in any order; so they are put back in offset order first;
//! - *corrupt*: the stamp's magic is there and the checksum does not hold;
//! - *gap*: an offset that never came between two that did. Offsets of a queue are contiguous
//!   (promise: fifo).
//!
//! Messages of other runs and of strangers are counted as foreign; they are no fault.

use std::collections::{BTreeMap, HashMap};

pub use crate::faults::Faults;
use crate::payload::{self, Stamp, Unreadable};

/// Arrivals of one queue that may wait for one before them; beyond it the missing one is a gap. Far more
/// than a client holds of one queue (1000, semantics.md).
const AHEAD_MAX: usize = 65_536;

/// A stream of a run: sequences count up within one.
type StreamName = (u64, u32);

/// Stream and sequence of a message, or none where the message is not to be ordered.
type Mark = Option<(StreamName, u64)>;

/// Bits that grow.
#[derive(Debug, Default)]
struct Bits {
    words: Vec<u64>,
    count: u64,
}

impl Bits {
    /// Sets a bit; false when it was set already.
    fn set(&mut self, index: u64) -> bool {
        let word = usize::try_from(index / 64).expect("a sequence fits memory");
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let mask = 1 << (index % 64);
        let fresh = self.words[word] & mask == 0;
        self.words[word] |= mask;
        self.count += u64::from(fresh);
        fresh
    }

    /// Bits set here and not in `other`: their number, and the first.
    fn beyond(&self, other: &Bits) -> (u64, Option<u64>) {
        let (mut count, mut first) = (0, None);
        for (at, word) in self.words.iter().enumerate() {
            let missing = word & !other.words.get(at).copied().unwrap_or(0);
            if missing != 0 && first.is_none() {
                first = Some(at as u64 * 64 + u64::from(missing.trailing_zeros()));
            }
            count += u64::from(missing.count_ones());
        }
        (count, first)
    }
}

/// One queue's arrivals, put back in offset order.
#[derive(Debug, Default)]
struct QueueWatch {
    /// Everything below was seen.
    next: Option<u64>,
    /// Came ahead of its turn.
    ahead: BTreeMap<u64, Mark>,
    /// Highest sequence of each stream so far.
    last: HashMap<StreamName, u64>,
}

/// The checker of one run.
#[derive(Debug)]
pub struct Checker {
    /// The run whose messages count; none: every run's.
    run: Option<u64>,
    /// Where every queue starts, when known: the topic is fresh, or all is read from its beginning.
    starts_at: Option<u64>,
    acknowledged: HashMap<StreamName, Bits>,
    received: HashMap<StreamName, Bits>,
    queues: HashMap<String, Vec<QueueWatch>>,
    faults: Faults,
    foreign: u64,
}

/// What [`Checker::receive`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// A message of this run, for the first time.
    Fresh(Stamp),
    /// A message of this run that came before.
    Again(Stamp),
    /// Not of this run.
    Foreign,
    /// Damaged.
    Corrupt,
}

impl Checker {
    /// For the run `run`. `starts_at` is the first offset of every queue where the caller knows it.
    pub fn new(run: u64, starts_at: Option<u64>) -> Checker {
        Checker { run: Some(run), ..Checker::of_any_run(starts_at) }
    }

    /// For whatever measured messages a topic holds.
    pub fn of_any_run(starts_at: Option<u64>) -> Checker {
        Checker {
            run: None,
            starts_at,
            acknowledged: HashMap::new(),
            received: HashMap::new(),
            queues: HashMap::new(),
            faults: Faults::default(),
            foreign: 0,
        }
    }

    /// Notes that `sequence` of `stream` was acknowledged.
    pub fn acknowledge(&mut self, stream: u32, sequence: u64) {
        let run = self.run.expect("who acknowledges knows the run");
        self.acknowledged.entry((run, stream)).or_default().set(sequence);
    }

    /// Tells where one queue begins, before its first message is shown.
    pub fn starts_at(&mut self, broker: &str, queue: u32, offset: u64) {
        self.watch(broker, queue).0.next = Some(offset);
    }

    /// Shows a message that came.
    pub fn receive(&mut self, broker: &str, queue: u32, offset: u64, body: &[u8]) -> Arrival {
        let arrival = match payload::read(body) {
            Ok(stamp) if self.run.is_none_or(|run| run == stamp.run) => {
                if self.received.entry((stamp.run, stamp.stream)).or_default().set(stamp.sequence) {
                    Arrival::Fresh(stamp)
                } else {
                    self.faults.note(
                        |f| &mut f.duplicated,
                        1,
                        || format!("{} came again at {broker}/{queue}@{offset}", name(&stamp)),
                    );
                    Arrival::Again(stamp)
                }
            }
            Ok(_) | Err(Unreadable::Foreign) => {
                self.foreign += 1;
                Arrival::Foreign
            }
            Err(Unreadable::Corrupt) => {
                self.faults.note(
                    |f| &mut f.corrupt,
                    1,
                    || format!("the body at {broker}/{queue}@{offset} fails its checksum"),
                );
                Arrival::Corrupt
            }
        };
        let mark = match arrival {
            Arrival::Fresh(stamp) => Some(((stamp.run, stamp.stream), stamp.sequence)),
            _ => None,
        };
        let (watch, faults) = self.watch(broker, queue);
        watch.place(broker, queue, offset, mark, faults);
        arrival
    }

    /// Messages of the run that came, each counted once.
    pub fn received(&self) -> u64 {
        self.received.values().map(|bits| bits.count).sum()
    }

    /// Messages that were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.values().map(|bits| bits.count).sum()
    }

    /// Acknowledged messages that have not come yet.
    pub fn outstanding(&self) -> u64 {
        let empty = Bits::default();
        let missing = |(stream, bits): (&StreamName, &Bits)| {
            bits.beyond(self.received.get(stream).unwrap_or(&empty)).0
        };
        self.acknowledged.iter().map(missing).sum()
    }

    /// Messages that are not of this run.
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// The faults seen so far, without those that only the end can tell.
    pub fn so_far(&self) -> &Faults {
        &self.faults
    }

    /// Judges the run: whatever was acknowledged and did not come is lost.
    pub fn finish(mut self) -> Faults {
        let acknowledged = std::mem::take(&mut self.acknowledged);
        let empty = Bits::default();
        for (stream, bits) in &acknowledged {
            let (count, first) = bits.beyond(self.received.get(stream).unwrap_or(&empty));
            let stream = stream.1;
            if let Some(sequence) = first {
                self.faults.note(
                    |f| &mut f.lost,
                    count,
                    || {
                        format!(
                            "message {sequence} of stream {stream} was acknowledged and never came"
                        )
                    },
                );
            }
        }
        self.finish_queues();
        self.faults
    }

    /// Walks what was still waiting for an offset that never came.
    fn finish_queues(&mut self) {
        for (broker, watches) in &mut self.queues {
            for (queue, watch) in watches.iter_mut().enumerate() {
                while !watch.ahead.is_empty() {
                    watch.skip_gap(broker, queue, &mut self.faults);
                }
            }
        }
    }

    fn watch(&mut self, broker: &str, queue: u32) -> (&mut QueueWatch, &mut Faults) {
        if !self.queues.contains_key(broker) {
            self.queues.insert(broker.to_owned(), Vec::new());
        }
        let watches = self.queues.get_mut(broker).expect("inserted above");
        let at = queue as usize;
        if at >= watches.len() {
            let starts_at = self.starts_at;
            let fresh = || QueueWatch { next: starts_at, ..QueueWatch::default() };
            watches.resize_with(at + 1, fresh);
        }
        (&mut watches[at], &mut self.faults)
    }
}

impl QueueWatch {
    /// Puts an arrival in its place and goes on as far as offsets are contiguous.
    fn place(&mut self, broker: &str, queue: u32, offset: u64, mark: Mark, faults: &mut Faults) {
        match self.next {
            Some(next) if offset < next => return,
            Some(next) if offset == next => {
                self.follow(broker, queue as usize, offset, mark, faults);
            }
            _ => {
                self.ahead.entry(offset).or_insert(mark);
            }
        }
        self.catch_up(broker, queue as usize, faults);
        if self.ahead.len() > AHEAD_MAX {
            self.skip_gap(broker, queue as usize, faults);
        }
    }

    /// Goes on with those that came ahead, until an offset is missing.
    fn catch_up(&mut self, broker: &str, queue: usize, faults: &mut Faults) {
        while let Some(next) = self.next {
            let Some(mark) = self.ahead.remove(&next) else { break };
            self.follow(broker, queue, next, mark, faults);
        }
    }

    /// Gives up on the offsets before the first that came ahead.
    fn skip_gap(&mut self, broker: &str, queue: usize, faults: &mut Faults) {
        let Some((&first, _)) = self.ahead.first_key_value() else { return };
        let next = self.next.unwrap_or(first);
        if first > next {
            faults.note(
                |f| &mut f.offset_gaps,
                first - next,
                || format!("{broker}/{queue} has nothing at offset {next}"),
            );
        }
        self.next = Some(first);
        self.catch_up(broker, queue, faults);
    }

    fn follow(&mut self, broker: &str, queue: usize, offset: u64, mark: Mark, faults: &mut Faults) {
        self.next = Some(offset + 1);
        let Some((stream, sequence)) = mark else { return };
        let last = self.last.entry(stream).or_insert(sequence);
        let stream = stream.1;
        if sequence < *last {
            let last = *last;
            faults.note(
                |f| &mut f.out_of_order,
                1,
                || {
                    format!(
                        "message {sequence} of stream {stream} is behind {last} at \
                     {broker}/{queue}@{offset}"
                    )
                },
            );
        } else {
            *last = sequence;
        }
    }
}

fn name(stamp: &Stamp) -> String {
    format!("message {} of stream {}", stamp.sequence, stamp.stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Template;

    /// Ten acknowledged messages of one stream, in one queue.
    fn sent() -> (Checker, Vec<Vec<u8>>) {
        let mut checker = Checker::new(9, Some(0));
        let mut template = Template::new(9, 1, 64);
        let bodies = (0..10)
            .map(|_| {
                let (sequence, body) = template.next(0);
                checker.acknowledge(1, sequence);
                body
            })
            .collect();
        (checker, bodies)
    }

    #[test]
    fn a_whole_run_is_clean() {
        let (mut checker, bodies) = sent();
        for (offset, body) in bodies.iter().enumerate() {
            assert!(matches!(checker.receive("b", 0, offset as u64, body), Arrival::Fresh(_)));
        }
        assert_eq!((checker.received(), checker.acknowledged()), (10, 10));
        assert_eq!(checker.outstanding(), 0);
        let faults = checker.finish();
        assert!(faults.is_clean(), "{faults}");
    }

    #[test]
    fn arrivals_of_a_concurrent_listener_are_put_back_in_order() {
        let (mut checker, bodies) = sent();
        for offset in [3, 1, 0, 2, 7, 9, 8, 4, 6, 5] {
            checker.receive("b", 0, offset as u64, &bodies[offset]);
        }
        let faults = checker.finish();
        assert!(faults.is_clean(), "{faults}");
    }

    #[test]
    fn a_planted_loss_is_found() {
        let (mut checker, bodies) = sent();
        for (offset, body) in bodies.iter().enumerate().filter(|(offset, _)| *offset != 4) {
            // The queue closes up behind it: the message was never stored.
            let offset = if offset > 4 { offset - 1 } else { offset };
            checker.receive("b", 0, offset as u64, body);
        }
        assert_eq!(checker.outstanding(), 1);
        let faults = checker.finish();
        assert_eq!((faults.lost, faults.total()), (1, 1), "{faults}");
        assert!(faults.examples[0].contains("message 4 of stream 1"), "{:?}", faults.examples);
    }

    #[test]
    fn a_lost_tail_is_found() {
        let (mut checker, bodies) = sent();
        for (offset, body) in bodies.iter().enumerate().take(7) {
            checker.receive("b", 0, offset as u64, body);
        }
        assert_eq!(checker.finish().lost, 3);
    }

    #[test]
    fn planted_duplicates_are_found_at_the_same_offset_and_at_another() {
        let (mut checker, bodies) = sent();
        for (offset, body) in bodies.iter().enumerate() {
            checker.receive("b", 0, offset as u64, body);
        }
        assert!(matches!(checker.receive("b", 0, 3, &bodies[3]), Arrival::Again(_)));
        assert!(matches!(checker.receive("b", 0, 10, &bodies[5]), Arrival::Again(_)));
        let faults = checker.finish();
        assert_eq!((faults.duplicated, faults.total()), (2, 2), "{faults}");
        assert_eq!(faults.examples.len(), 1, "one example of a kind");
    }

    #[test]
    fn planted_disorder_is_found() {
        let (mut checker, mut bodies) = sent();
        bodies.swap(4, 5);
        for (offset, body) in bodies.iter().enumerate() {
            checker.receive("b", 0, offset as u64, body);
        }
        let faults = checker.finish();
        assert_eq!((faults.out_of_order, faults.total()), (1, 1), "{faults}");
    }

    #[test]
    fn planted_corruption_is_found_and_counts_as_loss_too() {
        let (mut checker, mut bodies) = sent();
        bodies[6][50] ^= 1;
        for (offset, body) in bodies.iter().enumerate() {
            checker.receive("b", 0, offset as u64, body);
        }
        let faults = checker.finish();
        assert_eq!((faults.corrupt, faults.lost, faults.total()), (1, 1, 2), "{faults}");
    }

    #[test]
    fn a_planted_gap_is_found_at_the_start_and_in_the_middle() {
        let (mut checker, bodies) = sent();
        for (offset, body) in bodies.iter().enumerate() {
            let offset = if offset >= 5 { offset + 3 } else { offset + 1 };
            checker.receive("b", 0, offset as u64, body);
        }
        let faults = checker.finish();
        assert_eq!((faults.offset_gaps, faults.total()), (3, 3), "{faults}");
        assert!(faults.examples[0].contains("offset 0"), "{:?}", faults.examples);
    }

    #[test]
    fn a_known_start_is_no_gap_and_waiting_arrivals_are_bounded() {
        let mut checker = Checker::new(9, None);
        checker.starts_at("b", 2, 100);
        let mut template = Template::new(9, 0, 64);
        checker.receive("b", 2, 100, &template.next(0).1);
        for offset in 0..=AHEAD_MAX as u64 {
            checker.receive("b", 3, 1_000 + offset, &template.next(0).1);
        }
        assert!(checker.queues["b"][3].ahead.is_empty(), "the window moved on");
        assert!(checker.finish().is_clean());
    }

    #[test]
    fn other_runs_are_foreign_and_queues_do_not_mix() {
        let (mut checker, bodies) = sent();
        assert_eq!(checker.receive("b", 0, 0, b"hello"), Arrival::Foreign);
        assert_eq!(
            checker.receive("b", 0, 1, &Template::new(8, 1, 64).next(0).1),
            Arrival::Foreign
        );
        for (at, body) in bodies.iter().enumerate() {
            // Even ones in one queue, odd ones in a queue of the same number at another broker.
            let (broker, base) = if at % 2 == 0 { ("b", 2) } else { ("c", 0) };
            checker.receive(broker, 0, base + at as u64 / 2, body);
        }
        assert_eq!(checker.foreign(), 2);
        assert!(checker.finish().is_clean());
    }
}
