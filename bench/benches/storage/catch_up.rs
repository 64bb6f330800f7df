//! One consumer reads a whole log that is in no memory, against bare `sendfile` of the same files to a sink.
//!
//! Each measurement begins with a broker just started and files out of the page cache. Three sides take turns:
//! the files themselves, a reader that only counts what the broker sends, and the client of this workspace, which
//! checks every record: so that what the broker costs and what the client costs are told apart.

use crate::cold;
use crate::fill;
use crate::linux::Place;
use crate::server::{self, Server};
use crate::wire::{Wire, fill_queues, read_all};
use anyhow::{Context as _, bail};
use ringmq::{Client, ConsumeFrom, Filter};
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use ringmq_schema::produce::Flush;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const TOPIC: &str = "bench";
const SILENCE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// MiB in the log
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Measurements of each side
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Queues, their batches interleaved; several are told apart by commas
    #[arg(long, default_value = "1,64", value_delimiter = ',')]
    queues: Vec<u32>,
    /// Messages in a batch
    #[arg(long, default_value_t = 100)]
    batch: u32,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Most bytes of an answer, KiB
    #[arg(long, default_value_t = 4096)]
    fetch_kib: u32,
    /// Leave the workspace's client out
    #[arg(long)]
    no_client: bool,
    /// Flags for the broker
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    broker: Vec<String>,
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("catch-up");
    for queues in &options.queues {
        of_queues(options, *queues, &mut outcome)?;
    }
    Ok(outcome)
}

fn of_queues(options: &Options, queues: u32, outcome: &mut Outcome) -> anyhow::Result<()> {
    let folder = options.place.folder()?;
    let data = folder.path().join("data");
    let namesrv = server::namesrv()?;
    let mut start = server::Options::new(&data);
    start.namesrv = Some(namesrv.address("listen")?);
    start.flags.clone_from(&options.broker);
    let broker = start.start()?;
    let mut wire = Wire::connect(broker.address("listen")?)?;
    let topic = wire.create_topic(TOPIC, queues)?;
    let records = fill_topic(&mut wire, options, topic, queues)?;
    let log_bytes = broker.settled_metric("ringmq_log_flushed_position")? as u64;
    broker.stop()?;

    let (mut files, mut counted, mut client) = (Vec::new(), Vec::new(), Vec::new());
    let (mut transferred, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        cold::make(&data)?;
        files.push(cold::send_files(&cold::files(&data, ".log")?, log_bytes)? / 1e9);

        let broker = fresh(&start, &data)?;
        let (rate, run_bytes, used) = count(&broker, options, topic, queues, records)?;
        counted.push(rate / 1e9);
        cpu.push(used / (run_bytes / 1e9));
        let sent = broker.settled_metric("ringmq_transferred_records_bytes_total")?;
        transferred.push(sent / run_bytes);
        broker.stop()?;

        if !options.no_client {
            let broker = fresh(&start, &data)?;
            client.push(by_client(namesrv.address("listen")?, records, log_bytes)? / 1e9);
            broker.stop()?;
        }
    }
    let goal = Goal::AtLeast(if queues == 1 { 0.9 } else { 0.6 });
    let name = |who: &str| format!("{who}, {queues} queues");
    let against = median(&files);
    outcome.ratio(name("counting reader"), "GB/s", (median(&counted), against), goal);
    if !options.no_client {
        outcome.ratio(name("ringmq client"), "GB/s", (median(&client), against), Goal::Shown);
    }
    outcome.figure(name("by transfer"), "of the bytes", median(&transferred), Goal::Shown);
    outcome.figure(name("broker CPU"), "s/GB", median(&cpu), Goal::Shown);
    outcome.note(rounds(&name("sendfile GB/s"), &files));
    outcome.note(rounds(&name("counting reader GB/s"), &counted));
    outcome.note(rounds(&name("client GB/s"), &client));
    Ok(())
}

fn fill_topic(wire: &mut Wire, options: &Options, topic: u32, queues: u32) -> anyhow::Result<u64> {
    let runs: Vec<_> = (0..queues)
        .map(|queue| {
            let run = fill::run_of((topic, queue), options.batch, options.body, |_| None);
            (topic, queue, run)
        })
        .collect();
    let batches = (options.mib << 20) / runs[0].2.bytes.len() as u64;
    fill_queues(wire, &runs, batches, 64, Flush::Default)?;
    Ok(batches * u64::from(options.batch))
}

/// A broker just started, nothing of its files in memory but what its start read.
fn fresh(start: &server::Options, data: &Path) -> anyhow::Result<Server> {
    let broker = start.start()?;
    cold::make(data)?;
    Ok(broker)
}

/// Bytes of runs a second, all of them, and CPU seconds of the broker.
fn count(
    broker: &Server,
    options: &Options,
    topic: u32,
    queues: u32,
    records: u64,
) -> anyhow::Result<(f64, f64, f64)> {
    let mut wire = Wire::connect(broker.address("listen")?)?;
    let (begun, cpu) = (Instant::now(), broker.cpu_seconds()?);
    let read = read_all(&mut wire, topic, queues, records, options.fetch_kib << 10)?;
    let rate = read.bytes as f64 / begun.elapsed().as_secs_f64();
    Ok((rate, read.bytes as f64, broker.cpu_seconds()? - cpu))
}

/// Bytes of the log a second that the workspace's client takes in.
fn by_client(namesrv: SocketAddr, records: u64, log_bytes: u64) -> anyhow::Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::builder(namesrv.to_string()).name("bench").connect().await?;
        let mut builder = client.pull_consumer("bench-catch-up");
        let begun = Instant::now();
        let stats = loop {
            match client.admin().topic_stats(TOPIC).await {
                Ok(stats) if !stats.is_empty() => break stats,
                result if begun.elapsed() > SILENCE => bail!("no route: {result:?}"),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        for queue in stats {
            builder = builder.assign(queue.queue, Filter::all());
        }
        let builder = builder.from(ConsumeFrom::First).max_records(8192);
        let mut consumer = builder.max_waiting(20_000).build().await.context("consuming")?;
        for (queue, _) in consumer.positions() {
            consumer.seek(&queue, ringmq::SeekTo::Offset(0)).await?;
        }
        let (begun, mut came) = (Instant::now(), 0);
        while came < records {
            let polled = consumer.poll(SILENCE).await?;
            if polled.is_empty() {
                bail!("{came} of {records} messages came, then none");
            }
            came += polled.len() as u64;
        }
        let took = begun.elapsed();
        consumer.close(SILENCE).await?;
        client.shutdown(SILENCE).await?;
        Ok(log_bytes as f64 / took.as_secs_f64())
    })
}
