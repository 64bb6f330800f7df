//! SQL92 filters: which messages a subscription wants, by their properties and their tag.
//!
//! [`Expression::parse`] checks an expression and makes a flat program of it; [`evaluate`] runs that against
//! the [`Properties`] of a message. `Display` of an [`Expression`] is its canonical text: two spellings of the
//! same expression have the same.
//!
//! ```
//! use ringmq_filter::{Expression, evaluate};
//! let wanted = Expression::parse("region='eu' and amount > 1e2").unwrap();
//! assert_eq!(wanted.to_string(), "region = 'eu' AND amount > 100");
//! let message = [("region", "eu"), ("amount", "120.50")];
//! assert_eq!(evaluate(&wanted, &message), Some(true));
//! let wrong = Expression::parse("region = 'eu' AND").unwrap_err();
//! assert_eq!(wrong.caret(), "region = 'eu' AND\n                 ^");
//! ```
//!
//! # What can be said
//!
//! | form | TRUE when |
//! |---|---|
//! | `a = x`, `a <> x` | equal, not equal |
//! | `a > x`, `a >= x`, `a < x`, `a <= x` | the order of numbers |
//! | `a [NOT] BETWEEN x AND y` | `a >= x AND a <= y`; bounds are numbers or properties |
//! | `a [NOT] IN ('x', 'y')` | one of the strings |
//! | `a [NOT] CONTAINS 'x'`, `STARTSWITH`, `ENDSWITH` | `'x'` is a part, the beginning, the end; `''` always is |
//! | `a IS [NOT] NULL` | the message lacks (has) the property; never unknown |
//! | `a` | the same as `a = TRUE` |
//! | `NOT c`, `c AND d`, `c OR d`, `(c)` | `NOT` binds closest, `OR` loosest |
//!
//! Keywords in any case. Names of properties are case-sensitive: letters, digits, `_`, `$` and `.`, not a digit
//! first; any other in double quotes (`"order-id"`, `""` for a quote). [`TAGS`] is the message's tag. Strings
//! stand in single quotes (`''` for a quote). Numbers: `12`, `-3`, `2.5`, `.5`, `1e6`, `12L`.
//!
//! # How types compare
//!
//! Properties are strings; what they are compared with says how they are read.
//!
//! | a property with | `=` `<>` | `<` `<=` `>` `>=` `BETWEEN` |
//! |---|---|---|
//! | a number | as numbers; a property that is no number: unknown | the same |
//! | a string | byte by byte | refused when parsed |
//! | `TRUE`, `FALSE` | `true` or `false` in any case; anything else: unknown | refused when parsed |
//! | a property | byte by byte | as numbers; one that is no number: unknown |
//!
//! Constants of different kinds are refused, and so is `NULL` but after `IS`. A number is an optional sign,
//! digits with or without a fraction, an optional exponent, nothing around it. Whole numbers of 64 bits are
//! exact, others are IEEE doubles, and the two are compared without rounding either: 9007199254740993 is
//! greater than 9007199254740992.0. What is beyond the range of doubles, or longer than [`NUMBER_BYTES_MAX`], is no
//! number.
//!
//! # Three values
//!
//! What is asked of a property that the message lacks is *unknown*, and so is its `NOT`; `AND` and `OR` as in
//! SQL92 (`FALSE AND unknown` is FALSE, `TRUE OR unknown` is TRUE). Only TRUE selects a message.
//!
//! # Other than RocketMQ
//!
//! `NOT a = 1` is `NOT (a = 1)` as in SQL, where RocketMQ reads `(NOT a) = 1`. A property that is neither true
//! nor false is unknown where RocketMQ says FALSE. Arithmetic signs stand in front of numbers only. A failed
//! conversion is unknown for its own term where RocketMQ gives up the whole expression. There are no comments.
//!
//! # Limits
//!
//! Each has a constant: [`EXPRESSION_BYTES_MAX`], [`DEPTH_MAX`], [`TERMS_MAX`],
//! [`NUMBER_BYTES_MAX`]. Evaluation looks at each term
//! at most once, and a term asks for at most three properties and passes over each value once: so its cost is
//! at most [`TERMS_MAX`] times what a message's properties cost. Nothing is allocated.

#![forbid(unsafe_code)]

mod canonical;
mod compile;
mod error;
mod evaluate;
mod number;
mod parse;
mod token;
mod tree;

pub use compile::Expression;
pub use error::{Error, ErrorKind};
pub use evaluate::evaluate;

/// Longest expression, and longest canonical text of one, in bytes.
pub const EXPRESSION_BYTES_MAX: usize = 4 << 10;
/// Deepest nesting of parentheses.
pub const DEPTH_MAX: usize = 32;
/// Most terms: each comparison is one, and each string of an `IN`.
pub const TERMS_MAX: usize = 256;
/// Longest number in a property, in bytes; longer ones are none.
pub const NUMBER_BYTES_MAX: usize = 512;
/// Name under which an expression finds a message's tag.
pub const TAGS: &str = "TAGS";

/// What a message says of itself.
pub trait Properties {
    /// The value of a property, or of the tag under the name [`TAGS`].
    fn get(&self, name: &str) -> Option<&str>;
}

/// Pairs of name and value: for tests and small tools.
impl<const N: usize> Properties for [(&str, &str); N] {
    fn get(&self, name: &str) -> Option<&str> {
        Properties::get(self.as_slice(), name)
    }
}

impl Properties for [(&str, &str)] {
    fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}
