//! `group`.

use std::time::Duration;

use ringmq::{Admin, GroupLag, GroupSettings, GroupSpec, LagBounds, Queue, QueueLag, RetryPauses};
use serde::Serialize;

use super::admin;
use crate::args::{Change, Consumption, Global, GroupVerb, Reset};
use crate::confirm;
use crate::failure::Failure;
use crate::output::{self, Column, Form, age, age_or_dash, epoch_ms, milliseconds, utc};
use crate::values::Place;

pub(super) async fn run(verb: &GroupVerb, global: &Global) -> Result<(), Failure> {
    if let GroupVerb::Pop(args) = verb {
        return super::pop::run(args, global).await;
    }
    let admin = admin(global).await?;
    match verb {
        GroupVerb::Pop(_) => Ok(()),
        GroupVerb::Ls { prefix } => ls(prefix, &admin, global).await,
        GroupVerb::Create(args) => create(args, &admin, global).await,
        GroupVerb::Alter(args) => alter(args, &admin, global).await,
        GroupVerb::Settings { group } => settings(group, &admin, global).await,
        GroupVerb::Describe { group, at_most } => describe(group, *at_most, &admin, global).await,
        GroupVerb::Members { group } => members(group, &admin, global).await,
        GroupVerb::Reset(args) => reset(args, &admin, global).await,
        GroupVerb::Rm { group } => rm(group, &admin, global).await,
    }
}

#[derive(Serialize)]
struct NameRow {
    name: String,
}

async fn ls(prefix: &str, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let names = admin.groups(prefix).await?.into_iter();
    let rows: Vec<NameRow> = names.map(|name| NameRow { name }).collect();
    const COLUMNS: &[Column<NameRow>] = &[Column::text("GROUP", |row: &NameRow| row.name.clone())];
    output::list(global.output, "groups", &rows, COLUMNS)
}

async fn create(args: &Change, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let spec = GroupSpec::new(args.group.as_str());
    let wanted = with_changes(GroupSettings::default(), args);
    let spec = if wanted == GroupSettings::default() { spec } else { spec.settings(wanted) };
    admin.create_group(spec).await?;
    if !global.quiet {
        eprintln!("created {}", args.group);
    }
    settings(&args.group, admin, global).await
}

/// The client takes over every setting; what was not named here stays as it is.
async fn alter(args: &Change, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let present = admin.describe_group(&args.group).await?.settings;
    let spec = GroupSpec::new(args.group.as_str()).settings(with_changes(present, args));
    admin.alter_group(spec).await?;
    if !global.quiet {
        eprintln!("changed {}", args.group);
    }
    settings(&args.group, admin, global).await
}

fn with_changes(mut settings: GroupSettings, args: &Change) -> GroupSettings {
    if let Some(consume) = args.consume {
        settings.consume_enabled = consume == Consumption::On;
    }
    if let Some(attempts) = args.max_attempts {
        settings.max_attempts = attempts;
    }
    if !args.retry_pauses.is_empty() {
        settings.retry = RetryPauses::List(args.retry_pauses.clone());
    }
    if let (Some(first), Some(longest)) = (args.retry_first, args.retry_longest) {
        let factor_percent = args.retry_factor;
        settings.retry = RetryPauses::Growing { first, factor_percent, longest };
    }
    settings
}

#[derive(Serialize)]
struct SettingsRow {
    group: String,
    consume_enabled: bool,
    max_attempts: u16,
    /// Empty: as it is by default, or growing.
    retry_pauses_ms: Vec<u64>,
    retry_first_ms: Option<u64>,
    retry_factor_percent: Option<u32>,
    retry_longest_ms: Option<u64>,
}

