//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Orders that are answered at once, and worked on by payment, stock, shipping and notification.
///
/// Without a command: a demonstration, which ends by itself.
#[derive(Debug, Parser)]
#[command(
    name = "order-pipeline",
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
    /// Take orders from the standard input, one JSON object a line, and work on them. The lines
    /// `dead-letters`, `redrive` and `purge` do what these commands do
    Run(Run),
    /// Do orders from the standard input synchronously, one after the other
    Direct,
    /// List the dead letters of each service
    DeadLetters(Run),
    /// Have every dead letter delivered again by the next `run`
    Redrive(Run),
    /// Discard every dead letter
    Purge(Run),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Run {
    /// Folder of the journal; created if it does not exist
    #[arg(long, default_value = "data", value_name = "FOLDER")]
    pub(crate) data: PathBuf,
}

#[cfg(feature = "demo")]
#[derive(Clone, Debug, Args)]
pub(crate) struct Demo {
    /// Seconds for which orders come in
    #[arg(long, default_value_t = 16, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(4..=600))]
    pub(crate) seconds: u64,
}
