//! Settings of a producer.

use super::Producer;
use crate::client::Client;
use crate::error::Result;
use crate::message::Flush;
use std::time::Duration;

/// Settings of a [`Producer`].
#[derive(Clone)]
#[must_use]
pub struct ProducerBuilder {
    client: Client,
    pub(super) settings: Settings,
    topics: Vec<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) timeout: Duration,
    pub(super) retries: u32,
    pub(super) max_in_flight: usize,
    pub(super) max_in_flight_bytes: usize,
    pub(super) fail_fast: bool,
    pub(super) linger: Duration,
    pub(super) batch_bytes: usize,
    pub(super) flush: Flush,
    pub(super) accept_weaker: bool,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client, name: String) -> ProducerBuilder {
        let settings = Settings {
            name,
            timeout: Duration::from_secs(3),
            retries: 2,
            max_in_flight: 65_536,
            max_in_flight_bytes: 64 << 20,
            fail_fast: false,
            linger: Duration::ZERO,
            batch_bytes: 128 << 10,
            flush: Flush::Default,
            accept_weaker: false,
        };
        ProducerBuilder { client, settings, topics: Vec::new() }
    }

    /// Learns the route of this topic when the producer is built, and fails if there is none.
    pub fn topic(mut self, topic: impl Into<String>) -> ProducerBuilder {
        self.topics.push(topic.into());
        self
    }

    /// Limit for a whole send, retries included, counted from when the window took it. Default 3 s.
    pub fn timeout(mut self, limit: Duration) -> ProducerBuilder {
        self.settings.timeout = limit;
        self
    }

    /// How often a send is tried again, on another broker where there is one. Default 2.
    pub fn retries(mut self, retries: u32) -> ProducerBuilder {
        self.settings.retries = retries;
        self
    }

    /// Most messages taken and not acknowledged. Default 65 536.
    pub fn max_in_flight(mut self, messages: usize) -> ProducerBuilder {
        self.settings.max_in_flight = messages.max(1);
        self
    }

    /// Most bytes taken and not acknowledged. Default 64 MiB. One larger message still goes, alone.
    pub fn max_in_flight_bytes(mut self, bytes: usize) -> ProducerBuilder {
        self.settings.max_in_flight_bytes = bytes.max(1);
        self
    }

    /// With a full window, fail with `WindowFull` instead of waiting. Default off.
    pub fn fail_fast(mut self, fail_fast: bool) -> ProducerBuilder {
        self.settings.fail_fast = fail_fast;
        self
    }

    /// How long a message may wait for others to share its batch. Default 0: whatever waits goes together.
    pub fn linger(mut self, linger: Duration) -> ProducerBuilder {
        self.settings.linger = linger;
        self
    }

    /// Bytes at which a batch goes at once. Default 128 KiB.
    pub fn batch_bytes(mut self, bytes: usize) -> ProducerBuilder {
        self.settings.batch_bytes = bytes;
        self
    }

    /// Durability of messages that do not say their own. Default: the topic's.
    pub fn flush(mut self, flush: Flush) -> ProducerBuilder {
        self.settings.flush = flush;
        self
    }

    /// Messages stored weaker than asked are `Ok` with that status instead of an error. Default off.
    pub fn accept_weaker(mut self, accept: bool) -> ProducerBuilder {
        self.settings.accept_weaker = accept;
        self
    }

    /// Makes the producer.
    pub async fn build(self) -> Result<Producer> {
        for topic in &self.topics {
            self.client.inner.routes().get(topic).await?;
        }
        Ok(Producer::new(self.client, self.settings))
    }
}
