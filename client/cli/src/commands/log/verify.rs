//! `log verify`: reads every byte and says what is damaged.

use std::path::Path;
use std::time::Instant;

use ringmq_core::offline::{Check, Loss, SegmentCount, Verdict};
use serde::Serialize;

use super::directory::Directory;
use super::scan::{self, LossRow, Scanned};
use crate::args::Global;
use crate::failure::Failure;
use crate::output::{self, Column, Form, bytes, milliseconds};

#[derive(Serialize)]
struct ShardRow {
    shard: u32,
    log_id: Option<String>,
    missing: bool,
    segments: u64,
    used_bytes: u64,
    records: u64,
    messages: u64,
    end_position: u64,
    durable_position: u64,
    interior_damages: u64,
    torn_bytes: u64,
}

#[derive(Serialize)]
struct Document<'a> {
    in_use: bool,
    read_bytes: u64,
    elapsed_ms: u64,
    shards: &'a [ShardRow],
    damages: &'a [LossRow],
}

const SHARDS: &[Column<ShardRow>] = &[
    Column::number("SHARD", |row: &ShardRow| row.shard.to_string()),
    Column::text("LOG ID", |row: &ShardRow| row.log_id.clone().unwrap_or("-".into())).wide(),
    Column::number("SEGMENTS", |row: &ShardRow| row.segments.to_string()),
    Column::number("USED", |row: &ShardRow| bytes(row.used_bytes)),
    Column::number("RECORDS", |row: &ShardRow| row.records.to_string()),
    Column::number("MESSAGES", |row: &ShardRow| row.messages.to_string()),
    Column::number("END", |row: &ShardRow| row.end_position.to_string()),
    Column::number("DURABLE", |row: &ShardRow| row.durable_position.to_string()).wide(),
    Column::number("TORN", |row: &ShardRow| bytes(row.torn_bytes)),
    Column::text("STATE", |row: &ShardRow| match (row.missing, row.interior_damages) {
        (true, _) => "missing".to_owned(),
        (false, 0) => "ok".to_owned(),
        (false, count) => scan::counted(count as usize, "damage"),
    }),
];

const DAMAGES: &[Column<LossRow>] = &[
    Column::number("SHARD", |row: &LossRow| row.shard.to_string()),
    Column::number("POSITION", |row: &LossRow| row.position.to_string()),
    Column::number("BYTES", |row: &LossRow| row.length_bytes.to_string()),
    Column::text("STATE", |row: &LossRow| row.state.to_owned()),
    Column::text("WHAT", |row: &LossRow| row.what.to_owned()),
    Column::number("READABLE", |row: &LossRow| row.readable_records.to_string()).wide(),
    Column::text("COVERS (TOPIC ID/QUEUE: OFFSETS)", covers),
];

pub(super) fn run(path: &Path, global: &Global) -> Result<(), Failure> {
    let directory = Directory::open(path, global)?;
    let begun = Instant::now();
    let all = scan::directory(&directory, Check::Everything, global)?;
    let elapsed = begun.elapsed();
    let shards: Vec<ShardRow> = all.iter().map(shard_row).collect();
    let damages: Vec<LossRow> = all.iter().flat_map(loss_rows).collect();
    let read_bytes = directory.bytes();
    if global.output == Form::Json {
        let (in_use, elapsed_ms) = (directory.in_use, milliseconds(elapsed));
        let document =
            Document { in_use, read_bytes, elapsed_ms, shards: &shards, damages: &damages };
        output::json("verify", &document)?;
    } else {
        output::list(global.output, "shards", &shards, SHARDS)?;
        if !damages.is_empty() {
            output::print("\n")?;
            output::list(global.output, "damages", &damages, DAMAGES)?;
        }
    }
    if !global.quiet {
        let rate = read_bytes as f64 / f64::from(1 << 20) / elapsed.as_secs_f64().max(1e-9);
        eprintln!("read {} at {rate:.0} MiB/s", bytes(read_bytes));
        if shards.iter().any(|row| row.torn_bytes > 0) {
            eprintln!("a torn tail is what a crash leaves; the broker cuts it off when it starts");
        }
    }
    scan::verdict(&all)
}

fn loss_rows(scanned: &Scanned) -> Vec<LossRow> {
    scanned.report.losses.iter().map(|loss| LossRow::new(scanned.shard, loss)).collect()
}

fn shard_row(scanned: &Scanned) -> ShardRow {
    let report = &scanned.report;
    let sum = |of: fn(&SegmentCount) -> u64| report.segments.iter().map(of).sum::<u64>();
    let (torn, interior): (Vec<&Loss>, Vec<&Loss>) =
        report.losses.iter().partition(|loss| loss.verdict == Verdict::TornTail);
    ShardRow {
        shard: scanned.shard,
        log_id: scanned.log_id.map(|id| format!("{id:016x}")),
        missing: scanned.missing,
        segments: report.segments.len() as u64,
        used_bytes: sum(|segment| segment.used_bytes),
        records: sum(|segment| segment.records),
        messages: sum(|segment| segment.messages),
        end_position: report.end,
        durable_position: report.flushed,
        interior_damages: interior.len() as u64,
        torn_bytes: torn.iter().map(|loss| loss.damage.to - loss.damage.from).sum(),
    }
}

fn covers(row: &LossRow) -> String {
    /// Queues named before the rest is only counted; JSON names all.
    const SHOWN: usize = 8;
    if row.covers.is_empty() {
        return "unknown".to_owned();
    }
    let shown = row.covers.iter().take(SHOWN).map(|cover| {
        let (topic, queue) = (cover.topic_id, cover.queue);
        format!("{topic}/{queue}: {}-{}", cover.first_offset, cover.end_offset - 1)
    });
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if row.covers.len() > SHOWN {
        text.push_str(&format!(", and {} queues more", row.covers.len() - SHOWN));
    }
    text
}
