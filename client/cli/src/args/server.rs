//! `dev` and `quickstart`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::values;

/// Durability asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Flush {
    /// Acknowledged when it survives power loss
    Sync,
    /// Acknowledged when the device has taken it
    Async,
}

impl From<Flush> for ringmq::Flush {
    fn from(flush: Flush) -> ringmq::Flush {
        match flush {
            Flush::Sync => ringmq::Flush::Sync,
            Flush::Async => ringmq::Flush::Async,
        }
    }
}

/// `dev`.
#[derive(Debug, Args)]
pub struct Dev {
    /// Where messages are kept
    #[arg(long, default_value = "ringmq-data", value_name = "DIR")]
    pub data: PathBuf,
    /// Port of the name server; 0 picks one
    #[arg(long, default_value_t = 9876)]
    pub namesrv_port: u16,
    /// Port of the broker; 0 picks one
    #[arg(long, default_value_t = 10911)]
    pub broker_port: u16,
    /// Port of metrics and health; 0 picks one
    #[arg(long, default_value_t = 5557)]
    pub http_port: u16,
    /// Shards of a new data directory [default: one per CPU]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub shards: Option<u16>,
    /// Durability of messages that do not say their own
    #[arg(long, value_enum, default_value_t = Flush::Sync)]
    pub flush: Flush,
}

/// `quickstart`.
#[derive(Debug, Args)]
pub struct Quickstart {
    /// Messages
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,
    /// Bytes of each
    #[arg(long, default_value = "1KiB", value_parser = values::byte_count, value_name = "BYTES")]
    pub size: u64,
    /// Queues of the topic
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub queues: u32,
    /// Shards of the broker [default: one per CPU]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub shards: Option<u16>,
    /// When a message is acknowledged
    #[arg(long, value_enum, default_value_t = Flush::Sync)]
    pub flush: Flush,
    /// Requests in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub in_flight: u32,
    /// Messages in a request; 1 sends singly, and the client gathers
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// Then send single messages at a calm 1 000/s for so long; 0 leaves it out
    #[arg(long, default_value = "3s", value_parser = values::duration)]
    pub calm: Duration,
    /// Where the temporary directory is made; it decides which disk is used [default: the system's]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}
