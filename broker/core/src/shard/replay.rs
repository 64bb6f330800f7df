//! What recovery hands on becomes the tables of a shard.
//!
//! Invariants:
//! - each record says what is: what a snapshot said before it does not matter;
//! - behind damage offsets may jump, never fall: what was lost is never given again (promise: fifo).

use super::OpenError;
use super::retention::SegmentTopics;
use super::sealing::Sealing;
use crate::config::ShardConfig;
use crate::consume::offsets::Offsets;
use crate::hole::{Hole, Holes};
use crate::index::{
    DirectoryReader, Entry, Header, IndexError, PAGE_BYTES, Pages, QueueRows, Section, SegmentRows,
    TimerRow,
};
use crate::log::recovery::{Fenced, Replay};
use crate::log::{Put, Segment, note};
use crate::peer::{Change, QueueId, RegistryChange};
use crate::pop::{self, Pops};
use crate::queue::{Queues, Stretch};
use crate::registry::Registry;
use crate::seam::LogFiles;
use crate::snapshot::{self, Item};
use crate::state;
use crate::timer::{Delayed, Key, Marks};
use ringmq_schema::placement::shard_of_queue;
use ringmq_schema::record::{FLAG_DELAYED, HEADER_BYTES, Kind, RecordHeader, RecordRef};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// See the module.
pub(super) struct Tables {
    shard: u16,
    shards: u16,
    log_id: u64,
    pub(super) queues: Queues,
    pub(super) registry: Registry,
    pub(super) offsets: Offsets,
    pub(super) pops: Pops,
    /// Rows of the segment that is read, and up to where its messages are known without reading.
    pub(super) rows: SegmentRows,
    pub(super) touched: Sealing,
    /// What sealed segments hold of each topic.
    pub(super) topics: SegmentTopics,
    /// Segments that have an index, and where its rows lie.
    pub(super) indexes: Vec<(u32, Pages)>,
    /// Topics and groups that went after the snapshot began.
    gone_topics: BTreeSet<u32>,
    gone_groups: BTreeSet<u32>,
    known: u64,
    /// State counts: a snapshot began, or the log is read from its very beginning.
    has_state: bool,
    /// The log is there from its very beginning.
    is_whole: bool,
    is_damaged: bool,
    /// By slot: first offset that was there when the snapshot was taken.
    first_known: BTreeMap<u32, u64>,
    /// Segments were taken from their indexes, which leave out topics that are gone.
    has_index: bool,
    /// What the files held when recovery began is durable.
    is_synced: bool,
    pub(super) holes: Holes,
    pub(super) timers: Marks,
    pub(super) delayed: Delayed,
    /// Delayed messages in segments without an index, by base.
    pub(super) timer_rows: Vec<(u64, Vec<TimerRow>)>,
    /// Bounds of the segments that were read.
    bounds: BTreeMap<u64, u64>,
    /// Slots with a record behind the last damage.
    seen: BTreeSet<u32>,
}

impl Tables {
    pub(super) fn new(config: &ShardConfig, is_home: bool) -> Tables {
        Tables {
            shard: config.shard,
            shards: config.shards,
            log_id: config.log_id,
            queues: Queues::default(),
            registry: Registry::new(is_home),
            offsets: Offsets::default(),
            pops: Pops::default(),
            rows: SegmentRows::default(),
            touched: Sealing::default(),
            topics: SegmentTopics::default(),
            indexes: Vec::new(),
            gone_topics: BTreeSet::new(),
            gone_groups: BTreeSet::new(),
            known: 0,
            has_state: false,
            is_whole: false,
            is_damaged: false,
            first_known: BTreeMap::new(),
            has_index: false,
            is_synced: false,
            holes: Holes::default(),
            timers: Marks::default(),
            delayed: Delayed::default(),
            timer_rows: Vec::new(),
            bounds: BTreeMap::new(),
            seen: BTreeSet::new(),
        }
    }

