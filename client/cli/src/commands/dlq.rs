//! `dlq`: what became of messages that failed for good.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::time::{Duration, SystemTime};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ringmq::{Client, Filter, Message, MessageId, MessageType, Queue, Record};
use serde::Serialize;

use super::consume::{onlooker, onlooker_group};
use super::{CLOSE_LIMIT, connect};
use crate::args::{DlqVerb, Export, Global, Resend, Show};
use crate::failure::{Exit, Failure};
use crate::output::{self, Column, Form, epoch_ms, utc};
use crate::record_format::{JsonRecord, write_json};
use crate::values::Place;

/// What the names of dead-letter topics begin with.
const PREFIX: &str = "%DLQ%";
const POLL: Duration = Duration::from_millis(500);
/// Characters of an error or a body in a listing.
const CHARACTERS: usize = 40;

pub(super) async fn run(verb: &DlqVerb, global: &Global) -> Result<(), Failure> {
    let client = connect(global).await?;
    let done = match verb {
        DlqVerb::Ls => ls(&client, global).await,
        DlqVerb::Show(args) => show(args, &client, global).await,
        DlqVerb::Resend(args) => resend(args, &client, global).await,
        DlqVerb::Export(args) => export(args, &client, global).await,
    };
    client.shutdown(CLOSE_LIMIT).await?;
    done
}

#[derive(Serialize)]
struct GroupRow {
    group: String,
    messages: u64,
    last_ms: Option<u64>,
}

const GROUP_COLUMNS: &[Column<GroupRow>] = &[
    Column::text("GROUP", |row: &GroupRow| row.group.clone()),
    Column::number("MESSAGES", |row: &GroupRow| row.messages.to_string()),
    Column::text("LAST", |row: &GroupRow| {
        row.last_ms.map_or_else(|| "-".to_owned(), |ms| utc(ms as i64))
    }),
];

async fn ls(client: &Client, global: &Global) -> Result<(), Failure> {
    let admin = client.admin();
    let mut rows = Vec::new();
    for topic in admin.topics(PREFIX).await? {
        let queues = admin.topic_stats(&topic).await?;
        rows.push(GroupRow {
            group: topic.trim_start_matches(PREFIX).to_owned(),
            messages: queues.iter().map(|queue| queue.max_offset - queue.min_offset).sum(),
            last_ms: queues.iter().filter_map(|queue| queue.last_stored_at).max().map(epoch_ms),
        });
    }
    output::list(global.output, "groups", &rows, GROUP_COLUMNS)
}

#[derive(Serialize)]
struct LetterRow {
    stored_ms: u64,
    message_id: String,
    origin: String,
    attempts: u32,
    error: String,
    body: String,
}

const LETTER_COLUMNS: &[Column<LetterRow>] = &[
    Column::text("STORED AT", |row: &LetterRow| utc(row.stored_ms as i64)),
    Column::text("MESSAGE ID", |row: &LetterRow| row.message_id.clone()),
    Column::text("FROM", |row: &LetterRow| row.origin.clone()),
    Column::number("ATTEMPTS", |row: &LetterRow| row.attempts.to_string()),
    Column::text("ERROR", |row: &LetterRow| row.error.clone()),
    Column::text("BODY", |row: &LetterRow| row.body.clone()).wide(),
];

async fn show(args: &Show, client: &Client, global: &Global) -> Result<(), Failure> {
    let mut letters: Vec<Record> = Vec::new();
    read(client, &args.group, global, |record| {
        letters.push(record);
        Ok(())
    })
    .await?;
    letters.sort_by_key(|record| std::cmp::Reverse(record.stored_at()));
    letters.truncate(args.max);
    if global.output == Form::Json {
        let rows: Vec<JsonRecord<'_>> = letters.iter().map(JsonRecord::new).collect();
        return output::json("messages", &rows);
    }
    let rows: Vec<LetterRow> = letters.iter().map(letter_row).collect();
    output::list(global.output, "messages", &rows, LETTER_COLUMNS)
}

fn letter_row(record: &Record) -> LetterRow {
    let origin = record.origin();
    LetterRow {
        stored_ms: epoch_ms(record.stored_at()),
        message_id: record.message_id().to_string(),
        origin: origin.map_or_else(|| "-".to_owned(), |o| format!("{}@{}", o.queue, o.offset)),
        attempts: record.delivery_attempt() - 1,
        error: output::line(record.last_error().unwrap_or("-"), CHARACTERS),
        body: output::line(&String::from_utf8_lossy(record.body()), CHARACTERS),
    }
}

#[derive(Serialize)]
struct Resent {
    group: String,
    messages: u64,
}

