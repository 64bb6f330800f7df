//! Expressions as a tester sees them: a tree, its meaning by walking it, and many ways to write it.
//!
//! Nothing here is shared with the crate: truth is -1, 0, 1, so that AND is the least and OR the greatest; numbers
//! are compared digit by digit.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::cmp::Ordering;

/// Numbers that look random, the same for the same seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Property and how it is written.
pub type Name = (&'static str, &'static str);

pub const NAMES: [Name; 6] = [
    ("a", "a"),
    ("b", "\"b\""),
    ("TAGS", "TAGS"),
    ("x.y$_1", "x.y$_1"),
    ("order-id", "\"order-id\""),
    ("in", "\"in\""),
];

/// What properties say, and strings of expressions.
pub const TEXTS: [&str; 23] = [
    "",
    "x",
    "xy",
    "it's",
    "it''s",
    "true",
    "FALSE",
    "tRuE",
    "null",
    "1",
    "1.0",
    "-2.5",
    "1.5",
    "+3",
    "1e2",
    " 1",
    "9007199254740993",
    "9007199254740992.0",
    "9223372036854775808",
    "1e400",
    ".",
    "ä€😀",
    "yx",
];

/// Constants, and how else they may be written.
pub const NUMBERS: [&str; 16] = [
    "1",
    "01",
    "1.0",
    "-2.5",
    "-2",
    "1.5",
    "-25e-1",
    "+3",
    "1e2",
    "100L",
    "9007199254740992",
    "9007199254740993",
    "9007199254740992.0",
    "-9223372036854775808",
    "1e300",
    ".5",
];

