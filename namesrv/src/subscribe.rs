//! Who wants to hear of which topic, and what each has not heard yet.
//!
//! Invariant: what waits for a subscriber is a set of topic names, no more than it subscribed to, however
//! slowly it reads: the route that it gets is the one in force when the push is built (promise: bounded).

use crate::route::Session;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

#[derive(Debug, Default)]
struct Subscriber {
    topics: BTreeSet<Arc<str>>,
    due: BTreeSet<Arc<str>>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Subscriptions {
    sessions: HashMap<Session, Subscriber>,
    by_topic: HashMap<Arc<str>, BTreeSet<Session>>,
}

impl Subscriptions {
    /// Subscribes to all of `topics` or, when the session would have more than `limit`, to none: then the
    /// number it would have.
    pub fn subscribe(
        &mut self,
        session: Session,
        topics: &[&str],
        limit: usize,
    ) -> Result<(), usize> {
        let has = self.sessions.get(&session).map(|s| &s.topics);
        let new: BTreeSet<&str> =
            topics.iter().copied().filter(|t| !has.is_some_and(|has| has.contains(*t))).collect();
        let total = has.map_or(0, BTreeSet::len) + new.len();
        if total > limit {
            return Err(total);
        }
        let subscriber = self.sessions.entry(session).or_default();
        for name in new {
            let known = self.by_topic.get_key_value(name).map(|(known, _)| known.clone());
            let name = known.unwrap_or_else(|| name.into());
            self.by_topic.entry(name.clone()).or_default().insert(session);
            subscriber.topics.insert(name);
        }
        Ok(())
    }

    /// Routes have changed; sessions that have something to be told now.
    pub fn changed(&mut self, topics: &[Arc<str>]) -> BTreeSet<Session> {
        let mut wake = BTreeSet::new();
        for name in topics {
            for session in self.by_topic.get(name).into_iter().flatten() {
                if let Some(subscriber) = self.sessions.get_mut(session) {
                    subscriber.due.insert(name.clone());
                    wake.insert(*session);
                }
            }
        }
        wake
    }

    /// Takes up to `max` topics that the session is to be told of.
    pub fn take_due(&mut self, session: Session, max: usize) -> Vec<Arc<str>> {
        let Some(subscriber) = self.sessions.get_mut(&session) else { return Vec::new() };
        std::iter::from_fn(|| subscriber.due.pop_first()).take(max).collect()
    }

    /// The session is over.
    pub fn remove(&mut self, session: Session) {
        let Some(subscriber) = self.sessions.remove(&session) else { return };
        for name in subscriber.topics {
            if let Some(sessions) = self.by_topic.get_mut(&name) {
                sessions.remove(&session);
                if sessions.is_empty() {
                    self.by_topic.remove(&name);
                }
            }
        }
    }

    /// Subscriptions of all sessions.
    pub fn count(&self) -> usize {
        self.sessions.values().map(|subscriber| subscriber.topics.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| (*name).into()).collect()
    }

    #[test]
    fn changes_wait_as_a_set() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.subscribe(1, &["a", "b", "a"], 2).unwrap();
        subscriptions.subscribe(2, &["b"], 2).unwrap();
        assert_eq!(subscriptions.count(), 3);
        assert!(subscriptions.changed(&names(&["a", "b", "c"])).into_iter().eq([1, 2]));
        assert!(subscriptions.changed(&names(&["a"])).into_iter().eq([1]));
        assert_eq!(subscriptions.take_due(1, 1), names(&["a"]));
        assert_eq!(subscriptions.take_due(1, 9), names(&["b"]));
        assert!(subscriptions.take_due(1, 9).is_empty());
        assert!(subscriptions.take_due(7, 9).is_empty());
    }

    #[test]
    fn the_limit_counts_each_topic_once_and_refuses_as_a_whole() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.subscribe(1, &["a", "b"], 2).unwrap();
        subscriptions.subscribe(1, &["b", "a"], 2).unwrap();
        assert_eq!(subscriptions.subscribe(1, &["a", "c", "d"], 3), Err(4));
        assert!(subscriptions.changed(&names(&["c"])).is_empty());
        subscriptions.remove(1);
        assert_eq!(subscriptions.count(), 0);
        assert!(subscriptions.changed(&names(&["a"])).is_empty());
    }
}
