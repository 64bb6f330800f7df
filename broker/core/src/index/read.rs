//! Indexes read as a whole: the directory at start-up, everything when an active segment goes on after a
//! clean stop, everything twice when somebody asks whether a file is good.
//!
//! Invariants:
//! - memory is taken only for rows that the file's length can hold;
//! - what is handed out is sorted, within range and without contradiction (promise: no-trust).

use super::header::Header;
use super::page::check_page;
use super::row::{HashRow, Row, Section, Stretch, TimerRow, TopicRows};
use super::{
    Entry, IndexError, NO_QUEUE, OrderRow, PAGE_BYTES, PLACE_BYTES, QueueRows, SegmentRows,
};
use std::sync::Arc;

/// Reads the directory page by page, in order.
#[derive(Debug)]
pub struct DirectoryReader<'a> {
    header: &'a Header,
    next_page: u32,
    number: u32,
    next_entry: u64,
    last: Option<Stretch>,
}

impl<'a> DirectoryReader<'a> {
    /// Of the index that has this header. The pages to hand in are [`Header::pages_of`] the directory.
    pub fn new(header: &'a Header) -> DirectoryReader<'a> {
        let next_page = header.pages_of(Section::Directory).start;
        DirectoryReader { header, next_page, number: 0, next_entry: 0, last: None }
    }

    /// Takes the pages that follow those taken before; `each` gets the stretches with their numbers. Pages
    /// behind the directory are checked and passed over, so that a read need not end where it does.
    pub fn take(
        &mut self,
        pages: &[u8],
        mut each: impl FnMut(u32, Stretch),
    ) -> Result<(), IndexError> {
        for page in pages.chunks(PAGE_BYTES) {
            let room = check_page(self.header.base, self.next_page, page)
                .ok_or(self.damaged("the checksum does not match"))?;
            for stretch in self.header.rows_in(Section::Directory, self.next_page, room) {
                self.check(&stretch)?;
                each(self.number, stretch);
                self.number += 1;
                self.next_entry += u64::from(stretch.count);
                self.last = Some(stretch);
            }
            self.next_page += 1;
        }
        Ok(())
    }

    /// After the last page: whether everything was there.
    pub fn finish(self) -> Result<(), IndexError> {
        if self.number != self.header.extent(Section::Directory).rows {
            return Err(self.damaged("a part of the directory was not read"));
        }
        if self.next_entry != u64::from(self.header.messages) {
            return Err(self.damaged("the directory speaks of fewer messages than there are"));
        }
        Ok(())
    }

    fn check(&self, stretch: &Stretch) -> Result<(), IndexError> {
        if stretch.first_offset.checked_add(u64::from(stretch.count)).is_none() {
            return Err(self.damaged("a stretch ends beyond all offsets"));
        }
        if stretch.count == 0 || u64::from(stretch.first_entry) != self.next_entry {
            return Err(self.damaged("a stretch does not begin where the one before ends"));
        }
        if self.next_entry + u64::from(stretch.count) > u64::from(self.header.messages) {
            return Err(self.damaged("the directory speaks of more messages than there are"));
        }
        if stretch.last_ms > self.header.newest_ms {
            return Err(self.damaged("a stretch is newer than the segment"));
        }
        let Some(last) = self.last else { return Ok(()) };
        // No overflow: it was checked when `last` was read.
        let last_end = last.first_offset + u64::from(last.count);
        if last.id > stretch.id || (last.id == stretch.id && last_end > stretch.first_offset) {
            return Err(self.damaged("the directory is not sorted"));
        }
        Ok(())
    }

    fn damaged(&self, what: &'static str) -> IndexError {
        IndexError::Damaged { page: self.next_page, what }
    }
}

/// The section of topics, from its pages.
pub fn read_topics(header: &Header, pages: &[u8]) -> Result<Box<[TopicRows]>, IndexError> {
    let mut topics = Vec::with_capacity(header.extent(Section::Topics).rows as usize);
    let expected = header.pages_of(Section::Topics);
    if pages.len() != expected.len() * PAGE_BYTES {
        let what = "a part of the topics was not read";
        return Err(IndexError::Damaged { page: expected.start, what });
    }
    for (number, page) in expected.zip(pages.chunks(PAGE_BYTES)) {
        let room = check_page(header.base, number, page)
            .ok_or(IndexError::Damaged { page: number, what: "the checksum does not match" })?;
        topics.extend(header.rows_in::<TopicRows>(Section::Topics, number, room));
    }
    Ok(topics.into())
}

/// Everything that a whole file holds, so that its segment can go on where it ended. Slots are numbers of the
/// directory, queues come sorted, each with all its entries in one piece; ids and keys come sorted.
pub fn read_rows(file: &[u8]) -> Result<SegmentRows, IndexError> {
    let header = Header::of_file(file)?;
    for (number, page) in (0..header.pages).zip(file.chunks(PAGE_BYTES)) {
        if check_page(header.base, number, page).is_none() {
            let what = "the checksum does not match";
            return Err(IndexError::Damaged { page: number, what });
        }
    }
    let order: Vec<OrderRow> = section(&header, Section::Order, file);
    check_order(&header, &order)?;
    let mut entries = section::<Entry>(&header, Section::Entries, file).into_iter();
    let mut queues = Vec::new();
    for (number, stretch) in directory(&header, file)? {
        let entries: Vec<Entry> = entries.by_ref().take(stretch.count as usize).collect();
        check_entries(&header, number, &stretch, &entries, &order)?;
        queues.push(QueueRows {
            id: stretch.id,
            slot: number,
            first_offset: stretch.first_offset,
            entries: vec![Arc::new(entries)],
        });
    }
    let owned = order.iter().filter(|row| row.queue != NO_QUEUE).count();
    if owned != header.messages as usize {
        return Err(damaged(&header, Section::Order, 0, "a record is of a queue without an entry"));
    }
    Ok(SegmentRows {
        base: header.base,
        bytes: header.bytes,
        end: header.end,
        snapshot: header.snapshot,
        epoch: header.epoch,
        shard: header.shard,
        log_id: header.log_id,
        queues,
        ids: hashes(&header, Section::Ids, file)?,
        keys: hashes(&header, Section::Keys, file)?,
        timers: timers(&header, file, &order)?,
        timers_ms: header.timers_ms,
        order,
    })
}

/// Whether a whole file is, in every byte, the index of the rows that it holds.
pub fn verify(file: &[u8]) -> Result<Header, IndexError> {
    let header = Header::of_file(file)?;
    let rows = read_rows(file)?;
    // Not at start-up, where it took four fifths of the time (88 of 110 ms for 262 144 messages) and who
    // looks a hash up finds out anyway.
    for (section, hashes) in [(Section::Ids, &rows.ids), (Section::Keys, &rows.keys)] {
        let missing = |place| rows.order.binary_search_by_key(&place, |row| row.place).is_err();
        if let Some(number) = hashes.iter().position(|(_, place)| missing(*place)) {
            return Err(damaged(&header, section, number, "a hash of a record that is not there"));
        }
    }
    let again = rows.encode();
    for (number, (page, other)) in
        (0..header.pages).zip(file.chunks(PAGE_BYTES).zip(again.chunks(PAGE_BYTES)))
    {
        if page != other {
            let what = "it does not follow from the messages";
            return Err(IndexError::Damaged { page: number, what });
        }
    }
    if again.len() != file.len() {
        let what = "the sections do not follow from the messages";
        return Err(IndexError::Damaged { page: 0, what });
    }
    Ok(header)
}

fn damaged(header: &Header, section: Section, row: usize, what: &'static str) -> IndexError {
    let page = header.extent(section).first_page + row as u32 / section.per_page();
    IndexError::Damaged { page, what }
}

/// All rows of a section of a file whose pages were checked.
fn section<R: Row>(header: &Header, section: Section, file: &[u8]) -> Vec<R> {
    let mut all = Vec::with_capacity(header.extent(section).rows as usize);
    for page in header.pages_of(section) {
        let begin = page as usize * PAGE_BYTES;
        let bytes = file.get(begin..).unwrap_or_default();
        all.extend(header.rows_in::<R>(section, page, bytes));
    }
    all
}

fn directory(header: &Header, file: &[u8]) -> Result<Vec<(u32, Stretch)>, IndexError> {
    let pages = header.pages_of(Section::Directory);
    let mut stretches = Vec::with_capacity(header.extent(Section::Directory).rows as usize);
    let mut reader = DirectoryReader::new(header);
    let bytes = file
        .get(pages.start as usize * PAGE_BYTES..pages.end as usize * PAGE_BYTES)
        .unwrap_or_default();
    reader.take(bytes, |number, stretch| stretches.push((number, stretch)))?;
    reader.finish()?;
    Ok(stretches)
}

fn check_order(header: &Header, order: &[OrderRow]) -> Result<(), IndexError> {
    // Relative to the base: the header was checked for base <= end.
    let limit = header.end - header.base;
    let mut end = 0;
    for (number, row) in order.iter().enumerate() {
        let begin = u64::from(row.place) * PLACE_BYTES;
        if begin < end || (number > 0 && order[number - 1].place >= row.place) {
            return Err(damaged(header, Section::Order, number, "records overlap"));
        }
        end = begin + u64::from(row.bytes);
        if end > limit {
            return Err(damaged(header, Section::Order, number, "a record lies behind the end"));
        }
    }
    Ok(())
}

/// The entries of one stretch, against the directory and the records.
fn check_entries(
    header: &Header,
    number: u32,
    stretch: &Stretch,
    entries: &[Entry],
    order: &[OrderRow],
) -> Result<(), IndexError> {
    let first = stretch.first_entry as usize;
    let wrong = |n: usize, what| Err(damaged(header, Section::Entries, first + n, what));
    for (n, entry) in entries.iter().enumerate() {
        let Some(row) = order.get(entry.row as usize) else {
            return wrong(n, "an entry of a record that is not there");
        };
        if (row.place, row.bytes, row.queue) != (entry.place, entry.bytes, number) {
            return wrong(n, "an entry contradicts its record");
        }
        let before = n.checked_sub(1).map(|n| entries[n]);
        if before.is_some_and(|b| b.place >= entry.place || b.latest_ms > entry.latest_ms) {
            return wrong(n, "the entries of a queue are not sorted");
        }
    }
    let bytes: u64 = entries.iter().map(|entry| u64::from(entry.bytes)).sum();
    let last_ms = entries.last().map(|entry| entry.latest_ms);
    if bytes != stretch.bytes || last_ms != Some(stretch.last_ms) {
        return wrong(0, "the directory contradicts the entries");
    }
    Ok(())
}

fn timers(header: &Header, file: &[u8], order: &[OrderRow]) -> Result<Vec<TimerRow>, IndexError> {
    let all: Vec<TimerRow> = section(header, Section::Timers, file);
    let wrong = |number, what| Err(damaged(header, Section::Timers, number, what));
    for (number, row) in all.iter().enumerate() {
        if number > 0 && all[number - 1] >= *row {
            return wrong(number, "the delayed messages are not sorted");
        }
        let at = order.binary_search_by_key(&row.place, |row| row.place);
        if !at.is_ok_and(|at| order[at].bytes == row.bytes && order[at].queue == NO_QUEUE) {
            return wrong(number, "a delayed message contradicts its record");
        }
    }
    if all.last().map_or(0, |row| row.due_ms) != header.newest_due_ms {
        return wrong(0, "the header contradicts the delayed messages");
    }
    Ok(all)
}

fn hashes(header: &Header, of: Section, file: &[u8]) -> Result<Vec<(u32, u32)>, IndexError> {
    let all: Vec<HashRow> = section(header, of, file);
    for (number, row) in all.iter().enumerate() {
        if number > 0 && all[number - 1] > *row {
            return Err(damaged(header, of, number, "the hashes are not sorted"));
        }
        if u64::from(row.place) * PLACE_BYTES >= header.end - header.base {
            return Err(damaged(header, of, number, "a hash of a record behind the end"));
        }
    }
    Ok(all.into_iter().map(|row| (row.hash, row.place)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Shape, as_read, segment};
    use super::*;

    const SHAPES: [Shape; 6] = [
        Shape { records: 0, queues: 1, gap_after: 0, keys: 0 },
        Shape { records: 1, queues: 1, gap_after: 0, keys: 1 },
        Shape { records: 5_000, queues: 1, gap_after: 0, keys: 3 },
        Shape { records: 5_000, queues: 1, gap_after: 900, keys: 3 },
        Shape { records: 20_000, queues: 3_000, gap_after: 3, keys: 1_000 },
        Shape { records: 200_000, queues: 8, gap_after: 0, keys: 50_000 },
    ];

    #[test]
    fn what_is_read_is_what_was_written() {
        for (seed, shape) in SHAPES.into_iter().enumerate() {
            let rows = segment(seed as u64, shape);
            let file = rows.encode();
            let read = read_rows(&file).unwrap();
            assert!(read == as_read(&rows), "{shape:?}");
            let header = verify(&file).unwrap();
            assert_eq!(header.messages as usize, rows.ids.len());
            assert_eq!((header.base, header.end, header.bytes), (rows.base, rows.end, rows.bytes));
            header.check_owner(77, 2).unwrap();
            assert_eq!(rows.indexed().pages, header.pages());
            // A segment that goes on from what was read gets the same index.
            assert!(read.encode() == file, "{shape:?}");
        }
    }

    #[test]
    fn a_segment_without_messages_has_an_index_too() {
        let mut rows = segment(3, SHAPES[0]);
        rows.order.push(OrderRow { place: 8, bytes: 64, queue: NO_QUEUE });
        rows.end += 128;
        let header = verify(&rows.encode()).unwrap();
        assert_eq!((header.records, header.messages), (1, 0));
        assert_eq!((header.oldest_ms, header.newest_ms), (0, 0));
    }

    #[test]
    fn the_directory_is_read_in_pieces_of_any_length() {
        let rows = segment(9, SHAPES[4]);
        let file = rows.encode();
        let header = Header::of_file(&file).unwrap();
        let pages = header.pages_of(Section::Directory);
        assert!(pages.len() > 20);
        let expected = as_read(&rows).queues;
        for step in [1, 3, 16, pages.len()] {
            let mut found = Vec::new();
            let mut reader = DirectoryReader::new(&header);
            let bytes = &file[pages.start as usize * PAGE_BYTES..pages.end as usize * PAGE_BYTES];
            for part in bytes.chunks(step * PAGE_BYTES) {
                reader.take(part, |number, stretch| found.push((number, stretch))).unwrap();
            }
            reader.finish().unwrap();
            assert_eq!(found.len(), expected.len());
            for ((number, stretch), queue) in found.iter().zip(&expected) {
                assert_eq!((*number, stretch.id), (queue.slot, queue.id));
                assert_eq!(stretch.first_offset, queue.first_offset);
                assert_eq!(stretch.count as usize, queue.entries[0].len());
                let spot = header.entry_page(stretch.first_entry).unwrap();
                let room = &file[spot.page as usize * PAGE_BYTES..];
                let first = crate::index::row::<Entry>(room, spot.row).unwrap();
                assert_eq!(first, queue.entries[0][0]);
            }
        }
        let reader = DirectoryReader::new(&header);
        assert!(matches!(reader.finish(), Err(IndexError::Damaged { .. })));
        let mut reader = DirectoryReader::new(&header);
        let second = &file[(pages.start as usize + 1) * PAGE_BYTES..][..PAGE_BYTES];
        assert!(reader.take(second, |_, _| ()).is_err());
    }

    #[test]
    fn every_length_but_the_right_one_is_an_error() {
        let file = segment(4, SHAPES[3]).encode();
        for bytes in (0..file.len()).step_by(61).chain([file.len() - 1, 4095, 4096, 4097]) {
            assert!(read_rows(&file[..bytes]).is_err(), "{bytes}");
            assert!(verify(&file[..bytes]).is_err(), "{bytes}");
        }
        let longer = [file.as_slice(), &[0; PAGE_BYTES]].concat();
        assert!(matches!(verify(&longer), Err(IndexError::Truncated { .. })));
    }

    #[test]
    fn a_flipped_bit_is_found_on_its_page() {
        let mut file = segment(5, SHAPES[3]).encode();
        for bit in (0..file.len() * 8).step_by(8 * 331 + 1) {
            file[bit / 8] ^= 1 << (bit % 8);
            let page = (bit / 8 / PAGE_BYTES) as u32;
            for error in [verify(&file).unwrap_err(), read_rows(&file).unwrap_err()] {
                assert!(
                    matches!(error, IndexError::Damaged { page: p, .. } if p == page),
                    "{error}"
                );
            }
            file[bit / 8] ^= 1 << (bit % 8);
        }
        verify(&file).unwrap();
    }

    #[test]
    fn rows_that_contradict_each_other_are_refused() {
        let good = segment(7, Shape { records: 2_000, queues: 3, gap_after: 300, keys: 5 });
        verify(&good.encode()).unwrap();
        let refused = |change: &dyn Fn(&mut SegmentRows)| {
            let mut rows = good.clone();
            change(&mut rows);
            let file = rows.encode();
            assert_eq!(verify(&file).unwrap_err(), read_rows(&file).unwrap_err());
            verify(&file).unwrap_err().to_string()
        };
        let first = |rows: &SegmentRows| rows.queues[0].entries[0][3];
        let time = refused(&|rows| Arc::make_mut(&mut rows.queues[0].entries[0])[3].latest_ms = 0);
        assert!(time.contains("entries of a queue are not sorted"), "{time}");
        let bytes = refused(&|rows| Arc::make_mut(&mut rows.queues[0].entries[0])[3].bytes += 1);
        assert!(bytes.contains("an entry contradicts its record"), "{bytes}");
        let overlap = refused(&|rows| rows.queues.iter_mut().for_each(|q| q.first_offset = 1));
        assert!(overlap.contains("directory is not sorted"), "{overlap}");
        let offsets = refused(&|rows| rows.queues[0].first_offset = u64::MAX);
        assert!(offsets.contains("beyond all offsets"), "{offsets}");
        let long = refused(&|rows| {
            let row = first(rows).row as usize;
            rows.order[row].bytes += 4_096;
        });
        assert!(long.contains("records overlap"), "{long}");
        let end = refused(&|rows| rows.end -= 2_000);
        assert!(end.contains("behind the end"), "{end}");
        let end = refused(&|rows| rows.end = rows.base - 1);
        assert!(end.contains("not of the segment"), "{end}");
        let id = refused(&|rows| rows.ids[3].1 = u32::MAX);
        assert!(id.contains("a hash of a record behind the end"), "{id}");
        let mut rows = good.clone();
        rows.ids[3].1 = 1;
        let id = verify(&rows.encode()).unwrap_err().to_string();
        assert!(id.contains("a hash of a record that is not there"), "{id}");
    }

    /// Whoever writes wrong rows with right checksums is refused, or at least cannot do harm.
    #[test]
    fn wrong_rows_with_right_checksums_never_panic() {
        let rows = segment(6, Shape { records: 400, queues: 5, gap_after: 30, keys: 20 });
        let file = rows.encode();
        let mut refused = 0;
        for seed in 0..4_000_u64 {
            let chance = ringmq_schema::placement::mix(seed + 1);
            let mut pages: Vec<Vec<u8>> = file.chunks(PAGE_BYTES).map(<[u8]>::to_vec).collect();
            let page = (chance % pages.len() as u64) as usize;
            let at =
                if page == 0 { 16 + (chance >> 8) % 144 } else { (chance >> 8) % 900 } as usize;
            pages[page][at] = (chance >> 32) as u8;
            let mut nowhere = |_, _: &[u8]| ();
            let mut writer = crate::index::page::PageWriter::new(rows.base, &mut nowhere);
            for page in pages {
                writer.bytes.extend_from_slice(&page[..crate::index::ROOM_BYTES]);
                writer.close();
            }
            refused += u32::from(verify(&writer.bytes).is_err());
            if let Ok(read) = read_rows(&writer.bytes) {
                read.encode();
            }
        }
        assert!(refused > 3_000, "{refused}");
    }
}