#[derive(Debug, Clone, Copy)]
pub enum Value {
    Property(Name),
    Number(&'static str),
    Text(&'static str),
    Truth(bool),
}

#[derive(Debug, Clone)]
pub enum Tree {
    Or(Box<Tree>, Box<Tree>),
    And(Box<Tree>, Box<Tree>),
    Not(Box<Tree>),
    Compare(Value, &'static str, Value),
    Between(Value, bool, Value, Value),
    In(Name, bool, Vec<&'static str>),
    Part(Name, bool, &'static str, &'static str),
    Null(Name, bool),
    Alone(Value),
}

pub fn tree(random: &mut Random, depth: usize) -> Tree {
    let inner = |random: &mut Random| Box::new(tree(random, depth - 1));
    match random.below(if depth == 0 { 6 } else { 12 }) {
        6 | 7 => Tree::Or(inner(random), inner(random)),
        8 | 9 => Tree::And(inner(random), inner(random)),
        10 | 11 => Tree::Not(inner(random)),
        0 => Tree::Alone(match random.below(3) {
            0 => Value::Truth(random.once_in(2)),
            _ => Value::Property(random.pick(&NAMES)),
        }),
        1 => Tree::Null(random.pick(&NAMES), random.once_in(2)),
        2 => {
            let keyword = random.pick(&["CONTAINS", "STARTSWITH", "ENDSWITH"]);
            Tree::Part(random.pick(&NAMES), random.once_in(2), keyword, random.pick(&TEXTS))
        }
        3 => {
            let texts = (0..=random.below(4)).map(|_| random.pick(&TEXTS)).collect();
            Tree::In(random.pick(&NAMES), random.once_in(2), texts)
        }
        4 => between(random),
        _ => comparison(random),
    }
}

fn numeric(random: &mut Random) -> Value {
    match random.once_in(2) {
        true => Value::Property(random.pick(&NAMES)),
        false => Value::Number(random.pick(&NUMBERS)),
    }
}

fn between(random: &mut Random) -> Tree {
    let (mut low, mut high) = (numeric(random), numeric(random));
    if let (Value::Number(a), Value::Number(b)) = (low, high)
        && compare(number(a).unwrap(), number(b).unwrap()) == Ordering::Greater
    {
        (low, high) = (high, low);
    }
    Tree::Between(numeric(random), random.once_in(2), low, high)
}

fn comparison(random: &mut Random) -> Tree {
    if random.once_in(2) {
        let order = random.pick(&["<", "<=", ">", ">=", "=", "<>"]);
        return Tree::Compare(numeric(random), order, numeric(random));
    }
    let property = Value::Property(random.pick(&NAMES));
    let constant = match random.below(3) {
        0 => Value::Truth(random.once_in(2)),
        1 => Value::Number(random.pick(&NUMBERS)),
        _ => Value::Text(random.pick(&TEXTS)),
    };
    let equal = random.pick(&["=", "<>"]);
    match random.below(5) {
        0 => Tree::Compare(constant, equal, property),
        1 => match constant {
            Value::Text(_) => Tree::Compare(constant, equal, Value::Text(random.pick(&TEXTS))),
            Value::Truth(_) => Tree::Compare(constant, equal, Value::Truth(random.once_in(2))),
            _ => Tree::Compare(constant, equal, Value::Number(random.pick(&NUMBERS))),
        },
        _ => Tree::Compare(property, equal, constant),
    }
}

/// A message: names and values.
pub type Message = Vec<(&'static str, &'static str)>;

pub fn message(random: &mut Random) -> Message {
    let mut message = Message::new();
    for (name, _) in NAMES {
        if !random.once_in(4) {
            message.push((name, random.pick(&TEXTS)));
        }
    }
    message
}

/// -1 false, 0 unknown, 1 true.
pub fn meaning(tree: &Tree, message: &Message) -> i8 {
    let sign = |negated: bool, truth: i8| if negated { -truth } else { truth };
    match tree {
        Tree::Or(a, b) => meaning(a, message).max(meaning(b, message)),
        Tree::And(a, b) => meaning(a, message).min(meaning(b, message)),
        Tree::Not(a) => -meaning(a, message),
        Tree::Alone(Value::Property(name)) => value(message, *name).map_or(0, truth),
        Tree::Alone(Value::Truth(is)) => {
            if *is {
                1
            } else {
                -1
            }
        }
        Tree::Alone(_) => unreachable!("not made"),
        Tree::Null((name, _), negated) => {
            let has = message.iter().any(|(key, _)| key == name);
            sign(*negated, if has { -1 } else { 1 })
        }
        Tree::Part(name, negated, keyword, text) => match value(message, *name) {
            None => 0,
            Some(value) => {
                let at = value.windows(text.len().max(1)).position(|w| w == text.as_bytes());
                let is = match *keyword {
                    _ if text.is_empty() => true,
                    "CONTAINS" => at.is_some(),
                    "STARTSWITH" => at == Some(0),
                    _ => {
                        let from = value.len().checked_sub(text.len());
                        from.is_some_and(|from| value[from..] == *text.as_bytes())
                    }
                };
                sign(*negated, if is { 1 } else { -1 })
            }
        },
        Tree::In(name, negated, texts) => {
            let equal = |text: &&'static str| {
                let (property, text) = (Value::Property(*name), Value::Text(text));
                meaning(&Tree::Compare(property, "=", text), message)
            };
            sign(*negated, texts.iter().map(equal).max().unwrap())
        }
        Tree::Between(value, negated, low, high) => {
            let above = meaning(&Tree::Compare(*value, ">=", *low), message);
            let below = meaning(&Tree::Compare(*value, "<=", *high), message);
            sign(*negated, above.min(below))
        }
        Tree::Compare(left, by, right) => compared(*left, by, *right, message),
    }
}

fn value(message: &Message, (name, _): Name) -> Option<&[u8]> {
    message.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_bytes())
}

fn truth(text: &[u8]) -> i8 {
    match text.to_ascii_uppercase().as_slice() {
        b"TRUE" => 1,
        b"FALSE" => -1,
        _ => 0,
    }
}

fn compared(left: Value, by: &str, right: Value, message: &Message) -> i8 {
    let is_one_of = |wanted: fn(&Value) -> bool| wanted(&left) || wanted(&right);
    let equality = |equal: bool| if equal == (by == "=") { 1 } else { -1 };
    if is_one_of(|v| matches!(v, Value::Truth(_))) {
        let truth = |v: Value| match v {
            Value::Truth(is) => {
                if is {
                    1
                } else {
                    -1
                }
            }
            Value::Property(name) => value(message, name).map_or(0, truth),
            _ => unreachable!("not made"),
        };
        let (left, right) = (truth(left), truth(right));
        return if left * right == 0 { 0 } else { equality(left == right) };
    }
    let has_number = is_one_of(|v| matches!(v, Value::Number(_)));
    let text = |v: Value| match v {
        Value::Property(name) => {
            value(message, name).map(|v| String::from_utf8(v.to_vec()).unwrap())
        }
        Value::Text(text) | Value::Number(text) => Some(text.trim_end_matches('L').to_owned()),
        Value::Truth(_) => unreachable!("seen above"),
    };
    let (Some(left), Some(right)) = (text(left), text(right)) else { return 0 };
    if !has_number && (by == "=" || by == "<>") {
        return equality(left == right);
    }
    let (Some(left), Some(right)) = (number(&left), number(&right)) else { return 0 };
    let order = compare(left, right);
    let is = match by {
        "=" => order == Ordering::Equal,
        "<>" => order != Ordering::Equal,
        "<" => order == Ordering::Less,
        "<=" => order != Ordering::Greater,
        ">" => order == Ordering::Greater,
        _ => order != Ordering::Less,
    };
    if is { 1 } else { -1 }
}

/// All digits of a number's exact value: sign, whole part, fraction.
pub fn number(text: &str) -> Option<(bool, String, String)> {
    let text = text.trim_end_matches('L');
    let digits: Vec<char> = text.chars().collect();
    let is_written = digits.iter().all(|c| c.is_ascii_digit() || "+-.eE".contains(*c));
    let real: f64 = text.parse().ok().filter(|f: &f64| f.is_finite() && is_written)?;
    let is_whole = digits.iter().skip(1).all(char::is_ascii_digit) && digits[0] != '.';
    let exact = match text.parse::<i64>() {
        Ok(whole) if is_whole => format!("{whole}.0"),
        _ => format!("{real:.150}"),
    };
    let (is_negative, exact) = match exact.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, exact.as_str()),
    };
    let (whole, fraction) = exact.split_once('.').unwrap();
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let is_zero = whole.is_empty() && fraction.is_empty();
    Some((is_negative && !is_zero, whole.to_owned(), fraction.to_owned()))
}

