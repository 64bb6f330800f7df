//! Messages handed out one by one: long polls, each message with a receipt of its own (semantics.md, "pop").
//!
//! Invariants:
//! - nothing is handed out before the device has taken the record that says so: after kill -9 it is known who has
//!   what, and until when;
//! - what was handed out is handed out again only when its time is over, and its old receipt counts no more;
//! - nothing above a queue's high watermark is handed out (promise: prefix);
//! - per group and queue, and in all, a bounded number of messages is in flight (promise: bounded).

mod ahead;
mod collect;
mod dead;
mod fresh;
mod parked;
mod receipts;

use super::fetch::{Filter, push_slice};
use super::waiting::Then;
use super::{Asker, Handled, Refuse, Shard, read, refuse};
use crate::peer::QueueId;
use crate::pop::{Op, OpWriter};
use crate::seam::{Action, Memory, Now, Outbox, Slice};
use collect::{Collected, Need};
pub(super) use parked::Poppers;
use parked::{Parked, Wanted};
use ringmq_schema::error::Status;
use ringmq_schema::limits::{
    FETCH_BYTES_MAX, INVISIBLE_MS_MAX, INVISIBLE_MS_MIN, LONG_POLL_MS_MAX, POP_RECORDS_MAX,
};
use ringmq_schema::placement::shard_of_queue;
use ringmq_schema::pop::{Pop, PopAnswer, PopAnswerArgs, Popped};
use ringmq_schema::record::Kind;

/// Numbers of pops have this bit; those of fetches do not. Both wait on queues and for reads.
const POP_BIT: u64 = 1 << 63;
/// Most tags of a filter: each record is compared with each.
const TAGS_MAX: usize = 64;
/// Most reads for one pop; then it is answered with nothing.
const ROUNDS_MAX: u32 = 64;
/// In a request: the group begins at the first readable offset.
const FIRST: i64 = -1;
/// In a request: at the high watermark.
const LAST: i64 = -2;

/// An answer that waits for its record.
#[derive(Debug)]
struct Answer<B> {
    asker: Asker,
    records: Vec<Popped>,
    pieces: Vec<Piece<B>>,
}

/// Where the bytes of a message are that is handed out.
#[derive(Debug)]
enum Piece<B> {
    There(Slice<B>),
    /// In a unit that is not closed yet: position and length. Until it is durable it is in memory.
    Later(u64, u32),
}

impl<B> Piece<B> {
    fn len(&self) -> u64 {
        match self {
            Piece::There(slice) => slice.range.len() as u64,
            Piece::Later(_, bytes) => u64::from(*bytes),
        }
    }
}

/// Whether some of the bytes are not durable yet.
fn any_later<B>(pieces: &[Piece<B>]) -> bool {
    pieces.iter().any(|piece| matches!(piece, Piece::Later(..)))
}

/// Whether a number that waits for something is a pop's.
pub(super) fn is_pop(number: u64) -> bool {
    number & POP_BIT != 0
}

impl<M: Memory> Shard<M> {
    pub(super) fn pop(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<Pop<'_>>(table)?;
        let (group, topic) = (request.group(), request.topic());
        self.check_group(group)?;
        self.check_writing()?;
        // Fetches have as many of their own: who pushes keeps nobody from popping.
        if self.poppers.len() >= self.config.waiting_fetches {
            let text = format!("{} pops wait already", self.poppers.len());
            return Err(Refuse { retry_after_ms: 100, ..refuse(Status::Busy, text) });
        }
        let invisible_ms = request.invisible_ms();
        if !(INVISIBLE_MS_MIN..=INVISIBLE_MS_MAX).contains(&invisible_ms) {
            let text = format!(
                "the invisible time is {invisible_ms} ms, {INVISIBLE_MS_MIN} to {INVISIBLE_MS_MAX} are allowed"
            );
            return Err(refuse(Status::BadRequest, text));
        }
        if request.max_records() as usize > POP_RECORDS_MAX {
            let text = format!(
                "{} messages are asked for, at most {POP_RECORDS_MAX} are handed out at once",
                request.max_records()
            );
            return Err(refuse(Status::BadRequest, text));
        }
        let filter = self.pop_filter(&request)?;
        let mut queues = Vec::new();
        self.poppers.note_filter(group, topic, filter.as_ref());
        for (id, start) in self.queues_of(&request)? {
            self.check_readable(id)?;
            queues.push(Wanted { id, slot: self.queues.slot_or_new(id), start, failed: false });
        }
        let parked = Parked {
            asker,
            group,
            topic,
            queues,
            filter,
            max_records: request.max_records() as usize,
            max_bytes: u64::from(request.max_bytes())
                .min(self.config.fetch_bytes.min(FETCH_BYTES_MAX) as u64),
            invisible_ms: i64::from(invisible_ms),
            may_wait: request.wait_ms() > 0,
            due_us: now.mono_us + u64::from(request.wait_ms().min(LONG_POLL_MS_MAX)) * 1000,
            block: None,
            reading: None,
            first: None,
            alone: false,
            rounds: 0,
        };
        let pop = self.poppers.number();
        self.serve_pop(pop, parked, now, out);
        Ok(())
    }

