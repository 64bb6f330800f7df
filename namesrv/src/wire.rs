//! Tables of the wire to plain data and back. What comes in is checked here, once.

use crate::route::{Broker, Topic, TopicEntry, TopicSnapshot};
use ringmq_schema::flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Vector, WIPOffset};
use ringmq_schema::route::{
    BrokerRoute, BrokerRouteArgs, RegisterBroker, RouteAnswer, RouteAnswerArgs, TopicRegistration,
    TopicRoute, TopicRouteArgs,
};
use ringmq_schema::{limits, names};
use std::collections::HashMap;
use std::sync::Arc;

/// Longest broker name, cluster name and address (a DNS name has at most 253 characters).
pub const LABEL_BYTES_MAX: usize = 260;

/// The broker of a registration.
pub fn broker(table: &RegisterBroker<'_>) -> Result<Broker, String> {
    for (what, text) in [
        ("cluster", table.cluster()),
        ("broker name", table.broker()),
        ("address", table.address()),
    ] {
        check_label(what, text)?;
    }
    let port = table.address().rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_none_or(|port| port == 0) {
        return Err(format!("the address {:?} is not of the form host:port", table.address()));
    }
    if table.shards() == 0 {
        return Err("the broker says it has 0 shards: at least 1 is needed".to_owned());
    }
    Ok(Broker {
        cluster: table.cluster().to_owned(),
        name: table.broker().to_owned(),
        id: table.broker_id(),
        address: table.address().to_owned(),
        instance: table.instance(),
        shards: table.shards(),
    })
}

fn check_label(what: &str, text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!("the {what} is empty"));
    }
    if text.len() > LABEL_BYTES_MAX {
        let bytes = text.len();
        return Err(format!("the {what} has {bytes} bytes, at most {LABEL_BYTES_MAX} are allowed"));
    }
    match text.chars().find(|c| c.is_control() || c.is_whitespace()) {
        Some(character) => Err(format!("the {what} {text:?} has {character:?} in it")),
        None => Ok(()),
    }
}

/// The topics of a registration or of changes.
pub fn topics(
    list: Option<Vector<'_, ForwardsUOffset<TopicRegistration<'_>>>>,
) -> Result<Vec<TopicEntry>, String> {
    list.into_iter().flatten().map(|entry| topic(&entry)).collect()
}

fn topic(entry: &TopicRegistration<'_>) -> Result<TopicEntry, String> {
    names::check_topic(entry.name()).map_err(|error| error.to_string())?;
    let name: Arc<str> = entry.name().into();
    if entry.deleted() {
        return Ok((name, None));
    }
    let queues = entry.read_queues().max(entry.write_queues());
    if queues > limits::QUEUES_PER_TOPIC_MAX {
        let max = limits::QUEUES_PER_TOPIC_MAX;
        return Err(format!("topic {name} has {queues} queues, at most {max} are allowed"));
    }
    let topic = Topic {
        id: entry.id(),
        version: entry.version(),
        read_queues: entry.read_queues(),
        write_queues: entry.write_queues(),
        permission: entry.permission(),
        message_type: entry.message_type(),
    };
    Ok((name, Some(topic)))
}

/// Bytes that the route takes in an answer, at most.
pub fn route_bytes(snapshot: &TopicSnapshot) -> usize {
    // Measured on the tables: 36 for a topic, 96 for a broker beside its strings, which are shared.
    64 + snapshot.topic.len() + snapshot.brokers.len() * 112
}

/// Builds the answer with these routes. Strings of brokers are written once.
pub fn routes<'a>(
    fbb: &mut FlatBufferBuilder<'a>,
    snapshots: &[Arc<TopicSnapshot>],
) -> WIPOffset<RouteAnswer<'a>> {
    type Strings<'a> = [WIPOffset<&'a str>; 3];
    let mut shared: HashMap<*const Broker, Strings<'a>> = HashMap::new();
    // One topic, which is what clients ask for most, has each of its brokers once.
    let is_shared = snapshots.len() > 1;
    let mut topics = Vec::with_capacity(snapshots.len());
    for snapshot in snapshots {
        let mut brokers = Vec::with_capacity(snapshot.brokers.len());
        for (broker, topic) in &snapshot.brokers {
            let mut write =
                || [&broker.cluster, &broker.name, &broker.address].map(|s| fbb.create_string(s));
            let [cluster, name, address] = match is_shared {
                true => *shared.entry(Arc::as_ptr(broker)).or_insert_with(write),
                false => write(),
            };
            let args = BrokerRouteArgs {
                cluster: Some(cluster),
                broker: Some(name),
                broker_id: broker.id,
                address: Some(address),
                instance: broker.instance,
                shards: broker.shards,
                topic: topic.id,
                read_queues: topic.read_queues,
                write_queues: topic.write_queues,
                permission: topic.permission,
                message_type: topic.message_type,
            };
            brokers.push(BrokerRoute::create(fbb, &args));
        }
        let brokers = Some(fbb.create_vector(&brokers));
        let topic = Some(fbb.create_string(&snapshot.topic));
        let args = TopicRouteArgs { topic, version: snapshot.version, brokers };
        topics.push(TopicRoute::create(fbb, &args));
    }
    let topics = Some(fbb.create_vector(&topics));
    RouteAnswer::create(fbb, &RouteAnswerArgs { topics })
}