const SETTINGS_COLUMNS: &[Column<SettingsRow>] = &[
    Column::text("GROUP", |row: &SettingsRow| row.group.clone()),
    Column::text("CONSUME", |row: &SettingsRow| {
        if row.consume_enabled { "on" } else { "off" }.to_owned()
    }),
    Column::number("ATTEMPTS", |row: &SettingsRow| row.max_attempts.to_string()),
    Column::text("PAUSES", |row: &SettingsRow| {
        let shown = |ms: u64| age(Duration::from_millis(ms));
        match (row.retry_first_ms, row.retry_factor_percent, row.retry_longest_ms) {
            (Some(first), Some(factor), Some(longest)) => {
                format!("{}, each {factor} %, up to {}", shown(first), shown(longest))
            }
            _ if row.retry_pauses_ms.is_empty() => "10s, 30s, 1m 0s, ... 2h 0m".to_owned(),
            _ => row.retry_pauses_ms.iter().copied().map(shown).collect::<Vec<_>>().join(", "),
        }
    }),
];

async fn settings(group: &str, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let GroupSettings { consume_enabled, max_attempts, retry, .. } =
        admin.describe_group(group).await?.settings;
    let mut row = SettingsRow {
        group: group.to_owned(),
        consume_enabled,
        max_attempts,
        retry_pauses_ms: Vec::new(),
        retry_first_ms: None,
        retry_factor_percent: None,
        retry_longest_ms: None,
    };
    match retry {
        RetryPauses::List(pauses) => {
            row.retry_pauses_ms = pauses.into_iter().map(milliseconds).collect();
        }
        RetryPauses::Growing { first, factor_percent, longest } => {
            row.retry_first_ms = Some(milliseconds(first));
            row.retry_factor_percent = Some(factor_percent);
            row.retry_longest_ms = Some(milliseconds(longest));
        }
        _ => {}
    }
    output::list(global.output, "group", &[row], SETTINGS_COLUMNS)
}

#[derive(Serialize)]
struct LagRow {
    topic: String,
    broker: String,
    queue: u32,
    committed_offset: Option<u64>,
    min_offset: u64,
    max_offset: u64,
    lag_messages: u64,
    ready_messages: u64,
    in_flight_messages: u64,
    delayed_messages: u64,
    unreadable_messages: u64,
    /// Counting behind the group's filter was cut short: there are more.
    lag_is_at_least: bool,
    filter: Option<String>,
    lag_ms: Option<u64>,
    committed_ms: Option<u64>,
    owner: Option<String>,
}

const LAG_COLUMNS: &[Column<LagRow>] = &[
    Column::text("TOPIC", |row: &LagRow| row.topic.clone()),
    Column::text("BROKER", |row: &LagRow| row.broker.clone()),
    Column::number("QUEUE", |row: &LagRow| row.queue.to_string()),
    Column::number("COMMITTED", |row: &LagRow| {
        row.committed_offset.map_or_else(|| "-".to_owned(), |offset| offset.to_string())
    }),
    Column::number("NEXT", |row: &LagRow| row.max_offset.to_string()),
    Column::number("LAG", |row: &LagRow| match row.lag_is_at_least {
        true => format!("at least {}", row.lag_messages),
        false => row.lag_messages.to_string(),
    }),
    Column::number("READY", |row: &LagRow| row.ready_messages.to_string()),
    Column::number("IN FLIGHT", |row: &LagRow| row.in_flight_messages.to_string()),
    Column::number("DELAYED", |row: &LagRow| row.delayed_messages.to_string()),
    Column::number("AGE", |row: &LagRow| age_or_dash(row.lag_ms.map(Duration::from_millis))),
    Column::text("OWNER", |row: &LagRow| row.owner.clone().unwrap_or_else(|| "-".to_owned())),
    Column::number("FIRST", |row: &LagRow| row.min_offset.to_string()).wide(),
    Column::number("UNREADABLE", |row: &LagRow| row.unreadable_messages.to_string()).wide(),
    Column::text("COMMITTED AT", |row: &LagRow| {
        row.committed_ms.map_or_else(|| "-".to_owned(), |at| utc(at as i64))
    })
    .wide(),
    Column::text("FILTER", |row: &LagRow| row.filter.clone().unwrap_or_else(|| "*".to_owned()))
        .wide(),
];

/// All queues together.
#[derive(Serialize)]
struct TotalRow {
    lag_messages: u64,
    ready_messages: u64,
    in_flight_messages: u64,
    delayed_messages: u64,
    retrying_messages: u64,
    lag_is_at_least: bool,
    lag_ms: Option<u64>,
}

