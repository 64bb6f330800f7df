//! A member of a consumer group as a process of its own, so that a test can kill it.
//!
//! Usage: ringmq-test-consumer NAMESRV GROUP TOPIC orderly|concurrent PAUSE_US. Prints `> broker queue offset ns
//! body-in-hex` when its listener is called with a message and `< broker queue offset ns` PAUSE_US later, before the message counts as
//! consumed. Leaves the group when its standard input ends.

use ringmq::{Client, ConsumeFrom, Filter, Record};
use ringmq_tests::member::now_ns;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::time::Duration;

const CLOSING: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, namesrv, group, topic, order, pause_us] = args.as_slice() else {
        let usage = "ringmq-test-consumer NAMESRV GROUP TOPIC orderly|concurrent PAUSE_US";
        return Err(format!("usage: {usage}").into());
    };
    let pause = Duration::from_micros(pause_us.parse()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::connect(namesrv).await?;
        let consumer = client.push_consumer(group).subscribe(topic, Filter::all());
        let consumer =
            consumer.from(ConsumeFrom::First).commit_interval(Duration::from_millis(200));
        let listener = move |record| note(record, pause);
        let consumer = match order.as_str() {
            "orderly" => consumer.listen_orderly(listener).await?,
            "concurrent" => consumer.listen(listener).await?,
            other => return Err(format!("{other} is neither orderly nor concurrent").into()),
        };
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
        consumer.close(CLOSING).await?;
        client.shutdown(CLOSING).await?;
        Ok(())
    })
}

async fn note(record: Record, pause: Duration) -> Result<(), Infallible> {
    let (queue, offset) = (record.queue(), record.offset());
    let hex: String = record.body().iter().map(|byte| format!("{byte:02x}")).collect();
    say(&format!("> {} {} {offset} {} {hex}\n", queue.broker, queue.id, now_ns()));
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    say(&format!("< {} {} {offset} {}\n", queue.broker, queue.id, now_ns()));
    Ok(())
}

/// One write a line: a kill leaves whole lines behind.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}
