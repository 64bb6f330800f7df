//! Who consumes what: a pure function of the members and of all queues of their topics.
//!
//! Rendezvous hashing with exact quotas: each member gets ⌊queues/members⌋ or one more, members come and go
//! with little movement, and all queues of one shard of one broker go to the same member as far as the
//! quotas allow, so that its fetches are long contiguous runs of that shard's log. Every broker computes the
//! same from the same members and routes (design.md, part 9).

use crate::peer::Member;
use ringmq_schema::placement::{fnv1a, mix, shard_of_queue};
use std::collections::BTreeMap;

/// A topic on one broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) topic_name: String,
    pub(crate) broker: String,
    /// Topic id there.
    pub(crate) topic: u32,
    pub(crate) shards: u16,
    pub(crate) queues: u32,
}

/// A queue anywhere in the cluster: index of its [`Placed`], number.
pub(crate) type Place = (usize, u32);

/// The owner of each queue. `placed` is sorted by topic name and broker, `members` sorted; nobody owns
/// anything when there are no members.
pub(crate) fn assign(placed: &[Placed], members: &[Member]) -> BTreeMap<Place, Member> {
    let mut owners = BTreeMap::new();
    if members.is_empty() {
        return owners;
    }
    let mut bundles: Vec<(u64, Vec<Place>)> = Vec::new();
    for (index, topic) in placed.iter().enumerate() {
        if topic.shards == 0 {
            continue;
        }
        let name = mix(fnv1a(topic.topic_name.as_bytes())) ^ fnv1a(topic.broker.as_bytes());
        let mut shards: BTreeMap<u16, Vec<Place>> = BTreeMap::new();
        for queue in 0..topic.queues {
            let shard = shard_of_queue(topic.topic, queue, topic.shards);
            shards.entry(shard).or_default().push((index, queue));
        }
        for (shard, queues) in shards {
            bundles.push((mix(name.wrapping_add(u64::from(shard) + 1)), queues));
        }
    }
    // Large bundles first: they are the hardest to keep together.
    bundles.sort_by(|a, b| (b.1.len(), a.0).cmp(&(a.1.len(), b.0)));
    let total: usize = bundles.iter().map(|(_, queues)| queues.len()).sum();
    let floor = total / members.len();
    let mut extra = total % members.len();
    let mut counts = vec![0usize; members.len()];
    let seeds: Vec<u64> =
        members.iter().map(|member| mix((*member >> 64) as u64 ^ mix(*member as u64))).collect();
    let mut ranked: Vec<usize> = Vec::with_capacity(members.len());
    for (hash, queues) in bundles {
        ranked.clear();
        ranked.extend(0..members.len());
        ranked.sort_by_key(|member| std::cmp::Reverse(mix(seeds[*member] ^ hash)));
        let mut queues = queues.into_iter();
        // First up to the floor in order of rank, then the odd ones.
        for beyond in [false, true] {
            for &member in &ranked {
                while counts[member] < floor || (beyond && counts[member] == floor && extra > 0) {
                    let Some(place) = queues.next() else { break };
                    extra -= usize::from(counts[member] == floor);
                    counts[member] += 1;
                    owners.insert(place, members[member]);
                }
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(brokers: u32, queues: u32, shards: u16) -> Vec<Placed> {
        (0..brokers)
            .map(|n| Placed {
                topic_name: "orders".to_owned(),
                broker: format!("broker-{n}"),
                topic: n + 1,
                shards,
                queues,
            })
            .collect()
    }

    fn members(count: u64) -> Vec<Member> {
        let mut members: Vec<Member> = (0..count)
            .map(|n| (u128::from(mix(n + 1)) << 64) | u128::from(mix(n + 1000)))
            .collect();
        members.sort_unstable();
        members
    }

    #[test]
    fn every_queue_has_one_owner_and_members_differ_by_one() {
        for (brokers, queues, count) in [(1, 8, 3), (3, 16, 5), (2, 7, 20), (1, 1, 1), (4, 64, 200)]
        {
            let owners = assign(&placed(brokers, queues, 4), &members(count));
            assert_eq!(owners.len() as u32, brokers * queues);
            let counts: Vec<usize> = members(count)
                .iter()
                .map(|member| owners.values().filter(|owner| *owner == member).count())
                .collect();
            let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(max - min <= 1, "{counts:?}");
        }
        assert!(assign(&placed(1, 8, 2), &[]).is_empty());
    }

    #[test]
    fn a_leaving_member_moves_little() {
        let (placed, all) = (placed(2, 32, 8), members(8));
        let before = assign(&placed, &all);
        let after = assign(&placed, &all[1..]);
        let moved = before
            .iter()
            .filter(|(place, owner)| **owner != all[0] && after[*place] != **owner)
            .count();
        // 8 of 64 must move because their owner is gone; few others.
        assert!(moved <= 24, "{moved}");
    }

    #[test]
    fn queues_of_a_shard_stay_together_where_balance_allows() {
        let owners = assign(&placed(1, 16, 4), &members(4));
        let mut together = 0;
        for shard in 0..4 {
            let mut of_shard: Vec<Member> = (0..16)
                .filter(|queue| shard_of_queue(1, *queue, 4) == shard)
                .map(|queue| owners[&(0, queue)])
                .collect();
            of_shard.dedup();
            together += usize::from(of_shard.len() == 1);
        }
        assert!(together >= 3, "{together}");
    }
}
