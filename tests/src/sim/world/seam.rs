//! The seam: inputs into a shard, and the actions that it leaves.

use super::events::Event;
use super::{World, trace};
use crate::sim::disk::Op;
use crate::sim::memory::SimBlock;
use crate::sim::talk::parse;
use crate::sim::{Verdict, violation};
use ringmq_core::peer::PeerMessage;
use ringmq_core::route::{BrokerRoute, TopicChange, TopicRoutes};
use ringmq_core::seam::{Action, Block, Input, Slice};
use ringmq_schema::frame;
use std::rc::Rc;

impl World {
    /// One step of a shard, and what follows from it.
    pub(super) fn feed(&mut self, shard: u16, input: Input<'_, SimBlock>) -> Verdict {
        let mut now = self.clock.now();
        self.oracle.messages.wall_reached(now.wall_ms);
        now.wall_ms += self.planted.hastens();
        let gathers = self.plan.batched && matches!(input, Input::Request { .. });
        let slot = &mut self.shards[usize::from(shard)];
        let Some(core) = slot.core.as_mut() else { return Ok(()) };
        core.handle(now, input, &mut slot.out);
        if !slot.faulted
            && let Some(reason) = core.failure()
        {
            return violation(format!("shard {shard} stopped writing on its own: {reason}"));
        }
        if !gathers {
            self.carry_out_all(shard)?;
        }
        self.arm(shard);
        Ok(())
    }

    fn arm(&mut self, shard: u16) {
        let now_us = self.clock.mono_us();
        let slot = &mut self.shards[usize::from(shard)];
        let Some(core) = &slot.core else { return };
        let wanted = core.next_wake().unwrap_or(u64::MAX).min(now_us + 1_000_000);
        // Late by up to a millisecond, as a timer is; never at once, or time would stand still.
        let late_us = *self.random.pick(&[20, 20, 20, 1000]);
        let at_us = wanted.max(now_us + 1) + self.random.below(late_us);
        if slot.tick_us.is_none_or(|armed| wanted < armed.saturating_sub(1000)) {
            slot.tick_us = Some(at_us);
            self.events.at(at_us, Event::Tick { life: self.life, shard, at_us });
        }
    }

    /// Carries out a shard's outbox. A crash may come before any action.
    pub(super) fn carry_out_all(&mut self, shard: u16) -> Verdict {
        let slot = &mut self.shards[usize::from(shard)];
        let mut out = std::mem::take(&mut slot.out);
        for action in out.actions.drain(..) {
            if let Some(left) = &mut self.living.crash_at_action {
                if *left == 0 {
                    trace!(self, "the crash comes before {action:.100?}");
                    self.crashing = true;
                    break;
                }
                *left -= 1;
            }
            self.carry_out(shard, action, &out.heads, &out.slices)?;
        }
        out.clear();
        self.shards[usize::from(shard)].out = out;
        Ok(())
    }

    fn carry_out(
        &mut self,
        shard: u16,
        action: Action<SimBlock>,
        heads: &[u8],
        slices: &[Slice<SimBlock>],
    ) -> Verdict {
        match action {
            Action::Write { write, position, block, durable } => {
                if self.shards[usize::from(shard)].poisoned {
                    return violation(format!("shard {shard} writes after a failed write or sync"));
                }
                self.start(shard, Op::Write { write, position, block, durable, covers: 0 })
            }
            Action::Sync { sync, from, to } => {
                self.start(shard, Op::Sync { sync, from, to, covers: 0 })
            }
            Action::MakeSegment { base, bytes } => self.start(shard, Op::Make { base, bytes }),
            Action::Read { read, position, bytes } => {
                self.start(shard, Op::Read { read, position, bytes })
            }
            Action::WriteIndex { rows } => self.start(shard, Op::WriteIndex { rows }),
            Action::ReadIndex { read, base, at, bytes } => {
                self.start(shard, Op::ReadIndex { read, base, at, bytes })
            }
            Action::Retire { base } => self.retire(shard, base),
            Action::Punch { position, bytes } => self.punch(shard, position, bytes),
            Action::Transfer { connection, head, position, bytes } => {
                let head = heads[head].to_vec();
                self.transfer(shard, Op::Transfer { connection, head, position, bytes })
            }
            Action::Answer { connection, head, slices: of } => {
                let mut bytes = heads[head].to_vec();
                for slice in &slices[of] {
                    let range = slice.range.start as usize..slice.range.end as usize;
                    bytes.extend_from_slice(&slice.block.bytes()[range]);
                }
                self.answered(shard, connection, &bytes)
            }
            Action::Peer { to, message } => {
                self.tell_peer(shard, to, message);
                Ok(())
            }
            Action::Topic(change) => self.topic_changed(shard, change),
            Action::WatchRoute { topic } => {
                self.tell_routes(shard, &topic);
                self.watched.insert((shard, topic));
                Ok(())
            }
            Action::Stopped => {
                trace!(self, "shard {shard} has stopped");
                self.shards[usize::from(shard)].stopped = true;
                Ok(())
            }
        }
    }

