//! Offsets of a broadcasting consumer, in a file of its own.
//!
//! Text, one line a queue, fields separated by tabs, closed by a checksum over all that comes before it:
//!
//! ```text
//! ringmq-offsets  1  GROUP
//! TOPIC  TOPIC-ID  BROKER  QUEUE  OFFSET
//! crc32  89abcdef
//! ```
//!
//! Invariants:
//! - the file is replaced as a whole: written beside, synced, renamed, and the folder synced, so that a crash leaves
//!   the old one or the new one;
//! - one consumer has it at a time: it holds a lock on a file beside it until it is closed;
//! - an offset counts only for the topic that it was noted for, not for another of the same name.

use super::feed::Commit;
use crate::error::{Error, ErrorKind, Result};
use crate::route::Queue;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const FIRST_WORD: &str = "ringmq-offsets";
const VERSION: &str = "1";
const LAST_WORD: &str = "crc32";

/// Topic id and next offset to consume.
type At = (u32, u64);
type Known = BTreeMap<Queue, At>;

/// See the module.
pub(super) struct LocalOffsets {
    path: PathBuf,
    group: String,
    known: Mutex<Known>,
    /// Held while the file is written; in it the lock, `None` once the consumer was closed.
    writing: Mutex<Option<File>>,
}

/// Where the offsets of a group's instance are when the user does not say: in the user's state directory.
pub(super) fn default_path(group: &str, instance: &str) -> Result<PathBuf> {
    let absolute = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let folder = absolute("XDG_STATE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))
        .or_else(|| absolute("LOCALAPPDATA"))
        .ok_or_else(|| {
            let text = "neither XDG_STATE_HOME nor HOME says where offsets belong: name their file with offsets_file()";
            Error::new(ErrorKind::Invalid, "subscribe", text).on(group)
        })?;
    let name = format!("{}@{}.offsets", file_name(group), file_name(instance));
    Ok(folder.join("ringmq").join("broadcasting").join(name))
}

/// A name as part of a file's name, on any system.
fn file_name(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let spell = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    name.bytes().map(spell).collect()
}

impl LocalOffsets {
    /// Takes the file, and reads it. One that is damaged is reported, put aside and taken for none.
    pub(super) async fn open(path: PathBuf, group: &str) -> Result<Arc<LocalOffsets>> {
        let (shown, group) = (path.display().to_string(), group.to_owned());
        let opened = tokio::task::spawn_blocking(move || open(path, group)).await;
        let opened = opened.map_err(|_| Error::closed("open offsets"))?;
        opened.map(Arc::new).map_err(|error| error.on(shown))
    }

    /// Where the group goes on in a queue, if that is known of this very topic.
    pub(super) fn find(&self, queue: &Queue, topic_id: u32) -> Option<u64> {
        let known = self.known.lock().expect("nothing panics with it locked");
        known.get(queue).filter(|(id, _)| *id == topic_id).map(|(_, offset)| *offset)
    }

    /// Notes positions, durably.
    pub(super) async fn save(self: &Arc<Self>, positions: &[Commit]) -> Result<()> {
        {
            let mut known = self.known.lock().expect("nothing panics with it locked");
            for Commit { holding, at, .. } in positions {
                known.insert((*holding.queue).clone(), (holding.topic_id, at.offset));
            }
        }
        let this = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || this.write()).await;
        let written = written.map_err(|_| Error::closed("commit"))?;
        written.map_err(|cause| {
            let text = format!("offsets cannot be written to {}", self.path.display());
            Error::new(ErrorKind::Server, "commit", text).on(self.group.as_str()).because(cause)
        })
    }

    /// Writes no more; another consumer may have the file.
    pub(super) fn close(&self) {
        *self.writing.lock().expect("nothing panics with it locked") = None;
    }

    fn write(&self) -> io::Result<()> {
        // One after another, each with the newest that is known.
        let writing = self.writing.lock().expect("nothing panics with it locked");
        if writing.is_none() {
            return Err(io::Error::other("the consumer was closed"));
        }
        let text = {
            let known = self.known.lock().expect("nothing panics with it locked");
            to_text(&self.group, &known)
        };
        let beside = with_suffix(&self.path, ".new");
        let mut file = File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        drop(file);
        std::fs::rename(&beside, &self.path)?;
        sync_folder(&self.path)
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// A rename is durable when its folder is. Elsewhere than on Unix a folder cannot be synced.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent().filter(|_| cfg!(unix)) {
        Some(folder) if folder.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn open(path: PathBuf, group: String) -> Result<LocalOffsets> {
    let failed = |text: &str, cause: io::Error| {
        Error::new(ErrorKind::Invalid, "open offsets", text).because(cause)
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|error| failed("the folder of the offsets cannot be made", error))?;
    }
    let lock = File::create(with_suffix(&path, ".lock"))
        .map_err(|error| failed("the lock of the offsets cannot be made", error))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let text = "another consumer has these offsets: give each an instance() or an offsets_file() of its own";
            return Err(Error::new(ErrorKind::Exists, "open offsets", text));
        }
        Err(TryLockError::Error(error)) => {
            return Err(failed("the offsets cannot be locked", error));
        }
    }
    let known = match std::fs::read(&path) {
        Ok(bytes) => read(&bytes, &group).unwrap_or_else(|why| {
            let aside = with_suffix(&path, ".damaged");
            tracing::error!(
                path = %path.display(), why, aside = %aside.display(),
                "the offsets of a broadcasting consumer cannot be used: it begins as a new one"
            );
            // Only for whoever wants to look at it.
            let _ = std::fs::rename(&path, &aside);
            Known::new()
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Known::new(),
        Err(error) => return Err(failed("the offsets cannot be read", error)),
    };
    let (known, writing) = (Mutex::new(known), Mutex::new(Some(lock)));
    Ok(LocalOffsets { path, group, known, writing })
}

fn to_text(group: &str, known: &Known) -> String {
    let mut text = format!("{FIRST_WORD}\t{VERSION}\t{group}\n");
    for (queue, (topic_id, offset)) in known {
        let Queue { topic, broker, id } = queue;
        text.push_str(&format!("{topic}\t{topic_id}\t{broker}\t{id}\t{offset}\n"));
    }
    let checksum = crc32fast::hash(text.as_bytes());
    text.push_str(&format!("{LAST_WORD}\t{checksum:08x}\n"));
    text
}

fn read(bytes: &[u8], group: &str) -> Result<Known, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is no text")?;
    let closed = text.strip_suffix('\n').and_then(|text| text.rsplit_once('\n'));
    let (body, last) = closed.ok_or("it is cut short")?;
    let body = &text[..body.len() + 1];
    let expected = format!("{LAST_WORD}\t{:08x}", crc32fast::hash(body.as_bytes()));
    if last != expected {
        return Err("its checksum is wrong");
    }
    let mut lines = body.lines();
    let head: Vec<&str> = lines.next().unwrap_or_default().split('\t').collect();
    match head.as_slice() {
        [FIRST_WORD, VERSION, of] if *of == group => {}
        [FIRST_WORD, VERSION, _] => return Err("it is another group's"),
        _ => return Err("it is of another format"),
    }
    let mut known = Known::new();
    for line in lines {
        let fields: Vec<&str> = line.split('\t').collect();
        let [topic, topic_id, broker, id, offset] = fields[..] else {
            return Err("a line does not have five fields");
        };
        let numbers = (topic_id.parse(), id.parse(), offset.parse());
        let (Ok(topic_id), Ok(id), Ok(offset)) = numbers else {
            return Err("a number is none");
        };
        known.insert(Queue::new(topic, broker, id), (topic_id, offset));
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_no_changed_byte_is() {
        let mut known = Known::new();
        known.insert(Queue::new("orders", "broker-a", 0), (3, 17));
        known.insert(Queue::new("orders", "broker-b", 7), (9, u64::MAX));
        let text = to_text("billing", &known);
        assert_eq!(read(text.as_bytes(), "billing"), Ok(known));
        assert_eq!(read(text.as_bytes(), "audit"), Err("it is another group's"));
        for length in 0..text.len() {
            assert!(read(&text.as_bytes()[..length], "billing").is_err(), "{length}");
        }
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(read(&bytes, "billing").is_err(), "{at}");
        }
        assert_eq!(read(to_text("g", &Known::new()).as_bytes(), "g"), Ok(Known::new()));
    }

    #[test]
    fn names_become_file_names() {
        assert_eq!(file_name("%RETRY%a|b"), "%25RETRY%25a%7Cb");
        assert_eq!(file_name("../x y"), "..%2Fx%20y");
    }
}
