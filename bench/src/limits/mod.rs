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
pub use loopback::{RoundTrips, one_stream};

use crate::record::{Latencies, LatencyFigures};

/// Everything that `limits` prints.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of limits.json and say it")]
pub struct Limits {
    pub durable_write_4kib: LatencyFigures,
    pub sequential_write_1mib_qd4_bytes_per_second: f64,
    pub loopback_round_trip_256b: LatencyFigures,
    pub loopback_one_stream_bytes_per_second: f64,
}

/// Measures each figure for `each`, on the disk that holds `directory`.
#[cfg(target_os = "linux")]
pub fn measure(directory: &Path, each: Duration) -> anyhow::Result<Limits> {
    let mut probes = Probes::start(directory)?;
    probes.durable_write.measure(each)?;
    probes.round_trip.measure(each)?;
    let (durable_write, round_trip) = probes.finish()?;
    Ok(Limits {
        durable_write_4kib: durable_write.figures(),
        sequential_write_1mib_qd4_bytes_per_second: sequential_write(directory, each)?,
        loopback_round_trip_256b: round_trip.figures(),
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
    /// 256-byte round trips, one at a time.
    pub round_trip: RoundTrips,
}

#[cfg(target_os = "linux")]
impl Probes {
    /// Makes the file and the connection.
    pub fn start(directory: &Path) -> anyhow::Result<Probes> {
        Ok(Probes {
            durable_write: DurableWrites::start(directory)?,
            round_trip: RoundTrips::start().context("starting the loopback probe")?,
        })
    }

    /// One slice: half of it disk, half loopback.
    pub fn slice(&mut self, duration: Duration) -> anyhow::Result<()> {
        self.durable_write.measure(duration / 2)?;
        self.round_trip.measure(duration / 2)
    }

    /// All slices' samples: durable writes, round trips.
    pub fn finish(self) -> anyhow::Result<(Latencies, Latencies)> {
        Ok((self.durable_write.finish()?, self.round_trip.finish()?))
    }
}
