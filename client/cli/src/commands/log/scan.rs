//! Walking a shard's segments on disk.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use ringmq_core::SegmentFile;
use ringmq_core::offline::{Check, Event, Loss, Report, Survey, Verdict, Walk};
use serde::Serialize;

use super::directory::{Directory, ShardFolder, failure};
use crate::args::Global;
use crate::failure::Failure;

/// What was found of one shard.
pub(super) struct Scanned {
    pub(super) shard: u32,
    pub(super) log_id: Option<u64>,
    pub(super) report: Report,
    pub(super) missing: bool,
}

/// Walks all shards, with a bar on a terminal.
pub(super) fn directory(
    directory: &Directory,
    check: Check,
    global: &Global,
) -> Result<Vec<Scanned>, Failure> {
    let bar = bar(directory.bytes(), global.quiet);
    let mut all = Vec::new();
    for folder in &directory.shards {
        let mut scanned = shard(folder, check, &bar)?;
        if directory.in_use && scanned.report.is_damaged() {
            // A unit that was being written when it was read, behind which others were read later, looks
            // like damage. Damage stays.
            let again = shard(folder, check, &bar)?;
            let stays = |loss: &Loss| {
                loss.verdict == Verdict::TornTail
                    || again.report.losses.iter().any(|other| other.damage.from == loss.damage.from)
            };
            scanned.report.losses.retain(stays);
        }
        all.push(scanned);
    }
    bar.finish_and_clear();
    Ok(all)
}

fn shard(folder: &ShardFolder, check: Check, bar: &ProgressBar) -> Result<Scanned, Failure> {
    let mut walk = Walk::new(folder.log, check);
    let mut survey = Survey::default();
    for (file, path) in &folder.segments {
        let _ = segment(&mut walk, *file, path, bar, &mut |event| {
            survey.take(&event);
            ControlFlow::Continue(())
        })?;
    }
    Ok(Scanned {
        shard: folder.shard,
        log_id: walk.log().map(|log| log.id),
        report: survey.finish(walk.flushed()),
        missing: folder.missing,
    })
}

/// Walks one segment's file.
pub(super) fn segment(
    walk: &mut Walk,
    file: SegmentFile,
    path: &Path,
    bar: &ProgressBar,
    visit: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Failure> {
    let open = File::open(path).map_err(|error| failure(path, &error))?;
    let begun = bar.position();
    let mut read =
        |position: u64, out: &mut [u8]| match open.read_exact_at(out, position - file.base) {
            Ok(()) => {
                bar.set_position(begun + position - file.base);
                true
            }
            Err(error) => {
                tracing::warn!("{}: at {position}: {error}", path.display());
                false
            }
        };
    let ended = walk.segment(file, &mut read, visit);
    bar.set_position(begun + file.bytes);
    Ok(ended)
}

fn bar(bytes: u64, quiet: bool) -> ProgressBar {
    let target =
        if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(10) };
    let style = "{bar:40} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  \
                 {binary_bytes_per_sec}";
    ProgressBar::with_draw_target(Some(bytes), target)
        .with_style(ProgressStyle::with_template(style).expect("a constant template that parses"))
}

/// A damage as it is printed.
#[derive(Serialize)]
pub(super) struct LossRow {
    pub(super) shard: u32,
    pub(super) position: u64,
    pub(super) length_bytes: u64,
    pub(super) state: &'static str,
    pub(super) what: &'static str,
    pub(super) readable_records: u64,
    pub(super) covers: Vec<CoverRow>,
}

/// Offsets of a queue that a damage covers.
#[derive(Serialize)]
pub(super) struct CoverRow {
    pub(super) topic_id: u32,
    pub(super) queue: u32,
    pub(super) first_offset: u64,
    pub(super) end_offset: u64,
}

impl LossRow {
    pub(super) fn new(shard: u32, loss: &Loss) -> LossRow {
        let covers = loss.covers.iter().map(|(&(topic_id, queue), &(first_offset, end_offset))| {
            CoverRow { topic_id, queue, first_offset, end_offset }
        });
        LossRow {
            shard,
            position: loss.damage.from,
            length_bytes: loss.damage.to - loss.damage.from,
            state: match loss.verdict {
                Verdict::TornTail => "torn tail",
                Verdict::Interior => "interior",
            },
            what: loss.damage.what,
            readable_records: loss.readable_records,
            covers: covers.collect(),
        }
    }
}

/// How a command over scanned shards ends: with exit code 1 when something durable is damaged.
pub(super) fn verdict(all: &[Scanned]) -> Result<(), Failure> {
    let missing = all.iter().filter(|scanned| scanned.missing).count();
    let losses = all.iter().flat_map(|scanned| &scanned.report.losses);
    let interior = losses.filter(|loss| loss.verdict == Verdict::Interior).count();
    let mut parts = Vec::new();
    if interior > 0 {
        parts.push(format!("{} below the durable end", counted(interior, "damaged place")));
    }
    if missing > 0 {
        parts.push(format!("{} missing", counted(missing, "shard folder")));
    }
    if parts.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        parts.join(", "),
        "keep a copy of the directory before anything else; `ringmq log verify` says what is lost, \
         `ringmq log dump SEGMENT --from POSITION` shows what lies around a place",
    ))
}

/// `1 place`, `2 places`.
pub(super) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
