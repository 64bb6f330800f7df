//! New messages for a group: from `next` on, without those that the filter leaves out, and, of a FIFO topic, those
//! that wait for another of their message group.

use super::collect::{Need, Record, Taking};
use super::{Piece, Shard, Slice};
use crate::pop::{Flight, Op};
use crate::seam::{Block, Memory};
use crate::shard::fetch::Filter;
use crate::shard::locate::{Located, locate, position};
use ringmq_schema::placement::{fnv1a, mix};
use ringmq_schema::record;

/// Most work of a filter in one step, as that of a fetch.
const WORK_MAX: u32 = 50_000;
/// Most that are held back in one step: each is read for its message group.
const HELD_BACK_MAX: u32 = 1_024;
/// So many messages that were left out are worth a record of their own; fewer are looked at again after a restart.
const PASSED_WORTH: u64 = 1_000;
/// Lane of messages without a message group: the queue is one.
const LANE_OF_QUEUE: u64 = 1;

/// What lies ahead.
struct Ahead {
    /// Offset, position and length of those that are wanted.
    found: Vec<(u64, u64, u32)>,
    /// Behind what was looked at.
    end: u64,
    why: Stop,
}

enum Stop {
    /// There is nothing more.
    End,
    /// As many were found as were asked for.
    Enough,
    Need(Need),
    Unreadable,
    CutShort,
}

impl<M: Memory> Shard<M> {
    /// Hands out new messages of a queue.
    pub(super) fn take_fresh(&mut self, at: usize, taking: &mut Taking<'_, M::Block>) {
        let (group, id) = (taking.parked.group, taking.wanted(at).id);
        let begun = self.pops.get(group, id).map_or(0, crate::pop::Flights::next);
        let handed_out = taking.got.records.len();
        let next = self.take_ahead(at, taking);
        self.pops.apply(group, id, Op::Next { next });
        if next >= begun + PASSED_WORTH || taking.got.records.len() > handed_out {
            taking.ops.add(id, Op::Next { next });
        }
    }

    /// Returns up to where it has come.
    fn take_ahead(&mut self, at: usize, taking: &mut Taking<'_, M::Block>) -> u64 {
        let (group, id) = (taking.parked.group, taking.wanted(at).id);
        let mut next = self.pops.get(group, id).map_or(0, crate::pop::Flights::next);
        loop {
            let in_flight = self.pops.get(group, id).map_or(0, crate::pop::Flights::len);
            let room = taking
                .room()
                .min(self.config.pop_in_flight.saturating_sub(in_flight))
                .min(self.config.pops_in_flight.saturating_sub(self.pops.in_flight()));
            if room == 0 {
                return next;
            }
            let Ahead { found, end, why } = self.look_ahead(at, next, room, taking);
            if let Some((_, position, _)) = found.last() {
                self.pops.has_reached(group, id, *position);
            }
            let visible = self.queues.at(taking.wanted(at).slot).visible;
            for (offset, position, bytes) in found {
                if offset >= visible {
                    let piece = Piece::Later(position, bytes);
                    if !self.hand_out(at, offset, Flight::held_back(0), piece, taking) {
                        return offset;
                    }
                    continue;
                }
                let slice = match self.record_of(at, offset, position, bytes, taking) {
                    Record::There(slice) => slice,
                    Record::Gone => continue,
                    Record::Wait => return offset,
                };
                if let Some(Filter::Sql(sql)) = &taking.parked.filter {
                    if taking.passed >= WORK_MAX {
                        taking.got.is_cut_short = true;
                        return offset;
                    }
                    let is_from_disk = self.log.tail.slice(position, bytes).is_none();
                    let judged = sql.judge(slice.bytes(), is_from_disk);
                    taking.passed = taking.passed.saturating_add(judged.work);
                    if !judged.is_wanted {
                        self.figures.sql_left_out += 1;
                        continue;
                    }
                }
                let lane = if taking.is_fifo { lane_of(&slice) } else { 0 };
                let flight = Flight::held_back(lane);
                let flights = if lane == 0 { None } else { self.pops.get(group, id) };
                if flights.is_some_and(|flights| flights.is_taken(lane)) {
                    taking.held_back += 1;
                    self.note_pop(at, Op::Out { offset, flight }, taking);
                } else if !self.hand_out(at, offset, flight, Piece::There(slice), taking) {
                    return offset;
                }
            }
            next = end;
            match why {
                Stop::Enough if !taking.is_fifo || taking.held_back < HELD_BACK_MAX => {}
                Stop::Enough | Stop::CutShort => {
                    taking.got.is_cut_short = true;
                    return next;
                }
                Stop::End => return next,
                Stop::Need(need) => {
                    taking.needs(at, need);
                    return next;
                }
                Stop::Unreadable => {
                    taking.parked.queues[at].failed = true;
                    return next;
                }
            }
        }
    }

    /// Finds the next messages of a queue that are wanted, at most `room`.
    fn look_ahead(
        &mut self,
        at: usize,
        from: u64,
        room: usize,
        taking: &mut Taking<'_, M::Block>,
    ) -> Ahead {
        let limit = self.end_for(at, taking);
        let Shard { queues, log, index_pages, scratch, figures, .. } = self;
        let slot = taking.wanted(at).slot;
        let queue = queues.at(slot);
        let most = if taking.parked.filter.is_none() { room as u32 } else { u32::MAX };
        let mut ahead = Ahead { found: Vec::new(), end: from.max(queue.min), why: Stop::End };
        while ahead.end < limit {
            if ahead.found.len() >= room {
                ahead.why = Stop::Enough;
                break;
            }
            let place = (slot, ahead.end);
            let (base, entries) = match locate(queues, log, index_pages, scratch, place, most) {
                Located::At(base, entries) => (base, entries),
                Located::Need(page) => {
                    ahead.why = Stop::Need(Need::Page(page));
                    break;
                }
                Located::Lost(next) => {
                    figures.corrupt_reads += 1;
                    ahead.end = next.min(limit);
                    continue;
                }
                Located::Unreadable => {
                    ahead.why = Stop::Unreadable;
                    break;
                }
                Located::Nowhere => break,
            };
            for entry in entries {
                if ahead.end >= limit || ahead.found.len() >= room {
                    break;
                }
                if taking.parked.filter.as_ref().is_none_or(|filter| filter.admits(entry)) {
                    ahead.found.push((ahead.end, position(base, entry), entry.bytes));
                } else if taking.passed >= WORK_MAX {
                    ahead.why = Stop::CutShort;
                    return ahead;
                } else {
                    taking.passed += 1;
                }
                ahead.end += 1;
            }
        }
        ahead
    }
}

/// The lane of a message: its message group, hashed. Two groups with the same hash wait for each other.
fn lane_of<B: Block>(slice: &Slice<B>) -> u64 {
    let found = record::read_one(slice.bytes(), 0).ok().and_then(|(_, found)| found);
    let message = found.and_then(|found| found.message().ok());
    match message.and_then(|message| message.group()).filter(|group| !group.is_empty()) {
        Some(group) => mix(fnv1a(group.as_bytes())).max(LANE_OF_QUEUE + 1),
        None => LANE_OF_QUEUE,
    }
}
