//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

#[cfg(feature = "demo")]
use crate::demo::Demo;

/// Orders over four services as a durable saga, orchestrated or choreographed.
///
/// Without a command: a demonstration, which ends by itself.
#[derive(Debug, Parser)]
#[command(
    name = "order-saga",
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
    /// Take orders, until SIGTERM or Ctrl-C
    Serve(Serve),
    /// Stand in for the four services, in memory, until SIGTERM or Ctrl-C
    Services(Services),
}

/// Who knows the whole of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// A saga calls the services, step by step
    Orchestrated,
    /// Nobody: each service reacts to events of the others
    Choreographed,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// How an order is brought about
    #[arg(long, value_enum, default_value_t = Form::Orchestrated, value_name = "FORM")]
    pub(crate) form: Form,
    /// Address on which to take orders; port 0 takes a free one and prints it
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub(crate) listen: SocketAddr,
    /// Address of the services
    #[arg(long, default_value = "127.0.0.1:8081", value_name = "ADDR")]
    pub(crate) services: SocketAddr,
    /// Folder of the journal with the sagas or events; created if it does not exist
    #[arg(long, default_value = "data", value_name = "FOLDER")]
    pub(crate) data: PathBuf,
    /// Attempts of each step and of each compensation, 50 ms after the first one and then with a
    /// pause that doubles; after the last one a compensation waits for an operator
    #[arg(long, default_value_t = 10, value_name = "COUNT",
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) attempts: u32,
    /// Seconds after which an order that is not shipped is undone
    #[arg(long, default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=2_592_000))]
    pub(crate) order_seconds: u64,
    /// Stop when standard input ends, so that a parent that dies leaves no process behind
    #[arg(long, hide = true)]
    pub(crate) exit_with_parent: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Services {
    /// Address on which to serve; port 0 takes a free one and prints it
    #[arg(long, default_value = "127.0.0.1:8081", value_name = "ADDR")]
    pub(crate) listen: SocketAddr,
    /// Stop when standard input ends
    #[arg(long, hide = true)]
    pub(crate) exit_with_parent: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(line: &str) -> Result<Cli, String> {
        let words = ["order-saga"].into_iter().chain(line.split_whitespace());
        Cli::try_parse_from(words).map_err(|error| error.to_string())
    }

    #[test]
    fn the_options_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_service_is_described_by_its_options() {
        let line = "serve --listen 127.0.0.1:0 --data d --attempts 3";
        let Some(Mode::Serve(serve)) = parsed(line).unwrap().mode else { panic!("not serve") };
        assert_eq!((serve.listen.port(), serve.attempts, serve.order_seconds), (0, 3, 60));
        assert_eq!(serve.form, Form::Orchestrated);
    }

    #[test]
    fn bad_options_are_answered_by_what_is_allowed() {
        let wrong = [
            ("sreve", "unrecognized subcommand 'sreve'"),
            ("serve --listen 8080", "invalid socket address"),
            ("serve --form solo", "invalid value 'solo'"),
            ("serve --attempts 0", "0 is not in 1..=1000"),
            ("serve --order-seconds 0", "0 is not in 1..=2592000"),
        ];
        for (line, message) in wrong {
            let said = parsed(line).unwrap_err();
            assert!(said.contains(message), "{line}: {said}");
        }
    }

    #[cfg(not(feature = "demo"))]
    #[test]
    fn without_the_demo_a_command_is_required() {
        assert!(parsed("").unwrap_err().contains("requires a subcommand"));
    }
}
