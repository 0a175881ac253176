//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

#[cfg(feature = "demo")]
use crate::demo::Demo;

/// Counters ingested over HTTP through a write-behind cache into PostgreSQL.
///
/// Without a command: a demonstration, which ends by itself. It uses the PostgreSQL server of
/// DATABASE_URL, else it starts one of its own.
#[derive(Debug, Parser)]
#[command(
    name = "write-behind",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_required = !cfg!(feature = "demo")
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) mode: Option<Mode>,
    #[cfg(feature = "demo")]
    #[command(flatten)]
    pub(crate) demo: Demo,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Mode {
    /// Create the table, if it does not exist, in the database of DATABASE_URL
    Create(TableName),
    /// Count reports, until SIGTERM or Ctrl-C, into the database of DATABASE_URL
    Serve(Serve),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct TableName {
    /// The table: a lower-case name
    #[arg(long = "table", default_value = "page_views", value_name = "NAME", value_parser = name)]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) table: TableName,
    /// Address on which to serve HTTP; port 0 takes a free one and prints it
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub(crate) listen: SocketAddr,
    /// Folder of the journal; created if it does not exist
    #[arg(long, default_value = "data", value_name = "FOLDER")]
    pub(crate) data: PathBuf,
    /// Counters that the table does not have yet; at the limit, reports of others wait
    #[arg(long, default_value_t = 20_000, value_name = "COUNT",
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) max_backlog: u32,
    /// Milliseconds for which a counter collects reports before it is flushed
    #[arg(long = "flush-after-ms", default_value = "500", value_name = "MS",
          value_parser = millis)]
    pub(crate) flush_after: Duration,
    /// Size of the journal on the disk, in MiB
    #[arg(long, default_value_t = 256, value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(16..=16_000))]
    pub(crate) max_journal_mib: u64,
    /// Seconds for which to answer and flush after SIGTERM
    #[arg(long = "drain-seconds", default_value = "20", value_name = "SECONDS",
          value_parser = seconds)]
    pub(crate) drain: Duration,
    /// Stop when standard input ends, so that a parent that dies leaves no process behind
    #[arg(long, hide = true)]
    pub(crate) exit_with_parent: bool,
}

/// A name that needs no quotes in SQL.
fn name(word: &str) -> Result<String, String> {
    let first = word.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    let all = word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if first && all && word.len() <= 63 {
        return Ok(word.to_owned());
    }
    Err("expected 1 to 63 of a-z, 0-9 and _, the first of them no digit".to_owned())
}

fn millis(word: &str) -> Result<Duration, String> {
    within(word, 600_000).map(Duration::from_millis)
}

fn seconds(word: &str) -> Result<Duration, String> {
    within(word, 3_600).map(Duration::from_secs)
}

fn within(word: &str, max: u64) -> Result<u64, String> {
    let number = word.parse().ok().filter(|number| *number <= max);
    number.ok_or_else(|| format!("expected a number from 0 to {max}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(line: &str) -> Result<Cli, String> {
        let words = ["write-behind"].into_iter().chain(line.split_whitespace());
        Cli::try_parse_from(words).map_err(|error| error.to_string())
    }

    #[test]
    fn the_options_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_service_is_described_by_its_options() {
        let line = "serve --listen 127.0.0.1:0 --data d --table t --flush-after-ms 0";
        let Some(Mode::Serve(serve)) = parsed(line).unwrap().mode else { panic!("not serve") };
        assert_eq!((serve.listen.port(), serve.table.name.as_str()), (0, "t"));
        assert_eq!((serve.flush_after, serve.max_backlog), (Duration::ZERO, 20_000));
        assert_eq!(serve.drain, Duration::from_secs(20));
    }

    #[test]
    fn bad_options_are_answered_by_what_is_allowed() {
        let wrong = [
            ("sreve", "unrecognized subcommand 'sreve'"),
            ("serve --listen 8080", "invalid socket address"),
            ("serve --max-backlog 0", "0 is not in 1..=10000000"),
            ("serve --max-journal-mib 15", "15 is not in 16..=16000"),
            ("serve --flush-after-ms 600001", "a number from 0 to 600000"),
            ("serve --drain-seconds 99999999999999999999", "a number from 0 to 3600"),
            ("create --table Views", "expected 1 to 63 of a-z"),
            ("create --table 1st", "the first of them no digit"),
            ("create --table t;drop", "expected 1 to 63 of a-z"),
        ];
        for (line, message) in wrong {
            let said = parsed(line).unwrap_err();
            assert!(said.contains(message), "{line}: {said}");
        }
    }

    #[cfg(feature = "demo")]
    #[test]
    fn the_demo_is_the_default_and_has_a_length() {
        let seconds = |line| parsed(line).map(|cli| cli.demo.seconds);
        assert_eq!(seconds(""), Ok(20));
        assert_eq!(seconds("--seconds 50"), Ok(50));
        assert!(seconds("--seconds 51").unwrap_err().contains("51 is not in 8..=50"));
        assert!(seconds("--seconds 9 create").is_err());
    }

    #[cfg(not(feature = "demo"))]
    #[test]
    fn without_the_demo_a_command_is_required() {
        assert!(parsed("").unwrap_err().contains("requires a subcommand"));
    }
}
