//! Messages that are sent back: to whom they belong, when they come again, and where they end; settings of groups.

#![allow(clippy::unwrap_used)] // A failure here is the test's.

mod desk;

use desk::{Answer, Desk, Files, config};
use ringmq_core::{Input, ShardConfig};
use ringmq_schema::admin::{
    self, AlterGroup, AlterGroupArgs, CreateGroup, CreateGroupArgs, DeleteGroup, DeleteGroupArgs,
    DescribeTopic, DescribeTopicArgs, GroupAnswer, GroupSettings, GroupSettingsArgs,
};
use ringmq_schema::build::{MessageSpec, Origin, RecordBuilder};
use ringmq_schema::consume::{
    CommitEntry, CommitOffsets, CommitOffsetsAnswer, CommitOffsetsArgs, Fetch, FetchAnswer,
    FetchArgs, FetchQueue, FetchedQueue, GroupHeartbeat, GroupHeartbeatAnswer, GroupHeartbeatArgs,
    MemberId, Subscription, SubscriptionArgs,
};
use ringmq_schema::error::Status;
use ringmq_schema::frame::read_table;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::produce::Flush;
use ringmq_schema::record::{RecordHeader, records};
use ringmq_schema::retry::{RetryLater, RetryLaterAnswer, RetryLaterArgs};

const MEMBER: (u64, u64) = (7, 7);
const ID: [u8; 16] = [9; 16];
const BORN_MS: i64 = 1_600_000_000_000;

/// A desk with a topic of one queue, a message in it, and a member of a group that owns the queue.
struct World {
    desk: Desk,
    topic: u32,
    group: u32,
    generation: u32,
}

fn settings(pauses_ms: &[u64], max_attempts: u16, consume_enabled: bool) -> (Vec<u64>, u16, bool) {
    (pauses_ms.to_vec(), max_attempts, consume_enabled)
}

fn create_group(
    desk: &mut Desk,
    (pauses, max_attempts, consume_enabled): (Vec<u64>, u16, bool),
) -> Answer {
    desk.call(Opcode::CreateGroup, &[], |fbb| {
        let name = Some(fbb.create_string("billing"));
        let retry_delays_ms = Some(fbb.create_vector(&pauses));
        let args = GroupSettingsArgs {
            retry_delays_ms,
            max_attempts,
            consume_enabled,
            ..Default::default()
        };
        let settings = Some(GroupSettings::create(fbb, &args));
        CreateGroup::create(fbb, &CreateGroupArgs { name, settings })
    })
}

fn alter_group(
    desk: &mut Desk,
    (pauses, max_attempts, consume_enabled): (Vec<u64>, u16, bool),
) -> Answer {
    desk.call(Opcode::AlterGroup, &[], |fbb| {
        let name = Some(fbb.create_string("billing"));
        let retry_delays_ms = Some(fbb.create_vector(&pauses));
        let args = GroupSettingsArgs {
            retry_delays_ms,
            max_attempts,
            consume_enabled,
            ..Default::default()
        };
        let settings = Some(GroupSettings::create(fbb, &args));
        AlterGroup::create(fbb, &AlterGroupArgs { name, settings })
    })
}

/// What the group's settings are: asking for the group says so.
fn settings_of(desk: &mut Desk) -> (Vec<u64>, u16, bool) {
    let answer = desk.call(Opcode::CreateGroup, &[], |fbb| {
        let name = Some(fbb.create_string("billing"));
        CreateGroup::create(fbb, &CreateGroupArgs { name, settings: None })
    });
    let answer = read_table::<GroupAnswer<'_>>(&answer.table).unwrap();
    let settings = answer.group().unwrap().settings().unwrap();
    let pauses: Vec<u64> = settings.retry_delays_ms().into_iter().flatten().collect();
    (pauses, settings.max_attempts(), settings.consume_enabled())
}

/// A heartbeat with a subscription to these; the group, and the generation of each queue that is owned.
fn join(desk: &mut Desk, topics: &[&str]) -> (u32, Vec<(u32, u32)>) {
    let answer = desk.call(Opcode::GroupHeartbeat, &[], |fbb| {
        let subscriptions: Vec<_> = topics
            .iter()
            .map(|topic| {
                let topic = Some(fbb.create_string(topic));
                Subscription::create(fbb, &SubscriptionArgs { topic, ..Default::default() })
            })
            .collect();
        let args = GroupHeartbeatArgs {
            group: Some(fbb.create_string("billing")),
            member: Some(&MemberId::new(MEMBER.0, MEMBER.1)),
            subscriptions: Some(fbb.create_vector(&subscriptions)),
            ..Default::default()
        };
        GroupHeartbeat::create(fbb, &args)
    });
    assert_eq!(answer.status, Status::Ok, "{:?}", answer.table);
    let answer = read_table::<GroupHeartbeatAnswer<'_>>(&answer.table).unwrap();
    let queues = answer.queues().into_iter().flatten();
    (answer.group(), queues.map(|queue| (queue.topic(), queue.generation())).collect())
}

