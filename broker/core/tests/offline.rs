//! A log read from outside: a whole one is clean, damage is found, named and judged, and no bytes do harm.

mod desk;

use desk::{Desk, Files, config, run, survey};
use ringmq_core::SegmentFile;
use ringmq_core::offline::{Check, Event, Log, Verdict, Walk};
use ringmq_schema::produce::Flush;
use ringmq_schema::record::{Kind, MAGIC, VERSION};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

const LOG: Log = Log { id: 77, shard: 0 };
const BLOCK: u64 = 4096;

type Disk = BTreeMap<u64, Vec<u8>>;

/// A unit's place, and topic, queue and offset of its messages.
type Unit = (u64, u64, Vec<(u32, u32, u64)>);

fn units(disk: &Disk) -> Vec<Unit> {
    let mut walk = Walk::new(Some(LOG), Check::Everything);
    let mut units: Vec<Unit> = Vec::new();
    for (&base, file) in disk {
        let mut read = |position: u64, out: &mut [u8]| {
            let at = (position - base) as usize;
            out.copy_from_slice(&file[at..at + out.len()]);
            true
        };
        let segment = SegmentFile { base, bytes: file.len() as u64 };
        let _ = walk.segment(segment, &mut read, &mut |event| {
            match event {
                Event::Unit { header } => {
                    let bytes = u64::from(header.unit_bytes.get());
                    units.push((header.position.get(), bytes, Vec::new()));
                }
                Event::Record { record, .. } if record.header.prefix.kind == 1 => {
                    let h = record.header;
                    let message = (h.topic.get(), h.queue.get(), h.offset.get());
                    units.last_mut().expect("a unit is open").2.push(message);
                }
                _ => {}
            }
            ControlFlow::Continue(())
        });
    }
    units
}

/// Two queues, several segments.
fn log() -> Disk {
    let files = Files::default();
    let mut desk = Desk::open(config(), files.clone());
    let topic = desk.create_topic("t", 2);
    for round in 0..60 {
        for queue in 0..2 {
            let bytes = run(topic, queue, round * 10, 10, 3_000);
            desk.produce(topic, queue, &bytes, 10, Flush::Sync);
            desk.handle(ringmq_core::Input::TurnEnd);
        }
    }
    let disk = files.0.borrow().clone();
    assert!(disk.len() >= 4, "several segments and one made ahead");
    disk
}

fn flip(disk: &mut Disk, position: u64) {
    let (base, file) = disk.range_mut(..=position).next_back().expect("a segment");
    file[(position - base) as usize] ^= 0x10;
}

fn wipe(disk: &mut Disk, from: u64, bytes: u64) {
    let (base, file) = disk.range_mut(..=from).next_back().expect("a segment");
    let at = (from - base) as usize;
    file[at..at + bytes as usize].fill(0);
}

#[test]
fn a_whole_log_is_clean() {
    let disk = log();
    let report = survey(&disk, Some(LOG));
    assert_eq!(report.losses, []);
    let messages: u64 = report.segments.iter().map(|segment| segment.messages).sum();
    assert_eq!(messages, 1_200);
    let units = units(&disk);
    let (last, bytes, _) = units.last().expect("units");
    assert_eq!(report.end, last + bytes);
    assert!(report.flushed > 0 && report.flushed <= *last);
    let (first, rest) = report.segments.split_first().expect("segments");
    assert!(first.sealed && first.padding_bytes > 0);
    assert!(rest.last().is_some_and(|ahead| ahead.units == 0 && !ahead.sealed));
    assert_eq!(survey(&disk, None), report, "the log's identity is learnt");
}

#[test]
fn a_flipped_bit_is_interior_damage_and_costs_its_unit() {
    let whole = log();
    let units = units(&whole);
    let durable = survey(&whole, Some(LOG)).flushed;
    for (position, bytes, messages) in units.iter().step_by(7) {
        if *position >= durable || messages.is_empty() {
            continue;
        }
        // In the unit's header, in a record's header, in a payload.
        for at in [40, 70, 300] {
            let mut disk = whole.clone();
            flip(&mut disk, position + at);
            let report = survey(&disk, Some(LOG));
            assert_eq!(report.losses.len(), 1, "{position}+{at}: {:?}", report.losses);
            let loss = &report.losses[0];
            assert_eq!(loss.verdict, Verdict::Interior);
            assert_eq!((loss.damage.from, loss.damage.to), (*position, position + bytes));
            for (topic, queue, offset) in messages {
                let (first, end) = loss.covers[&(*topic, *queue)];
                assert!((first..end).contains(offset), "{offset} is in {first}..{end}");
            }
            assert!(report.is_damaged());
        }
    }
}

#[test]
fn a_lost_write_and_a_lost_file_are_damage() {
    let whole = log();
    let units = units(&whole);
    let (position, bytes, _) = units[units.len() / 2];
    let mut disk = whole.clone();
    wipe(&mut disk, position, bytes);
    let report = survey(&disk, Some(LOG));
    assert_eq!(report.losses.len(), 1);
    assert_eq!(report.losses[0].damage.from, position);
    assert!(report.is_damaged());

    // The end of a segment never came: zeros up to the next one, which goes on.
    let mut disk = whole.clone();
    let second = *disk.keys().nth(1).expect("segments");
    let (tail, ..) = *units.iter().rfind(|(at, ..)| *at + 8 * BLOCK < second).expect("a unit");
    wipe(&mut disk, tail, second - tail);
    let report = survey(&disk, Some(LOG));
    assert_eq!(report.losses.len(), 1, "{:?}", report.losses);
    assert_eq!((report.losses[0].damage.from, report.losses[0].damage.to), (tail, second));
    assert!(report.is_damaged());

    let mut disk = whole.clone();
    disk.remove(&second);
    let report = survey(&disk, Some(LOG));
    assert_eq!(report.losses.len(), 1, "{:?}", report.losses);
    assert_eq!(report.losses[0].damage.from, second);
    assert!(!report.losses[0].covers.is_empty(), "the queues' offsets say what is gone");
    assert!(report.is_damaged());
}

