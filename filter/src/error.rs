//! Why an expression is refused: what is wrong, and where.
//!
//! Invariants:
//! - the position is a byte of the expression, at the beginning of a character, or its end;
//! - an error keeps no more of the expression than may be parsed.

use crate::{DEPTH_MAX, EXPRESSION_BYTES_MAX, TERMS_MAX};

/// Most characters of the expression that are shown on either side of what is wrong.
const SHOWN_MAX: usize = 60;

/// An expression that cannot be used. `Display` says what is wrong, [`Error::caret`] shows where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} (at byte {at})")]
pub struct Error {
    kind: ErrorKind,
    at: usize,
    text: Box<str>,
}

/// What is wrong with an expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nothing but blanks.
    #[error("the expression is empty")]
    Empty,
    /// Above [`EXPRESSION_BYTES_MAX`].
    #[error(
        "the expression has {bytes} bytes, at most {max} are allowed",
        max = EXPRESSION_BYTES_MAX
    )]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The canonical text is above [`EXPRESSION_BYTES_MAX`].
    #[error(
        "with blanks between its words the expression has {bytes} bytes, at most {max} are allowed",
        max = EXPRESSION_BYTES_MAX
    )]
    TooLongWritten {
        /// Its length.
        bytes: usize,
    },
    /// Above [`DEPTH_MAX`].
    #[error("parentheses are nested deeper than {max}", max = DEPTH_MAX)]
    TooDeep,
    /// Above [`TERMS_MAX`].
    #[error("more than {max} terms (each string of an IN is one)", max = TERMS_MAX)]
    TooManyTerms,
    /// A character that begins nothing.
    #[error("{found:?} means nothing here{hint}")]
    UnknownCharacter {
        /// The character.
        found: char,
        /// What may have been meant, or nothing.
        hint: &'static str,
    },
    /// A string without its end.
    #[error("the string that begins here does not end: a single quote is missing")]
    OpenText,
    /// A quoted name without its end.
    #[error("the name that begins here does not end: a double quote is missing")]
    OpenName,
    /// A quoted name of nothing.
    #[error("the name is empty")]
    EmptyName,
    /// Digits that are no number.
    #[error("this is not a number: digits, perhaps a fraction, perhaps an exponent")]
    BadNumber,
    /// A number that cannot be kept as it is written.
    #[error("the number is out of range: whole numbers have 64 bits, others are doubles")]
    NumberRange,
    /// Something else should stand here.
    #[error("expected {expected}, found {found}")]
    Expected {
        /// What could stand here.
        expected: &'static str,
        /// What stands here.
        found: String,
    },
    /// Strings and truth values have no order here.
    #[error("{what} are compared with = and <> only, not by order")]
    NoOrder {
        /// Which constants.
        what: &'static str,
    },
    /// Two constants of different kinds.
    #[error("a {left} is not compared with a {right}")]
    Kinds {
        /// The left one.
        left: &'static str,
        /// The right one.
        right: &'static str,
    },
    /// `NULL` where a value should be.
    #[error("NULL is no value: use IS NULL or IS NOT NULL")]
    NullValue,
    /// A constant on the left of what looks at properties.
    #[error("{operator} looks at a property, not at a {found}")]
    NotAProperty {
        /// The operator.
        operator: &'static str,
        /// What stands there.
        found: &'static str,
    },
    /// A constant that is neither TRUE nor FALSE, alone.
    #[error("a {found} alone is no condition")]
    NotACondition {
        /// Which kind.
        found: &'static str,
    },
    /// A condition where a value should be.
    #[error("a condition cannot be compared: expected a property or a constant")]
    NotAValue,
    /// `BETWEEN` bounds that nothing lies between.
    #[error("the lower bound of BETWEEN is above the upper one: nothing lies between")]
    Bounds,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, at: usize, text: &str) -> Error {
        let kept = text.floor_char_boundary(EXPRESSION_BYTES_MAX);
        let at = text.floor_char_boundary(at.min(kept));
        Error { kind, at, text: text[..kept].into() }
    }

    /// What is wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Where: the byte of the expression at which what is wrong begins.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The expression on one line and below it a `^` where it is wrong. Of a long one `…` stands for the rest.
    pub fn caret(&self) -> String {
        let (before, behind) = self.text.split_at(self.at);
        let shown = |c: char| if c.is_control() { ' ' } else { c };
        let hidden = before.chars().count().saturating_sub(SHOWN_MAX);
        let mut line: String = if hidden > 0 { "…".to_owned() } else { String::new() };
        line.extend(before.chars().skip(hidden).map(shown));
        let blanks = " ".repeat(line.chars().count());
        line.extend(behind.chars().take(SHOWN_MAX).map(shown));
        line.push_str(if behind.chars().nth(SHOWN_MAX).is_some() { "…" } else { "" });
        format!("{line}\n{blanks}^")
    }
}
