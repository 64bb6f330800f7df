//! `produce`: send, then read back and check what was stored.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::{Extent, blank_report, conclude, show_progress};
use crate::args::Produce;
use crate::check::Checker;
use crate::receive::read_between;
use crate::report::{Correctness, Figures, Raw, latency_table, rate_table};
use crate::run::Run;
use crate::sending::Sending;
use crate::session::Session;

/// Load and raw measurement take turns of this length.
#[cfg(target_os = "linux")]
const SLICE: Duration = Duration::from_secs(1);

pub(super) async fn run(args: &Produce) -> anyhow::Result<u8> {
    if args.with_limits && !cfg!(target_os = "linux") {
        bail!("--with-limits measures through io_uring, which only Linux has");
    }
    let extent = Extent::of(&args.load);
    let session = Session::open(&args.target, true).await?;
    let producers = session.producers(&args.load).await?;
    let before = session.queues().await?;
    let warm_up_ns = extent.warm_up.as_nanos() as u64;
    let run = Arc::new(Run::start(warm_up_ns, |id| Checker::new(id, None)));
    let mut sending = Sending::new(
        &run,
        &producers,
        session.topic(),
        &args.load,
        extent.messages,
        extent.warm_up,
    );
    let progress = show_progress(&run);
    #[cfg(target_os = "linux")]
    let raw = match args.with_limits {
        true => Some(in_turns(&mut sending, args, extent.duration).await?),
        false => {
            sending.slice(extent.duration).await?;
            None
        }
    };
    #[cfg(not(target_os = "linux"))]
    sending.slice(extent.duration).await?;
    if !args.no_check {
        let acknowledged = run.checker().acknowledged();
        let after = session.queues_after(&before, acknowledged).await?;
        read_between(session.client(0), &run, &before, &after).await?;
    }
    drop(progress);
    drop(producers);
    session.close().await?;

    let correctness = Correctness::of(&run, !args.no_check);
    let mut report = blank_report("produce", args, &args.dir, correctness)?;
    let mut produced = run.produced();
    let figures = Figures::of(&mut produced, sending.measured_ns());
    println!("{}", rate_table(&[("produce", &figures)]));
    let mut rows = vec![("response", &produced.response), ("service", &produced.service)];
    #[cfg(target_os = "linux")]
    if let Some(raw) = &raw {
        rows.push(("raw durable 4 KiB", &raw.durable_write));
        rows.push(("loopback, two CPUs", &raw.on_two_cpus));
        rows.push(("loopback, one CPU", &raw.on_one_cpu));
    }
    println!("{}", latency_table(&rows));
    #[cfg(target_os = "linux")]
    if let Some(raw) = &raw {
        let service = &produced.service;
        let raw = Raw::of(&raw.durable_write, &raw.on_two_cpus, &raw.on_one_cpu, service);
        println!("{}\n", raw.line());
        report.raw = Some(raw);
    }
    report.produce = Some(figures);
    report.generator = sending.punctuality().map(Into::into);
    conclude(&report, &args.target)
}

#[cfg(target_os = "linux")]
async fn in_turns(
    sending: &mut Sending,
    args: &Produce,
    duration: Duration,
) -> anyhow::Result<crate::limits::RawSamples> {
    let mut probes = crate::limits::Probes::start(&args.dir)?;
    let mut left = duration;
    while !left.is_zero() && !sending.is_done() {
        let slice = left.min(SLICE);
        sending.slice(slice).await?;
        left -= slice;
        // The probes block; the client's runtime goes on with its heartbeats meanwhile.
        probes = tokio::task::spawn_blocking(move || probes.slice(SLICE).map(|()| probes))
            .await
            .context("measuring raw disk and loopback")??;
    }
    tokio::task::spawn_blocking(move || probes.finish())
        .await
        .context("ending the raw measurement")?
}