    /// Everything was read. What indexes say of topics that are gone goes; after damage queues without a record
    /// behind it may have lost some, and their offsets with them. Returns what is damage and no hole.
    pub(super) fn finish(
        &mut self,
        mut fenced: Vec<Fenced>,
        segments: &VecDeque<Segment>,
    ) -> Vec<Fenced> {
        self.keep_expired(segments);
        fenced.retain(|range| !self.holes.cover(range.from, range.to));
        let gone = |topic: &u32| self.registry.is_deleted(*topic);
        let topics: BTreeSet<u32> = self.queues.topics().filter(gone).collect();
        for topic in topics {
            self.queues.forget_topic(topic);
            self.offsets.forget_topic(topic);
            self.pops.forget_topic(topic);
        }
        self.topics.forget_if(|topic| self.registry.is_deleted(topic));
        self.delayed.forget_if(|topic| self.registry.is_deleted(topic));
        self.timers.settle(segments.front().map_or(0, |segment| segment.base));
        self.timer_rows.push((self.rows.base, self.rows.timers.clone()));
        // The last segment is full and has its index: there is nothing to seal, and nothing to seal it with.
        let end = self.rows.base + self.rows.bytes;
        if self.known >= end {
            self.timer_rows.retain(|(base, _)| *base != self.rows.base);
            self.rows = SegmentRows { base: end, ..SegmentRows::default() };
        }
        let bytes: u64 = fenced.iter().map(|range| range.to - range.from).sum();
        let most = bytes / HEADER_BYTES as u64;
        if most == 0 {
            return fenced;
        }
        // What is missing in front may be lost, and need not have expired.
        for (slot, first) in &self.first_known {
            let queue = self.queues.at_mut(*slot);
            queue.min = queue.min.min(*first);
        }
        // Also those of which nothing else is known: all their records may have lain there.
        for topic in self.registry.topics() {
            for queue in 0..topic.settings.read_queues.max(topic.settings.write_queues) {
                if shard_of_queue(topic.id, queue, self.shards) == self.shard {
                    self.queues.slot_or_new(QueueId { topic: topic.id, queue });
                }
            }
        }
        for slot in 0..self.queues.slots() {
            if !self.seen.contains(&slot) {
                let queue = self.queues.at_mut(slot);
                queue.skip_to(queue.next + most);
            }
        }
        fenced
    }

    /// What had expired when a hole was made has expired for good, and holes of segments that are gone are none.
    fn keep_expired(&mut self, segments: &VecDeque<Segment>) {
        let holes = std::mem::take(&mut self.holes);
        for hole in holes.iter() {
            let Some(segment) = segments.iter().find(|segment| segment.base == hole.base) else {
                continue;
            };
            for topic in &hole.topics {
                self.topics.expire_through(*topic, segment.number);
                for slot in self.queues.slots_of(*topic).to_vec() {
                    let queue = self.queues.at_mut(slot);
                    queue.visible = queue.next;
                    queue.expire(segment.number + 1);
                }
            }
            self.holes.insert(hole.clone());
        }
    }

