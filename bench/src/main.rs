//! `ringmq-bench`: exit code 0 done, 1 failed, messages at fault or a regression, 2 usage, 3 generator
//! saturated.

use std::process::ExitCode;

use ringmq_bench::args::Arguments;

/// Raw writes take their memory from where the broker's log has its blocks.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: ringmq_blocks::BlockAllocator = ringmq_blocks::BlockAllocator;

fn main() -> ExitCode {
    let mut words: Vec<_> = std::env::args_os().collect();
    if let Some(name) = words.first_mut() {
        *name = "ringmq-bench".into();
    }
    let arguments = Arguments::parse_as(words, None);
    ExitCode::from(ringmq_bench::command::run_to_code(arguments))
}
