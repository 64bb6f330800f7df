//! `tune check` on this host, and `bench` as another name of ringmq-bench.
#![cfg(target_os = "linux")]

use std::process::{Command, Output};

fn ringmq(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringmq"))
        .args(arguments)
        .env_remove("NAMESRV_ADDR")
        .output()
        .expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn this_host_can_be_checked() {
    let output = ringmq(&["-o", "json", "tune", "check"]);
    // Whether it is fit for a broker is not ours to say.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", text(&output.stderr));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(document["schema"], 1);
    let findings = document["tune"]["findings"].as_array().expect("findings");
    for check in ["kernel", "file system", "mount options", "memlock", "swap", "interrupts"] {
        let found = findings.iter().find(|finding| finding["check"] == check);
        let found = found.unwrap_or_else(|| panic!("{check} is looked at"));
        assert!(found["found"].as_str().is_some_and(|found| !found.is_empty()), "{found}");
        let remedied = found["remedy"].is_string();
        assert_eq!(remedied, found["state"] == "warn" || found["state"] == "bad", "{found}");
    }
    let shown = text(&ringmq(&["tune", "check"]).stdout);
    assert!(shown.contains("kernel") && shown.contains("file system"), "{shown}");
}

#[test]
fn the_bench_has_its_own_exit_codes() {
    let help = ringmq(&["bench", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("Usage: ringmq bench <COMMAND>"), "{}", text(&help.stdout));
    for (code, arguments) in [
        (2, &["bench", "produce", "--rate", "fast"][..]),
        (2, &["bench"]),
        (2, &["bench", "workload", "nowhere.yaml"]),
        (1, &["bench", "compare", "nowhere", "nowhere"]),
        (1, &["--namesrv", "127.0.0.1:1", "bench", "produce", "--count", "1"]),
    ] {
        let output = ringmq(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
    }
    let refused = ringmq(&["--namesrv", "127.0.0.1:1", "bench", "produce", "--count", "1"]);
    assert!(text(&refused.stderr).contains("127.0.0.1:1"), "the name server is taken over");
}
