//! Page 0: whose index it is, what it covers, where each section lies.
//!
//! | at | field |
//! |---|---|
//! | 0 | "RMQI", format version u32, log id u64, base u64 |
//! | 24 | segment's bytes u64, end u64, snapshot u64, epoch u32, shard u16, 0 u16 |
//! | 56 | oldest and newest store time i64, i64; records, messages, pages u32 each, 0 u32 |
//! | 88 | for each of ten sections: first page u32, rows u32 |
//!
//! Invariants:
//! - a header that was read describes a file in which every row of every section has exactly one page;
//! - magic, version and checksum keep their places in every version, so that a newer file is told from a
//!   damaged one.

use super::page::check_page;
use super::row::{Fields, Row, Section, rows};
use super::{IndexError, PAGE_BYTES, ROOM_BYTES};

/// First bytes of an index.
pub const MAGIC: [u8; 4] = *b"RMQI";
/// Version of the format.
pub const VERSION: u32 = 2;

/// Where a section lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extent {
    /// Number of its first page; of what follows when it has none.
    pub first_page: u32,
    /// Rows it has.
    pub rows: u32,
}

/// Where a row lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// Number of its page in the file.
    pub page: u32,
    /// Its number in the page.
    pub row: usize,
}

/// The header of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Identity of the shard's log.
    pub log_id: u64,
    /// The shard.
    pub shard: u16,
    /// Position of the segment's first byte.
    pub base: u64,
    /// The segment's length.
    pub bytes: u64,
    /// End of what the index covers.
    pub end: u64,
    /// See [`super::SegmentRows::snapshot`].
    pub snapshot: u64,
    /// Epoch of the last unit covered.
    pub epoch: u32,
    /// Lowest [`super::Entry::latest_ms`]; 0 without messages.
    pub oldest_ms: i64,
    /// Highest [`super::Entry::latest_ms`]; 0 without messages.
    pub newest_ms: i64,
    /// Records, those of the shard's own state included.
    pub records: u32,
    /// Messages of queues.
    pub messages: u32,
    /// Pages of the whole file, this one included.
    pub pages: u32,
    pub(super) sections: [Extent; Section::ALL.len()],
    /// Latest due time of a delayed message; 0 without any.
    pub newest_due_ms: i64,
    /// Newest store time of a delayed message; 0 without any.
    pub timers_ms: i64,
}

impl Header {
    /// Reads the first page of the index of the segment at `base`.
    pub fn read(page: &[u8], base: u64) -> Result<Header, IndexError> {
        if page.len() < PAGE_BYTES {
            return Err(IndexError::Truncated {
                bytes: page.len() as u64,
                expected: PAGE_BYTES as u64,
            });
        }
        let Some(room) = check_page(base, 0, page) else {
            return Err(match stated_base(page) {
                Some(found) if check_page(found, 0, page).is_some() => {
                    IndexError::Foreign { what: "base", found, expected: base }
                }
                _ => IndexError::Damaged { page: 0, what: "the checksum does not match" },
            });
        };
        Header::from_room(room, base)
    }

    /// Reads the header from a room that was checked, as a cache holds it.
    pub fn from_room(room: &[u8], base: u64) -> Result<Header, IndexError> {
        let mut fields = Fields(room);
        let damaged = IndexError::Damaged { page: 0, what: "it ends within the header" };
        let (magic, version) = fields.array().zip(fields.u32()).ok_or(damaged.clone())?;
        if magic != MAGIC {
            return Err(IndexError::Damaged { page: 0, what: "it does not begin with RMQI" });
        }
        if version > VERSION {
            return Err(IndexError::Newer { found: version, known: VERSION });
        }
        if version != VERSION {
            return Err(IndexError::Damaged { page: 0, what: "it is of an earlier version" });
        }
        let header = Header::take(&mut fields).ok_or(damaged)?;
        if header.base != base {
            return Err(IndexError::Foreign { what: "base", found: header.base, expected: base });
        }
        header.check()?;
        Ok(header)
    }

    /// Reads the header of a whole file, which says itself which segment it is of.
    pub fn of_file(file: &[u8]) -> Result<Header, IndexError> {
        let page = file.get(..PAGE_BYTES).unwrap_or(file);
        let header = Header::read(page, stated_base(page).unwrap_or(0))?;
        header.check_length(file.len() as u64)?;
        Ok(header)
    }

    /// Whether it is of this shard's log.
    pub fn check_owner(&self, log_id: u64, shard: u16) -> Result<(), IndexError> {
        if self.log_id != log_id {
            let (found, expected) = (self.log_id, log_id);
            return Err(IndexError::Foreign { what: "log id", found, expected });
        }
        if self.shard != shard {
            let (found, expected) = (u64::from(self.shard), u64::from(shard));
            return Err(IndexError::Foreign { what: "shard", found, expected });
        }
        Ok(())
    }

    /// Whether the file is as long as the header says.
    pub fn check_length(&self, bytes: u64) -> Result<(), IndexError> {
        let expected = u64::from(self.pages) * PAGE_BYTES as u64;
        if bytes == expected { Ok(()) } else { Err(IndexError::Truncated { bytes, expected }) }
    }