/// A message as a consumer sends it back.
fn returned(topic: u32) -> Vec<u8> {
    let mut run = Vec::new();
    let spec = MessageSpec {
        body: b"hello",
        tag: Some("paid"),
        born_ms: BORN_MS,
        message_id: ID,
        origin: Some(Origin { topic: "orders", queue: 0, offset: 0 }),
        last_error: Some("no connection to the bank"),
        ..MessageSpec::default()
    };
    RecordBuilder::new().append(&mut run, topic, 0, &spec).unwrap();
    run
}

impl World {
    fn new(given: (Vec<u64>, u16, bool)) -> World {
        let mut desk = Desk::open(config(), Files::default());
        assert_eq!(create_group(&mut desk, given).status, Status::Ok);
        let topic = desk.create_topic("orders", 1);
        let sent = desk.produce(topic, 0, &desk::run(topic, 0, 0, 1, 16), 1, Flush::Sync);
        desk.handle(Input::TurnEnd);
        assert_eq!(desk.take(sent).unwrap().status, Status::Ok);
        join(&mut desk, &["orders"]);
        let (group, owned) = join(&mut desk, &["orders"]);
        let [(_, generation)] = owned[..] else { panic!("it owns the queue, not {owned:?}") };
        World { desk, topic, group, generation }
    }

    fn args(&self, attempts: u16) -> RetryLaterArgs {
        RetryLaterArgs {
            group: self.group,
            member_high: MEMBER.0,
            member_low: MEMBER.1,
            generation: self.generation,
            topic: self.topic,
            queue: 0,
            offset: 0,
            attempts,
            delay_ms: 0,
            dead_letter: false,
        }
    }

    fn retry(&mut self, args: &RetryLaterArgs) -> Answer {
        let run = returned(self.topic);
        self.desk.call(Opcode::RetryLater, &run, |fbb| RetryLater::create(fbb, args))
    }

    /// Sends it back until the topic it goes to is there: whether it is a dead letter, and when it comes again.
    fn retry_well(&mut self, args: &RetryLaterArgs) -> (bool, i64) {
        let mut answer = self.retry(args);
        if answer.status == Status::NotReady {
            answer = self.retry(args);
        }
        assert_eq!(answer.status, Status::Ok, "{:?}", String::from_utf8_lossy(&answer.table));
        let answer = read_table::<RetryLaterAnswer<'_>>(&answer.table).unwrap();
        (answer.dead_lettered(), answer.deliver_ms())
    }

    fn topic_id(&mut self, name: &str) -> Option<u32> {
        let answer = self.desk.call(Opcode::DescribeTopic, &[], |fbb| {
            let name = Some(fbb.create_string(name));
            DescribeTopic::create(fbb, &DescribeTopicArgs { name })
        });
        let answered = || read_table::<admin::TopicAnswer<'_>>(&answer.table).unwrap();
        (answer.status == Status::Ok).then(|| answered().topic().unwrap().id())
    }

    /// The records of a queue of the group's own topics, checked.
    fn read(&mut self, name: &str) -> Vec<RecordHeader> {
        let topic = self.topic_id(name).expect("the topic is there");
        let fetch = self.desk.fetch(&[FetchQueue::new(topic, 0, 0, 0, 0, 0)], 0);
        let run = self.desk.take(fetch).expect("answered at once").run;
        let checked = records(&run).map(|found| {
            let found = found.unwrap();
            found.check_header().unwrap();
            found.check_payload().unwrap();
            let message = found.message().unwrap();
            assert_eq!(message.body().unwrap().bytes(), b"hello");
            assert_eq!(message.origin_topic(), Some("orders"));
            assert_eq!(message.last_error(), Some("no connection to the bank"));
            assert_eq!((found.header.message_id, found.header.born_ms.get()), (ID, BORN_MS));
            *found.header
        });
        checked.collect()
    }
}

