//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Two cash machines and one balance, which a partition never overdraws.
///
/// Without a command: a demonstration, which ends by itself.
#[derive(Debug, Parser)]
#[command(
    name = "account",
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
    /// Run one node; it takes commands from the standard input, one a line
    Serve(Serve),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Serve {
    /// The node's id, one of `--nodes`
    #[arg(long)]
    pub(crate) id: u64,
    /// All nodes with their addresses, the same at each
    #[arg(long, value_delimiter = ',', required = true, value_name = "ID=ADDRESS,...",
          value_parser = node)]
    pub(crate) nodes: Vec<(u64, SocketAddr)>,
    /// Folder of the node's journal
    #[arg(long, value_name = "FOLDER")]
    pub(crate) data: PathBuf,
    /// The node has never run: begin it. Without this, an empty folder is refused
    #[arg(long)]
    pub(crate) create: bool,
}

fn node(text: &str) -> Result<(u64, SocketAddr), String> {
    let (id, address) = text.split_once('=').ok_or("not of the form ID=ADDRESS")?;
    let id = id.parse().map_err(|error| format!("{id}: {error}"))?;
    Ok((id, address.parse().map_err(|error| format!("{address}: {error}"))?))
}

#[cfg(feature = "demo")]
#[derive(Clone, Debug, Args)]
pub(crate) struct Demo {
    /// Seconds for which people withdraw, when nobody types anything
    #[arg(long, default_value_t = 16, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(4..=90))]
    pub(crate) seconds: u64,
}
