//! What push and pull consumers have in common: holding queues, fetching, committing, ending.
//!
//! Invariants:
//! - nothing is committed for a queue after it was fenced;
//! - a queue is given back only after its listener calls ended (or the limit passed) and its position was
//!   committed.

use super::ConsumeFrom;
use super::feed::{Commit, Feed, HeldId, Holding, Place, ShardKey};
use super::fetch;
use super::held::Position;
use super::local::LocalOffsets;
use super::offsets::Asker;
use crate::client::{Client, Closing};
use crate::connection::Request;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Filter;
use crate::route::Routes;
use ringmq_schema::consume::{GroupLeave, GroupLeaveArgs, MemberId};
use ringmq_schema::error::Status;
use ringmq_schema::limits::ATTEMPTS_MAX_DEFAULT;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement;
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

/// How long listener calls may go on for a queue that was taken away.
const RELEASE_LIMIT: Duration = Duration::from_secs(8);
/// Pause before a commit is tried again.
const COMMIT_PAUSE: Duration = Duration::from_millis(50);
/// What a dropped consumer gets to end in.
pub(super) const DROP_LIMIT: Duration = Duration::from_secs(5);

/// A topic that is consumed.
pub(super) struct Subscription {
    pub(super) topic: Arc<str>,
    pub(super) filter: Arc<Filter>,
}

/// What a consumer was built with.
pub(super) struct ReaderSettings {
    pub(super) group: String,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) from: ConsumeFrom,
    /// `None`: only when the user says so.
    pub(super) commit_interval: Option<Duration>,
    pub(super) commit_on_close: bool,
    pub(super) session_timeout: Duration,
    /// Where the messages are that its members sent back; among the subscriptions, and made when it is needed.
    pub(super) retry_topic: Option<Arc<str>>,
    /// Broadcasting: every queue is read, and offsets are kept here.
    pub(super) local: Option<Arc<LocalOffsets>>,
}

/// How a consumer ends.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    Running,
    /// Ends, within the limit.
    Stopping(Duration),
    /// Has ended so.
    Stopped(Result<()>),
}

/// See the module.
pub(crate) struct Reader {
    pub(super) settings: ReaderSettings,
    pub(super) feed: Feed,
    pub(super) routes: Arc<Routes>,
    pub(super) asker: Asker,
    pub(super) client_name: String,
    pub(super) member: MemberId,
    pub(super) phase: watch::Sender<Phase>,
    /// As the brokers said last.
    max_attempts: AtomicU32,
    /// Brokers at which the member has a session, with what makes it send a heartbeat now.
    pub(super) sessions: Mutex<HashMap<Arc<str>, Session>>,
    /// Wake the fetch loops.
    fetchers: Mutex<HashMap<ShardKey, Arc<Notify>>>,
    tasks: Mutex<JoinSet<()>>,
}

/// A broker that knows the member.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) beat: Arc<Notify>,
    pub(super) address: Arc<str>,
    pub(super) shards: u16,
}

impl Reader {
    pub(super) fn new(client: &Client, settings: ReaderSettings, feed: Feed) -> Arc<Reader> {
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        let reader = Arc::new(Reader {
            settings,
            feed,
            routes: client.inner.routes(),
            asker: Asker { pool: client.inner.pool(), limit: client.inner.request_timeout() },
            client_name: format!("{}@{}", client.inner.name(), std::process::id()),
            member: MemberId::new(high, low),
            phase: watch::Sender::new(Phase::Running),
            max_attempts: AtomicU32::new(u32::from(ATTEMPTS_MAX_DEFAULT)),
            sessions: Mutex::default(),
            fetchers: Mutex::default(),
            tasks: Mutex::default(),
        });
        client.inner.register(&reader);
        reader
    }

    /// A message of the group that failed so often goes to the dead letters.
    pub(super) fn max_attempts(&self) -> u32 {
        self.max_attempts.load(Ordering::Relaxed)
    }

    pub(super) fn learn_max_attempts(&self, attempts: u16) {
        // An older broker says nothing.
        if attempts > 0 {
            self.max_attempts.store(u32::from(attempts), Ordering::Relaxed);
        }
    }

