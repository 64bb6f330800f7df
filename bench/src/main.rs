//! `ringmq-bench`: exit code 0 done, 1 failed or messages at fault, 2 usage, 3 generator saturated.

use std::process::ExitCode;

use clap::Parser as _;
use ringmq_bench::args::Arguments;

fn main() -> ExitCode {
    match ringmq_bench::command::run(Arguments::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
