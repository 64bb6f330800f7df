//! `log inspect`: what each segment holds.

use std::path::Path;

use ringmq_core::offline::{Check, SegmentCount};
use serde::Serialize;

use super::directory::{Directory, Identity};
use super::scan::{self, Scanned};
use crate::args::Global;
use crate::failure::Failure;
use crate::output::{self, Column, Form, bytes, utc};

#[derive(Serialize)]
struct SegmentRow {
    shard: u32,
    /// `None` in the row of totals.
    base: Option<u64>,
    length_bytes: u64,
    used_bytes: u64,
    units: u64,
    records: u64,
    messages: u64,
    first_store_ms: Option<i64>,
    last_store_ms: Option<i64>,
    first_epoch: Option<u32>,
    last_epoch: Option<u32>,
    state: &'static str,
    padding_bytes: u64,
    padding_share: f64,
    damages: u64,
}

#[derive(Serialize)]
struct Document<'a> {
    identity: &'a Option<Identity>,
    in_use: bool,
    shards: Vec<ShardRow>,
    segments: &'a [SegmentRow],
    totals: &'a SegmentRow,
}

#[derive(Serialize)]
struct ShardRow {
    shard: u32,
    log_id: Option<String>,
    missing: bool,
    end_position: u64,
    durable_position: u64,
}

const COLUMNS: &[Column<SegmentRow>] = &[
    Column::number("SHARD", |row: &SegmentRow| match row.base {
        Some(_) => row.shard.to_string(),
        None => "all".to_owned(),
    }),
    Column::number("BASE", |row: &SegmentRow| or_dash(row.base)),
    Column::number("LENGTH", |row: &SegmentRow| bytes(row.length_bytes)),
    Column::number("USED", |row: &SegmentRow| bytes(row.used_bytes)),
    Column::number("UNITS", |row: &SegmentRow| row.units.to_string()).wide(),
    Column::number("RECORDS", |row: &SegmentRow| row.records.to_string()),
    Column::number("MESSAGES", |row: &SegmentRow| row.messages.to_string()),
    Column::text("FIRST STORED", |row: &SegmentRow| row.first_store_ms.map_or("-".into(), utc)),
    Column::text("LAST STORED", |row: &SegmentRow| row.last_store_ms.map_or("-".into(), utc)),
    Column::text("EPOCHS", |row: &SegmentRow| match (row.first_epoch, row.last_epoch) {
        (Some(first), Some(last)) if first != last => format!("{first}-{last}"),
        (first, _) => or_dash(first),
    }),
    Column::text("STATE", |row: &SegmentRow| row.state.to_owned()),
    Column::number("PADDING", |row: &SegmentRow| format!("{:.1} %", row.padding_share * 100.0)),
    Column::number("DAMAGES", |row: &SegmentRow| row.damages.to_string()),
];

pub(super) fn run(path: &Path, global: &Global) -> Result<(), Failure> {
    let directory = Directory::open(path, global)?;
    let all = scan::directory(&directory, Check::Headers, global)?;
    let mut rows: Vec<SegmentRow> = all.iter().flat_map(rows).collect();
    let totals = totals(&rows);
    if global.output == Form::Json {
        let shards = all.iter().map(|scanned| ShardRow {
            shard: scanned.shard,
            log_id: scanned.log_id.map(|id| format!("{id:016x}")),
            missing: scanned.missing,
            end_position: scanned.report.end,
            durable_position: scanned.report.flushed,
        });
        let (identity, shards) = (&directory.identity, shards.collect());
        let in_use = directory.in_use;
        let document = Document { identity, in_use, shards, segments: &rows, totals: &totals };
        output::json("log", &document)?;
    } else {
        if let Some(identity) = &directory.identity {
            output::print(&format!(
                "cluster {}, broker {} (id {}), {} shards, format {}\n\n",
                identity.cluster,
                identity.broker,
                identity.broker_id,
                identity.shards,
                identity.format
            ))?;
        }
        rows.push(totals);
        output::list(global.output, "segments", &rows, COLUMNS)?;
    }
    scan::verdict(&all)
}

fn rows(scanned: &Scanned) -> Vec<SegmentRow> {
    let report = &scanned.report;
    let row = |(at, segment): (usize, &SegmentCount)| {
        let end = report.segments.get(at + 1).map_or(u64::MAX, |next| next.base);
        let sealed = segment.sealed;
        let within = |from: u64| from >= segment.base && from < end;
        SegmentRow {
            shard: scanned.shard,
            base: Some(segment.base),
            length_bytes: segment.bytes,
            used_bytes: segment.used_bytes,
            units: segment.units,
            records: segment.records,
            messages: segment.messages,
            first_store_ms: segment.store_ms.map(|(first, _)| first),
            last_store_ms: segment.store_ms.map(|(_, last)| last),
            first_epoch: segment.epochs.map(|(first, _)| first),
            last_epoch: segment.epochs.map(|(_, last)| last),
            state: match segment {
                SegmentCount { sealed: true, .. } => "sealed",
                SegmentCount { units: 0, .. } => "empty",
                _ if segment.end - segment.base == segment.bytes => "full",
                _ => "active",
            },
            padding_bytes: segment.padding_bytes,
            padding_share: share(
                segment.padding_bytes,
                if sealed { segment.bytes } else { segment.used_bytes },
            ),
            damages: report.losses.iter().filter(|loss| within(loss.damage.from)).count() as u64,
        }
    };
    report.segments.iter().enumerate().map(row).collect()
}

fn totals(rows: &[SegmentRow]) -> SegmentRow {
    let sum = |of: fn(&SegmentRow) -> u64| rows.iter().map(of).sum::<u64>();
    let padding_bytes = sum(|row| row.padding_bytes);
    // What lies behind a seal counts as padding.
    let spent = sum(|row| if row.state == "sealed" { row.length_bytes } else { row.used_bytes });
    SegmentRow {
        shard: 0,
        base: None,
        length_bytes: sum(|row| row.length_bytes),
        used_bytes: sum(|row| row.used_bytes),
        units: sum(|row| row.units),
        records: sum(|row| row.records),
        messages: sum(|row| row.messages),
        first_store_ms: rows.iter().filter_map(|row| row.first_store_ms).min(),
        last_store_ms: rows.iter().filter_map(|row| row.last_store_ms).max(),
        first_epoch: rows.iter().filter_map(|row| row.first_epoch).min(),
        last_epoch: rows.iter().filter_map(|row| row.last_epoch).max(),
        state: "",
        padding_bytes,
        padding_share: share(padding_bytes, spent),
        damages: sum(|row| row.damages),
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
