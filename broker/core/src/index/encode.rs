//! From the rows of a segment to the bytes of its index.
//!
//! Invariants:
//! - one content has one encoding: whatever order queues, ids and keys come in, the file is the same;
//! - no row is left out, except stretches without an entry.

use super::filter;
use super::header::{Extent, Header};
use super::page::PageWriter;
use super::row::{HashRow, Row, Section, Stretch, TimerRow, TopicRows};
use super::{
    Indexed, NO_QUEUE, OrderRow, PAGE_BYTES, Pages, QueueRows, ROOM_BYTES, SegmentRows, StretchRow,
};
use std::collections::BTreeMap;

impl SegmentRows {
    /// The index file.
    pub fn encode(&self) -> Vec<u8> {
        let mut file = Vec::with_capacity(self.capacity());
        self.encode_to(&mut |at, bytes| {
            let (from, to) = (at as usize, at as usize + bytes.len());
            file.resize(file.len().max(to), 0);
            file[from..to].copy_from_slice(bytes);
        });
        file
    }

    /// Gives the index file away in pieces and where each begins: whole pages, each after the one before, and at
    /// the end the first page once more.
    pub fn encode_to(&self, give: &mut dyn FnMut(u64, &[u8])) {
        let directory = self.directory();
        let entries = directory.iter().flat_map(|(_, queue)| queue.entries.iter());
        let mut out = PageWriter::new(self.base, give);
        out.close();
        // What a section needs in another order is there only while it is written.
        let [stretches, topics, entries, order] = [
            write(&mut out, directory.iter().map(|(stretch, _)| *stretch)),
            write(&mut out, topics(&directory).into_values()),
            write(&mut out, entries.flat_map(|chunk| chunk.iter().copied())),
            write(&mut out, self.order_on_disk(&directory).into_iter()),
        ];
        let mut timers = self.timers.clone();
        timers.sort_unstable();
        let (ids, keys) = (sorted(&self.ids), sorted(&self.keys));
        let filter = |rows: &[HashRow]| filter::build(rows.iter().map(|row| row.hash));
        let rows = [
            stretches,
            topics,
            entries,
            order,
            write(&mut out, timers.into_iter()),
            write(&mut out, ids.iter().copied()),
            write(&mut out, keys.iter().copied()),
            write(&mut out, fences(&ids)),
            write(&mut out, fences(&keys)),
            write_rooms(&mut out, &filter(&ids)),
            write_rooms(&mut out, &filter(&keys)),
        ];
        let (sections, pages) = Header::lay_out(rows).expect("counted while it was written");
        assert_eq!(pages, out.number(), "every page is laid out");
        out.end(&self.header(&directory, sections, pages).room());
    }

    /// What the shard keeps of the index.
    pub fn indexed(&self) -> Indexed {
        let directory = self.directory();
        let stretches = directory.iter().zip(0..).map(|((stretch, queue), number)| StretchRow {
            slot: queue.slot,
            first_offset: stretch.first_offset,
            count: stretch.count,
            number,
            first_entry: stretch.first_entry,
        });
        let topics: Box<[TopicRows]> = topics(&directory).into_values().collect();
        let pages_of = |rows: usize, section: Section| count_of(rows).div_ceil(section.per_page());
        let messages = directory.iter().map(|(stretch, _)| stretch.count as usize).sum();
        let entries = 1
            + pages_of(directory.len(), Section::Directory)
            + pages_of(topics.len(), Section::Topics);
        let order = entries + pages_of(messages, Section::Entries);
        let pages = Pages {
            entries,
            order,
            records: count_of(self.order.len()),
            stretches: count_of(directory.len()),
            timers: order + pages_of(self.order.len(), Section::Order),
            timer_rows: count_of(self.timers.len()),
            newest_due_ms: self.newest_due_ms(),
            timers_ms: self.timers_ms,
        };
        Indexed { stretches: stretches.collect(), topics, pages }
    }

    fn newest_due_ms(&self) -> i64 {
        self.timers.iter().map(|row| row.due_ms).max().unwrap_or(0)
    }

    fn header(
        &self,
        directory: &[(Stretch, &QueueRows)],
        sections: [Extent; Section::ALL.len()],
        pages: u32,
    ) -> Header {
        let first =
            |queue: &QueueRows| queue.entries.iter().find_map(|chunk| chunk.first().copied());
        let oldest = directory.iter().filter_map(|(_, queue)| first(queue)).map(|e| e.latest_ms);
        Header {
            log_id: self.log_id,
            shard: self.shard,
            base: self.base,
            bytes: self.bytes,
            end: self.end,
            snapshot: self.snapshot,
            epoch: self.epoch,
            oldest_ms: oldest.min().unwrap_or(0),
            newest_ms: directory.iter().map(|(stretch, _)| stretch.last_ms).max().unwrap_or(0),
            records: sections[Section::Order as usize].rows,
            messages: sections[Section::Entries as usize].rows,
            pages,
            sections,
            newest_due_ms: self.newest_due_ms(),
            timers_ms: self.timers_ms,
        }
    }

