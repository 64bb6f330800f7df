//! promise: ack-is-durable, prefix, fifo. `kill -9` under load, many times over on one data directory.
//!
//! Journal: every message is numbered; sent, acknowledged with its offset, or unknown. After each restart
//! everything acknowledged must be at its offset with its bytes; what was unknown may be there; nothing
//! else may, offsets have no gap, and what was read once is there for ever.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq_schema::error::Status;
use ringmq_schema::placement::shard_of_queue;
use ringmq_schema::produce::Flush;
use ringmq_tests::server::{BrokerOptions, Process};
use ringmq_tests::wire::{Wire, base_offset, run};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const QUEUES: u32 = 4;
const IN_FLIGHT: usize = 16;

#[derive(Default)]
struct Journal {
    /// Acknowledged: number by offset.
    acknowledged: BTreeMap<u64, u64>,
    /// First offset whose content was not read yet.
    verified: u64,
    /// Number at each offset that was read.
    read: Vec<u64>,
}

fn body(number: u64) -> Vec<u8> {
    let length = 8 + (number.wrapping_mul(0x9e37_79b9) % 3000) as usize;
    let mut body = number.to_le_bytes().to_vec();
    body.resize(length, number as u8);
    body
}

/// Sends until the broker dies; journals what it acknowledged.
fn load(
    address: SocketAddr,
    (topic, queue, shard): (u32, u32, u16),
    numbers: &AtomicU64,
    journal: &Mutex<Journal>,
    acknowledged: &AtomicU64,
) {
    let Ok(mut wire) = Wire::connect(address, shard) else { return };
    let mut in_flight: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    loop {
        while in_flight.len() < IN_FLIGHT {
            let count = 1 + numbers.load(Ordering::Relaxed) % 7;
            let first = numbers.fetch_add(count, Ordering::Relaxed);
            let batch: Vec<u64> = (first..first + count).collect();
            let bodies: Vec<Vec<u8>> = batch.iter().map(|n| body(*n)).collect();
            let records = run(topic, queue, &bodies);
            let to = (topic, queue, shard);
            // SYNC and ASYNC mixed: both survive kill -9.
            let flush = if first % 3 == 0 { Flush::Async } else { Flush::Sync };
            let Ok(id) = wire.produce(to, &records, count as u32, flush) else { return };
            in_flight.insert(id, batch);
        }
        let Ok(answer) = wire.receive() else { return };
        assert_eq!(answer.status, Status::Ok, "{}", answer.refusal());
        let base = base_offset(&answer).unwrap();
        let batch = in_flight.remove(&answer.correlation).unwrap();
        acknowledged.fetch_add(batch.len() as u64, Ordering::Relaxed);
        let mut journal = journal.lock().unwrap();
        for (n, number) in batch.into_iter().enumerate() {
            journal.acknowledged.insert(base + n as u64, number);
        }
    }
}

/// Reads what is new in a queue and compares it with the journal.
fn verify(address: SocketAddr, (topic, queue, shard): (u32, u32, u16), journal: &mut Journal) {
    let mut wire = Wire::connect(address, shard).unwrap();
    loop {
        let (records, next, high) = wire.fetch((topic, queue, shard), journal.verified, 0).unwrap();
        for (offset, bytes) in records {
            assert_eq!(offset, journal.read.len() as u64, "queue {queue}: offsets have a gap");
            let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert_eq!(bytes, body(number), "queue {queue}, offset {offset}: foreign bytes");
            if let Some(expected) = journal.acknowledged.get(&offset) {
                assert_eq!(number, *expected, "queue {queue}, offset {offset}: another message");
            }
            journal.read.push(number);
        }
        journal.verified = next;
        if next >= high {
            break;
        }
    }
    let last = journal.acknowledged.last_key_value().map_or(0, |(offset, _)| offset + 1);
    assert!(
        journal.verified >= last,
        "queue {queue}: {} acknowledged messages are lost",
        last - journal.verified
    );
}

#[test]
fn kill_nine_loses_nothing_acknowledged() {
    let cycles: u32 =
        std::env::var("RINGMQ_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let folder = tempfile::tempdir().unwrap();
    let options = BrokerOptions::new("broker-a", folder.path());
    let mut broker = options.start();
    let mut wire = Wire::connect(broker.address(), 0).unwrap();
    let topic = wire.create_topic("orders", QUEUES).unwrap();
    let shards = wire.shards;
    let numbers = Arc::new(AtomicU64::new(0));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let journals: Vec<Arc<Mutex<Journal>>> = (0..QUEUES).map(|_| Arc::default()).collect();
    let place = |queue: u32| (topic, queue, shard_of_queue(topic, queue, shards));
    for cycle in 0..cycles {
        let address = broker.address();
        let goal = acknowledged.load(Ordering::Relaxed) + 20 + u64::from(cycle * 37 % 400);
        let producers: Vec<_> = (0..QUEUES)
            .map(|queue| {
                let (numbers, acknowledged) = (Arc::clone(&numbers), Arc::clone(&acknowledged));
                let journal = Arc::clone(&journals[queue as usize]);
                std::thread::spawn(move || {
                    load(address, place(queue), &numbers, &journal, &acknowledged);
                })
            })
            .collect();
        wait_for(&acknowledged, goal);
        broker.kill();
        producers.into_iter().for_each(|producer| producer.join().unwrap());
        broker = restart(&options, cycle);
        for queue in 0..QUEUES {
            let mut journal = journals[queue as usize].lock().unwrap();
            verify(broker.address(), place(queue), &mut journal);
        }
    }
    // Once more from the beginning: what was seen is never taken back.
    for queue in 0..QUEUES {
        let mut journal = journals[queue as usize].lock().unwrap();
        let seen = std::mem::take(&mut journal.read);
        journal.verified = 0;
        verify(broker.address(), place(queue), &mut journal);
        assert_eq!(journal.read[..seen.len()], seen[..], "queue {queue}");
    }
    let total = acknowledged.load(Ordering::Relaxed);
    println!("kill -9: {cycles} cycles, {total} messages acknowledged, 0 lost");
}

fn wait_for(acknowledged: &AtomicU64, goal: u64) {
    let deadline = Instant::now() + ringmq_tests::server::PATIENCE;
    while acknowledged.load(Ordering::Relaxed) < goal {
        assert!(Instant::now() < deadline, "the broker takes nothing");
        std::thread::park_timeout(Duration::from_micros(200));
    }
}

/// After kill -9 the kernel still tears the rings down for some ms: the lock holds until then.
fn restart(options: &BrokerOptions, cycle: u32) -> Process {
    let deadline = Instant::now() + ringmq_tests::server::PATIENCE;
    loop {
        match Process::try_start(&options.name, "ringmq-broker", &options.args()) {
            Ok(process) => return process,
            Err(error) => {
                let locked = error.contains("lock") || error.contains("another broker");
                assert!(locked && Instant::now() < deadline, "cycle {cycle}: {error}");
                std::thread::park_timeout(Duration::from_millis(20));
            }
        }
    }
}
