//! `group pop`: receives messages as one more consumer of a group would, one by one.

use std::io::{self, Write as _};
use std::time::Duration;

use ringmq::{ConsumeFrom, Filter, Received, SeekTo, SimpleConsumer};

use super::{CLOSE_LIMIT, connect};
use crate::args::{Global, Pop};
use crate::failure::Failure;
use crate::output::{Form, age};
use crate::record_format::write_json;

/// Most messages of one request.
const AT_ONCE: u64 = 32;

pub(super) async fn run(args: &Pop, global: &Global) -> Result<(), Failure> {
    let from = match args.from.seek() {
        SeekTo::First => ConsumeFrom::First,
        SeekTo::Last => ConsumeFrom::Last,
        SeekTo::Time(time) => ConsumeFrom::Time(time),
        SeekTo::Offset(_) => {
            return Err(Failure::usage(
                "a group starts at first, last or a time, not at an offset",
                format!(
                    "`ringmq group reset {} --topic {} --to OFFSET` first",
                    args.group, args.topic
                ),
            ));
        }
    };
    let filter = match &args.sql {
        Some(expression) => Filter::sql(expression),
        None => Filter::tags(&args.tags),
    };
    let client = connect(global).await?;
    let consumer = client
        .simple_consumer(args.group.as_str())
        .subscribe(args.topic.as_str(), filter)
        .invisible_for(args.invisible)
        .from(from)
        .build()
        .await?;
    let popped = pop(&consumer, args, global).await;
    // What came ahead and was not printed is given back.
    consumer.close(CLOSE_LIMIT).await?;
    client.shutdown(CLOSE_LIMIT).await?;
    popped
}

async fn pop(consumer: &SimpleConsumer, args: &Pop, global: &Global) -> Result<(), Failure> {
    let (mut left, mut wait, mut printed) = (args.count, args.wait, 0u64);
    while left > 0 {
        let received = tokio::select! {
            received = consumer.receive(left.min(AT_ONCE) as usize, wait) => received?,
            _ = tokio::signal::ctrl_c() => break,
        };
        if received.is_empty() {
            break;
        }
        // Only the first is waited for.
        wait = Duration::ZERO;
        left -= received.len() as u64;
        printed += received.len() as u64;
        print(&received, args, global.output)?;
        if args.ack {
            // After they were printed, never before.
            let acknowledged = consumer.ack_batch(received).await;
            acknowledged.into_iter().collect::<Result<(), _>>()?;
        }
    }
    if printed > 0 && !args.ack && !global.quiet {
        let time = age(args.invisible);
        eprintln!("not acknowledged: these come back after {time} (--ack acknowledges them)");
    }
    Ok(())
}

fn print(received: &[Received], args: &Pop, form: Form) -> io::Result<()> {
    let mut text = Vec::new();
    for message in received {
        match form {
            Form::Json => write_json(message.record(), &mut text),
            Form::Table | Form::Wide => args.format.write(message.record(), &mut text),
        }
    }
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    out.flush()
}