#[test]
fn a_garbled_or_cut_tail_is_torn() {
    let whole = log();
    let units = units(&whole);
    let (last, bytes, _) = *units.last().expect("units");
    let mut garbled = whole.clone();
    flip(&mut garbled, last + bytes / 2);
    let mut appended = whole.clone();
    flip(&mut appended, last + bytes + 5_000);
    let mut cut = whole.clone();
    let segment = *cut.range(..=last).next_back().expect("a segment").0;
    cut.split_off(&(segment + 1));
    let length = (last + bytes - 100 - segment) as usize;
    cut.get_mut(&segment).expect("it is there").truncate(length);
    for (disk, from) in [(garbled, last), (appended, last + bytes), (cut, last)] {
        let report = survey(&disk, Some(LOG));
        assert!(!report.is_damaged(), "{:?}", report.losses);
        assert_eq!(report.losses.len(), 1);
        assert_eq!(report.losses[0].verdict, Verdict::TornTail);
        assert_eq!((report.losses[0].damage.from, report.end), (from, from));
    }
}

#[test]
fn a_shard_goes_on_where_the_survey_says_that_the_log_ends() {
    let whole = log();
    let durable = survey(&whole, Some(LOG)).flushed;
    let units = units(&whole);
    for (position, bytes, _) in units.iter().filter(|(position, ..)| *position >= durable) {
        for at in [8, 100, bytes - 1, bytes + 9_000] {
            let mut disk = whole.clone();
            flip(&mut disk, position + at);
            let before = survey(&disk, Some(LOG));
            assert!(!before.is_damaged(), "{:?}", before.losses);
            let files = Files::default();
            *files.0.borrow_mut() = disk;
            drop(Desk::open(config(), files.clone()));
            let disk = files.0.borrow().clone();
            assert_eq!(survey(&disk, Some(LOG)).losses, [], "the torn tail is gone");
            let next =
                self::units(&disk).into_iter().find(|(position, ..)| *position >= before.end);
            assert_eq!(next.map(|(position, ..)| position), Some(before.end));
        }
    }
}

#[test]
fn units_of_another_log_do_not_count() {
    let disk = log();
    let report = survey(&disk, Some(Log { id: 78, shard: 0 }));
    assert_eq!(report.segments.iter().map(|segment| segment.records).sum::<u64>(), 0);
    assert!(report.losses.iter().all(|loss| loss.damage.what.contains("another log")));
    assert!(!report.losses.is_empty());
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[test]
fn no_bytes_do_harm() {
    let whole = log();
    let first: Vec<u8> = whole[&0][..64 << 10].to_vec();
    let mut random = Random(0x5eed);
    for case in 0..3_000 {
        let mut disk = Disk::new();
        for _ in 0..=random.below(3) {
            let length = random.below(40 << 10) as usize;
            let mut bytes: Vec<u8> = if case % 2 == 0 {
                first[..length].to_vec()
            } else {
                (0..length).map(|_| random.next() as u8).collect()
            };
            for _ in 0..random.below(6) {
                let at = random.below(bytes.len() as u64 + 1) as usize;
                let span = random.below(5_000) as usize;
                let end = bytes.len().min(at + span);
                let value = random.next() as u8;
                bytes[at..end].fill(value);
            }
            reseal(&mut bytes, &mut random);
            let base = match random.below(4) {
                0 => 0,
                1 => random.below(64) * BLOCK,
                2 => random.next(),
                _ => u64::MAX - random.below(8 * BLOCK),
            };
            disk.insert(base, bytes);
        }
        let log = (case % 3 == 0).then_some(LOG);
        let report = survey(&disk, log);
        for loss in &report.losses {
            assert!(loss.damage.from < loss.damage.to, "case {case}: {loss:?}");
        }
        let total: u64 = report.segments.iter().map(|segment| segment.used_bytes).sum();
        assert!(total <= disk.values().map(|file| file.len() as u64).sum());
    }
}

/// Makes some headers whole again after random changes: damage that checksums do not show.
fn reseal(bytes: &mut [u8], random: &mut Random) {
    for block in bytes.chunks_mut(BLOCK as usize) {
        if block.len() < 64 || random.below(4) != 0 {
            continue;
        }
        block[..8].copy_from_slice(&[64, 0, 0, 0, MAGIC, VERSION, Kind::Unit as u8, 0]);
        let length = random.next() as u32 >> random.below(32);
        let length = if random.below(2) == 0 { length & !0xFFF } else { length };
        block[12..16].copy_from_slice(&length.to_le_bytes());
        block[16..24].copy_from_slice(&(random.below(16) * BLOCK).to_le_bytes());
        block[24..28].copy_from_slice(&(random.below(4) as u32).to_le_bytes());
        block[28..32].copy_from_slice(&LOG.shard.to_le_bytes());
        let flushed = if random.below(2) == 0 { random.below(16) * BLOCK } else { random.next() };
        block[32..40].copy_from_slice(&flushed.to_le_bytes());
        block[40..48].copy_from_slice(&LOG.id.to_le_bytes());
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&block[..8]);
        checksum.update(&block[12..64]);
        block[8..12].copy_from_slice(&checksum.finalize().to_le_bytes());
    }
}
