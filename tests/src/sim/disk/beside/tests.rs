//! What lies beside the log comes and goes whole, in order, and never under a reader.

use super::super::Fill;
use super::*;
use crate::sim::disk::Device;
use crate::sim::memory::SimBlock;
use ringmq_core::index::SegmentRows;
use std::rc::Rc;
use std::sync::Arc;

const SEGMENT: u64 = 4 * BLOCK;

/// Three segments, the first two full of sevens, durably.
fn disk(seed: u64) -> Disk {
    let device = Device { fua: true, sector: 4096, fill: Fill::Recycled };
    let mut disk = Disk::new(device, Random::new(seed));
    for base in [0, SEGMENT, 2 * SEGMENT] {
        done(&mut disk, Op::Make { base, bytes: SEGMENT });
    }
    for base in [0, SEGMENT] {
        let block = Rc::new(SimBlock::holding(vec![7; SEGMENT as usize]));
        done(&mut disk, Op::Write { write: 1, position: base, block, durable: true, covers: 0 });
    }
    disk
}

fn rows(base: u64) -> Arc<SegmentRows> {
    let (bytes, end) = (SEGMENT, base + SEGMENT);
    Arc::new(SegmentRows { base, bytes, end, ..SegmentRows::default() })
}

fn done(disk: &mut Disk, op: Op) -> Option<Vec<u8>> {
    let number = disk.start(op).unwrap();
    disk.finish(number).1
}

fn bytes(disk: &Disk, position: u64) -> Vec<u8> {
    let mut out = vec![1; BLOCK_BYTES];
    disk.read(position, &mut out);
    out
}

#[test]
fn an_index_is_there_when_that_was_told_and_whole_or_not_at_all_before() {
    let mut seen = BTreeSet::new();
    for seed in 0..64 {
        let mut disk = disk(seed);
        done(&mut disk, Op::WriteIndex { rows: rows(0) });
        disk.start(Op::WriteIndex { rows: rows(SEGMENT) }).unwrap();
        disk.crash(CrashKind::PowerLoss);
        assert_eq!(disk.index(0).unwrap(), rows(0).encode());
        let second = disk.index(SEGMENT);
        assert!(second.is_none_or(|index| index == rows(SEGMENT).encode()));
        seen.insert(second.is_some());
    }
    assert_eq!(seen.len(), 2);
}

#[test]
fn indexes_are_read_in_whole_pages_and_one_that_is_missing_brings_nothing() {
    let mut disk = disk(1);
    done(&mut disk, Op::WriteIndex { rows: rows(0) });
    let read = |base, at, bytes| Op::ReadIndex { read: 1, base, at, bytes };
    assert_eq!(done(&mut disk, read(0, 0, 4096)).unwrap(), &rows(0).encode()[..4096]);
    assert_eq!(done(&mut disk, read(SEGMENT, 0, 4096)), None);
    assert!(disk.start(read(0, 100, 4096)).is_err());
    assert!(disk.start(read(0, 0, 1 << 20)).is_err());
}

#[test]
fn segments_are_retired_in_order_and_a_crash_leaves_no_gap() {
    let mut left = BTreeSet::new();
    for seed in 0..128 {
        let mut disk = disk(seed);
        done(&mut disk, Op::WriteIndex { rows: rows(0) });
        for base in [0, SEGMENT] {
            disk.start(Op::Retire { base }).unwrap();
        }
        disk.crash(*Random::new(seed).pick(&[CrashKind::Kill, CrashKind::PowerLoss]));
        let bases: Vec<u64> = disk.segments().iter().map(|segment| segment.base).collect();
        assert!(bases.windows(2).all(|pair| pair[1] == pair[0] + SEGMENT));
        assert_eq!(bases.last(), Some(&(2 * SEGMENT)));
        left.insert((bases.len(), disk.index(0).is_some()));
    }
    // All of it, without its index, segments gone one after the other, and an index left alone.
    assert_eq!(left, [(3, true), (3, false), (2, false), (2, true), (1, false)].into());
}

