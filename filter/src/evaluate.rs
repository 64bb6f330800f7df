//! Runs the program of an expression. Nothing is allocated, and each step is taken at most once.

use crate::Properties;
use crate::compile::{Expression, Operand, STACK, Step};
use crate::number::Number;
use crate::token::Comparison;
use crate::tree::Part;
use std::cmp::Ordering;

/// What an expression says of a message; `None`: unknown. Only `Some(true)` selects it.
pub fn evaluate(expression: &Expression, properties: &(impl Properties + ?Sized)) -> Option<bool> {
    let run = Run { expression, properties };
    let mut aside = [None; STACK];
    let (mut top, mut value, mut at) = (0, None, 0);
    while let Some(step) = expression.steps.get(at) {
        at += 1;
        match *step {
            Step::JumpIfFalse(to) if value == Some(false) => at = usize::from(to),
            Step::JumpIfTrue(to) if value == Some(true) => at = usize::from(to),
            Step::JumpIfFalse(_) | Step::JumpIfTrue(_) => {}
            Step::Save => {
                aside[top] = value;
                top += 1;
            }
            Step::And => {
                top -= 1;
                value = and(aside[top], value);
            }
            Step::Or => {
                top -= 1;
                value = or(aside[top], value);
            }
            term => value = run.term(term),
        }
    }
    value
}

fn and(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    match (a, b) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

fn or(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    match (a, b) {
        (Some(true), _) | (_, Some(true)) => Some(true),
        (Some(false), Some(false)) => Some(false),
        _ => None,
    }
}

struct Run<'a, P: ?Sized> {
    expression: &'a Expression,
    properties: &'a P,
}

impl<'a, P: Properties + ?Sized> Run<'a, P> {
    fn term(&self, step: Step) -> Option<bool> {
        match step {
            Step::Constant(value) => Some(value),
            Step::Numbers { left, by, right } => {
                Some(holds(by, self.number(left)?.compare(self.number(right)?)))
            }
            Step::Texts { left, right, negated } => {
                Some((self.text(left)? == self.text(right)?) != negated)
            }
            Step::Truth { name, wanted } => truth(self.property(name)?).map(|is| is == wanted),
            Step::Between { value, low, high, negated } => {
                let value = self.number(value);
                let compare = |bound| Some(value?.compare(self.number(bound)?));
                let above = compare(low).map(Ordering::is_ge);
                let below = compare(high).map(Ordering::is_le);
                and(above, below).map(|is| is != negated)
            }
            Step::In { name, first, count, negated } => {
                let value = self.property(name)?;
                let texts = &self.expression.texts[usize::from(first)..][..usize::from(count)];
                let found = texts.binary_search_by(|text| (**text).cmp(value));
                Some(found.is_ok() != negated)
            }
            Step::Part { name, part, text, negated } => {
                let (value, text) = (self.property(name)?, self.constant(text));
                let is = match part {
                    Part::Any => value.contains(text),
                    Part::Start => value.starts_with(text),
                    Part::End => value.ends_with(text),
                };
                Some(is != negated)
            }
            Step::IsNull { name, negated } => Some(self.property(name).is_none() != negated),
            Step::JumpIfFalse(_) | Step::JumpIfTrue(_) | Step::Save | Step::And | Step::Or => {
                unreachable!("no terms")
            }
        }
    }

    fn property(&self, name: u16) -> Option<&'a str> {
        self.properties.get(&self.expression.names[usize::from(name)])
    }

    fn constant(&self, text: u16) -> &'a str {
        &self.expression.texts[usize::from(text)]
    }

    fn text(&self, operand: Operand) -> Option<&'a str> {
        match operand {
            Operand::Name(name) => self.property(name),
            Operand::Constant(text) => Some(self.constant(text)),
        }
    }

    fn number(&self, operand: Operand) -> Option<Number> {
        match operand {
            Operand::Name(name) => Number::read(self.property(name)?),
            Operand::Constant(number) => Some(self.expression.numbers[usize::from(number)]),
        }
    }
}

fn holds(by: Comparison, ordering: Ordering) -> bool {
    match by {
        Comparison::Equal => ordering.is_eq(),
        Comparison::NotEqual => ordering.is_ne(),
        Comparison::Less => ordering.is_lt(),
        Comparison::AtMost => ordering.is_le(),
        Comparison::Greater => ordering.is_gt(),
        Comparison::AtLeast => ordering.is_ge(),
    }
}

fn truth(text: &str) -> Option<bool> {
    match text {
        _ if text.eq_ignore_ascii_case("true") => Some(true),
        _ if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}
