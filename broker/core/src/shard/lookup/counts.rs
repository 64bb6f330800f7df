//! Requests to count messages, their reads, and their turns.

use super::count::{Count, PAUSE_US};
use super::{Job, Of, READ_BIT, Reading};
use crate::index::PAGE_BYTES;
use crate::peer::QueueId;
use crate::seam::{Action, Block, DiskError, Memory, Now, Outbox};
use crate::shard::fetch::Filter;
use crate::shard::locate::PageName;
use crate::shard::{Asker, Handled, Refuse, Shard, read, refuse};
use ringmq_schema::consume::{CountMessages, CountMessagesAnswer, CountMessagesAnswerArgs};
use ringmq_schema::error::Status;
use std::rc::Rc;

impl<M: Memory> Shard<M> {
    pub(in crate::shard) fn count_messages(
        &mut self,
        now: Now,
        asker: Asker,
        table: &[u8],
        out: &mut Outbox<M::Block>,
    ) -> Handled {
        let request = read::<CountMessages<'_>>(table)?;
        let id = QueueId { topic: request.topic(), queue: request.queue() };
        self.check_readable(id)?;
        let filter = match (request.popped_by(), request.filter()) {
            (0, None) => None,
            (0, Some(filter)) => Some(self.read_filter(filter)?),
            (group, None) => {
                self.check_group(group)?;
                self.poppers.filter_of(group, id.topic)
            }
            (_, Some(_)) => {
                let text = "the filter is given, or that of a group is asked for, not both";
                return Err(refuse(Status::BadRequest, text));
            }
        };
        self.check_lookups()?;
        let range = request.begin()..request.end();
        let count = Count::new(asker, id, filter, range, now.mono_us);
        self.figures.lookups += 1;
        let number = self.lookups.number();
        self.lookups.under_way.insert(number, Job::Count(Box::new(count)));
        self.lookups.counting.push_back(number);
        self.step_counts(now, out);
        Ok(())
    }

    /// The next count in turn has a step, when it is time.
    pub(super) fn step_counts(&mut self, now: Now, out: &mut Outbox<M::Block>) {
        if now.mono_us < self.lookups.count_due_us {
            return;
        }
        while let Some(number) = self.lookups.counting.pop_front() {
            // Nobody may wait for it any more.
            if let Some(job) = self.lookups.under_way.remove(&number) {
                self.lookups.count_due_us = now.mono_us + PAUSE_US;
                return self.run_lookup(number, job, out);
            }
        }
    }

    pub(super) fn read_pages_for(
        &mut self,
        lookup: u64,
        name: PageName,
        out: &mut Outbox<M::Block>,
    ) {
        let changes = self.mending.changes;
        let read = self.lookups.number() | READ_BIT;
        self.lookups.reads.insert(read, Reading { lookup, part: 0, of: Of::Pages(name), changes });
        self.figures.index_reads += u64::from(name.count);
        let at = u64::from(name.page) * PAGE_BYTES as u64;
        let bytes = name.count * PAGE_BYTES as u32;
        out.actions.push(Action::ReadIndex { read, base: name.base, at, bytes });
    }

    /// What a count asked for is there, or cannot be read: it has its turn again.
    pub(super) fn count_read(
        &mut self,
        count: &mut Count<M::Block>,
        reading: Reading,
        result: Result<Rc<M::Block>, DiskError>,
    ) {
        let Reading { lookup, of, changes, .. } = reading;
        match of {
            Of::Log(start) => count.take_block(start, result.ok()),
            Of::Page(_) => {}
            Of::Pages(_) if changes != self.mending.changes => count.take_old(),
            Of::Pages(name) => {
                let bytes = result.as_ref().ok().map(|block| block.bytes());
                let is_there = self.log.segment_of(name.base).is_some();
                if !is_there {
                    // It expired meanwhile, and the queue has nothing there any more.
                    count.take_old();
                } else if !count.take_pages(name, changes, bytes) {
                    self.mend(name.base);
                }
            }
        }
        self.lookups.counting.push_back(lookup);
    }

    pub(super) fn answer_count(&mut self, count: &Count<M::Block>, out: &mut Outbox<M::Block>) {
        let (sql, tags) = match &count.filter {
            None => (None, 0),
            Some(Filter::Tags(tags)) => (None, tags.len() as u32),
            Some(Filter::Sql(sql)) => (Some(sql.text()), 0),
        };
        self.answer(count.asker, out, |fbb| {
            let sql = sql.map(|text| fbb.create_string(text));
            let args = CountMessagesAnswerArgs {
                matching: count.matching,
                next: count.at,
                complete: count.is_complete,
                first_ms: count.first_ms,
                unreadable: count.unreadable,
                sql,
                tags,
            };
            CountMessagesAnswer::create(fbb, &args)
        });
    }

    pub(super) fn refuse_count(&mut self, count: &Count<M::Block>, out: &mut Outbox<M::Block>) {
        let text = format!(
            "the index of the segment with offset {} of queue {} is damaged and is being made again",
            count.at, count.id.queue
        );
        let refused = Refuse { retry_after_ms: 1000, ..refuse(Status::ReadFailed, text) };
        self.refuse(count.asker, &refused, out);
    }
}
