//! An expression as a tree without NOT: negations are carried down to the terms when it is built.
//!
//! Three-valued logic allows that: `NOT (c AND d)` is `NOT c OR NOT d`, and each term has its opposite, which is
//! unknown where it is.
//!
//! Invariants:
//! - `All` and `Any` have at least two parts, none of the same sort;
//! - so the tree is at most `2 * (DEPTH_MAX + 1)` of them deep.

use crate::TAGS;
use crate::number::Number;
use crate::token::Comparison;
use std::collections::BTreeSet;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    Constant(bool),
    Test(Test),
    All(Vec<Node>),
    Any(Vec<Node>),
}

/// A term.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Test {
    Compare {
        left: Value,
        by: Comparison,
        right: Value,
    },
    Between {
        value: Value,
        low: Value,
        high: Value,
        negated: bool,
    },
    /// The strings are sorted, each once.
    In {
        name: String,
        texts: Vec<String>,
        negated: bool,
    },
    Part {
        name: String,
        part: Part,
        text: String,
        negated: bool,
    },
    IsNull {
        name: String,
        negated: bool,
    },
}

/// What is compared.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Name(String),
    Number(Number),
    Text(String),
    Truth(bool),
}

/// Which part of a property's value is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Any,
    Start,
    End,
}

impl Node {
    /// All of them, or the only one.
    pub(crate) fn all(nodes: Vec<Node>) -> Node {
        let mut flat = Vec::with_capacity(nodes.len());
        for node in nodes {
            match node {
                Node::All(inner) => flat.extend(inner),
                other => flat.push(other),
            }
        }
        Node::only(flat).unwrap_or_else(Node::All)
    }

    /// Any of them, or the only one.
    pub(crate) fn any(nodes: Vec<Node>) -> Node {
        let mut flat = Vec::with_capacity(nodes.len());
        for node in nodes {
            match node {
                Node::Any(inner) => flat.extend(inner),
                other => flat.push(other),
            }
        }
        Node::only(flat).unwrap_or_else(Node::Any)
    }

    fn only(mut nodes: Vec<Node>) -> Result<Node, Vec<Node>> {
        match nodes.len() {
            1 => nodes.pop().ok_or(nodes),
            _ => Err(nodes),
        }
    }

    pub(crate) fn negated(self) -> Node {
        let all = |nodes: Vec<Node>| nodes.into_iter().map(Node::negated).collect();
        match self {
            Node::Constant(value) => Node::Constant(!value),
            Node::Test(test) => Node::Test(test.negated()),
            Node::All(nodes) => Node::any(all(nodes)),
            Node::Any(nodes) => Node::all(all(nodes)),
        }
    }

    /// Tags of which a message has one whenever the expression is TRUE for it; `None`: that cannot be said.
    pub(crate) fn tags(&self) -> Option<BTreeSet<String>> {
        match self {
            Node::Constant(value) => (!value).then(BTreeSet::new),
            Node::Test(test) => test.tags(),
            Node::All(nodes) => {
                let of = nodes.iter().filter_map(Node::tags);
                of.reduce(|all, some| all.intersection(&some).cloned().collect())
            }
            Node::Any(nodes) => nodes.iter().try_fold(BTreeSet::new(), |mut all, node| {
                all.extend(node.tags()?);
                Some(all)
            }),
        }
    }
}

impl Test {
    fn negated(self) -> Test {
        match self {
            Test::Compare { left, by, right } => Test::Compare { left, by: by.negated(), right },
            Test::Between { value, low, high, negated } => {
                Test::Between { value, low, high, negated: !negated }
            }
            Test::In { name, texts, negated } => Test::In { name, texts, negated: !negated },
            Test::Part { name, part, text, negated } => {
                Test::Part { name, part, text, negated: !negated }
            }
            Test::IsNull { name, negated } => Test::IsNull { name, negated: !negated },
        }
    }

    fn tags(&self) -> Option<BTreeSet<String>> {
        match self {
            Test::Compare {
                left: Value::Name(name),
                by: Comparison::Equal,
                right: Value::Text(text),
            } if name == TAGS => Some(BTreeSet::from([text.clone()])),
            Test::In { name, texts, negated: false } if name == TAGS => {
                Some(texts.iter().cloned().collect())
            }
            _ => None,
        }
    }
}
