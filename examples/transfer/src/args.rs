//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::bank::MAX_CENTS;
#[cfg(feature = "demo")]
use crate::demo::Demo;

/// Transfers between accounts in two PostgreSQL databases, by two-phase commit.
///
/// Without a command: a demonstration, which ends by itself. It creates two databases at the server
/// of DATABASE_URL, else it starts two servers of its own.
#[derive(Debug, Parser)]
#[command(
    name = "transfer",
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
    /// Create tables and accounts, where they do not exist, in the databases of EAST_DATABASE_URL
    /// and WEST_DATABASE_URL
    Create(Create),
    /// Create the data of a node of a group that has never run, once for each
    CreateNode(CreateNode),
    /// Transfer, until SIGTERM or Ctrl-C, between the databases of EAST_DATABASE_URL and
    /// WEST_DATABASE_URL
    Serve(Serve),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Accounts of each bank, numbered from 0
    #[arg(long, default_value_t = 100, value_name = "COUNT",
          value_parser = clap::value_parser!(i64).range(1..=10_000_000))]
    pub(crate) accounts: i64,
    /// What an account holds when it is opened
    #[arg(long, default_value_t = 100_000, value_name = "CENTS",
          value_parser = clap::value_parser!(i64).range(0..=MAX_CENTS))]
    pub(crate) cents: i64,
}

#[derive(Debug, Args)]
pub(crate) struct CreateNode {
    /// Number of the node, from 1
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) node: u64,
    /// Folder of the node's journal
    #[arg(long, value_name = "FOLDER")]
    pub(crate) data: PathBuf,
}

/// A process that is one of a group, in which the decisions are.
#[derive(Debug, Args)]
pub(crate) struct Member {
    /// Number of the node whose data were made by create-node; without it, the decisions are in the
    /// journal of this process alone
    #[arg(long, value_name = "ID", requires = "node_listen", requires = "peers",
          value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) node: Option<u64>,
    /// Address on which the node listens for its peers
    #[arg(long, value_name = "ADDR", requires = "node")]
    pub(crate) node_listen: Option<SocketAddr>,
    /// Another node: its number and its address; once for each
    #[arg(long = "peer", value_name = "ID=ADDR", requires = "node", value_parser = peer)]
    pub(crate) peers: Vec<(u64, SocketAddr)>,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Name of the coordinator, part of the ids of prepared transactions: no two services that
    /// share a server have the same, and one that is started again has its own again
    #[arg(long, default_value = "transfer", value_name = "NAME")]
    pub(crate) name: String,
    /// Address on which to serve HTTP; port 0 takes a free one and prints it
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub(crate) listen: SocketAddr,
    /// Folder of the journal with the decisions; created if it does not exist. Prepared
    /// transactions of a lost folder have to be ended by hand
    #[arg(long, default_value = "data", value_name = "FOLDER")]
    pub(crate) data: PathBuf,
    /// Transfers at once; each server needs as many max_prepared_transactions, and two connections
    /// more
    #[arg(long, default_value_t = 16, value_name = "COUNT",
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) max_transfers: u32,
    /// Milliseconds between two searches for prepared transactions that nobody ends
    #[arg(long = "recover-every-ms", default_value = "1000", value_name = "MS",
          value_parser = millis)]
    pub(crate) recover_every: Duration,
    #[command(flatten)]
    pub(crate) member: Member,
    /// Seconds for which to answer after SIGTERM
    #[arg(long = "drain-seconds", default_value = "20", value_name = "SECONDS",
          value_parser = seconds)]
    pub(crate) drain: Duration,
    /// Stop when standard input ends, so that a parent that dies leaves no process behind
    #[arg(long, hide = true)]
    pub(crate) exit_with_parent: bool,
    /// The point of the protocol at which to stop
    #[cfg(feature = "demo")]
    #[arg(long, hide = true, value_name = "POINT")]
    pub(crate) stop_at: Option<String>,
}

