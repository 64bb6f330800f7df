//! One shard: its log, queues, groups, and what waits for them.
//!
//! [`Shard::handle`] is the only way in. Requests are taken apart in the files beside this one, a subject
//! each; what they append is answered when the log says that it is as durable as it must be.

mod admin;
mod fetch;
mod group;
mod group_admin;
mod lag;
mod locate;
mod lookup;
mod mending;
mod offsets;
mod open;
mod pop;
mod produce;
mod punching;
mod registry;
mod replay;
mod retention;
mod retry;
mod sealing;
mod snapshot;
mod timers;
mod types;
mod waiting;

pub use lag::GroupLag;
pub use open::{OpenError, check_segment};

use crate::config::{Figures, ShardConfig};
use crate::consume::group::{GroupState, Heartbeat};
use crate::consume::offsets::Offsets;
use crate::index::{Entry, PageCache};
use crate::log::Log;
use crate::log::recovery::Fenced;
use crate::peer::PeerMessage;
use crate::pop::Pops;
use crate::queue::Queues;
use crate::registry::Registry;
use crate::route::TopicRoutes;
use crate::seam::{Action, ConnectionId, DiskError, Input, Memory, Now, Outbox};
use fetch::{Fetches, Windows};
use lag::Lags;
use lookup::Lookups;
use mending::Mending;
use pop::Poppers;
use punching::Punching;
use registry::HomeState;
use retention::Retention;
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::connection::RefusalArgs;
use ringmq_schema::error::Status;
use ringmq_schema::frame::Frame;
use ringmq_schema::opcode::Opcode;
use sealing::Sealing;
use snapshot::Snapshots;
use std::collections::{BTreeMap, BTreeSet};
use timers::Timers;
use waiting::Waiting;

/// See the module.
pub struct Shard<M: Memory> {
    config: ShardConfig,
    log: Log<M>,
    queues: Queues,
    registry: Registry,
    home: Option<HomeState>,
    offsets: Offsets,
    /// What groups have popped, and who waits for more.
    pops: Pops,
    poppers: Poppers<M::Block>,
    /// Groups whose shard this is, by id.
    groups: BTreeMap<u32, GroupState>,
    /// Heartbeats for groups that are being made.
    unborn: Vec<(u64, Heartbeat)>,
    routes: BTreeMap<String, TopicRoutes>,
    groups_looked_at_us: u64,
    groups_to_reconcile: BTreeSet<u32>,
    fetches: Fetches,
    windows: Windows<M::Block>,
    lookups: Lookups<M::Block>,
    waiting: Waiting,
    snapshots: Snapshots,
    sealing: Sealing,
    /// Pages of indexes that were asked for of late.
    index_pages: PageCache,
    scratch: Vec<Entry>,
    retention: Retention,
    lags: Lags,
    punching: Punching,
    mending: Mending,
    timers: Timers,
    /// Time of the step under way.
    last_step: Now,
    frames: FrameBuilder,
    figures: Figures,
    damage: Vec<Fenced>,
    opened: Now,
    epoch_is_durable: bool,
    disk_has_room: bool,
    /// A consumer waits for what lies below this position to be durable.
    sync_wanted: u64,
    stopping: bool,
    stopped: bool,
}

impl<M: Memory> std::fmt::Debug for Shard<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("shard", &self.config.shard)
            .field("flushed", &self.log.flushed())
            .finish_non_exhaustive()
    }
}

/// Where an answer goes.
#[derive(Debug, Clone, Copy)]
struct Asker {
    connection: ConnectionId,
    correlation: u64,
    opcode: u16,
    one_way: bool,
}

/// Why a request is refused.
#[derive(Debug)]
struct Refuse {
    status: Status,
    message: String,
    retry_after_ms: u32,
    shard: u16,
}

fn refuse(status: Status, message: impl Into<String>) -> Refuse {
    let shard = ringmq_schema::frame::ANY_SHARD;
    Refuse { status, message: message.into(), retry_after_ms: 0, shard }
}

type Handled = Result<(), Refuse>;

