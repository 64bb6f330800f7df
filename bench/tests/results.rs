//! Results as files, and the verbs that search, replay and compare: against real servers in this process.
#![cfg(target_os = "linux")]

mod cluster;

use std::fs;
use std::path::Path;

use cluster::{Cluster, text};
use ringmq_bench::hlog::read_log;
use ringmq_bench::outcome::Outcome;
use ringmq_bench::record::Latencies;
use serde_json::Value;

impl Cluster {
    /// Runs a verb that must end with one of `codes`; what it said.
    fn ends(&self, codes: &[i32], arguments: &str) -> String {
        let output = self.bench(&arguments.split(' ').collect::<Vec<_>>());
        let text = text(&output);
        let code = output.status.code().expect("it ended by itself");
        assert!(codes.contains(&code), "{arguments} ended with {code}: {text}");
        text
    }
}

fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).expect("a file of JSON");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn the_files_hold_what_the_report_says() {
    let cluster = Cluster::start();
    // A busy machine may not keep the schedule; that is said, and the files are whole all the same.
    cluster.ends(&[0, 3], "e2e --rate 400 --duration 3s --warmup 500ms --out out");
    let report = json(&cluster.path("out/run.json"));
    let intervals = read_log(&cluster.path("out/run.hlog")).expect("an interval log");
    for direction in ["produce", "receive"] {
        let response = &report[direction]["response"];
        let of = |tag: &str| tag == direction;
        let merged: Latencies = intervals
            .iter()
            .filter(|(tag, _)| of(tag))
            .map(|(_, interval)| interval.response.clone())
            .collect();
        let figures = serde_json::to_value(merged.figures()).expect("JSON");
        assert_eq!(&figures, response, "{direction}: merged seconds are the whole");
        let text = fs::read_to_string(cluster.path(&format!("out/{direction}-response.hgrm")));
        let samples = response["samples"].as_u64().expect("a number");
        let total = format!("Total count    = {samples:>12}]");
        assert!(text.expect("percentiles").contains(&total), "{direction}: {total}");
    }
    assert!(cluster.path("out/produce-service.hgrm").is_file());
    assert!(!cluster.path("out/receive-service.hgrm").exists());
    assert!(report["cpu"]["seconds"].as_array().is_some_and(|seconds| seconds.len() >= 2));
    let page = fs::read_to_string(cluster.path("out/report.html")).expect("a page");
    for part in ["Latency by percentile", "Latency over time", "Rate and errors", "CPU", "<svg"] {
        assert!(page.contains(part), "{part}");
    }
    for outside in ["<script", "http://", "https://", "url(", "@import", "<link", "src="] {
        assert!(!page.contains(outside), "the page needs {outside}");
    }

    // Another verb's result in the same directory leaves nothing of this one.
    cluster.ends(&[0], "produce --topic kept --count 500 --out out");
    assert!(cluster.path("out/produce-response.hgrm").is_file());
    assert!(!cluster.path("out/receive-response.hgrm").exists());
    cluster.ends(&[0], "consume --topic kept --mode pull --out out");
    assert!(!cluster.path("out/run.hlog").exists());
    let read = Outcome::read(&cluster.path("out")).expect("a result without latencies");
    assert!(read.tracks.is_empty());
    let text = cluster.ends(&[0], "compare out out");
    assert!(text.contains("receive rate") && !text.contains("p99"), "{text}");
}

