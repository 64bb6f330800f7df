//! The shard core in the simulated world: many seeds must be clean, and planted bugs must be found.
//!
//! `RINGMQ_SIM_SEEDS` sets how many seeds are run, `RINGMQ_SIM_FIRST` the first of them; `RINGMQ_SIM_SEED`
//! replays one with a trace (`cargo xtask sim SEED`), `RINGMQ_SIM_BUG` with that planted bug.

use ringmq_tests::sim::planted::Bug;
use ringmq_tests::sim::{Summary, Violation, run};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const SEEDS: u64 = 2_000;
/// A planted bug must be found within so many seeds.
const SEEDS_PER_BUG: u64 = 60;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

#[test]
fn simulation_seeds_are_clean() {
    if let Some(seed) = number("RINGMQ_SIM_SEED") {
        // With a planted bug, by its name.
        let name = std::env::var("RINGMQ_SIM_BUG").ok();
        let is_named = |bug: &&Bug| name.as_ref() == Some(&format!("{bug:?}"));
        let bug = Bug::ALL.iter().chain(Bug::HARMLESS).find(is_named).copied();
        match run(seed, bug, true) {
            Ok(summary) => println!("simulation: seed {seed} is clean: {summary:?}"),
            Err(found) => panic!("simulation: seed {seed}: {found}"),
        }
        return;
    }
    let first = number("RINGMQ_SIM_FIRST").unwrap_or(1);
    let count = number("RINGMQ_SIM_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(first);
    let (total, failures) = (Mutex::new(Summary::default()), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    match run(seed, None, false) {
                        Ok(summary) => *total.lock().unwrap() += summary,
                        Err(found) => failures.lock().unwrap().push((seed, found)),
                    }
                }
            });
        }
    });
    let (total, mut failures) = (total.into_inner().unwrap(), failures.into_inner().unwrap());
    failures.sort_by_key(|(seed, _)| *seed);
    for (count, seed, found) in by_kind(&failures) {
        println!("simulation: seed {seed} and {} like it: {found}", count - 1);
        println!("  replay: cargo xtask sim {seed}");
    }
    ringmq_tests::say(format_args!(
        "simulation: {} seeds clean, {} crashes ({} power losses), {} acknowledged messages checked, \
         {} records read back, {} lost with the power as allowed, {} commits, {} popped, {} of them acknowledged, {} in order, {} left out by filters, {} failed disk operations, {} segments, \
         {} indexes, {} spoiled, {} units spoiled, {} transfers, {} expired, {} retired, {} holes, {} events",
        count - failures.len() as u64,
        total.crashes,
        total.power_losses,
        total.acknowledged,
        total.seen,
        total.lost,
        total.commits,
        total.popped,
        total.acked,
        total.ordered,
        total.left_out,
        total.failed_operations,
        total.segments,
        total.indexes,
        total.spoiled,
        total.rotten,
        total.transfers,
        total.expired,
        total.retired,
        total.holes,
        total.events,
    ));
    assert!(failures.is_empty(), "{} of {count} seeds broke a promise", failures.len());
}

/// The first of each kind of failure, and how many there are of it.
fn by_kind(failures: &[(u64, Violation)]) -> Vec<(usize, u64, &Violation)> {
    let kind = |found: &Violation| -> String {
        found.0.chars().filter(|c| !c.is_ascii_digit()).take(40).collect()
    };
    let mut kinds: BTreeMap<String, (usize, u64, &Violation)> = BTreeMap::new();
    for (seed, found) in failures {
        kinds.entry(kind(found)).or_insert((0, *seed, found)).0 += 1;
    }
    kinds.into_values().collect()
}

/// A judge that never condemned anything proves nothing.
#[test]
fn planted_bugs_are_caught() {
    let mut missed = Vec::new();
    let asked = clean_seeds();
    for bug in Bug::ALL {
        if !bug.can_strike(&asked) {
            println!("planted {bug:?}: nothing that it could spoil was asked for");
            continue;
        }
        let caught = (1..=SEEDS_PER_BUG).find_map(|seed| {
            let found = run(seed, Some(*bug), false).err()?;
            // What happens without the bug as well is not its work.
            run(seed, None, false).ok().map(|_| (seed, found))
        });
        match caught {
            Some((seed, found)) => {
                let text: String = found.0.chars().take(150).collect();
                println!("planted {bug:?}: caught by seed {seed}: {text}");
            }
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not caught within {SEEDS_PER_BUG} seeds: {missed:?}");
}

/// What is derived may be missing or wrong, and nobody sees a difference.
#[test]
fn harmless_bugs_do_no_harm() {
    for bug in Bug::HARMLESS {
        for seed in 1..=SEEDS_PER_BUG {
            if let Err(found) = run(seed, Some(*bug), false)
                && run(seed, None, false).is_ok()
            {
                panic!("{bug:?} must do no harm; seed {seed}: {found}");
            }
        }
    }
}

/// What the seeds ask for with which bugs are looked for.
fn clean_seeds() -> Summary {
    let mut total = Summary::default();
    for seed in 1..=SEEDS_PER_BUG {
        total += run(seed, None, false).unwrap_or_default();
    }
    total
}
