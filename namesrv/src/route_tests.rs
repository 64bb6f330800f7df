//! Tests of the route table, by its plain calls.

use super::*;

const LIMITS: TableLimits = TableLimits { brokers: 3, topics_per_broker: 4 };

fn broker(name: &str, instance: u64) -> Broker {
    let address = format!("{name}:10911");
    Broker { cluster: "c".into(), name: name.into(), id: 0, address, instance, shards: 2 }
}

fn topic(id: u32, version: u64) -> Topic {
    Topic { id, version, read_queues: 8, write_queues: 8, permission: 6, message_type: 0 }
}

fn hash(topics: &[(&str, Topic)]) -> u64 {
    topics.iter().fold(0, |hash, (name, topic)| hash.wrapping_add(topic.hash(name)))
}

fn entries(topics: &[(&str, Topic)]) -> Vec<TopicEntry> {
    topics.iter().map(|(name, topic)| ((*name).into(), Some(*topic))).collect()
}

fn register(
    table: &mut RouteTable,
    session: Session,
    broker: Broker,
    topics: &[(&str, Topic)],
) -> Vec<String> {
    let outcome =
        table.register(session, broker, (1, hash(topics)), entries(topics)).expect("within limits");
    assert!(!outcome.need_full);
    sorted(&outcome.changed)
}

fn sorted(changed: &[Arc<str>]) -> Vec<String> {
    let mut names: Vec<_> = changed.iter().map(|name| name.to_string()).collect();
    names.sort();
    names
}

fn brokers_of(table: &RouteTable, topic: &str) -> Vec<(String, u32)> {
    let snapshot = table.route(topic);
    snapshot.brokers.iter().map(|(broker, topic)| (broker.name.clone(), topic.id)).collect()
}

fn at(name: &str, id: u32) -> (String, u32) {
    (name.to_owned(), id)
}

#[test]
fn brokers_of_a_topic_are_sorted_and_versions_grow() {
    let mut table = RouteTable::new(100, LIMITS);
    assert_eq!(table.route("t").version, 100);
    assert_eq!(register(&mut table, 1, broker("b", 1), &[("t", topic(5, 1))]), ["t"]);
    let first = table.route("t");
    assert_eq!(register(&mut table, 2, broker("a", 1), &[("t", topic(7, 1))]), ["t"]);
    let second = table.route("t");
    assert_eq!(brokers_of(&table, "t"), [at("a", 7), at("b", 5)]);
    assert!(first.version > 100 && second.version > first.version);
    assert_eq!(first.brokers.len(), 1, "a snapshot does not change");
    assert_eq!(sorted(&table.remove(2)), ["t"]);
    assert_eq!(sorted(&table.remove(1)), ["t"]);
    assert!(table.route("t").version > second.version);
    assert_eq!((table.topic_count(), table.brokers().count()), (0, 0));
}

#[test]
fn a_registration_again_changes_only_what_differs() {
    let mut table = RouteTable::new(0, LIMITS);
    let (one, two) = (topic(1, 1), topic(2, 1));
    register(&mut table, 1, broker("a", 1), &[("x", one), ("y", two)]);
    let again = register(&mut table, 1, broker("a", 1), &[("y", topic(2, 3)), ("z", topic(3, 1))]);
    assert_eq!(again, ["x", "y", "z"]);
    assert_eq!(brokers_of(&table, "x"), []);
    let same = register(&mut table, 1, broker("a", 1), &[("y", topic(2, 3)), ("z", topic(3, 1))]);
    assert!(same.is_empty());
    // Another address: every route of the broker is another one.
    let moved = Broker { address: "elsewhere:1".into(), ..broker("a", 1) };
    let moved = register(&mut table, 1, moved, &[("y", topic(2, 3)), ("z", topic(3, 1))]);
    assert_eq!(moved, ["y", "z"]);
    assert_eq!(table.route("y").brokers[0].0.address, "elsewhere:1");
}

#[test]
fn a_registration_of_many_frames_shows_when_it_is_complete() {
    let mut table = RouteTable::new(0, LIMITS);
    register(&mut table, 1, broker("a", 1), &[("x", topic(1, 1)), ("y", topic(2, 1))]);
    let new = [("x", topic(1, 1)), ("z", topic(3, 2))];
    let (first, second) = (entries(&new[..1]), entries(&new[1..]));
    let outcome = table.register(1, broker("a", 1), (2, hash(&new)), first).unwrap();
    assert_eq!(outcome, Outcome::default());
    assert_eq!(brokers_of(&table, "y"), [at("a", 2)], "the old table stands until then");
    let outcome = table.change(1, 2, (2, hash(&new)), second).unwrap();
    assert_eq!(sorted(&outcome.changed), ["y", "z"]);
    assert!(!table.heartbeat(1, 2, hash(&new)).unwrap());
}

