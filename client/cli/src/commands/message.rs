//! `message`: looks messages up by id, by key and by where they lie.

use std::io::{self, Write as _};

use ringmq::{Admin, KeyQuery, MessageRef, Queue, Record};
use serde::Serialize;

use super::dlq::send_again;
use super::{CLOSE_LIMIT, connect};
use crate::args::{Find, Get, Global, MessageVerb, Print};
use crate::failure::Failure;
use crate::output::{self, Column, Form, epoch_ms, utc};
use crate::record_format::{JsonRecord, RecordFormat};
use crate::values::Place;

/// Characters of a body in a listing.
const BODY_CHARACTERS: usize = 40;
/// Records asked for at a time.
const PULL_RECORDS: usize = 1024;

pub(super) async fn run(verb: &MessageVerb, global: &Global) -> Result<(), Failure> {
    let client = connect(global).await?;
    let admin = client.admin();
    match verb {
        MessageVerb::Get(args) => get(args, &admin, global).await,
        MessageVerb::Find(args) => find(args, &admin, global).await,
        MessageVerb::Resend { id } => {
            let record = look_up(None, id, &admin).await?;
            send_again(&client, std::slice::from_ref(&record), global).await?;
            client.shutdown(CLOSE_LIMIT).await?;
            if !global.quiet {
                eprintln!("sent {} once more", record.message_id());
            }
            Ok(())
        }
        MessageVerb::Print(args) => print(args, &admin, global).await,
    }
}

async fn get(args: &Get, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let record = look_up(args.topic.as_deref(), &args.id, admin).await?;
    match (&args.format, global.output) {
        (_, Form::Json) => output::json("message", &JsonRecord::new(&record)),
        (Some(format), _) => write(&[record], format),
        (None, _) => output::print(&describe(&record)),
    }
}

async fn look_up(topic: Option<&str>, id: &MessageRef, admin: &Admin) -> Result<Record, Failure> {
    admin.message(topic, id.clone()).await.map_err(|error| {
        let mut failure = Failure::from(error);
        if failure.exit == crate::failure::Exit::NotFound {
            failure.advice = "the id as `topic consume -f %i` or `-o json` prints it; messages \
                              that have expired are gone"
                .to_owned();
        }
        failure
    })
}

async fn find(args: &Find, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let mut query = KeyQuery::new(args.key.as_str()).most(args.max as usize);
    if let Some(from) = args.from.and_then(Place::time) {
        query = query.from(from);
    }
    if let Some(until) = args.until.and_then(Place::time) {
        query = query.until(until);
    }
    let found = admin.find_messages(&args.topic, query).await?;
    if found.unreadable > 0 && !found.records.is_empty() {
        eprintln!("{}", incomplete(found.unreadable));
    }
    if found.records.is_empty() {
        // What could not be read is not taken for what is not there.
        return Err(match found.unreadable {
            0 => Failure::not_found(
                format!("no message of {} has the key {}", args.topic, args.key),
                "an earlier --from; a message is found by its first four keys",
            ),
            unreadable => Failure::new(
                incomplete(unreadable),
                "`ringmq log verify` on the broker's host shows what is damaged",
            ),
        });
    }
    show(&found.records, args.format.as_ref(), global.output)
}

fn show(records: &[Record], format: Option<&RecordFormat>, form: Form) -> Result<(), Failure> {
    match (format, form) {
        (_, Form::Json) => {
            let rows: Vec<JsonRecord<'_>> = records.iter().map(JsonRecord::new).collect();
            output::json("messages", &rows)
        }
        (Some(format), _) => write(records, format),
        (None, form) => {
            let rows: Vec<Row> = records.iter().map(row).collect();
            output::list(form, "messages", &rows, COLUMNS)
        }
    }
}

async fn print(args: &Print, admin: &Admin, global: &Global) -> Result<(), Failure> {
    let queue = the_queue(args, admin).await?;
    let mut offset = admin.find_offset(&queue, args.from.seek()).await?;
    let mut records: Vec<Record> = Vec::new();
    while (records.len() as u64) < args.count {
        let left = usize::try_from(args.count - records.len() as u64).unwrap_or(usize::MAX);
        let pulled = admin.pull(&queue, offset, left.min(PULL_RECORDS)).await?;
        if pulled.next_offset == offset {
            break;
        }
        offset = pulled.next_offset;
        records.extend(pulled.records);
    }
    show(&records, args.format.as_ref(), global.output)
}

