//! What scripts rely on: exit codes, and what goes to which stream.

use std::net::TcpListener;
use std::process::{Command, Output};

fn ringmq(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringmq"))
        .args(arguments)
        .env_remove("NAMESRV_ADDR")
        .output()
        .expect("the binary runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An address at which nobody listens: it was free a moment ago.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

#[test]
fn a_command_line_without_sense_is_usage() {
    for arguments in [
        &["topic", "sing"][..],
        &["topic", "create"],
        &["topic", "create", "t", "--queues", "many"],
        &["topic", "consume", "t", "-f", "%x"],
        &["topic", "consume", "t", "--from", "yesterday"],
        &["group", "reset", "g", "--topic", "t"],
        &["--timeout", "5 parsecs", "cluster", "status"],
        &["-o", "xml", "topic", "ls"],
    ] {
        let output = ringmq(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn nobody_there_is_unreachable_and_says_what_to_try() {
    let nobody = nobody();
    for arguments in [&["cluster", "status"][..], &["topic", "ls"], &["group", "ls"]] {
        let mut all = vec!["--namesrv", nobody.as_str(), "--timeout", "2s"];
        all.extend(arguments);
        let output = ringmq(&all);
        assert_eq!(output.status.code(), Some(5), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let text = stderr(&output);
        assert!(text.contains(&nobody), "the address is named: {text}");
        assert!(text.lines().last().is_some_and(|line| line.starts_with("try: ")), "{text}");
    }
}

#[test]
fn a_name_server_that_does_not_answer_is_a_timeout() {
    // It accepts (the kernel does) and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("an address").to_string();
    let output = ringmq(&["--namesrv", &address, "--timeout", "300ms", "topic", "ls"]);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
}

#[test]
fn quiet_leaves_the_advice_out() {
    let output = ringmq(&["-q", "--namesrv", &nobody(), "--timeout", "1s", "topic", "ls"]);
    assert_eq!(output.status.code(), Some(5));
    let text = stderr(&output);
    assert!(text.starts_with("error: ") && !text.contains("try: "), "{text}");
}

#[test]
fn completions_go_to_stdout() {
    for shell in ["bash", "zsh", "fish"] {
        let output = ringmq(&["generate", "completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(String::from_utf8_lossy(&output.stdout).contains("quickstart"), "{shell}");
    }
}
