//! Settings of a broker.
//!
//! One table names every key with its type, default and meaning; file, environment, flags, help and
//! `--print-config` all read it, so that none can miss a key. See `layers.rs` for who wins.

mod layers;
mod value;

pub use layers::{ConfigError, Layers, Source, command};
pub use value::{Bytes, Value};

use ringmq_core::{FlushMode, ShardConfig};
use ringmq_schema::limits;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// A setting: how it is called, and how to read and write it.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) set: fn(&mut BrokerConfig, &str) -> Result<(), String>,
    pub(crate) show: fn(&BrokerConfig) -> String,
}

macro_rules! settings {
    ($($(#[doc = $about:literal])+ $name:ident: $type:ty = $default:expr;)*) => {
        /// Everything that can be set. Each field is a key of the file, `RINGMQ_NAME` in the
        /// environment, and `--name` as a flag.
        #[derive(Debug, Clone, PartialEq)]
        pub struct BrokerConfig {
            $($(#[doc = $about])+ pub $name: $type,)*
        }

        impl Default for BrokerConfig {
            fn default() -> BrokerConfig {
                BrokerConfig { $($name: $default,)* }
            }
        }

        pub(crate) const KEYS: &[Key] = &[$(Key {
            name: stringify!($name),
            about: concat!($($about),+),
            set: |config, text| {
                config.$name = <$type as Value>::parse(text)?;
                Ok(())
            },
            show: |config| Value::show(&config.$name),
        },)*];
    };
}

settings! {
    /// Name of the cluster.
    cluster: String = "default".to_owned();
    /// Name of the broker, unique in the cluster but for its slaves.
    broker: String = "broker-a".to_owned();
    /// 0 for a master, above for its slaves.
    broker_id: u32 = 0;
    /// Address to listen at. Beyond loopback only with authentication or --insecure.
    listen: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    /// Port of the broker; 0 picks one.
    port: u16 = 10911;
    /// Host, or host:port, that clients are told when it differs from the address listened at.
    advertise: Option<String> = None;
    /// Serve everybody who can reach the address, without authentication.
    insecure: bool = false;
    /// Name servers, separated by `;`.
    namesrv: Vec<String> = Vec::new();
    /// Directory of the log.
    data_dir: PathBuf = PathBuf::from("ringmq-data");
    /// Number of shards; fixed when the data directory is made (auto: the CPUs that may be used).
    shards: Option<u16> = None;
    /// Number of executors (auto: one a shard, at most one a CPU).
    cores: Option<u16> = None;
    /// Whether each executor stays on one CPU (auto: where there are CPUs to spare).
    pin: Option<String> = None;
    /// For how long a core with a CPU of its own looks for the next request before it sleeps, in µs; 0: not at all.
    busy_poll_us: u32 = 500;
    /// Address of /metrics, /healthz and /readyz; port 0 picks one, `off` serves none.
    http_listen: Option<SocketAddr> = Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5557));
    /// `sync`: acknowledge what is durable. `async`: what the device took, durable 500 ms later.
    flush: FlushMode = FlushMode::Sync;
    /// Longest time between an acknowledgement and durability with `flush = "async"`.
    async_flush: Duration = Duration::from_millis(500);
    /// Length of a file of the log, at least 1 MiB.
    segment_bytes: Bytes = Bytes::mib(256);
    /// How long messages are kept of topics that do not say, by whole segments; 0: for ever.
    retention: Duration = Duration::from_secs(72 * 3600);
    /// How many bytes are kept of a topic that does not say; 0: any number.
    retention_bytes: Bytes = Bytes(0);
    /// Growth of a shard's log after which its state is written down again: what a restart reads at most.
    snapshot_bytes: Bytes = Bytes::mib(256);
    /// Shortest time between two such writings, unless the log grew by twice snapshot_bytes.
    snapshot_pause: Duration = Duration::from_secs(10);
    /// Time after which an idle shard writes down how far its log is durable.
    idle_mark: Duration = Duration::from_millis(500);
    /// Shortest stretch of expired messages that is given back to the disk by a hole; 0: none is.
    hole_bytes_min: Bytes = Bytes::mib(1);
    /// Pages of indexes that each shard keeps in memory.
    index_cache_bytes: Bytes = Bytes::mib(16);
    /// Bytes of each shard's log that stay in memory after they were read for a consumer that is behind.
    read_cache_bytes: Bytes = Bytes::mib(16);
    /// Newest bytes of each shard's log that stay in memory for consumers at the tail.
    tail_cache_bytes: Bytes = Bytes::mib(64);
    /// Largest unit that is written at once.
    unit_bytes: Bytes = Bytes::mib(1);
    /// How far ahead a message may be delayed.
    max_delay: Duration = Duration::from_millis(limits::DELAY_MS_MAX);
    /// Delayed messages of a shard that wait behind one already delivered: the clock was set back.
    max_timers_behind: usize = 65_536;
    /// Delayed messages of a shard that were taken back before their time.
    max_timers_recalled: usize = 100_000;
    /// Messages that a group has popped from one queue and not acknowledged: then it gets no new ones of it.
    max_pop_in_flight: usize = 10_000;
    /// The same of all groups and queues of a shard together.
    max_pops_in_flight: usize = 1_000_000;
    /// Units of a shard under way to the device.
    units_in_flight: usize = 8;
    /// Units up to this length count as small.
    small_unit_bytes: Bytes = Bytes(128 << 10);
    /// Small durable units under way; beyond them records gather.
    small_units_in_flight: usize = 2;
    /// Bytes received and not yet written above which a shard's producers are not read.
    backlog_bytes: Bytes = Bytes::mib(16);
    /// Most bytes of the log in one answer to a consumer.
    fetch_bytes: Bytes = Bytes::mib(4);
    /// Stretch ahead of the log's end that is written with zeros while the log is slow; 0: none.
    zero_ahead_bytes: Bytes = Bytes::mib(16);
    /// Reads from the disk under way per shard.
    reads_in_flight: usize = 16;
    /// Time for the device to end a write, a sync or a read; later it counts as failed.
    disk_timeout: Duration = Duration::from_secs(30);
    /// Threads that send ranges of the log from file to socket; 0: the cores read and send them.
    transfer_threads: u16 = 2;
    /// Runs of records at least so long go from file to socket; 0: none do.
    transfer_bytes_min: Bytes = Bytes(64 << 10);
    /// Bytes that each core may have lent to these threads, at least 1 MiB.
    transfer_bytes: Bytes = Bytes::mib(64);
    /// Most connections.
    max_connections: usize = 10_000;
    /// Longest frame taken, at most the protocol's own bound.
    max_frame_bytes: Bytes = Bytes(limits::FRAME_BYTES_MAX as u64);
    /// Most unanswered requests of a connection.
    max_in_flight: usize = 8192;
    /// Bytes of unanswered requests above which a connection is not read.
    max_in_flight_bytes: Bytes = Bytes::mib(32);
    /// Bytes waiting to be sent above which a connection is not read; at four times this it is closed.
    max_output_bytes: Bytes = Bytes::mib(16);
    /// No writes are taken while the disk has less than this free, or less than disk_free_percent.
    disk_free_bytes: Bytes = Bytes(1 << 30);
    /// See disk_free_bytes; the smaller of both counts.
    disk_free_percent: u16 = 5;
    /// Time for a new connection to say who it is.
    handshake_timeout: Duration = Duration::from_secs(5);
    /// Time after which a silent connection with nothing to wait for is closed.
    idle_timeout: Duration = Duration::from_secs(120);
    /// Time for the rest of a frame to come.
    frame_timeout: Duration = Duration::from_secs(30);
    /// Time in which a connection must take some of what is sent to it.
    send_timeout: Duration = Duration::from_secs(30);
    /// Time for everything begun to end when the broker is stopped.
    stop_timeout: Duration = Duration::from_secs(30);
    /// Most topics.
    max_topics: usize = 100_000;
    /// Most queues of all topics together.
    max_queues: usize = 1_000_000;
    /// Most consumer groups.
    max_groups: usize = 10_000;
    /// Most members of a group.
    max_members: usize = 10_000;
    /// Most fetches of a shard that wait for messages; and so many pops.
    max_waiting_fetches: usize = 65_536;
    /// Most produce requests of a shard that wait for their write.
    max_waiting_produces: usize = 262_144;
    /// Most look-ups of a shard under way that wait for the disk: by time, key or id.
    max_lookups: usize = 256;
    /// Most segments that one request for messages by key or id looks at; the answer says where to go on.
    max_lookup_segments: usize = 4096;
    /// Longest session timeout that a member of a group may ask for.
    max_session_timeout: Duration = Duration::from_secs(300);
    /// Whether an unknown consumer group is made when it is first used.
    create_groups: bool = true;
    /// Whether an unknown topic is made when it is first used (reserved).
    auto_create_topics: bool = false;
}

impl BrokerConfig {
    /// What contradicts itself or is out of bounds, in words for the person who wrote it.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key: &'static str, reason: String| Err(ConfigError::Refused { key, reason });
        let name = |key: &'static str, text: &str| {
            let fine = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            match !text.is_empty() && text.len() <= 127 && text.chars().all(fine) {
                true => Ok(()),
                false => refuse(key, format!("{text:?}: letters, digits, - _ and . are allowed")),
            }
        };
        name("cluster", &self.cluster)?;
        name("broker", &self.broker)?;
        if !self.listen.is_loopback() && !self.insecure {
            let reason = format!(
                "{} can be reached from other machines, and this version has no authentication: \
                 listen at 127.0.0.1, or say --insecure when the network is trusted",
                self.listen
            );
            return refuse("listen", reason);
        }
        let unit = self.unit_bytes.0;
        if !(64 << 10..=16 << 20).contains(&unit) || !unit.is_multiple_of(4096) {
            return refuse("unit_bytes", "64 KiB to 16 MiB, in steps of 4 KiB".to_owned());
        }
        let segment = self.segment_bytes.0;
        if segment < 1 << 20 || !segment.is_multiple_of(4096) || segment > 16 << 30 {
            return refuse("segment_bytes", "1 MiB to 16 GiB, in steps of 4 KiB".to_owned());
        }
        if segment < 2 * unit {
            let most = Bytes(segment / 2).show();
            return refuse("unit_bytes", format!("at most half of segment_bytes, {most}"));
        }
        let frame = self.max_frame_bytes.0;
        if !(64 << 10..=limits::FRAME_BYTES_MAX as u64).contains(&frame) {
            let most = Bytes(limits::FRAME_BYTES_MAX as u64).show();
            return refuse("max_frame_bytes", format!("64 KiB to {most}, the protocol's bound"));
        }
        if self.transfer_threads > 64 {
            return refuse("transfer_threads", "at most 64".to_owned());
        }
        if self.transfer_bytes.0 < 1 << 20 {
            return refuse("transfer_bytes", "at least 1 MiB".to_owned());
        }
        if self.disk_timeout < Duration::from_secs(1) {
            return refuse("disk_timeout", "at least 1 s: disks pause".to_owned());
        }
        let idle = Duration::from_millis(10)..=Duration::from_secs(60);
        if !idle.contains(&self.idle_mark) {
            return refuse("idle_mark", "10 ms to 1 min: each mark is a write".to_owned());
        }
        if self.max_session_timeout < Duration::from_secs(1) {
            return refuse("max_session_timeout", "at least 1 s, the shortest session".to_owned());
        }
        if self.disk_free_percent > 99 {
            return refuse("disk_free_percent", "at most 99".to_owned());
        }
        if !matches!(self.pin.as_deref(), None | Some("true" | "false")) {
            return refuse("pin", "auto, true or false".to_owned());
        }
        let positive = [
            ("units_in_flight", self.units_in_flight),
            ("small_units_in_flight", self.small_units_in_flight),
            ("reads_in_flight", self.reads_in_flight),
            ("max_connections", self.max_connections),
            ("max_in_flight", self.max_in_flight),
            ("max_topics", self.max_topics),
            ("max_queues", self.max_queues),
            ("max_groups", self.max_groups),
            ("max_members", self.max_members),
            ("max_waiting_fetches", self.max_waiting_fetches),
            ("max_waiting_produces", self.max_waiting_produces),
            ("max_lookups", self.max_lookups),
            ("max_lookup_segments", self.max_lookup_segments),
        ];
        match positive.into_iter().find(|(_, value)| *value == 0) {
            Some((key, _)) => refuse(key, "must be above 0".to_owned()),
            None => Ok(()),
        }
    }

    /// The settings of one shard.
    pub(crate) fn shard(&self, shard: u16, shards: u16, log_id: u64) -> ShardConfig {
        // Without the rest of the defaults: a limit that cannot be set does not compile.
        ShardConfig {
            shard,
            shards,
            log_id,
            broker: self.broker.clone(),
            flush: self.flush,
            segment_bytes: self.segment_bytes.0,
            small_unit_bytes: self.small_unit_bytes.as_usize(),
            small_units_in_flight: self.small_units_in_flight,
            unit_bytes: self.unit_bytes.as_usize(),
            units_in_flight: self.units_in_flight,
            backlog_bytes: self.backlog_bytes.as_usize(),
            tail_cache_bytes: self.tail_cache_bytes.as_usize(),
            async_flush_ms: ms(self.async_flush),
            idle_mark_ms: ms(self.idle_mark),
            snapshot_bytes: self.snapshot_bytes.0,
            snapshot_pause_ms: ms(self.snapshot_pause),
            hole_bytes_min: self.hole_bytes_min.0,
            retention_ms: ms(self.retention),
            retention_bytes: self.retention_bytes.0,
            index_cache_bytes: self.index_cache_bytes.as_usize(),
            lookups: self.max_lookups,
            lookup_segments: self.max_lookup_segments,
            read_cache_bytes: self.read_cache_bytes.as_usize(),
            fetch_bytes: self.fetch_bytes.as_usize(),
            transfer_bytes_min: self.transfer_bytes_min.as_usize(),
            delay_ms_max: ms(self.max_delay),
            timers_behind: self.max_timers_behind,
            timers_recalled: self.max_timers_recalled,
            pop_in_flight: self.max_pop_in_flight,
            pops_in_flight: self.max_pops_in_flight,
            waiting_fetches: self.max_waiting_fetches,
            waiting_produces: self.max_waiting_produces,
            topics: self.max_topics,
            queues: self.max_queues as u64,
            groups: self.max_groups,
            members: self.max_members,
            session_timeout_ms: ms(self.max_session_timeout),
            create_groups: self.create_groups,
        }
    }

    /// The settings in force, each with its meaning and its source: what `--print-config` prints. It can be
    /// read again as a file.
    pub fn describe(&self, layers: &Layers) -> String {
        let lines = KEYS.iter().map(|key| {
            let value = format!("{} = {:?}", key.name, (key.show)(self));
            format!("# {}\n{value:<48} # {}\n", key.about.trim(), layers.source(key.name))
        });
        lines.collect()
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_has_the_brokers_settings_and_the_same_defaults() {
        let defaults = BrokerConfig::default();
        let (ours, cores) = (defaults.shard(1, 3, 7), ShardConfig::new(1, 3, 7));
        assert_eq!(format!("{ours:?}"), format!("{cores:?}"));
        let mut config = defaults;
        for (name, value) in [
            ("idle_mark", "2s"),
            ("hole_bytes_min", "3 MiB"),
            ("max_lookups", "4"),
            ("max_lookup_segments", "5"),
            ("max_waiting_produces", "6"),
            ("max_session_timeout", "7s"),
        ] {
            let key = KEYS.iter().find(|key| key.name == name).unwrap();
            (key.set)(&mut config, value).unwrap();
        }
        config.check().unwrap();
        let shard = config.shard(1, 3, 7);
        assert_eq!((shard.idle_mark_ms, shard.hole_bytes_min), (2000, 3 << 20));
        assert_eq!((shard.lookups, shard.lookup_segments), (4, 5));
        assert_eq!((shard.waiting_produces, shard.session_timeout_ms), (6, 7000));
    }

    #[test]
    fn every_limit_is_explained_and_what_is_printed_can_be_read_as_a_file() {
        let config = BrokerConfig { max_lookups: 9, ..BrokerConfig::default() };
        let text = config.describe(&Layers::default());
        assert!(KEYS.iter().all(|key| text.contains(key.about.trim()) && key.about.len() > 10));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("printed.toml");
        std::fs::write(&file, &text).unwrap();
        let mut layers = Layers::default();
        layers.file(&file).unwrap();
        assert_eq!(layers.resolve().unwrap(), config);
        let none = BrokerConfig { max_lookups: 0, ..BrokerConfig::default() };
        let error = none.check().unwrap_err().to_string();
        assert!(error.contains("max_lookups") && error.contains("above 0"), "{error}");
        let short = BrokerConfig { idle_mark: Duration::ZERO, ..BrokerConfig::default() };
        assert!(short.check().unwrap_err().to_string().contains("10 ms"));
        let short = BrokerConfig { max_session_timeout: Duration::ZERO, ..BrokerConfig::default() };
        assert!(short.check().unwrap_err().to_string().contains("1 s"));
    }

    #[test]
    fn every_default_can_be_written_and_read_back() {
        let defaults = BrokerConfig::default();
        defaults.check().unwrap();
        let mut read = BrokerConfig { port: 1, shards: Some(9), ..BrokerConfig::default() };
        for key in KEYS {
            (key.set)(&mut read, &(key.show)(&defaults)).unwrap();
        }
        assert_eq!(read, defaults);
    }

    #[test]
    fn contradictions_are_refused_in_words() {
        let open = BrokerConfig { listen: "0.0.0.0".parse().unwrap(), ..BrokerConfig::default() };
        let error = open.check().unwrap_err().to_string();
        assert!(error.contains("--insecure"), "{error}");
        BrokerConfig { insecure: true, ..open }.check().unwrap();
        let small = BrokerConfig { segment_bytes: Bytes(4096), ..BrokerConfig::default() };
        assert!(small.check().unwrap_err().to_string().contains("1 MiB"));
        let narrow = BrokerConfig { segment_bytes: Bytes::mib(1), ..BrokerConfig::default() };
        let error = narrow.check().unwrap_err().to_string();
        assert!(error.contains("unit_bytes") && error.contains("512 KiB"), "{error}");
    }
}
