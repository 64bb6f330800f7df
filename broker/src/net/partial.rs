//! The beginning of a frame whose rest has not come yet.
//!
//! Invariant: memory is kept for the next long frame, but not by a connection that is quiet.

use std::time::Instant;

/// Memory for unfinished frames that a quiet connection keeps.
pub(super) const KEPT_BYTES: usize = 4 << 10;

/// An unfinished frame.
#[derive(Debug, Default)]
pub(crate) struct Partial {
    /// The first `filled` bytes count.
    pub(crate) bytes: Vec<u8>,
    pub(crate) filled: usize,
    pub(crate) since: Option<Instant>,
}

impl Partial {
    /// Keeps the beginning of a frame.
    pub(crate) fn keep(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return self.clear();
        }
        if self.bytes.len() < bytes.len() {
            self.bytes.resize(bytes.len(), 0);
        }
        self.bytes[..bytes.len()].copy_from_slice(bytes);
        self.filled = bytes.len();
        self.since = Some(Instant::now());
    }

    pub(crate) fn clear(&mut self) {
        self.filled = 0;
        self.since = None;
    }
}
