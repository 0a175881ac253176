//! The log of a process on standard error.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::Error;

/// Chooses what is logged: `LEADER_LOG=debug`, or by target: `info,voussoir::lock=debug`.
const VARIABLE: &str = "LEADER_LOG";

/// Sends events at `info` and above to standard error, or what `LEADER_LOG` says.
pub(crate) fn start() -> Result<(), Error> {
    let filter: Targets = match std::env::var(VARIABLE) {
        Ok(filter) => filter.parse().map_err(|error| format!("{VARIABLE}={filter}: {error}"))?,
        Err(_) => Targets::new().with_default(tracing::Level::INFO),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines).with(filter).try_init()?;
    Ok(())
}

/// An error with its causes: `cannot listen on 127.0.0.1:8001: address already in use`.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    // Ends with the last cause.
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
