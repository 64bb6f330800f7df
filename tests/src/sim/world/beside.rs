//! What shards ask for beside the log: indexes, retirement, holes, transfers from file to socket.

use super::events::Event;
use super::{World, trace};
use crate::sim::disk::Op;
use crate::sim::memory::SimBlock;
use crate::sim::talk::{Intent, Reply};
use crate::sim::{Verdict, Violation, violation};
use ringmq_core::seam::{DiskError, Input};
use ringmq_schema::error::Status;
use ringmq_schema::frame::FrameHeader;
use ringmq_schema::record;
use ringmq_schema::zerocopy::FromBytes;
use std::rc::Rc;

impl World {
    pub(super) fn retire(&mut self, shard: u16, base: u64) -> Verdict {
        self.start(shard, Op::Retire { base })?;
        let files = self.shards[usize::from(shard)].disk.segments();
        let end = files.iter().find(|file| file.base == base).map(|file| file.base + file.bytes);
        self.oracle.summary.retired += 1;
        self.oracle.messages.retired(shard, base..end.expect("the disk has it"));
        Ok(())
    }

    pub(super) fn punch(&mut self, shard: u16, position: u64, bytes: u64) -> Verdict {
        let asked = position..position + bytes;
        let bytes = self.planted.punches(bytes);
        self.start(shard, Op::Punch { position, bytes })?;
        self.oracle.summary.holes += 1;
        self.oracle.messages.retired(shard, asked);
        Ok(())
    }

    /// A transfer begins: its answer is on the way to one who asked for it.
    pub(super) fn transfer(&mut self, shard: u16, op: Op) -> Verdict {
        let Op::Transfer { connection, head, .. } = &op else { return Ok(()) };
        match self.connections.get(connection) {
            None => return violation(format!("a transfer on connection {connection}, never seen")),
            // Nobody is there any more.
            Some(link) if !link.open => return Ok(()),
            Some(_) => {}
        }
        let answers = FrameHeader::read_from_prefix(head).map(|(header, _)| header.correlation);
        let pending = answers.ok().and_then(|number| self.pending.get_mut(&number.get()));
        if let Some(pending) = pending
            && let Intent::Fetch { wanted, .. } = &pending.intent
        {
            // Others may be told more while this one is on its way.
            let messages = &self.oracle.messages;
            let told = wanted.iter().map(|w| (w.queue, messages.told_watermark(w.queue)));
            pending.watermarks = Some(told.collect());
        }
        self.oracle.summary.transfers += 1;
        self.start(shard, op)
    }

    pub(super) fn report_beside(&mut self, shard: u16, op: Op, read: Option<Vec<u8>>) -> Verdict {
        match op {
            Op::WriteIndex { rows } => {
                self.oracle.summary.indexes += 1;
                let (base, result) = (rows.base, Ok(rows.indexed()));
                drop(rows);
                let disk = &self.shards[usize::from(shard)].disk;
                if let Some(index) = disk.index(base) {
                    let left_out = disk.compare_index(base, index).map_err(Violation)?;
                    if let Some(topic) =
                        left_out.into_iter().find(|topic| self.oracle.topics.must_serve(*topic))
                    {
                        return violation(format!("index {base} leaves out topic {topic}"));
                    }
                }
                self.feed(shard, Input::IndexWritten { base, result })
            }
            Op::ReadIndex { read: number, base, at, bytes } => {
                let Some(mut page) = read else {
                    let operation = format!("read {bytes} bytes at {at} of index {base}");
                    let reason = "No such file or directory (os error 2)".to_owned();
                    let result = Err(DiskError { operation, reason });
                    return self.feed(shard, Input::IndexRead { read: number, result });
                };
                let slot = &self.shards[usize::from(shard)];
                self.planted.reads_index(&slot.disk, base, at, &mut page);
                let flips = self.living.faults.index_flip;
                if flips > 0 && self.random.once_in(flips) {
                    let bit = self.random.index(page.len() * 8);
                    trace!(self, "shard {shard} gets a wrong bit with page {at} of index {base}");
                    page[bit / 8] ^= 1 << (bit % 8);
                }
                let block = Rc::new(SimBlock::holding(page));
                self.feed(shard, Input::IndexRead { read: number, result: Ok(block) })
            }
            Op::Punch { position, .. } => {
                self.feed(shard, Input::Punched { position, result: Ok(()) })
            }
            Op::Transfer { connection, head, position, .. } => {
                let mut run = read.expect("transfers bring their run");
                let slot = &self.shards[usize::from(shard)];
                self.planted.transfers(&slot.disk, position, &mut run);
                let is_rotten = slot.disk.is_rotten(position..position + run.len() as u64);
                if is_rotten && record::records(&run).any(is_damaged) {
                    self.unreadable(connection, &head);
                    return Ok(());
                }
                let mut bytes = head;
                bytes.append(&mut run);
                self.answered(shard, connection, &bytes)
            }
            Op::Retire { .. } | Op::Write { .. } | Op::Sync { .. } => Ok(()),
            Op::Make { .. } | Op::Read { .. } => Ok(()),
        }
    }

