//! A thousand connections of producers against one, with the same load in all.

use crate::bed::{Bed, runtime};
use crate::fill;
use crate::lanes::{Lane, open_loop};
use crate::linux::Place;
use crate::wire::Wire;
use futures_util::future::try_join_all;
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use ringmq_bench::record::Latencies;
use ringmq_schema::produce::Flush;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Measurements of each side
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Milliseconds of each
    #[arg(long, default_value_t = 1000)]
    slice_ms: u64,
    /// Connections on the one side; the other has one
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// Durable messages a second, in both
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
    /// Batches in flight at full speed, in both
    #[arg(long, default_value_t = 64)]
    in_flight: usize,
    /// Messages in a batch at full speed
    #[arg(long, default_value_t = 100)]
    batch: u32,
    /// Bytes of a body
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Flags for the broker
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    broker: Vec<String>,
}

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("connections");
    let bed = Bed::start(&options.place, &options.broker)?;
    let topic = bed.wire()?.create_topic("bare", 1)?;
    let address = bed.broker.address("listen")?;
    let runtime = runtime()?;
    let mut latencies: [Latencies; 2] = Default::default();
    let (mut kept, mut full) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
    for _ in 0..options.rounds {
        for (side, connections) in [1, options.connections].into_iter().enumerate() {
            let (seen, rate) = at_a_rate(address, topic, connections, options)?;
            latencies[side].merge(&seen);
            kept[side].push(rate);
            full[side].push(runtime.block_on(full_speed(address, topic, connections, options))?);
        }
    }
    let many = options.connections;
    for (name, percent, goal) in
        [("p50", 50.0, Goal::Shown), ("p99", 99.0, Goal::AtMost(2.0)), ("p99.9", 99.9, Goal::Shown)]
    {
        let us = |side: usize| latencies[side].at_ns(percent) as f64 / 1e3;
        let what = format!("{name} at {} messages/s, {many} against one", options.rate);
        outcome.ratio(what, "us", (us(1), us(0)), goal);
    }
    let what = format!("at {} messages/s, {many} against one", options.rate);
    let figures = (median(&kept[1]), median(&kept[0]));
    outcome.ratio(what, "messages/s", figures, Goal::AtLeast(0.9));
    let what = format!("full speed, {many} against one");
    outcome.ratio(&what, "messages/s", (median(&full[1]), median(&full[0])), Goal::AtLeast(0.9));
    outcome.note(rounds(&format!("{what}: one"), &full[0]));
    outcome.note(rounds(&format!("{what}: {many}"), &full[1]));
    Ok(outcome)
}

/// Single messages when they are due, on the connections in turn.
fn at_a_rate(
    address: SocketAddr,
    topic: u32,
    connections: usize,
    options: &Options,
) -> anyhow::Result<(Latencies, f64)> {
    let streams = (0..connections).map(|_| Ok(Wire::connect(address)?.stream));
    let streams = streams.collect::<anyhow::Result<Vec<_>>>()?;
    let message = fill::run_of((topic, 0), 1, options.body, |_| None);
    let frame = move |number| fill::produce_frame((topic, 0), &message, Flush::Sync, number);
    open_loop(&streams, options.rate, Duration::from_millis(options.slice_ms), frame)
}

/// Batches at full speed: so many on their way in all, on the connections in turn. Messages a second.
async fn full_speed(
    address: SocketAddr,
    topic: u32,
    connections: usize,
    options: &Options,
) -> anyhow::Result<f64> {
    let run = fill::run_of((topic, 0), options.batch, options.body, |_| None);
    let frame = fill::produce_frame((topic, 0), &run, Flush::Sync, 1);
    let workers = options.in_flight.min(connections);
    // A worker keeps its share on the way, on one of its connections after the other.
    let window = frame.repeat(options.in_flight / workers);
    let mut lanes: Vec<Vec<Lane>> = (0..workers).map(|_| Vec::new()).collect();
    for number in 0..connections {
        lanes[number % workers].push(Lane::greet(address)?);
    }
    let begun = Instant::now();
    let until = begun + Duration::from_millis(options.slice_ms);
    let loops = lanes.into_iter().map(|mut lanes| {
        let (window, frame_bytes) = (&window, frame.len());
        async move {
            let mut answered = 0;
            for at in (0..lanes.len()).cycle() {
                // On a connection of several only once, then it is the next one's turn.
                let end = if lanes.len() > 1 { begun } else { until };
                answered += lanes[at].closed_loop(window, frame_bytes, end).await?;
                if Instant::now() >= until {
                    break;
                }
            }
            anyhow::Ok(answered)
        }
    });
    let batches: u64 = try_join_all(loops).await?.into_iter().sum();
    Ok((batches * u64::from(options.batch)) as f64 / begun.elapsed().as_secs_f64())
}
