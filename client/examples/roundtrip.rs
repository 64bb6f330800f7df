//! Sends messages to a topic of its own and receives them again; prints rates and latencies.
//!
//! `cargo run --release -p ringmq --example roundtrip -- [messages] [bytes] [queues]`, with name servers in
//! `NAMESRV_ADDR`.

use ringmq::{Client, ConsumeFrom, Filter, Message, TopicSpec};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ringmq::Error> {
    let mut numbers = std::env::args().skip(1).map(|n| n.parse().expect("a number"));
    let mut number = |default: usize| numbers.next().unwrap_or(default);
    let (count, bytes, queues) = (number(100_000), number(1024), number(4));
    let client = Client::from_env().await?;
    let topic: Arc<str> = format!("roundtrip-{}", std::process::id()).into();
    let admin = client.admin();
    admin.create_topic(TopicSpec::new(&*topic).queues(queues as u32)).await?;

    let producer = client.producer("roundtrip").build().await?;
    let body = bytes::Bytes::from(vec![b'x'; bytes]);
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..2000.min(count) {
        let start = Instant::now();
        let _receipt = producer.send(Message::new(Arc::clone(&topic), body.clone())).await?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    let at = |part: f64| times[(times.len() as f64 * part) as usize];
    println!("one at a time: p50 {:?}, p99 {:?}, p99.9 {:?}", at(0.5), at(0.99), at(0.999));

    let start = Instant::now();
    let mut deliveries = VecDeque::new();
    for _ in times.len()..count {
        let message = Message::new(Arc::clone(&topic), body.clone());
        deliveries.push_back(producer.enqueue(message).await?);
        while deliveries.len() > 10_000 {
            let _receipt = deliveries.pop_front().expect("just seen").await?;
        }
    }
    for delivery in deliveries {
        let _receipt = delivery.await?;
    }
    println!("sent {:.0}/s", (count - times.len()) as f64 / start.elapsed().as_secs_f64());

    let start = Instant::now();
    let received = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&received);
    let done = Arc::new(tokio::sync::Notify::new());
    let notify = Arc::clone(&done);
    let consumer = client
        .push_consumer("roundtrip")
        .subscribe(&*topic, Filter::all())
        .from(ConsumeFrom::First)
        .max_waiting(10_000)
        .listen(move |_record| {
            if counter.fetch_add(1, Ordering::Relaxed) + 1 == count {
                notify.notify_one();
            }
            async { Ok::<(), ringmq::Error>(()) }
        })
        .await?;
    if tokio::time::timeout(Duration::from_secs(60), done.notified()).await.is_err() {
        println!("only {} of {count} came", received.load(Ordering::Relaxed));
    }
    println!("received {:.0}/s", count as f64 / start.elapsed().as_secs_f64());
    consumer.close(Duration::from_secs(5)).await?;
    for lag in admin.lag("roundtrip").await?.iter().filter(|lag| *lag.queue.topic == *topic) {
        println!("{}: {:?} of {}", lag.queue, lag.committed, lag.max_offset);
    }
    admin.delete_topic(&topic).await?;
    client.shutdown(Duration::from_secs(5)).await
}
