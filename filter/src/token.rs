//! Words of an expression.
//!
//! Invariant: whatever the text is, each token is longer than nothing but the last, and they do not overlap.

use crate::error::ErrorKind;
use std::borrow::Cow;
use std::fmt;

/// One word.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token<'a> {
    pub(crate) word: Word<'a>,
    /// Its first byte.
    pub(crate) at: usize,
}

/// What a word is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Word<'a> {
    Keyword(Keyword),
    /// Of a property.
    Name(Cow<'a, str>),
    Text(Cow<'a, str>),
    /// Digits, fraction, exponent; not looked at yet.
    Number(&'a str),
    Compare(Comparison),
    Open,
    Close,
    Comma,
    Plus,
    Minus,
    End,
}

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

impl Comparison {
    pub(crate) fn negated(self) -> Comparison {
        match self {
            Comparison::Equal => Comparison::NotEqual,
            Comparison::NotEqual => Comparison::Equal,
            Comparison::Less => Comparison::AtLeast,
            Comparison::AtLeast => Comparison::Less,
            Comparison::Greater => Comparison::AtMost,
            Comparison::AtMost => Comparison::Greater,
        }
    }

    /// With left and right exchanged.
    pub(crate) fn mirrored(self) -> Comparison {
        match self {
            Comparison::Less => Comparison::Greater,
            Comparison::Greater => Comparison::Less,
            Comparison::AtMost => Comparison::AtLeast,
            Comparison::AtLeast => Comparison::AtMost,
            same => same,
        }
    }

    pub(crate) fn is_order(self) -> bool {
        !matches!(self, Comparison::Equal | Comparison::NotEqual)
    }

    pub(crate) fn symbol(self) -> &'static str {
        match self {
            Comparison::Equal => "=",
            Comparison::NotEqual => "<>",
            Comparison::Less => "<",
            Comparison::AtMost => "<=",
            Comparison::Greater => ">",
            Comparison::AtLeast => ">=",
        }
    }
}

macro_rules! keywords {
    ($($name:ident = $text:literal),* $(,)?) => {
        /// Words that are no names unless quoted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Keyword { $($name,)* }

        impl Keyword {
            pub(crate) fn find(text: &str) -> Option<Keyword> {
                $(if text.eq_ignore_ascii_case($text) { return Some(Keyword::$name); })*
                None
            }

            pub(crate) fn text(self) -> &'static str {
                match self { $(Keyword::$name => $text,)* }
            }
        }
    };
}

keywords! {
    And = "AND", Or = "OR", Not = "NOT", Is = "IS", Null = "NULL", Between = "BETWEEN", In = "IN",
    Contains = "CONTAINS", StartsWith = "STARTSWITH", EndsWith = "ENDSWITH", True = "TRUE", False = "FALSE",
}

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Word::Keyword(keyword) => f.write_str(keyword.text()),
            Word::Name(name) => write!(f, "the name {name}"),
            Word::Text(_) => f.write_str("a string"),
            Word::Number(text) => write!(f, "the number {text}"),
            Word::Compare(comparison) => write!(f, "{}", comparison.symbol()),
            Word::Open => f.write_str("("),
            Word::Close => f.write_str(")"),
            Word::Comma => f.write_str("a comma"),
            Word::Plus => f.write_str("+"),
            Word::Minus => f.write_str("-"),
            Word::End => f.write_str("the end"),
        }
    }
}

pub(crate) fn begins_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || c == '$'
}

pub(crate) fn continues_name(c: char) -> bool {
    begins_name(c) || c.is_ascii_digit() || c == '.'
}

/// The word at or behind byte `from`, and where it ends; or what is wrong, and where.
pub(crate) fn next(text: &str, from: usize) -> Result<(Token<'_>, usize), (ErrorKind, usize)> {
    let rest = text[from..].trim_start_matches(|c: char| c.is_ascii_whitespace());
    let at = text.len() - rest.len();
    let Some(first) = rest.chars().next() else {
        return Ok((Token { word: Word::End, at }, at));
    };
    let (word, bytes) = match first {
        '(' => (Word::Open, 1),
        ')' => (Word::Close, 1),
        ',' => (Word::Comma, 1),
        '+' => (Word::Plus, 1),
        '-' => (Word::Minus, 1),
        '=' | '<' | '>' => comparison(rest).map_err(|kind| (kind, at))?,
        '\'' => {
            let (content, bytes) = quoted(rest, '\'').ok_or((ErrorKind::OpenText, at))?;
            (Word::Text(content), bytes)
        }
        '"' => {
            let (content, bytes) = quoted(rest, '"').ok_or((ErrorKind::OpenName, at))?;
            if content.is_empty() {
                return Err((ErrorKind::EmptyName, at));
            }
            (Word::Name(content), bytes)
        }
        '.' | '0'..='9' => number(rest),
        c if begins_name(c) => {
            let end = rest.find(|c| !continues_name(c)).unwrap_or(rest.len());
            let name = &rest[..end];
            (Keyword::find(name).map_or(Word::Name(name.into()), Word::Keyword), end)
        }
        found => {
            let hint = match found {
                '!' => ": not equal is <>",
                '&' => ": use AND",
                '|' => ": use OR",
                '`' | '‘' | '’' => ": strings stand in straight single quotes, '",
                '“' | '”' => ": names stand in straight double quotes, \"",
                _ => "",
            };
            return Err((ErrorKind::UnknownCharacter { found, hint }, at));
        }
    };
    Ok((Token { word, at }, at + bytes))
}

fn comparison(rest: &str) -> Result<(Word<'_>, usize), ErrorKind> {
    let two = [
        ("<>", Comparison::NotEqual),
        ("<=", Comparison::AtMost),
        (">=", Comparison::AtLeast),
        ("<", Comparison::Less),
        (">", Comparison::Greater),
        ("=", Comparison::Equal),
    ];
    if rest.starts_with("==") {
        return Err(ErrorKind::UnknownCharacter { found: '=', hint: " twice: equal is =" });
    }
    let found = two.iter().find(|(symbol, _)| rest.starts_with(symbol));
    let (symbol, comparison) = found.expect("each first character stands alone in the list");
    Ok((Word::Compare(*comparison), symbol.len()))
}

/// What stands between quotes, and how long it is with them.
fn quoted(rest: &str, quote: char) -> Option<(Cow<'_, str>, usize)> {
    let mut from = 1;
    let mut has_quotes = false;
    loop {
        let end = from + rest[from..].find(quote)?;
        if !rest[end + 1..].starts_with(quote) {
            let content = &rest[1..end];
            let single = quote.encode_utf8(&mut [0; 4]).to_owned();
            let content = match has_quotes {
                true => Cow::Owned(content.replace(&single.repeat(2), &single)),
                false => Cow::Borrowed(content),
            };
            return Some((content, end + 1));
        }
        has_quotes = true;
        from = end + 2;
    }
}

/// As long as it could be a number; whether it is one is seen when it is read.
fn number(rest: &str) -> (Word<'_>, usize) {
    let mut before = ' ';
    let is_more = |c: char| {
        let is_sign = (c == '+' || c == '-') && (before == 'e' || before == 'E');
        before = c;
        !(is_sign || continues_name(c))
    };
    let end = rest.find(is_more).unwrap_or(rest.len());
    // A long number of Java's.
    let digits = rest[..end].strip_suffix(['l', 'L']);
    let digits = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    (Word::Number(digits.unwrap_or(&rest[..end])), end)
}