    fn take_change(&mut self, change: RegistryChange) -> Result<(), &'static str> {
        if !self.is_damaged && change.version != self.registry.version() + 1 {
            return Err("topic and group records are out of order");
        }
        if change.version <= self.registry.version() {
            return Ok(());
        }
        self.registry.skip_to(change.version - 1);
        self.registry.apply(&change);
        match change.change {
            Change::TopicDeleted { id } => {
                self.gone_topics.insert(id);
                self.queues.forget_topic(id);
                self.offsets.forget_topic(id);
                self.pops.forget_topic(id);
            }
            Change::GroupDeleted { id } => {
                self.gone_groups.insert(id);
                self.offsets.forget_group(id);
                self.pops.forget_group(id);
            }
            Change::Topic { .. } | Change::Group { .. } => {}
        }
        Ok(())
    }

    fn take_slice(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        let Tables {
            registry,
            offsets,
            pops,
            queues,
            holes,
            timers,
            delayed,
            first_known,
            has_state,
            gone_topics,
            gone_groups,
            ..
        } = self;
        snapshot::read(payload, |item| match item {
            Item::Begin { .. } => *has_state = true,
            Item::End { .. } => {}
            Item::Hole(hole) => holes.insert(hole),
            Item::Recalled(key) => timers.recall(key),
            Item::Fired(key) => timers.restore_fired(key),
            Item::Moved(base, key) => timers.append_again(Some(base), key),
            Item::Behind(key, bytes) => timers.restore_behind(key, bytes),
            Item::DelayedOf(first, last) => delayed.clear(first, last),
            Item::Delayed(queue, count) => delayed.restore(queue, count),
            Item::Registry { version, last_topic, last_group } => {
                registry.restore_head(version, last_topic, last_group);
            }
            // A deletion counts when it is durable, and so a slice behind its record may not know of it.
            Item::Change(RegistryChange { change: Change::Topic { id, .. }, .. })
                if gone_topics.contains(&id) => {}
            Item::Change(RegistryChange { change: Change::Group { id, .. }, .. })
                if gone_groups.contains(&id) => {}
            Item::Change(change) => registry.restore(&change),
            Item::Offset { group, queue, .. }
                if gone_groups.contains(&group) || gone_topics.contains(&queue.topic) => {}
            Item::Pop(group, queue, _)
                if gone_groups.contains(&group) || gone_topics.contains(&queue.topic) => {}
            Item::Pop(group, queue, op) => pops.apply(group, queue, op),
            Item::PopTime(at_ms) => pops.was(at_ms),
            Item::Offset { group, queue, progress } => offsets.restore(group, queue, progress),
            Item::Queue(state) if gone_topics.contains(&state.id.topic) => {}
            Item::Queue(state) => {
                let slot = queues.slot_or_new(state.id);
                queues.at_mut(slot).restore(&state);
                first_known.insert(slot, state.min);
            }
        })
        .ok_or("a slice of a snapshot does not parse")
    }

    fn take_state(&mut self, kind: Kind, record: &RecordRef<'_>) -> Result<(), &'static str> {
        match kind {
            Kind::Topic | Kind::Group => {
                let change = state::read_change(record.payload)
                    .ok_or("a topic or group record does not parse")?;
                self.take_change(change)
            }
            Kind::Offsets => {
                let at_ms = record.header.store_ms.get();
                state::read_offsets(record.payload, |entry| {
                    if !self.gone_topics.contains(&entry.queue.topic) {
                        self.offsets.reset(entry, at_ms);
                    }
                })
                .ok_or("an offsets record does not parse")
            }
            Kind::Owner => {
                let owner =
                    state::read_owner(record.payload).ok_or("an owner record does not parse")?;
                // A topic that is not here yet counts: its owner may be told before this shard has it.
                if !self.gone_topics.contains(&owner.queue.topic) {
                    self.offsets.own(&owner);
                }
                Ok(())
            }
            Kind::Hole => {
                let hole = Hole::read(record.payload).ok_or("a hole's record does not parse")?;
                self.holes.insert(hole);
                Ok(())
            }
            Kind::Epoch => Ok(()),
            Kind::Pop => {
                let Tables { pops, gone_topics, gone_groups, .. } = self;
                pop::read(record.payload, |group, queue, op| {
                    if !gone_topics.contains(&queue.topic) && !gone_groups.contains(&group) {
                        pops.apply(group, queue, op);
                    }
                })
                .map(|at_ms| pops.was(at_ms))
                .ok_or("a record of popped messages does not parse")
            }
            Kind::Timer => {
                self.take_timer(record.header);
                Ok(())
            }
            Kind::TimerEnd => {
                let (key, queue) = state::read_timer(record.payload)
                    .ok_or("the record of a message that was taken back does not parse")?;
                self.timers.recall(key);
                self.delayed.end(queue);
                Ok(())
            }
            _ => Err("it is of a kind that this version does not know"),
        }
    }

    /// A delayed message was set, or appended again.
    fn take_timer(&mut self, header: &RecordHeader) {
        let due_ms = header.deliver_ms.get();
        if let Some(position) = header.offset.get().checked_sub(1) {
            let within = self.bounds.range(..=position).next_back();
            let base = within.filter(|(_, end)| position < **end).map(|(base, _)| *base);
            self.timers.append_again(base, Key { due_ms, position });
        } else {
            self.delayed.set(QueueId { topic: header.topic.get(), queue: header.queue.get() });
        }
        let key = Key { due_ms, position: header.position.get() };
        self.timers.set(key, header.prefix.length.get());
    }

    fn take_message(
        &mut self,
        segment: Segment,
        record: &RecordRef<'_>,
    ) -> Result<(), &'static str> {
        let header = record.header;
        let id = QueueId { topic: header.topic.get(), queue: header.queue.get() };
        if self.gone_topics.contains(&id.topic) {
            // Taken between the deletion's append and its effect: gone with the topic.
            self.note(segment, crate::index::NO_QUEUE, header);
            return Ok(());
        }
        if shard_of_queue(id.topic, id.queue, self.shards) != self.shard {
            return Err("it is a message of another shard's queue");
        }
        let slot = self.queues.slot_or_new(id);
        self.seen.insert(slot);
        let Some(put) = self.note(segment, slot, header) else { return Ok(()) };
        let queue = self.queues.at_mut(slot);
        let offset = header.offset.get();
        if queue.next == 0 && queue.chunks.is_empty() && queue.stretches.is_empty() {
            // What lies in front has expired, or was damaged: as far as can be known here.
            let is_lost = self.is_damaged && self.is_whole;
            queue.begin_at(if is_lost { 0 } else { offset });
        }
        // promise: fifo
        match offset.checked_sub(queue.next) {
            None => return Err("its queue offset was given before"),
            Some(0) => {}
            Some(_) if self.is_damaged => queue.skip_to(offset),
            // An index leaves out topics that were gone when it was written, and what was lost or had expired
            // when it was made again.
            Some(_) if self.has_index => queue.skip_to(offset),
            Some(_) => return Err("its queue offset does not follow the one before"),
        }
        let bytes = header.prefix.length.get();
        let tag_hash = header.tag_hash.get();
        let entry = Entry {
            place: put.place,
            row: put.row,
            bytes,
            tag_hash,
            latest_ms: header.store_ms.get(),
        };
        if queue.push(segment.number, entry) {
            self.touched.touch(segment.number, slot);
        }
        Ok(())
    }
}

