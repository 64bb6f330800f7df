//! `log`: a broker's files, read without the broker.
//!
//! Invariant: files are opened for reading only, and nothing is created.

mod directory;
mod dump;
mod inspect;
mod scan;
mod verify;

use crate::args::{Global, LogVerb};
use crate::failure::Failure;

pub(super) fn run(verb: &LogVerb, global: &Global) -> Result<(), Failure> {
    match verb {
        LogVerb::Inspect { dir } => inspect::run(dir, global),
        LogVerb::Verify { dir } => verify::run(dir, global),
        LogVerb::Dump(args) => dump::run(args, global),
    }
}