#[test]
fn a_sweep_tries_confirms_and_tells_every_step() {
    let cluster = Cluster::start();
    let sweep = "sweep --slo p50<20s --min-rate 50 --max-rate 200 --resolution 50% \
                 --step-duration 500ms --warmup 100ms --out out";
    // On a machine that is too busy to keep the schedule the search may end with 3.
    let text = cluster.ends(&[0, 3], sweep);
    let report = json(&cluster.path("out/run.json"));
    let steps = report["sweep"]["steps"].as_array().expect("steps");
    assert_eq!(report["verb"], "sweep");
    assert_eq!(steps[0]["messages_per_second"], 50);
    assert!(text.contains("verdict"), "{text}");
    if let Some(rate) = report["sweep"]["messages_per_second"].as_u64() {
        let last = steps.last().expect("a step");
        assert_eq!((&last["confirmation"], &last["verdict"]), (&true.into(), &"holds".into()));
        assert_eq!(last["messages_per_second"], rate);
        let text = cluster.ends(&[0], "compare out out");
        assert!(text.contains("highest rate"), "{text}");
    } else {
        cluster.ends(&[2], "compare out out");
    }

    // A bound that nothing meets: the lowest rate says so.
    let impossible = "sweep --slo max<1us --min-rate 50 --max-rate 100 --step-duration 400ms \
                      --warmup 100ms --out out";
    cluster.ends(&[1, 3], impossible);
    assert_eq!(json(&cluster.path("out/run.json"))["sweep"]["messages_per_second"], Value::Null);
    let hopeless = "sweep --slo p50<1s --min-rate 1000000000 --max-rate 1000000000 \
                    --step-duration 200ms --warmup 10ms";
    let text = cluster.ends(&[3], hopeless);
    assert!(text.contains("generator cannot keep its schedule"), "{text}");
    for usage in ["sweep --slo p99", "sweep", "sweep --slo p99<1ms --min-rate 5 --max-rate 4"] {
        cluster.ends(&[2], usage);
    }
}

const WORKLOAD: &str = "
name: fan <script>out</script>
topics: 2
partitionsPerTopic: 4
messageSize: 256
useRandomizedPayloads: true
randomBytesRatio: 0.5
randomizedPayloadPoolSize: 4
keyDistributor: KEY_ROUND_ROBIN
subscriptionsPerTopic: 2
consumerPerSubscription: 2
producersPerTopic: 2
producerRate: 400
testDurationMinutes: 15
warmupDurationMinutes: 1
";

#[test]
fn a_workload_file_runs_as_it_is() {
    let cluster = Cluster::start();
    fs::write(cluster.path("w.yaml"), WORKLOAD).expect("a file");
    // 15 min and 1 min times 0.002: 1.8 s and 0.12 s.
    cluster.ends(&[0, 3], "workload w.yaml --duration-scale 0.002 --out out");
    let report = json(&cluster.path("out/run.json"));
    let correctness = &report["correctness"];
    let acknowledged = correctness["acknowledged"].as_u64().expect("a number");
    assert!(acknowledged > 100, "{correctness}");
    assert_eq!(correctness["received"], 2 * acknowledged, "each subscription gets everything");
    assert_eq!(report["parameters"]["workload"]["partitionsPerTopic"], 4);
    let page = fs::read_to_string(cluster.path("out/report.html")).expect("a page");
    assert!(page.contains("fan &#60;script&#62;out") && !page.contains("<script"), "escaped");

    // As fast as it goes, nobody subscribed: what is stored is read back.
    let alone = WORKLOAD.replace("subscriptionsPerTopic: 2", "subscriptionsPerTopic: 0");
    let alone = alone.replace("producerRate: 400", "producerRate: 0");
    fs::write(cluster.path("w.yaml"), alone).expect("a file");
    cluster.ends(&[0], "workload w.yaml --duration-scale 0.0005 --in-flight 8 --out out");
    let correctness = &json(&cluster.path("out/run.json"))["correctness"];
    assert_eq!(correctness["received"], correctness["acknowledged"]);
    assert!(correctness["received"].as_u64() > Some(0), "{correctness}");
}

#[test]
fn a_backlog_is_built_and_drained() {
    let cluster = Cluster::start();
    // 0.1 GiB times 0.002: 215 kB for each of two topics' two subscriptions.
    let text = WORKLOAD.to_owned() + "consumerBacklogSizeGB: 0.1\n";
    fs::write(cluster.path("w.yaml"), text).expect("a file");
    let said = cluster.ends(&[0, 3], "workload w.yaml --duration-scale 0.002 --out out");
    assert!(said.contains("backlog: "), "{said}");
    let report = json(&cluster.path("out/run.json"));
    let backlog = &report["backlog"];
    assert!(backlog["reached_bytes"].as_u64() >= backlog["wanted_bytes"].as_u64(), "{backlog}");
    assert!(backlog["drain_ms"].as_f64() > Some(0.0), "{backlog}");
    let acknowledged = report["correctness"]["acknowledged"].as_u64().expect("a number");
    assert_eq!(report["correctness"]["received"], 2 * acknowledged);
}

