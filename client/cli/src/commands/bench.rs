//! `bench`: ringmq-bench under another name.

use std::ffi::OsString;
use std::process;

use ringmq_bench::args::Arguments;

use crate::args::{Bench, Global};

/// Runs the verb and ends the process with its exit code: 0 good, 1 incorrect or a regression, 2 usage,
/// 3 the generator was saturated. These are ringmq-bench's, not those of the other nouns.
pub(super) fn run(args: &Bench, global: &Global) -> ! {
    let mut words: Vec<OsString> = vec!["ringmq bench".into()];
    words.extend(args.arguments.iter().cloned());
    let parsed = Arguments::parse_as(words, Some(&global.namesrv));
    process::exit(i32::from(ringmq_bench::command::run_to_code(parsed)))
}
