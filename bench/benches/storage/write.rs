//! The log alone, core and disk without sockets, against raw sequential writing of the same file system,
//! block state, size and queue depth.
//!
//! SYNC: every write is durable by itself, on both sides. ASYNC: until the device took everything; the log
//! syncs every 500 ms meanwhile, the raw side never. The raw side writes one file that was made before; the
//! log makes its segments, indexes and snapshots as it goes, as it always does.

use crate::fill::{self, Run};
use crate::linux::Place;
use crate::raw::{self, Blocks, Plan};
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use ringmq_broker::alone::{self, Alone};
use ringmq_broker::config::Bytes;
use ringmq_broker::{BrokerConfig, FlushMode};
use ringmq_schema::produce::Flush;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a unit holds beside records: its header, and the block that it may not fill.
const UNIT_EXTRA_BYTES: usize = 8 << 10;
const TOPIC: u32 = 1;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// MiB written in each measurement
    #[arg(long, default_value_t = 2048)]
    mib: u64,
    /// Measurements of each side
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// KiB of a write
    #[arg(long, default_value_t = 1024)]
    unit_kib: usize,
    /// Writes in flight, on both sides
    #[arg(long, default_value_t = 8)]
    depth: usize,
    /// Only `fresh` or `recycled` blocks
    #[arg(long)]
    blocks: Option<String>,
    /// Only `sync` or `async`
    #[arg(long)]
    flush: Option<String>,
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("write");
    for (blocks, blocks_name) in [(Blocks::Fresh, "fresh"), (Blocks::Recycled, "recycled")] {
        for (flush, flush_name) in [(FlushMode::Async, "async"), (FlushMode::Sync, "sync")] {
            let is_wanted = |only: &Option<String>, name| only.as_deref().is_none_or(|o| o == name);
            if !is_wanted(&options.blocks, blocks_name) || !is_wanted(&options.flush, flush_name) {
                continue;
            }
            let (mut log, mut disk, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..options.rounds {
                let folder = options.place.folder()?;
                let durable = flush == FlushMode::Sync;
                disk.push(raw_rate(folder.path(), options, blocks, durable)? / 1e9);
                log.push(log_rate(folder.path(), options, blocks, flush)? / 1e9);
                ratios.push(log[log.len() - 1] / disk[disk.len() - 1]);
            }
            let what = format!("{flush_name}, {blocks_name} blocks");
            outcome.ratio(&what, "GB/s", (median(&log), median(&disk)), Goal::AtLeast(0.9));
            outcome.note(rounds(&format!("{what}, ratio"), &ratios));
        }
    }
    Ok(outcome)
}

fn raw_rate(
    folder: &Path,
    options: &Options,
    blocks: Blocks,
    durable: bool,
) -> anyhow::Result<f64> {
    let path = folder.join("raw");
    let bytes = options.mib << 20;
    raw::make(&path, bytes, blocks)?;
    let write_bytes = options.unit_kib << 10;
    let rate = raw::write(&path, Plan { bytes, write_bytes, depth: options.depth, durable });
    std::fs::remove_file(&path)?;
    rate
}

fn log_rate(
    folder: &Path,
    options: &Options,
    blocks: Blocks,
    flush: FlushMode,
) -> anyhow::Result<f64> {
    let config = BrokerConfig {
        data_dir: folder.join("log"),
        shards: Some(1),
        flush,
        unit_bytes: Bytes((options.unit_kib as u64) << 10),
        units_in_flight: options.depth,
        // What is recycled must have been retired: little is kept, and snapshots follow fast.
        retention_bytes: Bytes(if blocks == Blocks::Recycled { 256 << 20 } else { 0 }),
        snapshot_bytes: Bytes::mib(if blocks == Blocks::Recycled { 128 } else { 512 }),
        snapshot_pause: Duration::from_secs(if blocks == Blocks::Recycled { 0 } else { 10 }),
        ..BrokerConfig::default()
    };
    let bytes = options.mib << 20;
    let run =
        fill::run_within((TOPIC, 0), (options.unit_kib << 10) - UNIT_EXTRA_BYTES, options.body);
    let rate = alone::run(config, async move |shard: &Alone| {
        shard.request(&fill::topic_frame("bench", 1));
        shard.until(|figures| figures.topics == 1).await;
        // Over fresh blocks too, what the first requests make is left out.
        feed(shard, &run, flush, 64 << 20).await;
        if blocks == Blocks::Recycled {
            let mut fed = 0;
            while shard.recycled() < 3 && fed < 40 {
                feed(shard, &run, flush, 256 << 20).await;
                fed += 1;
            }
        }
        let before = (shard.figures(), shard.recycled());
        let begun = Instant::now();
        feed(shard, &run, flush, bytes).await;
        let took = begun.elapsed();
        let after = (shard.figures(), shard.recycled());
        assert!(after.0.refused == 0, "every batch was taken");
        if blocks == Blocks::Recycled {
            eprintln!("{} segments recycled meanwhile", after.1 - before.1);
        }
        (after.0.unit_bytes - before.0.unit_bytes) as f64 / took.as_secs_f64()
    })?;
    std::fs::remove_dir_all(folder.join("log"))?;
    Ok(rate)
}

/// Feeds batches of `bytes` together and waits until the last is where it must be.
async fn feed(shard: &Alone, run: &Run, flush: FlushMode, bytes: u64) {
    let frame = fill::produce_frame((TOPIC, 0), run, Flush::Default, 2);
    for _ in 0..bytes / run.bytes.len() as u64 {
        shard.room().await;
        shard.request(&frame);
    }
    let goal = shard.figures().appended;
    let is_sync = flush == FlushMode::Sync;
    shard.until(|f| if is_sync { f.flushed >= goal } else { f.written >= goal }).await;
}
