//! One file per noun; `topic produce` and `topic consume` have their own.

#[cfg(target_os = "linux")]
mod bench;
mod cluster;
mod consume;
#[cfg(target_os = "linux")]
mod dev;
mod dlq;
mod generate;
mod group;
#[cfg(target_os = "linux")]
mod interrupt;
#[cfg(target_os = "linux")]
mod log;
mod message;
mod pop;
mod produce;
#[cfg(target_os = "linux")]
mod quickstart;
mod timer;
mod topic;
#[cfg(target_os = "linux")]
mod tune;

use std::time::Duration;

use ringmq::{Admin, Client};

use crate::args::{Arguments, Global, Noun};
use crate::failure::{Exit, Failure};

/// Longest wait for windows to drain and groups to be left.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Runs the command and says how it ended.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let global = arguments.global;
    match arguments.noun {
        #[cfg(target_os = "linux")]
        Noun::Dev(args) => dev::run(&args, &global),
        #[cfg(target_os = "linux")]
        Noun::Quickstart(args) => quickstart::run(&args, &global),
        #[cfg(target_os = "linux")]
        Noun::Log(verb) => log::run(&verb, &global),
        #[cfg(target_os = "linux")]
        Noun::Bench(args) => bench::run(&args, &global),
        #[cfg(target_os = "linux")]
        Noun::Tune(verb) => tune::run(&verb, &global),
        Noun::Generate(verb) => generate::run(&verb),
        Noun::Cluster(verb) => with_client(cluster::run(&verb, &global)),
        Noun::Topic(verb) => with_client(topic::run(&verb, &global)),
        Noun::Message(verb) => with_client(message::run(&verb, &global)),
        Noun::Dlq(verb) => with_client(dlq::run(&verb, &global)),
        Noun::Timer(verb) => with_client(timer::run(&verb, &global)),
        Noun::Group(verb) => with_client(group::run(&verb, &global)),
    }
}

/// Runs what needs a runtime. One thread is enough for a terminal.
fn with_client(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(error.to_string(), "raise the limit of open files"))?;
    let result = runtime.block_on(work);
    // A read of stdin may still be waiting for a line that nobody will type.
    runtime.shutdown_background();
    result
}

/// What became of blocking work on the servers.
#[cfg(target_os = "linux")]
fn joined<T>(ended: Result<anyhow::Result<T>, tokio::task::JoinError>) -> Result<T, Failure> {
    match ended {
        Ok(result) => result.map_err(|error| Failure::of_servers(&error)),
        Err(_) => Err(Failure::new("a server's thread panicked", "the text above says where")),
    }
}

/// Connects to the cluster.
async fn connect(global: &Global) -> Result<Client, Failure> {
    let builder = Client::builder(global.namesrv.as_str())
        .name(concat!("ringmq-cli/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(global.timeout)
        .request_timeout(global.timeout);
    match tokio::time::timeout(global.timeout, builder.connect()).await {
        Ok(connected) => Ok(connected?),
        Err(_) => Err(Failure {
            exit: Exit::Unreachable,
            message: format!(
                "no name server answers at {} within {:?}",
                global.namesrv, global.timeout
            ),
            advice:
                "`ringmq dev` starts one here; --namesrv HOST:PORT (or NAMESRV_ADDR) names another"
                    .to_owned(),
        }),
    }
}

/// Connects for administration.
async fn admin(global: &Global) -> Result<Admin, Failure> {
    Ok(connect(global).await?.admin())
}
