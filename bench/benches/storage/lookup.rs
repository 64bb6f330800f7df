//! How long it takes to find messages by key in a large log, with nothing of it in memory.
//!
//! Every message has a key of its own. Before each look-up the files leave the page cache, and the broker's own
//! cache of index pages is as small as it may be; a second figure is with the cache as it is by default.

use crate::cold;
use crate::fill::{self, Run};
use crate::linux::Place;
use crate::server;
use crate::wire::Wire;
use anyhow::{Context as _, ensure};
use ringmq::Client;
use ringmq_bench::goals::{Goal, Outcome};
use ringmq_bench::record::Latencies;
use ringmq_schema::produce::Flush;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const TOPIC: &str = "bench";
const QUEUES: u32 = 8;
const IN_FLIGHT: u64 = 32;
const SETTLE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// MiB in the log
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Look-ups of each kind
    #[arg(long, default_value_t = 300)]
    lookups: u64,
    /// Messages in a batch
    #[arg(long, default_value_t = 100)]
    batch: u32,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("lookup");
    let folder = options.place.folder()?;
    let data = folder.path().join("data");
    let namesrv = server::namesrv()?;
    let mut start = server::Options::new(&data);
    start.namesrv = Some(namesrv.address("listen")?);
    let broker = start.start()?;
    let mut wire = Wire::connect(broker.address("listen")?)?;
    let messages = fill_keyed(&mut wire, options)?;
    drop(wire);
    broker.stop()?;
    for (cache, name) in [("512 KiB", "cold"), ("16 MiB", "default index cache")] {
        let mut start = start.clone();
        start.flags.push(format!("--index-cache-bytes={cache}"));
        let broker = start.start()?;
        let namesrv = namesrv.address("listen")?;
        let (there, absent) = look_up(namesrv, &data, messages, options.lookups)?;
        for (what, latencies) in [("found", there), ("not there", absent)] {
            let goal = |percent| match (percent, cache) {
                (99.0, "512 KiB") => Goal::AtMost(5.0),
                _ => Goal::Shown,
            };
            for (percent, title) in [(50.0, "p50"), (99.0, "p99")] {
                let ms = latencies.at_ns(percent) as f64 / 1e6;
                outcome.figure(format!("{what}, {name}, {title}"), "ms", ms, goal(percent));
            }
        }
        broker.stop()?;
    }
    let gib = options.mib as f64 / 1024.0;
    outcome.note(format!("{messages} messages with a key each in {gib:.1} GiB"));
    Ok(outcome)
}

fn key(number: u64) -> String {
    format!("order-{number}")
}

/// Returns how many messages there are.
fn fill_keyed(wire: &mut Wire, options: &Options) -> anyhow::Result<u64> {
    let topic = wire.create_topic(TOPIC, QUEUES)?;
    let (mut bytes, mut batch, mut answered) = (0, 0, 0);
    let size = u64::from(options.batch);
    while bytes < options.mib << 20 {
        let queue = (batch % u64::from(QUEUES)) as u32;
        let key_of = |at: u32| Some(key(batch * size + u64::from(at)));
        let run: Run = fill::run_of((topic, queue), options.batch, options.body, key_of);
        if batch - answered >= IN_FLIGHT {
            wire.answers(1)?;
            answered += 1;
        }
        wire.produce((topic, queue), &run, Flush::Default)?;
        bytes += run.bytes.len() as u64;
        batch += 1;
    }
    wire.answers((batch - answered) as usize)?;
    Ok(batch * size)
}

/// Latencies of keys that are there, and of keys that are not.
fn look_up(
    namesrv: SocketAddr,
    data: &Path,
    messages: u64,
    lookups: u64,
) -> anyhow::Result<(Latencies, Latencies)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let files = cold::files(data, "")?;
    runtime.block_on(async {
        let client = Client::builder(namesrv.to_string()).name("bench").connect().await?;
        let admin = client.admin();
        let begun = Instant::now();
        while admin.find_messages(TOPIC, key(0).as_str()).await.is_err() {
            ensure!(begun.elapsed() < SETTLE, "the broker does not find a message");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (mut there, mut absent) = (Latencies::default(), Latencies::default());
        for number in 0..lookups {
            // Far from each other, in no order.
            let wanted = (number * 0x9E37_79B9) % messages;
            for (key, latencies, count) in
                [(key(wanted), &mut there, 1), (key(messages + wanted), &mut absent, 0)]
            {
                cold::forget(&files)?;
                let begun = Instant::now();
                let found = admin.find_messages(TOPIC, key.as_str()).await?;
                latencies.add(begun.elapsed().as_nanos() as u64, 1);
                ensure!(found.records.len() == count, "{} messages {key}", found.records.len());
            }
        }
        client.shutdown(SETTLE).await.context("closing the client")?;
        Ok((there, absent))
    })
}
