//! semantics: "a bad expression is refused at subscribe time with the position of the fault".

#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq_filter::{DEPTH_MAX, EXPRESSION_BYTES_MAX, ErrorKind, Expression, TERMS_MAX};

/// Each expression with a `^` below the fault, and words of what is said.
const REFUSED: &[(&str, &str, &str)] = &[
    ("", "^", "empty"),
    ("   ", "^", "empty"),
    ("a = ", "    ^", "expected a property, a constant or (, found the end"),
    ("a = 1 AND", "         ^", "found the end"),
    ("a = 1 b = 2", "      ^", "expected AND, OR or the end, found the name b"),
    ("a b", "  ^", "expected a comparison, AND, OR or the end, found the name b"),
    ("a = 1)", "     ^", "found )"),
    ("(a = 1", "      ^", "expected AND, OR or ), found the end"),
    ("a = = 1", "    ^", "found ="),
    ("a == 1", "  ^", "equal is ="),
    ("a != 1", "  ^", "not equal is <>"),
    ("a = 1 && b = 2", "      ^", "use AND"),
    ("a = 1 || b = 2", "      ^", "use OR"),
    ("a = ‘x’", "    ^", "single quotes"),
    ("ä = 1", "^", "'ä' means nothing"),
    ("'ä' = a AND ; ", "            ^", "';' means nothing"),
    ("a = 'x", "    ^", "single quote is missing"),
    ("a = 'x''", "    ^", "single quote is missing"),
    ("\"a = 1", "^", "double quote is missing"),
    ("\"\" = 1", "^", "name is empty"),
    ("a > 12x", "    ^", "not a number"),
    ("a > 1e", "    ^", "not a number"),
    ("a > 1.2.3", "    ^", "not a number"),
    ("a > .", "    ^", "not a number"),
    ("a > 9223372036854775808", "    ^", "out of range"),
    ("a > -1e999", "    ^", "out of range"),
    ("a > -b", "     ^", "a number behind the sign"),
    ("a > --1", "     ^", "a number behind the sign"),
    ("a > 'x'", "    ^", "strings are compared with = and <> only"),
    ("'x' <= a", "^", "strings are compared with = and <> only"),
    ("a < TRUE", "    ^", "TRUE and FALSE are compared"),
    ("a BETWEEN 'a' AND 'b'", "          ^", "strings are compared"),
    ("a BETWEEN 1 AND 'b'", "                ^", "strings are compared"),
    ("a BETWEEN 1 OR 2", "            ^", "AND and the upper bound"),
    ("a BETWEEN 2 AND 1", "          ^", "nothing lies between"),
    ("TRUE BETWEEN 1 AND 2", "^", "TRUE and FALSE"),
    ("1 = 'x'", "    ^", "a number is not compared with a string"),
    ("'x' <> FALSE", "       ^", "a string is not compared with a truth value"),
    ("a = NULL", "    ^", "IS NULL"),
    ("NULL", "^", "IS NULL"),
    ("a IS 1", "     ^", "expected NULL or NOT NULL"),
    ("a IS NOT 1", "         ^", "expected NULL, found the number 1"),
    ("1 IS NULL", "^", "IS NULL looks at a property, not at a number"),
    ("(a = 1) IS NULL", "^", "a condition cannot be compared"),
    ("a NOT = 1", "      ^", "BETWEEN, IN, CONTAINS"),
    ("a NOT NULL", "      ^", "BETWEEN, IN, CONTAINS"),
    ("a IN 'x'", "     ^", "( and strings"),
    ("a IN ()", "      ^", "a string in single quotes, found )"),
    ("a IN ('x', 1)", "           ^", "a string in single quotes, found the number 1"),
    ("a IN ('x' 'y')", "          ^", "a comma or )"),
    ("'x' IN ('x')", "^", "IN looks at a property, not at a string"),
    ("a CONTAINS b", "           ^", "a string in single quotes"),
    ("a STARTSWITH 1", "             ^", "a string in single quotes"),
    ("1 ENDSWITH '1'", "^", "ENDSWITH looks at a property"),
    ("a = 1 = TRUE", "      ^", "expected AND, OR or the end, found ="),
    ("(a = 1) = TRUE", "^", "a condition cannot be compared"),
    ("a = (b = 1)", "    ^", "a condition cannot be compared"),
    ("1", "^", "a number alone is no condition"),
    ("a = 1 OR 'x'", "         ^", "a string alone is no condition"),
    ("NOT 5", "    ^", "a number alone is no condition"),
    ("AND a", "^", "found AND"),
    ("a\n= \t;", "     ^", "';' means nothing"),
];