#[test]
fn changes_apply_only_to_the_version_they_are_for() {
    let mut table = RouteTable::new(0, LIMITS);
    let (x, y) = (("x", topic(1, 1)), ("y", topic(2, 2)));
    register(&mut table, 1, broker("a", 1), &[x]);
    let outcome = table.change(1, 1, (2, hash(&[x, y])), entries(&[y])).unwrap();
    assert_eq!((sorted(&outcome.changed), outcome.need_full), (vec!["y".to_owned()], false));
    assert!(!table.heartbeat(1, 2, hash(&[x, y])).unwrap());
    assert!(table.heartbeat(1, 3, hash(&[x, y])).unwrap());
    assert!(table.heartbeat(1, 2, hash(&[x])).unwrap());
    let gone = vec![("x".into(), None)];
    assert!(table.change(1, 1, (3, hash(&[y])), gone.clone()).unwrap().need_full);
    assert_eq!(brokers_of(&table, "x"), [at("a", 1)]);
    let outcome = table.change(1, 2, (3, hash(&[y])), gone).unwrap();
    assert_eq!((sorted(&outcome.changed), outcome.need_full), (vec!["x".to_owned()], false));
    assert!(table.change(1, 3, (4, 12345), vec![]).unwrap().need_full, "the hash differs");
    assert!(table.change(9, 0, (1, 0), vec![]).unwrap().need_full, "never registered");
    assert!(table.heartbeat(9, 0, 0).unwrap());
}

#[test]
fn an_older_connections_end_does_not_undo_a_newer_one() {
    let mut table = RouteTable::new(0, LIMITS);
    register(&mut table, 1, broker("a", 1), &[("x", topic(1, 1))]);
    let changed = register(&mut table, 2, broker("a", 2), &[("x", topic(1, 1))]);
    assert_eq!(changed, ["x"], "clients must learn the new instance");
    let error = table.heartbeat(1, 1, 0).unwrap_err();
    assert!(error.to_string().contains("another connection"), "{error}");
    assert!(table.register(1, broker("a", 1), (1, 0), vec![]).is_err());
    assert!(table.remove(1).is_empty());
    assert_eq!(brokers_of(&table, "x"), [at("a", 1)]);
    assert_eq!(table.route("x").brokers[0].0.instance, 2);
    assert_eq!(sorted(&table.remove(2)), ["x"]);
}

#[test]
fn master_and_slave_are_two_entries() {
    let mut table = RouteTable::new(0, LIMITS);
    let slave = Broker { id: 1, ..broker("a", 1) };
    register(&mut table, 1, slave, &[("x", topic(1, 1))]);
    register(&mut table, 2, broker("a", 1), &[("x", topic(1, 1))]);
    let ids: Vec<_> = table.route("x").brokers.iter().map(|(broker, _)| broker.id).collect();
    assert_eq!(ids, [0, 1]);
    table.remove(1);
    assert_eq!(table.route("x").brokers.len(), 1);
}

#[test]
fn limits_are_errors_with_the_setting_in_them() {
    let mut table = RouteTable::new(0, LIMITS);
    let many: Vec<_> = (0..5).map(|n| (format!("t{n}").into(), Some(topic(n, 1)))).collect();
    let error = table.register(1, broker("a", 1), (1, 0), many.clone()).unwrap_err();
    assert!(error.to_string().contains("topics_per_broker_max"), "{error}");
    assert!(table.change(1, 1, (1, 0), vec![]).unwrap().need_full, "nothing of it is kept");
    for session in 1..=3 {
        register(&mut table, session, broker(&format!("b{session}"), 1), &[]);
    }
    assert!(table.change(1, 1, (2, 0), many).is_err());
    let error = table.register(4, broker("d", 1), (1, 0), vec![]).unwrap_err();
    assert!(error.to_string().contains("brokers_max"), "{error}");
    let error = table.register(1, broker("other", 1), (1, 0), vec![]).unwrap_err();
    assert!(error.to_string().contains("b1"), "{error}");
}

#[test]
fn topics_by_prefix_are_sorted() {
    let mut table = RouteTable::new(0, LIMITS);
    let topics = [("b", topic(1, 1)), ("ab", topic(2, 1)), ("a", topic(3, 1)), ("c", topic(4, 1))];
    register(&mut table, 1, broker("a", 1), &topics);
    let names = |prefix: &'static str| table.topics(prefix).map(|n| n.to_string());
    assert!(names("").eq(["a", "ab", "b", "c"]));
    assert!(names("a").eq(["a", "ab"]));
    assert_eq!(names("d").count(), 0);
}
