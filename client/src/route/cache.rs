//! Routes as the name servers told them, kept up to date by subscription.
//!
//! One name server at a time is followed: it pushes changes of every topic that was ever asked for. When
//! it goes, the next takes its place; while none answers, what is known stays in force.
//!
//! Invariants:
//! - a known route is replaced by "no such topic" only on a change that a name server pushed, or when all
//!   of them say so for a while: one that just started knows nothing yet;
//! - `epoch` grows with every change, after the change can be seen.

use super::TopicRoute;
use crate::connection::{Answer, Connection, Request, Tables};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::{Key, Pool, Purpose};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::WIPOffset;
use ringmq_schema::frame::ANY_SHARD;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::route::{QueryRoute, QueryRouteArgs, RouteAnswer};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// All routes are asked for again this often, whatever was pushed.
const REFRESH: Duration = Duration::from_secs(30);
/// Pause between rounds over the name servers when none answers: first and longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Pushed changes that may wait; one more closes the connection, and all routes are asked for again.
const PUSHES_MAX: usize = 4096;

/// See the module.
pub(crate) struct Routes {
    servers: Vec<Arc<str>>,
    pool: Arc<Pool>,
    limit: Duration,
    known: Mutex<HashMap<Arc<str>, Arc<TopicRoute>>>,
    /// The name server that is followed.
    followed: Mutex<Option<Arc<Connection>>>,
    epoch: watch::Sender<u64>,
}

/// A name server that is followed, and what it pushes.
pub(crate) struct Followed {
    connection: Arc<Connection>,
    pushes: mpsc::Receiver<Answer>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.connection.close(Error::closed("follow routes"));
    }
}

impl Routes {
    pub(crate) fn new(servers: Vec<Arc<str>>, pool: Arc<Pool>, limit: Duration) -> Routes {
        Routes {
            servers,
            pool,
            limit,
            known: Mutex::default(),
            followed: Mutex::default(),
            epoch: watch::Sender::new(1),
        }
    }

    /// Grows with every change of any route.
    pub(crate) fn epoch(&self) -> u64 {
        *self.epoch.borrow()
    }

    /// Tells of changes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    /// The route, if it is known.
    pub(crate) fn known(&self, topic: &str) -> Option<Arc<TopicRoute>> {
        let known = self.known.lock().expect("nothing panics with it locked");
        known.get(topic).filter(|route| !route.brokers.is_empty()).cloned()
    }

    /// The route, if it was ever asked for; without brokers when the topic is gone.
    pub(crate) fn known_or_empty(&self, topic: &str) -> Option<Arc<TopicRoute>> {
        self.known.lock().expect("nothing panics with it locked").get(topic).cloned()
    }

    /// The route, asked for when it is not known.
    pub(crate) async fn get(&self, topic: &str) -> Result<Arc<TopicRoute>> {
        match self.known(topic) {
            Some(route) => Ok(route),
            None => self.refresh(topic).await,
        }
    }

    /// The route, asked for now. What is known is returned when no name server answers.
    pub(crate) async fn refresh(&self, topic: &str) -> Result<Arc<TopicRoute>> {
        let mut unreachable = None;
        let mut answered = false;
        let order = self.order_twice();
        for (at, server) in order.iter().enumerate() {
            if answered && at >= self.servers.len() {
                break;
            }
            match self.query(server, &[topic.into()], false).await {
                Ok(()) => answered = true,
                Err(error) => unreachable = Some(error),
            }
            // A name server that just started may not know it; the next one may.
            if answered && let Some(route) = self.known(topic) {
                return Ok(route);
            }
        }
        match (self.known(topic), unreachable) {
            (Some(route), _) => Ok(route),
            (None, Some(error)) if !answered => Err(error.during("query route").on(topic)),
            _ => Err(unknown_topic(topic)),
        }
    }

    /// The route as the name servers show it right now; `None`: none of them knows the topic. Nothing that
    /// is known is replaced by that.
    pub(crate) async fn ask_route(&self, topic: &str) -> Result<Option<TopicRoute>> {
        let request = Request::new(Opcode::QueryRoute, "query route");
        let (mut last, mut answered) = (None, false);
        for server in self.order_twice() {
            let asked = async {
                let connection = self.connection(&server).await?;
                let answer = connection
                    .call(request, self.limit, |fbb| {
                        let name = fbb.create_string(topic);
                        let topics = Some(fbb.create_vector(&[name]));
                        QueryRoute::create(fbb, &QueryRouteArgs { topics, subscribe: false })
                    })
                    .await?;
                let table = answer.read::<RouteAnswer<'_>>("query route")?;
                let route = table.topics().into_iter().flatten().next();
                Ok(route.map(|route| TopicRoute::read(&route)))
            };
            match asked.await {
                Ok(Some(route)) if !route.brokers.is_empty() => return Ok(Some(route)),
                Ok(_) => answered = true,
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) if !answered => Err(error),
            _ => Ok(None),
        }
    }

    /// Asks any name server.
    pub(crate) async fn ask<T>(
        &self,
        request: Request,
        build: impl Fn(&mut Tables) -> WIPOffset<T>,
    ) -> Result<Answer> {
        let mut last = None;
        for server in self.order_twice() {
            let asked =
                async { self.connection(&server).await?.call(request, self.limit, &build).await };
            match asked.await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("there is at least one name server, checked by the builder"))
    }

