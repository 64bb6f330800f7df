//! One shard with two topics, and what was sent to it.

use crate::desk::{self, Answer, Desk, Files};
use ringmq_core::{DiskError, Input, ShardConfig};
use ringmq_schema::build::{MessageSpec, RecordBuilder};
use ringmq_schema::consume::{
    FindMessages, FindMessagesAnswer, FindMessagesArgs, GetMessage, GetMessageAnswer,
    GetMessageArgs, MessageId, OffsetAt, SearchOffsets, SearchOffsetsAnswer, SearchOffsetsArgs,
};
use ringmq_schema::error::Status;
use ringmq_schema::frame::read_table;
use ringmq_schema::opcode::Opcode;
use ringmq_schema::placement::mix;
use ringmq_schema::produce::Flush;
use ringmq_schema::record::records;

pub(super) const START_MS: i64 = 1_700_000_000_000;

/// Segments that are full after some 50 messages.
pub(super) fn small() -> ShardConfig {
    ShardConfig {
        segment_bytes: 128 << 10,
        unit_bytes: 64 << 10,
        tail_cache_bytes: 32 << 10,
        index_cache_bytes: 0,
        ..ShardConfig::new(0, 1, 77)
    }
}

pub(super) fn id(number: u64) -> [u8; 16] {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&mix(number + 1).to_be_bytes());
    id[8..].copy_from_slice(&number.to_be_bytes());
    id
}

/// What was sent.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) topic: u32,
    pub(super) queue: u32,
    pub(super) offset: u64,
    pub(super) number: u64,
    pub(super) keys: Vec<String>,
    pub(super) store_ms: i64,
}

pub(super) struct World {
    pub(super) desk: Desk,
    pub(super) sent: Vec<Sent>,
    pub(super) topic: u32,
    pub(super) other: u32,
}

pub(super) const QUEUES: u32 = 3;

impl World {
    pub(super) fn open(config: ShardConfig) -> World {
        let mut desk = Desk::open(config, Files::default());
        let topic = desk.create_topic("orders", QUEUES);
        let other = desk.create_topic("other", QUEUES);
        World { desk, sent: Vec::new(), topic, other }
    }

    pub(super) fn send(&mut self, topic: u32, queue: u32, keys: &[&str]) {
        let number = self.sent.len() as u64;
        let mut body = number.to_le_bytes().to_vec();
        body.resize(1500, number as u8);
        let spec =
            MessageSpec { body: &body, keys, message_id: id(number), ..MessageSpec::default() };
        let mut run = Vec::new();
        RecordBuilder::new().append(&mut run, topic, queue, &spec).unwrap();
        let correlation = self.desk.produce(topic, queue, &run, 1, Flush::Sync);
        self.desk.handle(Input::TurnEnd);
        assert_eq!(self.desk.take(correlation).unwrap().status, Status::Ok);
        let mine = |sent: &&Sent| (sent.topic, sent.queue) == (topic, queue);
        self.sent.push(Sent {
            topic,
            queue,
            offset: self.sent.iter().filter(mine).count() as u64,
            number,
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            store_ms: self.desk.now.wall_ms,
        });
    }

    /// Messages over queues, topics and segments; one key in seven is `hot`, the clock jumps back now and then.
    pub(super) fn fill(&mut self, count: u64) {
        for _ in 0..count {
            let n = self.sent.len() as u64;
            let topic = if n % 5 == 4 { self.other } else { self.topic };
            let own = format!("key-{n}");
            let shared = format!("shared-{}", n % 11);
            let keys = [own.as_str(), shared.as_str(), "hot"];
            let keys = if n.is_multiple_of(7) { &keys[..] } else { &keys[..2] };
            self.send(topic, (mix(n) % u64::from(QUEUES)) as u32, keys);
            let step = if n % 41 == 40 { -30 } else { (mix(n) % 4) as i64 };
            self.desk.now.wall_ms += step;
        }
    }

    pub(super) fn reopen(&mut self, config: ShardConfig) {
        self.desk = Desk::open(config, self.desk.files.clone());
    }

    pub(super) fn find(
        &mut self,
        topic: u32,
        key: &str,
        window: (i64, i64),
        max: u32,
        before: u64,
    ) -> Answer {
        self.desk.call(Opcode::FindMessages, &[], |fbb| {
            let key = Some(fbb.create_string(key));
            let (begin_ms, end_ms) = window;
            let args = FindMessagesArgs { topic, key, begin_ms, end_ms, max_records: max, before };
            FindMessages::create(fbb, &args)
        })
    }

    /// Numbers of all that have the key, answer after answer; and what was unreadable.
    pub(super) fn find_all(
        &mut self,
        topic: u32,
        key: &str,
        window: (i64, i64),
        max: u32,
    ) -> (Vec<u64>, u32) {
        let (mut found, mut before, mut unreadable) = (Vec::new(), 0, 0);
        loop {
            let answer = self.find(topic, key, window, max, before);
            assert_eq!(answer.status, Status::Ok);
            let table = read_table::<FindMessagesAnswer<'_>>(&answer.table).unwrap();
            let numbers = desk::numbers(&answer.run);
            assert_eq!(table.records() as usize, numbers.len());
            assert!(numbers.len() <= max as usize);
            found.extend(numbers);
            unreadable += table.unreadable();
            assert!(before == 0 || table.next() < before);
            before = table.next();
            if before == 0 {
                return (found, unreadable);
            }
        }
    }

    pub(super) fn get(
        &mut self,
        id: Option<[u8; 16]>,
        position: u64,
        topic: u32,
        before: u64,
    ) -> Answer {
        self.desk.call(Opcode::GetMessage, &[], |fbb| {
            let id = id.map(|id| {
                let id = u128::from_be_bytes(id);
                MessageId::new((id >> 64) as u64, id as u64)
            });
            let args = GetMessageArgs { id: id.as_ref(), position, topic, before };
            GetMessage::create(fbb, &args)
        })
    }

