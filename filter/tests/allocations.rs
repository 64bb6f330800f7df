//! Evaluation allocates nothing.

#![allow(clippy::unwrap_used)] // A failure here is the test's.

mod model;

use model::Random;
use ringmq_filter::{Expression, evaluate};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test, because the counter counts for the whole process.
#[test]
fn evaluation_allocates_nothing() {
    let random = &mut Random::new(7);
    let expressions: Vec<Expression> = (0..1000)
        .map(|_| {
            let tree = model::tree(random, 4);
            Expression::parse(&model::write(&tree, random)).unwrap()
        })
        .collect();
    let messages: Vec<_> = (0..100).map(|_| model::message(random)).collect();
    let long = "9".repeat(300) + ".5e-3";
    let region = Region::new(COUNTING);
    let mut selected = 0u32;
    for expression in &expressions {
        for message in &messages {
            selected += u32::from(evaluate(expression, message.as_slice()) == Some(true));
        }
        evaluate(expression, &[("a", long.as_str()), ("TAGS", long.as_str())]);
    }
    let change = region.change();
    assert_eq!((change.allocations, change.reallocations), (0, 0));
    assert!(selected > 1000, "{selected}");
}