fn peer(text: &str) -> Result<(u64, SocketAddr), String> {
    let (id, address) = text.split_once('=').ok_or("it is not ID=ADDR")?;
    let id = id.parse().map_err(|_| format!("`{id}` is no number"))?;
    let address = address.parse().map_err(|_| format!("`{address}` is no address"))?;
    Ok((id, address))
}

fn millis(word: &str) -> Result<Duration, String> {
    within(word, 1, 600_000).map(Duration::from_millis)
}

fn seconds(word: &str) -> Result<Duration, String> {
    within(word, 0, 3_600).map(Duration::from_secs)
}

fn within(word: &str, min: u64, max: u64) -> Result<u64, String> {
    let number = word.parse().ok().filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| format!("expected a number from {min} to {max}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(line: &str) -> Result<Cli, String> {
        let words = ["transfer"].into_iter().chain(line.split_whitespace());
        Cli::try_parse_from(words).map_err(|error| error.to_string())
    }

    #[test]
    fn the_options_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_service_is_described_by_its_options() {
        let line = "serve --listen 127.0.0.1:0 --data d --name a --recover-every-ms 200";
        let Some(Mode::Serve(serve)) = parsed(line).unwrap().mode else { panic!("not serve") };
        assert_eq!((serve.listen.port(), serve.name.as_str()), (0, "a"));
        assert_eq!((serve.recover_every, serve.max_transfers), (Duration::from_millis(200), 16));
        assert_eq!(serve.drain, Duration::from_secs(20));
    }

    #[test]
    fn a_node_has_an_address_and_peers() {
        let line = "serve --node 2 --node-listen 127.0.0.1:7002 --peer 1=127.0.0.1:7001";
        let Some(Mode::Serve(serve)) = parsed(line).unwrap().mode else { panic!("not serve") };
        assert_eq!(serve.member.node, Some(2));
        assert_eq!(serve.member.peers, [(1, "127.0.0.1:7001".parse().unwrap())]);
        for wrong in ["--node 2", "--node 2 --node-listen 127.0.0.1:1", "--peer 1=127.0.0.1:1"] {
            assert!(parsed(&format!("serve {wrong}")).unwrap_err().contains("required"), "{wrong}");
        }
        assert!(parsed("serve").is_ok_and(|cli| match cli.mode {
            Some(Mode::Serve(serve)) => serve.member.node.is_none(),
            _ => false,
        }));
    }

    #[test]
    fn bad_options_are_answered_by_what_is_allowed() {
        let wrong = [
            ("sreve", "unrecognized subcommand 'sreve'"),
            ("serve --listen 8080", "invalid socket address"),
            ("serve --max-transfers 0", "0 is not in 1..=10000"),
            ("serve --recover-every-ms 0", "a number from 1 to 600000"),
            ("serve --drain-seconds 99999999999999999999", "a number from 0 to 3600"),
            ("serve --peer 1:127.0.0.1", "it is not ID=ADDR"),
            ("create-node --node 0 --data d", "0 is not in 1"),
            ("create --accounts 0", "0 is not in 1..=10000000"),
            ("create --cents 1000000000000001", "is not in 0..=1000000000000000"),
        ];
        for (line, message) in wrong {
            let said = parsed(line).unwrap_err();
            assert!(said.contains(message), "{line}: {said}");
        }
    }

    #[cfg(feature = "demo")]
    #[test]
    fn the_demo_is_the_default_and_has_a_length() {
        let rounds = |line| parsed(line).map(|cli| cli.demo.rounds);
        assert_eq!((rounds("--rounds 50"), rounds("")), (Ok(Some(50)), Ok(None)));
        assert!(parsed("--replicated --rounds 4").is_ok_and(|cli| cli.demo.replicated));
        assert!(rounds("--rounds 0").unwrap_err().contains("0 is not in 1..=100000"));
        assert!(rounds("--rounds 9 create").is_err());
    }

    #[cfg(not(feature = "demo"))]
    #[test]
    fn without_the_demo_a_command_is_required() {
        assert!(parsed("").unwrap_err().contains("requires a subcommand"));
    }
}
