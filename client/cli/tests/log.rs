//! `log inspect`, `verify` and `dump` over what a real broker left behind.
#![cfg(target_os = "linux")]

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

fn ringmq(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmq"));
    command.args(arguments).env_remove("NAMESRV_ADDR").output().expect("the binary runs")
}

/// A `ringmq dev` with one shard that is killed, not stopped, when it is dropped.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended by itself when a test has failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(directory: &Path) -> (Dev, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ringmq"))
        .args(["dev", "--namesrv-port", "0", "--broker-port", "0", "--http-port", "0"])
        .args(["--shards", "1"])
        .current_dir(directory)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let out = child.stdout.take().expect("it is piped");
    let dev = Dev(child);
    let mut lines = BufReader::new(out).lines().map(|line| line.expect("text"));
    let namesrv = lines.find_map(|line| line.trim().strip_prefix("name server").map(str::to_owned));
    assert!(lines.any(|line| line.contains("Ctrl-C stops")), "it gets ready");
    (dev, namesrv.expect("the greeting names it").trim().to_owned())
}

struct Left {
    _directory: TempDir,
    data: PathBuf,
    segment: PathBuf,
}

impl Left {
    fn data(&self) -> &str {
        self.data.to_str().expect("text")
    }

    fn segment(&self) -> &str {
        self.segment.to_str().expect("text")
    }

    fn write(&self, position: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(&self.segment).expect("it is there");
        file.write_all_at(bytes, position).expect("written");
    }

    fn verify(&self) -> (Option<i32>, Value) {
        let output = ringmq(&["log", "verify", self.data(), "-o", "json"]);
        (output.status.code(), json(&output)["verify"].take())
    }
}