    fn pop_filter(&mut self, request: &Pop<'_>) -> Result<Option<Filter>, Refuse> {
        let tags: Vec<u32> = request.tags().into_iter().flatten().collect();
        if tags.len() > TAGS_MAX {
            let text =
                format!("the filter has {} tags, at most {TAGS_MAX} are allowed", tags.len());
            return Err(refuse(Status::TooMany, text));
        }
        match request.sql() {
            None if tags.is_empty() => Ok(None),
            None => Ok(Some(Filter::Tags(tags))),
            Some(text) if tags.is_empty() => {
                Ok(Some(Filter::Sql(self.fetches.programs.get(text)?)))
            }
            Some(_) => {
                let text = "a filter is by tags or by an expression, not both";
                Err(refuse(Status::BadRequest, text))
            }
        }
    }

    /// The queues that a request is about, and where the group begins in them.
    fn queues_of(&self, request: &Pop<'_>) -> Result<Vec<(QueueId, i64)>, Refuse> {
        let topic = request.topic();
        let named = request.queues().unwrap_or_default();
        super::offsets::check_count(named.len())?;
        if !named.is_empty() {
            let named = named.iter().map(|q| (QueueId { topic, queue: q.queue() }, q.start()));
            return Ok(named.collect());
        }
        let settings = match self.registry.topic(topic) {
            Some(topic) => &topic.settings,
            None => return Err(super::produce::unknown_topic(topic)),
        };
        let (shard, shards) = (self.config.shard, self.config.shards);
        let mine = |queue: &u32| shard_of_queue(topic, *queue, shards) == shard;
        let queues = (0..settings.read_queues).filter(mine);
        Ok(queues.map(|queue| (QueueId { topic, queue }, request.start())).collect())
    }

    /// Answers a pop, starts a read for it, or lets it wait.
    fn serve_pop(
        &mut self,
        pop: u64,
        mut parked: Parked<M::Block>,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) {
        if let Err(refused) = self.check_pop(&parked) {
            let asker = parked.asker;
            self.end_pop(pop, parked);
            return self.refuse(asker, &refused, out);
        }
        let mut ops = OpWriter::new(parked.group, self.pops.now_ms(now));
        self.begin_queues(&parked, &mut ops);
        let Collected { records, pieces, need, is_cut_short } =
            self.collect(&mut parked, &mut ops, now, out);
        let is_later = any_later(&pieces);
        // Beside messages that are to be durable it costs nothing.
        let durable = is_later && self.log.is_open_durable();
        let end = match ops.is_empty() {
            true => self.log.appended(),
            false => self.log.append_state(Kind::Pop, &ops.finish(), durable, now, out),
        };
        let is_over = parked.due_us <= now.mono_us || self.stopping;
        let is_tired = parked.rounds >= ROUNDS_MAX || is_cut_short;
        match need {
            Some(need) if records.is_empty() && parked.max_records > 0 && !is_tired => {
                self.read_for_pop(pop, parked, need, out);
            }
            _ if records.is_empty() && !is_over && !is_tired && parked.max_records > 0 => {
                self.park_pop(pop, parked);
            }
            _ => {
                let asker = parked.asker;
                let failed = parked.queues.iter().filter(|wanted| wanted.failed).count();
                let all_failed = failed > 0 && failed == parked.queues.len();
                self.end_pop(pop, parked);
                if records.is_empty() && all_failed {
                    let text = "what comes next in these queues cannot be read from the disk";
                    return self.refuse(asker, &refuse(Status::ReadFailed, text), out);
                }
                let answer = Answer { asker, records, pieces };
                if is_later {
                    if !durable {
                        self.sync_wanted = end;
                    }
                    let number = self.poppers.number();
                    self.poppers.answers.insert(number, answer);
                    self.log.tail.hold();
                    self.waiting.push(end, true, Then::Popped(number));
                } else if self.log.written() < end {
                    // One that changes nothing answers for the one that did: that may be on its way still.
                    let number = self.poppers.number();
                    self.poppers.answers.insert(number, answer);
                    self.waiting.push(end, false, Then::Popped(number));
                } else {
                    self.send_popped(answer, out);
                }
            }
        }
    }

