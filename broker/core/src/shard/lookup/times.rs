//! Offsets by time, of many queues at once.
//!
//! Times in a queue are monotone ([`crate::index::Entry::latest_ms`]), so the stretches of a queue are bisected by
//! the newest time that the directory has of each, then the entries of one stretch.
//!
//! Invariants:
//! - the answer lies in `min..=visible`, whatever retention does meanwhile;
//! - what an index says is compared with what the queue knows; where they differ, or where it cannot be read, that
//!   queue is answered `ReadFailed`.

use super::{Arrived, Job, header_of, one, page};
use crate::index::{FoundTime, Header, Stretch as Row, TimeSearch, row};
use crate::peer::QueueId;
use crate::queue::{Queue, Stretch};
use crate::seam::{Memory, Outbox};
use crate::shard::locate::PageName;
use crate::shard::{Asker, Handled, Shard};
use ringmq_schema::consume::{FoundOffset, SearchOffsetsAnswer, SearchOffsetsAnswerArgs};
use ringmq_schema::error::Status;

/// Queues of one request that wait for a page at the same time.
const AT_ONCE: usize = 32;
/// Queues begun in one step: each takes some microseconds when all its pages are in memory.
const QUEUES_A_STEP: usize = 64;

/// A request.
#[derive(Debug)]
pub(super) struct Times {
    pub(super) asker: Asker,
    queues: Vec<Time>,
    begun: usize,
    waiting: usize,
}

/// One queue of it.
#[derive(Debug)]
pub(in crate::shard) struct Time {
    id: QueueId,
    at_ms: i64,
    /// Everything below was stored before.
    low: u64,
    /// The lowest stretch known whose last record was stored at the time or after.
    hit: Option<Stretch>,
    header: Option<Header>,
    search: Option<TimeSearch>,
    found: Option<(u64, Status)>,
}

impl Time {
    /// A search that is to be carried out.
    pub(in crate::shard) fn new(id: QueueId, at_ms: i64) -> Time {
        Time { id, at_ms, low: 0, hit: None, header: None, search: None, found: None }
    }

    /// One whose outcome is known.
    pub(in crate::shard) fn known(id: QueueId, offset: u64, status: Status) -> Time {
        Time { found: Some((offset, status)), ..Time::new(id, 0) }
    }

    fn end(&mut self, offset: u64, status: Status) {
        self.found = Some((offset, status));
        (self.header, self.search) = (None, None);
    }

    /// The stretch that is to be looked at, if one is left.
    fn next(&mut self, queue: &Queue) -> Option<Stretch> {
        self.low = self.low.max(queue.min);
        if self.hit.is_some_and(|hit| hit.end() <= queue.min) {
            // It expired meanwhile; what is behind it may be the first now.
            (self.hit, self.search) = (None, None);
        }
        let first = queue.stretches.partition_point(|stretch| stretch.end() <= self.low);
        let end = self.hit.map_or(u64::MAX, |hit| hit.first_offset);
        let last = queue.stretches.partition_point(|stretch| stretch.first_offset < end);
        (first < last).then(|| queue.stretches[first + (last - first) / 2])
    }
}

/// Whether what is in memory of a queue is enough.
fn in_memory(queue: &Queue, at_ms: i64) -> bool {
    let first = queue.chunks.front().and_then(|chunk| chunk.entries().first());
    queue.stretches.is_empty() || first.is_some_and(|entry| entry.latest_ms < at_ms)
}

impl<M: Memory> Shard<M> {
    /// Answers, at once where memory is enough.
    pub(in crate::shard) fn search_times(
        &mut self,
        asker: Asker,
        mut queues: Vec<Time>,
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        for time in queues.iter_mut().filter(|time| time.found.is_none()) {
            match self.queues.get(time.id) {
                None => time.end(0, Status::Ok),
                Some(queue) if in_memory(queue, time.at_ms) => {
                    let offset = queue.offset_at(time.at_ms).max(queue.min);
                    time.end(offset, Status::Ok);
                }
                Some(_) => {}
            }
        }
        if queues.iter().all(|time| time.found.is_some()) {
            self.answer_times(asker, &queues, out);
            return Ok(());
        }
        self.check_lookups()?;
        self.begin_lookup(Job::Times(Times { asker, queues, begun: 0, waiting: 0 }), out);
        Ok(())
    }

    /// Returns whether it ended.
    pub(super) fn run_times(
        &mut self,
        number: u64,
        times: &mut Times,
        out: &mut Outbox<M::Block>,
    ) -> bool {
        let mut steps = 0;
        while times.waiting < AT_ONCE && times.begun < times.queues.len() {
            if steps == QUEUES_A_STEP {
                self.lookups.ready.insert(number);
                return false;
            }
            let part = times.begun;
            times.begun += 1;
            if times.queues[part].found.is_some() {
                continue;
            }
            steps += 1;
            if let Some(name) = self.step_time(&mut times.queues[part], None) {
                times.waiting += 1;
                self.read_page(number, part, name, out);
            }
        }
        if times.waiting > 0 || times.begun < times.queues.len() {
            return false;
        }
        self.answer_times(times.asker, &times.queues, out);
        true
    }

