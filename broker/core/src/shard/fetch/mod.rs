//! Messages out: long polls over many queues, from memory or from disk.
//!
//! Invariants:
//! - nothing above a queue's high watermark is ever sent: what a consumer saw is durable (promise: prefix);
//! - a run holds only records of the queues that were asked for;
//! - queues are served in rotation, so that none starves behind a busy one;
//! - what is wrong with a queue is said beside the records of the others, from wherever these come (promise:
//!   isolation).

mod filter;
mod gather;
mod look;
mod parked;
mod single;
mod transfer;
mod windows;

pub(super) use filter::Filter;
pub(super) use gather::{cut, is_record, push_slice};
pub(super) use parked::Fetches;
pub(super) use single::cut_from;
pub(super) use windows::Windows;

use super::offsets::{check_count, nothing};
use super::{Asker, Handled, Refuse, Shard, read, refuse};
use crate::peer::{QueueId, member_of};
use crate::seam::{Action, Memory, Now, Outbox};
use gather::{Gathered, Source};
use look::Cold;
use parked::{Parked, Wanted};
use ringmq_schema::consume::{Fetch, FetchAnswer, FetchAnswerArgs, FetchedQueue, TagFilter};
use ringmq_schema::error::Status;
use ringmq_schema::limits::{FETCH_BYTES_MAX, LONG_POLL_MS_MAX};
use ringmq_schema::opcode::Opcode;
use std::ops::Range;

/// Most filters of one fetch, and most tags of a filter: each record is compared with each tag.
const FILTERS_MAX: usize = 1024;
/// See [`FILTERS_MAX`].
const TAGS_MAX: usize = 64;
/// A fetch for which so many reads failed is answered: each may have taken the disk long. Who asks again has
/// another queue's turn first.
const FAILURES_MAX: u32 = 8;
/// Most bytes of expressions in one fetch: some must be parsed.
const EXPRESSION_BYTES_MAX: usize = 64 << 10;
/// Most work of filters for one fetch before it is answered with where they stopped, so that no consumer stops the
/// others: so many records whose tags are not wanted. See `filter` for what else costs how much.
const WORK_MAX: u32 = 50_000;
/// Most fetches waiting on one queue.
const FETCHES_PER_QUEUE_MAX: usize = 1024;

impl<M: Memory> Shard<M> {
    pub(super) fn fetch(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<Fetch<'_>>(table)?;
        let queues = request.queues().ok_or_else(nothing)?;
        check_count(queues.len())?;
        if queues.is_empty() {
            return Err(nothing());
        }
        if request.group() != 0 {
            self.check_group(request.group())?;
        }
        if self.fetches.len() >= self.config.waiting_fetches {
            let text = format!("{} fetches wait already", self.fetches.len());
            return Err(Refuse { retry_after_ms: 100, ..refuse(Status::Busy, text) });
        }
        let mut parked = self.fetches.spare.pop().unwrap_or_default();
        parked.connection = asker.connection;
        parked.correlation = asker.correlation;
        parked.group = request.group();
        parked.member = member_of(request.member());
        let wait_us = u64::from(request.wait_ms().min(LONG_POLL_MS_MAX)) * 1000;
        parked.due_us = now.mono_us + wait_us;
        parked.max_bytes =
            u64::from(request.max_bytes()).min(self.config.fetch_bytes.min(FETCH_BYTES_MAX) as u64);
        parked.min_bytes = u64::from(request.min_bytes()).clamp(1, parked.max_bytes.max(1));
        parked.max_records = request.max_records().max(1);
        parked.checked = request.checked();
        self.read_filters(&request, &mut parked.filters)?;
        for queue in queues {
            let id = QueueId { topic: queue.topic(), queue: queue.queue() };
            if usize::from(queue.filter()) > parked.filters.len() {
                return Err(refuse(Status::BadRequest, "a queue names a filter that is not there"));
            }
            // Only queues that can be are given a slot. What is wrong with others, and with those that have
            // one, is found when the fetch is served, at once.
            let slot = match self.queues.slot(id) {
                Some(slot) => slot,
                None if self.check_readable(id).is_ok() => self.queues.slot_or_new(id),
                None => u32::MAX,
            };
            if slot != u32::MAX && self.queues.at(slot).waiting.len() >= FETCHES_PER_QUEUE_MAX {
                let text = format!("{FETCHES_PER_QUEUE_MAX} fetches wait on this queue already");
                return Err(Refuse { retry_after_ms: 100, ..refuse(Status::Busy, text) });
            }
            parked.queues.push(Wanted {
                id,
                slot,
                asked: queue.offset(),
                offset: queue.offset(),
                generation: queue.generation(),
                filter: queue.filter(),
                known: None,
                failed: false,
                at_fault: false,
            });
        }
        let fetch = self.fetches.next;
        self.fetches.next += 1;
        self.serve(fetch, parked, wait_us == 0, out);
        Ok(())
    }