    pub(super) fn report_failed_beside(&mut self, shard: u16, op: Op, error: DiskError) -> Verdict {
        match op {
            Op::WriteIndex { rows } => {
                let (base, result) = (rows.base, Err(error));
                self.feed(shard, Input::IndexWritten { base, result })
            }
            Op::ReadIndex { read, .. } => {
                self.feed(shard, Input::IndexRead { read, result: Err(error) })
            }
            Op::Punch { position, .. } => {
                self.feed(shard, Input::Punched { position, result: Err(error) })
            }
            Op::Transfer { connection, .. } => {
                self.break_off(shard, connection);
                Ok(())
            }
            Op::Retire { .. } | Op::Write { .. } | Op::Sync { .. } => Ok(()),
            Op::Make { .. } | Op::Read { .. } => Ok(()),
        }
    }

    /// A client gets a run in which it does not find its way: it asks again.
    fn unreadable(&mut self, connection: u64, head: &[u8]) {
        let number = FrameHeader::read_from_prefix(head).map(|(header, _)| header.correlation);
        let Some(pending) = number.ok().and_then(|number| self.pending.remove(&number.get()))
        else {
            return;
        };
        let Some(link) = self.connections.get_mut(&connection).filter(|link| link.open) else {
            return;
        };
        let (status, message) = (Status::ReadFailed, "an unreadable run".to_owned());
        link.replies.push_back((pending.intent, Reply::Refused { status, message }));
        let at_us = self.clock.mono_us() + self.random.between(1, self.plan.network_us);
        self.events.at(at_us, Event::Answer { life: self.life, connection });
    }

    /// The runtime closes a connection: a frame of which a part was sent cannot be taken back.
    fn break_off(&mut self, shard: u16, connection: u64) {
        let Some(link) = self.connections.get(&connection).filter(|link| link.open) else { return };
        let client = link.client;
        self.links.close(client, shard);
        self.close(connection, shard);
        self.with_client(client, |client, context| client.broken(context, shard));
    }

    /// Files of the finished life are spoiled, as the plan has it.
    pub(super) fn spoil(&mut self, shard: u16) {
        let (random, slot) = (&mut self.random, &mut self.shards[usize::from(shard)]);
        let faults = self.living.between;
        if random.percent(faults.rot_percent) {
            let units = slot.disk.perishable();
            if !units.is_empty() {
                let unit = random.pick(&units).range.clone();
                let at = random.between(unit.start, unit.end - 1);
                slot.disk.rot(unit.clone(), at, random.below(8));
                self.oracle.summary.rotten += 1;
                if self.trace {
                    eprintln!("shard {shard}: a bit at {at} of unit {unit:?} is wrong");
                }
                self.oracle.messages.rots(shard, unit);
                self.oracle.retries.rots(shard);
            }
        }
        let spoiled: Vec<u64> = slot
            .disk
            .indexes()
            .into_iter()
            .filter(|_| random.percent(faults.indexes_percent))
            .collect();
        for base in spoiled {
            let fault = *random.pick(&crate::sim::disk::IndexFault::ALL);
            slot.disk.spoil_index(base, fault, random);
            self.oracle.summary.spoiled += 1;
            if self.trace {
                eprintln!("shard {shard}: the index of {base} is spoiled: {fault:?}");
            }
        }
    }
}

/// A consumer sees that it is.
fn is_damaged(record: Result<record::RecordRef<'_>, record::RecordError>) -> bool {
    !record.is_ok_and(|record| record.check_header().is_ok())
}