async fn describe(
    group: &str,
    at_most: Option<u64>,
    admin: &Admin,
    global: &Global,
) -> Result<(), Failure> {
    let bounds = LagBounds::default();
    let bounds = at_most.map_or(bounds, |messages| bounds.messages(messages));
    let lag = admin.lag_within(group, bounds).await?;
    let rows: Vec<LagRow> = lag.iter().map(lag_row).collect();
    let total = total_row(&GroupLag::of(group, &lag));
    if global.output == Form::Json {
        return output::json_with(("queues", &rows), ("total", &total));
    }
    output::list(global.output, "queues", &rows, LAG_COLUMNS)?;
    if !global.quiet {
        eprintln!(
            "{}{} messages behind ({} ready, {} in flight), {} delayed, {} retrying",
            if total.lag_is_at_least { "at least " } else { "" },
            total.lag_messages,
            total.ready_messages,
            total.in_flight_messages,
            total.delayed_messages,
            total.retrying_messages
        );
    }
    Ok(())
}

fn total_row(all: &GroupLag) -> TotalRow {
    TotalRow {
        lag_messages: all.messages,
        ready_messages: all.ready,
        in_flight_messages: all.in_flight,
        delayed_messages: all.delayed,
        retrying_messages: all.retrying,
        lag_is_at_least: all.at_least,
        lag_ms: all.age.map(milliseconds),
    }
}

fn lag_row(lag: &QueueLag) -> LagRow {
    LagRow {
        topic: lag.queue.topic.to_string(),
        broker: lag.queue.broker.to_string(),
        queue: lag.queue.id,
        committed_offset: lag.committed,
        min_offset: lag.min_offset,
        max_offset: lag.max_offset,
        lag_messages: lag.messages,
        ready_messages: lag.ready,
        in_flight_messages: lag.in_flight,
        delayed_messages: lag.delayed,
        unreadable_messages: lag.unreadable,
        lag_is_at_least: lag.at_least,
        filter: lag.filter.clone(),
        lag_ms: lag.age.map(milliseconds),
        committed_ms: lag.committed_at.map(epoch_ms),
        owner: lag.owner.clone(),
    }
}

#[derive(Serialize)]
struct MemberRow {
    member: String,
    client: String,
    idle_ms: u64,
    subscriptions: Vec<SubscriptionRow>,
    queues: Vec<OwnedRow>,
}

#[derive(Serialize)]
struct SubscriptionRow {
    topic: String,
    filter: String,
}

#[derive(Serialize)]
struct OwnedRow {
    topic: String,
    broker: String,
    queue: u32,
    generation: u32,
}

const MEMBER_COLUMNS: &[Column<MemberRow>] = &[
    Column::text("MEMBER", |row: &MemberRow| row.member.clone()),
    Column::text("CLIENT", |row: &MemberRow| row.client.clone()),
    Column::text("SUBSCRIPTIONS", |row: &MemberRow| {
        let name = |s: &SubscriptionRow| match s.filter.as_str() {
            "*" => s.topic.clone(),
            filter => format!("{} ({filter})", s.topic),
        };
        row.subscriptions.iter().map(name).collect::<Vec<_>>().join(", ")
    }),
    Column::number("QUEUES", |row: &MemberRow| row.queues.len().to_string()),
    Column::number("SEEN", |row: &MemberRow| {
        format!("{} ago", age(Duration::from_millis(row.idle_ms)))
    }),
    Column::text("OWNS", |row: &MemberRow| {
        let name = |q: &OwnedRow| format!("{}/{}/{}", q.topic, q.broker, q.queue);
        row.queues.iter().map(name).collect::<Vec<_>>().join(" ")
    })
    .wide(),
];

