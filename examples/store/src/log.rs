//! The log of a node on standard error, and what the other commands print.

use std::error::Error;
use std::io::Write;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Chooses what is logged: `STORE_LOG=debug`, or by target: `info,voussoir::raft=debug`.
const VARIABLE: &str = "STORE_LOG";

/// Sends events at `info` and above to standard error, or what `STORE_LOG` says.
///
/// # Errors
/// Where `STORE_LOG` cannot be read.
pub fn start() -> Result<(), Box<dyn Error>> {
    let filter: Targets = match std::env::var(VARIABLE) {
        Ok(filter) => filter.parse().map_err(|error| format!("{VARIABLE}={filter}: {error}"))?,
        Err(_) => Targets::new().with_default(tracing::Level::INFO),
    };
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    tracing_subscriber::registry().with(lines).with(filter).try_init()?;
    Ok(())
}

/// Prints lines to standard output. A reader that has gone (`store | head`) does not stop the run.
pub fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// An error with its causes: `cannot listen on 127.0.0.1:8001: address already in use`.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        // Some errors show their cause themselves.
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}