impl Replay for Tables {
    fn segment(&mut self, segment: Segment, files: &mut dyn LogFiles) -> Result<u64, OpenError> {
        self.rows = SegmentRows {
            base: segment.base,
            bytes: segment.bytes,
            shard: self.shard,
            log_id: self.log_id,
            ..SegmentRows::default()
        };
        self.bounds.insert(segment.base, segment.end());
        self.is_whole |= segment.base == 0;
        self.has_state |= self.is_whole;
        // An index is derived: whatever is wrong with it, the segment is read instead.
        let known = self.read_index(segment, files).ok();
        self.has_index |= known.is_some();
        self.known = known.unwrap_or(segment.base);
        Ok(self.known)
    }

    fn record(
        &mut self,
        segment: Segment,
        record: &RecordRef<'_>,
        state: bool,
    ) -> Result<(), &'static str> {
        let header = record.header;
        let Some(kind) = Kind::from_code(header.prefix.kind) else {
            return Err("it is of a kind that this version does not know");
        };
        if kind == Kind::Message {
            if state && header.flags.get() & FLAG_DELAYED != 0 {
                let (due_ms, position) = (header.deliver_ms.get(), header.producer_id.get());
                self.timers.fire(Key { due_ms, position });
                let (topic, queue) = (header.topic.get(), header.queue.get());
                self.delayed.end(QueueId { topic, queue });
            }
            return self.take_message(segment, record);
        }
        self.note(segment, crate::index::NO_QUEUE, header);
        match kind {
            _ if !state => Ok(()),
            Kind::Snapshot => self.take_slice(record.payload),
            // In the unit of the snapshot's beginning, before it.
            _ if !self.has_state => Ok(()),
            kind => self.take_state(kind, record),
        }
    }

    fn sealed(
        &mut self,
        segment: Segment,
        epoch: u32,
        files: &mut dyn LogFiles,
    ) -> Result<(), OpenError> {
        if self.known >= segment.end() {
            return Ok(());
        }
        let mut rows = std::mem::take(&mut self.rows);
        rows.end = segment.end();
        rows.epoch = epoch;
        for slot in self.touched.take(segment.number) {
            self.queues.at_mut(slot).gather(slot, segment.number, &mut rows);
        }
        // What it says of the log must outlive what it says it of.
        if !std::mem::replace(&mut self.is_synced, true) {
            files.sync()?;
        }
        // Derived, and so worth a try only: it is made again at the next start.
        if files.write_index(segment.base, &rows.encode()).is_ok() {
            let indexed = rows.indexed();
            for row in indexed.stretches.chunk_by(|a, b| a.slot == b.slot) {
                self.queues.replace(segment.number, row);
            }
            self.topics.insert(segment.number, &indexed.topics, |_| false);
            self.indexes.push((segment.number, indexed.pages));
        } else {
            self.timer_rows.push((segment.base, rows.timers));
        }
        Ok(())
    }

    fn fenced(&mut self, _fenced: &Fenced) {
        self.is_damaged = true;
        self.seen.clear();
    }
}

