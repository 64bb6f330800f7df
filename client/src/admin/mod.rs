//! Administration: topics, groups, offsets, messages, cluster.

mod cluster;
mod count;
mod group_spec;
mod groups;
mod lag;
mod messages;
mod timers;
mod topics;
mod types;

pub use group_spec::{GroupSettings, GroupSpec, RetryPauses};
pub use messages::{FoundMessages, KeyQuery};
pub use timers::{PendingMessage, PendingMessages};
pub use types::{
    BrokerStatus, GroupDescription, GroupLag, GroupMember, LagBounds, MessageType, OwnedQueue,
    Permission, QueueLag, QueueStats, ResetTo, ShardStatus, TopicDescription, TopicSpec,
};

use crate::client::Client;
use crate::connection::{Answer, Request, Tables};
use crate::consumer::Asker;
use crate::error::Result;
use crate::route::Routes;
use ringmq_schema::flatbuffers::WIPOffset;
use std::sync::Arc;
use std::time::Duration;

/// Administers a cluster.
#[derive(Clone)]
pub struct Admin {
    client: Client,
}

impl Admin {
    pub(crate) fn new(client: Client) -> Admin {
        Admin { client }
    }

    fn routes(&self) -> Arc<Routes> {
        self.client.inner.routes()
    }

    fn asker(&self) -> Asker {
        Asker { pool: self.client.inner.pool(), limit: self.limit() }
    }

    fn limit(&self) -> Duration {
        self.client.inner.request_timeout()
    }

    /// Asks a broker.
    async fn ask<T>(
        &self,
        address: &str,
        request: Request,
        build: impl FnOnce(&mut Tables) -> WIPOffset<T>,
    ) -> Result<Answer> {
        let connection = self.asker().control(&address.into()).await?;
        connection.call(request, self.limit(), build).await
    }
}
