//! `quickstart`: a cluster for a minute, a million durable messages through it, and every one checked.
//!
//! Whatever happens (done, a fault, an error, Ctrl-C), the servers are stopped and the temporary directory
//! is removed before the program ends.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ringmq::ConsumeFrom;
use ringmq_bench::args::{FlushMode, Load, Rate, Target};
use ringmq_bench::check::Checker;
use ringmq_bench::environment::Environment;
use ringmq_bench::plot::{Curve, percentile_curves};
use ringmq_bench::receive::{PushSettings, drain, push};
use ringmq_bench::report::{Correctness, Figures, grouped, latency_table, rate_table};
use ringmq_bench::run::Run;
use ringmq_bench::sending::Sending;
use ringmq_bench::session::Session;
use tempfile::TempDir;

use super::interrupt::Interrupt;
use super::{CLOSE_LIMIT, joined};
use crate::args::{Flush, Global, Quickstart};
use crate::failure::Failure;
use crate::output;
use crate::servers::{ServerSettings, Servers};

/// Listener calls at a time; each is short.
const CONCURRENCY: usize = 64;
/// Bytes of messages that may wait in the consumer.
const WAITING_BYTES: u64 = 80 << 20;
/// Room that a message takes in the log beside its body, and what the broker prepares ahead.
const EXTRA_BYTES: u64 = 256;
const AHEAD_BYTES: u64 = 1 << 30;
/// The broker refuses writes below this share of the disk (its default), so it has to stay free.
const RESERVE_PERCENT: u64 = 5;
/// Messages per second of the calm phase.
const CALM_RATE: u64 = 1_000;
/// Messages of a queue that may wait, however large they are.
const WAITING_MIN: u64 = 16;
const TOPIC: &str = "quickstart";

pub(super) fn run(args: &Quickstart, global: &Global) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(error.to_string(), "raise the limit of processes"))?;
    runtime.block_on(async {
        let mut interrupt = Interrupt::listen()?;
        let directory = temporary_directory(args)?;
        let begun = Instant::now();
        let settings = server_settings(args, directory.path());
        // Not to be interrupted: it is over in a moment, and what it starts must be stopped.
        let started = tokio::task::spawn_blocking(move || Servers::start(&settings)).await;
        let servers = joined(started)?;
        introduce(args, global, &servers, &directory, begun.elapsed())?;
        let result = tokio::select! {
            result = measure(args, global, &servers) => result,
            () = interrupt.wait() => Err(Failure::new("interrupted", "")),
        };
        let stopped = joined(tokio::task::spawn_blocking(move || servers.stop()).await);
        let path = directory.path().to_owned();
        directory.close().map_err(|error| {
            let message = format!("cannot remove {}: {error}", path.display());
            Failure::new(message, "remove it by hand")
        })?;
        result.and(stopped)
    })
}

fn server_settings(args: &Quickstart, directory: &Path) -> ServerSettings {
    ServerSettings {
        data: directory.join("broker"),
        namesrv_port: 0,
        broker_port: 0,
        http_port: None,
        shards: args.shards,
        flush_sync: args.flush == Flush::Sync,
    }
}

/// A directory on a real disk: where the system's temporary one is in memory, in /var/tmp or here.
fn temporary_directory(args: &Quickstart) -> Result<TempDir, Failure> {
    let in_memory = |path: &Path| Environment::read(path).disk_filesystem == "tmpfs";
    let candidates = [std::env::temp_dir(), PathBuf::from("/var/tmp"), PathBuf::from(".")];
    let parent = args.dir.clone().unwrap_or_else(|| {
        let on_disk = candidates.iter().find(|path| path.is_dir() && !in_memory(path));
        on_disk.unwrap_or(&candidates[0]).clone()
    });
    check_room(args, &parent)?;
    tempfile::Builder::new().prefix("ringmq-quickstart-").tempdir_in(&parent).map_err(|error| {
        let message = format!("cannot make a directory in {}: {error}", parent.display());
        Failure::new(message, "--dir names another place")
    })
}

