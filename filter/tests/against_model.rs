//! semantics: SQL92. Random expressions, written in random ways, say of random messages what the model says.

#![allow(clippy::unwrap_used)] // A failure here is the test's.

mod model;

use model::{Message, Random};
use ringmq_filter::{Expression, Properties, evaluate};

const CASES: u64 = 100_000;

struct Of<'a>(&'a Message);

impl Properties for Of<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

#[test]
fn a_hundred_thousand_random_expressions_mean_what_the_model_says() {
    let (mut counts, mut by_tags) = ([0u32; 3], 0);
    for seed in 0..CASES {
        let random = &mut Random::new(seed + 1);
        let depth = random.below(5);
        let tree = model::tree(random, depth);
        let text = model::write(&tree, random);
        let expression = Expression::parse(&text)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}\n{}", error.caret()));
        let again = Expression::parse(&model::write(&tree, random)).unwrap();
        assert_eq!(expression, again, "seed {seed}: two ways to write {tree:?}");
        let canonical = Expression::parse(expression.as_str()).unwrap();
        assert_eq!(canonical, expression, "seed {seed}: {text}");
        for _ in 0..4 {
            let message = model::message(random);
            let expected = model::meaning(&tree, &message);
            counts[(expected + 1) as usize] += 1;
            let expected = [Some(false), None, Some(true)][(expected + 1) as usize];
            let found = evaluate(&expression, &Of(&message));
            assert_eq!(found, expected, "seed {seed}: {text}\n{expression}\n{message:?}");
            assert_eq!(evaluate(&canonical, &Of(&message)), expected, "seed {seed}: {canonical}");
            if let Some(mut tags) = expression.tags() {
                by_tags += 1;
                let message = Of(&message);
                let tag = message.get("TAGS");
                let has = tag.is_some_and(|tag| tags.any(|wanted| wanted == tag));
                assert!(
                    has || found != Some(true),
                    "seed {seed}: {text} is TRUE of {:?}",
                    message.0
                );
            }
        }
    }
    println!("false, unknown, true: {counts:?}; {by_tags} decided by tags");
    assert!(counts.iter().all(|count| u64::from(*count) > CASES / 10), "{counts:?}");
    assert!(by_tags > 1000);
}