    /// Connects to the first name server that answers, to follow it.
    pub(crate) async fn follow_any(&self) -> Result<Followed> {
        let mut failures = Vec::new();
        for server in &self.servers {
            let (sender, pushes) = mpsc::channel(PUSHES_MAX);
            let mut opening = self.pool.opening(ANY_SHARD);
            opening.pushes = Some(sender);
            match Connection::open(Arc::clone(server), opening).await {
                Ok(connection) => {
                    let followed = Followed { connection: Arc::clone(&connection), pushes };
                    *self.followed.lock().expect("nothing panics with it locked") =
                        Some(connection);
                    return Ok(followed);
                }
                Err(error) => failures.push(error),
            }
        }
        let texts: Vec<String> = failures
            .iter()
            .map(|e| {
                std::error::Error::source(e)
                    .map_or(e.to_string(), |c| format!("{}: {c}", e.target()))
            })
            .collect();
        let text = format!("no name server answers: {}", texts.join("; "));
        let targets = self.servers.join(";");
        let error = Error::new(ErrorKind::Unreachable, "connect", text).on(targets);
        Err(match failures.pop() {
            Some(cause) => error.because(cause),
            None => error,
        })
    }

    /// Follows name servers for as long as it is polled.
    pub(crate) async fn keep(self: Arc<Self>, mut followed: Followed) {
        let mut pause = PAUSE.0;
        loop {
            self.follow(&mut followed).await;
            tracing::info!("the name server is gone; routes that are known stay in force");
            followed = loop {
                match self.follow_any().await {
                    Ok(next) => break next,
                    Err(error) => tracing::debug!(%error, "no name server"),
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            };
            pause = PAUSE.0;
        }
    }

    /// Takes over what the name server pushes until its connection ends.
    async fn follow(&self, followed: &mut Followed) {
        let mut refresh = tokio::time::interval(REFRESH);
        let mut rounds = 0u32;
        loop {
            tokio::select! {
                push = followed.pushes.recv() => match push {
                    Some(push) => self.apply(&push, true),
                    None => return,
                },
                () = followed.connection.wait_closed() => return,
                _ = refresh.tick() => {
                    let topics = self.topics();
                    rounds += 1;
                    if let Err(error) = self.query(&followed.connection.address(), &topics, rounds > 1).await {
                        tracing::debug!(%error, "cannot refresh routes");
                    }
                }
            }
        }
    }

    fn topics(&self) -> Vec<Arc<str>> {
        self.known.lock().expect("nothing panics with it locked").keys().cloned().collect()
    }

    /// Asks one name server for routes and takes over what it says.
    async fn query(&self, server: &Arc<str>, topics: &[Arc<str>], trust_empty: bool) -> Result<()> {
        if topics.is_empty() {
            return Ok(());
        }
        let connection = self.connection(server).await?;
        let request = Request::new(Opcode::QueryRoute, "query route");
        // 100 000 topics are normal: ask in portions.
        for part in topics.chunks(1000) {
            let answer = connection
                .call(request, self.limit, |fbb| {
                    let names: Vec<_> = part.iter().map(|name| fbb.create_string(name)).collect();
                    let topics = Some(fbb.create_vector(&names));
                    QueryRoute::create(fbb, &QueryRouteArgs { topics, subscribe: true })
                })
                .await?;
            self.apply(&answer, trust_empty);
        }
        Ok(())
    }

    fn apply(&self, answer: &Answer, trust_empty: bool) {
        let routes = match answer.read::<RouteAnswer<'_>>("query route") {
            Ok(routes) => routes,
            Err(error) => return tracing::warn!(%error, "a route that cannot be read"),
        };
        let mut changed = false;
        let mut known = self.known.lock().expect("nothing panics with it locked");
        for route in routes.topics().into_iter().flatten() {
            let route = TopicRoute::read(&route);
            let old = known.get(&route.topic);
            let keep = match old {
                Some(old) => {
                    old.brokers == route.brokers || (route.brokers.is_empty() && !trust_empty)
                }
                None => false,
            };
            if !keep {
                changed = true;
                tracing::debug!(topic = %route.topic, brokers = route.brokers.len(), "route changed");
                known.insert(Arc::clone(&route.topic), Arc::new(route));
            }
        }
        drop(known);
        if changed {
            self.epoch.send_modify(|epoch| *epoch += 1);
        }
    }

    /// The followed connection for its own server, a pooled one for others.
    async fn connection(&self, server: &Arc<str>) -> Result<Arc<Connection>> {
        let followed = self.followed.lock().expect("nothing panics with it locked").clone();
        match followed {
            Some(followed) if followed.address() == *server && !followed.is_closed() => {
                Ok(followed)
            }
            _ => {
                let address = Arc::clone(server);
                let key = Key { address, shard: ANY_SHARD, purpose: Purpose::Control };
                self.pool.get(&key).await
            }
        }
    }

    /// The name servers in the order of asking. Each comes twice: a connection may just have ended, and
    /// the second time there is a new one.
    fn order_twice(&self) -> Vec<Arc<str>> {
        let order = self.order();
        order.iter().chain(&order).cloned().collect()
    }

    /// The name servers, the followed one first.
    fn order(&self) -> Vec<Arc<str>> {
        let followed = self.followed.lock().expect("nothing panics with it locked").clone();
        let first = followed.filter(|f| !f.is_closed()).map(|f| f.address());
        let mut servers = self.servers.clone();
        if let Some(first) = first {
            servers.sort_by_key(|server| *server != first);
        }
        servers
    }
}

/// The error of a topic that no name server knows.
pub(crate) fn unknown_topic(topic: &str) -> Error {
    let mut error = Error::of_status("query route", Status::UnknownTopic).on(topic);
    error.say("no name server knows a topic of that name");
    error
}