    /// Stretches as they are numbered on disk.
    fn directory(&self) -> Vec<(Stretch, &QueueRows)> {
        let mut queues: Vec<&QueueRows> = self
            .queues
            .iter()
            .filter(|queue| queue.entries.iter().any(|c| !c.is_empty()))
            .collect();
        queues.sort_by_key(|queue| (queue.id, queue.first_offset));
        let mut next_entry = 0;
        let mut directory = Vec::with_capacity(queues.len());
        for queue in queues {
            let count = queue.entries.iter().map(|chunk| chunk.len()).sum();
            let entries = queue.entries.iter().flat_map(|chunk| chunk.iter());
            let last = queue.entries.iter().rev().find_map(|chunk| chunk.last());
            let stretch = Stretch {
                id: queue.id,
                first_offset: queue.first_offset,
                count: count_of(count),
                first_entry: count_of(next_entry),
                bytes: entries.map(|entry| u64::from(entry.bytes)).sum(),
                last_ms: last.map_or(0, |entry| entry.latest_ms),
            };
            next_entry += count;
            directory.push((stretch, queue));
        }
        directory
    }

    /// The records with numbers of the directory in place of slots. A slot may have several stretches, so it
    /// is the entry of a record that says which. What no entry speaks of belongs to no queue.
    fn order_on_disk(&self, directory: &[(Stretch, &QueueRows)]) -> Vec<OrderRow> {
        let mut order: Vec<OrderRow> =
            self.order.iter().map(|row| OrderRow { queue: NO_QUEUE, ..*row }).collect();
        for (number, (_, queue)) in directory.iter().enumerate() {
            for entry in queue.entries.iter().flat_map(|chunk| chunk.iter()) {
                let row = entry.row as usize;
                assert_eq!(
                    self.order[row].queue, queue.slot,
                    "an entry names the row of its record"
                );
                assert_eq!(
                    self.order[row].place, entry.place,
                    "an entry lies where its record does"
                );
                order[row].queue = count_of(number);
            }
        }
        order
    }

    /// Close to what the file comes to, so that it is not copied while it grows.
    fn capacity(&self) -> usize {
        let hashes = self.ids.len() + self.keys.len();
        let rows = self.order.len() * (OrderRow::BYTES + super::Entry::BYTES)
            + hashes * (HashRow::BYTES + 2)
            + self.timers.len() * TimerRow::BYTES
            + self.queues.len() * (Stretch::BYTES + TopicRows::BYTES);
        rows + rows / 64 + PAGE_BYTES * Section::ALL.len()
    }
}

fn count_of(rows: usize) -> u32 {
    u32::try_from(rows).expect("a segment has fewer than 2^32 rows of a kind")
}

fn sorted(pairs: &[(u32, u32)]) -> Vec<HashRow> {
    let mut rows: Vec<HashRow> =
        pairs.iter().map(|(hash, place)| HashRow { hash: *hash, place: *place }).collect();
    rows.sort_unstable_by_key(|row| u64::from(row.hash) << 32 | u64::from(row.place));
    rows
}

fn topics(directory: &[(Stretch, &QueueRows)]) -> BTreeMap<u32, TopicRows> {
    let mut topics = BTreeMap::new();
    for (stretch, _) in directory {
        let topic = stretch.id.topic;
        let rows = topics.entry(topic).or_insert(TopicRows {
            topic,
            records: 0,
            bytes: 0,
            newest_ms: stretch.last_ms,
        });
        rows.records += stretch.count;
        rows.bytes += stretch.bytes;
        rows.newest_ms = rows.newest_ms.max(stretch.last_ms);
    }
    topics
}

/// First hash of each page.
fn fences(rows: &[HashRow]) -> impl Iterator<Item = u32> {
    rows.chunks(Section::Ids.per_page() as usize)
        .filter_map(|page| page.first())
        .map(|row| row.hash)
}

