//! A checked expression: its canonical text, and the flat program that is run for each message.
//!
//! The program is postfix with jumps: a term leaves its value; `Save` puts it aside, `And` and `Or` join it with the
//! next; a jump skips the rest of an AND (OR) whose value is FALSE (TRUE) already.
//!
//! Invariants:
//! - jumps lead forwards, so each step is taken at most once;
//! - at any step at most [`STACK`] values are put aside;
//! - every number of a name, text or constant is within its list.

use crate::error::{Error, ErrorKind};
use crate::number::Number;
use crate::token::Comparison;
use crate::tree::{Node, Part, Test, Value};
use crate::{DEPTH_MAX, EXPRESSION_BYTES_MAX};
use std::fmt;

/// Most values put aside: an AND and an OR for each pair of parentheses, and those outside of all.
pub(crate) const STACK: usize = 2 * (DEPTH_MAX + 1);

/// A SQL92 filter that was checked and can be evaluated.
#[derive(Debug, Clone)]
pub struct Expression {
    text: Box<str>,
    pub(crate) steps: Vec<Step>,
    pub(crate) names: Vec<Box<str>>,
    pub(crate) texts: Vec<Box<str>>,
    pub(crate) numbers: Vec<Number>,
    tags: Option<Vec<Box<str>>>,
}

/// One step. Numbers of two bytes name entries of the lists, or steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Step {
    Constant(bool),
    Numbers { left: Operand, by: Comparison, right: Operand },
    Texts { left: Operand, right: Operand, negated: bool },
    Truth { name: u16, wanted: bool },
    Between { value: Operand, low: Operand, high: Operand, negated: bool },
    In { name: u16, first: u16, count: u16, negated: bool },
    Part { name: u16, part: Part, text: u16, negated: bool },
    IsNull { name: u16, negated: bool },
    JumpIfFalse(u16),
    JumpIfTrue(u16),
    Save,
    And,
    Or,
}

/// A property, or a constant of the kind that the step compares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Operand {
    Name(u16),
    Constant(u16),
}

impl Expression {
    /// Checks an expression and makes it ready to be evaluated.
    pub fn parse(text: &str) -> Result<Expression, Error> {
        let node = crate::parse::parse(text)?;
        let canonical = node.to_string();
        if canonical.len() > EXPRESSION_BYTES_MAX {
            let kind = ErrorKind::TooLongWritten { bytes: canonical.len() };
            return Err(Error::new(kind, text.len(), text));
        }
        let tags = node.tags().map(|tags| tags.into_iter().map(Into::into).collect());
        let mut made = Expression {
            text: canonical.into(),
            steps: Vec::new(),
            names: Vec::new(),
            texts: Vec::new(),
            numbers: Vec::new(),
            tags,
        };
        made.node(&node, 0);
        Ok(made)
    }

    /// The canonical text; parses to the same expression.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Names of the properties that are looked at, each once.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(AsRef::as_ref)
    }

    /// Tags of which a message must have one for the expression to be TRUE, sorted; `None`: that does not
    /// depend on the tag alone. Who knows that a message has another tag need not evaluate.
    pub fn tags(&self) -> Option<impl Iterator<Item = &str>> {
        self.tags.as_ref().map(|tags| tags.iter().map(AsRef::as_ref))
    }

    fn node(&mut self, node: &Node, depth: usize) {
        assert!(depth <= STACK, "the parser bounds the depth");
        let (nodes, jump, join): (_, fn(u16) -> Step, _) = match node {
            Node::Constant(value) => return self.steps.push(Step::Constant(*value)),
            Node::Test(test) => return self.test(test),
            Node::All(nodes) => (nodes, Step::JumpIfFalse, Step::And),
            Node::Any(nodes) => (nodes, Step::JumpIfTrue, Step::Or),
        };
        let mut jumps = Vec::with_capacity(nodes.len());
        for (at, node) in nodes.iter().enumerate() {
            if at > 0 {
                jumps.push(self.steps.len());
                self.steps.extend([jump(0), Step::Save]);
            }
            self.node(node, depth + 1);
            if at > 0 {
                self.steps.push(join);
            }
        }
        let end = number(self.steps.len());
        for at in jumps {
            self.steps[at] = jump(end);
        }
    }

    fn test(&mut self, test: &Test) {
        let step = match test {
            Test::Compare { left, by, right } => self.comparison(left, *by, right),
            Test::Between { value, low, high, negated } => Step::Between {
                value: self.operand(value),
                low: self.operand(low),
                high: self.operand(high),
                negated: *negated,
            },
            Test::In { name, texts, negated } => {
                let (first, count) = (number(self.texts.len()), number(texts.len()));
                self.texts.extend(texts.iter().map(|text| text.as_str().into()));
                Step::In { name: self.name(name), first, count, negated: *negated }
            }
            Test::Part { name, part, text, negated } => {
                let (name, text) = (self.name(name), self.text(text));
                Step::Part { name, part: *part, text, negated: *negated }
            }
            Test::IsNull { name, negated } => {
                Step::IsNull { name: self.name(name), negated: *negated }
            }
        };
        self.steps.push(step);
    }

    fn comparison(&mut self, left: &Value, by: Comparison, right: &Value) -> Step {
        let has_number = matches!(left, Value::Number(_)) || matches!(right, Value::Number(_));
        if let (Value::Name(name), Value::Truth(value)) = (left, right) {
            let wanted = *value == (by == Comparison::Equal);
            return Step::Truth { name: self.name(name), wanted };
        }
        let (left, right) = (self.operand(left), self.operand(right));
        match has_number || by.is_order() {
            true => Step::Numbers { left, by, right },
            false => Step::Texts { left, right, negated: by == Comparison::NotEqual },
        }
    }

    fn operand(&mut self, value: &Value) -> Operand {
        match value {
            Value::Name(name) => Operand::Name(self.name(name)),
            Value::Text(text) => Operand::Constant(self.text(text)),
            Value::Number(constant) => {
                self.numbers.push(*constant);
                Operand::Constant(number(self.numbers.len() - 1))
            }
            Value::Truth(_) => unreachable!("the parser has them beside a name or not at all"),
        }
    }

    fn name(&mut self, name: &str) -> u16 {
        let at = self.names.iter().position(|known| **known == *name).unwrap_or_else(|| {
            self.names.push(name.into());
            self.names.len() - 1
        });
        number(at)
    }

    fn text(&mut self, text: &str) -> u16 {
        self.texts.push(text.into());
        number(self.texts.len() - 1)
    }
}

fn number(at: usize) -> u16 {
    u16::try_from(at).expect("TERMS_MAX bounds every list")
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Expression) -> bool {
        self.text == other.text
    }
}

impl Eq for Expression {}

const _: () =
    assert!(4 * crate::TERMS_MAX + 4 < u16::MAX as usize, "steps have numbers of two bytes");
