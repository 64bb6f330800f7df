//! A name server of 100 000 topics: brokers register, send heartbeats and changes, clients ask for routes.

use crate::bed::{Side, stay_on};
use crate::echo::Echo;
use crate::idle::resident_mib;
use crate::lanes::open_loop;
use crate::linux::Place;
use crate::server;
use crate::wire::Wire;
use anyhow::{Context as _, ensure};
use ringmq_bench::goals::{Goal, Outcome, median, rounds};
use ringmq_bench::record::Latencies;
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Vector, WIPOffset};
use ringmq_schema::frame::{self, ANY_SHARD};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement::route_hash;
use ringmq_schema::route::{
    BrokerAnswer, BrokerChanges, BrokerChangesArgs, BrokerHeartbeat, BrokerHeartbeatArgs,
    QueryRoute, QueryRouteArgs, RegisterBroker, RegisterBrokerArgs, TopicRegistration,
    TopicRegistrationArgs,
};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Topics in one frame: below what a table may be long, as brokers do.
const TOPICS_IN_FRAME: usize = 5_000;
const PERMISSION: u8 = 6;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub place: Place,
    /// Brokers
    #[arg(long, default_value_t = 10)]
    brokers: usize,
    /// Topics, each on all of them
    #[arg(long, default_value_t = 100_000)]
    topics: u32,
    /// Queues of a topic on each broker
    #[arg(long, default_value_t = 8)]
    queues: u32,
    /// Route queries a second
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
    /// Connections of those who ask
    #[arg(long, default_value_t = 50)]
    connections: usize,
    /// Seconds of asking, one at a time, in turns with an echo
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

type Fbb = FlatBufferBuilder<'static>;
type Registrations = WIPOffset<Vector<'static, ForwardsUOffset<TopicRegistration<'static>>>>;

pub fn run(options: &Options) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::new("routes");
    // A process begins where its parent was.
    stay_on(Side::Broker)?;
    let namesrv = server::namesrv()?;
    stay_on(Side::Client)?;
    let address = namesrv.address("listen")?;
    let names: Vec<String> =
        (0..options.topics).map(|number| format!("topic-of-some-length-{number}")).collect();
    let hash = names.iter().enumerate().fold(0u64, |hash, (id, name)| {
        hash.wrapping_add(one_hash(name, id as u32 + 1, 1, options.queues))
    });
    let before_mib = resident_mib(&namesrv)?;
    let (mut brokers, mut registering) = (Vec::new(), Vec::new());
    for number in 0..options.brokers {
        let mut broker = Wire::connect(address)?;
        let begun = Instant::now();
        register(&mut broker, number, &names, hash, options)?;
        registering.push(begun.elapsed().as_secs_f64() * 1e3);
        brokers.push(broker);
    }
    let slowest = registering.iter().copied().fold(0.0, f64::max) / 1e3;
    outcome.figure("a broker registers all its topics, slowest", "s", slowest, Goal::AtMost(1.0));

    // What goes over the wire each second when nothing changed, and for a changed topic.
    let heartbeat = framed(Opcode::BrokerHeartbeat, |fbb| {
        BrokerHeartbeat::create(fbb, &BrokerHeartbeatArgs { version: 1, hash })
    });
    let changed = {
        let was = one_hash(&names[0], 1, 1, options.queues);
        let is = one_hash(&names[0], 1, 2, options.queues);
        let hash = hash.wrapping_sub(was).wrapping_add(is);
        framed(Opcode::BrokerChanges, |fbb| {
            let topics = Some(registrations(fbb, &names[..1], (1, 2), options.queues));
            let args = BrokerChangesArgs { from_version: 1, version: 2, hash, topics };
            BrokerChanges::create(fbb, &args)
        })
    };
    outcome.figure("heartbeat", "bytes", heartbeat.len() as f64, Goal::AtMost(256.0));
    outcome.figure("one changed topic", "bytes", changed.len() as f64, Goal::AtMost(512.0));

    // Brokers stay alive while clients ask.
    let (stop, stopped) = mpsc::channel::<()>();
    let beating = std::thread::spawn(move || -> anyhow::Result<()> {
        loop {
            for broker in &mut brokers {
                let answer = broker.call(Opcode::BrokerHeartbeat, |fbb| {
                    BrokerHeartbeat::create(fbb, &BrokerHeartbeatArgs { version: 1, hash })
                })?;
                let need_full = frame::read_table::<BrokerAnswer<'_>>(&answer)?.need_full();
                ensure!(!need_full, "the name server's table differs");
            }
            let wait = stopped.recv_timeout(Duration::from_secs(1));
            if wait != Err(RecvTimeoutError::Timeout) {
                return Ok(());
            }
        }
    });
    let echo = Echo::start(options.connections)?;
    let asking = greeted(address, options.connections)?;
    let echoing = (0..options.connections).map(|_| {
        let stream = TcpStream::connect(echo.address)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    });
    let echoing = echoing.collect::<anyhow::Result<Vec<_>>>()?;
    let mut frames = FrameBuilder::new();
    let mut frame = move |number: u64| {
        // splitmix64's step: any topic, the same ones in every run.
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let name = &names[((mixed ^ (mixed >> 31)) % names.len() as u64) as usize];
        let mut frame = Vec::new();
        frames.request(&mut frame, Opcode::QueryRoute, ANY_SHARD, number, &[], |fbb| {
            let name = fbb.create_string(name);
            let topics = Some(fbb.create_vector(&[name]));
            QueryRoute::create(fbb, &QueryRouteArgs { topics, subscribe: false })
        });
        frame
    };
    let second = Duration::from_secs(1);
    let (mut latencies, mut echoed) = (Latencies::default(), Latencies::default());
    let (mut rates, mut tails, mut echo_tails) = (Vec::new(), Vec::new(), Vec::new());
    let mut used = 0.0;
    for _ in 0..options.seconds {
        let (seen, _) = open_loop(&echoing, options.rate, second, &mut frame)?;
        echo_tails.push(seen.at_ns(99.0) as f64 / 1e3);
        echoed.merge(&seen);
        let before = namesrv.cpu_seconds()?;
        let (seen, rate) = open_loop(&asking, options.rate, second, &mut frame)?;
        used += namesrv.cpu_seconds()? - before;
        tails.push(seen.at_ns(99.0) as f64 / 1e3);
        rates.push(rate);
        latencies.merge(&seen);
    }
    drop(echoing);
    echo.finish()?;
    drop(stop);
    beating.join().ok().context("a broker panicked")??;
    let us = |latencies: &Latencies, percentile| latencies.at_ns(percentile) as f64 / 1e3;
    let asked = format!("route query at {}/s", options.rate);
    let p99 = median(&tails);
    outcome.figure(format!("{asked}, p99, median of the seconds"), "us", p99, Goal::AtMost(1000.0));
    for (name, percent) in [("p50", 50.0), ("p99", 99.0), ("p99.9", 99.9)] {
        let figures = (us(&latencies, percent), us(&echoed, percent));
        outcome.ratio(format!("{asked}, {name}: against an echo"), "us", figures, Goal::Shown);
    }
    let least = options.rate as f64 * 0.95;
    outcome.figure("route queries answered", "1/s", median(&rates), Goal::AtLeast(least));
    outcome.note(rounds(&format!("{asked}, p99, us"), &tails));
    outcome.note(rounds("echo, p99, us", &echo_tails));
    let queries = (options.rate * options.seconds) as f64;
    outcome.figure("CPU of a route query", "us", used * 1e6 / queries, Goal::Shown);
    let mib = resident_mib(&namesrv)?;
    outcome.figure("resident", "MiB", mib, Goal::AtMost(200.0));
    outcome.note(format!("resident before the brokers came: {before_mib:.1} MiB"));
    outcome.note(rounds("a broker registers, ms", &registering));
    Ok(outcome)
}

