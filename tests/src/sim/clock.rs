//! The clocks that shards see: one that only goes on, and a wall clock that jumps.

use ringmq_core::seam::Now;

/// See the module.
#[derive(Debug, Clone)]
pub struct Clock {
    mono_us: u64,
    wall_offset_ms: i64,
}

impl Clock {
    /// Some day in 2026.
    pub fn new() -> Clock {
        Clock { mono_us: 1_000_000, wall_offset_ms: 1_790_000_000_000 }
    }

    /// Microseconds of the clock that only goes on.
    pub fn mono_us(&self) -> u64 {
        self.mono_us
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        let wall_ms = self.wall_offset_ms + (self.mono_us / 1000) as i64;
        Now { mono_us: self.mono_us, wall_ms }
    }

    /// Goes on to `mono_us`, which is not in the past.
    pub fn advance(&mut self, mono_us: u64) {
        assert!(mono_us >= self.mono_us, "events are taken in the order of their times");
        self.mono_us = mono_us;
    }

    /// The wall clock is set.
    pub fn jump(&mut self, ms: i64) {
        self.wall_offset_ms += ms;
    }
}

impl Default for Clock {
    fn default() -> Clock {
        Clock::new()
    }
}
