//! promise: no-trust. Whatever the text is, it is an expression or is refused at a place within it.

#![allow(clippy::unwrap_used)] // A failure here is the test's.

mod model;

use model::Random;
use ringmq_filter::{Expression, evaluate};

const WORDS: [&str; 40] = [
    "AND",
    "or",
    "NOT",
    "IS",
    "NULL",
    "BETWEEN",
    "in",
    "CONTAINS",
    "startswith",
    "ENDSWITH",
    "TRUE",
    "false",
    "a",
    "TAGS",
    "\"b c\"",
    "'x'",
    "'",
    "''",
    "\"",
    "1",
    "-1.5",
    "1e",
    "9223372036854775808",
    "=",
    "<>",
    "<",
    "<=",
    ">",
    ">=",
    "(",
    ")",
    ",",
    "+",
    "-",
    ".",
    " ",
    "\n",
    "ä",
    "\u{0}",
    "€",
];

fn check(text: &str) -> bool {
    match Expression::parse(text) {
        Ok(expression) => {
            evaluate(&expression, &[("a", "1"), ("TAGS", "x"), ("b c", "")]);
            assert_eq!(Expression::parse(expression.as_str()).unwrap(), expression, "{text:?}");
            true
        }
        Err(error) => {
            assert!(error.position() <= text.len() && text.is_char_boundary(error.position()));
            assert_eq!(error.caret().lines().count(), 2, "{text:?}");
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

#[test]
fn random_bytes_and_random_words() {
    let mut accepted = 0;
    for seed in 0..100_000 {
        let random = &mut Random::new(seed);
        let count = random.below(24);
        let text = match seed % 2 {
            0 => {
                let bytes: Vec<u8> = (0..count * 4).map(|_| random.next() as u8).collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            _ => {
                let words = (0..count).map(|_| random.pick(&WORDS)).collect::<Vec<_>>();
                words.join(random.pick(&["", " "]))
            }
        };
        accepted += u32::from(check(&text));
    }
    assert!(accepted > 100, "{accepted} are expressions");
}

/// One change to something sound.
#[test]
fn expressions_with_one_fault() {
    for seed in 0..20_000 {
        let random = &mut Random::new(seed);
        let tree = model::tree(random, 3);
        let mut text: Vec<char> = model::write(&tree, random).chars().collect();
        let at = random.below(text.len());
        match random.below(3) {
            0 => drop(text.remove(at)),
            1 => text
                .insert(at, random.pick(&['(', ')', '\'', '"', ' ', 'N', '0', '-', '=', '\u{7f}'])),
            _ => text.truncate(at),
        }
        check(&text.into_iter().collect::<String>());
    }
}

/// The longest of each kind end quickly.
#[test]
fn the_worst_of_each_kind() {
    for part in [
        "(",
        "NOT ",
        "a=1 OR ",
        "a AND (",
        "'",
        "''",
        "\"",
        "1",
        "-",
        "a.",
        "a IN ('x',",
        "€",
        "\0",
    ] {
        check(&part.repeat(5000 / part.len()));
        check(&part.repeat(4096 / part.len()));
        check(&part.repeat(1_000_000));
    }
}
