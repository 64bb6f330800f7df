//! Every verb against real servers in this process: exit codes, `run.json`, and planted faults.
#![cfg(target_os = "linux")]

mod cluster;

use std::process::Command;

use cluster::{Cluster, text};
use ringmq::{Client, Message};
use ringmq_bench::payload::Template;
use serde_json::Value;

impl Cluster {
    /// Runs a verb that must end with one of `codes` and gives its run.json.
    fn run(&self, codes: &[i32], arguments: &[&str]) -> Value {
        self.run_to("out", codes, arguments)
    }

    /// The same into another directory.
    fn run_to(&self, out: &str, codes: &[i32], arguments: &[&str]) -> Value {
        let output = self.bench(&[arguments, &["--out", out]].concat());
        let code = output.status.code().expect("it ended by itself");
        assert!(codes.contains(&code), "{arguments:?} ended with {code}: {}", text(&output));
        let file = self.path(out).join("run.json");
        let report = std::fs::read_to_string(file).expect("run.json");
        let report: Value = serde_json::from_str(&report).expect("JSON");
        assert_eq!(report["schema"], 1);
        report
    }

    /// Sends bodies to one queue, in this order.
    fn plant(&self, topic: &str, bodies: &[Vec<u8>]) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let client = Client::connect(self.namesrv.address().to_string()).await.expect("up");
            let producer = client.producer("planter").topic(topic).build().await.expect("a route");
            let queue = producer.queues(topic).await.expect("a route")[0].clone();
            for body in bodies {
                let message = Message::new(topic, body.clone()).queue(queue.clone());
                let _receipt = producer.send(message).await.expect("stored");
            }
        });
    }
}

#[test]
fn the_closed_loop_reads_back_what_it_stored() {
    let cluster = Cluster::start();
    let report = cluster.run(&[0], &["produce", "--count", "2000", "--in-flight", "16"]);
    assert_eq!(report["correctness"]["acknowledged"], 2_000);
    assert_eq!(report["correctness"]["received"], 2_000);
    assert_eq!(report["produce"]["response"]["samples"], 2_000);
    assert!(report["produce"]["messages_per_second"].as_f64() > Some(0.0));
    assert!(report["environment"]["kernel"].as_str().is_some_and(|kernel| !kernel.is_empty()));
    assert!(report["produce"]["seconds"].as_array().is_some_and(|series| !series.is_empty()));

    let batches = "produce --count 5050 --batch 100 --producers 3 --in-flight 7";
    let report = cluster.run(&[0], &batches.split(' ').collect::<Vec<_>>());
    assert_eq!(report["correctness"]["received"], 5_050, "the last batch is a smaller one");
}

#[test]
fn the_open_loop_sends_what_is_due() {
    let cluster = Cluster::start();
    let open = "produce --rate 200 --duration 1s --warmup 200ms";
    // A machine that is busy with other tests may not keep the schedule; that is said, not hidden.
    let report = cluster.run(&[0, 3], &open.split(' ').collect::<Vec<_>>());
    assert_eq!(report["generator"]["requests"], 200);
    assert!(report["correctness"]["received"].as_u64() <= Some(200));
    assert!(report["produce"]["messages"].as_u64() < Some(170), "the warm-up is in no figure");
}

#[test]
fn a_rate_out_of_reach_is_called_saturated() {
    let cluster = Cluster::start();
    let arguments = "produce --rate 1000000000 --duration 100ms --warmup 0s";
    let report = cluster.run(&[3], &arguments.split(' ').collect::<Vec<_>>());
    assert_eq!(report["generator"]["saturated"], true);
    assert_eq!(report["correctness"]["lost"], 0);
}

#[test]
fn load_and_raw_figures_take_turns() {
    let cluster = Cluster::start();
    let arguments = "produce --with-limits --duration 1s --warmup 0s";
    let report = cluster.run(&[0], &arguments.split(' ').collect::<Vec<_>>());
    let raw = &report["raw"];
    assert!(raw["durable_write_4kib"]["p50_us"].as_f64() > Some(1.0), "{raw}");
    let ratio = &raw["service_p50_to_durable_write_and_round_trip_two_cpus_ratio"];
    assert!(ratio.as_f64() > Some(0.0), "{raw}");
    assert_eq!(report["limits"]["source"], "interleaved");
    let shares = report["shares"].as_array().expect("shares of every limit");
    let stream = shares.iter().find(|share| share["limit"] == "one bare loopback stream");
    assert!(stream.is_some_and(|share| share["ratio"].as_f64() > Some(0.0)), "{shares:?}");
    let arguments = "e2e --with-limits --duration 1s --warmup 0s";
    let report = cluster.run(&[0], &arguments.split(' ').collect::<Vec<_>>());
    assert_eq!(report["limits"]["source"], "interleaved");
    assert_eq!(report["correctness"]["received"], report["correctness"]["acknowledged"]);
}

#[test]
fn limits_that_were_measured_before_are_held_against() {
    let cluster = Cluster::start();
    let produce: Vec<&str> = "produce --count 200".split(' ').collect();
    assert_eq!(cluster.run(&[0], &produce)["limits"], Value::Null, "nothing was measured");
    let output = cluster.bench(&["limits", "--duration", "40ms"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let report = cluster.run(&[0], &produce);
    let source = report["limits"]["source"].as_str().unwrap_or_default();
    assert!(source.ends_with("ringmq-bench/limits.json"), "{}", report["limits"]);
    assert!(report["limits"]["measured_at_ms"].as_u64() > Some(0));
    assert!(report["shares"].as_array().is_some_and(|shares| shares.len() >= 3));
}

#[test]
fn end_to_end_receives_everything() {
    let cluster = Cluster::start();
    let arguments = "e2e --count 2000 --in-flight 32 --consumers 2";
    let report = cluster.run(&[0], &arguments.split(' ').collect::<Vec<_>>());
    assert_eq!(report["correctness"]["received"], 2_000);
    assert_eq!(report["receive"]["response"]["samples"], 2_000);
}

#[test]
fn consume_finds_planted_faults() {
    let cluster = Cluster::start();
    let produce = "produce --topic kept --queues 2 --count 3000 --batch 50";
    cluster.run(&[0], &produce.split(' ').collect::<Vec<_>>());
    for mode in ["push", "pull"] {
        let report = cluster.run(&[0], &["consume", "--topic", "kept", "--mode", mode]);
        assert_eq!(report["correctness"]["received"], 3_000, "{mode}");
    }

    let mut template = Template::new(1, 1, 100);
    let (first, second) = (template.next(0).1, template.next(0).1);
    let mut damaged = template.next(0).1;
    damaged[70] ^= 1;
    cluster.plant("kept", &[second.clone(), first, second, damaged]);
    let report = cluster.run(&[1], &["consume", "--topic", "kept", "--mode", "pull"]);
    let correctness = &report["correctness"];
    assert_eq!(correctness["duplicated"], 1, "{correctness}");
    assert_eq!(correctness["out_of_order"], 1, "{correctness}");
    assert_eq!(correctness["corrupt"], 1, "{correctness}");
}

#[test]
fn contradictions_are_usage() {
    for arguments in [
        "produce --batch 5000 --size 1024",
        "produce --size 10",
        "produce --rate fast",
        "e2e --duration 3parsecs",
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_ringmq-bench"))
            .args(arguments.split(' '))
            .output()
            .expect("the binary runs");
        assert_eq!(output.status.code(), Some(2), "{arguments}: {}", text(&output));
    }
}
