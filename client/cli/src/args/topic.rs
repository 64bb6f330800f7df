//! `topic`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ringmq::{MessageType, Permission};

use super::server::Flush;
use crate::record_format::RecordFormat;
use crate::values::{self, Place};

/// `topic`.
#[derive(Debug, Subcommand)]
pub enum TopicVerb {
    /// Make a topic
    Create(Create),
    /// List topics
    Ls {
        /// Only names that start so
        #[arg(default_value = "")]
        prefix: String,
        /// System, retry and dead-letter topics too
        #[arg(short, long)]
        all: bool,
    },
    /// Show a topic's settings on each broker
    Describe {
        /// The topic
        topic: String,
    },
    /// Change settings; those that are not named stay
    Alter(Create),
    /// Show which broker has which queues
    Route {
        /// The topic
        topic: String,
    },
    /// Delete a topic and its messages
    Rm {
        /// The topic
        topic: String,
    },
    /// Show offsets, sizes and times of each queue
    Stats {
        /// The topic
        topic: String,
    },
    /// Send lines from stdin or a file, or messages made up for it
    Produce(Produce),
    /// Print messages; ends at the tail unless --follow is given
    Consume(Consume),
}

/// A topic and its settings.
#[derive(Debug, Args)]
pub struct Create {
    /// The topic
    pub topic: String,
    /// What is set.
    #[command(flatten)]
    pub settings: Settings,
}

/// Settings of a topic; what is not given is the default, or stays.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// Queues on each broker [default: 8]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub queues: Option<u32>,
    /// Queues that can be read, where not as many as take messages (to shrink a topic)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub read_queues: Option<u32>,
    /// What messages it takes [default: normal]
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    pub kind: Option<Kind>,
    /// What may be done with it [default: read-write]
    #[arg(long, value_enum)]
    pub permission: Option<Rights>,
    /// How long messages are kept, as in 72h [default: the broker's]
    #[arg(long, value_parser = values::duration)]
    pub retention: Option<Duration>,
    /// How many bytes are kept, as in 10GiB [default: the broker's]
    #[arg(long, value_parser = values::byte_count)]
    pub retention_bytes: Option<u64>,
    /// Durability of messages that do not say their own [default: the broker's]
    #[arg(long, value_enum)]
    pub flush: Option<Flush>,
    /// Only on this broker; may be repeated [default: all]
    #[arg(long = "broker", value_name = "BROKER")]
    pub brokers: Vec<String>,
}

/// What messages a topic takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Any
    Unspecified,
    /// Ordinary ones
    Normal,
    /// With a message group, in order
    Fifo,
    /// With a delivery time
    Delay,
    /// Of transactions
    Transaction,
}

impl From<Kind> for MessageType {
    fn from(kind: Kind) -> MessageType {
        match kind {
            Kind::Unspecified => MessageType::Unspecified,
            Kind::Normal => MessageType::Normal,
            Kind::Fifo => MessageType::Fifo,
            Kind::Delay => MessageType::Delay,
            Kind::Transaction => MessageType::Transaction,
        }
    }
}

/// What may be done with a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rights {
    /// Nothing
    None,
    /// Read only: to drain it
    Read,
    /// Write only
    Write,
    /// Both
    ReadWrite,
}

impl From<Rights> for Permission {
    fn from(rights: Rights) -> Permission {
        match rights {
            Rights::None => Permission::None,
            Rights::Read => Permission::Read,
            Rights::Write => Permission::Write,
            Rights::ReadWrite => Permission::ReadWrite,
        }
    }
}

/// `topic produce`.
#[derive(Debug, Args)]
pub struct Produce {
    /// The topic
    pub topic: String,
    /// Read lines from here instead of stdin
    #[arg(long, value_name = "PATH", conflicts_with_all = ["count", "size"])]
    pub file: Option<PathBuf>,
    /// Send so many messages made up for it, instead of lines
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Bytes of each of them
    #[arg(long, value_name = "BYTES", requires = "count", value_parser = values::byte_count)]
    pub size: Option<u64>,
    /// A property of every message; may be repeated
    #[arg(short = 'p', long = "property", value_name = "KEY=VALUE", value_parser = values::property)]
    pub properties: Vec<(String, String)>,
    /// Tag of every message
    #[arg(long)]
    pub tag: Option<String>,
    /// Key of every message; may be repeated
    #[arg(long = "key", value_name = "KEY")]
    pub keys: Vec<String>,
    /// Message group of every message: one queue, in order
    #[arg(long)]
    pub group: Option<String>,
    /// Durability asked for [default: the topic's]
    #[arg(long, value_enum)]
    pub flush: Option<Flush>,
    /// Deliver every message so long after it was sent, as in 90s or 7d; `timer ls` shows those that wait
    #[arg(long, value_parser = values::duration, value_name = "TIME")]
    pub delay: Option<std::time::Duration>,
}

/// `topic consume`.
#[derive(Debug, Args)]
pub struct Consume {
    /// The topic
    pub topic: String,
    /// How a message is printed: %t topic, %q queue, %o offset, %k keys, %v body, ...
    #[arg(
        short,
        long,
        default_value = "%v\\n",
        value_parser = RecordFormat::parse,
        long_help = format!("How a message is printed: {}", crate::record_format::PLACEHOLDERS)
    )]
    pub format: RecordFormat,
    /// first, last, -10m, 2026-01-31T12:00:00Z or an offset [default: first, with --follow last]
    #[arg(long, value_parser = values::place, allow_hyphen_values = true)]
    pub from: Option<Place>,
    /// Go on with what comes, until interrupted
    #[arg(long)]
    pub follow: bool,
    /// Read as a member of this group and commit what was printed; without it nobody else is affected
    #[arg(long)]
    pub group: Option<String>,
    /// Only messages with these tags, as in "paid || refunded"
    #[arg(long, default_value = "*")]
    pub tags: String,
    /// Only messages with such properties, as in "region = 'eu' AND amount > 100"
    #[arg(long, value_name = "EXPRESSION", conflicts_with = "tags")]
    pub sql: Option<String>,
    /// Stop after so many messages
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}
