//! Records one by one, for pops: from windows that were read, or by a read that others may share.

use super::super::Shard;
use super::super::locate::PageName;
use super::gather::cut;
use super::windows::{Range, window_of};
use crate::index::PAGE_BYTES;
use crate::seam::{Action, Block, Memory, Outbox, Slice};
use std::rc::Rc;

impl<M: Memory> Shard<M> {
    /// A record in a window that is kept; `used` is the one that was used last, with its position.
    pub(in super::super) fn read_record(
        &mut self,
        position: u64,
        bytes: u32,
        used: &mut Option<(u64, Rc<M::Block>)>,
    ) -> Option<Slice<M::Block>> {
        if let Some(slice) = cut_from(used.as_ref(), position, bytes) {
            return Some(slice);
        }
        let segment = self.log.segment_of(position)?;
        let start = window_of(segment.base, position);
        let block = self.windows.get(start, position + u64::from(bytes))?;
        let slice = cut(start, &block, position, bytes);
        *used = Some((start, block));
        slice
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

    /// Begins to read pages of an index.
    pub(in super::super) fn read_page_for(
        &mut self,
        reader: u64,
        page: PageName,
        out: &mut Outbox<M::Block>,
    ) {
        self.figures.index_reads += u64::from(page.count);
        let read = self.fetches.next;
        self.fetches.next += 1;
        self.fetches.index_reads.insert(read, (page, reader, self.mending.changes));
        let at = u64::from(page.page) * PAGE_BYTES as u64;
        let bytes = page.count * PAGE_BYTES as u32;
        out.actions.push(Action::ReadIndex { read, base: page.base, at, bytes });
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