async fn members(group: &str, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let description = admin.describe_group(group).await?;
    let row = |member: ringmq::GroupMember| MemberRow {
        member: member.id,
        client: member.client,
        idle_ms: milliseconds(member.idle),
        subscriptions: member
            .subscriptions
            .into_iter()
            .map(|(topic, filter)| SubscriptionRow { topic, filter })
            .collect(),
        queues: member
            .queues
            .into_iter()
            .map(|owned| OwnedRow {
                topic: owned.queue.topic.to_string(),
                broker: owned.queue.broker.to_string(),
                queue: owned.queue.id,
                generation: owned.generation,
            })
            .collect(),
    };
    let rows: Vec<MemberRow> = description.members.into_iter().map(row).collect();
    output::list(global.output, "members", &rows, MEMBER_COLUMNS)
}

#[derive(Serialize)]
struct ResetRow {
    topic: String,
    broker: String,
    queue: u32,
    offset: u64,
}

const RESET_COLUMNS: &[Column<ResetRow>] = &[
    Column::text("TOPIC", |row: &ResetRow| row.topic.clone()),
    Column::text("BROKER", |row: &ResetRow| row.broker.clone()),
    Column::number("QUEUE", |row: &ResetRow| row.queue.to_string()),
    Column::number("OFFSET", |row: &ResetRow| row.offset.to_string()),
];

async fn reset(args: &Reset, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let place = match args.to {
        Place::First => "the first message that is still there".to_owned(),
        Place::Last => "the tail: what is there already is skipped".to_owned(),
        Place::Ago(ago) => format!("what was stored {} ago", age(ago)),
        Place::Time(time) => format!("what was stored from {} ms (UTC) on", epoch_ms(time)),
        Place::Offset(offset) => format!("offset {offset} of each queue"),
    };
    let mut on = args.topic.clone().unwrap_or_else(|| "every topic that it consumes".to_owned());
    if !args.queues.is_empty() {
        let numbers: Vec<String> = args.queues.iter().map(u32::to_string).collect();
        on = format!("{on}, queue {}", numbers.join(", "));
    }
    if let Some(broker) = &args.broker {
        on = format!("{on}, on {broker}");
    }
    let effect = format!("moves the group {} on {on} to {place}", args.group);
    confirm::destructive(&effect, global.yes)?;
    let moved = match &args.topic {
        None => admin.reset_group(&args.group, args.to.seek()).await?,
        Some(topic) if args.queues.is_empty() && args.broker.is_none() => {
            admin.reset_offsets(&args.group, topic, args.to.seek()).await?
        }
        Some(topic) => {
            let queues = chosen(args, topic, admin).await?;
            admin.reset_queues(&args.group, &queues, args.to.seek()).await?
        }
    };
    let row = |(queue, offset): &(ringmq::Queue, u64)| ResetRow {
        topic: queue.topic.to_string(),
        broker: queue.broker.to_string(),
        queue: queue.id,
        offset: *offset,
    };
    let rows: Vec<ResetRow> = moved.iter().map(row).collect();
    output::list(global.output, "queues", &rows, RESET_COLUMNS)
}

/// The queues that --queue and --broker choose.
async fn chosen(args: &Reset, topic: &str, admin: &Admin) -> Result<Vec<Queue>, Failure> {
    let stats = admin.topic_stats(topic).await?;
    let mut queues: Vec<Queue> = stats.into_iter().map(|stats| stats.queue).collect();
    queues.retain(|queue| {
        (args.queues.is_empty() || args.queues.contains(&queue.id))
            && args.broker.as_ref().is_none_or(|broker| **broker == *queue.broker)
    });
    let missing = args.queues.iter().find(|id| queues.iter().all(|queue| queue.id != **id));
    if queues.is_empty() || missing.is_some() {
        let what = missing.map_or_else(String::new, |id| format!("queue {id} of "));
        return Err(Failure::not_found(
            format!("no such broker has {what}the topic {topic}"),
            format!("`ringmq topic route {topic}` shows which broker has which"),
        ));
    }
    Ok(queues)
}

async fn rm(group: &str, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let description = admin.describe_group(group).await?;
    let effect = format!(
        "deletes the group {group} ({} members now) and the offsets it committed",
        description.members.len()
    );
    confirm::destructive(&effect, global.yes)?;
    admin.delete_group(group).await?;
    if !global.quiet {
        eprintln!("deleted {group}");
    }
    Ok(())
}
