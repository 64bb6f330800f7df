//! The course of a run: lives and crashes, then a life in which everything must get through.

use super::events::Event;
use super::recovery::Files;
use super::{World, trace};
use crate::sim::client::{Client, Phase};
use crate::sim::disk::CrashKind;
use crate::sim::memory::SimMemory;
use crate::sim::plan::{Faults, Life};
use crate::sim::{Summary, Verdict, violation};
use ringmq_core::Shard;
use ringmq_core::seam::{Input, Outbox};

/// What must get through in the last life does so in this time.
const SETTLE_US: u64 = 60_000_000;
/// Long polls end and shards stop in this time.
const QUIET_US: u64 = 20_000_000;

impl World {
    /// The whole run.
    pub fn run(mut self) -> Verdict<Summary> {
        trace!(self, "{:#?}", self.plan);
        for client in 0..self.clients.len() {
            self.events.at(self.clock.mono_us() + client as u64, Event::Wake { client });
        }
        for life in self.plan.lives.clone() {
            let (end, length_us) = (life.end, life.pace_us * life.steps);
            self.begin(life)?;
            self.until(self.clock.mono_us() + length_us, |_| false)?;
            self.crash(end);
        }
        // Everything that was delayed or sent back is due in the end.
        let wall_ms = self.clock.now().wall_ms;
        let left_ms = self.oracle.last_due_ms().saturating_sub(wall_ms);
        if left_ms > 0 {
            self.clock.jump(left_ms);
            self.oracle.pops.jumped_between();
        }
        self.begin(self.calm())?;
        self.settle()?;
        self.oracle.all_wanted_came()?;
        // Time for a flush.
        self.until(self.clock.mono_us() + 1_000_000, |_| false)?;
        let kind = self.end()?;
        self.crash(kind);
        self.begin(self.calm())?;
        let end_us = self.clock.mono_us() + SETTLE_US;
        if !self.until(end_us, |world| world.auditor().is_done())? {
            return violation(format!(
                "the last audit stands still: {}",
                self.auditor().describe()
            ));
        }
        self.oracle.all_delivered()?;
        Ok(self.oracle.summary)
    }

    /// A life in which nothing fails.
    fn calm(&self) -> Life {
        Life {
            pace_us: 10_000,
            steps: 0,
            crash_at_action: None,
            end: CrashKind::Kill,
            recovery_calls: None,
            between: self.plan.lives[0].between,
            faults: Faults::default(),
        }
    }

    fn begin(&mut self, life: Life) -> Verdict {
        let mut calls = life.recovery_calls;
        self.living = life;
        loop {
            self.life += 1;
            self.crashing = false;
            if self.open(calls)? {
                break;
            }
            let kind = *self.random.pick(&[CrashKind::Kill, CrashKind::PowerLoss]);
            self.crash(kind);
            calls = None;
        }
        self.oracle.groups.recovered();
        self.oracle.pops.recovered();
        self.up = true;
        for shard in 0..self.plan.shards {
            self.carry_out_all(shard)?;
            // Opening is an input as well: what it left wants a tick.
            self.feed(shard, Input::Tick)?;
        }
        Ok(())
    }

    /// Opens every shard; false when the machine failed meanwhile.
    fn open(&mut self, mut calls: Option<u64>) -> Verdict<bool> {
        let now = self.clock.now();
        trace!(self, "life {} begins", self.life);
        for shard in 0..self.plan.shards {
            self.spoil(shard);
        }
        for (number, slot) in self.shards.iter_mut().enumerate() {
            let mut config = self.plan.config.clone();
            config.shard = number as u16;
            config.log_id = slot.log_id;
            self.planted.restarts(&mut slot.disk);
            let mut files = Files::new(&mut slot.disk, calls);
            match Shard::open(config, SimMemory, &mut files, now, &mut slot.out) {
                Ok(core) => slot.core = Some(core),
                Err(_) if files.failed => return Ok(false),
                Err(error) => return violation(format!("shard {number} does not open: {error}")),
            }
            calls = files.calls_left();
            if let Some(wrong) = &files.wrong {
                return violation(wrong.clone());
            }
            let served = |topic: &&u32| self.oracle.topics.must_be_indexed(**topic);
            if let Some(topic) = files.left_out.iter().find(served) {
                return violation(format!("shard {number}: an index leaves out topic {topic}"));
            }
        }
        Ok(true)
    }