fn greeted(address: SocketAddr, connections: usize) -> anyhow::Result<Vec<TcpStream>> {
    (0..connections).map(|_| Ok(Wire::connect(address)?.stream)).collect()
}

fn one_hash(name: &str, id: u32, version: u64, queues: u32) -> u64 {
    route_hash(name, id, version, queues, queues, PERMISSION, 0)
}

fn registrations(
    fbb: &mut Fbb,
    names: &[String],
    (first_id, version): (u32, u64),
    queues: u32,
) -> Registrations {
    let list: Vec<_> = (first_id..)
        .zip(names)
        .map(|(id, name)| {
            let name = Some(fbb.create_string(name));
            let args = TopicRegistrationArgs {
                name,
                id,
                version,
                read_queues: queues,
                write_queues: queues,
                permission: PERMISSION,
                message_type: 0,
                deleted: false,
            };
            TopicRegistration::create(fbb, &args)
        })
        .collect();
    fbb.create_vector(&list)
}

fn register(
    wire: &mut Wire,
    number: usize,
    names: &[String],
    hash: u64,
    options: &Options,
) -> anyhow::Result<()> {
    let mut id = 1;
    for (part, names) in names.chunks(TOPICS_IN_FRAME).enumerate() {
        let ids = (id, 1);
        id += names.len() as u32;
        let answer = if part == 0 {
            wire.call(Opcode::RegisterBroker, |fbb| {
                let args = RegisterBrokerArgs {
                    cluster: Some(fbb.create_string("bench")),
                    broker: Some(fbb.create_string(&format!("broker-{number}"))),
                    broker_id: 0,
                    address: Some(fbb.create_string(&format!("127.0.0.1:{}", 20_000 + number))),
                    instance: number as u64 + 1,
                    shards: 8,
                    version: 1,
                    hash,
                    topics: Some(registrations(fbb, names, ids, options.queues)),
                };
                RegisterBroker::create(fbb, &args)
            })?
        } else {
            wire.call(Opcode::BrokerChanges, |fbb| {
                let topics = Some(registrations(fbb, names, ids, options.queues));
                let args = BrokerChangesArgs { from_version: 1, version: 1, hash, topics };
                BrokerChanges::create(fbb, &args)
            })?
        };
        let need_full = frame::read_table::<BrokerAnswer<'_>>(&answer)?.need_full();
        ensure!(!need_full, "the name server did not take part {part} of a broker's topics");
    }
    Ok(())
}

fn framed<T>(opcode: Opcode, build: impl FnOnce(&mut Fbb) -> WIPOffset<T>) -> Vec<u8> {
    let mut frame = Vec::new();
    FrameBuilder::new().request(&mut frame, opcode, ANY_SHARD, 0, &[], build);
    frame
}
