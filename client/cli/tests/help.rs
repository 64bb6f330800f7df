//! The help of every command is a snapshot: a change of the command line shows in review.
//!
//! `INSTA_UPDATE=always cargo test -p ringmq-cli --test help` writes the snapshots anew.

use clap::{Command, CommandFactory as _};
use ringmq_cli::args::Arguments;

/// Every command's short help, in the order in which it is declared.
fn helps(command: &mut Command, path: &str, to: &mut Vec<(String, String)>) {
    to.push((path.to_owned(), command.render_help().to_string()));
    let names: Vec<String> =
        command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    for name in names {
        let verb = command.find_subcommand_mut(&name).expect("listed above");
        helps(verb, &format!("{path} {name}"), to);
    }
}

#[test]
fn the_help_of_every_command() {
    let mut command = Arguments::command();
    command.build();
    let mut all = Vec::new();
    helps(&mut command, "ringmq", &mut all);
    assert!(all.len() > 20, "nouns and verbs are all there");
    for (path, help) in all {
        insta::assert_snapshot!(path.replace(' ', "_"), help, &path);
    }
}
