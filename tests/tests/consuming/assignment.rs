//! Who has which queue, and how often it moves.

use super::{CLOSING, Seen, member, topic, until};
use ringmq::{Client, Filter};
use ringmq_tests::site::Site;
use std::convert::Infallible;
use std::time::{Duration, Instant};

#[test]
fn two_hundred_members_settle_and_few_queues_move() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        for name in ["orders", "refunds"] {
            topic(&client, name, 150).await;
        }
        let joining = (0..200).map(|_| {
            let builder = client.push_consumer("billing").subscribe("orders", Filter::all());
            builder.subscribe("refunds", Filter::all()).listen(|_| async { Ok::<(), Infallible>(()) })
        });
        let begun = Instant::now();
        let members = futures_util::future::try_join_all(joining).await.unwrap();
        let joined = begun.elapsed();
        let counts = || members.iter().map(|m| m.queues().len()).collect::<Vec<_>>();
        until("everybody has one queue or two", async || {
            counts().iter().all(|count| (1..=2).contains(count)) && counts().iter().sum::<usize>() == 300
        })
        .await;
        let settled = begun.elapsed();
        let group = client.admin().describe_group("billing").await.unwrap();
        let owned = group.members.iter().flat_map(|member| &member.queues);
        let generations = owned.filter(|owned| !owned.queue.topic.starts_with('%'));
        let moves = generations.map(|owned| owned.generation - 1).max().unwrap();
        ringmq_tests::say(format_args!(
            "200 members: joined within {joined:?}, settled after {settled:?}, {moves} moves at most"
        ));
        assert!(moves <= 2, "{moves}");
        for member in &members {
            member.close(CLOSING).await.unwrap();
        }
    });
    site.end();
}

#[test]
fn queues_stay_with_who_comes_back_and_go_from_who_leaves_or_dies() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::new(folder.path(), &[]);
    site.run(async |client| {
        topic(&client, "orders", 4).await;
        let seen = Seen::default();
        let first = member(&client, "billing", "orders", &seen).await;
        until("it has all", async || first.queues().len() == 4).await;
        let second = Client::connect(site.namesrv()).await.unwrap();
        let other = member(&second, "billing", "orders", &seen).await;
        // Queues of the retry topic count as well: three of six each.
        let shares = || !first.queues().is_empty() && first.queues().len() <= 3;
        until("they share", async || shares() && first.queues().len() + other.queues().len() == 4)
            .await;

        // A clean stop moves them at once.
        let begun = Instant::now();
        other.close(CLOSING).await.unwrap();
        until("the first has all again", async || first.queues().len() == 4).await;
        let stopped = begun.elapsed();
        assert!(stopped < Duration::from_secs(5), "not only after the session: {stopped:?}");

        // A process that dies says nothing: its session has to end.
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_ringmq-test-consumer"))
            .args([&site.namesrv(), "billing", "orders", "concurrent", "0"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        until("they share", async || shares()).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let begun = Instant::now();
        until("the first has all again", async || first.queues().len() == 4).await;
        let died = begun.elapsed();
        assert!(died > Duration::from_secs(5), "a session lasts: {died:?}");
        ringmq_tests::say(format_args!(
            "queues are with another member {stopped:?} after a clean stop, {died:?} after a death"
        ));
        first.close(CLOSING).await.unwrap();
        second.shutdown(CLOSING).await.unwrap();
    });

    // A broker that is killed and comes back: the member reconnects and keeps its queues under their generations.
    let generations = async |client: &Client| {
        // While the broker is away there is none.
        let group = client.admin().describe_group("billing").await;
        let members = group.map_or_else(|_| Vec::new(), |group| group.members);
        let owned = members.into_iter().flat_map(|member| member.queues);
        let mut all: Vec<_> = owned.map(|owned| (owned.queue, owned.generation)).collect();
        all.retain(|(queue, _)| !queue.topic.starts_with('%'));
        all.sort();
        all
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(Client::connect(site.namesrv())).unwrap();
    let seen = Seen::default();
    let consumer = runtime.block_on(member(&client, "billing", "orders", &seen));
    let before = runtime.block_on(async {
        until("it has all", async || consumer.queues().len() == 4).await;
        generations(&client).await
    });
    let site = site.kill_with_damage(|| {});
    runtime.block_on(async {
        let mut after = Vec::new();
        until("it is back", async || {
            after = generations(&client).await;
            after.len() == 4
        })
        .await;
        assert_eq!(after, before);
        client.shutdown(CLOSING).await.unwrap();
    });
    site.end();
}
