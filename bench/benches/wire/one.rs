//! One durable message in flight: what it takes beyond a raw durable write and a round trip.

use crate::bare::{Bare, Store};
use crate::bed::{Bed, closed_loop, runtime};
use crate::fill;
use crate::linux::Place;
use crate::raw::Blocks;
use crate::wire::Wire;
use anyhow::ensure;
use ringmq_bench::args::FlushMode;
use ringmq_bench::check::Checker;
use ringmq_bench::goals::{Goal, Outcome, rounds};
use ringmq_bench::limits::{DurableWrites, Ends, RoundTrips};
use ringmq_bench::record::Latencies;
use ringmq_bench::run::Run;
use ringmq_bench::sending::Sending;
use ringmq_bench::session::Session;
use ringmq_schema::produce::Flush;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Until blocks are written ahead and every table is there.
const WARM_UP: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Turns of each side
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Milliseconds of each
    #[arg(long, default_value_t = 1000)]
    slice_ms: u64,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Flags for the broker
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    broker: Vec<String>,
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("one");
    let slice = Duration::from_millis(options.slice_ms);
    let mut writes = DurableWrites::start(&options.place.dir)?;
    let mut trips = RoundTrips::start(Ends::OnTwoCpus)?;
    let bed = Bed::start(&options.place, &options.broker)?;
    let runtime = runtime()?;
    let mut wire = bed.wire()?;
    let topic = wire.create_topic("bare", 1)?;
    let message = fill::run_of((topic, 0), 1, options.body, |_| None);
    let store = Store { bytes: 256 << 20, blocks: Blocks::Recycled, durable: true };
    let server = Bare::start(options.place.folder()?, 1, store)?;
    let mut floor_wire = Wire::connect(server.address)?;
    let (mut bare, mut floor) = (Latencies::default(), Latencies::default());
    let one_by_one = |wire: &mut Wire, duration: Duration, into: &mut Latencies| {
        let mut here = Latencies::default();
        let begun = Instant::now();
        while begun.elapsed() < duration {
            let sent = Instant::now();
            wire.produce((topic, 0), &message, Flush::Sync)?;
            wire.answers(1)?;
            here.add(sent.elapsed().as_nanos() as u64, 1);
        }
        into.merge(&here);
        anyhow::Ok(here.at_ns(50.0) as f64 / 1e3)
    };
    let load = closed_loop(1, 1, options.body, FlushMode::Sync);
    let (session, producers) = runtime.block_on(async {
        let session = Session::open(&bed.target(1)?, true).await?;
        let producers = session.producers(&load).await?;
        anyhow::Ok((session, producers))
    })?;
    let run = Arc::new(Run::start(WARM_UP.as_nanos() as u64, |id| Checker::new(id, None)));
    let mut sending =
        Sending::new(&run, &producers, session.topic(), &load, u64::MAX, Duration::ZERO);
    runtime.block_on(sending.slice(WARM_UP))?;
    one_by_one(&mut wire, WARM_UP, &mut Latencies::default())?;
    let (mut medians, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        writes.measure(slice)?;
        trips.measure(slice / 2)?;
        floors.push(one_by_one(&mut floor_wire, slice, &mut floor)?);
        medians.push(one_by_one(&mut wire, slice, &mut bare)?);
        runtime.block_on(sending.slice(slice))?;
    }
    ensure!(run.progress().failed == 0, "{} messages failed", run.progress().failed);
    runtime.block_on(async {
        drop(producers);
        session.close().await
    })?;
    drop(floor_wire);
    server.finish()?;
    let (raw, trip) = (writes.finish()?, trips.finish()?);
    let produced = run.produced();
    let client = &produced.response;
    let us = |latencies: &Latencies, percentile| latencies.at_ns(percentile) as f64 / 1e3;
    let sum = us(&raw, 50.0) + us(&trip, 50.0);
    let goals = [Goal::AtMost(1.25), Goal::AtMost(2.0)];
    for (who, latencies, [middle, end]) in [
        ("bare client", &bare, goals),
        ("client crate", client, goals),
        ("bare client of a bare server", &floor, [Goal::Shown; 2]),
    ] {
        let p50 = (us(latencies, 50.0), sum);
        outcome.ratio(format!("p50, {who}: against write + trip"), "us", p50, middle);
        let tail = (us(latencies, 99.9), us(&raw, 99.9));
        outcome.ratio(format!("p99.9, {who}: against the raw write's"), "us", tail, end);
    }
    outcome.figure("raw 4 KiB O_DSYNC write, p50", "us", us(&raw, 50.0), Goal::Shown);
    outcome.figure("loopback round trip, p50", "us", us(&trip, 50.0), Goal::Shown);
    outcome.note(rounds("p50, bare client, us", &medians));
    outcome.note(rounds("p50, bare server, us", &floors));
    Ok(outcome)
}