/// A directory with some thousand messages whose broker was killed. While it lives, `look` sees it.
fn left(look: impl FnOnce(&Left)) -> Left {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("can be written");
    let (dev, namesrv) = start(directory.path());
    let data = directory.path().join("ringmq-data");
    let segment = data.join("shard-0000/00000000000000000000.log");
    let left = Left { _directory: directory, data, segment };
    for arguments in [
        &["topic", "create", "t", "--queues", "2"][..],
        &["topic", "produce", "t", "--count", "2000", "--size", "500"],
        &["topic", "produce", "t", "--count", "1", "--tag", "last"],
    ] {
        let output = ringmq(&[&["--namesrv", &namesrv], arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    look(&left);
    drop(dev);
    left
}

fn json(output: &Output) -> Value {
    let value: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    assert_eq!(value["schema"], 1);
    value
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} is a number in {value}"))
}

#[test]
fn a_log_is_shown_checked_and_listed_also_while_it_is_in_use() {
    let left = left(|left| {
        let output = ringmq(&["log", "inspect", left.data()]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("has") && stderr.contains("open"), "it warns: {stderr}");
        assert_eq!(output.status.code(), Some(0), "{stderr}");
    });
    let before = std::fs::read_dir(&left.data).expect("a folder").count();

    let output = ringmq(&["log", "inspect", left.data(), "-o", "json"]);
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    let log = json(&output)["log"].take();
    assert_eq!(log["identity"]["shards"], 1);
    assert_eq!(log["segments"][0]["state"], "active");
    assert_eq!(log["totals"]["messages"], 2_001);
    let text = ringmq(&["log", "inspect", left.data()]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.starts_with("cluster ") && text.contains("SHARD"), "{text}");

    let (code, verified) = left.verify();
    assert_eq!((code, &verified["damages"]), (Some(0), &serde_json::json!([])));
    assert_eq!(verified["shards"][0]["messages"], 2_001);
    let folder = left.data.join("shard-0000");
    let folder = ringmq(&["log", "verify", folder.to_str().expect("text"), "-o", "json"]);
    assert_eq!(json(&folder)["verify"]["shards"], verified["shards"]);

    let all = lines(&ringmq(&["log", "dump", left.segment(), "-o", "json"]));
    let messages: Vec<&Value> = all.iter().filter(|line| line["kind"] == "message").collect();
    assert_eq!(messages.len(), 2_001);
    assert_ne!(messages[2_000]["tag_hash"], 0);
    let from = number(messages[1_000], "position").to_string();
    let some = ["log", "dump", left.segment(), "-o", "json", "--from", &from, "--limit", "3"];
    let some = lines(&ringmq(&some));
    assert_eq!((some.len(), &some[0]), (3, messages[1_000]));
    let wide = ringmq(&["log", "dump", left.segment(), "-o", "wide", "--limit", "2"]);
    let wide = String::from_utf8_lossy(&wide.stdout).into_owned();
    assert!(wide.lines().nth(1).is_some_and(|line| line.starts_with("0 unit ")), "{wide}");
    assert_eq!(std::fs::read_dir(&left.data).expect("a folder").count(), before);
}

#[test]
fn a_flipped_bit_is_named_and_a_torn_tail_forgiven() {
    let left = left(|_| ());
    let (_, whole) = left.verify();
    let end = number(&whole["shards"][0], "end_position");
    left.write(end, &[0x5a; 5_000]);
    let (code, torn) = left.verify();
    assert_eq!(code, Some(0), "{torn}");
    assert_eq!(torn["damages"][0]["state"], "torn tail");
    assert_eq!(torn["damages"][0]["position"], end);

    let all = lines(&ringmq(&["log", "dump", left.segment(), "-o", "json"]));
    let message = all.iter().filter(|line| line["kind"] == "message").nth(700).expect("messages");
    let at = number(message, "position");
    left.write(at + 140, b"~damage~");
    let (code, damaged) = left.verify();
    assert_eq!(code, Some(1), "{damaged}");
    let damage = &damaged["damages"][0];
    let from = number(damage, "position");
    assert_eq!(damage["state"], "interior");
    assert!((from..from + number(damage, "length_bytes")).contains(&at), "{damage}");
    let covers = damage["covers"].as_array().expect("a list");
    let offset = number(message, "offset");
    let covered = covers.iter().any(|cover| {
        cover["queue"] == message["queue"]
            && (number(cover, "first_offset")..number(cover, "end_offset")).contains(&offset)
    });
    assert!(covered, "{damage}");

    let output = ringmq(&["log", "verify", left.data()]);
    assert_eq!(output.status.code(), Some(1));
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains(&from.to_string()) && stdout.contains("interior"), "{stdout}");
    assert!(stderr.contains("MiB/s") && stderr.contains("try: "), "{stderr}");
    assert_eq!(ringmq(&["log", "inspect", left.data()]).status.code(), Some(0), "no payloads read");
    let dump = ringmq(&["log", "dump", left.segment()]);
    assert_eq!(dump.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&dump.stdout).contains("(in a damaged unit)"));
}

#[test]
fn what_is_no_log_is_refused() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("can be written");
    let path = directory.path().to_str().expect("text");
    let file = directory.path().join("notes.txt");
    std::fs::write(&file, "no segment").expect("written");
    let file = file.to_str().expect("text");
    let nowhere = format!("{path}/nowhere");
    for (arguments, code) in [
        (["log", "inspect", path], 3),
        (["log", "verify", nowhere.as_str()], 3),
        (["log", "dump", nowhere.as_str()], 3),
        (["log", "verify", file], 2),
        (["log", "dump", file], 2),
    ] {
        let output = ringmq(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains("try: ") && output.stdout.is_empty(), "{arguments:?}: {stderr}");
    }
    let garbage = directory.path().join("18446744073709551600.log");
    std::fs::write(&garbage, [0xa7; 9_000]).expect("written");
    for verb in ["inspect", "verify"] {
        let output = ringmq(&["log", verb, path]);
        assert_eq!(output.status.code(), Some(0), "nothing durable is known: {output:?}");
    }
    let output = ringmq(&["log", "dump", garbage.to_str().expect("text")]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    std::fs::write(directory.path().join("ringmq.toml"), "format = 1\ncluster =").expect("written");
    assert_eq!(ringmq(&["log", "verify", path]).status.code(), Some(1));
}
