//! The log's files as a shard sees them while it recovers; the machine may fail meanwhile.

use crate::sim::disk::Disk;
use ringmq_core::seam::{BLOCK_BYTES, DiskError, LogFiles, SegmentFile};
use std::collections::BTreeSet;

/// See the module.
pub(super) struct Files<'a> {
    disk: &'a mut Disk,
    /// Calls until the machine fails.
    calls: Option<u64>,
    /// Whether it did.
    pub(super) failed: bool,
    /// Indexes that were written do not say what their segments say.
    pub(super) wrong: Option<String>,
    /// Topics of which they leave out messages.
    pub(super) left_out: BTreeSet<u32>,
}

impl<'a> Files<'a> {
    /// Files of a disk; after `calls` calls nothing answers any more.
    pub(super) fn new(disk: &'a mut Disk, calls: Option<u64>) -> Files<'a> {
        Files { disk, calls, failed: false, wrong: None, left_out: BTreeSet::new() }
    }

    /// What is left for the next shard.
    pub(super) fn calls_left(&self) -> Option<u64> {
        self.calls
    }

    fn call(&mut self, operation: &str) -> Result<(), DiskError> {
        let Some(calls) = &mut self.calls else { return Ok(()) };
        if *calls > 0 {
            *calls -= 1;
            return Ok(());
        }
        self.failed = true;
        let operation = operation.to_owned();
        Err(DiskError { operation, reason: "the simulated machine is gone".to_owned() })
    }

    fn check(&self, what: &str, position: u64, bytes: u64) {
        assert!(self.disk.has(position, bytes), "{what} of {bytes} at {position} is in no segment");
    }
}

impl LogFiles for Files<'_> {
    fn segments(&mut self) -> Result<Vec<SegmentFile>, DiskError> {
        self.call("list")?;
        Ok(self.disk.segments())
    }

    fn read(&mut self, position: u64, out: &mut [u8]) -> Result<(), DiskError> {
        self.call("read")?;
        self.check("read", position, out.len() as u64);
        self.disk.read(position, out);
        Ok(())
    }

    fn wipe(&mut self, position: u64, bytes: u64) -> Result<(), DiskError> {
        self.check("wipe", position, bytes);
        let unit = BLOCK_BYTES as u64;
        assert!(
            position.is_multiple_of(unit) && bytes.is_multiple_of(unit),
            "wipe of {bytes} bytes at {position} is not aligned"
        );
        if let Err(error) = self.call("wipe") {
            self.disk.wipe_in_part(position, bytes);
            return Err(error);
        }
        self.disk.wipe(position, bytes);
        Ok(())
    }

    fn index_bytes(&mut self, base: u64) -> Result<Option<u64>, DiskError> {
        self.call("look at an index")?;
        Ok(self.disk.index(base).map(|index| index.len() as u64))
    }

    fn read_index(&mut self, base: u64, at: u64, out: &mut [u8]) -> Result<(), DiskError> {
        self.call("read an index")?;
        let range = at as usize..at as usize + out.len();
        let Some(bytes) = self.disk.index(base).and_then(|index| index.get(range)) else {
            let operation = format!("read {} bytes at {at} of index {base}", out.len());
            return Err(DiskError { operation, reason: "they are not there".to_owned() });
        };
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn write_index(&mut self, base: u64, bytes: &[u8]) -> Result<(), DiskError> {
        match self.disk.compare_index(base, bytes) {
            Ok(topics) => self.left_out.extend(topics),
            Err(wrong) => self.wrong = Some(wrong),
        }
        if let Err(error) = self.call("write an index") {
            self.disk.write_index_or_not(base, bytes);
            return Err(error);
        }
        self.disk.write_index(base, bytes);
        Ok(())
    }

    fn remove_index(&mut self, base: u64) -> Result<(), DiskError> {
        if let Err(error) = self.call("remove an index") {
            self.disk.forget_index_or_not(base);
            return Err(error);
        }
        self.disk.forget_index(base);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.call("sync")?;
        self.disk.sync_all();
        Ok(())
    }
}
