//! `topic consume`: prints messages, without touching any group unless one is named.
//!
//! Without `--follow` it ends where the queues ended when it began: what comes later is left alone.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use ringmq::{Client, ConsumeFrom, Filter, PullConsumer, Queue, Record, SeekTo};

use super::{CLOSE_LIMIT, connect};
use crate::args::{Consume, Global};
use crate::failure::Failure;
use crate::output::Form;
use crate::record_format::write_json;
use crate::values::Place;

/// How long a poll waits; interrupts are seen at once all the same.
const POLL: Duration = Duration::from_millis(500);
/// A group gives a dead member's queues to others after its session timeout, 10 s by default.
const OWN_NONE_MAX: Duration = Duration::from_secs(15);
/// With a filter, positions stand still over messages that do not match: so many polls without a message and
/// without a step mean that the end was reached.
const EMPTY_POLLS_AT_END: u32 = 2;

pub(super) async fn run(args: &Consume, global: &Global) -> Result<(), Failure> {
    let client = connect(global).await?;
    let queues = client.admin().topic_stats(&args.topic).await?;
    if queues.is_empty() {
        return Err(Failure::not_found(
            format!("no broker has the topic {}", args.topic),
            format!("`ringmq topic create {}`, or `ringmq topic ls`", args.topic),
        ));
    }
    let ends: HashMap<Queue, u64> =
        queues.iter().map(|q| (q.queue.clone(), q.max_offset)).collect();
    let from = args.from.unwrap_or(if args.follow { Place::Last } else { Place::First });
    let mut consumer = match &args.group {
        Some(group) => member(&client, group, args, from).await?,
        None => onlooker(&client, args, from, &ends).await?,
    };
    let copied = copy(&mut consumer, args, global.output, &ends).await;
    consumer.close(CLOSE_LIMIT).await?;
    if args.group.is_none() {
        // Whoever only looks leaves nothing behind, not on errors either.
        client.admin().delete_group(&onlooker_group()).await?;
    }
    client.shutdown(CLOSE_LIMIT).await?;
    copied
}

/// Prints records until the end, the count or an interrupt.
async fn copy(
    consumer: &mut PullConsumer,
    args: &Consume,
    form: Form,
    ends: &HashMap<Queue, u64>,
) -> Result<(), Failure> {
    let mut left = args.count.unwrap_or(u64::MAX);
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let (mut text, mut empty_polls) = (Vec::new(), 0);
    let mut positions = consumer.positions();
    let begun = Instant::now();
    while left > 0 {
        let owns_none = consumer.positions().is_empty();
        if !args.follow && !owns_none && is_at_end(consumer, ends, empty_polls) {
            break;
        }
        if !args.follow && owns_none && begun.elapsed() > OWN_NONE_MAX {
            eprintln!("this member was given no queue: others of the group have them all");
            break;
        }
        let records = tokio::select! {
            records = consumer.poll(POLL) => records?,
            _ = &mut interrupted => break,
        };
        // A filter that leaves out much is told now and then how far the broker looked.
        let before = std::mem::replace(&mut positions, consumer.positions());
        let stands = records.is_empty() && !owns_none && positions == before;
        empty_polls = if stands { empty_polls + 1 } else { 0 };
        for record in &records {
            let beyond = ends.get(record.queue()).is_some_and(|end| record.offset() >= *end);
            if left == 0 || (beyond && !args.follow) {
                continue;
            }
            left -= 1;
            write(record, args, form, &mut text);
        }
        let mut out = io::stdout().lock();
        out.write_all(&text)?;
        out.flush()?;
        text.clear();
        if args.group.is_some() && !records.is_empty() {
            // After it was printed, never before.
            consumer.commit().await?;
        }
    }
    Ok(())
}

/// The client reads under some group's name; this one lives as long as the command.
fn onlooker_group() -> String {
    format!("ringmq-cli-{}", std::process::id())
}

fn write(record: &Record, args: &Consume, form: Form, to: &mut Vec<u8>) {
    match form {
        Form::Json => write_json(record, to),
        Form::Table | Form::Wide => args.format.write(record, to),
    }
}

fn filter(args: &Consume) -> Filter {
    match &args.sql {
        Some(expression) => Filter::sql(expression),
        None => Filter::tags(&args.tags),
    }
}

/// Reads all queues by itself; no group's offsets change.
async fn onlooker(
    client: &Client,
    args: &Consume,
    from: Place,
    ends: &HashMap<Queue, u64>,
) -> Result<PullConsumer, Failure> {
    let mut builder = client.pull_consumer(onlooker_group()).from(ConsumeFrom::First);
    for queue in ends.keys() {
        builder = builder.assign(queue.clone(), filter(args));
    }
    let mut consumer = builder.build().await?;
    for (queue, end) in ends {
        let seek = match from {
            // The tail as it was when the command began.
            Place::Last => SeekTo::Offset(*end),
            other => other.seek(),
        };
        consumer.seek(queue, seek).await?;
    }
    Ok(consumer)
}

/// Joins a group: `from` counts only where it never committed.
async fn member(
    client: &Client,
    group: &str,
    args: &Consume,
    from: Place,
) -> Result<PullConsumer, Failure> {
    let from = match from.seek() {
        SeekTo::First => ConsumeFrom::First,
        SeekTo::Last => ConsumeFrom::Last,
        SeekTo::Time(time) => ConsumeFrom::Time(time),
        SeekTo::Offset(_) => {
            return Err(Failure::usage(
                "a group starts at first, last or a time, not at an offset",
                format!("`ringmq group reset {group} --topic {} --to OFFSET` first", args.topic),
            ));
        }
    };
    let builder = client.pull_consumer(group).from(from);
    Ok(builder.subscribe(args.topic.as_str(), filter(args)).build().await?)
}

fn is_at_end(consumer: &PullConsumer, ends: &HashMap<Queue, u64>, empty_polls: u32) -> bool {
    let positions = consumer.positions();
    let reached =
        |(queue, position): &(Queue, u64)| ends.get(queue).is_none_or(|end| position >= end);
    positions.iter().all(reached) || empty_polls >= EMPTY_POLLS_AT_END
}
