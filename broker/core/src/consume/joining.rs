//! Members that join one after another: queues are dealt out anew when they have come, not for each.
//!
//! Invariant: nobody waits longer than [`LONGEST_US`] for its part, however many go on joining.

/// So long after a member joined no other did: all are there. Consumers that are started together join within some
/// 10 ms of each other.
const QUIET_US: u64 = 200_000;
/// The first that joined waits no longer.
const LONGEST_US: u64 = 1_000_000;

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Joining {
    /// When the first and the last joined of those for whom nothing was dealt out yet.
    waiting: Option<(u64, u64)>,
}

impl Joining {
    /// A member joined that may wait a moment.
    pub(crate) fn joined(&mut self, now_us: u64) {
        let (first_us, _) = self.waiting.unwrap_or((now_us, now_us));
        self.waiting = Some((first_us, now_us));
    }

    /// Queues are dealt out at once, to all that are there.
    pub(crate) fn cut_short(&mut self) {
        self.waiting = None;
    }

    /// Somebody waits: who has a queue keeps it until they are dealt out.
    pub(crate) fn is_under_way(&self) -> bool {
        self.waiting.is_some()
    }

    /// Ends it when its time has come; says so.
    pub(crate) fn end(&mut self, now_us: u64) -> bool {
        let ends = self.waiting.is_some_and(|(first_us, last_us)| {
            now_us >= last_us + QUIET_US || now_us >= first_us + LONGEST_US
        });
        if ends {
            self.waiting = None;
        }
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_after_a_quiet_moment_or_a_second() {
        let mut joining = Joining::default();
        assert!(!joining.is_under_way() && !joining.end(u64::MAX / 2));
        joining.joined(50);
        assert!(joining.is_under_way() && !joining.end(50 + QUIET_US - 1));
        assert!(joining.end(50 + QUIET_US) && !joining.is_under_way());
        let mut now_us = 50;
        joining.joined(now_us);
        while !joining.end(now_us) {
            now_us += 100_000;
            if joining.is_under_way() {
                joining.joined(now_us);
            }
        }
        assert_eq!(now_us, 50 + LONGEST_US);
        joining.joined(now_us);
        joining.cut_short();
        assert!(!joining.is_under_way());
    }
}
