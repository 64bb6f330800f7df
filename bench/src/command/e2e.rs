//! `e2e`: send and receive at the same time; latency counts from due to received.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ringmq::ConsumeFrom;

use super::{Extent, conclude, produce};
use crate::args::{EndToEnd, Load, Watch};
use crate::check::Checker;
use crate::cpu::CpuWatch;
use crate::measured::{Frame, Measured, Receiving};
use crate::progress;
use crate::receive::{PushSettings, drain, push};
use crate::run::Run;
use crate::sending::Sending;
use crate::session::Session;

pub(super) const WAITING_PER_QUEUE: usize = 10_000;
pub(super) const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// The receiving side.
#[derive(Debug, Clone, Copy)]
pub(super) struct Members {
    pub consumers: u32,
    /// Listener calls at a time, each consumer.
    pub concurrency: usize,
}

pub(super) async fn run(args: &EndToEnd) -> anyhow::Result<u8> {
    let session = Session::open(&args.target, true).await?;
    let members = Members { consumers: args.consumers, concurrency: args.concurrency };
    let raw = args.with_limits.then_some(args.watch.dir.as_path());
    let measured = measure(&session, &args.load, members, &args.watch, raw, "").await?;
    session.close().await?;
    let frame = Frame {
        verb: "e2e",
        disk: &args.watch.dir,
        flush: Some(args.load.flush),
        queued: args.load.is_queued(),
        out: args.target.out.as_deref(),
    };
    conclude(&measured.outcome(&frame, args)?, args.target.out.as_deref())
}

/// Sends `load` to a group of its own.
pub(super) async fn measure(
    session: &Session,
    load: &Load,
    members: Members,
    watch: &Watch,
    raw: Option<&Path>,
    title: &str,
) -> anyhow::Result<Measured> {
    let extent = Extent::of(load);
    let producers = session.producers(load).await?;
    let queues = session.queues().await?;
    let run = Arc::new(Run::start(extent.warm_up_ns(), |id| Checker::new(id, None)));
    for queue in &queues {
        run.checker().starts_at(&queue.queue.broker, queue.queue.id, queue.max_offset);
    }
    let settings = PushSettings {
        group: format!("bench-{:x}", run.id),
        topic: session.topic().to_owned(),
        // What is there already is another run's.
        from: ConsumeFrom::Last,
        concurrency: members.concurrency,
        waiting: WAITING_PER_QUEUE,
    };
    let mut consumers = Vec::new();
    for index in 0..members.consumers as usize {
        // The first gets all queues; each further one waits only until it is a member.
        let wanted = if index == 0 { queues.len() } else { 0 };
        consumers.push(push(session.client(index), &run, &settings, wanted).await?);
    }
    let cpu = CpuWatch::start(&run, session.broker_pid(watch).await?)?;
    let topic = session.topic();
    let mut sending = Sending::new(&run, &producers, topic, load, extent.messages, extent.warm_up);
    sending.warm_up_for(extent.warm_up);
    let shown = progress::show(&run, extent.goal(), title);
    let raw = produce::send(&mut sending, &extent, raw).await?;
    drain(&run).await;
    let cpu = cpu.map(|watch| watch.finish(run.warm_up_ns(), run.progress().last_arrival_ns));
    for consumer in consumers {
        consumer.close(CLOSE_LIMIT).await?;
    }
    session.client(0).admin().delete_group(&settings.group).await?;
    drop(shown);
    Ok(Measured {
        sent_ns: Some(sending.measured_ns()),
        punctuality: sending.punctuality(),
        receiving: Receiving::Latency,
        checked: true,
        raw,
        cpu,
        run,
    })
}
