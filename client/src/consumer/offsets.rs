//! Requests about offsets, to the shards of the queues.

use super::ConsumeFrom;
use super::feed::{Commit, Place};
use crate::connection::{Answer, Connection, Request};
use crate::error::{Error, Result};
use crate::message::unix_ms;
use crate::pool::{Key, Pool, Purpose};
use ringmq_schema::admin::{CreateGroup, CreateGroupArgs, GroupAnswer};
use ringmq_schema::consume as wire;
use ringmq_schema::error::Status;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, Vector, WIPOffset};
use ringmq_schema::frame::ANY_SHARD;
use ringmq_schema::opcode::Opcode;
use std::sync::Arc;
use std::time::Duration;

/// `at_ms` of a search that stands for the first readable offset, and for the high watermark.
pub(crate) const AT_FIRST: i64 = -1;
/// See [`AT_FIRST`].
pub(crate) const AT_LAST: i64 = -2;

impl ConsumeFrom {
    pub(super) fn at_ms(self) -> i64 {
        match self {
            ConsumeFrom::First => AT_FIRST,
            ConsumeFrom::Last => AT_LAST,
            ConsumeFrom::Time(at) => unix_ms(at),
        }
    }
}

/// Queues in a request that is being built.
type Refs<'a> = WIPOffset<Vector<'a, wire::QueueRef>>;

/// Asks brokers, each over its control connection.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) pool: Arc<Pool>,
    pub(crate) limit: Duration,
}

impl Asker {
    pub(crate) async fn control(&self, address: &Arc<str>) -> Result<Arc<Connection>> {
        let address = Arc::clone(address);
        self.pool.get(&Key { address, shard: ANY_SHARD, purpose: Purpose::Control }).await
    }