    fn crash(&mut self, kind: CrashKind) {
        trace!(self, "life {} ends: {kind:?}", self.life);
        let faults = self.living.faults;
        let flushes = faults.write == 0 && faults.sync == 0 && faults.slow == 0 && faults.make == 0;
        let late_us = 5_000 + 5 * self.device_us_max();
        let interval_us = flushes.then_some(self.plan.config.async_flush_ms * 1000 + late_us);
        self.oracle.crashed(kind, self.clock.mono_us(), interval_us);
        self.up = false;
        for slot in &mut self.shards {
            slot.core = None;
            slot.out = Outbox::default();
            slot.disk.crash(kind);
            slot.early.clear();
            slot.turn = false;
            slot.tick_us = None;
            slot.faulted = false;
            slot.poisoned = false;
            slot.stopped = false;
        }
        self.pending.clear();
        self.connections.clear();
        self.links.cut();
        self.peers.clear();
        self.topics.clear();
        self.watched.clear();
        self.clients.iter_mut().for_each(Client::cut);
        self.clock.advance(self.clock.mono_us() + self.random.below(3_000_000));
    }

    /// Everything must get through.
    fn settle(&mut self) -> Verdict {
        self.phase = Phase::Settling;
        let end_us = self.clock.mono_us() + SETTLE_US;
        if self.until(end_us, |world| world.unsettled().is_none())? {
            return Ok(());
        }
        violation(format!("it does not settle: {}", self.unsettled().unwrap_or_default()))
    }

    /// What has not got through yet.
    fn unsettled(&self) -> Option<String> {
        let auditor = self.auditor();
        let live = self.oracle.topics.live();
        let queues: Vec<_> = live
            .flat_map(|(_, id, topic)| (0..topic.queues).map(move |queue| (id, queue)))
            .collect();
        let lasting = self.oracle.topics.live().filter(|(_, _, t)| t.name.starts_with("lasting"));
        if lasting.count() < self.plan.topics {
            return Some(format!("topics are missing: {:?}", self.oracle.topics.all()));
        }
        if !auditor.is_done() || !auditor.has_probed(&queues) {
            return Some(format!("the auditor: {}", auditor.describe()));
        }
        for (shard, slot) in self.shards.iter().enumerate() {
            let pending = slot.core.as_ref().map_or(0, |core| core.figures().timers_pending);
            if pending > 0 {
                return Some(format!("{pending} delayed messages wait on shard {shard}"));
            }
        }
        let lasts = |topic: u32| {
            let mut live = self.oracle.topics.live();
            live.any(|(_, id, t)| id == topic && t.name.starts_with("lasting"))
        };
        for client in &self.clients {
            if let Client::Popper(popper) = client {
                for queue in queues.iter().filter(|(topic, _)| lasts(*topic)) {
                    let ((group, done), end) =
                        (popper.done(*queue), self.oracle.messages.end(*queue));
                    if group == 0 || done < end {
                        return Some(format!(
                            "group {group} has popped {done} of {end} of {queue:?}: {popper:?}"
                        ));
                    }
                }
            }
            let Client::Member(member) = client else { continue };
            let (name, group) = member.group();
            for (_, id, topic) in self.oracle.topics.live() {
                let queues = (0..topic.queues).map(|queue| (id, queue));
                for queue in queues.filter(|_| topic.name.starts_with("lasting")) {
                    let (floor, end) =
                        (self.oracle.groups.floor(group, queue), self.oracle.messages.end(queue));
                    if group == 0 || floor.is_none_or(|floor| floor < end) {
                        return Some(format!(
                            "{name} ({group}) has committed {floor:?} of {end} on queue {queue:?}: {member:?}"
                        ));
                    }
                }
            }
        }
        self.oracle.retries.missing()
    }

    /// Nothing new is asked; every request has its answer; then the end, in order or not.
    fn end(&mut self) -> Verdict<CrashKind> {
        self.phase = Phase::Quiet;
        let end_us = self.clock.mono_us() + QUIET_US;
        if !self.until(end_us, |world| world.pending.is_empty())? {
            let some: Vec<_> = self.pending.iter().take(3).collect();
            let count = self.pending.len();
            return violation(format!("{count} requests have no answer, among them {some:?}"));
        }
        if !self.plan.stops {
            return Ok(*self.random.pick(&[CrashKind::Kill, CrashKind::PowerLoss]));
        }
        for shard in 0..self.plan.shards {
            self.feed(shard, Input::Stop)?;
        }
        let end_us = self.clock.mono_us() + QUIET_US;
        if !self.until(end_us, |world| world.shards.iter().all(|slot| slot.stopped))? {
            return violation("a shard does not stop");
        }
        self.oracle.messages.stopped();
        Ok(CrashKind::PowerLoss)
    }
}