fn check_room(args: &Quickstart, parent: &Path) -> Result<(), Failure> {
    // Where nothing can be read, the broker's own watermark speaks up in time.
    let Ok(disk) = rustix::fs::statvfs(parent) else { return Ok(()) };
    let reserve = disk.f_blocks * disk.f_frsize / 100 * RESERVE_PERCENT;
    let free = (disk.f_bavail * disk.f_frsize).saturating_sub(reserve);
    let needed = args.count.saturating_mul(args.size + EXTRA_BYTES).saturating_add(AHEAD_BYTES);
    if needed <= free {
        return Ok(());
    }
    Err(Failure::new(
        format!(
            "{} has {} to spare, and {} messages of {} need about {}",
            parent.display(),
            output::bytes(free),
            grouped(args.count),
            output::bytes(args.size),
            output::bytes(needed)
        ),
        "--dir names another disk; --count sends fewer",
    ))
}

fn introduce(
    args: &Quickstart,
    global: &Global,
    servers: &Servers,
    directory: &TempDir,
    took: Duration,
) -> Result<(), Failure> {
    if global.quiet {
        return Ok(());
    }
    let durability = match args.flush {
        Flush::Sync => "acknowledged when it survives power loss (SYNC flush)",
        Flush::Async => "acknowledged when the device has taken it (ASYNC flush)",
    };
    let environment = Environment::read(directory.path());
    eprintln!(
        "Started a name server ({}) and a broker ({}, {} shards) in {} ms.\n\
         {}; data in {}.\n\
         Sending {} messages of {} to {} queues, each {durability},\n\
         while a consumer group receives and checks them.\n",
        servers.namesrv_address(),
        servers.broker_address(),
        servers.shards(),
        took.as_millis(),
        environment.summary(),
        directory.path().display(),
        grouped(args.count),
        output::bytes(args.size),
        args.queues,
    );
    if !environment.optimised {
        eprintln!("This is a debug build: `cargo run --release ...` is several times faster.\n");
    }
    Ok(())
}

async fn measure(args: &Quickstart, global: &Global, servers: &Servers) -> Result<(), Failure> {
    let target = Target {
        namesrv: servers.namesrv_address().to_string(),
        topic: Some(TOPIC.to_owned()),
        queues: args.queues,
        out: None,
        threads: 2,
        connections: 1,
    };
    let failed = |error: anyhow::Error| Failure::new(format!("{error:#}"), "-v shows more");
    let session = Session::open(&target, true).await.map_err(failed)?;
    let full = Phase::full_speed(args);
    let mut ends = vec![full.play(&session, args, global).await.map_err(failed)?];
    if !args.calm.is_zero() {
        ends.push(Phase::calm(args).play(&session, args, global).await.map_err(failed)?);
    }
    session.close().await.map_err(failed)?;
    conclude(&ends)
}

/// One load on the topic, with a consumer group of its own.
struct Phase {
    name: &'static str,
    load: Load,
    messages: u64,
    duration: Duration,
}

/// What became of a phase.
struct Ended {
    name: &'static str,
    run: Arc<Run>,
    sending_ns: u64,
    start_ns: u64,
}

impl Phase {
    /// As fast as acknowledgements come.
    fn full_speed(args: &Quickstart) -> Phase {
        Phase {
            name: "full speed",
            load: load_of(args, Rate::Max, args.batch),
            messages: args.count,
            duration: Duration::from_secs(24 * 3600),
        }
    }

    /// What a message takes when nothing is in its way.
    fn calm(args: &Quickstart) -> Phase {
        let messages = u128::from(CALM_RATE) * args.calm.as_millis() / 1000;
        Phase {
            name: "1 000/s",
            load: load_of(args, Rate::PerSecond(CALM_RATE), 1),
            messages: u64::try_from(messages).unwrap_or(u64::MAX),
            duration: args.calm,
        }
    }

    async fn play(
        &self,
        session: &Session,
        args: &Quickstart,
        global: &Global,
    ) -> anyhow::Result<Ended> {
        let queues = session.queues().await?;
        let producers = session.producers(&self.load).await?;
        let run = Arc::new(Run::start(0, |id| Checker::new(id, None)));
        for queue in &queues {
            run.checker().starts_at(&queue.queue.broker, queue.queue.id, queue.max_offset);
        }
        let record_bytes = args.size + EXTRA_BYTES;
        let waiting = (WAITING_BYTES / u64::from(args.queues) / record_bytes).max(WAITING_MIN);
        let settings = PushSettings {
            group: format!("quickstart-{:x}", run.id),
            topic: TOPIC.to_owned(),
            from: ConsumeFrom::Last,
            concurrency: CONCURRENCY,
            waiting: waiting as usize,
        };
        let consumer = push(session.client(0), &run, &settings, queues.len()).await?;
        let bar = Bar::show(&run, self.messages, global.quiet);
        let start_ns = run.clock.now_ns();
        let warm_up = Duration::ZERO;
        let mut sending = Sending::new(&run, &producers, TOPIC, &self.load, self.messages, warm_up);
        sending.slice(self.duration).await?;
        drain(&run).await;
        bar.finish().await;
        consumer.close(CLOSE_LIMIT).await?;
        let sending_ns = sending.measured_ns();
        Ok(Ended { name: self.name, run, sending_ns, start_ns })
    }
}

