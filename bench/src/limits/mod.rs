//! What disk and loopback do by themselves: the figures that a result is held against.
//!
//! They drift from minute to minute on most machines, so a ratio is only worth something when both sides
//! were measured in the same run; [`Probes`] measures in slices for that.

#[cfg(target_os = "linux")]
mod disk;
mod loopback;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

#[cfg(target_os = "linux")]
pub use disk::{DurableWrites, sequential_write};
pub use loopback::{Ends, RoundTrips, one_stream};

use crate::record::{Latencies, LatencyFigures};

/// Everything that `limits` prints.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of limits.json and say it")]
pub struct Limits {
    pub durable_write_4kib: LatencyFigures,
    pub sequential_write_1mib_qd4_bytes_per_second: f64,
    pub loopback_round_trip_256b_two_cpus: LatencyFigures,
    pub loopback_round_trip_256b_one_cpu: LatencyFigures,
    pub loopback_one_stream_bytes_per_second: f64,
}

/// Measures each figure for `each`, on the disk that holds `directory`.
#[cfg(target_os = "linux")]
pub fn measure(directory: &Path, each: Duration) -> anyhow::Result<Limits> {
    let mut probes = Probes::start(directory)?;
    probes.durable_write.measure(each)?;
    probes.on_two_cpus.measure(each)?;
    probes.on_one_cpu.measure(each)?;
    let samples = probes.finish()?;
    Ok(Limits {
        durable_write_4kib: samples.durable_write.figures(),
        sequential_write_1mib_qd4_bytes_per_second: sequential_write(directory, each)?,
        loopback_round_trip_256b_two_cpus: samples.on_two_cpus.figures(),
        loopback_round_trip_256b_one_cpu: samples.on_one_cpu.figures(),
        loopback_one_stream_bytes_per_second: one_stream(each)
            .context("measuring one stream over the loopback")?,
    })
}

/// Raw disk and loopback, ready to be measured slice by slice beside a load.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub struct Probes {
    /// 4 KiB durable writes, one at a time.
    pub durable_write: DurableWrites,
    /// 256-byte round trips, one at a time, between CPUs.
    pub on_two_cpus: RoundTrips,
    /// The same on one CPU.
    pub on_one_cpu: RoundTrips,
}

/// What [`Probes`] measured.
#[derive(Debug)]
pub struct RawSamples {
    /// 4 KiB durable writes.
    pub durable_write: Latencies,
    /// Round trips between CPUs.
    pub on_two_cpus: Latencies,
    /// Round trips on one CPU.
    pub on_one_cpu: Latencies,
}

#[cfg(target_os = "linux")]
impl Probes {
    /// Makes the file and the connection.
    pub fn start(directory: &Path) -> anyhow::Result<Probes> {
        Ok(Probes {
            durable_write: DurableWrites::start(directory)?,
            on_two_cpus: RoundTrips::start(Ends::OnTwoCpus)
                .context("starting the loopback probe")?,
            on_one_cpu: RoundTrips::start(Ends::OnOneCpu).context("starting the loopback probe")?,
        })
    }

    /// One slice: half of it disk, a quarter each kind of round trip.
    pub fn slice(&mut self, duration: Duration) -> anyhow::Result<()> {
        self.durable_write.measure(duration / 2)?;
        self.on_two_cpus.measure(duration / 4)?;
        self.on_one_cpu.measure(duration / 4)
    }

    /// All slices' samples.
    pub fn finish(self) -> anyhow::Result<RawSamples> {
        Ok(RawSamples {
            durable_write: self.durable_write.finish()?,
            on_two_cpus: self.on_two_cpus.finish()?,
            on_one_cpu: self.on_one_cpu.finish()?,
        })
    }
}
