//! The data directory: who it belongs to, and that only one broker uses it.
//!
//! ```text
//! DIR/ringmq.toml             format, identity, number of shards, identity of each log; made once
//! DIR/lock                    held locked for the life of the process
//! DIR/probe                   4 KiB, so that each executor finds out what the device can do
//! DIR/shard-0000/<base>.log   segments: position of the first byte, 20 digits
//! ```
//!
//! Invariants:
//! - nothing is read or written before the lock is held;
//! - `ringmq.toml` appears whole and durable, or not at all, and never changes.

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Version of everything in the directory that this program writes.
const FORMAT: u32 = 1;
const IDENTITY: &str = "ringmq.toml";

/// What `ringmq.toml` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    format: u32,
    cluster: String,
    broker: String,
    broker_id: u32,
    shards: u16,
    /// Hexadecimal, one a shard: TOML has no unsigned 64-bit numbers.
    log_ids: Vec<String>,
}

/// An opened and locked data directory.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    identity: Identity,
    log_ids: Vec<u64>,
    _lock: File,
}

/// To whom a directory is to belong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) cluster: &'a str,
    pub(crate) broker: &'a str,
    pub(crate) broker_id: u32,
}

impl DataDir {
    /// Opens the directory, making it with `shards` shards when it is new. `wanted` is a number of
    /// shards that was asked for explicitly: it must agree with what is there.
    pub(crate) fn open(
        path: &Path,
        owner: Owner<'_>,
        shards: u16,
        wanted: Option<u16>,
    ) -> anyhow::Result<DataDir> {
        fs::create_dir_all(path)
            .with_context(|| format!("cannot make the data directory {}", path.display()))?;
        // glommio opens what a relative path names, but not what a later one beside it does.
        let path = &fs::canonicalize(path)
            .with_context(|| format!("cannot find the data directory {}", path.display()))?;
        let lock = lock(path)?;
        let file = path.join(IDENTITY);
        let identity = match fs::read_to_string(&file) {
            Ok(text) => parse(&text, &file)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                make(path, owner, shards)?
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", file.display()));
            }
        };
        check(&identity, owner, wanted, path)?;
        let log_ids = log_ids(&identity, &file)?;
        let dir = DataDir { path: path.to_owned(), identity, log_ids, _lock: lock };
        for shard in 0..dir.shards() {
            let path = dir.shard_path(shard);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        sync_directory(path)?;
        Ok(dir)
    }

    /// Number of shards, fixed when the directory was made.
    pub(crate) fn shards(&self) -> u16 {
        self.identity.shards
    }

    /// Identity of a shard's log.
    pub(crate) fn log_id(&self, shard: u16) -> u64 {
        self.log_ids[usize::from(shard)]
    }

    /// Where a shard's segments are.
    pub(crate) fn shard_path(&self, shard: u16) -> PathBuf {
        self.path.join(format!("shard-{shard:04}"))
    }

    /// A file that is never empty.
    pub(crate) fn probe_path(&self) -> PathBuf {
        self.path.join("probe")
    }
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let name = path.join("lock");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&name)
        .with_context(|| format!("cannot open {}", name.display()))?;
    let flag = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    if let Err(error) = rustix::fs::flock(&file, flag) {
        if error == rustix::io::Errno::WOULDBLOCK {
            let holder = fs::read_to_string(&name).unwrap_or_default();
            bail!(
                "the data directory {} is in use by another broker (process {}): stop it, or give \
                 this one a directory of its own with --data-dir",
                path.display(),
                if holder.trim().is_empty() { "unknown" } else { holder.trim() },
            );
        }
        return Err(error).with_context(|| format!("cannot lock {}", name.display()));
    }
    // Only for the person who wonders who holds it: the lock is flock's.
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).ok();
    Ok(file)
}

fn parse(text: &str, file: &Path) -> anyhow::Result<Identity> {
    // The format comes first: a newer one may look different altogether.
    let table: toml::Table =
        toml::from_str(text).with_context(|| format!("{} is damaged", file.display()))?;
    let format = table.get("format").and_then(toml::Value::as_integer).unwrap_or_default();
    if format > i64::from(FORMAT) {
        bail!(
            "{} has format {format}, this version knows {FORMAT}: start the newer version that made it",
            file.display()
        );
    }
    toml::from_str(text).with_context(|| format!("{} is damaged", file.display()))
}

