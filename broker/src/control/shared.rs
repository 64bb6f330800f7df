//! Where executors and the control plane meet.
//!
//! Invariant: no call of an executor waits. Locks are held for a copy or a push; a figure that cannot be
//! published at once is left for the next second, because figures are totals.

use hdrhistogram::Histogram;
use ringmq_core::route::{TopicChange, TopicRoutes};
use ringmq_core::{Figures, GroupLag};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Latencies of one shard since it was opened, in nanoseconds.
#[derive(Debug, Clone)]
pub struct Latency {
    /// From a record's arrival to its acknowledgement.
    pub append: Histogram<u64>,
    /// Of one durable write or sync.
    pub flush: Histogram<u64>,
    /// Of encoding and writing the index of one segment.
    pub index: Histogram<u64>,
}

impl Default for Latency {
    fn default() -> Latency {
        // 1 µs to a minute at two digits: 27 KiB each, copied in about a microsecond.
        let histogram = || {
            Histogram::new_with_bounds(1_000, 60_000_000_000, 2).expect("the bounds are in order")
        };
        Latency { append: histogram(), flush: histogram(), index: histogram() }
    }
}

/// What one shard published last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Published {
    pub(crate) figures: Figures,
    pub(crate) latency: Latency,
    /// How far groups are behind on the shard's queues.
    pub(crate) lags: Arc<[GroupLag]>,
}

/// What executors have for the links.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    pub(crate) topics: Vec<TopicChange>,
    pub(crate) watches: Vec<(String, u16)>,
}

#[derive(Debug, Default)]
struct Shard {
    published: Mutex<Published>,
    failure: Mutex<Option<String>>,
    has_routes: AtomicBool,
    /// By topic: only the newest counts, so what waits is bounded by what the shard watches.
    routes: Mutex<BTreeMap<String, TopicRoutes>>,
}

/// See the module.
#[derive(Debug)]
pub struct Shared {
    shards: Vec<Shard>,
    ready: AtomicBool,
    connections: AtomicI64,
    links: AtomicI64,
    /// Bytes that went from file to socket.
    pub(crate) transferred: AtomicU64,
    /// Retired segments that became new ones.
    pub(crate) recycled: AtomicU64,
    outgoing: Mutex<Outgoing>,
    pub(crate) changed: Notify,
}

