//! When a run of records goes out from the file as it lies there, and not through the core.
//!
//! The rows of a sealed segment in the order of the log say what lies between two records: a run goes on while
//! each record is the next of a queue that was asked for.
//!
//! Invariants:
//! - a run holds only records of queues that were asked for, from the offsets that were asked for on, and
//!   control records between them;
//! - it lies in a sealed segment, below `flushed`;
//! - of a run with more than an eighth of padding less is sent than it costs (design, part 7).

use super::super::Shard;
use super::super::locate::{PAGES_MAX, PageName};
use super::look::Cold;
use super::parked::{Parked, Reading, Wanted};
use crate::index::{Entry, OrderRow, PLACE_BYTES, Section, row};
use crate::log::Segment;
use crate::queue::Place;
use crate::seam::{Action, BLOCK_BYTES, Memory, Outbox};
use ringmq_schema::consume::FetchedQueue;
use ringmq_schema::error::Status;
use std::collections::BTreeSet;

/// A run that is sent from the file.
#[derive(Debug)]
pub(super) struct Run {
    position: u64,
    bytes: u32,
    /// How many records of which queues, by index.
    counts: Vec<(usize, u32)>,
}

/// A queue whose records may be in the run.
struct Member {
    /// Of its stretch in the segment's directory.
    number: u32,
    /// Its first record that is wanted, in the order of the log.
    row: u32,
    wanted: usize,
    count: u32,
}

enum Walked {
    Run(Run),
    Need(PageName),
    No,
}

impl<M: Memory> Shard<M> {
    /// What is to be done about records that lie on disk, of which this is the lowest.
    pub(super) fn plan_transfer(&mut self, parked: &Parked, lowest: Reading) -> Cold {
        if parked.checked || self.config.transfer_bytes_min == 0 {
            return Cold::At(lowest);
        }
        let slot = parked.queues[lowest.wanted].slot;
        let segment = match self.queues.at(slot).find(parked.queues[lowest.wanted].offset) {
            Some(Place::Disk(stretch, _)) => self.log.segment_numbered(stretch.segment),
            _ => None,
        };
        let Some(segment) = segment else { return Cold::At(lowest) };
        let members = self.members(parked, segment);
        match self.walk(parked, segment, lowest.entry.row, members) {
            Walked::Run(run) => Cold::Run(run),
            // Where pages do not stay for long, or cannot be read, it is no use to ask again and again.
            Walked::Need(page)
                if parked.rounds < 4 * PAGES_MAX && !parked.unreadable.contains(&page.base) =>
            {
                Cold::Pages(BTreeSet::from([page]))
            }
            Walked::Need(_) | Walked::No => Cold::At(lowest),
        }
    }

    /// Queues of the fetch whose next record lies in the segment, by number in its directory.
    fn members(&mut self, parked: &Parked, segment: Segment) -> Vec<Member> {
        let Shard { queues, index_pages, .. } = self;
        let Some(pages) = segment.index else { return Vec::new() };
        let mut member = |(at, wanted): (usize, &Wanted)| {
            if !wanted.is_served() || wanted.filter != 0 {
                return None;
            }
            let Some(Place::Disk(stretch, nth)) = queues.at(wanted.slot).find(wanted.offset) else {
                return None;
            };
            if stretch.segment != segment.number {
                return None;
            }
            let spot = pages.entry(stretch.first_entry + nth);
            let page = index_pages.get(segment.base, spot.page)?;
            let entry = row::<Entry>(&page, spot.row)?;
            Some(Member { number: stretch.number, row: entry.row, wanted: at, count: 0 })
        };
        let mut members: Vec<Member> =
            parked.queues.iter().enumerate().filter_map(&mut member).collect();
        members.sort_by_key(|member| member.number);
        // A queue that is asked for twice has one run of records only.
        members.dedup_by_key(|member| member.number);
        members
    }

    /// Follows the records from row `first` on.
    fn walk(
        &mut self,
        parked: &Parked,
        segment: Segment,
        first: u32,
        mut members: Vec<Member>,
    ) -> Walked {
        let Some(pages) = segment.index else { return Walked::No };
        let (mut start, mut end, mut records, mut filled) = (None, 0, 0, 0);
        let mut number = first;
        'run: while number < pages.records {
            let spot = pages.order_row(number);
            let Some(page) = self.index_pages.get(segment.base, spot.page) else {
                let left =
                    (pages.records - number + spot.row as u32).div_ceil(Section::Order.per_page());
                let count = left.min(PAGES_MAX);
                return Walked::Need(PageName { base: segment.base, page: spot.page, count });
            };
            let rows = (spot.row..).map_while(|at| row::<OrderRow>(&page, at));
            let before = number;
            for row in rows.take((pages.records - number) as usize) {
                let Ok(at) = members.binary_search_by_key(&row.queue, |member| member.number)
                else {
                    break 'run;
                };
                let position = segment.base + u64::from(row.place) * PLACE_BYTES;
                let begin = *start.get_or_insert(position);
                let behind = position + u64::from(row.bytes);
                // Where the index was made again after a hole was punched, nothing else says that it is there.
                let crosses_hole = end > 0 && self.has_hole(end, position);
                let is_next = members[at].row <= number && position >= end && !crosses_hole;
                if !is_next
                    || behind > segment.end()
                    || records >= parked.max_records
                    || records > 0 && behind - begin > parked.max_bytes
                {
                    break 'run;
                }
                members[at].count += 1;
                (end, records, number) = (behind, records + 1, number + 1);
                filled += u64::from(row.bytes);
            }
            if number == before {
                break;
            }
        }
        let Some(start) = start.filter(|_| records > 0) else { return Walked::No };
        let bytes = end - start;
        if bytes < self.config.transfer_bytes_min as u64 || (bytes - filled) * 8 > bytes {
            return Walked::No;
        }
        let counts = members.iter().filter(|m| m.count > 0).map(|m| (m.wanted, m.count)).collect();
        Walked::Run(Run { position: start, bytes: bytes as u32, counts })
    }

    /// Whether whole blocks between two records were given back.
    fn has_hole(&self, from: u64, to: u64) -> bool {
        let block = BLOCK_BYTES as u64;
        let mut blocks = (from.next_multiple_of(block)..to).step_by(BLOCK_BYTES);
        blocks.any(|at| self.punching.holes.contain(at))
    }

    /// Answers a fetch with a run from the file, beside what is said of queues at fault.
    pub(super) fn send_run(
        &mut self,
        fetch: u64,
        parked: Parked,
        run: &Run,
        mut fetched: Vec<FetchedQueue>,
        out: &mut Outbox<M::Block>,
    ) {
        for &(at, count) in &run.counts {
            let wanted = &parked.queues[at];
            let queue = self.queues.at(wanted.slot);
            let (next, status) = (wanted.offset + u64::from(count), Status::Ok.code());
            fetched.push(FetchedQueue::new(
                wanted.id.topic,
                wanted.id.queue,
                next,
                queue.visible,
                queue.min,
                count,
                status,
                0,
            ));
        }
        self.figures.transfers += 1;
        self.figures.transfer_bytes += u64::from(run.bytes);
        let head = self.write_answer(&parked, u64::from(run.bytes), &fetched, out);
        out.actions.push(Action::Transfer {
            connection: parked.connection,
            head,
            position: run.position,
            bytes: run.bytes,
        });
        self.fetches.fetched = fetched;
        self.forget(fetch, parked);
    }
}
