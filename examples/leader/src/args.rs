//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Several processes of which one works at a time.
///
/// Without a command: a demonstration, which ends by itself.
#[derive(Debug, Parser)]
#[command(
    name = "leader",
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
    /// Create the data of a process that has never run: once for each
    Create(Create),
    /// Run one process, which campaigns and works while it leads; SIGUSR1 makes it resign
    Serve(Serve),
    /// Run the ledger that the leader writes to
    Ledger(Ledger),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Create {
    /// Number of the process, from 1
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) id: u64,
    /// Folder with the data of the process
    #[arg(long, value_name = "FOLDER")]
    pub(crate) data: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Serve {
    /// Number of the process, from 1
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) id: u64,
    /// Address on which the process listens for its peers
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: SocketAddr,
    /// Folder with the data of the process
    #[arg(long, value_name = "FOLDER")]
    pub(crate) data: PathBuf,
    /// Another process: its number and its address; once for each
    #[arg(long = "peer", value_name = "ID=ADDR", value_parser = peer)]
    pub(crate) peers: Vec<(u64, SocketAddr)>,
    /// Address of the ledger
    #[arg(long, value_name = "ADDR")]
    pub(crate) ledger: SocketAddr,
    /// Time to live of the session, in ms: how long others wait after the leader has died
    #[arg(long, default_value = "10000", value_name = "MS", value_parser = ms)]
    pub(crate) ttl_ms: Duration,
    /// Exit when standard input closes, so that a parent that dies leaves no processes behind
    #[arg(long, hide = true)]
    pub(crate) exit_with_parent: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Ledger {
    /// Address on which the ledger listens
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: SocketAddr,
    /// File of the ledger; created if it does not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[cfg(feature = "demo")]
#[derive(Clone, Debug, Args)]
pub(crate) struct Demo {
    /// How often the leader is killed, paused and resigned
    #[arg(long, default_value_t = 2, value_name = "ROUNDS",
          value_parser = clap::value_parser!(u64).range(1..=100))]
    pub(crate) rounds: u64,
}

fn peer(text: &str) -> Result<(u64, SocketAddr), String> {
    let (id, address) = text.split_once('=').ok_or("it is not ID=ADDR")?;
    let id = id.parse().map_err(|_| format!("`{id}` is no number"))?;
    let address = address.parse().map_err(|_| format!("`{address}` is no address"))?;
    Ok((id, address))
}

fn ms(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_millis).map_err(|_| format!("`{text}` is no number of ms"))
}