#[test]
fn workloads_that_cannot_be_run_are_refused() {
    let cluster = Cluster::start();
    let text = WORKLOAD.replace("messageSize", "mesageSize");
    fs::write(cluster.path("w.yaml"), text).expect("a file");
    let said = cluster.ends(&[2], "workload w.yaml");
    assert!(said.contains("unknown key mesageSize: did you mean messageSize?"), "{said}");
    cluster.ends(&[2], "workload missing.yaml");
}

#[test]
fn the_examples_are_workloads() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads");
    let mut read = 0;
    for entry in fs::read_dir(directory).expect("examples") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            ringmq_bench::workload::Workload::read(&path).expect("a workload");
            read += 1;
        }
    }
    assert_eq!(read, 3);
}

#[test]
fn results_are_compared_where_they_are_comparable() {
    let cluster = Cluster::start();
    for (name, options) in [("a/1", ""), ("a/2", ""), ("b", ""), ("big", " --size 2048")] {
        let run = format!("produce --count 6000 --in-flight 4{options} --out {name}");
        cluster.ends(&[0], &run);
    }
    let text = cluster.ends(&[0], "compare a a/1,a/2 --out cmp");
    assert!(text.contains("no regression") && text.contains("produce p99"), "{text}");
    let compared = json(&cluster.path("cmp/compare.json"));
    assert_eq!((&compared["before"], &compared["regression"]), (&compared["after"], &false.into()));
    for row in compared["rows"].as_array().expect("rows") {
        assert_eq!(row["ratio"], 1.0, "{row}");
    }
    let page = fs::read_to_string(cluster.path("cmp/report.html")).expect("a page");
    assert!(page.contains("B against A") && !page.contains("<script"));

    // Whether b is worse than a is this machine's mood; that it is the same twice is not.
    let once = cluster.ends(&[0, 1], "compare a b");
    assert_eq!(once, cluster.ends(&[0, 1], "compare a b"));
    let text = cluster.ends(&[2], "compare a big");
    assert!(text.contains("size_bytes: 1024 and 2048"), "{text}");
    cluster.ends(&[0, 1], "compare a big --force");

    // A result whose histograms are of another run is found out.
    fs::copy(cluster.path("a/1/run.json"), cluster.path("b/run.json")).expect("a copy");
    let report = cluster.path("b/run.json");
    let changed = fs::read_to_string(&report).expect("a report").replace("6000", "6001");
    fs::write(&report, changed).expect("written");
    let text = cluster.ends(&[1], "compare a b");
    assert!(text.contains("they are of different runs"), "{text}");
    cluster.ends(&[1], "compare a nowhere");
}

/// The same run with every latency half as long again.
fn slower(outcome: &Outcome) -> Outcome {
    let mut slower = outcome.clone();
    for track in &mut slower.tracks {
        for interval in &mut track.intervals {
            let mut latencies = Latencies::default();
            for (ns, count) in interval.response.pairs() {
                latencies.add(ns * 3 / 2, *count);
            }
            interval.response = latencies.cells();
        }
        track.response = track.intervals.iter().map(|i| i.response.clone()).collect();
    }
    let produce = slower.report.produce.as_mut().expect("it was sent");
    produce.response = Some(slower.tracks[0].response.figures());
    slower
}

#[test]
fn a_regression_ends_with_one_and_an_improvement_with_zero() {
    let cluster = Cluster::start();
    cluster.ends(&[0], "produce --duration 4s --warmup 0s --in-flight 4 --out fast/1");
    let fast = Outcome::read(&cluster.path("fast/1")).expect("a result");
    for name in ["fast/2", "fast/3"] {
        fast.write(&cluster.path(name)).expect("a copy");
    }
    for name in ["slow/1", "slow/2", "slow/3"] {
        slower(&fast).write(&cluster.path(name)).expect("a result");
    }
    let text = cluster.ends(&[1], "compare fast slow");
    assert!(text.contains("regression: produce p50, produce p99"), "{text}");
    assert!(text.contains("resampled: whole runs"), "{text}");
    let text = cluster.ends(&[0], "compare slow fast");
    assert!(text.contains("better") && text.contains("no regression"), "{text}");
    cluster.ends(&[0], "compare fast slow --tolerance 60%");
}
