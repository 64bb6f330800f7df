//! What tries to break RingMQ's promises: real processes, and a simulated world around the shard core.
//!
//! The simulated world uses nothing of the broker beyond the seam of its core and the schema: a fault of
//! the broker cannot hide behind the same fault in its judge.

pub mod consume;
pub mod durability;
#[cfg(all(feature = "faults", target_os = "linux"))]
pub mod faulty;
pub mod hand_over;
pub mod member;
pub mod server;
pub mod sim;
pub mod site;
pub mod wire;

/// Says something even when the test passes: the test harness keeps back only what the print macros write.
pub fn say(text: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}
