//! semantics.md, "topic", "queue", "wipe / add write permission": what a topic is keeps being so.
#![allow(clippy::unwrap_used)] // A failure here is the test's.

use ringmq::{Client, ErrorKind, Flush, Message, MessageType, Permission, Queue, TopicSpec};
use ringmq_schema::error::Status;
use ringmq_schema::placement::shard_of_queue;
use ringmq_schema::produce;
use ringmq_tests::server::{BrokerOptions, Process, namesrv};
use ringmq_tests::site::{Site, bounds, read_queues, read_topic, send_all, wait_for_brokers};
use ringmq_tests::wire::{Wire, run};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Messages of a topic with their number as body.
fn numbered(topic: &str, numbers: std::ops::Range<u64>) -> impl Iterator<Item = Message> {
    numbers.map(move |n| Message::new(topic, n.to_string()))
}

/// Numbers by queue, in the order in which they were consumed.
async fn numbers(client: &Client, topic: &str) -> BTreeMap<u32, Vec<u64>> {
    let number = |record: &ringmq::Record| std::str::from_utf8(record.body()).unwrap().parse();
    let read = read_topic(client, topic).await;
    let of = |(queue, records): (u32, Vec<ringmq::Record>)| {
        let offsets: Vec<u64> = records.iter().map(ringmq::Record::offset).collect();
        assert_eq!(offsets, (0..offsets.len() as u64).collect::<Vec<_>>(), "queue {queue}");
        (queue, records.iter().map(|record| number(record).unwrap()).collect())
    };
    read.into_iter().map(of).collect()
}

fn sum(numbers: &BTreeMap<u32, Vec<u64>>) -> BTreeSet<u64> {
    numbers.values().flatten().copied().collect()
}

#[test]
fn a_topic_is_as_it_was_made_also_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let types = [
        MessageType::Normal,
        MessageType::Fifo,
        MessageType::Delay,
        MessageType::Transaction,
        MessageType::Unspecified,
    ];
    let permissions =
        [Permission::ReadWrite, Permission::Read, Permission::Write, Permission::None];
    let spec = |n: usize| {
        TopicSpec::new(format!("topic-{n}"))
            .read_queues(n as u32 + 2)
            .write_queues(n as u32 + 1)
            .permission(permissions[n % 4])
            .message_type(types[n])
            .retention(Duration::from_secs(3600 * (n as u64 + 1)))
            .retention_bytes(n as u64 * 1000)
            .flush([Flush::Default, Flush::Sync, Flush::Async][n % 3])
            .on_broker("broker-a")
    };
    let check = async |client: Client| {
        for (n, message_type) in types.into_iter().enumerate() {
            let found = client.admin().describe_topic(&format!("topic-{n}")).await.unwrap();
            let found = &found[0];
            assert_eq!((found.read_queues, found.write_queues), (n as u32 + 2, n as u32 + 1));
            assert_eq!((found.permission, found.message_type), (permissions[n % 4], message_type));
            assert_eq!(found.retention, Some(Duration::from_secs(3600 * (n as u64 + 1))));
            assert_eq!(found.retention_bytes, n as u64 * 1000);
            assert_eq!(found.flush, [Flush::Default, Flush::Sync, Flush::Async][n % 3]);
        }
    };
    site.run(async |client| {
        for n in 0..types.len() {
            client.admin().create_topic(spec(n)).await.unwrap();
            // The same again is fine, another under its name is not.
            client.admin().create_topic(spec(n)).await.unwrap();
            let other = spec(n).retention_bytes(77);
            let error = client.admin().create_topic(other).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
        }
        check(client).await;
    });
    let site = site.kill_and_restart();
    site.run(check);
    site.end();
}

#[test]
fn a_topic_of_which_nobody_heard_is_not_made_by_sending_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        let producer = client.producer("sender").build().await.unwrap();
        let error = producer.send(Message::new("nowhere", "x")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert!(client.admin().topics("").await.unwrap().is_empty());
    });
    site.end();
}

