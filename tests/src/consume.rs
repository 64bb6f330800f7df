//! A group's consumer, through the public client.
#![allow(clippy::missing_panics_doc)] // Panicking is how a test says that a promise is broken.

use crate::server::eventually;
use crate::site::wait_for_topic;
use ringmq::{Client, ConsumeFrom, Filter};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How often each queue and offset was delivered.
pub type Delivered = BTreeMap<(u32, u64), u32>;

/// Consumes a topic as a member of a group, a new one from the first offset on, until `is_enough`; then leaves
/// with what was consumed committed.
pub fn consume(
    namesrv: SocketAddr,
    group: &str,
    topic: &str,
    is_enough: impl Fn(&Delivered) -> bool + Send + 'static,
) -> Delivered {
    let got: Arc<Mutex<Delivered>> = Arc::default();
    let (into, seen) = (Arc::clone(&got), Arc::clone(&got));
    let runtime = tokio::runtime::Runtime::new().expect("threads can be made");
    let consumed = runtime.block_on(async move {
        let client = Client::connect(&namesrv.to_string()).await?;
        wait_for_topic(&client, topic).await;
        let consumer = client.push_consumer(group).subscribe(topic, Filter::all());
        let listener = move |record: ringmq::Record| {
            let place = (record.queue().id, record.offset());
            *into.lock().expect("not poisoned").entry(place).or_default() += 1;
            async { Ok::<(), Infallible>(()) }
        };
        let consumer = consumer.from(ConsumeFrom::First).listen(listener).await?;
        let waiting = tokio::task::spawn_blocking(move || {
            eventually("it is consumed", || is_enough(&seen.lock().expect("not poisoned")));
        });
        waiting.await.expect("enough is consumed in time");
        consumer.close(Duration::from_secs(10)).await?;
        client.shutdown(Duration::from_secs(10)).await
    });
    consumed.expect("a consumer joins, consumes and leaves");
    let got = got.lock().expect("not poisoned");
    got.clone()
}
