//! Delayed messages come in.

use super::Key;
use super::deliver::patch_timer;
use crate::peer::QueueId;
use crate::seam::{Memory, Now, Outbox};
use crate::shard::{Handled, Refuse, Shard, refuse};
use ringmq_schema::error::Status;
use ringmq_schema::record;

/// Whether a run is delayed: what its records say together.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct Delays {
    plain: u32,
    delayed: u32,
    first_ms: i64,
    last_ms: i64,
}

impl Delays {
    /// Another record, with its delivery time.
    pub(in super::super) fn take(&mut self, deliver_ms: i64) {
        if deliver_ms == 0 {
            self.plain += 1;
            return;
        }
        let is_first = self.delayed == 0;
        self.first_ms = if is_first { deliver_ms } else { self.first_ms.min(deliver_ms) };
        self.last_ms = if is_first { deliver_ms } else { self.last_ms.max(deliver_ms) };
        self.delayed += 1;
    }

    /// How many have none.
    pub(in super::super) fn plain(&self) -> u32 {
        self.plain
    }

    /// How many have one.
    pub(in super::super) fn delayed(&self) -> u32 {
        self.delayed
    }

    /// Whether the run waits; it is refused when it is neither all delayed nor not at all, or for too long.
    pub(in super::super) fn check(&self, delay_ms_max: u64, now: Now) -> Result<bool, Refuse> {
        if self.delayed == 0 {
            return Ok(false);
        }
        if self.plain > 0 {
            let text = "a batch holds delayed messages or others, not both: send them apart";
            return Err(refuse(Status::BadRecord, text));
        }
        if self.first_ms < 0 {
            let text = "a delivery time lies before 1970: 0 is for messages that are not delayed";
            return Err(refuse(Status::BadRecord, text));
        }
        let most_ms = i64::try_from(delay_ms_max).unwrap_or(i64::MAX);
        if self.last_ms > now.wall_ms.saturating_add(most_ms) {
            let text = format!(
                "a message is to be delivered in {} s, at most {} s ({} days) are allowed",
                self.last_ms.saturating_sub(now.wall_ms) / 1000,
                most_ms / 1000,
                most_ms / 86_400_000
            );
            return Err(refuse(Status::BadRecord, text));
        }
        // What is due goes to its queue at once.
        Ok(self.last_ms > now.wall_ms)
    }
}

impl<M: Memory> Shard<M> {
    /// Whether timers of a run can be taken that may be due before others that were delivered already.
    pub(in super::super) fn check_timers(&self, delays: &Delays) -> Handled {
        let (marks, most) = (&self.timers.marks, self.config.timers_behind);
        let is_behind = delays.first_ms < marks.fired().due_ms;
        if !is_behind || marks.behind_len() + delays.delayed as usize <= most {
            return Ok(());
        }
        let text = format!(
            "the clock of broker {} was set back, and {most} delayed messages since wait for times before it",
            self.config.broker
        );
        Err(Refuse { retry_after_ms: 1000, ..refuse(Status::Busy, text) })
    }

    /// Appends a run of delayed messages; returns the position of the first and the end of the last.
    pub(in super::super) fn append_timers(
        &mut self,
        run: &[u8],
        durable: bool,
        now: Now,
        out: &mut Outbox<M::Block>,
    ) -> (u64, u64) {
        let (first, end) =
            self.log.append(run, durable, None, now, out, |header, _| patch_timer(header, 0, now));
        for found in record::records(run).flatten() {
            let position = first + found.at as u64;
            let key = Key { due_ms: found.header.deliver_ms.get(), position };
            self.set_timer(key, found.header.prefix.length.get());
            let (topic, queue) = (found.header.topic.get(), found.header.queue.get());
            self.timers.delayed.set(QueueId { topic, queue });
        }
        (first, end)
    }

    /// A timer's record was appended.
    pub(super) fn set_timer(&mut self, key: Key, bytes: u32) {
        if self.timers.marks.set(key, bytes) {
            return;
        }
        let segment = self.log.segment_of(key.position).expect("it was appended there");
        self.timers.sources.insert(segment.base, key, bytes);
    }
}
