//! `tests/README.md` says which test holds which rule: each of them exists.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use std::collections::BTreeSet;
use std::path::Path;

const TABLES: &str = include_str!("../README.md");

/// Whether a file has this test: a function behind an attribute that makes it one.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let head = format!("fn {name}(");
    let at = lines.iter().position(|line| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.starts_with(&head)
    });
    let above = at.map(|at| lines[..at].iter().rev().take_while(|line| line.starts_with('#')));
    above.is_some_and(|mut above| above.any(|line| line.contains("test")))
}

#[test]
fn every_test_that_the_tables_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let quoted = TABLES.split('`').skip(1).step_by(2);
    let named: BTreeSet<(&str, &str)> = quoted.filter_map(|word| word.split_once("::")).collect();
    assert!(named.len() > 30, "{named:?}");
    for (file, name) in named {
        let path = match file.contains('/') {
            true => root.join(file),
            false => root.join("tests/tests").join(file),
        };
        let source = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(has_test(&source, name), "{file} has no test {name}");
    }
}

#[test]
fn every_row_names_a_test_or_says_that_there_is_none_yet() {
    let rows = TABLES.lines().filter(|line| line.starts_with("| "));
    let rows: Vec<&str> = rows.filter(|line| !line.ends_with("| test |")).collect();
    assert!(rows.len() > 40, "{} rows", rows.len());
    for row in rows {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        assert!(last.contains(".rs::") || last.starts_with("not yet"), "{row}");
    }
}