#[test]
fn every_fault_is_shown_where_it_is() {
    for (text, mark, words) in REFUSED {
        let error = Expression::parse(text).expect_err(text);
        let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        assert_eq!(error.caret(), format!("{line}\n{mark}"), "{text}: {error}");
        assert!(error.to_string().contains(words), "{text}: {error}");
        let columns = text[..error.position()].chars().count();
        assert_eq!(columns, mark.len() - 1, "{text}: {}", error.position());
        assert!(error.to_string().contains(&format!("byte {}", error.position())));
    }
}

#[test]
fn of_a_long_one_the_neighbourhood_is_shown() {
    let text = format!(
        "{} OR a > 'ä' OR {}",
        vec!["a = 1"; 30].join(" OR "),
        vec!["b = 2"; 30].join(" OR ")
    );
    let error = Expression::parse(&text).unwrap_err();
    let caret = error.caret();
    let (line, mark) = caret.split_once('\n').unwrap();
    assert!(line.starts_with('…') && line.ends_with('…') && line.chars().count() <= 122, "{line}");
    assert_eq!(line.chars().nth(mark.chars().count() - 1), Some('\''), "{caret}");
}

#[test]
fn length_is_limited() {
    let text = |bytes: usize| format!("a = '{}'", "x".repeat(bytes - 6));
    assert!(Expression::parse(&text(EXPRESSION_BYTES_MAX)).is_ok());
    let error = Expression::parse(&text(EXPRESSION_BYTES_MAX + 1)).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::TooLong { bytes: EXPRESSION_BYTES_MAX + 1 });
    assert_eq!(error.position(), EXPRESSION_BYTES_MAX);
    // Cut where a character begins.
    let error = Expression::parse(&"€".repeat(EXPRESSION_BYTES_MAX)).unwrap_err();
    assert!(error.position() <= EXPRESSION_BYTES_MAX && error.caret().ends_with('^'));
    // Written out it is longer than it came.
    let name = "n".repeat(EXPRESSION_BYTES_MAX - 2);
    let error = Expression::parse(&format!("{name}=1")).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::TooLongWritten { bytes: EXPRESSION_BYTES_MAX + 2 });
}

#[test]
fn depth_is_limited() {
    let nested = |depth: usize| format!("{}a = 1{}", "(".repeat(depth), ")".repeat(depth));
    assert!(Expression::parse(&nested(DEPTH_MAX)).is_ok());
    let error = Expression::parse(&nested(DEPTH_MAX + 1)).unwrap_err();
    assert_eq!((error.kind(), error.position()), (&ErrorKind::TooDeep, DEPTH_MAX));
    // Side by side they do not add up, and NOT nests nothing.
    let beside = vec!["(a = 1)"; DEPTH_MAX + 1].join(" OR ");
    assert!(Expression::parse(&beside).is_ok());
    let nots = format!("{}a = 1", "NOT ".repeat(1000));
    assert_eq!(Expression::parse(&nots).unwrap().as_str(), "a = 1");
    // The deepest that can be evaluated, AND and OR by turns.
    let mut text = "a OR b AND c".to_owned();
    for _ in 0..DEPTH_MAX {
        text = format!("a OR b AND ({text})");
    }
    let expression = Expression::parse(&text).unwrap();
    let message = [("a", "false"), ("b", "true"), ("c", "true")];
    assert_eq!(ringmq_filter::evaluate(&expression, &message), Some(true));
    let message = [("a", "false"), ("b", "true")];
    assert_eq!(ringmq_filter::evaluate(&expression, &message), None);
}

#[test]
fn terms_are_limited() {
    let terms = |count: usize| vec!["a = 1"; count].join(" OR ");
    assert!(Expression::parse(&terms(TERMS_MAX)).is_ok());
    let error = Expression::parse(&terms(TERMS_MAX + 1)).unwrap_err();
    assert_eq!((error.kind(), error.position()), (&ErrorKind::TooManyTerms, TERMS_MAX * 9));
    let listed = |count: usize| format!("a IN ({})", vec!["'x'"; count].join(","));
    assert!(Expression::parse(&listed(TERMS_MAX)).is_ok());
    let error = Expression::parse(&listed(TERMS_MAX + 1)).unwrap_err();
    assert_eq!((error.kind(), error.position()), (&ErrorKind::TooManyTerms, 6 + TERMS_MAX * 4));
}
