//! Why an index cannot be used.

/// Why an index cannot be used. None of it may be retried: the index is made again from its segment, except
/// a newer one, which must be left alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// Not what was written.
    #[error("page {page} of the index is damaged: {what}")]
    Damaged {
        /// Number of the page.
        page: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Shorter or longer than its header says.
    #[error("the index has {bytes} bytes, it should have {expected}")]
    Truncated {
        /// Its length.
        bytes: u64,
        /// What it should be.
        expected: u64,
    },
    /// Whole, but of another segment, shard or log.
    #[error("the index is of another log or segment: {what} {found}, expected {expected}")]
    Foreign {
        /// The field.
        what: &'static str,
        /// What it says.
        found: u64,
        /// What it should say.
        expected: u64,
    },
    /// Written by a newer RingMQ.
    #[error("the index has format version {found}, this RingMQ knows {known}: start a newer one")]
    Newer {
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
}
