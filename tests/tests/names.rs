//! semantics.md, "names": what topics and groups may be called; anything else is refused before it reaches disk.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq::{ErrorKind, Filter, Message, TopicSpec};
use ringmq_schema::admin::{CreateGroup, CreateGroupArgs};
use ringmq_schema::consume::{GroupHeartbeat, GroupHeartbeatArgs, MemberId};
use ringmq_schema::error::Status;
use ringmq_schema::frame::ANY_SHARD;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement::shard_of_group;
use ringmq_tests::site::Site;
use ringmq_tests::wire::{Answer, Wire};
use std::path::Path;
use std::time::Duration;

/// Part of every name that is refused here, and of none that is taken.
const MARK: &str = "unfit";

/// Names, and what the refusal says of them.
fn unfit() -> Vec<(String, &'static str)> {
    let with = |text: &str| format!("{MARK}{text}");
    vec![
        (with(" "), "' '"),
        (with("/../x"), "'/'"),
        (with("."), "'.'"),
        (with("ä"), "'ä'"),
        (with("\0"), "'\\0'"),
        (with("\n"), "'\\n'"),
    ]
}

fn create_group(wire: &mut Wire, name: &str) -> Answer {
    let answer = wire.call(Opcode::CreateGroup, ANY_SHARD, &[], |fbb| {
        let name = Some(fbb.create_string(name));
        CreateGroup::create(fbb, &CreateGroupArgs { name, settings: None })
    });
    answer.unwrap()
}

/// A group that is made on first use.
fn join_group(wire: &mut Wire, name: &str) -> Answer {
    let shard = shard_of_group(name, wire.shards);
    let answer = wire.call(Opcode::GroupHeartbeat, shard, &[], |fbb| {
        let (group, member) = (Some(fbb.create_string(name)), MemberId::new(1, 2));
        let args =
            GroupHeartbeatArgs { group, member: Some(&member), ..GroupHeartbeatArgs::default() };
        GroupHeartbeat::create(fbb, &args)
    });
    answer.unwrap()
}

/// Whether any file of a folder holds these bytes.
fn lies_on_disk(folder: &Path, mark: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => lies_on_disk(&path, mark),
            false => std::fs::read(&path).unwrap().windows(mark.len()).any(|bytes| bytes == mark),
        }
    })
}

#[test]
fn names_outside_the_rules_are_refused_by_client_and_broker_before_they_reach_disk() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let mut wire = Wire::connect(site.broker().address(), ANY_SHARD).unwrap();
    let mut names = unfit();
    let filled = |length: usize| format!("{MARK}{}", "x".repeat(length - MARK.len()));
    names.push((filled(128), "127"));
    for (name, word) in &names {
        let error = wire.create_topic(name, 1).unwrap_err().to_string();
        assert!(error.contains("BadName") && error.contains(word), "{error}");
    }
    names.last_mut().unwrap().0 = filled(121);
    names.last_mut().unwrap().1 = "120";
    for (name, word) in &names {
        for answer in [create_group(&mut wire, name), join_group(&mut wire, name)] {
            let text = answer.refusal();
            assert!(answer.status == Status::BadName && text.contains(word), "{text}");
        }
    }
    site.run(async |client| {
        let producer = client.producer("namer").build().await.unwrap();
        for (name, word) in &names {
            let is_said = |error: ringmq::Error| {
                let says = error.to_string().contains(word) || word.parse::<u32>().is_ok();
                assert!(error.kind() == ErrorKind::Invalid && says, "{error}");
            };
            let group = name;
            is_said(client.admin().create_group(group).await.unwrap_err());
            let push = client.push_consumer(group).subscribe("orders", Filter::all());
            is_said(push.listen(|_| async { Ok::<(), String>(()) }).await.err().unwrap());
            let pull = client.pull_consumer(group).subscribe("orders", Filter::all());
            is_said(pull.build().await.err().unwrap());
            let topic = if *word == "120" { filled(128) } else { name.clone() };
            is_said(client.admin().create_topic(TopicSpec::new(&topic)).await.unwrap_err());
            is_said(producer.send(Message::new(topic, "x")).await.unwrap_err());
        }
        assert!(client.admin().topics("").await.unwrap().is_empty());
        assert!(client.admin().groups("").await.unwrap().is_empty());
    });
    let data = site.options.data_dir.clone();
    site.end();
    assert!(!lies_on_disk(&data, MARK.as_bytes()));
}

#[test]
fn reserved_names_are_the_systems() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let mut wire = Wire::connect(site.broker().address(), ANY_SHARD).unwrap();
    for name in ["%RETRY%unfit", "%DLQ%unfit", "RMQ_SYS_unfit"] {
        let error = wire.create_topic(name, 1).unwrap_err().to_string();
        assert!(error.contains("BadName") && error.contains("reserved"), "{error}");
        for answer in [create_group(&mut wire, name), join_group(&mut wire, name)] {
            let text = answer.refusal();
            assert!(answer.status == Status::BadName && text.contains("reserved"), "{text}");
        }
        site.run(async |client| {
            let error = client.admin().create_topic(TopicSpec::new(name)).await.unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid, "{error}");
            let error = client.admin().create_group(name).await.unwrap_err();
            assert!(error.kind() == ErrorKind::Invalid, "{error}");
            let push = client.push_consumer(name).subscribe("orders", Filter::all());
            let error = push.listen(|_| async { Ok::<(), String>(()) }).await.err().unwrap();
            assert!(error.kind() == ErrorKind::Invalid, "{error}");
        });
    }
    let data = site.options.data_dir.clone();
    site.end();
    assert!(!lies_on_disk(&data, MARK.as_bytes()));
}

#[test]
fn the_longest_names_with_every_allowed_character_work() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let filled = |length: usize| -> String { "%aZ9_-|".chars().cycle().take(length).collect() };
    let (topic, group) = (filled(127), filled(120));
    let site = {
        site.run(async |client| {
            client.admin().create_topic(TopicSpec::new(&topic).queues(1)).await.unwrap();
            client.admin().create_group(&group).await.unwrap();
            let producer = client.producer("namer").build().await.unwrap();
            let receipt = producer.send(Message::new(topic.as_str(), "x")).await.unwrap();
            assert_eq!((&*receipt.queue.topic, receipt.offset), (topic.as_str(), 0));
        });
        site.kill_and_restart()
    };
    site.run(async |client| {
        assert_eq!(client.admin().topics("").await.unwrap(), [topic.as_str()]);
        assert_eq!(client.admin().groups("").await.unwrap(), [group.as_str()]);
        let pull = client.pull_consumer(&group).from(ringmq::ConsumeFrom::First);
        let mut pull = pull.subscribe(&topic, Filter::all()).build().await.unwrap();
        let records = pull.poll(Duration::from_secs(30)).await.unwrap();
        assert_eq!(records.iter().map(ringmq::Record::topic).collect::<Vec<_>>(), [&topic]);
        pull.close(Duration::from_secs(10)).await.unwrap();
    });
    site.end();
}
