//! Workload files of the OpenMessaging benchmark, read as they are.
//!
//! Invariants:
//! - a key is either honoured or refused; none is ignored;
//! - numbers mean what they mean there: rates and backlog over all topics, sizes in bytes, times in minutes.
//!
//! Two things differ, because every message carries a stamp of 40 bytes that tells lost, doubled and
//! damaged ones: bodies are at least that long, and their first bytes are the stamp's.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::load::Keys;
use crate::payload::{Fillers, STAMP_BYTES};

/// Every key of a workload file.
const KEYS: [&str; 19] = [
    "name",
    "topics",
    "partitionsPerTopic",
    "keyDistributor",
    "messageSize",
    "useRandomizedPayloads",
    "randomBytesRatio",
    "randomizedPayloadPoolSize",
    "payloadFile",
    "subscriptionsPerTopic",
    "producersPerTopic",
    "consumerPerSubscription",
    "producerRate",
    "consumerBacklogSizeGB",
    "backlogDrainRatio",
    "testDurationMinutes",
    "warmupDurationMinutes",
    // Of the generator of workloads, never in a workload.
    "workloadFile",
    "driverFile",
];
const UNSUPPORTED: [&str; 2] = ["workloadFile", "driverFile"];

/// Streams and consumers of one process.
const TOPICS_MAX: u32 = 10_000;
const STREAMS_MAX: u32 = 1_024;
const CONSUMERS_MAX: u32 = 1_024;
const BODY_BYTES_MAX: usize = 4 << 20;

/// A workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are the file's keys")]
pub struct Workload {
    pub name: String,
    pub topics: u32,
    pub partitions_per_topic: u32,
    #[serde(default)]
    pub key_distributor: KeyDistributor,
    pub message_size: usize,
    #[serde(default)]
    pub use_randomized_payloads: bool,
    #[serde(default)]
    pub random_bytes_ratio: f64,
    #[serde(default)]
    pub randomized_payload_pool_size: usize,
    #[serde(default)]
    pub payload_file: Option<PathBuf>,
    pub subscriptions_per_topic: u32,
    pub producers_per_topic: u32,
    pub consumer_per_subscription: u32,
    /// Messages per second over all topics; 0: as fast as it goes.
    pub producer_rate: u64,
    #[serde(default, rename = "consumerBacklogSizeGB")]
    pub consumer_backlog_size_gb: f64,
    #[serde(default = "one")]
    pub backlog_drain_ratio: f64,
    pub test_duration_minutes: f64,
    #[serde(default = "one")]
    pub warmup_duration_minutes: f64,
}

fn one() -> f64 {
    1.0
}

/// How messages get a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum KeyDistributor {
    /// They have none.
    #[default]
    NoKey,
    /// One after the other.
    KeyRoundRobin,
    /// Any.
    RandomNano,
}

impl From<KeyDistributor> for Keys {
    fn from(distributor: KeyDistributor) -> Keys {
        match distributor {
            KeyDistributor::NoKey => Keys::None,
            KeyDistributor::KeyRoundRobin => Keys::RoundRobin,
            KeyDistributor::RandomNano => Keys::Random,
        }
    }
}

/// Why a file is not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

fn refuse<T>(text: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(text.into()))
}

