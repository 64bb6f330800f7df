//! Which messages of a topic a subscription wants.
//!
//! By tags: the broker compares hashes, the client the tags themselves, so that a collision never reaches a user.
//! By an SQL92 expression: the broker evaluates it on the message itself, which is exact.

use crate::error::{Error, ErrorKind, Result};
use ringmq_filter::Expression;
use ringmq_schema::consume::FilterKind;
use ringmq_schema::record;
use std::fmt;

/// Which messages of a topic are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    wanted: Wanted,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    /// Sorted, each once; empty: every message.
    Tags(Vec<String>),
    /// The canonical text.
    Sql(String),
    /// As it came, and what is wrong with it: said when somebody subscribes with it.
    Bad(String, ringmq_filter::Error),
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted::Tags(Vec::new())
    }
}

impl Filter {
    /// Every message.
    pub fn all() -> Filter {
        Filter::default()
    }

    /// Messages with one of these tags: `"A"`, `"A || B"`; `"*"` or nothing is every message.
    pub fn tags(expression: impl AsRef<str>) -> Filter {
        let expression = expression.as_ref().trim();
        if expression.is_empty() || expression == "*" {
            return Filter::all();
        }
        let tags = expression.split("||").map(str::trim).filter(|tag| !tag.is_empty());
        let mut tags: Vec<String> = tags.map(str::to_owned).collect();
        tags.sort_unstable();
        tags.dedup();
        Filter { wanted: Wanted::Tags(tags) }
    }

    /// Messages for whose properties (and tag, under the name `TAGS`) an SQL92 expression is TRUE:
    /// `"region = 'eu' AND amount > 100"`.
    ///
    /// `= <> < <= > >= AND OR NOT`, `[NOT] BETWEEN x AND y`, `[NOT] IN ('a', 'b')`, `IS [NOT] NULL`, `[NOT] CONTAINS`,
    /// `STARTSWITH` and `ENDSWITH`, parentheses, numbers, strings in single quotes, `TRUE` and `FALSE`. A property that
    /// is compared with a number is read as one; what is asked of a property that a message lacks is unknown,
    /// and only TRUE selects. A bad expression is an error of kind [`ErrorKind::BadFilter`] when somebody subscribes
    /// with it, which shows where the fault is.
    pub fn sql(expression: impl AsRef<str>) -> Filter {
        let text = expression.as_ref();
        let wanted = match Expression::parse(text) {
            Ok(expression) => Wanted::Sql(expression.to_string()),
            Err(error) => Wanted::Bad(text.to_owned(), error),
        };
        Filter { wanted }
    }

    /// The expression as brokers compare it: members of a group must have the same. However an SQL expression is
    /// spelt, this is one text.
    pub fn expression(&self) -> String {
        match &self.wanted {
            Wanted::Tags(tags) if tags.is_empty() => "*".to_owned(),
            Wanted::Tags(tags) => tags.join(" || "),
            Wanted::Sql(text) | Wanted::Bad(text, _) => text.clone(),
        }
    }

    pub(crate) fn is_all(&self) -> bool {
        matches!(&self.wanted, Wanted::Tags(tags) if tags.is_empty())
    }

    pub(crate) fn kind(&self) -> FilterKind {
        match self.wanted {
            Wanted::Tags(_) => FilterKind::Tags,
            Wanted::Sql(_) | Wanted::Bad(..) => FilterKind::Sql92,
        }
    }

    /// What the broker compares with the index, unless it has an expression to evaluate.
    pub(crate) fn hashes(&self) -> Option<Vec<u32>> {
        match &self.wanted {
            Wanted::Tags(tags) => Some(tags.iter().map(|tag| record::tag_hash(tag)).collect()),
            Wanted::Sql(_) | Wanted::Bad(..) => None,
        }
    }

    /// What the broker evaluates.
    pub(crate) fn sql_text(&self) -> Option<&str> {
        match &self.wanted {
            Wanted::Tags(_) => None,
            Wanted::Sql(text) | Wanted::Bad(text, _) => Some(text),
        }
    }

    /// Whether a message that the broker sent is wanted.
    pub(crate) fn matches(&self, tag: Option<&str>) -> bool {
        match &self.wanted {
            Wanted::Tags(tags) => {
                tags.is_empty() || tag.is_some_and(|tag| tags.iter().any(|wanted| wanted == tag))
            }
            Wanted::Sql(_) | Wanted::Bad(..) => true,
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        match &self.wanted {
            Wanted::Tags(tags) if tags.iter().any(|tag| tag == "*") => {
                let text = "\"*\" stands for every message and cannot be one of several tags";
                Err(Error::invalid("subscribe", text))
            }
            Wanted::Bad(_, error) => {
                let text = format!("{error}\n{}", error.caret());
                Err(Error::new(ErrorKind::BadFilter, "subscribe", text))
            }
            Wanted::Tags(_) | Wanted::Sql(_) => Ok(()),
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.expression())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_normalised() {
        assert_eq!(Filter::tags("b||a || b").expression(), "a || b");
        assert_eq!(Filter::tags(" * "), Filter::all());
        assert!(Filter::tags("a").matches(Some("a")));
        assert!(!Filter::tags("a").matches(Some("b")));
        assert!(!Filter::tags("a").matches(None));
        assert!(Filter::all().matches(None));
        assert!(Filter::tags("a || *").check().is_err());
        let sql = Filter::sql("region='eu' and (5 < amount)");
        assert_eq!(sql.expression(), "region = 'eu' AND amount > 5");
        assert_eq!(sql, Filter::sql("(region = 'eu') AND amount > 5.0"));
        assert!(
            sql.check().is_ok() && !sql.is_all() && sql.matches(None) && sql.hashes().is_none()
        );
        assert_eq!(sql.kind(), FilterKind::Sql92);
    }

    #[test]
    fn a_bad_expression_is_shown() {
        let error = Filter::sql("region = 'eu' AND").check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadFilter);
        assert!(!error.is_retryable());
        let text = error.to_string();
        assert!(text.ends_with("region = 'eu' AND\n                 ^"), "{text}");
    }
}
