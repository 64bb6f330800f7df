//! The simulated device keeps what it must, and nothing more.

use super::*;

const BLOCK: u64 = BLOCK_BYTES as u64;

fn disk(fua: bool) -> Disk {
    let device = Device { fua, sector: 4096, fill: Fill::Zeros };
    let mut disk = Disk::new(device, Random::new(1));
    let made = disk.start(Op::Make { base: 0, bytes: 16 * BLOCK }).unwrap();
    disk.finish(made);
    disk
}

fn write(disk: &mut Disk, at: u64, byte: u8, durable: bool) -> u64 {
    let block = Rc::new(SimBlock::holding(vec![byte; BLOCK_BYTES]));
    let op = Op::Write { write: at, position: at * BLOCK, block, durable, covers: 0 };
    disk.start(op).unwrap()
}

fn sync(disk: &mut Disk, from: u64, to: u64) -> u64 {
    disk.start(Op::Sync { sync: 1, from: from * BLOCK, to: to * BLOCK, covers: 0 }).unwrap()
}

fn byte(disk: &Disk, at: u64) -> u8 {
    let mut out = vec![0; BLOCK_BYTES];
    disk.read(at * BLOCK, &mut out);
    assert!(out.iter().all(|byte| *byte == out[0]));
    out[0]
}

/// What is left of plain writes after power losses, whatever chance says: never the sure ones missing.
fn is_sure(prepare: impl Fn(&mut Disk), fua: bool, at: u64) -> bool {
    (0..32).all(|seed| {
        let mut disk = disk(fua);
        disk.random = Random::new(seed);
        prepare(&mut disk);
        disk.crash(CrashKind::PowerLoss);
        byte(&disk, at) == 7
    })
}

fn written(disk: &mut Disk, at: u64, durable: bool) {
    let number = write(disk, at, 7, durable);
    disk.finish(number);
}

#[test]
fn a_plain_write_survives_a_kill_and_needs_a_sync_for_more() {
    let mut killed = disk(true);
    written(&mut killed, 0, false);
    killed.crash(CrashKind::Kill);
    assert_eq!(byte(&killed, 0), 7);
    assert!(!is_sure(|disk| written(disk, 0, false), true, 0));
    let synced = |disk: &mut Disk| {
        written(disk, 0, false);
        let number = sync(disk, 0, 1);
        disk.finish(number);
    };
    assert!(is_sure(synced, true, 0));
}

#[test]
fn a_sync_covers_what_ended_before_it_began_and_only_its_range() {
    let ended_meanwhile = |disk: &mut Disk| {
        let number = write(disk, 0, 7, false);
        let synced = sync(disk, 0, 1);
        disk.finish(number);
        disk.finish(synced);
    };
    assert!(!is_sure(ended_meanwhile, true, 0));
    let elsewhere = |disk: &mut Disk| {
        written(disk, 0, false);
        let number = sync(disk, 1, 2);
        disk.finish(number);
    };
    assert!(!is_sure(elsewhere, true, 0));
}

#[test]
fn a_durable_write_takes_the_cache_along_only_without_fua() {
    let both = |disk: &mut Disk| {
        written(disk, 0, false);
        written(disk, 1, true);
    };
    assert!(is_sure(both, true, 1));
    assert!(!is_sure(both, true, 0));
    assert!(is_sure(both, false, 0));
}

#[test]
fn after_a_failed_sync_no_later_one_of_that_life_helps() {
    let twice = |disk: &mut Disk| {
        written(disk, 0, false);
        let number = sync(disk, 0, 1);
        disk.fail(number);
        let number = sync(disk, 0, 1);
        disk.finish(number);
    };
    assert!(!is_sure(twice, true, 0));
}

#[test]
fn writing_twice_or_outside_is_a_violation() {
    let mut disk = disk(true);
    written(&mut disk, 3, true);
    let block = Rc::new(SimBlock::holding(vec![1; 2 * BLOCK_BYTES]));
    for at in [2, 3, 15, 40] {
        let block = Rc::clone(&block);
        let op = Op::Write { write: 9, position: at * BLOCK, block, durable: true, covers: 0 };
        assert!(disk.start(op).is_err(), "{at}");
    }
}