impl<M: Memory> Shard<M> {
    /// One step: takes `input` at `now`, leaves in `out` what is to be done.
    pub fn handle(&mut self, now: Now, input: Input<'_, M::Block>, out: &mut Outbox<M::Block>) {
        self.last_step = now;
        match input {
            Input::Request { connection, frame } => self.request(now, connection, frame, out),
            Input::TurnEnd => {
                self.pop_ahead(now, out);
                self.log.pump(now, out);
                self.settle(now, out);
            }
            Input::Written { write, result: Ok(()) } => {
                self.log.written_unit(write, now);
                self.log.pump(now, out);
                self.settle(now, out);
            }
            Input::Synced { sync, result: Ok(()) } => {
                self.log.synced(sync, now);
                self.settle(now, out);
            }
            Input::SegmentReady { base, result: Ok(()) } => {
                self.log.segment_ready(base, out);
                self.log.pump(now, out);
                self.settle(now, out);
            }
            Input::SegmentReady { base, result: Err(error) } => {
                self.log.segment_failed(base, error.to_string(), now);
            }
            Input::Written { result: Err(error), .. }
            | Input::Synced { result: Err(error), .. }
            | Input::DiskFailed { error } => self.fail(&error, now, out),
            Input::Read { read, result } | Input::IndexRead { read, result }
                if self.lookups.owns(read) =>
            {
                self.lookup_read(read, result, out);
            }
            Input::Read { read, result } | Input::IndexRead { read, result }
                if self.timers.owns(read) =>
            {
                self.timer_read(read, result, now, out);
            }
            Input::Read { read, result } if Self::is_mending_read(read) => {
                self.mending_read(read, result, now, out);
            }
            Input::Read { read, result } => self.fetch_read(read, result, now, out),
            Input::IndexWritten { base, result } => {
                self.index_written(base, result, now);
                self.settle(now, out);
            }
            Input::IndexRead { read, result } if Self::is_punching_read(read) => {
                self.punching_read(read, result, out);
            }
            Input::IndexRead { read, result } => self.index_read(read, result, now, out),
            Input::Punched { .. } => self.punched(),
            Input::Peer { from, message } => {
                self.peer(from, message, now, out);
                self.log.pump(now, out);
                self.settle(now, out);
            }
            Input::Routes(routes) => self.routes_changed(routes, now, out),
            Input::DiskHasRoom(room) => self.disk_has_room = room,
            Input::ConnectionClosed { connection } => self.connection_closed(connection, now),
            Input::Tick => {
                self.tick(now, out);
                self.log.pump(now, out);
                self.settle(now, out);
            }
            Input::Stop => self.stop(now, out),
        }
    }

    /// When `Tick` is due at the latest, in `Now::mono_us`; a time that has passed: as soon as may be.
    pub fn next_wake(&self) -> Option<u64> {
        let log = self.log.next_wake();
        let fetches = self.fetches.next_due();
        let groups = self.groups_wake();
        let lookups = self.lookups.next_wake();
        let sealing = self.sealing.next_wake();
        let snapshot = self.snapshots.is_under_way().then_some(0);
        let mending = self.mending.next_wake();
        let timers = self.timers.next_wake();
        let pops = self.poppers.next_wake(self.last_step, self.pops.now_ms(self.last_step));
        let own = sealing
            .into_iter()
            .chain(pops)
            .chain(mending)
            .chain(snapshot)
            .chain(lookups)
            .chain(timers);
        log.into_iter().chain(fetches).chain(groups).chain(own).min()
    }

    /// Whether the epoch has begun durably and (home shard) the registry agrees on all shards. A broker
    /// is ready when all its shards are; a shard serves producers and consumers as soon as its own
    /// epoch has begun.
    pub fn is_ready(&self) -> bool {
        self.epoch_is_durable
            && !self.stopping
            && self.log.failed().is_none()
            && self.home.as_ref().is_none_or(HomeState::agrees)
    }

    /// Whether more than `backlog_bytes` wait for the device: the runtime stops reading from
    /// connections until this is false again.
    pub fn is_congested(&self) -> bool {
        // A failed shard writes nothing more, but must be read: to be refused, and for what is durable.
        self.log.failed().is_none() && self.log.backlog_bytes() > self.config.backlog_bytes
    }

