//! `dev`: a cluster of one on the default ports, until it is interrupted.

use std::path::absolute;

use super::with_client;
use crate::args::{Dev, Flush, Global};
use crate::failure::Failure;
use crate::output;
use crate::servers::{ServerSettings, Servers};

pub(super) fn run(args: &Dev, global: &Global) -> Result<(), Failure> {
    let data = absolute(&args.data)?;
    let settings = ServerSettings {
        data: data.clone(),
        namesrv_port: args.namesrv_port,
        broker_port: args.broker_port,
        http_port: args.http_port,
        shards: args.shards,
        flush_sync: args.flush == Flush::Sync,
    };
    with_client(global, async {
        // Before anything starts: an interrupt during recovery must end as cleanly as one after it.
        let interrupted = Interrupt::listen()?;
        let started = tokio::task::spawn_blocking(move || Servers::start(&settings));
        let servers = joined(started.await)?;
        output::print(&greeting(&servers, &data.display().to_string()))?;
        interrupted.wait().await;
        if !global.quiet {
            eprintln!("stopping: what is in flight is finished and made durable");
        }
        joined(tokio::task::spawn_blocking(move || servers.stop()).await)
    })
}

fn joined<T>(
    ended: Result<anyhow::Result<T>, tokio::task::JoinError>,
) -> Result<T, Failure> {
    match ended {
        Ok(result) => result.map_err(|error| Failure::of_servers(&error)),
        Err(_) => Err(Failure::new("a server's thread panicked", "the text above says where")),
    }
}

fn greeting(servers: &Servers, data: &str) -> String {
    let namesrv = servers.namesrv_address();
    let http = servers.http_address();
    // Commands can be pasted as they are: the address is named only where it is not the default.
    let flag = match namesrv.port() {
        9876 => String::new(),
        _ => format!(" --namesrv {namesrv}"),
    };
    format!(
        "RingMQ is ready.\n\
         \x20 name server  {namesrv}\n\
         \x20 broker       {}\n\
         \x20 metrics      http://{http}/metrics   health http://{http}/readyz\n\
         \x20 data         {data}\n\n\
         In another terminal:\n\
         \x20 ringmq{flag} topic create demo && echo hello | ringmq{flag} topic produce demo\n\
         \x20 ringmq{flag} topic consume demo -f '%t %q %o %v\\n'\n\n\
         Ctrl-C stops; messages stay.\n",
        servers.broker_address(),
    )
}

/// SIGINT and SIGTERM.
struct Interrupt {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Interrupt {
    fn listen() -> Result<Interrupt, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Interrupt {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn wait(mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
