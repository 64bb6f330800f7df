//! The binary `ringmq`.

use std::process::ExitCode;

use clap::Parser as _;
use ringmq_cli::args::Arguments;
use ringmq_cli::commands;

/// A broker in this process, and raw writes, take their memory from it.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: ringmq_blocks::BlockAllocator = ringmq_blocks::BlockAllocator;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let quiet = arguments.global.quiet;
    start_logging(arguments.global.verbose);
    match commands::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.show(quiet);
            failure.exit.into()
        }
    }
}

/// Logs go to stderr: warnings, with -v what happens, with -vv everything of ours; `RINGMQ_LOG` overrides.
fn start_logging(verbose: u8) {
    use tracing_subscriber::EnvFilter;
    let level = match verbose {
        0 => "error",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("RINGMQ_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
