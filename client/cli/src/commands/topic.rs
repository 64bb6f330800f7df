//! `topic`, but for `produce` and `consume`.

use ringmq::{Admin, Flush, QueueStats, TopicDescription, TopicSpec};
use serde::Serialize;

use super::{admin, consume, produce};
use crate::args::{Create, Global, Settings, TopicVerb};
use crate::confirm;
use crate::failure::Failure;
use crate::output::{self, Column, age_or_dash, bytes, epoch_ms, milliseconds};

pub(super) async fn run(verb: &TopicVerb, global: &Global) -> Result<(), Failure> {
    match verb {
        TopicVerb::Create(args) => create(args, &admin(global).await?, global).await,
        TopicVerb::Alter(args) => alter(args, &admin(global).await?, global).await,
        TopicVerb::Ls { prefix, all } => ls(prefix, *all, &admin(global).await?, global).await,
        TopicVerb::Describe { topic } => describe(topic, &admin(global).await?, global).await,
        TopicVerb::Route { topic } => route(topic, &admin(global).await?, global).await,
        TopicVerb::Rm { topic } => rm(topic, &admin(global).await?, global).await,
        TopicVerb::Stats { topic } => stats(topic, &admin(global).await?, global).await,
        TopicVerb::Produce(args) => produce::run(args, global).await,
        TopicVerb::Consume(args) => consume::run(args, global).await,
    }
}

async fn create(args: &Create, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let mut spec = with_settings(TopicSpec::new(args.topic.as_str()), &args.settings);
    for broker in &args.settings.brokers {
        spec = spec.on_broker(broker.as_str());
    }
    admin.create_topic(spec).await?;
    if !global.quiet {
        eprintln!("created {}", args.topic);
    }
    describe(&args.topic, admin, global).await
}

/// The client takes over every setting; what was not named here comes from the broker's present ones.
async fn alter(args: &Create, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let wanted = &args.settings.brokers;
    let present = admin.describe_topic(&args.topic).await?;
    if let Some(missing) = wanted.iter().find(|name| !present.iter().any(|d| d.broker == **name)) {
        return Err(Failure::not_found(
            format!("{} is not on the broker {missing}", args.topic),
            format!("`ringmq topic route {}` shows where it is", args.topic),
        ));
    }
    for description in present {
        if wanted.is_empty() || wanted.contains(&description.broker) {
            let spec = with_settings(spec_of(&description), &args.settings);
            admin.alter_topic(spec.on_broker(description.broker.as_str())).await?;
        }
    }
    if !global.quiet {
        eprintln!("changed {}", args.topic);
    }
    describe(&args.topic, admin, global).await
}

fn spec_of(description: &TopicDescription) -> TopicSpec {
    let spec = TopicSpec::new(description.name.as_str())
        .read_queues(description.read_queues)
        .write_queues(description.write_queues)
        .permission(description.permission)
        .message_type(description.message_type)
        .retention_bytes(description.retention_bytes)
        .flush(description.flush);
    match description.retention {
        Some(retention) => spec.retention(retention),
        None => spec,
    }
}

fn with_settings(mut spec: TopicSpec, settings: &Settings) -> TopicSpec {
    if let Some(queues) = settings.queues {
        spec = spec.queues(queues);
    }
    if let Some(queues) = settings.read_queues {
        spec = spec.read_queues(queues);
    }
    if let Some(kind) = settings.kind {
        spec = spec.message_type(kind.into());
    }
    if let Some(rights) = settings.permission {
        spec = spec.permission(rights.into());
    }
    if let Some(retention) = settings.retention {
        spec = spec.retention(retention);
    }
    if let Some(bytes) = settings.retention_bytes {
        spec = spec.retention_bytes(bytes);
    }
    if let Some(flush) = settings.flush {
        spec = spec.flush(flush.into());
    }
    spec
}

#[derive(Serialize)]
struct NameRow {
    name: String,
}