    /// Whether things are still as they were when the pop came.
    fn check_pop(&self, parked: &Parked<M::Block>) -> Handled {
        self.check_group(parked.group)?;
        self.check_writing()?;
        parked.queues.iter().try_for_each(|wanted| self.check_readable(wanted.id))
    }

    /// A group that has not popped from a queue begins there now.
    fn begin_queues(&mut self, parked: &Parked<M::Block>, ops: &mut OpWriter) {
        for wanted in &parked.queues {
            if self.pops.get(parked.group, wanted.id).is_some() {
                continue;
            }
            let queue = self.queues.at(wanted.slot);
            let next = match (self.offsets.get(parked.group, wanted.id).committed, wanted.start) {
                (Some(committed), _) => committed,
                (None, FIRST) => queue.min,
                // Its messages that are not visible yet were sent before it began.
                (None, LAST) => queue.next,
                (None, start) => u64::try_from(start).unwrap_or(queue.next),
            };
            let op = Op::Begin { next: next.clamp(queue.min, queue.next) };
            self.pops.apply(parked.group, wanted.id, op);
            ops.add(wanted.id, op);
        }
    }

    /// The record of what an answer hands out was taken by the device.
    pub(super) fn popped(&mut self, number: u64, out: &mut Outbox<M::Block>) {
        if let Some(answer) = self.poppers.answers.remove(&number) {
            self.let_go_of(&answer);
            self.send_popped(answer, out);
        }
    }

    /// An answer no longer waits: what it held in memory may go.
    fn let_go_of(&mut self, answer: &Answer<M::Block>) {
        if any_later(&answer.pieces) {
            self.log.tail.release();
        }
    }

    fn send_popped(&mut self, answer: Answer<M::Block>, out: &mut Outbox<M::Block>) {
        let asker = answer.asker;
        let (records, slices) = self.bytes_of_answer(answer);
        let run_bytes: usize = slices.iter().map(|slice| slice.range.len()).sum();
        self.figures.messages_out += records.len() as u64;
        self.figures.bytes_out += run_bytes as u64;
        self.figures.popped += records.len() as u64;
        let start = out.heads.len();
        let Asker { connection, correlation, opcode, .. } = asker;
        self.frames.answer(&mut out.heads, opcode, correlation, run_bytes, |fbb| {
            let records = Some(fbb.create_vector(&records));
            PopAnswer::create(fbb, &PopAnswerArgs { records })
        });
        let first = out.slices.len();
        slices.into_iter().for_each(|slice| push_slice(slice, first, out));
        let (head, slices) = (start..out.heads.len(), first..out.slices.len());
        out.actions.push(Action::Answer { connection, head, slices });
    }

    /// The shard stopped writing: what was handed out was not.
    pub(super) fn refuse_popped(
        &mut self,
        number: u64,
        refused: &Refuse,
        out: &mut Outbox<M::Block>,
    ) {
        if let Some(answer) = self.poppers.answers.remove(&number) {
            self.let_go_of(&answer);
            self.refuse(answer.asker, refused, out);
        }
    }

    /// Begins to read what a pop needs.
    fn read_for_pop(
        &mut self,
        pop: u64,
        mut parked: Parked<M::Block>,
        (at, need): (usize, Need),
        out: &mut Outbox<M::Block>,
    ) {
        parked.rounds += 1;
        parked.reading = Some(at);
        parked.block = None;
        let alone = parked.alone;
        self.poppers.parked.insert(pop, parked);
        let begun = match need {
            Need::Page(page) => {
                self.read_page_for(Some(pop), page, out);
                true
            }
            Need::Record(position, bytes) => self.read_record_for(pop, position, bytes, alone, out),
        };
        if !begun {
            self.pop_page(pop, false, self.last_step, out);
        }
    }
}