    fn read_filters(&mut self, request: &Fetch<'_>, into: &mut Vec<Filter>) -> Handled {
        let filters = request.filters().unwrap_or_default();
        if filters.len() > FILTERS_MAX {
            return Err(too_many_filters());
        }
        let bytes: usize = filters.iter().map(|f| f.sql().map_or(0, str::len)).sum();
        if bytes > EXPRESSION_BYTES_MAX {
            let text = format!(
                "the filters of a fetch have {bytes} bytes, at most {EXPRESSION_BYTES_MAX} are allowed"
            );
            return Err(refuse(Status::TooMany, text));
        }
        for filter in filters {
            into.push(self.read_filter(filter)?);
        }
        Ok(())
    }

    /// A filter of a request.
    pub(super) fn read_filter(&mut self, filter: TagFilter<'_>) -> Result<Filter, Refuse> {
        let hashes = filter.hashes();
        if hashes.is_some_and(|hashes| hashes.len() > TAGS_MAX) {
            return Err(too_many_filters());
        }
        Ok(match (filter.sql(), hashes) {
            (None, tags) => Filter::Tags(tags.unwrap_or_default().iter().collect()),
            (Some(text), None) => Filter::Sql(self.fetches.programs.get(text)?),
            (Some(_), Some(_)) => {
                let text = "a filter is by tags or by an expression, not both";
                return Err(refuse(Status::BadRequest, text));
            }
        })
    }

    /// Answers a fetch, starts a read for it, or lets it wait.
    fn serve(&mut self, fetch: u64, mut parked: Parked, expired: bool, out: &mut Outbox<M::Block>) {
        let mut fetched = std::mem::take(&mut self.fetches.fetched);
        fetched.clear();
        self.find_faults(&mut parked, &mut fetched);
        let rotation = self.fetches.rotation % parked.queues.len();
        self.fetches.rotation = self.fetches.rotation.wrapping_add(1);
        let (faults, failures) = (fetched.len(), parked.failures);
        let cold = match failures < FAILURES_MAX {
            true => self.look(&mut parked, rotation),
            false => Cold::No,
        };
        // Indexes that cannot be read are found when they are looked into.
        if parked.queues.iter().filter(|wanted| wanted.failed || wanted.at_fault).count() > faults {
            fetched.clear();
            self.find_faults(&mut parked, &mut fetched);
        }
        match cold {
            Cold::No => {}
            Cold::Run(run) => return self.send_run(fetch, parked, &run, fetched, out),
            cold => {
                self.fetches.fetched = fetched;
                return match cold {
                    Cold::Pages(pages) => self.read_pages(fetch, parked, &pages, out),
                    Cold::At(reading) => self.start_read(fetch, parked, reading, expired, out),
                    Cold::No | Cold::Run(_) => {}
                };
            }
        }
        let (slices, faults) = (out.slices.len(), fetched.len());
        let gathered = self.gather(&mut parked, rotation, &Source::Tail, slices, &mut fetched, out);
        let Gathered { bytes, cut_short, told, .. } = gathered;
        if bytes >= parked.min_bytes || faults > 0 || cut_short || told || expired {
            self.figures.sql_left_out += gathered.left_out;
            self.answer_fetch(&parked, bytes, slices, &fetched, out);
            self.forget(fetch, parked);
        } else {
            out.slices.truncate(slices);
            self.park(fetch, parked);
        }
        self.fetches.fetched = fetched;
    }

