//! `message`.

use clap::{Args, Subcommand};
use ringmq::MessageRef;

use crate::record_format::RecordFormat;
use crate::values::{self, Place};

/// `message`.
#[derive(Debug, Subcommand)]
pub enum MessageVerb {
    /// Show one message
    Get(Get),
    /// Show the messages of a topic that have a key, the newest first
    Find(Find),
    /// Send a message once more, under the same id, to the topic that it was sent to
    Resend {
        /// Its unique id (a UUID), or its stored id as in broker-a/0003-00000000000a1b2c
        #[arg(value_parser = values::message)]
        id: MessageRef,
    },
    /// Print the messages of one queue as they lie there; no group is touched
    Print(Print),
}

/// `message print`.
#[derive(Debug, Args)]
pub struct Print {
    /// The topic
    #[arg(long)]
    pub topic: String,
    /// The queue
    #[arg(long, value_name = "N")]
    pub queue: u32,
    /// The broker, where several have the queue
    #[arg(long, value_name = "NAME")]
    pub broker: Option<String>,
    /// first, last, -10m, 2026-01-31T12:00:00Z or an offset
    #[arg(long, default_value = "first", value_parser = values::place, allow_hyphen_values = true)]
    pub from: Place,
    /// So many at most
    #[arg(long, default_value = "32", value_name = "N")]
    pub count: u64,
    /// How each is printed, as with `topic consume`; a table when left out
    #[arg(short, long, value_parser = RecordFormat::parse)]
    pub format: Option<RecordFormat>,
}

/// `message get`.
#[derive(Debug, Args)]
pub struct Get {
    /// Its unique id (a UUID), or its stored id as in broker-a/0003-00000000000a1b2c
    #[arg(value_parser = values::message)]
    pub id: MessageRef,
    /// Ask only brokers that have this topic, and find only messages of it
    #[arg(long)]
    pub topic: Option<String>,
    /// How it is printed, as with `topic consume`; everything about it when left out
    #[arg(short, long, value_parser = RecordFormat::parse)]
    pub format: Option<RecordFormat>,
}

/// `message find`.
#[derive(Debug, Args)]
pub struct Find {
    /// The topic
    #[arg(long)]
    pub topic: String,
    /// One of the first four keys of the messages
    #[arg(long)]
    pub key: String,
    /// Stored at or after this: -10m or 2026-01-31T12:00:00Z
    #[arg(long, value_parser = values::time, allow_hyphen_values = true, value_name = "TIME")]
    pub from: Option<Place>,
    /// Stored before this
    #[arg(long, value_parser = values::time, allow_hyphen_values = true, value_name = "TIME")]
    pub until: Option<Place>,
    /// So many at most, the newest
    #[arg(long, default_value = "32", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max: u32,
    /// How each is printed, as with `topic consume`; a table when left out
    #[arg(short, long, value_parser = RecordFormat::parse)]
    pub format: Option<RecordFormat>,
}