    pub(super) fn start(&mut self, shard: u16, mut op: Op) -> Verdict {
        let early = self.planted.starts(&mut op);
        let mut takes_us = self.device_us(&op);
        if let (true, Op::Write { write, .. }) = (early, &op) {
            let (life, write) = (self.life, *write);
            self.events.at(self.clock.mono_us() + 1, Event::Reported { life, shard, write });
            takes_us *= 20;
        }
        trace!(self, "shard {shard} starts {}, takes {takes_us} µs", describe(&op));
        if matches!(op, Op::Make { .. }) {
            self.oracle.summary.segments += 1;
        }
        let slot = &mut self.shards[usize::from(shard)];
        let number = slot.disk.start(op)?;
        if early {
            slot.early.insert(number);
        }
        let at_us = self.clock.mono_us() + takes_us;
        self.events.at(at_us, Event::DiskDone { life: self.life, shard, op: number });
        Ok(())
    }

    fn device_us(&mut self, op: &Op) -> u64 {
        let factor = match op {
            Op::Write { durable: false, .. } | Op::Read { .. } | Op::ReadIndex { .. } => 1,
            Op::Write { .. } | Op::Sync { .. } | Op::Transfer { .. } => 3,
            Op::Make { .. } | Op::Retire { .. } | Op::Punch { .. } => 10,
            Op::WriteIndex { .. } => 20,
        };
        let slow = self.living.faults.slow;
        let slow = slow > 0 && self.random.once_in(slow);
        let tail = if self.random.once_in(50) { 10 } else { 1 };
        let base = self.plan.device_us * factor * tail * if slow { 100 } else { 1 };
        self.random.between(base / 2 + 1, base * 2)
    }

    /// Longest time of an operation that is not slowed down by a fault.
    pub(super) fn device_us_max(&self) -> u64 {
        self.plan.device_us * 10 * 10 * 2
    }

    pub(super) fn disk_done(&mut self, shard: u16, number: u64) -> Verdict {
        let faults = self.living.faults;
        let slot = &mut self.shards[usize::from(shard)];
        if slot.disk.must_wait(number) {
            let at_us = self.clock.mono_us() + self.random.between(1, self.plan.device_us);
            self.events.at(at_us, Event::DiskDone { life: self.life, shard, op: number });
            return Ok(());
        }
        let op = slot.disk.op(number);
        let one_in = match op {
            Op::Write { .. } => faults.write,
            Op::Sync { .. } => faults.sync,
            Op::Make { .. } => faults.make,
            Op::Read { .. } | Op::ReadIndex { .. } | Op::Transfer { .. } => faults.read,
            Op::WriteIndex { .. } | Op::Punch { .. } => faults.beside,
            Op::Retire { .. } => 0,
        };
        if self.planted.misdirects()
            && let Op::Write { position, block, .. } = op
        {
            let (at, bytes) = (*position + 4096, block.bytes().len() as u64);
            if slot.disk.has(at, bytes)
                && let Op::Write { position, .. } = slot.disk.op(number)
            {
                *position = at;
            }
        }
        let early = slot.early.remove(&number);
        if !early && one_in > 0 && self.random.once_in(one_in) {
            return self.disk_failed(shard, number);
        }
        if self.planted.skips(slot.disk.op(number)) {
            let op = slot.disk.skip(number);
            return self.report(shard, op, None);
        }
        let (op, read) = slot.disk.finish(number);
        trace!(self, "shard {shard} has done {}", describe(&op));
        if early {
            return Ok(());
        }
        self.report(shard, op, read)
    }

    fn report(&mut self, shard: u16, op: Op, read: Option<Vec<u8>>) -> Verdict {
        match op {
            Op::Write { write, .. } => self.feed(shard, Input::Written { write, result: Ok(()) }),
            Op::Sync { sync, .. } => self.feed(shard, Input::Synced { sync, result: Ok(()) }),
            Op::Make { base, .. } => self.feed(shard, Input::SegmentReady { base, result: Ok(()) }),
            Op::Read { read: number, position, .. } => {
                let mut bytes = read.expect("reads bring bytes");
                let slot = &self.shards[usize::from(shard)];
                self.planted.reads(&slot.disk, position, &mut bytes);
                self.planted.reads_timer(number, &mut bytes);
                let block = Rc::new(SimBlock::holding(bytes));
                self.feed(shard, Input::Read { read: number, result: Ok(block) })
            }
            beside => self.report_beside(shard, beside, read),
        }
    }

    fn disk_failed(&mut self, shard: u16, number: u64) -> Verdict {
        let slot = &mut self.shards[usize::from(shard)];
        self.oracle.summary.failed_operations += 1;
        let (op, error) = slot.disk.fail(number);
        slot.faulted |= matches!(op, Op::Write { .. } | Op::Sync { .. } | Op::Make { .. });
        // promise: ack-is-durable. After a failed write or sync nothing is written any more.
        slot.poisoned |= matches!(op, Op::Write { .. } | Op::Sync { .. });
        trace!(self, "shard {shard} FAILS {}", describe(&op));
        match op {
            Op::Write { write, .. } => {
                self.feed(shard, Input::Written { write, result: Err(error) })
            }
            Op::Sync { sync, .. } => self.feed(shard, Input::Synced { sync, result: Err(error) }),
            Op::Make { base, .. } => {
                self.feed(shard, Input::SegmentReady { base, result: Err(error) })
            }
            Op::Read { read, .. } => self.feed(shard, Input::Read { read, result: Err(error) }),
            beside => self.report_failed_beside(shard, beside, error),
        }
    }

