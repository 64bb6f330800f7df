//! Writing zeros ahead of the log's end, so that durable writes find blocks that were written before.
//!
//! On fresh blocks of a file each durable write also converts an extent and waits for the file system's
//! journal: 154–222 µs instead of 121 for 4 KiB (shared/measured.md). While the log is slow the zeros
//! are nearly free; at disk speed they would double the work, so then this stops.
//!
//! Invariants:
//! - never zeros at or below the highest position that was ever to be written;
//! - a write of the log that meets zeros under way waits for them.

use super::memory::BlockMemory;
use super::segment::Segments;
use crate::shard::signal::{Signal, Waiters};
use glommio::io::DmaBuffer;
use ringmq_core::{DiskError, Memory};
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Zeros written at once; 128 appends of 4 KiB then share one extent conversion.
const CHUNK_BYTES: u64 = 512 << 10;
/// Left alone between the log's end and the first zeros, so that the two seldom meet.
const GAP_BYTES: u64 = 128 << 10;
/// Above this the log runs at the disk's speed and zeros are no longer nearly free.
const LOG_BYTES_PER_SECOND_MAX: u64 = 48 << 20;
/// How long the log's speed is watched before it is believed.
const WINDOW: Duration = Duration::from_millis(50);

/// State of the zeros of one shard's log.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// How far ahead; 0 switches it off.
    bytes: u64,
    /// End of the highest write that was begun; `None` before the first.
    end: Cell<Option<u64>>,
    zeroed: Cell<u64>,
    under_way: RefCell<Option<Range<u64>>>,
    waiting: Waiters,
    signal: Signal,
    stopped: Cell<bool>,
    /// A sync of ours failed. The kernel tells each failure once per descriptor: the log's own sync of
    /// the same file would succeed, and what it covers could be gone.
    failure: RefCell<Option<DiskError>>,
}

impl Ahead {
    pub(crate) fn new(bytes: u64) -> Ahead {
        Ahead {
            bytes,
            end: Cell::new(None),
            zeroed: Cell::new(0),
            under_way: RefCell::new(None),
            waiting: Waiters::default(),
            signal: Signal::default(),
            stopped: Cell::new(bytes == 0),
            failure: RefCell::new(None),
        }
    }

    /// The log is about to write there. To be called before anything is awaited.
    pub(crate) fn log_writes(&self, position: u64, bytes: u64) {
        let end = (position + bytes).max(self.end.get().unwrap_or(0));
        self.end.set(Some(end));
        if !self.stopped.get() && self.zeroed.get() < end + self.bytes {
            self.signal.set();
        }
    }

    /// Waits for zeros under way in this range.
    pub(crate) async fn clear(&self, position: u64, bytes: u64) {
        let meets = || {
            let under_way = self.under_way.borrow();
            under_way.as_ref().is_some_and(|z| z.start < position + bytes && position < z.end)
        };
        if meets() {
            self.waiting.wait_while(meets).await;
        }
    }

    /// Why no sync of these files can be believed any more, if one failed here.
    pub(crate) fn failure(&self) -> Option<DiskError> {
        self.failure.borrow().clone()
    }

    /// A segment was made, or the end has come.
    pub(crate) fn look_again(&self) {
        self.signal.set();
    }

    /// Ends [`Ahead::run`].
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
        self.signal.set();
    }

    /// The next range to be zeroed, if there is one within a segment.
    fn next(&self, segments: &Segments) -> Option<Range<u64>> {
        let end = self.end.get()?;
        let target = end + self.bytes;
        let zeroed = self.zeroed.get();
        // Overtaken by the log: begin afresh, a little ahead of it.
        let start = if zeroed < end + GAP_BYTES / 2 { end + GAP_BYTES } else { zeroed };
        let start = start.next_multiple_of(4096);
        let segment = segments.at(start)?;
        if segment.is_recycled {
            // Its blocks were written before.
            self.zeroed.set(segment.end());
            drop(segment);
            return self.next(segments);
        }
        let stop = (start + CHUNK_BYTES).min(segment.end());
        (start + CHUNK_BYTES <= target).then_some(start..stop)
    }

    /// Keeps the zeros ahead of the log until it is stopped.
    pub(crate) async fn run(&self, segments: &Segments) {
        let mut zeros: Option<Rc<DmaBuffer>> = None;
        let mut watched = (Instant::now(), 0);
        while !self.stopped.get() {
            let Some(range) = self.next(segments) else {
                zeros = None;
                self.signal.wait().await;
                continue;
            };
            let (since, end) = (watched.0.elapsed(), self.end.get().unwrap_or(0));
            if since >= WINDOW {
                let speed =
                    (end - watched.1).saturating_mul(1000) / since.as_millis().max(1) as u64;
                watched = (Instant::now(), end);
                if speed > LOG_BYTES_PER_SECOND_MAX {
                    glommio::timer::sleep(WINDOW).await;
                    continue;
                }
            }
            let buffer = zeros.get_or_insert_with(|| {
                let mut block = BlockMemory.allocate(CHUNK_BYTES as usize);
                ringmq_core::Block::bytes_mut(&mut block).fill(0);
                block.shared()
            });
            if let Err(error) = self.zero(segments, Rc::clone(buffer), range).await {
                // A failed write of zeros costs comfort only; a failed sync fails the log's next one.
                tracing::warn!("writing ahead of the log stops: {error}");
                self.stopped.set(true);
            }
        }
    }

    async fn zero(
        &self,
        segments: &Segments,
        zeros: Rc<DmaBuffer>,
        range: Range<u64>,
    ) -> Result<(), DiskError> {
        let operation = || format!("write zeros at {}", range.start);
        let Some(segment) = segments.at(range.start) else { return Ok(()) };
        let file = segment.file(false).await?;
        // Opening took time: the log may have come this far.
        let end = self.end.get().unwrap_or(0);
        if range.start < end + GAP_BYTES / 2 {
            return Ok(());
        }
        let zeros = match (range.end - range.start) as usize {
            bytes if bytes == zeros.len() => zeros,
            bytes => {
                let mut short = glommio::allocate_dma_buffer_global(bytes);
                short.as_bytes_mut().fill(0);
                Rc::new(short)
            }
        };
        assert!(range.start >= end, "zeros never touch what the log writes");
        *self.under_way.borrow_mut() = Some(range.clone());
        let written = file.write_rc_at(zeros, range.start - segment.base).await;
        *self.under_way.borrow_mut() = None;
        self.waiting.wake();
        written.map_err(|error| super::segment::failed(operation(), error))?;
        // The extents of the chunk become written ones now, not with the next append.
        if let Err(error) = file.fdatasync().await {
            let error = super::segment::failed(operation(), error);
            *self.failure.borrow_mut() = Some(error.clone());
            return Err(error);
        }
        self.zeroed.set(range.end);
        Ok(())
    }
}