#[test]
fn what_is_not_the_first_or_still_written_is_not_retired() {
    let mut disk = disk(1);
    assert!(disk.start(Op::Retire { base: SEGMENT }).is_err());
    let number = disk.start(Op::Retire { base: 0 }).unwrap();
    assert!(disk.start(Op::Read { read: 1, position: 0, bytes: 4096 }).is_err());
    disk.finish(number);
    assert!(disk.start(Op::Retire { base: 2 * SEGMENT }).is_err());
    let block = Rc::new(SimBlock::holding(vec![1; BLOCK_BYTES]));
    let position = 2 * SEGMENT;
    done(&mut disk, Op::Write { write: 1, position, block, durable: false, covers: 0 });
    done(&mut disk, Op::Make { base: 3 * SEGMENT, bytes: SEGMENT });
    done(&mut disk, Op::Retire { base: SEGMENT });
    assert!(disk.start(Op::Retire { base: 2 * SEGMENT }).is_err(), "not durable");
    assert_eq!(bytes(&disk, 3 * SEGMENT), [7; BLOCK_BYTES], "a recycled file");
}

#[test]
fn readers_are_waited_for_and_so_are_earlier_jobs() {
    let mut disk = disk(1);
    let op = Op::Transfer { connection: 1, head: Vec::new(), position: 8, bytes: 16 };
    let transfer = disk.start(op).unwrap();
    let punch = disk.start(Op::Punch { position: SEGMENT, bytes: BLOCK }).unwrap();
    let retire = disk.start(Op::Retire { base: 0 }).unwrap();
    assert!(!disk.must_wait(punch) && disk.must_wait(retire));
    assert_eq!(disk.finish(transfer).1.unwrap(), [7; 16]);
    assert!(disk.must_wait(retire), "the hole comes first");
    disk.finish(punch);
    assert!(!disk.must_wait(retire));
}

#[test]
fn a_hole_reads_as_zeros_and_the_power_may_bring_back_what_was_there() {
    let mut after = BTreeSet::new();
    for seed in 0..32 {
        let mut disk = disk(seed);
        done(&mut disk, Op::Punch { position: BLOCK, bytes: BLOCK });
        assert_eq!(bytes(&disk, BLOCK), [0; BLOCK_BYTES]);
        assert_eq!(bytes(&disk, 2 * BLOCK), [7; BLOCK_BYTES]);
        disk.crash(CrashKind::PowerLoss);
        after.insert(bytes(&disk, BLOCK)[0]);
        done(&mut disk, Op::Punch { position: 2 * BLOCK, bytes: BLOCK });
        done(&mut disk, Op::Sync { sync: 1, from: 0, to: SEGMENT, covers: 0 });
        disk.crash(CrashKind::PowerLoss);
        assert_eq!(bytes(&disk, 2 * BLOCK), [0; BLOCK_BYTES]);
    }
    assert_eq!(after, [0, 7].into());
}

#[test]
fn only_what_is_durable_is_transferred() {
    let mut disk = disk(1);
    let block = Rc::new(SimBlock::holding(vec![1; BLOCK_BYTES]));
    let position = 2 * SEGMENT;
    done(&mut disk, Op::Write { write: 1, position, block, durable: false, covers: 0 });
    let transfer = |position, bytes| Op::Transfer { connection: 1, head: vec![], position, bytes };
    assert!(disk.start(transfer(position, 8)).is_err());
    assert!(disk.start(transfer(SEGMENT - 8, 16)).is_err(), "two segments");
    assert!(disk.start(transfer(4, 8)).is_err());
    disk.start(transfer(SEGMENT - 8, 8)).unwrap();
}

#[test]
fn indexes_are_spoiled_one_way_or_another() {
    for fault in IndexFault::ALL {
        let mut disk = disk(1);
        done(&mut disk, Op::WriteIndex { rows: rows(0) });
        disk.spoil_index(0, fault, &mut Random::new(1));
        assert_ne!(disk.index(0), Some(rows(0).encode().as_slice()), "{fault:?}");
    }
}
