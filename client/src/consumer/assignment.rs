//! The member's session at every broker that has a subscribed topic: heartbeats, and what they give and
//! take.
//!
//! Invariants:
//! - `held` of a heartbeat names everything of that broker that was not given back yet;
//! - queues are taken over and given back one session task at a time, so the two never cross.

use super::feed::{HeldId, Holding, Place};
use super::reader::{Reader, Session};
use crate::connection::{Answer, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::route::{BrokerRoute, Queue};
use ringmq_schema::consume as wire;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// How long a broker holds a heartbeat.
const BEAT: Duration = Duration::from_secs(3);
/// Pause after a heartbeat that failed, and between two whose answers say nothing new.
const PAUSE: Duration = Duration::from_millis(200);

/// What a broker said: the group's number there, a version, and what the member owns.
struct Assigned {
    group_id: u32,
    version: u64,
    owned: HashMap<(u32, u32), u32>,
}

impl Reader {
    /// Joins the group at every broker that has a subscribed topic, and keeps the sessions from then on.
    /// Fails when a topic is unknown, or a broker refuses for good.
    pub(super) async fn join(self: &Arc<Self>) -> Result<()> {
        for subscription in &self.settings.subscriptions {
            match self.routes.get(&subscription.topic).await {
                // The brokers make it when a member subscribes to it.
                Err(error)
                    if error.kind() == ErrorKind::NotFound
                        && self.is_retry_topic(&subscription.topic) => {}
                route => drop(route.map_err(|error| error.during("subscribe"))?),
            }
        }
        for broker in self.brokers() {
            let assigned = self.heartbeat(&broker, 0, Duration::ZERO).await;
            match assigned {
                Err(error) if !error.is_retryable() => {
                    return Err(error.during("subscribe").on(self.settings.group.as_str()));
                }
                Err(error) => tracing::debug!(%error, "first heartbeat failed"),
                // The session asks again, with version 0, and takes over.
                Ok(_) => {}
            }
            self.begin_session(broker);
        }
        let reader = Arc::clone(self);
        self.spawn(async move {
            let mut changes = reader.routes.changes();
            while changes.changed().await.is_ok() {
                for broker in reader.brokers() {
                    reader.begin_session(broker);
                }
            }
        });
        Ok(())
    }

    /// The brokers that have a subscribed topic.
    fn brokers(&self) -> Vec<BrokerRoute> {
        let mut brokers: Vec<BrokerRoute> = Vec::new();
        for subscription in &self.settings.subscriptions {
            let Some(route) = self.routes.known(&subscription.topic) else { continue };
            for master in route.masters() {
                if !brokers.iter().any(|known| known.broker == master.broker) {
                    brokers.push(master.clone());
                }
            }
        }
        brokers
    }

    /// Where a broker is, as far as known.
    pub(super) fn address_of(&self, broker: &str) -> Result<Arc<str>> {
        let brokers = self.brokers();
        if let Some(found) = brokers.iter().find(|found| &*found.broker == broker) {
            return Ok(Arc::clone(&found.address));
        }
        // Queues that were assigned by hand, or a broker that left the route a moment ago.
        let held = self.feed.held_of(broker).into_iter().next();
        held.map(|(_, holding, _)| Arc::clone(&holding.place.address)).ok_or_else(|| {
            Error::new(ErrorKind::Unreachable, "find broker", "no route names it").on(broker)
        })
    }

    fn begin_session(self: &Arc<Self>, broker: BrokerRoute) {
        let BrokerRoute { broker: name, address, shards, .. } = &broker;
        let mut sessions = self.sessions.lock().expect("nothing panics with it locked");
        if let Some(session) = sessions.get_mut(name) {
            session.address = Arc::clone(address);
            return;
        }
        let (address, shards) = (Arc::clone(address), *shards);
        let beat = Arc::new(Notify::new());
        let session = Session { beat: Arc::clone(&beat), address, shards };
        sessions.insert(Arc::clone(name), session);
        self.spawn(keep_session(Arc::clone(self), Arc::clone(name), beat));
    }

    async fn heartbeat(
        &self,
        broker: &BrokerRoute,
        known_version: u64,
        wait: Duration,
    ) -> Result<Assigned> {
        let group = self.settings.group.as_str();
        let shard = placement::shard_of_group(group, broker.shards);
        let request = Request::new(Opcode::GroupHeartbeat, "join group").shard(shard);
        let model = match self.settings.local {
            Some(_) => wire::Model::Broadcasting,
            None => wire::Model::Clustering,
        };
        // What everybody reads nobody gives back.
        let held = match self.settings.local {
            Some(_) => Vec::new(),
            None => self.feed.held_of(&broker.broker),
        };
        let held: Vec<wire::OwnedQueue> = held
            .iter()
            .map(|(_, h, _)| wire::OwnedQueue::new(h.topic_id, h.queue.id, h.generation, 0))
            .collect();
        let connection = self.asker.control(&broker.address).await?;
        let answer = connection
            .call(request, wait + self.asker.limit, |fbb| {
                let subscriptions: Vec<_> = self
                    .settings
                    .subscriptions
                    .iter()
                    .map(|subscription| {
                        let topic = Some(fbb.create_string(&subscription.topic));
                        let expression = Some(fbb.create_string(&subscription.filter.expression()));
                        let kind = subscription.filter.kind();
                        let args = wire::SubscriptionArgs { topic, kind, expression };
                        wire::Subscription::create(fbb, &args)
                    })
                    .collect();
                let args = wire::GroupHeartbeatArgs {
                    group: Some(fbb.create_string(group)),
                    member: Some(&self.member),
                    client: Some(fbb.create_string(&self.client_name)),
                    model,
                    subscriptions: Some(fbb.create_vector(&subscriptions)),
                    session_timeout_ms: self.settings.session_timeout.as_millis() as u32,
                    known_version,
                    wait_ms: wait.as_millis() as u32,
                    held: Some(fbb.create_vector(&held)),
                };
                wire::GroupHeartbeat::create(fbb, &args)
            })
            .await?;
        self.read_assigned(broker, &answer)
    }

    fn read_assigned(&self, broker: &BrokerRoute, answer: &Answer) -> Result<Assigned> {
        let table = answer.read::<wire::GroupHeartbeatAnswer<'_>>("join group")?;
        self.learn_max_attempts(table.max_attempts());
        let owned = table.queues().into_iter().flatten();
        let owned = match self.settings.local {
            Some(_) => self.all_queues(broker),
            None => owned.map(|o| ((o.topic(), o.queue()), o.generation())).collect(),
        };
        Ok(Assigned { group_id: table.group(), version: table.version(), owned })
    }

    /// Every queue of the subscribed topics that a broker has, as the routes say: nobody owns them.
    fn all_queues(&self, broker: &BrokerRoute) -> HashMap<(u32, u32), u32> {
        let topics = self.settings.subscriptions.iter();
        let routes = topics.filter_map(|subscription| self.routes.known(&subscription.topic));
        let mut all = HashMap::new();
        for route in routes {
            if let Some(master) = route.master(&broker.broker) {
                all.extend((0..master.read_queues).map(|queue| ((master.topic_id, queue), 0)));
            }
        }
        all
    }

    /// Makes what is held agree with what the broker said. Returns whether something stays to be learnt.
    async fn agree(
        self: &Arc<Self>,
        broker: &BrokerRoute,
        assigned: &Assigned,
        releases: &mut JoinSet<HeldId>,
    ) -> bool {
        let mut held: HashMap<(u32, u32), (HeldId, u32)> = HashMap::new();
        for (id, holding, revoked) in self.feed.held_of(&broker.broker) {
            let key = (holding.topic_id, holding.queue.id);
            match assigned.owned.get(&key) {
                // Given back and given again: the release ends first.
                _ if revoked => drop(held.insert(key, (id, holding.generation))),
                Some(generation) if *generation == holding.generation => {
                    held.insert(key, (id, *generation));
                }
                // Somebody else may have had it in between: what is held here counts no more.
                Some(_) => self.feed.drop_held(id),
                None => {
                    held.insert(key, (id, holding.generation));
                    let reader = Arc::clone(self);
                    self.feed.revoke(id);
                    releases.spawn(async move {
                        reader.release(id).await;
                        id
                    });
                }
            }
        }
        let new = assigned.owned.iter().filter(|(key, _)| !held.contains_key(key));
        let mut unknown = false;
        let mut openings = Vec::new();
        for ((topic_id, queue), generation) in new {
            match self.holding(broker, *topic_id, *queue, assigned.group_id, *generation) {
                Some(holding) => openings.push(self.take_over(holding)),
                None => unknown = true,
            }
        }
        let opens = !openings.is_empty();
        for opened in futures_util::future::join_all(openings).await {
            if let Err(error) = opened {
                tracing::warn!(%error, "cannot take over a queue yet");
                unknown = true;
            }
        }
        // The start survives even if nothing is ever consumed.
        if opens
            && self.settings.local.is_some()
            && let Err(error) = self.commit(None).await
        {
            tracing::warn!(%error, "cannot note where to start");
        }
        unknown
    }

    fn holding(
        &self,
        broker: &BrokerRoute,
        topic_id: u32,
        queue: u32,
        group_id: u32,
        generation: u32,
    ) -> Option<Holding> {
        self.settings.subscriptions.iter().find_map(|subscription| {
            let route = self.routes.known(&subscription.topic)?;
            let master = route.master(&broker.broker).filter(|m| m.topic_id == topic_id)?;
            Some(Holding {
                queue: Arc::new(Queue::new(
                    Arc::clone(&subscription.topic),
                    Arc::clone(&broker.broker),
                    queue,
                )),
                place: Place {
                    broker: Arc::clone(&broker.broker),
                    address: Arc::clone(&master.address),
                    shard: master.shard_of(queue),
                },
                topic_id,
                group_id,
                generation,
                filter: Arc::clone(&subscription.filter),
            })
        })
    }
}

/// Keeps the member's session at a broker until the consumer's tasks end.
async fn keep_session(reader: Arc<Reader>, name: Arc<str>, beat: Arc<Notify>) {
    let mut releases = JoinSet::new();
    let mut version = 0;
    loop {
        let Some(broker) = reader.brokers().into_iter().find(|broker| broker.broker == name) else {
            // Out of the route: a restart, or its topics are gone. Routes tell when it is back.
            tokio::time::sleep(PAUSE).await;
            version = 0;
            continue;
        };
        let wait = if version == 0 { Duration::ZERO } else { BEAT };
        let assigned = tokio::select! {
            assigned = reader.heartbeat(&broker, version, wait) => assigned,
            // Something was fenced: what is owned must be learnt anew.
            () = beat.notified() => {
                version = 0;
                continue;
            }
            // Given back: say so at once.
            Some(_) = releases.join_next(), if !releases.is_empty() => continue,
        };
        match assigned {
            Ok(assigned) => {
                let unknown = reader.agree(&broker, &assigned, &mut releases).await;
                let same = assigned.version == version;
                version = assigned.version;
                if unknown {
                    reader.refresh_routes().await;
                    version = 0;
                }
                if unknown || (same && wait.is_zero()) {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Err(error) => {
                match error.is_retryable() {
                    true => tracing::debug!(%error, broker = %name, "heartbeat failed"),
                    false => {
                        tracing::error!(%error, broker = %name, "the group refuses this member")
                    }
                }
                version = 0;
                tokio::time::sleep(error.retry_after().unwrap_or(PAUSE)).await;
            }
        }
    }
}

impl Reader {
    async fn refresh_routes(&self) {
        for subscription in &self.settings.subscriptions {
            if let Err(error) = self.routes.refresh(&subscription.topic).await {
                tracing::debug!(%error, "cannot refresh the route");
            }
        }
    }
}