    /// A request that names queues by topic id and number.
    async fn ask_of<T>(
        &self,
        address: &Arc<str>,
        request: Request,
        queues: &[(u32, u32)],
        build: impl for<'a> FnOnce(&mut FlatBufferBuilder<'static>, Refs<'a>) -> WIPOffset<T>,
    ) -> Result<Answer> {
        let refs: Vec<_> = queues.iter().map(|(t, q)| wire::QueueRef::new(*t, *q)).collect();
        let connection = self.control(address).await?;
        let built = |fbb: &mut FlatBufferBuilder<'static>| {
            let queues = fbb.create_vector(&refs);
            build(fbb, queues)
        };
        connection.call(request, self.limit, built).await
    }

    /// Committed and available offsets of queues of one shard.
    pub(crate) async fn query(
        &self,
        address: &Arc<str>,
        shard: u16,
        group: u32,
        queues: &[(u32, u32)],
    ) -> Result<Vec<wire::QueueOffsets>> {
        let request = Request::new(Opcode::QueryOffsets, "query offsets").shard(shard);
        let asking = self.ask_of(address, request, queues, |fbb, queues| {
            let args = wire::QueryOffsetsArgs { group, queues: Some(queues) };
            wire::QueryOffsets::create(fbb, &args)
        });
        let answer = asking.await?;
        let table = answer.read::<wire::QueryOffsetsAnswer<'_>>("query offsets")?;
        Ok(table.queues().into_iter().flatten().copied().collect())
    }

    /// How a group stands in queues of one shard.
    pub(crate) async fn lag(
        &self,
        address: &Arc<str>,
        shard: u16,
        group: u32,
        queues: &[(u32, u32)],
    ) -> Result<Vec<wire::QueueLag>> {
        let operation = "query lag";
        let request = Request::new(Opcode::QueryLag, operation).shard(shard);
        let asking = self.ask_of(address, request, queues, |fbb, queues| {
            wire::QueryLag::create(fbb, &wire::QueryLagArgs { group, queues: Some(queues) })
        });
        let answer = asking.await?;
        let table = answer.read::<wire::QueryLagAnswer<'_>>(operation)?;
        Ok(table.queues().into_iter().flatten().copied().collect())
    }

    /// Offsets by time of queues of one shard: (topic id, queue, ms or `AT_`).
    pub(crate) async fn search(
        &self,
        address: &Arc<str>,
        shard: u16,
        queues: &[(u32, u32, i64)],
    ) -> Result<Vec<wire::FoundOffset>> {
        let request = Request::new(Opcode::SearchOffsets, "search offsets").shard(shard);
        let at: Vec<_> = queues.iter().map(|(t, q, ms)| wire::OffsetAt::new(*t, *q, *ms)).collect();
        let answer = self
            .control(address)
            .await?
            .call(request, self.limit, |fbb| {
                let queues = Some(fbb.create_vector(&at));
                wire::SearchOffsets::create(fbb, &wire::SearchOffsetsArgs { queues })
            })
            .await?;
        let table = answer.read::<wire::SearchOffsetsAnswer<'_>>("search offsets")?;
        Ok(table.queues().into_iter().flatten().copied().collect())
    }

    /// The offset of one queue by time.
    pub(crate) async fn search_one(
        &self,
        place: &Place,
        topic: u32,
        queue: u32,
        at_ms: i64,
    ) -> Result<u64> {
        let found = self.search(&place.address, place.shard, &[(topic, queue, at_ms)]).await?;
        let Some(found) = found.first() else {
            return Err(Error::protocol("search offsets", "the answer names no queue"));
        };
        match Status::from_code(found.status()) {
            Status::Ok => Ok(found.offset()),
            status => Err(Error::of_status("search offsets", status)),
        }
    }

    /// Commits positions of queues of one shard; returns the statuses in the order of `commits`.
    pub(super) async fn commit(
        &self,
        member: wire::MemberId,
        commits: &[Commit],
    ) -> Result<Vec<Status>> {
        let Some(first) = commits.first() else { return Ok(Vec::new()) };
        let request =
            Request::new(Opcode::CommitOffsets, "commit").shard(first.holding.place.shard);
        let group = first.holding.group_id;
        let entries: Vec<_> = commits
            .iter()
            .map(|Commit { holding, at, .. }| {
                let (topic, queue) = (holding.topic_id, holding.queue.id);
                let generation = holding.generation;
                wire::CommitEntry::new(topic, queue, at.offset, generation, at.attempts, 0)
            })
            .collect();
        let answer = self
            .control(&first.holding.place.address)
            .await?
            .call(request, self.limit, |fbb| {
                let entries = Some(fbb.create_vector(&entries));
                let args = wire::CommitOffsetsArgs { group, member: Some(&member), entries };
                wire::CommitOffsets::create(fbb, &args)
            })
            .await?;
        let table = answer.read::<wire::CommitOffsetsAnswer<'_>>("commit")?;
        let results: Vec<_> = table.entries().into_iter().flatten().copied().collect();
        let status_of = |commit: &Commit| {
            let key = (commit.holding.topic_id, commit.holding.queue.id);
            let result = results.iter().find(|result| (result.topic(), result.queue()) == key);
            result.map_or(Status::Internal, |result| Status::from_code(result.status()))
        };
        Ok(commits.iter().map(status_of).collect())
    }

    /// The group's number on a broker; makes the group where it is not known.
    pub(crate) async fn group_id(&self, address: &Arc<str>, group: &str) -> Result<u32> {
        let request = Request::new(Opcode::CreateGroup, "create group");
        let answer = self
            .control(address)
            .await?
            .call(request, self.limit, |fbb| {
                let name = Some(fbb.create_string(group));
                CreateGroup::create(fbb, &CreateGroupArgs { name, settings: None })
            })
            .await
            .map_err(|error| error.on(group))?;
        let table = answer.read::<GroupAnswer<'_>>("create group")?;
        match table.group() {
            Some(group) => Ok(group.id()),
            None => Err(Error::protocol("create group", "the answer names no group")),
        }
    }
}
