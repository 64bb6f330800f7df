//! The committed code is what the compiler makes of the schemas.

#![allow(clippy::unwrap_used)] // A test says what went wrong by panicking.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const OWN: &str = env!("CARGO_MANIFEST_DIR");

fn sources() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(Path::new(OWN).join("fbs")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn files(directory: &Path) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    entries.map(|path| (name(&path), std::fs::read_to_string(&path).unwrap())).collect()
}

/// Compares when a flatc of the right version is on the PATH; the compiler is not needed to build.
#[test]
fn generated_code_is_current() {
    let version = Command::new("flatc").arg("--version").output();
    let version = version.map_or_else(
        |error| error.to_string(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    );
    if !version.starts_with("flatc version 25.") {
        println!("not compared: flatc 25.x is not there ({version})");
        return;
    }
    let made = tempfile::tempdir().unwrap();
    let status = Command::new("flatc")
        .arg("--rust")
        .arg("-o")
        .arg(made.path())
        .args(sources())
        .status()
        .unwrap();
    assert!(status.success(), "flatc does not take the schemas");
    let (made, committed) = (files(made.path()), files(&Path::new(OWN).join("src/generated")));
    assert!(made.keys().eq(committed.keys()), "{:?} / {:?}", made.keys(), committed.keys());
    for (name, text) in &made {
        assert!(*text == committed[name], "{name} is not current: run `cargo xtask codegen`");
    }
}

#[test]
fn every_schema_has_its_code() {
    let committed = files(&Path::new(OWN).join("src/generated"));
    for source in sources() {
        let name = format!("{}_generated.rs", source.file_stem().unwrap().to_str().unwrap());
        assert!(committed.contains_key(&name), "{name} is missing: run `cargo xtask codegen`");
    }
}
