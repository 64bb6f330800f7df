//! Finding a broker's segments: a data directory, or one shard's folder in it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use ringmq_core::SegmentFile;
use ringmq_core::offline::Log;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::failure::{Exit, Failure};

/// The newest format of a data directory that is known here.
const FORMAT: u32 = 1;
const IDENTITY: &str = "ringmq.toml";
const ADVICE: &str =
    "name a broker's data directory (it holds ringmq.toml) or one of its shard-NNNN";

/// What `ringmq.toml` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) format: u32,
    pub(super) cluster: String,
    pub(super) broker: String,
    pub(super) broker_id: u32,
    pub(super) shards: u16,
    pub(super) log_ids: Vec<String>,
}

/// One shard's folder.
#[derive(Debug)]
pub(super) struct ShardFolder {
    pub(super) shard: u32,
    /// `None`: not known from outside.
    pub(super) log: Option<Log>,
    /// By rising base.
    pub(super) segments: Vec<(SegmentFile, PathBuf)>,
    /// Named by the identity, but not there.
    pub(super) missing: bool,
}

/// What was named on the command line.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) identity: Option<Identity>,
    pub(super) shards: Vec<ShardFolder>,
    /// A broker has it open: its files change while they are read.
    pub(super) in_use: bool,
}

impl Directory {
    pub(super) fn open(path: &Path, global: &Global) -> Result<Directory, Failure> {
        let is_dir = fs::metadata(path).map_err(|error| failure(path, &error))?.is_dir();
        if !is_dir {
            return Err(Failure::usage(format!("{} is a file", path.display()), ADVICE));
        }
        let path = &fs::canonicalize(path).map_err(|error| failure(path, &error))?;
        if let Some(identity) = identity(path)? {
            let shards = (0..identity.shards)
                .map(|shard| {
                    let folder = path.join(format!("shard-{shard:04}"));
                    ShardFolder::open(&folder, u32::from(shard), Some(&identity))
                })
                .collect::<Result<_, Failure>>()?;
            let in_use = warn_of_lock(path, global);
            return Ok(Directory { identity: Some(identity), shards, in_use });
        }
        let shard = path.file_name().and_then(|name| name.to_str()).and_then(shard_number);
        let folder = ShardFolder::open(path, shard.unwrap_or(0), None)?;
        if shard.is_none() && folder.segments.is_empty() {
            let message = format!("{} holds neither {IDENTITY} nor segments", path.display());
            return Err(Failure::not_found(message, ADVICE));
        }
        let Some(parent) = path.parent() else {
            return Ok(Directory { identity: None, shards: vec![folder], in_use: false });
        };
        let identity = identity(parent).unwrap_or_else(|failure| {
            eprintln!(
                "warning: {}; the log's identity is taken from its first unit",
                failure.message
            );
            None
        });
        let in_use = warn_of_lock(parent, global);
        let log = identity.as_ref().and_then(|identity| identity.log(folder.shard));
        Ok(Directory { identity, shards: vec![ShardFolder { log, ..folder }], in_use })
    }

    /// Bytes of all segments.
    pub(super) fn bytes(&self) -> u64 {
        self.shards.iter().flat_map(|shard| &shard.segments).map(|(file, _)| file.bytes).sum()
    }
}

impl Identity {
    fn log(&self, shard: u32) -> Option<Log> {
        let id = u64::from_str_radix(self.log_ids.get(shard as usize)?, 16).ok()?;
        Some(Log { id, shard })
    }
}

impl ShardFolder {
    fn open(path: &Path, shard: u32, identity: Option<&Identity>) -> Result<ShardFolder, Failure> {
        let log = identity.and_then(|identity| identity.log(shard));
        let mut segments = Vec::new();
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(ShardFolder { shard, log, segments, missing: true });
            }
            Err(error) => return Err(failure(path, &error)),
        };
        for entry in entries {
            let file = entry?.path();
            if let Some(base) = segment_base(&file) {
                let bytes = match fs::metadata(&file) {
                    Ok(metadata) => metadata.len(),
                    // A broker at work has deleted it since.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(failure(&file, &error)),
                };
                segments.push((SegmentFile { base, bytes }, file));
            }
        }
        segments.sort_by_key(|(file, _)| file.base);
        Ok(ShardFolder { shard, log, segments, missing: false })
    }
}

/// Position of the first byte of a segment, by its file's name.
pub(super) fn segment_base(file: &Path) -> Option<u64> {
    let digits = file.file_name()?.to_str()?.strip_suffix(".log")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

/// `shard-0003`.
pub(super) fn shard_number(name: &str) -> Option<u32> {
    name.strip_prefix("shard-")?.parse().ok()
}

/// What went wrong with a file or directory.
pub(super) fn failure(path: &Path, error: &io::Error) -> Failure {
    let message = format!("cannot read {}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => Failure::not_found(message, ADVICE),
        io::ErrorKind::PermissionDenied => Failure {
            exit: Exit::Denied,
            message,
            advice: "again as the user that the broker runs as".to_owned(),
        },
        _ => Failure::new(message, "check the disk: the kernel's log may say more"),
    }
}

fn identity(path: &Path) -> Result<Option<Identity>, Failure> {
    let file = path.join(IDENTITY);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failure(&file, &error)),
    };
    let advice = "put it back from a copy; a shard's folder alone can be read without it";
    let damaged =
        |why: String| Failure::new(format!("{} is damaged: {why}", file.display()), advice);
    // The format comes first: a newer one may look different altogether.
    let table: toml::Table = toml::from_str(&text).map_err(|e| damaged(e.message().to_owned()))?;
    let format = table.get("format").and_then(toml::Value::as_integer).unwrap_or_default();
    if format > i64::from(FORMAT) {
        let message = format!("{} has format {format}, {FORMAT} is known here", file.display());
        return Err(Failure::new(message, "the ringmq of the broker that made it"));
    }
    let identity: Identity =
        toml::from_str(&text).map_err(|error| damaged(error.message().to_owned()))?;
    if (0..identity.shards).any(|shard| identity.log(u32::from(shard)).is_none()) {
        return Err(damaged(format!("{} shards need a log id each", identity.shards)));
    }
    Ok(Some(identity))
}

/// Says so when a broker has the directory open. The shared lock is given back at once.
fn warn_of_lock(path: &Path, global: &Global) -> bool {
    let Ok(lock) = File::open(path.join("lock")) else { return false };
    let taken = flock(&lock, FlockOperation::NonBlockingLockShared);
    let in_use = taken == Err(rustix::io::Errno::WOULDBLOCK);
    if in_use && !global.quiet {
        eprintln!(
            "warning: a broker has {} open: what it is writing now may look torn",
            path.display()
        );
    }
    in_use
}
