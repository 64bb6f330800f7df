//! promise: ack-is-durable, prefix, fifo. `kill -9` under load, many times over on one data directory.
//!
//! SYNC and ASYNC messages are mixed: both survive the death of the process.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq_tests::durability::{Load, restart};
use ringmq_tests::server::BrokerOptions;

#[test]
fn kill_nine_loses_nothing_acknowledged() {
    let cycles: u64 =
        std::env::var("RINGMQ_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let folder = tempfile::tempdir().unwrap();
    let options = BrokerOptions::new("broker-a", folder.path());
    let mut broker = options.start();
    let load = Load::new(&broker, 4, true);
    for cycle in 0..cycles {
        let producers = load.start(broker.address());
        load.wait_for(20 + cycle * 37 % 400);
        broker.kill();
        producers.join();
        broker = restart(&options);
        load.verify(broker.address());
    }
    load.verify_all(broker.address());
    ringmq_tests::say(format_args!(
        "kill -9: {cycles} cycles, {} messages acknowledged, 0 lost",
        load.acknowledged()
    ));
}
