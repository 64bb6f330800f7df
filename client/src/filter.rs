//! Which messages of a topic a subscription wants.
//!
//! The broker compares hashes of tags; the client compares the tags themselves, so that a collision never
//! reaches a user. Expressions in SQL will be a third form.

use crate::error::{Error, Result};
use ringmq_schema::record;
use std::fmt;

/// Which messages of a topic are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Sorted, each once; empty: every message.
    tags: Vec<String>,
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
        Filter { tags }
    }

    /// The expression as brokers compare it: members of a group must have the same.
    pub fn expression(&self) -> String {
        if self.tags.is_empty() { "*".to_owned() } else { self.tags.join(" || ") }
    }

    pub(crate) fn is_all(&self) -> bool {
        self.tags.is_empty()
    }

    pub(crate) fn hashes(&self) -> Vec<u32> {
        self.tags.iter().map(|tag| record::tag_hash(tag)).collect()
    }

    pub(crate) fn matches(&self, tag: Option<&str>) -> bool {
        self.tags.is_empty() || tag.is_some_and(|tag| self.tags.iter().any(|wanted| wanted == tag))
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.tags.iter().any(|tag| tag == "*") {
            let text = "\"*\" stands for every message and cannot be one of several tags";
            return Err(Error::invalid("subscribe", text));
        }
        Ok(())
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
    }
}
