//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use voussoir_queue::{Compression, Seek};

/// Looks into a queue on disk, and writes to it
#[derive(Debug, Parser)]
#[command(name = "queue", version)]
pub(crate) struct Cli {
    /// The journal's directory; no other process may have it open
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// The queue's namespace in the journal
    #[arg(long, default_value = "queue", value_name = "NAME")]
    pub(crate) namespace: String,
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List topics, their policies and their partitions
    Topics,
    /// Compact the topics that ask for it, now
    Compact,
    /// Create a topic
    Create {
        topic: String,
        /// 1 to 10,000
        #[arg(long, default_value_t = 1)]
        partitions: u32,
        /// Bytes that each partition keeps; without it, all
        #[arg(long, value_name = "BYTES")]
        retention_bytes: Option<u64>,
        /// Hours for which records are kept; without it, for ever
        #[arg(long, value_name = "HOURS")]
        retention_hours: Option<u64>,
        /// Keep only the last record of each key, when `compact` is run
        #[arg(long)]
        compact: bool,
        /// Hours for which a tombstone stays once it has been compacted
        #[arg(long, requires = "compact", default_value_t = 24, value_name = "HOURS")]
        tombstone_hours: u64,
    },
    /// Delete a topic with all its records
    Delete { topic: String },
    /// Write each line of standard input as a record
    Produce(Produce),
    /// Print records, one a line: partition, offset, key and value
    Consume(Consume),
    /// List the groups that have stored an offset
    Groups,
    /// Show how far a group is behind
    Lag { group: String },
    /// List the dead letters of a work queue
    DeadLetters(Work),
    /// Deliver dead letters of a work queue again
    Redrive {
        #[command(flatten)]
        work: Work,
        /// The dead letter; without it, all
        #[arg(long)]
        id: Option<u64>,
    },
    /// Read and unpack every batch of every partition
    Verify,
    /// Measure synced writes and reads in a topic of its own, which is deleted at the end
    Bench(Bench),
}

#[derive(Debug, Args)]
pub(crate) struct Produce {
    pub(crate) topic: String,
    /// The partition; without it, the one of the key, or each in turn
    #[arg(long)]
    pub(crate) partition: Option<u32>,
    /// What stands between key and value in a line; without it, records have no key
    #[arg(long, value_name = "TEXT")]
    pub(crate) key_separator: Option<String>,
    /// How batches are compressed
    #[arg(long, value_enum, default_value_t = Codec::None)]
    pub(crate) compression: Codec,
}

#[derive(Debug, Args)]
pub(crate) struct Consume {
    pub(crate) topic: String,
    /// Read as a member of this group, and store its offsets
    #[arg(long, conflicts_with = "from")]
    pub(crate) group: Option<String>,
    /// `earliest`, `latest`, an offset, or `@` and ms since the UNIX epoch
    #[arg(long, default_value = "earliest", value_parser = seek)]
    pub(crate) from: Seek,
    /// Records to print; without it, all that are there
    #[arg(long, value_name = "RECORDS")]
    pub(crate) max: Option<u64>,
}

/// A work queue: a group of workers on a partition.
#[derive(Debug, Args)]
pub(crate) struct Work {
    pub(crate) topic: String,
    pub(crate) partition: u32,
    pub(crate) group: String,
}

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Length of the writing
    #[arg(long, default_value_t = 5, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 100, value_name = "BYTES",
          value_parser = clap::value_parser!(u32).range(1..=262_144))]
    pub(crate) record_bytes: u32,
    /// Records on their way at a time
    #[arg(long, default_value_t = 64, value_name = "RECORDS",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) in_flight: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Codec {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl From<Codec> for Compression {
    fn from(codec: Codec) -> Self {
        match codec {
            Codec::None => Self::None,
            Codec::Gzip => Self::Gzip,
            Codec::Snappy => Self::Snappy,
            Codec::Lz4 => Self::Lz4,
            Codec::Zstd => Self::Zstd,
        }
    }
}

fn seek(word: &str) -> Result<Seek, String> {
    let number = |text: &str| text.parse().ok();
    match word {
        "earliest" => return Ok(Seek::Earliest),
        "latest" => return Ok(Seek::Latest),
        _ => {}
    }
    let seek = match word.strip_prefix('@') {
        Some(ms) => ms.parse().ok().map(Seek::Timestamp),
        None => number(word).map(Seek::Offset),
    };
    seek.ok_or_else(|| "expected `earliest`, `latest`, an offset, or `@` and ms".to_owned())
}