    /// Requests and steps that wait for the disk.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Why the shard stopped writing, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.log.failed()
    }

    /// Its figures.
    pub fn figures(&self) -> Figures {
        let log = self.log.figures;
        Figures {
            epoch: self.log.epoch(),
            appended: self.log.appended(),
            written: self.log.written(),
            flushed: self.log.flushed(),
            units: log.units,
            unit_bytes: log.unit_bytes,
            padding_bytes: log.padding_bytes,
            syncs: log.syncs,
            queues: self.queues.len() as u64,
            topics: self.registry.topics().len() as u64,
            active_groups: self.groups.values().filter(|g| !g.members.is_empty()).count() as u64,
            waiting_fetches: self.fetches.len() as u64,
            tail_bytes: self.log.tail.bytes() as u64,
            timers_pending: self.timers.pending(),
            waiting_pops: self.poppers.len() as u64,
            popped_in_flight: self.pops.in_flight() as u64,
            ..self.figures
        }
    }

    /// What of its log was found damaged when it was opened.
    pub fn damage(&self) -> &[Fenced] {
        &self.damage
    }

    /// Its settings.
    pub fn config(&self) -> &ShardConfig {
        &self.config
    }

    fn request(
        &mut self,
        now: Now,
        connection: ConnectionId,
        frame: Frame<'_>,
        out: &mut Outbox<M::Block>,
    ) {
        let header = frame.header;
        let asker = Asker {
            connection,
            correlation: header.correlation.get(),
            opcode: header.opcode.get(),
            one_way: header.is_one_way(),
        };
        if let Err(refused) = self.dispatch(now, asker, frame, out) {
            self.refuse(asker, &refused, out);
        }
    }

    fn dispatch(
        &mut self,
        now: Now,
        asker: Asker,
        frame: Frame<'_>,
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let Some(opcode) = frame.header.opcode() else {
            let text = format!("there is no opcode {}", asker.opcode);
            return Err(refuse(Status::UnknownOpcode, text));
        };
        if self.stopping || !self.epoch_is_durable && self.log.failed().is_none() {
            let what = if self.stopping { "stopping" } else { "starting" };
            let text = format!("shard {} is {what}", self.config.shard);
            return Err(Refuse { retry_after_ms: 100, ..refuse(Status::NotReady, text) });
        }
        if asker.one_way && opcode != Opcode::Produce {
            // Nobody counts what nobody waits for: only messages may be sent so.
            let text = format!("{} is not sent one-way", opcode.name());
            return Err(refuse(Status::BadRequest, text));
        }
        match opcode {
            Opcode::Produce => self.produce(now, asker, frame, out),
            Opcode::Recall => self.recall(now, asker, frame.table, out),
            Opcode::ListTimers => self.list_timers(now, asker, frame.table, out),
            Opcode::Fetch => self.fetch(now, asker, frame.table, out),
            Opcode::Pop => self.pop(now, asker, frame.table, out),
            Opcode::Ack => self.ack(now, asker, frame.table, out),
            Opcode::ChangeInvisible => self.change_invisible(now, asker, frame.table, out),
            Opcode::CommitOffsets => self.commit_offsets(now, asker, frame.table, out),
            Opcode::QueryOffsets => self.query_offsets(asker, frame.table, out),
            Opcode::SearchOffsets => self.search_offsets(asker, frame.table, out),
            Opcode::GetMessage => self.get_message(asker, frame.table, out),
            Opcode::FindMessages => self.find_messages(asker, frame.table, out),
            Opcode::QueryLag => self.query_lag(now, asker, frame.table, out),
            Opcode::CountMessages => self.count_messages(now, asker, frame.table, out),
            Opcode::ResetOffsets => self.reset_offsets(now, asker, frame.table, out),
            Opcode::GroupHeartbeat => self.group_heartbeat(now, asker, frame.table, out),
            Opcode::GroupLeave => self.group_leave(now, asker, frame.table, out),
            Opcode::RetryLater => self.retry_later(now, asker, frame, out),
            Opcode::DescribeGroup => self.describe_group(now, asker, frame.table, out),
            Opcode::CreateTopic => self.create_topic(now, asker, frame.table, out),
            Opcode::AlterTopic => self.alter_topic(now, asker, frame.table, out),
            Opcode::DeleteTopic => self.delete_topic(now, asker, frame.table, out),
            Opcode::DescribeTopic => self.describe_topic(asker, frame.table, out),
            Opcode::ListTopics => self.list_topics(asker, frame.table, out),
            Opcode::QueryQueues => self.query_queues(asker, frame.table, out),
            Opcode::CreateGroup => self.create_group(now, asker, frame.table, out),
            Opcode::AlterGroup => self.alter_group(now, asker, frame.table, out),
            Opcode::DeleteGroup => self.delete_group(now, asker, frame.table, out),
            Opcode::ListGroups => self.list_groups(asker, frame.table, out),
            Opcode::QueryShard => self.query_shard(now, asker, out),
            other => {
                let text = format!("{} is not served by this broker", other.name());
                Err(refuse(Status::Unsupported, text))
            }
        }
    }

    fn refuse(&mut self, asker: Asker, refused: &Refuse, out: &mut Outbox<M::Block>) {
        self.figures.refused += 1;
        if asker.one_way {
            return;
        }
        let Refuse { status, message, retry_after_ms, shard } = refused;
        let more = RefusalArgs {
            retry_after_ms: *retry_after_ms,
            shard: *shard,
            ..RefusalArgs::default()
        };
        let start = out.heads.len();
        let Asker { opcode, correlation, .. } = asker;
        self.frames.refuse_with(&mut out.heads, opcode, correlation, *status, message, &more);
        push_answer(asker.connection, start, out);
    }

    /// Sends an answer without a run.
    fn answer<T>(
        &mut self,
        asker: Asker,
        out: &mut Outbox<M::Block>,
        build: impl FnOnce(
            &mut ringmq_schema::flatbuffers::FlatBufferBuilder<'static>,
        ) -> ringmq_schema::flatbuffers::WIPOffset<T>,
    ) {
        if asker.one_way {
            return;
        }
        let start = out.heads.len();
        self.frames.answer(&mut out.heads, asker.opcode, asker.correlation, 0, build);
        push_answer(asker.connection, start, out);
    }

    fn done(&mut self, asker: Asker, out: &mut Outbox<M::Block>) {
        if asker.one_way {
            return;
        }
        let start = out.heads.len();
        self.frames.done(&mut out.heads, asker.opcode, asker.correlation);
        push_answer(asker.connection, start, out);
    }

    /// Whether records of state can be appended now.
    fn check_writing(&self) -> Handled {
        if let Some(reason) = self.log.failed() {
            let text = format!(
                "shard {} of broker {} stopped writing: {reason}. What is durable stays readable; \
                 send to another broker and replace the disk",
                self.config.shard, self.config.broker
            );
            return Err(refuse(Status::ShardFailed, text));
        }
        if self.log.backlog_bytes() > 2 * self.config.backlog_bytes {
            let text = format!(
                "{} bytes wait for the disk, at most {} may",
                self.log.backlog_bytes(),
                2 * self.config.backlog_bytes
            );
            return Err(Refuse { retry_after_ms: 20, ..refuse(Status::Busy, text) });
        }
        Ok(())
    }

    fn peer(&mut self, from: u16, message: PeerMessage, now: Now, out: &mut Outbox<M::Block>) {
        match message {
            PeerMessage::Registry(change) => self.registry_change(change, now, out),
            PeerMessage::RegistryDone { version } => self.registry_done(from, version, now, out),
            PeerMessage::RegistryHeld { version, digest } => {
                self.registry_held(from, version, digest, now, out);
            }
            PeerMessage::RegistryWhole(whole) => self.registry_whole(whole, now, out),
            PeerMessage::EnsureGroup { name } => self.ensure_group(name, now, out),
            PeerMessage::EnsureGroupTopic { group, dead_letters } => {
                self.ensure_group_topic(group, dead_letters, now, out);
            }
            PeerMessage::Assign(ownership) => self.assign(from, ownership, now, out),
            PeerMessage::Assigned { ownership, .. } => self.assigned(&ownership),
            PeerMessage::Owned(ownership) => self.owned(&ownership),
        }
    }

    /// To a shard of this broker; to itself at once.
    fn tell(&mut self, to: u16, message: PeerMessage, now: Now, out: &mut Outbox<M::Block>) {
        if to == self.config.shard {
            self.peer(to, message, now, out);
        } else {
            out.actions.push(Action::Peer { to, message });
        }
    }

    fn connection_closed(&mut self, connection: ConnectionId, now: Now) {
        self.close_fetches(connection);
        self.close_pops(connection);
        self.close_lookups(connection);
        self.close_timer_jobs(connection);
        for group in self.groups.values_mut() {
            group.connection_closed(connection, now.mono_us);
        }
        self.unborn.retain(|(_, heartbeat)| heartbeat.connection != connection);
    }

    fn tick(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        self.expire_fetches(now, out);
        self.tick_pops(now, out);
        self.tick_groups(now, out);
        self.expire_changes(now, out);
        self.expire_produces(now, out);
        self.log.retry_segment(now, out);
        self.log.mark_if_idle(false, now, out);
        self.step_lags(now);
    }

    /// What follows when the log moved on: answers, consumers, syncs, the end.
    fn settle(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        let mut woken = self.fetches.take_woken();
        let queues = &mut self.queues;
        self.log.advance_flushed(|slot, offset| {
            let queue = queues.at_mut(slot);
            queue.visible = offset.min(queue.next).max(queue.visible);
            woken.append(&mut queue.waiting);
        });
        self.answer_waiting(now, out);
        self.reconcile_groups(now, out);
        let appended = self.log.appended();
        self.wake_fetches(woken, now, out);
        if self.log.appended() != appended {
            // Pops were served: no other input need follow that hands their records to the device.
            self.log.pump(now, out);
        }
        self.step_timers(now, out);
        self.step_sealing(now, out);
        self.step_snapshot(now, out);
        self.step_lookups(now, out);
        self.step_retention(now, out);
        self.step_mending(now, out);
        let wanted = self.sync_wanted > self.log.flushed() || self.stopping;
        self.log.sync_if_due(wanted, now, out);
        if self.stopping {
            self.finish_stop(now, out);
        }
    }

    fn stop(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        self.end_fetches(out);
        self.end_pops(None, now, out);
        self.end_lookups(out);
        self.end_timer_jobs(out);
        self.end_heartbeats(out);
        self.finish_snapshot(now, out);
        self.log.pump(now, out);
        self.settle(now, out);
    }

    fn finish_stop(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        let failed = self.log.failed().is_some();
        if !failed {
            self.log.pump(now, out);
            if !self.log.is_quiet()
                || self.log.mark_if_idle(true, now, out)
                || !self.finish_sealing(now, out)
            {
                return;
            }
        }
        if !self.stopped {
            self.stopped = true;
            out.actions.push(Action::Stopped);
        }
    }

    /// A device operation failed: nothing is written any more, everybody who waits is told.
    fn fail(&mut self, error: &DiskError, now: Now, out: &mut Outbox<M::Block>) {
        self.log.fail(error.to_string());
        self.refuse_waiting(out);
        self.end_pops(None, now, out);
        if self.stopping {
            self.finish_stop(now, out);
        }
    }
}

/// An answer whose head is all of `out.heads` from `start` on.
fn push_answer<B>(connection: ConnectionId, start: usize, out: &mut Outbox<B>) {
    let slices = out.slices.len()..out.slices.len();
    out.actions.push(Action::Answer { connection, head: start..out.heads.len(), slices });
}

/// Verifies a request's table.
fn read<'a, T>(table: &'a [u8]) -> Result<T::Inner, Refuse>
where
    T: ringmq_schema::flatbuffers::Follow<'a> + ringmq_schema::flatbuffers::Verifiable + 'a,
{
    ringmq_schema::frame::read_table::<T>(table).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        refuse(Status::BadRequest, format!("the request's table does not verify: {first}"))
    })
}