fn load_of(args: &Quickstart, rate: Rate, batch: u32) -> Load {
    Load {
        rate,
        in_flight: args.in_flight,
        count: Some(args.count),
        duration: None,
        warmup: Some(Duration::ZERO),
        size: args.size as usize,
        batch,
        flush: match args.flush {
            Flush::Sync => FlushMode::Sync,
            Flush::Async => FlushMode::Async,
        },
        producers: 1,
    }
}

fn conclude(ends: &[Ended]) -> Result<(), Failure> {
    let verdicts: Vec<Correctness> =
        ends.iter().map(|ended| Correctness::of(&ended.run, true)).collect();
    let full = &ends[0];
    let (mut produced, mut received) = (full.run.produced(), full.run.received());
    let receiving_ns = full.run.progress().last_arrival_ns.saturating_sub(full.start_ns);
    let sent = Figures::of(&mut produced, full.sending_ns);
    let arrived = Figures::of(&mut received, receiving_ns);
    let mut text = rate_table(&[("produce", &sent), ("consume", &arrived)]);
    text.push('\n');
    drop((produced, received));

    let recorders: Vec<_> =
        ends.iter().map(|ended| (ended, ended.run.produced(), ended.run.received())).collect();
    let mut rows = Vec::new();
    for (ended, produced, received) in &recorders {
        rows.push((format!("{}: produce response", ended.name), &produced.response));
        rows.push((format!("{}: end to end", ended.name), &received.response));
    }
    let rows: Vec<_> = rows.iter().map(|(name, latencies)| (name.as_str(), *latencies)).collect();
    text.push_str(&latency_table(&rows));
    text.push('\n');
    let marks = ['o', 'x', '.', '+'];
    let curves: Vec<Curve<'_>> = rows
        .iter()
        .zip(marks)
        .map(|((name, latencies), mark)| Curve { name, mark, latencies })
        .collect();
    text.push_str(&percentile_curves(&curves));
    text.push('\n');
    for (ended, verdict) in ends.iter().zip(&verdicts) {
        for line in verdict.lines() {
            text.push_str(&format!("{}: {line}\n", ended.name));
        }
    }
    output::print(&text)?;
    judge(&verdicts)
}

fn judge(verdicts: &[Correctness]) -> Result<(), Failure> {
    let Some(verdict) = verdicts.iter().find(|verdict| !verdict.is_clean()) else { return Ok(()) };
    let what = match verdict.faults.is_clean() {
        true => format!("{} sends failed", verdict.failed),
        false => format!("messages are at fault: {}", verdict.faults),
    };
    Err(Failure::new(what, "the same with -v, and report it with what stands above"))
}

/// The progress bar, on a terminal only.
struct Bar {
    bar: ProgressBar,
    task: tokio::task::JoinHandle<()>,
}

impl Bar {
    fn show(run: &Arc<Run>, count: u64, quiet: bool) -> Bar {
        let bar = ProgressBar::with_draw_target(
            Some(count),
            if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() },
        );
        let style = "{bar:40} {percent:>3} %  {msg}  {elapsed}";
        bar.set_style(
            ProgressStyle::with_template(style).expect("a constant template that parses"),
        );
        let (shown, run) = (bar.clone(), Arc::clone(run));
        let task = tokio::spawn(async move {
            let mut every = tokio::time::interval(Duration::from_millis(100));
            loop {
                every.tick().await;
                let progress = run.progress();
                shown.set_position(progress.received);
                let (durable, received) =
                    (grouped(progress.acknowledged), grouped(progress.received));
                shown.set_message(format!("{durable} durable, {received} received"));
            }
        });
        Bar { bar, task }
    }

    async fn finish(self) {
        self.task.abort();
        // The only error there is says that it was aborted.
        let _ = self.task.await;
        self.bar.finish_and_clear();
    }
}