    pub(super) fn is_retry_topic(&self, topic: &str) -> bool {
        self.settings.retry_topic.as_deref() == Some(topic)
    }

    /// Runs a task that ends with the consumer.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().expect("nothing panics with it locked");
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Running)
    }

    pub(super) async fn wait_stopping(&self) {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as `self`.
        let _ = phase.wait_for(|phase| !matches!(phase, Phase::Running)).await;
    }

    /// Begins to hold a queue: where the group stands, or where it starts, and then fetching.
    pub(super) async fn take_over(self: &Arc<Self>, holding: Holding) -> Result<()> {
        let Holding { place, topic_id, group_id, .. } = &holding;
        let queue = (*topic_id, holding.queue.id);
        if let Some(local) = &self.settings.local {
            let known = local.find(&holding.queue, *topic_id);
            let start = match known {
                Some(offset) => offset,
                None => {
                    let at_ms = self.settings.from.at_ms();
                    self.asker.search_one(place, queue.0, queue.1, at_ms).await?
                }
            };
            self.hold(holding, Position::new(start), known.map(Position::new));
            return Ok(());
        }
        let found = self.asker.query(&place.address, place.shard, *group_id, &[queue]).await?;
        let Some(offsets) = found.first() else {
            return Err(Error::protocol("query offsets", "the answer names no queue"));
        };
        let status = Status::from_code(offsets.status());
        if status != Status::Ok {
            return Err(Error::of_status("query offsets", status).on(holding.queue.to_string()));
        }
        let committed = u64::try_from(offsets.committed()).ok();
        let mut committed =
            committed.map(|offset| Position { offset, attempts: offsets.attempts() });
        let start = match committed {
            Some(committed) => committed,
            None => {
                // Whatever was sent back is still to be consumed.
                let from = match self.is_retry_topic(&holding.queue.topic) {
                    true => ConsumeFrom::First,
                    false => self.settings.from,
                };
                let at_ms = from.at_ms();
                Position::new(self.asker.search_one(place, queue.0, queue.1, at_ms).await?)
            }
        };
        // The start survives even if nothing is ever consumed; a pull consumer's user decides.
        if committed.is_none() && self.settings.commit_interval.is_some() {
            let commit = Commit { id: 0, holding: holding.clone(), at: start };
            let statuses = self.asker.commit(self.member, &[commit]).await?;
            if let Some(status) = statuses.first().filter(|status| **status != Status::Ok) {
                return Err(Error::of_status("commit", *status).on(holding.queue.to_string()));
            }
            committed = Some(start);
        }
        self.hold(holding, start, committed);
        Ok(())
    }

    fn hold(self: &Arc<Self>, holding: Holding, start: Position, committed: Option<Position>) {
        let (queue, generation) = (&holding.queue, holding.generation);
        tracing::debug!(%queue, start = start.offset, generation, "holding");
        let fetcher = self.fetcher(&holding.place);
        self.feed.hold(holding, start, committed, fetcher);
    }

    /// What wakes the fetch loop of a shard; begins it.
    fn fetcher(self: &Arc<Self>, place: &Place) -> Arc<Notify> {
        let mut fetchers = self.fetchers.lock().expect("nothing panics with it locked");
        let key = (Arc::clone(&place.broker), place.shard);
        let begin = || {
            let wake = Arc::new(Notify::new());
            let reader = Arc::clone(self);
            let (broker, shard) = key.clone();
            self.spawn(fetch::keep_fetching(reader, broker, shard, Arc::clone(&wake)));
            wake
        };
        Arc::clone(fetchers.entry(key.clone()).or_insert_with(begin))
    }

    /// Gives a queue back that was taken away: lets its listener calls end, commits, forgets it.
    pub(super) async fn release(&self, id: HeldId) {
        self.feed.revoke(id);
        self.wait_idle(|feed| feed.is_idle(id), RELEASE_LIMIT).await;
        if self.settings.commit_on_close
            && let Err(error) = self.commit(Some(id)).await
        {
            tracing::warn!(%error, "cannot commit a queue that goes to another member");
        }
        self.feed.drop_held(id);
    }

    async fn wait_idle(&self, idle: impl Fn(&Feed) -> bool, limit: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let ended = self.feed.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if idle(&self.feed) {
                return true;
            }
            if tokio::time::timeout_at(deadline, ended).await.is_err() {
                return false;
            }
        }
    }

    /// Commits positions that changed, of one queue or of all.
    pub(super) async fn commit(&self, only: Option<HeldId>) -> Result<()> {
        self.commit_these(self.feed.to_commit(only)).await
    }

    /// Commits these positions.
    pub(super) async fn commit_these(&self, commits: Vec<Commit>) -> Result<()> {
        if let Some(local) = &self.settings.local {
            if !commits.is_empty() {
                local.save(&commits).await?;
            }
            commits.iter().for_each(|commit| self.feed.committed(commit.id, commit.at));
            return Ok(());
        }
        let mut by_shard: HashMap<ShardKey, Vec<Commit>> = HashMap::new();
        for commit in commits {
            let Place { broker, shard, .. } = &commit.holding.place;
            by_shard.entry((Arc::clone(broker), *shard)).or_default().push(commit);
        }
        let shards: Vec<Vec<Commit>> = by_shard.into_values().collect();
        let committing = shards.iter().map(|commits| self.asker.commit(self.member, commits));
        let results = futures_util::future::join_all(committing).await;
        let mut failed = Ok(());
        for (commits, result) in shards.iter().zip(results) {
            match result {
                Ok(statuses) => {
                    for (commit, status) in commits.iter().zip(statuses) {
                        if let Err(error) = self.take_commit_result(commit, status) {
                            failed = Err(error);
                        }
                    }
                }
                Err(error) => {
                    let broker = commits.first().map_or("", |commit| &commit.holding.place.broker);
                    failed = Err(error.on(format!("{} at {broker}", self.settings.group)));
                }
            }
        }
        failed
    }

    fn take_commit_result(&self, commit: &Commit, status: Status) -> Result<()> {
        let queue = &commit.holding.queue;
        match status {
            Status::Ok => {
                self.feed.committed(commit.id, commit.at);
                return Ok(());
            }
            Status::Fenced | Status::UnknownMember => self.fenced(commit.id, &commit.holding.place),
            _ => {}
        }
        Err(Error::of_status("commit", status).on(queue.to_string()))
    }

    /// A queue belongs to somebody else now.
    pub(super) fn fenced(&self, id: HeldId, place: &Place) {
        tracing::info!(broker = %place.broker, "a queue was fenced; it is dropped");
        self.feed.drop_held(id);
        self.beat(&place.broker);
    }

    pub(super) fn beat(&self, broker: &str) {
        let sessions = self.sessions.lock().expect("nothing panics with it locked");
        if let Some(session) = sessions.get(broker) {
            session.beat.notify_one();
        }
    }

    /// Commits now and then until the consumer is to stop; then ends it.
    pub(super) async fn supervise(self: Arc<Self>, mut workers: JoinSet<()>) {
        let period = self.settings.commit_interval.unwrap_or(Duration::from_secs(3600));
        let mut commit = tokio::time::interval(period.max(Duration::from_millis(1)));
        commit.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.wait_stopping() => break,
                _ = commit.tick() => {
                    if self.settings.commit_interval.is_some()
                        && let Err(error) = self.commit(None).await
                    {
                        tracing::warn!(%error, "cannot commit");
                    }
                }
            }
        }
        let limit = match *self.phase.borrow() {
            Phase::Stopping(limit) => limit,
            _ => DROP_LIMIT,
        };
        let ended = self.end(limit, &mut workers).await;
        self.phase.send_replace(Phase::Stopped(ended));
    }

    /// Lets listener calls end, commits, leaves the group.
    async fn end(&self, limit: Duration, workers: &mut JoinSet<()>) -> Result<()> {
        let deadline = Instant::now() + limit;
        self.feed.stop();
        self.feed.drop_delayed();
        let idle = self.wait_idle(Feed::is_all_idle, limit).await;
        workers.shutdown().await;
        // Heartbeats go on until here: what is still processed stays ours.
        let mut tasks = {
            let mut tasks = self.tasks.lock().expect("nothing panics with it locked");
            std::mem::take(&mut *tasks)
        };
        tasks.shutdown().await;
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let until = Instant::now() + left;
        // An answer that does not come must not keep it from ending, either.
        let ended = tokio::time::timeout(left + COMMIT_PAUSE, self.commit_and_leave(until)).await;
        if let Some(local) = &self.settings.local {
            local.close();
        }
        let group = self.settings.group.as_str();
        match ended {
            Ok(committed) if idle => committed,
            Ok(_) => {
                let text = format!("listener calls did not end within {limit:?}");
                Err(Error::new(ErrorKind::Timeout, "close consumer", text).on(group))
            }
            Err(cause) => {
                let text = format!("offsets could not be committed within {limit:?}");
                Err(Error::new(ErrorKind::Timeout, "close consumer", text).on(group).because(cause))
            }
        }
    }

    /// Commits, then leaves the group: at each broker by itself, so that one that is away delays only its own queues.
    async fn commit_and_leave(&self, until: Instant) -> Result<()> {
        if self.settings.local.is_some() && self.settings.commit_on_close {
            self.commit(None).await?;
        }
        let sessions = {
            let mut sessions = self.sessions.lock().expect("nothing panics with it locked");
            std::mem::take(&mut *sessions)
        };
        // Queues that were assigned by hand are held without a session.
        let mut brokers: BTreeSet<Arc<str>> = sessions.keys().map(Arc::clone).collect();
        let holding = self.feed.to_commit(None).into_iter();
        brokers.extend(holding.map(|commit| commit.holding.place.broker));
        let ending = brokers.iter().map(async |broker| {
            let committed = match self.settings.commit_on_close {
                true => self.commit_until_done(broker, until).await,
                false => Ok(()),
            };
            if let Some(session) = sessions.get(broker) {
                self.leave(session).await;
            }
            committed
        });
        futures_util::future::join_all(ending).await.into_iter().collect()
    }

    /// Commits, and again where that can help: a connection may just have ended, a broker may be starting again.
    async fn commit_until_done(&self, broker: &str, until: Instant) -> Result<()> {
        loop {
            let mut commits = self.feed.to_commit(None);
            commits.retain(|commit| &*commit.holding.place.broker == broker);
            let Err(error) = self.commit_these(commits).await else { return Ok(()) };
            let pause = error.retry_after().unwrap_or(COMMIT_PAUSE);
            if !error.is_retryable() || Instant::now() + pause >= until {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn leave(&self, session: &Session) {
        let group = self.settings.group.as_str();
        let shard = placement::shard_of_group(group, session.shards);
        let request = Request::new(Opcode::GroupLeave, "leave group").shard(shard);
        let left = async {
            let connection = self.asker.control(&session.address).await?;
            connection
                .call(request, self.asker.limit, |fbb| {
                    let group = Some(fbb.create_string(group));
                    let args = GroupLeaveArgs { group, member: Some(&self.member) };
                    GroupLeave::create(fbb, &args)
                })
                .await
        };
        if let Err(error) = left.await {
            // The session timeout does it then.
            tracing::debug!(%error, "cannot leave the group");
        }
    }

    /// Ends the consumer and waits for that.
    pub(super) async fn close(&self, limit: Duration) -> Result<()> {
        self.stop(limit);
        let mut phase = self.phase.subscribe();
        let stopped = phase.wait_for(|phase| matches!(phase, Phase::Stopped(_))).await;
        match stopped.as_deref() {
            Ok(Phase::Stopped(result)) => result.clone(),
            _ => Err(Error::closed("close consumer")),
        }
    }

    pub(super) fn stop(&self, limit: Duration) {
        self.phase.send_if_modified(|phase| {
            let running = matches!(phase, Phase::Running);
            if running {
                *phase = Phase::Stopping(limit);
            }
            running
        });
    }
}

impl Closing for Reader {
    fn close_within(
        self: Arc<Self>,
        limit: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> {
        Box::pin(async move { self.close(limit).await })
    }
}
