//! How many messages of a queue a filter wants, as its shard counts them.

use super::Admin;
use super::types::LagBounds;
use crate::connection::Request;
use crate::error::{Error, Result};
use crate::filter::Filter;
use ringmq_schema::consume as wire;
use ringmq_schema::error::Status;
use ringmq_schema::opcode::Opcode;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

const OPERATION: &str = "count messages";
/// Pause before a shard is asked again that could not count.
const PAUSE: Duration = Duration::from_millis(100);

/// Where and what to count.
pub(super) struct Counting<'a> {
    pub(super) address: &'a Arc<str>,
    pub(super) shard: u16,
    pub(super) topic: u32,
    pub(super) queue: u32,
    pub(super) by: By<'a>,
}

/// Which messages count.
#[derive(Clone, Copy)]
pub(super) enum By<'a> {
    Filter(&'a Filter),
    /// Those that this group popped by last.
    PoppedBy(u32),
}

/// What was counted.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) messages: u64,
    pub(super) unreadable: u64,
    /// When the first was stored, ms since epoch; 0: there is none.
    pub(super) first_ms: i64,
    /// It was not counted to the end.
    pub(super) at_least: bool,
    /// What the group popped by, as far as can be said.
    pub(super) filter: Option<String>,
}

impl Admin {
    /// Counts the messages of a range of offsets, one request after the other.
    pub(super) async fn count(
        &self,
        counting: &Counting<'_>,
        range: Range<u64>,
        bounds: LagBounds,
    ) -> Counted {
        let mut counted = Counted::default();
        let deadline = Instant::now() + bounds.time;
        let mut at = range.start;
        while at < range.end {
            match self.count_some(counting, at..range.end, &mut counted).await {
                Ok((_, true)) => break,
                Ok((next, false)) => at = next,
                Err(error) => {
                    let is_passing =
                        error.is_retryable() || error.status() == Some(Status::ReadFailed);
                    if !is_passing || Instant::now() >= deadline {
                        // Without it the figures still stand, of what could be counted.
                        tracing::debug!(%error, "cannot count to the end");
                        counted.at_least = true;
                        break;
                    }
                    tokio::time::sleep(error.retry_after().unwrap_or(PAUSE)).await;
                    continue;
                }
            }
            let is_enough = at - range.start >= bounds.messages || Instant::now() >= deadline;
            if is_enough && counting.is_by_expression(&counted) {
                counted.at_least = true;
                break;
            }
        }
        counted
    }

    /// One request; returns where to go on, and whether nothing is left.
    async fn count_some(
        &self,
        counting: &Counting<'_>,
        range: Range<u64>,
        into: &mut Counted,
    ) -> Result<(u64, bool)> {
        let request = Request::new(Opcode::CountMessages, OPERATION).shard(counting.shard);
        let answer = self
            .ask(counting.address, request, |fbb| {
                let (filter, popped_by) = match counting.by {
                    By::PoppedBy(group) => (None, group),
                    By::Filter(filter) if filter.is_all() => (None, 0),
                    By::Filter(filter) => {
                        let hashes = filter.hashes().map(|hashes| fbb.create_vector(&hashes));
                        let sql = filter.sql_text().map(|text| fbb.create_string(text));
                        let args = wire::TagFilterArgs { hashes, sql };
                        (Some(wire::TagFilter::create(fbb, &args)), 0)
                    }
                };
                let args = wire::CountMessagesArgs {
                    topic: counting.topic,
                    queue: counting.queue,
                    begin: range.start,
                    end: range.end,
                    filter,
                    popped_by,
                };
                wire::CountMessages::create(fbb, &args)
            })
            .await?;
        let table = answer.read::<wire::CountMessagesAnswer<'_>>(OPERATION)?;
        into.messages += table.matching();
        into.unreadable += table.unreadable();
        into.first_ms = if into.first_ms == 0 { table.first_ms() } else { into.first_ms };
        into.filter = match (table.sql(), table.tags()) {
            (Some(text), _) => Some(text.to_owned()),
            (None, 0) => None,
            (None, 1) => Some("1 tag".to_owned()),
            (None, tags) => Some(format!("{tags} tags")),
        };
        let (next, is_complete) = (table.next(), table.complete());
        if !is_complete && next <= range.start {
            let text = format!("the broker went on at {next} after {}", range.start);
            return Err(Error::protocol(OPERATION, text));
        }
        Ok((next, is_complete))
    }
}

impl Counting<'_> {
    fn is_by_expression(&self, counted: &Counted) -> bool {
        match self.by {
            By::Filter(filter) => filter.sql_text().is_some(),
            By::PoppedBy(_) => counted.filter.is_some(),
        }
    }
}
