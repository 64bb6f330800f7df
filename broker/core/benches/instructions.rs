//! Instructions of a shard for each message, counted by valgrind: the same on a busy machine as on a quiet one, so a
//! change that costs more can fail.
//!
//! `cargo bench -p ringmq-core --bench instructions` counts each path twice, for some rounds and for twice as many; what they
//! differ by is what the rounds cost. It compares with `instructions.txt` beside this file and fails when a path takes
//! more than a tenth more; `-- --write` writes that file anew.
#![allow(clippy::unwrap_used, clippy::expect_used)] // A failure here is the benchmark's.

#[path = "../tests/bare/mod.rs"]
mod bare;

use bare::{World, fetch_frame, produce_frame, world};
use ringmq_core::Input;
use ringmq_schema::admin::{CreateGroup, CreateGroupArgs};
use ringmq_schema::build::FrameBuilder;
use ringmq_schema::frame::{self, read_table};
use ringmq_schema::opcode::Opcode;
use ringmq_schema::pop::{Ack, AckArgs, Pop, PopAnswer, PopArgs, Receipt};
use std::process::{Command, ExitCode};

/// Rounds of the shorter count; the longer has twice as many.
const ROUNDS: u64 = 200;
/// Until memory comes back, and all tables are as large as they get.
const WARM_UP: u64 = 400;
/// Compilers differ a little; what is worth a look differs by more.
const TOLERANCE: f64 = 0.1;
const COUNTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

/// A path: its name, messages in a round, and what makes a round.
struct Path {
    name: &'static str,
    messages: u64,
    begin: fn() -> Box<dyn FnMut()>,
}

const PATHS: [Path; 5] = [
    Path { name: "append, single messages, 64 in a turn", messages: 64, begin: singles },
    Path { name: "append, batches of 100", messages: 100, begin: batches },
    Path { name: "append and fetch, batches of 100", messages: 100, begin: || fetches(None) },
    Path {
        name: "append and fetch by an expression, batches of 100",
        messages: 100,
        begin: || fetches(Some("region = 'eu' AND n < 10 AND missing IS NULL")),
    },
    Path { name: "append, pop and acknowledge, 32 at a time", messages: 32, begin: pops },
];

fn singles() -> Box<dyn FnMut()> {
    let (mut world, produce) = (world(), produce_frame(1));
    Box::new(move || {
        (0..64).for_each(|_| world.request(&produce));
        world.handle(Input::TurnEnd);
    })
}

fn batches() -> Box<dyn FnMut()> {
    let (mut world, produce) = (world(), produce_frame(100));
    Box::new(move || {
        world.request(&produce);
        world.handle(Input::TurnEnd);
    })
}

fn fetches(filter: Option<&'static str>) -> Box<dyn FnMut()> {
    let (mut world, produce) = (world(), produce_frame(100));
    let (mut frames, mut fetch, mut offset) = (FrameBuilder::new(), Vec::new(), 0);
    Box::new(move || {
        fetch_frame(&mut frames, &mut fetch, offset, filter);
        world.request(&fetch);
        world.request(&produce);
        world.handle(Input::TurnEnd);
        offset += 100;
    })
}

fn pops() -> Box<dyn FnMut()> {
    let (mut world, produce) = (world(), produce_frame(32));
    let (mut frames, mut bytes) = (FrameBuilder::new(), Vec::new());
    frames.request(&mut bytes, Opcode::CreateGroup, 0, 3, &[], |fbb| {
        let name = Some(fbb.create_string("g"));
        CreateGroup::create(fbb, &CreateGroupArgs { name, settings: None })
    });
    world.request(&bytes);
    world.handle(Input::TurnEnd);
    let mut receipts = Vec::new();
    Box::new(move || {
        bytes.clear();
        frames.request(&mut bytes, Opcode::Pop, 0, 4, &[], |fbb| {
            let args = PopArgs {
                group: 1,
                topic: 1,
                start: -1,
                max_records: 32,
                max_bytes: 1 << 20,
                invisible_ms: 30_000,
                wait_ms: 1000,
                ..PopArgs::default()
            };
            Pop::create(fbb, &args)
        });
        world.request(&bytes);
        world.request(&produce);
        world.handle(Input::TurnEnd);
        take_receipts(&world, &mut receipts);
        bytes.clear();
        frames.request(&mut bytes, Opcode::Ack, 0, 5, &[], |fbb| {
            let receipts = Some(fbb.create_vector(&receipts));
            Ack::create(fbb, &AckArgs { group: 1, receipts })
        });
        world.request(&bytes);
        world.handle(Input::TurnEnd);
        assert_eq!(world.shard.figures().popped_in_flight, 0, "all are acknowledged");
    })
}

/// Of the messages in the last answer that has any.
fn take_receipts(world: &World, receipts: &mut Vec<Receipt>) {
    receipts.clear();
    // Of an answer only what is in front of the run is kept: the table can be read all the same.
    let table = &world.head[size_of::<frame::FrameHeader>()..];
    let answer = read_table::<PopAnswer<'_>>(table).expect("an answer to a pop");
    let popped = answer.records().into_iter().flatten();
    receipts.extend(popped.map(|p| Receipt::new(1, p.queue(), p.offset(), p.nonce())));
    assert_eq!(receipts.len(), 32, "all that was appended is popped");
}

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