async fn ls(prefix: &str, all: bool, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let internal = |name: &str| name.starts_with('%') || name.starts_with("RMQ_SYS_");
    let names = admin.topics(prefix).await?.into_iter();
    let rows: Vec<NameRow> =
        names.filter(|name| all || !internal(name)).map(|name| NameRow { name }).collect();
    const COLUMNS: &[Column<NameRow>] = &[Column::text("TOPIC", |row: &NameRow| row.name.clone())];
    output::list(global.output, "topics", &rows, COLUMNS)
}

#[derive(Serialize)]
struct DescriptionRow {
    topic: String,
    broker: String,
    topic_id: u32,
    version: u64,
    write_queues: u32,
    read_queues: u32,
    permission: String,
    message_type: String,
    retention_ms: Option<u64>,
    retention_bytes: Option<u64>,
    flush: &'static str,
}

const DESCRIPTION_COLUMNS: &[Column<DescriptionRow>] = &[
    Column::text("TOPIC", |row: &DescriptionRow| row.topic.clone()),
    Column::text("BROKER", |row: &DescriptionRow| row.broker.clone()),
    Column::text("TYPE", |row: &DescriptionRow| row.message_type.clone()),
    Column::text("PERMISSION", |row: &DescriptionRow| row.permission.clone()),
    Column::number("QUEUES", |row: &DescriptionRow| row.write_queues.to_string()),
    Column::text("RETENTION", |row: &DescriptionRow| {
        let time = row.retention_ms.map(std::time::Duration::from_millis).map(output::age);
        let size = row.retention_bytes.map(bytes);
        match (time, size) {
            (None, None) => "broker's".to_owned(),
            (time, size) => [time, size].into_iter().flatten().collect::<Vec<_>>().join(", "),
        }
    }),
    Column::text("FLUSH", |row: &DescriptionRow| row.flush.to_owned()),
    Column::number("READ QUEUES", |row: &DescriptionRow| row.read_queues.to_string()).wide(),
    Column::number("ID", |row: &DescriptionRow| row.topic_id.to_string()).wide(),
    Column::number("VERSION", |row: &DescriptionRow| row.version.to_string()).wide(),
];

async fn describe(topic: &str, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let rows: Vec<DescriptionRow> =
        admin.describe_topic(topic).await?.into_iter().map(description_row).collect();
    output::list(global.output, "topic", &rows, DESCRIPTION_COLUMNS)
}

fn description_row(description: TopicDescription) -> DescriptionRow {
    DescriptionRow {
        topic: description.name,
        broker: description.broker,
        topic_id: description.id,
        version: description.version,
        write_queues: description.write_queues,
        read_queues: description.read_queues,
        permission: description.permission.to_string(),
        message_type: description.message_type.to_string(),
        retention_ms: description.retention.map(milliseconds),
        retention_bytes: Some(description.retention_bytes).filter(|bytes| *bytes > 0),
        flush: match description.flush {
            Flush::Default => "broker's",
            Flush::Sync => "sync",
            Flush::Async => "async",
        },
    }
}

#[derive(Serialize)]
struct RouteRow {
    cluster: String,
    broker: String,
    broker_id: u32,
    address: String,
    shards: u16,
    topic_id: u32,
    write_queues: u32,
    read_queues: u32,
    permission: u8,
    instance: u64,
}

const ROUTE_COLUMNS: &[Column<RouteRow>] = &[
    Column::text("BROKER", |row: &RouteRow| row.broker.clone()),
    Column::text("ROLE", |row: &RouteRow| {
        (if row.broker_id == 0 { "master" } else { "slave" }).to_owned()
    }),
    Column::text("ADDRESS", |row: &RouteRow| row.address.clone()),
    Column::number("QUEUES", |row: &RouteRow| row.write_queues.to_string()),
    Column::number("SHARDS", |row: &RouteRow| row.shards.to_string()),
    Column::text("PERMISSION", |row: &RouteRow| {
        let right = |bit, name| if row.permission & bit != 0 { name } else { "" };
        format!("{}{}", right(4, "R"), right(2, "W"))
    }),
    Column::text("CLUSTER", |row: &RouteRow| row.cluster.clone()).wide(),
    Column::number("READ QUEUES", |row: &RouteRow| row.read_queues.to_string()).wide(),
    Column::number("TOPIC ID", |row: &RouteRow| row.topic_id.to_string()).wide(),
    Column::text("INSTANCE", |row: &RouteRow| format!("{:016x}", row.instance)).wide(),
];

