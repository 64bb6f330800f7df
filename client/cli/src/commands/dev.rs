//! `dev`: a cluster of one on the default ports, until it is interrupted.

use std::path::absolute;

use super::interrupt::Interrupt;
use super::{joined, with_client};
use crate::args::{Dev, Flush, Global};
use crate::failure::Failure;
use crate::output;
use crate::servers::{ServerSettings, Servers};

/// Port of a name server that commands find without being told.
const NAMESRV_PORT_DEFAULT: u16 = 9876;

pub(super) fn run(args: &Dev, global: &Global) -> Result<(), Failure> {
    let data = absolute(&args.data)?;
    let settings = ServerSettings {
        data: data.clone(),
        namesrv_port: args.namesrv_port,
        broker_port: args.broker_port,
        http_port: Some(args.http_port),
        shards: args.shards,
        flush_sync: args.flush == Flush::Sync,
    };
    with_client(async {
        // Before anything starts: an interrupt during recovery must end as cleanly as one after it.
        let mut interrupt = Interrupt::listen()?;
        let started = tokio::task::spawn_blocking(move || Servers::start(&settings));
        let servers = joined(started.await)?;
        let greeted = output::print(&greeting(&servers, &data.display().to_string()));
        if greeted.is_ok() {
            interrupt.wait().await;
        }
        if !global.quiet {
            eprintln!("stopping: what was begun is finished and made durable");
        }
        joined(tokio::task::spawn_blocking(move || servers.stop()).await)?;
        greeted
    })
}

fn greeting(servers: &Servers, data: &str) -> String {
    let namesrv = servers.namesrv_address();
    // Commands can be pasted as they are: the address is named only where it is not the default.
    let flag = match namesrv.port() {
        NAMESRV_PORT_DEFAULT => String::new(),
        _ => format!(" --namesrv {namesrv}"),
    };
    let metrics = servers.http_address().map_or_else(String::new, |http| {
        format!("  metrics      http://{http}/metrics, health http://{http}/readyz\n")
    });
    format!(
        "RingMQ is ready.\n\
         \x20 name server  {namesrv}\n\
         \x20 broker       {} ({} shards)\n\
         {metrics}\
         \x20 data         {data}\n\n\
         In another terminal:\n\
         \x20 ringmq{flag} topic create demo && echo hello | ringmq{flag} topic produce demo\n\
         \x20 ringmq{flag} topic consume demo -f '%t %q %o %v\\n'\n\n\
         Ctrl-C stops; messages stay.\n",
        servers.broker_address(),
        servers.shards(),
    )
}