/// The queue that is meant: of the broker that has it, if that is one.
async fn the_queue(args: &Print, admin: &Admin) -> Result<Queue, Failure> {
    let Print { topic, queue, broker, .. } = args;
    let stats = admin.topic_stats(topic).await?;
    let mut found: Vec<Queue> = stats.into_iter().map(|stats| stats.queue).collect();
    found.retain(|q| q.id == *queue && broker.as_ref().is_none_or(|b| **b == *q.broker));
    found.dedup();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Failure::not_found(
            format!("no broker has queue {queue} of the topic {topic}"),
            format!("`ringmq topic route {topic}` shows which broker has which"),
        )),
        several => {
            let names: Vec<&str> = several.iter().map(|queue| &*queue.broker).collect();
            Err(Failure::usage(
                format!("several brokers have queue {queue} of {topic}: {}", names.join(", ")),
                "--broker NAME says which",
            ))
        }
    }
}

fn incomplete(unreadable: u64) -> String {
    format!("{unreadable} parts of the log could not be read: messages with the key may be missing")
}

fn write(records: &[Record], format: &RecordFormat) -> Result<(), Failure> {
    let mut text = Vec::new();
    records.iter().for_each(|record| format.write(record, &mut text));
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    out.flush()?;
    Ok(())
}

#[derive(Serialize)]
struct Row {
    stored_ms: u64,
    broker: String,
    queue: u32,
    offset: u64,
    message_id: String,
    stored_id: String,
    keys: String,
    tag: String,
    body: String,
}

const COLUMNS: &[Column<Row>] = &[
    Column::text("STORED AT", |row: &Row| utc(row.stored_ms as i64)),
    Column::text("BROKER", |row: &Row| row.broker.clone()),
    Column::number("QUEUE", |row: &Row| row.queue.to_string()),
    Column::number("OFFSET", |row: &Row| row.offset.to_string()),
    Column::text("MESSAGE ID", |row: &Row| row.message_id.clone()),
    Column::text("STORED ID", |row: &Row| row.stored_id.clone()).wide(),
    Column::text("TAG", |row: &Row| row.tag.clone()).wide(),
    Column::text("KEYS", |row: &Row| row.keys.clone()).wide(),
    Column::text("BODY", |row: &Row| row.body.clone()),
];

fn row(record: &Record) -> Row {
    Row {
        stored_ms: epoch_ms(record.stored_at()),
        broker: record.broker().to_owned(),
        queue: record.queue().id,
        offset: record.offset(),
        message_id: record.message_id().to_string(),
        stored_id: record.stored_id().to_string(),
        keys: record.keys().join(" "),
        tag: record.tag().unwrap_or("-").to_owned(),
        body: body(record, BODY_CHARACTERS),
    }
}

/// A body for a terminal: text on one line, no control characters.
fn body(record: &Record, characters: usize) -> String {
    let Ok(text) = std::str::from_utf8(record.body()) else {
        return format!("({} bytes that are no text)", record.body().len());
    };
    output::line(text, characters)
}

fn describe(record: &Record) -> String {
    let time = |at| utc(epoch_ms(at) as i64);
    let mut lines = vec![
        ("topic", record.topic().to_owned()),
        ("broker", record.broker().to_owned()),
        ("queue", record.queue().id.to_string()),
        ("offset", record.offset().to_string()),
        ("message id", record.message_id().to_string()),
        ("stored id", record.stored_id().to_string()),
        ("stored at", time(record.stored_at())),
        ("born at", time(record.born_at())),
    ];
    lines.extend(record.born_host().map(|host| ("born on", host.to_owned())));
    lines.extend(record.origin().map(|o| ("first at", format!("{} {}", o.queue, o.offset))));
    lines.extend(record.last_error().map(|error| ("last error", error.to_owned())));
    lines.extend(record.tag().map(|tag| ("tag", tag.to_owned())));
    lines.extend(record.keys().into_iter().map(|key| ("key", key.to_owned())));
    lines.extend(record.group().map(|group| ("group", group.to_owned())));
    lines.extend(record.properties().into_iter().map(|(k, v)| ("property", format!("{k}={v}"))));
    lines.push(("body bytes", record.body().len().to_string()));
    lines.push(("body", body(record, usize::MAX)));
    lines
        .iter()
        .map(|(name, value)| {
            let value = output::line(value, usize::MAX);
            format!("{name:<11} {value}\n")
        })
        .collect()
}
