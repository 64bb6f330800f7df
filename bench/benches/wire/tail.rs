//! One consumer of what is in memory, against one stream over the loopback.

use crate::bed::{Bed, Side, runtime, stream};
use crate::fill;
use crate::linux::Place;
use crate::wire::{fill_queues, read_all};
use anyhow::{Context as _, bail};
use ringmq::{Client, ConsumeFrom, Filter, SeekTo};
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use ringmq_schema::produce::Flush;
use std::time::{Duration, Instant};

const SILENCE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Measurements of each side
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Times that everything is read in each
    #[arg(long, default_value_t = 50)]
    times: u32,
    /// MiB that are read: less than the broker's memory for its tail
    #[arg(long, default_value_t = 48)]
    mib: u64,
    /// Queues of the topic
    #[arg(long, default_value_t = 1)]
    queues: u32,
    /// Most bytes of an answer, KiB
    #[arg(long, default_value_t = 4096)]
    fetch_kib: u32,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Flags for the broker
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    broker: Vec<String>,
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("tail");
    let bed = Bed::start(&options.place, &options.broker)?;
    let mut wire = bed.wire()?;
    let topic = wire.create_topic("tail", options.queues)?;
    let runs: Vec<_> = (0..options.queues)
        .map(|queue| (topic, queue, fill::run_of((topic, queue), 100, options.body, |_| None)))
        .collect();
    let batches = (options.mib << 20) / runs[0].2.bytes.len() as u64;
    let records = batches * 100;
    fill_queues(&mut wire, &runs, batches, 64, Flush::Sync)?;
    let runtime = runtime()?;
    let (mut streams, mut bare, mut client) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        streams.push(stream(Side::Broker, Duration::from_millis(1000))? / 1e9);
        let begun = Instant::now();
        for _ in 0..options.times {
            read_all(&mut wire, topic, options.queues, records, options.fetch_kib << 10)?;
        }
        let bytes = (u64::from(options.times) * records) as f64 * options.body as f64;
        bare.push(bytes / begun.elapsed().as_secs_f64() / 1e9);
        let took = runtime.block_on(by_client(&bed, records, options))?;
        client.push(bytes / took.as_secs_f64() / 1e9);
    }
    for (who, figures, goal) in
        [("bare client", &bare, Goal::AtLeast(0.8)), ("client crate", &client, Goal::Shown)]
    {
        let what = format!("{who}: bodies against one stream");
        outcome.ratio(&what, "GB/s", (median(figures), median(&streams)), goal);
        outcome.note(rounds(&what, figures));
    }
    outcome.note(rounds("one stream, GB/s", &streams));
    Ok(outcome)
}

async fn by_client(bed: &Bed, records: u64, options: &Options) -> anyhow::Result<Duration> {
    let namesrv = bed.namesrv.address("listen")?.to_string();
    let client = Client::builder(&namesrv).name("ringmq-bench").connect().await?;
    let mut builder = client.pull_consumer("bench-tail");
    for queue in client.admin().topic_stats("tail").await? {
        builder = builder.assign(queue.queue, Filter::all());
    }
    let builder = builder.from(ConsumeFrom::First).max_records(8192);
    let mut consumer = builder.max_waiting(20_000).build().await.context("consuming")?;
    let begun = Instant::now();
    for _ in 0..options.times {
        for (queue, _) in consumer.positions() {
            consumer.seek(&queue, SeekTo::Offset(0)).await?;
        }
        let mut came = 0;
        while came < records {
            let polled = consumer.poll(SILENCE).await?;
            if polled.is_empty() {
                bail!("{came} of {records} messages came, then none");
            }
            came += polled.len() as u64;
        }
    }
    let took = begun.elapsed();
    consumer.close(SILENCE).await?;
    client.shutdown(SILENCE).await?;
    Ok(took)
}
