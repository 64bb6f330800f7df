//! Numbers: whole ones of 64 bits, and doubles.
//!
//! Invariants:
//! - a `Real` is finite;
//! - a comparison rounds neither side.

use crate::NUMBER_BYTES_MAX;
use std::cmp::Ordering;
use std::fmt;

/// A number of an expression or of a property.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number {
    Whole(i64),
    Real(f64),
}

/// Why a text is no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotANumber {
    Malformed,
    /// Written as one, and beyond what can be kept.
    Range,
}

/// First double above all whole numbers, 2^63.
const ABOVE: f64 = 9_223_372_036_854_775_808.0;

impl Number {
    /// The number that a property says, if it says one.
    pub(crate) fn read(text: &str) -> Option<Number> {
        if text.len() > NUMBER_BYTES_MAX {
            return None;
        }
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        match shape(digits)? {
            // Beyond 64 bits only its order matters, which a double keeps.
            Shape::Whole => text.parse().map(Number::Whole).ok().or_else(|| real(text)),
            Shape::Real => real(text),
        }
    }

    /// The number that an expression means: a whole one is `Whole` however it is written.
    pub(crate) fn constant(text: &str, is_negative: bool) -> Result<Number, NotANumber> {
        let sign = if is_negative { "-" } else { "" };
        match shape(text).ok_or(NotANumber::Malformed)? {
            Shape::Whole => {
                format!("{sign}{text}").parse().map(Number::Whole).map_err(|_| NotANumber::Range)
            }
            Shape::Real => {
                let Some(Number::Real(value)) = real(text) else { return Err(NotANumber::Range) };
                let value = if is_negative { -value } else { value };
                let is_whole = value.trunc() == value && (-ABOVE..ABOVE).contains(&value);
                Ok(if is_whole { Number::Whole(value as i64) } else { Number::Real(value) })
            }
        }
    }

    pub(crate) fn compare(self, other: Number) -> Ordering {
        match (self, other) {
            (Number::Whole(a), Number::Whole(b)) => a.cmp(&b),
            (Number::Whole(a), Number::Real(b)) => whole_with_real(a, b),
            (Number::Real(a), Number::Whole(b)) => whole_with_real(b, a).reverse(),
            (Number::Real(a), Number::Real(b)) => order(a, b),
        }
    }
}

fn order(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).expect("reals are finite")
}

fn whole_with_real(a: i64, b: f64) -> Ordering {
    if b >= ABOVE {
        return Ordering::Less;
    }
    if b < -ABOVE {
        return Ordering::Greater;
    }
    // The whole part of such a double is a whole number of 64 bits, exactly.
    a.cmp(&(b.trunc() as i64)).then(order(0.0, b.fract()))
}

fn real(text: &str) -> Option<Number> {
    text.parse().ok().filter(|value: &f64| value.is_finite()).map(Number::Real)
}

enum Shape {
    Whole,
    Real,
}

/// What digits without a sign are written like, if it is a number.
fn shape(text: &str) -> Option<Shape> {
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let mut digits = text.len() - rest.len();
    if rest.is_empty() {
        return (digits > 0).then_some(Shape::Whole);
    }
    let rest = match rest.strip_prefix('.') {
        Some(fraction) => {
            let rest = fraction.trim_start_matches(|c: char| c.is_ascii_digit());
            digits += fraction.len() - rest.len();
            rest
        }
        None => rest,
    };
    let is_exponent = |text: &str| {
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
    };
    let ends = rest.is_empty() || rest.strip_prefix(['e', 'E']).is_some_and(is_exponent);
    (digits > 0 && ends).then_some(Shape::Real)
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Number::Whole(value) => write!(f, "{value}"),
            // The shortest that reads back as the same, with an exponent where it would be long.
            Number::Real(value) => write!(f, "{value:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Number {
        Number::read(text).unwrap_or_else(|| panic!("{text} is a number"))
    }

    #[test]
    fn whole_and_real_compare_without_rounding() {
        let rising = [
            "-1e300",
            "-9223372036854775809",
            "-9223372036854775808",
            "-9223372036854774784.0",
            "-2.5",
            "-2",
            "0",
            "0.1",
            "2",
            "2.5",
            "9007199254740992.0",
            "9007199254740993",
            "9223372036854775807",
            "9223372036854775808",
            "1e300",
        ];
        for (at, low) in rising.iter().enumerate() {
            for (other, high) in rising.iter().enumerate() {
                let ordering = read(low).compare(read(high));
                // The one below -2^63 rounds to it as a double, which is as far as its range goes.
                let is_edge = at.min(other) == 1 && at.max(other) == 2;
                assert!(ordering == at.cmp(&other) || is_edge, "{low} and {high}: {ordering:?}");
            }
        }
        for equal in ["1", "1.0", "+1", "1e0", "10e-1", "01", "1."] {
            assert_eq!(read(equal).compare(Number::Whole(1)), Ordering::Equal, "{equal}");
        }
    }

    #[test]
    fn what_is_no_number() {
        let none = [
            "", " 1", "1 ", "-", "+-1", "--1", ".", "e5", ".e5", "1e", "1e+", "0x10", "inf", "NaN",
            "infinity", "1_000", "1,5", "1.2.3", "1e999", "-1e999", "1e5.0", "12L", "٣",
        ];
        for text in none {
            assert_eq!(Number::read(text), None, "{text:?}");
        }
        let long = "0".repeat(NUMBER_BYTES_MAX - 1) + "7";
        assert_eq!(Number::read(&long), Some(Number::Whole(7)));
        assert_eq!(Number::read(&format!("0{long}")), None);
    }

    #[test]
    fn constants_are_whole_where_they_can_be() {
        let constant = Number::constant;
        assert_eq!(constant("1e2", false), Ok(Number::Whole(100)));
        assert_eq!(constant("9223372036854775808", true), Ok(Number::Whole(i64::MIN)));
        assert_eq!(constant("9223372036854775808", false), Err(NotANumber::Range));
        assert_eq!(constant("1e999", false), Err(NotANumber::Range));
        assert_eq!(constant("0.0", true), Ok(Number::Whole(0)));
        assert_eq!(constant("1e300", true).map(|n| n.to_string()), Ok("-1e300".to_owned()));
        assert_eq!(constant("1x", false), Err(NotANumber::Malformed));
    }
}
