//! `cluster`.

use ringmq::{Admin, BrokerStatus, ShardStatus};
use serde::Serialize;

use super::admin;
use crate::args::{ClusterVerb, Global};
use crate::failure::{Failure, chain};
use crate::output::{self, Column, age, bytes, milliseconds};

pub(super) async fn run(verb: &ClusterVerb, global: &Global) -> Result<(), Failure> {
    let admin = admin(global).await?;
    match verb {
        ClusterVerb::Brokers => brokers(&admin, global).await,
        ClusterVerb::Status => status(&admin, global).await,
    }
}

#[derive(Serialize)]
struct BrokerRow {
    cluster: String,
    broker: String,
    broker_id: u32,
    role: &'static str,
    address: String,
    shards: u16,
    topics: u32,
    topics_version: u64,
    instance: u64,
    last_heartbeat_ms: u64,
}

impl From<&BrokerStatus> for BrokerRow {
    fn from(status: &BrokerStatus) -> BrokerRow {
        BrokerRow {
            cluster: status.cluster.clone(),
            broker: status.broker.clone(),
            broker_id: status.broker_id,
            role: if status.broker_id == 0 { "master" } else { "slave" },
            address: status.address.clone(),
            shards: status.shards,
            topics: status.topics,
            topics_version: status.version,
            instance: status.instance,
            last_heartbeat_ms: milliseconds(status.idle),
        }
    }
}

const BROKER_COLUMNS: &[Column<BrokerRow>] = &[
    Column::text("CLUSTER", |row: &BrokerRow| row.cluster.clone()),
    Column::text("BROKER", |row: &BrokerRow| row.broker.clone()),
    Column::text("ROLE", |row: &BrokerRow| row.role.to_owned()),
    Column::text("ADDRESS", |row: &BrokerRow| row.address.clone()),
    Column::number("SHARDS", |row: &BrokerRow| row.shards.to_string()),
    Column::number("TOPICS", |row: &BrokerRow| row.topics.to_string()),
    Column::number("HEARTBEAT", |row: &BrokerRow| format!("{}ms ago", row.last_heartbeat_ms)),
    Column::number("ID", |row: &BrokerRow| row.broker_id.to_string()).wide(),
    Column::number("VERSION", |row: &BrokerRow| row.topics_version.to_string()).wide(),
    Column::text("INSTANCE", |row: &BrokerRow| format!("{:016x}", row.instance)).wide(),
];

async fn brokers(admin: &Admin, global: &Global) -> Result<(), Failure> {
    let rows: Vec<BrokerRow> = admin.brokers().await?.iter().map(BrokerRow::from).collect();
    output::list(global.output, "brokers", &rows, BROKER_COLUMNS)
}

#[derive(Serialize)]
struct StatusRow {
    #[serde(flatten)]
    broker: BrokerRow,
    state: String,
    uptime_ms: u64,
    messages_in: u64,
    messages_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    queues: u64,
    connections: u64,
    shard_states: Vec<ShardRow>,
}

#[derive(Serialize)]
struct ShardRow {
    shard: u16,
    epoch: u32,
    appended_bytes: u64,
    written_bytes: u64,
    flushed_bytes: u64,
    messages_in: u64,
    messages_out: u64,
    queues: u32,
    connections: u32,
    failed: Option<String>,
}

impl From<&ShardStatus> for ShardRow {
    fn from(status: &ShardStatus) -> ShardRow {
        ShardRow {
            shard: status.shard,
            epoch: status.epoch,
            appended_bytes: status.appended,
            written_bytes: status.written,
            flushed_bytes: status.flushed,
            messages_in: status.messages_in,
            messages_out: status.messages_out,
            queues: status.queues,
            connections: status.connections,
            failed: status.failed.clone(),
        }
    }
}

const STATUS_COLUMNS: &[Column<StatusRow>] = &[
    Column::text("BROKER", |row: &StatusRow| row.broker.broker.clone()),
    Column::text("ROLE", |row: &StatusRow| row.broker.role.to_owned()),
    Column::text("ADDRESS", |row: &StatusRow| row.broker.address.clone()),
    Column::text("STATE", |row: &StatusRow| row.state.clone()),
    Column::number("SHARDS", |row: &StatusRow| row.broker.shards.to_string()),
    Column::number("TOPICS", |row: &StatusRow| row.broker.topics.to_string()),
    Column::number("IN", |row: &StatusRow| row.messages_in.to_string()),
    Column::number("OUT", |row: &StatusRow| row.messages_out.to_string()),
    Column::number("UPTIME", |row: &StatusRow| {
        age(std::time::Duration::from_millis(row.uptime_ms))
    }),
    Column::text("CLUSTER", |row: &StatusRow| row.broker.cluster.clone()).wide(),
    Column::number("QUEUES", |row: &StatusRow| row.queues.to_string()).wide(),
    Column::number("CONNECTIONS", |row: &StatusRow| row.connections.to_string()).wide(),
    Column::number("BYTES IN", |row: &StatusRow| bytes(row.bytes_in)).wide(),
    Column::number("BYTES OUT", |row: &StatusRow| bytes(row.bytes_out)).wide(),
];

async fn status(admin: &Admin, global: &Global) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for broker in admin.brokers().await? {
        // A broker that does not answer is a finding, not the end of the listing.
        let asked = match broker.broker_id {
            0 => admin.shards(&broker.broker).await.map_err(|error| chain(&error)),
            _ => Ok(Vec::new()),
        };
        rows.push(status_row(&broker, asked));
    }
    output::list(global.output, "brokers", &rows, STATUS_COLUMNS)
}

fn status_row(broker: &BrokerStatus, asked: Result<Vec<ShardStatus>, String>) -> StatusRow {
    let (state, shards) = match asked {
        Err(error) => (error, Vec::new()),
        Ok(shards) => {
            let failed = shards.iter().filter(|shard| shard.failed.is_some()).count();
            let state = match failed {
                0 => "ok".to_owned(),
                _ => format!("{failed} of {} shards do not write", shards.len()),
            };
            (state, shards)
        }
    };
    let sum = |figure: fn(&ShardStatus) -> u64| shards.iter().map(figure).sum();
    StatusRow {
        broker: BrokerRow::from(broker),
        state,
        uptime_ms: shards.iter().map(|shard| milliseconds(shard.uptime)).max().unwrap_or(0),
        messages_in: sum(|shard| shard.messages_in),
        messages_out: sum(|shard| shard.messages_out),
        bytes_in: sum(|shard| shard.bytes_in),
        bytes_out: sum(|shard| shard.bytes_out),
        queues: sum(|shard| u64::from(shard.queues)),
        connections: sum(|shard| u64::from(shard.connections)),
        shard_states: shards.iter().map(ShardRow::from).collect(),
    }
}
