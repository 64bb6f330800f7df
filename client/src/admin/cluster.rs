//! Brokers and shards.

use super::Admin;
use super::types::{BrokerStatus, ShardStatus};
use crate::connection::Request;
use crate::error::{Error, ErrorKind, Result};
use ringmq_schema::admin as wire;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::route::{QueryCluster, QueryClusterAnswer, QueryClusterArgs};
use std::time::Duration;

impl Admin {
    /// The brokers that the name servers know, by name.
    pub async fn brokers(&self) -> Result<Vec<BrokerStatus>> {
        let request = Request::new(Opcode::QueryCluster, "query cluster");
        let answer = self
            .routes()
            .ask(request, |fbb| QueryCluster::create(fbb, &QueryClusterArgs {}))
            .await?;
        let table = answer.read::<QueryClusterAnswer<'_>>("query cluster")?;
        let brokers = table.brokers().into_iter().flatten().map(|broker| BrokerStatus {
            cluster: broker.cluster().unwrap_or_default().to_owned(),
            broker: broker.broker().to_owned(),
            broker_id: broker.broker_id(),
            address: broker.address().to_owned(),
            instance: broker.instance(),
            shards: broker.shards(),
            topics: broker.topics(),
            version: broker.version(),
            idle: Duration::from_millis(broker.idle_ms()),
        });
        let mut brokers: Vec<BrokerStatus> = brokers.collect();
        brokers.sort_by(|a, b| (&a.broker, a.broker_id).cmp(&(&b.broker, b.broker_id)));
        Ok(brokers)
    }

    pub(super) async fn masters(&self) -> Result<Vec<BrokerStatus>> {
        let mut brokers = self.brokers().await?;
        brokers.retain(|broker| broker.broker_id == 0 && broker.shards > 0);
        Ok(brokers)
    }

    /// Figures of each shard of a broker.
    pub async fn shards(&self, broker: &str) -> Result<Vec<ShardStatus>> {
        let operation = "query shards";
        let brokers = self.brokers().await?;
        let Some(found) = brokers.iter().find(|known| known.broker == broker) else {
            let text = "the name servers know no broker of that name";
            return Err(Error::new(ErrorKind::NotFound, operation, text).on(broker));
        };
        let mut shards = Vec::new();
        for shard in 0..found.shards {
            let request = Request::new(Opcode::QueryShard, operation).shard(shard);
            let answer = self.ask(&found.address, request, |fbb| {
                wire::QueryShard::create(fbb, &wire::QueryShardArgs {})
            });
            let answer = answer.await.map_err(|error| error.on(format!("{broker}/{shard}")))?;
            let table = answer.read::<wire::QueryShardAnswer<'_>>(operation)?;
            shards.push(ShardStatus {
                broker: broker.to_owned(),
                shard,
                epoch: table.epoch(),
                appended: table.appended(),
                written: table.written(),
                flushed: table.flushed(),
                messages_in: table.messages_in(),
                messages_out: table.messages_out(),
                bytes_in: table.bytes_in(),
                bytes_out: table.bytes_out(),
                queues: table.queues(),
                connections: table.connections(),
                uptime: Duration::from_millis(table.uptime_ms()),
                failed: table.failed().map(str::to_owned),
            });
        }
        Ok(shards)
    }
}