/// Writes a section from a fresh page on; answers how many rows it has.
fn write<R: Row>(out: &mut PageWriter<'_>, rows: impl Iterator<Item = R>) -> u32 {
    let per_page = ROOM_BYTES / R::BYTES;
    let mut written = 0;
    for row in rows {
        if written > 0 && written % per_page == 0 {
            out.close();
        }
        row.put(&mut out.bytes);
        written += 1;
    }
    if written > 0 {
        out.close();
    }
    count_of(written)
}

fn write_rooms(out: &mut PageWriter<'_>, rooms: &[[u8; ROOM_BYTES]]) -> u32 {
    for room in rooms {
        out.bytes.extend_from_slice(room);
        out.close();
    }
    count_of(rooms.len())
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Shape, as_read, segment};
    use super::super::{PAGE_BYTES, check_page, read_rows};
    use super::*;
    use std::sync::Arc;

    const SHAPE: Shape = Shape { records: 9_000, queues: 50, gap_after: 70, keys: 30 };

    #[test]
    fn one_content_has_one_encoding() {
        let rows = segment(21, SHAPE);
        let file = rows.encode();
        let mut other = rows.clone();
        other.queues.reverse();
        other.ids.reverse();
        other.keys.reverse();
        for queue in &mut other.queues {
            let all = queue.entries.iter().flat_map(|chunk| chunk.iter().copied()).collect();
            queue.entries = vec![Arc::new(Vec::new()), Arc::new(all)];
        }
        assert!(other.encode() == file);
    }

    #[test]
    fn a_large_index_is_given_away_in_pieces() {
        let rows = segment(24, Shape { records: 60_000, ..SHAPE });
        let mut pieces = Vec::new();
        rows.encode_to(&mut |at, bytes| pieces.push((at, bytes.len())));
        let (first_page, others) = pieces.split_last().unwrap();
        assert_eq!(*first_page, (0, PAGE_BYTES));
        assert!(others.len() >= 3, "{others:?}");
        let ends = others.iter().map(|(at, bytes)| at + *bytes as u64);
        assert!(others.iter().map(|(at, _)| *at).skip(1).eq(ends.take(others.len() - 1)));
        let read = read_rows(&rows.encode()).unwrap();
        assert!(read.encode() == rows.encode());
    }

    #[test]
    fn a_stretch_without_entries_is_left_out() {
        let rows = segment(22, SHAPE);
        let mut with = rows.clone();
        for queue in 0..9 {
            let id = crate::peer::QueueId { topic: 3, queue };
            let entries = (0..queue % 3).map(|_| Arc::new(Vec::new())).collect();
            with.queues.push(QueueRows { id, slot: 77, first_offset: 0, entries });
        }
        assert!(with.encode() == rows.encode());
    }

    #[test]
    fn a_record_that_no_entry_speaks_of_belongs_to_no_queue() {
        let mut rows = segment(23, SHAPE);
        let gone = rows.queues.pop().unwrap();
        let read = read_rows(&rows.encode()).unwrap();
        assert!(read == as_read(&rows));
        for entry in gone.entries.iter().flat_map(|chunk| chunk.iter()) {
            assert_eq!(read.order[entry.row as usize].queue, NO_QUEUE);
        }
    }

    #[test]
    fn topics_are_the_sums_of_their_queues() {
        let rows = segment(24, SHAPE);
        let file = rows.encode();
        let header = Header::of_file(&file).unwrap();
        let page = header.topic_page(0).unwrap().page;
        let begin = page as usize * PAGE_BYTES;
        let room = check_page(rows.base, page, &file[begin..begin + PAGE_BYTES]).unwrap();
        let topics: Vec<TopicRows> = header.rows_in(Section::Topics, page, room).collect();
        assert_eq!(topics.iter().map(|t| t.topic).collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
        for topic in topics {
            let of_topic = rows.queues.iter().filter(|queue| queue.id.topic == topic.topic);
            let entries: Vec<_> =
                of_topic.flat_map(|queue| queue.entries.iter()).flat_map(|c| c.iter()).collect();
            assert_eq!(topic.records as usize, entries.len());
            assert_eq!(topic.bytes, entries.iter().map(|e| u64::from(e.bytes)).sum::<u64>());
            assert_eq!(Some(topic.newest_ms), entries.iter().map(|e| e.latest_ms).max());
        }
    }

    #[test]
    fn an_index_is_small_and_its_memory_is_taken_once() {
        let rows = segment(25, Shape { records: 100_000, queues: 10, gap_after: 0, keys: 0 });
        let file = rows.encode();
        assert!(file.len() < rows.ids.len() * 49, "{} for {}", file.len(), rows.ids.len());
        assert!(file.len() <= rows.capacity(), "{} of {}", file.len(), rows.capacity());
    }
}
