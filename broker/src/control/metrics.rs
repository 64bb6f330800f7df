//! Every metric of the broker: one list, from which a scrape is made and with which dashboards are compared.
//!
//! Names and labels are RocketMQ 5's where it has one, ours start with `ringmq_`. Figures are of each shard
//! since it was opened.

use super::ControlConfig;
use super::shared::{Latency, Published, Shared};
use crate::shard::state::wall_ms;
use hdrhistogram::Histogram;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use ringmq_core::LATENESS_BOUNDS_MS;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the broker runs.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size, cumulative, in seconds.
    Histogram,
    /// Always 1; what it says is in its labels.
    Build,
}

/// One metric.
#[derive(Clone, Copy)]
pub struct Metric {
    /// Name of its samples, without the `_sum`, `_count` and `_bucket` of histograms.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it tells.
    pub help: &'static str,
    source: Source,
}

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.name, self.kind)
    }
}

#[derive(Clone, Copy)]
enum Source {
    Shard(fn(&Published) -> u64),
    Latency(fn(&Latency) -> &Histogram<u64>),
    Lateness,
    Lag(fn(&Behind, i64) -> f64),
    Failed,
    Broker(fn(&Shared) -> i64),
    Total(fn(&Shared) -> &AtomicU64),
    Build,
}

const fn counter(name: &'static str, help: &'static str, source: fn(&Published) -> u64) -> Metric {
    Metric { name, kind: Kind::Counter, help, source: Source::Shard(source) }
}

const fn gauge(name: &'static str, help: &'static str, source: fn(&Published) -> u64) -> Metric {
    Metric { name, kind: Kind::Gauge, help, source: Source::Shard(source) }
}

const fn histogram(
    name: &'static str,
    help: &'static str,
    source: fn(&Latency) -> &Histogram<u64>,
) -> Metric {
    Metric { name, kind: Kind::Histogram, help, source: Source::Latency(source) }
}

const fn broker(name: &'static str, help: &'static str, source: fn(&Shared) -> i64) -> Metric {
    Metric { name, kind: Kind::Gauge, help, source: Source::Broker(source) }
}

const fn total(
    name: &'static str,
    help: &'static str,
    source: fn(&Shared) -> &AtomicU64,
) -> Metric {
    Metric { name, kind: Kind::Counter, help, source: Source::Total(source) }
}