fn make(path: &Path, owner: Owner<'_>, shards: u16) -> anyhow::Result<Identity> {
    if let Some(found) = first_shard_folder(path)? {
        bail!(
            "{} holds {found} but no {IDENTITY}: it belongs to a broker whose identity is lost; put \
             the file back from a copy, or choose another --data-dir",
            path.display()
        );
    }
    let log_ids = (0..shards).map(|_| format!("{:016x}", random_id())).collect();
    let identity = Identity {
        format: FORMAT,
        cluster: owner.cluster.to_owned(),
        broker: owner.broker.to_owned(),
        broker_id: owner.broker_id,
        shards,
        log_ids,
    };
    let text = toml::to_string(&identity).context("the identity of the broker has no TOML form")?;
    let (new, file) = (path.join("ringmq.toml.new"), path.join(IDENTITY));
    let write = || -> std::io::Result<()> {
        let mut out = File::create(&new)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        fs::rename(&new, &file)
    };
    write().with_context(|| format!("cannot write {}", file.display()))?;
    sync_directory(path)?;
    Ok(identity)
}

fn first_shard_folder(path: &Path) -> anyhow::Result<Option<String>> {
    let entries = fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))?;
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("shard-") {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn check(
    identity: &Identity,
    owner: Owner<'_>,
    wanted: Option<u16>,
    path: &Path,
) -> anyhow::Result<()> {
    let (is, asked) = (
        (identity.cluster.as_str(), identity.broker.as_str(), identity.broker_id),
        (owner.cluster, owner.broker, owner.broker_id),
    );
    if is != asked {
        bail!(
            "the data directory {} belongs to broker {:?} (id {}) of cluster {:?}, not to {:?} (id {}) \
             of {:?}: use those names, or another --data-dir",
            path.display(),
            is.1,
            is.2,
            is.0,
            asked.1,
            asked.2,
            asked.0,
        );
    }
    match wanted {
        Some(wanted) if wanted != identity.shards => bail!(
            "the data directory {} has {} shards, for life; {wanted} were asked for: leave `shards` \
             out (the number of cores may change at every start)",
            path.display(),
            identity.shards
        ),
        _ => Ok(()),
    }
}

fn log_ids(identity: &Identity, file: &Path) -> anyhow::Result<Vec<u64>> {
    let ids: Result<Vec<u64>, _> =
        identity.log_ids.iter().map(|id| u64::from_str_radix(id, 16)).collect();
    let ids = ids.with_context(|| format!("{}: a log id is no number", file.display()))?;
    if ids.len() != usize::from(identity.shards) || identity.shards == 0 {
        bail!("{}: {} shards with {} log ids", file.display(), identity.shards, ids.len());
    }
    Ok(ids)
}

/// 64 random bits.
pub(crate) fn random_id() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0.rotate_left(17) ^ uuid::Uuid::new_v4().as_u64_pair().1
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> anyhow::Result<()> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("cannot sync the directory {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner<'static> = Owner { cluster: "c", broker: "b", broker_id: 0 };

    #[test]
    fn identity_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path(), OWNER, 3, None).unwrap();
        let ids: Vec<u64> = (0..3).map(|shard| first.log_id(shard)).collect();
        assert!(ids[0] != ids[1] && ids[1] != ids[2]);
        assert!(first.shard_path(2).is_dir());
        drop(first);
        let again = DataDir::open(dir.path(), OWNER, 8, None).unwrap();
        assert_eq!(again.shards(), 3);
        assert_eq!((0..3).map(|shard| again.log_id(shard)).collect::<Vec<_>>(), ids);
    }

    #[test]
    fn a_second_broker_is_refused_while_the_first_lives() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path(), OWNER, 1, None).unwrap();
        let error = DataDir::open(dir.path(), OWNER, 1, None).unwrap_err().to_string();
        assert!(error.contains("in use by another broker"), "{error}");
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        DataDir::open(dir.path(), OWNER, 1, None).unwrap();
    }

    #[test]
    fn foreign_newer_and_differing_directories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::open(dir.path(), OWNER, 2, None).unwrap());
        let other = Owner { broker: "other", ..OWNER };
        let error = DataDir::open(dir.path(), other, 2, None).unwrap_err().to_string();
        assert!(error.contains("belongs to broker \"b\""), "{error}");
        let error = DataDir::open(dir.path(), OWNER, 2, Some(4)).unwrap_err().to_string();
        assert!(error.contains("has 2 shards"), "{error}");
        fs::write(dir.path().join(IDENTITY), "format = 9\nnew = 1\n").unwrap();
        let error = DataDir::open(dir.path(), OWNER, 2, None).unwrap_err().to_string();
        assert!(error.contains("format 9"), "{error}");
        fs::remove_file(dir.path().join(IDENTITY)).unwrap();
        let error = DataDir::open(dir.path(), OWNER, 2, None).unwrap_err().to_string();
        assert!(error.contains("identity is lost"), "{error}");
    }
}