    /// Queues that cannot be served: gone, fenced, out of range.
    fn find_faults(&mut self, parked: &mut Parked, fetched: &mut Vec<FetchedQueue>) {
        let Parked { queues, group, member, .. } = parked;
        let is_off =
            self.registry.group(*group).is_some_and(|group| !group.settings.consume_enabled);
        for wanted in queues {
            let (mut min, mut max) = (0, 0);
            let status = match self.check_readable(wanted.id) {
                Err(refused) => refused.status,
                // promise: one-owner
                Ok(())
                    if (*group != 0 || wanted.generation != 0)
                        && !self.offsets.fetches(
                            (*group, wanted.id),
                            (*member, wanted.generation),
                            wanted.offset,
                        ) =>
                {
                    Status::Fenced
                }
                Ok(()) if is_off => Status::NotReadable,
                Ok(()) => {
                    // Without a slot it could not be read when the fetch came, and now it can.
                    let queue = match wanted.slot {
                        u32::MAX => self.queues.get(wanted.id),
                        slot => Some(self.queues.at(slot)),
                    };
                    let next = queue.map_or(0, |queue| queue.next);
                    if let Some(queue) = queue {
                        (min, max) = (queue.min, queue.visible);
                    }
                    let out_of_range = wanted.offset < min || wanted.offset > next;
                    match out_of_range {
                        true => Status::OffsetOutOfRange,
                        false if wanted.failed => Status::ReadFailed,
                        false => Status::Ok,
                    }
                }
            };
            wanted.at_fault = status != Status::Ok;
            if wanted.at_fault {
                let QueueId { topic, queue } = wanted.id;
                let code = status.code();
                let entry = FetchedQueue::new(topic, queue, wanted.offset, max, min, 0, code, 0);
                fetched.push(entry);
            }
        }
    }

    fn answer_fetch(
        &mut self,
        parked: &Parked,
        run_bytes: u64,
        first_slice: usize,
        fetched: &[FetchedQueue],
        out: &mut Outbox<M::Block>,
    ) {
        let head = self.write_answer(parked, run_bytes, fetched, out);
        out.actions.push(Action::Answer {
            connection: parked.connection,
            head,
            slices: first_slice..out.slices.len(),
        });
    }

    /// Header and table of an answer, in `out.heads`.
    fn write_answer(
        &mut self,
        parked: &Parked,
        run_bytes: u64,
        fetched: &[FetchedQueue],
        out: &mut Outbox<M::Block>,
    ) -> Range<usize> {
        let out_of_range = Status::OffsetOutOfRange.code();
        for found in fetched {
            self.figures.messages_out += u64::from(found.records());
            self.figures.out_of_range += u64::from(found.status() == out_of_range);
            if parked.group != 0 && found.records() > 0 {
                let id = QueueId { topic: found.topic(), queue: found.queue() };
                self.offsets.sent(parked.group, id, parked.member, found.next_offset());
            }
        }
        self.figures.bytes_out += run_bytes;
        let start = out.heads.len();
        let opcode = Opcode::Fetch.code();
        let correlation = parked.correlation;
        self.frames.answer(&mut out.heads, opcode, correlation, run_bytes as usize, |fbb| {
            let queues = Some(fbb.create_vector(fetched));
            FetchAnswer::create(fbb, &FetchAnswerArgs { queues })
        });
        start..out.heads.len()
    }
}

fn too_many_filters() -> Refuse {
    let text = format!("at most {FILTERS_MAX} filters of {TAGS_MAX} tags each are allowed");
    refuse(Status::TooMany, text)
}