/// Every metric, in the order of a scrape.
pub const METRICS: &[Metric] = &[
    counter("rocketmq_messages_in_total", "Messages stored.", |p| p.figures.messages_in),
    counter("rocketmq_messages_out_total", "Messages sent to consumers.", |p| {
        p.figures.messages_out
    }),
    counter("rocketmq_throughput_in_total", "Bytes of records stored.", |p| p.figures.bytes_in),
    counter("rocketmq_throughput_out_total", "Bytes of records sent to consumers.", |p| {
        p.figures.bytes_out
    }),
    histogram("ringmq_append_seconds", "From a record's arrival to its acknowledgement.", |l| {
        &l.append
    }),
    histogram("ringmq_flush_seconds", "Time of one durable write or sync.", |l| &l.flush),
    histogram("ringmq_index_write_seconds", "Time to write the index of one segment.", |l| {
        &l.index
    }),
    gauge("ringmq_log_appended_position", "End of the log in memory.", |p| p.figures.appended),
    gauge("ringmq_log_written_position", "End of the log that the device took.", |p| {
        p.figures.written
    }),
    gauge("ringmq_log_flushed_position", "End of the log that survives power loss.", |p| {
        p.figures.flushed
    }),
    gauge("ringmq_log_epoch", "Epoch of the log: one more at every start.", |p| {
        u64::from(p.figures.epoch)
    }),
    counter("ringmq_units_total", "Write units handed to the device.", |p| p.figures.units),
    counter("ringmq_unit_bytes_total", "Bytes of write units, padding included.", |p| {
        p.figures.unit_bytes
    }),
    counter("ringmq_padding_bytes_total", "Bytes of padding in write units.", |p| {
        p.figures.padding_bytes
    }),
    counter("ringmq_syncs_total", "Syncs of their own, beside durable writes.", |p| {
        p.figures.syncs
    }),
    counter("ringmq_requests_refused_total", "Requests refused.", |p| p.figures.refused),
    gauge("ringmq_queues", "Queues that hold messages.", |p| p.figures.queues),
    gauge("ringmq_topics", "Topics known.", |p| p.figures.topics),
    gauge("ringmq_active_groups", "Groups with members.", |p| p.figures.active_groups),
    gauge("ringmq_waiting_fetches", "Fetches that wait for messages.", |p| {
        p.figures.waiting_fetches
    }),
    gauge("ringmq_waiting_pops", "Pops that wait for messages.", |p| p.figures.waiting_pops),
    gauge("ringmq_popped_in_flight", "Messages popped and not acknowledged.", |p| {
        p.figures.popped_in_flight
    }),
    counter("ringmq_popped_total", "Messages popped.", |p| p.figures.popped),
    counter("ringmq_popped_again_total", "Messages popped, not for the first time.", |p| {
        p.figures.popped_again
    }),
    counter("ringmq_popped_acked_total", "Popped messages that were acknowledged.", |p| {
        p.figures.popped_acked
    }),
    counter(
        "ringmq_popped_kept_back_total",
        "Looks at dead messages that could not go to the dead letters yet.",
        |p| p.figures.popped_kept_back,
    ),
    gauge("ringmq_tail_bytes", "Newest bytes of the log kept in memory.", |p| p.figures.tail_bytes),
    counter("ringmq_read_bytes_total", "Bytes read back from disk for consumers.", |p| {
        p.figures.read_bytes
    }),
    counter("ringmq_lookups_total", "Look-ups by time, key or id that needed an index.", |p| {
        p.figures.lookups
    }),
    counter("ringmq_index_pages_read_total", "Pages of indexes read from disk.", |p| {
        p.figures.index_reads
    }),
    counter("ringmq_replayed_records_total", "Records replayed at start.", |p| p.figures.replayed),
    counter("ringmq_torn_bytes_total", "Bytes cut off at start as a torn tail.", |p| {
        p.figures.torn_bytes
    }),
    counter("ringmq_fenced_bytes_total", "Bytes of the log found damaged at start.", |p| {
        p.figures.fenced_bytes
    }),
    counter(
        "ringmq_restored_topics_total",
        "Topics and groups that a shard lacked at start.",
        |p| p.figures.registry_restored,
    ),
    counter("ringmq_corrupt_records_total", "Records asked for that are damaged.", |p| {
        p.figures.corrupt_reads
    }),
    counter("ringmq_failed_reads_total", "Records asked for that the disk did not give.", |p| {
        p.figures.failed_reads
    }),
    counter("ringmq_out_of_range_total", "Fetches from an offset that is not there.", |p| {
        p.figures.out_of_range
    }),
    counter("ringmq_sql_left_out_records_total", "Records that SQL filters left out.", |p| {
        p.figures.sql_left_out
    }),
    counter(
        "ringmq_retries_total",
        "Messages that consumers sent back, for another attempt.",
        |p| p.figures.retries,
    ),
    counter("ringmq_dead_letters_total", "Messages that went to a dead-letter topic.", |p| {
        p.figures.dead_letters
    }),
    counter("ringmq_transfers_total", "Runs of records sent from file to socket.", |p| {
        p.figures.transfers
    }),
    counter("ringmq_transferred_records_bytes_total", "Bytes of these runs.", |p| {
        p.figures.transfer_bytes
    }),
    counter("ringmq_segments_indexed_total", "Indexes of sealed segments written.", |p| {
        p.figures.segments_indexed
    }),
    counter("ringmq_indexes_mended_total", "Damaged indexes that were made again.", |p| {
        p.figures.indexes_mended
    }),
    counter("ringmq_punched_bytes_total", "Bytes of the log given back by holes.", |p| {
        p.figures.punched_bytes
    }),
    counter("ringmq_segments_retired_total", "Segments that nobody needed any more.", |p| {
        p.figures.segments_retired
    }),
    counter("ringmq_expired_messages_total", "Messages beyond their topic's retention.", |p| {
        p.figures.expired_messages
    }),
    counter("ringmq_snapshots_total", "Snapshots of the state written.", |p| p.figures.snapshots),
    gauge("ringmq_timers_pending", "Delayed messages that wait for their time.", |p| {
        p.figures.timers_pending
    }),
    counter("ringmq_timers_fired_total", "Delayed messages delivered to their queues.", |p| {
        p.figures.timers_fired
    }),
    counter("ringmq_timers_recalled_total", "Delayed messages that were taken back.", |p| {
        p.figures.timers_recalled
    }),
    counter(
        "ringmq_timers_moved_total",
        "Delayed messages stored again before their segment went.",
        |p| p.figures.timers_moved,
    ),
    counter("ringmq_timers_lost_total", "Delayed messages that are damaged on disk.", |p| {
        p.figures.timers_lost
    }),
    Metric {
        name: "rocketmq_consumer_lag_messages",
        kind: Kind::Gauge,
        help: "Messages that a group has not consumed, before its filter; those furthest behind.",
        source: Source::Lag(|behind, _| behind.messages as f64),
    },
    Metric {
        name: "rocketmq_consumer_ready_messages",
        kind: Kind::Gauge,
        help: "Those of them that nobody has: neither given to a member nor popped and invisible.",
        source: Source::Lag(|behind, _| behind.messages.saturating_sub(behind.in_flight) as f64),
    },
    Metric {
        name: "rocketmq_consumer_inflight_messages",
        kind: Kind::Gauge,
        help: "Those of them that somebody has: given to a member and not committed, or popped.",
        source: Source::Lag(|behind, _| behind.in_flight as f64),
    },
    Metric {
        name: "ringmq_consumer_lag_seconds",
        kind: Kind::Gauge,
        help: "Age of the oldest of them; in a sealed segment, of the newest of its topic there.",
        source: Source::Lag(|behind, now_ms| match behind.oldest_ms {
            0 => 0.0,
            oldest_ms => (now_ms - oldest_ms).max(0) as f64 / 1e3,
        }),
    },
    Metric {
        name: "ringmq_timer_lateness_seconds",
        kind: Kind::Histogram,
        help: "How long after its time a delayed message was delivered.",
        source: Source::Lateness,
    },
    Metric {
        name: "ringmq_shard_failed",
        kind: Kind::Gauge,
        help: "1 when the shard stopped writing after a disk error.",
        source: Source::Failed,
    },
    total("ringmq_transfer_bytes_total", "Bytes sent from file to socket.", |s| &s.transferred),
    total("ringmq_segments_recycled_total", "Retired segments that became new ones.", |s| {
        &s.recycled
    }),
    broker("ringmq_connections", "Connections open.", Shared::connection_count),
    broker("ringmq_ready", "1 when the broker serves.", |s| i64::from(s.unready().is_none())),
    broker("ringmq_namesrv_links", "Name servers at which it is registered.", Shared::link_count),
    Metric {
        name: "ringmq_build_info",
        kind: Kind::Build,
        help: "Version of the broker.",
        source: Source::Build,
    },
];

