//! Which queue a message goes to, and which brokers are avoided.

use crate::route::{Queue, TopicRoute};
use ringmq_schema::placement::{fnv1a, mix};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Latency fault tolerance (semantics.md, "queue choice"): an answer that took at least so many ms keeps
/// its broker out of the choice for so many seconds.
const AVOID: [(u64, u64); 5] = [(15_000, 30), (5000, 10), (3000, 6), (1800, 5), (550, 2)];
/// A broker that failed is avoided for so long.
const AVOID_FAILED: Duration = Duration::from_secs(10);

/// A queue that takes messages, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) queue: Arc<Queue>,
    pub(super) address: Arc<str>,
    pub(super) shard: u16,
    pub(super) topic_id: u32,
}

/// The queues of a topic that take messages: the first of every broker, the second of every broker, ...
pub(super) fn targets(route: &TopicRoute) -> Vec<Target> {
    let writable = || route.masters().filter(|broker| broker.is_writable());
    let most = writable().map(|broker| broker.write_queues).max().unwrap_or(0);
    let mut targets = Vec::new();
    for id in 0..most {
        for broker in writable().filter(|broker| id < broker.write_queues) {
            let queue = Queue::new(Arc::clone(&route.topic), Arc::clone(&broker.broker), id);
            targets.push(Target {
                queue: Arc::new(queue),
                address: Arc::clone(&broker.address),
                shard: broker.shard_of(id),
                topic_id: broker.topic_id,
            });
        }
    }
    targets
}

/// Which of `count` queues a message group belongs to.
pub(super) fn of_group(group: &str, count: usize) -> usize {
    (mix(fnv1a(group.as_bytes())) % count as u64) as usize
}

/// Brokers that are better left alone for a while.
#[derive(Debug, Default)]
pub(super) struct Faults {
    until: HashMap<Arc<str>, Instant>,
}

impl Faults {
    /// An answer came after so long.
    pub(super) fn answered(&mut self, broker: &Arc<str>, latency: Duration, now: Instant) {
        let latency_ms = latency.as_millis() as u64;
        match AVOID.iter().find(|(least, _)| latency_ms >= *least) {
            Some((_, seconds)) => {
                self.until.insert(Arc::clone(broker), now + Duration::from_secs(*seconds));
            }
            None if self.until.is_empty() => {}
            None => drop(self.until.remove(broker)),
        }
    }

    /// A request failed for a reason that lies in the broker.
    pub(super) fn failed(&mut self, broker: &Arc<str>, now: Instant) {
        self.until.insert(Arc::clone(broker), now + AVOID_FAILED);
    }

    pub(super) fn is_avoided(&self, broker: &str, now: Instant) -> bool {
        self.until.get(broker).is_some_and(|until| *until > now)
    }

    /// The next target from `cursor` on that is not avoided (any, when all are), not on `besides`' broker
    /// where another is left. `cursor` goes past it.
    pub(super) fn next(
        &self,
        targets: &[Target],
        cursor: &mut usize,
        besides: Option<&str>,
        now: Instant,
    ) -> Option<usize> {
        let count = targets.len();
        let order = (0..count).map(|step| (*cursor + step) % count);
        let other = |index: &usize| besides != Some(&*targets[*index].queue.broker);
        let healthy = |index: &usize| !self.is_avoided(&targets[*index].queue.broker, now);
        let chosen = order
            .clone()
            .find(|index| other(index) && healthy(index))
            .or_else(|| order.clone().find(other))
            .or_else(|| order.clone().find(healthy))
            .or_else(|| order.clone().next())?;
        *cursor = (chosen + 1) % count;
        Some(chosen)
    }
}

/// Makes message ids: UUID v7 with a counter, so that ids of one producer sort as they were made.
#[derive(Debug)]
pub(super) struct Ids {
    /// 42 random bits of this producer.
    node: u64,
    counter: u32,
}

impl Ids {
    pub(super) fn new() -> Ids {
        let (random, _) = uuid::Uuid::new_v4().as_u64_pair();
        let (_, more) = uuid::Uuid::new_v4().as_u64_pair();
        Ids { node: (random ^ more.rotate_left(23)) & ((1 << 42) - 1), counter: 0 }
    }

    /// 48 bits time, version, 12 bits counter, variant, 20 bits counter, 42 bits producer.
    pub(super) fn next(&mut self, now_ms: i64) -> [u8; 16] {
        let counter = u64::from(self.counter);
        self.counter = self.counter.wrapping_add(1);
        let high = ((now_ms as u64) << 16) | 0x7000 | (counter >> 20);
        let low = (0b10 << 62) | ((counter & 0xf_ffff) << 42) | self.node;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&high.to_be_bytes());
        id[8..].copy_from_slice(&low.to_be_bytes());
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(broker: &str, id: u32) -> Target {
        let queue = Arc::new(Queue::new("t", broker, id));
        Target { queue, address: "x:1".into(), shard: 0, topic_id: 1 }
    }

    #[test]
    fn ids_are_version_7_unique_and_sorted() {
        let mut ids = Ids::new();
        ids.counter = 0xf_fff0;
        let all: Vec<[u8; 16]> = (0..64).map(|_| ids.next(1_700_000_000_000)).collect();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(uuid::Uuid::from_bytes(all[0]).get_version_num(), 7);
        assert_eq!(uuid::Uuid::from_bytes(all[0]).get_variant(), uuid::Variant::RFC4122);
    }

    #[test]
    fn brokers_that_failed_or_were_slow_are_skipped() {
        let now = Instant::now();
        let targets = [target("a", 0), target("b", 0), target("a", 1), target("b", 1)];
        let mut faults = Faults::default();
        let mut cursor = 0;
        let mut next =
            |faults: &Faults, now| faults.next(&targets, &mut cursor, None, now).unwrap();
        assert_eq!((next(&faults, now), next(&faults, now)), (0, 1));
        faults.failed(&"a".into(), now);
        assert_eq!((next(&faults, now), next(&faults, now)), (3, 1));
        assert_eq!(next(&faults, now + AVOID_FAILED), 2);
        faults.answered(&"a".into(), Duration::from_millis(2), now);
        assert!(!faults.is_avoided("a", now));
        faults.answered(&"b".into(), Duration::from_millis(600), now);
        assert!(faults.is_avoided("b", now + Duration::from_secs(1)));
        assert!(!faults.is_avoided("b", now + Duration::from_secs(2)));
        faults.failed(&"a".into(), now);
        assert!(faults.next(&targets, &mut 0, None, now).is_some(), "all avoided: any will do");
        assert_eq!(faults.next(&targets, &mut 0, Some("a"), now), Some(1));
    }
}
