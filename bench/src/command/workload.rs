//! `workload`: a workload file of the OpenMessaging benchmark.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use ringmq::{ConsumeFrom, PushConsumer};
use serde::Serialize;

use super::{Usage, conclude};
use crate::args::{Load, Rate, Workload as Args};
use crate::check::Checker;
use crate::cpu::CpuWatch;
use crate::load::Lane;
use crate::measured::{Frame, Measured, Receiving};
use crate::payload::Fillers;
use crate::progress::{self, Goal};
use crate::receive::{Place, PushSettings, drain, push_at, read_between_of};
use crate::report::{Backlog, grouped};
use crate::run::Run;
use crate::sending::Sending;
use crate::session::Session;
use crate::workload::Workload;

const WAITING_PER_QUEUE: usize = 2_000;
const CONCURRENCY: usize = 64;
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Groups that join at a time.
const JOINING: usize = 16;
/// A backlog that is not built and drained within so many tests' time never will be.
const BACKLOG_TESTS_MAX: u32 = 10;
const BACKLOG_EXTRA: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct Parameters<'a> {
    #[serde(flatten)]
    args: &'a Args,
    workload: &'a Workload,
}

pub(super) async fn run(args: &Args) -> anyhow::Result<u8> {
    let (workload, fillers) =
        Workload::read(&args.file).map_err(|refused| Usage(refused.to_string()))?;
    let load = load_of(args, &workload);
    load.check().map_err(Usage)?;
    let session = Session::open_fresh(
        &args.namesrv,
        args.connections,
        workload.topics,
        workload.partitions_per_topic,
    )
    .await?;
    let (measured, backlog) =
        Test { args, workload: &workload, load: &load, session: &session }.run(&fillers).await?;
    session.close().await?;
    let out = args.out.as_deref();
    let frame = Frame {
        verb: "workload",
        disk: &args.watch.dir,
        flush: Some(args.flush),
        queued: load.is_queued(),
        out,
    };
    let mut outcome = measured.outcome(&frame, &Parameters { args, workload: &workload })?;
    outcome.report.backlog = backlog;
    println!("{}\n", workload.name);
    if let Some(backlog) = &outcome.report.backlog {
        println!("{}\n", backlog.line());
    }
    conclude(&outcome, out.map(Path::new))
}

fn load_of(args: &Args, workload: &Workload) -> Load {
    let (warm_up, test) = workload.durations(args.duration_scale);
    Load {
        rate: match workload.producer_rate {
            0 => Rate::Max,
            rate => Rate::PerSecond(rate),
        },
        in_flight: args.in_flight.max(workload.topics * workload.producers_per_topic),
        count: None,
        duration: Some(warm_up + test),
        warmup: Some(warm_up),
        size: workload.message_size,
        batch: args.batch,
        flush: args.flush,
        producers: workload.topics * workload.producers_per_topic,
    }
}

struct Test<'a> {
    args: &'a Args,
    workload: &'a Workload,
    load: &'a Load,
    session: &'a Session,
}

