//! From text to tree.
//!
//! One function for each level of binding, one word of look-ahead. Only parentheses lead back to the top, and
//! they are counted: the stack is bounded whatever the text is.

use crate::error::{Error, ErrorKind};
use crate::number::{NotANumber, Number};
use crate::token::{self, Comparison, Keyword, Token, Word};
use crate::tree::{Node, Part, Test, Value};
use crate::{DEPTH_MAX, EXPRESSION_BYTES_MAX, TERMS_MAX};
use std::cmp::Ordering;

type Parsed<T> = Result<T, Error>;

/// Reads an expression.
pub(crate) fn parse(text: &str) -> Parsed<Node> {
    if text.len() > EXPRESSION_BYTES_MAX {
        let kind = ErrorKind::TooLong { bytes: text.len() };
        return Err(Error::new(kind, EXPRESSION_BYTES_MAX, text));
    }
    let token = Token { word: Word::End, at: 0 };
    let mut parser = Parser { text, token, end: 0, depth: 0, terms: 0 };
    parser.advance()?;
    if parser.token.word == Word::End {
        return Err(parser.wrong(ErrorKind::Empty, 0));
    }
    let read = parser.any()?;
    if parser.token.word != Word::End {
        let expected = match read.what {
            What::Value(_) => "a comparison, AND, OR or the end",
            What::Condition(_) => "AND, OR or the end",
        };
        return Err(parser.unexpected(expected));
    }
    parser.condition(read)
}

/// A part of an expression, and where it begins.
struct Read {
    what: What,
    at: usize,
}

/// What a part is; parentheses may stand around either.
enum What {
    Value(Value),
    Condition(Node),
}

struct Parser<'a> {
    text: &'a str,
    /// The next word, not taken yet.
    token: Token<'a>,
    /// Behind it.
    end: usize,
    depth: usize,
    terms: usize,
}

impl<'a> Parser<'a> {
    fn wrong(&self, kind: ErrorKind, at: usize) -> Error {
        Error::new(kind, at, self.text)
    }

    fn unexpected(&self, expected: &'static str) -> Error {
        let found = self.token.word.to_string();
        self.wrong(ErrorKind::Expected { expected, found }, self.token.at)
    }

