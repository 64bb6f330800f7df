//! Busy polling: a core that had something to do just now looks for what comes next before it goes to sleep.
//!
//! A sleeping CPU takes long to wake, on virtual machines some 50 µs; a client with one message in flight pays that twice,
//! when its request comes and when its write has ended. Invariants:
//! - only cores that have a CPU of their own do it, and only for [`BusyPoll::most_us`] after the last request or answer;
//! - nothing depends on it.

use super::core::Core;
use super::signal::Signal;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// With more requests that wait for the disk the core has enough to do without.
const WAITING_MAX: usize = 8;
/// Waits for the next round of the executor, in which rings and timers are looked at.
const ROUND: Duration = Duration::from_micros(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct BusyPoll {
    most_us: u64,
    until_us: Cell<u64>,
    begins: Signal,
}

impl BusyPoll {
    /// 0: none.
    pub(crate) fn new(most_us: u64) -> BusyPoll {
        BusyPoll { most_us, until_us: Cell::new(0), begins: Signal::default() }
    }

    /// Something came or went, and so many requests wait for the disk.
    pub(crate) fn extend(&self, now_us: u64, waiting: usize) {
        if self.most_us > 0 && waiting <= WAITING_MAX {
            self.until_us.set(now_us + self.most_us);
            self.begins.set();
        }
    }

    /// Ends it for good.
    pub(crate) fn end(&self) {
        self.begins.set();
    }
}

/// Polls when it is time, until the core has finished.
pub(crate) async fn run(core: Rc<Core>) {
    while !core.has_finished() {
        core.busy.begins.wait().await;
        while !core.has_finished() && core.state.now().mono_us < core.busy.until_us.get() {
            glommio::timer::sleep(ROUND).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_for_a_while_after_what_happened_last_unless_there_is_enough_to_do() {
        let busy = BusyPoll::new(500);
        busy.extend(1_000, 0);
        assert_eq!(busy.until_us.get(), 1_500);
        busy.extend(1_400, WAITING_MAX);
        assert_eq!(busy.until_us.get(), 1_900);
        busy.extend(1_800, WAITING_MAX + 1);
        assert_eq!(busy.until_us.get(), 1_900, "many wait: completions wake the core anyway");
        let none = BusyPoll::new(0);
        none.extend(1_000, 0);
        assert_eq!(none.until_us.get(), 0);
    }
}