    pub(super) fn answered(&mut self, shard: u16, connection: u64, bytes: &[u8]) -> Verdict {
        let frame = match frame::parse(bytes, u32::MAX) {
            Ok(Some(frame)) => frame,
            other => return violation(format!("shard {shard} answers {other:?}")),
        };
        let header = frame.header;
        if header.length.get() as usize != bytes.len() || !header.is_answer() {
            return violation(format!("an answer of {} bytes says {header:?}", bytes.len()));
        }
        match self.connections.get(&connection) {
            None => {
                return violation(format!("an answer on connection {connection}, which never was"));
            }
            Some(link) if !link.open => return Ok(()),
            Some(_) => {}
        }
        let correlation = header.correlation.get();
        let pending = self.pending.remove(&correlation);
        let Some(pending) = pending.filter(|p| p.connection == connection && p.shard == shard)
        else {
            return violation(format!("an answer nobody waits for: {header:?}"));
        };
        let mut reply = parse(&frame, &pending.intent)?;
        self.planted.answers(&pending.intent, &mut reply);
        trace!(self, "shard {shard} answers {correlation}: {reply:.200?}");
        let when = (self.clock.mono_us(), self.moment);
        let disk = &self.shards[usize::from(shard)].disk;
        self.oracle.answered(&pending, &reply, when, disk)?;
        let link = self.connections.get_mut(&connection).expect("it was just there");
        link.replies.push_back((pending.intent, reply));
        let at_us = self.clock.mono_us() + self.random.between(1, self.plan.network_us);
        self.events.at(at_us, Event::Answer { life: self.life, connection });
        Ok(())
    }

    fn tell_peer(&mut self, from: u16, to: u16, message: PeerMessage) {
        if self.planted.loses_peer() {
            return;
        }
        let (from, to, message) = match self.planted.pretends(&message) {
            Some(answer) => (to, from, answer),
            None => (from, to, message),
        };
        self.peers.entry((from, to)).or_default().push_back(message);
        let at_us = self.clock.mono_us() + self.random.between(1, 200);
        self.events.at(at_us, Event::Peer { life: self.life, from, to });
    }

    fn topic_changed(&mut self, shard: u16, change: TopicChange) -> Verdict {
        if shard != 0 {
            return violation(format!("shard {shard} is not home and tells of {change:?}"));
        }
        trace!(self, "{change:?}");
        let topic = change.settings.name.clone();
        if change.deleted {
            self.topics.remove(&topic);
        } else {
            self.oracle.topics.told(change.id);
            self.topics.insert(topic.clone(), change);
        }
        for shard in 0..self.plan.shards {
            if self.watched.contains(&(shard, topic.clone())) {
                self.tell_routes(shard, &topic);
            }
        }
        Ok(())
    }

    fn tell_routes(&mut self, shard: u16, topic: &str) {
        let mut brokers = Vec::new();
        if let Some(change) = self.topics.get(topic) {
            brokers.push(BrokerRoute {
                broker: self.plan.config.broker.clone(),
                broker_id: 0,
                topic: change.id,
                shards: self.plan.shards,
                read_queues: change.settings.read_queues,
            });
            if self.plan.other_broker {
                let broker = "broker-b".to_owned();
                let (topic, shards, read_queues) = (77, 2, 4);
                brokers.push(BrokerRoute { broker, broker_id: 0, topic, shards, read_queues });
            }
        }
        let routes = TopicRoutes { topic: topic.to_owned(), brokers };
        // One delay for all, so that they come in the order of the changes.
        let at_us = self.clock.mono_us() + 2 * self.plan.network_us;
        self.events.at(at_us, Event::Routes { life: self.life, shard, routes });
    }
}

fn describe(op: &Op) -> String {
    match op {
        Op::Write { write, position, block, durable, .. } => {
            let how = if *durable { "durable" } else { "plain" };
            format!("{how} write {write} of {} bytes at {position}", block.bytes().len())
        }
        Op::Sync { sync, from, to, .. } => format!("sync {sync} of {from}..{to}"),
        Op::Make { base, bytes } => format!("segment {base} of {bytes} bytes"),
        Op::Read { read, position, bytes } => format!("read {read} of {bytes} bytes at {position}"),
        Op::WriteIndex { rows } => format!("index of {}..{}", rows.base, rows.end),
        Op::ReadIndex { read, base, at, bytes } => {
            format!("read {read} of {bytes} bytes at {at} of index {base}")
        }
        Op::Retire { base } => format!("retirement of segment {base}"),
        Op::Punch { position, bytes } => format!("hole of {bytes} bytes at {position}"),
        Op::Transfer { connection, position, bytes, .. } => {
            format!("transfer of {bytes} bytes at {position} to connection {connection}")
        }
    }
}