#[test]
fn only_the_owner_of_the_queue_sends_its_messages_back() {
    let mut world = World::new(settings(&[100], 3, true));
    let good = world.args(1);
    let strangers = [
        RetryLaterArgs { member_low: 8, ..good },
        RetryLaterArgs { generation: good.generation + 1, ..good },
        RetryLaterArgs { generation: 0, ..good },
    ];
    for args in strangers {
        assert_eq!(world.retry(&args).status, Status::Fenced, "promise: one-owner");
    }
    for (args, status) in [
        (RetryLaterArgs { offset: 1, ..good }, Status::OffsetOutOfRange),
        (RetryLaterArgs { group: 99, ..good }, Status::UnknownGroup),
        (RetryLaterArgs { queue: 1, ..good }, Status::UnknownQueue),
        (RetryLaterArgs { delay_ms: u64::MAX, ..good }, Status::BadRequest),
    ] {
        assert_eq!(world.retry(&args).status, status);
    }
    assert_eq!(world.topic_id("%RETRY%billing"), None, "nothing was to be kept");
    let (dead_lettered, _) = world.retry_well(&good);
    assert!(!dead_lettered);
    assert_eq!(world.desk.shard.figures().timers_pending, 1);
}

#[test]
fn the_pause_grows_with_the_attempts_and_the_last_is_followed_by_the_dead_letters() {
    let mut world = World::new(settings(&[100, 250], 4, true));
    let begun = world.desk.now.wall_ms;
    assert_eq!(world.retry_well(&world.args(1)), (false, begun + 100));
    assert_eq!(world.retry_well(&world.args(2)), (false, begun + 250));
    assert_eq!(world.retry_well(&world.args(3)), (false, begun + 250), "the last pause holds");
    let given = RetryLaterArgs { delay_ms: 40, ..world.args(3) };
    assert_eq!(world.retry_well(&given), (false, begun + 40));
    assert_eq!(world.retry_well(&world.args(4)), (true, 0));
    let at_once = RetryLaterArgs { dead_letter: true, ..world.args(1) };
    assert_eq!(world.retry_well(&at_once), (true, 0));
    let attempts = |all: Vec<RecordHeader>| -> Vec<u16> {
        all.iter().map(|header| header.attempts.get()).collect()
    };
    assert_eq!(attempts(world.read("%DLQ%billing")), [4, 1]);
    for (advance_ms, expected) in
        [(39, &[][..]), (1, &[3]), (59, &[3]), (1, &[3, 1]), (149, &[3, 1]), (1, &[3, 1, 2, 3])]
    {
        world.desk.advance(advance_ms);
        // promise: never-early
        assert_eq!(attempts(world.read("%RETRY%billing")), expected);
    }
}

#[test]
fn what_was_sent_back_survives_a_crash_and_is_delivered_once() {
    let mut world = World::new(settings(&[5_000], 3, true));
    world.retry_well(&world.args(1));
    let files = world.desk.files.deep_copy();
    let World { topic, group, generation, .. } = world;
    let desk = Desk::open(config(), files);
    let mut world = World { desk, topic, group, generation };
    assert_eq!(settings_of(&mut world.desk), settings(&[5_000], 3, true));
    assert!(world.read("%RETRY%billing").is_empty());
    world.desk.advance(5_000);
    let delivered = world.read("%RETRY%billing");
    assert_eq!(delivered.len(), 1);
    assert_eq!(delivered[0].attempts.get(), 1);
    // The owner from before is still the owner.
    world.retry_well(&world.args(2));
    world.desk.advance(5_000);
    assert_eq!(world.read("%RETRY%billing").len(), 2);
}

#[test]
fn settings_of_a_group_survive_restart_and_snapshot() {
    let small = || ShardConfig { snapshot_bytes: 1, snapshot_pause_ms: 0, ..config() };
    let mut desk = Desk::open(small(), Files::default());
    assert_eq!(create_group(&mut desk, settings(&[10, 20], 2, true)).status, Status::Ok);
    assert_eq!(create_group(&mut desk, settings(&[10, 20], 2, true)).status, Status::Ok);
    let other = create_group(&mut desk, settings(&[10], 2, true));
    assert_eq!(other.status, Status::GroupExists);
    let altered = settings(&[30], 9, false);
    assert_eq!(alter_group(&mut desk, altered.clone()).status, Status::Ok);
    assert_eq!(settings_of(&mut desk), altered);
    let mut desk = Desk::open(small(), desk.files.deep_copy());
    assert_eq!(settings_of(&mut desk), altered, "replayed");
    desk.advance(20_000);
    assert!(desk.shard.figures().snapshots > 0);
    desk.handle(Input::Stop);
    assert!(desk.stopped);
    let mut desk = Desk::open(small(), desk.files.deep_copy());
    assert_eq!(settings_of(&mut desk), altered, "from the snapshot");
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let mut desk = Desk::open(config(), Files::default());
    for bad in [settings(&[0], 1, true), settings(&[1], 0, true), settings(&[1; 65], 1, true)] {
        assert_eq!(create_group(&mut desk, bad.clone()).status, Status::BadRequest, "{bad:?}");
    }
    assert_eq!(alter_group(&mut desk, settings(&[1], 1, true)).status, Status::UnknownGroup);
}