/// Upper bounds of histogram buckets, in nanoseconds: from a write to memory to a stalled disk.
const BOUNDS_NS: [u64; 18] = [
    50_000,
    100_000,
    150_000,
    200_000,
    300_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
];

/// Groups and topics whose lag a scrape has.
const LAGS_MAX: usize = 500;

/// Makes scrapes.
pub(super) struct Scraper {
    registry: Registry,
}

impl Scraper {
    pub(super) fn new(config: &ControlConfig, shared: Arc<Shared>) -> Scraper {
        let label =
            |name: &'static str, value: &str| (Cow::Borrowed(name), value.to_owned().into());
        let labels = [
            label("cluster", &config.cluster),
            label("node_type", "broker"),
            label("node_id", &config.broker),
        ];
        let mut registry = Registry::with_labels(labels.into_iter());
        registry.register_collector(Box::new(Figures(shared)));
        Scraper { registry }
    }

    pub(super) fn scrape(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[derive(Debug)]
struct Figures(Arc<Shared>);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (shards, failed) = (self.0.published(), self.0.failed());
        let behind = most_behind(&shards);
        let now_ms = wall_ms();
        for metric in METRICS {
            // The encoder appends these itself.
            let name = metric.name.trim_end_matches("_total").trim_end_matches("_info");
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
                Kind::Build => MetricType::Info,
            };
            let mut out = encoder.encode_descriptor(name, metric.help, None, kind)?;
            match metric.source {
                Source::Broker(value) => out.encode_gauge(&value(&self.0))?,
                Source::Total(value) => {
                    let value = value(&self.0).load(Ordering::Relaxed);
                    out.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
                }
                Source::Build => out.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?,
                Source::Failed => {
                    for (shard, failed) in failed.iter().enumerate() {
                        let label = [("shard", shard as u64)];
                        out.encode_family(&label)?.encode_gauge(&i64::from(*failed))?;
                    }
                }
                Source::Shard(value) => {
                    for (shard, published) in shards.iter().enumerate() {
                        let label = [("shard", shard as u64)];
                        sample(out.encode_family(&label)?, metric.kind, value(published))?;
                    }
                }
                Source::Lag(value) => {
                    for ((group, topic), behind) in &behind {
                        let labels = [("consumer_group", &**group), ("topic", &**topic)];
                        out.encode_family(&labels)?.encode_gauge(&value(behind, now_ms))?;
                    }
                }
                Source::Lateness => {
                    for (shard, published) in shards.iter().enumerate() {
                        let label = [("shard", shard as u64)];
                        lateness(out.encode_family(&label)?, &published.figures)?;
                    }
                }
                Source::Latency(of) => {
                    for (shard, published) in shards.iter().enumerate() {
                        let label = [("shard", shard as u64)];
                        buckets(out.encode_family(&label)?, of(&published.latency))?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// How far a group is behind on a topic, over all shards.
#[derive(Debug, Clone, Copy, Default)]
struct Behind {
    messages: u64,
    in_flight: u64,
    oldest_ms: i64,
}

type ByGroup = BTreeMap<(Arc<str>, Arc<str>), Behind>;

/// So many groups and topics as a scrape may have, those that are furthest behind.
fn most_behind(shards: &[Published]) -> ByGroup {
    let mut all = ByGroup::new();
    for lag in shards.iter().flat_map(|published| published.lags.iter()) {
        let behind = all.entry((Arc::clone(&lag.group), Arc::clone(&lag.topic))).or_default();
        behind.messages += lag.messages;
        behind.in_flight += lag.in_flight;
        if lag.oldest_ms > 0 && (behind.oldest_ms == 0 || lag.oldest_ms < behind.oldest_ms) {
            behind.oldest_ms = lag.oldest_ms;
        }
    }
    if all.len() > LAGS_MAX {
        let mut sorted: Vec<_> = all.into_iter().collect();
        sorted.sort_by_key(|(_, behind)| std::cmp::Reverse(behind.messages));
        sorted.truncate(LAGS_MAX);
        return sorted.into_iter().collect();
    }
    all
}

fn sample(mut out: MetricEncoder<'_>, kind: Kind, value: u64) -> Result<(), fmt::Error> {
    match kind {
        Kind::Counter => out.encode_counter::<NoLabelSet, u64, u64>(&value, None),
        _ => out.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
    }
}

fn lateness(mut out: MetricEncoder<'_>, figures: &ringmq_core::Figures) -> Result<(), fmt::Error> {
    let bounds = LATENESS_BOUNDS_MS.iter().map(|ms| *ms as f64 / 1e3).chain([f64::INFINITY]);
    let list: Vec<(f64, u64)> = bounds.zip(figures.timers_late).collect();
    let sum = figures.timers_late_ms as f64 / 1e3;
    out.encode_histogram::<NoLabelSet>(sum, figures.timers_late.iter().sum(), &list, None)
}

fn buckets(mut out: MetricEncoder<'_>, histogram: &Histogram<u64>) -> Result<(), fmt::Error> {
    let mut counts = [0; BOUNDS_NS.len() + 1];
    let (mut total, mut sum_ns) = (0, 0.0);
    for value in histogram.iter_recorded() {
        let (at, count) = (value.value_iterated_to(), value.count_since_last_iteration());
        // A step of the histogram that straddles a bound counts where most of it lies.
        let middle = histogram.median_equivalent(at);
        counts[BOUNDS_NS.partition_point(|bound| *bound < middle)] += count;
        total += count;
        sum_ns += middle as f64 * count as f64;
    }
    let bounds = BOUNDS_NS.iter().map(|ns| *ns as f64 / 1e9).chain([f64::INFINITY]);
    let list: Vec<(f64, u64)> = bounds.zip(counts).collect();
    out.encode_histogram::<NoLabelSet>(sum_ns / 1e9, total, &list, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn config() -> ControlConfig {
        ControlConfig {
            cluster: "c".to_owned(),
            broker: "b".to_owned(),
            broker_id: 0,
            advertise: "127.0.0.1:1".to_owned(),
            instance: 1,
            shards: 2,
            namesrv: Vec::new(),
            http_listen: None,
        }
    }

    /// The list and a scrape name the same metrics, once each.
    #[test]
    fn a_scrape_has_every_metric_of_the_list_and_no_other() {
        let shared = Arc::new(Shared::new(2));
        let lag = |messages, oldest_ms| {
            let (group, topic) = ("billing".into(), "orders".into());
            Arc::from([ringmq_core::GroupLag { group, topic, messages, in_flight: 1, oldest_ms }])
        };
        shared.publish_lags(0, lag(3, 0));
        shared.publish_lags(1, lag(4, i64::MAX));
        let text = Scraper::new(&config(), shared).scrape().unwrap();
        let lag = text.lines().find(|line| line.starts_with("rocketmq_consumer_lag_messages"));
        let lag = lag.unwrap();
        assert!(lag.contains("consumer_group=\"billing\",topic=\"orders\"} 7"), "{lag}");
        for (name, value) in [("ready", 5), ("inflight", 2)] {
            let name = format!("rocketmq_consumer_{name}_messages");
            let line = text.lines().find(|line| line.starts_with(&name)).unwrap();
            assert!(line.ends_with(&format!("}} {value}.0")), "{line}");
        }
        let mut samples: BTreeSet<&str> = BTreeSet::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let histogram = METRICS.iter().filter(|m| m.kind == Kind::Histogram).find(|m| {
                name.strip_prefix(m.name)
                    .is_some_and(|s| ["_sum", "_count", "_bucket"].contains(&s))
            });
            samples.insert(histogram.map_or(name, |m| m.name));
        }
        let listed: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(listed.len(), METRICS.len(), "a name stands twice");
        assert_eq!(samples, listed);
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn figures_come_out_with_their_labels() {
        let shared = Arc::new(Shared::new(2));
        let mut latency = Latency::default();
        latency.flush.record(120_000).unwrap();
        latency.flush.record(9_000_000_000).unwrap();
        let figures = ringmq_core::Figures { messages_in: 42, ..Default::default() };
        shared.publish(1, figures, &latency);
        shared.connections(5);
        shared.connections(-2);
        let text = Scraper::new(&config(), shared).scrape().unwrap();
        let labels = "cluster=\"c\",node_type=\"broker\",node_id=\"b\"";
        for sample in [
            format!("rocketmq_messages_in_total{{{labels},shard=\"0\"}} 0\n"),
            format!("rocketmq_messages_in_total{{{labels},shard=\"1\"}} 42\n"),
            format!("ringmq_connections{{{labels}}} 3\n"),
            format!("ringmq_flush_seconds_count{{{labels},shard=\"1\"}} 2\n"),
        ] {
            assert!(text.contains(&sample), "{sample} is not in\n{text}");
        }
        let bucket = |le: &str| {
            let line = text.lines().find(|line| {
                line.starts_with("ringmq_flush_seconds_bucket")
                    && line.contains(&format!("le=\"{le}\""))
                    && line.contains("shard=\"1\"")
            });
            line.and_then(|line| line.rsplit(' ').next()).unwrap().parse::<u64>().unwrap()
        };
        assert_eq!(
            [bucket("0.0001"), bucket("0.00015"), bucket("5.0"), bucket("+Inf")],
            [0, 1, 1, 2]
        );
    }
}
