//! `ringmq-bench`: exit code 0 done, 1 failed, messages at fault or a regression, 2 usage, 3 generator saturated.

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use ringmq_bench::args::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(text) = arguments.check() {
        Arguments::command().error(ErrorKind::ValueValidation, text).exit();
    }
    match ringmq_bench::command::run(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(ringmq_bench::command::code_of(&error))
        }
    }
}