#[test]
fn permissions_of_a_topic_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let spec = || TopicSpec::new("orders").queues(2);
    let id = site.run(async |client| {
        client.admin().create_topic(spec()).await.unwrap();
        let producer = client.producer("sender").build().await.unwrap();
        let _stored = send_all(&producer, numbered("orders", 0..100)).await;
        client.admin().describe_topic("orders").await.unwrap()[0].id
    });
    let mut wire = Wire::connect(site.broker().address(), 0).unwrap();
    let target = (id, 0, shard_of_queue(id, 0, wire.shards));
    let mut tried = |permission| {
        site.run(async |client| {
            client.admin().alter_topic(spec().permission(permission)).await.unwrap();
        });
        let records = run(id, 0, &[b"100".to_vec()]);
        wire.produce(target, &records, 1, produce::Flush::Sync).unwrap();
        let written = wire.receive().unwrap().status;
        let fetched = wire.fetch_queues(id, target.2, &[(0, 0)], 0).unwrap().remove(&0).unwrap();
        (written, fetched.status)
    };
    let (ok, not_read, not_written) = (Status::Ok, Status::NotReadable, Status::NotWritable);
    assert_eq!(tried(Permission::Read), (not_written, ok));
    assert_eq!(tried(Permission::Write), (ok, not_read));
    assert_eq!(tried(Permission::None), (not_written, not_read));
    assert_eq!(tried(Permission::ReadWrite), (ok, ok));
    site.run(async |client| {
        let all = sum(&numbers(&client, "orders").await);
        assert_eq!(all, (0..=100).collect(), "all that was taken is there");
    });
    site.end();
}

#[test]
fn a_topic_shrinks_and_grows_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let spec = |read, write| TopicSpec::new("orders").read_queues(read).write_queues(write);
    let site = {
        site.run(async |client| {
            let admin = client.admin();
            admin.create_topic(spec(6, 6)).await.unwrap();
            let producer = client.producer("sender").build().await.unwrap();
            let _stored = send_all(&producer, numbered("orders", 0..600)).await;
            assert_eq!(numbers(&client, "orders").await.len(), 6);
            // Fewer are written, all are read.
            admin.alter_topic(spec(6, 2)).await.unwrap();
            let producer = client.producer("sender").build().await.unwrap();
            let receipts = send_all(&producer, numbered("orders", 600..800)).await;
            assert!(receipts.iter().all(|receipt| receipt.queue.id < 2));
            assert_eq!(sum(&numbers(&client, "orders").await), (0..800).collect());
            // Read queues are lowered last.
            let error = admin.alter_topic(spec(1, 2)).await.unwrap_err();
            assert!(error.to_string().contains("lowered last"), "{error}");
            admin.alter_topic(spec(2, 2)).await.unwrap();
            assert_eq!(numbers(&client, "orders").await.len(), 2);
        });
        site.kill_and_restart()
    };
    site.run(async |client| {
        assert_eq!(numbers(&client, "orders").await.len(), 2);
        client.admin().alter_topic(spec(6, 6)).await.unwrap();
        let before = numbers(&client, "orders").await;
        assert_eq!(sum(&before), (0..800).collect(), "what was stored before is there");
        let producer = client.producer("sender").build().await.unwrap();
        let _stored = send_all(&producer, numbered("orders", 800..1400)).await;
        let after = numbers(&client, "orders").await;
        assert_eq!(sum(&after), (0..1400).collect());
        // Queues go on with the offset behind their last.
        assert!(before.iter().all(|(queue, numbers)| after[queue].starts_with(numbers)));
    });
    site.end();
}

