//! `timer`: delayed messages that wait for their time, shown and taken back.

use ringmq::PendingMessage;
use serde::Serialize;

use super::admin;
use crate::args::{Global, Pending, Recall, TimerVerb};
use crate::failure::Failure;
use crate::output::{self, Column, Form, bytes, epoch_ms, utc};

#[derive(Serialize)]
struct Row {
    due_ms: u64,
    topic: String,
    broker: String,
    queue: u32,
    message_id: String,
    stored_ms: u64,
    stored_bytes: usize,
    handle: String,
}

const COLUMNS: &[Column<Row>] = &[
    Column::text("DUE AT", |row: &Row| utc(row.due_ms as i64)),
    Column::text("TOPIC", |row: &Row| row.topic.clone()),
    Column::text("BROKER", |row: &Row| row.broker.clone()).wide(),
    Column::number("QUEUE", |row: &Row| row.queue.to_string()).wide(),
    Column::text("MESSAGE ID", |row: &Row| row.message_id.clone()).wide(),
    Column::text("STORED AT", |row: &Row| utc(row.stored_ms as i64)).wide(),
    Column::number("BYTES", |row: &Row| bytes(row.stored_bytes as u64)),
    Column::text("HANDLE", |row: &Row| row.handle.clone()),
];

#[derive(Serialize)]
struct Recalled {
    recalled: usize,
}

pub(super) async fn run(verb: &TimerVerb, global: &Global) -> Result<(), Failure> {
    match verb {
        TimerVerb::Ls(args) => list(args, global).await,
        TimerVerb::Recall(args) => recall(args, global).await,
    }
}

async fn list(args: &Pending, global: &Global) -> Result<(), Failure> {
    let admin = admin(global).await?;
    let found = admin.pending_messages(args.topic.as_deref(), args.max as usize).await?;
    if found.unreadable > 0 {
        eprintln!("{} delayed messages could not be read", found.unreadable);
    }
    let rows: Vec<Row> = found.messages.iter().map(row).collect();
    output::list(global.output, "timers", &rows, COLUMNS)?;
    if !global.quiet && global.output != Form::Json {
        eprintln!("{} of {} that wait", rows.len(), found.total);
    }
    Ok(())
}

fn row(message: &PendingMessage) -> Row {
    let handle = &message.handle;
    Row {
        due_ms: epoch_ms(handle.deliver_at()),
        topic: handle.queue().topic.to_string(),
        broker: handle.queue().broker.to_string(),
        queue: handle.queue().id,
        message_id: handle.message_id().to_string(),
        stored_ms: epoch_ms(message.stored_at),
        stored_bytes: message.stored_bytes,
        handle: handle.to_string(),
    }
}

async fn recall(args: &Recall, global: &Global) -> Result<(), Failure> {
    let admin = admin(global).await?;
    for handle in &args.handles {
        admin.recall(handle).await?;
    }
    let recalled = args.handles.len();
    if global.output == Form::Json {
        return output::json("recalled", &Recalled { recalled });
    }
    if !global.quiet {
        eprintln!("{recalled} taken back: they will not be delivered");
    }
    Ok(())
}