    /// Takes the next word.
    fn advance(&mut self) -> Parsed<Token<'a>> {
        let next = token::next(self.text, self.end);
        let (token, end) = next.map_err(|(kind, at)| self.wrong(kind, at))?;
        self.end = end;
        Ok(std::mem::replace(&mut self.token, token))
    }

    fn take(&mut self, word: &Word<'_>) -> Parsed<bool> {
        let is_next = self.token.word == *word;
        if is_next {
            self.advance()?;
        }
        Ok(is_next)
    }

    fn take_keyword(&mut self, keyword: Keyword) -> Parsed<bool> {
        self.take(&Word::Keyword(keyword))
    }

    fn expect(&mut self, word: &Word<'_>, expected: &'static str) -> Parsed<()> {
        if self.take(word)? { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    /// One more term, that begins at `at`.
    fn count(&mut self, at: usize) -> Parsed<()> {
        self.terms += 1;
        if self.terms > TERMS_MAX {
            return Err(self.wrong(ErrorKind::TooManyTerms, at));
        }
        Ok(())
    }

    fn any(&mut self) -> Parsed<Read> {
        let first = self.all()?;
        if self.token.word != Word::Keyword(Keyword::Or) {
            return Ok(first);
        }
        let at = first.at;
        let mut nodes = vec![self.condition(first)?];
        while self.take_keyword(Keyword::Or)? {
            let next = self.all()?;
            nodes.push(self.condition(next)?);
        }
        Ok(Read { what: What::Condition(Node::any(nodes)), at })
    }

    fn all(&mut self) -> Parsed<Read> {
        let first = self.perhaps_negated()?;
        if self.token.word != Word::Keyword(Keyword::And) {
            return Ok(first);
        }
        let at = first.at;
        let mut nodes = vec![self.condition(first)?];
        while self.take_keyword(Keyword::And)? {
            let next = self.perhaps_negated()?;
            nodes.push(self.condition(next)?);
        }
        Ok(Read { what: What::Condition(Node::all(nodes)), at })
    }

    fn perhaps_negated(&mut self) -> Parsed<Read> {
        let (at, mut nots) = (self.token.at, 0);
        while self.take_keyword(Keyword::Not)? {
            nots += 1;
        }
        let read = self.test()?;
        if nots == 0 {
            return Ok(read);
        }
        let node = self.condition(read)?;
        let node = if nots % 2 == 1 { node.negated() } else { node };
        Ok(Read { what: What::Condition(node), at })
    }

    /// A value with what is asked of it; or nothing is asked of it (yet).
    fn test(&mut self) -> Parsed<Read> {
        let left = self.primary()?;
        let at = left.at;
        let by = match self.token.word {
            Word::Compare(by) => by,
            Word::Keyword(Keyword::Is) => return self.is_null(left),
            Word::Keyword(
                Keyword::Not
                | Keyword::Between
                | Keyword::In
                | Keyword::Contains
                | Keyword::StartsWith
                | Keyword::EndsWith,
            ) => return self.perhaps_not(left),
            _ => return Ok(left),
        };
        let left = self.value(left)?;
        self.advance()?;
        let right_read = self.primary()?;
        let right_at = right_read.at;
        let right = self.value(right_read)?;
        self.count(at)?;
        let node = self.comparison((left, at), by, (right, right_at))?;
        Ok(Read { what: What::Condition(node), at })
    }

    fn comparison(
        &self,
        (left, left_at): (Value, usize),
        by: Comparison,
        (right, right_at): (Value, usize),
    ) -> Parsed<Node> {
        if by.is_order() {
            self.check_order(&left, left_at)?;
            self.check_order(&right, right_at)?;
        }
        let has_name = matches!(left, Value::Name(_)) || matches!(right, Value::Name(_));
        if !has_name && std::mem::discriminant(&left) != std::mem::discriminant(&right) {
            let kind = ErrorKind::Kinds { left: kind_of(&left), right: kind_of(&right) };
            return Err(self.wrong(kind, right_at));
        }
        let (left, by, right) = match (left, right) {
            (Value::Truth(a), Value::Truth(b)) => {
                return Ok(Node::Constant((a == b) == (by == Comparison::Equal)));
            }
            (left, Value::Name(right)) if !matches!(left, Value::Name(_)) => {
                (Value::Name(right), by.mirrored(), left)
            }
            (left, right) => (left, by, right),
        };
        Ok(Node::Test(Test::Compare { left, by, right }))
    }

    fn check_order(&self, value: &Value, at: usize) -> Parsed<()> {
        let what = match value {
            Value::Name(_) | Value::Number(_) => return Ok(()),
            Value::Text(_) => "strings",
            Value::Truth(_) => "TRUE and FALSE",
        };
        Err(self.wrong(ErrorKind::NoOrder { what }, at))
    }

    fn is_null(&mut self, left: Read) -> Parsed<Read> {
        let at = left.at;
        let name = self.name(left, "IS NULL")?;
        self.advance()?;
        let negated = self.take_keyword(Keyword::Not)?;
        let expected = if negated { "NULL" } else { "NULL or NOT NULL" };
        self.expect(&Word::Keyword(Keyword::Null), expected)?;
        self.count(at)?;
        Ok(test(Test::IsNull { name, negated }, at))
    }

    /// What may have a NOT in front.
    fn perhaps_not(&mut self, left: Read) -> Parsed<Read> {
        let at = left.at;
        let negated = self.take_keyword(Keyword::Not)?;
        let keyword = match self.token.word {
            Word::Keyword(keyword) => keyword,
            _ => return Err(self.unexpected("BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH")),
        };
        let part = match keyword {
            Keyword::Between => return self.between(left, negated),
            Keyword::In => return self.in_list(left, negated),
            Keyword::Contains => Part::Any,
            Keyword::StartsWith => Part::Start,
            Keyword::EndsWith => Part::End,
            _ => return Err(self.unexpected("BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH")),
        };
        let name = self.name(left, keyword.text())?;
        self.advance()?;
        let text = self.string()?;
        self.count(at)?;
        Ok(test(Test::Part { name, part, text, negated }, at))
    }

    fn between(&mut self, value: Read, negated: bool) -> Parsed<Read> {
        let at = value.at;
        let value = self.value(value)?;
        self.check_order(&value, at)?;
        self.advance()?;
        let (low, low_at) = self.bound()?;
        self.expect(&Word::Keyword(Keyword::And), "AND and the upper bound")?;
        let (high, _) = self.bound()?;
        if let (Value::Number(low), Value::Number(high)) = (&low, &high)
            && low.compare(*high) == Ordering::Greater
        {
            return Err(self.wrong(ErrorKind::Bounds, low_at));
        }
        self.count(at)?;
        Ok(test(Test::Between { value, low, high, negated }, at))
    }

    fn bound(&mut self) -> Parsed<(Value, usize)> {
        let read = self.primary()?;
        let at = read.at;
        let value = self.value(read)?;
        self.check_order(&value, at)?;
        Ok((value, at))
    }

    fn in_list(&mut self, left: Read, negated: bool) -> Parsed<Read> {
        let at = left.at;
        let name = self.name(left, "IN")?;
        self.advance()?;
        self.expect(&Word::Open, "( and strings")?;
        let mut texts = Vec::new();
        loop {
            self.count(self.token.at)?;
            texts.push(self.string()?);
            if !self.take(&Word::Comma)? {
                break;
            }
        }
        self.expect(&Word::Close, "a comma or )")?;
        texts.sort_unstable();
        texts.dedup();
        Ok(test(Test::In { name, texts, negated }, at))
    }

    fn string(&mut self) -> Parsed<String> {
        match self.token.word {
            Word::Text(_) => {}
            _ => return Err(self.unexpected("a string in single quotes")),
        }
        match self.advance()?.word {
            Word::Text(text) => Ok(text.into_owned()),
            _ => unreachable!("seen a line above"),
        }
    }

    fn primary(&mut self) -> Parsed<Read> {
        let at = self.token.at;
        let value = match &self.token.word {
            Word::Open => return self.parenthesis(at),
            Word::Plus | Word::Minus => return self.signed(at),
            Word::Number(text) => Value::Number(self.number(text, false, at)?),
            Word::Name(name) => Value::Name(name.clone().into_owned()),
            Word::Text(text) => Value::Text(text.clone().into_owned()),
            Word::Keyword(Keyword::True) => Value::Truth(true),
            Word::Keyword(Keyword::False) => Value::Truth(false),
            Word::Keyword(Keyword::Null) => return Err(self.wrong(ErrorKind::NullValue, at)),
            _ => return Err(self.unexpected("a property, a constant or (")),
        };
        self.advance()?;
        Ok(Read { what: What::Value(value), at })
    }

    fn parenthesis(&mut self, at: usize) -> Parsed<Read> {
        if self.depth == DEPTH_MAX {
            return Err(self.wrong(ErrorKind::TooDeep, at));
        }
        self.depth += 1;
        self.advance()?;
        let inner = self.any()?;
        self.expect(&Word::Close, "AND, OR or )")?;
        self.depth -= 1;
        Ok(Read { what: inner.what, at })
    }

    fn signed(&mut self, at: usize) -> Parsed<Read> {
        let is_negative = self.advance()?.word == Word::Minus;
        let Word::Number(text) = self.token.word else {
            return Err(self.unexpected("a number behind the sign"));
        };
        let number = self.number(text, is_negative, at)?;
        self.advance()?;
        Ok(Read { what: What::Value(Value::Number(number)), at })
    }

    fn number(&self, text: &str, is_negative: bool, at: usize) -> Parsed<Number> {
        Number::constant(text, is_negative).map_err(|why| match why {
            NotANumber::Malformed => self.wrong(ErrorKind::BadNumber, at),
            NotANumber::Range => self.wrong(ErrorKind::NumberRange, at),
        })
    }

    fn value(&self, read: Read) -> Parsed<Value> {
        match read.what {
            What::Value(value) => Ok(value),
            What::Condition(_) => Err(self.wrong(ErrorKind::NotAValue, read.at)),
        }
    }

    fn name(&self, read: Read, operator: &'static str) -> Parsed<String> {
        let at = read.at;
        match self.value(read)? {
            Value::Name(name) => Ok(name),
            other => {
                let found = kind_of(&other);
                Err(self.wrong(ErrorKind::NotAProperty { operator, found }, at))
            }
        }
    }

    /// What is to be true or false.
    fn condition(&mut self, read: Read) -> Parsed<Node> {
        let at = read.at;
        let node = match read.what {
            What::Condition(node) => return Ok(node),
            What::Value(Value::Truth(value)) => Node::Constant(value),
            What::Value(left @ Value::Name(_)) => {
                let (by, right) = (Comparison::Equal, Value::Truth(true));
                Node::Test(Test::Compare { left, by, right })
            }
            What::Value(other) => {
                return Err(self.wrong(ErrorKind::NotACondition { found: kind_of(&other) }, at));
            }
        };
        self.count(at)?;
        Ok(node)
    }
}

fn test(test: Test, at: usize) -> Read {
    Read { what: What::Condition(Node::Test(test)), at }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Name(_) => "property",
        Value::Number(_) => "number",
        Value::Text(_) => "string",
        Value::Truth(_) => "truth value",
    }
}