#[test]
fn a_queue_is_strictly_in_order_with_offsets_from_0_without_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let sent = 3000;
    let send = async |client: &Client, range: std::ops::Range<u64>| {
        let producer = client.producer("sender").build().await.unwrap();
        let queues = producer.queues("orders").await.unwrap();
        let to = |message: Message, n: u64| message.queue(queues[n as usize % 4].clone());
        let messages = range.clone().zip(numbered("orders", range));
        let messages = messages.map(|(n, message)| (n, to(message, n)));
        let receipts = send_all(&producer, messages.map(|(_, message)| message)).await;
        let mut next: BTreeMap<u32, u64> = BTreeMap::new();
        for receipt in receipts {
            let before = next.insert(receipt.queue.id, receipt.offset + 1);
            assert_eq!(receipt.offset, before.unwrap_or(receipt.offset), "offsets have no gap");
        }
        next
    };
    let check = async |client: &Client, end: u64| {
        for (queue, numbers) in numbers(client, "orders").await {
            let expected = (0..end).filter(|n| n % 4 == u64::from(queue));
            assert_eq!(numbers, expected.collect::<Vec<_>>(), "queue {queue}");
        }
    };
    site.run(async |client| {
        client.admin().create_topic(TopicSpec::new("orders").queues(4)).await.unwrap();
        let ends = send(&client, 0..sent).await;
        assert_eq!(ends, (0..4).map(|queue| (queue, sent / 4)).collect());
        check(&client, sent).await;
    });
    let site = site.kill_and_restart();
    site.run(async |client| {
        check(&client, sent).await;
        let ends = send(&client, sent..2 * sent).await;
        assert_eq!(ends, (0..4).map(|queue| (queue, sent / 2)).collect());
        check(&client, 2 * sent).await;
    });
    site.end();
}

#[test]
fn a_topic_made_again_shows_nothing_of_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut site = Site::new(folder.path(), &[]);
    let mut ids = BTreeSet::new();
    for turn in 0..4u64 {
        let id = site.run(async |client| {
            let admin = client.admin();
            admin.create_topic(TopicSpec::new("orders").queues(3)).await.unwrap();
            let id = admin.describe_topic("orders").await.unwrap()[0].id;
            assert!(bounds(&client, "orders").await.values().all(|bounds| *bounds == (0, 0)));
            let producer = client.producer("sender").build().await.unwrap();
            let range = turn * 1000..turn * 1000 + 300;
            let receipts = send_all(&producer, numbered("orders", range.clone())).await;
            let firsts = receipts.iter().filter(|receipt| receipt.offset == 0).count();
            let queues: BTreeSet<u32> = receipts.iter().map(|receipt| receipt.queue.id).collect();
            assert_eq!(firsts, queues.len(), "each queue begins with 0");
            assert_eq!(sum(&numbers(&client, "orders").await), range.collect());
            id
        });
        assert!(ids.insert(id), "the number {id} was given before");
        // Made again before or behind a restart of either kind; the last stays.
        match turn {
            1 => site = site.kill_and_restart(),
            2 => site = site.stop_and_restart(),
            _ => {}
        }
        if turn < 3 {
            site.run(async |client| client.admin().delete_topic("orders").await.unwrap());
        }
        if turn == 0 {
            site = site.kill_and_restart();
        }
        // Nobody gets at the old one by its number.
        let mut wire = Wire::connect(site.broker().address(), 0).unwrap();
        for old in ids.iter().filter(|old| turn < 3 || **old != id) {
            let shard = shard_of_queue(*old, 0, wire.shards);
            let found = wire.fetch_queues(*old, shard, &[(0, 0)], 0).unwrap().remove(&0).unwrap();
            assert_eq!((found.status, found.bodies.len()), (Status::UnknownTopic, 0));
            let records = run(*old, 0, &[b"x".to_vec()]);
            wire.produce((*old, 0, shard), &records, 1, produce::Flush::Sync).unwrap();
            assert_eq!(wire.receive().unwrap().status, Status::UnknownTopic);
        }
    }
    site.run(async |client| {
        let all = sum(&numbers(&client, "orders").await);
        assert_eq!(all, (3000..3300).collect());
    });
    site.end();
}

