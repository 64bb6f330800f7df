//! What topics and groups may be called.
//!
//! Checked before a name reaches a table or the disk (semantics.md, "names").

use crate::limits::{GROUP_NAME_BYTES_MAX, TOPIC_NAME_BYTES_MAX};

/// Prefix of a group's retry topic.
pub const RETRY_PREFIX: &str = "%RETRY%";
/// Prefix of a group's dead-letter topic.
pub const DEAD_LETTER_PREFIX: &str = "%DLQ%";
/// Prefix of system topics.
pub const SYSTEM_PREFIX: &str = "RMQ_SYS_";

/// Why a name is refused. The text is made for the person who chose the name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// No name at all.
    #[error("the {0} name is empty")]
    Empty(&'static str),
    /// More bytes than allowed.
    #[error("the {kind} name has {bytes} characters, at most {max} are allowed")]
    TooLong {
        /// "topic" or "group".
        kind: &'static str,
        /// Length given.
        bytes: usize,
        /// Limit.
        max: usize,
    },
    /// A character outside the rules.
    #[error(
        "the {kind} name {name:?} has {character:?}, allowed are letters, digits and the characters % | - _"
    )]
    Character {
        /// "topic" or "group".
        kind: &'static str,
        /// The name.
        name: String,
        /// First character at fault.
        character: char,
    },
    /// A name kept for the system.
    #[error(
        "the {kind} name {name:?} is reserved: names that start with {RETRY_PREFIX}, {DEAD_LETTER_PREFIX} or {SYSTEM_PREFIX} belong to the system"
    )]
    Reserved {
        /// "topic" or "group".
        kind: &'static str,
        /// The name.
        name: String,
    },
}

/// Checks a topic's name; reserved names pass (see [`is_reserved`]).
pub fn check_topic(name: &str) -> Result<(), NameError> {
    check("topic", name, TOPIC_NAME_BYTES_MAX)
}

/// Checks a group's name. Those that belong to the system are refused: a group's retry and dead-letter topics
/// bear its name behind a prefix, and nobody's group shall look like one of these.
pub fn check_group(name: &str) -> Result<(), NameError> {
    check("group", name, GROUP_NAME_BYTES_MAX)?;
    if is_reserved(name) {
        return Err(NameError::Reserved { kind: "group", name: name.to_owned() });
    }
    Ok(())
}

/// Checks the name of a topic that a user wants to make.
pub fn check_new_topic(name: &str) -> Result<(), NameError> {
    check_topic(name)?;
    if is_reserved(name) {
        return Err(NameError::Reserved { kind: "topic", name: name.to_owned() });
    }
    Ok(())
}

/// Name of a group's retry topic.
pub fn retry_topic(group: &str) -> String {
    format!("{RETRY_PREFIX}{group}")
}

/// Name of a group's dead-letter topic.
pub fn dead_letter_topic(group: &str) -> String {
    format!("{DEAD_LETTER_PREFIX}{group}")
}

/// Whether a name belongs to the system.
pub fn is_reserved(name: &str) -> bool {
    [RETRY_PREFIX, DEAD_LETTER_PREFIX, SYSTEM_PREFIX].iter().any(|p| name.starts_with(p))
}

fn check(kind: &'static str, name: &str, max: usize) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty(kind));
    }
    // Characters first: an error that quotes the length in bytes would puzzle with other alphabets.
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '%' | '|' | '-' | '_');
    if let Some(character) = name.chars().find(|c| !allowed(*c)) {
        let name = name.chars().take(max).collect();
        return Err(NameError::Character { kind, name, character });
    }
    if name.len() > max {
        return Err(NameError::TooLong { kind, bytes: name.len(), max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_names() {
        assert!(check_topic(&"a".repeat(127)).is_ok());
        assert!(matches!(check_topic(&"a".repeat(128)), Err(NameError::TooLong { max: 127, .. })));
        assert!(check_group(&"g".repeat(120)).is_ok());
        assert!(check_group(&"g".repeat(121)).is_err());
        assert!(matches!(check_group("RMQ_SYS_g"), Err(NameError::Reserved { kind: "group", .. })));
        assert_eq!(check_topic(""), Err(NameError::Empty("topic")));
        for bad in ["a b", "a/b", "ä", "a.b", "a\0"] {
            assert!(matches!(check_topic(bad), Err(NameError::Character { .. })), "{bad:?}");
        }
        assert!(check_topic("%RETRY%g|x-_9").is_ok());
        assert!(matches!(check_new_topic("%DLQ%g"), Err(NameError::Reserved { .. })));
    }
}
