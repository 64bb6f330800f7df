//! After warm-up nothing is allocated per message on the append and fetch paths, nor for one that a filter looks at.
//!
//! What may allocate is the unit (its shared block) and now and then a chunk of a queue's index: both are
//! counted here and bounded per unit and per thousand messages, never per message.

#![allow(clippy::unwrap_used)] // A failure here is the test's.

mod bare;

use bare::{World, fetch_frame, produce_frame, world};
use ringmq_core::Input;
use ringmq_schema::build::FrameBuilder;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test, because the counter counts for the whole process.
#[test]
fn append_and_fetch_allocate_nothing_per_message() {
    // How many records come together, how many times in a turn, with which filter, and what part of them it wants.
    let some = "region = 'eu' AND n < 10 AND missing IS NULL";
    for (records, turn, filter, part) in
        [(100u32, 1u32, None, 1), (1, 64, None, 1), (100, 1, Some(some), 10)]
    {
        let mut world = world();
        let produce = produce_frame(records);
        let (mut frames, mut fetch, mut offset) = (FrameBuilder::new(), Vec::new(), 0u64);
        let mut rounds = |world: &mut World, count: u32| {
            for _ in 0..count {
                fetch_frame(&mut frames, &mut fetch, offset, filter);
                world.request(&fetch);
                for _ in 0..turn {
                    world.request(&produce);
                }
                world.handle(Input::TurnEnd);
                offset += u64::from(records * turn);
            }
        };
        rounds(&mut world, 400);
        let (units, answers, run_bytes) =
            (world.shard.figures().units, world.answers, world.run_bytes);
        let region = Region::new(COUNTING);
        let count = 1000;
        rounds(&mut world, count);
        let stats = region.change();
        let allocations = (stats.allocations + stats.reallocations) as u64;
        let messages = u64::from(count * records * turn);
        let units = world.shard.figures().units - units;
        println!(
            "batches of {records}: {allocations} allocations, {messages} messages, {units} units"
        );
        assert_eq!(world.answers - answers, u64::from(count * (turn + 1)));
        let wanted = messages / part;
        assert!(world.run_bytes - run_bytes >= wanted * 1024, "all of it was fetched");
        let most = wanted * 1400;
        assert!(world.run_bytes - run_bytes <= most, "and nothing else");
        // The unit's shared block and the tables that grow with the log: nothing else.
        assert!(
            allocations <= 2 * units + messages / 100 + u64::from(count),
            "{allocations} allocations for {messages} messages in {units} units"
        );
    }
}