async fn route(topic: &str, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let route = admin.route(topic).await?;
    if route.brokers.is_empty() {
        return Err(Failure::not_found(
            format!("no broker has the topic {topic}"),
            format!("`ringmq topic create {topic}`, or `ringmq topic ls`"),
        ));
    }
    let row = |broker: &ringmq::BrokerRoute| RouteRow {
        cluster: broker.cluster.clone(),
        broker: broker.broker.to_string(),
        broker_id: broker.broker_id,
        address: broker.address.to_string(),
        shards: broker.shards,
        topic_id: broker.topic_id,
        write_queues: broker.write_queues,
        read_queues: broker.read_queues,
        permission: broker.permission,
        instance: broker.instance,
    };
    let rows: Vec<RouteRow> = route.brokers.iter().map(row).collect();
    output::list(global.output, "brokers", &rows, ROUTE_COLUMNS)
}

async fn rm(topic: &str, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let queues = admin.topic_stats(topic).await?;
    let messages: u64 = queues.iter().map(|q| q.max_offset.saturating_sub(q.min_offset)).sum();
    let effect = format!(
        "deletes the topic {topic} with {messages} messages in {} queues, for good",
        queues.len()
    );
    confirm::destructive(&effect, global.yes)?;
    admin.delete_topic(topic).await?;
    if !global.quiet {
        eprintln!("deleted {topic}");
    }
    Ok(())
}

#[derive(Serialize)]
struct StatsRow {
    broker: String,
    queue: u32,
    shard: u16,
    min_offset: u64,
    max_offset: u64,
    messages: u64,
    bytes: u64,
    last_stored_ms: Option<u64>,
    last_stored_age_ms: Option<u64>,
}

const STATS_COLUMNS: &[Column<StatsRow>] = &[
    Column::text("BROKER", |row: &StatsRow| row.broker.clone()),
    Column::number("QUEUE", |row: &StatsRow| row.queue.to_string()),
    Column::number("FIRST", |row: &StatsRow| row.min_offset.to_string()),
    Column::number("NEXT", |row: &StatsRow| row.max_offset.to_string()),
    Column::number("MESSAGES", |row: &StatsRow| row.messages.to_string()),
    Column::number("LAST STORED", |row: &StatsRow| {
        age_or_dash(row.last_stored_age_ms.map(std::time::Duration::from_millis))
    }),
    Column::number("BYTES", |row: &StatsRow| bytes(row.bytes)).wide(),
    Column::number("SHARD", |row: &StatsRow| row.shard.to_string()).wide(),
];

async fn stats(topic: &str, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let mut queues = admin.topic_stats(topic).await?;
    queues.sort_by(|a, b| a.queue.cmp(&b.queue));
    let rows: Vec<StatsRow> = queues.iter().map(stats_row).collect();
    output::list(global.output, "queues", &rows, STATS_COLUMNS)
}

fn stats_row(stats: &QueueStats) -> StatsRow {
    StatsRow {
        broker: stats.queue.broker.to_string(),
        queue: stats.queue.id,
        shard: stats.shard,
        min_offset: stats.min_offset,
        max_offset: stats.max_offset,
        messages: stats.max_offset.saturating_sub(stats.min_offset),
        bytes: stats.bytes,
        last_stored_ms: stats.last_stored_at.map(epoch_ms),
        last_stored_age_ms: stats
            .last_stored_at
            .map(|at| milliseconds(at.elapsed().unwrap_or_default())),
    }
}
