//! Long polls: one loop per shard that has queues held.
//!
//! The next fetch leaves before the records of the last are processed. Queues that become hungry while a
//! poll is parked get a poll of their own; they join the others when it returns.

use super::feed::{HeldId, Place, Plan};
use super::reader::Reader;
use crate::connection::{Answer, Request};
use crate::error::Result;
use crate::filter::Filter;
use crate::pool::{Key, Purpose};
use futures_util::stream::{FuturesUnordered, StreamExt};
use ringmq_schema::consume as wire;
use ringmq_schema::opcode::Opcode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long a broker holds a poll (semantics.md, "push").
const POLL: Duration = Duration::from_secs(15);
/// Beyond so many parked polls of a shard new ones are short, so that their queues come together again.
const PARKED_MANY: usize = 4;
/// Length of such a poll.
const POLL_SHORT: Duration = Duration::from_secs(1);
/// Most polls of a shard at a time.
const PARKED_MAX: usize = 16;
/// Bytes of an answer.
const FETCH_BYTES: u32 = 1 << 20;
/// Most records of an answer.
const FETCH_RECORDS_MAX: usize = 16_384;
/// Pause after a fetch that failed.
const PAUSE: Duration = Duration::from_millis(200);

/// Fetches what is held of a shard until the consumer stops.
pub(super) async fn keep_fetching(
    reader: Arc<Reader>,
    broker: Arc<str>,
    shard: u16,
    wake: Arc<Notify>,
) {
    let mut polls = FuturesUnordered::new();
    loop {
        let mut later = None;
        if polls.len() < PARKED_MAX {
            match reader.feed.plan(&broker, shard) {
                Ok(plan) => {
                    let wait = if polls.len() < PARKED_MANY { POLL } else { POLL_SHORT };
                    polls.push(poll(&reader, &broker, shard, plan, wait));
                    continue;
                }
                Err(at) => later = at,
            }
        }
        tokio::select! {
            Some((plan, answer)) = polls.next(), if !polls.is_empty() => {
                take(&reader, &broker, shard, &plan, answer);
            }
            () = wake.notified() => {}
            () = sleep_until(later) => {}
            () = reader.wait_stopping() => return,
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn take(reader: &Reader, broker: &Arc<str>, shard: u16, plan: &Plan, answer: Result<Answer>) {
    let taken = answer.and_then(|answer| reader.feed.answered(plan, &answer));
    match taken {
        Ok(fenced) => {
            let address = Arc::clone(broker);
            let place = Place { broker: Arc::clone(broker), address, shard };
            fenced.into_iter().for_each(|id: HeldId| reader.fenced(id, &place));
        }
        Err(error) => {
            tracing::debug!(%error, %broker, shard, "fetch failed");
            reader.feed.unask(plan);
        }
    }
}

async fn poll(
    reader: &Arc<Reader>,
    broker: &Arc<str>,
    shard: u16,
    plan: Plan,
    wait: Duration,
) -> (Plan, Result<Answer>) {
    let answer = ask(reader, broker, shard, &plan, wait).await;
    if answer.is_err() {
        tokio::time::sleep(PAUSE).await;
    }
    (plan, answer)
}

async fn ask(
    reader: &Reader,
    broker: &Arc<str>,
    shard: u16,
    plan: &Plan,
    wait: Duration,
) -> Result<Answer> {
    let address = reader.address_of(broker)?;
    let key = Key { address, shard, purpose: Purpose::Fetch };
    let connection = reader.asker.pool.get(&key).await?;
    let mut filters: Vec<&Filter> = Vec::new();
    let queues: Vec<wire::FetchQueue> = plan
        .asks
        .iter()
        .map(|ask| {
            let filter = filter_number(&mut filters, &ask.filter);
            let (topic, queue) = (ask.topic_id, ask.queue);
            wire::FetchQueue::new(topic, queue, ask.offset, ask.generation, filter, 0)
        })
        .collect();
    let group = plan.asks.first().map_or(0, |ask| ask.group_id);
    let request = Request::new(Opcode::Fetch, "fetch").shard(shard);
    let limit = wait + reader.asker.limit;
    connection
        .call(request, limit, |fbb| {
            let tables: Vec<_> = filters
                .iter()
                .map(|filter| {
                    let hashes = filter.hashes().map(|hashes| fbb.create_vector(&hashes));
                    let sql = filter.sql_text().map(|text| fbb.create_string(text));
                    wire::TagFilter::create(fbb, &wire::TagFilterArgs { hashes, sql })
                })
                .collect();
            let args = wire::FetchArgs {
                group,
                member: Some(&reader.member),
                wait_ms: wait.as_millis() as u32,
                min_bytes: 1,
                max_bytes: FETCH_BYTES,
                max_records: plan.max_records.clamp(1, FETCH_RECORDS_MAX) as u32,
                queues: Some(fbb.create_vector(&queues)),
                filters: Some(fbb.create_vector(&tables)),
                checked: plan.checked,
            };
            wire::Fetch::create(fbb, &args)
        })
        .await
}

/// 0 for everything, or the filter's place in the list, counted from 1.
fn filter_number<'a>(filters: &mut Vec<&'a Filter>, filter: &'a Filter) -> u16 {
    if filter.is_all() {
        return 0;
    }
    let at = filters.iter().position(|other| *other == filter).unwrap_or_else(|| {
        filters.push(filter);
        filters.len() - 1
    });
    at as u16 + 1
}
