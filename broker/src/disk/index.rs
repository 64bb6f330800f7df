//! Reading indexes of sealed segments: aligned O_DIRECT reads, like those of the log.
//!
//! Invariants:
//! - at most [`OPEN_MAX`] indexes of a shard are open, but for those being read;
//! - an index that was replaced is not read from what it was before, once that is known here.

use super::segment::{failed, index_name};
use glommio::io::{DmaFile, OpenOptions, ReadResult};
use ringmq_core::DiskError;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

/// Indexes open at once. A look-up by key goes through all of them, and opening one takes longer than the
/// page that is read of it: with 16, each look-up in 10 GiB (40 segments) opened and closed 40.
pub(super) const OPEN_MAX: usize = 96;

#[derive(Debug)]
struct Open {
    file: Rc<DmaFile>,
    used: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Indexes {
    folder: PathBuf,
    open: RefCell<BTreeMap<u64, Open>>,
    uses: Cell<u64>,
    /// How often one was replaced or removed.
    changes: Cell<u64>,
}

impl Indexes {
    pub(crate) fn new(folder: PathBuf) -> Indexes {
        Indexes { folder, open: RefCell::default(), uses: Cell::new(0), changes: Cell::new(0) }
    }

    /// Reads from the index of the segment at `base`; may come back shorter.
    pub(crate) async fn read(
        &self,
        base: u64,
        at: u64,
        bytes: usize,
    ) -> Result<ReadResult, DiskError> {
        let file = self.file(base).await?;
        let read = file.read_at_aligned(at, bytes).await;
        drop(file);
        self.close_surplus().await;
        read.map_err(|error| {
            failed(format!("read {bytes} bytes at {at} of {}", index_name(base)), error)
        })
    }

    async fn file(&self, base: u64) -> Result<Rc<DmaFile>, DiskError> {
        let used = self.uses.get() + 1;
        self.uses.set(used);
        if let Some(open) = self.open.borrow_mut().get_mut(&base) {
            open.used = used;
            return Ok(Rc::clone(&open.file));
        }
        let changes = self.changes.get();
        let path = self.folder.join(index_name(base));
        let opened = OpenOptions::new().read(true).dma_open(&path).await;
        let opened = opened.map_err(|error| failed(format!("open {}", path.display()), error))?;
        let opened = Rc::new(opened);
        if changes != self.changes.get() {
            // Perhaps this one; good for this read, which was asked for before.
            return Ok(opened);
        }
        let mut open = self.open.borrow_mut();
        let kept = open.entry(base).or_insert(Open { file: opened, used });
        Ok(Rc::clone(&kept.file))
    }

    /// The index of this segment was replaced or goes.
    pub(crate) async fn forget(&self, base: u64) {
        self.changes.set(self.changes.get() + 1);
        let open = self.open.borrow_mut().remove(&base);
        if let Some(open) = open {
            close(base, open).await;
        }
    }

    async fn close_surplus(&self) {
        loop {
            let least = {
                let mut open = self.open.borrow_mut();
                if open.len() <= OPEN_MAX {
                    return;
                }
                let idle = open.iter().filter(|(_, open)| Rc::strong_count(&open.file) == 1);
                let least = idle.min_by_key(|(_, open)| open.used).map(|(base, _)| *base);
                least.and_then(|base| open.remove_entry(&base))
            };
            let Some((base, least)) = least else { return };
            close(base, least).await;
        }
    }

    /// Closes all.
    pub(crate) async fn close(&self) {
        for (base, open) in self.open.take() {
            close(base, open).await;
        }
    }

    #[cfg(test)]
    pub(super) fn open_files(&self) -> usize {
        self.open.borrow().len()
    }
}

async fn close(base: u64, open: Open) {
    if let Err(error) = open.file.close_rc().await {
        tracing::warn!("closing {}: {error}", index_name(base));
    }
}
