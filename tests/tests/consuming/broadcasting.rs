//! Every member gets every message; offsets lie in a file.

use super::{CLOSING, Seen, numbered, send, topic, until};
use ringmq::{Client, ConsumeFrom, ErrorKind, Filter, GroupSpec, PushConsumer};
use ringmq_tests::site::Site;
use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

/// A broadcasting member.
async fn listener(client: &Client, file: &Path, from: ConsumeFrom, seen: &Seen) -> PushConsumer {
    let into = seen.clone();
    let consumer = client.push_consumer("news").subscribe("orders", Filter::all());
    let consumer = consumer.broadcasting().offsets_file(file).from(from).listen(move |record| {
        into.add(&record);
        async { Ok::<(), Infallible>(()) }
    });
    let consumer = consumer.await.unwrap();
    until("it has all queues", async || consumer.queues().len() == 4).await;
    consumer
}

#[test]
fn broadcasting_gives_every_member_every_message_and_keeps_offsets_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let files: Vec<_> = (0..3).map(|n| folder.path().join(format!("member-{n}"))).collect();
    site.run(async |client| {
        topic(&client, "orders", 4).await;
        send(&client, "orders", numbered(0..100)).await;
        let seen = [Seen::default(), Seen::default(), Seen::default()];
        let first = listener(&client, &files[0], ConsumeFrom::First, &seen[0]).await;
        let second = listener(&client, &files[1], ConsumeFrom::First, &seen[1]).await;
        // A new member starts as it says.
        let late = listener(&client, &files[2], ConsumeFrom::Last, &seen[2]).await;
        send(&client, "orders", numbered(100..150)).await;
        until("everybody has everything", async || {
            seen[0].all().len() >= 150 && seen[1].all().len() >= 150 && seen[2].all().len() >= 50
        })
        .await;
        assert_eq!(seen[0].bodies(), numbered(0..150).collect::<Vec<_>>());
        assert_eq!(seen[0].bodies(), seen[1].bodies());
        assert_eq!(seen[2].bodies(), numbered(100..150).collect::<Vec<_>>());

        // One file, one consumer.
        let builder = client.push_consumer("news").subscribe("orders", Filter::all());
        let builder = builder.broadcasting().offsets_file(&files[0]);
        let taken = builder.listen(|_| async { Ok::<(), Infallible>(()) }).await;
        assert_eq!(taken.err().unwrap().kind(), ErrorKind::Exists);
        // A group is of one model.
        let builder = client.push_consumer("news").subscribe("orders", Filter::all());
        let mixed = builder.listen(|_| async { Ok::<(), Infallible>(()) }).await;
        assert_eq!(mixed.err().unwrap().kind(), ErrorKind::SubscriptionMismatch);

        first.close(CLOSING).await.unwrap();
        second.close(CLOSING).await.unwrap();
        late.close(CLOSING).await.unwrap();
        send(&client, "orders", numbered(150..160)).await;
        // The file of the second is damaged: it begins as a new one.
        let mut bytes = std::fs::read(&files[1]).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        std::fs::write(&files[1], &bytes).unwrap();
        seen.iter().for_each(Seen::clear);
        let first = listener(&client, &files[0], ConsumeFrom::First, &seen[0]).await;
        let second = listener(&client, &files[1], ConsumeFrom::First, &seen[1]).await;
        until("they go on", async || seen[0].all().len() >= 10 && seen[1].all().len() >= 160).await;
        assert_eq!(seen[0].bodies(), numbered(150..160).collect::<Vec<_>>());
        assert!(folder.path().join("member-1.damaged").exists());
        first.close(CLOSING).await.unwrap();
        second.close(CLOSING).await.unwrap();
    });
    site.end();
}

#[test]
fn a_broadcasting_member_tries_a_failed_message_again_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    let file = folder.path().join("offsets");
    site.run(async |client| {
        topic(&client, "orders", 4).await;
        client.admin().create_group(GroupSpec::new("news").max_attempts(3)).await.unwrap();
        let seen = Seen::default();
        let into = seen.clone();
        let consumer = client.push_consumer("news").subscribe("orders", Filter::all());
        let consumer = consumer.broadcasting().offsets_file(&file).from(ConsumeFrom::First);
        let consumer = consumer.orderly_pause(Duration::from_millis(10)).listen(move |record| {
            into.add(&record);
            let fails = record.body() == b"00003";
            async move { if fails { Err("not today") } else { Ok(()) } }
        });
        let consumer = consumer.await.unwrap();
        send(&client, "orders", numbered(0..10)).await;
        until("all came, and one thrice", async || seen.all().len() >= 12).await;
        let failed = seen.bodies().iter().filter(|body| *body == "00003").count();
        assert_eq!(failed, 3);
        consumer.close(CLOSING).await.unwrap();
        let retry = client.admin().topic_stats("%RETRY%news").await.unwrap_or_default();
        assert!(retry.iter().all(|queue| queue.max_offset == 0), "nobody else gets it again");
    });
    site.end();
}
