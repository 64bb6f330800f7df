//! Blocks of the simulated world: plain vectors, handed out with stale content.

use ringmq_core::seam::{Block, Memory};

/// What fresh blocks hold: whoever relies on zeros is found out.
const STALE: u8 = 0xa7;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimBlock {
    bytes: Vec<u8>,
}

impl SimBlock {
    /// A block that holds `bytes`.
    pub fn holding(bytes: Vec<u8>) -> SimBlock {
        SimBlock { bytes }
    }
}

impl Block for SimBlock {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn truncate(&mut self, bytes: usize) {
        self.bytes.truncate(bytes);
    }
}

/// Hands out [`SimBlock`]s.
#[derive(Debug, Clone, Copy)]
pub struct SimMemory;

impl Memory for SimMemory {
    type Block = SimBlock;

    fn allocate(&mut self, bytes: usize) -> SimBlock {
        SimBlock { bytes: vec![STALE; bytes] }
    }
}