    pub(super) fn search(&mut self, wanted: &[OffsetAt]) -> Vec<(u64, Status)> {
        let answer = self.desk.call(Opcode::SearchOffsets, &[], |fbb| {
            let queues = Some(fbb.create_vector(wanted));
            SearchOffsets::create(fbb, &SearchOffsetsArgs { queues })
        });
        assert_eq!(answer.status, Status::Ok);
        let table = read_table::<SearchOffsetsAnswer<'_>>(&answer.table).unwrap();
        let found = table.queues().unwrap();
        assert_eq!(found.len(), wanted.len());
        found.iter().map(|f| (f.offset(), Status::from_code(f.status()))).collect()
    }

    pub(super) fn numbers_of(&self, topic: u32, key: &str, window: (i64, i64)) -> Vec<u64> {
        let has = |sent: &&Sent| {
            sent.topic == topic
                && sent.keys.iter().any(|k| k == key)
                && (window.0..window.1).contains(&sent.store_ms)
        };
        self.sent.iter().filter(has).map(|sent| sent.number).rev().collect()
    }

    pub(super) fn check_keys(&mut self) {
        let all = (0, i64::MAX);
        for topic in [self.topic, self.other] {
            for key in ["hot", "shared-3", "shared-10", "key-0", "key-4", "key-77", "nothing"] {
                for max in [1, 7, 64] {
                    let (found, unreadable) = self.find_all(topic, key, all, max);
                    assert_eq!(found, self.numbers_of(topic, key, all), "{key} {max}");
                    assert_eq!(unreadable, 0);
                }
            }
        }
        let ends: Vec<i64> = self.sent.iter().step_by(37).map(|sent| sent.store_ms).collect();
        for window in ends.windows(3).map(|ends| (ends[0], ends[2])) {
            let (found, _) = self.find_all(self.topic, "hot", window, 5);
            assert_eq!(found, self.numbers_of(self.topic, "hot", window), "{window:?}");
        }
    }

    pub(super) fn check_ids(&mut self) {
        for sent in self.sent.clone().into_iter().step_by(13) {
            let answer = self.get(Some(id(sent.number)), 0, sent.topic, 0);
            assert_eq!(
                (answer.status, desk::numbers(&answer.run)),
                (Status::Ok, vec![sent.number])
            );
            let table = read_table::<GetMessageAnswer<'_>>(&answer.table).unwrap();
            let name = if sent.topic == self.topic { "orders" } else { "other" };
            assert_eq!((table.next(), table.topic()), (0, Some(name)));
            let header = *records(&answer.run).next().unwrap().unwrap().header;
            assert_eq!((header.queue.get(), header.offset.get()), (sent.queue, sent.offset));
            // By what it is stored as; and without saying the topic.
            let position = header.position.get();
            let again = self.get(None, position, 0, 0);
            assert_eq!((again.status, &again.run), (Status::Ok, &answer.run));
            for position in [position + 8, position + 1, position - 8] {
                assert_eq!(self.get(None, position, 0, 0).status, Status::NotFound);
            }
            let elsewhere = if sent.topic == self.topic { self.other } else { self.topic };
            assert_eq!(self.get(None, position, elsewhere, 0).status, Status::NotFound);
            assert_eq!(self.get(Some(id(sent.number)), 0, elsewhere, 0).status, Status::NotFound);
        }
        assert_eq!(self.get(Some(id(1 << 40)), 0, 0, 0).status, Status::NotFound);
        assert_eq!(self.get(None, u64::MAX, 0, 0).status, Status::NotFound);
        assert_eq!(self.get(None, 1 << 30, 0, 0).status, Status::NotFound);
        assert_eq!(self.get(None, 1 << 30, 999, 0).status, Status::UnknownTopic);
    }

    pub(super) fn check_times(&mut self) {
        let times: Vec<i64> = self.sent.iter().step_by(17).map(|sent| sent.store_ms).collect();
        let times = times.into_iter().flat_map(|ms| [ms - 1, ms, ms + 1]);
        let mut wanted = Vec::new();
        let mut expected = Vec::new();
        for at_ms in times.chain([0, i64::MAX, -1, -2]) {
            for (topic, queue) in
                [self.topic, self.other].into_iter().flat_map(|t| (0..QUEUES).map(move |q| (t, q)))
            {
                wanted.push(OffsetAt::new(topic, queue, at_ms));
                let mut of_queue =
                    self.sent.iter().filter(|sent| (sent.topic, sent.queue) == (topic, queue));
                let count = of_queue.clone().count() as u64;
                let offset = match at_ms {
                    -1 => 0,
                    -2 => count,
                    // "The first record stored at or after that time."
                    ms => of_queue.find(|s| s.store_ms >= ms).map_or(count, |sent| sent.offset),
                };
                expected.push((offset, Status::Ok));
            }
        }
        assert_eq!(self.search(&wanted), expected);
    }

    pub(super) fn check(&mut self) {
        self.check_times();
        self.check_keys();
        self.check_ids();
    }

    /// No page of these indexes is in memory any more: the shard is told that they were not written anew.
    pub(super) fn forget_pages(&mut self, bases: &[u64]) {
        for base in bases {
            let (operation, reason) = ("write".to_owned(), "not wanted".to_owned());
            let result = Err(DiskError { operation, reason });
            self.desk.handle(Input::IndexWritten { base: *base, result });
        }
    }

    pub(super) fn indexes(&self) -> Vec<u64> {
        self.desk.files.1.borrow().keys().copied().collect()
    }
}
