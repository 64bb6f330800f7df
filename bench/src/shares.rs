//! A run's figures as shares of what disk and loopback do by themselves.

use serde::{Deserialize, Serialize};

use crate::args::FlushMode;
use crate::limits::Limits;
use crate::plot::duration;
use crate::report::Figures;

/// A figure beside its limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Which figure.
    pub figure: String,
    /// Which limit.
    pub limit: String,
    /// What both are.
    pub unit: Unit,
    /// RingMQ's.
    pub figure_value: f64,
    /// The bare one.
    pub limit_value: f64,
    /// Figure / limit: of rates how much was reached, of latencies how many times as long it took.
    pub ratio: f64,
}

/// What a share is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// More is better.
    BytesPerSecond,
    /// Less is better.
    Microseconds,
}

impl Share {
    fn rate(figure: &str, limit: &str, ours: f64, bare: f64) -> Share {
        Share::new(Unit::BytesPerSecond, figure, limit, ours, bare)
    }

    fn time(figure: &str, limit: &str, ours: f64, bare: f64) -> Share {
        Share::new(Unit::Microseconds, figure, limit, ours, bare)
    }

    fn new(unit: Unit, figure: &str, limit: &str, ours: f64, bare: f64) -> Share {
        Share {
            figure: figure.to_owned(),
            limit: limit.to_owned(),
            unit,
            figure_value: ours,
            limit_value: bare,
            ratio: ours / bare.max(f64::MIN_POSITIVE),
        }
    }

    /// Figure, limit and ratio, for people.
    pub fn words(&self) -> [String; 3] {
        let (shown, ratio): (fn(f64) -> String, _) = match self.unit {
            Unit::BytesPerSecond => {
                (|rate| format!("{:.1} MB/s", rate / 1e6), format!("{:.1} %", self.ratio * 100.0))
            }
            Unit::Microseconds => {
                (|us| duration((us * 1e3) as u64), format!("{:.2} x", self.ratio))
            }
        };
        [shown(self.figure_value), shown(self.limit_value), ratio]
    }
}

/// What can be said of a run: rates of bodies, and medians unless requests were `queued`, many in flight
/// as fast as they go: their latency is how many there are.
pub fn shares(
    limits: &Limits,
    produce: Option<&Figures>,
    receive: Option<&Figures>,
    flush: Option<FlushMode>,
    queued: bool,
) -> Vec<Share> {
    const STREAM: &str = "one bare loopback stream";
    let mut shares = Vec::new();
    let stream = limits.loopback_one_stream_bytes_per_second;
    let round_trip = limits.loopback_round_trip_256b_two_cpus.p50_us;
    let write = limits.durable_write_4kib.p50_us;
    if let Some(produce) = produce {
        let (name, rate) = ("produce, bytes of bodies", produce.bytes_per_second);
        shares.push(Share::rate(name, STREAM, rate, stream));
        let disk = limits.sequential_write_1mib_qd4_bytes_per_second;
        shares.push(Share::rate(name, "sequential write, 1 MiB x 4", rate, disk));
        if let Some(service) = produce.service.as_ref().filter(|_| !queued) {
            let (limit, bare) = match flush {
                Some(FlushMode::Async) => ("raw round trip p50", round_trip),
                _ => ("raw durable 4 KiB write + round trip, p50", write + round_trip),
            };
            shares.push(Share::time("produce service p50", limit, service.p50_us, bare));
        }
        if let (Some(service), Some(FlushMode::Sync), false) = (&produce.service, flush, queued) {
            let bare = limits.durable_write_4kib.p99_9_us;
            let limit = "raw durable 4 KiB write p99.9";
            shares.push(Share::time("produce service p99.9", limit, service.p99_9_us, bare));
        }
    }
    if let Some(receive) = receive {
        let (name, rate) = ("receive, bytes of bodies", receive.bytes_per_second);
        shares.push(Share::rate(name, STREAM, rate, stream));
        if let Some(sendfile) = limits.sendfile_cold_bytes_per_second {
            shares.push(Share::rate(name, "bare sendfile of a cold file", rate, sendfile));
        }
        if let Some(response) = receive.response.as_ref().filter(|_| !queued) {
            let limit = "raw durable 4 KiB write + 2 round trips, p50";
            let bare = write + 2.0 * round_trip;
            shares.push(Share::time("end to end p50", limit, response.p50_us, bare));
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::kept::tests::figures;
    use crate::record::{Recorder, Sample};

    #[test]
    fn every_figure_has_its_limit() {
        let mut recorder = Recorder::new(0);
        let sample =
            Sample { due_ns: 0, sent_ns: 0, done_ns: 340_000, messages: 1, bytes: 1_000_000 };
        recorder.note(sample);
        let produce = Figures::of(&mut recorder, 1_000_000);
        let shares =
            shares(&figures(), Some(&produce), Some(&produce), Some(FlushMode::Sync), false);
        let ratio = |figure: &str, limit: &str| {
            let of = |share: &&Share| share.figure.starts_with(figure) && share.limit == limit;
            shares.iter().find(of).unwrap_or_else(|| panic!("{figure} / {limit}")).ratio
        };
        // 1 GB/s of 4; 340 µs of 120 + 50.
        assert!((ratio("produce", "one bare loopback stream") - 0.25).abs() < 1e-9);
        let sum = "raw durable 4 KiB write + round trip, p50";
        assert!((ratio("produce service p50", sum) - 2.0).abs() < 0.01);
        assert!((ratio("receive", "bare sendfile of a cold file") - 1.0).abs() < 1e-9);
        let words = shares[0].words();
        assert_eq!(words, ["1000.0 MB/s", "4000.0 MB/s", "25.0 %"]);
    }
}
