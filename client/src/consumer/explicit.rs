//! One fetch of one queue, as the user says, beside everything that a consumer holds.

use super::feed::Place;
use super::offsets::Asker;
use crate::connection::{Answer, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Filter;
use crate::pool::{Key, Purpose};
use crate::record::Record;
use crate::route::{Queue, Routes};
use ringmq_schema::consume as wire;
use ringmq_schema::error::Status;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::record;
use std::sync::Arc;

/// Bytes of an answer.
const PULL_BYTES: u32 = 1 << 20;

/// What one pull found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Pulled {
    /// In the queue's order; fewer than asked for where they are large or a filter leaves some out, and none where there
    /// are none yet.
    pub records: Vec<Record>,
    /// Where to go on: behind these records and what was left out. When the offset that was asked for is not there any
    /// more, or not yet, the nearest that is.
    pub next_offset: u64,
    /// First offset that is still there.
    pub min_offset: u64,
    /// Offset of the next message.
    pub max_offset: u64,
}

impl Asker {
    /// Where a queue is, and the topic's number there.
    pub(crate) async fn place_of(&self, routes: &Routes, queue: &Queue) -> Result<(Place, u32)> {
        let route = routes.get(&queue.topic).await?;
        let broker = route.master(&queue.broker).filter(|b| queue.id < b.read_queues);
        let Some(broker) = broker else {
            let text = "the topic's route has no such queue";
            return Err(Error::new(ErrorKind::NotFound, "find queue", text).on(queue.to_string()));
        };
        let place = Place {
            broker: Arc::clone(&broker.broker),
            address: Arc::clone(&broker.address),
            shard: broker.shard_of(queue.id),
        };
        Ok((place, broker.topic_id))
    }

    /// At most `max` records of a queue from `offset` on, without waiting for any.
    pub(crate) async fn pull(
        &self,
        routes: &Routes,
        queue: &Queue,
        filter: &Filter,
        offset: u64,
        max: usize,
    ) -> Result<Pulled> {
        let (place, topic_id) = self.place_of(routes, queue).await?;
        let key = Key {
            address: Arc::clone(&place.address),
            shard: place.shard,
            purpose: Purpose::Fetch,
        };
        let connection = self.pool.get(&key).await?;
        let request = Request::new(Opcode::Fetch, "pull").shard(place.shard);
        let filtered = u16::from(!filter.is_all());
        let answer = connection
            .call(request, self.limit, |fbb| {
                let hashes = filter.hashes().map(|hashes| fbb.create_vector(&hashes));
                let sql = filter.sql_text().map(|text| fbb.create_string(text));
                let filter = wire::TagFilter::create(fbb, &wire::TagFilterArgs { hashes, sql });
                let filters = &[filter][..usize::from(filtered)];
                let wanted = wire::FetchQueue::new(topic_id, queue.id, offset, 0, filtered, 0);
                let args = wire::FetchArgs {
                    group: 0,
                    member: Some(&wire::MemberId::new(0, 0)),
                    wait_ms: 0,
                    min_bytes: 1,
                    max_bytes: PULL_BYTES,
                    max_records: u32::try_from(max).unwrap_or(u32::MAX).max(1),
                    queues: Some(fbb.create_vector(&[wanted])),
                    filters: Some(fbb.create_vector(filters)),
                    // What is damaged is said, and does not end the connection.
                    checked: true,
                };
                wire::Fetch::create(fbb, &args)
            })
            .await
            .map_err(|error| error.on(queue.to_string()))?;
        read(queue, place.shard, filter, offset, &answer)
    }
}

fn read(
    queue: &Queue,
    shard: u16,
    filter: &Filter,
    offset: u64,
    answer: &Answer,
) -> Result<Pulled> {
    let table = answer.read::<wire::FetchAnswer<'_>>("pull")?;
    let queue = Arc::new(queue.clone());
    // Without anything to say of the queue, there is nothing at this offset yet.
    let mut pulled =
        Pulled { records: Vec::new(), next_offset: offset, min_offset: 0, max_offset: offset };
    if let Some(fetched) = table.queues().into_iter().flatten().next() {
        let (min, max) = (fetched.min_offset(), fetched.high_watermark());
        (pulled.min_offset, pulled.max_offset) = (min, max);
        pulled.next_offset = match Status::from_code(fetched.status()) {
            _ if fetched.status() == 0 => fetched.next_offset().max(offset),
            Status::OffsetOutOfRange => offset.clamp(min, max.max(min)),
            status => return Err(Error::of_status("pull", status).on(queue.to_string())),
        };
    }
    let run = answer.run();
    let mut at = 0;
    while at < run.len() {
        let damaged =
            |error: String| Error::new(ErrorKind::Corrupt, "pull", error).on(queue.to_string());
        let (end, found) =
            record::read_one(&run, at).map_err(|error| damaged(error.to_string()))?;
        if found.is_some() {
            let record = Record::verify(&queue, shard, run.slice(at..end)).map_err(damaged)?;
            if record.offset() >= offset && filter.matches(record.tag()) {
                pulled.records.push(record);
            }
        }
        at = end;
    }
    Ok(pulled)
}
