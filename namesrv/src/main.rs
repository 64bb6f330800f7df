//! `ringmq-namesrv`: a name server as a process.

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command};
use ringmq_namesrv::settings::{KEYS, Settings};
use ringmq_namesrv::{NameServer, NameServerHandle};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let matches = command().get_matches();
    match run(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringmq-namesrv: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> Command {
    let mut command = Command::new("ringmq-namesrv")
        .about("RingMQ name server: tells clients and brokers which broker has a topic")
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(
            "Every setting is also read from the environment (RINGMQ_NAMESRV_LISTEN, ...) and from the \
             file given with --config; a flag wins over the environment, and that over the file. \
             RINGMQ_LOG sets what is logged (default: info).",
        )
        .arg(Arg::new("config").long("config").value_name("FILE").help("TOML file with settings"))
        .arg(
            Arg::new("print-config")
                .long("print-config")
                .action(ArgAction::SetTrue)
                .help("Prints the settings in force and where each came from, and exits"),
        );
    for key in KEYS {
        let mut arg = Arg::new(key.name).long(key.flag()).value_name("VALUE").help(key.help);
        if key.name == "insecure" {
            arg = arg.num_args(0..=1).default_missing_value("true").require_equals(true);
        }
        command = command.arg(arg);
    }
    command
}

fn settings(matches: &ArgMatches) -> anyhow::Result<Settings> {
    let mut settings = Settings::default();
    if let Some(path) = matches.get_one::<String>("config") {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        settings.file(path, &text)?;
    }
    settings.environment(std::env::vars())?;
    for key in KEYS {
        if let Some(value) = matches.get_one::<String>(key.name) {
            settings.flag(key, value)?;
        }
    }
    Ok(settings)
}

fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let settings = settings(matches)?;
    if matches.get_flag("print-config") {
        print!("{}", settings.print());
        return Ok(());
    }
    let filter = EnvFilter::try_from_env("RINGMQ_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("making the runtime that waits for signals")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
        let server = NameServer::start(settings.config)?;
        announce(&server);
        let mut look = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = look.tick() => if !server.is_running() { break },
            }
        }
        tracing::info!("stopping");
        server.stop()
    })
}

fn announce(server: &NameServerHandle) {
    let mut line = format!("ready namesrv listen={}", server.address());
    if let Some(http) = server.http_address() {
        line.push_str(&format!(" http={http}"));
    }
    let mut out = std::io::stdout().lock();
    // Whoever started it may not want to hear it: a closed pipe is no reason to stop.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