impl Shared {
    /// For a broker with so many shards; not ready.
    pub fn new(shards: u16) -> Shared {
        Shared {
            shards: (0..shards).map(|_| Shard::default()).collect(),
            ready: AtomicBool::new(false),
            connections: AtomicI64::new(0),
            links: AtomicI64::new(0),
            transferred: AtomicU64::new(0),
            recycled: AtomicU64::new(0),
            outgoing: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// A shard's figures and latencies, all since it was opened. For executors, each second.
    pub fn publish(&self, shard: u16, figures: Figures, latency: &Latency) {
        let Some(shard) = self.shards.get(usize::from(shard)) else { return };
        // A scrape is copying: the next second's totals hold this one's.
        let Ok(mut slot) = shard.published.try_lock() else { return };
        slot.figures = figures;
        copy(&latency.append, &mut slot.latency.append);
        copy(&latency.flush, &mut slot.latency.flush);
        copy(&latency.index, &mut slot.latency.index);
    }

    /// How far groups are behind on a shard's queues. For executors, each second.
    pub fn publish_lags(&self, shard: u16, lags: Arc<[GroupLag]>) {
        let Some(shard) = self.shards.get(usize::from(shard)) else { return };
        if let Ok(mut slot) = shard.published.try_lock() {
            slot.lags = lags;
        }
    }

    /// A topic was made, changed or deleted: the name servers are to learn of it.
    pub fn topic(&self, change: TopicChange) {
        lock(&self.outgoing).topics.push(change);
        self.changed.notify_one();
    }

    /// The shard wants the routes of this topic, now and whenever they change.
    pub fn watch(&self, topic: String, shard: u16) {
        lock(&self.outgoing).watches.push((topic, shard));
        self.changed.notify_one();
    }

    /// Routes that came for the shard. One relaxed load when there are none.
    pub fn take_routes(&self, shard: u16) -> Vec<TopicRoutes> {
        let Some(shard) = self.shards.get(usize::from(shard)) else { return Vec::new() };
        if !shard.has_routes.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut routes = lock(&shard.routes);
        shard.has_routes.store(false, Ordering::Relaxed);
        std::mem::take(&mut *routes).into_values().collect()
    }

    /// Whether the broker serves. While it does, it is registered at the name servers.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
        self.changed.notify_one();
    }

    /// The shard stopped writing; for good. Returns whether that is news.
    pub fn fail(&self, shard: u16, reason: String) -> bool {
        let Some(shard) = self.shards.get(usize::from(shard)) else { return false };
        let mut failure = lock(&shard.failure);
        let is_news = failure.is_none();
        failure.get_or_insert(reason);
        is_news
    }

    /// So many connections more (or fewer).
    pub fn connections(&self, delta: isize) {
        self.connections.fetch_add(delta as i64, Ordering::Relaxed);
    }

    pub(crate) fn take_outgoing(&self) -> Outgoing {
        std::mem::take(&mut *lock(&self.outgoing))
    }

    pub(crate) fn give_routes(&self, shard: u16, routes: TopicRoutes) {
        let Some(shard) = self.shards.get(usize::from(shard)) else { return };
        let mut waiting = lock(&shard.routes);
        waiting.insert(routes.topic.clone(), routes);
        shard.has_routes.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Why the broker does not serve as it should, if so.
    pub(crate) fn unready(&self) -> Option<String> {
        for (number, shard) in self.shards.iter().enumerate() {
            if let Some(reason) = &*lock(&shard.failure) {
                return Some(format!("shard {number} stopped writing: {reason}"));
            }
        }
        (!self.is_ready()).then(|| "the broker is starting or stopping".to_owned())
    }

    pub(crate) fn connection_count(&self) -> i64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// So many links to name servers more (or fewer).
    pub(crate) fn linked(&self, delta: i64) {
        self.links.fetch_add(delta, Ordering::Relaxed);
    }

    pub(crate) fn link_count(&self) -> i64 {
        self.links.load(Ordering::Relaxed)
    }

    pub(crate) fn published(&self) -> Vec<Published> {
        self.shards.iter().map(|shard| lock(&shard.published).clone()).collect()
    }

    pub(crate) fn failed(&self) -> Vec<bool> {
        self.shards.iter().map(|shard| lock(&shard.failure).is_some()).collect()
    }
}

/// What the locks guard is whole after every statement, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn copy(from: &Histogram<u64>, to: &mut Histogram<u64>) {
    // The executor's histogram may have other bounds than the default's.
    if to.set_to(from).is_err() {
        to.clone_from(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_routes_of_a_topic_count() {
        let shared = Shared::new(2);
        assert!(shared.take_routes(1).is_empty());
        let routes = |topic: &str| TopicRoutes { topic: topic.to_owned(), brokers: Vec::new() };
        for topic in ["a", "b", "a"] {
            shared.give_routes(1, routes(topic));
        }
        assert_eq!(shared.take_routes(0), []);
        assert_eq!(shared.take_routes(1), [routes("a"), routes("b")]);
        assert_eq!(shared.take_routes(1), []);
        assert_eq!(shared.take_routes(9), []);
    }

    #[test]
    fn a_failed_shard_stays_failed_with_its_first_reason() {
        let shared = Shared::new(2);
        assert!(shared.unready().is_some_and(|reason| reason.contains("starting")));
        shared.set_ready(true);
        assert_eq!(shared.unready(), None);
        assert!(shared.fail(1, "EIO".to_owned()));
        assert!(!shared.fail(1, "later".to_owned()));
        assert_eq!(shared.unready().as_deref(), Some("shard 1 stopped writing: EIO"));
        assert_eq!(shared.failed(), [false, true]);
    }

    #[test]
    fn published_figures_replace_the_earlier_ones() {
        let shared = Shared::new(1);
        let mut latency = Latency::default();
        for round in 1..=3 {
            latency.append.record(round * 1_000_000).unwrap();
            let figures = Figures { messages_in: round, ..Figures::default() };
            shared.publish(0, figures, &latency);
        }
        let published = shared.published();
        assert_eq!(published[0].figures.messages_in, 3);
        assert_eq!(published[0].latency.append.len(), 3);
        shared.publish(7, Figures::default(), &latency);
    }
}