    /// Where a section lies.
    pub fn extent(&self, section: Section) -> Extent {
        self.sections[section as usize]
    }

    /// Numbers of the pages of a section.
    pub fn pages_of(&self, section: Section) -> std::ops::Range<u32> {
        let extent = self.extent(section);
        // No overflow: the sum was checked when the header was read.
        extent.first_page..extent.first_page + extent.rows.div_ceil(section.per_page())
    }

    /// Number of rows of a section on one page of the file.
    pub fn rows_on(&self, section: Section, page: u32) -> usize {
        if !self.pages_of(section).contains(&page) {
            return 0;
        }
        let extent = self.extent(section);
        let before = (page - extent.first_page) * section.per_page();
        (extent.rows - before).min(section.per_page()) as usize
    }

    /// Rows of a section on one page of the file, whose room this is.
    pub fn rows_in<R: Row>(
        &self,
        section: Section,
        page: u32,
        room: &[u8],
    ) -> impl Iterator<Item = R> {
        debug_assert_eq!(R::BYTES, section.row_bytes());
        rows(room, self.rows_on(section, page))
    }

    /// Where a row lies; `None` when there are not as many.
    pub fn spot(&self, section: Section, row: u32) -> Option<Spot> {
        let extent = self.extent(section);
        (row < extent.rows).then(|| Spot {
            page: extent.first_page + row / section.per_page(),
            row: (row % section.per_page()) as usize,
        })
    }

    /// What a shard keeps of it.
    pub fn pages(&self) -> super::Pages {
        let first = |section| self.extent(section).first_page;
        let (entries, order) = (first(Section::Entries), first(Section::Order));
        let stretches = self.extent(Section::Directory).rows;
        let Extent { first_page: timers, rows: timer_rows } = self.extent(Section::Timers);
        super::Pages {
            entries,
            order,
            records: self.records,
            stretches,
            timers,
            timer_rows,
            newest_due_ms: self.newest_due_ms,
            timers_ms: self.timers_ms,
        }
    }

    /// Where an [`super::Entry`] lies.
    pub fn entry_page(&self, entry: u32) -> Option<Spot> {
        self.spot(Section::Entries, entry)
    }

    /// Where an [`super::OrderRow`] lies.
    pub fn order_page(&self, row: u32) -> Option<Spot> {
        self.spot(Section::Order, row)
    }

    /// Where a [`super::Stretch`] lies.
    pub fn directory_page(&self, number: u32) -> Option<Spot> {
        self.spot(Section::Directory, number)
    }

    /// Where a [`super::TopicRows`] lies.
    pub fn topic_page(&self, number: u32) -> Option<Spot> {
        self.spot(Section::Topics, number)
    }

    /// Lays the sections out by the rows they have.
    pub(super) fn lay_out(
        rows: [u32; Section::ALL.len()],
    ) -> Option<([Extent; Section::ALL.len()], u32)> {
        let mut page = 1_u32;
        let mut sections = [Extent::default(); Section::ALL.len()];
        for (section, rows) in Section::ALL.into_iter().zip(rows) {
            sections[section as usize] = Extent { first_page: page, rows };
            page = page.checked_add(rows.div_ceil(section.per_page()))?;
        }
        Some((sections, page))
    }

    pub(super) fn room(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ROOM_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        for field in [self.log_id, self.base, self.bytes, self.end, self.snapshot] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&u32::from(self.shard).to_le_bytes());
        out.extend_from_slice(&self.oldest_ms.to_le_bytes());
        out.extend_from_slice(&self.newest_ms.to_le_bytes());
        for field in [self.records, self.messages, self.pages, 0] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for extent in self.sections {
            out.extend_from_slice(&extent.first_page.to_le_bytes());
            out.extend_from_slice(&extent.rows.to_le_bytes());
        }
        out.extend_from_slice(&self.newest_due_ms.to_le_bytes());
        out.extend_from_slice(&self.timers_ms.to_le_bytes());
        out
    }

    fn take(fields: &mut Fields<'_>) -> Option<Header> {
        let [log_id, base, bytes, end, snapshot] =
            [fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?];
        let (epoch, shard) = (fields.u32()?, fields.u16()?);
        fields.u16()?;
        let (oldest_ms, newest_ms) = (fields.i64()?, fields.i64()?);
        let [records, messages, pages, _] =
            [fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?];
        let mut sections = [Extent::default(); Section::ALL.len()];
        for extent in &mut sections {
            *extent = Extent { first_page: fields.u32()?, rows: fields.u32()? };
        }
        Some(Header {
            log_id,
            shard,
            base,
            bytes,
            end,
            snapshot,
            epoch,
            oldest_ms,
            newest_ms,
            records,
            messages,
            pages,
            sections,
            newest_due_ms: fields.i64()?,
            timers_ms: fields.i64()?,
        })
    }

    fn check(&self) -> Result<(), IndexError> {
        let damaged = |what| Err(IndexError::Damaged { page: 0, what });
        let Some(limit) = self.base.checked_add(self.bytes) else {
            return damaged("the segment ends beyond all positions");
        };
        if self.end < self.base || self.end > limit {
            return damaged("it covers what is not of the segment");
        }
        if self.oldest_ms > self.newest_ms {
            return damaged("the oldest message is newer than the newest");
        }
        let laid_out = Header::lay_out(self.sections.map(|extent| extent.rows));
        if laid_out != Some((self.sections, self.pages)) {
            return damaged("the sections do not follow each other");
        }
        let count = |section| self.extent(section).rows;
        if count(Section::Order) != self.records || count(Section::Entries) != self.messages {
            return damaged("the sections have other rows than there are records");
        }
        if count(Section::Timers) > self.records {
            return damaged("more delayed messages than there are records");
        }
        for (table, fences, filter) in [
            (Section::Ids, Section::IdFences, Section::IdFilter),
            (Section::Keys, Section::KeyFences, Section::KeyFilter),
        ] {
            if count(fences) != count(table).div_ceil(table.per_page()) {
                return damaged("not every page of hashes has its fence");
            }
            if (count(filter) == 0) != (count(table) == 0) {
                return damaged("hashes without a filter");
            }
        }
        Ok(())
    }
}

