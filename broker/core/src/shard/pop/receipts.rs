//! What is done with messages that were popped: acknowledged, or wanted for longer, or again soon.
//!
//! Invariants:
//! - an acknowledgement is answered when the device has taken its record: it survives kill -9;
//! - a receipt counts until the message is handed out again, or its receipt is renewed.

use super::{Asker, Handled, OpWriter, Shard, read, refuse};
use crate::peer::QueueId;
use crate::pop::{Flight, Flights, Op};
use crate::seam::{Memory, Now, Outbox};
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, WIPOffset};
use ringmq_schema::limits::{INVISIBLE_MS_MAX, RECEIPTS_MAX};
use ringmq_schema::pop::{
    Ack, AckAnswer, AckAnswerArgs, ChangeInvisible, ChangeInvisibleAnswer,
    ChangeInvisibleAnswerArgs, Changed, Receipt,
};
use ringmq_schema::record::Kind;

impl<M: Memory> Shard<M> {
    pub(in crate::shard) fn ack(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<Ack<'_>>(table)?;
        let group = request.group();
        let receipts = request.receipts().unwrap_or_default();
        self.check_receipts(group, receipts.len())?;
        let mut ops = OpWriter::new(group, self.pops.now_ms(now));
        let mut statuses = Vec::with_capacity(receipts.len());
        for receipt in receipts {
            let id = QueueId { topic: receipt.topic(), queue: receipt.queue() };
            let status = match self.in_flight(group, id, receipt) {
                Err(status) => status,
                Ok(_) => {
                    self.figures.popped_acked += 1;
                    self.wake_if_held_back(group, id);
                    let op = Op::Done { offset: receipt.offset() };
                    self.pops.apply(group, id, op);
                    ops.add(id, op);
                    Status::Ok
                }
            };
            statuses.push(status.code());
        }
        self.answer_receipts(ops, asker, now, out, |fbb| {
            let statuses = Some(fbb.create_vector(&statuses));
            AckAnswer::create(fbb, &AckAnswerArgs { statuses })
        });
        Ok(())
    }

    pub(in crate::shard) fn change_invisible(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<ChangeInvisible<'_>>(table)?;
        let group = request.group();
        let receipts = request.receipts().unwrap_or_default();
        self.check_receipts(group, receipts.len())?;
        if request.invisible_ms() > INVISIBLE_MS_MAX {
            let text = format!(
                "the invisible time is {} ms, at most {INVISIBLE_MS_MAX} are allowed",
                request.invisible_ms()
            );
            return Err(refuse(Status::BadRequest, text));
        }
        let until_ms = self.pops.now_ms(now).saturating_add(i64::from(request.invisible_ms()));
        let nonce = self.pops.new_nonce();
        let mut ops = OpWriter::new(group, self.pops.now_ms(now));
        let mut changed = Vec::with_capacity(receipts.len());
        for receipt in receipts {
            let id = QueueId { topic: receipt.topic(), queue: receipt.queue() };
            changed.push(match self.in_flight(group, id, receipt) {
                Err(status) => Changed::new(0, 0, status.code(), 0, 0),
                Ok(flight) => {
                    let flight = Flight { until_ms, nonce, ..flight };
                    let op = Op::Out { offset: receipt.offset(), flight };
                    self.pops.apply(group, id, op);
                    ops.add(id, op);
                    self.poppers.comes_back(until_ms);
                    Changed::new(nonce, until_ms, Status::Ok.code(), 0, 0)
                }
            });
        }
        self.answer_receipts(ops, asker, now, out, |fbb| {
            let receipts = Some(fbb.create_vector(&changed));
            ChangeInvisibleAnswer::create(fbb, &ChangeInvisibleAnswerArgs { receipts })
        });
        Ok(())
    }

    /// A group is set back, or forward: what it has in flight is nobody's any more.
    pub(in crate::shard) fn reset_popped(
        &mut self,
        group: u32,
        id: QueueId,
        next: u64,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        if self.pops.get(group, id).is_none() {
            return;
        }
        let mut ops = OpWriter::new(group, self.pops.now_ms(now));
        let op = Op::Begin { next };
        self.pops.apply(group, id, op);
        ops.add(id, op);
        self.log.append_state(Kind::Pop, &ops.finish(), false, now, out);
        if let Some(slot) = self.queues.slot(id) {
            let waiting = std::mem::take(&mut self.queues.at_mut(slot).waiting);
            self.fetches.wake(waiting);
        }
    }

    fn check_receipts(&self, group: u32, count: usize) -> Handled {
        self.check_group(group)?;
        self.check_writing()?;
        if count == 0 {
            return Err(refuse(Status::BadRequest, "the request names no receipts"));
        }
        if count > RECEIPTS_MAX {
            let text =
                format!("the request has {count} receipts, at most {RECEIPTS_MAX} are allowed");
            return Err(refuse(Status::BadRequest, text));
        }
        Ok(())
    }

    /// What a receipt stands for.
    fn in_flight(&self, group: u32, id: QueueId, receipt: &Receipt) -> Result<Flight, Status> {
        if self.registry.topic(id.topic).is_none() {
            return Err(Status::UnknownTopic);
        }
        let flights = self.pops.get(group, id);
        let flight = flights.and_then(|f| f.of_receipt(receipt.offset(), receipt.nonce()));
        flight.ok_or(Status::BadReceipt)
    }

    /// A message is about to be done: pops that wait for that are looked at again.
    fn wake_if_held_back(&mut self, group: u32, id: QueueId) {
        let is_full = |flights: &Flights| flights.len() >= self.config.pop_in_flight;
        let flights = self.pops.get(group, id);
        let all_full = self.pops.in_flight() >= self.config.pops_in_flight;
        let waits = flights.is_some_and(|flights| flights.holds_back() || is_full(flights));
        if let Some(slot) = self.queues.slot(id).filter(|_| waits || all_full) {
            let waiting = std::mem::take(&mut self.queues.at_mut(slot).waiting);
            self.fetches.wake(waiting);
        }
    }

    /// Logs what changed; the answer follows when the device took it.
    fn answer_receipts<T>(
        &mut self,
        ops: OpWriter,
        asker: Asker,
        now: Now,
        out: &mut Outbox<M::Block>,
        build: impl FnOnce(&mut FlatBufferBuilder<'static>) -> WIPOffset<T>,
    ) {
        if ops.is_empty() {
            return self.answer(asker, out, build);
        }
        let end = self.log.append_state(Kind::Pop, &ops.finish(), false, now, out);
        self.answer_at(end, false, asker, build);
    }
}