impl Test<'_> {
    async fn run(&self, fillers: &Fillers) -> anyhow::Result<(Measured, Option<Backlog>)> {
        let subscriptions = self.workload.subscriptions_per_topic as usize;
        let topics = self.session.topics();
        let fresh = |id| Checker::new(id, Some(0));
        let run = Arc::new(Run::start_over(0, topics.len(), subscriptions.max(1), fresh));
        let lanes = self.lanes().await?;
        let readers = self.start_readers(&run).await?;
        let (warm_up, test) = self.workload.durations(self.args.duration_scale);
        let keys = self.workload.key_distributor.into();
        let mut sending =
            Sending::over(&run, lanes, self.load, Some(fillers), keys, u64::MAX, warm_up);
        let cpu = CpuWatch::start(&run, self.session.broker_pid(&self.args.watch).await?)?;
        sending.warm_up_for(warm_up);
        let goal = Goal { duration: Some(warm_up + test), messages: None };
        let shown = progress::show(&run, goal, "");
        let backlog_bytes = self.workload.backlog_bytes(self.args.duration_scale);
        let (readers, backlog) = match backlog_bytes {
            0 => {
                sending.slice(warm_up + test).await?;
                (readers, None)
            }
            bytes => {
                let limit = test * BACKLOG_TESTS_MAX + BACKLOG_EXTRA;
                let stop = sending.stop();
                let steered = async {
                    let result = self.build_and_drain(&run, readers, bytes, limit).await;
                    stop.store(true, Ordering::Relaxed);
                    result
                };
                let (sent, steered) = tokio::join!(sending.slice(warm_up + limit), steered);
                sent?;
                let (readers, backlog) = steered?;
                (readers, Some(backlog))
            }
        };
        let sent_until_ns = run.clock.now_ns();
        if subscriptions > 0 {
            drain(&run).await;
        } else {
            self.read_back(&run).await?;
        }
        let cpu = cpu.map(|watch| watch.finish(run.warm_up_ns(), sent_until_ns));
        drop(shown);
        self.stop_readers(&run, readers).await?;
        let receiving = match subscriptions {
            0 => Receiving::Nothing,
            _ => Receiving::Latency,
        };
        let measured = Measured {
            sent_ns: Some(sending.measured_ns()),
            punctuality: sending.punctuality(),
            receiving,
            checked: true,
            raw: None,
            cpu,
            run,
        };
        Ok((measured, backlog))
    }

    /// A producer of its own for every stream.
    async fn lanes(&self) -> anyhow::Result<Vec<Lane>> {
        let mut lanes = Vec::new();
        for turn in 0..self.workload.producers_per_topic as usize {
            for (topic_number, topic) in self.session.topics().iter().enumerate() {
                let client = turn + topic_number;
                let producer = self.session.producer(client, topic, self.load).await?;
                lanes.push(Lane { producer, topic: topic.as_str().into(), topic_number });
            }
        }
        Ok(lanes)
    }

    fn group(&self, run: &Run, place: Place) -> String {
        format!("bench-{:x}-{}-{}", run.id, place.topic, place.subscription)
    }

    fn places(&self) -> impl Iterator<Item = Place> + use<> {
        let subscriptions = self.workload.subscriptions_per_topic as usize;
        (0..self.workload.topics as usize).flat_map(move |topic| {
            (0..subscriptions).map(move |subscription| Place { topic, subscription })
        })
    }

    /// Starts every consumer of every subscription, and waits until all queues are owned.
    async fn start_readers(&self, run: &Arc<Run>) -> anyhow::Result<Vec<PushConsumer>> {
        let queues = self.session.queues().await?.len();
        let started = stream::iter(self.places()).map(|place| async move {
            let settings = PushSettings {
                group: self.group(run, place),
                topic: self.session.topics()[place.topic].clone(),
                from: ConsumeFrom::First,
                concurrency: CONCURRENCY,
                waiting: WAITING_PER_QUEUE,
            };
            let mut members = Vec::new();
            for member in 0..self.workload.consumer_per_subscription as usize {
                // The first gets all queues; each further one waits only until it is a member.
                let wanted = if member == 0 { queues } else { 0 };
                let client = self.session.client(place.topic + place.subscription + member);
                members.push(push_at(client, run, &settings, wanted, place).await?);
            }
            anyhow::Ok(members)
        });
        let all: Vec<Vec<PushConsumer>> = started.buffer_unordered(JOINING).try_collect().await?;
        Ok(all.into_iter().flatten().collect())
    }

    async fn close_readers(&self, readers: Vec<PushConsumer>) -> anyhow::Result<()> {
        for reader in readers {
            reader.close(CLOSE_LIMIT).await.context("closing a consumer")?;
        }
        Ok(())
    }

    async fn stop_readers(&self, run: &Run, readers: Vec<PushConsumer>) -> anyhow::Result<()> {
        self.close_readers(readers).await?;
        let admin = self.session.client(0).admin();
        for place in self.places() {
            let group = self.group(run, place);
            admin.delete_group(&group).await.context("removing a group of the run")?;
        }
        Ok(())
    }

    /// After the warm-up: stops the consumers until so many bytes wait for them, starts them again, and
    /// goes on until they have caught up and the test's time is over.
    async fn build_and_drain(
        &self,
        run: &Arc<Run>,
        readers: Vec<PushConsumer>,
        bytes: u64,
        limit: Duration,
    ) -> anyhow::Result<(Vec<PushConsumer>, Backlog)> {
        let (warm_up, test) = self.workload.durations(self.args.duration_scale);
        let begun = Instant::now();
        let waiting = || {
            let progress = run.progress();
            let subscriptions = u64::from(self.workload.subscriptions_per_topic);
            let owed = (progress.acknowledged * subscriptions).saturating_sub(progress.received);
            owed * self.workload.message_size as u64
        };
        tokio::time::sleep(warm_up).await;
        self.close_readers(readers).await?;
        let until = async |reached: &dyn Fn() -> bool, doing: &str| {
            let since = Instant::now();
            while !reached() {
                if begun.elapsed() > warm_up + limit {
                    bail!("the backlog was not {doing} in {limit:?}; {} bytes wait", waiting());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Ok(since.elapsed())
        };
        let built = until(&|| waiting() >= bytes, "built").await?;
        let most = waiting();
        let readers = self.start_readers(run).await?;
        let received = run.progress().received;
        let left = ((1.0 - self.workload.backlog_drain_ratio) * bytes as f64) as u64;
        let drained = until(&|| waiting() <= left, "drained").await?;
        let received = run.progress().received - received;
        tokio::time::sleep((warm_up + test).saturating_sub(begun.elapsed())).await;
        let backlog = Backlog {
            wanted_bytes: bytes,
            reached_bytes: most,
            build_ms: built.as_secs_f64() * 1e3,
            drain_ms: drained.as_secs_f64() * 1e3,
            drain_messages_per_second: received as f64 / drained.as_secs_f64().max(1e-6),
        };
        Ok((readers, backlog))
    }

    /// Without subscriptions: reads what is stored, as `produce` does.
    async fn read_back(&self, run: &Run) -> anyhow::Result<()> {
        for (number, topic) in self.session.topics().iter().enumerate() {
            let acknowledged = run.checker_of(number, 0).acknowledged();
            let end = self.session.queues_of_after(topic, acknowledged).await?;
            read_between_of(self.session.client(0), run, number, &[], &end).await?;
        }
        Ok(())
    }
}

impl Backlog {
    /// For people.
    pub fn line(&self) -> String {
        format!(
            "backlog: {:.1} MB built in {:.1} s, drained in {:.1} s at {} messages/s while more came",
            self.reached_bytes as f64 / 1e6,
            self.build_ms / 1e3,
            self.drain_ms / 1e3,
            grouped(self.drain_messages_per_second as u64)
        )
    }
}
