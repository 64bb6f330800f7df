//! `generate`.

use clap::CommandFactory as _;

use crate::args::{Arguments, GenerateVerb};
use crate::failure::Failure;
use crate::output;

pub(super) fn run(verb: &GenerateVerb) -> Result<(), Failure> {
    match verb {
        GenerateVerb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "ringmq", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
    }
}
