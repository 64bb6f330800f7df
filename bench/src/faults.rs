//! What can be wrong with messages, counted by kind.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Examples kept of several checkers.
const EXAMPLES_MAX: usize = 20;

/// What went wrong, by kind, and how many messages were seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// Acknowledged, never received.
    pub lost: u64,
    /// Received more than once.
    pub duplicated: u64,
    /// Behind a later one of its stream in the same queue.
    pub out_of_order: u64,
    /// Checksum does not hold.
    pub corrupt: u64,
    /// Offsets that never came between two that did.
    pub offset_gaps: u64,
    /// The first example of each kind, in words.
    pub examples: Vec<String>,
}

impl Faults {
    /// Whether there is none.
    pub fn is_clean(&self) -> bool {
        self.total() == 0
    }

    /// Number of faults of all kinds.
    pub fn total(&self) -> u64 {
        self.lost + self.duplicated + self.out_of_order + self.corrupt + self.offset_gaps
    }

    /// Adds another checker's.
    pub fn merge(&mut self, other: Faults) {
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.out_of_order += other.out_of_order;
        self.corrupt += other.corrupt;
        self.offset_gaps += other.offset_gaps;
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES_MAX);
    }

    /// Counts faults of a kind and keeps the first example of it.
    pub(crate) fn note(
        &mut self,
        kind: fn(&mut Faults) -> &mut u64,
        count: u64,
        example: impl FnOnce() -> String,
    ) {
        let total = kind(self);
        let first = *total == 0;
        *total += count;
        if first {
            self.examples.push(example());
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            (self.lost, "lost"),
            (self.duplicated, "duplicated"),
            (self.out_of_order, "out of order"),
            (self.corrupt, "corrupt"),
            (self.offset_gaps, "missing offsets"),
        ];
        let parts: Vec<String> =
            kinds.iter().map(|(count, name)| format!("{count} {name}")).collect();
        f.write_str(&parts.join(", "))
    }
}
