//! Who gets which queue, when, under which generation.

use super::*;

fn heartbeat(member: Member, known_version: u64, held: &[(QueueId, u32)]) -> Heartbeat {
    let topic = "t".to_owned();
    Heartbeat {
        group: "g".to_owned(),
        member,
        client: "test".to_owned(),
        model: 0,
        subscriptions: vec![Subscription { topic, kind: 0, expression: "*".to_owned() }],
        session_timeout_us: 10_000_000,
        known_version,
        wait_us: 3_000_000,
        held: held.iter().map(|(queue, _)| *queue).collect(),
        connection: 1,
        correlation: 1,
    }
}

fn placed() -> Vec<Placed> {
    vec![Placed {
        topic_name: "t".to_owned(),
        broker: "a".to_owned(),
        topic: 1,
        shards: 2,
        queues: 8,
    }]
}

/// Answers every assignment as the queue's shard would.
fn settle(group: &mut GroupState, now_us: u64) {
    loop {
        let asked = group.reconcile(now_us);
        if asked.is_empty() {
            return;
        }
        asked.iter().for_each(|ownership| group.assigned(ownership));
    }
}

fn beat(group: &mut GroupState, member: Member, now_us: u64) {
    let state = group.members.get(&member).map(|s| (s.version, s.queues.clone()));
    let (version, queues) = state.unwrap_or_default();
    let (changed, _) = group.heartbeat(&heartbeat(member, version, &queues), now_us, 10).unwrap();
    group.joining.cut_short();
    if changed {
        group.retarget(&placed(), "a");
    }
    settle(group, now_us);
}

#[test]
fn a_queue_moves_only_after_it_was_given_back() {
    let mut group = GroupState::new(1, 0, 0);
    beat(&mut group, 1, 0);
    assert_eq!(group.members[&1].queues.len(), 8);
    let before = group.members[&1].queues.clone();
    beat(&mut group, 2, 1);
    assert_eq!(group.members[&1].queues.len(), 4, "four are being taken away");
    assert!(group.members[&2].queues.is_empty(), "not given back yet");
    // A heartbeat that does not know the new answer yet gives nothing back.
    group.heartbeat(&heartbeat(1, 1, &before), 2, 10).unwrap();
    settle(&mut group, 2);
    assert!(group.members[&2].queues.is_empty());
    beat(&mut group, 1, 3);
    assert_eq!(group.members[&2].queues.len(), 4);
    assert!(group.members[&2].queues.iter().all(|(_, generation)| *generation == 2));
}

#[test]
fn a_silent_owner_loses_its_queues_after_the_session_timeout() {
    let mut group = GroupState::new(1, 0, 0);
    beat(&mut group, 1, 0);
    beat(&mut group, 2, 1);
    settle(&mut group, 9_000_000);
    assert!(group.members[&2].queues.is_empty());
    group.connection_closed(1, 0);
    assert_eq!(group.expired(10_000_002), [1, 2]);
    group.leave(1);
    group.retarget(&placed(), "a");
    settle(&mut group, 10_000_002);
    assert_eq!(group.members[&2].queues.len(), 8);
}

#[test]
fn owners_from_before_a_restart_keep_their_queues() {
    let mut group = GroupState::new(1, 1 << 32, 10_000_000);
    for queue in 0..8 {
        let queue = QueueId { topic: 1, queue };
        group.owned(&Ownership { group: 1, queue, member: 7, generation: 5 });
    }
    beat(&mut group, 8, 0);
    assert!(group.members[&8].queues.is_empty(), "member 7 may come back");
    beat(&mut group, 7, 1);
    assert_eq!(group.members[&7].queues.len(), 4);
    assert!(group.members[&7].queues.iter().all(|(_, generation)| *generation == 5));
    group.leave(7);
    group.retarget(&placed(), "a");
    settle(&mut group, 2);
    assert_eq!(group.members[&8].queues.len(), 8, "7 came back and left: nobody waits for it");
    let mut group = GroupState::new(1, 1 << 32, 10_000_000);
    let queue = QueueId { topic: 1, queue: 0 };
    group.owned(&Ownership { group: 1, queue, member: 7, generation: 5 });
    beat(&mut group, 8, 10_000_001);
    assert_eq!(group.members[&8].queues.len(), 8, "it did not");
    assert_eq!(group.members[&8].queues[0].1, 6);
}

#[test]
fn two_hundred_members_that_join_within_a_second_move_each_queue_twice_at_most() {
    let topic = |name: &str, broker: &str, topic, queues| {
        let (topic_name, broker) = (name.to_owned(), broker.to_owned());
        Placed { topic_name, broker, topic, shards: 4, queues }
    };
    let placed = [topic("t", "a", 1, 300), topic("t", "b", 8, 100), topic("u", "a", 2, 500)];
    let mut group = GroupState::new(1, 0, 0);
    let (mut now_us, mut settled_us) = (0, 0);
    for step in 0..400u64 {
        now_us = step * 10_000;
        // Every 10 ms two members join, for a second; whoever is in says what it holds.
        let joins = if step < 100 { 2 * step + 1..2 * step + 3 } else { 0..0 };
        let there: Vec<Member> = group.members.keys().copied().collect();
        for member in joins.map(Member::from).chain(there) {
            let state = group.members.get(&member);
            let (version, held) = state.map(|s| (s.version, s.queues.clone())).unwrap_or_default();
            let beat = heartbeat(member, version, &held);
            let (joined, _) = group.heartbeat(&beat, now_us, 1000).unwrap();
            if joined && !group.joining.is_under_way() {
                group.retarget(&placed, "a");
            }
        }
        // As often as the shard looks.
        if step % 10 == 0 && group.joining.end(now_us) {
            group.retarget(&placed, "a");
        }
        let before: Vec<_> = group.members.values().map(|s| s.queues.clone()).collect();
        settle(&mut group, now_us);
        if before != group.members.values().map(|s| s.queues.clone()).collect::<Vec<_>>() {
            settled_us = now_us;
        }
    }
    let generations = group.owners.values().map(|owner| owner.generation);
    let moves = generations.max().unwrap() - 1;
    println!("200 members: settled after {} ms, {moves} moves at most", settled_us / 1000);
    assert!(moves <= 2, "{moves}");
    assert!(settled_us < 3_000_000 && now_us > 3_000_000);
    assert_eq!(group.members.values().map(|s| s.queues.len()).sum::<usize>(), 800);
    // 900 queues with those of broker b: 4 or 5 each.
    let all = assign(&placed, &group.members.keys().copied().collect::<Vec<_>>());
    for member in group.members.keys() {
        let count = all.values().filter(|owner| *owner == member).count();
        assert!((4..=5).contains(&count), "{count}");
    }
}

#[test]
fn members_must_subscribe_alike() {
    let mut group = GroupState::new(1, 0, 0);
    beat(&mut group, 1, 0);
    let mut other = heartbeat(2, 0, &[]);
    other.subscriptions[0].expression = "paid".to_owned();
    let Err(Refused::Mismatch(text)) = group.heartbeat(&other, 0, 10) else { panic!() };
    assert!(text.contains("paid") && text.contains('*'), "{text}");
    let third = heartbeat(3, 0, &[]);
    assert_eq!(group.heartbeat(&third, 0, 1), Err(Refused::TooManyMembers(1)));
}
