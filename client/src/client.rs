//! The client: one per program and cluster. Everything else is made from it.

use crate::admin::Admin;
use crate::consumer::{PullConsumerBuilder, PushConsumerBuilder, SimpleConsumerBuilder};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::Pool;
use crate::producer::ProducerBuilder;
use crate::route::Routes;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::task::JoinSet;

/// Environment variable that names the name servers.
const NAMESRV_ADDR: &str = "NAMESRV_ADDR";

/// A connection to a cluster. Clones share everything.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<ClientInner>,
}

/// What `Client::shutdown` closes.
pub(crate) trait Closing: Send + Sync {
    fn close_within(
        self: Arc<Self>,
        limit: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + Send>>;
}

pub(crate) struct ClientInner {
    settings: ClientBuilder,
    pool: Arc<Pool>,
    routes: Arc<Routes>,
    /// Dropping it ends the tasks in it.
    tasks: Mutex<JoinSet<()>>,
    opened: Mutex<Vec<Weak<dyn Closing>>>,
}

impl ClientInner {
    pub(crate) fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool)
    }

    pub(crate) fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes)
    }

    /// Limit for a request other than sends and long polls.
    pub(crate) fn request_timeout(&self) -> Duration {
        self.settings.request_timeout
    }

    /// Name of the program.
    pub(crate) fn name(&self) -> &str {
        &self.settings.name
    }

    /// Runs a task that ends with the client.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().expect("nothing panics with it locked");
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Has `shutdown` close it.
    pub(crate) fn register<C: Closing + 'static>(&self, closing: &Arc<C>) {
        let mut opened = self.opened.lock().expect("nothing panics with it locked");
        opened.retain(|other| other.strong_count() > 0);
        let closing: Arc<dyn Closing> = Arc::clone(closing) as _;
        opened.push(Arc::downgrade(&closing));
    }
}

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ClientBuilder {
    name_servers: String,
    name: String,
    connect_timeout: Duration,
    request_timeout: Duration,
}

impl Client {
    /// Connects to a cluster by its name servers: `host:port;host:port`.
    pub async fn connect(name_servers: impl Into<String>) -> Result<Client> {
        Client::builder(name_servers).connect().await
    }

    /// Like [`Client::connect`] with the addresses in `NAMESRV_ADDR`.
    pub async fn from_env() -> Result<Client> {
        match std::env::var(NAMESRV_ADDR) {
            Ok(name_servers) => Client::connect(name_servers).await,
            Err(cause) => {
                let text = format!("{NAMESRV_ADDR} is not set: it names the name servers");
                Err(Error::new(ErrorKind::Invalid, "connect", text).because(cause))
            }
        }
    }

    /// Settings to connect with.
    pub fn builder(name_servers: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            name_servers: name_servers.into(),
            name: format!("ringmq/{}", env!("CARGO_PKG_VERSION")),
            connect_timeout: Duration::from_secs(3),
            request_timeout: Duration::from_secs(5),
        }
    }

    /// A producer under this name, shown in logs and metrics.
    pub fn producer(&self, name: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), name.into())
    }

    /// A consumer that calls a listener, as a member of this group.
    pub fn push_consumer(&self, group: impl Into<String>) -> PushConsumerBuilder {
        PushConsumerBuilder::new(self.clone(), group.into())
    }

    /// A consumer that is asked for records and keeps its position as this group.
    pub fn pull_consumer(&self, group: impl Into<String>) -> PullConsumerBuilder {
        PullConsumerBuilder::new(self.clone(), group.into())
    }

    /// A consumer that hands out messages one by one, each with an acknowledgement of its own, as a member of this
    /// group.
    pub fn simple_consumer(&self, group: impl Into<String>) -> SimpleConsumerBuilder {
        SimpleConsumerBuilder::new(self.clone(), group.into())
    }

    /// Topics, groups, offsets, cluster.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// Closes every producer and consumer of this client and its connections: windows drain, offsets are
    /// committed, groups are left. What did not end within `limit` is cut off, and the first such said.
    pub async fn shutdown(&self, limit: Duration) -> Result<()> {
        let opened: Vec<Arc<dyn Closing>> = {
            let mut opened = self.inner.opened.lock().expect("nothing panics with it locked");
            opened.drain(..).filter_map(|closing| closing.upgrade()).collect()
        };
        let closing = opened.into_iter().map(|opened| opened.close_within(limit));
        let closed = futures_util::future::join_all(closing).await;
        let mut tasks = {
            let mut tasks = self.inner.tasks.lock().expect("nothing panics with it locked");
            std::mem::take(&mut *tasks)
        };
        tasks.shutdown().await;
        self.inner.pool.close();
        closed.into_iter().collect()
    }
}

impl ClientBuilder {
    /// Name of the program, shown by brokers to people.
    pub fn name(mut self, name: impl Into<String>) -> ClientBuilder {
        self.name = name.into();
        self
    }

    /// Limit for opening a connection. Default 3 s.
    pub fn connect_timeout(mut self, limit: Duration) -> ClientBuilder {
        self.connect_timeout = limit;
        self
    }

    /// Limit for a request other than sends and long polls. Default 5 s.
    pub fn request_timeout(mut self, limit: Duration) -> ClientBuilder {
        self.request_timeout = limit;
        self
    }

    /// Connects: at least one name server must answer.
    pub async fn connect(self) -> Result<Client> {
        let servers = self.name_servers.split(';').map(str::trim).filter(|s| !s.is_empty());
        let servers: Vec<Arc<str>> = servers.map(Arc::from).collect();
        if servers.is_empty() {
            let text = "no name server is named; give host:port, several separated by ;";
            return Err(Error::new(ErrorKind::Invalid, "connect", text));
        }
        for server in &servers {
            let port = server.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(_))) {
                let text = "a name server is named by host:port, as in 127.0.0.1:9876";
                return Err(Error::new(ErrorKind::Invalid, "connect", text).on(&**server));
            }
        }
        let pool = Arc::new(Pool::new(self.name.clone(), self.connect_timeout));
        let routes = Arc::new(Routes::new(servers, Arc::clone(&pool), self.request_timeout));
        let followed = routes.follow_any().await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&routes).keep(followed));
        let (tasks, opened) = (Mutex::new(tasks), Mutex::default());
        Ok(Client { inner: Arc::new(ClientInner { settings: self, pool, routes, tasks, opened }) })
    }
}
