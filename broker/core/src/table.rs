//! A hash map whose order never depends on chance.
//!
//! `std::collections::HashMap` seeds its hasher at random, which no seed of a simulation could replay.
//! Keys here are numbers given by the broker itself, never chosen by a client, so no hasher against
//! crafted collisions is needed; whatever a client names lives in a `BTreeMap`.

use ringmq_schema::placement::mix;
use std::hash::{BuildHasherDefault, Hasher};

/// Map with small integer keys.
#[allow(clippy::disallowed_types)] // The one place: with a fixed hasher the order is reproducible.
pub(crate) type Map<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<MixHasher>>;

/// Mixes what it is fed with the finalizer of splitmix64.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct MixHasher(u64);

impl Hasher for MixHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = mix(self.0.rotate_left(32) ^ value);
    }
}
