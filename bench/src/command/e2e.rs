//! `e2e`: send and receive at the same time; latency counts from due to received.

use std::sync::Arc;
use std::time::Duration;

use ringmq::ConsumeFrom;

use super::{Extent, blank_report, conclude, show_progress};
use crate::args::EndToEnd;
use crate::check::Checker;
use crate::receive::{PushSettings, drain, push};
use crate::report::{Correctness, Figures, latency_table, rate_table};
use crate::run::Run;
use crate::sending::Sending;
use crate::session::Session;

const WAITING_PER_QUEUE: usize = 10_000;
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn run(args: &EndToEnd) -> anyhow::Result<u8> {
    let extent = Extent::of(&args.load);
    let session = Session::open(&args.target, true).await?;
    let producers = session.producers(&args.load).await?;
    let warm_up_ns = extent.warm_up.as_nanos() as u64;
    let queues = session.queues().await?;
    let run = Arc::new(Run::start(warm_up_ns, |id| Checker::new(id, None)));
    for queue in &queues {
        run.checker().starts_at(&queue.queue.broker, queue.queue.id, queue.max_offset);
    }
    let settings = PushSettings {
        group: format!("bench-{:x}", run.id),
        topic: session.topic().to_owned(),
        // What is there already is another run's.
        from: ConsumeFrom::Last,
        concurrency: args.concurrency,
        waiting: WAITING_PER_QUEUE,
    };
    let mut consumers = Vec::new();
    for index in 0..args.consumers as usize {
        // The first gets all queues; each further one waits only until it is a member.
        let wanted = if index == 0 { queues.len() } else { 0 };
        consumers.push(push(session.client(index), &run, &settings, wanted).await?);
    }
    let mut sending = Sending::new(
        &run,
        &producers,
        session.topic(),
        &args.load,
        extent.messages,
        extent.warm_up,
    );
    let progress = show_progress(&run);
    sending.slice(extent.duration).await?;
    drain(&run).await;
    for consumer in consumers {
        consumer.close(CLOSE_LIMIT).await?;
    }
    session.client(0).admin().delete_group(&settings.group).await?;
    drop(progress);
    drop(producers);
    session.close().await?;

    let mut report = blank_report("e2e", args, ".".as_ref(), Correctness::of(&run, true))?;
    let mut produced = run.produced();
    let mut received = run.received();
    let sent_figures = Figures::of(&mut produced, sending.measured_ns());
    let measured_ns = received.measured_ns();
    let mut received_figures = Figures::of(&mut received, measured_ns);
    received_figures.service = None;
    println!("{}", rate_table(&[("produce", &sent_figures), ("receive", &received_figures)]));
    let rows = [
        ("produce response", &produced.response),
        ("produce service", &produced.service),
        ("end to end", &received.response),
    ];
    println!("{}", latency_table(&rows));
    report.produce = Some(sent_figures);
    report.receive = Some(received_figures);
    report.generator = sending.punctuality().map(Into::into);
    conclude(&report, &args.target)
}
