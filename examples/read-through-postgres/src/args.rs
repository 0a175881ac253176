//! The command line.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::catalogue::Freshness;
#[cfg(feature = "demo")]
use crate::demo::Demo;

/// A product catalogue in PostgreSQL, read through a cache.
///
/// Without a command: a demonstration, which ends by itself. It uses the servers of DATABASE_URL
/// and REDIS_URL, else it starts ones of its own.
#[derive(Debug, Parser)]
#[command(
    name = "read-through-postgres",
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
    /// Create the table and its triggers, if they do not exist, in the database of DATABASE_URL
    Create(TableName),
    /// Serve the catalogue in the database of DATABASE_URL, until SIGTERM or Ctrl-C. With REDIS_URL
    /// its processes share what they have read, and tell each other of changes
    Serve(Serve),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct TableName {
    /// The table: a lower-case name
    #[arg(long = "table", default_value = "products", value_name = "NAME", value_parser = name)]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) table: TableName,
    /// Address on which to serve HTTP; port 0 takes a free one and prints it
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub(crate) listen: SocketAddr,
    /// Seconds for which a product is fresh. It is refreshed after three quarters of them, if it is
    /// read then
    #[arg(long = "ttl-seconds", default_value = "60", value_name = "SECONDS", value_parser = ttl)]
    pub(crate) ttl: Duration,
    /// Do not listen for changes made by others: they are seen at the end of the TTL
    #[arg(long)]
    pub(crate) no_listen: bool,
    /// Stop when standard input ends, so that a parent that dies leaves no process behind
    #[arg(long, hide = true)]
    pub(crate) exit_with_parent: bool,
}

impl Serve {
    pub(crate) fn freshness(&self) -> Freshness {
        let refresh_after = Some(self.ttl * 3 / 4);
        Freshness { ttl: self.ttl, refresh_after, ..Freshness::default() }
    }
}

/// A name that needs no quotes in SQL, and to which suffixes can be added.
fn name(word: &str) -> Result<String, String> {
    let first = word.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    let all = word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if first && all && word.len() <= 40 {
        return Ok(word.to_owned());
    }
    Err("expected 1 to 40 of a-z, 0-9 and _, the first of them no digit".to_owned())
}

fn ttl(word: &str) -> Result<Duration, String> {
    let number = word.parse().ok().filter(|number| (1..=86_400).contains(number));
    number.map(Duration::from_secs).ok_or("expected a number from 1 to 86400".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(line: &str) -> Result<Cli, String> {
        let words = ["read-through-postgres"].into_iter().chain(line.split_whitespace());
        Cli::try_parse_from(words).map_err(|error| error.to_string())
    }

    #[test]
    fn the_options_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_service_is_described_by_its_options() {
        let line = "serve --listen 127.0.0.1:0 --ttl-seconds 8 --table t --no-listen";
        let Some(Mode::Serve(serve)) = parsed(line).unwrap().mode else { panic!("not serve") };
        assert_eq!((serve.listen.port(), serve.table.name.as_str()), (0, "t"));
        assert!(serve.no_listen);
        let freshness = serve.freshness();
        assert_eq!(freshness.ttl, Duration::from_secs(8));
        assert_eq!(freshness.refresh_after, Some(Duration::from_secs(6)));
    }

    #[test]
    fn bad_options_are_answered_by_what_is_allowed() {
        let wrong = [
            ("sreve", "unrecognized subcommand 'sreve'"),
            ("serve --listen 8080", "invalid socket address"),
            ("serve --ttl-seconds 0", "a number from 1 to 86400"),
            ("serve --ttl-seconds 99999999999999999999", "a number from 1 to 86400"),
            ("create --table Products", "expected 1 to 40 of a-z"),
            ("create --table 1st", "the first of them no digit"),
        ];
        for (line, message) in wrong {
            let said = parsed(line).unwrap_err();
            assert!(said.contains(message), "{line}: {said}");
        }
    }

    #[cfg(feature = "demo")]
    #[test]
    fn the_demo_is_the_default_and_has_a_number_of_readers() {
        let readers = |line| parsed(line).map(|cli| cli.demo.readers);
        assert_eq!(readers(""), Ok(10_000));
        assert_eq!(readers("--readers 100"), Ok(100));
        assert!(readers("--readers 99").unwrap_err().contains("99 is not in 100..=20000"));
    }

    #[cfg(not(feature = "demo"))]
    #[test]
    fn without_the_demo_a_command_is_required() {
        assert!(parsed("").unwrap_err().contains("requires a subcommand"));
    }
}
