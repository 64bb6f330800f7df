//! Which shard serves which queue and which group, and the hashes that peers compare.
//!
//! These functions are part of the protocol: a client computes the shard of a queue from the route
//! alone, and a queue keeps its shard for life (design.md, part 2).

/// FNV-1a, 64 bit: short, in every language, and good enough for spreading names.
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Finishes a 64-bit value into a well mixed one (the finalizer of splitmix64).
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Shard of a queue: `(hash(topic id) + queue) mod shards`.
pub fn shard_of_queue(topic: u32, queue: u32, shards: u16) -> u16 {
    debug_assert!(shards > 0);
    let start = mix(u64::from(topic)) % u64::from(shards);
    ((start + u64::from(queue)) % u64::from(shards)) as u16
}

/// The queue of a topic that is on this shard, of a topic with as many queues as there are shards.
pub fn queue_on_shard(topic: u32, shard: u16, shards: u16) -> u32 {
    debug_assert!(shard < shards);
    let start = shard_of_queue(topic, 0, shards);
    (u32::from(shard) + u32::from(shards) - u32::from(start)) % u32::from(shards)
}

/// Shard of each broker on which a group's members meet: `hash(group name) mod shards`.
pub fn shard_of_group(group: &str, shards: u16) -> u16 {
    debug_assert!(shards > 0);
    (mix(fnv1a(group.as_bytes())) % u64::from(shards)) as u16
}

/// Home shard of a broker: topics and groups are made here.
pub const HOME_SHARD: u16 = 0;

/// Contribution of one topic to a broker's route hash. The table's hash is the wrapping sum over its
/// topics, so that it can be kept up to date change by change, in any order.
#[allow(clippy::too_many_arguments)]
pub fn route_hash(
    name: &str,
    id: u32,
    version: u64,
    read_queues: u32,
    write_queues: u32,
    permission: u8,
    message_type: u8,
) -> u64 {
    let mut hash = fnv1a(name.as_bytes());
    let numbers = [u64::from(read_queues), u64::from(write_queues)];
    let small = [u64::from(permission), u64::from(message_type)];
    for value in [u64::from(id), version].into_iter().chain(numbers).chain(small) {
        hash = mix(hash.wrapping_add(value).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_of_a_topic_spread_evenly() {
        for topic in 1..100 {
            let mut counts = [0u32; 4];
            for queue in 0..16 {
                counts[usize::from(shard_of_queue(topic, queue, 4))] += 1;
            }
            assert_eq!(counts, [4; 4]);
        }
    }

    #[test]
    fn each_shard_has_one_queue_of_a_topic_with_as_many() {
        for (topic, shards) in (1..50).flat_map(|topic| (1..9).map(move |shards| (topic, shards))) {
            for shard in 0..shards {
                let queue = queue_on_shard(topic, shard, shards);
                assert!(queue < u32::from(shards));
                assert_eq!(shard_of_queue(topic, queue, shards), shard);
            }
        }
    }

    /// Other languages must come to the same numbers: these are in PROTOCOL.md.
    #[test]
    fn known_values() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"billing"), 0x4005_5702_95af_d25c);
        assert_eq!(mix(1), 0x5692_161d_100b_05e5);
        assert_eq!(shard_of_queue(1, 0, 4), 1);
        assert_eq!(shard_of_group("billing", 4), 0);
    }
}
