//! What the name servers say about topics that shards watch, made into one view: plain data.
//!
//! Rules:
//! - a broker has a topic when any name server that can be reached says so; of several descriptions the
//!   one that came last counts. So a name server that has just started and knows few brokers takes nothing
//!   away, and a dead broker goes when the last name server has noticed;
//! - a name server that cannot be reached says nothing, but its silence changes nothing either: what was
//!   known stays until another one answers. With all of them gone, the broker goes on as it was;
//! - a shard is told when the view of a topic that it watches differs from what it was told before.

use ringmq_core::route::{BrokerRoute, TopicRoutes};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
struct Watched {
    shards: BTreeSet<u16>,
    /// By name server: when it came, and what it says.
    answers: BTreeMap<usize, (u64, Vec<BrokerRoute>)>,
    view: Option<Vec<BrokerRoute>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    watched: BTreeMap<String, Watched>,
    /// In the order in which they were asked for; links remember how far they have asked.
    names: Vec<String>,
    arrivals: u64,
}

impl Routes {
    /// A shard watches a topic. What is known of it already.
    pub(crate) fn watch(&mut self, topic: &str, shard: u16) -> Option<TopicRoutes> {
        if !self.watched.contains_key(topic) {
            self.names.push(topic.to_owned());
        }
        let watched = self.watched.entry(topic.to_owned()).or_default();
        watched.shards.insert(shard);
        let brokers = watched.view.clone()?;
        Some(TopicRoutes { topic: topic.to_owned(), brokers })
    }

    /// Every topic watched, in the order in which they were asked for.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// A name server answers. The shards to be told, and what.
    pub(crate) fn answer(
        &mut self,
        server: usize,
        topic: &str,
        brokers: Vec<BrokerRoute>,
    ) -> Option<(TopicRoutes, Vec<u16>)> {
        self.arrivals += 1;
        let watched = self.watched.get_mut(topic)?;
        watched.answers.insert(server, (self.arrivals, brokers));
        let mut answers: Vec<_> = watched.answers.values().collect();
        answers.sort_by_key(|(arrival, _)| *arrival);
        let mut view: BTreeMap<(&str, u32), &BrokerRoute> = BTreeMap::new();
        for route in answers.into_iter().flat_map(|(_, routes)| routes) {
            view.insert((&route.broker, route.broker_id), route);
        }
        let view: Vec<BrokerRoute> = view.into_values().cloned().collect();
        if watched.view.as_ref() == Some(&view) {
            return None;
        }
        watched.view = Some(view.clone());
        let routes = TopicRoutes { topic: topic.to_owned(), brokers: view };
        Some((routes, watched.shards.iter().copied().collect()))
    }

    /// A name server cannot be reached any more.
    pub(crate) fn lost(&mut self, server: usize) {
        for watched in self.watched.values_mut() {
            watched.answers.remove(&server);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(broker: &str, topic: u32) -> BrokerRoute {
        let broker = broker.to_owned();
        BrokerRoute { broker, broker_id: 0, topic, shards: 2, read_queues: 8 }
    }

    #[test]
    fn a_young_name_server_takes_nothing_away() {
        let mut routes = Routes::default();
        assert_eq!(routes.watch("t", 3), None);
        let (told, shards) = routes.answer(0, "t", vec![route("a", 1), route("b", 1)]).unwrap();
        assert_eq!((told.brokers.len(), shards), (2, vec![3]));
        assert_eq!(routes.answer(1, "t", vec![]), None);
        assert_eq!(routes.answer(1, "t", vec![route("b", 1)]), None);
        // A newer description replaces the older one; a broker that both miss goes.
        let (told, _) = routes.answer(1, "t", vec![route("b", 9)]).unwrap();
        assert_eq!(told.brokers, [route("a", 1), route("b", 9)]);
        let (told, _) = routes.answer(0, "t", vec![]).unwrap();
        assert_eq!(told.brokers, [route("b", 9)]);
    }

    #[test]
    fn what_was_known_outlives_the_name_servers() {
        let mut routes = Routes::default();
        routes.watch("t", 0);
        routes.answer(0, "t", vec![route("a", 1)]).unwrap();
        routes.lost(0);
        assert_eq!(routes.watch("t", 1).unwrap().brokers, [route("a", 1)]);
        // Back again with the same: nothing to tell. Back empty: the topic is gone.
        assert_eq!(routes.answer(0, "t", vec![route("a", 1)]), None);
        let (told, shards) = routes.answer(0, "t", vec![]).unwrap();
        assert_eq!((told.brokers.len(), shards), (0, vec![0, 1]));
    }

    #[test]
    fn an_answer_to_nobodys_question_is_dropped() {
        let mut routes = Routes::default();
        assert_eq!(routes.answer(0, "t", vec![route("a", 1)]), None);
        assert!(routes.names().is_empty());
    }
}
