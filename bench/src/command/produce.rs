//! `produce`: send, then read back and check what was stored.

use std::path::Path;
use std::sync::Arc;
#[cfg(target_os = "linux")]
use std::time::Duration;

#[cfg(target_os = "linux")]
use anyhow::Context as _;
use anyhow::bail;

use super::{Extent, conclude};
use crate::args::{Load, Produce, Watch};
use crate::check::Checker;
use crate::cpu::CpuWatch;
use crate::limits::RawSamples;
use crate::measured::{Frame, Measured, Receiving};
use crate::progress;
use crate::receive::read_between;
use crate::run::Run;
use crate::sending::Sending;
use crate::session::Session;

/// Load and raw measurement take turns of this length.
#[cfg(target_os = "linux")]
const SLICE: Duration = Duration::from_secs(1);

pub(super) async fn run(args: &Produce) -> anyhow::Result<u8> {
    let session = Session::open(&args.target, true).await?;
    let raw = args.with_limits.then_some(args.watch.dir.as_path());
    let measured = measure(&session, &args.load, &args.watch, raw, !args.no_check, "").await?;
    session.close().await?;
    let frame = Frame {
        verb: "produce",
        disk: &args.watch.dir,
        flush: Some(args.load.flush),
        queued: args.load.is_queued(),
        out: args.target.out.as_deref(),
    };
    conclude(&measured.outcome(&frame, args)?, args.target.out.as_deref())
}

/// Sends `load` and, with `check`, reads it back. `raw` is the directory to measure in turns with it.
pub(super) async fn measure(
    session: &Session,
    load: &Load,
    watch: &Watch,
    raw: Option<&Path>,
    check: bool,
    title: &str,
) -> anyhow::Result<Measured> {
    let extent = Extent::of(load);
    let producers = session.producers(load).await?;
    let before = session.queues().await?;
    let run = Arc::new(Run::start(extent.warm_up_ns(), |id| Checker::new(id, None)));
    let cpu = CpuWatch::start(&run, session.broker_pid(watch).await?)?;
    let topic = session.topic();
    let mut sending = Sending::new(&run, &producers, topic, load, extent.messages, extent.warm_up);
    sending.warm_up_for(extent.warm_up);
    let shown = progress::show(&run, extent.goal(), title);
    let raw = send(&mut sending, &extent, raw).await?;
    let cpu = cpu.map(|watch| watch.finish(run.warm_up_ns(), run.clock.now_ns()));
    if check {
        let acknowledged = run.checker().acknowledged();
        let after = session.queues_after(&before, acknowledged).await?;
        read_between(session.client(0), &run, &before, &after).await?;
    }
    drop(shown);
    Ok(Measured {
        sent_ns: Some(sending.measured_ns()),
        punctuality: sending.punctuality(),
        receiving: Receiving::Nothing,
        checked: check,
        raw,
        cpu,
        run,
    })
}

/// Sends, all at once or in turns with raw measurements in the directory `raw`.
pub(super) async fn send(
    sending: &mut Sending,
    extent: &Extent,
    raw: Option<&Path>,
) -> anyhow::Result<Option<RawSamples>> {
    match raw {
        None => {
            sending.slice(extent.duration).await?;
            Ok(None)
        }
        #[cfg(target_os = "linux")]
        Some(directory) => in_turns(sending, directory, extent.duration).await.map(Some),
        #[cfg(not(target_os = "linux"))]
        Some(_) => bail!("--with-limits measures through io_uring, which only Linux has"),
    }
}

#[cfg(target_os = "linux")]
async fn in_turns(
    sending: &mut Sending,
    directory: &Path,
    duration: Duration,
) -> anyhow::Result<RawSamples> {
    if duration.is_zero() {
        bail!("--with-limits needs time to measure in: give a longer --duration");
    }
    let mut probes = crate::limits::Probes::start(directory)?;
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