pub fn compare(a: (bool, String, String), b: (bool, String, String)) -> Ordering {
    if a.0 != b.0 {
        return if a.0 { Ordering::Less } else { Ordering::Greater };
    }
    let size = a.1.len().cmp(&b.1.len()).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2));
    if a.0 { size.reverse() } else { size }
}

/// One of the ways to write it.
pub fn write(tree: &Tree, random: &mut Random) -> String {
    let mut text = String::new();
    put(tree, 0, random, &mut text);
    text
}

/// 0: within OR or nothing, 1: within AND, 2: behind NOT.
fn put(tree: &Tree, level: u8, random: &mut Random, to: &mut String) {
    let own = match tree {
        Tree::Or(..) => 0,
        Tree::And(..) => 1,
        _ => 2,
    };
    let parentheses = own < level || random.once_in(8);
    let level = if parentheses { 0 } else { level };
    to.push_str(if parentheses { "(" } else { "" });
    let not = |negated: bool| if negated { "NOT" } else { "" };
    match tree {
        Tree::Or(a, b) => {
            put(a, 0, random, to);
            word("OR", random, to);
            put(b, 0, random, to);
        }
        Tree::And(a, b) => {
            put(a, 1, random, to);
            word("AND", random, to);
            put(b, 1, random, to);
        }
        Tree::Not(a) => {
            word("NOT", random, to);
            put(a, level.max(2), random, to);
        }
        Tree::Alone(value) => put_value(*value, random, to),
        Tree::Null((_, name), negated) => {
            to.push_str(name);
            word("IS", random, to);
            word(not(*negated), random, to);
            word("NULL", random, to);
        }
        Tree::Part((_, name), negated, keyword, text) => {
            to.push_str(name);
            word(not(*negated), random, to);
            word(keyword, random, to);
            put_value(Value::Text(text), random, to);
        }
        Tree::In((_, name), negated, texts) => {
            to.push_str(name);
            word(not(*negated), random, to);
            word("IN", random, to);
            to.push('(');
            for (at, text) in texts.iter().enumerate() {
                to.push_str(if at > 0 { "," } else { "" });
                put_value(Value::Text(text), random, to);
            }
            to.push(')');
        }
        Tree::Between(value, negated, low, high) => {
            put_value(*value, random, to);
            word(not(*negated), random, to);
            word("BETWEEN", random, to);
            put_value(*low, random, to);
            word("AND", random, to);
            put_value(*high, random, to);
        }
        Tree::Compare(left, by, right) => {
            put_value(*left, random, to);
            to.push_str(random.pick(&["", " ", "\n"]));
            to.push_str(by);
            put_value(*right, random, to);
        }
    }
    to.push_str(if parentheses { ")" } else { "" });
}

fn word(word: &str, random: &mut Random, to: &mut String) {
    let blank = random.pick(&[" ", "  ", "\t", "\r\n"]);
    let word = if random.once_in(2) { word.to_ascii_lowercase() } else { word.to_owned() };
    to.push_str(blank);
    to.push_str(&word);
    to.push_str(blank);
}

fn put_value(value: Value, random: &mut Random, to: &mut String) {
    match value {
        Value::Property((_, name)) => to.push_str(name),
        Value::Number(text) => to.push_str(text),
        Value::Text(text) => to.push_str(&format!("'{}'", text.replace('\'', "''"))),
        Value::Truth(is) => word(if is { "TRUE" } else { "FALSE" }, random, to),
    }
}
