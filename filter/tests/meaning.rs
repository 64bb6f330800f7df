//! semantics: SQL92. What stands in the tables of the crate's documentation, line by line.

#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq_filter::{Expression, evaluate};

const MESSAGE: [(&str, &str); 8] = [
    ("TAGS", "paid"),
    ("region", "eu"),
    ("amount", "120.50"),
    ("count", "12"),
    ("other", "12.0"),
    ("urgent", "True"),
    ("big", "9007199254740993"),
    ("order-id", "it's"),
];

#[track_caller]
fn says(text: &str, expected: Option<bool>) {
    let expression = Expression::parse(text).unwrap_or_else(|e| panic!("{e}\n{}", e.caret()));
    assert_eq!(evaluate(&expression, &MESSAGE), expected, "{text}");
    let negated = Expression::parse(&format!("NOT ({text})")).unwrap();
    assert_eq!(evaluate(&negated, &MESSAGE), expected.map(|is| !is), "NOT ({text})");
}

#[test]
fn true_false_and_unknown() {
    let cases = [
        ("TAGS = 'paid'", Some(true)),
        ("TAGS IN ('paid', 'refunded')", Some(true)),
        ("region = 'eu' AND amount > 100", Some(true)),
        ("region <> 'eu'", Some(false)),
        ("region = 'EU'", Some(false)),
        ("Region = 'eu'", None),
        ("region > 5", None),
        ("region = 5", None),
        ("region <> 5", None),
        ("count = 12.0", Some(true)),
        ("count = '12.0'", Some(false)),
        ("count = other", Some(false)),
        ("count >= other AND count <= other", Some(true)),
        ("12 = count", Some(true)),
        ("100 < amount", Some(true)),
        ("amount BETWEEN 120 AND 121", Some(true)),
        ("amount NOT BETWEEN 120 AND 121", Some(false)),
        ("amount BETWEEN count AND missing", None),
        ("amount BETWEEN 500 AND missing", Some(false)),
        ("big > 9007199254740992.0", Some(true)),
        ("big = 9007199254740993", Some(true)),
        ("urgent", Some(true)),
        ("urgent = TRUE", Some(true)),
        ("urgent <> FALSE", Some(true)),
        ("region = TRUE", None),
        ("NOT region", None),
        ("missing IS NULL", Some(true)),
        ("missing IS NOT NULL", Some(false)),
        ("missing = 'x'", None),
        ("missing NOT IN ('x')", None),
        ("missing NOT CONTAINS 'x'", None),
        ("missing = 'x' OR TRUE", Some(true)),
        ("missing = 'x' AND FALSE", Some(false)),
        ("missing = 'x' AND TRUE", None),
        ("region CONTAINS 'e'", Some(true)),
        ("region NOT CONTAINS 'x'", Some(true)),
        ("region STARTSWITH 'e' AND region NOT STARTSWITH 'u'", Some(true)),
        ("region ENDSWITH 'u' AND region ENDSWITH ''", Some(true)),
        ("\"order-id\" = 'it''s'", Some(true)),
        ("1 < 2 AND 'x' = 'x' AND TRUE <> FALSE", Some(true)),
        ("(region) = ('eu')", Some(true)),
        ("NOT region = 'us'", Some(true)),
        ("region = 'us' AND TRUE OR TRUE", Some(true)),
        ("region = 'us' AND (TRUE OR TRUE)", Some(false)),
    ];
    for (text, expected) in cases {
        says(text, expected);
    }
}

#[test]
fn one_canonical_text_for_all_spellings() {
    let same = [
        ("a=1", "a = 1"),
        ("1 = a", "a = 1"),
        ("((a)) = (1.0)", "a = 1"),
        ("5 < a", "a > 5"),
        ("NOT a = 1", "a <> 1"),
        ("not not a", "a = TRUE"),
        ("NOT (a < 1 AND b IS NULL)", "a >= 1 OR b IS NOT NULL"),
        ("a in ('y','x','y')", "a IN ('x', 'y')"),
        ("(a = 1 or b = 2) or c = 3", "a = 1 OR b = 2 OR c = 3"),
        ("(a = 1 or b = 2) and c = 3", "(a = 1 OR b = 2) AND c = 3"),
        ("a = 1 or (b = 2 and c = 3)", "a = 1 OR b = 2 AND c = 3"),
        ("\"a\" = 'x' and \"and\" = 'y'", "a = 'x' AND \"and\" = 'y'"),
        ("\"say \"\"x\"\"\" contains 'it''s'", "\"say \"\"x\"\"\" CONTAINS 'it''s'"),
        ("a not between -1.50 and 1e3", "a NOT BETWEEN -1.5 AND 1000"),
        ("a > 1e300", "a > 1e300"),
    ];
    for (text, canonical) in same {
        let expression = Expression::parse(text).unwrap();
        assert_eq!(expression.as_str(), canonical, "{text}");
        assert_eq!(Expression::parse(canonical).unwrap(), expression);
    }
}

#[test]
fn tags_that_a_message_must_have() {
    let tags = |text: &str| {
        let expression = Expression::parse(text).unwrap();
        expression.tags().map(|tags| tags.map(str::to_owned).collect::<Vec<_>>())
    };
    let some = |tags: &[&str]| Some(tags.iter().map(ToString::to_string).collect());
    assert_eq!(tags("TAGS = 'a'"), some(&["a"]));
    assert_eq!(tags("'a' = TAGS AND x = 1"), some(&["a"]));
    assert_eq!(tags("TAGS IN ('b', 'a') AND TAGS <> 'a'"), some(&["a", "b"]));
    assert_eq!(tags("TAGS = 'a' AND x = 1 OR TAGS = 'b'"), some(&["a", "b"]));
    assert_eq!(tags("TAGS IN ('b', 'a') AND TAGS = 'b'"), some(&["b"]));
    assert_eq!(tags("TAGS = 'a' OR x = 1"), None);
    assert_eq!(tags("NOT TAGS = 'a'"), None);
    assert_eq!(tags("TAGS <> 'a'"), None);
    assert_eq!(tags("FALSE"), some(&[]));
    assert_eq!(tags("TAGS = 5"), None);
    assert_eq!(
        Expression::parse("b = 1 AND a = b").unwrap().names().collect::<Vec<_>>(),
        ["b", "a"]
    );
}
