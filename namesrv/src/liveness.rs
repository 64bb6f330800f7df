//! Who was heard of when: brokers that fall silent go.
//!
//! No clock: time comes with each call, in ms since some start. The shell asks [`Liveness::expired`] at
//! least at [`Liveness::next_expiry`].

use crate::route::Session;
use std::collections::HashMap;

/// See the module.
#[derive(Debug)]
pub struct Liveness {
    expiry_ms: u64,
    heard: HashMap<Session, u64>,
}

impl Liveness {
    /// Sessions expire when nothing was heard of them for `expiry_ms`.
    pub fn new(expiry_ms: u64) -> Liveness {
        Liveness { expiry_ms, heard: HashMap::new() }
    }

    /// A broker's session said something.
    pub fn heard(&mut self, session: Session, now_ms: u64) {
        self.heard.insert(session, now_ms);
    }

    /// The session is over.
    pub fn forget(&mut self, session: Session) {
        self.heard.remove(&session);
    }

    /// Time since the session was last heard of.
    pub fn idle_ms(&self, session: Session, now_ms: u64) -> Option<u64> {
        Some(now_ms.saturating_sub(*self.heard.get(&session)?))
    }

    /// Takes out the sessions that are silent for too long.
    pub fn expired(&mut self, now_ms: u64) -> Vec<Session> {
        let expiry_ms = self.expiry_ms;
        let silent = |heard: u64| now_ms.saturating_sub(heard) >= expiry_ms;
        let mut gone: Vec<_> =
            self.heard.iter().filter(|(_, heard)| silent(**heard)).map(|(s, _)| *s).collect();
        gone.sort_unstable();
        for session in &gone {
            self.heard.remove(session);
        }
        gone
    }

    /// When the next session expires if nothing more is heard of it.
    pub fn next_expiry(&self) -> Option<u64> {
        self.heard.values().min().map(|heard| heard + self.expiry_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_silent_go_and_the_heard_stay() {
        let mut liveness = Liveness::new(10_000);
        assert_eq!(liveness.next_expiry(), None);
        liveness.heard(1, 0);
        liveness.heard(2, 4_000);
        assert_eq!(liveness.next_expiry(), Some(10_000));
        assert_eq!(liveness.expired(9_999), []);
        liveness.heard(1, 9_999);
        assert_eq!(liveness.expired(14_000), [2]);
        assert_eq!(liveness.idle_ms(1, 14_000), Some(4_001));
        assert_eq!(liveness.idle_ms(2, 14_000), None);
        liveness.forget(1);
        assert_eq!(liveness.expired(u64::MAX), []);
    }

    #[test]
    fn a_clock_that_stands_still_expires_nobody() {
        let mut liveness = Liveness::new(10);
        liveness.heard(1, 100);
        assert_eq!(liveness.expired(50), []);
        assert_eq!(liveness.idle_ms(1, 50), Some(0));
    }
}
