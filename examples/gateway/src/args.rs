//! The command line.

#[cfg(feature = "demo")]
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
#[cfg(feature = "demo")]
use clap::{Args, Subcommand};

/// An HTTP gateway.
#[derive(Debug, PartialEq, Eq, Parser)]
#[command(name = "gateway", version, arg_required_else_help = !cfg!(feature = "demo"))]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Serve what this file says, until SIGTERM or Ctrl-C; without it, run the demo
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the file and the certificates that it names, and exit: status 0 if it can be used, 2
    /// if not
    #[arg(long, requires = "config")]
    pub check: bool,
    /// Show the live table on standard output; without GATEWAY_LOG, no access log
    #[arg(long, requires = "config", conflicts_with = "check")]
    pub view: bool,
    /// The command
    #[cfg(feature = "demo")]
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The commands.
#[cfg(feature = "demo")]
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Run a test backend until its standard input ends: it answers a request with the path that
    /// was asked for, and /health with "ok"
    Backend(Backend),
}

/// A test backend. The demo starts five of them.
#[cfg(feature = "demo")]
#[derive(Debug, PartialEq, Eq, Args)]
pub struct Backend {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
}
