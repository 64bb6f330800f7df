//! A member of a consumer group as a process of its own, so that a test can kill it.
//!
//! Usage: ringmq-test-consumer NAMESRV GROUP TOPIC. Prints `broker queue offset body-in-hex` for every message before
//! it counts as consumed, and leaves the group when its standard input ends.

use ringmq::{Client, ConsumeFrom, Filter};
use std::convert::Infallible;
use std::io::{Read, Write};
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, namesrv, group, topic] = args.as_slice() else {
        return Err("usage: ringmq-test-consumer NAMESRV GROUP TOPIC".into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(consume(namesrv, group, topic))
}

async fn consume(
    namesrv: &str,
    group: &str,
    topic: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect(namesrv).await?;
    let consumer = client
        .push_consumer(group)
        .subscribe(topic, Filter::all())
        .from(ConsumeFrom::First)
        .commit_interval(Duration::from_millis(200))
        .listen_orderly(|record| async move {
            let queue = record.queue();
            let hex: String = record.body().iter().map(|byte| format!("{byte:02x}")).collect();
            // One write a line: a kill leaves whole lines behind.
            let line = format!("{} {} {} {hex}\n", queue.broker, queue.id, record.offset());
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
            Ok::<(), Infallible>(())
        })
        .await?;
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    consumer.close(Duration::from_secs(10)).await?;
    client.shutdown(Duration::from_secs(10)).await?;
    Ok(())
}
