//! A simple consumer that shows everything to a run and acknowledges it.

use anyhow::Context as _;
use ringmq::{Client, ConsumeFrom, Filter, Received};
use ringmq_bench::run::Run;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::{JoinHandle, JoinSet};

const RECEIVE: usize = 32;
const WAIT: Duration = Duration::from_millis(200);
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// Loops that receive and acknowledge.
pub struct Popping {
    stop: Arc<AtomicBool>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Popping {
    /// Begins the group and `loops` receivers.
    pub async fn start(
        client: &Client,
        run: &Arc<Run>,
        group: &str,
        topic: &str,
        from: ConsumeFrom,
        loops: usize,
    ) -> anyhow::Result<Popping> {
        let builder = client.simple_consumer(group).subscribe(topic, Filter::all());
        let consumer = builder.from(from).build().await.context("starting the simple consumer")?;
        let stop = Arc::new(AtomicBool::new(false));
        let (run, stopped) = (Arc::clone(run), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut receiving = JoinSet::new();
            for _ in 0..loops {
                let (consumer, run, stopped) =
                    (consumer.clone(), Arc::clone(&run), Arc::clone(&stopped));
                receiving.spawn(async move {
                    while !stopped.load(Ordering::Relaxed) {
                        let messages = consumer.receive(RECEIVE, WAIT).await?;
                        messages.iter().map(Received::record).for_each(|record| {
                            run.note_received(record);
                        });
                        for acknowledged in consumer.ack_batch(messages).await {
                            acknowledged?;
                        }
                    }
                    anyhow::Ok(())
                });
            }
            while let Some(ended) = receiving.join_next().await {
                ended.context("a receiver panicked")??;
            }
            Ok(consumer.close(CLOSE_LIMIT).await?)
        });
        Ok(Popping { stop, task })
    }

    /// Ends it once everything that was received is acknowledged.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.context("the simple consumer panicked")?
    }
}
