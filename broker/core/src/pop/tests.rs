//! The state against a naive model, by seed; and what goes to the log and back.

use super::*;
use ringmq_schema::placement::mix;

const QUEUE: QueueId = QueueId { topic: 3, queue: 1 };

/// What is in flight, without any order or index.
#[derive(Default)]
struct Model {
    next: u64,
    flights: Vec<(u64, Flight)>,
}

impl Model {
    fn is_first(&self, offset: u64, flight: &Flight) -> bool {
        let earlier = |(other, of): &(u64, Flight)| of.lane == flight.lane && *other < offset;
        flight.lane == 0 || !self.flights.iter().any(earlier)
    }

    fn expired(&self, now_ms: i64) -> Vec<(u64, Flight)> {
        let is_due = |(offset, flight): &&(u64, Flight)| {
            flight.until_ms <= now_ms && self.is_first(*offset, flight)
        };
        let mut due: Vec<(u64, Flight)> = self.flights.iter().filter(is_due).copied().collect();
        due.sort_by_key(|(offset, flight)| (flight.until_ms, *offset));
        due
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % end
    }
}

#[test]
fn random_operations_come_out_as_in_a_naive_model() {
    for seed in 0..200u64 {
        let mut random = Random(seed << 32);
        let (mut flights, mut model) = (Flights::default(), Model::default());
        let mut logged: Vec<u8> = Vec::new();
        let mut replayed = Pops::default();
        let mut ops = OpWriter::new(7, 0);
        for step in 0..400 {
            let now_ms = step * 10;
            let lane = if seed % 2 == 0 { 0 } else { random.below(4) };
            let op = match random.below(10) {
                0 => Op::Next { next: model.next + random.below(3) },
                1..=4 => {
                    let until_ms = now_ms + random.below(100) as i64;
                    let flight = Flight { until_ms, nonce: step as u64 + 1, lane, attempt: 1 };
                    Op::Out { offset: model.next, flight }
                }
                5..=6 if !model.expired(now_ms).is_empty() => {
                    let (offset, flight) = model.expired(now_ms)[0];
                    let attempt = flight.attempt + 1;
                    let until_ms = now_ms + 50;
                    Op::Out { offset, flight: Flight { until_ms, attempt, ..flight } }
                }
                7 if step % 50 == 0 => Op::Begin { next: random.below(model.next + 1) },
                _ if model.flights.is_empty() => Op::Next { next: model.next },
                _ => {
                    let at = random.below(model.flights.len() as u64) as usize;
                    Op::Done { offset: model.flights[at].0 }
                }
            };
            match op {
                Op::Begin { next } => model = Model { next, flights: Vec::new() },
                Op::Next { next } => model.next = model.next.max(next),
                Op::Out { offset, flight } => {
                    model.flights.retain(|(other, _)| *other != offset);
                    model.flights.push((offset, flight));
                    model.next = model.next.max(offset + 1);
                }
                Op::Done { offset } => model.flights.retain(|(other, _)| *other != offset),
            }
            flights.apply(op);
            ops.add(QUEUE, op);
            let context = format!("seed {seed}, step {step}: {op:?}");
            assert_eq!(flights.next(), model.next, "{context}");
            assert_eq!(flights.len(), model.flights.len(), "{context}");
            let least = model.flights.iter().map(|(offset, _)| *offset).min();
            assert_eq!(flights.done(), least.unwrap_or(model.next), "{context}");
            let expired: Vec<_> = flights.expired(now_ms).collect();
            assert_eq!(expired, model.expired(now_ms), "{context}");
            let earliest = model.expired(i64::MAX).first().map(|(_, flight)| flight.until_ms);
            assert_eq!(flights.earliest_ms(), earliest, "{context}");
            if step % 37 == 0 {
                logged = std::mem::replace(&mut ops, OpWriter::new(7, 0)).finish();
                // Twice: what a record says is what is.
                for _ in 0..2 {
                    let replay = |group, queue, op| replayed.apply(group, queue, op);
                    read(&logged, replay).unwrap();
                }
                assert_eq!(replayed.get(7, QUEUE), Some(&flights), "{context}");
                assert_eq!(replayed.in_flight(), flights.len(), "{context}");
            }
        }
        for end in 0..logged.len() {
            // A shorter list may be a whole one; nothing panics.
            let _ = read(&logged[..end], |_, _, _| {});
        }
    }
}

#[test]
fn an_old_receipt_does_not_count() {
    let mut pops = Pops::default();
    pops.open(5, Now::default());
    let mut flights = Flights::default();
    let out = |nonce, attempt| Op::Out {
        offset: 4,
        flight: Flight { until_ms: 10, nonce, lane: 0, attempt },
    };
    let (first, second) = (pops.new_nonce(), pops.new_nonce());
    flights.apply(out(first, 1));
    assert!(flights.of_receipt(4, first).is_some(), "also when its time is over");
    flights.apply(out(second, 2));
    assert!(flights.of_receipt(4, first).is_none() && flights.of_receipt(3, second).is_none());
    assert!(flights.of_receipt(4, second).is_some());
    flights.apply(Op::Done { offset: 4 });
    assert!(flights.of_receipt(4, second).is_none());
    pops.open(6, Now::default());
    assert!(pops.new_nonce() > second, "whatever a power loss took back");
}

#[test]
fn of_a_lane_only_the_first_comes_out() {
    let mut flights = Flights::default();
    let handed_out = Flight { until_ms: 100, nonce: 1, lane: 9, attempt: 1 };
    flights.apply(Op::Out { offset: 0, flight: handed_out });
    flights.apply(Op::Out { offset: 1, flight: Flight::held_back(9) });
    flights.apply(Op::Out { offset: 2, flight: Flight::held_back(9) });
    assert!(flights.is_taken(9) && flights.holds_back() && !flights.is_taken(0));
    assert_eq!(flights.expired(99).count(), 0);
    assert!(flights.of_receipt(1, 0).is_none(), "it was not handed out");
    flights.apply(Op::Done { offset: 0 });
    let expired: Vec<u64> = flights.expired(0).map(|(offset, _)| offset).collect();
    assert_eq!(expired, [1]);
    flights.apply(Op::Done { offset: 1 });
    flights.apply(Op::Done { offset: 2 });
    assert!(!flights.is_taken(9));
    assert_eq!((flights.done(), flights.len()), (3, 0));
}

#[test]
fn time_goes_on_whatever_the_wall_clock_does() {
    let mut pops = Pops::default();
    let now = |mono_ms: u64, wall_ms| Now { mono_us: mono_ms * 1000, wall_ms };
    pops.was(5_000);
    pops.open(1, now(10, 4_000));
    assert_eq!(pops.now_ms(now(10, 4_000)), 5_000, "the clock was set back while it was down");
    assert_eq!(pops.now_ms(now(30, 1_000_000)), 5_020);
    pops.open(2, now(0, 7_000));
    assert_eq!(pops.now_ms(now(1, -1)), 7_001);
}