impl Tables {
    /// Notes a record in the rows of its segment, unless the index said so already.
    fn note(&mut self, segment: Segment, slot: u32, header: &RecordHeader) -> Option<Put> {
        (header.position.get() >= self.known)
            .then(|| note(&mut self.rows, segment.number, slot, header))
    }

    /// Takes over what the index of a segment says; returns up to where it covers it.
    fn read_index(
        &mut self,
        segment: Segment,
        files: &mut dyn LogFiles,
    ) -> Result<u64, IndexError> {
        let missing = IndexError::Truncated { bytes: 0, expected: 4096 };
        let Ok(Some(bytes)) = files.index_bytes(segment.base) else { return Err(missing) };
        let mut read = |at: u64, out: &mut [u8]| {
            files.read_index(segment.base, at, out).map_err(|_| missing.clone())
        };
        let mut page = [0; PAGE_BYTES];
        if bytes < page.len() as u64 {
            return Err(missing);
        }
        read(0, &mut page)?;
        let header = Header::read(&page, segment.base)?;
        header.check_owner(self.log_id, self.shard)?;
        header.check_length(bytes)?;
        if header.bytes != segment.bytes || header.end > segment.end() {
            return Err(missing);
        }
        if header.end < segment.end() {
            let mut file = vec![0; bytes as usize];
            read(0, &mut file)?;
            self.take_rows(segment, crate::index::read_rows(&file)?);
            return Ok(header.end);
        }
        // Both sections are read, and they adjoin each other.
        let pages = header.pages_of(Section::Directory);
        let topics = header.pages_of(Section::Topics);
        let mut file = vec![0; (pages.len() + topics.len()) * PAGE_BYTES];
        read(u64::from(pages.start) * PAGE_BYTES as u64, &mut file)?;
        let (directory, topics) = file.split_at(pages.len() * PAGE_BYTES);
        let topics = crate::index::read_topics(&header, topics)?;
        let mut found = Vec::new();
        let mut reader = DirectoryReader::new(&header);
        reader.take(directory, |number, stretch| found.push((number, stretch)))?;
        reader.finish()?;
        for (number, stretch) in found {
            let slot = self.queues.slot_or_new(stretch.id);
            let queue = self.queues.at_mut(slot);
            queue.add_stretch(Stretch {
                first_offset: stretch.first_offset,
                count: stretch.count,
                segment: segment.number,
                number,
                first_entry: stretch.first_entry,
            });
            queue.bytes += stretch.bytes;
            queue.last_store_ms = queue.last_store_ms.max(stretch.last_ms);
            self.seen.insert(slot);
        }
        self.topics.insert(segment.number, &topics, |_| false);
        self.indexes.push((segment.number, header.pages()));
        Ok(header.end)
    }

    /// The active segment goes on where it was when the shard stopped.
    fn take_rows(&mut self, segment: Segment, rows: SegmentRows) {
        let mut slots = Vec::with_capacity(rows.queues.len());
        for QueueRows { id, first_offset, entries, .. } in &rows.queues {
            let slot = self.queues.slot_or_new(*id);
            if slots.last() != Some(&slot) {
                self.touched.touch(segment.number, slot);
            }
            slots.push(slot);
            let queue = self.queues.at_mut(slot);
            // A queue comes again where offsets are missing in between.
            let mut first = *first_offset;
            for chunk in entries {
                queue.add_chunk(segment.number, first, chunk);
                first += chunk.len() as u64;
            }
            self.seen.insert(slot);
        }
        self.rows = rows;
        for row in &mut self.rows.order {
            row.queue = slots.get(row.queue as usize).copied().unwrap_or(crate::index::NO_QUEUE);
        }
        self.rows.queues.clear();
    }
}