impl Workload {
    /// Reads a file and the payload that it names.
    pub fn read(path: &Path) -> Result<(Workload, Fillers), Refused> {
        let named = |error: &dyn fmt::Display| Refused(format!("{}: {error}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| named(&error))?;
        let workload = Workload::parse(&text).map_err(|error| named(&error))?;
        let fillers = workload.fillers(path).map_err(|error| named(&error))?;
        Ok((workload, fillers))
    }

    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<Workload, Refused> {
        let wrong = |error: serde_saphyr::Error| Refused(error.to_string());
        let keys: BTreeMap<String, IgnoredAny> = serde_saphyr::from_str(text).map_err(wrong)?;
        for key in keys.keys() {
            if !KEYS.contains(&key.as_str()) {
                return refuse(unknown(key));
            }
            if UNSUPPORTED.contains(&key.as_str()) {
                return refuse(format!("{key} is no key of a workload"));
            }
        }
        let workload: Workload = serde_saphyr::from_str(text).map_err(wrong)?;
        workload.check()?;
        Ok(workload)
    }

    fn check(&self) -> Result<(), Refused> {
        for (key, count, most) in [
            ("topics", self.topics, TOPICS_MAX),
            ("partitionsPerTopic", self.partitions_per_topic, 65_536),
            ("producersPerTopic", self.producers_per_topic, STREAMS_MAX),
        ] {
            if count == 0 || count > most {
                return refuse(format!("{key}: from 1 to {most}, not {count}"));
            }
        }
        let streams = self.topics.saturating_mul(self.producers_per_topic);
        if streams > STREAMS_MAX {
            return refuse(format!(
                "topics x producersPerTopic is {streams}: one process has at most {STREAMS_MAX} producers"
            ));
        }
        let members = self.subscriptions_per_topic.saturating_mul(self.consumer_per_subscription);
        if self.subscriptions_per_topic > 0 && self.consumer_per_subscription == 0 {
            return refuse("consumerPerSubscription is 0: nobody reads the subscriptions");
        }
        let members = self.topics.saturating_mul(members);
        if members > CONSUMERS_MAX {
            return refuse(format!(
                "topics x subscriptionsPerTopic x consumerPerSubscription is {members}: one process \
                 has at most {CONSUMERS_MAX} consumers"
            ));
        }
        self.check_payload()?;
        self.check_numbers()
    }

    fn check_payload(&self) -> Result<(), Refused> {
        if !(STAMP_BYTES..=BODY_BYTES_MAX).contains(&self.message_size) {
            return refuse(format!(
                "messageSize: from {STAMP_BYTES} (the stamp that tells lost messages) to \
                 {BODY_BYTES_MAX}, not {}",
                self.message_size
            ));
        }
        match (self.use_randomized_payloads, &self.payload_file) {
            (true, Some(_)) => refuse("useRandomizedPayloads and payloadFile exclude each other"),
            (false, None) => refuse(
                "payloadFile is missing: name one, or say useRandomizedPayloads: true with \
                 randomBytesRatio and randomizedPayloadPoolSize",
            ),
            (true, None) if self.randomized_payload_pool_size == 0 => {
                refuse("randomizedPayloadPoolSize: at least 1 with useRandomizedPayloads")
            }
            (false, Some(_))
                if self.randomized_payload_pool_size > 0 || self.random_bytes_ratio > 0.0 =>
            {
                refuse(
                    "randomBytesRatio and randomizedPayloadPoolSize need useRandomizedPayloads: true",
                )
            }
            _ => Ok(()),
        }
    }

    fn check_numbers(&self) -> Result<(), Refused> {
        let share = |key, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(()),
            false => refuse(format!("{key}: from 0 to 1, not {value}")),
        };
        share("randomBytesRatio", self.random_bytes_ratio)?;
        share("backlogDrainRatio", self.backlog_drain_ratio)?;
        let minutes = 0.0..=60.0 * 24.0 * 366.0;
        for (key, value) in [
            ("testDurationMinutes", self.test_duration_minutes),
            ("warmupDurationMinutes", self.warmup_duration_minutes),
        ] {
            if !minutes.contains(&value) {
                return refuse(format!("{key}: minutes, not {value}"));
            }
        }
        if self.test_duration_minutes == 0.0 {
            return refuse("testDurationMinutes is 0: nothing would be measured");
        }
        if !(0.0..=1e6).contains(&self.consumer_backlog_size_gb) {
            return refuse(format!(
                "consumerBacklogSizeGB: {} is no size",
                self.consumer_backlog_size_gb
            ));
        }
        if self.consumer_backlog_size_gb > 0.0 && self.subscriptions_per_topic == 0 {
            return refuse("consumerBacklogSizeGB needs subscriptionsPerTopic above 0");
        }
        Ok(())
    }

    /// What bodies consist of; `path` is the workload file's, beside which a payload file may lie.
    pub fn fillers(&self, path: &Path) -> Result<Fillers, Refused> {
        const SEED: u64 = 0x6f6d_6221;
        let Some(file) = &self.payload_file else {
            let (ratio, pool) = (self.random_bytes_ratio, self.randomized_payload_pool_size);
            return Ok(Fillers::random(SEED, self.message_size, ratio, pool));
        };
        // As there: below the working directory; and where examples keep theirs, beside the file.
        let beside = path.parent().unwrap_or(Path::new("."));
        let places = [file.clone(), beside.join(file), beside.join("..").join(file)];
        let Some(bytes) = places.iter().find_map(|place| fs::read(place).ok()) else {
            let tried: Vec<String> =
                places.iter().map(|place| place.display().to_string()).collect();
            return refuse(format!("payloadFile is at none of {}", tried.join(", ")));
        };
        if bytes.len() != self.message_size {
            return refuse(format!(
                "payloadFile has {} bytes and messageSize is {}",
                bytes.len(),
                self.message_size
            ));
        }
        Ok(Fillers::fixed(bytes))
    }

    /// Warm-up and the test itself, times `scale`.
    pub fn durations(&self, scale: f64) -> (Duration, Duration) {
        let minutes = |minutes: f64| Duration::from_secs_f64(minutes * 60.0 * scale);
        (minutes(self.warmup_duration_minutes), minutes(self.test_duration_minutes))
    }

    /// Bytes that are to wait for consumers before they start, over all topics and subscriptions.
    pub fn backlog_bytes(&self, scale: f64) -> u64 {
        (self.consumer_backlog_size_gb * f64::from(1 << 30) * scale) as u64
    }
}

fn unknown(key: &str) -> String {
    let nearest = KEYS
        .iter()
        .filter(|known| !UNSUPPORTED.contains(known))
        .map(|known| (distance(&key.to_lowercase(), &known.to_lowercase()), *known))
        .min();
    match nearest {
        Some((distance, known)) if distance <= 1 + key.len() / 3 => {
            format!("unknown key {key}: did you mean {known}?")
        }
        _ => format!("unknown key {key}; a workload has {}", KEYS[..17].join(", ")),
    }
}

/// Letters to insert, remove or replace (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
name: 1 topic / 16 partitions / 1Kb
topics: 1
partitionsPerTopic: 16
messageSize: 1024
useRandomizedPayloads: true
randomBytesRatio: 0.5
randomizedPayloadPoolSize: 100
subscriptionsPerTopic: 2
consumerPerSubscription: 3
producersPerTopic: 4
producerRate: 50000
consumerBacklogSizeGB: 0
testDurationMinutes: 15
";