/// semantics.md, "wipe / add write permission": per broker, to drain it; producers avoid it from then on.
#[test]
fn a_broker_without_write_permission_is_avoided_and_stays_readable() {
    let folder = tempfile::tempdir().unwrap();
    let namesrv = namesrv("names");
    let start = |name: &str| -> Process {
        let mut options = BrokerOptions::new(name, &folder.path().join(name));
        options.namesrv = vec![namesrv.address()];
        options.start()
    };
    let brokers = [start("broker-a"), start("broker-b")];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = namesrv.address().to_string();
    runtime.block_on(async {
        let client = Client::connect(address).await.unwrap();
        wait_for_brokers(&client, 2).await;
        let admin = client.admin();
        let spec = || TopicSpec::new("orders").queues(2);
        admin.create_topic(spec()).await.unwrap();
        let producer = client.producer("sender").build().await.unwrap();
        let count = async |n: u64| -> BTreeMap<String, u64> {
            let mut count = BTreeMap::new();
            for receipt in send_all(&producer, numbered("orders", n..n + 200)).await {
                *count.entry(receipt.broker().to_owned()).or_default() += 1;
            }
            count
        };
        assert_eq!(count(0).await.len(), 2, "both are used");
        admin.alter_topic(spec().permission(Permission::Read).on_broker("broker-a")).await.unwrap();
        // A producer that is there learns of it by the change of the route: nothing fails meanwhile.
        let mut of_a = 1;
        for n in 1..50 {
            of_a = count(n * 200).await.get("broker-a").copied().unwrap_or(0);
            if of_a == 0 {
                break;
            }
        }
        assert_eq!(of_a, 0, "it is avoided");
        let queues: Vec<(Queue, u64)> = bounds(&client, "orders")
            .await
            .into_iter()
            .filter(|(queue, _)| &*queue.broker == "broker-a")
            .map(|(queue, (_, end))| (queue, end))
            .collect();
        let there: u64 = queues.iter().map(|(_, end)| end).sum();
        let read = read_queues(&client, queues).await;
        assert_eq!(read.values().map(Vec::len).sum::<usize>() as u64, there);
        admin.alter_topic(spec().on_broker("broker-a")).await.unwrap();
        let mut is_used = false;
        for n in 50..100 {
            is_used = count(n * 200).await.contains_key("broker-a");
            if is_used {
                break;
            }
        }
        assert!(is_used, "and used again");
        client.shutdown(Duration::from_secs(10)).await.unwrap();
    });
    assert!(brokers.into_iter().all(|broker| broker.terminate() == Some(0)));
}

/// As RocketMQ's proxy has it: see the table at `MessageType`.
#[test]
fn a_topic_takes_messages_of_its_type_only() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        let producer = client.producer("sender").build().await.unwrap();
        let hour = Duration::from_secs(3600);
        // Plain, with a message group, delayed, both.
        for (message_type, takes) in [
            (MessageType::Unspecified, [true, true, true, true]),
            (MessageType::Normal, [true, true, false, false]),
            (MessageType::Fifo, [false, true, false, false]),
            (MessageType::Delay, [false, false, true, true]),
            (MessageType::Transaction, [true, true, false, false]),
        ] {
            let name = format!("of-{message_type}");
            let spec = TopicSpec::new(&name).queues(2).message_type(message_type);
            client.admin().create_topic(spec).await.unwrap();
            let plain = || Message::new(name.as_str(), "x");
            let delayed = || plain().deliver_after(hour);
            let messages = [plain(), plain().group("g"), delayed(), delayed().group("g")];
            for (number, (message, is_taken)) in messages.into_iter().zip(takes).enumerate() {
                let sent = producer.send(message).await;
                let Err(error) = sent else {
                    assert!(is_taken, "{message_type} took number {number}");
                    continue;
                };
                assert!(!is_taken, "{message_type}, number {number}: {error}");
                assert_eq!(error.kind(), ErrorKind::Invalid);
                assert_eq!(error.status(), Some(Status::WrongMessageType));
                let text = format!("topic {name} is of type {message_type}: its messages");
                assert!(error.to_string().contains(&text), "{error}");
            }
        }
        producer.close(Duration::from_secs(10)).await.unwrap();
    });
    site.end();
}
