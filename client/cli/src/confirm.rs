//! Asking before something is destroyed.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use crate::failure::{Exit, Failure};

/// Shows `effect` on stderr and goes on only with consent: `--yes`, or a `y` at a terminal.
pub fn destructive(effect: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage(
            format!("this {effect}, and nobody is at the terminal to agree"),
            "the same with --yes",
        ));
    }
    eprint!("This {effect}. Go on? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure {
            exit: Exit::Failed,
            message: "nothing was changed".to_owned(),
            advice: String::new(),
        }),
    }
}
