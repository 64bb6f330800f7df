//! Instructions of a shard for each message, counted by valgrind: the same on a busy machine as on a quiet one, so a
//! change that costs more can fail.
//!
//! `cargo bench -p ringmq-core --bench instructions` counts each path twice, for some rounds and for twice as many; what they
//! differ by is what the rounds cost. It compares with `instructions.txt` beside this file and fails when a path takes
//! more than a tenth more; `-- --write` writes that file anew.
#![allow(clippy::unwrap_used, clippy::expect_used)] // A failure here is the benchmark's.

mod paths;

use paths::PATHS;
use std::process::{Command, ExitCode};

/// Rounds of the shorter count; the longer has twice as many.
const ROUNDS: u64 = 200;
/// Until memory comes back, and all tables are as large as they get.
const WARM_UP: u64 = 400;
/// Compilers differ a little; what is worth a look differs by more.
const TOLERANCE: f64 = 0.1;
const COUNTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

/// Counts a path in a process of its own.
fn count(path: usize, rounds: u64) -> u64 {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.arg(std::env::current_exe().unwrap());
    let ran = valgrind.args(["run", &path.to_string(), &rounds.to_string()]).output();
    let ran = ran.expect("valgrind is needed, Debian package valgrind");
    let text = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{text}");
    let counted = text.lines().find_map(|line| line.split_once("Collected :"));
    let (_, number) = counted.unwrap_or_else(|| panic!("valgrind says no count: {text}"));
    number.trim().parse().expect("a number of instructions")
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [run, path, rounds] = args.as_slice()
        && run == "run"
    {
        let (path, rounds): (usize, u64) = (path.parse().unwrap(), rounds.parse().unwrap());
        let mut round = (PATHS[path].begin)();
        (0..WARM_UP + rounds).for_each(|_| round());
        return ExitCode::SUCCESS;
    }
    let writes = args.iter().any(|arg| arg == "--write");
    let known = std::fs::read_to_string(COUNTS).unwrap_or_default();
    let known = |name: &str| {
        let mut lines = known.lines().filter_map(|line| line.split_once('\t'));
        lines.find_map(|(count, of)| (of == name).then(|| count.parse::<f64>().ok())?)
    };
    let (mut written, mut is_more) = (String::new(), false);
    for (number, path) in PATHS.iter().enumerate() {
        let more = count(number, 2 * ROUNDS) - count(number, ROUNDS);
        let each = more as f64 / (ROUNDS * path.messages) as f64;
        written.push_str(&format!("{each:.0}\t{}\n", path.name));
        let before = known(path.name);
        let ratio = before.map(|before| each / before);
        is_more |= ratio.is_none_or(|ratio| ratio > 1.0 + TOLERANCE);
        let verdict = match ratio {
            None => "not in instructions.txt".to_owned(),
            Some(ratio) if ratio > 1.0 + TOLERANCE => format!("{ratio:.2} of what it was: MORE"),
            Some(ratio) if ratio < 1.0 - TOLERANCE => {
                format!("{ratio:.2} of what it was: write it down with -- --write")
            }
            Some(ratio) => format!("{ratio:.2} of what it was"),
        };
        println!("{each:>8.0} instructions a message  {}  ({verdict})", path.name);
    }
    if writes {
        std::fs::write(COUNTS, written).unwrap();
        return ExitCode::SUCCESS;
    }
    if is_more { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