#[test]
fn a_group_is_deleted_with_what_waits_for_another_attempt_but_not_its_dead_letters() {
    let mut world = World::new(settings(&[100], 2, true));
    world.retry_well(&world.args(1));
    world.retry_well(&world.args(2));
    let answer = world.desk.call(Opcode::DeleteGroup, &[], |fbb| {
        let name = Some(fbb.create_string("billing"));
        DeleteGroup::create(fbb, &DeleteGroupArgs { name })
    });
    assert_eq!(answer.status, Status::Ok);
    assert_eq!(world.topic_id("%RETRY%billing"), None);
    world.desk.advance(1_000);
    assert_eq!(world.read("%DLQ%billing").len(), 1);
    assert_eq!(world.retry(&world.args(1)).status, Status::UnknownGroup);
}

#[test]
fn a_member_that_subscribes_to_its_retry_topic_has_it_made() {
    let mut world = World::new(settings(&[100], 2, true));
    join(&mut world.desk, &["orders", "%RETRY%other"]);
    assert_eq!(world.topic_id("%RETRY%other"), None, "of another group");
    join(&mut world.desk, &["orders", "%RETRY%billing"]);
    let topic = world.topic_id("%RETRY%billing").expect("made");
    let (_, owned) = join(&mut world.desk, &["orders", "%RETRY%billing"]);
    assert!(owned.iter().any(|(of, _)| *of == topic), "{owned:?}");
    // Only the broker writes to it.
    let sent = world.desk.produce(topic, 0, &desk::run(topic, 0, 0, 1, 16), 1, Flush::Sync);
    world.desk.handle(Input::TurnEnd);
    assert_eq!(world.desk.take(sent).unwrap().status, Status::NotWritable);
}

#[test]
fn a_group_whose_consumption_is_switched_off_gets_nothing_and_can_commit() {
    let mut world = World::new(settings(&[100], 2, true));
    let fetch = |world: &mut World| -> (Status, usize) {
        let (group, generation) = (world.group, world.generation);
        let queue = FetchQueue::new(world.topic, 0, 0, generation, 0, 0);
        let answer = world.desk.call(Opcode::Fetch, &[], |fbb| {
            let member = MemberId::new(MEMBER.0, MEMBER.1);
            let queues = Some(fbb.create_vector(&[queue]));
            let args = FetchArgs { group, member: Some(&member), queues, ..Default::default() };
            Fetch::create(fbb, &args)
        });
        let fetched = read_table::<FetchAnswer<'_>>(&answer.table).unwrap();
        let fetched: &FetchedQueue = fetched.queues().unwrap().get(0);
        (Status::from_code(fetched.status()), records(&answer.run).count())
    };
    assert_eq!(fetch(&mut world), (Status::Ok, 1));
    alter_group(&mut world.desk, settings(&[100], 2, false));
    assert_eq!(fetch(&mut world), (Status::NotReadable, 0));
    let entry = CommitEntry::new(world.topic, 0, 1, world.generation, 0, 0);
    let group = world.group;
    let answer = world.desk.call(Opcode::CommitOffsets, &[], |fbb| {
        let member = MemberId::new(MEMBER.0, MEMBER.1);
        let entries = Some(fbb.create_vector(&[entry]));
        CommitOffsets::create(fbb, &CommitOffsetsArgs { group, member: Some(&member), entries })
    });
    let committed = read_table::<CommitOffsetsAnswer<'_>>(&answer.table).unwrap();
    assert_eq!(committed.entries().unwrap().get(0).status(), Status::Ok.code());
    alter_group(&mut world.desk, settings(&[100], 2, true));
    assert_eq!(fetch(&mut world), (Status::Ok, 1));
}

#[test]
fn a_message_cannot_come_with_attempts_of_its_producers_making() {
    let mut world = World::new(settings(&[100], 2, true));
    let mut run = desk::run(world.topic, 0, 0, 1, 16);
    // `attempts`, see schema/PROTOCOL.md.
    run[102] = 1;
    let sent = world.desk.produce(world.topic, 0, &run, 1, Flush::Sync);
    world.desk.handle(Input::TurnEnd);
    assert_eq!(world.desk.take(sent).unwrap().status, Status::BadRecord);
}