    fn refused(from: &str, to: &str) -> String {
        assert!(FILE.contains(from), "{from}");
        Workload::parse(&FILE.replace(from, to)).expect_err(to).to_string()
    }

    #[test]
    fn a_file_is_read_as_it_is() {
        let workload = Workload::parse(FILE).unwrap();
        assert_eq!((workload.topics, workload.partitions_per_topic), (1, 16));
        assert_eq!((workload.message_size, workload.producer_rate), (1_024, 50_000));
        assert_eq!(workload.key_distributor, KeyDistributor::NoKey);
        let (warm_up, test) = workload.durations(0.01);
        assert_eq!((warm_up, test), (Duration::from_millis(600), Duration::from_secs(9)));
        let keyed = FILE.to_owned() + "keyDistributor: \"KEY_ROUND_ROBIN\"\n# a comment\n";
        assert_eq!(Workload::parse(&keyed).unwrap().key_distributor, KeyDistributor::KeyRoundRobin);
    }

    #[test]
    fn unknown_keys_are_refused_with_a_suggestion() {
        let text = refused("messageSize", "messagesize");
        assert_eq!(text, "unknown key messagesize: did you mean messageSize?");
        let text = refused("producersPerTopic", "producerPerTopic");
        assert!(text.ends_with("did you mean producersPerTopic?"), "{text}");
        let text = refused("topics: 1", "topics: 1\nflavour: sweet");
        assert!(text.contains("unknown key flavour; a workload has name, topics"), "{text}");
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        assert!(refused("messageSize: 1024", "messageSize: 10").contains("stamp"));
        assert!(refused("topics: 1", "topics: 0").contains("topics"));
        assert!(refused("topics: 1", "topics: 500").contains("at most 1024 producers"));
        assert!(refused("Minutes: 15", "Minutes: 0").contains("testDurationMinutes"));
        assert!(refused("producerRate: 50000", "producerRate: fast").contains("fast"));
        assert!(refused("randomBytesRatio: 0.5", "randomBytesRatio: 50").contains("from 0 to 1"));
        assert!(refused("useRandomizedPayloads: true\n", "").contains("payloadFile is missing"));
        assert!(refused("PoolSize: 100", "PoolSize: 0").contains("at least 1"));
        assert!(refused("producerRate: 50000\n", "").contains("producerRate"));
        assert!(refused("topics: 1", "topics: 1\nkeyDistributor: SOME").contains("SOME"));
        assert!(refused("topics: 1", "topics: 1\ntopics: 2").contains("topics"));
        let both =
            refused("useRandomizedPayloads: true", "useRandomizedPayloads: true\npayloadFile: a");
        assert!(both.contains("exclude each other"), "{both}");
    }

    #[test]
    fn payload_files_are_found_beside_the_workload_and_must_fit() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("payload")).unwrap();
        let text = FILE
            .replace("useRandomizedPayloads: true\n", "payloadFile: payload/p.data\n")
            .replace("randomBytesRatio: 0.5\n", "")
            .replace("randomizedPayloadPoolSize: 100\n", "");
        let path = directory.path().join("w.yaml");
        fs::write(&path, text).unwrap();
        let error = Workload::read(&path).unwrap_err().to_string();
        assert!(error.contains("payloadFile is at none of payload/p.data"), "{error}");
        fs::write(directory.path().join("payload/p.data"), [7; 1_000]).unwrap();
        let error = Workload::read(&path).unwrap_err().to_string();
        assert!(error.contains("has 1000 bytes and messageSize is 1024"), "{error}");
        fs::write(directory.path().join("payload/p.data"), [7; 1_024]).unwrap();
        assert!(Workload::read(&path).is_ok());
    }

    #[test]
    fn distances_count_letters() {
        assert_eq!((distance("", "abc"), distance("kitten", "sitting")), (3, 3));
    }
}