/// The base that a header names.
fn stated_base(page: &[u8]) -> Option<u64> {
    let mut fields = Fields(page.get(16..)?);
    page.starts_with(&MAGIC).then(|| fields.u64())?
}

#[cfg(test)]
mod tests {
    use super::super::page::PageWriter;
    use super::super::samples::{BASE, Shape, segment};
    use super::*;

    fn page() -> Vec<u8> {
        let shape = Shape { records: 3_000, queues: 200, gap_after: 0, keys: 40 };
        segment(1, shape).encode()[..PAGE_BYTES].to_vec()
    }

    fn changed(at: usize, bytes: &[u8], base: u64) -> Result<Header, IndexError> {
        let mut room = page()[..ROOM_BYTES].to_vec();
        room[at..at + bytes.len()].copy_from_slice(bytes);
        let mut nowhere = |_, _: &[u8]| ();
        let mut writer = PageWriter::new(base, &mut nowhere);
        writer.bytes = room;
        writer.close();
        Header::read(&writer.bytes, BASE)
    }

    #[test]
    fn what_is_foreign_newer_or_damaged_is_told_apart() {
        let page = page();
        let header = Header::read(&page, BASE).unwrap();
        header.check_owner(77, 2).unwrap();
        for (log_id, shard, what) in [(78, 2, "log id"), (77, 3, "shard")] {
            let error = header.check_owner(log_id, shard).unwrap_err();
            assert!(matches!(error, IndexError::Foreign { what: w, .. } if w == what));
        }
        let error = Header::read(&page, BASE + 8).unwrap_err();
        assert!(matches!(error, IndexError::Foreign { what: "base", found: BASE, .. }));
        assert_eq!(
            changed(4, &9_u32.to_le_bytes(), BASE),
            Err(IndexError::Newer { found: 9, known: VERSION })
        );
        assert!(matches!(changed(4, &[0; 4], BASE), Err(IndexError::Damaged { .. })));
        assert!(matches!(changed(0, b"LOGS", BASE), Err(IndexError::Damaged { .. })));
        assert!(matches!(Header::read(&page[..100], BASE), Err(IndexError::Truncated { .. })));
        assert!(matches!(Header::read(&[0; PAGE_BYTES], 0), Err(IndexError::Damaged { .. })));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut page = page();
        for bit in 0..PAGE_BYTES * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            let read = Header::read(&page, BASE);
            assert!(
                matches!(read, Err(IndexError::Damaged { page: 0, .. })),
                "bit {bit}: {read:?}"
            );
            page[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_header_that_contradicts_itself_is_damaged() {
        for at in [24, 32, 56, 72, 76, 80, 88, 92, 108, 116, 124, 148, 164, 172] {
            let read = changed(at, &[0xff; 4], BASE);
            // Where a longer segment or an earlier oldest message is meant, that may be.
            let harmless = [24, 56].contains(&at);
            assert!(harmless || matches!(read, Err(IndexError::Damaged { .. })), "{at}: {read:?}");
        }
        assert!(matches!(changed(24, &[0xff; 8], BASE), Err(IndexError::Damaged { .. })));
    }

    #[test]
    fn every_row_has_one_page() {
        let header = Header::read(&page(), BASE).unwrap();
        let mut pages = 1;
        for section in Section::ALL {
            let extent = header.extent(section);
            let range = header.pages_of(section);
            assert_eq!(range.start, pages);
            let on_pages: usize = range.clone().map(|page| header.rows_on(section, page)).sum();
            assert_eq!(on_pages, extent.rows as usize);
            for row in 0..extent.rows {
                let spot = header.spot(section, row).unwrap();
                assert!(spot.row < header.rows_on(section, spot.page));
            }
            assert_eq!(header.spot(section, extent.rows), None);
            assert_eq!(header.spot(section, u32::MAX), None);
            assert_eq!(header.rows_on(section, range.end), 0);
            pages = range.end;
        }
        assert_eq!(pages, header.pages);
    }
}
