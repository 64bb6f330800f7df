//! A broker process over real TCP and a real disk: messages in, durable, and out; start and stop.

mod wire;

use ringmq_schema::placement::shard_of_queue;
use std::io::Read;
use std::time::{Duration, Instant};
use wire::{Process, Wire, data};

const ANY: u16 = u16::MAX;

/// promise: ack-is-durable
#[test]
fn what_was_acknowledged_is_there_after_kill_9() {
    let folder = Process::folder();
    let mut sent = Vec::new();
    let mut topic = 0;
    for round in 0..4u32 {
        let broker = Process::start(&data(&folder), &["--shards", "2", "--cores", "2"]);
        let mut wire = Wire::connect(&broker.address, ANY);
        topic = wire.create_topic("orders", 4);
        for queue in 0..4 {
            let before: Vec<_> = sent.iter().filter(|(q, _)| *q == queue).collect();
            let shard = shard_of_queue(topic, queue, 2);
            let mut found = Vec::new();
            while found.len() < before.len() {
                let more = wire.fetch(topic, queue, shard, found.len() as u64);
                assert!(!more.is_empty(), "round {round}: {} of {}", found.len(), before.len());
                found.extend(more);
            }
            assert!(found.iter().eq(before.iter().map(|(_, body)| body)));
            for batch in 0..20u32 {
                let body = format!("{round}-{queue}-{batch}").into_bytes();
                let large = vec![batch as u8; 3000 * batch as usize];
                wire.produce(topic, queue, shard, &[&body, &large]).unwrap();
                sent.extend([(queue, body), (queue, large)]);
            }
        }
        broker.kill();
    }
    assert_eq!((topic, sent.len()), (1, 4 * 4 * 40));
}

#[test]
fn segments_roll_and_old_messages_come_from_the_disk() {
    let folder = Process::folder();
    let more = ["--shards", "1", "--tail-cache-bytes", "1 MiB", "--segment-bytes", "4 MiB"];
    let broker = Process::start(&data(&folder), &more);
    let mut wire = Wire::connect(&broker.address, 0);
    let topic = wire.create_topic("orders", 1);
    let body = |i: u32| vec![(i % 251) as u8; 100_000];
    for i in 0..200 {
        assert_eq!(wire.produce(topic, 0, 0, &[&body(i)]), Ok(u64::from(i)));
    }
    let mut at = 0;
    while at < 200 {
        let found = wire.fetch(topic, 0, 0, u64::from(at));
        assert!(!found.is_empty());
        for found in found {
            assert!(found == body(at), "message {at}");
            at += 1;
        }
    }
    assert_eq!(broker.terminate(), Some(0));
    assert!(std::fs::read_dir(data(&folder).join("shard-0000")).unwrap().count() >= 5);
}

#[test]
fn a_request_at_the_wrong_shard_is_passed_on() {
    // Cores with a CPU of their own poll busily.
    for pin in ["--pin=false", "--pin=true"] {
        passed_on(pin);
    }
}

fn passed_on(pin: &str) {
    let folder = Process::folder();
    let broker = Process::start(&data(&folder), &["--shards", "3", "--cores", "2", pin]);
    let mut wires: Vec<Wire> = (0..3).map(|shard| Wire::connect(&broker.address, shard)).collect();
    let topic = wires[2].create_topic("orders", 6);
    for queue in 0..6 {
        let shard = shard_of_queue(topic, queue, 3);
        for (number, wire) in wires.iter_mut().enumerate() {
            let offset = wire.produce(topic, queue, shard, &[b"hello"]);
            assert_eq!(offset, Ok(number as u64), "queue {queue} of shard {shard}");
        }
        for wire in &mut wires {
            assert_eq!(wire.fetch(topic, queue, shard, 0), [b"hello"; 3]);
        }
    }
    // Now that nothing comes any more they go to sleep: a fifth of a second passes with hardly any CPU used.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let before = broker.cpu_ticks();
        std::thread::sleep(Duration::from_millis(200));
        if broker.cpu_ticks() - before <= 4 {
            break;
        }
        assert!(Instant::now() < deadline, "the cores find no sleep");
    }
}

#[test]
fn sigterm_ends_it_in_order_and_nothing_is_lost() {
    let folder = Process::folder();
    let broker = Process::start(&data(&folder), &["--shards", "2", "--flush", "async"]);
    assert!(
        broker.ready.starts_with("ready broker=broker-a listen=127.0.0.1:"),
        "{}",
        broker.ready
    );
    let mut wire = Wire::connect(&broker.address, ANY);
    let topic = wire.create_topic("orders", 1);
    let shard = shard_of_queue(topic, 0, 2);
    wire.produce(topic, 0, shard, &[b"one", b"two"]).unwrap();
    let idle = Wire::connect(&broker.address, 1);
    assert_eq!(broker.terminate(), Some(0));
    assert!(wire.is_closed());
    drop(idle);
    let broker = Process::start(&data(&folder), &[]);
    let mut wire = Wire::connect(&broker.address, shard);
    assert_eq!(wire.fetch(topic, 0, shard, 0), [b"one", b"two"]);
}

#[test]
fn a_relative_data_directory_is_fine() {
    let folder = Process::folder();
    let mut command = Process::command(std::path::Path::new("data"));
    command.args(["--shards", "1"]).current_dir(folder.path());
    let broker = Process::run(command);
    let mut wire = Wire::connect(&broker.address, 0);
    let topic = wire.create_topic("orders", 1);
    assert_eq!(wire.produce(topic, 0, 0, &[b"hello"]), Ok(0));
}

#[test]
fn a_second_broker_on_the_same_data_or_port_says_so() {
    let folder = Process::folder();
    let broker = Process::start(&data(&folder), &[]);
    let refused = |data: &std::path::Path, more: &[&str]| {
        let mut command = Process::command(data);
        command.args(more).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (child.wait().unwrap().code(), text)
    };
    let (code, text) = refused(&data(&folder), &[]);
    assert!(code == Some(1) && text.contains(&broker.id().to_string()), "{code:?} {text}");
    let other = Process::folder();
    let port = broker.address.rsplit_once(':').unwrap().1;
    let (code, text) = refused(&data(&other), &["--port", port]);
    assert!(code == Some(1) && text.contains("in use by another process"), "{code:?} {text}");
    let (code, text) = refused(&data(&other), &["--listen", "0.0.0.0"]);
    assert!(code == Some(2) && text.contains("--insecure"), "{code:?} {text}");
    let (code, text) = refused(std::path::Path::new("/proc/ringmq"), &[]);
    assert!(code == Some(1) && text.contains("data directory"), "{code:?} {text}");
}
