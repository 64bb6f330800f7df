//! Records one by one, for pops: from windows that were read, or by a read that others may share.

use super::super::Shard;
use super::super::locate::PageName;
use super::gather::cut;
use super::parked::IndexRead;
use super::windows::Range;
use crate::index::PAGE_BYTES;
use crate::seam::{Action, Block, Memory, Outbox, Slice};
use std::rc::Rc;

/// Reads of an index under way with which none is begun that nobody waits for.
const PAGES_AHEAD_MAX: usize = 8;

impl<M: Memory> Shard<M> {
    /// A record in a window that is kept; `used` is the one that was used last, with its position.
    pub(in super::super) fn read_record(
        &mut self,
        position: u64,
        bytes: u32,
        used: &mut Option<(u64, Rc<M::Block>)>,
    ) -> Option<Slice<M::Block>> {
        let segment = self.log.segment_of(position)?;
        self.windows.record(used, segment.base, position, bytes)
    }

    /// Somebody has come to this window: those behind it may be read.
    pub(in super::super) fn came_to(&mut self, start: u64, out: &mut Outbox<M::Block>) {
        if let Some(segment) = self.log.segment_of(start) {
            self.read_ahead(start, segment, out);
        }
    }

    /// Begins to read the window in which a record lies, or (`alone`) no more than the record. Returns `false` when its
    /// segment is gone.
    pub(in super::super) fn read_record_for(
        &mut self,
        reader: u64,
        position: u64,
        bytes: u32,
        alone: bool,
        out: &mut Outbox<M::Block>,
    ) -> bool {
        let Some(segment) = self.log.segment_of(position) else { return false };
        let end = position + u64::from(bytes);
        let range = Range::of(segment.base, position, end, alone);
        if range.alone || !self.windows.join(reader, range.start, end) {
            self.read_range(range, segment, vec![reader], out);
        }
        if !range.alone {
            self.read_ahead(range.start, segment, out);
        }
        true
    }

    /// Reads the window in which a record lies before anybody waits for it. Returns `false` when nothing would be kept of it.
    pub(in super::super) fn prepare_record(
        &mut self,
        position: u64,
        bytes: u32,
        out: &mut Outbox<M::Block>,
    ) -> bool {
        let Some(segment) = self.log.segment_of(position) else { return false };
        let range = Range::of(segment.base, position, position + u64::from(bytes), false);
        if range.alone || !self.windows.keeps(range.bytes.min(segment.bytes)) {
            return false;
        }
        // One that is kept and has not got it was read before the record was there.
        if !self.windows.is_coming(range.start) && self.windows.may_read_ahead() {
            self.read_range(range, segment, Vec::new(), out);
        }
        true
    }

    /// Reads pages of an index before anybody waits for them, unless enough others are read.
    pub(in super::super) fn prepare_page(&mut self, pages: PageName, out: &mut Outbox<M::Block>) {
        if self.fetches.pages_under_way.len() < PAGES_AHEAD_MAX {
            self.read_page_for(None, pages, out);
        }
    }

    /// Reads pages of an index for whom waits for them, or (`None`) for whoever comes next. All who want the same pages
    /// share one read.
    pub(in super::super) fn read_page_for(
        &mut self,
        reader: Option<u64>,
        pages: PageName,
        out: &mut Outbox<M::Block>,
    ) {
        let under_way = self.fetches.pages_under_way.get(&pages);
        match under_way.and_then(|read| self.fetches.index_reads.get_mut(read)) {
            Some(read) => read.readers.extend(reader),
            None => {
                let read = self.read_index(pages, reader.into_iter().collect(), out);
                self.fetches.pages_under_way.insert(pages, read);
            }
        }
    }

    /// Begins to read pages of an index.
    pub(super) fn read_index(
        &mut self,
        pages: PageName,
        readers: Vec<u64>,
        out: &mut Outbox<M::Block>,
    ) -> u64 {
        self.figures.index_reads += u64::from(pages.count);
        let read = self.fetches.next;
        self.fetches.next += 1;
        let changes = self.mending.changes;
        self.fetches.index_reads.insert(read, IndexRead { pages, readers, changes });
        let at = u64::from(pages.page) * PAGE_BYTES as u64;
        let bytes = pages.count * PAGE_BYTES as u32;
        out.actions.push(Action::ReadIndex { read, base: pages.base, at, bytes });
        read
    }
}

/// A record in what was read, if it lies there.
pub(in super::super) fn cut_from<B: Block>(
    held: Option<&(u64, Rc<B>)>,
    position: u64,
    bytes: u32,
) -> Option<Slice<B>> {
    held.and_then(|(start, block)| cut(*start, block, position, bytes))
}
