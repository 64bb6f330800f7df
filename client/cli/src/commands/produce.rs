//! `topic produce`: lines, or messages made up for it, through one producer with a bounded window.

use std::io::{IsTerminal as _, stdin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use ringmq::{Delivery, Message, Producer};
use serde::Serialize;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, BufReader};

use super::{CLOSE_LIMIT, connect};
use crate::args::{Global, Produce};
use crate::failure::Failure;
use crate::output::{self, Form};

/// Messages on their way at a time.
const IN_FLIGHT: usize = 4096;
/// A body that is made up has at least its number.
const SIZE_DEFAULT: u64 = 1024;

#[derive(Serialize)]
struct Summary {
    topic: String,
    messages: u64,
    bytes: u64,
    elapsed_ms: u64,
}

pub(super) async fn run(args: &Produce, global: &Global) -> Result<(), Failure> {
    let client = connect(global).await?;
    let producer = client
        .producer("ringmq-cli")
        .topic(args.topic.as_str())
        .timeout(global.timeout)
        .flush(args.flush.map_or(ringmq::Flush::Default, Into::into))
        .build()
        .await?;
    let start = Instant::now();
    let mut sender = Sender::new(producer, args);
    match (args.count, &args.file) {
        (Some(count), _) => {
            let bytes = args.size.unwrap_or(SIZE_DEFAULT);
            for number in 0..count {
                sender.send(made_up(number, bytes)).await?;
            }
        }
        (None, Some(path)) => {
            let file = tokio::fs::File::open(path).await.map_err(|error| {
                Failure::new(format!("cannot read {}: {error}", path.display()), "another --file")
            })?;
            sender.send_lines(BufReader::new(file)).await?;
        }
        (None, None) => {
            if stdin().is_terminal() && !global.quiet {
                eprintln!("every line is a message; Ctrl-D ends");
            }
            sender.send_lines(BufReader::new(tokio::io::stdin())).await?;
        }
    }
    let (messages, bytes) = sender.finish().await?;
    client.shutdown(CLOSE_LIMIT).await?;
    let topic = args.topic.clone();
    let summary =
        Summary { topic, messages, bytes, elapsed_ms: output::milliseconds(start.elapsed()) };
    report(&summary, start.elapsed(), global)
}

fn report(summary: &Summary, elapsed: Duration, global: &Global) -> Result<(), Failure> {
    if global.output == Form::Json {
        return output::json("produced", summary);
    }
    if !global.quiet {
        let rate = summary.messages as f64 / elapsed.as_secs_f64().max(1e-9);
        eprintln!(
            "sent {} messages ({}) to {} in {:.2} s, {rate:.0}/s",
            summary.messages,
            output::bytes(summary.bytes),
            summary.topic,
            elapsed.as_secs_f64()
        );
    }
    Ok(())
}

/// The number first, so that a person can tell messages apart; then filler.
fn made_up(number: u64, bytes: u64) -> Vec<u8> {
    let mut body = format!("message {number}").into_bytes();
    body.resize(usize::try_from(bytes).unwrap_or(usize::MAX).max(1), b'.');
    body
}

/// A producer and what it has on its way.
struct Sender<'a> {
    producer: Producer,
    args: &'a Produce,
    topic: Arc<str>,
    waiting: FuturesUnordered<Delivery>,
    messages: u64,
    bytes: u64,
}

impl<'a> Sender<'a> {
    fn new(producer: Producer, args: &'a Produce) -> Sender<'a> {
        let topic = args.topic.as_str().into();
        Sender { producer, args, topic, waiting: FuturesUnordered::new(), messages: 0, bytes: 0 }
    }

    async fn send_lines(&mut self, mut from: impl AsyncBufRead + Unpin) -> Result<(), Failure> {
        let mut line = Vec::new();
        loop {
            line.clear();
            tokio::select! {
                // While nobody types, what was sent is still waited for: a failure shows at once.
                biased;
                Some(delivered) = self.waiting.next(), if !self.waiting.is_empty() => {
                    let _receipt = delivered?;
                    continue;
                }
                read = from.read_until(b'\n', &mut line) => if read? == 0 { return Ok(()) },
            }
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            self.send(std::mem::take(&mut line)).await?;
        }
    }

    async fn send(&mut self, body: Vec<u8>) -> Result<(), Failure> {
        self.bytes += body.len() as u64;
        self.messages += 1;
        let mut message =
            Message::new(Arc::clone(&self.topic), body).keys(self.args.keys.iter().cloned());
        for (key, value) in &self.args.properties {
            message = message.property(key, value);
        }
        if let Some(tag) = &self.args.tag {
            message = message.tag(tag);
        }
        if let Some(group) = &self.args.group {
            message = message.group(group);
        }
        if let Some(delay) = self.args.delay {
            message = message.deliver_after(delay);
        }
        self.waiting.push(self.producer.enqueue(message).await?);
        while self.waiting.len() >= IN_FLIGHT {
            if let Some(delivered) = self.waiting.next().await {
                let _receipt = delivered?;
            }
        }
        Ok(())
    }

    /// Waits for everything and gives the count of messages and bytes.
    async fn finish(mut self) -> Result<(u64, u64), Failure> {
        while let Some(delivered) = self.waiting.next().await {
            let _receipt = delivered?;
        }
        Ok((self.messages, self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_bodies_have_the_size_asked_for() {
        assert_eq!(made_up(7, 20), b"message 7...........");
        assert_eq!(made_up(7, 3), b"mes");
        assert_eq!(made_up(7, 0).len(), 1);
    }
}
