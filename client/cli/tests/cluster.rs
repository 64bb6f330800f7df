//! Every noun and verb against the servers that `ringmq dev` starts, and `quickstart` whole.
#![cfg(target_os = "linux")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// On the disk that holds the build: the system's temporary directory may be in memory.
fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build directory can be written")
}

fn ringmq() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmq"));
    command.env_remove("NAMESRV_ADDR");
    command
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_child(child);
    kill_process(pid, signal).expect("the child is ours and was not waited for");
}

fn wait(child: &mut Child, limit: Duration) -> Option<i32> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("the child is ours") {
            return status.code();
        }
        assert!(begun.elapsed() < limit, "the process did not end within {limit:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// `ringmq dev` in a directory; killed when it is dropped without a stop.
struct Dev {
    child: Child,
    namesrv: String,
    greeting: String,
}

impl Dev {
    fn start(directory: &Path) -> Dev {
        let mut child = ringmq()
            .args(["dev", "--namesrv-port", "0", "--broker-port", "0", "--http-port", "0"])
            .current_dir(directory)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let mut greeting = String::new();
        while !greeting.contains("Ctrl-C stops") {
            let line = lines.next().expect("a greeting comes before the end");
            greeting.push_str(&line.expect("the greeting is text"));
            greeting.push('\n');
        }
        let namesrv = greeting.lines().find_map(|line| line.trim().strip_prefix("name server"));
        let namesrv = namesrv.expect("the address is in the greeting").trim().to_owned();
        Dev { child, namesrv, greeting }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        ringmq().args(["--namesrv", &self.namesrv]).args(arguments).output().expect("it runs")
    }

    /// Standard output of a command that must succeed.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn code(&self, arguments: &[&str]) -> Option<i32> {
        self.run(arguments).status.code()
    }

    fn produce_lines(&self, topic: &str, lines: &str, more: &[&str]) {
        let mut child = ringmq()
            .args(["--namesrv", &self.namesrv, "topic", "produce", topic])
            .args(more)
            .stdin(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut stdin = child.stdin.take().expect("it is piped");
        stdin.write_all(lines.as_bytes()).expect("it reads");
        drop(stdin);
        assert_eq!(wait(&mut child, Duration::from_secs(30)), Some(0));
    }

    fn stop(mut self, with: Signal) {
        signal(&self.child, with);
        assert_eq!(wait(&mut self.child, Duration::from_secs(30)), Some(0), "a clean stop");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // After a stop there is nothing to kill; before, a test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn json(text: &str) -> serde_json::Value {
    let value: serde_json::Value = serde_json::from_str(text).expect("one JSON document");
    assert_eq!(value["schema"], 1);
    value
}

#[test]
fn topics_are_made_changed_and_removed() {
    let directory = directory();
    let dev = Dev::start(directory.path());
    assert!(dev.greeting.contains("topic produce demo"), "commands to paste: {}", dev.greeting);

    dev.ok(&["topic", "create", "orders", "--queues", "3", "--retention", "2h"]);
    dev.ok(&["topic", "create", "orders", "--queues", "3", "--retention", "2h"]);
    assert_eq!(dev.code(&["topic", "create", "orders", "--queues", "5"]), Some(1));
    assert_eq!(dev.code(&["topic", "create", "bad name"]), Some(1));
    assert_eq!(dev.ok(&["topic", "ls"]), "TOPIC\norders\n");

    let described = json(&dev.ok(&["topic", "describe", "orders", "-o", "json"]));
    assert_eq!(described["topic"][0]["write_queues"], 3);
    assert_eq!(described["topic"][0]["retention_ms"], 7_200_000);
    dev.ok(&["topic", "alter", "orders", "--flush", "async"]);
    let described = json(&dev.ok(&["topic", "describe", "orders", "-o", "json"]));
    assert_eq!(described["topic"][0]["flush"], "async");
    assert_eq!(described["topic"][0]["retention_ms"], 7_200_000, "what was not named stays");

    let route = json(&dev.ok(&["topic", "route", "orders", "-o", "json"]));
    assert_eq!(route["brokers"][0]["read_queues"], 3);
    let status = json(&dev.ok(&["cluster", "status", "-o", "json"]));
    assert_eq!(status["brokers"][0]["state"], "ok");
    assert_eq!(status["brokers"][0]["topics"], 1);
    assert!(dev.ok(&["cluster", "brokers"]).contains("master"));

    assert_eq!(dev.code(&["topic", "rm", "orders"]), Some(2), "nobody to ask, no --yes");
    dev.ok(&["topic", "rm", "orders", "--yes"]);
    assert_eq!(dev.ok(&["topic", "ls"]), "TOPIC\n");
    for missing in [&["topic", "describe", "orders"][..], &["topic", "route", "orders"]] {
        assert_eq!(dev.code(missing), Some(3), "{missing:?}");
    }
    assert_eq!(dev.code(&["topic", "produce", "orders", "--count", "1"]), Some(3));
    assert_eq!(dev.code(&["topic", "consume", "orders"]), Some(3));
    assert_eq!(dev.code(&["group", "describe", "nobody"]), Some(3));
    dev.stop(Signal::INT);
}

#[test]
fn lines_go_in_and_come_out() {
    let directory = directory();
    let dev = Dev::start(directory.path());
    dev.ok(&["topic", "create", "t", "--queues", "1"]);
    dev.produce_lines("t", "one\ntwo\n", &["--tag", "a", "--key", "k", "-p", "x=y"]);
    dev.produce_lines("t", "three", &["--tag", "b"]);
    assert_eq!(
        dev.ok(&["topic", "consume", "t", "-f", "%t %q %o %k %g %p %v\\n"]),
        "t 0 0 k a x=y one\nt 0 1 k a x=y two\nt 0 2  b  three\n"
    );
    assert_eq!(dev.ok(&["topic", "consume", "t", "--tags", "b"]), "three\n");
    assert_eq!(dev.ok(&["topic", "consume", "t", "--from", "1", "--count", "1"]), "two\n");
    assert_eq!(dev.ok(&["topic", "consume", "t", "--from", "last"]), "");
    assert_eq!(dev.ok(&["topic", "consume", "t", "--from", "-10m"]), "one\ntwo\nthree\n");
    let line = json(&dev.ok(&["topic", "consume", "t", "--count", "1", "-o", "json"]));
    assert_eq!((&line["body"], &line["properties"]["x"]), (&"one".into(), &"y".into()));
    assert_eq!(dev.ok(&["group", "ls"]), "GROUP\n", "who only looks leaves no group behind");

    dev.ok(&["topic", "produce", "t", "--count", "5000", "--size", "100"]);
    assert_eq!(dev.ok(&["topic", "consume", "t"]).lines().count(), 5_003);
    let stats = json(&dev.ok(&["topic", "stats", "t", "-o", "json"]));
    assert_eq!(stats["queues"][0]["max_offset"], 5_003);
    dev.stop(Signal::TERM);
}

#[test]
fn messages_are_found_by_key_and_by_both_ids() {
    let directory = directory();
    let dev = Dev::start(directory.path());
    dev.ok(&["topic", "create", "t", "--queues", "4"]);
    dev.produce_lines("t", "one\ntwo\n", &["--tag", "a", "--key", "k", "--key", "l"]);
    dev.produce_lines("t", "three\n", &["--key", "l"]);
    let find = ["message", "find", "--topic", "t", "--key"];
    let with = |key, more: &[&str]| dev.ok(&[&find[..], &[key], more].concat());
    let mut bodies: Vec<_> = with("k", &["-f", "%v\\n"]).lines().map(str::to_owned).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, ["one", "two"]);
    assert_eq!(with("l", &["--max", "1", "-f", "%v\\n"]), "three\n", "the newest");
    assert_eq!(with("l", &["--from", "-10m"]).lines().count(), 4, "a title and three");
    let none = [&find[..], &["l", "--until", "-10m"]].concat();
    assert_eq!(dev.code(&none), Some(3));
    assert_eq!(dev.code(&[&find[..], &["nothing"]].concat()), Some(3));
    assert_eq!(dev.code(&["message", "find", "--topic", "u", "--key", "k"]), Some(3));

    let found = json(&with("l", &["-o", "json"]));
    assert_eq!(found["messages"].as_array().map(Vec::len), Some(3));
    let newest = &found["messages"][0];
    assert_eq!((&newest["body"], &newest["keys"][0]), (&"three".into(), &"l".into()));
    for id in ["message_id", "stored_id"] {
        let id = newest[id].as_str().expect("an id");
        for topic in [&[][..], &["--topic", "t"]] {
            let get = [&["message", "get", id], topic].concat();
            let message = json(&dev.ok(&[&get[..], &["-o", "json"]].concat()));
            assert_eq!(&message["message"], newest);
            let text = dev.ok(&get);
            assert!(text.contains("body        three") && text.contains(id), "{text}");
            assert_eq!(dev.ok(&[&get[..], &["-f", "%v"]].concat()), "three");
        }
    }
    let unknown = "01934f00-0000-7000-8000-000000000001";
    assert_eq!(dev.code(&["message", "get", unknown]), Some(3));
    assert_eq!(dev.code(&["message", "get", "nobody/0000-0000000000000000"]), Some(3));
    assert_eq!(dev.code(&["message", "get", "hello"]), Some(2));
    dev.stop(Signal::TERM);
}

#[test]
fn a_group_goes_on_where_it_was_also_after_a_restart() {
    let directory = directory();
    let dev = Dev::start(directory.path());
    dev.ok(&["topic", "create", "t", "--queues", "2"]);
    dev.produce_lines("t", "one\ntwo\n", &["--group", "in-order"]);
    let consume = ["topic", "consume", "t", "--group", "readers"];
    assert_eq!(dev.ok(&consume), "one\ntwo\n");
    assert_eq!(dev.ok(&consume), "");
    dev.produce_lines("t", "three\n", &["--group", "in-order"]);
    let lag = json(&dev.ok(&["group", "describe", "readers", "-o", "json"]));
    let queues = lag["queues"].as_array().expect("a list");
    let behind: u64 = queues.iter().filter_map(|queue| queue["lag_messages"].as_u64()).sum();
    assert_eq!(behind, 1);
    dev.stop(Signal::TERM);

    let dev = Dev::start(directory.path());
    assert_eq!(dev.ok(&["topic", "consume", "t", "-q"]), "one\ntwo\nthree\n", "all is still there");
    assert_eq!(dev.ok(&consume), "three\n");
    assert_eq!(dev.ok(&["group", "ls"]), "GROUP\nreaders\n");
    assert_eq!(dev.code(&["group", "rm", "readers"]), Some(2));
    dev.ok(&["group", "rm", "readers", "--yes"]);
    assert_eq!(dev.ok(&["group", "ls"]), "GROUP\n");
    dev.stop(Signal::INT);
}

#[test]
fn groups_have_settings_and_messages_are_sent_once_more() {
    let directory = directory();
    let dev = Dev::start(directory.path());
    dev.ok(&["group", "create", "g", "--max-attempts", "3", "--retry-pauses", "10s,1m"]);
    assert_eq!(dev.code(&["group", "create", "g", "--max-attempts", "4"]), Some(1));
    assert_eq!(dev.code(&["group", "create", "g", "--retry-first", "1s"]), Some(2));
    let shown = dev.ok(&["group", "settings", "g"]);
    assert!(shown.contains("on") && shown.ends_with("3  10s, 1m 0s\n"), "{shown}");
    dev.ok(&["group", "alter", "g", "--consume", "off"]);
    let group = json(&dev.ok(&["group", "settings", "g", "-o", "json"]));
    let group = &group["group"][0];
    assert_eq!(group["consume_enabled"], false);
    assert_eq!((&group["max_attempts"], &group["retry_pauses_ms"][1]), (&3.into(), &60_000.into()));
    let growing = ["--retry-first", "1s", "--retry-longest", "1h", "--consume", "on"];
    let group = dev.ok(&[&["group", "alter", "g"], &growing[..], &["-o", "json"]].concat());
    let group = &json(&group)["group"][0];
    assert_eq!(
        (&group["retry_first_ms"], &group["retry_factor_percent"]),
        (&1000.into(), &200.into())
    );
    assert_eq!(dev.code(&["group", "alter", "nobody", "--consume", "on"]), Some(3));

    assert_eq!(dev.ok(&["dlq", "ls"]), "GROUP  MESSAGES  LAST\n");
    assert_eq!(dev.code(&["dlq", "show", "g"]), Some(3));
    assert_eq!(dev.code(&["dlq", "export", "g"]), Some(3));
    assert_eq!(dev.code(&["dlq", "resend", "g"]), Some(2), "some, or --all");
    assert_eq!(dev.code(&["dlq", "resend", "g", "--all"]), Some(3));

    dev.ok(&["topic", "create", "t", "--queues", "1"]);
    dev.produce_lines("t", "one\n", &["--tag", "a", "--key", "k"]);
    let first = json(&dev.ok(&["topic", "consume", "t", "-o", "json"]));
    let id = first["message_id"].as_str().expect("an id");
    dev.ok(&["message", "resend", id]);
    let both = dev.ok(&["topic", "consume", "t", "-f", "%i %o %g %k %v\\n"]);
    assert_eq!(both, format!("{id} 0 a k one\n{id} 1 a k one\n"));
    assert_eq!(dev.code(&["message", "resend", "01934f00-0000-7000-8000-000000000001"]), Some(3));
    dev.stop(Signal::INT);
}

#[test]
fn groups_are_made_changed_and_reset_and_queues_printed() {
    let directory = directory();
    let dev = Dev::start(directory.path());
    dev.ok(&["group", "create", "billing", "--max-attempts", "3", "--retry-pauses", "1s,5s"]);
    dev.ok(&["group", "create", "billing"]);
    assert_eq!(dev.code(&["group", "create", "billing", "--max-attempts", "4"]), Some(1));
    dev.ok(&["group", "alter", "billing", "--consume", "off"]);
    dev.ok(&["group", "alter", "billing", "--consume", "on", "--max-attempts", "4"]);
    assert_eq!(dev.code(&["group", "alter", "nobody", "--consume", "on"]), Some(3));
    assert_eq!(dev.code(&["group", "create", "bad name"]), Some(1));
    assert_eq!(dev.ok(&["group", "ls"]), "GROUP\nbilling\n");

    dev.ok(&["topic", "create", "t", "--queues", "2"]);
    dev.produce_lines("t", "one\ntwo\nthree\n", &["--group", "in-order", "--tag", "a"]);
    let consume = ["topic", "consume", "t", "--group", "billing", "-f", "%q %v\\n"];
    let all = dev.ok(&consume);
    let queue = &all[..1];
    let bodies = |text: &str| text.lines().map(|line| line[2..].to_owned()).collect::<Vec<_>>();
    assert_eq!(bodies(&all), ["one", "two", "three"]);

    let print = ["message", "print", "--topic", "t", "--queue", queue];
    let with = |more: &[&str]| dev.ok(&[&print[..], more].concat());
    assert_eq!(with(&["-f", "%o %v\\n"]), "0 one\n1 two\n2 three\n");
    assert_eq!(with(&["--from", "1", "--count", "1", "-f", "%v\\n"]), "two\n");
    assert_eq!(with(&["--from", "last", "-f", "%v\\n"]), "");
    assert_eq!(with(&["--from", "-10m"]).lines().count(), 4, "a title and three");
    let printed = json(&with(&["-o", "json"]));
    assert_eq!(printed["messages"][2]["body"], "three");
    assert_eq!(dev.code(&["message", "print", "--topic", "t", "--queue", "9"]), Some(3));
    assert_eq!(dev.code(&["message", "print", "--topic", "u", "--queue", "0"]), Some(3));
    assert_eq!(dev.ok(&["group", "ls"]), "GROUP\nbilling\n", "who only looks leaves none behind");

    let reset = ["group", "reset", "billing", "--topic", "t", "--to"];
    let to = |more: &[&str]| dev.run(&[&reset[..], more, &["--yes", "-o", "json"]].concat());
    let moves = |more: &[&str]| {
        let output = to(more);
        assert_eq!(output.status.code(), Some(0), "{more:?}");
        json(&String::from_utf8(output.stdout).expect("text"))["queues"].clone()
    };
    assert_eq!(dev.code(&[&reset[..], &["first"]].concat()), Some(2), "nobody to ask, no --yes");
    let moved = moves(&["1", "--queue", queue]);
    assert_eq!((moved.as_array().map(Vec::len), &moved[0]["offset"]), (Some(1), &1.into()));
    let lag = json(&dev.ok(&["group", "describe", "billing", "-o", "json"]));
    let queues = lag["queues"].as_array().expect("a list");
    let behind: u64 = queues.iter().filter_map(|queue| queue["lag_messages"].as_u64()).sum();
    assert_eq!((behind, &queues[0]["lag_is_at_least"]), (2, &false.into()));
    assert!(dev.ok(&["group", "describe", "billing", "-o", "wide"]).contains("COMMITTED AT"));
    assert_eq!(bodies(&dev.ok(&consume)), ["two", "three"]);
    assert_eq!(moves(&["first"]).as_array().map(Vec::len), Some(2));
    assert_eq!(bodies(&dev.ok(&consume)), ["one", "two", "three"]);
    assert_eq!(to(&["first", "--queue", "9"]).status.code(), Some(3));
    assert_eq!(to(&["first", "--broker", "nobody"]).status.code(), Some(3));
    assert_eq!(
        dev.code(&["group", "reset", "nobody", "--topic", "t", "--to", "1", "--yes"]),
        Some(3)
    );
    let members = json(&dev.ok(&["group", "members", "billing", "-o", "json"]));
    assert_eq!(members["members"].as_array().map(Vec::len), Some(0));
    dev.ok(&["group", "rm", "billing", "--yes"]);
    dev.stop(Signal::INT);
}

/// Members of a group that fail every message of a topic, until so many are dead letters.
fn fail_all(dev: &Dev, group: &str, topic: &str, count: u64) {
    let runtime = tokio::runtime::Runtime::new().expect("threads can be made");
    runtime.block_on(async {
        let client = ringmq::Client::connect(&dev.namesrv).await.expect("it is there");
        let admin = client.admin();
        let consumer = client.push_consumer(group).subscribe(topic, ringmq::Filter::all());
        let consumer = consumer.from(ringmq::ConsumeFrom::First);
        let consumer = consumer.listen(async |_| Err::<(), _>("no money")).await.expect("it joins");
        let begun = Instant::now();
        loop {
            let stats = admin.topic_stats(&format!("%DLQ%{group}")).await.unwrap_or_default();
            if stats.iter().map(|stat| stat.max_offset).sum::<u64>() >= count {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{stats:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        consumer.close(Duration::from_secs(10)).await.expect("it leaves");
        client.shutdown(Duration::from_secs(10)).await.expect("it ends");
    });
}

#[test]
fn dead_letters_are_shown_exported_and_sent_once_more() {
    let directory = directory();
    let dev = Dev::start(directory.path());
    dev.ok(&["topic", "create", "t", "--queues", "1"]);
    dev.ok(&["group", "create", "g", "--max-attempts", "1"]);
    dev.produce_lines("t", "one\ntwo\nthree\n", &["--tag", "paid", "--key", "k"]);
    fail_all(&dev, "g", "t", 3);
    let listed = dev.ok(&["dlq", "ls"]);
    assert!(
        listed.lines().nth(1).is_some_and(|line| line.starts_with("g             3  2")),
        "{listed}"
    );

    let shown = dev.ok(&["dlq", "show", "g", "-o", "wide"]);
    assert_eq!(shown.lines().count(), 4, "a title and three: {shown}");
    for (offset, body) in ["one", "two", "three"].iter().enumerate() {
        let mut lines = shown.lines();
        let line = lines.find(|line| line.ends_with(body)).expect("each is there");
        let origin = format!("/0@{offset} ");
        assert!(line.contains("no money") && line.contains(&origin), "{shown}");
    }
    assert_eq!(dev.ok(&["dlq", "show", "g", "--max", "1"]).lines().count(), 2);
    let letters = json(&dev.ok(&["dlq", "show", "g", "-o", "json"]))["messages"].clone();
    let of = |body: &str| {
        let mut all = letters.as_array().expect("a list").iter();
        all.find(|letter| letter["body"] == body).expect("it is there").clone()
    };
    let id = of("two")["message_id"].as_str().expect("an id").to_owned();

    // Some, then all; they stay among the dead letters.
    let resent = json(&dev.ok(&["dlq", "resend", "g", &id, "-o", "json"]));
    assert_eq!((&resent["resent"]["messages"], &resent["schema"]), (&1.into(), &1.into()));
    let all = ["topic", "consume", "t", "-f", "%i %o %g %k %v\\n"];
    assert!(dev.ok(&all).ends_with(&format!("{id} 3 paid k two\n")), "as it was sent at first");
    dev.ok(&["dlq", "resend", "g", "--all"]);
    assert_eq!(dev.ok(&["topic", "consume", "t"]).lines().count(), 7);
    let unknown = "01934f00-0000-7000-8000-000000000001";
    assert_eq!(dev.code(&["dlq", "resend", "g", &id, unknown]), Some(3), "all or none");
    assert_eq!(dev.ok(&["topic", "consume", "t"]).lines().count(), 7);

    let exported = dev.ok(&["dlq", "export", "g"]);
    let lines: Vec<serde_json::Value> = exported.lines().map(json).collect();
    assert_eq!(lines.len(), 3);
    assert!(
        lines.iter().all(|line| line["schema"] == 1 && line["topic"] == "%DLQ%g"),
        "{exported}"
    );
    let file = directory.path().join("letters.jsonl");
    let path = file.to_str().expect("text");
    assert_eq!(dev.ok(&["dlq", "export", "g", "--file", path]), "");
    let written = std::fs::read_to_string(&file).expect("it was written");
    assert_eq!(written.lines().count(), 3);
    assert_eq!(dev.code(&["dlq", "export", "g", "--file", path]), Some(1), "never over another");
    dev.stop(Signal::TERM);
}

#[test]
fn messages_are_popped_and_counted() {
    let directory = directory();
    let dev = Dev::start(directory.path());
    dev.ok(&["topic", "create", "t", "--queues", "1"]);
    dev.produce_lines("t", "one\ntwo\nthree\nfour\nfive\n", &[]);
    let pop = ["group", "pop", "g", "--topic", "t"];
    let with = |more: &[&str]| dev.ok(&[&pop[..], more].concat());
    assert_eq!(with(&["--ack"]), "one\n");
    assert_eq!(
        with(&["--count", "2", "--invisible", "10m", "-f", "%q %o %a %v\\n"]),
        "0 1 1 two\n0 2 1 three\n"
    );
    let described = || json(&dev.ok(&["group", "describe", "g", "-o", "json"]));
    let found = described();
    assert_eq!(found["schema"], 1);
    let figures = |of: &serde_json::Value| {
        ["lag_messages", "ready_messages", "in_flight_messages", "delayed_messages"]
            .map(|name| of[name].as_u64().expect("a number"))
    };
    assert_eq!(figures(&found["queues"][0]), [4, 2, 2, 0]);
    assert_eq!(figures(&found["total"]), [4, 2, 2, 0]);
    assert_eq!(found["total"]["retrying_messages"], 0);
    let table = dev.ok(&["group", "describe", "g"]);
    let titles: Vec<&str> = table
        .lines()
        .next()
        .expect("a title")
        .split("  ")
        .map(str::trim)
        .filter(|title| !title.is_empty())
        .collect();
    assert_eq!(
        titles,
        [
            "TOPIC",
            "BROKER",
            "QUEUE",
            "COMMITTED",
            "NEXT",
            "LAG",
            "READY",
            "IN FLIGHT",
            "DELAYED",
            "AGE",
            "OWNER"
        ]
    );
    assert_eq!(with(&["--count", "9", "--ack", "--wait", "0s"]), "four\nfive\n");
    assert_eq!(figures(&described()["total"]), [2, 0, 2, 0]);
    assert_eq!(dev.code(&[&pop[..], &["--invisible", "1s"]].concat()), Some(1), "at least 10 s");
    assert_eq!(dev.code(&[&pop[..], &["--from", "3"]].concat()), Some(2));
    assert_eq!(dev.code(&["group", "pop", "g", "--topic", "nobody"]), Some(3));

    // A reset counts for pops too, and without a topic of all of them.
    dev.ok(&["group", "reset", "g", "--to", "first", "--yes"]);
    assert_eq!(figures(&described()["total"]), [5, 5, 0, 0]);
    assert_eq!(with(&["--count", "9", "--ack", "-o", "json"]).lines().count(), 5);
    assert_eq!(
        dev.code(&["group", "reset", "g", "--queue", "0", "--to", "first", "--yes"]),
        Some(2)
    );
    dev.stop(Signal::TERM);
}

#[test]
fn a_second_dev_on_the_same_data_is_refused() {
    let directory = directory();
    let dev = Dev::start(directory.path());
    let output = ringmq()
        .args(["dev", "--namesrv-port", "0", "--broker-port", "0", "--http-port", "0"])
        .current_dir(directory.path())
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("ringmq-data"), "the directory is named: {stderr}");
    dev.stop(Signal::INT);
}

#[test]
fn quickstart_checks_everything_and_cleans_up() {
    let directory = directory();
    let output = ringmq()
        .args(["quickstart", "--count", "5000", "--queues", "4", "--in-flight", "8"])
        .args(["--calm", "1s", "--dir"])
        .arg(directory.path())
        .output()
        .expect("the binary runs");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    for part in [
        "messages/s",
        "p99.99",
        "end to end",
        "percentile",
        "full speed: 5 000 acknowledged, 5 000 received: nothing lost",
        "1 000/s: ",
    ] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 0);
}

#[test]
fn an_interrupted_quickstart_cleans_up() {
    let directory = directory();
    let mut child = ringmq()
        .args(["quickstart", "--count", "20000000", "--size", "64", "--dir"])
        .arg(directory.path())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let sending = lines.any(|line| line.expect("text").contains("receives and checks"));
    assert!(sending, "it says when the messages go");
    signal(&child, Signal::INT);
    assert_eq!(wait(&mut child, Duration::from_secs(60)), Some(1));
    assert_eq!(std::fs::read_dir(directory.path()).expect("it is there").count(), 0);
}