    /// A page is there, or cannot be read.
    pub(super) fn time_page(
        &mut self,
        number: u64,
        times: &mut Times,
        part: usize,
        arrived: Arrived,
        out: &mut Outbox<M::Block>,
    ) {
        times.waiting -= 1;
        let time = &mut times.queues[part];
        if arrived.room.is_none() && self.log.segment_of(arrived.name.base).is_some() {
            time.end(0, Status::ReadFailed);
            return;
        }
        // A segment that was retired meanwhile is no fault: the queue has no stretch there any more.
        if let Some(name) = self.step_time(time, Some(&arrived)) {
            times.waiting += 1;
            self.read_page(number, part, name, out);
        }
    }

    /// Goes on until a page is needed, or to the end.
    fn step_time(&mut self, time: &mut Time, arrived: Option<&Arrived>) -> Option<PageName> {
        let Shard { queues, log, index_pages, config, .. } = self;
        loop {
            let Some(queue) = queues.get(time.id) else {
                time.end(0, Status::UnknownTopic);
                return None;
            };
            let middle = time.next(queue);
            let Some(stretch) = middle.or(time.hit) else {
                let offset = queue.offset_at(time.at_ms).max(queue.min);
                time.end(offset, Status::Ok);
                return None;
            };
            let Some(segment) = log.segment_numbered(stretch.segment) else {
                time.end(0, Status::ReadFailed);
                return None;
            };
            let base = segment.base;
            let header = match time.header.take().filter(|header| header.base == base) {
                Some(header) => header,
                None => {
                    let name = one(base, 0);
                    let Some(room) = page(index_pages, arrived, name) else { return Some(name) };
                    let (log_id, shard) = (config.log_id, config.shard);
                    let Some(header) = header_of(&room, base, segment.end(), log_id, shard) else {
                        time.end(0, Status::ReadFailed);
                        return None;
                    };
                    header
                }
            };
            let mut room = |number| page(index_pages, arrived, one(base, number));
            let stepped = match middle {
                Some(middle) => time.compare(&header, middle, &mut room),
                None => time.search(&header, stretch, queue, &mut room),
            };
            time.header = Some(header);
            match stepped {
                Ok(()) if time.found.is_some() => return None,
                Ok(()) => {}
                Err(Halt::Need(number)) => return Some(one(base, number)),
                Err(Halt::Damaged) => {
                    time.end(0, Status::ReadFailed);
                    return None;
                }
            }
        }
    }

    fn answer_times(&mut self, asker: Asker, queues: &[Time], out: &mut Outbox<M::Block>) {
        let found: Vec<FoundOffset> = queues
            .iter()
            .map(|time| {
                let (offset, status) = time.found.unwrap_or((0, Status::Internal));
                FoundOffset::new(time.id.topic, time.id.queue, offset, status.code(), 0, 0)
            })
            .collect();
        self.answer(asker, out, |fbb| {
            let queues = Some(fbb.create_vector(&found));
            SearchOffsetsAnswer::create(fbb, &SearchOffsetsAnswerArgs { queues })
        });
    }
}

enum Halt {
    Need(u32),
    Damaged,
}

type Room = std::rc::Rc<[u8]>;

impl Time {
    /// Whether the time is reached in this stretch.
    fn compare(
        &mut self,
        header: &Header,
        stretch: Stretch,
        room: &mut impl FnMut(u32) -> Option<Room>,
    ) -> Result<(), Halt> {
        let spot = header.directory_page(stretch.number).ok_or(Halt::Damaged)?;
        let page = room(spot.page).ok_or(Halt::Need(spot.page))?;
        let known: Row = row(&page, spot.row).ok_or(Halt::Damaged)?;
        let (offset, count, entry) = (stretch.first_offset, stretch.count, stretch.first_entry);
        if (known.id, known.first_offset, known.count, known.first_entry)
            != (self.id, offset, count, entry)
        {
            return Err(Halt::Damaged);
        }
        if known.last_ms < self.at_ms {
            self.low = stretch.end();
        } else {
            self.hit = Some(stretch);
        }
        Ok(())
    }

    /// Looks for the first entry of this stretch that reaches the time.
    fn search(
        &mut self,
        header: &Header,
        stretch: Stretch,
        queue: &Queue,
        room: &mut impl FnMut(u32) -> Option<Room>,
    ) -> Result<(), Halt> {
        let (entry, count, at_ms) = (stretch.first_entry, stretch.count, self.at_ms);
        let search =
            self.search.get_or_insert_with(|| TimeSearch::new(header, entry, count, at_ms));
        match search.step(room) {
            FoundTime::Need(page) => Err(Halt::Need(page)),
            FoundTime::Done(number) if number < count => {
                let offset = stretch.first_offset + u64::from(number);
                self.end(offset.max(queue.min).min(queue.visible), Status::Ok);
                Ok(())
            }
            // The directory says that the last entry reaches it.
            FoundTime::Done(_) | FoundTime::Damaged(_) => Err(Halt::Damaged),
        }
    }
}
