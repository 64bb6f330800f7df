//! Delayed messages over the wire: many pending, due over some minutes; how late each got its place in its queue,
//! as its record says (store time less delivery time), and what the broker takes of memory while all wait.

use crate::fill::{self, Run};
use crate::linux::Place;
use crate::server;
use crate::wire::Wire;
use anyhow::{Context as _, bail, ensure};
use hdrhistogram::Histogram;
use ringmq_bench::goals::{Goal, Outcome};
use ringmq_schema::build::{MessageSpec, RecordBuilder};
use ringmq_schema::consume::{FetchAnswer, FetchQueue};
use ringmq_schema::frame;
use ringmq_schema::placement::mix;
use ringmq_schema::produce::Flush;
use ringmq_schema::record;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const BATCH: u32 = 100;
const IN_FLIGHT: u64 = 64;
const FETCH_BYTES: u32 = 4 << 20;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Thousands of delayed messages; the limit speaks of a million
    #[arg(long, default_value_t = 100)]
    thousands: u64,
    /// Seconds until the first is due: all must be stored by then
    #[arg(long, default_value_t = 10)]
    lead: u64,
    /// Seconds over which they are due
    #[arg(long, default_value_t = 20)]
    spread: u64,
    /// Bytes of a body
    #[arg(long, default_value_t = 256)]
    body: usize,
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("timers");
    let folder = options.place.folder()?;
    let broker = server::Options::new(&folder.path().join("data")).start()?;
    let mut wire = Wire::connect(broker.address("listen")?)?;
    let topic = wire.create_topic("bench", 1)?;
    let count = options.thousands * 1000;
    let empty = resident_mib(broker.pid())?;
    let first_ms = now_ms() + options.lead as i64 * 1000;

    let begun = Instant::now();
    let mut answered = 0;
    for batch in 0..count / u64::from(BATCH) {
        if batch - answered >= IN_FLIGHT {
            wire.answers(1)?;
            answered += 1;
        }
        let due = |n: u64| first_ms + (mix(n + 1) % (options.spread * 1000)) as i64;
        let run = delayed((topic, 0), batch * u64::from(BATCH), options.body, due);
        wire.produce((topic, 0), &run, Flush::Default)?;
    }
    wire.answers((count / u64::from(BATCH) - answered) as usize)?;
    let filled = begun.elapsed();
    outcome.figure("stored", "k msg/s", count as f64 / 1e3 / filled.as_secs_f64(), Goal::Shown);
    if filled > Duration::from_secs(options.lead) {
        bail!("storing took {filled:?}: a longer --lead");
    }
    let pending = broker.settled_metric("ringmq_timers_pending")?;
    outcome.figure("pending", "k", pending / 1e3, Goal::Shown);
    let full = resident_mib(broker.pid())?;
    outcome.figure(
        "memory with all pending, over an empty broker",
        "MiB",
        full - empty,
        Goal::Shown,
    );

    let cpu = broker.cpu_seconds()?;
    let end_ms = first_ms + options.spread as i64 * 1000 + 2000;
    std::thread::sleep(Duration::from_millis((end_ms - now_ms()).max(0) as u64));
    let cpu = (broker.cpu_seconds()? - cpu) / options.spread as f64;
    outcome.figure("core while they are delivered", "%", cpu * 100.0, Goal::Shown);
    let late = read_all(&mut wire, topic, count)?;
    let at = |quantile: f64| late.value_at_quantile(quantile) as f64;
    outcome.figure("late, p50", "ms", at(0.5), Goal::Shown);
    outcome.figure("late, p99", "ms", at(0.99), Goal::AtMost(100.0));
    outcome.figure("late, p99.9", "ms", at(0.999), Goal::Shown);
    outcome.figure("late, at most", "ms", late.max() as f64, Goal::Shown);
    let rate = count as f64 / options.spread as f64;
    outcome.note(format!("{count} messages due over {} s, {rate:.0} a second", options.spread));
    broker.stop()?;
    Ok(outcome)
}

/// A batch of delayed messages from number `first` on.
fn delayed(
    (topic, queue): (u32, u32),
    first: u64,
    body_bytes: usize,
    due: impl Fn(u64) -> i64,
) -> Run {
    let (mut builder, mut bytes) = (RecordBuilder::new(), Vec::new());
    let body: Vec<u8> = (0..body_bytes).map(|at| (at * 31) as u8).collect();
    for number in first..first + u64::from(BATCH) {
        let deliver_ms = due(number);
        let message_id = u128::from(number).to_be_bytes();
        let spec = MessageSpec { body: &body, deliver_ms, message_id, ..MessageSpec::default() };
        builder.append(&mut bytes, topic, queue, &spec).expect("within the protocol's limits");
    }
    fill::Run { bytes, records: BATCH }
}

/// How late each message was, ms.
fn read_all(wire: &mut Wire, topic: u32, count: u64) -> anyhow::Result<Histogram<u64>> {
    let mut late = Histogram::new(3)?;
    let (mut next, deadline) = (0, Instant::now() + Duration::from_secs(60));
    while next < count {
        ensure!(Instant::now() < deadline, "{next} of {count} messages were delivered");
        wire.fetch(&[FetchQueue::new(topic, 0, next, 0, 0, 0)], FETCH_BYTES)?;
        let head = wire.head()?;
        let answer = frame::read_table::<FetchAnswer<'_>>(&head.table)?;
        if let Some(fetched) = answer.queues().and_then(|queues| queues.iter().next()) {
            ensure!(fetched.status() == 0, "the queue answers {}", fetched.status());
            next = fetched.next_offset();
        }
        for found in record::records(&wire.run(head.run_bytes)?) {
            let header = found?.header;
            let ms = header.store_ms.get() - header.deliver_ms.get();
            late.record(u64::try_from(ms).context("a message came early")?)?;
        }
    }
    Ok(late)
}

fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.split_whitespace().next().context("a number")?.parse()?;
    Ok(kib / 1024.0)
}
