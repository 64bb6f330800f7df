//! A message that was received, with its receipt.

use super::check_time;
use super::engine::Engine;
use super::places::Place;
use crate::error::{Error, Result};
use crate::record::Record;
use ringmq_schema::pop::Receipt;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A message, and the right to say what becomes of it: everything that a [`Record`] has, and one of
/// [`Received::ack`], [`Received::retry_after`]. One that is dropped comes back when its invisible time is over.
#[must_use = "a message that is not acknowledged comes back"]
pub struct Received {
    record: Record,
    pub(super) receipt: Receipt,
    pub(super) group_id: u32,
    pub(super) place: Arc<Place>,
    /// About when it may be handed to somebody else.
    until: Instant,
    engine: Arc<Engine>,
}

impl Received {
    pub(super) fn new(
        record: Record,
        receipt: Receipt,
        group_id: u32,
        place: Arc<Place>,
        until: Instant,
        engine: Arc<Engine>,
    ) -> Received {
        Received { record, receipt, group_id, place, until, engine }
    }

    /// Acknowledges it: it is done for the group. [`crate::ErrorKind::BadReceipt`] says that its time was over and
    /// somebody else has it.
    pub async fn ack(self) -> Result<()> {
        let receipts = vec![self.receipt];
        let mut done = self.engine.receipts.ack(&self.place, self.group_id, receipts).await;
        done.pop().unwrap_or(Ok(())).map_err(|error| error.on(self.name()))
    }

    /// Keeps it from the other members for so long from now on; up to 12 h.
    pub async fn extend(&mut self, time: Duration) -> Result<()> {
        let invisible_ms = check_time("extend", time, 0)?;
        let begun = Instant::now();
        let changed = self.engine.receipts.change("extend", self, invisible_ms).await;
        let nonce = changed.map_err(|error| error.on(self.name()))?;
        let (topic, queue) = (self.receipt.topic(), self.receipt.queue());
        self.receipt = Receipt::new(topic, queue, self.receipt.offset(), nonce);
        self.until = begun + time;
        Ok(())
    }

    /// Gives it back: it is delivered again after this time, with the next attempt; up to 12 h.
    pub async fn retry_after(self, time: Duration) -> Result<()> {
        let invisible_ms = check_time("retry", time, 0)?;
        let changed = self.engine.receipts.change("retry", &self, invisible_ms).await;
        changed.map(|_| ()).map_err(|error| error.on(self.name()))
    }

    /// The message itself, to keep. It is neither acknowledged nor given back by that.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// About how much of its invisible time is left.
    pub fn time_left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// When it comes back if it is not acknowledged.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    pub(super) fn name(&self) -> String {
        format!("{} offset {}", self.record.queue(), self.record.offset())
    }
}

impl Deref for Received {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.record
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("record", &self.record)
            .field("time_left", &self.time_left())
            .finish_non_exhaustive()
    }
}

/// What a refused receipt means.
pub(super) fn bad_receipt(operation: &'static str) -> Error {
    let mut error = Error::of_status(operation, ringmq_schema::error::Status::BadReceipt);
    error.say(
        "its receipt counts no more: its invisible time was over and it was handed out again, or the group was reset",
    );
    error
}
