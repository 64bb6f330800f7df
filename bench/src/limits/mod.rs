//! What disk and loopback do by themselves: the figures that a result is held against.
//!
//! They drift from minute to minute on most machines, so a ratio is only worth something when both sides
//! were measured in the same run; [`Probes`] measures in slices for that. Figures that were kept
//! ([`kept`]) are better than none, and every report says how old they are.

#[cfg(target_os = "linux")]
mod disk;
pub mod kept;
mod loopback;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

#[cfg(target_os = "linux")]
pub use disk::{ColdTransfers, DurableWrites, SequentialWrites};
pub use loopback::{Ends, RoundTrips, one_stream};

use crate::record::{Latencies, LatencyFigures};

/// Everything that `limits` prints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are the keys of limits.json and say it")]
pub struct Limits {
    pub durable_write_4kib: LatencyFigures,
    pub sequential_write_1mib_qd4_bytes_per_second: f64,
    pub loopback_round_trip_256b_two_cpus: LatencyFigures,
    pub loopback_round_trip_256b_one_cpu: LatencyFigures,
    pub loopback_one_stream_bytes_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sendfile_cold_bytes_per_second: Option<f64>,
}

/// Bytes and the time that they took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Throughput {
    bytes: u64,
    elapsed: Duration,
}

impl Throughput {
    /// Adds a slice.
    pub fn add(&mut self, bytes: u64, elapsed: Duration) {
        self.bytes += bytes;
        self.elapsed += elapsed;
    }

    /// Adds another one's slices.
    pub fn merge(&mut self, other: Throughput) {
        self.add(other.bytes, other.elapsed);
    }

    /// The rate over all slices.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Measures each figure for `each`, on the disk that holds `directory`.
#[cfg(target_os = "linux")]
pub fn measure(directory: &Path, each: Duration) -> anyhow::Result<Limits> {
    let mut probes = Probes::start(directory)?;
    // In turns, so that a disk's bad second is not one figure's alone.
    const ROUNDS: u32 = 4;
    for _ in 0..ROUNDS {
        probes.round([each / ROUNDS; FIGURES])?;
    }
    Ok(probes.finish()?.limits())
}

/// Figures that are measured.
#[cfg(target_os = "linux")]
const FIGURES: usize = 6;

/// How much of a slice each figure gets, in percent: most where the tail matters.
#[cfg(target_os = "linux")]
const SLICE_PERCENT: [u32; FIGURES] = [40, 15, 15, 10, 10, 10];

/// Raw disk and loopback, ready to be measured slice by slice beside a load.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub struct Probes {
    durable_write: DurableWrites,
    on_two_cpus: RoundTrips,
    on_one_cpu: RoundTrips,
    sequential_write: SequentialWrites,
    stream: Throughput,
    /// Where sendfile is refused there is no figure.
    transfers: Option<ColdTransfers>,
}

/// What [`Probes`] measured.
#[derive(Debug)]
pub struct RawSamples {
    /// 4 KiB durable writes, one at a time.
    pub durable_write: Latencies,
    /// 256-byte round trips, one at a time, between CPUs.
    pub on_two_cpus: Latencies,
    /// The same on one CPU.
    pub on_one_cpu: Latencies,
    /// 1 MiB writes, four in flight.
    pub sequential_write: Throughput,
    /// One stream over the loopback.
    pub stream: Throughput,
    /// A cold file to a socket.
    pub transfers: Option<Throughput>,
}

impl RawSamples {
    /// The figures.
    pub fn limits(&self) -> Limits {
        Limits {
            durable_write_4kib: self.durable_write.figures(),
            sequential_write_1mib_qd4_bytes_per_second: self.sequential_write.bytes_per_second(),
            loopback_round_trip_256b_two_cpus: self.on_two_cpus.figures(),
            loopback_round_trip_256b_one_cpu: self.on_one_cpu.figures(),
            loopback_one_stream_bytes_per_second: self.stream.bytes_per_second(),
            sendfile_cold_bytes_per_second: self.transfers.map(|sent| sent.bytes_per_second()),
        }
    }
}

#[cfg(target_os = "linux")]
impl Probes {
    /// Makes the files and the connections.
    pub fn start(directory: &Path) -> anyhow::Result<Probes> {
        let loopback = |ends| RoundTrips::start(ends).context("starting the loopback probe");
        Ok(Probes {
            durable_write: DurableWrites::start(directory)?,
            on_two_cpus: loopback(Ends::OnTwoCpus)?,
            on_one_cpu: loopback(Ends::OnOneCpu)?,
            sequential_write: SequentialWrites::start(directory)?,
            stream: Throughput::default(),
            transfers: Some(ColdTransfers::start(directory)?),
        })
    }

    /// One slice of all figures.
    pub fn slice(&mut self, duration: Duration) -> anyhow::Result<()> {
        self.round(SLICE_PERCENT.map(|percent| duration * percent / 100))
    }

    fn round(&mut self, each: [Duration; FIGURES]) -> anyhow::Result<()> {
        let [durable, two_cpus, one_cpu, sequential, stream, transfer] = each;
        self.durable_write.measure(durable)?;
        self.on_two_cpus.measure(two_cpus)?;
        self.on_one_cpu.measure(one_cpu)?;
        self.sequential_write.measure(sequential)?;
        self.stream.merge(one_stream(stream).context("measuring one stream over the loopback")?);
        if let Some(transfers) = &mut self.transfers
            && transfers.measure(transfer).is_err()
        {
            self.transfers = None;
        }
        Ok(())
    }

    /// All slices' samples.
    pub fn finish(self) -> anyhow::Result<RawSamples> {
        Ok(RawSamples {
            durable_write: self.durable_write.finish()?,
            on_two_cpus: self.on_two_cpus.finish()?,
            on_one_cpu: self.on_one_cpu.finish()?,
            sequential_write: self.sequential_write.finish()?,
            stream: self.stream,
            transfers: self.transfers.map(ColdTransfers::finish),
        })
    }
}