async fn resend(args: &Resend, client: &Client, global: &Global) -> Result<(), Failure> {
    let mut wanted: HashSet<MessageId> = args.ids.iter().copied().collect();
    let mut letters: Vec<Record> = Vec::new();
    read(client, &args.group, global, |record| {
        if args.all || wanted.remove(&record.message_id()) {
            letters.push(record);
        }
        Ok(())
    })
    .await?;
    if let Some(missing) = wanted.into_iter().next() {
        return Err(Failure::not_found(
            format!("{} has no dead letter {missing}; nothing was sent", args.group),
            format!("`ringmq dlq show {}` lists them", args.group),
        ));
    }
    let messages = send_again(client, &letters, global).await?;
    if global.output == Form::Json {
        return output::json("resent", &Resent { group: args.group.clone(), messages });
    }
    if !global.quiet {
        eprintln!("sent {messages} messages once more; they stay among the dead letters too");
    }
    Ok(())
}

/// Sends records to the topics that they were sent to first, under the same ids.
pub(super) async fn send_again(
    client: &Client,
    records: &[Record],
    global: &Global,
) -> Result<u64, Failure> {
    let producer = client.producer("ringmq-cli").timeout(global.timeout).build().await?;
    let bar = bar(records.len() as u64, "sent", global.quiet);
    let mut delays: HashMap<String, bool> = HashMap::new();
    for record in records {
        let origin = record.origin();
        let topic = origin.as_ref().map_or(record.topic(), |origin| &*origin.queue.topic);
        let is_delay = match delays.get(topic) {
            Some(is_delay) => *is_delay,
            None => {
                let of = client.admin().describe_topic(topic).await?;
                let is_delay = of.iter().any(|on| on.message_type == MessageType::Delay);
                *delays.entry(topic.to_owned()).or_insert(is_delay)
            }
        };
        let message = Message::again(record);
        // Topics of this type take only messages with a delivery time: this one's has come.
        let message = if is_delay { message.deliver_at(SystemTime::now()) } else { message };
        let sent = producer.send(message).await;
        let _receipt = sent.map_err(|error| {
            let mut failure = Failure::from(error);
            let (id, done) = (record.message_id(), bar.position());
            failure.message =
                format!("message {id}, after {done} others were sent: {}", failure.message);
            failure
        })?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(records.len() as u64)
}

async fn export(args: &Export, client: &Client, global: &Global) -> Result<(), Failure> {
    let mut out: Box<dyn Write> = match &args.file {
        None => Box::new(io::stdout().lock()),
        Some(path) => {
            let file = File::create_new(path).map_err(|error| {
                Failure::new(format!("cannot make {}: {error}", path.display()), "another --file")
            })?;
            Box::new(BufWriter::new(file))
        }
    };
    let mut line = Vec::new();
    let count = read(client, &args.group, global, |record| {
        line.clear();
        write_json(&record, &mut line);
        Ok(out.write_all(&line)?)
    })
    .await?;
    out.flush()?;
    if let (Some(path), false) = (&args.file, global.quiet) {
        eprintln!("wrote {count} messages to {}", path.display());
    }
    Ok(())
}

/// Visits every dead letter of a group that is there now; returns how many that were.
async fn read(
    client: &Client,
    group: &str,
    global: &Global,
    mut visit: impl FnMut(Record) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let topic = format!("{PREFIX}{group}");
    let queues = match client.admin().topic_stats(&topic).await {
        Ok(queues) => queues,
        Err(error) => {
            let failure = Failure::from(error);
            return Err(match failure.exit {
                Exit::NotFound => Failure::not_found(
                    format!("the group {group} has no dead letters"),
                    "`ringmq dlq ls` lists the groups that have some",
                ),
                _ => failure,
            });
        }
    };
    let ends: HashMap<Queue, u64> =
        queues.iter().map(|queue| (queue.queue.clone(), queue.max_offset)).collect();
    let all = queues.iter().map(|queue| queue.max_offset - queue.min_offset).sum();
    let bar = bar(all, "read", global.quiet);
    let mut consumer = onlooker(client, &Filter::all(), Place::First, &ends).await?;
    let mut visited = 0;
    let reading = async {
        while !consumer.positions().iter().all(|(queue, at)| *at >= ends[queue]) {
            for record in consumer.poll(POLL).await? {
                if record.offset() < ends[record.queue()] {
                    visited += 1;
                    bar.inc(1);
                    visit(record)?;
                }
            }
        }
        Ok::<(), Failure>(())
    };
    let done = reading.await;
    bar.finish_and_clear();
    consumer.close(CLOSE_LIMIT).await?;
    // Whoever only looks leaves nothing behind, not on errors either.
    client.admin().delete_group(&onlooker_group()).await?;
    done.map(|()| visited)
}

/// Shown on a terminal only.
fn bar(messages: u64, what: &str, quiet: bool) -> ProgressBar {
    let target =
        if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(10) };
    let style = "{bar:40} {percent:>3} %  {human_pos} of {human_len} {msg}  {per_sec}";
    ProgressBar::with_draw_target(Some(messages), target)
        .with_style(ProgressStyle::with_template(style).expect("a constant template that parses"))
        .with_message(what.to_owned())
}
