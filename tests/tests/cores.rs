//! promise: ack-is-durable, prefix, fifo. The number of cores changes from start to start; shards stay.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq_tests::durability::{Load, restart};
use ringmq_tests::server::BrokerOptions;

const SHARDS: u16 = 4;
/// Enough for every queue to get some.
const MESSAGES: u64 = 300;

#[test]
fn four_shards_move_between_cores_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = BrokerOptions::new("broker-a", folder.path());
    options.shards = SHARDS;
    let mut broker = options.start();
    // Two queues a shard.
    let load = Load::new(&broker, 2 * u32::from(SHARDS), true);
    for (turn, cores) in [2, 4, 1, 3, 1].into_iter().enumerate() {
        let producers = load.start(broker.address());
        load.wait_for(MESSAGES);
        if turn % 2 == 0 {
            broker.kill();
            producers.join();
        } else {
            assert_eq!(broker.terminate(), Some(0));
            producers.join();
        }
        options.cores = cores;
        broker = restart(&options);
        load.verify(broker.address());
    }
    load.verify_all(broker.address());
    let per_queue = load.snapshot();
    assert!(per_queue.iter().all(|messages| *messages > 0), "{per_queue:?}");
    ringmq_tests::say(format_args!(
        "cores: {SHARDS} shards on 1, 2, 4, 1, 3 and 1 cores, {} messages acknowledged, 0 lost",
        load.acknowledged()
    ));
    assert_eq!(broker.terminate(), Some(0));
}
