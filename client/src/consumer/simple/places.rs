//! Where a simple consumer asks: each shard of each master broker that has queues of a topic.

use super::Settings;
use crate::filter::Filter;
use crate::route::{Queue, Routes, TopicRoute};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

/// One topic on one shard.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) broker: Arc<str>,
    pub(super) address: Arc<str>,
    /// Changes when the broker starts again.
    pub(super) instance: u64,
    pub(super) shard: u16,
    pub(super) topic: Arc<str>,
    pub(super) topic_id: u32,
    pub(super) filter: Arc<Filter>,
    /// By number.
    pub(super) queues: BTreeMap<u32, Arc<Queue>>,
}

/// What names a place.
pub(super) type PlaceKey = (Arc<str>, u64, u32, u16);

impl Place {
    pub(super) fn key(&self) -> PlaceKey {
        (Arc::clone(&self.address), self.instance, self.topic_id, self.shard)
    }

    pub(super) fn name(&self) -> String {
        format!("{}/{} shard {}", self.topic, self.broker, self.shard)
    }
}

/// All places, found again when a route changed.
#[derive(Debug, Default)]
pub(super) struct Places {
    known: Mutex<(u64, Arc<Vec<Arc<Place>>>)>,
}

impl Places {
    pub(super) fn get(&self, settings: &Settings, routes: &Routes) -> Arc<Vec<Arc<Place>>> {
        let epoch = routes.epoch();
        let mut known = self.known.lock().expect("nothing panics with it locked");
        if known.0 != epoch {
            let mut places = Vec::new();
            for subscription in &settings.subscriptions {
                if let Some(route) = routes.known(&subscription.topic) {
                    add(&route, &subscription.filter, &mut places);
                }
            }
            *known = (epoch, Arc::new(places));
        }
        Arc::clone(&known.1)
    }

    /// Routes were asked for: what is known is looked at again.
    pub(super) fn forget(&self) {
        self.known.lock().expect("nothing panics with it locked").0 = 0;
    }
}

fn add(route: &TopicRoute, filter: &Arc<Filter>, places: &mut Vec<Arc<Place>>) {
    for broker in route.masters().filter(|broker| broker.is_readable()) {
        let mut shards: HashMap<u16, BTreeMap<u32, Arc<Queue>>> = HashMap::new();
        for id in 0..broker.read_queues {
            let queue = Queue::new(Arc::clone(&route.topic), Arc::clone(&broker.broker), id);
            shards.entry(broker.shard_of(id)).or_default().insert(id, Arc::new(queue));
        }
        let mut shards: Vec<_> = shards.into_iter().collect();
        shards.sort_unstable_by_key(|(shard, _)| *shard);
        places.extend(shards.into_iter().map(|(shard, queues)| {
            Arc::new(Place {
                broker: Arc::clone(&broker.broker),
                address: Arc::clone(&broker.address),
                instance: broker.instance,
                shard,
                topic: Arc::clone(&route.topic),
                topic_id: broker.topic_id,
                filter: Arc::clone(filter),
                queues,
            })
        }));
    }
}
