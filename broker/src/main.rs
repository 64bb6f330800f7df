//! The binary `ringmq-broker`.
//!
//! stdout is one line when the broker is ready; everything else goes to stderr. SIGTERM and SIGINT stop
//! it in order; exit 0 then, 1 when it cannot start or stop (in time), 2 for bad settings.

use anyhow::Context;
use ringmq_broker::Broker;
use ringmq_broker::config::{ConfigError, Layers, command};
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The log writes from its blocks.
#[global_allocator]
static ALLOCATOR: ringmq_blocks::BlockAllocator = ringmq_blocks::BlockAllocator;

/// Time to send last answers and close files, beyond `stop_timeout`.
const LAST_WORDS: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_env("RINGMQ_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let matches = command().get_matches();
    let layers = match layers(&matches) {
        Ok(layers) => layers,
        Err(error) => return bad_settings(&error),
    };
    let config = match layers.resolve() {
        Ok(config) => config,
        Err(error) => return bad_settings(&error),
    };
    if matches.get_flag("print_config") {
        print!("{}", config.describe(&layers));
        return ExitCode::SUCCESS;
    }
    if matches.get_flag("check_config") {
        println!("the settings are fine");
        return ExitCode::SUCCESS;
    }
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringmq-broker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn layers(matches: &clap::ArgMatches) -> Result<Layers, ConfigError> {
    let mut layers = Layers::default();
    if let Some(path) = matches.get_one::<std::path::PathBuf>("config") {
        layers.file(path)?;
    }
    layers.environment(std::env::vars())?;
    layers.flags(matches)?;
    Ok(layers)
}

fn bad_settings(error: &ConfigError) -> ExitCode {
    use std::error::Error;
    eprint!("ringmq-broker: {error}");
    if let Some(source) = error.source() {
        eprint!(": {source}");
    }
    eprintln!("\nTry --help, or --print-config for what is in force.");
    ExitCode::from(2)
}

fn run(config: ringmq_broker::BrokerConfig) -> anyhow::Result<()> {
    // Before any thread starts, so that all of them leave the signals to the one that waits.
    let signals = ringmq_broker::Signals::block()?;
    let (tell, told) = std::sync::mpsc::channel();
    let serves = Arc::new(AtomicBool::new(false));
    let has_begun = Arc::clone(&serves);
    std::thread::Builder::new().name("ringmq-signals".to_owned()).spawn(move || {
        let signal = signals.wait();
        if !has_begun.load(Ordering::Acquire) {
            // Recovery may take long, and nothing was promised to anybody yet.
            std::process::exit(0);
        }
        let _ = tell.send(signal);
    })?;
    let name = config.broker.clone();
    let stop_limit = config.stop_timeout + LAST_WORDS;
    let broker = Broker::start(config)?;
    serves.store(true, Ordering::Release);
    let http =
        broker.http_address().map_or_else(|| "off".to_owned(), |address| address.to_string());
    println!("ready broker={name} listen={} http={http}", broker.address());
    std::io::stdout().flush()?;
    let signal = told.recv().context("the thread that waits for signals ended")??;
    tracing::info!(signal, "stopping");
    end_after(stop_limit)?;
    broker.stop()?;
    tracing::info!("stopped");
    Ok(())
}

/// Ends the process when the broker has not stopped by then: a disk that does not answer holds its threads for
/// as long as it likes. What was acknowledged is durable, what it holds was not.
fn end_after(limit: Duration) -> anyhow::Result<()> {
    let end = move || {
        std::thread::sleep(limit);
        eprintln!(
            "ringmq-broker: not stopped within {} s: a disk does not answer, or a client does not read; the \
             process ends, acknowledged messages are on disk",
            limit.as_secs()
        );
        std::process::exit(1);
    };
    std::thread::Builder::new().name("ringmq-stop".to_owned()).spawn(end).map(drop)?;
    Ok(())
}
