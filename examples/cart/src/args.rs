//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// A shopping cart in two regions, changed on both sides of a partition and merged afterwards.
///
/// Without a command: a demonstration, which ends by itself.
#[derive(Debug, Parser)]
#[command(
    name = "cart",
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

/// A node and where it listens.
pub(crate) type Place = (u64, SocketAddr);

#[derive(Clone, Debug, Args)]
pub(crate) struct Serve {
    /// The node's id, one of `--east` or `--west`
    #[arg(long)]
    pub(crate) id: u64,
    /// The nodes of one region with their addresses, the same at each node
    #[arg(long, value_delimiter = ',', required = true, value_name = "ID=ADDRESS,...",
          value_parser = place)]
    pub(crate) east: Vec<Place>,
    /// The nodes of the other region
    #[arg(long, value_delimiter = ',', required = true, value_name = "ID=ADDRESS,...",
          value_parser = place)]
    pub(crate) west: Vec<Place>,
    /// Folder of the node's journal
    #[arg(long, value_name = "FOLDER")]
    pub(crate) data: PathBuf,
    /// The node has never run: begin it. Without this, an empty folder is refused
    #[arg(long)]
    pub(crate) create: bool,
}

fn place(text: &str) -> Result<Place, String> {
    let (id, address) = text.split_once('=').ok_or("not of the form ID=ADDRESS")?;
    let id = id.parse().map_err(|error| format!("{id}: {error}"))?;
    Ok((id, address.parse().map_err(|error| format!("{address}: {error}"))?))
}

#[cfg(feature = "demo")]
#[derive(Clone, Debug, Args)]
pub(crate) struct Demo {
    /// Seconds for which people shop, when nobody types anything
    #[arg(long, default_value_t = 16, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(4..=90))]
    pub(crate) seconds: u64,
}
