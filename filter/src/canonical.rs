//! The one text of an expression, whatever it was written like.
//!
//! Keywords in capitals, single blanks, no parentheses that say nothing, no NOT but within a term, properties on
//! the left, numbers in their shortest form, the strings of an IN sorted. The order of terms stays the user's.
//!
//! Invariant: the canonical text parses to the same tree.

use crate::token::{Keyword, begins_name, continues_name};
use crate::tree::{Node, Part, Test, Value};
use std::fmt;

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Constant(value) => f.write_str(truth(*value)),
            Node::Test(test) => write!(f, "{test}"),
            Node::All(nodes) => {
                for (at, node) in nodes.iter().enumerate() {
                    f.write_str(if at > 0 { " AND " } else { "" })?;
                    match node {
                        Node::Any(_) => write!(f, "({node})")?,
                        _ => write!(f, "{node}")?,
                    }
                }
                Ok(())
            }
            Node::Any(nodes) => {
                for (at, node) in nodes.iter().enumerate() {
                    f.write_str(if at > 0 { " OR " } else { "" })?;
                    write!(f, "{node}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |negated: &bool| if *negated { "NOT " } else { "" };
        match self {
            Test::Compare { left, by, right } => write!(f, "{left} {} {right}", by.symbol()),
            Test::Between { value, low, high, negated } => {
                write!(f, "{value} {}BETWEEN {low} AND {high}", not(negated))
            }
            Test::In { name, texts, negated } => {
                write!(f, "{} {}IN (", Name(name), not(negated))?;
                for (at, text) in texts.iter().enumerate() {
                    f.write_str(if at > 0 { ", " } else { "" })?;
                    quote(text, '\'', f)?;
                }
                f.write_str(")")
            }
            Test::Part { name, part, text, negated } => {
                let keyword = match part {
                    Part::Any => Keyword::Contains,
                    Part::Start => Keyword::StartsWith,
                    Part::End => Keyword::EndsWith,
                };
                write!(f, "{} {}{} ", Name(name), not(negated), keyword.text())?;
                quote(text, '\'', f)
            }
            Test::IsNull { name, negated } => write!(f, "{} IS {}NULL", Name(name), not(negated)),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Name(name) => write!(f, "{}", Name(name)),
            Value::Number(number) => write!(f, "{number}"),
            Value::Text(text) => quote(text, '\'', f),
            Value::Truth(value) => f.write_str(truth(*value)),
        }
    }
}

/// Quoted only where it must be.
struct Name<'a>(&'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = self.0.starts_with(begins_name) && self.0.chars().all(continues_name);
        if is_plain && Keyword::find(self.0).is_none() {
            return f.write_str(self.0);
        }
        quote(self.0, '"', f)
    }
}

fn truth(value: bool) -> &'static str {
    if value { Keyword::True.text() } else { Keyword::False.text() }
}

fn quote(text: &str, quote: char, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{quote}")?;
    for (at, part) in text.split(quote).enumerate() {
        if at > 0 {
            write!(f, "{quote}{quote}")?;
        }
        f.write_str(part)?;
    }
    write!(f, "{quote}")
}
